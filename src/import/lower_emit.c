/* lower_emit.c - building nodes from what a file says: every helper checks, none asserts. See lower.h. */
#include "import/lower.h"

static const ir_type harmless = {.t = DT_F32};

const ir_type *lo_type(lower *L, ir_val v) { return v < 0 ? &harmless : ir_typeof(L->g, v); }

/* The product of the constant extents must stay in 63 bits. */
static bool extents_ok(lower *L, const ir_type *t) {
    int64_t n = 1, v;
    for (int i = 0; i < t->rank; i++) {
        if (!dim_value(L->g, t->dim[i], &v)) continue;
        if (v < 0 || (v > 0 && !mul_ok(n, v, &n))) {
            lo_fail(L, "a tensor has an impossible shape");
            return false;
        }
    }
    return true;
}

ir_val lo_emit(lower *L, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *type) {
    if (L->failed) return -1;
    for (int i = 0; i < nin; i++)
        if (in[i] < 0) {
            lo_fail(L, "an operand is missing");
            return -1;
        }
    if (type && !extents_ok(L, type)) return -1;
    ir_val v = -1;
    if (ir_emit(L->g, op, in, nin, attr, nattr, type, NULL, &v) != SP_OK) {
        L->failed = true;
        return -1;
    }
    bool grad = false;
    for (int i = 0; i < nin; i++) grad |= lo_needs_grad(L, in[i]);
    if (op == OP_stop_grad) grad = false;
    while (L->needs_grad.n < L->g->values.n) {
        bool g = grad && dtype_is_float(L->g->values.data[L->needs_grad.n].type.t);
        vec_push(L->a, &L->needs_grad, g);
    }
    for (int i = 0; i < ir_def(L->g, v)->nout; i++)
        if (!extents_ok(L, ir_typeof(L->g, v + i))) return -1;
    return v;
}

bool lo_needs_grad(lower *L, ir_val v) { return v >= 0 && v < L->needs_grad.n && L->needs_grad.data[v]; }

ir_val lo_op1(lower *L, ir_op op, ir_val x, const ir_attr *attr, int nattr) {
    return lo_emit(L, op, &x, 1, attr, nattr, NULL);
}

ir_val lo_op2(lower *L, ir_op op, ir_val x, ir_val y, const ir_attr *attr, int nattr) {
    return lo_emit(L, op, (ir_val[]){x, y}, 2, attr, nattr, NULL);
}

ir_val lo_cast(lower *L, ir_val x, dtype t) {
    if (x < 0 || lo_type(L, x)->t == t) return x;
    ir_type type = {.t = t};
    return lo_emit(L, OP_cast, &x, 1, NO_ATTRS, &type);
}

/* A type of X's element type with this shape; false when the rank is too large. */
static bool shaped(lower *L, ir_val x, int rank, const ir_dim *dim, ir_type *out) {
    if (L->failed || x < 0) return false;
    if (rank > IR_MAX_RANK) {
        lo_fail(L, "a tensor of rank %d; at most %d are supported", rank, IR_MAX_RANK);
        return false;
    }
    *out = (ir_type){.t = lo_type(L, x)->t, .rank = rank};
    for (int i = 0; i < rank; i++) out->dim[i] = dim[i];
    return true;
}

ir_val lo_reshape(lower *L, ir_val x, int rank, const ir_dim *dim) {
    ir_type t;
    if (!shaped(L, x, rank, dim, &t)) return -1;
    return ir_type_equal(&t, lo_type(L, x)) ? x : lo_emit(L, OP_reshape, &x, 1, NO_ATTRS, &t);
}

ir_val lo_permute(lower *L, ir_val x, const int *perm) {
    ir_dim p[IR_MAX_RANK];
    int rank = lo_type(L, x)->rank;
    bool identity = true;
    for (int i = 0; i < rank; i++) {
        p[i] = perm[i];
        identity &= perm[i] == i;
    }
    return identity ? x : lo_op1(L, OP_permute, x, ATTRS(A_D("perm", rank, p)));
}

ir_val lo_swap(lower *L, ir_val x, int i, int j) {
    int perm[IR_MAX_RANK];
    for (int d = 0; d < IR_MAX_RANK; d++) perm[d] = d;
    perm[i] = j, perm[j] = i;
    return lo_permute(L, x, perm);
}

ir_val lo_expand(lower *L, ir_val x, int rank, const ir_dim *dim) {
    ir_type t;
    if (!shaped(L, x, rank, dim, &t)) return -1;
    const int lead = rank - lo_type(L, x)->rank;
    if (lead < 0) {
        lo_fail(L, "it expands a tensor of rank %d to rank %d", rank - lead, rank);
        return -1;
    }
    ir_dim padded[IR_MAX_RANK];
    for (int i = 0; i < rank; i++) padded[i] = i < lead ? 1 : lo_type(L, x)->dim[i - lead];
    x = lo_reshape(L, x, rank, padded);
    if (x < 0 || ir_type_equal(&t, lo_type(L, x))) return x;
    return lo_emit(L, OP_expand, &x, 1, NO_ATTRS, &t);
}

ir_val lo_slice(lower *L, ir_val x, int dim, ir_dim start, ir_dim stop, int64_t step) {
    if (x < 0 || dim >= lo_type(L, x)->rank) return lo_fail(L, "it slices a missing dimension"), -1;
    if (start == 0 && stop == lo_type(L, x)->dim[dim] && step == 1) return x;
    ir_dim range[2] = {start, stop};
    return lo_op1(L, OP_slice, x, ATTRS(A_I("dim", dim), A_D("range", 2, range), A_I("step", step)));
}

static ir_val reduce(lower *L, ir_op op, ir_val x, int n, const int *dims, bool keepdim) {
    if (n == 0) return x;
    ir_dim d[IR_MAX_RANK], kept[IR_MAX_RANK];
    const ir_type t = *lo_type(L, x);
    for (int i = 0; i < t.rank; i++) kept[i] = t.dim[i];
    for (int i = 0; i < n; i++) {
        d[i] = dims[i];
        kept[dims[i]] = 1;
    }
    ir_val y = lo_op1(L, op, x, ATTRS(A_D("dims", n, d)));
    return keepdim ? lo_reshape(L, y, t.rank, kept) : y;
}

ir_val lo_sum(lower *L, ir_val x, int n, const int *dims, bool keepdim) {
    return reduce(L, OP_sum, x, n, dims, keepdim);
}
ir_val lo_rmax(lower *L, ir_val x, int n, const int *dims, bool keepdim) {
    return reduce(L, OP_rmax, x, n, dims, keepdim);
}

ir_val lo_number(lower *L, dtype t, double v) {
    ir_type type = {.t = t};
    return lo_emit(L, OP_fill, NULL, 0, ATTRS(A_F("value", v)), &type);
}

ir_val lo_size_value(lower *L, dtype t, ir_dim d) {
    int64_t v;
    if (dim_value(L->g, d, &v)) return lo_number(L, t, (double)v);
    ir_type type = {.t = DT_I64};
    return lo_cast(L, lo_emit(L, OP_dimval, NULL, 0, ATTRS(A_D("dims", 1, &d)), &type), t);
}

ir_val lo_fill(lower *L, dtype t, double v, int rank, const ir_dim *dim) {
    return lo_expand(L, lo_number(L, t, v), rank, dim);
}

ir_val lo_stop_grad(lower *L, ir_val x) { return lo_needs_grad(L, x) ? lo_op1(L, OP_stop_grad, x, NO_ATTRS) : x; }

/* The shape that N tensors broadcast to. */
static bool broadcast(lower *L, const ir_val *x, int n, ir_type *out) {
    out->rank = 0;
    for (int i = 0; i < n; i++)
        if (lo_type(L, x[i])->rank > out->rank) out->rank = lo_type(L, x[i])->rank;
    for (int d = 0; d < out->rank; d++) {
        out->dim[d] = 1;
        for (int i = 0; i < n; i++) {
            const ir_type *t = lo_type(L, x[i]);
            int k = d - (out->rank - t->rank);
            if (k < 0 || t->dim[k] == 1 || t->dim[k] == out->dim[d]) continue;
            if (out->dim[d] != 1) {
                buf b = {0};
                for (int j = 0; j < n; j++) {
                    buf_printf(&b, "%s", j ? " and " : "");
                    ir_print_type(L->g, lo_type(L, x[j]), NULL, &b);
                }
                lo_fail(L, "%s do not broadcast to one shape", b.data);
                buf_free(&b);
                return false;
            }
            out->dim[d] = t->dim[k];
        }
    }
    return true;
}

ir_val lo_binary(lower *L, ir_op op, ir_val x, ir_val y) {
    ir_type t;
    if (L->failed || !broadcast(L, (ir_val[]){x, y}, 2, &t)) return -1;
    x = lo_expand(L, x, t.rank, t.dim);
    y = lo_expand(L, y, t.rank, t.dim);
    return lo_op2(L, op, x, y, NO_ATTRS);
}

ir_val lo_with_number(lower *L, ir_op op, ir_val x, double v) {
    return lo_binary(L, op, x, lo_number(L, lo_type(L, x)->t, v));
}

ir_val lo_select(lower *L, ir_val c, ir_val x, ir_val y) {
    ir_type t;
    if (L->failed || !broadcast(L, (ir_val[]){c, x, y}, 3, &t)) return -1;
    ir_val in[3] = {lo_expand(L, c, t.rank, t.dim), lo_expand(L, x, t.rank, t.dim), lo_expand(L, y, t.rank, t.dim)};
    return lo_emit(L, OP_select, in, 3, NO_ATTRS, NULL);
}

/* ---- one tensor as ids and labels ----------------------------------------------------------------------- */

enum { MOST_VIEWS = 64 }; /* between an input and its use; a model has a handful */

ir_val lo_from_input(lower *L, ir_val v, ir_val input) {
    ir_val view[MOST_VIEWS];
    int n = 0;
    while (v >= 0 && n < MOST_VIEWS && ir_def(L->g, v)->nin == 1) {
        view[n++] = v;
        v = ir_def(L->g, v)->in[0];
    }
    if (v < 0 || v == input || (v != L->ids && v != L->labels)) return n ? view[0] : v;
    for (v = input; n-- > 0;) {
        const ir_node *x = ir_def(L->g, view[n]);
        const ir_type t = *lo_type(L, view[n]);
        v = lo_emit(L, x->op, &v, 1, x->attr, x->nattr, &t);
    }
    return v;
}

bool lo_depends_on(lower *L, ir_val v, ir_val input) {
    bool *does = ARENA_ARRAY(L->a, bool, L->g->values.n);
    for (int i = 0; i < L->g->nodes.n; i++) {
        const ir_node *n = &L->g->nodes.data[i];
        bool any = false;
        for (int k = 0; k < n->nin; k++) any |= does[n->in[k]];
        for (int k = 0; k < n->nout; k++) does[n->out[k]] = any || n->out[k] == input;
    }
    return v >= 0 && does[v];
}
