/* member.c - what an instruction computes, in statements: a row of expr.def for an element-wise op, a few lines here
 * for what reduces or has two results. The formulas are those of the ordinary kernels (device/cpu/norm.c, softmax.c).
 *
 * Where an op ends its value is rounded to the type that its result would have had in memory, so what a kernel computes
 * does not depend on which ops it holds.
 */
#include "gen/kernel.h"

gen_role gen_role_of(ir_op op, const ir_node *n, int rank, int i) {
    const ir_dim *dims;
    switch (op) {
    case OP_rmsnorm: /* x, w -> y, rstd */
        return i == 1 ? GEN_COLUMN : i == 3 ? GEN_ROW : GEN_ELEMENTS;
    case OP_rmsnorm_grad: /* x, w, rstd, dy -> dx, dw */
        return i == 1 || i == 5 ? GEN_COLUMN : i == 2 ? GEN_ROW : GEN_ELEMENTS;
    case OP_layernorm: /* x, w, b -> y, mean, rstd */
        return i == 1 || i == 2 ? GEN_COLUMN : i >= 4 ? GEN_ROW : GEN_ELEMENTS;
    case OP_layernorm_grad: /* x, w, mean, rstd, dy -> dx, dw, db */
        return i == 1 || i >= 6 ? GEN_COLUMN : i == 2 || i == 3 ? GEN_ROW : GEN_ELEMENTS;
    case OP_rope: /* x, cos, sin -> y */
        return i == 1 || i == 2 ? GEN_ANGLES : GEN_ELEMENTS;
    case OP_xent: /* logits, labels -> loss, lse */
        return i == 0 ? GEN_ELEMENTS : GEN_ROW;
    case OP_xent_grad: /* logits, labels, lse, dloss -> dlogits */
        return i == 0 || i == 4 ? GEN_ELEMENTS : GEN_ROW;
    case OP_sum:
        if (i == 0) return GEN_ELEMENTS;
        ir_dims(n, "dims", &dims);
        return dims[0] == rank - 1 ? GEN_ROW : GEN_COLUMN;
    default:
        return GEN_ELEMENTS;
    }
}

bool gen_reduces(ir_op op) {
    switch (op) {
    case OP_rmsnorm:
    case OP_rmsnorm_grad:
    case OP_layernorm:
    case OP_layernorm_grad:
    case OP_softmax:
    case OP_softmax_grad:
    case OP_xent:
    case OP_xent_grad:
    case OP_sum:
        return true;
    default:
        return false;
    }
}

bool gen_halves(ir_op op) { return op == OP_rope; }

static bool takes_labels(ir_op op) { return op == OP_xent || op == OP_xent_grad; }

/* Labels, and ignore_index, are columns' numbers: exact as f32. */
static bool can_label(const ir_node *n, const tensor *logits, const tensor *labels) {
    enum { EXACT = 1 << 24 };
    int64_t ignore = ir_int(n, "ignore", -100);
    return logits->rank > 1 && logits->dim[logits->rank - 1] <= EXACT && ignore > -EXACT && ignore < EXACT &&
           labels->type == DT_I64;
}

/* Sums along the row, or over all rows (dimensions of one need not be named); other sums are left to their kernel. */
static bool can_sum(const ir_node *n, const tensor *x) {
    const ir_dim *dims;
    int k = ir_dims(n, "dims", &dims), last = x->rank - 1;
    bool summed[TENSOR_MAX_RANK] = {0};
    if (last < 1 || k < 1) return false;
    for (int i = 0; i < k; i++) summed[dims[i]] = true;
    if (summed[last]) return k == 1;
    for (int d = 0; d < last; d++)
        if (!summed[d] && x->dim[d] != 1) return false;
    return true;
}

bool gen_can(ir_op op, const ir_node *n, int nin, int nout, const tensor *const *t) {
    for (int i = 0; i < nin + nout; i++)
        if (t[i]->type != DT_F32 && t[i]->type != DT_BF16 && t[i]->type != DT_F64 && !(takes_labels(op) && i == 1))
            return false;
    switch (op) {
    case OP_rope:
        return t[0]->rank == 4 && t[0]->dim[3] % 2 == 0 && t[1]->rank == 3 && t[2]->rank == 3;
    case OP_xent:
    case OP_xent_grad:
        return can_label(n, t[0], t[1]);
    case OP_copy:
    case OP_cast:
    case OP_accum:
    case OP_swiglu_grad:
    case OP_rmsnorm:
    case OP_rmsnorm_grad:
    case OP_layernorm:
    case OP_layernorm_grad:
        return t[0]->rank > 0;
    case OP_softmax:
    case OP_softmax_grad:
        return ir_int(n, "dim", -1) == t[0]->rank - 1;
    case OP_sum:
        return can_sum(n, t[0]);
    default:
        return gen_has_expr(op) && t[nin]->rank > 0;
    }
}

bool gen_exact(ir_op op) {
    switch (op) {
    case OP_copy:
    case OP_cast:
    case OP_accum:
    case OP_neg:
    case OP_abs:
    case OP_recip:
    case OP_sqrt:
    case OP_add:
    case OP_sub:
    case OP_mul:
    case OP_div:
    case OP_max:
    case OP_min:
    case OP_relu:
        return true;
    default:
        return false;
    }
}

static int mean(gen_kernel *k, int x) { return gen_op2(k, OP_div, gen_reduce(k, GEN_SUM, x), gen_cols(k)); }
static int mul(gen_kernel *k, int x, int y) { return gen_op2(k, OP_mul, x, y); }
static int sub(gen_kernel *k, int x, int y) { return gen_op2(k, OP_sub, x, y); }

/* The greatest of a row; the bound is for rows of -inf. */
static int greatest(gen_kernel *k, int x) { return gen_op2(k, OP_max, gen_reduce(k, GEN_MAX, x), gen_const(k, -3e38)); }

/* e^x times a row's value over the sum of these exponentials along the row; 0 in rows of -inf, whose sum is 0 where
 * others' are 1 or more. */
static int softmax(gen_kernel *k, int x, int scale) {
    int total = gen_op2(k, OP_max, gen_reduce(k, GEN_EXP_SUM, x), gen_const(k, 1));
    return gen_numerator(k, x, greatest(k, x), gen_op2(k, OP_div, scale, total));
}

/* 1 / sqrt(mean of squares + eps) */
static int inverse_root(gen_kernel *k, int x, const ir_node *n) {
    return gen_op1(k, OP_rsqrt, gen_op2(k, OP_add, mean(k, mul(k, x, x)), gen_const(k, ir_float(n, "eps", 0))));
}

void gen_member(gen_kernel *k, ir_op op, const ir_node *n, int rank, const int *in, const dtype *type, int *value) {
    int nout = 1;
    switch (op) {
    case OP_copy:
    case OP_cast:
    case OP_accum:
        value[0] = in[0];
        break;
    case OP_swiglu_grad: { /* (g, u, dy): dg = dy u s (1 + g (1 - s)), du = dy g s */
        int s = gen_op1(k, OP_sigmoid, in[0]), one = gen_const(k, 1);
        int slope = gen_op2(k, OP_add, one, mul(k, in[0], sub(k, one, s)));
        value[0] = mul(k, mul(k, mul(k, in[2], in[1]), s), slope);
        value[1] = mul(k, mul(k, in[2], in[0]), s);
        nout = 2;
        break;
    }
    case OP_rmsnorm:
        value[1] = inverse_root(k, in[0], n);
        value[0] = mul(k, mul(k, in[0], value[1]), in[1]);
        nout = 2;
        break;
    case OP_layernorm: {
        value[1] = mean(k, in[0]);
        int centred = sub(k, in[0], value[1]);
        value[2] = inverse_root(k, centred, n);
        value[0] = gen_op2(k, OP_add, mul(k, mul(k, centred, value[2]), in[1]), in[2]);
        nout = 3;
        break;
    }
    case OP_rmsnorm_grad: { /* dx = rstd (g - xh mean(g xh)), g = dy w, xh = x rstd */
        int xh = mul(k, in[0], in[2]), g = mul(k, in[3], in[1]);
        value[0] = mul(k, sub(k, g, mul(k, xh, mean(k, mul(k, g, xh)))), in[2]);
        value[1] = mul(k, in[3], xh);
        nout = 2;
        break;
    }
    case OP_layernorm_grad: { /* dx = rstd (g - mean(g) - xh mean(g xh)), xh = (x - mean) rstd */
        int xh = mul(k, sub(k, in[0], in[2]), in[3]), g = mul(k, in[4], in[1]);
        int rest = mul(k, xh, mean(k, mul(k, g, xh)));
        value[0] = mul(k, sub(k, sub(k, g, mean(k, g)), rest), in[3]);
        value[1] = mul(k, in[4], xh);
        value[2] = in[4];
        nout = 3;
        break;
    }
    case OP_softmax:
        value[0] = softmax(k, in[0], gen_const(k, 1));
        break;
    case OP_softmax_grad: /* (y, dy): y (dy - <y, dy>) */
        value[0] = mul(k, in[0], sub(k, in[1], gen_reduce(k, GEN_SUM, mul(k, in[0], in[1]))));
        break;
    case OP_xent: {
        int ignore = gen_const(k, (double)ir_int(n, "ignore", -100)), zero = gen_const(k, 0);
        int top = greatest(k, in[0]);
        int logit = gen_pick(k, in[0], in[1]);
        int total = gen_op1(k, OP_log, gen_reduce(k, GEN_EXP_SUM, in[0]));
        /* top - logit first: it is exact near the maximum, and the logarithm is then not lost in it */
        int loss = gen_op2(k, OP_add, sub(k, top, logit), total);
        value[0] = gen_op3(k, OP_select, gen_op2(k, OP_eq, in[1], ignore), zero, loss);
        value[1] = gen_op2(k, OP_add, top, total);
        gen_operand *labels = &k->in.data[k->s.data[in[1]].arg[0]];
        labels->labels = true;
        labels->ignore = ir_int(n, "ignore", -100);
        nout = 2;
        break;
    }
    case OP_xent_grad: { /* (softmax - one hot) dloss; labels were checked by the forward. Its lse is not used: the sum
                          * is taken again, so that it has the same bits beside the loss, where it is there anyway.
                          * Elements cost a product: the label's is changed in its column alone. */
        int ignored = gen_op2(k, OP_eq, in[1], gen_const(k, (double)ir_int(n, "ignore", -100))), zero = gen_const(k, 0);
        int p = gen_op3(k, OP_select, ignored, zero, softmax(k, in[0], in[3])); /* times dloss */
        int dloss = gen_op3(k, OP_select, ignored, zero, in[3]);
        value[0] = gen_op3(k, OP_select, gen_op2(k, OP_eq, gen_index(k), in[1]), sub(k, p, dloss), p);
        break;
    }
    case OP_sum:
        value[0] = gen_role_of(op, n, rank, 1) == GEN_COLUMN ? in[0] : gen_reduce(k, GEN_SUM, in[0]);
        break;
    default:
        value[0] = gen_op_for(k, op, op_table[op].nin, in, type[0]);
    }
    int nin = op_table[op].nin;
    for (int i = 0; i < nout; i++)
        if (gen_role_of(op, n, rank, nin + i) != GEN_COLUMN) value[i] = gen_round(k, value[i], type[i]);
}

void gen_halves_member(gen_kernel *k, const ir_node *n, int in[2][3], dtype type, int *value) {
    const bool transpose = ir_int(n, "transpose", 0) != 0;
    k->halves = true;
    for (int h = 0; h < 2; h++) { /* x cos + (-x1 sin0, x0 sin1); transposed: x cos + (x1 sin1, -x0 sin0) */
        int straight = mul(k, in[h][0], in[h][1]), across = mul(k, in[!h][0], in[transpose ? !h : h][2]);
        value[h] = gen_op2(k, (h == 1) != transpose ? OP_add : OP_sub, straight, across);
        value[h] = gen_round(k, value[h], type);
    }
}
