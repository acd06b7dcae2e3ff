/* elt.c - reference kernels: element-wise ops, copies, index arithmetic, accumulation. */
#include "device/ref/ref.h"

#include <math.h>

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double phi(double x) { return 0.5 * erfc(-x / sqrt(2.0)); } /* the normal distribution */

static double gelu_tanh_inner(double x) { return 0.7978845608028654 * (x + 0.044715 * x * x * x); } /* sqrt(2/pi) */

static double unary(ir_op op, double x) {
    switch (op) {
    case OP_neg:
        return -x;
    case OP_abs:
        return fabs(x);
    case OP_exp:
        return exp(x);
    case OP_log:
        return log(x);
    case OP_sqrt:
        return sqrt(x);
    case OP_rsqrt:
        return 1 / sqrt(x);
    case OP_recip:
        return 1 / x;
    case OP_sin:
        return sin(x);
    case OP_cos:
        return cos(x);
    case OP_tanh:
        return tanh(x);
    case OP_erf:
        return erf(x);
    case OP_sigmoid:
        return sigmoid(x);
    case OP_silu:
        return x * sigmoid(x);
    case OP_gelu:
        return x * phi(x);
    case OP_gelu_tanh:
        return 0.5 * x * (1 + tanh(gelu_tanh_inner(x)));
    case OP_relu:
        return x > 0 ? x : x != x ? x : 0;
    case OP_not:
        return x == 0;
    default:
        ASSERT(!"a unary op");
        return 0;
    }
}

static double binary(ir_op op, double x, double y) {
    switch (op) {
    case OP_add:
        return x + y;
    case OP_sub:
        return x - y;
    case OP_mul:
        return x * y;
    case OP_div:
        return x / y;
    case OP_pow:
        return pow(x, y);
    case OP_max:
        return x > y || x != x ? x : y;
    case OP_min:
        return x < y || x != x ? x : y;
    case OP_floordiv:
        return floor(x / y);
    case OP_mod:
        return x - floor(x / y) * y;
    case OP_and:
        return x != 0 && y != 0;
    case OP_or:
        return x != 0 || y != 0;
    case OP_eq:
        return x == y;
    case OP_ne:
        return x != y;
    case OP_lt:
        return x < y;
    case OP_le:
        return x <= y;
    case OP_gt:
        return x > y;
    case OP_ge:
        return x >= y;
    case OP_silu_grad: { /* s (1 + x (1 - s)) */
        double s = sigmoid(x);
        return y * s * (1 + x * (1 - s));
    }
    case OP_gelu_grad:
        return y * (phi(x) + x * exp(-0.5 * x * x) * 0.3989422804014327); /* 1/sqrt(2 pi) */
    case OP_gelu_tanh_grad: {
        double t = tanh(gelu_tanh_inner(x)), inner = 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
        return y * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner);
    }
    case OP_swiglu:
        return x * sigmoid(x) * y;
    default:
        ASSERT(!"a binary op");
        return 0;
    }
}

double ref_eval(ir_op op, int nargs, const double *x) {
    return nargs == 1 ? unary(op, x[0]) : nargs == 2 ? binary(op, x[0], x[1]) : x[0] != 0 ? x[1] : x[2];
}

static sp_status each(dev_call *c) {
    const tensor *t[4] = {&c->out[0]};
    for (int i = 0; i < c->nin; i++) t[i + 1] = &c->in[i];
    for (ref_walk w = ref_walk_begin(c->nin + 1, t, c->out[0].rank, c->out[0].dim); w.more; ref_walk_next(&w)) {
        double x = ref_get(t[1], w.at[1]), v;
        if (c->op == OP_copy || c->op == OP_cast)
            v = x;
        else if (c->op == OP_accum)
            v = ref_get(t[0], w.at[0]) + x;
        else if (c->op == OP_select)
            v = x != 0 ? ref_get(t[2], w.at[2]) : ref_get(t[3], w.at[3]);
        else
            v = c->nin == 1 ? unary(c->op, x) : binary(c->op, x, ref_get(t[2], w.at[2]));
        if (c->op == OP_cast && !dtype_is_float(t[0]->type) && t[0]->type != DT_BOOL) v = trunc(v);
        ref_set(t[0], w.at[0], v);
    }
    return SP_OK;
}

/* A copy keeps bits: integers past 2^53 must survive. */
sp_status ref_copy(dev_call *c) {
    if (c->in[0].type != c->out[0].type) return each(c);
    const tensor *t[2] = {&c->out[0], &c->in[0]};
    size_t size = (size_t)dtype_size(t[0]->type);
    for (ref_walk w = ref_walk_begin(2, t, t[0]->rank, t[0]->dim); w.more; ref_walk_next(&w))
        memcpy((char *)t[0]->data + w.at[0] * (int64_t)size, (const char *)t[1]->data + w.at[1] * (int64_t)size, size);
    return SP_OK;
}

sp_status ref_cast(dev_call *c) { return each(c); }
sp_status ref_unary(dev_call *c) { return each(c); }
sp_status ref_binary(dev_call *c) { return each(c); }
sp_status ref_compare(dev_call *c) { return each(c); }
sp_status ref_select(dev_call *c) { return each(c); }
sp_status ref_accum(dev_call *c) { return each(c); }

sp_status ref_swiglu_grad(dev_call *c) {
    const tensor *t[4] = {&c->in[0], &c->in[1], &c->in[2], &c->out[0]};
    const tensor *du = &c->out[1];
    ASSERT(tensor_contiguous(du) && tensor_contiguous(t[3]));
    for (ref_walk w = ref_walk_begin(4, t, t[3]->rank, t[3]->dim); w.more; ref_walk_next(&w)) {
        double g = ref_get(t[0], w.at[0]), u = ref_get(t[1], w.at[1]), dy = ref_get(t[2], w.at[2]), s = sigmoid(g);
        ref_set(t[3], w.at[3], dy * u * s * (1 + g * (1 - s)));
        ref_set(du, w.at[3], dy * g * s);
    }
    return SP_OK;
}

sp_status ref_iota(dev_call *c) {
    const tensor *y = &c->out[0];
    int64_t dim = ir_int(c->node, "dim", 0);
    for (ref_walk w = ref_walk_begin(1, &y, y->rank, y->dim); w.more; ref_walk_next(&w))
        ref_set(y, w.at[0], (double)(w.index[dim] + c->offset));
    return SP_OK;
}

/* ---- moving ---- */

/* Copies x into the window of y that starts at `start` along dim, every step-th element. */
static void place(const tensor *y, const tensor *x, int64_t dim, int64_t start, int64_t step) {
    tensor win = *y;
    win.data = (char *)y->data + start * y->stride[dim] * dtype_size(y->type);
    win.stride[dim] *= step;
    const tensor *t[2] = {&win, x};
    for (ref_walk w = ref_walk_begin(2, t, x->rank, x->dim); w.more; ref_walk_next(&w))
        ref_set(&win, w.at[0], ref_get(x, w.at[1]));
}

sp_status ref_concat(dev_call *c) {
    int64_t dim = ir_int(c->node, "dim", 0), at = 0;
    for (int i = 0; i < c->nin; i++) {
        place(&c->out[0], &c->in[i], dim, at, 1);
        at += c->in[i].dim[dim];
    }
    return SP_OK;
}

sp_status ref_pad(dev_call *c) {
    const tensor *y = &c->out[0];
    double value = ir_float(c->node, "value", 0);
    for (ref_walk w = ref_walk_begin(1, &y, y->rank, y->dim); w.more; ref_walk_next(&w)) ref_set(y, w.at[0], value);
    place(y, &c->in[0], ir_int(c->node, "dim", 0), ir_int(c->node, "lo", 0), ir_int(c->node, "step", 1));
    return SP_OK;
}

sp_status ref_take(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    int k = c->nin - 1, lead = c->in[1].rank;
    for (ref_walk w = ref_walk_begin(1, &y, y->rank, y->dim); w.more; ref_walk_next(&w)) {
        int64_t at = 0;
        for (int i = 0; i < k; i++) {
            int64_t p = 0;
            for (int d = 0; d < lead; d++) p += w.index[d] * c->in[i + 1].stride[d];
            int64_t index = (int64_t)ref_get(&c->in[i + 1], p);
            if (index < 0) index += x->dim[i];
            CHECK(index >= 0 && index < x->dim[i], "take: index %lld of a dimension of %lld", (long long)index,
                  (long long)x->dim[i]);
            at += index * x->stride[i];
        }
        for (int d = lead; d < y->rank; d++) at += w.index[d] * x->stride[k + d - lead];
        ref_set(y, w.at[0], ref_get(x, at));
    }
    return SP_OK;
}

static sp_status check_index(const tensor *x, int64_t dim, int64_t index) {
    CHECK(index >= 0 && index < x->dim[dim], "gather: index %lld of a dimension of %lld", (long long)index,
          (long long)x->dim[dim]);
    return SP_OK;
}

sp_status ref_gather(dev_call *c) {
    const tensor *t[2] = {&c->out[0], &c->in[1]}, *x = &c->in[0];
    int64_t dim = ir_int(c->node, "dim", 0);
    for (ref_walk w = ref_walk_begin(2, t, t[0]->rank, t[0]->dim); w.more; ref_walk_next(&w)) {
        int64_t index = (int64_t)ref_get(t[1], w.at[1]), at = 0;
        TRY(check_index(x, dim, index));
        for (int d = 0; d < x->rank; d++) at += (d == dim ? index : w.index[d]) * x->stride[d];
        ref_set(t[0], w.at[0], ref_get(x, at));
    }
    return SP_OK;
}

sp_status ref_scatter_add(dev_call *c) {
    const tensor *t[2] = {&c->in[0], &c->in[1]}, *y = &c->out[0];
    int64_t dim = ir_int(c->node, "dim", 0);
    for (ref_walk w = ref_walk_begin(1, &y, y->rank, y->dim); w.more; ref_walk_next(&w)) ref_set(y, w.at[0], 0);
    for (ref_walk w = ref_walk_begin(2, t, t[0]->rank, t[0]->dim); w.more; ref_walk_next(&w)) {
        int64_t index = (int64_t)ref_get(t[1], w.at[1]), at = 0;
        TRY(check_index(y, dim, index));
        for (int d = 0; d < y->rank; d++) at += (d == dim ? index : w.index[d]) * y->stride[d];
        ref_set(y, at, ref_get(y, at) + ref_get(t[0], w.at[0]));
    }
    return SP_OK;
}
