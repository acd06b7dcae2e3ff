#!/usr/bin/env python3
"""bf16 gradients: how far ours are from the exact ones, beside how far PyTorch's own autocast is.

    VENV/bin/python tests/parity/bf16.py build/autosp [--only NAME,NAME] [--markdown]

For models of models.py, loss and gradients of one batch are computed in float64 (the reference), by PyTorch under
autocast(bfloat16), by the same module converted to bfloat16 (what a native bf16 export is), and by `autosp train --dtype bf16`, of
the f32 export and of the native bf16 one. Both of ours multiply in bf16 as autocast does, so both have to be as near as
autocast is:

* all     |g - exact| / |exact| over all parameters at once, at most autocast's, mean over SEEDS batches;
* worst   the largest of the parameters' own relative errors (of those that matter, oracle.worst's measure), at most
          autocast's: an extreme of few values, so the mean difference over the batches may reach two standard errors of itself;
* loss    relative error, at most the larger of autocast's and one unit of bf16.

The last line is `N passed, N failed`; exit 1 if any failed.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile

import torch
from safetensors.torch import save_file

import models
import oracle
import run

SEQ, BATCH, SEEDS = 64, 4, 10
NAMES = ["llama", "gpt2", "qwen3", "gpt-neox", "gemma2"]


def errors(gradients, exact):
    a, b = (torch.cat([g[n].double().flatten() for n in exact]) for g in (gradients, exact))
    return ((a - b).norm() / b.norm()).item(), oracle.worst(gradients, exact)[0]


def measure(program, name, folder):
    """{way: [(all, worst, loss) of each batch]}; exact is float64 of the same weights."""
    sums = {}
    case = models.build(name)
    tied = models.export.tied_names(case.module)
    archive = os.path.join(folder, "f32.pt2")
    models.write(case, archive)
    native = models.build(name)
    native.module.to(torch.bfloat16)
    native_archive = os.path.join(folder, "bf16.pt2")
    models.write(native, native_archive)
    exact_native = models.build(name)
    exact_native.module.to(torch.bfloat16).to(torch.float32)  # the rounded weights, computed exactly
    rows = os.path.join(folder, "rows.safetensors")
    for seed in range(SEEDS):
        data = models.batch(case, BATCH, SEQ, seed=100 + seed)
        save_file(data, rows)
        loss64, exact = oracle.in_float64(case.module, data)
        loss64n, exactn = oracle.in_float64(exact_native.module, data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            auto_loss, auto = oracle.loss_and_gradients(case.module, data)
        native_loss, native_grads = oracle.loss_and_gradients(native.module, data)

        def ours(path, reference):
            grads, log = path + ".grads", os.path.join(folder, "log.jsonl") # a file each: what is read stays mapped
            if os.path.exists(log):
                os.remove(log)
            run.autosp(program, "train", path, data=rows, seq=SEQ, batch=BATCH, steps=1, dtype="bf16", threads=1, grads=grads,
                       metrics=log)
            with open(log) as file:
                return json.loads(file.readline())["loss"], run.read_gradients(grads, reference, tied)

        ways = {"autocast": (auto_loss.item(), auto, loss64, exact),
                "ours": (*ours(archive, exact), loss64, exact),
                "native PyTorch": (native_loss.item(), native_grads, loss64n, exactn),
                "ours, native": (*ours(native_archive, exactn), loss64n, exactn)}
        for way, (loss, got, want, reference) in ways.items():
            row = (*errors(got, reference), abs(loss - want.item()) / abs(want.item()))
            sums.setdefault(way, []).append(row)
    return sums


def mean(rows):
    return [statistics.mean(column) for column in zip(*rows)]


def no_worse(mine, theirs):
    d = [a[1] - b[1] for a, b in zip(mine, theirs)]
    return statistics.mean(d) <= 2 * statistics.stdev(d) / len(d) ** 0.5


def main():
    parser = argparse.ArgumentParser(description="bf16 gradients against PyTorch's autocast")
    parser.add_argument("autosp", nargs="?", default="build/autosp")
    parser.add_argument("--only", default=",".join(NAMES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    import transformers
    transformers.logging.set_verbosity_error()
    models.export.say = lambda text: None
    passed = failed = 0
    print(f"torch {torch.__version__}, S = {SEQ}, batch {BATCH}, mean of {SEEDS} batches; relative to float64: all parameters, "
          "worst parameter, loss\n")
    print("| model | PyTorch autocast | ours | ratio | PyTorch native bf16 | ours, native | ratio |\n|---|---|---|---|---|---|---|")
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(args.autosp, name, folder)
        m = {way: mean(r) for way, r in rows.items()}
        text = {way: "{:.2e} {:.2e} {:.0e}".format(*values) for way, values in m.items()}
        cells = []
        for theirs, mine in (("autocast", "ours"), ("native PyTorch", "ours, native")):
            good = [m[mine][0] <= m[theirs][0], no_worse(rows[mine], rows[theirs]), m[mine][2] <= max(m[theirs][2], 2**-8)]
            passed, failed = passed + sum(good), failed + 3 - sum(good)
            ratio = "{:.2f} {:.2f}".format(*(a / b for a, b in zip(m[mine][:2], m[theirs][:2])))
            cells += [text[theirs], text[mine], ratio + ("" if all(good) else " FAILED")]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)
    print(f"\n{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
