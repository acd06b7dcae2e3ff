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

    def composed(self, x):
        yield F.mish(x) + F.leaky_relu(x, 0.2) + F.elu(x, 0.7) + F.selu(x) + F.celu(x, 1.3) + F.softsign(x)
        yield F.hardswish(x) + F.hardsigmoid(x) + F.hardtanh(x) + F.relu6(x * 4) + F.prelu(x, self.w[:1]) + F.logsigmoid(x)
        yield F.glu(torch.cat([x, self.w * x], -1)) + torch.log1p(x.abs()) + torch.expm1(x) + torch.exp2(x) + F.tanhshrink(x)
        yield torch.log2(x.abs() + 1) + torch.log10(x.abs() + 1) + torch.erfc(x) + torch.tan(0.1 * x) + torch.sinh(0.3 * x)
        yield x.std(-1, keepdim=True) * x + x.var(-1, unbiased=False, keepdim=True) + torch.std(x, -1, correction=2).unsqueeze(-1)
        yield sum(torch.var_mean(x, -1, keepdim=True)) * x + F.normalize(x, dim=-1) + torch.cosh(0.3 * x)
        yield x.max(-1, keepdim=True).values * x + x.min(-1).values.unsqueeze(-1) + x.sign() * x + torch.floor(x) * x + x.trunc()
        yield F.group_norm(x.flatten(0, 1), 3, self.w, self.w).view_as(x) + F.group_norm(x.unflatten(-1, (3, 4)).flatten(0, 1), 3).view_as(x)
        yield torch.addcmul(x, x, self.w, value=0.5) + torch.addcdiv(x, x, x.abs() + 1, value=0.3) + torch.lerp(x, 2 * self.w, 0.3)
        yield torch.lerp(x, x * x, self.w) + ((x > 0) ^ (x < 1)) * x + torch.nan_to_num(x) + torch.where(torch.isnan(x), 0.0, x)
        yield x * torch.dot(self.w, self.w) + torch.mv(x.flatten(0, 1), self.w).view(*x.shape[:2], 1) + torch.linalg.vecdot(x, self.w.expand_as(x)).unsqueeze(-1)
        yield F.cosine_similarity(x, self.w.expand_as(x), dim=-1).unsqueeze(-1) * x + x.roll(5, -1) + x.flip(-1) * self.w
        yield x.movedim(-1, 1).movedim(1, -1) + self.w.broadcast_to(x.shape) + x[..., :4].tile(3) + x @ torch.eye(12) * torch.linspace(0, 1, 12)
        yield torch.slice_scatter(x, x[..., :3] * 2, -1, 2, 5) + torch.select_scatter(x, x[..., 0] * x[..., 1], -1, 7) + x.cumsum(-1) * 0.1
        yield torch.pow(2.0, x) + torch.isfinite(x) * x + torch.ceil(x) * 0.1

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
                 *self.reductions(x), *self.composed(x), *self.products(x), *self.in_place(x)]
        logits = self.head(sum(term * (0.05 / (1 + i % 3)) for i, term in enumerate(terms))).float()
        nll = F.nll_loss(F.log_softmax(logits, -1).transpose(1, 2), labels, ignore_index=-100)
        return 0.5 * nll + 0.5 * F.cross_entropy(logits.transpose(1, 2), labels)
