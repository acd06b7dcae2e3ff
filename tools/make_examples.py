#!/usr/bin/env python3
"""Writes the example models of examples/ with tools/export.py.

    python3 tools/make_examples.py [NAME...]        # needs torch 2.13, transformers 5.17

`demo` is a small byte-level Llama with random initial weights, for scripts/demo. The others have the shapes of published
Llama models and no weights: for `autosp plan`, and for training with `--weights FOLDER` where the real weights are at
hand. Their configs are written out here because nothing is downloaded; each graph is in float32 with the model's own loss.
Source locations are stripped and the graph is compressed, which makes an 8B model 50 kB.
"""
import os
import sys

import torch

import export

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples")


def llama(layers, hidden, ffn, heads, kv, vocab, positions, rope, tied=False, eps=1e-5, bos=1, eos=2, **more):
    from transformers import LlamaConfig
    return LlamaConfig(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads,
                       num_key_value_heads=kv, vocab_size=vocab, max_position_embeddings=positions, rope_parameters=rope,
                       tie_word_embeddings=tied, rms_norm_eps=eps, bos_token_id=bos, eos_token_id=eos, **more)


def rope3(factor):
    """The rotary scaling of Llama 3.1 and later."""
    return dict(rope_type="llama3", rope_theta=500000.0, factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192)


LLAMA3 = dict(vocab=128256, positions=131072, bos=128000, eos=128001)
SHAPES = {
    "llama-3.2-1b": lambda: llama(16, 2048, 8192, 32, 8, rope=rope3(32.0), tied=True, head_dim=64, **LLAMA3),
    "llama-3.2-3b": lambda: llama(28, 3072, 8192, 24, 8, rope=rope3(32.0), tied=True, head_dim=128, **LLAMA3),
    "llama-3.1-8b": lambda: llama(32, 4096, 14336, 32, 8, rope=rope3(8.0), **LLAMA3),
    "llama-2-13b": lambda: llama(40, 5120, 13824, 40, 40, 32000, 4096, dict(rope_type="default", rope_theta=10000.0)),
    "llama-3.1-405b": lambda: llama(126, 16384, 53248, 128, 8, rope=rope3(8.0), **LLAMA3),
    "context-bench": lambda: llama(8, 256, 704, 8, 8, 32768, 1 << 20, dict(rope_type="default", rope_theta=10000.0)),
}


def demo(path):
    """Bytes as tokens. Initial weights keep only a few bits of mantissa: as good to start from, and they compress in git."""
    torch.manual_seed(7)
    config = llama(DEMO["layers"], DEMO["hidden"], DEMO["ffn"], DEMO["heads"], DEMO["kv"], 256, 131072,
                   dict(rope_type="default", rope_theta=10000.0), bos=None, eos=None)
    model = export.build_model(config, dtype=torch.float32)
    with torch.no_grad():
        for param in model.parameters():
            bits = param.view(torch.int32)
            bits.copy_((bits + (1 << 19)) & ~((1 << 20) - 1))  # sign, exponent, 3 bits of mantissa
    export.export_module(export.CausalLoss(model, "same"), path, config, strip=True)


DEMO = dict(layers=4, hidden=128, ffn=344, heads=4, kv=4)


def main():
    names = sys.argv[1:] or ["demo", *SHAPES]
    for name in names:
        path = os.path.join(FOLDER, name + ".pt2")
        if name == "demo":
            demo(path)
        else:
            export.export_huggingface(SHAPES[name](), path, weights=False, dtype=torch.float32, strip=True)
        print(f"{path}: {os.path.getsize(path) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
