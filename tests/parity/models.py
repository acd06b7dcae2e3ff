"""The models of the parity suite: Hugging Face families with small random configs, and plain nn.Module transformers.

FAMILIES[name]() returns a Case: a module from named int64 (batch, sequence) tensors to its mean loss, in float32, with random
weights. Sizes are small but not degenerate: two or more layers, grouped key-value heads, windows shorter than the sequence,
a vocabulary of 256 (autosp trains on bytes).
"""
import importlib.util
import math
import os
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
import export
from each_operator import EachOperator
from operators import Operators

VOCAB = 256


@dataclass
class Case:
    module: nn.Module
    labels: str = "shifted"     # who shifts: the loader, or the module ("same")
    inputs: tuple = ()          # beyond input_ids and labels: position_ids, document_ids
    config: object = None       # of a Hugging Face model
    max_seq: int = None         # where the module has a table of positions
    chosen: bool = False        # the module chose its parameters' values; else they are drawn
    padded: bool = False        # token 0 is padding: at the end of row 0, at the start of the others


# ---------------------------------------------------------------------------------------------------------- Hugging Face

def small(**more):
    """Sizes shared by the Llama-like configs."""
    return dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
                pad_token_id=None) | more


class PaddedLoss(export.CausalLoss):
    """Passes the attention mask that a tokenizer would give with padded rows."""

    def forward(self, input_ids, labels):
        return self.m(input_ids=input_ids, attention_mask=(input_ids != 0).long(), labels=labels, use_cache=False).loss


def for_version(kwargs, version):
    """transformers 4 has rope_theta and rope_scaling instead of rope_parameters."""
    if int(version.split(".")[0]) >= 5 or "rope_parameters" not in kwargs:
        return kwargs
    kwargs = dict(kwargs)
    rope = dict(kwargs.pop("rope_parameters"))
    return kwargs | dict(rope_theta=rope.pop("rope_theta"), rope_scaling=rope)


def huggingface(config_class, kwargs, attn="sdpa", labels="same", inputs=(), padded=False):
    def build():
        import transformers
        config = getattr(transformers, config_class)(**for_version(kwargs, transformers.__version__))
        model = export.build_model(config, attn=attn, dtype=torch.float32)
        module = PaddedLoss(model) if padded else export.CausalLoss(model, labels)
        return Case(module, labels, inputs, model.config, padded=padded)
    return build


def peft_lora():
    """A stock PEFT LoRA model: adapters on the projections of attention and one whole layer trained, dropout 0."""
    import peft
    case = huggingface("LlamaConfig", small())()
    case.module.m = peft.get_peft_model(case.module.m, peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["lm_head"], task_type="CAUSAL_LM"))
    return case


LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64)
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=None)
GEMMA = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=10, num_hidden_layers=3)
ALIBI = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=None,
             eos_token_id=None)

HUGGINGFACE = {
    "llama": huggingface("LlamaConfig", small()),
    "llama-shifted": huggingface("LlamaConfig", small(), labels="shifted"),
    "llama-eager": huggingface("LlamaConfig", small(), attn="eager"),
    "llama-packed": huggingface("LlamaConfig", small(), inputs=("position_ids",)),
    "llama-padded": huggingface("LlamaConfig", small(), padded=True),
    "llama-padded-eager": huggingface("LlamaConfig", small(), padded=True, attn="eager"),
    "llama3.1": huggingface("LlamaConfig", small(rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True)),
    "gpt2": huggingface("GPT2Config", GPT2),
    "gpt2-eager": huggingface("GPT2Config", GPT2, attn="eager"),
    "qwen2": huggingface("Qwen2Config", small(tie_word_embeddings=True)),
    "qwen2-window": huggingface("Qwen2Config", small(use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "mistral-window": huggingface("MistralConfig", small(sliding_window=9, head_dim=8)),
    "qwen3": huggingface("Qwen3Config", small(head_dim=16)),
    "phi3": huggingface("Phi3Config", small(sliding_window=None)),
    "phi3-window": huggingface("Phi3Config", small(sliding_window=11)),
    "gemma2": huggingface("Gemma2Config", small(**GEMMA, attn_logit_softcapping=20.0, final_logit_softcapping=15.0),
                          attn="eager"),
    "gemma2-sdpa": huggingface("Gemma2Config", small(**GEMMA, attn_logit_softcapping=None, final_logit_softcapping=15.0)),
    "gemma3": huggingface("Gemma3TextConfig", small(**GEMMA, layer_types=["sliding_attention", "full_attention",
                                                                          "sliding_attention"])),
    "gpt-neox": huggingface("GPTNeoXConfig", small(rotary_pct=0.25, hidden_size=64)),
    "gpt-neox-sequential": huggingface("GPTNeoXConfig", small(hidden_size=64, use_parallel_residual=False)),
    "olmo2": huggingface("Olmo2Config", small()),
    "stablelm": huggingface("StableLmConfig", small(hidden_size=64, partial_rotary_factor=0.25, use_qkv_bias=True)),
    "stablelm-parallel": huggingface("StableLmConfig", small(hidden_size=64, partial_rotary_factor=0.5,
                                                             use_parallel_residual=True, qk_layernorm=True)),
    "falcon-alibi": huggingface("FalconConfig", ALIBI | dict(alibi=True, multi_query=True, new_decoder_architecture=False,
                                                             parallel_attn=False, bias=True)),
    "falcon-rope": huggingface("FalconConfig", ALIBI | dict(alibi=False, multi_query=True, new_decoder_architecture=False)),
    "bloom": huggingface("BloomConfig", dict(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, bos_token_id=None,
                                             eos_token_id=None), attn="eager"),
    "granite": huggingface("GraniteConfig", small(embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5,
                                                  attention_multiplier=0.2)),
    "smollm3": huggingface("SmolLM3Config", small(num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0])),
}


# ---------------------------------------------------------------------------------------------------- plain transformers
# Written as users write them: each differs from the others in how attention, masks, norms, positions and losses are spelt.

def cross_entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


class NanoGPT(nn.Module):
    """As in nanoGPT: learned positions, LayerNorm, fused qkv, is_causal attention, tied head, loss by view(-1)."""

    class Block(nn.Module):
        def __init__(self, d, heads):
            super().__init__()
            self.heads = heads
            self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.c_attn, self.c_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
            self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d), nn.Dropout(0.1))

        def forward(self, x):
            B, T, C = x.size()
            q, k, v = self.c_attn(self.ln_1(x)).split(C, dim=2)
            k = k.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            q = q.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            v = v.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
            return x + self.mlp(self.ln_2(x))

    def __init__(self, d=32, heads=4, layers=2, block=128):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, d), nn.Embedding(block, d)
        self.h = nn.ModuleList(self.Block(d, heads) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(d), nn.Linear(d, VOCAB, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, input_ids, labels):
        pos = torch.arange(0, input_ids.size(1), dtype=torch.long, device=input_ids.device)
        x = self.wte(input_ids) + self.wpe(pos)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=-100)


class NanoGPTSlow(NanoGPT):
    """nanoGPT's attention without SDPA: a tril buffer, masked_fill, softmax; the loss from log_softmax and gather."""

    class Block(NanoGPT.Block):
        def __init__(self, d, heads):
            super().__init__(d, heads)
            self.register_buffer("bias", torch.tril(torch.ones(128, 128)).view(1, 1, 128, 128))

        def forward(self, x):
            B, T, C = x.size()
            q, k, v = self.c_attn(self.ln_1(x)).split(C, dim=2)
            k = k.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            q = q.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            v = v.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.softmax(att) @ v
            x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
            return x + self.mlp(self.ln_2(x))

        def softmax(self, att):
            return F.softmax(att, dim=-1)


class SoftmaxWritten(NanoGPTSlow):
    """Softmax without softmax: as the exponential of a log-softmax in one layer, over its sum in the other."""

    class Block(NanoGPTSlow.Block):
        def __init__(self, d, heads):
            super().__init__(d, heads)
            self.subtract_log = True

        def softmax(self, att):
            if self.subtract_log:
                return (att - torch.logsumexp(att, -1, keepdim=True)).exp()
            e = torch.exp(att - att.amax(-1, keepdim=True))
            return e / e.sum(-1, keepdim=True)

    def __init__(self):
        super().__init__()
        self.h[1].subtract_log = False


class Textbook(nn.Module):
    """torch.triu mask added as -inf, separate q, k, v, sinusoidal positions computed in forward, post-norm, ReLU, a loss
    written out: log_softmax, gather, mask, sum over count."""

    def __init__(self, d=32, heads=4, layers=2):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(VOCAB, d)
        linear = lambda a, b: nn.ModuleList(nn.Linear(a, b) for _ in range(layers))
        self.q, self.v, self.o = linear(d, d), linear(d, d), linear(d, d)
        # Without rotary a bias on the keys has a gradient of exactly 0: what is left of it in float32 is only noise.
        self.k = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(layers))
        self.up, self.down = linear(d, 2 * d), linear(2 * d, d)
        self.norm1 = nn.ModuleList(nn.LayerNorm(d) for _ in range(layers))
        self.norm2 = nn.ModuleList(nn.LayerNorm(d) for _ in range(layers))
        self.out = nn.Linear(d, VOCAB)

    def forward(self, input_ids, labels):
        B, T = input_ids.shape
        x = self.embed(input_ids) * math.sqrt(self.embed.embedding_dim)
        d = x.shape[-1]
        pos = torch.arange(T).unsqueeze(1).float()
        freq = torch.exp(torch.arange(0, d, 2).float() * (-math.log(10000.0) / d))
        x = x + torch.cat([torch.sin(pos * freq), torch.cos(pos * freq)], dim=-1)
        mask = torch.triu(torch.full((T, T), float("-inf")), diagonal=1)
        for i in range(len(self.q)):
            q, k, v = (f[i](x).reshape(B, T, self.heads, -1).permute(0, 2, 1, 3) for f in (self.q, self.k, self.v))
            scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.shape[-1]) + mask
            y = torch.matmul(torch.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).reshape(B, T, d)
            x = self.norm1[i](x + self.o[i](y))
            x = self.norm2[i](x + self.down[i](torch.relu(self.up[i](x))))
        logp = F.log_softmax(self.out(x), dim=-1)
        valid = labels != -100
        nll = -logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return (nll * valid).sum() / valid.sum()


class ShiftedInside(Textbook):
    """The loss that most tutorials write: the last position's logits and the first label are cut off, which torch.export
    traces for three tokens or more."""

    def forward(self, input_ids, labels):
        x = self.embed(input_ids)
        B, T, d = x.shape
        for i in range(len(self.q)):
            q, k, v = (f[i](x).view(B, T, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, d)
            x = self.norm1[i](x + self.o[i](y))
            x = self.norm2[i](x + self.down[i](torch.relu(self.up[i](x))))
        logits = self.out(x)
        return F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1))


class MetaLlama(nn.Module):
    """As Meta wrote Llama: rotary embedding by complex numbers, grouped heads repeated, a float mask, scores written out.

    rotary  "table": freqs_cis is an attribute, as Meta has it; "buffer"; "forward": computed at every call."""

    def __init__(self, rotary="table", d=32, heads=4, groups=2, layers=2, longest=128):
        super().__init__()
        self.heads, self.groups, self.rotary = heads, groups, rotary
        self.embed, self.out = nn.Embedding(VOCAB, d), nn.Linear(d, VOCAB, bias=False)
        linear = lambda a, b: nn.ModuleList(nn.Linear(a, b, bias=False) for _ in range(layers))
        self.wq, self.wo = linear(d, d), linear(d, d)
        self.wk, self.wv = linear(d, d // heads * groups), linear(d, d // heads * groups)
        self.w1, self.w2, self.w3 = linear(d, 2 * d), linear(2 * d, d), linear(d, 2 * d)
        self.norms = nn.ParameterList(nn.Parameter(torch.ones(d)) for _ in range(2 * layers + 1))
        if rotary == "table":
            self.freqs_cis = self.frequencies(longest)
        if rotary == "buffer":
            self.register_buffer("freqs_cis", self.frequencies(longest))

    def frequencies(self, end):
        dim = self.embed.embedding_dim // self.heads
        freqs = 1.0 / (10000.0 ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
        freqs = torch.outer(torch.arange(end), freqs).float()
        return torch.polar(torch.ones_like(freqs), freqs)

    def norm(self, x, weight):
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * weight

    def rotate(self, x, freqs_cis):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        shape = [n if i == 1 or i == pairs.ndim - 1 else 1 for i, n in enumerate(pairs.shape)]
        return torch.view_as_real(pairs * freqs_cis.view(*shape)).flatten(3).type_as(x)

    def repeat(self, x):
        B, T, G, D = x.shape
        return x[:, :, :, None, :].expand(B, T, G, self.heads // G, D).reshape(B, T, self.heads, D)

    def forward(self, input_ids, labels):
        B, T = input_ids.shape
        h = self.embed(input_ids)
        freqs_cis = self.frequencies(T) if self.rotary == "forward" else self.freqs_cis[0:T]
        mask = torch.triu(torch.full((T, T), float("-inf")), diagonal=1).type_as(h)
        for i in range(len(self.wq)):
            x = self.norm(h, self.norms[2 * i])
            q, k, v = self.wq[i](x).view(B, T, self.heads, -1), self.wk[i](x).view(B, T, self.groups, -1), self.wv[i](x).view(B, T, self.groups, -1)
            q, k = self.rotate(q, freqs_cis), self.rotate(k, freqs_cis)
            q, k, v = q.transpose(1, 2), self.repeat(k).transpose(1, 2), self.repeat(v).transpose(1, 2)
            scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.shape[-1]) + mask
            y = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v)
            h = h + self.wo[i](y.transpose(1, 2).contiguous().view(B, T, -1))
            x = self.norm(h, self.norms[2 * i + 1])
            h = h + self.w2[i](F.silu(self.w1[i](x)) * self.w3[i](x))
        logits = self.out(self.norm(h, self.norms[-1])).float()
        return F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1), ignore_index=-100)


class Einsum(nn.Module):
    """Everything by einsum with weights of rank 3, interleaved rotary, RMSNorm as x / sqrt(mean + eps), grouped heads as a
    fifth axis, torch.where mask with finfo.min, SwiGLU."""

    def __init__(self, d=32, kv=2, group=2, layers=2):
        super().__init__()
        head = 8
        w = lambda *shape: nn.ParameterList(nn.Parameter(torch.randn(*shape) / math.sqrt(shape[0])) for _ in range(layers))
        self.embed = nn.Parameter(torch.randn(VOCAB, d))
        self.wq, self.wk, self.wv = w(d, kv, group, head), w(d, kv, head), w(d, kv, head)
        self.wo = w(kv, group, head, d)
        self.w1, self.w2, self.w3 = w(d, 64), w(64, d), w(d, 64)
        self.g1, self.g2 = (nn.ParameterList(nn.Parameter(torch.ones(d)) for _ in range(layers)) for _ in range(2))

    @staticmethod
    def norm(x, g):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * g

    @staticmethod
    def rotary(x, cos, sin):  # x (B, T, ..., D); pairs are neighbours
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    def forward(self, input_ids, labels):
        T = input_ids.shape[1]
        x = self.embed[input_ids]
        angle = torch.outer(torch.arange(T, dtype=torch.float32), 10000.0 ** (-torch.arange(0, 8, 2) / 8))
        cos, sin = angle.cos(), angle.sin()
        row = torch.arange(T)
        causal = row[:, None] >= row[None, :]
        for i in range(len(self.wq)):
            h = self.norm(x, self.g1[i])
            q = torch.einsum("btd,dkgh->btkgh", h, self.wq[i])
            k = torch.einsum("btd,dkh->btkh", h, self.wk[i])
            v = torch.einsum("btd,dkh->btkh", h, self.wv[i])
            q = self.rotary(q, cos[None, :, None, None], sin[None, :, None, None])
            k = self.rotary(k, cos[None, :, None], sin[None, :, None])
            scores = torch.einsum("btkgh,bskh->bkgts", q, k) * 8 ** -0.5
            scores = torch.where(causal, scores, torch.finfo(scores.dtype).min)
            y = torch.einsum("bkgts,bskh->btkgh", scores.softmax(-1), v)
            x = x + torch.einsum("btkgh,kghd->btd", y, self.wo[i])
            h = self.norm(x, self.g2[i])
            gate = torch.einsum("btd,df->btf", h, self.w1[i])
            x = x + torch.einsum("btf,fd->btd", F.silu(gate) * torch.einsum("btd,df->btf", h, self.w3[i]), self.w2[i])
        return cross_entropy(torch.einsum("btd,vd->btv", x, self.embed), labels)


class Multihead(nn.Module):
    """nn.MultiheadAttention with a float mask from generate_square_subsequent_mask, nn.RMSNorm, nll_loss."""

    def __init__(self, d=32, heads=4, layers=2):
        super().__init__()
        self.embed, self.pos = nn.Embedding(VOCAB, d), nn.Embedding(128, d)
        self.attn = nn.ModuleList(nn.MultiheadAttention(d, heads, batch_first=True) for _ in range(layers))
        self.norm1 = nn.ModuleList(nn.RMSNorm(d) for _ in range(layers))
        self.norm2 = nn.ModuleList(nn.RMSNorm(d, eps=1e-5) for _ in range(layers))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(d, 64), nn.GELU(approximate="tanh"), nn.Linear(64, d))
                                 for _ in range(layers))
        self.head = nn.Linear(d, VOCAB)

    def forward(self, input_ids, labels):
        T = input_ids.shape[1]
        x = self.embed(input_ids) + self.pos(torch.arange(T)[None])
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        for attn, norm1, norm2, mlp in zip(self.attn, self.norm1, self.norm2, self.mlp):
            h = norm1(x)
            x = x + attn(h, h, h, attn_mask=mask, need_weights=False, is_causal=True)[0]
            x = x + mlp(norm2(x))
        logp = self.head(x).log_softmax(-1)
        return F.nll_loss(logp.flatten(0, 1), labels.flatten(), ignore_index=-100)


class Encoder(nn.Module):
    """nn.TransformerEncoder, pre-norm and causal."""

    def __init__(self, d=32, heads=4, layers=2):
        super().__init__()
        self.embed, self.pos = nn.Embedding(VOCAB, d), nn.Parameter(torch.randn(128, d))
        layer = nn.TransformerEncoderLayer(d, heads, 64, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(d, VOCAB)

    def forward(self, input_ids, labels):
        T = input_ids.shape[1]
        x = self.embed(input_ids) + self.pos[:T]
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        return cross_entropy(self.head(self.body(x, mask=mask, is_causal=True)), labels)


class Norms(nn.Module):
    """A Llama-like block with the options of the class below: how RMSNorm is written, and rotary split or interleaved."""

    def __init__(self, norm, interleaved=False, d=32, heads=4, kv=2, layers=2):
        super().__init__()
        self.heads, self.kv, self.style, self.interleaved = heads, kv, norm, interleaved
        self.embed = nn.Embedding(VOCAB, d)
        hd = d // heads
        lin = lambda a, b: nn.ModuleList(nn.Linear(a, b, bias=False) for _ in range(layers))
        self.q, self.kvp, self.o = lin(d, d), lin(d, 2 * kv * hd), lin(d, d)
        self.gate_up, self.down = lin(d, 128), lin(64, d)
        self.n1 = nn.ParameterList(nn.Parameter(torch.ones(d)) for _ in range(layers))
        self.n2 = nn.ParameterList(nn.Parameter(torch.ones(d)) for _ in range(layers))
        self.head = nn.Linear(d, VOCAB, bias=False)

    def norm(self, x, w):
        if self.style == "rsqrt":       # as in Llama's reference code
            return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * w
        if self.style == "norm":        # by the vector norm
            return w * x / (x.norm(2, dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-5)
        return F.rms_norm(x, (x.shape[-1],), w, 1e-5)  # "fused"

    def rotary(self, x, cos, sin):
        if self.interleaved:
            pairs = x.unflatten(-1, (-1, 2))
            a, b = pairs.unbind(-1)
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(3)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, input_ids, labels):
        B, T = input_ids.shape
        x = self.embed(input_ids)
        hd = x.shape[-1] // self.heads
        freq = 1.0 / (10000.0 ** (torch.arange(0, hd, 2)[: hd // 2].float() / hd))
        angle = torch.outer(torch.arange(T).float(), freq)
        cos, sin = torch.cos(angle)[None, :, None], torch.sin(angle)[None, :, None]
        mask = torch.ones(T, T, dtype=torch.bool).tril()
        for i in range(len(self.q)):
            h = self.norm(x, self.n1[i])
            q = self.q[i](h).view(B, T, self.heads, hd)
            k, v = self.kvp[i](h).view(B, T, 2, self.kv, hd).unbind(2)
            q, k = self.rotary(q, cos, sin), self.rotary(k, cos, sin)
            k = k.repeat_interleave(self.heads // self.kv, dim=2)
            v = v[:, :, :, None].expand(B, T, self.kv, self.heads // self.kv, hd).flatten(2, 3)
            scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) / math.sqrt(hd)
            weights = scores.masked_fill(~mask, -1e9).float().softmax(-1).type_as(q)
            y = (weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
            x = x + self.o[i](y)
            gate, up = self.gate_up[i](self.norm(x, self.n2[i])).chunk(2, -1)
            x = x + self.down[i](F.silu(gate) * up)
        return cross_entropy(self.head(x), labels)


class Documents(NanoGPT):
    """Packed documents: attention within a document_ids run and within a window, positions given."""

    def __init__(self, window=None):
        super().__init__()
        self.window = window

    def forward(self, input_ids, labels, position_ids, document_ids):
        x = self.wte(input_ids) + self.wpe(position_ids)
        B, T, C = x.shape
        row = torch.arange(T)
        mask = (row[:, None] >= row[None, :]) & (document_ids[:, :, None] == document_ids[:, None, :])
        if self.window:
            mask = mask & (row[:, None] - row[None, :] < self.window)
        mask = mask[:, None]
        for block in self.h:
            q, k, v = block.c_attn(block.ln_1(x)).view(B, T, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + block.c_proj(y.transpose(1, 2).reshape(B, T, C))
            x = x + block.mlp(block.ln_2(x))
        return cross_entropy(self.lm_head(self.ln_f(x)), labels)


class Masked(NanoGPT):
    """nanoGPT with a mask that `see(row, column, ids)` describes, given to sdpa as bool or as float, or multiplied together."""

    def __init__(self, see, style="bool"):
        super().__init__()
        self.see, self.style = see, style

    def forward(self, input_ids, labels, **lengths):
        B, T = input_ids.shape
        x = self.wte(input_ids) + self.wpe(torch.arange(T))
        mask = self.see(torch.arange(T)[:, None], torch.arange(T)[None, :], input_ids, *lengths.values())
        if mask.dim() == 3:
            mask = mask[:, None]
        if self.style == "float":
            mask = torch.zeros(T, T).masked_fill(~mask, torch.finfo(torch.float32).min)
        for block in self.h:
            q, k, v = block.c_attn(block.ln_1(x)).view(B, T, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            if self.style == "product":
                att = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
                causal = torch.tril(torch.ones(T, T))
                y = att.masked_fill(torch.maximum(causal, mask.float()) * (1 - 0.0 * causal) == 0, -1e9).softmax(-1) @ v
            else:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + block.c_proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return cross_entropy(self.lm_head(self.ln_f(x)), labels)


class OtherLoss(NanoGPT):
    """The losses of other recipes: label smoothing, class weights, z-loss."""

    def __init__(self, smoothing=0.0, weights=False, z=0.0):
        super().__init__()
        self.smoothing, self.z = smoothing, z
        self.register_buffer("weights", torch.linspace(0.5, 1.5, VOCAB) if weights else None)

    def forward(self, input_ids, labels):
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=self.weights, label_smoothing=self.smoothing)
        if self.z:  # PaLM: keeps the log of the softmax's denominator near 0
            valid = labels != -100
            loss = loss + self.z * (logits.logsumexp(-1).square() * valid).sum() / valid.sum()
        return loss


class MultiToken(NanoGPT):
    """Multi-token prediction: the second and the third next token too, each through a layer of its own and the same head."""

    def __init__(self, d=32):
        super().__init__(d)
        self.further = nn.ModuleList(nn.Linear(d, d) for _ in range(2))

    def forward(self, input_ids, labels):
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        for block in self.h:
            x = block(x)
        loss = cross_entropy(self.lm_head(self.ln_f(x))[:, :-1], labels[:, 1:])
        for ahead, layer in enumerate(self.further, 2):
            logits = self.lm_head(self.ln_f(x + layer(x)))
            loss = loss + 0.3 * cross_entropy(logits[:, :-ahead], labels[:, ahead:])
        return loss


class Experts(NanoGPT):
    """A dense mixture: every expert on every token, weighted by the softmax of a router; weights of all in one parameter."""

    class Mixture(nn.Module):
        def __init__(self, d, experts=3, width=40):
            super().__init__()
            self.router = nn.Linear(d, experts, bias=False)
            self.up, self.down = nn.Parameter(torch.empty(experts, d, width)), nn.Parameter(torch.empty(experts, width, d))

        def forward(self, x):
            hidden = F.silu(torch.einsum("btd,edf->btef", x, self.up))
            return torch.einsum("btef,efd,bte->btd", hidden, self.down, self.router(x).softmax(-1))

    def __init__(self, d=32):
        super().__init__(d)
        for block in self.h:
            block.mlp = self.Mixture(d)


class TokenShift(NanoGPT):
    """Every token is mixed with the one before it: by joining (ids, embeddings) and by padding (a layer's input, as RWKV
    does)."""

    def __init__(self, d=32):
        super().__init__(d)
        self.mix = nn.Parameter(torch.full((d,), 0.5))

    def forward(self, input_ids, labels):
        x = self.wte(torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], 1)) + self.wte(input_ids)
        x = x + self.wpe(torch.arange(x.shape[1]))
        x = x + 0.5 * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        for block in self.h:
            x = block(torch.lerp(x, F.pad(x[:, :-1], (0, 0, 1, 0)), self.mix))
        return cross_entropy(self.lm_head(self.ln_f(x)), labels)


class Prefix(Masked):
    """Prefix LM: every row brings how many of its tokens all others may see."""

    def forward(self, input_ids, labels, prefix_lengths):
        return super().forward(input_ids, labels, prefix_lengths=prefix_lengths)


class RelativeBias(NanoGPT):
    """T5's trained biases: a table of 32 buckets of distances, growing logarithmically, for each head; added to the scores, here
    as sdpa's float mask with causality in it."""

    def __init__(self, learned_slopes=False):
        super().__init__()
        self.table = None if learned_slopes else nn.Embedding(32, 4)
        self.slopes = nn.Parameter(torch.tensor([0.5, 0.25, 0.125, 0.0625])) if learned_slopes else None

    @staticmethod
    def bucket(distance, exact=16, most=128):
        far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(most / exact) * (32 - exact)).long()
        return torch.where(distance < exact, distance, far.clamp(max=31))

    def forward(self, input_ids, labels):
        B, T = input_ids.shape
        x = self.wte(input_ids) + self.wpe(torch.arange(T))
        distance = torch.arange(T)[:, None] - torch.arange(T)[None, :]
        if self.slopes is not None:  # ALiBi with trained slopes, beside a bool mask
            bias = -self.slopes[:, None, None] * distance
        else:
            bias = self.table(self.bucket(distance.clamp(min=0))).permute(2, 0, 1)
        bias = bias.masked_fill(distance < 0, float("-inf"))
        for block in self.h:
            q, k, v = block.c_attn(block.ln_1(x)).view(B, T, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
            x = x + block.c_proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return cross_entropy(self.lm_head(self.ln_f(x)), labels)


class DataMask(Masked):
    """A mask that is numbers: which tokens see which comes from products of their embeddings, whatever their positions."""

    def forward(self, input_ids, labels):
        like = F.embedding(input_ids, (self.wte.weight.detach() > 0).float() * 2 - 1)
        seen = like @ like.transpose(1, 2) > -4
        self.see = lambda q, k, ids: (k <= q) & (seen | (q == k))
        return super().forward(input_ids, labels)


def prefix(n):
    return lambda q, k, ids: (k <= q) | (k < n)


def prefix_lengths(q, k, ids, n):
    return (k <= q) | (k < n[:, None, None])


def sinks(q, k, ids):
    """A window and the first four tokens (StreamingLLM)."""
    return (k <= q) & ((q - k < 6) | (k < 4))


def global_tokens(q, k, ids):
    """Longformer: a window both ways, and tokens that see and are seen everywhere."""
    star = ids % 16 == 3
    return ((q - k).abs() < 5) | star[:, :, None] | star[:, None, :]


def strided(q, k, ids):
    """Sparse transformer: a window, and every seventh token before it."""
    return (k <= q) & ((q - k < 7) | ((q - k) % 7 == 0))


def prefix_documents(q, k, ids):
    """Documents end at token 7; within one, causal or among its first tokens (before the first token below 32)."""
    document = (ids == 7).cumsum(1)
    head = (ids < 32).cumsum(1) == 0
    return (document[:, :, None] == document[:, None, :]) & ((k <= q) | (head[:, :, None] & head[:, None, :]))


class Adapter(nn.Module):
    """A frozen linear layer plus a trained product of low rank."""

    def __init__(self, base, rank=4, scale=2.0):
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_a = nn.Linear(base.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x)) * self.scale


class Lora(NanoGPT):
    """Frozen weights with adapters on the fused q, k, v, as PEFT arranges them."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        for block in self.h:
            block.c_attn = Adapter(block.c_attn)


PLAIN = {
    "nanogpt": lambda: Case(NanoGPT()),
    "nanogpt-softmax": lambda: Case(NanoGPTSlow(), max_seq=127),
    "softmax-written": lambda: Case(SoftmaxWritten(), max_seq=127),
    "textbook": lambda: Case(Textbook()),
    "shifted-inside": lambda: Case(ShiftedInside(), labels="same"),
    "einsum": lambda: Case(Einsum()),
    "multihead": lambda: Case(Multihead()),
    "encoder": lambda: Case(Encoder(), max_seq=127),
    "rmsnorm-rsqrt": lambda: Case(Norms("rsqrt")),
    "rmsnorm-norm": lambda: Case(Norms("norm", interleaved=True)),
    "rmsnorm-fused": lambda: Case(Norms("fused", interleaved=True)),
    "documents": lambda: Case(Documents(), inputs=("position_ids", "document_ids")),
    "documents-window": lambda: Case(Documents(window=6), inputs=("position_ids", "document_ids")),
    "prefix": lambda: Case(Masked(prefix(11)), max_seq=127),
    "prefix-lengths": lambda: Case(Prefix(prefix_lengths), inputs=("prefix_lengths",), max_seq=127),
    "prefix-float": lambda: Case(Masked(prefix(20), "float"), max_seq=127),
    "prefix-product": lambda: Case(Masked(prefix(5), "product"), max_seq=127),
    "prefix-documents": lambda: Case(Masked(prefix_documents), max_seq=127),
    "label-smoothing": lambda: Case(OtherLoss(smoothing=0.1), max_seq=127),
    "class-weights": lambda: Case(OtherLoss(smoothing=0.2, weights=True), max_seq=127),
    "z-loss": lambda: Case(OtherLoss(z=1e-2), max_seq=127),
    "multi-token": lambda: Case(MultiToken(), labels="same", max_seq=127),
    "token-shift": lambda: Case(TokenShift(), max_seq=127),
    "experts": lambda: Case(Experts(), max_seq=127),
    "relative-bias": lambda: Case(RelativeBias(), max_seq=127),
    "learned-alibi": lambda: Case(RelativeBias(learned_slopes=True), max_seq=127),
    "data-mask": lambda: Case(DataMask(None), max_seq=127),
    "sinks": lambda: Case(Masked(sinks), max_seq=127),
    "global-tokens": lambda: Case(Masked(global_tokens), max_seq=127),
    "strided": lambda: Case(Masked(strided), max_seq=127),
    "lora": lambda: Case(Lora()),
    "operators": lambda: Case(Operators(VOCAB)),
    "meta-llama": lambda: Case(MetaLlama(), max_seq=127),
    "meta-llama-buffer": lambda: Case(MetaLlama("buffer"), max_seq=127),
    "meta-llama-forward": lambda: Case(MetaLlama("forward")),
}

if importlib.util.find_spec("peft"):
    HUGGINGFACE["peft-lora"] = peft_lora

FAMILIES = HUGGINGFACE | PLAIN

# For tests of gradients only: training walks over the steps and kinks of its operators.
GRADIENTS = {"each-operator": lambda: Case(EachOperator(VOCAB), chosen=True)}


# ------------------------------------------------------------------------------------------------- weights, data, export

def randomise(module, seed=20):
    """Weights away from their usual small or constant initial values, so that no gradient is close to zero by design."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():  # tied ones once
            noise = torch.randn(param.shape, generator=generator)
            if param.dim() >= 2:
                param.copy_(noise / param.shape[-1] ** 0.5)
            else:
                param.add_(0.1 * noise)


def build(name, seed=20):
    torch.manual_seed(seed)
    case = (FAMILIES | GRADIENTS)[name]()
    if not case.chosen:
        randomise(case.module, seed)
    return case


def batch(case, rows=2, seq=33, seed=21):
    """Tokens, labels with some ignored (here and there in row 0, in a long run in the others), positions, documents."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (rows, seq), generator=generator)
    if case.padded:
        ids.clamp_(min=1)
        ids[0, seq - seq // 3:] = 0
        ids[1:, : seq // 4] = 0
    labels = torch.where(ids == 0, -100, ids) if case.padded else ids.clone()
    if case.padded and case.config._attn_implementation == "eager":
        # The last padding token predicts the first real one. It attends to nothing: sdpa gives 0, eager the mean over all
        # keys, later ones too, as its mask adds a finite number. Nobody means that; it is not a test.
        labels[1:, seq // 4] = -100
    labels[0, torch.rand(seq, generator=generator) < 0.3] = -100
    labels[1:, seq // 2 + 1 : seq - 4] = -100
    if case.labels == "shifted":
        labels = torch.cat([labels[:, 1:], torch.full((rows, 1), -100)], 1)
    starts = torch.zeros(rows, seq, dtype=torch.long)  # two documents in row 0, four in the others, none at a round place
    starts[0, [seq * 3 // 7]] = 1
    starts[1:, [5, 6, seq * 5 // 7]] = 1
    positions = torch.arange(seq).repeat(rows, 1)
    data = {"input_ids": ids, "labels": labels, "prefix_lengths": torch.arange(rows) * 7 % (seq - 4) + 3, "document_ids": starts.cumsum(1),
            "position_ids": positions - torch.where(starts.bool(), positions, 0).cummax(1).values}
    return {key: data[key].contiguous() for key in ("input_ids", "labels") + tuple(case.inputs)}


def write(case, path, **options):
    """Exports the case to `path` by tools/export.py; returns the ExportedProgram."""
    if case.config is not None:
        return export.export_module(case.module, path, case.config, labels=case.labels,
                                    position_ids="position_ids" in case.inputs, **options)
    example = {name: torch.zeros((2,) if name == "prefix_lengths" else (2, 32), dtype=torch.long)
               for name in ("input_ids", "labels") + tuple(case.inputs)}
    return export.export_loss(case.module, path, example, labels=case.labels, max_seq=case.max_seq, **options)
