#!/usr/bin/env python3
"""autosp against PyTorch, model by model.

    tests/parity/setup.sh VENV && VENV/bin/python tests/parity/run.py build/autosp [--only NAME,NAME] [--ranks 1,2,4]

For every model of models.py (random small configs, stock code, exported by tools/export.py):

* gradients: `train --grads` at each number of ranks, against the same module in float64. Loss within 1e-5 relatively, every
  gradient within |a - b| <= 1e-5 max(|b|, 1e-4 |all gradients|); the sequence length, 33, is divided by none of the ranks.
* training: the losses of 20 AdamW steps on one rank, with clipping and weight decay, within 1e-4 of torch.optim.AdamW's.
* checkpoint (Hugging Face models): what those 20 steps saved opens with from_pretrained, has PyTorch's loss on new
  text within 1e-4, and generates.

Prints a table (--markdown for docs/) and a last line `N passed, N failed`; each cell of the table is one test. Exit 1 if any
failed. An autosp that refuses a model fails its tests; its message is printed below the table.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings

import torch
from safetensors.torch import load_file, save_file

import models
import oracle

ROWS, SEQ, BATCH, STEPS = 40, 33, 2, 20
ADAMW = dict(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0)
TOLERANCE, CURVE = 1e-5, 1e-4


class Refused(Exception):
    """autosp ended with a message."""


def autosp(program, command, *arguments, **options):
    line = [program, command, *arguments]
    for key, value in options.items():
        line += ["--" + key.replace("_", "-"), str(value)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        message = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise Refused(f"status {done.returncode}: " + " / ".join(message[-3:]))
    return done.stdout


def train_torch(module, data):
    """The losses of STEPS steps of torch.optim.AdamW on `data`, two rows a step; the module is left trained."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [dict(params=[p for p in params if p.dim() >= 2], weight_decay=ADAMW["weight_decay"]),
              dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=ADAMW["lr"], eps=ADAMW["eps"],
                                  betas=(ADAMW["beta1"], ADAMW["beta2"]))
    losses = []
    for step in range(STEPS):
        rows = slice(step * BATCH, step * BATCH + BATCH)
        optimizer.zero_grad()
        loss = module(**{key: value[rows] for key, value in data.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, ADAMW["clip"])
        optimizer.step()
        losses.append(loss.item())
    return losses


def read_gradients(path, names, tied):
    """{FQN: gradient} under the names of `names`; a tied parameter may be stored under any of its names."""
    stored = load_file(path)
    other = {}
    for name, first in tied.items():
        other.setdefault(first, []).append(name)
    found = {}
    for name in names:
        hits = [n for n in [name, *other.get(name, [])] if n in stored]
        if not hits:
            raise Refused(f"--grads lacks {name}")
        found[name] = stored[hits[0]]
    extra = set(stored) - set(names) - set(tied)
    if extra:
        raise Refused(f"--grads has {sorted(extra)[0]}, which is not trained")
    return found


class Row:
    """What was measured with one model."""

    def __init__(self, name):
        self.name, self.cells, self.notes = name, {}, []

    def check(self, column, test):
        """Runs a test that returns (text, passed)."""
        try:
            self.cells[column] = test()
        except Refused as error:
            self.cells[column] = ("-", False)
            if str(error) not in self.notes:
                self.notes.append(str(error))
        except Exception as error:  # a test that breaks is a failed test
            self.cells[column] = ("error", False)
            self.notes.append(f"{type(error).__name__}: {error}")


def measure(program, name, ranks, folder, device):
    row = Row(name)
    archive, rows = os.path.join(folder, "model.pt2"), os.path.join(folder, "data.safetensors")
    try:
        case = models.build(name)
        models.write(case, archive)
    except Exception as error:  # PyTorch's or transformers' refusal; there is nothing to compare
        row.notes.append(f"does not export: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        row.cells["export"] = ("refused", False)
        return row
    data = models.batch(case, ROWS, SEQ)
    save_file(data, rows)
    first = {key: value[:BATCH] for key, value in data.items()}
    loss, gradients = oracle.in_float64(case.module, first)
    tied = models.export.tied_names(case.module)
    common = dict(data=rows, seq=SEQ, batch=BATCH, schedule="constant", threads=1, dtype="f32", device=device, **ADAMW)
    metrics, out = os.path.join(folder, "metrics.jsonl"), os.path.join(folder, "out")

    def losses(path):
        with open(path) as file:
            return [json.loads(line)["loss"] for line in file]

    def gradient(p):
        grads = os.path.join(folder, f"grads-{p}.safetensors")
        if p == 1:  # one run serves the gradients, the curve and the checkpoint
            log = metrics
            autosp(program, "train", archive, **common, ranks=1, steps=STEPS, grads=grads, metrics=log, out=out)
        else:
            log = os.path.join(folder, f"metrics-{p}.jsonl")
            autosp(program, "train", archive, **common, ranks=p, steps=1, grads=grads, metrics=log)
        error, place = oracle.worst(read_gradients(grads, gradients, tied), gradients)
        off = abs(losses(log)[0] - loss.item()) / abs(loss.item())
        passed = error <= TOLERANCE and off <= TOLERANCE
        if not passed:
            row.notes.append(f"{p} ranks: loss off by {off:.1e}, worst gradient {place} {error:.1e}")
        return f"{off:.0e} {error:.1e}", passed

    for p in ranks:
        row.check(f"P={p}", lambda: gradient(p))

    expected = train_torch(case.module, data)

    def curve():
        if not os.path.exists(metrics):
            raise Refused("no training run")
        got = losses(metrics)
        if len(got) != STEPS:
            raise Refused(f"{len(got)} steps were logged, not {STEPS}")
        off = max(abs(a - b) for a, b in zip(got, expected))
        return f"{off:.1e}", off <= CURVE

    def checkpoint():
        from transformers import AutoModelForCausalLM
        path = os.path.join(out, f"checkpoint-{STEPS}")
        if not os.path.isdir(path):
            raise Refused(f"no {os.path.basename(path)}")
        if hasattr(case.module.m, "peft_config"):
            return compare(with_adapter(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation=case.module.m.config._attn_implementation,
                output_loading_info=True)
        missing = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
        if missing:
            raise Refused(f"from_pretrained: missing or unexpected {missing[0]}")
        return compare(model)

    def with_adapter(path):
        """The base model, which was not trained, with the checkpoint's adapter as PEFT loads it."""
        import adapter
        import peft
        adapter.convert(path, os.path.join(folder, "adapter"))
        base = models.build(name).module.m.unload()
        return peft.PeftModel.from_pretrained(base, os.path.join(folder, "adapter"))

    def compare(model):
        text = models.batch(case, 2, 25, seed=77)
        with torch.no_grad():
            a = type(case.module)(model, case.labels)(**text).item()
            b = case.module(**text).item()
            model.generate(text["input_ids"][:, :8], max_new_tokens=4, do_sample=False)
        return f"{abs(a - b):.1e}", abs(a - b) <= CURVE

    if 1 in ranks:
        row.check("20 steps", curve)
        if case.config is not None:
            row.check("checkpoint", checkpoint)
    return row


def print_table(table, columns, markdown):
    head = ["model", *columns]
    body = [[row.name, *(("" if c not in row.cells else row.cells[c][0] + ("" if row.cells[c][1] else " FAILED"))
                         for c in columns)] for row in table]
    width = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    form = lambda line: "  ".join(cell.ljust(w) for cell, w in zip(line, width)).rstrip()
    if markdown:
        form = lambda line: "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, width)) + " |"
    print(form(head))
    if markdown:
        print("|" + "|".join("-" * (w + 2) for w in width) + "|")
    for line in body:
        print(form(line))


def main():
    parser = argparse.ArgumentParser(description="autosp against PyTorch")
    parser.add_argument("autosp", nargs="?", default="build/autosp")
    parser.add_argument("--only", help="comma-separated model names")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--device", default="cpu", choices=("cpu", "ref", "cuda"))
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models.export.say = lambda text: None
    ranks = [int(p) for p in args.ranks.split(",")]
    names = args.only.split(",") if args.only else list(models.FAMILIES)
    unknown = [name for name in names if name not in models.FAMILIES]
    if unknown:
        parser.error(f"no model {unknown[0]}; there are {', '.join(models.FAMILIES)}")
    start, table = time.time(), []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            table.append(measure(args.autosp, name, ranks, folder, args.device))
        cells = table[-1].cells.values()
        print(f"{name}: {sum(ok for _, ok in cells)} of {len(cells)} ({time.time() - start:.0f} s)", file=sys.stderr)
    columns = [f"P={p}" for p in ranks] + ["20 steps", "checkpoint"]
    if any("export" in row.cells for row in table):
        columns.append("export")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, device {args.device}, float32, S = {SEQ}. "
          "P columns: relative error of the loss, and of the worst gradient (limit 1e-5);\n"
          "20 steps, checkpoint: largest difference of a loss (limit 1e-4).\n")
    print_table(table, columns, args.markdown)
    for row in table:
        for note in row.notes:
            print(f"\n{row.name}: {note}", end="")
    results = [ok for row in table for _, ok in row.cells.values()]
    print(f"\n\n{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
