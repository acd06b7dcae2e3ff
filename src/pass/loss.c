/* loss.c - the loss without slices of big values, and cross-entropy written out.
 *
 * A model that shifts inside drops the last row of the logits and the first label. All logits with one more, ignored
 * label give the same sum, and nothing cuts the sequence of a big value at an odd place:
 *     sum(xent(logits[:, :S-1], l))     =>  sum(xent(logits, pad(l, 1, ignore)))
 * Log-softmax and a look-up of the label's column is what xent computes, without a second (rows, V) value:
 *     gather(z - log(sum(exp(z))), i)   =>  -xent(z, i)          (z minus anything per row is the same)
 *     select(l != g, xent(x, select(l != g, l, 0)), 0)  =>  xent(x, l) {ignore=g}
 */
#include "pass/rewrite.h"

/* ---- shifted by slices ---- */

static bool xent_of_slice(rw *r, const ir_node *n, ir_val *out) {
    int dim;
    ir_dim start, stop;
    int64_t lo, hi;
    ir_val x = rw_short_slice(r, n->in[0], &dim, &start, &stop);
    if (x < 0 || dim == rw_type(r, x)->rank - 1) return false;
    if (!dim_value(r->g, start, &lo) || !dim_value(r->g, dim_sub(r->g, rw_type(r, x)->dim[dim], stop), &hi))
        return false;
    int64_t ignore = ir_int(n, "ignore", -100);
    ir_val labels =
        rw_op1(r, OP_pad, n->in[1], ATTRS(A_I("dim", dim), A_I("lo", lo), A_I("hi", hi), A_F("value", (double)ignore)));
    ir_val res[2];
    rw_emit(r, OP_xent, (ir_val[]){x, labels}, 2, n->attr, n->nattr, NULL, res);
    for (int k = 0; k < 2; k++) out[k] = rw_slice(r, res[k], dim, start, stop);
    return true;
}

/* sum(slice(losses)) where the rows left out are ignored */
static bool sum_of_slice(rw *r, const ir_node *n, ir_val *out) {
    const ir_dim *dims, *range;
    int nd = ir_dims(n, "dims", &dims);
    const ir_node *s = rw_def(r, n->in[0]);
    if (s->op != OP_slice || ir_int(s, "step", 1) != 1) return false;
    int64_t dim = ir_int(s, "dim", 0), lo, hi;
    bool reduced = false;
    for (int i = 0; i < nd; i++) reduced |= dims[i] == dim;
    ir_val rows = s->in[0];
    const ir_node *x = rw_def(r, rows);
    if (!reduced || x->op != OP_xent || rows != x->out[0]) return false;
    const ir_node *pad = rw_def(r, x->in[1]);
    if (pad->op != OP_pad || ir_int(pad, "dim", -1) != dim || ir_int(pad, "step", 1) != 1) return false;
    if (ir_float(pad, "value", 0) != (double)ir_int(x, "ignore", -100)) return false;
    ir_dims(s, "range", &range);
    if (!dim_value(r->g, range[0], &lo) || !dim_value(r->g, dim_sub(r->g, rw_type(r, rows)->dim[dim], range[1]), &hi))
        return false;
    if (lo > ir_int(pad, "lo", 0) || hi > ir_int(pad, "hi", 0)) return false;
    out[0] = rw_op1(r, OP_sum, rows, n->attr, n->nattr);
    return true;
}

/* ---- cross-entropy written out ---- */

static bool look_up(rw *r, const ir_node *n, ir_val *out) {
    const ir_type t = *rw_type(r, n->in[0]), ti = *rw_type(r, n->in[1]);
    int last = t.rank - 1;
    if (ir_int(n, "dim", -1) != last || ti.dim[last] != 1 || !dtype_is_float(t.t)) return false;
    for (int limit = 0; limit <= 3; limit++) { /* of a view of the log-softmax */
        view w;
        view_of(r, n->in[0], limit, &w);
        if (w.chain != limit || view_broadcasts(&w)) continue;
        const ir_type *tb = rw_type(r, w.base);
        if (limit) { /* its classes must stay the last dimension */
            int a = w.first[last];
            if (tb->rank == 0 || w.first[last + 1] != a + 1 || w.norder == 0) continue;
            if (w.order[w.norder - 1].id != w.atom[a].id || w.atom[a].ext != tb->dim[tb->rank - 1]) continue;
        }
        ir_val x = rw_log_softmax(r, w.base), res[2];
        if (x < 0) continue;
        w.base = x;
        rw_emit(r, OP_xent, (ir_val[]){view_build(r, &w), rw_reshape(r, n->in[1], last, ti.dim)}, 2,
                ATTRS(A_I("ignore", -100)), NULL, res);
        if (rw_type(r, res[0])->t != t.t) return false; /* losses are at least f32 */
        out[0] = rw_reshape(r, rw_op1(r, OP_neg, res[0], NO_ATTRS), ti.rank, ti.dim);
        return true;
    }
    return false;
}

/* v is l != number? */
static bool valid_labels(const rw *r, ir_val v, ir_val *l, double *number) {
    const ir_node *n = rw_def(r, v);
    if (n->op != OP_ne || !rw_const(r, n->in[1], number)) return false;
    *l = n->in[0];
    return true;
}

static bool ignored_rows(rw *r, const ir_node *n, ir_val *out) {
    ir_val labels;
    double ignore;
    if (!rw_is_const(r, n->in[2], 0) || !valid_labels(r, n->in[0], &labels, &ignore)) return false;
    bool minus = rw_is(r, n->in[1], OP_neg);
    ir_val v = minus ? rw_def(r, n->in[1])->in[0] : n->in[1];
    const ir_node *x = rw_def(r, v);
    if (x->op != OP_xent || v != x->out[0]) return false;
    const ir_node *s = rw_def(r, x->in[1]);
    if (s->op != OP_select || s->in[0] != n->in[0] || s->in[1] != labels) return false;
    ir_val res[2];
    rw_emit(r, OP_xent, (ir_val[]){x->in[0], labels}, 2, ATTRS(A_I("ignore", (int64_t)ignore)), NULL, res);
    out[0] = minus ? rw_op1(r, OP_neg, res[0], NO_ATTRS) : res[0];
    return true;
}

bool rw_loss(rw *r, const ir_node *n, ir_val *out) {
    switch (n->op) {
    case OP_xent:
        return xent_of_slice(r, n, out);
    case OP_sum:
        return sum_of_slice(r, n, out);
    case OP_gather:
        return look_up(r, n, out);
    case OP_select:
        return ignored_rows(r, n, out);
    default:
        return false;
    }
}
