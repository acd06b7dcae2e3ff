/* lower_index.c - indexing and tensors made from nothing. */
#include "import/lower.h"

#include <math.h>

/* ---- indexing --------------------------------------------------------------------------------------------- */

/* Rows of a matrix-like x (first dimension) at i64 indices, with a gradient when x has one. */
static ir_val take_rows(lower *L, ir_val x, ir_val index) {
    const ir_type t = *lo_type(L, x), ti = *lo_type(L, index);
    if (!lo_needs_grad(L, x)) return lo_op2(L, OP_take, x, index, NO_ATTRS);
    ir_dim flat[2] = {t.dim[0], 1}, size[2 * IR_MAX_RANK];
    int n = 0;
    for (int i = 0; i < ti.rank; i++) size[n++] = ti.dim[i];
    for (int i = 1; i < t.rank; i++) {
        flat[1] = dim_mul(L->g, flat[1], t.dim[i]);
        size[n++] = t.dim[i];
    }
    if (n > IR_MAX_RANK) return lo_fail(L, "indexing gives a tensor of rank %d", n), -1;
    return lo_reshape(L, lo_op2(L, OP_embedding, lo_reshape(L, x, 2, flat), index, NO_ATTRS), n, size);
}

/* Is no element of V negative? Only what can be told from how it was made, in BUDGET steps. */
static bool nonnegative(lower *L, ir_val v, int *budget) {
    if (v < 0 || --*budget < 0) return false;
    const ir_node *n = ir_def(L->g, v);
    switch (n->op) {
    case OP_iota:
        return true;
    case OP_fill:
        return ir_float(n, "value", -1) >= 0;
    case OP_const: {
        const ir_attr *a = ir_find_attr(n, "data");
        for (int i = 0; a && i < a->n; i++)
            if (a->data[i] < 0) return false;
        return a != NULL;
    }
    case OP_input:
        return true; /* token, position and document numbers are not negative */
    case OP_cast:
        return lo_type(L, n->in[0])->t == DT_BOOL || nonnegative(L, n->in[0], budget);
    case OP_reshape:
    case OP_permute:
    case OP_expand:
    case OP_slice:
    case OP_copy:
    case OP_sum:
    case OP_cumsum:
    case OP_add:
    case OP_mul:
    case OP_min:
    case OP_concat:
        for (int i = 0; i < n->nin; i++)
            if (!nonnegative(L, n->in[i], budget)) return false;
        return true;
    case OP_max:
        return nonnegative(L, n->in[0], budget) || nonnegative(L, n->in[1], budget);
    case OP_select:
        return nonnegative(L, n->in[1], budget) && nonnegative(L, n->in[2], budget);
    default:
        return false;
    }
}

/* Negative indices count from the end. */
static ir_val wrap_index(lower *L, ir_val index, ir_dim extent) {
    int budget = 64;
    if (L->failed || nonnegative(L, index, &budget)) return index;
    ir_val wrapped = lo_binary(L, OP_add, index, lo_size_value(L, DT_I64, extent));
    return lo_select(L, lo_with_number(L, OP_lt, index, 0), wrapped, index);
}

/* The value of a tensor of one element that is a known number. */
static bool known_number(lower *L, ir_val v, int64_t *out) {
    for (int d = 0; v >= 0 && d < lo_type(L, v)->rank; d++)
        if (lo_type(L, v)->dim[d] != 1) return false;
    while (v >= 0 && (ir_opof(L->g, v) == OP_reshape || ir_opof(L->g, v) == OP_expand)) v = ir_def(L->g, v)->in[0];
    if (v < 0 || ir_opof(L->g, v) != OP_fill) return false;
    *out = (int64_t)ir_float(ir_def(L->g, v), "value", 0);
    return true;
}

/* Several index tensors of one shape as one, over the merged leading dimensions of x. */
static ir_val merge_indices(lower *L, ir_val *x, const ir_val *index, int k) {
    const ir_type t = *lo_type(L, *x);
    ir_dim size[IR_MAX_RANK];
    ir_val at = index[0];
    size[0] = t.dim[0];
    for (int i = 1; i < k; i++) {
        at = lo_binary(L, OP_mul, at, lo_size_value(L, DT_I64, t.dim[i]));
        at = lo_binary(L, OP_add, at, index[i]);
        size[0] = dim_mul(L->g, size[0], t.dim[i]);
    }
    for (int i = k; i < t.rank; i++) size[i - k + 1] = t.dim[i];
    *x = lo_reshape(L, *x, t.rank - k + 1, size);
    return at;
}

/* index.Tensor(self, indices): indexed dimensions that are neighbours are replaced in place, others come first. */
static void index_tensor(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), list[IR_MAX_RANK], index[IR_MAX_RANK];
    int n = lo_tensors(L, "indices", IR_MAX_RANK, list), rank = lo_type(L, x)->rank, k = 0, perm[IR_MAX_RANK],
        dim[IR_MAX_RANK];
    if (n > rank) return lo_fail(L, "%d indices for a tensor of rank %d", n, rank);
    for (int i = 0; i < n; i++) {
        if (list[i] < 0) continue;
        if (lo_type(L, list[i])->t == DT_BOOL)
            return lo_fail(L, "indexing by a bool tensor, whose result has no known size");
        dim[k] = perm[k] = i;
        index[k++] = lo_cast(L, list[i], DT_I64);
    }
    if (L->failed || k == 0) return L->failed ? (void)0 : lo_return(L, 0, x);
    int first = dim[0], m = k;
    bool neighbours = dim[k - 1] - dim[0] == k - 1;
    for (int i = 0; i < rank; i++) {
        bool indexed = i < n && list[i] >= 0;
        if (!indexed) perm[m++] = i;
    }
    /* one known index is a slice, which every layout and gradient knows better */
    int64_t one;
    if (k == 1 && known_number(L, index[0], &one)) {
        const ir_type t = *lo_type(L, x), ti = *lo_type(L, index[0]);
        ir_dim start = dim_const(L->g, one), size[2 * IR_MAX_RANK];
        if (one < 0) start = dim_add(L->g, t.dim[first], start);
        for (int i = 0; i < first; i++) size[i] = t.dim[i];
        for (int i = 0; i < ti.rank; i++) size[first + i] = 1;
        for (int i = first + 1; i < rank; i++) size[i - 1 + ti.rank] = t.dim[i];
        x = lo_slice(L, x, first, start, dim_add(L->g, start, 1), 1);
        return lo_return(L, 0, lo_reshape(L, x, rank - 1 + ti.rank, size));
    }
    for (int i = 0; i < k; i++) index[i] = wrap_index(L, index[i], lo_type(L, x)->dim[dim[i]]);
    x = lo_permute(L, x, perm);
    /* the index tensors broadcast together */
    ir_val all = index[0];
    for (int i = 1; i < k; i++) all = lo_binary(L, OP_add, all, index[i]);
    const ir_type ti = *lo_type(L, all);
    for (int i = 0; i < k; i++) index[i] = lo_expand(L, index[i], ti.rank, ti.dim);
    ir_val y;
    if (L->failed) return;
    if (k == 1) {
        y = take_rows(L, x, index[0]);
    } else if (lo_needs_grad(L, x)) {
        ir_val at = merge_indices(L, &x, index, k);
        y = take_rows(L, x, at);
    } else {
        ir_val in[IR_MAX_RANK + 1] = {x};
        for (int i = 0; i < k; i++) in[i + 1] = index[i];
        y = lo_emit(L, OP_take, in, k + 1, NO_ATTRS, NULL);
    }
    if (neighbours && first > 0 && !L->failed) { /* the index dimensions move behind the ones before them */
        int back[IR_MAX_RANK], r = 0;
        for (int i = 0; i < first; i++) back[r++] = ti.rank + i;
        for (int i = 0; i < ti.rank; i++) back[r++] = i;
        for (int i = first; i < rank - k; i++) back[r++] = ti.rank + i;
        y = lo_permute(L, y, back);
    }
    lo_return(L, 0, y);
}

static void index_select(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), index = lo_cast(L, lo_tensor(L, "index"), DT_I64);
    int rank = lo_type(L, x)->rank, d = lo_axis(L, lo_int(L, "dim", 0), rank);
    if (L->failed || rank == 0) return lo_fail(L, "it indexes a scalar");
    index = wrap_index(L, index, lo_type(L, x)->dim[d]);
    ir_val y = take_rows(L, lo_swap(L, x, 0, d), index);
    lo_return(L, 0, L->failed ? -1 : lo_swap(L, y, 0, d));
}

static void gather(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), index = lo_cast(L, lo_tensor(L, "index"), DT_I64);
    const ir_type t = *lo_type(L, x), ti = *lo_type(L, index);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank);
    if (L->failed || t.rank != ti.rank) return lo_fail(L, "gather with an index of another rank");
    /* PyTorch lets the index be smaller in the other dimensions */
    for (int i = 0; i < t.rank; i++)
        if (i != d && t.dim[i] != ti.dim[i]) x = lo_slice(L, x, i, 0, ti.dim[i], 1);
    lo_return(L, 0, lo_op2(L, OP_gather, x, index, ATTRS(A_I("dim", d))));
}

/* 1 where the class is the index */
static void one_hot(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_cast(L, lo_tensor(L, "self"), DT_I64);
    const ir_type t = *lo_type(L, x);
    int64_t classes = lo_int(L, "num_classes", -1);
    if (classes < 1) return lo_fail(L, "one_hot without a number of classes");
    ir_type type = {.t = DT_I64, .rank = 1, .dim = {dim_const(L->g, classes)}};
    ir_dim size[IR_MAX_RANK + 1];
    for (int i = 0; i < t.rank; i++) size[i] = t.dim[i];
    size[t.rank] = 1;
    ir_val iota = lo_emit(L, OP_iota, NULL, 0, ATTRS(A_I("dim", 0)), &type);
    lo_return(L, 0, lo_cast(L, lo_binary(L, OP_eq, lo_reshape(L, x, t.rank + 1, size), iota), DT_I64));
}

/* ---- triangles: keep where column - row is at most (tril) or at least (triu) the diagonal -------------------- */

static ir_val iota_of(lower *L, ir_dim n) {
    ir_type type = {.t = DT_I64, .rank = 1, .dim = {n}};
    int64_t v;
    bool seq = n == L->seq && !(dim_value(L->g, n, &v) && v <= 1);
    return seq ? lo_emit(L, OP_iota, NULL, 0, ATTRS(A_I("dim", 0), A_I("seq", 1)), &type)
               : lo_emit(L, OP_iota, NULL, 0, ATTRS(A_I("dim", 0)), &type);
}

static void triangle(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    if (L->failed || t.rank < 2) return lo_fail(L, "a triangle of a tensor of rank %d", t.rank);
    ir_dim column[2] = {t.dim[t.rank - 2], 1};
    ir_val i = lo_reshape(L, iota_of(L, column[0]), 2, column), j = iota_of(L, t.dim[t.rank - 1]);
    i = lo_with_number(L, OP_add, i, (double)lo_int(L, "diagonal", 0));
    ir_val keep = lo_binary(L, row->arg ? OP_ge : OP_le, j, i);
    lo_return(L, 0, t.t == DT_BOOL ? lo_binary(L, OP_and, x, keep) : lo_select(L, keep, x, lo_number(L, t.t, 0)));
}

/* ---- tensors from nothing ------------------------------------------------------------------------------------ */

/* arange(start, end, step): element i is start + i * step. */
static void arange(lower *L, const lo_row *row) {
    (void)row;
    lo_operand end = lo_get_operand(L, "end"), start = {.v = -1, .category = 1},
               step = {.v = -1, .num = 1, .category = 1};
    if (lo_arg(L, "start")) start = lo_get_operand(L, "start");
    if (lo_arg(L, "step")) step = lo_get_operand(L, "step");
    if (L->failed) return;
    if (end.v >= 0 || start.v >= 0 || step.v >= 0 || step.size || step.num == 0 || !isfinite(step.num))
        return lo_fail(L, "arange with such arguments");
    dtype t = end.category == 2 || start.category == 2 || step.category == 2 ? DT_F32 : DT_I64;
    lo_dtype(L, "dtype", &t);
    ir_dim n;
    if (end.size || start.size) {
        if (step.num != 1 || end.category == 2 || start.category == 2)
            return lo_fail(L, "arange of symbolic length with a step");
        ir_dim lo = start.size ? start.size : dim_const(L->g, (int64_t)start.num);
        n = dim_sub(L->g, end.size ? end.size : dim_const(L->g, (int64_t)end.num), lo);
    } else {
        double len = ceil((end.num - start.num) / step.num);
        if (!(len >= 0 && len < 0x1p40)) return lo_fail(L, "arange of an impossible length");
        n = dim_const(L->g, (int64_t)len);
    }
    ir_val x = lo_cast(L, iota_of(L, n), t);
    if (step.num != 1) x = lo_with_number(L, OP_mul, x, step.num);
    if (start.num != 0 || start.size) x = lo_binary(L, OP_add, x, lo_as_tensor(L, &start, t));
    lo_return(L, 0, x);
}

/* full, zeros, ones, empty: arg is the value, or -1 for the argument fill_value */
static void full(lower *L, const lo_row *row) {
    ir_dim size[IR_MAX_RANK];
    int n = lo_sizes(L, "size", IR_MAX_RANK, size);
    lo_operand v = {.v = -1, .num = row->arg, .category = 2};
    if (row->arg < 0) v = lo_get_operand(L, "fill_value");
    dtype t = v.category == 2 ? DT_F32 : v.category == 1 ? DT_I64 : DT_BOOL;
    if (!lo_dtype(L, "dtype", &t) && lo_arg(L, "self")) t = lo_type(L, lo_tensor(L, "self"))->t; /* new_... */
    lo_return(L, 0, lo_expand(L, lo_as_tensor(L, &v, t), n, size));
}

static void full_like(lower *L, const lo_row *row) {
    const ir_type x = *lo_type(L, lo_tensor(L, "self"));
    dtype t = x.t;
    lo_dtype(L, "dtype", &t);
    lo_operand v = {.v = -1, .num = row->arg};
    if (row->arg < 0) v = lo_get_operand(L, strstr(row->target, "fill.") ? "value" : "fill_value");
    lo_return(L, 0, lo_expand(L, lo_as_tensor(L, &v, t), x.rank, x.dim));
}

static void scalar_tensor(lower *L, const lo_row *row) {
    (void)row;
    lo_operand v = lo_get_operand(L, "s");
    dtype t = v.category == 2 ? DT_F32 : v.category == 1 ? DT_I64 : DT_BOOL;
    lo_dtype(L, "dtype", &t);
    lo_return(L, 0, lo_as_tensor(L, &v, t));
}

/* copy_(self, src): src in self's type and shape */
static void copy_from(lower *L, const lo_row *row) {
    (void)row;
    const ir_type t = *lo_type(L, lo_tensor(L, "self"));
    lo_return(L, 0, lo_expand(L, lo_cast(L, lo_tensor(L, "src"), t.t), t.rank, t.dim));
}

const lo_row lower_index[] = {
    {"aten.index.Tensor", index_tensor, 0, 0},
    {"aten.index_select.default", index_select, 0, 0},
    {"aten.gather.default", gather, 0, 0},
    {"aten.one_hot.default", one_hot, 0, 0},
    {"aten.tril.default", triangle, 0, 0},
    {"aten.triu.default", triangle, 1, 0},
    {"aten.arange.default", arange, 0, 0},
    {"aten.arange.start", arange, 0, 0},
    {"aten.arange.start_step", arange, 0, 0},
    {"aten.full.default", full, -1, 0},
    {"aten.zeros.default", full, 0, 0},
    {"aten.ones.default", full, 1, 0},
    {"aten.empty.memory_format", full, 0, 0},
    {"aten.new_full.default", full, -1, 0},
    {"aten.new_zeros.default", full, 0, 0},
    {"aten.new_ones.default", full, 1, 0},
    {"aten.new_empty.default", full, 0, 0},
    {"aten.full_like.default", full_like, -1, 0},
    {"aten.zeros_like.default", full_like, 0, 0},
    {"aten.ones_like.default", full_like, 1, 0},
    {"aten.empty_like.default", full_like, 0, 0},
    {"aten.fill.Scalar", full_like, -1, 0},
    {"aten.fill.Tensor", full_like, -1, 0},
    {"aten.zero.default", full_like, 0, 0},
    {"aten.scalar_tensor.default", scalar_tensor, 0, 0},
    {"aten.copy.default", copy_from, 0, 0},
    {NULL, NULL, 0, 0},
};
