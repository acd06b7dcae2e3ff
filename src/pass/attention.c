/* attention.c - attention written out in products and a softmax, and key heads repeated for grouped queries.
 *
 *     dot(softmax(dot(q, k) * scale + mask), v)        => attention(q, k, v, mask) {scale}
 *     attention(q, repeat(k), repeat(v))               => attention(q, k, v)
 *
 * Seen from the product with v. The scores are peeled outwards in: masks and biases (added, or chosen by select), the
 * factor, a soft cap c * tanh(x / c), down to a dot with the queries. Roles of dimensions come from dot's numbers: the
 * softmax dimension is the keys; of the dimensions that only the scores' query operand has, the one as long as the keys
 * is the query rows and the others are head groups; of the batch dimensions, those after the rows in the query operand
 * are heads. What was peeled off becomes `mask` and `bias` operands, which mask.c reads. A bias that depends on a
 * trainable parameter is left alone: attention gives it no gradient. Dropout between softmax and product becomes an
 * attribute of attention, with the same generator.
 */
#include "pass/rewrite.h"

#include <math.h>

static const double MASKED = -1e4; /* as in mask.c: a score that is not seen */

/* ---- grouped heads ---- */

/* x (B, S, H, D) whose heads are G heads repeated, each n times in a row: (B, S, G, D) and n; n = 1 when not */
static ir_val unrepeated(rw *r, ir_val x, ir_dim *n) {
    view w;
    view_of(r, x, VIEW_CHAIN, &w);
    *n = 1;
    int a = w.first[2], b = w.first[3];
    if (b == a || w.atom[b - 1].id >= 0) return x;
    for (int i = a; i < b - 1; i++)
        if (w.atom[i].id < 0) return x;
    *n = w.atom[b - 1].ext;
    int total = w.first[w.rank];
    memmove(&w.atom[b - 1], &w.atom[b], sizeof *w.atom * (size_t)(total - b));
    for (int d = 3; d <= w.rank; d++) w.first[d]--;
    return view_build(r, &w);
}

static bool fold_repeated(rw *r, const ir_node *n, ir_val *out) {
    ir_dim nk, nv;
    ir_val k = unrepeated(r, n->in[1], &nk), v = unrepeated(r, n->in[2], &nv);
    if (nk == 1 || nk != nv) return false;
    ir_val in[64];
    if (n->nin > 64) return false;
    memcpy(in, n->in, sizeof *in * (size_t)n->nin);
    in[1] = k;
    in[2] = v;
    rw_emit(r, OP_attention, in, n->nin, n->attr, n->nattr, NULL, out);
    return true;
}

/* ---- scores ---- */

enum { MAX_PARTS = 6 };

typedef struct scores {
    ir_val dot;        /* of queries and keys */
    double scale, cap; /* cap 0: none */
    int n;
    ir_val part[MAX_PARTS];
    bool is_mask[MAX_PARTS], negate[MAX_PARTS]; /* bool, visible where true (or false) */
    double times[MAX_PARTS];                    /* of a bias */
} scores;

static bool large_negative(const rw *r, ir_val v, double times) {
    double c;
    return rw_const(r, v, &c) && c * times <= MASKED;
}

/* Could v be the product of queries and keys with things around it? Follows the way to a dot. */
static bool leads_to_dot(const rw *r, ir_val v, int depth) {
    const ir_node *n = rw_def(r, v);
    if (depth > 12) return false;
    switch (n->op) {
    case OP_dot:
        return true;
    case OP_cast:
    case OP_tanh:
    case OP_neg:
        return leads_to_dot(r, n->in[0], depth + 1);
    case OP_add:
    case OP_sub:
    case OP_mul:
    case OP_div:
        return leads_to_dot(r, n->in[0], depth + 1) || leads_to_dot(r, n->in[1], depth + 1);
    case OP_select:
        return leads_to_dot(r, n->in[1], depth + 1) || leads_to_dot(r, n->in[2], depth + 1);
    default:
        return false;
    }
}

static bool peel(const rw *r, ir_val v, scores *s) {
    double c, times = 1; /* what v is multiplied by */
    s->scale = 1;
    for (int i = 0; i < 24; i++) {
        const ir_node *n = rw_def(r, v);
        switch (n->op) {
        case OP_dot:
            s->dot = v;
            s->scale = times;
            return true;
        case OP_cast:
            if (!dtype_is_float(rw_type(r, n->in[0])->t)) return false;
            v = n->in[0];
            break;
        case OP_neg:
            times = -times;
            v = n->in[0];
            break;
        case OP_div:
            if (!rw_const(r, n->in[1], &c) || c == 0) return false;
            times /= c;
            v = n->in[0];
            break;
        case OP_mul: {
            int k = rw_const(r, n->in[1], &c) ? 1 : rw_const(r, n->in[0], &c) ? 0 : -1;
            if (k < 0) return false;
            v = n->in[1 - k];
            if (rw_is(r, v, OP_tanh)) { /* cap * tanh(x / cap) */
                if (s->cap != 0 || times != 1 || c <= 0) return false;
                s->cap = c;
                times = c;
                v = rw_def(r, v)->in[0];
            } else {
                times *= c;
            }
            break;
        }
        case OP_add:
        case OP_sub: {
            int k = leads_to_dot(r, n->in[0], 0) ? 0 : 1;
            if (n->op == OP_sub && k == 1) return false;
            if (s->cap != 0 || s->n == MAX_PARTS || r->trainable.data[n->in[1 - k]]) return false;
            s->times[s->n] = n->op == OP_sub ? -times : times;
            s->is_mask[s->n] = false;
            s->part[s->n++] = n->in[1 - k];
            v = n->in[k];
            break;
        }
        case OP_select: {
            int k = large_negative(r, n->in[2], times) ? 1 : large_negative(r, n->in[1], times) ? 2 : 0;
            if (!k || s->cap != 0 || s->n == MAX_PARTS) return false;
            s->is_mask[s->n] = true;
            s->negate[s->n] = k == 2;
            s->part[s->n++] = n->in[0];
            v = n->in[k];
            break;
        }
        default:
            return false;
        }
    }
    return false;
}

/* ---- roles of dimensions ---- */

typedef struct numbers {
    const ir_dim *c[2], *b[2];
    int nc, nb;
} numbers;

static numbers numbers_of(const ir_node *n) {
    numbers d;
    d.nc = ir_dims(n, "lc", &d.c[0]);
    d.nb = ir_dims(n, "lb", &d.b[0]);
    ir_dims(n, "rc", &d.c[1]);
    ir_dims(n, "rb", &d.b[1]);
    return d;
}

static int find(const ir_dim *list, int n, int64_t d) {
    for (int i = 0; i < n; i++)
        if (list[i] == d) return i;
    return -1;
}

/* Result dimension of a dot for dimension `dim` of operand `side`; -1: contracted. */
static int result_dim(const rw *r, const ir_node *n, const numbers *d, int side, int dim) {
    int at = find(d->b[side], d->nb, dim);
    if (at >= 0) return at;
    if (find(d->c[side], d->nc, dim) >= 0) return -1;
    at = d->nb;
    for (int s = 0; s <= side; s++)
        for (int i = 0; i < rw_type(r, n->in[s])->rank; i++) {
            if (s == side && i == dim) return at;
            if (find(d->b[s], d->nb, i) < 0 && find(d->c[s], d->nc, i) < 0) at++;
        }
    return -1;
}

/* x's dimensions listed by `dims`, in that order, grouped by `count` into four; the rest must have extent 1. */
static ir_val arrange(rw *r, ir_val x, const int *dims, const int *count) {
    view id, w;
    view_identity(r, x, &id);
    w = id;
    w.rank = 4;
    int n = 0, k = 0;
    for (int g = 0; g < 4; g++) {
        w.first[g] = n;
        for (int i = 0; i < count[g]; i++, k++)
            for (int a = id.first[dims[k]]; a < id.first[dims[k] + 1]; a++) w.atom[n++] = id.atom[a];
    }
    w.first[4] = n;
    return n == id.norder ? view_build(r, &w) : -1;
}

typedef struct roles {
    /* dimensions of the scores: batch dimensions that are batches, batch dimensions that are heads, head groups (only
     * queries have them), query rows, keys */
    int b[IR_MAX_RANK], h[IR_MAX_RANK], g[IR_MAX_RANK], q, k;
    int nb, nh, ng;
} roles;

/* Dimensions of operand `side` of n that become result dimensions list[0..n). */
static bool operand_dims(const rw *r, const ir_node *n, const numbers *d, int side, const int *list, int count,
                         int *out) {
    for (int i = 0; i < count; i++) {
        out[i] = -1;
        for (int k = 0; k < rw_type(r, n->in[side])->rank; k++)
            if (result_dim(r, n, d, side, k) == list[i]) out[i] = k;
        if (out[i] < 0) return false;
    }
    return true;
}

static int join(int *out, const int *a, int na, const int *b, int nb) {
    for (int i = 0; i < na; i++) out[i] = a[i];
    for (int i = 0; i < nb; i++) out[na + i] = b[i];
    return na + nb;
}

/* Which dimensions of the scores are what; `kdim` is the softmax dimension; side 0 or 1 has the queries. */
static bool find_roles(const rw *r, const ir_node *qk, const numbers *d, int side, int kdim, roles *o) {
    const ir_type *q = rw_type(r, qk->in[side]), *t = rw_type(r, qk->out[0]);
    int rows = -1;
    memset(o, 0, sizeof *o);
    o->k = kdim;
    for (int i = 0; i < q->rank; i++) { /* the rows: as long as the keys; else the longest, else the first */
        int at = result_dim(r, qk, d, side, i);
        if (at < d->nb) continue;
        if (rows < 0 || (t->dim[at] == t->dim[kdim] && q->dim[rows] != t->dim[kdim])) rows = i;
    }
    if (rows < 0) return false;
    o->q = result_dim(r, qk, d, side, rows);
    for (int i = 0; i < q->rank; i++) {
        int at = result_dim(r, qk, d, side, i);
        if (at < 0 || i == rows) continue;
        if (at >= d->nb)
            o->g[o->ng++] = at;
        else if (i < rows && o->nb == 0)
            o->b[o->nb++] = at; /* one batch; heads may lie before the rows */
        else
            o->h[o->nh++] = at;
    }
    return true;
}

/* ---- the pattern ---- */

typedef struct match {
    const ir_node *n; /* the product with v */
    int ps, vs;       /* which of its operands are the probabilities and v */
    int ks;           /* which operand of the scores' product is the keys */
    int kdim;         /* the softmax dimension */
    numbers pv, d;    /* of n, of the scores' product */
    ir_node qk;       /* the scores' product */
    scores s;
    roles o;
    double drop_p; /* dropout between softmax and product, 0: none; */
    int64_t drop_id;
    ir_val rng;
} match;

static bool match_scores(const rw *r, const ir_node *n, int ps, match *m) {
    const ir_node *sm = rw_def(r, rw_uncast(r, n->in[ps])), *drop = NULL;
    if (sm->op == OP_dropout) {
        drop = sm;
        sm = rw_def(r, rw_uncast(r, sm->in[0]));
    }
    *m = (match){.n = n, .ps = ps, .vs = 1 - ps, .ks = -1, .kdim = (int)ir_int(sm, "dim", -1), .pv = numbers_of(n)};
    if (drop) {
        m->drop_p = ir_float(drop, "p", 0);
        m->drop_id = ir_int(drop, "id", 0);
        m->rng = drop->in[1];
    }
    if (sm->op != OP_softmax || m->pv.nc != 1 || m->pv.c[ps][0] != m->kdim) return false;
    if (!peel(r, sm->in[0], &m->s) || !rw_dims_equal(rw_type(r, m->s.dot), rw_type(r, sm->in[0]))) return false;
    m->qk = *rw_def(r, m->s.dot);
    m->d = numbers_of(&m->qk);
    /* the keys' operand is the one that has the softmax dimension for itself */
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < rw_type(r, m->qk.in[side])->rank; i++)
            if (result_dim(r, &m->qk, &m->d, side, i) == m->kdim && m->kdim >= m->d.nb) m->ks = side;
    return m->ks >= 0 && find_roles(r, &m->qk, &m->d, 1 - m->ks, m->kdim, &m->o);
}

/* The scores' dimensions in attention's order: batches, rows (queries or keys), heads, head groups. */
static int in_order(const roles *o, int rows, bool groups, int *list) {
    int m = join(list, o->b, o->nb, &rows, 1);
    return m + join(list + m, o->h, o->nh, o->g, groups ? o->ng : 0);
}

/* q as (B, Sq, H, D) or k as (B, Sk, G, D); -1 */
static ir_val query_or_key(rw *r, const match *m, bool key) {
    int side = key ? m->ks : 1 - m->ks, list[IR_MAX_RANK], dims[2 * IR_MAX_RANK];
    int n = in_order(&m->o, key ? m->o.k : m->o.q, !key, list);
    if (!operand_dims(r, &m->qk, &m->d, side, list, n, dims)) return -1;
    for (int i = 0; i < m->d.nc; i++) dims[n + i] = (int)m->d.c[side][i];
    if (n + m->d.nc != rw_type(r, m->qk.in[side])->rank) return -1;
    const int count[4] = {m->o.nb, 1, m->o.nh + (key ? 0 : m->o.ng), m->d.nc};
    return arrange(r, m->qk.in[side], dims, count);
}

/* v as (B, Sk, G, D): its batch dimensions pair with the scores' batches and heads, one is free; -1 */
static ir_val value_rows(rw *r, const match *m) {
    ir_val v = m->n->in[m->vs];
    int list[IR_MAX_RANK], dims[IR_MAX_RANK + 1], n = in_order(&m->o, m->o.k, false, list);
    if (m->pv.nb != m->o.nb + m->o.nh || rw_type(r, v)->rank != m->pv.nb + 2) return -1;
    for (int i = 0; i < n; i++) {
        int at = find(m->pv.b[m->ps], m->pv.nb, list[i]);
        if (at < 0 && list[i] != m->o.k) return -1;
        dims[i] = at < 0 ? (int)m->pv.c[m->vs][0] : (int)m->pv.b[m->vs][at];
    }
    for (int i = 0; i < m->pv.nb + 2; i++)
        if (find(m->pv.b[m->vs], m->pv.nb, i) < 0 && m->pv.c[m->vs][0] != i) dims[n] = i;
    const int count[4] = {m->o.nb, 1, m->o.nh, 1};
    return arrange(r, v, dims, count);
}

static bool fit_together(const rw *r, ir_val q, ir_val k, ir_val v) {
    if (q < 0 || k < 0 || v < 0) return false;
    const ir_type *tq = rw_type(r, q), *tk = rw_type(r, k), *tv = rw_type(r, v);
    int64_t heads, groups;
    return rw_dims_equal(tk, tv) && tq->dim[0] == tk->dim[0] && tq->dim[3] == tk->dim[3] && tq->t == tk->t &&
           tq->t == tv->t && dim_value(r->g, tq->dim[2], &heads) && dim_value(r->g, tk->dim[2], &groups) &&
           groups > 0 && heads % groups == 0;
}

/* What was peeled off the scores as (b, h, q, k) operands. */
static bool side_operands(rw *r, const match *m, ir_val *in, char *side, char *role, size_t size) {
    int dims[IR_MAX_RANK], n = join(dims, m->o.b, m->o.nb, m->o.h, m->o.nh);
    n += join(dims + n, m->o.g, m->o.ng, &m->o.q, 1);
    dims[n] = m->o.k;
    const int count[4] = {m->o.nb, m->o.nh + m->o.ng, 1, 1};
    for (int i = 0; i < m->s.n; i++) {
        ir_val x = m->s.part[i];
        if (m->s.is_mask[i] && m->s.negate[i]) x = rw_op1(r, OP_not, x, NO_ATTRS);
        if (!m->s.is_mask[i] && m->s.times[i] != 1)
            x = rw_op2(r, OP_mul, x, rw_splat(r, rw_type(r, x), m->s.times[i]), NO_ATTRS);
        while (rw_is(r, x, OP_expand)) x = rw_def(r, x)->in[0]; /* extents of 1 broadcast */
        if ((in[i] = arrange(r, x, dims, count)) < 0) return false;
        size_t a = strlen(side), b = strlen(role);
        snprintf(side + a, size - a, "%sbhqk", i ? " " : "");
        snprintf(role + b, size - b, "%s%s", i ? " " : "", m->s.is_mask[i] ? "mask" : "bias");
    }
    return true;
}

/* o (b, q, h g, D) as the old result: batches, then the free dimensions of each operand in order. */
static ir_val old_order(rw *r, const match *m, ir_val o) {
    const ir_type *ts = rw_type(r, m->s.dot), *to = rw_type(r, o);
    ir_dim split[IR_MAX_RANK];
    int list[IR_MAX_RANK], at_of[IR_MAX_RANK] = {0}, n = in_order(&m->o, m->o.q, true, list);
    for (int i = 0; i < n; i++) {
        at_of[list[i]] = i;
        split[i] = ts->dim[list[i]];
    }
    split[n++] = to->dim[3];
    int perm[IR_MAX_RANK], k = 0;
    for (int i = 0; i < m->pv.nb; i++) perm[k++] = at_of[m->pv.b[m->ps][i]];
    for (int x = 0; x < 2; x++) {
        if (x == m->vs) perm[k++] = n - 1;
        for (int i = 0; x == m->ps && i < ts->rank; i++)
            if (i != m->kdim && find(m->pv.b[m->ps], m->pv.nb, i) < 0) perm[k++] = at_of[i];
    }
    ASSERT(k == n);
    return rw_permute(r, rw_reshape(r, o, n, split), perm);
}

static bool from_primitives(rw *r, const ir_node *n, ir_val *out) {
    for (int ps = 0; ps < 2; ps++) { /* softmax(scores) on either side */
        match m;
        ir_val in[4 + MAX_PARTS], res[2];
        char side[64] = "", role[64] = "";
        if (!match_scores(r, n, ps, &m)) continue;
        in[0] = query_or_key(r, &m, false);
        in[1] = query_or_key(r, &m, true);
        in[2] = value_rows(r, &m);
        if (!fit_together(r, in[0], in[1], in[2])) continue;
        if (!side_operands(r, &m, in + 3, side, role, sizeof side)) continue;
        ir_attr attr[7];
        int na = 0, nside = m.s.n;
        attr[na++] = A_F("scale", m.s.scale);
        if (m.s.cap != 0) attr[na++] = A_F("softcap", m.s.cap);
        if (r->g->seq != r->g->seq_valid && rw_type(r, in[1])->dim[1] == r->g->seq)
            attr[na++] = A_I("kv_valid", r->g->seq_valid);
        if (m.drop_p > 0) {
            in[3 + nside] = m.rng;
            strcat(side, nside ? " r" : "r");
            strcat(role, nside++ ? " rng" : "rng");
            attr[na++] = A_F("drop_p", m.drop_p);
            attr[na++] = A_I("drop_id", m.drop_id);
        }
        if (nside) {
            attr[na++] = A_S("side", side);
            attr[na++] = A_S("roles", role);
        }
        rw_emit(r, OP_attention, in, 3 + nside, attr, na, NULL, res);
        out[0] = old_order(r, &m, res[0]);
        return true;
    }
    return false;
}

/* ---- trained biases ---- */

/* x (B, S, G, D) as (B, H, S, D), each head H / G times. */
static ir_val by_head(rw *r, ir_val x, ir_dim heads) {
    const ir_type t = *rw_type(r, x);
    if (t.dim[2] != heads) {
        ir_dim one[5] = {t.dim[0], t.dim[1], t.dim[2], 1, t.dim[3]}, many[5] = {0};
        memcpy(many, one, sizeof one);
        many[3] = dim_floordiv(r->g, heads, t.dim[2]);
        ir_dim flat[4] = {t.dim[0], t.dim[1], heads, t.dim[3]};
        x = rw_reshape(r, rw_expand(r, rw_reshape(r, x, 5, one), 5, many), 4, flat);
    }
    return rw_permute(r, x, (int[]){0, 2, 1, 3});
}

/* The general form: attention whose bias has a gradient becomes products and a softmax, with scores as a value. Takes
 * what the importer makes: a mask or bias of four dimensions, causality, dropout. */
static bool written_out(rw *r, const ir_node *n, ir_val *out) {
    bool trained = false;
    for (int i = 3; i < n->nin; i++) trained |= r->trainable.data[n->in[i]];
    const char *what = ir_str(n, "roles");
    if (!trained || ir_int(n, "window", 0) || ir_int(n, "window_ahead", 0) || ir_int(n, "kv_valid", 0)) return false;
    const ir_type tq = *rw_type(r, n->in[0]), tk = *rw_type(r, n->in[1]);
    ir_type ts = {tq.t, 4, {tq.dim[0], tq.dim[2], tq.dim[1], tk.dim[1]}}; /* scores */
    ir_dim batch[2] = {0, 1}, last[1] = {3}, rows[1] = {2};
    ir_val q = by_head(r, n->in[0], tq.dim[2]), k = by_head(r, n->in[1], tq.dim[2]),
           v = by_head(r, n->in[2], tq.dim[2]);
    ir_val s = rw_op2(r, OP_dot, q, k,
                      ATTRS(A_D("lc", 1, last), A_D("rc", 1, last), A_D("lb", 2, batch), A_D("rb", 2, batch)));
    double cap = ir_float(n, "softcap", 0), scale = ir_float(n, "scale", 1);
    s = rw_op2(r, OP_mul, s, rw_splat(r, &ts, cap > 0 ? scale / cap : scale), NO_ATTRS);
    if (cap > 0) s = rw_op2(r, OP_mul, rw_op1(r, OP_tanh, s, NO_ATTRS), rw_splat(r, &ts, cap), NO_ATTRS);
    ir_val rng = -1, hidden = rw_splat(r, &ts, -INFINITY);
    for (int i = 3; i < n->nin; i++) {
        if (*what == 'r') {
            rng = n->in[i];
        } else {
            if ((*what != 'm' && strncmp(what, "bias", 4) != 0) || rw_type(r, n->in[i])->rank != 4) return false;
            ir_val x = rw_expand(r, n->in[i], 4, ts.dim);
            if (*what == 'm')
                s = rw_op3(r, OP_select, x, s, hidden, NO_ATTRS);
            else
                s = rw_op2(r, OP_add, s, x, NO_ATTRS);
        }
        what += strcspn(what, " ");
        while (*what == ' ') what++;
    }
    if (ir_int(n, "causal", 0)) {
        ir_type index = {DT_I64, 4, {1, 1, tq.dim[1], tk.dim[1]}};
        ir_val at[2], one[IR_MAX_OUT];
        for (int d = 0; d < 2; d++) {
            bool seq = rw_is_seq(r, index.dim[2 + d]);
            rw_emit(r, OP_iota, NULL, 0, ATTRS(A_I("dim", 2 + d), A_I("seq", seq)), &index, one);
            at[d] = one[0];
        }
        ir_val see = rw_op2(r, OP_le, at[1], at[0], NO_ATTRS);
        s = rw_op3(r, OP_select, rw_expand(r, see, 4, ts.dim), s, hidden, NO_ATTRS);
    }
    ir_val top = rw_op1(r, OP_rmax, s, ATTRS(A_D("dims", 1, last)));
    ir_type rows_of = *rw_type(r, top);
    rows_of.rank = 4;
    rows_of.dim[3] = 1;
    ir_val off = rw_op2(r, OP_sub, s, rw_expand(r, rw_reshape(r, top, 4, rows_of.dim), 4, ts.dim), NO_ATTRS);
    ir_val sum = rw_op1(r, OP_sum, rw_op1(r, OP_exp, off, NO_ATTRS), ATTRS(A_D("dims", 1, last)));
    out[1] = rw_op2(r, OP_add, top, rw_op1(r, OP_log, sum, NO_ATTRS), NO_ATTRS); /* as a rule, nobody reads it */
    s = rw_op1(r, OP_softmax, s, ATTRS(A_I("dim", 3)));
    if (rng >= 0)
        s = rw_op2(r, OP_dropout, s, rng,
                   ATTRS(A_F("p", ir_float(n, "drop_p", 0)), A_I("id", ir_int(n, "drop_id", 0))));
    ir_val o = rw_op2(r, OP_dot, s, v,
                      ATTRS(A_D("lc", 1, last), A_D("rc", 1, rows), A_D("lb", 2, batch), A_D("rb", 2, batch)));
    out[0] = rw_permute(r, o, (int[]){0, 2, 1, 3});
    return true;
}

bool rw_attention(rw *r, const ir_node *n, ir_val *out) {
    if (n->op == OP_attention) return written_out(r, n, out) || fold_repeated(r, n, out);
    return n->op == OP_dot && from_primitives(r, n, out);
}
