/* elt_glue.c - element-wise ops, copies and accumulation on the cpu device.
 *
 * Operands are f32 windows of one shape. Dimensions that fold for all of them are folded; what is left is an outer
 * walk, in parallel over its first dimension, and an inner loop in which each operand has stride 1 or 0 (or any,
 * slower). Hot activations have kernels of their own (elem.c).
 */
#include "device/cpu/cpu.h"

#include <math.h>

typedef struct grid {
    int rank, n;
    int64_t dim[TENSOR_MAX_RANK];
    int64_t stride[4][TENSOR_MAX_RANK];
    char *data[4];
} grid;

/* Tensors of one shape with equal neighbours folded; tensor 0 is the result. */
static grid grid_of(const tensor *const *t, int n) {
    grid g = {.n = n};
    for (int k = 0; k < n; k++) g.data[k] = t[k]->data;
    for (int d = 0; d < t[0]->rank; d++) {
        if (t[0]->dim[d] == 1) continue;
        bool folds = g.rank > 0;
        for (int k = 0; k < n && folds; k++) folds = g.stride[k][g.rank - 1] == t[k]->stride[d] * t[0]->dim[d];
        if (folds) {
            g.dim[g.rank - 1] *= t[0]->dim[d];
            for (int k = 0; k < n; k++) g.stride[k][g.rank - 1] = t[k]->stride[d];
            continue;
        }
        g.dim[g.rank] = t[0]->dim[d];
        for (int k = 0; k < n; k++) g.stride[k][g.rank] = t[k]->stride[d];
        g.rank++;
    }
    if (!g.rank) g.dim[g.rank++] = 1;
    return g;
}

typedef void line_fn(ir_op op, int64_t n, float *y, const float *a, int64_t sa, const float *b, int64_t sb);

#define LINE1(expr)                                                                                                    \
    do {                                                                                                               \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            float x = a[i * sa];                                                                                       \
            y[i] = (expr);                                                                                             \
        }                                                                                                              \
        return;                                                                                                        \
    } while (0)

static void line_unary(ir_op op, int64_t n, float *y, const float *a, int64_t sa, const float *b, int64_t sb) {
    (void)b, (void)sb;
    switch (op) {
    case OP_copy:
        LINE1(x);
    case OP_neg:
        LINE1(-x);
    case OP_abs:
        LINE1(fabsf(x));
    case OP_exp:
        LINE1(expf(x));
    case OP_log:
        LINE1(logf(x));
    case OP_sqrt:
        LINE1(sqrtf(x));
    case OP_rsqrt:
        LINE1(1 / sqrtf(x));
    case OP_recip:
        LINE1(1 / x);
    case OP_sin:
        LINE1(sinf(x));
    case OP_cos:
        LINE1(cosf(x));
    case OP_tanh:
        LINE1(tanhf(x));
    case OP_erf:
        LINE1(erff(x));
    case OP_sigmoid:
        LINE1(1 / (1 + expf(-x)));
    case OP_silu:
        LINE1(x / (1 + expf(-x)));
    case OP_gelu:
        LINE1(0.5f * x * (1 + erff(x * 0.70710678f)));
    case OP_gelu_tanh:
        LINE1(0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))));
    case OP_relu:
        LINE1(x > 0 || x != x ? x : 0);
    default:
        ASSERT(!"a unary op");
    }
}

/* The common stride pairs get loops that vectorise. */
#define LOOP2(A, B, expr)                                                                                              \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        float x = A, z = B;                                                                                            \
        y[i] = (expr);                                                                                                 \
    }
#define LINE2(expr)                                                                                                    \
    do {                                                                                                               \
        if (sa == 1 && sb == 1) {                                                                                      \
            LOOP2(a[i], b[i], expr)                                                                                    \
        } else if (sa == 1 && sb == 0) {                                                                               \
            LOOP2(a[i], b[0], expr)                                                                                    \
        } else if (sa == 0 && sb == 1) {                                                                               \
            LOOP2(a[0], b[i], expr)                                                                                    \
        } else {                                                                                                       \
            LOOP2(a[i * sa], b[i * sb], expr)                                                                          \
        }                                                                                                              \
        return;                                                                                                        \
    } while (0)

static void line_binary(ir_op op, int64_t n, float *y, const float *a, int64_t sa, const float *b, int64_t sb) {
    switch (op) {
    case OP_add:
    case OP_accum:
        LINE2(x + z);
    case OP_sub:
        LINE2(x - z);
    case OP_mul:
        LINE2(x * z);
    case OP_div:
        LINE2(x / z);
    case OP_max:
        LINE2(x > z || x != x ? x : z);
    case OP_min:
        LINE2(x < z || x != x ? x : z);
    case OP_pow:
        if (sb == 0 && b[0] == 2) LINE1(x * x);
        if (sb == 0 && b[0] == 3) LINE1(x * x * x);
        LINE2(powf(x, z));
    default:
        ASSERT(!"a binary op");
    }
}

static void run_grid(ir_op op, line_fn *line, const grid *g) {
    int inner = g->rank - 1;
    int64_t outer = 1, len = g->dim[inner];
    for (int d = 0; d < inner; d++) outer *= g->dim[d];
    const int64_t block = 16384; /* elements of a line that one thread takes at a time */
    int64_t parts = outer == 1 ? ceil_div(len, block) : 1;
    int b = g->n > 2 ? 2 : 1;
#pragma omp parallel for schedule(static) if (outer * len > 8192)
    for (int64_t job = 0; job < outer * parts; job++) {
        int64_t rest = job / parts, at[4] = {0}, start = job % parts * block;
        int64_t n = outer == 1 ? min64(block, len - start) : len;
        for (int d = inner - 1; d >= 0; d--) {
            int64_t i = rest % g->dim[d];
            rest /= g->dim[d];
            for (int k = 0; k < g->n; k++) at[k] += i * g->stride[k][d];
        }
        for (int k = 0; k < g->n; k++) at[k] += start * g->stride[k][inner];
        float *y = (float *)g->data[0] + at[0];
        line(op, n, y, (const float *)g->data[1] + at[1], g->stride[1][inner], (const float *)g->data[b] + at[b],
             g->stride[b][inner]);
    }
}

/* Runs when all are f32 and the result's innermost folded stride is 1. */
static bool try_grid(dev_call *c, line_fn *line) {
    const tensor *t[4] = {&c->out[0]};
    int n = 1;
    if (c->op == OP_accum) t[n++] = &c->out[0];
    for (int i = 0; i < c->nin; i++) t[n++] = &c->in[i];
    for (int k = 0; k < n; k++)
        if (t[k]->type != DT_F32) return false;
    if (tensor_numel(t[0]) == 0) return true;
    grid g = grid_of(t, n);
    if (g.stride[0][g.rank - 1] != 1 && g.dim[g.rank - 1] != 1) return false;
    run_grid(c->op, line, &g);
    return true;
}

/* All operands and results contiguous and of one fast type. */
static bool all_contiguous(const dev_call *c) {
    dtype t = c->out[0].type;
    bool ok = cpu_fast_type(t);
    for (int i = 0; i < c->nin; i++) ok &= tensor_contiguous(&c->in[i]) && c->in[i].type == t;
    for (int i = 0; i < c->nout; i++) ok &= tensor_contiguous(&c->out[i]) && c->out[i].type == t;
    return ok;
}

/* Tiles of a batch of sequences: contiguous but for gaps between the indices of dimension 0. Runs fn once for each of
 * those; false when the operands are not like that. */
static bool each_leading(const dev_call *c, dev_fn *fn, sp_status *status) {
    enum { MAX = 4 };
    tensor t[2 * MAX];
    int n = c->nin + c->nout;
    if (c->out[0].rank < 2 || c->nin > MAX || c->nout > MAX) return false;
    for (int k = 0; k < n; k++) {
        t[k] = k < c->nin ? c->in[k] : c->out[k - c->nin];
        if (t[k].type != c->out[0].type || t[k].rank != c->out[0].rank) return false;
        t[k].rank--;
        for (int d = 0; d < t[k].rank; d++) {
            t[k].dim[d] = t[k].dim[d + 1];
            t[k].stride[d] = t[k].stride[d + 1];
        }
    }
    dev_call part = *c;
    part.in = t;
    part.out = t + c->nin;
    if (!all_contiguous(&part)) return false;
    for (int64_t i = 0; i < c->out[0].dim[0]; i++) {
        for (int k = 0; k < n; k++) {
            const tensor *whole = k < c->nin ? &c->in[k] : &c->out[k - c->nin];
            t[k].data = (char *)whole->data + i * whole->stride[0] * dtype_size(whole->type);
        }
        if ((*status = fn(&part)) != SP_OK) return true;
    }
    *status = SP_OK;
    return true;
}

static bool activation(ir_op op, kern_act *act) {
    switch (op) {
    case OP_silu:
    case OP_silu_grad:
        *act = KERN_SILU;
        return true;
    case OP_gelu:
    case OP_gelu_grad:
        *act = KERN_GELU;
        return true;
    case OP_gelu_tanh:
    case OP_gelu_tanh_grad:
        *act = KERN_GELU_TANH;
        return true;
    default:
        return false;
    }
}

sp_status cpu_unary(dev_call *c) {
    kern_act act;
    sp_status s;
    if (activation(c->op, &act) && !all_contiguous(c) && each_leading(c, cpu_unary, &s)) return s;
    if (activation(c->op, &act) && all_contiguous(c)) {
        kern_act_fwd(act, c->out[0].type, tensor_numel(&c->in[0]), c->in[0].data, c->out[0].data);
        return SP_OK;
    }
    return c->op != OP_not && try_grid(c, line_unary) ? SP_OK : ref_unary(c);
}

sp_status cpu_binary(dev_call *c) {
    kern_act act;
    int64_t n = tensor_numel(&c->out[0]);
    bool flat = all_contiguous(c);
    sp_status s;
    if ((activation(c->op, &act) || c->op == OP_swiglu) && !flat && each_leading(c, cpu_binary, &s)) return s;
    if (activation(c->op, &act) && flat) {
        kern_act_bwd(act, c->out[0].type, n, c->in[0].data, c->in[1].data, c->out[0].data);
        return SP_OK;
    }
    if (c->op == OP_swiglu && flat) {
        kern_swiglu_fwd(c->out[0].type, 1, n, c->in[0].data, n, c->in[1].data, n, c->out[0].data, n);
        return SP_OK;
    }
    switch (c->op) {
    case OP_add:
    case OP_sub:
    case OP_mul:
    case OP_div:
    case OP_pow:
    case OP_max:
    case OP_min:
        if (flat && c->out[0].type == DT_BF16 && (c->op == OP_add || c->op == OP_mul)) {
            (c->op == OP_add ? kern_add : kern_mul)(DT_BF16, n, c->in[0].data, c->in[1].data, c->out[0].data);
            return SP_OK;
        }
        return try_grid(c, line_binary) ? SP_OK : ref_binary(c);
    default:
        return ref_binary(c);
    }
}

sp_status cpu_swiglu_grad(dev_call *c) {
    sp_status s;
    if (!all_contiguous(c)) return each_leading(c, cpu_swiglu_grad, &s) ? s : ref_swiglu_grad(c);
    int64_t n = tensor_numel(&c->out[0]);
    kern_swiglu_bwd(c->out[0].type, 1, n, c->in[0].data, n, c->in[1].data, n, c->in[2].data, n, c->out[0].data, n,
                    c->out[1].data, n);
    return SP_OK;
}

sp_status cpu_accum(dev_call *c) { return try_grid(c, line_binary) ? SP_OK : ref_accum(c); }
sp_status cpu_compare(dev_call *c) { return ref_compare(c); }

sp_status cpu_select(dev_call *c) {
    const tensor *m = &c->in[0], *a = &c->in[1], *b = &c->in[2], *y = &c->out[0];
    if (y->type != DT_F32 || !tensor_contiguous(m) || !tensor_contiguous(y)) return ref_select(c);
    int64_t n = tensor_numel(y);
    bool sa = tensor_contiguous(a), sb = tensor_contiguous(b), za = true, zb = true;
    for (int d = 0; d < y->rank; d++) {
        za &= a->stride[d] == 0 || a->dim[d] == 1;
        zb &= b->stride[d] == 0 || b->dim[d] == 1;
    }
    if (!(sa || za) || !(sb || zb)) return ref_select(c);
    const uint8_t *w = m->data;
    const float *fa = a->data, *fb = b->data;
    float *fy = y->data;
    int64_t ka = !za, kb = !zb;
#pragma omp parallel for simd schedule(static) if (n > 8192)
    for (int64_t i = 0; i < n; i++) fy[i] = w[i] ? fa[i * ka] : fb[i * kb];
    return SP_OK;
}

/* ---- copies ---- */

static bool copies(dtype to, dtype from) {
    return to == from || (to == DT_F32 && from == DT_BF16) || (to == DT_BF16 && from == DT_F32);
}

sp_status cpu_copy(dev_call *c) {
    if (c->in[0].type != c->out[0].type) return ref_copy(c);
    kern_copy(&c->out[0], &c->in[0]);
    return SP_OK;
}

sp_status cpu_cast(dev_call *c) {
    if (!copies(c->out[0].type, c->in[0].type)) return ref_cast(c);
    kern_copy(&c->out[0], &c->in[0]);
    return SP_OK;
}

sp_status cpu_concat(dev_call *c) {
    int64_t dim = ir_int(c->node, "dim", 0), at = 0;
    for (int i = 0; i < c->nin; i++) {
        tensor win = c->out[0];
        win.data = (char *)win.data + at * win.stride[dim] * dtype_size(win.type);
        win.dim[dim] = c->in[i].dim[dim];
        kern_copy(&win, &c->in[i]);
        at += c->in[i].dim[dim];
    }
    return SP_OK;
}

sp_status cpu_pad(dev_call *c) {
    const tensor *y = &c->out[0];
    if (ir_float(c->node, "value", 0) != 0 || !tensor_contiguous(y)) return ref_pad(c);
    int64_t dim = ir_int(c->node, "dim", 0);
    memset(y->data, 0, (size_t)(tensor_numel(y) * dtype_size(y->type)));
    tensor win = *y;
    win.data = (char *)y->data + ir_int(c->node, "lo", 0) * y->stride[dim] * dtype_size(y->type);
    win.dim[dim] = c->in[0].dim[dim];
    win.stride[dim] *= ir_int(c->node, "step", 1);
    if (tensor_numel(&win)) kern_copy(&win, &c->in[0]);
    return SP_OK;
}
