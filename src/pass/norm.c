/* norm.c - RMSNorm and LayerNorm written out in primitive ops.
 *
 * Three small steps instead of one big pattern, so that the order in which a model casts, scales and shifts does not
 * matter:
 *     x * rsqrt(mean(x * x) + eps)      => rmsnorm(x, 1)            (or x / sqrt(...))
 *     rmsnorm(x - mean(x), 1)           => layernorm(x, 1, 0)
 *     rmsnorm(x, 1) * w, layernorm(x, w, 0) * v, layernorm(x, w, 0) + b  => the weight or bias goes in
 * and casts of a bf16 row to f32 and back go inside, where the kernels compute in f32 anyway.
 */
#include "pass/rewrite.h"

#include <math.h>

/* Is v the mean over the last dimension of something of x's shape? That something in *y. */
static bool row_mean(const rw *r, ir_val v, const ir_type *x, ir_val *y) {
    const ir_node *n = rw_def(r, rw_unpadded(r, v));
    double c;
    int64_t size;
    if (x->rank == 0 || !dim_value(r->g, x->dim[x->rank - 1], &size) || size < 1) return false;
    if (n->op == OP_div && rw_const(r, n->in[1], &c))
        c = 1 / c;
    else if (n->op != OP_mul || !rw_const(r, n->in[1], &c))
        return false;
    const ir_node *s = rw_def(r, rw_unpadded(r, n->in[0]));
    const ir_dim *dims;
    if (s->op != OP_sum || ir_dims(s, "dims", &dims) != 1) return false;
    *y = s->in[0];
    return dims[0] == x->rank - 1 && rw_dims_equal(rw_type(r, *y), x) && fabs(c * (double)size - 1) < 1e-6;
}

/* y = x * x? Where the square was taken before a view and x after it, too. */
static bool is_square(const rw *r, ir_val y, ir_val x) {
    view v, w;
    for (int limit = 0; limit <= 4; limit++) {
        view_of(r, y, limit, &v);
        const ir_node *n = rw_def(r, v.base);
        if (n->op != OP_mul || n->in[0] != n->in[1]) continue;
        for (int other = 0; other <= 4; other++) {
            view_of(r, x, other, &w);
            if (w.base == n->in[0] && view_same(r, &v, &w)) return true;
        }
    }
    return false;
}

/* Is v = mean(x * x) + eps per row? */
static bool mean_square(const rw *r, ir_val v, ir_val x, double *eps) {
    ir_val m = v, y;
    *eps = 0;
    v = rw_unpadded(r, v);
    if (!rw_with_const(r, v, OP_add, &m, eps)) m = v;
    return row_mean(r, m, rw_type(r, x), &y) && is_square(r, y, x);
}

static ir_val ones(rw *r, ir_val x, double v) {
    ir_type t = {.t = rw_type(r, x)->t, .rank = 1, .dim = {rw_type(r, x)->dim[rw_type(r, x)->rank - 1]}};
    return rw_splat(r, &t, v);
}

/* x - mean(x) */
static bool centred(const rw *r, ir_val v, ir_val *x) {
    const ir_node *n = rw_def(r, v);
    ir_val m, y;
    if (n->op != OP_sub || (m = rw_per_row(r, n->in[1])) < 0) return false;
    *x = n->in[0];
    return row_mean(r, m, rw_type(r, *x), &y) && y == *x;
}

static bool normalise(rw *r, ir_val x, double eps, ir_val *out) {
    ir_val y;
    if (centred(r, x, &y)) {
        ir_val res[3];
        rw_emit(r, OP_layernorm, (ir_val[]){y, ones(r, y, 1), ones(r, y, 0)}, 3, ATTRS(A_F("eps", eps)), NULL, res);
        out[0] = res[0];
        return true;
    }
    ir_val res[2];
    rw_emit(r, OP_rmsnorm, (ir_val[]){x, ones(r, x, 1)}, 2, ATTRS(A_F("eps", eps)), NULL, res);
    out[0] = res[0];
    return true;
}

/* The first result of a norm node? */
static const ir_node *norm_of(const rw *r, ir_val v) {
    const ir_node *n = rw_def(r, v);
    return (n->op == OP_rmsnorm || n->op == OP_layernorm) && n->out[0] == v ? n : NULL;
}

static ir_val with_operands(rw *r, const ir_node *n, ir_val x, ir_val w, ir_val b) {
    ir_val res[3], in[3] = {x, w, b};
    rw_emit(r, n->op, in, n->nin, ATTRS(A_F("eps", ir_float(n, "eps", 0))), NULL, res);
    return res[0];
}

static bool scale_or_shift(rw *r, const ir_node *n, ir_val *out) {
    for (int i = 0; i < 2; i++) {
        const ir_node *m = norm_of(r, n->in[i]);
        if (!m) continue;
        double c;
        ir_val other = n->in[1 - i];
        ir_node norm = *m;
        if (n->op == OP_add && (norm.op != OP_layernorm || !rw_const(r, norm.in[2], &c) || c != 0)) continue;
        if (n->op == OP_mul && norm.op == OP_layernorm && !rw_is_const(r, norm.in[2], 0)) continue;
        if (n->op == OP_mul && rw_const(r, other, &c)) continue; /* a plain number is not a weight */
        ir_val vec = rw_row_vector(r, other);
        if (vec < 0) continue;
        ir_val w = norm.in[1], b = norm.op == OP_layernorm ? norm.in[2] : -1;
        if (n->op == OP_add)
            b = vec;
        else
            w = rw_op2(r, OP_mul, w, vec, NO_ATTRS);
        out[0] = with_operands(r, &norm, norm.in[0], w, b);
        return true;
    }
    return false;
}

/* cast(norm(cast(x), w)) back to x's narrower type: the kernels compute rows in f32 themselves. */
static bool narrow(rw *r, const ir_node *n, ir_val *out) {
    const ir_node *m = norm_of(r, n->in[0]);
    dtype to = rw_type(r, n->out[0])->t;
    if (!m || to != DT_BF16) return false;
    ir_node norm = *m;
    ir_val x = rw_uncast(r, norm.in[0]);
    if (rw_type(r, x)->t != to) return false;
    ir_val w[2] = {-1, -1};
    for (int i = 1; i < norm.nin; i++) { /* weights must be bf16 numbers already, or the constants 0 and 1 */
        double c;
        w[i - 1] = rw_uncast(r, norm.in[i]);
        if (rw_const(r, norm.in[i], &c) && (c == 0 || c == 1)) w[i - 1] = rw_cast(r, norm.in[i], to);
        if (rw_type(r, w[i - 1])->t != to) return false;
    }
    out[0] = with_operands(r, &norm, x, w[0], w[1]);
    return true;
}

bool rw_norm(rw *r, const ir_node *n, ir_val *out) {
    double eps;
    if (n->op == OP_cast) return narrow(r, n, out);
    if (n->op == OP_div) { /* x / sqrt(mean(x * x) + eps) */
        ir_val s = rw_per_row(r, n->in[1]);
        if (s < 0 || !rw_is(r, s = rw_unpadded(r, s), OP_sqrt)) return false;
        return mean_square(r, rw_def(r, s)->in[0], n->in[0], &eps) && normalise(r, n->in[0], eps, out);
    }
    if (n->op != OP_mul && n->op != OP_add) return false;
    for (int i = 0; i < 2 && n->op == OP_mul; i++) {
        ir_val s = rw_per_row(r, n->in[i]);
        if (s < 0 || !rw_is(r, s = rw_unpadded(r, s), OP_rsqrt)) continue;
        if (mean_square(r, rw_def(r, s)->in[0], n->in[1 - i], &eps)) return normalise(r, n->in[1 - i], eps, out);
    }
    return scale_or_shift(r, n, out);
}
