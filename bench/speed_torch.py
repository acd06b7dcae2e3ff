#!/usr/bin/env python3
"""A contestant of bench/speed: PyTorch on one process, eager or torch.compile. Driven over its standard input.

    speed_torch.py MODEL SEQ DTYPE eager|compile TOKENS THREADS

Prints a JSON line when it is ready, then one for every line that it reads: `run N` times N steps after one that is not
timed; `rest` gives the memory of the allocator's pools back. Best case for PyTorch: stock sdpa attention (its flash kernel
on CPUs), fused AdamW, gradients set to none, clipping by foreach norms, bf16 by autocast with f32 masters (its documented
recipe), whichever malloc the driver preloads. The loss is Hugging Face's own: not computed in chunks, by no contestant's hand.
"""
import contextlib
import ctypes
import gc
import json
import sys
import time

import torch

import speed_models


def answer(**facts):
    print(json.dumps(facts), flush=True)


def peak_bytes():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def rest():
    """Gives free pages back to the system: jemalloc's, tcmalloc's or glibc's way, whichever is loaded."""
    gc.collect()
    lib = ctypes.CDLL(None)
    for call in (lambda: lib.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0)),
                 lambda: lib.MallocExtension_ReleaseFreeMemory(), lambda: lib.malloc_trim(0)):
        with contextlib.suppress(AttributeError):
            call()


class Trainer:
    """Steps of a loss function over (input_ids, labels); lr and the rest are autosp's defaults."""

    def __init__(self, parameters, loss, data, seq, dtype):
        self.parameters, self.loss, self.data, self.seq, self.dtype = list(parameters), loss, data, seq, dtype
        self.step = 0
        groups = [{"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": 0.1},
                  {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def autocast(self):
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.dtype == "bf16" else contextlib.nullcontext()

    def one(self):
        start = time.perf_counter()
        ids = torch.tensor(speed_models.windows(self.data, self.seq, self.step)).unsqueeze(0)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(ids, ids)
        value = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return time.perf_counter() - start, value

    def serve(self, rest=rest):
        for line in sys.stdin:
            words = line.split()
            if words[:1] == ["run"]:
                steps = [self.one() for _ in range(int(words[1]) + 1)]
                answer(times=[t for t, _ in steps[1:]], losses=[v for _, v in steps], first=self.step - len(steps),
                       peak=peak_bytes())
            elif words[:1] == ["rest"]:
                self.optimizer.zero_grad(set_to_none=True)
                rest()
                answer(rested=True)


def main():
    model, seq, dtype, mode, tokens, threads = sys.argv[1:]
    seq = int(seq)
    torch.set_num_threads(int(threads))
    with open(tokens, "rb") as file:
        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint16).long().tolist()
    module = speed_models.build(model, seq)
    loss = module
    if mode == "compile":
        torch._dynamo.config.automatic_dynamic_shapes = False
        loss = torch.compile(module, dynamic=False)
    trainer = Trainer(module.parameters(), loss, data, seq, dtype)
    start = time.perf_counter()
    _, value = trainer.one()
    answer(ready=True, first_step=time.perf_counter() - start, loss=value, parameters=sum(p.numel() for p in trainer.parameters))
    trainer.serve()


if __name__ == "__main__":
    main()
