/* lower_views.c - shapes, views, casts and joining: ATen operators that move data and compute nothing. */
#include "import/lower.h"

#define MAX_PARTS 1024

static void same(lower *L, const lo_row *row) {
    (void)row;
    lo_return(L, 0, lo_tensor(L, "self"));
}

static void detach(lower *L, const lo_row *row) {
    (void)row;
    lo_return(L, 0, lo_stop_grad(L, lo_tensor(L, "self")));
}

/* ---- reshaping ------------------------------------------------------------------------------------------ */

typedef struct product { /* constant * f[0] * f[1] * ... */
    int64_t c;
    int n;
    ir_dim f[64];
} product;

static void multiply(const ir_graph *g, product *p, ir_dim d) {
    int64_t v;
    if (dim_value(g, d, &v)) {
        if (!mul_ok(p->c, v, &p->c)) p->c = 0;
        return;
    }
    const dim_expr *e = &g->exprs.data[-d - 1];
    if (e->kind == DIM_MUL && p->n < 60) {
        multiply(g, p, e->a);
        multiply(g, p, e->b);
    } else if (p->n < 64) {
        p->f[p->n++] = d;
    }
}

/* The size that -1 stands for: the elements of X over the other sizes, by cancelling equal factors. */
static ir_dim missing_size(lower *L, const ir_type *t, int n, const ir_dim *size, int hole) {
    product num = {.c = 1}, den = {.c = 1};
    for (int i = 0; i < t->rank; i++) multiply(L->g, &num, t->dim[i]);
    for (int i = 0; i < n; i++)
        if (i != hole) multiply(L->g, &den, size[i]);
    for (int i = 0; i < den.n; i++)
        for (int j = 0; j < num.n; j++)
            if (num.f[j] == den.f[i]) {
                num.f[j] = num.f[--num.n];
                den.f[i--] = den.f[--den.n];
                break;
            }
    ir_dim declared;
    if (den.n || den.c <= 0 || num.c < 0 || (num.n == 0 && num.c % den.c)) {
        if (lo_declared_size(L, 0, hole, &declared)) return declared;
        lo_fail(L, "its size -1 cannot be told");
        return 1;
    }
    ir_dim d;
    if (num.c % den.c == 0) {
        d = dim_const(L->g, num.c / den.c);
        for (int i = 0; i < num.n; i++) d = dim_mul(L->g, d, num.f[i]);
    } else {
        d = dim_const(L->g, num.c);
        for (int i = 0; i < num.n; i++) d = dim_mul(L->g, d, num.f[i]);
        d = dim_floordiv(L->g, d, dim_const(L->g, den.c));
    }
    return d;
}

static ir_val reshape_to(lower *L, ir_val x, int n, ir_dim *size) {
    for (int i = 0; i < n; i++) {
        int64_t v;
        if (dim_value(L->g, size[i], &v) && v == -1) size[i] = missing_size(L, lo_type(L, x), n, size, i);
    }
    return lo_reshape(L, x, n, size);
}

static void view(lower *L, const lo_row *row) {
    ir_dim size[IR_MAX_RANK];
    int n = lo_sizes(L, row->arg ? "shape" : "size", IR_MAX_RANK, size);
    lo_return(L, 0, reshape_to(L, lo_tensor(L, "self"), n, size));
}

static void view_as(lower *L, const lo_row *row) {
    const ir_type t = *lo_type(L, lo_tensor(L, "other"));
    ir_val x = lo_tensor(L, "self");
    lo_return(L, 0, row->arg ? lo_expand(L, x, t.rank, t.dim) : lo_reshape(L, x, t.rank, t.dim));
}

static void flatten(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int a = lo_axis(L, lo_int(L, "start_dim", 0), t.rank), b = lo_axis(L, lo_int(L, "end_dim", -1), t.rank), n = 0;
    ir_dim size[IR_MAX_RANK + 1];
    if (t.rank == 0) size[n++] = 1;
    for (int i = 0; i < t.rank; i++) {
        if (i > a && i <= b)
            size[n - 1] = dim_mul(L->g, size[n - 1], t.dim[i]);
        else
            size[n++] = t.dim[i];
    }
    lo_return(L, 0, lo_reshape(L, x, n, size));
}

static void unflatten(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank), n = 0;
    ir_dim part[IR_MAX_RANK], size[2 * IR_MAX_RANK];
    int k = lo_sizes(L, "sizes", IR_MAX_RANK, part);
    for (int i = 0; i < t.rank; i++) {
        if (i != d) size[n++] = t.dim[i];
        for (int j = 0; i == d && j < k; j++) size[n++] = part[j];
    }
    if (n > IR_MAX_RANK)
        lo_fail(L, "a tensor of rank %d; at most %d are supported", n, IR_MAX_RANK);
    else
        lo_return(L, 0, reshape_to(L, x, n, size));
}

static void unsqueeze(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank + 1);
    ir_dim size[IR_MAX_RANK + 1];
    for (int i = 0; i <= t.rank; i++) size[i] = i < d ? t.dim[i] : i == d ? 1 : t.dim[i - 1];
    lo_return(L, 0, lo_reshape(L, x, t.rank + 1, size));
}

/* Variants: 0 one dimension, 1 a list, 2 all of extent 1. */
static void squeeze(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int64_t list[IR_MAX_RANK];
    int k = 0, n = 0;
    if (row->arg == 0) list[k++] = lo_int(L, "dim", 0);
    if (row->arg == 1) k = lo_ints(L, "dim", IR_MAX_RANK, list);
    unsigned gone = row->arg == 2 ? ~0u : 0;
    for (int i = 0; i < k; i++) gone |= 1u << lo_axis(L, list[i], t.rank);
    ir_dim size[IR_MAX_RANK];
    for (int i = 0; i < t.rank; i++)
        if (!(gone & 1u << i) || t.dim[i] != 1) size[n++] = t.dim[i];
    lo_return(L, 0, lo_reshape(L, x, n, size));
}

/* ---- order of dimensions ---------------------------------------------------------------------------------- */

static void transpose(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    int rank = lo_type(L, x)->rank, a, b;
    if (row->arg == 2) { /* x.T: all dimensions the other way round */
        int perm[IR_MAX_RANK];
        for (int d = 0; d < rank; d++) perm[d] = rank - 1 - d;
        return lo_return(L, 0, lo_permute(L, x, perm));
    }
    if (row->arg == 0) {
        bool axes = lo_arg(L, "axis0") != NULL; /* swapaxes */
        a = lo_axis(L, lo_int(L, axes ? "axis0" : "dim0", 0), rank);
        b = lo_axis(L, lo_int(L, axes ? "axis1" : "dim1", 0), rank);
    } else { /* t, mT: the last two */
        a = rank >= 2 ? rank - 2 : 0, b = rank >= 2 ? rank - 1 : 0;
    }
    lo_return(L, 0, rank == 0 ? x : lo_swap(L, x, a, b));
}

static void permute(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int rank = lo_type(L, x)->rank, perm[IR_MAX_RANK];
    int64_t dims[IR_MAX_RANK];
    int n = lo_ints(L, "dims", IR_MAX_RANK, dims);
    if (n != rank) lo_fail(L, "it permutes %d dimensions of a tensor of rank %d", n, rank);
    for (int i = 0; i < n; i++) perm[i] = lo_axis(L, dims[i], rank);
    if (!L->failed) lo_return(L, 0, lo_permute(L, x, perm));
}

/* ---- repeating ---------------------------------------------------------------------------------------------- */

static void expand(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    ir_dim size[IR_MAX_RANK];
    int n = lo_sizes(L, "size", IR_MAX_RANK, size);
    for (int i = 0; i < n; i++) {
        int64_t v;
        int k = i - (n - t.rank);
        if (!dim_value(L->g, size[i], &v) || v != -1) continue;
        if (k < 0)
            lo_fail(L, "it expands a new dimension to -1");
        else
            size[i] = t.dim[k];
    }
    lo_return(L, 0, lo_expand(L, x, n, size));
}

/* Dimension d becomes (repeat, d) or, each element by itself, (d, repeat); merged again by a reshape. */
static ir_val repeat_dim(lower *L, ir_val x, int d, ir_dim times, bool each) {
    const ir_type t = *lo_type(L, x);
    if (times == 1 || L->failed) return x;
    ir_dim one[IR_MAX_RANK + 1], many[IR_MAX_RANK + 1], merged[IR_MAX_RANK];
    int n = 0;
    for (int i = 0; i < t.rank; i++) {
        if (i == d && !each) one[n] = 1, many[n++] = times;
        one[n] = many[n] = t.dim[i];
        n++;
        if (i == d && each) one[n] = 1, many[n++] = times;
        merged[i] = i == d ? dim_mul(L->g, t.dim[i], times) : t.dim[i];
    }
    x = lo_reshape(L, x, n, one);
    return lo_reshape(L, lo_expand(L, x, n, many), t.rank, merged);
}

/* repeat; tile, which may name fewer dimensions: the last ones */
static void repeat(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    ir_dim times[IR_MAX_RANK];
    int n = lo_sizes(L, row->arg ? "dims" : "repeats", IR_MAX_RANK, times);
    const ir_type t = *lo_type(L, x);
    for (; row->arg && n < t.rank; n++) {
        memmove(times + 1, times, sizeof *times * (size_t)n);
        times[0] = 1;
    }
    if (n < t.rank) {
        lo_fail(L, "fewer repeats than dimensions");
        return;
    }
    ir_dim lead[IR_MAX_RANK];
    for (int i = 0; i < n; i++) lead[i] = i < n - t.rank ? 1 : t.dim[i - (n - t.rank)];
    x = lo_reshape(L, x, n, lead);
    for (int i = 0; i < n; i++) x = repeat_dim(L, x, i, times[i], false);
    lo_return(L, 0, x);
}

static void repeat_interleave(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    if (!lo_arg(L, "dim")) {
        ir_dim all = 1;
        for (int i = 0; i < lo_type(L, x)->rank; i++) all = dim_mul(L->g, all, lo_type(L, x)->dim[i]);
        x = lo_reshape(L, x, 1, &all);
    }
    int d = lo_axis(L, lo_int(L, "dim", 0), lo_type(L, x)->rank);
    lo_return(L, 0, repeat_dim(L, x, d, lo_size(L, lo_arg(L, "repeats")), true));
}

/* ---- cutting -------------------------------------------------------------------------------------------------- */

/* A value that D certainly reaches: symbols are at least 1. */
static int64_t lower_bound(const ir_graph *g, ir_dim d) {
    int64_t v;
    if (dim_value(g, d, &v)) return v;
    const dim_expr *e = &g->exprs.data[-d - 1];
    if (e->kind == DIM_SYMBOL) return 1;
    int64_t a = lower_bound(g, e->a), b = lower_bound(g, e->b), r;
    if (e->kind == DIM_ADD) return __builtin_add_overflow(a, b, &r) ? 0 : r;
    if (e->kind == DIM_MUL && a >= 0 && b >= 0) return mul_ok(a, b, &r) ? r : 0;
    if (e->kind == DIM_MAX) return max64(a, b);
    if (e->kind == DIM_MIN) return min64(a, b);
    return INT64_MIN / 4;
}

/* A bound of a slice as PyTorch reads it: from the end when negative, kept inside [0, extent]. */
static ir_dim clamp(lower *L, const pt2_arg *a, ir_dim extent, ir_dim absent) {
    if (!a) return absent;
    ir_graph *g = L->g;
    if (a->kind == PT2_INT && a->i > ((int64_t)1 << 40)) return extent;
    if (a->kind == PT2_INT && a->i < -((int64_t)1 << 40)) return 0;
    ir_dim d = lo_size(L, a);
    int64_t v, e;
    if (dim_value(g, d, &v)) {
        if (v < 0) {
            d = dim_add(g, extent, d);
            if (lower_bound(g, d) >= 0) return d;
            if (dim_value(g, d, &v)) return v < 0 ? 0 : d;
            return dim_max(g, d, 0);
        }
        if (dim_value(g, extent, &e)) return v < e ? d : extent;
        return v <= lower_bound(g, extent) ? d : dim_min(g, d, extent);
    }
    /* symbolic: inside when the difference is certainly not negative */
    if (d == extent) return extent;
    if (lower_bound(g, dim_sub(g, extent, d)) >= 0) return d;
    if (lower_bound(g, dim_sub(g, d, extent)) >= 0) return extent;
    return dim_min(g, d, extent);
}

static void slice(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank);
    int64_t step = lo_int(L, "step", 1);
    if (step < 1) lo_fail(L, "a slice with step %lld", (long long)step);
    if (L->failed || t.rank == 0) return lo_fail(L, "it slices a scalar");
    ir_dim start = clamp(L, lo_arg(L, "start"), t.dim[d], 0), stop = clamp(L, lo_arg(L, "end"), t.dim[d], t.dim[d]);
    int64_t a, b;
    if (dim_value(L->g, start, &a) && dim_value(L->g, stop, &b) && b < a) stop = start;
    /* The exporter may know more of the sizes than we do, e.g. that a table is longer than the sequence. */
    ir_dim declared, len = dim_sub(L->g, stop, start);
    if (step == 1 && lo_declared_size(L, 0, d, &declared) && declared != len) {
        const pt2_arg *end = lo_arg(L, "end");
        if (end && end->kind == PT2_SYM_INT && dim_sub(L->g, lo_size(L, end), start) == declared)
            stop = dim_add(L->g, start, declared);
    }
    lo_return(L, 0, lo_slice(L, x, d, start, stop, step));
}

static void narrow(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int d = lo_axis(L, lo_int(L, "dim", 0), lo_type(L, x)->rank);
    ir_dim start = lo_size(L, lo_arg(L, "start")), len = lo_size(L, lo_arg(L, "length"));
    lo_return(L, 0, lo_slice(L, x, d, start, dim_add(L->g, start, len), 1));
}

static ir_val drop_dim(lower *L, ir_val x, int d) {
    const ir_type t = *lo_type(L, x);
    ir_dim size[IR_MAX_RANK];
    int n = 0;
    for (int i = 0; i < t.rank; i++)
        if (i != d) size[n++] = t.dim[i];
    return lo_reshape(L, x, n, size);
}

static void select_index(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank);
    if (L->failed || t.rank == 0) return lo_fail(L, "it selects from a scalar");
    ir_dim i = lo_size(L, lo_arg(L, "index"));
    int64_t v;
    if (dim_value(L->g, i, &v) && v < 0) i = dim_add(L->g, t.dim[d], i);
    x = lo_slice(L, x, d, i, dim_add(L->g, i, 1), 1);
    lo_return(L, 0, drop_dim(L, x, d));
}

/* Variants: 0 split into pieces of one size, 1 with listed sizes, 2 into a number of chunks, 3 unbind. */
static void split(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self"), parts[MAX_PARTS];
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank), n = 0;
    if (L->failed || t.rank == 0) return lo_fail(L, "it splits a scalar");
    if (row->arg == 1) {
        ir_dim size[MAX_PARTS], at = 0;
        n = lo_sizes(L, lo_arg(L, "split_sizes") ? "split_sizes" : "split_size", MAX_PARTS, size);
        for (int i = 0; i < n; i++) {
            ir_dim end = dim_add(L->g, at, size[i]);
            parts[i] = lo_slice(L, x, d, at, end, 1);
            at = end;
        }
        return lo_return_list(L, n, parts);
    }
    int64_t extent;
    if (!dim_value(L->g, t.dim[d], &extent)) return lo_fail(L, "it splits a dimension of symbolic size");
    int64_t step = row->arg == 0 ? lo_int(L, "split_size", 1) : 1;
    if (row->arg == 2) {
        int64_t chunks = lo_int(L, "chunks", 1);
        if (chunks < 1) return lo_fail(L, "%lld chunks", (long long)chunks);
        step = max64(1, ceil_div(extent, chunks));
    }
    if (step < 1 || ceil_div(extent, step) > MAX_PARTS)
        return lo_fail(L, "it splits into more than %d parts", MAX_PARTS);
    for (int64_t at = 0; at < extent; at += step) {
        parts[n] = lo_slice(L, x, d, dim_const(L->g, at), dim_const(L->g, min64(at + step, extent)), 1);
        if (row->arg == 3) parts[n] = drop_dim(L, parts[n], d);
        n++;
    }
    lo_return_list(L, n, parts);
}

/* ---- joining -------------------------------------------------------------------------------------------------- */

static void cat(lower *L, const lo_row *row) {
    ir_val x[MAX_PARTS];
    int n = lo_tensors(L, "tensors", MAX_PARTS, x), k = 0;
    lo_operand o[MAX_PARTS];
    for (int i = 0; i < n; i++) {
        const ir_type *t = lo_type(L, x[i]);
        /* a rank-1 tensor without elements joins anything (an old rule of PyTorch's) */
        if (row->arg == 0 && t->rank == 1 && t->dim[0] == 0) continue;
        x[k] = x[i];
        o[k++] = (lo_operand){.v = x[i]};
    }
    if (L->failed || k == 0) return lo_fail(L, "it joins nothing");
    dtype type = lo_result_type(L, o, k);
    int rank = lo_type(L, x[0])->rank, d = lo_axis(L, lo_int(L, "dim", 0), rank + row->arg);
    for (int i = 0; i < k; i++) {
        x[i] = lo_cast(L, x[i], type);
        if (row->arg) { /* stack: a new dimension */
            const ir_type t = *lo_type(L, x[i]);
            ir_dim size[IR_MAX_RANK + 1];
            for (int j = 0; j <= t.rank; j++) size[j] = j < d ? t.dim[j] : j == d ? 1 : t.dim[j - 1];
            x[i] = lo_reshape(L, x[i], t.rank + 1, size);
        }
    }
    lo_return(L, 0, k == 1 ? x[0] : lo_emit(L, OP_concat, x, k, ATTRS(A_I("dim", d)), NULL));
}

/* pad(self, pad, mode, value) and constant_pad_nd: pairs from the last dimension backwards; negative ones cut. */
static void pad(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int64_t p[2 * IR_MAX_RANK];
    int n = lo_ints(L, "pad", 2 * IR_MAX_RANK, p), rank = lo_type(L, x)->rank;
    const char *mode = lo_string(L, "mode", "constant");
    double value = lo_float(L, "value", 0);
    if (strcmp(mode, "constant") != 0) return lo_fail(L, "padding mode %.20s", mode);
    if (n % 2 || n / 2 > rank) return lo_fail(L, "%d pad widths for a tensor of rank %d", n, rank);
    for (int i = 0; i < n / 2; i++) {
        int d = rank - 1 - i;
        int64_t lo = p[2 * i], hi = p[2 * i + 1];
        if (lo < 0 || hi < 0) {
            ir_dim stop = dim_add(L->g, lo_type(L, x)->dim[d], dim_const(L->g, hi < 0 ? hi : 0));
            x = lo_slice(L, x, d, lo < 0 ? dim_const(L->g, -lo) : 0, stop, 1);
        }
        if (lo > 0 || hi > 0)
            x = lo_op1(L, OP_pad, x,
                       ATTRS(A_I("dim", d), A_I("lo", max64(lo, 0)), A_I("hi", max64(hi, 0)), A_F("value", value)));
    }
    lo_return(L, 0, x);
}

/* ---- casts ------------------------------------------------------------------------------------------------------ */

static void to_dtype(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    dtype t = lo_type(L, x)->t;
    lo_dtype(L, "dtype", &t);
    /* PyTorch rounds towards zero when it casts to an integer, and so do we; everything but zero is true */
    lo_return(L, 0, t == DT_BOOL && lo_type(L, x)->t != DT_BOOL ? lo_with_number(L, OP_ne, x, 0) : lo_cast(L, x, t));
}

static void type_as(lower *L, const lo_row *row) {
    (void)row;
    lo_return(L, 0, lo_cast(L, lo_tensor(L, "self"), lo_type(L, lo_tensor(L, "other"))->t));
}

const lo_row lower_views[] = {
    {"aten.view.default", view, 0, ROW_VIEW},
    {"aten._unsafe_view.default", view, 0, 0},
    {"aten.reshape.default", view, 1, ROW_MAYBE},
    {"aten.view_as.default", view_as, 0, ROW_VIEW},
    {"aten.reshape_as.default", view_as, 0, ROW_MAYBE},
    {"aten.expand_as.default", view_as, 1, ROW_VIEW},
    {"aten.flatten.using_ints", flatten, 0, ROW_MAYBE},
    {"aten.unflatten.int", unflatten, 0, ROW_VIEW},
    {"aten.unsqueeze.default", unsqueeze, 0, ROW_VIEW},
    {"aten.squeeze.dim", squeeze, 0, ROW_VIEW},
    {"aten.squeeze.dims", squeeze, 1, ROW_VIEW},
    {"aten.squeeze.default", squeeze, 2, ROW_VIEW},
    {"aten.transpose.int", transpose, 0, ROW_VIEW},
    {"aten.swapaxes.default", transpose, 0, ROW_VIEW},
    {"aten.t.default", transpose, 1, ROW_VIEW},
    {"aten.numpy_T.default", transpose, 2, ROW_VIEW},
    {"aten.mT.default", transpose, 1, ROW_VIEW},
    {"aten.permute.default", permute, 0, ROW_VIEW},
    {"aten.expand.default", expand, 0, ROW_VIEW},
    {"aten.repeat.default", repeat, 0, 0},
    {"aten.tile.default", repeat, 1, 0},
    {"aten.repeat_interleave.self_int", repeat_interleave, 0, 0},
    {"aten.slice.Tensor", slice, 0, ROW_VIEW},
    {"aten.narrow.default", narrow, 0, ROW_VIEW},
    {"aten.select.int", select_index, 0, ROW_VIEW},
    {"aten.split.Tensor", split, 0, ROW_VIEW},
    {"aten.split_with_sizes.default", split, 1, ROW_VIEW},
    {"aten.split.sizes", split, 1, ROW_VIEW},
    {"aten.chunk.default", split, 2, ROW_VIEW},
    {"aten.unbind.int", split, 3, ROW_VIEW},
    {"aten.cat.default", cat, 0, 0},
    {"aten.concat.default", cat, 0, 0},
    {"aten.stack.default", cat, 1, 0},
    {"aten.pad.default", pad, 0, 0},
    {"aten.constant_pad_nd.default", pad, 0, 0},
    {"aten.contiguous.default", same, 0, ROW_MAYBE},
    {"aten.clone.default", same, 0, 0},
    {"aten.alias.default", same, 0, ROW_VIEW},
    {"aten.lift_fresh_copy.default", same, 0, 0},
    {"aten.lift_fresh.default", same, 0, ROW_VIEW},
    {"aten.detach.default", detach, 0, ROW_VIEW},
    {"aten.detach_copy.default", detach, 0, 0},
    {"aten.to.dtype", to_dtype, 0, ROW_MAYBE},
    {"aten.to.dtype_layout", to_dtype, 0, ROW_MAYBE},
    {"aten.to.device", to_dtype, 0, ROW_MAYBE},
    {"aten._to_copy.default", to_dtype, 0, 0},
    {"aten.to.other", type_as, 0, ROW_MAYBE},
    {"aten.type_as.default", type_as, 0, ROW_MAYBE},
    {NULL, NULL, 0, 0},
};
