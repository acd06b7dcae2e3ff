/* dim.c - symbolic dimensions: hash-consed integer expressions over the symbols B, S, ...
 *
 * Sums are kept as expr + constant with the constant last and operands in a fixed order, so that expressions that
 * importers write differently (S+1-1, -1+S+1, S) become one number and can be compared as numbers. Everything else
 * is folded only where both operands are constants or an identity applies: after `bind` there is nothing left.
 * Sizes come from files: what would overflow is not folded, and dim_eval says so.
 */
#include "ir/ir.h"

static ir_dim intern(ir_graph *g, dim_expr e) {
    for (int i = 0; i < g->exprs.n; i++) {
        const dim_expr *x = &g->exprs.data[i];
        if (x->kind == e.kind && x->a == e.a && x->b == e.b && x->value == e.value &&
            (e.kind != DIM_SYMBOL || strcmp(x->name, e.name) == 0))
            return -(ir_dim)i - 1;
    }
    vec_push(g->a, &g->exprs, e);
    return -(ir_dim)g->exprs.n;
}

static const dim_expr *expr_of(const ir_graph *g, ir_dim d) {
    ASSERT(d < 0 && -d <= g->exprs.n);
    return &g->exprs.data[-d - 1];
}

ir_dim dim_const(ir_graph *g, int64_t v) { return v >= 0 ? v : intern(g, (dim_expr){.kind = DIM_CONST, .value = v}); }

ir_dim dim_symbol(ir_graph *g, const char *name) {
    return intern(g, (dim_expr){.kind = DIM_SYMBOL, .name = arena_strdup(g->a, name)});
}

bool dim_value(const ir_graph *g, ir_dim d, int64_t *v) {
    if (d >= 0) {
        *v = d;
        return true;
    }
    const dim_expr *e = expr_of(g, d);
    if (e->kind != DIM_CONST) return false;
    *v = e->value;
    return true;
}

/* Python's // and %; false where they are not defined or leave 64 bits. */
static bool floor_div(int64_t a, int64_t b, int64_t *out) {
    if (b == 0 || (a == INT64_MIN && b == -1)) return false;
    *out = a / b - (a % b != 0 && (a < 0) != (b < 0));
    return true;
}
static bool floor_mod(int64_t a, int64_t b, int64_t *out) {
    if (b == 0 || (a == INT64_MIN && b == -1)) return false;
    *out = a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0);
    return true;
}

/* d = *base + *c; base is 0 when d is a number. */
static void split_sum(const ir_graph *g, ir_dim d, ir_dim *base, int64_t *c) {
    *c = 0;
    *base = 0;
    if (dim_value(g, d, c)) return;
    *base = d;
    const dim_expr *e = expr_of(g, d);
    if (e->kind == DIM_ADD && dim_value(g, e->b, c)) *base = e->a;
}

/* d = *c * *base */
static void split_product(const ir_graph *g, ir_dim d, ir_dim *base, int64_t *c) {
    *c = 1;
    *base = d;
    if (d >= 0) return;
    const dim_expr *e = expr_of(g, d);
    if (e->kind == DIM_MUL && dim_value(g, e->b, c)) *base = e->a;
}

/* What [y:] and [:-y] leave, and what they and [:y] are together, if that is what a + b is:
 *     a - min(a, y) = max(a - y, 0)          min(a, y) + max(a - y, 0) = a */
static bool cut_off(ir_graph *g, ir_dim a, ir_dim b, ir_dim *out) {
    ir_dim m;
    int64_t c;
    split_product(g, b, &m, &c);
    if (m >= 0 || (c != -1 && c != 1)) return false;
    dim_expr e = *expr_of(g, m);
    if (e.kind != DIM_MIN) return false;
    for (int i = 0; i < 2; i++) {
        ir_dim x = i ? e.b : e.a, y = i ? e.a : e.b, rest = dim_max(g, dim_sub(g, x, y), 0);
        if (a == (c < 0 ? x : rest)) {
            *out = c < 0 ? rest : x;
            return true;
        }
    }
    return false;
}

ir_dim dim_add(ir_graph *g, ir_dim a, ir_dim b) {
    ir_dim x, y;
    int64_t cx, cy;
    if (cut_off(g, a, b, &x) || cut_off(g, b, a, &x)) return x;
    split_sum(g, a, &x, &cx);
    split_sum(g, b, &y, &cy);
    int64_t c, sum;
    if (__builtin_add_overflow(cx, cy, &c)) return intern(g, (dim_expr){.kind = DIM_ADD, .a = a, .b = b});
    ir_dim base;
    if (!x || !y) {
        base = x ? x : y;
    } else {
        ir_dim p, q;
        int64_t cp, cq;
        split_product(g, x, &p, &cp);
        split_product(g, y, &q, &cq);
        if (p == q && !__builtin_add_overflow(cp, cq, &sum)) { /* 2S + (-1)S = S */
            base = sum ? dim_mul(g, p, dim_const(g, sum)) : 0;
        } else {
            if (x < y) { /* a fixed order */
                ir_dim t = x;
                x = y;
                y = t;
            }
            base = intern(g, (dim_expr){.kind = DIM_ADD, .a = x, .b = y});
        }
    }
    if (!base) return dim_const(g, c);
    if (!c) return base;
    return intern(g, (dim_expr){.kind = DIM_ADD, .a = base, .b = dim_const(g, c)});
}

ir_dim dim_mul(ir_graph *g, ir_dim a, ir_dim b) {
    int64_t x, y, r;
    bool cx = dim_value(g, a, &x), cy = dim_value(g, b, &y);
    if (cx && cy) {
        if (__builtin_mul_overflow(x, y, &r)) return intern(g, (dim_expr){.kind = DIM_MUL, .a = a, .b = b});
        return dim_const(g, r);
    }
    if (cx) {
        ir_dim t = a;
        a = b;
        b = t;
        y = x;
        cy = true;
    }
    if (cy) {
        if (y == 0) return 0;
        if (y == 1) return a;
        const dim_expr *e = expr_of(g, a);
        int64_t c;
        if ((e->kind == DIM_MUL || e->kind == DIM_ADD) && dim_value(g, e->b, &c) && !__builtin_mul_overflow(c, y, &r)) {
            if (e->kind == DIM_MUL) return dim_mul(g, e->a, dim_const(g, r));
            return dim_add(g, dim_mul(g, e->a, dim_const(g, y)), dim_const(g, r)); /* (S+1)*2 = 2S+2 */
        }
        return intern(g, (dim_expr){.kind = DIM_MUL, .a = a, .b = dim_const(g, y)});
    }
    /* keep the constant outermost: (2B)*S = 2*(B*S) */
    ir_dim p, q;
    int64_t cp, cq;
    split_product(g, a, &p, &cp);
    split_product(g, b, &q, &cq);
    if (__builtin_mul_overflow(cp, cq, &r)) return intern(g, (dim_expr){.kind = DIM_MUL, .a = a, .b = b});
    if (p < q) {
        ir_dim t = p;
        p = q;
        q = t;
    }
    ir_dim m = intern(g, (dim_expr){.kind = DIM_MUL, .a = p, .b = q});
    return r == 1 ? m : dim_mul(g, m, dim_const(g, r));
}

ir_dim dim_sub(ir_graph *g, ir_dim a, ir_dim b) { return dim_add(g, a, dim_mul(g, b, dim_const(g, -1))); }

ir_dim dim_floordiv(ir_graph *g, ir_dim a, ir_dim b) {
    int64_t x, y, r;
    bool cx = dim_value(g, a, &x), cy = dim_value(g, b, &y);
    if (cy && y == 1) return a;
    if (cx && cy && floor_div(x, y, &r)) return dim_const(g, r);
    if (a == b) return 1;
    if (a < 0) {
        const dim_expr *e = expr_of(g, a);
        if (e->kind == DIM_MUL && e->a == b) return e->b;
        if (e->kind == DIM_MUL && e->b == b) return e->a;
        int64_t c;
        if (cy && y > 0 && e->kind == DIM_MUL && dim_value(g, e->b, &c) && c % y == 0)
            return dim_mul(g, e->a, dim_const(g, c / y));
    }
    return intern(g, (dim_expr){.kind = DIM_FLOORDIV, .a = a, .b = b});
}

ir_dim dim_mod(ir_graph *g, ir_dim a, ir_dim b) {
    int64_t x, y, r;
    bool cx = dim_value(g, a, &x), cy = dim_value(g, b, &y);
    if (cx && cy && floor_mod(x, y, &r)) return dim_const(g, r);
    if (a == b || (cy && y == 1)) return 0;
    return intern(g, (dim_expr){.kind = DIM_MOD, .a = a, .b = b});
}

static ir_dim extremum(ir_graph *g, dim_kind kind, ir_dim a, ir_dim b) {
    int64_t x, y;
    if (a == b) return a;
    if (dim_value(g, a, &x) && dim_value(g, b, &y)) return dim_const(g, (kind == DIM_MAX) == (x > y) ? x : y);
    ir_dim base_a, base_b;
    split_sum(g, a, &base_a, &x);
    split_sum(g, b, &base_b, &y);
    if (base_a == base_b) return (kind == DIM_MAX) == (x > y) ? a : b;
    if (a < b) {
        ir_dim t = a;
        a = b;
        b = t;
    }
    return intern(g, (dim_expr){.kind = kind, .a = a, .b = b});
}

ir_dim dim_max(ir_graph *g, ir_dim a, ir_dim b) { return extremum(g, DIM_MAX, a, b); }
ir_dim dim_min(ir_graph *g, ir_dim a, ir_dim b) { return extremum(g, DIM_MIN, a, b); }

sp_status dim_eval(const ir_graph *g, ir_dim d, bool (*lookup)(void *ctx, const char *name, int64_t *v), void *ctx,
                   int64_t *out) {
    if (dim_value(g, d, out)) return SP_OK;
    const dim_expr *e = expr_of(g, d);
    if (e->kind == DIM_SYMBOL) {
        CHECK(lookup(ctx, e->name, out), "the size '%s' of the model is not known", e->name);
        return SP_OK;
    }
    int64_t a, b;
    TRY(dim_eval(g, e->a, lookup, ctx, &a));
    TRY(dim_eval(g, e->b, lookup, ctx, &b));
    bool over = false;
    switch (e->kind) {
    case DIM_ADD:
        over = __builtin_add_overflow(a, b, out);
        break;
    case DIM_MUL:
        over = __builtin_mul_overflow(a, b, out);
        break;
    case DIM_FLOORDIV:
    case DIM_MOD:
        CHECK(b != 0, "a size of the model divides by zero");
        over = !(e->kind == DIM_MOD ? floor_mod(a, b, out) : floor_div(a, b, out));
        break;
    case DIM_MAX:
        *out = max64(a, b);
        break;
    case DIM_MIN:
        *out = min64(a, b);
        break;
    case DIM_CONST:
    case DIM_SYMBOL:
        ASSERT(false);
    }
    CHECK(!over, "a size of the model overflows 64 bits");
    return SP_OK;
}

bool dim_mentions(const ir_graph *g, ir_dim d, const char *name) {
    if (d >= 0) return false;
    const dim_expr *e = expr_of(g, d);
    if (e->kind == DIM_CONST) return false;
    if (e->kind == DIM_SYMBOL) return strcmp(e->name, name) == 0;
    return dim_mentions(g, e->a, name) || dim_mentions(g, e->b, name);
}

static const char *const kind_name[] = {[DIM_ADD] = "add", [DIM_MUL] = "mul", [DIM_FLOORDIV] = "div",
                                        [DIM_MOD] = "mod", [DIM_MAX] = "max", [DIM_MIN] = "min"};

void dim_print(const ir_graph *g, ir_dim d, buf *out) {
    int64_t v;
    if (dim_value(g, d, &v)) {
        buf_printf(out, "%lld", (long long)v);
        return;
    }
    const dim_expr *e = expr_of(g, d);
    if (e->kind == DIM_SYMBOL) {
        buf_printf(out, "%s", e->name);
        return;
    }
    buf_printf(out, "%s(", kind_name[e->kind]);
    dim_print(g, e->a, out);
    buf_printf(out, ",");
    dim_print(g, e->b, out);
    buf_printf(out, ")");
}

ir_dim dim_import(ir_graph *g, const ir_graph *from, ir_dim d) {
    if (d >= 0) return d;
    const dim_expr *e = expr_of(from, d);
    switch (e->kind) {
    case DIM_CONST:
        return dim_const(g, e->value);
    case DIM_SYMBOL:
        return dim_symbol(g, e->name);
    case DIM_ADD:
        return dim_add(g, dim_import(g, from, e->a), dim_import(g, from, e->b));
    case DIM_MUL:
        return dim_mul(g, dim_import(g, from, e->a), dim_import(g, from, e->b));
    case DIM_FLOORDIV:
        return dim_floordiv(g, dim_import(g, from, e->a), dim_import(g, from, e->b));
    case DIM_MOD:
        return dim_mod(g, dim_import(g, from, e->a), dim_import(g, from, e->b));
    case DIM_MAX:
        return dim_max(g, dim_import(g, from, e->a), dim_import(g, from, e->b));
    case DIM_MIN:
        return dim_min(g, dim_import(g, from, e->a), dim_import(g, from, e->b));
    }
    return 0;
}
