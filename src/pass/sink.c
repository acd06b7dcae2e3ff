/* sink.c - moves views below compute: op(view(x)) becomes view(op(x)), so that views meet and cancel (view.c).
 *
 * Flattened rows (B*S, ...) become (B, S, ...) again, permutes around attention and rotary embedding reach each other,
 * and dot's dimension numbers absorb transposes. A view moves only where nothing is computed twice: broadcast factors
 * stay above, except where an operand that is itself a broadcast of something smaller can be viewed the other way
 * round for free (view_invert). Views only move downwards, so this ends.
 *     add(reshape(x: 2,8,4 -> 16,4), expand(b: 4 -> 16,4))  =>  reshape(add(x, expand(b: 4 -> 2,8,4)))
 * Slices of a few rows off the sequence's ends sink as well, to where the loss can do without them (loss.c).
 */
#include "pass/rewrite.h"

/* The view `w`, whose base was replaced by a value `base` in which extents differ only on base dimension `dim`. */
static bool rebase(const rw *r, const view *w, ir_val base, view *out) {
    const ir_type *t = rw_type(r, base);
    *out = *w;
    out->base = base;
    for (int k = 0; k < out->norder; k++) {
        ir_dim old = rw_type(r, w->base)->dim[out->order[k].dim], now = t->dim[out->order[k].dim];
        if (old == now) continue;
        if (out->order[k].ext != old) return false; /* split */
        out->order[k].ext = now;
        for (int i = 0; i < out->first[out->rank]; i++)
            if (out->atom[i].id == out->order[k].id) out->atom[i].ext = now;
    }
    for (int d = 0; d < t->rank; d++) /* a dimension that was 1 and is not any more has no atom */
        if (rw_type(r, w->base)->dim[d] == 1 && t->dim[d] != 1) return false;
    for (int k = out->norder - 1; k >= 0; k--)
        if (out->order[k].ext == 1) return false;
    return true;
}

static bool is_cheap(const rw *r, ir_val v) {
    view w;
    double c;
    if (rw_const(r, v, &c)) return true;
    view_of(r, v, VIEW_CHAIN, &w);
    return view_broadcasts(&w);
}

/* Element-wise: all operands are the same view, or cheap to view the other way. */
static bool sink_eltwise(rw *r, const ir_node *n, ir_val *out) {
    ir_val in[3];
    if (n->nin > 3) return false;
    for (int i = 0; i < n->nin; i++)
        for (int limit = VIEW_CHAIN; limit > 0; limit = limit > 3 ? 3 : limit - 1) {
            view w, o;
            view_of(r, n->in[i], limit, &w);
            if (!w.chain || view_broadcasts(&w) || view_trivial(r, &w)) continue;
            if (limit < VIEW_CHAIN && w.chain < limit) continue; /* seen already */
            double c;
            if (rw_const(r, w.base, &c)) continue;
            bool ok = true;
            for (int k = 0; k < n->nin && ok; k++) {
                view_of(r, n->in[k], limit, &o);
                if (view_same(r, &w, &o)) {
                    in[k] = o.base;
                } else {
                    ok = is_cheap(r, n->in[k]) && view_invert(r, &w, n->in[k], &in[k]);
                }
            }
            if (!ok) continue;
            ir_val res[IR_MAX_OUT];
            rw_emit(r, n->op, in, n->nin, n->attr, n->nattr, rw_type(r, n->out[0]), res);
            for (int k = 0; k < n->nout; k++) {
                w.base = res[k];
                out[k] = view_build(r, &w);
            }
            return true;
        }
    return false;
}

/* Every operand is an expand that repeats the same dimensions (or a constant): compute on what is repeated. */
static bool sink_expand(rw *r, const ir_node *n, ir_val *out) {
    const ir_type *t = rw_type(r, n->out[0]);
    bool shared[IR_MAX_RANK], any = false, some = false;
    double c;
    for (int d = 0; d < t->rank; d++) shared[d] = t->dim[d] != 1;
    for (int i = 0; i < n->nin; i++) {
        if (rw_const(r, n->in[i], &c)) continue;
        some = true;
        if (!rw_is(r, n->in[i], OP_expand)) return false;
        const ir_type *s = rw_type(r, rw_def(r, n->in[i])->in[0]);
        for (int d = 0; d < t->rank; d++) shared[d] &= s->dim[d] == 1;
    }
    if (!some) return false;
    ir_type small = *t;
    for (int d = 0; d < t->rank; d++)
        if (shared[d]) {
            small.dim[d] = 1;
            any = true;
        }
    if (!any) return false;
    ir_val in[3], res[IR_MAX_OUT];
    for (int i = 0; i < n->nin; i++) {
        if (rw_const(r, n->in[i], &c)) {
            small.t = rw_type(r, n->in[i])->t;
            in[i] = rw_splat(r, &small, c);
        } else {
            in[i] = rw_expand(r, rw_def(r, n->in[i])->in[0], small.rank, small.dim);
        }
    }
    small.t = t->t;
    rw_emit(r, n->op, in, n->nin, n->attr, n->nattr, &small, res);
    for (int k = 0; k < n->nout; k++) out[k] = rw_expand(r, res[k], t->rank, t->dim);
    return true;
}

/* slice and pad of a view: where the dimension is one whole dimension of the base */
static bool sink_along(rw *r, const ir_node *n, ir_val *out) {
    int dim = (int)ir_int(n, "dim", 0);
    for (int limit = VIEW_CHAIN; limit > 0; limit = limit > 3 ? 3 : limit - 1) {
        view w, v;
        view_of(r, n->in[0], limit, &w);
        if (!w.chain || view_trivial(r, &w) || w.first[dim + 1] - w.first[dim] != 1) continue;
        int a = w.first[dim], k = 0;
        if (w.atom[a].id < 0) {
            if (n->op != OP_slice) return false;
            ir_dim ext = rw_type(r, n->out[0])->dim[dim]; /* of a repeated dimension: repeat less */
            if (ext == 1) {
                memmove(&w.atom[a], &w.atom[a + 1], sizeof *w.atom * (size_t)(w.first[w.rank] - a - 1));
                for (int d = dim + 1; d <= w.rank; d++) w.first[d]--;
            } else {
                w.atom[a].ext = ext;
            }
            out[0] = view_build(r, &w);
            return true;
        }
        while (w.order[k].id != w.atom[a].id) k++;
        int bdim = w.order[k].dim;
        if (w.order[k].ext != rw_type(r, w.base)->dim[bdim]) continue;
        ir_attr attr[8];
        ASSERT(n->nattr <= 8);
        for (int i = 0; i < n->nattr; i++) attr[i] = strcmp(n->attr[i].key, "dim") == 0 ? A_I("dim", bdim) : n->attr[i];
        ir_val res[1];
        rw_emit(r, n->op, &w.base, 1, attr, n->nattr, NULL, res);
        if (rw_type(r, res[0])->dim[bdim] == 1) { /* its factor is gone */
            memmove(&w.atom[a], &w.atom[a + 1], sizeof *w.atom * (size_t)(w.first[w.rank] - a - 1));
            for (int d = dim + 1; d <= w.rank; d++) w.first[d]--;
            memmove(&w.order[k], &w.order[k + 1], sizeof *w.order * (size_t)(w.norder - k - 1));
            w.norder--;
            w.base = res[0];
            out[0] = view_build(r, &w);
        } else {
            if (!rebase(r, &w, res[0], &v)) return false;
            out[0] = view_build(r, &v);
        }
        return true;
    }
    return false;
}

static bool sink_concat(rw *r, const ir_node *n, ir_val *out) {
    int dim = (int)ir_int(n, "dim", 0);
    if (n->nin > 16) return false;
    for (int limit = VIEW_CHAIN; limit > 0; limit = limit > 3 ? 3 : limit - 1) {
        view w, o, moved;
        view_of(r, n->in[0], limit, &w);
        if (!w.chain || view_broadcasts(&w) || view_trivial(r, &w)) continue;
        if (w.first[dim + 1] - w.first[dim] != 1) continue;
        int a = w.first[dim], k = 0;
        while (w.order[k].id != w.atom[a].id) k++;
        int bdim = w.order[k].dim;
        if (w.order[k].ext != rw_type(r, w.base)->dim[bdim]) continue;
        ir_val in[16], res[1];
        bool ok = true;
        for (int i = 0; i < n->nin && ok; i++) {
            view_of(r, n->in[i], limit, &o);
            ok = rebase(r, &w, o.base, &moved) && view_same(r, &moved, &o);
            in[i] = o.base;
        }
        if (!ok) continue;
        rw_emit(r, OP_concat, in, n->nin, ATTRS(A_I("dim", bdim)), NULL, res);
        if (!rebase(r, &w, res[0], &moved)) return false;
        out[0] = view_build(r, &moved);
        return true;
    }
    return false;
}

/* sum, rmax: the reduced dimensions must be whole dimensions of the base. softmax, cumsum: the one dimension must be.
 */
static bool sink_reduce(rw *r, const ir_node *n, ir_val *out) {
    bool removes = n->op == OP_sum || n->op == OP_rmax;
    const ir_dim *dims;
    ir_dim one = ir_int(n, "dim", 0);
    int nd = removes ? ir_dims(n, "dims", &dims) : 1;
    if (!removes) dims = &one;
    for (int limit = VIEW_CHAIN; limit > 0; limit = limit > 3 ? 3 : limit - 1) {
        view w;
        view_of(r, n->in[0], limit, &w);
        if (!w.chain || view_broadcasts(&w) || view_trivial(r, &w)) continue;
        const ir_type *base = rw_type(r, w.base);
        bool gone[IR_MAX_RANK] = {false}, base_gone[IR_MAX_RANK] = {false}, ok = true;
        for (int i = 0; i < nd; i++) gone[dims[i]] = true;
        for (int d = 0; d < w.rank; d++)
            for (int i = w.first[d]; i < w.first[d + 1]; i++) {
                int k = 0;
                while (w.order[k].id != w.atom[i].id) k++;
                if (!gone[d]) continue;
                ok &= w.order[k].ext == base->dim[w.order[k].dim];
                base_gone[w.order[k].dim] = true;
            }
        ir_dim bdims[IR_MAX_RANK];
        int nb = 0, renumber[IR_MAX_RANK], kept = 0;
        for (int d = 0; d < base->rank; d++) {
            renumber[d] = kept;
            if (base_gone[d])
                bdims[nb++] = d;
            else
                kept++;
        }
        if (!ok || nb == 0 || (!removes && nb != 1)) continue;
        if (!removes) {
            w.base = rw_op1(r, n->op, w.base, ATTRS(A_I("dim", bdims[0])));
            out[0] = view_build(r, &w);
            return true;
        }
        view v = {.rank = 0, .next_id = w.next_id};
        v.base = rw_op1(r, n->op, w.base, ATTRS(A_D("dims", nb, bdims)));
        for (int k = 0; k < w.norder; k++) {
            if (base_gone[w.order[k].dim]) continue;
            v.order[v.norder] = w.order[k];
            v.order[v.norder++].dim = renumber[w.order[k].dim];
        }
        int m = 0;
        for (int d = 0; d < w.rank; d++) {
            if (gone[d]) continue;
            v.first[v.rank++] = m;
            for (int i = w.first[d]; i < w.first[d + 1]; i++) v.atom[m++] = w.atom[i];
        }
        v.first[v.rank] = m;
        out[0] = view_build(r, &v);
        return true;
    }
    return false;
}

/* ---- row ops: operand 0 is (rows.., D); the rows may be anything ---- */

/* Appends to w (a view of rows) the last dimension of the new base. */
static bool add_last(const rw *r, const view *rows, ir_val base, view *w) {
    const ir_type *t = rw_type(r, base);
    *w = *rows;
    w->base = base;
    int n = w->first[w->rank];
    if (w->rank == IR_MAX_RANK || n == VIEW_ATOMS) return false;
    w->rank++;
    if (t->dim[t->rank - 1] != 1) {
        w->order[w->norder].id = w->atom[n].id = w->next_id++;
        w->order[w->norder].ext = w->atom[n].ext = t->dim[t->rank - 1];
        w->order[w->norder++].dim = t->rank - 1;
        n++;
    }
    w->first[w->rank] = n;
    return true;
}

/* The view of the rows, when w's last dimension is the base's last dimension. */
static bool drop_last(const rw *r, const view *w, view *rows) {
    const ir_type *t = rw_type(r, w->base);
    if (w->rank == 0 || t->rank == 0) return false;
    int a = w->first[w->rank - 1], n = w->first[w->rank];
    *rows = *w;
    rows->rank--;
    if (t->dim[t->rank - 1] == 1) return n == a;
    if (n != a + 1 || w->norder == 0) return false;
    if (w->order[w->norder - 1].id != w->atom[a].id || w->order[w->norder - 1].ext != t->dim[t->rank - 1]) return false;
    rows->norder--;
    return true;
}

static bool sink_rows(rw *r, const ir_node *n, ir_val *out) {
    for (int limit = VIEW_CHAIN; limit > 0; limit = limit > 3 ? 3 : limit - 1) {
        view w, rows;
        view_of(r, n->in[0], limit, &w);
        if (!w.chain || view_broadcasts(&w) || view_trivial(r, &w) || !drop_last(r, &w, &rows)) continue;
        ir_val in[3], res[IR_MAX_OUT];
        memcpy(in, n->in, sizeof *in * (size_t)n->nin);
        in[0] = w.base;
        if (n->op == OP_xent) { /* labels in the other order: small, so a copy is no matter */
            ir_type rt = *rw_type(r, w.base);
            rt.rank--;
            rt.t = DT_I64;
            rows.base = rw_raw(r, OP_fill, NULL, 0, ATTRS(A_F("value", 0.0)), &rt); /* only for its shape */
            if (!view_invert(r, &rows, n->in[1], &in[1])) continue;
        }
        rw_emit(r, n->op, in, n->nin, n->attr, n->nattr, NULL, res);
        for (int k = 0; k < n->nout; k++) {
            view *v = rw_type(r, n->out[k])->rank == w.rank ? &w : &rows;
            v->base = res[k];
            out[k] = view_build(r, v);
        }
        return true;
    }
    return false;
}

static bool sink_embedding(rw *r, const ir_node *n, ir_val *out) {
    view w, v;
    view_of(r, n->in[1], VIEW_CHAIN, &w);
    if (!w.chain || view_trivial(r, &w)) return false;
    ir_val e = rw_op2(r, OP_embedding, n->in[0], w.base, n->attr, n->nattr);
    if (!add_last(r, &w, e, &v)) return false;
    out[0] = view_build(r, &v);
    return true;
}

/* ---- slices of the sequence ---- */

/* slice(x) with at most 8 rows of the sequence left out: element-wise ops and products compute those rows too. */
ir_val rw_short_slice(const rw *r, ir_val v, int *dim, ir_dim *start, ir_dim *stop) {
    const ir_node *d = rw_def(r, v);
    int64_t lost, ext;
    if (d->op != OP_slice) return -1;
    *dim = (int)ir_int(d, "dim", 0);
    ir_val x = rw_slice_of(r, v, *dim, start, stop);
    ir_dim full = rw_type(r, x)->dim[*dim];
    if (x == v || !rw_is_seq(r, full) || !dtype_is_float(rw_type(r, v)->t)) return -1;
    if (!dim_value(r->g, dim_sub(r->g, full, dim_sub(r->g, *stop, *start)), &lost) || lost > 8) return -1;
    if (dim_value(r->g, full, &ext) && 4 * lost > ext) return -1; /* another dimension that happens to be as long */
    return x;
}

static bool sink_slice_eltwise(rw *r, const ir_node *n, ir_val *out) {
    int dim = -1;
    ir_dim start = 0, stop = 0, full = 0;
    ir_val in[3];
    for (int i = 0; i < n->nin; i++) {
        int d;
        ir_dim a, b;
        ir_val x = rw_short_slice(r, n->in[i], &d, &a, &b);
        if (x < 0) continue;
        if (dim >= 0 && (d != dim || a != start || b != stop || rw_type(r, x)->dim[d] != full)) return false;
        dim = d;
        start = a;
        stop = b;
        full = rw_type(r, x)->dim[d];
    }
    if (dim < 0) return false;
    for (int i = 0; i < n->nin; i++) {
        int d;
        ir_dim a, b;
        in[i] = rw_short_slice(r, n->in[i], &d, &a, &b);
        if (in[i] >= 0) continue;
        view w;
        view_of(r, n->in[i], VIEW_CHAIN, &w); /* repeated along dim: repeat more */
        ir_type t = *rw_type(r, n->in[i]);
        double c;
        t.dim[dim] = full;
        if (rw_const(r, n->in[i], &c)) {
            in[i] = rw_splat(r, &t, c);
            continue;
        }
        int at = w.first[dim];
        if (w.first[dim + 1] - at != 1 || w.atom[at].id >= 0) return false;
        w.atom[at].ext = full;
        in[i] = view_build(r, &w);
    }
    ir_val res[IR_MAX_OUT];
    ir_type t = *rw_type(r, n->out[0]);
    t.dim[dim] = full;
    rw_emit(r, n->op, in, n->nin, n->attr, n->nattr, &t, res);
    for (int k = 0; k < n->nout; k++) out[k] = rw_slice(r, res[k], dim, start, stop);
    return true;
}

static bool sink_slice_rows(rw *r, const ir_node *n, ir_val *out) {
    int dim;
    ir_dim start, stop;
    ir_val x = rw_short_slice(r, n->in[0], &dim, &start, &stop), in[3], res[IR_MAX_OUT];
    if (x < 0 || dim == rw_type(r, x)->rank - 1) return false;
    memcpy(in, n->in, sizeof *in * (size_t)n->nin);
    in[0] = x;
    rw_emit(r, n->op, in, n->nin, n->attr, n->nattr, NULL, res);
    for (int k = 0; k < n->nout; k++) out[k] = rw_slice(r, res[k], dim, start, stop);
    return true;
}

bool rw_sink(rw *r, const ir_node *n, ir_val *out) {
    if (n->op == OP_stop_grad || n->op == OP_copy || (op_table[n->op].flags & F_ELT))
        return sink_eltwise(r, n, out) || sink_expand(r, n, out) || sink_slice_eltwise(r, n, out);
    switch (n->op) {
    case OP_slice:
        return sink_along(r, n, out);
    case OP_concat:
        return sink_concat(r, n, out);
    case OP_sum:
    case OP_rmax:
    case OP_softmax:
    case OP_cumsum:
        return sink_reduce(r, n, out);
    case OP_dot:
        return rw_sink_dot(r, n, out);
    case OP_embedding:
        return sink_embedding(r, n, out);
    case OP_rmsnorm:
    case OP_layernorm:
        return sink_rows(r, n, out) || sink_slice_rows(r, n, out);
    case OP_xent:
        return sink_rows(r, n, out);
    default:
        return false;
    }
}
