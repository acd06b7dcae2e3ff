/* fold.c - constants and algebra of `simplify`: what is known stays symbolic and small.
 *
 * A constant is one number (rw_const), so folding never makes data: fill + fill is a fill, index arithmetic on iota is
 * left to the mask analysis (elem.c). Only identities that keep float results bit-equal (or, for x * x instead of
 * pow(x, 2) and 1/sqrt as rsqrt, equal up to a rounding) are used; x * 0 is folded for integers only.
 */
#include "pass/rewrite.h"

#include <math.h>

static double floor_div(double a, double b) { return floor(a / b); }

bool rw_eval(ir_op op, dtype in, dtype t, const double *x, double *y) {
    double a = x[0], b = x[1];
    bool whole = in == DT_I64 || in == DT_I32;
    switch (op) {
    case OP_cast:
        if (t == DT_BOOL)
            *y = a != 0;
        else if (t == DT_I64 || t == DT_I32)
            *y = trunc(a);
        else
            *y = a;
        break;
    case OP_neg:
        *y = -a;
        break;
    case OP_abs:
        *y = fabs(a);
        break;
    case OP_exp:
        *y = exp(a);
        break;
    case OP_log:
        *y = log(a);
        break;
    case OP_sqrt:
        *y = sqrt(a);
        break;
    case OP_rsqrt:
        *y = 1 / sqrt(a);
        break;
    case OP_recip:
        *y = 1 / a;
        break;
    case OP_not:
        *y = a == 0;
        break;
    case OP_add:
        *y = a + b;
        break;
    case OP_sub:
        *y = a - b;
        break;
    case OP_mul:
        *y = a * b;
        break;
    case OP_div:
        *y = a / b;
        break;
    case OP_pow:
        *y = pow(a, b);
        break;
    case OP_max:
        *y = a > b ? a : b;
        break;
    case OP_min:
        *y = a < b ? a : b;
        break;
    case OP_floordiv:
        if (b == 0) return false;
        *y = floor_div(a, b);
        break;
    case OP_mod:
        if (b == 0) return false;
        *y = a - floor_div(a, b) * b;
        break;
    case OP_and:
        *y = a != 0 && b != 0;
        break;
    case OP_or:
        *y = a != 0 || b != 0;
        break;
    case OP_eq:
        *y = a == b;
        break;
    case OP_ne:
        *y = a != b;
        break;
    case OP_lt:
        *y = a < b;
        break;
    case OP_le:
        *y = a <= b;
        break;
    case OP_gt:
        *y = a > b;
        break;
    case OP_ge:
        *y = a >= b;
        break;
    case OP_select:
        *y = a != 0 ? b : x[2];
        break;
    default:
        return false;
    }
    *y = rw_round(t, *y);
    return !whole || fabs(*y) < 9007199254740992.0; /* doubles are exact that far */
}

bool rw_fold(rw *r, const ir_node *n, ir_val *out) {
    if (n->nout == 0) return false;
    const ir_type *t = rw_type(r, n->out[0]);
    double c, x[3] = {0};
    if (n->op == OP_fill && t->rank > 0) { /* one form: an expanded scalar */
        out[0] = rw_splat(r, t, ir_float(n, "value", 0));
        return true;
    }
    if (n->op == OP_const && rw_const(r, n->out[0], &c)) {
        out[0] = rw_splat(r, t, c);
        return true;
    }
    if (n->op == OP_iota && t->dim[ir_int(n, "dim", 0)] == 1) {
        out[0] = rw_splat(r, t, 0);
        return true;
    }
    if (n->op == OP_dimval) {
        const ir_dim *d;
        int64_t v;
        if (ir_dims(n, "dims", &d) != 1 || !dim_value(r->g, d[0], &v)) return false;
        out[0] = rw_splat(r, t, (double)v);
        return true;
    }
    if (!(op_table[n->op].flags & F_ELT) || n->nin > 3) return false;
    for (int i = 0; i < n->nin; i++)
        if (!rw_const(r, n->in[i], &x[i])) return false;
    if (!rw_eval(n->op, rw_type(r, n->in[0])->t, t->t, x, &c)) return false;
    out[0] = rw_splat(r, t, c);
    return true;
}

/* Does every value of type a survive a cast to b and back? */
static bool widens(dtype a, dtype b) {
    if (a == b || a == DT_BOOL) return true;
    if (a == DT_BF16 || a == DT_F16) return b == DT_F32 || b == DT_F64;
    if (a == DT_I32) return b == DT_I64 || b == DT_F64;
    return a == DT_F32 && b == DT_F64;
}

static bool integral(dtype t) { return t == DT_I64 || t == DT_I32 || t == DT_BOOL; }

static bool simplify_cast(rw *r, const ir_node *n, ir_val *out) {
    dtype to = rw_type(r, n->out[0])->t, from = rw_type(r, n->in[0])->t;
    if (to == from) {
        out[0] = n->in[0];
        return true;
    }
    if (!rw_is(r, n->in[0], OP_cast)) return false;
    ir_val x = rw_def(r, n->in[0])->in[0];
    dtype first = rw_type(r, x)->t;
    if (!widens(first, from)) return false;
    if (to == DT_BOOL && first != DT_BOOL) return false;
    out[0] = rw_cast(r, x, to);
    return true;
}

static bool simplify_binary(rw *r, const ir_node *n, ir_val *out) {
    ir_val a = n->in[0], b = n->in[1];
    const ir_type *t = rw_type(r, n->out[0]);
    double ca = 0, cb = 0;
    bool ka = rw_const(r, a, &ca), kb = rw_const(r, b, &cb), whole = integral(rw_type(r, a)->t);
    switch (n->op) {
    case OP_add:
        if (kb && cb == 0) return out[0] = a, true;
        if (ka && ca == 0) return out[0] = b, true;
        if (rw_is(r, b, OP_neg)) return out[0] = rw_op2(r, OP_sub, a, rw_def(r, b)->in[0], NO_ATTRS), true;
        if (rw_is(r, a, OP_neg)) return out[0] = rw_op2(r, OP_sub, b, rw_def(r, a)->in[0], NO_ATTRS), true;
        return false;
    case OP_sub:
        if (kb && cb == 0) return out[0] = a, true;
        if (whole && a == b) return out[0] = rw_splat(r, t, 0), true;
        return false;
    case OP_mul:
        if (kb && cb == 1) return out[0] = a, true;
        if (ka && ca == 1) return out[0] = b, true;
        if (whole && ((ka && ca == 0) || (kb && cb == 0))) return out[0] = rw_splat(r, t, 0), true;
        if (kb && cb == -1) return out[0] = rw_op1(r, OP_neg, a, NO_ATTRS), true;
        if (ka && ca == -1) return out[0] = rw_op1(r, OP_neg, b, NO_ATTRS), true;
        return false;
    case OP_div:
        if (kb && cb == 1) return out[0] = a, true;
        if (ka && ca == 1) return out[0] = rw_op1(r, OP_recip, b, NO_ATTRS), true;
        return false;
    case OP_pow:
        if (!kb) return false;
        if (cb == 1) return out[0] = a, true;
        if (cb == 2) return out[0] = rw_op2(r, OP_mul, a, a, NO_ATTRS), true;
        if (cb == 3) return out[0] = rw_op2(r, OP_mul, rw_op2(r, OP_mul, a, a, NO_ATTRS), a, NO_ATTRS), true;
        if (whole) return false;
        if (cb == 0.5) return out[0] = rw_op1(r, OP_sqrt, a, NO_ATTRS), true;
        if (cb == -0.5) return out[0] = rw_op1(r, OP_rsqrt, a, NO_ATTRS), true;
        if (cb == -1) return out[0] = rw_op1(r, OP_recip, a, NO_ATTRS), true;
        return false;
    case OP_and:
        if (a == b || (kb && cb != 0)) return out[0] = a, true;
        if (ka && ca != 0) return out[0] = b, true;
        if ((ka && ca == 0) || (kb && cb == 0)) return out[0] = rw_splat(r, t, 0), true;
        return false;
    case OP_or:
        if (a == b || (kb && cb == 0)) return out[0] = a, true;
        if (ka && ca == 0) return out[0] = b, true;
        if ((ka && ca != 0) || (kb && cb != 0)) return out[0] = rw_splat(r, t, 1), true;
        return false;
    case OP_eq:
    case OP_le:
    case OP_ge:
        if (whole && a == b) return out[0] = rw_splat(r, t, 1), true;
        return false;
    case OP_ne:
    case OP_lt:
    case OP_gt:
        if (whole && a == b) return out[0] = rw_splat(r, t, 0), true;
        return false;
    default:
        return false;
    }
}

static bool simplify_slice(rw *r, const ir_node *n, ir_val *out) {
    ir_val x = n->in[0];
    int dim = (int)ir_int(n, "dim", 0);
    const ir_dim *range;
    ir_dims(n, "range", &range);
    int64_t step = ir_int(n, "step", 1);
    if (range[0] == 0 && range[1] == rw_type(r, x)->dim[dim] && step == 1) return out[0] = x, true;
    const ir_node *d = rw_def(r, x);
    if (d->op == OP_slice && ir_int(d, "dim", -1) == dim && ir_int(d, "step", 1) == 1) { /* of a slice */
        const ir_dim *inner;
        ir_dims(d, "range", &inner);
        ir_dim both[2] = {dim_add(r->g, inner[0], range[0]), dim_add(r->g, inner[0], range[1])};
        out[0] = rw_op1(r, OP_slice, d->in[0], ATTRS(A_I("dim", dim), A_D("range", 2, both), A_I("step", step)));
        return true;
    }
    if (d->op == OP_concat && ir_int(d, "dim", -1) == dim) { /* of one of the parts */
        ir_dim at = 0;
        for (int i = 0; i < d->nin; i++) {
            ir_dim ext = rw_type(r, d->in[i])->dim[dim], a = dim_sub(r->g, range[0], at),
                   b = dim_sub(r->g, range[1], at), rest = dim_sub(r->g, ext, b);
            int64_t va, vr;
            if (dim_value(r->g, a, &va) && va >= 0 && dim_value(r->g, rest, &vr) && vr >= 0) {
                ir_dim both[2] = {a, b};
                out[0] =
                    rw_op1(r, OP_slice, d->in[i], ATTRS(A_I("dim", dim), A_D("range", 2, both), A_I("step", step)));
                return true;
            }
            at = dim_add(r->g, at, ext);
        }
    }
    return false;
}

/* take with constant indices is a slice; take of whole rows of a table is an embedding, which has a gradient. */
static bool simplify_take(rw *r, const ir_node *n, ir_val *out) {
    int k = n->nin - 1;
    const ir_type *x = rw_type(r, n->in[0]), *t = rw_type(r, n->out[0]), *it = rw_type(r, n->in[1]);
    double c[IR_MAX_RANK];
    bool all = true;
    for (int i = 0; i < k; i++) all &= rw_const(r, n->in[i + 1], &c[i]);
    if (!all) {
        if (k != 1 || x->rank != 2 || !dtype_is_float(x->t)) return false;
        out[0] = rw_op2(r, OP_embedding, n->in[0], n->in[1], NO_ATTRS);
        return true;
    }
    ir_val v = n->in[0];
    for (int i = 0; i < k; i++) {
        int64_t ext;
        if (!dim_value(r->g, x->dim[i], &ext)) return false;
        if (c[i] < 0) c[i] += (double)ext;
        if (c[i] < 0 || c[i] >= (double)ext) return false;
    }
    for (int i = 0; i < k; i++) v = rw_slice(r, v, i, (ir_dim)c[i], (ir_dim)c[i] + 1);
    ir_dim dims[IR_MAX_RANK];
    int rank = 0;
    for (int d = 0; d < it->rank; d++) dims[rank++] = 1;
    for (int d = k; d < x->rank; d++) dims[rank++] = x->dim[d];
    out[0] = rw_expand(r, rw_reshape(r, v, rank, dims), t->rank, t->dim);
    return true;
}

bool rw_algebra(rw *r, const ir_node *n, ir_val *out) {
    double c;
    switch (n->op) {
    case OP_cast:
        return simplify_cast(r, n, out);
    case OP_copy:
        return out[0] = n->in[0], true; /* values are functional: nothing can tell */
    case OP_stop_grad:
        if (r->trainable.data[n->in[0]]) return false;
        return out[0] = n->in[0], true;
    case OP_neg:
    case OP_not:
        if (n->op == OP_not && (rw_is(r, n->in[0], OP_eq) || rw_is(r, n->in[0], OP_ne))) {
            const ir_node *e = rw_def(r, n->in[0]);
            return out[0] = rw_op2(r, e->op == OP_eq ? OP_ne : OP_eq, e->in[0], e->in[1], NO_ATTRS), true;
        }
        if (!rw_is(r, n->in[0], n->op)) return false;
        return out[0] = rw_def(r, n->in[0])->in[0], true;
    case OP_recip:
        if (!rw_is(r, n->in[0], OP_sqrt)) return false;
        return out[0] = rw_op1(r, OP_rsqrt, rw_def(r, n->in[0])->in[0], NO_ATTRS), true;
    case OP_select:
        if (n->in[1] == n->in[2]) return out[0] = n->in[1], true;
        if (rw_const(r, n->in[0], &c)) return out[0] = n->in[c != 0 ? 1 : 2], true;
        if (rw_is(r, n->in[0], OP_not))
            return out[0] = rw_op3(r, OP_select, rw_def(r, n->in[0])->in[0], n->in[2], n->in[1], NO_ATTRS), true;
        return false;
    case OP_slice:
        return simplify_slice(r, n, out);
    case OP_take:
        return simplify_take(r, n, out);
    case OP_concat:
        if (n->nin != 1) return false;
        return out[0] = n->in[0], true;
    case OP_pad:
        if (ir_int(n, "lo", 0) || ir_int(n, "hi", 0) || ir_int(n, "step", 1) != 1) return false;
        return out[0] = n->in[0], true;
    case OP_sum:
    case OP_rmax: { /* over dimensions of extent 1 */
        const ir_type *t = rw_type(r, n->out[0]);
        const ir_dim *dims;
        int nd = ir_dims(n, "dims", &dims);
        for (int i = 0; i < nd; i++)
            if (rw_type(r, n->in[0])->dim[dims[i]] != 1) return false;
        return out[0] = rw_reshape(r, n->in[0], t->rank, t->dim), true;
    }
    default:
        return n->nin == 2 && (op_table[n->op].flags & F_ELT) && simplify_binary(r, n, out);
    }
}
