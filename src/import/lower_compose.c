/* lower_compose.c - operators that are a few others: activations, statistics, rearrangements, small losses. Each
 * function states PyTorch's definition; gradients follow from those of the parts. */
#include "import/lower.h"

#include <math.h>

static ir_val un(lower *L, ir_op op, ir_val x) { return lo_op1(L, op, x, NO_ATTRS); }
static ir_val num(lower *L, ir_op op, ir_val x, double v) { return lo_with_number(L, op, x, v); }
static ir_val two(lower *L, ir_op op, ir_val x, ir_val y) { return lo_binary(L, op, x, y); }
static ir_val constant(lower *L, ir_val like, double v) { return lo_number(L, lo_type(L, like)->t, v); }
static ir_val clip(lower *L, ir_val x, double lo, double hi) { return num(L, OP_min, num(L, OP_max, x, lo), hi); }

static ir_val float_self(lower *L) {
    ir_val x = lo_tensor(L, "self");
    return dtype_is_float(lo_type(L, x)->t) ? x : lo_cast(L, x, DT_F32);
}

/* log(1 + exp(x)) without overflow */
static ir_val softplus(lower *L, ir_val x) {
    ir_val e = un(L, OP_exp, un(L, OP_neg, un(L, OP_abs, x)));
    return two(L, OP_add, un(L, OP_relu, x), un(L, OP_log, num(L, OP_add, e, 1)));
}

/* scale * (x where it is positive, else alpha (exp(k x) - 1)); the exponential sees no positive number */
static ir_val elu(lower *L, ir_val x, double alpha, double scale, double k) {
    ir_val e = un(L, OP_exp, num(L, OP_mul, num(L, OP_min, x, 0), k));
    e = num(L, OP_mul, num(L, OP_sub, e, 1), alpha * scale);
    return lo_select(L, num(L, OP_gt, x, 0), scale == 1 ? x : num(L, OP_mul, x, scale), e);
}

enum {
    MISH,
    LEAKY_RELU,
    ELU,
    SELU,
    CELU,
    HARDSWISH,
    HARDSIGMOID,
    HARDTANH,
    RELU6,
    LOG_SIGMOID,
    LOG1P,
    EXPM1,
    EXP2,
    LOG2,
    LOG10,
    TAN,
    SINH,
    COSH,
    ERFC,
    SIGN,
    FLOOR,
    CEIL,
    TRUNC,
    ISNAN,
    ISINF,
    ISFINITE
};

static void activation(lower *L, const lo_row *row) {
    ir_val x = float_self(L), y = -1;
    switch (row->arg) {
    case MISH:
        y = two(L, OP_mul, x, un(L, OP_tanh, softplus(L, x)));
        break;
    case LEAKY_RELU:
        y = lo_select(L, num(L, OP_gt, x, 0), x, num(L, OP_mul, x, lo_float(L, "negative_slope", 0.01)));
        break;
    case ELU:
        y = elu(L, x, lo_float(L, "alpha", 1), lo_float(L, "scale", 1), lo_float(L, "input_scale", 1));
        break;
    case SELU:
        y = elu(L, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1);
        break;
    case CELU: {
        double alpha = lo_float(L, "alpha", 1);
        if (alpha == 0) return lo_fail(L, "celu with alpha 0");
        y = elu(L, x, alpha, 1, 1 / alpha);
        break;
    }
    case HARDSWISH:
        y = num(L, OP_div, two(L, OP_mul, x, clip(L, num(L, OP_add, x, 3), 0, 6)), 6);
        break;
    case HARDSIGMOID:
        y = num(L, OP_div, clip(L, num(L, OP_add, x, 3), 0, 6), 6);
        break;
    case HARDTANH:
        y = clip(L, x, lo_float(L, "min_val", -1), lo_float(L, "max_val", 1));
        break;
    case RELU6:
        y = clip(L, x, 0, 6);
        break;
    case LOG_SIGMOID:
        y = un(L, OP_neg, softplus(L, un(L, OP_neg, x)));
        break;
    case LOG1P:
        y = un(L, OP_log, num(L, OP_add, x, 1));
        break;
    case EXPM1:
        y = num(L, OP_sub, un(L, OP_exp, x), 1);
        break;
    case EXP2:
        y = un(L, OP_exp, num(L, OP_mul, x, M_LN2));
        break;
    case LOG2:
        y = num(L, OP_mul, un(L, OP_log, x), 1 / M_LN2);
        break;
    case LOG10:
        y = num(L, OP_mul, un(L, OP_log, x), 1 / M_LN10);
        break;
    case TAN:
        y = two(L, OP_div, un(L, OP_sin, x), un(L, OP_cos, x));
        break;
    case SINH:
    case COSH:
        y = two(L, row->arg == SINH ? OP_sub : OP_add, un(L, OP_exp, x), un(L, OP_exp, un(L, OP_neg, x)));
        y = num(L, OP_mul, y, 0.5);
        break;
    case ERFC:
        y = two(L, OP_sub, constant(L, x, 1), un(L, OP_erf, x));
        break;
    /* steps: no gradient */
    case SIGN:
        x = lo_stop_grad(L, x);
        y = two(L, OP_sub, lo_cast(L, num(L, OP_gt, x, 0), lo_type(L, x)->t),
                lo_cast(L, num(L, OP_lt, x, 0), lo_type(L, x)->t));
        break;
    case FLOOR:
    case CEIL:
    case TRUNC: {
        x = lo_stop_grad(L, x);
        ir_val below = num(L, OP_floordiv, x, 1), above = un(L, OP_neg, num(L, OP_floordiv, un(L, OP_neg, x), 1));
        y = row->arg == FLOOR ? below : row->arg == CEIL ? above : lo_select(L, num(L, OP_lt, x, 0), above, below);
        break;
    }
    case ISNAN:
        y = two(L, OP_ne, x, x);
        break;
    case ISINF:
        y = num(L, OP_eq, un(L, OP_abs, x), INFINITY);
        break;
    case ISFINITE:
        y = num(L, OP_lt, un(L, OP_abs, x), INFINITY);
        break;
    default:
        break;
    }
    lo_return(L, 0, y);
}

static void nan_to_num(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const double most = lo_type(L, x)->t == DT_F64 ? 0x1.fffffffffffffp1023 : 0x1.fffffep127;
    ir_val y = lo_select(L, two(L, OP_ne, x, x), constant(L, x, lo_float(L, "nan", 0)), x);
    y = lo_select(L, num(L, OP_eq, x, INFINITY), constant(L, x, lo_float(L, "posinf", most)), y);
    lo_return(L, 0, lo_select(L, num(L, OP_eq, x, -INFINITY), constant(L, x, lo_float(L, "neginf", -most)), y));
}

/* prelu(self, weight): one weight, or one for each index of dimension 1. _prelu_kernel: a weight that broadcasts */
static void prelu(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self"), w = lo_tensor(L, "weight");
    const ir_type t = *lo_type(L, x), tw = *lo_type(L, w);
    ir_dim size[IR_MAX_RANK];
    for (int d = 0; d < t.rank; d++) size[d] = d == 1 && tw.rank && tw.dim[0] != 1 ? tw.dim[0] : 1;
    if (L->failed || (tw.rank > 1 && !row->arg)) return lo_fail(L, "prelu with weights of rank %d", tw.rank);
    if (!row->arg) w = lo_reshape(L, w, t.rank, size);
    lo_return(L, 0, lo_select(L, num(L, OP_gt, x, 0), x, two(L, OP_mul, x, w)));
}

/* a * sigmoid(b) for the halves a, b */
static void glu(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    const ir_type t = *lo_type(L, x);
    int64_t n;
    int d = lo_axis(L, lo_int(L, "dim", -1), t.rank);
    if (L->failed || !dim_value(L->g, t.dim[d], &n) || n % 2) return lo_fail(L, "glu of an odd or symbolic extent");
    ir_dim half = dim_const(L->g, n / 2);
    ir_val a = lo_slice(L, x, d, 0, half, 1), b = lo_slice(L, x, d, half, t.dim[d], 1);
    lo_return(L, 0, two(L, OP_mul, a, un(L, OP_sigmoid, b)));
}

/* ---- statistics ---------------------------------------------------------------------------------------------- */

static int dims_of(lower *L, ir_val x, int *dims) {
    int rank = lo_type(L, x)->rank, n = 0;
    int64_t list[IR_MAX_RANK];
    if (lo_arg(L, "dim")) n = lo_ints(L, "dim", IR_MAX_RANK, list);
    unsigned seen = 0;
    for (int i = 0; i < n; i++) seen |= 1u << lo_axis(L, list[i], rank);
    bool all = n == 0;
    n = 0;
    for (int d = 0; d < rank; d++)
        if (all || seen & 1u << d) dims[n++] = d;
    return n;
}

/* var, std, var_mean, std_mean: sum((x - mean)^2) / max(n - correction, 0) */
static void variance(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    int dims[IR_MAX_RANK], n = dims_of(L, x, dims);
    const ir_type t = *lo_type(L, x);
    if (L->failed || !dtype_is_float(t.t)) return lo_fail(L, "a variance of integers");
    ir_dim count = 1;
    for (int i = 0; i < n; i++) count = dim_mul(L->g, count, t.dim[dims[i]]);
    double correction = lo_bool(L, "unbiased", true) ? lo_float(L, "correction", 1) : 0;
    ir_val size = lo_size_value(L, t.t, count);
    ir_val mean = two(L, OP_div, lo_sum(L, x, n, dims, true), size), off = two(L, OP_sub, x, mean);
    ir_val v = lo_sum(L, two(L, OP_mul, off, off), n, dims, lo_bool(L, "keepdim", false));
    v = two(L, OP_div, v, correction == 0 ? size : num(L, OP_max, num(L, OP_sub, size, correction), 0));
    if (row->arg & 1) v = un(L, OP_sqrt, v);
    lo_return(L, 0, v);
    if (!(row->arg & 2) || L->failed) return;
    const ir_type tv = *lo_type(L, v);
    lo_return(L, 1, lo_reshape(L, mean, tv.rank, tv.dim));
}

/* The values of max(x, dim) and min(x, dim); their indices are not supported. */
static void extreme(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self");
    int d = lo_axis(L, lo_int(L, "dim", 0), lo_type(L, x)->rank);
    if (L->failed) return;
    if (row->arg) x = un(L, OP_neg, x);
    x = lo_rmax(L, x, 1, &d, lo_bool(L, "keepdim", false));
    lo_return(L, 0, row->arg ? un(L, OP_neg, x) : x);
}

/* group_norm(input (N, C, ...), G): each row's C/G channels and all that follows, then a weight and bias a channel */
static void group_norm(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "input");
    const ir_type t = *lo_type(L, x);
    int64_t groups = lo_int(L, "num_groups", 1), channels;
    if (L->failed || t.rank < 2 || !dim_value(L->g, t.dim[1], &channels) || groups < 1 || channels % groups)
        return lo_fail(L, "group_norm of a tensor of rank %d with %lld groups", t.rank, (long long)groups);
    ir_dim width = dim_const(L->g, channels / groups), rows[3] = {t.dim[0], dim_const(L->g, groups), 0},
           each[IR_MAX_RANK];
    for (int d = 2; d < t.rank; d++) width = dim_mul(L->g, width, t.dim[d]);
    rows[2] = width;
    ir_val one = lo_fill(L, t.t, 1, 1, &width), zero = lo_fill(L, t.t, 0, 1, &width);
    ir_val in[3] = {lo_reshape(L, x, 3, rows), one, zero};
    ir_val y = lo_emit(L, OP_layernorm, in, 3, ATTRS(A_F("eps", lo_float(L, "eps", 1e-5))), NULL);
    y = lo_reshape(L, y, t.rank, t.dim);
    for (int d = 0; d < t.rank; d++) each[d] = d == 1 ? t.dim[1] : 1;
    ir_val w = lo_optional_tensor(L, "weight"), b = lo_optional_tensor(L, "bias");
    if (w >= 0) y = two(L, OP_mul, y, lo_reshape(L, w, t.rank, each));
    if (b >= 0) y = two(L, OP_add, y, lo_reshape(L, b, t.rank, each));
    lo_return(L, 0, y);
}

/* ---- arithmetic of three ------------------------------------------------------------------------------------- */

/* addcmul, addcdiv: self + value * tensor1 (op) tensor2 */
static void add_product(lower *L, const lo_row *row) {
    ir_val y = two(L, (ir_op)row->arg, lo_tensor(L, "tensor1"), lo_tensor(L, "tensor2"));
    double k = lo_float(L, "value", 1);
    if (k != 1) y = num(L, OP_mul, y, k);
    lo_return(L, 0, two(L, OP_add, lo_tensor(L, "self"), y));
}

/* self + weight * (end - self) */
static void lerp(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), off = two(L, OP_sub, lo_tensor(L, "end"), x);
    lo_operand w = lo_get_operand(L, "weight");
    lo_return(L, 0, two(L, OP_add, x, two(L, OP_mul, lo_as_tensor(L, &w, lo_type(L, x)->t), off)));
}

/* x xor y of bools */
static void exclusive_or(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self"), y = lo_tensor(L, "other");
    if (!L->failed && (lo_type(L, x)->t != DT_BOOL || lo_type(L, y)->t != DT_BOOL))
        return lo_fail(L, "xor is supported for bool only");
    lo_return(L, 0, two(L, OP_ne, lo_cast(L, x, DT_I64), lo_cast(L, y, DT_I64)));
}

/* Sums of products over the last dimension: dot and mv by 0, vecdot over `dim`. */
static void dot_product(lower *L, const lo_row *row) {
    bool vecdot = row->arg == 1;
    ir_val x = lo_tensor(L, vecdot ? "x" : "self");
    ir_val y = lo_tensor(L, vecdot ? "y" : row->arg == 2 ? "vec" : "tensor");
    x = two(L, OP_mul, x, y);
    int d = lo_axis(L, vecdot ? lo_int(L, "dim", -1) : -1, lo_type(L, x)->rank);
    lo_return(L, 0, L->failed ? -1 : lo_sum(L, x, 1, &d, false));
}

static ir_val norm_of(lower *L, ir_val x, int d) {
    return un(L, OP_sqrt, lo_sum(L, two(L, OP_mul, x, x), 1, &d, true));
}

/* sum(x y) / (max(|x|, eps) max(|y|, eps)) */
static void cosine_similarity(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "x1"), y = lo_tensor(L, "x2");
    double eps = lo_float(L, "eps", 1e-8);
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 1), t.rank);
    if (L->failed || lo_type(L, y)->rank != t.rank) return lo_fail(L, "cosine_similarity of different ranks");
    x = two(L, OP_div, x, num(L, OP_max, norm_of(L, x, d), eps));
    y = two(L, OP_div, y, num(L, OP_max, norm_of(L, y, d), eps));
    lo_return(L, 0, lo_sum(L, two(L, OP_mul, x, y), 1, &d, false));
}

/* ---- rearranging --------------------------------------------------------------------------------------------- */

/* roll(self, shifts, dims): the last elements come first */
static void roll(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int64_t by[IR_MAX_RANK], dims[IR_MAX_RANK], extent;
    int n = lo_ints(L, "shifts", IR_MAX_RANK, by), nd = lo_arg(L, "dims") ? lo_ints(L, "dims", IR_MAX_RANK, dims) : 0;
    if (n != nd || n == 0) return lo_fail(L, "roll without dimensions");
    for (int i = 0; i < n && !L->failed; i++) {
        const ir_type t = *lo_type(L, x);
        int d = lo_axis(L, dims[i], t.rank);
        int64_t k = by[i];
        if (L->failed) return;
        if (!dim_value(L->g, t.dim[d], &extent))
            return lo_fail(L, "roll along the sequence or the batch: its end comes first; use a slice and pad");
        k = extent ? ((k % extent) + extent) % extent : 0;
        if (k == 0) continue;
        ir_dim at = k > 0 ? dim_sub(L->g, t.dim[d], dim_const(L->g, k)) : dim_const(L->g, -k);
        ir_val part[2] = {lo_slice(L, x, d, at, t.dim[d], 1), lo_slice(L, x, d, 0, at, 1)};
        x = lo_emit(L, OP_concat, part, 2, ATTRS(A_I("dim", d)), NULL);
    }
    lo_return(L, 0, x);
}

/* flip: element i becomes element n-1-i */
static void flip(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int64_t dims[IR_MAX_RANK], extent;
    int n = lo_ints(L, "dims", IR_MAX_RANK, dims);
    for (int i = 0; i < n && !L->failed; i++) {
        ir_type t = *lo_type(L, x);
        int d = lo_axis(L, dims[i], t.rank);
        if (L->failed || !dim_value(L->g, t.dim[d], &extent)) return lo_fail(L, "flip of a symbolic extent");
        t.t = DT_I64;
        ir_val at = lo_emit(L, OP_iota, NULL, 0, ATTRS(A_I("dim", d)), &t);
        at = two(L, OP_sub, lo_number(L, DT_I64, (double)(extent - 1)), at);
        x = lo_op2(L, OP_gather, x, at, ATTRS(A_I("dim", d)));
    }
    lo_return(L, 0, x);
}

/* movedim(self, source, destination), one or several */
static void movedim(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    int rank = lo_type(L, x)->rank, perm[IR_MAX_RANK], k = 0;
    int64_t from[IR_MAX_RANK], to[IR_MAX_RANK];
    int n = lo_ints(L, "source", IR_MAX_RANK, from);
    if (n != lo_ints(L, "destination", IR_MAX_RANK, to))
        return lo_fail(L, "movedim of different numbers of dimensions");
    bool used[IR_MAX_RANK] = {false};
    for (int d = 0; d < rank; d++) perm[d] = -1;
    for (int i = 0; i < n && !L->failed; i++) {
        int a = lo_axis(L, from[i], rank), b = lo_axis(L, to[i], rank);
        if (L->failed || used[a] || perm[b] >= 0) return lo_fail(L, "movedim of one dimension twice");
        perm[b] = a;
        used[a] = true;
    }
    for (int d = 0; d < rank; d++) {
        if (perm[d] >= 0) continue;
        while (used[k]) k++;
        perm[d] = k++;
    }
    lo_return(L, 0, L->failed ? -1 : lo_permute(L, x, perm));
}

static void broadcast_to(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    ir_dim size[IR_MAX_RANK];
    int n = lo_sizes(L, "size", IR_MAX_RANK, size);
    lo_return(L, 0, lo_expand(L, x, n, size));
}

static ir_val iota(lower *L, ir_dim n) {
    ir_type type = {.t = DT_I64, .rank = 1, .dim = {n}};
    bool seq = n == L->seq;
    return lo_emit(L, OP_iota, NULL, 0, ATTRS(A_I("dim", 0), A_I("seq", seq)), &type);
}

/* eye(n): 1 on the diagonal */
static void eye(lower *L, const lo_row *row) {
    (void)row;
    ir_dim n = lo_size(L, lo_arg(L, "n")), m = lo_arg(L, "m") ? lo_size(L, lo_arg(L, "m")) : n, column[2] = {n, 1};
    dtype t = DT_F32;
    lo_dtype(L, "dtype", &t);
    if (L->failed) return;
    lo_return(L, 0, lo_cast(L, two(L, OP_eq, lo_reshape(L, iota(L, n), 2, column), iota(L, m)), t));
}

/* linspace(start, end, steps) */
static void linspace(lower *L, const lo_row *row) {
    (void)row;
    ir_dim n = lo_size(L, lo_arg(L, "steps"));
    double a = lo_float(L, "start", 0), b = lo_float(L, "end", 0);
    int64_t steps;
    dtype t = DT_F32;
    lo_dtype(L, "dtype", &t);
    if (L->failed || !dim_value(L->g, n, &steps) || steps < 1) return lo_fail(L, "linspace of a symbolic size");
    ir_val x = lo_cast(L, iota(L, n), t);
    lo_return(L, 0, num(L, OP_add, num(L, OP_mul, x, steps > 1 ? (b - a) / (double)(steps - 1) : 0), a));
}

/* slice_scatter(self, src, dim, start, end): self with that slice replaced; select_scatter: with one index */
static void scatter_part(lower *L, const lo_row *row) {
    ir_val x = lo_tensor(L, "self"), y = lo_tensor(L, "src");
    const ir_type t = *lo_type(L, x);
    int d = lo_axis(L, lo_int(L, "dim", 0), t.rank), n = 0;
    int64_t extent, a, b;
    if (L->failed || !dim_value(L->g, t.dim[d], &extent)) return lo_fail(L, "a slice of a symbolic extent is replaced");
    if (lo_int(L, "step", 1) != 1) return lo_fail(L, "a slice with a step is replaced");
    a = lo_int(L, row->arg ? "index" : "start", 0);
    if (a < 0) a += extent;
    b = row->arg ? a + 1 : min64(lo_int(L, "end", extent), extent);
    if (b < 0) b += extent;
    if (L->failed || a < 0 || b > extent || a >= b) return lo_fail(L, "a slice outside of the tensor is replaced");
    ir_type part = t;
    part.dim[d] = dim_const(L->g, b - a);
    ir_val in[3];
    if (a > 0) in[n++] = lo_slice(L, x, d, 0, dim_const(L->g, a), 1);
    in[n++] = lo_reshape(L, lo_cast(L, y, t.t), t.rank, part.dim);
    if (b < extent) in[n++] = lo_slice(L, x, d, dim_const(L->g, b), t.dim[d], 1);
    lo_return(L, 0, n == 1 ? in[0] : lo_emit(L, OP_concat, in, n, ATTRS(A_I("dim", d)), NULL));
}

const lo_row lower_compose[] = {
    {"aten.mish.default", activation, MISH, 0},
    {"aten.leaky_relu.default", activation, LEAKY_RELU, 0},
    {"aten.elu.default", activation, ELU, 0},
    {"aten.selu.default", activation, SELU, 0},
    {"aten.celu.default", activation, CELU, 0},
    {"aten.hardswish.default", activation, HARDSWISH, 0},
    {"aten.hardsigmoid.default", activation, HARDSIGMOID, 0},
    {"aten.hardtanh.default", activation, HARDTANH, 0},
    {"aten.relu6.default", activation, RELU6, 0},
    {"aten.log_sigmoid.default", activation, LOG_SIGMOID, 0},
    {"aten.log1p.default", activation, LOG1P, 0},
    {"aten.expm1.default", activation, EXPM1, 0},
    {"aten.exp2.default", activation, EXP2, 0},
    {"aten.log2.default", activation, LOG2, 0},
    {"aten.log10.default", activation, LOG10, 0},
    {"aten.tan.default", activation, TAN, 0},
    {"aten.sinh.default", activation, SINH, 0},
    {"aten.cosh.default", activation, COSH, 0},
    {"aten.erfc.default", activation, ERFC, 0},
    {"aten.sign.default", activation, SIGN, 0},
    {"aten.sgn.default", activation, SIGN, 0},
    {"aten.floor.default", activation, FLOOR, 0},
    {"aten.ceil.default", activation, CEIL, 0},
    {"aten.trunc.default", activation, TRUNC, 0},
    {"aten.isnan.default", activation, ISNAN, 0},
    {"aten.isinf.default", activation, ISINF, 0},
    {"aten.isfinite.default", activation, ISFINITE, 0},
    {"aten.nan_to_num.default", nan_to_num, 0, 0},
    {"aten.prelu.default", prelu, 0, 0},
    {"aten._prelu_kernel.default", prelu, 1, 0},
    {"aten.glu.default", glu, 0, 0},
    {"aten.var.dim", variance, 0, 0},
    {"aten.var.correction", variance, 0, 0},
    {"aten.var.default", variance, 0, 0},
    {"aten.std.dim", variance, 1, 0},
    {"aten.std.correction", variance, 1, 0},
    {"aten.std.default", variance, 1, 0},
    {"aten.var_mean.dim", variance, 2, 0},
    {"aten.var_mean.correction", variance, 2, 0},
    {"aten.std_mean.dim", variance, 3, 0},
    {"aten.std_mean.correction", variance, 3, 0},
    {"aten.max.dim", extreme, 0, 0},
    {"aten.min.dim", extreme, 1, 0},
    {"aten.group_norm.default", group_norm, 0, 0},
    {"aten.addcmul.default", add_product, OP_mul, 0},
    {"aten.addcdiv.default", add_product, OP_div, 0},
    {"aten.lerp.Scalar", lerp, 0, 0},
    {"aten.lerp.Tensor", lerp, 0, 0},
    {"aten.__xor__.Tensor", exclusive_or, 0, 0},
    {"aten.bitwise_xor.Tensor", exclusive_or, 0, 0},
    {"aten.logical_xor.default", exclusive_or, 0, 0},
    {"aten.dot.default", dot_product, 0, 0},
    {"aten.mv.default", dot_product, 2, 0},
    {"aten.linalg_vecdot.default", dot_product, 1, 0},
    {"aten.cosine_similarity.default", cosine_similarity, 0, 0},
    {"aten.roll.default", roll, 0, 0},
    {"aten.flip.default", flip, 0, 0},
    {"aten.movedim.int", movedim, 0, 0},
    {"aten.movedim.intlist", movedim, 0, 0},
    {"aten.broadcast_to.default", broadcast_to, 0, 0},
    {"aten.eye.default", eye, 0, 0},
    {"aten.eye.m", eye, 0, 0},
    {"aten.linspace.default", linspace, 0, 0},
    {"aten.slice_scatter.default", scatter_part, 0, 0},
    {"aten.select_scatter.default", scatter_part, 1, 0},
    {NULL, NULL, 0, 0},
};
