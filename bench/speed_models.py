"""The models of bench/speed, as plain Hugging Face modules with drawn weights, and what a step of them costs.

Both are the shape of a known model: GPT-2 small (124 M parameters, tied head, layer norms, learnt positions) and a Llama of
162 M (rotary positions, gated MLP, RMS norms, head of its own). Shared by the driver and the PyTorch workers, so that every
contestant trains the same weights on the same tokens.
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))

SHAPES = {  # width, inner width of the MLP, its matrices, vocabulary, heads
    "gpt2": dict(d=768, ffn=3072, mats=2, vocab=50257, heads=12),
    "llama": dict(d=768, ffn=3072, mats=3, vocab=32000, heads=12),
}


def layers(seq):
    return 2 if seq >= 16384 else 12


def positions(seq):
    return max(1024, seq)


def config(model, seq):
    from transformers import GPT2Config, LlamaConfig
    s = SHAPES[model]
    if model == "gpt2":
        return GPT2Config(n_layer=layers(seq), n_positions=positions(seq), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                          bos_token_id=None, eos_token_id=None)
    return LlamaConfig(vocab_size=s["vocab"], num_hidden_layers=layers(seq), hidden_size=s["d"], intermediate_size=s["ffn"],
                       num_attention_heads=s["heads"], num_key_value_heads=s["heads"], max_position_embeddings=131072,
                       bos_token_id=None, eos_token_id=None)


def build(model, seq, attn="sdpa"):
    """The module whose forward(input_ids, labels) is the loss. The same weights in every process."""
    import torch

    import export
    export.say = lambda text: None
    torch.manual_seed(0)
    return export.CausalLoss(export.build_model(config(model, seq), dtype=torch.float32, attn=attn))


def flops(model, seq):
    """Of one step with one sequence: 6 per token and weight that multiplies, and per visible score and channel 4 forward
    and 8 backward. Work that a method does again is not counted."""
    s = SHAPES[model]
    weights = layers(seq) * (4 * s["d"] ** 2 + s["mats"] * s["d"] * s["ffn"]) + s["vocab"] * s["d"]
    return 6 * seq * weights + 12 * layers(seq) * (seq * (seq + 1) / 2) * s["d"]


def tokens(seq, count=8):
    """Token ids, `count` sequences and one more token, drawn once for all (0..31999, so that any model takes them)."""
    import random
    rng = random.Random(seq)
    return [int(32000 * rng.random() ** 2) for _ in range(count * seq + 1)]


def windows(data, seq, step):
    """The ids of a step: the loader's rule of autosp, so that the losses can be compared."""
    at = (step * seq) % (len(data) - seq)
    return data[at : at + seq]
