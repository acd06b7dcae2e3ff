#!/usr/bin/env python3
"""Tokens per second: autosp against PyTorch eager, on the same machine in the same run.

    VENV/bin/python bench/pytorch.py [build/autosp] [--seq N,N] [--threads N] [--rounds N] [--layers N --hidden N ...]

Both train the demo's model (or another Llama by the options) in float32 on one rank with the same batch, AdamW and
clipping. Measurements alternate between the two programs, round by round, so that a change in the machine's load meets
both; each round's figure is the median over its steps after the first two. Prints a table with the medians over rounds and
their spread. The aim is a ratio of at least 0.7 on the demo model.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(ROOT, "tools"))

import torch

import export

TEXT = os.path.join(ROOT, "examples", "tiny-text", "train.txt")


def build(args):
    from transformers import LlamaConfig
    config = LlamaConfig(vocab_size=256, num_hidden_layers=args.layers, hidden_size=args.hidden, intermediate_size=args.ffn,
                         num_attention_heads=args.heads, num_key_value_heads=args.kv, max_position_embeddings=131072,
                         bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    return export.CausalLoss(export.build_model(config, dtype=torch.float32))


class Eager:
    """Steps of PyTorch; each call runs some and returns their seconds."""

    def __init__(self, module, batch, seq):
        self.module, self.batch, self.seq, self.step = module, batch, seq, 0
        self.data = torch.tensor(list(open(TEXT, "rb").read()))
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def __call__(self, steps):
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            at = [((self.step * self.batch + i) * self.seq) % (len(self.data) - self.seq) for i in range(self.batch)]
            ids = torch.stack([self.data[a : a + self.seq] for a in at])
            self.optimizer.zero_grad()
            self.module(ids, ids).backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            times.append(time.perf_counter() - start)
            self.step += 1
        return times


def ours(args, archive, seq, steps, folder):
    log = os.path.join(folder, "metrics.jsonl")
    if os.path.exists(log):
        os.remove(log)
    subprocess.run([args.autosp, "train", archive, "--data", TEXT, "--seq", str(seq), "--batch", str(args.batch),
                    "--steps", str(steps), "--lr", "1e-3", "--schedule", "constant", "--threads", str(args.threads),
                    "--metrics", log], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(log) as file:
        return [json.loads(line)["step_s"] for line in file]


def main():
    parser = argparse.ArgumentParser(description="autosp against PyTorch eager")
    parser.add_argument("autosp", nargs="?", default=os.path.join(ROOT, "build", "autosp"))
    parser.add_argument("--seq", default="1024", help="comma-separated lengths")
    for name, default in dict(batch=2, threads=2, rounds=3, steps=8, layers=4, hidden=128, ffn=344, heads=4, kv=4).items():
        parser.add_argument("--" + name, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    export.say = lambda text: None
    module = build(args)
    print(f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters, batch {args.batch}, {args.threads} threads, "
          f"float32, torch {torch.__version__}; median (lowest to highest round)")
    print(f"{'S':>7}  {'PyTorch tok/s':>28}  {'autosp tok/s':>28}  ratio")
    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, "model.pt2")
        export.export_module(module, archive, module.m.config, strip=True)
        for seq in map(int, args.seq.split(",")):
            eager, rates = Eager(module, args.batch, seq), ([], [])
            for _ in range(args.rounds):
                for rate, times in zip(rates, (eager(args.steps), ours(args, archive, seq, args.steps, folder))):
                    rate.append(args.batch * seq / statistics.median(times[2:]))
            text = [f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in rates]
            ratio = statistics.median(b / a for a, b in zip(*rates))
            print(f"{seq:>7}  {text[0]:>28}  {text[1]:>28}  {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
