"""One model that uses the operators that no language model here needs: a term per operator family.

Every term is a (batch, sequence, 12) tensor made from the embedded tokens x; the loss is taken of their weighted sum.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Operators(nn.Module):
    def __init__(self, vocab, width=12):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, width, padding_idx=3), nn.Linear(width, vocab)
        self.w = nn.Parameter(torch.ones(width))
        self.m = nn.Parameter(torch.randn(3, 4, width))
        self.t = nn.Parameter(torch.randn(6, 5, 4))
        self.register_buffer("rows", torch.tensor([2, -1, 0]))
        self.register_buffer("pairs", torch.tensor([[0, 1], [3, -2]]))
        self.register_buffer("perm", torch.tensor([5, 0, 11, 3, 8, 1, 9, 2, 10, 4, 7, 6]))

    def shapes(self, x):
        yield torch.stack([x, x * 2], 2).mean(2)
        yield torch.cat(x.chunk(3, -1)[::-1], -1)
        yield sum(x.unflatten(-1, (3, 4)).unbind(2)).repeat(1, 1, 3)
        yield x[..., :4].repeat_interleave(3, -1)
        yield F.pad(x, (1, -1, 0, 0)) + F.pad(x[..., 1:], (1, 0)) + x[..., -1:] + x[:, :, [-2]]

    def indexing(self, x, ids, labels):
        yield x[:, :, self.perm] + torch.index_select(x, 2, self.perm)
        yield self.t[self.pairs, :, self.rows[:2]].sum() * x + self.t[self.rows].mean() * x
        yield self.t[:, self.rows].sum((0, 1)).repeat(3) * x
        yield x.gather(2, (ids % 12).unsqueeze(-1).expand_as(x))
        yield F.one_hot(labels.clamp(min=0) % 7, 12).to(x.dtype) * self.w

    def elementwise(self, x, ids):
        yield torch.where(x > 0, x, 0.1 * x).clamp(-1, 1) + x.clamp(min=-0.5) + x.clamp_max(0.7)
        yield F.softplus(x) + F.relu(x) + x.abs() + x.sigmoid() + x.erf() + F.gelu(x) + F.silu(x)
        yield x.pow(3) + torch.pow(x.abs() + 0.1, 1.7) + (x * x + 1) ** -0.5 + (x.abs() + 1) ** 0.5 + (x.abs() + 5).reciprocal()
        yield torch.maximum(x, self.w) + torch.minimum(x, self.w) + (1 - x) + torch.rsub(x, 3, alpha=2)
        yield x.exp().log() + x.tanh() + x.sin() * x.cos()
        yield ((ids // 3) + (ids % 5)).unsqueeze(-1) * x / 64 + torch.floor_divide(ids, 4).unsqueeze(-1) * self.w / 64
        yield ((x > 0) | (x < -1)) * x + ~(x > 0) * x + torch.logical_and(x > 0, x < 1) * x + x.masked_fill(x > 1, 0.3)
        yield x.new_full((12,), 2.0) * x + torch.full_like(x, 0.5) + torch.arange(1, 13).to(x) * x / 12

    def reductions(self, x):
        yield torch.logsumexp(x, -1, keepdim=True) + torch.logsumexp(x, -1).unsqueeze(-1) * x
        yield x.detach().cumsum(-1) * x + x.sum(-1, keepdim=True)
        yield x.amax(-1, keepdim=True) * x - x.amin(-1, keepdim=True)
        yield torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x + x.norm(dim=-1, keepdim=True)
        yield (x > 0).any(-1, keepdim=True) * x + (x > -9).all(-1, keepdim=True) * x
        yield x.softmax(-1) * x.log_softmax(-1) + x.unflatten(-1, (3, 4)).mean((2, 3)).unsqueeze(-1) * x
        yield F.layer_norm(x, (12,)) + F.rms_norm(x.unflatten(-1, (3, 4)), (3, 4), eps=1e-5).flatten(2)

    def products(self, x):
        yield (torch.tril(x.new_ones(12, 12), -1) @ x.unsqueeze(-1)).squeeze(-1) + torch.triu(x.new_ones(12, 12), 2)[0] * x
        yield torch.einsum("bsd,hkd->bshk", x, self.m).flatten(2) + torch.einsum("...d,hkd->...hk", x, self.m).flatten(-2)
        yield torch.addmm(self.w, x.flatten(0, 1), self.m[0].t() @ self.m[1], beta=0.5, alpha=2).view_as(x)
        yield torch.bmm(x, x.transpose(1, 2)).softmax(-1) @ x + (x @ self.w).unsqueeze(-1) * x
        yield torch.matmul(self.m.unsqueeze(1), self.w).sum() * x + torch.outer(self.w, self.w)[1] * x

    def in_place(self, x):
        y = x.clone()
        y.add_(1.0)
        view = y.transpose(1, 2)  # made before the change, read after it
        y.mul_(self.w)
        yield view.transpose(1, 2) + y
        z = torch.zeros_like(x)
        z.copy_(x[:, :1])
        z.masked_fill_(x > 1, 0.3)
        yield z

    def forward(self, input_ids, labels):
        x = self.embed(input_ids)
        terms = [*self.shapes(x), *self.indexing(x, input_ids, labels), *self.elementwise(x, input_ids),
                 *self.reductions(x), *self.products(x), *self.in_place(x)]
        logits = self.head(sum(term * (0.05 / (1 + i % 3)) for i, term in enumerate(terms))).float()
        nll = F.nll_loss(F.log_softmax(logits, -1).transpose(1, 2), labels, ignore_index=-100)
        return 0.5 * nll + 0.5 * F.cross_entropy(logits.transpose(1, 2), labels)
