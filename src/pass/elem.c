/* elem.c - element expressions read off a graph: what one element of a value is. See elem.h.
 *
 * Views and look-ups become arithmetic on indices, everything element-wise an operation on elements; a value that
 * cannot be seen through (an input, a product, a sum over data) is a leaf. Stored constants are read as numbers,
 * arithmetic sequences or triangles. Results are remembered per value and indices.
 */
#include "pass/elem.h"

#include <math.h>

static ex choose(elem_ctx *c, dtype t, ex cond, ex a, ex b) { return ex_op(c, OP_select, t, (ex[]){cond, a, b}, 3); }

/* const data at idx: a number, an arithmetic sequence along one index, or a triangle over two. */
static ex const_at(elem_ctx *c, const ir_node *n, const ir_type *t, const ex *idx) {
    const ir_attr *a = ir_find_attr(n, "data");
    int64_t stride[IR_MAX_RANK] = {0}, at = 0, size[2] = {0}, step[2] = {0}, s = 1;
    ex free[2] = {0};
    int nfree = 0;
    double k = 0;
    if (!a) return -1;
    for (int d = t->rank - 1; d >= 0; d--) {
        if (t->dim[d] < 0) return -1;
        stride[d] = s;
        s *= t->dim[d];
    }
    if (s != a->n) return -1;
    for (int d = 0; d < t->rank; d++) {
        if (ex_is_num(c, idx[d], &k)) {
            if (k < 0 || k >= (double)t->dim[d]) return -1;
            at += (int64_t)k * stride[d];
        } else if (nfree == 2) {
            return -1;
        } else {
            free[nfree] = idx[d];
            size[nfree] = t->dim[d];
            step[nfree++] = stride[d];
        }
    }
    const double *x = a->data + at;
    if (nfree == 0) return ex_num(c, t->t, x[0]);
    if (nfree == 1) {
        double by = size[0] > 1 ? x[step[0]] - x[0] : 0;
        for (int64_t i = 0; i < size[0]; i++)
            if (x[i * step[0]] != x[0] + by * (double)i) return -1;
        if (by == 0) return ex_num(c, t->t, x[0]);
        if (t->t != DT_I64) return -1;
        return ex_of_lin(c, lin_add(lin_const((int64_t)x[0]), ex_lin(c, free[0]), (int64_t)by));
    }
    /* x[i][j] is `in` for j <= i + off, else `out` */
    double in = x[(size[0] - 1) * step[0]], out = x[(size[1] - 1) * step[1]];
    int64_t off = -1;
    while (off + 1 < size[1] && x[(off + 1) * step[1]] == in) off++;
    if (in == out) off = size[1];
    for (int64_t i = 0; i < size[0]; i++)
        for (int64_t j = 0; j < size[1]; j++)
            if (x[i * step[0] + j * step[1]] != (j <= i + off ? in : out)) return -1;
    lin l = lin_add(ex_lin(c, free[0]), ex_lin(c, free[1]), -1);
    if (l.n < 0) return -1;
    ex inside = ex_ge0(c, lin_add(l, lin_const(off), 1));
    return choose(c, t->t, inside, ex_num(c, t->t, in), ex_num(c, t->t, out));
}

/* Indices of a reshape's operand from those of its result. */
static bool reshape_indices(elem_ctx *c, ir_val v, const ex *idx, ex *out) {
    view w;
    view_of(elem_rw(c), v, 1, &w);
    if (w.chain != 1) return false;
    const ir_type *base = rw_type(elem_rw(c), w.base);
    lin sum[IR_MAX_RANK] = {{0}};
    int64_t stride[IR_MAX_RANK] = {0}, ext;
    for (int d = 0; d < base->rank; d++) {
        sum[d] = lin_const(0);
        stride[d] = 1;
    }
    for (int k = w.norder - 1; k >= 0; k--) {
        int d = 0, i = 0;
        while (w.atom[i].id != w.order[k].id) i++;
        while (w.first[d + 1] <= i) d++;
        ex e = idx[d];
        int64_t inner = 1;
        for (int m = i + 1; m < w.first[d + 1]; m++) {
            if (!dim_value(elem_rw(c)->g, w.atom[m].ext, &ext)) return false;
            inner *= ext;
        }
        if (inner > 1) e = ex_divide(c, OP_floordiv, e, inner);
        if (i > w.first[d]) {
            if (!dim_value(elem_rw(c)->g, w.order[k].ext, &ext)) return false;
            e = ex_divide(c, OP_mod, e, ext);
        }
        int b = w.order[k].dim;
        if (stride[b] == 0) return false;
        sum[b] = lin_add(sum[b], ex_lin(c, e), stride[b]);
        if (sum[b].n < 0) return false;
        if (!dim_value(elem_rw(c)->g, w.order[k].ext, &ext)) ext = 0; /* fine if nothing lies outside of it */
        stride[b] *= ext;
    }
    for (int d = 0; d < base->rank; d++) out[d] = ex_of_lin(c, sum[d]);
    return true;
}

static ex resolve(elem_ctx *c, ir_val v, const ex *idx);

ex elem_of(elem_ctx *c, ir_val v, const ex *given) {
    const ir_type *t = rw_type(elem_rw(c), v);
    ex idx[IR_MAX_RANK] = {0};
    for (int d = 0; d < t->rank; d++) idx[d] = t->dim[d] == 1 ? ex_num(c, DT_I64, 0) : given[d];
    ex self = ex_element(c, v, idx);
    if (ex_get(c, self)->value < 0) {
        ex e = elem_full(c) ? -1 : resolve(c, v, idx);
        ex_set_value(c, self, e < 0 ? self : e);
    }
    return ex_get(c, self)->value;
}

/* -1: v is opaque */
static ex resolve(elem_ctx *c, ir_val v, const ex *idx) {
    const rw *r = elem_rw(c);
    const ir_node n = *rw_def(r, v);
    const ir_type t = *rw_type(r, v);
    ex in[IR_MAX_RANK] = {0}, arg[3] = {0};
    const ir_dim *list;
    int dim = (int)ir_int(&n, "dim", 0);
    if (t.rank) memcpy(in, idx, sizeof *in * (size_t)t.rank);
    switch (n.op) {
    case OP_fill:
        return ex_num(c, t.t, ir_float(&n, "value", 0));
    case OP_const:
        return const_at(c, &n, &t, idx);
    case OP_iota:
        return idx[dim];
    case OP_dimval:
        ir_dims(&n, "dims", &list);
        return ex_of_lin(c, lin_size(c, list[0]));
    case OP_expand:
    case OP_stop_grad:
    case OP_copy:
        return elem_of(c, n.in[0], idx);
    case OP_permute:
        ir_dims(&n, "perm", &list);
        for (int d = 0; d < t.rank; d++) in[list[d]] = idx[d];
        return elem_of(c, n.in[0], in);
    case OP_reshape:
        return reshape_indices(c, v, idx, in) ? elem_of(c, n.in[0], in) : -1;
    case OP_slice: {
        ir_dims(&n, "range", &list);
        lin l = lin_add(lin_size(c, list[0]), ex_lin(c, idx[dim]), ir_int(&n, "step", 1));
        if (l.n < 0) return -1;
        in[dim] = ex_of_lin(c, l);
        return elem_of(c, n.in[0], in);
    }
    case OP_concat: { /* from the last part to the first */
        lin at = lin_const(0);
        for (int i = 0; i < n.nin - 1; i++) at = lin_add(at, lin_size(c, rw_type(r, n.in[i])->dim[dim]), 1);
        ex e = -1;
        for (int i = n.nin - 1; i >= 0; i--) {
            lin here = lin_add(ex_lin(c, idx[dim]), at, -1);
            if (here.n < 0) return -1;
            in[dim] = ex_of_lin(c, here);
            ex part = elem_of(c, n.in[i], in);
            /* beyond this part's beginning: this part or a later one */
            e = e < 0 ? part : e;
            if (i < n.nin - 1) {
                lin ext = lin_size(c, rw_type(r, n.in[i])->dim[dim]),
                    last = lin_add(lin_add(ext, here, -1), lin_const(1), -1);
                if (last.n < 0) return -1;
                e = choose(c, t.t, ex_ge0(c, last), part, e);
            }
            if (i) at = lin_add(at, lin_size(c, rw_type(r, n.in[i - 1])->dim[dim]), -1);
        }
        return e;
    }
    case OP_pad: {
        lin here = lin_add(ex_lin(c, idx[dim]), lin_const(ir_int(&n, "lo", 0)), -1);
        lin last = lin_add(lin_add(lin_size(c, rw_type(r, n.in[0])->dim[dim]), here, -1), lin_const(1), -1);
        if (here.n < 0 || last.n < 0 || ir_int(&n, "step", 1) != 1) return -1;
        in[dim] = ex_of_lin(c, here);
        const ir_attr *val = ir_find_attr(&n, "value");
        ex pad = ex_num(c, t.t, val ? ir_float(&n, "value", 0) : 0), e = elem_of(c, n.in[0], in);
        e = choose(c, t.t, ex_ge0(c, last), e, pad);
        return choose(c, t.t, ex_ge0(c, here), e, pad);
    }
    case OP_take: {
        int k = n.nin - 1, irank = rw_type(r, n.in[1])->rank, rank = rw_type(r, n.in[0])->rank;
        for (int i = 0; i < k; i++) in[i] = elem_of(c, n.in[i + 1], idx);
        for (int d = k; d < rank; d++) in[d] = idx[irank + d - k];
        return elem_of(c, n.in[0], in);
    }
    case OP_gather:
        in[dim] = elem_of(c, n.in[1], idx);
        return elem_of(c, n.in[0], in);
    case OP_cumsum: {
        ex var = elem_fresh_var(c, t.dim[dim]);
        double k;
        if (var < 0) return -1;
        in[dim] = var;
        if (!ex_is_num(c, elem_of(c, n.in[0], in), &k)) return -1;
        if (k == 0) return ex_num(c, t.t, 0);
        if (k != rint(k)) return -1;
        ex count = ex_of_lin(c, lin_add(lin_const((int64_t)k), ex_lin(c, idx[dim]), (int64_t)k));
        return ex_op(c, OP_cast, t.t, &count, 1);
    }
    default:
        if (!(op_table[n.op].flags & F_ELT) || n.nin < 1 || n.nin > 3 || n.nout != 1) return -1;
        if (r->trainable.data[v]) return -1; /* arithmetic of the model, not of a mask */
        for (int i = 0; i < n.nin; i++) arg[i] = elem_of(c, n.in[i], idx);
        return ex_op(c, n.op, t.t, arg, n.nin);
    }
}
