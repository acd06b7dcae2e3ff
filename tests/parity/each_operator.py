"""One model in which every operator that the importer knows stands once, each with parameters of its own.

CASES holds for each target ("aten.mish.default") its operands and how it is called. The loss is a cross-entropy plus, for every
target, the sum of its results with weights and of its operands with weights (so that an operator without a gradient has one
to compare: exactly those weights). Parameters are called "aten/mish/default/x": tests/unit/operators.c reads the target
from the name, and fails when a row of the importer's tables has no parameter here. An operand "stopped_x" is detached: its
gradient is the weights alone.

Operands stay away from where an operator has a step or a kink (whole and half numbers; two equal elements).
"""
import functools
import math
import random

import torch
import torch.nn as nn
import torch.nn.functional as F

CASES = []  # (target, function of the operator and its operands, {operand: (shape, kind)})


def case(targets, function=lambda op, *x: op(*x), **operands):
    for target in targets.split():
        operands = operands or dict(x=X)
        CASES.append((target if target.startswith("aten.") else "aten." + target, function, operands))


def values(shape, kind, rng):
    """Distinct, 0.03 from every multiple of 1/2: `any` in (-2.9, 2.9) with four beyond, `pos` in (0.1, 2.9), `small` in (-0.9, 0.9),
    `over` in (1.1, 2.9)."""
    low, high = dict(any=(-2.9, 2.9), pos=(0.1, 2.9), small=(-0.9, 0.9), over=(1.1, 2.9))[kind]
    found = [-4.2, 6.7, 3.3, -3.3] if kind == "any" and math.prod(shape) >= 12 else []
    while len(found) < math.prod(shape):
        v = rng.uniform(low, high)
        if abs(v * 2 - round(v * 2)) > 0.06 and all(abs(v - w) > 0.01 for w in found):
            found.append(v)
    rng.shuffle(found)
    return torch.tensor(found).view(shape)


X, POS, SMALL, ROW, ONE = ((3, 4), "any"), ((3, 4), "pos"), ((3, 4), "small"), ((4,), "any"), ((), "small")
CUBE, HEADS, POSROW, OVER = ((2, 3, 4), "any"), ((1, 2, 5, 4), "any"), ((4,), "pos"), ((4,), "over")
INDEX = torch.tensor([[2, 0, 1, 1], [0, 0, 2, 1]])
LABELS = torch.tensor([2, -100, 0])
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.25, 0.75])

# ---- element-wise
case("mish.default leaky_relu.default elu.default selu.default celu.default hardswish.default hardsigmoid.default hardtanh.default "
     "relu6.default log_sigmoid.default expm1.default exp2.default sinh.default cosh.default erfc.default sign.default sgn.default "
     "floor.default ceil.default trunc.default isnan.default isinf.default isfinite.default nan_to_num.default neg.default "
     "abs.default exp.default sin.default cos.default tanh.default erf.default sigmoid.default silu.default relu.default "
     "softplus.default square.default logical_not.default")
case("log1p.default log2.default log10.default log.default sqrt.default rsqrt.default reciprocal.default", x=POS)
case("tan.default", x=SMALL)
case("gelu.default", lambda op, x: op(x) - 0.5 * op(x, approximate="tanh"))
case("bitwise_not.default", lambda op, x: op(x > 0), x=X)
case("add.Tensor sub.Tensor", lambda op, x, y: op(x, y, alpha=0.7), x=X, y=ROW)
case("mul.Tensor maximum.default minimum.default", x=X, y=ROW)
case("div.Tensor true_divide.Tensor", x=X, y=POSROW)
case("remainder.Tensor", x=SMALL, y=OVER)
case("floor_divide.default", lambda op, x, y: op(x.detach(), y.detach()), x=SMALL, y=OVER)  # PyTorch has no gradient of it
case("rsub.Tensor", lambda op, x, y: op(x, y, alpha=0.7), x=X, y=ROW)
case("add.Scalar sub.Scalar rsub.Scalar mul.Scalar div.Scalar remainder.Scalar pow.Tensor_Scalar "
     "eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", lambda op, x: op(x, 1.7), x=POS)
case("floor_divide.Scalar", lambda op, x: op(x.detach(), 1.7))
case("div.Tensor_mode", lambda op, x, y: op(x, y, rounding_mode="floor") + op(x, y, rounding_mode=None), x=SMALL, y=OVER)
case("div.Scalar_mode", lambda op, x: op(x, 1.7, rounding_mode="floor") + op(x, 1.7, rounding_mode=None))
case("pow.Tensor_Tensor", lambda op, x, y: op(x, y.detach()), x=POS, stopped_y=ROW)
case("pow.Scalar", lambda op, x: op(1.7, x))
case("eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor", x=X, y=ROW)
case("__and__.Tensor __or__.Tensor bitwise_and.Tensor bitwise_or.Tensor logical_and.default logical_or.default __xor__.Tensor "
     "bitwise_xor.Tensor logical_xor.default", lambda op, x, y: op(x > 0, y > 0), x=X, y=ROW)
case("__and__.Scalar", lambda op, x: op(x > 0, True))
case("clamp.default", lambda op, x: op(x, -1.2, 1.3))
case("clamp.Tensor", lambda op, x, y: op(x, y, None), x=X, y=ROW)
case("clamp_min.default clamp_max.default", lambda op, x: op(x, 0.3))
case("where.self", lambda op, x, y: op(x > 0.3, x, y), x=X, y=ROW)
case("where.ScalarOther", lambda op, x: op(x > 0.3, x, 0.3))
case("where.ScalarSelf", lambda op, x: op(x > 0.3, 0.3, x))
case("where.Scalar", lambda op, x: op(x > 0.3, 0.3, 1.4))
case("masked_fill.Scalar", lambda op, x: op(x, x > 0.3, 0.3))
case("masked_fill.Tensor", lambda op, x, y: op(x, x > 0.3, y), x=X, y=ONE)
case("prelu.default", x=X, w=((1,), "small"))
case("_prelu_kernel.default", lambda op, x, w: op(x, w.view(1, 4)), x=X, w=ROW)
case("addcmul.default", lambda op, x, y, z: op(x, y, z, value=0.6), x=X, y=X, z=ROW)
case("addcdiv.default", lambda op, x, y, z: op(x, y, z, value=0.6), x=X, y=X, z=POSROW)
case("lerp.Scalar", lambda op, x, y: op(x, y, 0.3), x=X, y=X)
case("lerp.Tensor", x=X, y=X, z=X)
case("glu.default", lambda op, x: op(x, -1))
case("detach.default", stopped_x=X)
case("contiguous.default clone.default alias.default")
case("lift_fresh_copy.default detach_copy.default", lambda op, x: op(x.detach()), stopped_x=X)
case("dropout.default", lambda op, x: op(x, 0.0, True) + op(x, 0.5, False))  # active dropout: tests/ir/block.ir
case("native_dropout.default", lambda op, x: op(x, 0.0, True)[0])
case("to.dtype", lambda op, x: op(x, x.dtype))
case("to.dtype_layout _to_copy.default", lambda op, x: op(x, dtype=x.dtype))
case("to.device", lambda op, x: op(x, x.device, x.dtype))
case("to.other type_as.default", lambda op, x, y: op(x, y), x=X, y=ROW)

# ---- reductions and statistics
case("sum.default mean.default amax.default amin.default max.default")
case("sum.dim_IntList mean.dim", lambda op, x: op(x, [0, 2]), x=CUBE)
case("any.default all.default", lambda op, x: op(x > 0.3))
case("any.dim all.dim", lambda op, x: op(x > 0.3, 1))
case("cumsum.default", lambda op, x: op(x, 1))
case("softmax.int log_softmax.int", lambda op, x: op(x, 1))
case("_softmax.default _log_softmax.default", lambda op, x: op(x, 0, False))
case("logsumexp.default", lambda op, x: op(x, [1]))
case("diff.default", lambda op, x: op(x, 1, 1))
case("linalg_vector_norm.default", lambda op, x: op(x, 2, [1]))
case("norm.ScalarOpt_dim", lambda op, x: op(x, 2, [1]))
case("var.default std.default", lambda op, x: op(x, False))
case("var.dim std.dim var_mean.dim std_mean.dim", lambda op, x: op(x, [1], True, True))
case("var.correction std.correction var_mean.correction std_mean.correction", lambda op, x: op(x, [0, 2], correction=2), x=CUBE)
case("max.dim min.dim", lambda op, x: op(x, 1)[0])
case("group_norm.default", lambda op, x, w, b: op(x, 2, w, b), x=((2, 4, 3), "any"), w=ROW, b=ROW)
case("layer_norm.default", lambda op, x, w, b: op(x, [4], w, b), x=X, w=ROW, b=ROW)
case("native_layer_norm.default", lambda op, x, w, b: op(x, [4], w, b, 1e-5)[0], x=X, w=ROW, b=ROW)
case("rms_norm.default", lambda op, x, w: op(x, [4], w, 1e-5), x=X, w=ROW)
case("_fused_rms_norm.default", lambda op, x, w: op(x, [4], w, 1e-5)[0], x=X, w=ROW)
case("cosine_similarity.default", x=X, y=X)

# ---- products
case("dot.default", x=ROW, y=ROW)
case("mv.default", x=X, y=ROW)
case("linalg_vecdot.default", x=X, y=X)
case("matmul.default", x=CUBE, y=((4, 2), "any"))
case("mm.default", x=X, y=((4, 2), "any"))
case("bmm.default", x=CUBE, y=((2, 4, 2), "any"))
case("linear.default", x=CUBE, w=((2, 4), "any"), b=((2,), "any"))
case("addmm.default", lambda op, b, x, y: op(b, x, y, beta=0.5, alpha=2), b=((2,), "any"), x=X, y=((4, 2), "any"))
case("baddbmm.default", lambda op, b, x, y: op(b, x, y, beta=0.5, alpha=2), b=((2, 3, 2), "any"), x=CUBE, y=((2, 4, 2), "any"))
case("outer.default", x=ROW, y=ROW)
case("einsum.default", lambda op, x, y: op("bij,jk->bki", [x, y]), x=CUBE, y=((4, 2), "any"))
case("scaled_dot_product_attention.default", lambda op, q, k, v: op(q, k, v, None, 0.0, True), q=HEADS, k=HEADS, v=HEADS)
case("_scaled_dot_product_flash_attention_for_cpu.default", lambda op, q, k, v: op(q, k, v, 0.0, True)[0], q=HEADS, k=HEADS, v=HEADS)


def efficient(op, q, k, v):
    """PyTorch has it on CUDA only."""
    if torch.compiler.is_exporting():
        return op(q, k, v, None, True, 0.0, True)[0]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


case("_scaled_dot_product_efficient_attention.default", efficient, q=HEADS, k=HEADS, v=HEADS)
case("embedding.default", lambda op, w: op(w, INDEX), w=X)
case("cross_entropy_loss.default", lambda op, x: op(x, LABELS, CLASS_WEIGHTS.to(x), 1, -100, 0.0))
case("nll_loss.default nll_loss_nd.default", lambda op, x: op(x.log_softmax(1), LABELS, None, 1, -100))
case("nll_loss_forward.default", lambda op, x: op(x.log_softmax(1), LABELS, None, 1, -100)[0])

# ---- complex numbers, as far as they are supported
case("view_as_complex.default", lambda op, x: torch.ops.aten.view_as_real.default(op(x.view(3, 2, 2))))
case("view_as_real.default", lambda op, x: op(torch.view_as_complex(x.view(3, 2, 2)).t() * torch.view_as_complex(x[:, :2].contiguous())))
case("polar.default complex.default", lambda op, x, y: torch.view_as_real(op(x, y) * y), x=POS, y=X)

# ---- views
case("view.default _unsafe_view.default reshape.default", lambda op, x: op(x, [2, 6]))
case("view_as.default reshape_as.default", lambda op, x, y: op(x, y), x=X, y=((6, 2), "any"))
case("expand_as.default", lambda op, x, y: op(x, y), x=ROW, y=X)
case("expand.default broadcast_to.default", lambda op, x: op(x, [3, 4]), x=ROW)
case("flatten.using_ints", lambda op, x: op(x, 1, 2), x=CUBE)
case("unflatten.int", lambda op, x: op(x, 1, [2, 2]))
case("unsqueeze.default", lambda op, x: op(x, 1))
case("squeeze.dim", lambda op, x: op(x, 1), x=((3, 1, 2), "any"))
case("squeeze.dims", lambda op, x: op(x, [0, 2]), x=((1, 3, 1, 2), "any"))
case("squeeze.default", x=((1, 3, 1, 2), "any"))
case("transpose.int swapaxes.default", lambda op, x: op(x, 0, 2), x=CUBE)
case("t.default mT.default")
case("numpy_T.default", x=CUBE)
case("permute.default", lambda op, x: op(x, [2, 0, 1]), x=CUBE)
case("movedim.int", lambda op, x: op(x, 0, 2), x=CUBE)
case("movedim.intlist", lambda op, x: op(x, [0, 1], [2, 0]), x=CUBE)
case("repeat.default tile.default", lambda op, x: op(x, [2, 1]))
case("repeat_interleave.self_int", lambda op, x: op(x, 2, 1))
case("slice.Tensor", lambda op, x: op(x, 1, 1, 4, 2))
case("narrow.default", lambda op, x: op(x, 1, 1, 2))
case("select.int", lambda op, x: op(x, 1, 2))
case("split.Tensor", lambda op, x: op(x, 3, 1))
case("split_with_sizes.default split.sizes", lambda op, x: op(x, [1, 3], 1))
case("chunk.default", lambda op, x: op(x, 2, 1))
case("unbind.int", lambda op, x: op(x, 1))
case("cat.default concat.default stack.default", lambda op, x, y: op([x, y], 1), x=X, y=X)
case("pad.default constant_pad_nd.default", lambda op, x: op(x, [1, -1, 0, 2]))
case("roll.default", lambda op, x: op(x, [3, 1], [1, 0]))
case("flip.default", lambda op, x: op(x, [0, 1]))
case("slice_scatter.default", lambda op, x, y: op(x, y, 1, 1, 3), x=X, y=((3, 2), "any"))
case("select_scatter.default", lambda op, x, y: op(x, y, 1, 2), x=X, y=((3,), "any"))
case("tril.default triu.default", lambda op, x: op(x, 1))

# ---- indices, and tensors from nothing, which appear as factors of x
case("index.Tensor", lambda op, x: op(x, [None, INDEX]), x=((2, 3), "any"))
case("index_select.default", lambda op, x: op(x, 1, INDEX[1]))
case("gather.default", lambda op, x: op(x, 0, INDEX))
case("one_hot.default", lambda op, x: op(INDEX[:, :3].t(), 4).sum(1) * x)
case("arange.default", lambda op, x: op(4) * x)
case("arange.start", lambda op, x: op(1, 5) * x)
case("arange.start_step", lambda op, x: op(1, 9, 2) * x)
case("full.default", lambda op, x: op([4], 1.5) * x)
case("zeros.default ones.default", lambda op, x: op([4]) * x)
case("empty.memory_format", lambda op, x: torch.ops.aten.fill.Scalar(op([4]), 1.5) * x)
case("new_full.default", lambda op, x: op(x, [4], 1.5) * x)
case("new_zeros.default new_ones.default", lambda op, x: op(x, [4]) * x)
case("new_empty.default", lambda op, x: torch.ops.aten.fill.Scalar(op(x, [4]), 1.5) * x)
case("full_like.default fill.Scalar", lambda op, x: op(x, 1.5) * x)
case("zeros_like.default ones_like.default zero.default", lambda op, x: op(x) * x)
case("empty_like.default", lambda op, x: torch.ops.aten.fill.Scalar(op(x), 1.5) * x)
case("fill.Tensor", lambda op, x: op(x, torch.tensor(1.5)) * x)
case("scalar_tensor.default", lambda op, x: op(1.5) * x)
case("copy.default", lambda op, x, y: op(x.detach(), y.detach()) * x, x=X, stopped_y=ROW)
case("eye.default", lambda op, x: op(4)[1] * x)
case("eye.m", lambda op, x: op(3, 4) * x)
case("linspace.default", lambda op, x: op(-1, 2, 4) * x)


class EachOperator(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, 4), nn.Linear(4, vocab)
        rng = random.Random(22)
        self.register_buffer("weights", torch.tensor([rng.uniform(0.2, 1) * (-1) ** i for i in range(64)]))
        for target, _, operands in CASES:
            for name, (shape, kind) in operands.items():
                self.register_parameter(f"{target.replace('.', '/')}/{name}", nn.Parameter(values(shape, kind, rng)))

    def weighted(self, x, shaped):
        x = x if x.dtype == self.weights.dtype else x.to(self.weights.dtype)
        if x.shape not in shaped:  # one view for each shape: the graph stays small
            shaped[x.shape] = self.weights[:x.numel()].view(x.shape)
        return (x * shaped[x.shape]).sum()

    def term(self, shaped, target, function, operands):
        package, name, overload = target.split(".")
        operator = getattr(getattr(getattr(torch.ops, package), name), overload)
        x = [self.get_parameter(f"{target.replace('.', '/')}/{name}") for name in operands]
        y = function(operator, *x)
        y = y if isinstance(y, (tuple, list)) else [y]
        return functools.reduce(torch.add, [self.weighted(z, shaped) for z in [*y, *x]])

    def forward(self, input_ids, labels):
        shaped = {}
        logits = self.head(self.embed(input_ids))
        each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        valid = (labels != -100).to(each.dtype)
        return ((each + functools.reduce(torch.add, [self.term(shaped, *c) for c in CASES])) * valid).sum() / valid.sum()
