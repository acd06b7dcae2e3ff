/* sym.c - see sym.h. A recursive-descent parser of the grammar
 *
 *     expr  = int | name | name '(' [ arg { ',' arg } ] ')'
 *     arg   = expr | string | name '=' expr
 *
 * with caps on depth and size. Keyword arguments are sympy's assumptions and are dropped. Rational numbers
 * only appear inside products, as the factor 1/n of an exact division: Mul(Rational(1, n), e) is read as
 * FloorDiv(e, n), which is the same number whenever the product is an integer.
 */
#include "import/sym.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>

#define MAX_DEPTH 64
#define MAX_TERMS 4096

typedef struct parser {
    arena *a;
    const char *text, *p;
    int depth, terms;
} parser;

static const struct {
    const char *name;
    sym_op op;
    int lo, hi; /* number of arguments */
} functions[] = {
    {"Add", SYM_ADD, 1, MAX_TERMS},  {"Mul", SYM_MUL, 1, MAX_TERMS},   {"Pow", SYM_POW, 2, 2},
    {"PowByNatural", SYM_POW, 2, 2}, {"FloorDiv", SYM_FLOORDIV, 2, 2}, {"CleanDiv", SYM_FLOORDIV, 2, 2},
    {"CeilDiv", SYM_CEILDIV, 2, 2},  {"Mod", SYM_MOD, 2, 2},           {"PythonMod", SYM_MOD, 2, 2},
    {"Max", SYM_MAX, 1, MAX_TERMS},  {"Min", SYM_MIN, 1, MAX_TERMS},   {"Identity", SYM_ADD, 1, 1},
};

#define BAD(s, what)                                                                                                   \
    FAIL("bad size expression \"%.120s\" at column %d: %s", (s)->text, (int)((s)->p - (s)->text) + 1, what)

static void space(parser *s) {
    while (*s->p == ' ') s->p++;
}

static sym_expr *node(parser *s, sym_op op, int n) {
    sym_expr *e = ARENA_NEW(s->a, sym_expr);
    e->op = op, e->n = n;
    if (n) e->arg = ARENA_ARRAY(s->a, const sym_expr *, n);
    return e;
}

const sym_expr *sym_int(arena *a, int64_t value) {
    sym_expr *e = ARENA_NEW(a, sym_expr);
    e->op = SYM_INT, e->value = value;
    return e;
}

/* 'text' or "text"; no escapes occur in the names of symbols. */
static sp_status quoted(parser *s, const char **out) {
    const char q = *s->p++, *start = s->p;
    while (*s->p && *s->p != q) s->p++;
    if (*s->p != q) BAD(s, "a string without an end");
    size_t n = (size_t)(s->p - start);
    char *t = arena_alloc(s->a, n + 1);
    memcpy(t, start, n);
    s->p++;
    *out = t;
    return SP_OK;
}

static sp_status integer(parser *s, int64_t *out) {
    char *end;
    errno = 0;
    long long v = strtoll(s->p, &end, 10);
    if (end == s->p || errno) BAD(s, "not a 64-bit integer");
    s->p = end;
    *out = v;
    return SP_OK;
}

static sp_status expr(parser *s, const sym_expr **out);

/* The arguments between the parentheses: expressions in *ARGS, a leading string in *TEXT. */
typedef VEC(const sym_expr *) expr_vec;
static sp_status arguments(parser *s, expr_vec *args, const char **text) {
    s->p++;
    for (space(s); *s->p != ')';) {
        if (*s->p == '\'' || *s->p == '"') {
            TRY(quoted(s, text));
        } else {
            const char *q = s->p;
            while (isalnum((unsigned char)*q) || *q == '_') q++;
            if (*q == '=') { /* an assumption, as in positive=True */
                s->p = q + 1;
                const sym_expr *ignored;
                TRY(expr(s, &ignored));
            } else {
                const sym_expr *e;
                TRY(expr(s, &e));
                vec_push(s->a, args, e);
            }
        }
        space(s);
        if (*s->p == ',') {
            s->p++;
            space(s);
        } else if (*s->p != ')') {
            BAD(s, "expected , or )");
        }
    }
    s->p++;
    return SP_OK;
}

static sp_status call(parser *s, const char *name, const sym_expr **out) {
    expr_vec args = {0};
    const char *text = NULL;
    TRY(arguments(s, &args, &text));
    if (!strcmp(name, "Symbol") || !strcmp(name, "Dummy")) {
        if (!text || args.n) BAD(s, "a symbol without a name");
        sym_expr *e = node(s, SYM_SYMBOL, 0);
        e->name = text;
        *out = e;
        return SP_OK;
    }
    if (!strcmp(name, "Integer")) {
        if (args.n != 1 || args.data[0]->op != SYM_INT) BAD(s, "Integer() wants one number");
        *out = args.data[0];
        return SP_OK;
    }
    /* Mul(Rational(1, n), e...): see the head of the file. */
    if (!strcmp(name, "Mul") && args.n >= 2 && args.data[0]->op == SYM_OTHER &&
        !strcmp(args.data[0]->name, "Rational") && args.data[0]->n == 2) {
        sym_expr *product = node(s, SYM_MUL, args.n);
        product->arg[0] = args.data[0]->arg[0];
        for (int i = 1; i < args.n; i++) product->arg[i] = args.data[i];
        sym_expr *e = node(s, SYM_FLOORDIV, 2);
        e->arg[0] = product, e->arg[1] = args.data[0]->arg[1];
        *out = e;
        return SP_OK;
    }
    sym_expr *e = node(s, SYM_OTHER, args.n);
    for (int i = 0; i < args.n; i++) e->arg[i] = args.data[i];
    e->name = name;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(name, functions[i].name)) {
            if (args.n < functions[i].lo || args.n > functions[i].hi) BAD(s, "wrong number of arguments");
            e->op = functions[i].op;
        }
    *out = e;
    return SP_OK;
}

static sp_status expr_body(parser *s, const sym_expr **out) {
    space(s);
    if (*s->p == '-' || isdigit((unsigned char)*s->p)) {
        int64_t v;
        TRY(integer(s, &v));
        *out = sym_int(s->a, v);
        return SP_OK;
    }
    const char *start = s->p;
    while (isalnum((unsigned char)*s->p) || *s->p == '_') s->p++;
    size_t n = (size_t)(s->p - start);
    if (!n) BAD(s, "expected a number or a name");
    char *name = arena_alloc(s->a, n + 1);
    memcpy(name, start, n);
    space(s);
    if (*s->p == '(') return call(s, name, out);
    sym_expr *e = node(s, SYM_SYMBOL, 0);
    e->name = name;
    *out = e;
    return SP_OK;
}

static sp_status expr(parser *s, const sym_expr **out) {
    if (++s->depth > MAX_DEPTH) BAD(s, "nested too deeply");
    if (++s->terms > MAX_TERMS) BAD(s, "too many terms");
    TRY(expr_body(s, out));
    s->depth--;
    return SP_OK;
}

sp_status sym_parse(arena *a, const char *text, const sym_expr **out) {
    parser s = {.a = a, .text = text, .p = text};
    TRY(expr(&s, out));
    space(&s);
    if (*s.p) BAD(&s, "text after the end");
    return SP_OK;
}

/* ---- evaluation ---------------------------------------------------------------------------------- */

static int64_t floor_div(int64_t x, int64_t y) {
    int64_t q = x / y;
    return x % y != 0 && (x < 0) != (y < 0) ? q - 1 : q;
}

static bool apply(sym_op op, int64_t x, int64_t y, int64_t *r) {
    switch (op) {
    case SYM_ADD:
        return !__builtin_add_overflow(x, y, r);
    case SYM_MUL:
        return !__builtin_mul_overflow(x, y, r);
    case SYM_MAX:
        *r = max64(x, y);
        return true;
    case SYM_MIN:
        *r = min64(x, y);
        return true;
    case SYM_FLOORDIV:
    case SYM_CEILDIV:
    case SYM_MOD:
        if (y == 0 || (x == INT64_MIN && y == -1)) return false;
        if (op == SYM_FLOORDIV) *r = floor_div(x, y);
        if (op == SYM_CEILDIV) *r = floor_div(x, y) + (x % y != 0);
        if (op == SYM_MOD) *r = x % y + (x % y != 0 && (x < 0) != (y < 0) ? y : 0);
        return true;
    case SYM_POW:
        if (y < 0 || y > 62) return false;
        for (*r = 1; y > 0; y--)
            if (__builtin_mul_overflow(*r, x, r)) return false;
        return true;
    default:
        return false;
    }
}

sp_status sym_eval(const sym_expr *e, sym_lookup *lookup, void *ctx, int64_t *out) {
    if (e->op == SYM_INT) {
        *out = e->value;
        return SP_OK;
    }
    if (e->op == SYM_SYMBOL) {
        CHECK(lookup && lookup(ctx, e->name, out), "size symbol %s has no value", e->name);
        return SP_OK;
    }
    CHECK(e->op != SYM_OTHER, "size function %s is not supported", e->name);
    int64_t acc = 0;
    for (int i = 0; i < e->n; i++) {
        int64_t v;
        TRY(sym_eval(e->arg[i], lookup, ctx, &v));
        if (i == 0) {
            acc = v;
        } else {
            CHECK(apply(e->op, acc, v, &acc), "a size overflows or divides by zero");
        }
    }
    *out = acc;
    return SP_OK;
}
