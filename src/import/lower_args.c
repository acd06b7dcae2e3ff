/* lower_args.c - arguments of an ATen node: by name, with defaults, and with PyTorch's type promotion. */
#include "import/lower.h"

/* No tensor that fits a machine has a larger extent; keeps products of sizes inside 64 bits. */
#define MAX_EXTENT ((int64_t)1 << 40)

void lo_fail(lower *L, const char *fmt, ...) {
    if (L->failed) return;
    L->failed = true;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set("%s", text);
}

const pt2_arg *lo_arg(lower *L, const char *name) {
    const pt2_arg *a = pt2_find_arg(L->n, name);
    return a && a->kind != PT2_NONE ? a : NULL;
}

static ir_val tensor_named(lower *L, const char *name) {
    const lo_value *v = lo_find(L, name);
    if (v && v->kind == LO_TENSOR && v->complex && L->part == LO_WHOLE) {
        lo_fail(L, "it takes the complex tensor %s", name);
        return -1;
    }
    if (v && v->kind == LO_TENSOR) return v->complex && L->part == LO_IMAGINARY ? v->im : v->v;
    lo_fail(L, "it reads the value %s, which nothing has made", name);
    return -1;
}

ir_val lo_tensor(lower *L, const char *name) {
    const pt2_arg *a = lo_arg(L, name);
    if (a && a->kind == PT2_TENSOR) return tensor_named(L, a->name);
    lo_fail(L, "its argument %s is not a tensor", name);
    return -1;
}

ir_val lo_optional_tensor(lower *L, const char *name) { return lo_arg(L, name) ? lo_tensor(L, name) : -1; }

int lo_tensors(lower *L, const char *name, int max, ir_val *out) {
    const pt2_arg *a = lo_arg(L, name);
    if (!a || a->kind != PT2_TENSORS || a->n > max) {
        lo_fail(L, "its argument %s is not a list of at most %d tensors", name, max);
        return 0;
    }
    for (int i = 0; i < a->n; i++) out[i] = a->names[i] ? tensor_named(L, a->names[i]) : -1;
    return a->n;
}

/* ---- sizes ---------------------------------------------------------------------------------------------- */

static ir_dim size_of_int(lower *L, int64_t v) {
    if (v > MAX_EXTENT || v < -MAX_EXTENT) {
        lo_fail(L, "the size %lld is out of range", (long long)v);
        return 1;
    }
    return dim_const(L->g, v);
}

/* A size expression of the file over B and S; false when it has an unknown symbol or function. */
static bool dim_of_expr(lower *L, const sym_expr *e, ir_dim *out) {
    ir_graph *g = L->g;
    if (e->op == SYM_INT) {
        if (e->value > MAX_EXTENT || e->value < -MAX_EXTENT) return false;
        *out = dim_const(g, e->value);
        return true;
    }
    if (e->op == SYM_SYMBOL) {
        for (int i = 0; i < L->symbols.n; i++)
            if (!strcmp(L->symbols.data[i].name, e->name)) {
                *out = L->symbols.data[i].d;
                return true;
            }
        return false;
    }
    ir_dim acc = 0, x;
    for (int i = 0; i < e->n; i++) {
        if (!dim_of_expr(L, e->arg[i], &x)) return false;
        if (i == 0) {
            acc = x;
            continue;
        }
        int64_t y;
        switch (e->op) {
        case SYM_ADD:
            acc = dim_add(g, acc, x);
            break;
        case SYM_MUL:
            acc = dim_mul(g, acc, x);
            break;
        case SYM_FLOORDIV:
            acc = dim_floordiv(g, acc, x);
            break;
        case SYM_MOD:
            acc = dim_mod(g, acc, x);
            break;
        case SYM_MAX:
            acc = dim_max(g, acc, x);
            break;
        case SYM_MIN:
            acc = dim_min(g, acc, x);
            break;
        case SYM_CEILDIV: /* -((-a) // b) */
            acc = dim_mul(g, dim_floordiv(g, dim_mul(g, acc, dim_const(g, -1)), x), dim_const(g, -1));
            break;
        case SYM_POW: {
            if (!dim_value(g, x, &y) || y < 1 || y > 4) return false;
            ir_dim base = acc;
            for (; y > 1; y--) acc = dim_mul(g, acc, base);
            break;
        }
        default:
            return false;
        }
    }
    *out = acc;
    return e->op != SYM_OTHER;
}

static ir_dim size_named(lower *L, const char *name) {
    const lo_value *v = lo_find(L, name);
    if (v && v->kind == LO_SIZE) return v->d;
    int64_t i;
    ir_dim d;
    const pt2_graph *pg = L->scope->pg;
    if (strmap_get(pg->sym_index, name, &i) && dim_of_expr(L, pg->syms[i].expr, &d)) return d;
    lo_fail(L, "it reads the size %s, which is not a function of the batch and sequence lengths", name);
    return 1;
}

ir_dim lo_size(lower *L, const pt2_arg *arg) {
    if (arg && arg->kind == PT2_INT) return size_of_int(L, arg->i);
    if (arg && arg->kind == PT2_SYM_INT) return size_named(L, arg->name);
    lo_fail(L, "an argument is not a size");
    return 1;
}

ir_dim lo_list_size(lower *L, const pt2_arg *arg, int i) {
    return arg->syms[i].name ? size_named(L, arg->syms[i].name) : size_of_int(L, arg->syms[i].value);
}

int lo_sizes(lower *L, const char *name, int max, ir_dim *out) {
    const pt2_arg *a = pt2_find_arg(L->n, name);
    if (a && (a->kind == PT2_INT || a->kind == PT2_SYM_INT) && max > 0) { /* int[1] given as one number */
        out[0] = lo_size(L, a);
        return 1;
    }
    if (!a || (a->kind != PT2_INTS && a->kind != PT2_SYM_INTS) || a->n > max) {
        lo_fail(L, "its argument %s is not a list of at most %d sizes", name, max);
        return 0;
    }
    for (int i = 0; i < a->n; i++) out[i] = lo_list_size(L, a, i);
    return a->n;
}

int lo_ints(lower *L, const char *name, int max, int64_t *out) {
    ir_dim d[64];
    int n = lo_sizes(L, name, max < 64 ? max : 64, d);
    for (int i = 0; i < n; i++)
        if (!dim_value(L->g, d[i], &out[i])) {
            lo_fail(L, "its argument %s must be constant", name);
            return 0;
        }
    return n;
}

bool lo_declared_size(lower *L, int result, int d, ir_dim *out) {
    const pt2_node *n = L->n;
    int64_t i;
    if (result >= n->n_out || n->out[result].kind != PT2_TENSOR) return false;
    if (!strmap_get(L->scope->pg->meta_index, n->out[result].name, &i)) return false;
    const pt2_meta *m = &L->scope->pg->metas[i];
    return d < m->ndim && dim_of_expr(L, m->size[d], out);
}

/* ---- numbers ---------------------------------------------------------------------------------------------- */

int64_t lo_int(lower *L, const char *name, int64_t absent) {
    const pt2_arg *a = lo_arg(L, name);
    if (!a) return absent;
    if (a->kind == PT2_INT || a->kind == PT2_BOOL) return a->i;
    int64_t v;
    if (a->kind == PT2_SYM_INT && dim_value(L->g, size_named(L, a->name), &v)) return v;
    lo_fail(L, "its argument %s must be a constant integer", name);
    return absent;
}

double lo_float(lower *L, const char *name, double absent) {
    const pt2_arg *a = lo_arg(L, name);
    if (!a) return absent;
    if (a->kind == PT2_FLOAT) return a->f;
    return (double)lo_int(L, name, 0);
}

bool lo_bool(lower *L, const char *name, bool absent) { return lo_int(L, name, absent) != 0; }

const char *lo_string(lower *L, const char *name, const char *absent) {
    const pt2_arg *a = lo_arg(L, name);
    if (!a) return absent;
    if (a->kind == PT2_STRING) return a->name;
    lo_fail(L, "its argument %s is not text", name);
    return absent;
}

dtype lo_scalar_type(lower *L, int scalar_type) {
    dtype t;
    if (scalar_type >= 1 && scalar_type <= 5) return DT_I64;
    if (L->part != LO_WHOLE && scalar_type == PT2_COMPLEX64) return DT_F32; /* of a part */
    if (L->part != LO_WHOLE && scalar_type == PT2_COMPLEX128) return DT_F64;
    if (pt2_dtype(scalar_type, &t) && t != DT_F16) return t;
    lo_fail(L, "it computes in %s; export the model in float32 or bfloat16", pt2_dtype_name(scalar_type));
    return DT_F32;
}

bool lo_dtype(lower *L, const char *name, dtype *out) {
    const pt2_arg *a = lo_arg(L, name);
    if (!a) return false;
    if (a->kind == PT2_DTYPE || a->kind == PT2_INT)
        *out = lo_scalar_type(L, (int)a->i);
    else
        lo_fail(L, "its argument %s is not an element type", name);
    return true;
}

int lo_axis(lower *L, int64_t i, int rank) {
    if (i >= -rank && i < rank) return (int)(i < 0 ? i + rank : i);
    /* PyTorch lets dimensions 0 and -1 of a scalar pass */
    if (!(rank == 0 && (i == 0 || i == -1))) lo_fail(L, "dimension %lld of a tensor of rank %d", (long long)i, rank);
    return 0;
}

/* ---- promotion ------------------------------------------------------------------------------------------------ */

static int category_of(dtype t) { return dtype_is_float(t) ? 2 : t == DT_BOOL ? 0 : 1; }

lo_operand lo_get_operand(lower *L, const char *name) {
    lo_operand o = {.v = -1};
    const pt2_arg *a = lo_arg(L, name);
    if (a && a->kind == PT2_TENSOR) {
        o.v = tensor_named(L, a->name);
        o.category = category_of(lo_type(L, o.v)->t);
    } else if (a && a->kind == PT2_SYM_INT) {
        o.size = size_named(L, a->name);
        int64_t v;
        if (dim_value(L->g, o.size, &v)) o.num = (double)v, o.size = 0;
        o.category = 1;
    } else if (a && (a->kind == PT2_INT || a->kind == PT2_BOOL)) {
        o.num = (double)a->i, o.category = a->kind == PT2_INT;
    } else if (a && a->kind == PT2_FLOAT) {
        o.num = a->f, o.category = 2;
    } else {
        lo_fail(L, "its argument %s is neither tensor nor number", name);
    }
    return o;
}

static dtype wider(dtype a, dtype b) {
    if (category_of(a) != category_of(b)) return category_of(a) > category_of(b) ? a : b;
    if (a == b || !dtype_is_float(a)) return a;
    return a == DT_F64 || b == DT_F64 ? DT_F64 : DT_F32; /* bf16 with f32 */
}

dtype lo_result_type(lower *L, const lo_operand *o, int n) {
    /* by priority: tensors with dimensions, rank-0 tensors, numbers */
    bool have[3] = {false};
    dtype best[3] = {DT_BOOL, DT_BOOL, DT_BOOL};
    static const dtype of_number[3] = {DT_BOOL, DT_I64, DT_F32};
    for (int i = 0; i < n; i++) {
        int p = o[i].v < 0 ? 2 : lo_type(L, o[i].v)->rank == 0;
        dtype t = o[i].v < 0 ? of_number[o[i].category] : lo_type(L, o[i].v)->t;
        best[p] = have[p] ? wider(best[p], t) : t;
        have[p] = true;
    }
    dtype t = DT_BOOL;
    bool any = false;
    for (int p = 0; p < 3; p++) {
        if (!have[p]) continue;
        if (!any || category_of(best[p]) > category_of(t)) t = best[p];
        any = true;
    }
    return t;
}

ir_val lo_as_tensor(lower *L, const lo_operand *o, dtype t) {
    if (o->v >= 0) return lo_cast(L, o->v, t);
    return o->size ? lo_size_value(L, t, o->size) : lo_number(L, t, o->num);
}
