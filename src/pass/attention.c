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
 * trainable parameter is left alone: attention gives it no gradient.
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
    ir_val in[16];
    if (n->nin > 16) return false;
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

static ir_val side_operand(rw *r, ir_val part, const int *dims, const int *count) {
    while (rw_is(r, part, OP_expand)) part = rw_def(r, part)->in[0]; /* extents of 1 broadcast */
    ir_val v = arrange(r, part, dims, count);
    if (v >= 0) return v;
    return -1;
}

static bool from_primitives(rw *r, const ir_node *n, ir_val *out) {
    /* softmax(scores) on either side */
    for (int ps = 0; ps < 2; ps++) {
        ir_val p = rw_uncast(r, n->in[ps]);
        const ir_node *sm = rw_def(r, p);
        numbers pv = numbers_of(n);
        if (sm->op != OP_softmax || pv.nc != 1 || pv.c[ps][0] != ir_int(sm, "dim", -1)) continue;
        int kdim = (int)ir_int(sm, "dim", -1), vs = 1 - ps;
        scores s = {.dot = -1};
        if (!peel(r, sm->in[0], &s)) continue;
        const ir_node qk = *rw_def(r, s.dot);
        if (!rw_dims_equal(rw_type(r, s.dot), rw_type(r, sm->in[0]))) continue;
        numbers d = numbers_of(&qk);
        /* the keys' operand is the one that has the softmax dimension free */
        int ks = -1;
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < rw_type(r, qk.in[side])->rank; i++)
                if (result_dim(r, &qk, &d, side, i) == kdim && kdim >= d.nb) ks = side;
        if (ks < 0) continue;
        roles o;
        if (!find_roles(r, &qk, &d, 1 - ks, kdim, &o)) continue;
        /* q (b, q, h g, D) */
        int list[IR_MAX_RANK], dims[IR_MAX_RANK + 1], count[4], m;
        m = join(list, o.b, o.nb, &o.q, 1);
        m += join(list + m, o.h, o.nh, o.g, o.ng);
        if (!operand_dims(r, &qk, &d, 1 - ks, list, m, dims)) continue;
        for (int i = 0; i < d.nc; i++) dims[m + i] = (int)d.c[1 - ks][i];
        if (m + d.nc != rw_type(r, qk.in[1 - ks])->rank) continue;
        count[0] = o.nb, count[1] = 1, count[2] = o.nh + o.ng, count[3] = d.nc;
        ir_val q = arrange(r, qk.in[1 - ks], dims, count);
        /* k (b, k, h, D) */
        m = join(list, o.b, o.nb, &o.k, 1);
        m += join(list + m, o.h, o.nh, NULL, 0);
        if (!operand_dims(r, &qk, &d, ks, list, m, dims)) continue;
        for (int i = 0; i < d.nc; i++) dims[m + i] = (int)d.c[ks][i];
        if (m + d.nc != rw_type(r, qk.in[ks])->rank) continue;
        count[2] = o.nh;
        ir_val k = arrange(r, qk.in[ks], dims, count);
        /* v: its batch dimensions pair with the probabilities' b and h; one free dimension, the head size */
        if (pv.nb != o.nb + o.nh || rw_type(r, n->in[vs])->rank != pv.nb + 2) continue;
        bool ok = true;
        for (int i = 0; i < m; i++) {
            if (list[i] == o.k) {
                dims[i] = (int)pv.c[vs][0];
                continue;
            }
            int at = find(pv.b[ps], pv.nb, list[i]);
            ok &= at >= 0;
            dims[i] = at >= 0 ? (int)pv.b[vs][at] : 0;
        }
        if (!ok) continue;
        int vdim = -1;
        for (int i = 0; i < rw_type(r, n->in[vs])->rank; i++)
            if (find(pv.b[vs], pv.nb, i) < 0 && pv.c[vs][0] != i) vdim = i;
        dims[m] = vdim;
        count[3] = 1;
        ir_val v = arrange(r, n->in[vs], dims, count);
        if (q < 0 || k < 0 || v < 0) continue;
        const ir_type *tq = rw_type(r, q), *tk = rw_type(r, k), *tv = rw_type(r, v);
        int64_t heads, groups;
        if (!rw_dims_equal(tk, tv) || tq->dim[0] != tk->dim[0] || tq->dim[3] != tk->dim[3]) continue;
        if (tq->t != tk->t || tq->t != tv->t || !dim_value(r->g, tq->dim[2], &heads) ||
            !dim_value(r->g, tk->dim[2], &groups) || groups < 1 || heads % groups)
            continue;
        /* masks and biases, (b, h g, q, k) */
        ir_val in[3 + MAX_PARTS] = {q, k, v};
        char side[64] = "", role[64] = "";
        m = join(dims, o.b, o.nb, o.h, o.nh);
        m += join(dims + m, o.g, o.ng, &o.q, 1);
        dims[m] = o.k;
        count[0] = o.nb, count[1] = o.nh + o.ng, count[2] = 1, count[3] = 1;
        for (int i = 0; i < s.n && ok; i++) {
            ir_val x = s.part[i];
            if (s.is_mask[i] && s.negate[i]) x = rw_op1(r, OP_not, x, NO_ATTRS);
            if (!s.is_mask[i] && s.times[i] != 1)
                x = rw_op2(r, OP_mul, x, rw_splat(r, rw_type(r, x), s.times[i]), NO_ATTRS);
            in[3 + i] = side_operand(r, x, dims, count);
            ok = in[3 + i] >= 0;
            snprintf(side + strlen(side), sizeof side - strlen(side), "%sbhqk", i ? " " : "");
            snprintf(role + strlen(role), sizeof role - strlen(role), "%s%s", i ? " " : "",
                     s.is_mask[i] ? "mask" : "bias");
        }
        if (!ok) continue;
        ir_attr attr[5];
        int na = 0;
        attr[na++] = A_F("scale", s.scale);
        if (s.cap != 0) attr[na++] = A_F("softcap", s.cap);
        if (r->g->seq != r->g->seq_valid && tk->dim[1] == r->g->seq) attr[na++] = A_I("kv_valid", r->g->seq_valid);
        if (s.n) {
            attr[na++] = A_S("side", side);
            attr[na++] = A_S("roles", role);
        }
        ir_val res[2];
        rw_emit(r, OP_attention, in, 3 + s.n, attr, na, NULL, res);
        /* (b, q, h g, D) as the old result: batches, then the free dimensions of each operand in order */
        const ir_type *t = rw_type(r, n->out[0]), *ts = rw_type(r, s.dot);
        ir_dim split[IR_MAX_RANK + 2];
        int at_of[IR_MAX_RANK], nsplit = 0; /* scores' dimension -> dimension of the split output */
        m = join(list, o.b, o.nb, &o.q, 1);
        m += join(list + m, o.h, o.nh, o.g, o.ng);
        if (m + 1 > IR_MAX_RANK) continue;
        for (int i = 0; i < m; i++) {
            at_of[list[i]] = nsplit;
            split[nsplit++] = ts->dim[list[i]];
        }
        split[nsplit++] = tv->dim[3];
        ir_val y = rw_reshape(r, res[0], nsplit, split);
        int perm[IR_MAX_RANK], np = 0;
        for (int i = 0; i < pv.nb; i++) perm[np++] = at_of[pv.b[ps][i]];
        for (int x = 0; x < 2; x++) {
            if (x == vs) perm[np++] = nsplit - 1;
            for (int i = 0; x == ps && i < ts->rank; i++)
                if (i != kdim && find(pv.b[ps], pv.nb, i) < 0) perm[np++] = at_of[i];
        }
        ASSERT(np == t->rank && np == nsplit);
        out[0] = rw_permute(r, y, perm);
        return true;
    }
    return false;
}

bool rw_attention(rw *r, const ir_node *n, ir_val *out) {
    if (n->op == OP_attention) return fold_repeated(r, n, out);
    return n->op == OP_dot && from_primitives(r, n, out);
}
