/* lower_math.c - arithmetic: element-wise operators with PyTorch's promotion, reductions and matrix products. */
#include "import/lower.h"

#include <math.h>

/* Numbers of a comparison or a product take the type that the tensors decide. */
static bool operands(lower *L, lo_operand *o, dtype *t, const char *second) {
    o[0] = lo_get_operand(L, "self");
    o[1] = lo_get_operand(L, second);
    *t = lo_result_type(L, o, 2);
    return !L->failed;
}

static ir_val scaled(lower *L, ir_val x, const char *name) {
    double k = lo_float(L, name, 1);
    return k == 1 ? x : lo_with_number(L, OP_mul, x, k);
}

/* add, sub (with alpha), mul, maximum, minimum, and, or: arg is the op */
static void arithmetic(lower *L, const lo_row *row) {
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    ir_op op = (ir_op)row->arg;
    if (t == DT_BOOL && (op == OP_add || op == OP_mul || op == OP_max || op == OP_min))
        op = op == OP_add || op == OP_max ? OP_or : OP_and;
    ir_val x = lo_as_tensor(L, &o[0], t), y = lo_as_tensor(L, &o[1], t);
    if (op == OP_add || op == OP_sub) y = scaled(L, y, "alpha");
    lo_return(L, 0, lo_binary(L, op, x, y));
}

static void reversed_sub(lower *L, const lo_row *row) {
    (void)row;
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    lo_return(L, 0, lo_binary(L, OP_sub, lo_as_tensor(L, &o[1], t), scaled(L, lo_as_tensor(L, &o[0], t), "alpha")));
}

/* True division; with rounding_mode "floor" Python's //. */
static void divide(lower *L, const lo_row *row) {
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    const char *mode = row->arg ? "floor" : lo_string(L, "rounding_mode", "");
    bool floor = !strcmp(mode, "floor");
    if (*mode && !floor) return lo_fail(L, "division with rounding mode %.20s", mode);
    if (!floor && !dtype_is_float(t)) t = DT_F32;
    ir_val x = lo_as_tensor(L, &o[0], t), y = lo_as_tensor(L, &o[1], t);
    if (floor && !row->arg)
        x = lo_stop_grad(L, x), y = lo_stop_grad(L, y); /* floor_divide: PyTorch fails, and so do we */
    lo_return(L, 0, lo_binary(L, floor ? OP_floordiv : OP_div, x, y));
}

/* x mod y with the sign of y; through floats d/dx is 1 and d/dy is -floor(x / y) */
static void remainder_of(lower *L, const lo_row *row) {
    (void)row;
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    ir_val x = lo_as_tensor(L, &o[0], t), y = lo_as_tensor(L, &o[1], t);
    if (!lo_needs_grad(L, x) && !lo_needs_grad(L, y)) return lo_return(L, 0, lo_binary(L, OP_mod, x, y));
    ir_val times = lo_binary(L, OP_floordiv, lo_stop_grad(L, x), lo_stop_grad(L, y));
    lo_return(L, 0, lo_binary(L, OP_sub, x, lo_binary(L, OP_mul, times, y)));
}

static void compare(lower *L, const lo_row *row) {
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    if (t == DT_BOOL) t = DT_I64;
    lo_return(L, 0, lo_binary(L, (ir_op)row->arg, lo_as_tensor(L, &o[0], t), lo_as_tensor(L, &o[1], t)));
}

static ir_val truth(lower *L, ir_val x) { return lo_type(L, x)->t == DT_BOOL ? x : lo_with_number(L, OP_ne, x, 0); }

/* logical_and, logical_or, bitwise_and, bitwise_or, &, |: the bitwise ones only of bool */
static void logical(lower *L, const lo_row *row) {
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    bool bitwise = strstr(row->target, "logical") == NULL;
    if (bitwise && t != DT_BOOL) return lo_fail(L, "bitwise operators are supported for bool only");
    ir_val x = truth(L, lo_as_tensor(L, &o[0], o[0].v >= 0 ? lo_type(L, o[0].v)->t : DT_F32));
    ir_val y = truth(L, lo_as_tensor(L, &o[1], o[1].v >= 0 ? lo_type(L, o[1].v)->t : DT_F32));
    lo_return(L, 0, lo_binary(L, (ir_op)row->arg, x, y));
}

static void logical_not(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    if (row->arg && lo_type(L, x)->t != DT_BOOL) return lo_fail(L, "bitwise operators are supported for bool only");
    lo_return(L, 0, lo_op1(L, OP_not, truth(L, x), NO_ATTRS));
}

/* Functions of one float; integers become f32 first, but neg, abs and relu keep them. */
static void unary(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    ir_op op = (ir_op)row->arg;
    dtype t = lo_type(L, x)->t;
    if (!dtype_is_float(t) && op != OP_neg && op != OP_abs && op != OP_relu) x = lo_cast(L, x, DT_F32);
    lo_return(L, 0, lo_op1(L, op, x, NO_ATTRS));
}

static void gelu(lower *L, const lo_row *row) {
    (void)row;
    bool tanh = !strcmp(lo_string(L, "approximate", "none"), "tanh");
    lo_return(L, 0, lo_op1(L, tanh ? OP_gelu_tanh : OP_gelu, lo_tensor(L, "self"), NO_ATTRS));
}

/* log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which never overflows; linear past the threshold as in PyTorch. */
static void softplus(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    if (lo_float(L, "beta", 1) != 1) return lo_fail(L, "softplus with beta");
    ir_val e = lo_op1(L, OP_exp, lo_op1(L, OP_neg, lo_op1(L, OP_abs, x, NO_ATTRS), NO_ATTRS), NO_ATTRS);
    ir_val l = lo_op1(L, OP_log, lo_with_number(L, OP_add, e, 1), NO_ATTRS);
    lo_return(L, 0, lo_op2(L, OP_add, lo_op1(L, OP_relu, x, NO_ATTRS), l, NO_ATTRS));
}

/* Powers with a constant exponent become products and roots, which have exact and cheap gradients. */
static void power(lower *L, const lo_row *row) {
    (void)row;
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "exponent")) return;
    ir_val x = lo_as_tensor(L, &o[0], t);
    if (lo_needs_grad(L, o[1].v)) { /* k^y = exp(y log k) for a number k > 0 */
        if (o[0].v >= 0 || o[0].num <= 0) return lo_fail(L, "a power whose exponent needs a gradient");
        ir_val y = lo_with_number(L, OP_mul, lo_as_tensor(L, &o[1], t), log(o[0].num));
        return lo_return(L, 0, lo_op1(L, OP_exp, y, NO_ATTRS));
    }
    if (o[1].v >= 0 || o[1].size || o[0].v < 0)
        return lo_return(L, 0, lo_binary(L, OP_pow, x, lo_as_tensor(L, &o[1], t)));
    double k = o[1].num;
    bool f = dtype_is_float(t);
    ir_val r;
    if (k == 1)
        r = x;
    else if (k == 2)
        r = lo_op2(L, OP_mul, x, x, NO_ATTRS);
    else if (k == 3)
        r = lo_op2(L, OP_mul, lo_op2(L, OP_mul, x, x, NO_ATTRS), x, NO_ATTRS);
    else if (k == 0.5 && f)
        r = lo_op1(L, OP_sqrt, x, NO_ATTRS);
    else if (k == -0.5 && f)
        r = lo_op1(L, OP_rsqrt, x, NO_ATTRS);
    else if (k == -1 && f)
        r = lo_op1(L, OP_recip, x, NO_ATTRS);
    else
        r = lo_with_number(L, OP_pow, x, k);
    lo_return(L, 0, r);
}

static void clamp(lower *L, const lo_row *row) {
    (void)row;
    lo_operand o[3] = {lo_get_operand(L, "self")};
    int n = 1, lo = 0, hi = 0;
    if (lo_arg(L, "min")) o[lo = n++] = lo_get_operand(L, "min");
    if (lo_arg(L, "max")) o[hi = n++] = lo_get_operand(L, "max");
    dtype t = lo_result_type(L, o, n);
    ir_val x = lo_as_tensor(L, &o[0], t);
    if (lo) x = lo_binary(L, OP_max, x, lo_as_tensor(L, &o[lo], t));
    if (hi) x = lo_binary(L, OP_min, x, lo_as_tensor(L, &o[hi], t));
    lo_return(L, 0, x);
}

static void where(lower *L, const lo_row *row) {
    (void)row;
    ir_val c = truth(L, lo_tensor(L, "condition"));
    lo_operand o[2];
    dtype t;
    if (!operands(L, o, &t, "other")) return;
    lo_return(L, 0, lo_select(L, c, lo_as_tensor(L, &o[0], t), lo_as_tensor(L, &o[1], t)));
}

static void masked_fill(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), m = lo_tensor(L, "mask");
    lo_operand v = lo_get_operand(L, "value");
    lo_return(L, 0, lo_select(L, m, lo_as_tensor(L, &v, lo_type(L, x)->t), x));
}

/* ---- reductions ------------------------------------------------------------------------------------------ */

/* The dimensions to reduce: the argument `dim` (a number, a list, or all when absent or empty). */
static int reduced(lower *L, ir_val x, int *dims) {
    int rank = lo_type(L, x)->rank, n = 0;
    int64_t list[IR_MAX_RANK];
    if (lo_arg(L, "dim")) n = lo_ints(L, "dim", IR_MAX_RANK, list);
    bool all = n == 0;
    unsigned seen = 0;
    for (int i = 0; i < n; i++) seen |= 1u << lo_axis(L, list[i], rank);
    n = 0;
    for (int d = 0; d < rank; d++)
        if (all || seen & 1u << d) dims[n++] = d;
    return n;
}

/* The operand in the type that a sum is taken in: `dtype`, or i64 for bool. */
static ir_val summand(lower *L, const char *name) {
    ir_val x = lo_tensor(L, name);
    dtype t = lo_type(L, x)->t == DT_BOOL ? DT_I64 : lo_type(L, x)->t;
    lo_dtype(L, "dtype", &t);
    return lo_cast(L, x, t);
}

static void sum(lower *L, const lo_row *row) {
    ir_val x = summand(L, "self");
    int dims[IR_MAX_RANK], n = reduced(L, x, dims);
    ir_val y = lo_sum(L, x, n, dims, lo_bool(L, "keepdim", false));
    if (row->arg) { /* mean */
        ir_dim count = 1;
        for (int i = 0; i < n; i++) count = dim_mul(L->g, count, lo_type(L, x)->dim[dims[i]]);
        dtype t = lo_type(L, y)->t;
        if (!L->failed && !dtype_is_float(t)) return lo_fail(L, "mean of integers");
        y = lo_binary(L, OP_div, y, lo_size_value(L, t, count));
    }
    lo_return(L, 0, y);
}

/* amax; amin as the negative of the largest negative */
static void extremum(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    int dims[IR_MAX_RANK], n = reduced(L, x, dims);
    bool keep = lo_bool(L, "keepdim", false);
    if (row->arg) x = lo_op1(L, OP_neg, x, NO_ATTRS);
    x = lo_rmax(L, x, n, dims, keep);
    lo_return(L, 0, row->arg ? lo_op1(L, OP_neg, x, NO_ATTRS) : x);
}

/* any: the largest of 0 and 1; all: not any not */
static void any_all(lower *L, const lo_row *row) {
    ir_val x = truth(L, lo_tensor(L, "self"));
    int dims[IR_MAX_RANK], n = reduced(L, x, dims);
    if (row->arg) x = lo_op1(L, OP_not, x, NO_ATTRS);
    x = lo_sum(L, lo_cast(L, x, DT_I64), n, dims, lo_bool(L, "keepdim", false));
    x = lo_with_number(L, OP_ne, x, 0);
    lo_return(L, 0, row->arg ? lo_op1(L, OP_not, x, NO_ATTRS) : x);
}

static void cumsum(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = summand(L, "self");
    int d = lo_axis(L, lo_int(L, "dim", 0), lo_type(L, x)->rank);
    lo_return(L, 0, lo_type(L, x)->rank ? lo_op1(L, OP_cumsum, x, ATTRS(A_I("dim", d))) : x);
}

static void softmax(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    dtype t = lo_type(L, x)->t;
    if (!lo_dtype(L, "dtype", &t) && lo_bool(L, "half_to_float", false)) t = DT_F32;
    x = lo_cast(L, x, t);
    int d = lo_axis(L, lo_int(L, "dim", 0), lo_type(L, x)->rank);
    if (!row->arg) return lo_return(L, 0, lo_op1(L, OP_softmax, x, ATTRS(A_I("dim", d))));
    /* log softmax: x - max - log sum exp(x - max); the maximum cancels, so no gradient goes through it */
    ir_val z = lo_binary(L, OP_sub, x, lo_rmax(L, lo_stop_grad(L, x), 1, &d, true));
    ir_val s = lo_sum(L, lo_op1(L, OP_exp, z, NO_ATTRS), 1, &d, true);
    lo_return(L, 0, lo_binary(L, OP_sub, z, lo_op1(L, OP_log, s, NO_ATTRS)));
}

static void logsumexp(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int dims[IR_MAX_RANK], n = reduced(L, x, dims);
    ir_val m = lo_rmax(L, lo_stop_grad(L, x), n, dims, true);
    ir_val s = lo_sum(L, lo_op1(L, OP_exp, lo_binary(L, OP_sub, x, m), NO_ATTRS), n, dims, true);
    ir_val y = lo_binary(L, OP_add, lo_op1(L, OP_log, s, NO_ATTRS), m);
    if (!lo_bool(L, "keepdim", false)) {
        ir_dim size[IR_MAX_RANK];
        const ir_type t = *lo_type(L, y);
        int k = 0;
        for (int d = 0, j = 0; d < t.rank; d++) {
            if (j < n && dims[j] == d)
                j++;
            else
                size[k++] = t.dim[d];
        }
        y = lo_reshape(L, y, k, size);
    }
    lo_return(L, 0, y);
}

/* n-th differences along a dimension, with optional neighbours. */
static void diff(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), before = lo_optional_tensor(L, "prepend"), after = lo_optional_tensor(L, "append");
    int d = lo_axis(L, lo_int(L, "dim", -1), lo_type(L, x)->rank), n = 0;
    int64_t order = lo_int(L, "n", 1);
    if (order < 0 || order > 8) return lo_fail(L, "differences of order %lld", (long long)order);
    if (L->failed || lo_type(L, x)->rank == 0) return lo_fail(L, "differences of a scalar");
    bool is_bool = lo_type(L, x)->t == DT_BOOL;
    ir_val parts[3];
    if (before >= 0) parts[n++] = before;
    parts[n++] = x;
    if (after >= 0) parts[n++] = after;
    if (n > 1) x = lo_emit(L, OP_concat, parts, n, ATTRS(A_I("dim", d)), NULL);
    for (; order > 0 && !L->failed; order--) {
        ir_dim len = lo_type(L, x)->dim[d];
        ir_val hi = lo_slice(L, x, d, 1, len, 1), lo = lo_slice(L, x, d, 0, dim_sub(L->g, len, 1), 1);
        x = lo_op2(L, is_bool ? OP_ne : OP_sub, hi, lo, NO_ATTRS);
    }
    lo_return(L, 0, x);
}

/* ---- products --------------------------------------------------------------------------------------------- */

/* x (..., K) times y (N, K) or (K, N). */
static ir_val times_matrix(lower *L, ir_val x, ir_val y, bool y_rows_are_outputs) {
    ir_dim lc = lo_type(L, x)->rank - 1, rc = y_rows_are_outputs ? 1 : 0;
    if (lo_type(L, x)->rank < 1 || lo_type(L, y)->rank != 2)
        return lo_fail(L, "a product of a tensor with no matrix"), -1;
    return lo_op2(L, OP_dot, x, y, ATTRS(A_D("lc", 1, &lc), A_D("rc", 1, &rc), A_D("lb", 0, &lc), A_D("rb", 0, &lc)));
}

static ir_val with_axis(lower *L, ir_val x, int at) {
    const ir_type t = *lo_type(L, x);
    ir_dim size[IR_MAX_RANK + 1];
    for (int i = 0; i <= t.rank; i++) size[i] = i < at ? t.dim[i] : i == at ? 1 : t.dim[i - 1];
    return lo_reshape(L, x, t.rank + 1, size);
}

/* torch.matmul of tensors of rank >= 2: batch dimensions broadcast. */
static ir_val matmul2(lower *L, ir_val x, ir_val y) {
    if (L->failed) return -1;
    const ir_type a = *lo_type(L, x), b = *lo_type(L, y);
    if (a.rank < 2 || b.rank < 2) return lo_fail(L, "a matrix product of tensors that are no matrices"), -1;
    /* an outer product: nothing is summed */
    if (a.dim[a.rank - 1] == 1 && b.dim[b.rank - 2] == 1) return lo_binary(L, OP_mul, x, y);
    if (b.rank == 2) return times_matrix(L, x, y, false);
    int rank = a.rank > b.rank ? a.rank : b.rank;
    ir_dim da[IR_MAX_RANK], db[IR_MAX_RANK], batch[IR_MAX_RANK], lc = rank - 1, rc = rank - 2;
    for (int d = 0; d < rank; d++) {
        int i = d - (rank - a.rank), j = d - (rank - b.rank);
        da[d] = i < 0 ? 1 : a.dim[i], db[d] = j < 0 ? 1 : b.dim[j];
        batch[d] = d;
        if (d >= rank - 2) continue;
        if (da[d] == 1)
            da[d] = db[d];
        else if (db[d] == 1)
            db[d] = da[d];
    }
    x = lo_expand(L, x, rank, da), y = lo_expand(L, y, rank, db);
    return lo_op2(L, OP_dot, x, y,
                  ATTRS(A_D("lc", 1, &lc), A_D("rc", 1, &rc), A_D("lb", rank - 2, batch), A_D("rb", rank - 2, batch)));
}

static ir_val drop_axis(lower *L, ir_val x, int at) {
    const ir_type t = *lo_type(L, x);
    ir_dim size[IR_MAX_RANK];
    for (int i = 0, n = 0; i < t.rank; i++)
        if (i != at) size[n++] = t.dim[i];
    return lo_reshape(L, x, t.rank - 1, size);
}

static void matmul(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self"), y = lo_tensor(L, row->arg ? "mat2" : "other");
    int rx = lo_type(L, x)->rank, ry = lo_type(L, y)->rank;
    if (L->failed || rx == 0 || ry == 0) return lo_fail(L, "a matrix product with a scalar");
    if (rx == 1) x = with_axis(L, x, 0);
    if (ry == 1) y = with_axis(L, y, 1);
    ir_val z = matmul2(L, x, y);
    if (rx == 1 && !L->failed) z = drop_axis(L, z, lo_type(L, z)->rank - 2);
    if (ry == 1 && !L->failed) z = drop_axis(L, z, lo_type(L, z)->rank - 1);
    lo_return(L, 0, z);
}

static void linear(lower *L, const lo_row *row) {
    (void)row;
    ir_val y = times_matrix(L, lo_tensor(L, "input"), lo_tensor(L, "weight"), true), b = lo_optional_tensor(L, "bias");
    lo_return(L, 0, b >= 0 ? lo_binary(L, OP_add, y, b) : y);
}

static void addmm(lower *L, const lo_row *row) {
    const char *first = row->arg ? "batch1" : "mat1", *second = row->arg ? "batch2" : "mat2";
    ir_val c = scaled(L, lo_tensor(L, "self"), "beta");
    ir_val y = scaled(L, matmul2(L, lo_tensor(L, first), lo_tensor(L, second)), "alpha");
    lo_return(L, 0, lo_binary(L, OP_add, y, c));
}

/* torch.outer of two vectors */
static void outer(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), y = lo_tensor(L, "vec2");
    lo_operand o[2] = {{.v = x}, {.v = y}};
    if (L->failed || lo_type(L, x)->rank != 1 || lo_type(L, y)->rank != 1)
        return lo_fail(L, "an outer product of no vectors");
    dtype t = lo_result_type(L, o, 2);
    lo_return(L, 0, lo_binary(L, OP_mul, with_axis(L, lo_cast(L, x, t), 1), lo_cast(L, y, t)));
}

/* The Euclidean norm (or the largest magnitude) along dimensions. */
static void vector_norm(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    dtype t = lo_type(L, x)->t;
    lo_dtype(L, "dtype", &t);
    x = lo_cast(L, x, t);
    int dims[IR_MAX_RANK], n = reduced(L, x, dims);
    bool keep = lo_bool(L, "keepdim", false);
    double ord = lo_float(L, strstr(row->target, "linalg") ? "ord" : "p", 2);
    if (ord == 2) {
        x = lo_sum(L, lo_op2(L, OP_mul, x, x, NO_ATTRS), n, dims, keep);
        lo_return(L, 0, lo_op1(L, OP_sqrt, x, NO_ATTRS));
    } else if (ord == 1) {
        lo_return(L, 0, lo_sum(L, lo_op1(L, OP_abs, x, NO_ATTRS), n, dims, keep));
    } else {
        lo_fail(L, "a norm of order %g", ord);
    }
}

static void square(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    lo_return(L, 0, lo_op2(L, OP_mul, x, x, NO_ATTRS));
}

/* ---- einsum ------------------------------------------------------------------------------------------------- */

/* Sums out of X the letters that are in neither KEEP nor OTHER, and takes diagonals of none: a letter may appear once.
 */
static ir_val sum_letters(lower *L, ir_val x, char *letters, const char *keep, const char *other) {
    int dims[IR_MAX_RANK], n = 0, k = 0;
    for (int i = 0; letters[i]; i++) {
        if (strchr(keep, letters[i]) || strchr(other, letters[i]))
            letters[k++] = letters[i];
        else
            dims[n++] = i;
    }
    letters[k] = 0;
    return lo_sum(L, x, n, dims, false);
}

/* X's dimensions in the order of TO, with extent 1 where X has no such letter. */
static ir_val arrange(lower *L, ir_val x, const char *letters, const char *to) {
    int perm[IR_MAX_RANK], n = 0, rank = (int)strlen(to);
    ir_dim size[2 * IR_MAX_RANK];
    const ir_type t = *lo_type(L, x);
    for (int i = 0; i < rank; i++) {
        const char *c = strchr(letters, to[i]);
        size[i] = 1;
        if (!c) continue;
        size[i] = t.dim[c - letters];
        perm[n++] = (int)(c - letters);
    }
    if (L->failed || n != t.rank) return lo_fail(L, "einsum with a letter twice in one operand"), -1;
    return lo_reshape(L, lo_permute(L, x, perm), rank, size);
}

/* One product: letters of both and of OUT are batch, letters of both only are summed. */
static ir_val contract(lower *L, ir_val x, const char *lx, ir_val y, const char *ly, const char *keep, char *out) {
    ir_dim lc[IR_MAX_RANK], rc[IR_MAX_RANK], lb[IR_MAX_RANK], rb[IR_MAX_RANK];
    int nc = 0, nb = 0, n = 0;
    char all[4 * IR_MAX_RANK] = "";
    for (int i = 0; lx[i]; i++) {
        const char *c = strchr(ly, lx[i]);
        if (c && !strchr(keep, lx[i])) lc[nc] = i, rc[nc++] = c - ly;
        if (c && strchr(keep, lx[i])) lb[nb] = i, rb[nb++] = c - ly, out[n++] = lx[i];
    }
    for (int i = 0; lx[i]; i++)
        if (!strchr(ly, lx[i])) out[n++] = lx[i];
    for (int i = 0; ly[i]; i++)
        if (!strchr(lx, ly[i])) out[n++] = ly[i];
    out[n] = 0;
    if (nc == 0) { /* nothing is summed: an element-wise product */
        snprintf(all, sizeof all, "%s", out);
        return lo_binary(L, OP_mul, arrange(L, x, lx, all), arrange(L, y, ly, all));
    }
    return lo_op2(L, OP_dot, x, y, ATTRS(A_D("lc", nc, lc), A_D("rc", nc, rc), A_D("lb", nb, lb), A_D("rb", nb, rb)));
}

/* One operand's letters out of the equation, spaces dropped; an ellipsis becomes capital letters counted from the end.
 */
static bool subscripts(lower *L, const char **p, int rank, char *out) {
    int n = 0, named = 0;
    for (const char *c = *p; *c && *c != ',' && *c != '-'; c++)
        if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z')) named++;
    for (; **p && **p != ',' && **p != '-'; ++*p) {
        char c = **p;
        if (c == ' ') continue;
        if (c == '.') {
            int dots = rank < 0 ? -rank - 1 : rank - named; /* the output is given how many the operands had */
            if (strncmp(*p, "...", 3) != 0 || dots < 0 || n + dots > IR_MAX_RANK) return false;
            *p += 2;
            for (int i = 0; i < dots; i++) out[n++] = (char)('0' + dots - i);
            continue;
        }
        if (n >= IR_MAX_RANK || !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) || memchr(out, c, (size_t)n))
            return false;
        out[n++] = c;
    }
    out[n] = 0;
    return L->failed || rank < 0 || n == rank;
}

/* einsum(equation, tensors): operands are multiplied from left to right. */
static void einsum(lower *L, const lo_row *row) {
    (void)row;
    const char *p = lo_string(L, "equation", "");
    enum { MAX_OPERANDS = 4 };
    ir_val x[MAX_OPERANDS];
    int n = lo_tensors(L, "tensors", MAX_OPERANDS, x), dots = 0;
    char in[MAX_OPERANDS][IR_MAX_RANK + 1], out[IR_MAX_RANK + 1] = "", rest[MAX_OPERANDS * (IR_MAX_RANK + 1) + 1];
    lo_operand o[MAX_OPERANDS];
    bool ok = !L->failed && n > 0;
    for (int i = 0; ok && i < n; i++) {
        ok = subscripts(L, &p, lo_type(L, x[i])->rank, in[i]);
        for (const char *c = in[i]; ok && *c; c++)
            if (*c >= '1' && *c <= '9' && *c - '0' > dots) dots = *c - '0';
        if (ok && i + 1 < n) ok = *p == ',', p++;
        o[i] = (lo_operand){.v = x[i]};
    }
    ok = ok && p[0] == '-' && p[1] == '>';
    if (ok) {
        p += 2;
        ok = subscripts(L, &p, -dots - 1, out) && *p == 0;
    }
    if (!ok) return lo_fail(L, "einsum %.60s", lo_string(L, "equation", ""));
    dtype t = lo_result_type(L, o, n);
    for (int i = 0; i < n; i++) x[i] = lo_cast(L, x[i], t);
    char acc[2 * IR_MAX_RANK + 1];
    snprintf(acc, sizeof acc, "%s", in[0]);
    ir_val y = x[0];
    for (int i = 1; i <= n && !L->failed; i++) {
        rest[0] = 0; /* letters that what comes later or the result still needs */
        strcat(rest, out);
        for (int j = i + 1; j < n; j++) strcat(rest, in[j]);
        y = sum_letters(L, y, acc, rest, i < n ? in[i] : "");
        if (i == n) break;
        x[i] = sum_letters(L, x[i], in[i], rest, acc);
        char next[2 * IR_MAX_RANK + 1];
        y = contract(L, y, acc, x[i], in[i], rest, next);
        if (strlen(next) > IR_MAX_RANK) lo_fail(L, "einsum of too many dimensions");
        snprintf(acc, sizeof acc, "%s", next);
    }
    if (strlen(out) != strlen(acc)) return lo_fail(L, "einsum with a result letter in no operand");
    lo_return(L, 0, arrange(L, y, acc, out));
}

/* ---- sizes -------------------------------------------------------------------------------------------------- */

static void sym_size(lower *L, const lo_row *row) {
    const ir_type t = *lo_type(L, lo_tensor(L, "self"));
    ir_dim d = 1;
    if (row->arg) {
        for (int i = 0; i < t.rank; i++) d = dim_mul(L->g, d, t.dim[i]);
    } else {
        int i = lo_axis(L, lo_int(L, "dim", 0), t.rank);
        d = t.rank ? t.dim[i] : 1;
    }
    lo_return_size(L, d);
}

/* _operator.add and the like: positional arguments */
static void size_arithmetic(lower *L, const lo_row *row) {
    ir_dim x[2] = {0, 0};
    int want = row->arg == 'n' || row->arg == 'i' ? 1 : 2;
    if (L->n->n_in < want) return lo_fail(L, "too few arguments");
    for (int i = 0; i < want; i++) x[i] = lo_size(L, &L->n->in[i].arg);
    ir_graph *g = L->g;
    int64_t zero;
    switch (row->arg) {
    case '+':
        x[0] = dim_add(g, x[0], x[1]);
        break;
    case '-':
        x[0] = dim_sub(g, x[0], x[1]);
        break;
    case '*':
        x[0] = dim_mul(g, x[0], x[1]);
        break;
    case '/':
    case '%':
        if (dim_value(g, x[1], &zero) && zero == 0) return lo_fail(L, "a size divided by zero");
        x[0] = row->arg == '/' ? dim_floordiv(g, x[0], x[1]) : dim_mod(g, x[0], x[1]);
        break;
    case 'M':
        x[0] = dim_max(g, x[0], x[1]);
        break;
    case 'm':
        x[0] = dim_min(g, x[0], x[1]);
        break;
    case 'n':
        x[0] = dim_mul(g, x[0], dim_const(g, -1));
        break;
    default:
        break;
    }
    lo_return_size(L, x[0]);
}

const lo_row lower_math[] = {
    {"aten.add.Tensor", arithmetic, OP_add, 0},
    {"aten.add.Scalar", arithmetic, OP_add, 0},
    {"aten.sub.Tensor", arithmetic, OP_sub, 0},
    {"aten.sub.Scalar", arithmetic, OP_sub, 0},
    {"aten.rsub.Scalar", reversed_sub, 0, 0},
    {"aten.rsub.Tensor", reversed_sub, 0, 0},
    {"aten.mul.Tensor", arithmetic, OP_mul, 0},
    {"aten.mul.Scalar", arithmetic, OP_mul, 0},
    {"aten.div.Tensor", divide, 0, 0},
    {"aten.div.Scalar", divide, 0, 0},
    {"aten.div.Tensor_mode", divide, 0, 0},
    {"aten.div.Scalar_mode", divide, 0, 0},
    {"aten.true_divide.Tensor", divide, 0, 0},
    {"aten.floor_divide.default", divide, 1, 0},
    {"aten.floor_divide.Scalar", divide, 1, 0},
    {"aten.remainder.Scalar", remainder_of, 0, 0},
    {"aten.remainder.Tensor", remainder_of, 0, 0},
    {"aten.maximum.default", arithmetic, OP_max, 0},
    {"aten.minimum.default", arithmetic, OP_min, 0},
    {"aten.pow.Tensor_Scalar", power, 0, 0},
    {"aten.pow.Tensor_Tensor", power, 0, 0},
    {"aten.pow.Scalar", power, 0, 0},
    {"aten.eq.Tensor", compare, OP_eq, 0},
    {"aten.eq.Scalar", compare, OP_eq, 0},
    {"aten.ne.Tensor", compare, OP_ne, 0},
    {"aten.ne.Scalar", compare, OP_ne, 0},
    {"aten.lt.Tensor", compare, OP_lt, 0},
    {"aten.lt.Scalar", compare, OP_lt, 0},
    {"aten.le.Tensor", compare, OP_le, 0},
    {"aten.le.Scalar", compare, OP_le, 0},
    {"aten.gt.Tensor", compare, OP_gt, 0},
    {"aten.gt.Scalar", compare, OP_gt, 0},
    {"aten.ge.Tensor", compare, OP_ge, 0},
    {"aten.ge.Scalar", compare, OP_ge, 0},
    {"aten.__and__.Tensor", logical, OP_and, 0},
    {"aten.__and__.Scalar", logical, OP_and, 0},
    {"aten.__or__.Tensor", logical, OP_or, 0},
    {"aten.bitwise_and.Tensor", logical, OP_and, 0},
    {"aten.bitwise_or.Tensor", logical, OP_or, 0},
    {"aten.logical_and.default", logical, OP_and, 0},
    {"aten.logical_or.default", logical, OP_or, 0},
    {"aten.logical_not.default", logical_not, 0, 0},
    {"aten.bitwise_not.default", logical_not, 1, 0},
    {"aten.neg.default", unary, OP_neg, 0},
    {"aten.abs.default", unary, OP_abs, 0},
    {"aten.exp.default", unary, OP_exp, 0},
    {"aten.log.default", unary, OP_log, 0},
    {"aten.sqrt.default", unary, OP_sqrt, 0},
    {"aten.rsqrt.default", unary, OP_rsqrt, 0},
    {"aten.reciprocal.default", unary, OP_recip, 0},
    {"aten.sin.default", unary, OP_sin, 0},
    {"aten.cos.default", unary, OP_cos, 0},
    {"aten.tanh.default", unary, OP_tanh, 0},
    {"aten.erf.default", unary, OP_erf, 0},
    {"aten.sigmoid.default", unary, OP_sigmoid, 0},
    {"aten.silu.default", unary, OP_silu, 0},
    {"aten.relu.default", unary, OP_relu, 0},
    {"aten.gelu.default", gelu, 0, 0},
    {"aten.softplus.default", softplus, 0, 0},
    {"aten.clamp.default", clamp, 0, 0},
    {"aten.clamp.Tensor", clamp, 0, 0},
    {"aten.clamp_min.default", clamp, 0, 0},
    {"aten.clamp_max.default", clamp, 0, 0},
    {"aten.where.self", where, 0, 0},
    {"aten.where.ScalarOther", where, 0, 0},
    {"aten.where.ScalarSelf", where, 0, 0},
    {"aten.where.Scalar", where, 0, 0},
    {"aten.masked_fill.Scalar", masked_fill, 0, 0},
    {"aten.masked_fill.Tensor", masked_fill, 0, 0},
    {"aten.sum.default", sum, 0, 0},
    {"aten.sum.dim_IntList", sum, 0, 0},
    {"aten.mean.default", sum, 1, 0},
    {"aten.mean.dim", sum, 1, 0},
    {"aten.amax.default", extremum, 0, 0},
    {"aten.amin.default", extremum, 1, 0},
    {"aten.max.default", extremum, 0, 0},
    {"aten.any.default", any_all, 0, 0},
    {"aten.any.dim", any_all, 0, 0},
    {"aten.all.default", any_all, 1, 0},
    {"aten.all.dim", any_all, 1, 0},
    {"aten.cumsum.default", cumsum, 0, 0},
    {"aten.softmax.int", softmax, 0, 0},
    {"aten._softmax.default", softmax, 0, 0},
    {"aten.log_softmax.int", softmax, 1, 0},
    {"aten._log_softmax.default", softmax, 1, 0},
    {"aten.logsumexp.default", logsumexp, 0, 0},
    {"aten.diff.default", diff, 0, 0},
    {"aten.matmul.default", matmul, 0, 0},
    {"aten.mm.default", matmul, 1, 0},
    {"aten.bmm.default", matmul, 1, 0},
    {"aten.linear.default", linear, 0, 0},
    {"aten.addmm.default", addmm, 0, 0},
    {"aten.baddbmm.default", addmm, 1, 0},
    {"aten.outer.default", outer, 0, 0},
    {"aten.einsum.default", einsum, 0, 0},
    {"aten.linalg_vector_norm.default", vector_norm, 0, 0},
    {"aten.norm.ScalarOpt_dim", vector_norm, 0, 0},
    {"aten.square.default", square, 0, 0},
    {"aten.sym_size.int", sym_size, 0, ROW_SIZE},
    {"aten.sym_numel.default", sym_size, 1, ROW_SIZE},
    {"_operator.add", size_arithmetic, '+', ROW_SIZE},
    {"_operator.sub", size_arithmetic, '-', ROW_SIZE},
    {"_operator.mul", size_arithmetic, '*', ROW_SIZE},
    {"_operator.floordiv", size_arithmetic, '/', ROW_SIZE},
    {"_operator.mod", size_arithmetic, '%', ROW_SIZE},
    {"_operator.neg", size_arithmetic, 'n', ROW_SIZE},
    {"math.trunc", size_arithmetic, 'i', ROW_SIZE},
    {"torch.sym_int", size_arithmetic, 'i', ROW_SIZE},
    {"torch.sym_max", size_arithmetic, 'M', ROW_SIZE},
    {"torch.sym_min", size_arithmetic, 'm', ROW_SIZE},
    {NULL, NULL, 0, 0},
};
