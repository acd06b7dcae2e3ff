#!/usr/bin/env python3
"""Writes the fuzz targets' seeds into fuzz/corpus (needs torch >= 2.9; the seeds are committed).

Seeds are small on purpose: a fuzzer changes a few bytes of each at a time. Two modules of a handful of operators stand
for the exporter's output; the IR's seeds are cut from the tests' .ir files by hand.
"""
import json
import os
import struct
import sys
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))

import torch
import torch.nn.functional as F

import export


class Tiny(torch.nn.Module):
    """An embedding tied to its head."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(256, 4)

    def forward(self, input_ids, labels):
        return F.cross_entropy((self.embed(input_ids) @ self.embed.weight.T).flatten(0, 1), labels.flatten())


class Block(torch.nn.Module):
    """Attention with a causal mask, a norm, a reshaped residual."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(256, 4), torch.nn.Linear(4, 256)
        self.norm, self.qkv = torch.nn.LayerNorm(4), torch.nn.Linear(4, 12)

    def forward(self, input_ids, labels):
        x = self.embed(input_ids)
        b, s, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, s, 3, 2, 2).permute(2, 0, 3, 1, 4)
        mask = torch.ones(s, s, dtype=torch.bool).tril()
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, s, d)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten(), ignore_index=-100)


class Ops(torch.nn.Module):
    """One of each operator that models use beside those of Block."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(256, 4)
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, input_ids, labels):
        x = self.embed(input_ids)
        b, s, d = x.shape
        x = self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        p = torch.arange(s)
        angle = torch.outer(p, torch.tensor([1.0, 0.1])).float()
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        x = x * cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * sin
        gate, up = torch.chunk(torch.cat([x, x], -1), 2, dim=-1)
        x = F.silu(gate) * up + F.gelu(x) - torch.tanh(x) / 3 + F.relu(x).sqrt()
        near = (p[:, None] >= p[None, :]) & (p[:, None] - p[None, :] < 4)
        w = torch.einsum("bqd,bkd->bqk", x, x).masked_fill(~near, float("-inf")).softmax(-1)
        x = torch.where(input_ids[..., None] > 0, (w @ x).clamp(-5, 5), x.new_zeros(b, s, d))
        x = x.repeat_interleave(2, dim=-1)[:, :, ::2] + F.pad(x[..., 1:], (0, 1)) + x.cumsum(1)
        logits = F.linear(x, self.embed.weight).log_softmax(-1)
        picked = logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        valid = (labels != -100).float()
        return -(picked * valid).sum() / valid.sum()


def write(target, name, data):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def archives():
    for name, module in ("tiny", Tiny()), ("block", Block()), ("ops", Ops()):
        ids = torch.zeros(2, 8, dtype=torch.long)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, name + ".pt2")
            export.export_loss(module, path, {"input_ids": ids, "labels": ids}, strip=True)
            with zipfile.ZipFile(path) as z:
                files = {n: z.read(n) for n in z.namelist()}
            if name == "tiny":
                write("archive", name, open(path, "rb").read())
        find = lambda end: next(json.loads(d) for n, d in files.items() if n.endswith(end))
        program, weights = find("models/model.json"), find("model_weights_config.json")
        for entry in weights["config"].values():
            entry["path_name"] = "weight_0"
        compact = lambda o: json.dumps(o, separators=(",", ":"))
        write("json", name, compact(program) + "\0" + compact(weights))


def tensors():
    def st(header, data=b""):
        text = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<Q", len(text)) + text + data
    write("safetensors", "empty", st({}))
    write("safetensors", "two", st({
        "__metadata__": {"format": "pt", "a": "b"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}}, bytes(26)))
    for t, size in ("F64", 8), ("I64", 8), ("I32", 4), ("F16", 2), ("BOOL", 1), ("U8", 1):
        write("safetensors", t.lower(), st({"x": {"dtype": t, "shape": [1], "data_offsets": [0, size]}}, bytes(size)))


def sizes():
    s = "Symbol('s77', integer=True, positive=True)"
    for name, text in {
        "symbol": s, "integer": "Integer(-5)", "bare": "s77",
        "sum": f"Add(Mul(Integer(2), {s}), Integer(-1))", "power": f"Pow({s}, Integer(2))",
        "division": f"FloorDiv(Add({s}, Integer(7)), Integer(8))", "mod": f"Mod({s}, Integer(-3))",
        "python": f"PythonMod({s}, Integer(3))", "ceil": f"CeilToInt({s})", "max": f"Max(Integer(1), {s})",
        "min": f"Min(Integer(1), {s}, Integer(2))", "other": f"Where({s})", "eq": f"Eq({s}, Integer(4))",
    }.items():
        write("sympy", name, text)


archives()
tensors()
sizes()
