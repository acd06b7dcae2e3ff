/* expr.c - the algebra of element expressions: hash-consing, linear forms, comparisons, choices. See elem.h.
 *
 * Ranges are the only facts used: a variable lies in [0, extent), sizes are at least 1. A form is decided by putting in
 * the end of each variable's range that makes it smallest.
 */
#include "pass/elem.h"

#include <math.h>

enum { MAX_NODES = 200000, MAX_VARS = 60 }; /* work is bounded: past it, values are opaque, which is always correct */

struct elem_ctx {
    rw *r;
    arena *a;
    VEC(ex_node) nodes;
    int *slots, nslots;
    struct {
        char letter;
        ir_dim extent;
        ex e;
    } var[MAX_VARS];
    int nvars;
};

elem_ctx *elem_context(rw *r) {
    if (!r->elem) {
        r->elem = ARENA_NEW(r->scratch, elem_ctx);
        r->elem->r = r;
        r->elem->a = r->scratch;
    }
    return r->elem;
}

rw *elem_rw(const elem_ctx *c) { return c->r; }
bool elem_full(const elem_ctx *c) { return c->nodes.n > MAX_NODES; }

const ex_node *ex_get(const elem_ctx *c, ex e) { return &c->nodes.data[e]; }

/* ---- hash-consing ---- */

static uint64_t hash_ex(const ex_node *n) {
    uint64_t h = hash_bytes(HASH_INIT, &n->kind, sizeof n->kind);
    h = hash_bytes(h, &n->t, sizeof n->t);
    h = hash_bytes(h, &n->op, sizeof n->op);
    h = hash_bytes(h, &n->v, sizeof n->v);
    h = hash_bytes(h, &n->var, sizeof n->var);
    h = hash_bytes(h, &n->dim, sizeof n->dim);
    h = hash_bytes(h, &n->num, sizeof n->num);
    h = hash_bytes(h, &n->c, sizeof n->c);
    if (n->n) h = hash_bytes(h, n->arg, sizeof *n->arg * (size_t)n->n);
    if (n->n && n->coef) h = hash_bytes(h, n->coef, sizeof *n->coef * (size_t)n->n);
    return h;
}

static bool same_bits(double a, double b) {
    uint64_t x, y;
    memcpy(&x, &a, 8);
    memcpy(&y, &b, 8);
    return x == y;
}

static bool ex_equal(const ex_node *a, const ex_node *b) {
    return a->kind == b->kind && a->t == b->t && a->op == b->op && a->v == b->v && a->var == b->var &&
           a->dim == b->dim && same_bits(a->num, b->num) && a->c == b->c && a->n == b->n &&
           (!a->n || memcmp(a->arg, b->arg, sizeof *a->arg * (size_t)a->n) == 0) && !a->coef == !b->coef &&
           (!a->n || !a->coef || memcmp(a->coef, b->coef, sizeof *a->coef * (size_t)a->n) == 0);
}

static ex intern(elem_ctx *c, ex_node n) {
    if (2 * (c->nodes.n + 1) >= c->nslots) {
        int m = c->nslots ? c->nslots * 2 : 1024;
        int *slots = ARENA_ARRAY(c->a, int, m);
        for (int i = 0; i < c->nodes.n; i++) {
            uint64_t h = hash_ex(&c->nodes.data[i]);
            while (slots[h & (uint64_t)(m - 1)]) h++;
            slots[h & (uint64_t)(m - 1)] = i + 1;
        }
        c->slots = slots;
        c->nslots = m;
    }
    uint64_t h = hash_ex(&n);
    for (;; h++) {
        int *slot = &c->slots[h & (uint64_t)(c->nslots - 1)];
        if (*slot && ex_equal(&c->nodes.data[*slot - 1], &n)) return *slot - 1;
        if (*slot) continue;
        if (n.n) n.arg = arena_memdup(c->a, n.arg, sizeof *n.arg * (size_t)n.n);
        if (n.n && n.coef) n.coef = arena_memdup(c->a, n.coef, sizeof *n.coef * (size_t)n.n);
        n.value = -1;
        if (n.kind == EX_VAR) n.vars = 1ULL << n.var;
        for (int i = 0; i < n.n; i++) n.vars |= c->nodes.data[n.arg[i]].vars;
        vec_push(c->a, &c->nodes, n);
        *slot = c->nodes.n;
        return c->nodes.n - 1;
    }
}

ex ex_element(elem_ctx *c, ir_val v, const ex *idx) {
    const ir_type *t = rw_type(c->r, v);
    return intern(c, (ex_node){.kind = EX_ELEM, .t = t->t, .v = v, .n = t->rank, .arg = (ex *)idx});
}

void ex_set_value(elem_ctx *c, ex e, ex value) { c->nodes.data[e].value = value; }

ex ex_num(elem_ctx *c, dtype t, double v) {
    return intern(c, (ex_node){.kind = EX_NUM, .t = t, .num = v == 0 ? 0.0 : v});
}

bool ex_is_num(const elem_ctx *c, ex e, double *v) {
    *v = ex_get(c, e)->num;
    return ex_get(c, e)->kind == EX_NUM;
}

static ex add_var(elem_ctx *c, char letter, ir_dim extent) {
    if (c->nvars == MAX_VARS) return -1;
    ex e = intern(c, (ex_node){.kind = EX_VAR, .t = DT_I64, .var = c->nvars, .dim = extent});
    c->var[c->nvars].letter = letter;
    c->var[c->nvars].extent = extent;
    c->var[c->nvars++].e = e;
    return e;
}

ex elem_var(elem_ctx *c, char letter, ir_dim extent) {
    for (int i = 0; i < c->nvars; i++)
        if (c->var[i].letter == letter && c->var[i].extent == extent) return c->var[i].e;
    return add_var(c, letter, extent);
}

ex elem_fresh_var(elem_ctx *c, ir_dim extent) { return add_var(c, 0, extent); }

char elem_letter(const elem_ctx *c, ex var) { return c->var[ex_get(c, var)->var].letter; }

/* ---- linear forms ---- */

static bool integral(dtype t) { return t == DT_I64 || t == DT_I32 || t == DT_BOOL; }

lin ex_lin(const elem_ctx *c, ex e) {
    const ex_node *n = ex_get(c, e);
    lin l = {0};
    if (n->kind == EX_NUM) {
        l.c = (int64_t)n->num;
    } else if (n->kind == EX_LIN) {
        l.n = n->n;
        l.c = n->c;
        memcpy(l.arg, n->arg, sizeof *n->arg * (size_t)n->n);
        memcpy(l.coef, n->coef, sizeof *n->coef * (size_t)n->n);
    } else {
        l.n = 1;
        l.arg[0] = e;
        l.coef[0] = 1;
    }
    return l;
}

/* Terms are kept sorted. A form that gets too long (n < 0) makes whatever it is part of opaque. */
lin lin_add(lin a, lin b, int64_t times) {
    lin s = {.c = a.c + times * b.c};
    if (a.n < 0 || b.n < 0) return (lin){.n = -1};
    int i = 0, j = 0;
    while (i < a.n || j < b.n) {
        ex e = j == b.n || (i < a.n && a.arg[i] < b.arg[j]) ? a.arg[i] : b.arg[j];
        int64_t k = 0;
        if (i < a.n && a.arg[i] == e) k += a.coef[i++];
        if (j < b.n && b.arg[j] == e) k += times * b.coef[j++];
        if (k == 0) continue;
        if (s.n == LIN_MAX) return (lin){.n = -1};
        s.arg[s.n] = e;
        s.coef[s.n++] = k;
    }
    return s;
}

ex ex_of_lin(elem_ctx *c, lin l) {
    ASSERT(l.n >= 0);
    if (l.n == 0) return ex_num(c, DT_I64, (double)l.c);
    if (l.n == 1 && l.coef[0] == 1 && l.c == 0) return l.arg[0];
    return intern(c, (ex_node){.kind = EX_LIN, .t = DT_I64, .n = l.n, .arg = l.arg, .coef = l.coef, .c = l.c});
}

lin lin_size(elem_ctx *c, ir_dim d) {
    int64_t v;
    const ir_graph *g = c->r->g;
    if (dim_value(g, d, &v)) return lin_const(v);
    const dim_expr e = g->exprs.data[-d - 1];
    if (e.kind == DIM_ADD) return lin_add(lin_size(c, e.a), lin_size(c, e.b), 1);
    if (e.kind == DIM_MUL && dim_value(g, e.b, &v)) return lin_add(lin_const(0), lin_size(c, e.a), v);
    return ex_lin(c, intern(c, (ex_node){.kind = EX_SIZE, .t = DT_I64, .dim = d}));
}

/* The smallest (sign 1) or largest (sign -1) value of an atom, as a form over sizes; false when it has none. */
static bool atom_bound(elem_ctx *c, ex e, int sign, lin *b) {
    const ex_node *n = ex_get(c, e);
    double k;
    *b = lin_const(0);
    if (n->kind == EX_VAR) {
        if (sign < 0) *b = lin_add(lin_size(c, n->dim), lin_const(1), -1);
        return true;
    }
    if (n->kind == EX_SIZE) {
        *b = ex_lin(c, e);
        return true;
    }
    if (n->t == DT_BOOL) {
        if (sign < 0) b->c = 1;
        return true;
    }
    if (n->kind == EX_OP && n->op == OP_mod && ex_is_num(c, n->arg[1], &k) && k > 0) {
        if (sign < 0) b->c = (int64_t)k - 1;
        return true;
    }
    if (n->kind == EX_OP && n->op == OP_select) {
        double x, y;
        if (!ex_is_num(c, n->arg[1], &x) || !ex_is_num(c, n->arg[2], &y)) return false;
        b->c = (int64_t)((sign > 0) == (x < y) ? x : y);
        return true;
    }
    return false;
}

static bool always_ge0(elem_ctx *c, lin l) {
    lin low = lin_const(l.c), b;
    if (l.n < 0) return false;
    for (int i = 0; i < l.n; i++) {
        if (!atom_bound(c, l.arg[i], l.coef[i] > 0 ? 1 : -1, &b)) return false;
        low = lin_add(low, b, l.coef[i]);
    }
    int64_t least = low.c;
    for (int i = 0; i < low.n; i++) { /* sizes */
        if (low.coef[i] < 0) return false;
        least += low.coef[i];
    }
    return low.n >= 0 && least >= 0;
}

static ex ex_bool(elem_ctx *c, bool v) { return ex_num(c, DT_BOOL, v); }

ex ex_ge0(elem_ctx *c, lin l) {
    ASSERT(l.n >= 0);
    if (always_ge0(c, l)) return ex_bool(c, true);
    lin less = lin_add(lin_const(-1), l, -1);
    if (always_ge0(c, less)) return ex_bool(c, false);
    if (l.n == 1) {
        const ex_node n = *ex_get(c, l.arg[0]);
        if (n.kind == EX_OP && n.op == OP_abs && l.coef[0] == -1) { /* |x| <= c */
            lin x = ex_lin(c, n.arg[0]), k = lin_const(l.c);
            ex both[2] = {ex_ge0(c, lin_add(k, x, 1)), ex_ge0(c, lin_add(k, x, -1))};
            return ex_op(c, OP_and, DT_BOOL, both, 2);
        }
        if (n.kind == EX_OP && n.op == OP_select) { /* of numbers */
            double x, y;
            if (ex_is_num(c, n.arg[1], &x) && ex_is_num(c, n.arg[2], &y)) {
                ex a[3] = {n.arg[0], ex_bool(c, l.c + l.coef[0] * (int64_t)x >= 0),
                           ex_bool(c, l.c + l.coef[0] * (int64_t)y >= 0)};
                return ex_op(c, OP_select, DT_BOOL, a, 3);
            }
        }
    }
    ex f = ex_of_lin(c, l);
    return intern(c, (ex_node){.kind = EX_GE0, .t = DT_BOOL, .n = 1, .arg = &f});
}

ex ex_eq0(elem_ctx *c, lin l) {
    ASSERT(l.n >= 0);
    if (l.n == 0) return ex_bool(c, l.c == 0);
    if (always_ge0(c, lin_add(l, lin_const(1), -1)) || always_ge0(c, lin_add(lin_const(-1), l, -1)))
        return ex_bool(c, false);
    if (l.n == 1) {
        const ex_node n = *ex_get(c, l.arg[0]);
        double x, y;
        if (n.kind == EX_OP && n.op == OP_select && ex_is_num(c, n.arg[1], &x) && ex_is_num(c, n.arg[2], &y)) {
            ex a[3] = {n.arg[0], ex_bool(c, l.c + l.coef[0] * (int64_t)x == 0),
                       ex_bool(c, l.c + l.coef[0] * (int64_t)y == 0)};
            return ex_op(c, OP_select, DT_BOOL, a, 3);
        }
    }
    if (l.coef[0] < 0) l = lin_add(lin_const(0), l, -1);
    ex f = ex_of_lin(c, l);
    return intern(c, (ex_node){.kind = EX_EQ0, .t = DT_BOOL, .n = 1, .arg = &f});
}

/* ---- other operations ---- */

/* e with variable `var` replaced by the number `by`; elements of opaque values keep their value. */
static ex substitute(elem_ctx *c, ex e, ex var, int64_t by) {
    const ex_node n = *ex_get(c, e);
    if (!(n.vars & ex_get(c, var)->vars)) return e;
    if (e == var) return ex_num(c, DT_I64, (double)by);
    if (n.n > LIN_MAX || elem_full(c)) return -1;
    ex arg[LIN_MAX] = {0};
    for (int i = 0; i < n.n; i++)
        if ((arg[i] = substitute(c, n.arg[i], var, by)) < 0) return -1;
    lin l = lin_const(n.c);
    switch (n.kind) {
    case EX_LIN:
        for (int i = 0; i < n.n; i++) l = lin_add(l, ex_lin(c, arg[i]), n.coef[i]);
        return l.n < 0 ? -1 : ex_of_lin(c, l);
    case EX_ELEM:
        return elem_of(c, n.v, arg);
    case EX_GE0:
        return ex_ge0(c, ex_lin(c, arg[0]));
    case EX_EQ0:
        return ex_eq0(c, ex_lin(c, arg[0]));
    case EX_OP:
        return ex_op(c, n.op, n.t, arg, n.n);
    default:
        return -1;
    }
}

/* Does cond hold only where one variable has one value? Which. */
static bool pins(elem_ctx *c, ex cond, ex *var, int64_t *at) {
    const ex_node *n = ex_get(c, cond);
    if (n->kind != EX_GE0 && n->kind != EX_EQ0) return false;
    lin l = ex_lin(c, n->arg[0]);
    if (l.n != 1 || ex_get(c, l.arg[0])->kind != EX_VAR) return false;
    *var = l.arg[0];
    if (n->kind == EX_EQ0) {
        *at = -l.c * l.coef[0];
        return l.coef[0] == 1 || l.coef[0] == -1;
    }
    *at = 0; /* 0 - v >= 0, and v >= 0 anyway */
    return l.coef[0] == -1 && l.c == 0;
}

ex ex_not(elem_ctx *c, ex e) {
    const ex_node n = *ex_get(c, e);
    if (n.kind == EX_NUM) return ex_bool(c, n.num == 0);
    if (n.kind == EX_GE0) return ex_ge0(c, lin_add(lin_const(-1), ex_lin(c, n.arg[0]), -1));
    if (n.kind == EX_OP && n.op == OP_not) return n.arg[0];
    if (n.kind == EX_OP && (n.op == OP_and || n.op == OP_or)) {
        ex a[2] = {ex_not(c, n.arg[0]), ex_not(c, n.arg[1])};
        return ex_op(c, n.op == OP_and ? OP_or : OP_and, DT_BOOL, a, 2);
    }
    return intern(c, (ex_node){.kind = EX_OP, .t = DT_BOOL, .op = OP_not, .n = 1, .arg = &e});
}

static ex select_of(elem_ctx *c, dtype t, ex cond, ex a, ex b) {
    double k;
    if (ex_is_num(c, cond, &k)) return k != 0 ? a : b;
    if (a == b) return a;
    ex var;
    int64_t at;
    if (pins(c, cond, &var, &at) && substitute(c, b, var, at) == a) return b;
    if (t == DT_BOOL) {
        ex x[2] = {cond, b};
        if (ex_is_num(c, a, &k)) {
            if (k != 0) return ex_op(c, OP_or, t, x, 2);
            x[0] = ex_not(c, cond);
            return ex_op(c, OP_and, t, x, 2);
        }
        x[1] = a;
        if (ex_is_num(c, b, &k)) {
            if (k == 0) return ex_op(c, OP_and, t, x, 2);
            x[0] = ex_not(c, cond);
            return ex_op(c, OP_or, t, x, 2);
        }
    }
    /* a choice of choices between two results: and, or of the conditions */
    const ex_node x = *ex_get(c, a), y = *ex_get(c, b);
    if (y.kind == EX_OP && y.op == OP_select && (y.arg[1] == a || y.arg[2] == a)) {
        ex any[2] = {cond, y.arg[1] == a ? y.arg[0] : ex_not(c, y.arg[0])};
        return select_of(c, t, ex_op(c, OP_or, DT_BOOL, any, 2), a, y.arg[1] == a ? y.arg[2] : y.arg[1]);
    }
    if (x.kind == EX_OP && x.op == OP_select && (x.arg[1] == b || x.arg[2] == b)) {
        ex all[2] = {cond, x.arg[2] == b ? x.arg[0] : ex_not(c, x.arg[0])};
        return select_of(c, t, ex_op(c, OP_and, DT_BOOL, all, 2), x.arg[2] == b ? x.arg[1] : x.arg[2], b);
    }
    ex arg[3] = {cond, a, b};
    return intern(c, (ex_node){.kind = EX_OP, .t = t, .op = OP_select, .n = 3, .arg = arg});
}

/* A float expression that is exactly an integer expression: that one. */
static bool exact_int(elem_ctx *c, ex e, ex *i) {
    const ex_node n = *ex_get(c, e);
    if (integral(n.t)) {
        *i = e;
        return n.t != DT_BOOL;
    }
    if (n.kind == EX_NUM && n.num == rint(n.num) && fabs(n.num) < 0x1p53) {
        *i = ex_num(c, DT_I64, n.num);
        return true;
    }
    if (n.kind == EX_OP && n.op == OP_cast && (n.t == DT_F32 || n.t == DT_F64) && integral(ex_get(c, n.arg[0])->t)) {
        *i = n.arg[0];
        return true;
    }
    return false;
}

static ex compare(elem_ctx *c, ir_op op, lin a, lin b) {
    lin d = lin_add(a, b, -1), e = lin_add(b, a, -1), one = lin_const(1);
    if (d.n < 0) return -1;
    switch (op) {
    case OP_ge:
        return ex_ge0(c, d);
    case OP_gt:
        return ex_ge0(c, lin_add(d, one, -1));
    case OP_le:
        return ex_ge0(c, e);
    case OP_lt:
        return ex_ge0(c, lin_add(e, one, -1));
    case OP_eq:
        return ex_eq0(c, d);
    case OP_ne:
        return ex_not(c, ex_eq0(c, d));
    default:
        return -1;
    }
}

ex ex_divide(elem_ctx *c, ir_op op, ex e, int64_t k) {
    lin l = ex_lin(c, e), q = {0}, rest = {0};
    q.c = l.c >= 0 ? l.c / k : -((-l.c + k - 1) / k);
    rest.c = l.c - q.c * k;
    for (int i = 0; i < l.n; i++) {
        lin *to = l.coef[i] % k == 0 ? &q : &rest;
        to->arg[to->n] = l.arg[i];
        to->coef[to->n++] = to == &q ? l.coef[i] / k : l.coef[i];
    }
    if (always_ge0(c, rest) && always_ge0(c, lin_add(lin_const(k - 1), rest, -1)))
        return ex_of_lin(c, op == OP_floordiv ? q : rest);
    ex arg[2] = {ex_of_lin(c, op == OP_mod ? rest : l), ex_num(c, DT_I64, (double)k)};
    return intern(c, (ex_node){.kind = EX_OP, .t = DT_I64, .op = op, .n = 2, .arg = arg});
}

static bool is_compare(ir_op op) {
    return op == OP_eq || op == OP_ne || op == OP_lt || op == OP_le || op == OP_gt || op == OP_ge;
}

/* Integer arithmetic; -1 when it is none of these. */
static ex integer_op(elem_ctx *c, ir_op op, const ex *arg, int n) {
    double k;
    lin a = ex_lin(c, arg[0]), b = n > 1 ? ex_lin(c, arg[1]) : (lin){0}, s;
    switch (op) {
    case OP_add:
    case OP_sub:
        s = lin_add(a, b, op == OP_add ? 1 : -1);
        return s.n < 0 ? -1 : ex_of_lin(c, s);
    case OP_neg:
        return ex_of_lin(c, lin_add(lin_const(0), a, -1));
    case OP_mul:
        if (ex_is_num(c, arg[1], &k)) return ex_of_lin(c, lin_add(lin_const(0), a, (int64_t)k));
        if (ex_is_num(c, arg[0], &k)) return ex_of_lin(c, lin_add(lin_const(0), b, (int64_t)k));
        return -1;
    case OP_floordiv:
    case OP_mod:
        return ex_is_num(c, arg[1], &k) && k > 0 ? ex_divide(c, op, arg[0], (int64_t)k) : -1;
    case OP_abs:
        if (always_ge0(c, a)) return arg[0];
        return always_ge0(c, lin_add(lin_const(0), a, -1)) ? ex_of_lin(c, lin_add(lin_const(0), a, -1)) : -1;
    case OP_max:
    case OP_min: {
        bool ge = always_ge0(c, lin_add(a, b, -1)), le = always_ge0(c, lin_add(b, a, -1));
        if (!ge && !le) return -1;
        return ge == (op == OP_max) ? arg[0] : arg[1];
    }
    default:
        return is_compare(op) ? compare(c, op, a, b) : -1;
    }
}

ex ex_op(elem_ctx *c, ir_op op, dtype t, const ex *arg, int n) {
    ASSERT(n >= 1 && n <= 3);
    double x[3] = {0}, y;
    ex a0 = arg[0], a1 = n > 1 ? arg[1] : -1, res, i[2];
    bool all = true;
    for (int k = 0; k < n; k++) all &= ex_is_num(c, arg[k], &x[k]);
    dtype in = ex_get(c, a0)->t;
    if (all && rw_eval(op, in, t, x, &y)) return ex_num(c, t, y);
    switch (op) {
    case OP_not:
        return ex_not(c, a0);
    case OP_and:
    case OP_or:
        for (int k = 0; k < 2; k++)
            if (ex_is_num(c, arg[k], &y)) return (y != 0) == (op == OP_and) ? arg[1 - k] : arg[k];
        if (a0 == a1) return a0;
        if (a0 == ex_not(c, a1)) return ex_bool(c, op == OP_or);
        if (a0 > a1) {
            ex sorted[2] = {a1, a0};
            return intern(c, (ex_node){.kind = EX_OP, .t = t, .op = op, .n = 2, .arg = sorted});
        }
        break;
    case OP_select:
        return select_of(c, t, a0, a1, arg[2]);
    case OP_cast:
        if (in == t || (integral(in) && integral(t) && in != DT_BOOL && t != DT_BOOL)) return a0;
        if (in == DT_BOOL) return select_of(c, t, a0, ex_num(c, t, 1), ex_num(c, t, 0));
        if (t == DT_BOOL) return ex_op(c, OP_ne, DT_BOOL, (ex[]){a0, ex_num(c, in, 0)}, 2);
        if (integral(t) && exact_int(c, a0, &res)) return res;
        if ((t == DT_F32 || t == DT_F64) && dtype_is_float(in) && exact_int(c, a0, &res))
            return ex_op(c, OP_cast, t, &res, 1);
        break;
    default:
        break;
    }
    /* a function of a choice between numbers is a choice between numbers */
    for (int k = 0; k < n && op != OP_select; k++) {
        const ex_node s = *ex_get(c, arg[k]);
        bool rest = s.kind == EX_OP && s.op == OP_select;
        for (int m = 0; m < n; m++) rest &= m == k || ex_is_num(c, arg[m], &y);
        if (!rest || !ex_is_num(c, s.arg[1], &y) || !ex_is_num(c, s.arg[2], &y)) continue;
        ex u[3], v[3];
        for (int m = 0; m < n; m++) {
            u[m] = m == k ? s.arg[1] : arg[m];
            v[m] = m == k ? s.arg[2] : arg[m];
        }
        return select_of(c, t, s.arg[0], ex_op(c, op, t, u, n), ex_op(c, op, t, v, n));
    }
    /* so is a product, minimum or comparison of two such choices: masks as factors 0 and 1, the smaller of two masks */
    if (n == 2 && (op == OP_mul || op == OP_min || op == OP_max || is_compare(op))) {
        const ex_node s = *ex_get(c, a0), u = *ex_get(c, a1);
        bool both = s.kind == EX_OP && s.op == OP_select && u.kind == EX_OP && u.op == OP_select;
        for (int k = 1; k <= 2 && both; k++) both = ex_is_num(c, s.arg[k], &y) && ex_is_num(c, u.arg[k], &y);
        if (both) {
            ex part[2];
            for (int k = 0; k < 2; k++)
                part[k] = select_of(c, t, u.arg[0], ex_op(c, op, t, (ex[]){s.arg[k + 1], u.arg[1]}, 2),
                                    ex_op(c, op, t, (ex[]){s.arg[k + 1], u.arg[2]}, 2));
            return select_of(c, t, s.arg[0], part[0], part[1]);
        }
    }
    if (integral(in) && in != DT_BOOL && op != OP_cast) {
        if ((res = integer_op(c, op, arg, n)) >= 0) return res;
    } else if (dtype_is_float(in) && n == 2 && exact_int(c, a0, &i[0]) && exact_int(c, a1, &i[1])) {
        if (is_compare(op)) {
            if ((res = integer_op(c, op, i, 2)) >= 0) return res;
        } else if (op == OP_add || op == OP_sub || op == OP_mul) { /* exact as long as floats hold the integers */
            if (t != DT_BF16 && (res = integer_op(c, op, i, 2)) >= 0) return ex_op(c, OP_cast, t, &res, 1);
        }
    }
    if (op == OP_mul || op == OP_add) {
        double zero = op == OP_add ? 0 : 1;
        if (ex_is_num(c, a1, &y) && y == zero) return a0;
        if (ex_is_num(c, a0, &y) && y == zero) return a1;
    }
    if ((op == OP_sub && ex_is_num(c, a1, &y) && y == 0) || (op == OP_div && ex_is_num(c, a1, &y) && y == 1)) return a0;
    return intern(c, (ex_node){.kind = EX_OP, .t = t, .op = op, .n = n, .arg = (ex *)arg});
}

bool ex_linear_in(elem_ctx *c, ex e, ex var, ex *a, ex *b) {
    const ex_node n = *ex_get(c, e);
    uint64_t bit = ex_get(c, var)->vars;
    ex a0, b0, a1, b1;
    if (!(n.vars & bit)) {
        *a = ex_num(c, n.t, 0);
        *b = e;
        return true;
    }
    if (e == var) {
        *a = ex_num(c, n.t, 1);
        *b = ex_num(c, n.t, 0);
        return true;
    }
    if (n.kind == EX_LIN) {
        lin l = ex_lin(c, e), rest = lin_const(l.c);
        *a = ex_num(c, DT_I64, 0);
        for (int k = 0; k < l.n; k++) {
            lin term = ex_lin(c, l.arg[k]);
            if (l.arg[k] == var)
                *a = ex_num(c, DT_I64, (double)l.coef[k]);
            else if (ex_get(c, l.arg[k])->vars & bit)
                return false;
            else
                rest = lin_add(rest, term, l.coef[k]);
        }
        *b = ex_of_lin(c, rest);
        return true;
    }
    if (n.kind != EX_OP) return false;
    switch (n.op) {
    case OP_cast:
        if (n.t != DT_F32 && n.t != DT_F64) return false; /* rounds */
        if (!ex_linear_in(c, n.arg[0], var, &a0, &b0)) return false;
        *a = ex_op(c, OP_cast, n.t, &a0, 1);
        *b = ex_op(c, OP_cast, n.t, &b0, 1);
        return true;
    case OP_neg:
        if (!ex_linear_in(c, n.arg[0], var, &a0, &b0)) return false;
        *a = ex_op(c, OP_neg, n.t, &a0, 1);
        *b = ex_op(c, OP_neg, n.t, &b0, 1);
        return true;
    case OP_add:
    case OP_sub:
        if (n.t == DT_BF16 || !ex_linear_in(c, n.arg[0], var, &a0, &b0) || !ex_linear_in(c, n.arg[1], var, &a1, &b1))
            return false;
        *a = ex_op(c, n.op, n.t, (ex[]){a0, a1}, 2);
        *b = ex_op(c, n.op, n.t, (ex[]){b0, b1}, 2);
        return true;
    case OP_mul:
    case OP_div: {
        int k = ex_get(c, n.arg[1])->vars & bit ? 1 : 0; /* the factor with the variable */
        if (n.t == DT_BF16 || (ex_get(c, n.arg[1 - k])->vars & bit) || (n.op == OP_div && k == 1)) return false;
        if (!ex_linear_in(c, n.arg[k], var, &a0, &b0)) return false;
        *a = ex_op(c, n.op, n.t, (ex[]){a0, n.arg[1 - k]}, 2);
        *b = ex_op(c, n.op, n.t, (ex[]){b0, n.arg[1 - k]}, 2);
        return true;
    }
    default:
        return false;
    }
}
