/* mask.c - attention masks as a description (docs/ir.md, "Attention") instead of an S x S value.
 *
 * Each element of a `mask` or `bias` operand is read as an expression over (b, h, q, k) (elem.h). A mask is a
 * conjunction, an additive bias a sum whose large negative terms are conditions; every condition is classed by the
 * indices that it depends on:
 *     k <= q                           causal=1            eq(f(b,q), g(b,k))   docq, dock
 *     q - k <= c, k - q <= c           window, _ahead      f(b,k)               keep
 *     slope(b,h) * k + anything of q   alibi               f(b,h,k), f(b,h,q)   mask or bias of extent 1 in q or k
 * Other conditions on q and k become a formula (ir/formula.h): and / or of comparisons f(b,h,q) >= g(b,h,k), == or !=,
 * with f and g as vectors. So a prefix that all see is  q >= k or length(b) - 1 >= k.
 * Vectors become ordinary values of O(S). Terms of a bias that do not depend on k are dropped: softmax does not see
 * them. A masked score is one of at most -1e4, whose exponential is 0. What depends on q and k in another way stays an
 * operand, untouched.
 *     attention(q, k, v, le(iota k, iota q))   =>  attention(q, k, v) {causal=1}
 */
#include "ir/formula.h"
#include "pass/elem.h"

static const double MASKED = -1e4;

enum { MAX_TERMS = 24, MAX_SIDES = ATTENTION_SIDES };

typedef struct term {
    ex e;
    double times;
} term;

typedef struct masks {
    elem_ctx *c;
    rw *r;
    ex b, h, q, k; /* the variables */
    bool causal, ok;
    int64_t window, ahead; /* 0: none */
    int ncond, nterm;
    ex cond[MAX_TERMS];
    term term[MAX_TERMS];
    ex keep, docq, dock, slope; /* -1: none */
    ex mask[MAX_TERMS], bias[MAX_TERMS];
    int nmask, nbias;
    int npair; /* of the formula: f(b,h,q) and g(b,h,k) */
    ex fq[FORMULA_PAIRS], fk[FORMULA_PAIRS];
    char formula[160];
} masks;

static uint64_t bit(const masks *m, ex v) { return ex_get(m->c, v)->vars; }
static bool depends(const masks *m, ex e, ex v) { return ex_get(m->c, e)->vars & bit(m, v); }

/* ---- taking apart ---- */

static void conjunction(masks *m, ex e) {
    const ex_node n = *ex_get(m->c, e);
    double v;
    if (n.kind == EX_OP && n.op == OP_and) {
        conjunction(m, n.arg[0]);
        conjunction(m, n.arg[1]);
        return;
    }
    if (ex_is_num(m->c, e, &v)) {
        if (v == 0) m->ok = false; /* nothing is visible: whatever was meant, it stays as it is */
        return;
    }
    for (int i = 0; i < m->ncond; i++)
        if (m->cond[i] == e) return;
    if (m->ncond == MAX_TERMS)
        m->ok = false;
    else
        m->cond[m->ncond++] = e;
}

static bool masked(const masks *m, ex e, double times) {
    double v;
    return ex_is_num(m->c, e, &v) && v * times <= MASKED;
}

static void terms(masks *m, ex e, double times) {
    const ex_node n = *ex_get(m->c, e);
    double v;
    if (n.kind == EX_NUM) {
        if (masked(m, e, times)) m->ok = false;
        return; /* the same for every key */
    }
    if (n.kind == EX_OP) {
        switch (n.op) {
        case OP_add:
        case OP_sub:
            if (n.t == DT_BF16) break;
            terms(m, n.arg[0], times);
            terms(m, n.arg[1], n.op == OP_add ? times : -times);
            return;
        case OP_neg:
            terms(m, n.arg[0], -times);
            return;
        case OP_mul:
            if (n.t == DT_BF16) break;
            for (int i = 0; i < 2; i++)
                if (ex_is_num(m->c, n.arg[i], &v) && v != 0) {
                    terms(m, n.arg[1 - i], times * v);
                    return;
                }
            break;
        case OP_cast:
            if (dtype_is_float(n.t) && dtype_is_float(ex_get(m->c, n.arg[0])->t) && n.t != DT_BF16) {
                terms(m, n.arg[0], times);
                return;
            }
            break;
        case OP_select:
            for (int i = 1; i <= 2; i++)
                if (masked(m, n.arg[i], times)) {
                    conjunction(m, i == 2 ? n.arg[0] : ex_not(m->c, n.arg[0]));
                    terms(m, n.arg[3 - i], times);
                    return;
                }
            break;
        default:
            break;
        }
    }
    if (m->nterm == MAX_TERMS)
        m->ok = false;
    else
        m->term[m->nterm++] = (term){e, times};
}

/* ---- classing ---- */

static bool add_mask(masks *m, ex e) {
    m->mask[m->nmask++] = e;
    return true;
}

/* k - q <= c and q - k <= c */
static bool classify_order(masks *m, ex form) {
    lin l = ex_lin(m->c, form);
    if (l.n != 2) return false;
    int iq = l.arg[0] == m->q ? 0 : 1;
    if (l.arg[iq] != m->q || l.arg[1 - iq] != m->k) return false;
    if (l.coef[iq] == 1 && l.coef[1 - iq] == -1) { /* q - k + c >= 0 */
        if (l.c < 0) return false;
        if (l.c == 0)
            m->causal = true;
        else if (!m->ahead || l.c + 1 < m->ahead)
            m->ahead = l.c + 1;
        return true;
    }
    if (l.coef[iq] == -1 && l.coef[1 - iq] == 1) { /* k - q + c >= 0 */
        if (l.c < 0) return false;
        if (!m->window || l.c + 1 < m->window) m->window = l.c + 1;
        return true;
    }
    return false;
}

/* form == 0 as f(b, q) == g(b, k) */
static bool classify_document(masks *m, ex form) {
    lin l = ex_lin(m->c, form), f = {0}, g = {0};
    bool any[2] = {false, false};
    f.c = l.c;
    for (int i = 0; i < l.n; i++) {
        bool q = depends(m, l.arg[i], m->q), k = depends(m, l.arg[i], m->k);
        if ((q && k) || depends(m, l.arg[i], m->h)) return false;
        any[k] |= q || k;
        lin *to = k ? &g : &f;
        to->arg[to->n] = l.arg[i];
        to->coef[to->n++] = k ? -l.coef[i] : l.coef[i];
    }
    if (!any[0] || !any[1] || m->docq >= 0) return false;
    if (f.n && f.coef[0] < 0 && g.n && g.coef[0] < 0) { /* -f == -g */
        lin zero = {0};
        f = lin_add(zero, f, -1);
        g = lin_add(zero, g, -1);
    }
    m->docq = ex_of_lin(m->c, f);
    m->dock = ex_of_lin(m->c, g);
    return true;
}

/* ---- formulas ---- */

static bool word(masks *m, const char *text) {
    size_t n = strlen(m->formula), len = strlen(text);
    if (n + len >= sizeof m->formula) return false;
    memcpy(m->formula + n, text, len + 1);
    return true;
}

/* Appends "f op g" for f of queries and g of keys. */
static bool comparison(masks *m, ex f, ex g, const char *op) {
    int p = 0;
    while (p < m->npair && (m->fq[p] != f || m->fk[p] != g)) p++;
    if (p == FORMULA_PAIRS) return false;
    m->fq[p] = f;
    m->fk[p] = g;
    if (p == m->npair) m->npair++;
    const char number[] = {(char)('0' + p), 0};
    return word(m, m->formula[0] ? " " : "") && word(m, number) && word(m, op);
}

/* form >= 0 or form == 0 as a comparison of what depends on keys with the rest. */
static bool split_form(masks *m, ex form, const char *op) {
    lin l = ex_lin(m->c, form), f = {.c = l.c}, g = {0};
    const ex_node *n = ex_get(m->c, l.n == 1 ? l.arg[0] : form);
    double period;
    /* (x - y) % n == 0 is x % n == y % n */
    bool mod = op[0] != '>' && l.n == 1 && l.c == 0 && n->kind == EX_OP && n->op == OP_mod &&
               ex_is_num(m->c, n->arg[1], &period) && period > 0;
    if (mod) {
        l = ex_lin(m->c, n->arg[0]);
        f.c = l.c;
    }
    for (int i = 0; i < l.n; i++) {
        bool k = depends(m, l.arg[i], m->k);
        if (k && depends(m, l.arg[i], m->q)) return false;
        lin *to = k ? &g : &f;
        to->arg[to->n] = l.arg[i];
        to->coef[to->n++] = k ? -l.coef[i] : l.coef[i];
    }
    ex a = ex_of_lin(m->c, f), b = ex_of_lin(m->c, g);
    if (mod) {
        a = ex_divide(m->c, OP_mod, a, (int64_t)period);
        b = ex_divide(m->c, OP_mod, b, (int64_t)period);
    }
    return comparison(m, a, b, op);
}

static bool formula(masks *m, ex e) {
    const ex_node n = *ex_get(m->c, e);
    const ex one = ex_num(m->c, DT_I64, 1);
    bool q = depends(m, e, m->q), k = depends(m, e, m->k);
    if (n.kind == EX_OP && (n.op == OP_and || n.op == OP_or))
        return formula(m, n.arg[0]) && formula(m, n.arg[1]) && word(m, n.op == OP_and ? " &" : " |");
    if (n.kind == EX_OP && n.op == OP_select) /* c ? a : b, of conditions */
        return formula(m, n.arg[0]) && formula(m, n.arg[1]) && word(m, " &") && formula(m, ex_not(m->c, n.arg[0])) &&
               formula(m, n.arg[2]) && word(m, " & |");
    if (n.kind == EX_GE0) return split_form(m, n.arg[0], ">=");
    if (n.kind == EX_EQ0) return split_form(m, n.arg[0], "==");
    if (n.kind == EX_OP && n.op == OP_not && ex_get(m->c, n.arg[0])->kind == EX_EQ0)
        return split_form(m, ex_get(m->c, n.arg[0])->arg[0], "!=");
    if (n.t != DT_BOOL || (q && k)) return false;
    e = ex_op(m->c, OP_cast, DT_I64, &e, 1);
    return k ? comparison(m, one, e, "==") : comparison(m, e, one, "==");
}

/* One more condition of the conjunction, as a formula; all of it or nothing. */
static bool classify_formula(masks *m, ex e) {
    masks old = *m;
    bool first = !m->formula[0];
    ir_formula unused;
    if (formula(m, e) && (first || word(m, " &")) &&
        ir_formula_parse(m->formula, m->npair, &unused) == SP_OK) /* short enough for the kernels */
        return true;
    *m = old;
    return false;
}

static bool classify_condition(masks *m, ex e) {
    const ex_node n = *ex_get(m->c, e);
    bool q = depends(m, e, m->q), k = depends(m, e, m->k);
    if (q && k) {
        if (n.kind == EX_GE0 && classify_order(m, n.arg[0])) return true;
        return (n.kind == EX_EQ0 && classify_document(m, n.arg[0])) || classify_formula(m, e);
    }
    if (k && !depends(m, e, m->h)) {
        m->keep = m->keep < 0 ? e : ex_op(m->c, OP_and, DT_BOOL, (ex[]){m->keep, e}, 2);
        return true;
    }
    return add_mask(m, e);
}

static ex scaled(masks *m, ex e, double times) {
    dtype t = ex_get(m->c, e)->t;
    if (!dtype_is_float(t)) {
        t = DT_F32;
        e = ex_op(m->c, OP_cast, t, &e, 1);
    }
    if (times == 1) return e;
    return ex_op(m->c, OP_mul, t, (ex[]){e, ex_num(m->c, t, times)}, 2);
}

static bool classify_term(masks *m, term t) {
    ex a, b;
    if (!depends(m, t.e, m->k)) return true; /* the same for every key */
    if (ex_linear_in(m->c, t.e, m->k, &a, &b) && !depends(m, a, m->k) && !depends(m, a, m->q) && !depends(m, b, m->k)) {
        a = scaled(m, a, t.times);
        m->slope = m->slope < 0 ? a : ex_op(m->c, OP_add, ex_get(m->c, a)->t, (ex[]){m->slope, a}, 2);
        return true;
    }
    if (depends(m, t.e, m->q)) return false;
    m->bias[m->nbias++] = scaled(m, t.e, t.times);
    return true;
}

/* Reads one operand: everything in it or nothing (then m is as before). */
static bool read_operand(masks *m, ir_val v, const char *word, int len, const char *role) {
    ex idx[IR_MAX_RANK];
    for (int d = 0; d < len; d++) idx[d] = word[d] == 'b' ? m->b : word[d] == 'h' ? m->h : word[d] == 'q' ? m->q : m->k;
    ex e = elem_of(m->c, v, idx);
    masks old = *m;
    if (strcmp(role, "bias") == 0)
        terms(m, e, 1);
    else
        conjunction(m, e);
    for (int i = old.ncond; i < m->ncond && m->ok; i++) m->ok = classify_condition(m, m->cond[i]);
    for (int i = old.nterm; i < m->nterm && m->ok; i++) m->ok = classify_term(m, m->term[i]);
    if (m->ok) return true;
    *m = old;
    return false;
}

/* ---- the new attention ---- */

typedef struct sides {
    int n;
    ir_val v[MAX_SIDES + MAX_TERMS];
    char side[256], roles[256];
} sides;

static bool add_side(rw *r, sides *s, ir_val v, const char *side, const char *role) {
    if (v < 0 || s->n >= MAX_SIDES || r->trainable.data[v]) return false;
    size_t a = strlen(s->side), b = strlen(s->roles);
    snprintf(s->side + a, sizeof s->side - a, "%s%s", s->n ? " " : "", side);
    snprintf(s->roles + b, sizeof s->roles - b, "%s%s", s->n ? " " : "", role);
    s->v[s->n++] = v;
    return true;
}

static bool vectors(masks *m, sides *s) {
    rw *r = m->r;
    const ex bq[2] = {m->b, m->q}, bk[2] = {m->b, m->k}, bh[2] = {m->b, m->h}, all[4] = {m->b, m->h, m->q, m->k};
    const ex bhq[3] = {m->b, m->h, m->q}, bhk[3] = {m->b, m->h, m->k};
    for (int i = 0; i < m->npair; i++) {
        ir_val f = elem_build(m->c, m->fq[i], r, 3, bhq), g = elem_build(m->c, m->fk[i], r, 3, bhk);
        if (f < 0 || g < 0 || !add_side(r, s, rw_cast(r, f, DT_I64), "bhq", "fq")) return false;
        if (!add_side(r, s, rw_cast(r, g, DT_I64), "bhk", "fk")) return false;
    }
    if (m->docq >= 0) {
        ir_val dq = elem_build(m->c, m->docq, r, 2, bq), dk = elem_build(m->c, m->dock, r, 2, bk);
        if (dq < 0 || dk < 0) return false;
        if (!add_side(r, s, rw_cast(r, dq, DT_I64), "bq", "docq")) return false;
        if (!add_side(r, s, rw_cast(r, dk, DT_I64), "bk", "dock")) return false;
    }
    if (m->keep >= 0 && !add_side(r, s, elem_build(m->c, m->keep, r, 2, bk), "bk", "keep")) return false;
    if (m->slope >= 0) {
        ir_val v = elem_build(m->c, m->slope, r, 2, bh);
        if (v < 0) return false;
        const ir_type *t = rw_type(r, v);
        bool per_head = t->dim[0] == 1;
        ir_dim heads[1] = {ex_get(m->c, m->h)->dim};
        if (per_head) v = rw_reshape(r, v, 1, &t->dim[1]);
        if (per_head) v = rw_expand(r, v, 1, heads);
        if (!add_side(r, s, v, per_head ? "h" : "bh", "alibi")) return false;
    }
    for (int i = 0; i < m->nmask; i++)
        if (!add_side(r, s, elem_build(m->c, m->mask[i], r, 4, all), "bhqk", "mask")) return false;
    for (int i = 0; i < m->nbias; i++)
        if (!add_side(r, s, elem_build(m->c, m->bias[i], r, 4, all), "bhqk", "bias")) return false;
    return true;
}

/* One word of a list; its length. */
static int word_at(const char **text) {
    while (**text == ' ') ++*text;
    int n = 0;
    while ((*text)[n] && (*text)[n] != ' ') n++;
    return n;
}

bool rw_mask(rw *r, const ir_node *n, ir_val *out) {
    if (n->op != OP_attention || n->nin == 3) return false;
    const char *side = ir_str(n, "side"), *roles = ir_str(n, "roles");
    if (!side || !roles) return false;
    elem_ctx *c = elem_context(r);
    const ir_type *q = rw_type(r, n->in[0]), *k = rw_type(r, n->in[1]);
    masks m = {.c = c, .r = r, .ok = true, .keep = -1, .docq = -1, .dock = -1, .slope = -1};
    m.b = elem_var(c, 'b', q->dim[0]);
    m.h = elem_var(c, 'h', q->dim[2]);
    m.q = elem_var(c, 'q', q->dim[1]);
    m.k = elem_var(c, 'k', k->dim[1]);
    if (m.b < 0 || m.h < 0 || m.q < 0 || m.k < 0) return false;
    m.causal = ir_int(n, "causal", 0);
    m.window = ir_int(n, "window", 0);
    m.ahead = ir_int(n, "window_ahead", 0);
    sides s = {0};
    const char *sw = side, *rl = roles;
    /* vectors that are there already come first: they take part in what is new */
    int len[MAX_SIDES], todo = 0;
    const char *words[MAX_SIDES];
    char role[MAX_SIDES][8];
    if (n->nin - 3 > MAX_SIDES) return false;
    for (int i = 0; i < n->nin - 3; i++) {
        len[i] = word_at(&sw);
        words[i] = sw;
        sw += len[i];
        int rn = word_at(&rl);
        if (len[i] == 0 || rn == 0 || rn >= (int)sizeof role[i]) return false;
        snprintf(role[i], sizeof role[i], "%.*s", rn, rl);
        rl += rn;
        ir_val v = n->in[3 + i];
        const ex bq[2] = {m.b, m.q}, bk[2] = {m.b, m.k};
        if (strcmp(role[i], "docq") == 0)
            m.docq = elem_of(c, v, bq);
        else if (strcmp(role[i], "dock") == 0)
            m.dock = elem_of(c, v, bk);
        else if (strcmp(role[i], "keep") == 0)
            m.keep = elem_of(c, v, bk);
        else if (strcmp(role[i], "alibi") == 0) {
            ex bh[2] = {m.b, m.h};
            m.slope = elem_of(c, v, len[i] == 1 ? &bh[1] : bh);
        } else if (strcmp(role[i], "fq") == 0) {
            if (m.npair == FORMULA_PAIRS) return false;
            m.fq[m.npair] = elem_of(c, v, (ex[]){m.b, m.h, m.q});
        } else if (strcmp(role[i], "fk") == 0) { /* follows its fq */
            m.fk[m.npair++] = elem_of(c, v, (ex[]){m.b, m.h, m.k});
        } else if (strcmp(role[i], "rng") == 0) {
            if (!add_side(r, &s, v, "r", "rng")) return false;
        } else
            todo++;
    }
    const char *text = ir_str(n, "formula");
    if (text && strlen(text) >= sizeof m.formula) return false;
    snprintf(m.formula, sizeof m.formula, "%s", text ? text : "");
    if (!todo) return false;
    bool changed = false;
    for (int i = 0; i < n->nin - 3; i++) {
        if (strcmp(role[i], "mask") != 0 && strcmp(role[i], "bias") != 0) continue;
        int before = m.nmask + m.nbias;
        bool read = read_operand(&m, n->in[3 + i], words[i], len[i], role[i]);
        if (read && m.nmask + m.nbias == before) changed = true;
        if (read && m.nmask + m.nbias > before) { /* is it more than what it was? */
            const ir_type *t = rw_type(r, n->in[3 + i]);
            for (int d = 0; d < len[i]; d++)
                changed |=
                    (words[i][d] == 'q' || words[i][d] == 'k') && t->dim[d] != 1 && m.nmask + m.nbias == before + 1 &&
                    !depends(&m, m.nmask ? m.mask[m.nmask - 1] : m.bias[m.nbias - 1], words[i][d] == 'q' ? m.q : m.k);
            changed |= m.nmask + m.nbias > before + 1;
        }
        if (!read) {
            char w[8];
            snprintf(w, sizeof w, "%.*s", len[i], words[i]);
            if (!add_side(r, &s, n->in[3 + i], w, role[i])) return false;
        }
    }
    if (!changed || !vectors(&m, &s)) return false;
    ir_node a = {0};
    a.attr = arena_alloc(r->scratch, sizeof *a.attr * (size_t)(n->nattr + 8));
    for (int i = 0; i < n->nattr; i++) {
        static const char *const ours[] = {"causal", "window", "window_ahead", "side", "roles", "formula"};
        bool skip = false;
        for (size_t j = 0; j < sizeof ours / sizeof *ours; j++) skip |= strcmp(n->attr[i].key, ours[j]) == 0;
        if (!skip) a.attr[a.nattr++] = n->attr[i];
    }
    if (m.causal) a.attr[a.nattr++] = A_I("causal", 1);
    if (m.window) a.attr[a.nattr++] = A_I("window", m.window);
    if (m.ahead && !m.causal) a.attr[a.nattr++] = A_I("window_ahead", m.ahead);
    if (m.formula[0]) a.attr[a.nattr++] = A_S("formula", m.formula);
    if (s.n) {
        a.attr[a.nattr++] = A_S("side", s.side);
        a.attr[a.nattr++] = A_S("roles", s.roles);
    }
    ir_val in[3 + MAX_SIDES + MAX_TERMS];
    memcpy(in, n->in, 3 * sizeof *in);
    memcpy(in + 3, s.v, sizeof *in * (size_t)s.n);
    rw_emit(r, OP_attention, in, 3 + s.n, a.attr, a.nattr, NULL, out);
    return true;
}
