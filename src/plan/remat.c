/* remat.c - one segment: closing a saved set, its schedule and window, the cut, and the front of plans.
 *
 * The network of the cut (T side: available in the backward):
 *
 *   S -> op      lambda * seconds   crossing it: the op runs again      (infinite: it must not)
 *   op -> value  bytes              crossing it: the value is saved     (infinite: a view, or it must not be)
 *   value -> op  infinite           an op that runs again needs its operands
 *   value -> T   infinite           the backward reads it
 *
 * A finite cut is a saved set and a set of ops to run again that together make every needed value available, its
 * capacity is B + lambda T, and every such pair is a cut: the relaxation is exact (a closure problem). PyTorch's and
 * AutoSP's partitioners are the special case with times 0 and infinity.
 */
#include "plan/remat.h"
#include "plan/mincut.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

/* Values that need no decision here: there in the backward whatever the plan. (The next segment keeps our result.) */
static bool given(const remat_val *v) { return v->flags & (REMAT_FREE | REMAT_INPUT | REMAT_SAVE | REMAT_OUT); }

/* Marks the forward values that the backward reads. Forward values: made by forward ops, or given. */
static void mark_needed(const remat_seg *s, uint8_t *need) {
    for (int i = 0; i < s->nbwd; i++)
        for (int j = 0; j < s->bwd[i].nin; j++) need[s->bwd[i].in[j]] = 1;
}

bool remat_complete(const remat_seg *s, remat_plan *p, bool *again) {
    uint8_t *need = calloc((size_t)s->nval, 1);
    ASSERT(need);
    mark_needed(s, need);
    bool ok = true;
    p->seconds = 0;
    p->bytes = p->host = 0;
    for (int i = s->nfwd - 1; i >= 0 && ok; i--) {
        const remat_op *op = &s->fwd[i];
        bool run = false;
        for (int j = 0; j < op->nout; j++) {
            int v = op->out[j];
            run |= need[v] && !p->saved[v] && !given(&s->val[v]);
        }
        if (again) again[i] = run;
        if (!run) continue;
        ok = !(op->flags & REMAT_BAN);
        p->seconds += op->seconds;
        for (int j = 0; j < op->nin; j++) need[op->in[j]] = 1;
    }
    for (int v = 0; v < s->nval; v++) {
        const remat_val *x = &s->val[v];
        bool always = x->flags & (REMAT_INPUT | REMAT_SAVE) && x->root == v;
        if (always && !p->saved[v]) p->saved[v] = REMAT_DEVICE;
        if (!always && !need[v]) p->saved[v] = REMAT_NO;
        if (!p->saved[v]) continue;
        ok = ok && x->root == v && !(x->flags & (REMAT_NOSAVE | REMAT_FREE));
        *(p->saved[v] == REMAT_HOST ? &p->host : &p->bytes) += x->bytes;
    }
    free(need);
    return ok;
}

/* ---- schedule and window ----------------------------------------------------------------------- */

typedef struct scheduler {
    const remat_seg *s;
    const remat_plan *p;
    const int *maker; /* value -> forward op, -1 */
    uint8_t *there;
    int *order, n;
} scheduler;

/* Runs what makes v again unless it is there: operands first. */
static void provide(scheduler *c, int v) {
    if (c->there[v] || c->maker[v] < 0) return;
    const remat_op *op = &c->s->fwd[c->maker[v]];
    for (int j = 0; j < op->nin; j++) provide(c, op->in[j]);
    for (int j = 0; j < op->nout; j++) c->there[op->out[j]] = 1;
    c->order[c->n++] = -1 - c->maker[v];
}

int remat_order(const remat_seg *s, const remat_plan *p, int *order) {
    int *maker = malloc(sizeof *maker * (size_t)(s->nval + 1));
    uint8_t *there = calloc((size_t)s->nval + 1, 1);
    ASSERT(maker && there);
    for (int v = 0; v < s->nval; v++) maker[v] = -1;
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) maker[s->fwd[i].out[j]] = i;
    for (int v = 0; v < s->nval; v++) there[v] = given(&s->val[v]) || p->saved[v];
    scheduler c = {s, p, maker, there, order, 0};
    for (int i = 0; i < s->nbwd; i++) {
        for (int j = 0; j < s->bwd[i].nin; j++) provide(&c, s->bwd[i].in[j]);
        order[c.n++] = i;
    }
    free(maker);
    free(there);
    return c.n;
}

/* An operand's storage that ends at op k and is as large as result r; -1 none. */
static int dying(const remat_seg *s, const remat_op *op, int r, int k, const uint8_t *alive, const uint8_t *stays,
                 const int *last) {
    for (int j = 0; j < op->nin; j++) {
        int x = s->val[op->in[j]].root;
        if (alive[x] && !stays[x] && last[x] == k && x != r && s->val[x].bytes == s->val[r].bytes) return x;
    }
    return -1;
}

/* The peak of a sequence of ops. live: bytes alive before it. A storage dies after the last op that touches it or a
 * view of it, unless it stays. birth: which storages are alive already. */
static int64_t peak_of(const remat_seg *s, const int *order, int n, bool backward, uint8_t *alive, const uint8_t *stays,
                       int *last) {
    int64_t live = 0, peak;
    for (int v = 0; v < s->nval; v++) last[v] = -1;
    for (int k = 0; k < n; k++) {
        const remat_op *op =
            order[k] < 0 || !backward ? &s->fwd[order[k] < 0 ? -1 - order[k] : order[k]] : &s->bwd[order[k]];
        for (int j = 0; j < op->nin; j++) last[s->val[op->in[j]].root] = k;
        for (int j = 0; j < op->nout; j++) last[s->val[op->out[j]].root] = k;
    }
    for (int v = 0; v < s->nval; v++) {
        if (last[v] < 0 && !stays[v]) alive[v] = 0; /* nothing touches it: dead before the first op */
        if (alive[v]) live += s->val[v].bytes;
    }
    peak = live;
    for (int k = 0; k < n; k++) {
        const remat_op *op =
            order[k] < 0 || !backward ? &s->fwd[order[k] < 0 ? -1 - order[k] : order[k]] : &s->bwd[order[k]];
        for (int j = 0; j < op->nout; j++) {
            int r = s->val[op->out[j]].root;
            if (alive[r] || s->val[r].flags & REMAT_FREE) continue;
            int heir = op->flags & REMAT_INPLACE ? dying(s, op, r, k, alive, stays, last) : -1;
            if (heir >= 0) {
                alive[heir] = 0;
                live -= s->val[heir].bytes;
            }
            alive[r] = 1;
            live += s->val[r].bytes;
        }
        peak = max64(peak, live + op->work);
        for (int pass = 0; pass < 2; pass++) {
            const int *list = pass ? op->out : op->in;
            for (int j = 0; j < (pass ? op->nout : op->nin); j++) {
                int r = s->val[list[j]].root;
                if (!alive[r] || stays[r] || last[r] != k) continue;
                alive[r] = 0;
                live -= s->val[r].bytes;
            }
        }
    }
    return peak;
}

void remat_window(const remat_seg *s, remat_plan *p, int64_t *fwd, int64_t *bwd) {
    size_t n = (size_t)s->nval + 1;
    uint8_t *alive = calloc(n, 1), *stays = calloc(n, 1);
    int *last = malloc(sizeof *last * n), *order = malloc(sizeof *order * (size_t)(s->nfwd + s->nbwd + 1));
    ASSERT(alive && stays && last && order);
    uint8_t *made = calloc(n, 1); /* by a forward op */
    ASSERT(made);
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) made[s->fwd[i].out[j]] = 1;
    int64_t staging = 0, f, b; /* a copy to or from the host is under way beside the largest value that goes */
    for (int v = 0; v < s->nval; v++)
        if (p->saved[v] == REMAT_HOST) staging = max64(staging, s->val[v].bytes);
    for (int v = 0; v < s->nval; v++) {
        alive[v] = (s->val[v].flags & REMAT_INPUT) && s->val[v].root == v;
        if (p->saved[v] == REMAT_DEVICE) stays[v] = 1;
        if (s->val[v].flags & REMAT_OUT) stays[s->val[v].root] = 1;
    }
    for (int i = 0; i < s->nfwd; i++) order[i] = i;
    f = peak_of(s, order, s->nfwd, false, alive, stays, last) + 2 * staging;
    int m = remat_order(s, p, order);
    for (int v = 0; v < s->nval; v++) {
        alive[v] = p->saved[v] || s->val[v].flags & REMAT_GRAD_IN;
        stays[v] = 0;
    }
    for (int i = 0; i < m; i++) { /* our result, if our backward reads it */
        const remat_op *op = order[i] < 0 ? &s->fwd[-1 - order[i]] : &s->bwd[order[i]];
        for (int j = 0; j < op->nin; j++)
            if (s->val[op->in[j]].flags & REMAT_OUT && order[i] >= 0) alive[s->val[op->in[j]].root] |= made[op->in[j]];
    }
    for (int i = 0; i < s->nbwd; i++)
        for (int j = 0; j < s->bwd[i].nout; j++) {
            int v = s->bwd[i].out[j];
            if (s->val[v].flags & REMAT_OUT) stays[s->val[v].root] = 1;
        }
    b = peak_of(s, order, m, true, alive, stays, last) + 2 * staging;
    p->window = max64(f, b);
    if (fwd) *fwd = f;
    if (bwd) *bwd = b;
    free(made);
    free(alive);
    free(stays);
    free(last);
    free(order);
}

/* ---- the cut ----------------------------------------------------------------------------------- */

/* The network, built once; only the capacities S -> op change with lambda. Node 0 is S, 1 is T, then ops, then values.
 */
typedef struct network {
    const remat_seg *s;
    plan_flow *f;
    int *edge;    /* op -> its edge from S */
    double scale; /* capacity of one byte */
    int64_t most; /* largest finite capacity of an op's edge */
    double bytes; /* that could be saved, all together */
    double total; /* seconds of all ops together */
} network;

static void network_build(arena *a, const remat_seg *s, network *net) {
    *net = (network){.s = s, .f = plan_flow_new(a, 2 + s->nfwd + s->nval), .edge = ARENA_ARRAY(a, int, s->nfwd)};
    uint8_t *need = ARENA_ARRAY(a, uint8_t, s->nval);
    mark_needed(s, need);
    for (int i = 0; i < s->nfwd; i++) {
        net->total += s->fwd[i].seconds;
        for (int j = 0; j < s->fwd[i].nout; j++) net->bytes += (double)s->val[s->fwd[i].out[j]].bytes;
    }
    /* All op edges together stay below half of infinity, and so do all bytes. */
    net->most = PLAN_INF / 2 / (s->nfwd + 1);
    net->scale = 1;
    while (net->scale < 1024 && 2 * net->scale * (net->bytes + 1) < (double)net->most / 4) net->scale *= 2;
    for (int i = 0; i < s->nfwd; i++) {
        const remat_op *op = &s->fwd[i];
        net->edge[i] = plan_flow_edge(net->f, 0, 2 + i, PLAN_INF);
        for (int j = 0; j < op->nin; j++)
            if (!given(&s->val[op->in[j]])) plan_flow_edge(net->f, 2 + s->nfwd + op->in[j], 2 + i, PLAN_INF);
        for (int j = 0; j < op->nout; j++) {
            int v = op->out[j];
            const remat_val *x = &s->val[v];
            if (given(x)) continue;
            bool fixed = x->root != v || x->flags & REMAT_NOSAVE;
            plan_flow_edge(net->f, 2 + i, 2 + s->nfwd + v, fixed ? PLAN_INF : (int64_t)((double)x->bytes * net->scale));
            if (need[v]) plan_flow_edge(net->f, 2 + s->nfwd + v, 1, PLAN_INF);
        }
    }
}

/* Value v's node is cut off from its op's: saved. */
static sp_status network_cut(arena *a, network *net, double lambda, remat_plan *p) {
    const remat_seg *s = net->s;
    for (int i = 0; i < s->nfwd; i++) {
        double cap = s->fwd[i].seconds > 0 ? s->fwd[i].seconds * lambda * net->scale : 0;
        int64_t c = cap >= (double)net->most ? net->most : (int64_t)(cap + 0.5);
        plan_flow_set(net->f, net->edge[i], s->fwd[i].flags & REMAT_BAN ? PLAN_INF : c);
    }
    int64_t value;
    if (!plan_flow_solve(net->f, 0, 1, &value)) {
        const int *path;
        int n = plan_flow_path(net->f, &path);
        buf text = {0};
        for (int i = 1; i + 1 < n; i++) {
            int v = path[i] - 2 - s->nfwd;
            if (v >= 0) buf_printf(&text, "%s%d", text.n ? ", " : "", v);
        }
        err_set("a value that the backward needs can be neither saved nor computed again: values %s on the way from an "
                "op that must not run twice",
                text.data ? text.data : "none");
        buf_free(&text);
        return SP_FAIL;
    }
    *p = (remat_plan){.saved = ARENA_ARRAY(a, uint8_t, s->nval)};
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) {
            int v = s->fwd[i].out[j];
            if (given(&s->val[v]) || !plan_flow_source_side(net->f, 2 + i)) continue;
            if (!plan_flow_source_side(net->f, 2 + s->nfwd + v)) p->saved[v] = REMAT_DEVICE;
        }
    ASSERT(remat_complete(s, p, NULL));
    return SP_OK;
}

sp_status remat_cut(arena *a, const remat_seg *s, double lambda, remat_plan *out) {
    network net;
    network_build(a, s, &net);
    TRY(network_cut(a, &net, lambda, out));
    remat_window(s, out, NULL, NULL);
    return SP_OK;
}

/* ---- the hull ---------------------------------------------------------------------------------- */

/* Finds the vertices strictly between p (more bytes, less time) and q, in order. */
static sp_status between(arena *a, network *net, const remat_plan *p, const remat_plan *q, int depth,
                         remat_plans *out) {
    double db = (double)(p->bytes - q->bytes), dt = q->seconds - p->seconds;
    if (db <= 0 || dt <= 0 || depth > 64) return SP_OK;
    double lambda = db / dt;
    remat_plan m;
    TRY(network_cut(a, net, lambda, &m));
    double line = (double)p->bytes + lambda * p->seconds, at = (double)m.bytes + lambda * m.seconds;
    if (at >= line * (1 - 1e-9) || m.bytes >= p->bytes || m.bytes <= q->bytes) return SP_OK;
    TRY(between(a, net, p, &m, depth + 1, out));
    vec_push(a, out, m);
    return between(a, net, &m, q, depth + 1, out);
}

/* Vertices of the lower hull, most bytes first. */
static sp_status hull(arena *a, network *net, remat_plans *out) {
    remat_plan fast, lean;
    TRY(network_cut(a, net, INFINITY, &fast));
    /* The least bytes: all seconds together cost less than one byte. Rounding may leave seconds on the table there, so
     * take the fastest plan with those bytes, at the highest price that still gives them. */
    TRY(network_cut(a, net, net->total > 0 ? 0.5 / net->total : 1, &lean));
    double price = lean.seconds > 0 ? (double)lean.bytes / lean.seconds : 0;
    for (int i = 0; i < 10 && price > 0; i++, price /= 8) {
        remat_plan p;
        TRY(network_cut(a, net, price, &p));
        if (p.bytes != lean.bytes) continue;
        if (p.seconds < lean.seconds) lean = p;
        break;
    }
    vec_push(a, out, fast);
    TRY(between(a, net, &fast, &lean, 0, out));
    if (lean.bytes < fast.bytes) vec_push(a, out, lean);
    return SP_OK;
}

/* ---- all subsets of the candidates ------------------------------------------------------------- */

typedef struct cand {
    int v;
    double key;
} cand;

static int cand_cmp(const void *x, const void *y) {
    const cand *p = x, *q = y;
    if (p->key != q->key) return p->key > q->key ? -1 : 1;
    return p->v - q->v;
}

/* Which values may be worth saving, at most REMAT_CANDIDATES of them: not those with a single reader whose only result
 * is no larger, where saving the result is as good. Those that differ between hull vertices come first, then the
 * largest. */
static int candidates(arena *a, const remat_seg *s, const remat_plans *vertex, int *out) {
    uint8_t *need = ARENA_ARRAY(a, uint8_t, s->nval);
    int *reads = ARENA_ARRAY(a, int, s->nval), *reader = ARENA_ARRAY(a, int, s->nval), n = 0;
    cand *c = ARENA_ARRAY(a, cand, s->nval);
    mark_needed(s, need);
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nin; j++) {
            reads[s->fwd[i].in[j]]++;
            reader[s->fwd[i].in[j]] = i;
        }
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) {
            int v = s->fwd[i].out[j], saved = 0;
            const remat_val *x = &s->val[v];
            if (given(x) || x->root != v || x->flags & REMAT_NOSAVE || (!need[v] && !reads[v])) continue;
            if (!need[v] && reads[v] == 1 && s->fwd[reader[v]].nout == 1) {
                int w = s->fwd[reader[v]].out[0];
                const remat_val *y = &s->val[w];
                bool saveable = y->root == w && !(y->flags & REMAT_NOSAVE) && !given(y);
                if ((saveable && y->bytes <= x->bytes) || (y->root == w && given(y))) continue;
            }
            for (int k = 0; k < vertex->n; k++) saved += vertex->data[k].saved[v] != 0;
            c[n++] = (cand){v, (double)x->bytes + (saved && saved < vertex->n ? 1e18 : 0)};
        }
    qsort(c, (size_t)n, sizeof *c, cand_cmp);
    if (n > REMAT_CANDIDATES) n = REMAT_CANDIDATES;
    for (int i = 0; i < n; i++) out[i] = c[i].v;
    return n;
}

static int by_bytes(const void *x, const void *y) {
    const remat_plan *p = x, *q = y;
    if (p->bytes != q->bytes) return p->bytes < q->bytes ? -1 : 1;
    if (p->seconds != q->seconds) return p->seconds < q->seconds ? -1 : 1;
    return (int)q->hull - (int)p->hull;
}

/* Sorts by bytes and drops the plans with no less time than a leaner one. */
static void undominated(remat_plans *p) {
    if (!p->n) return;
    qsort(p->data, (size_t)p->n, sizeof *p->data, by_bytes);
    int n = 0;
    for (int i = 0; i < p->n; i++)
        if (!n || p->data[i].seconds < p->data[n - 1].seconds) p->data[n++] = p->data[i];
    p->n = n;
}

typedef struct subset {
    int64_t bytes;
    double seconds;
    int mask;
} subset;

static int subset_cmp(const void *x, const void *y) {
    const subset *p = x, *q = y;
    if (p->bytes != q->bytes) return p->bytes < q->bytes ? -1 : 1;
    if (p->seconds != q->seconds) return p->seconds < q->seconds ? -1 : 1;
    return p->mask - q->mask;
}

/* Tries every subset of the candidates, closed as in remat_complete, and adds the undominated ones to the plans, whose
 * first is the fastest hull vertex: what it saves besides the candidates stays saved. */
static void subsets(arena *a, const remat_seg *s, remat_plans *plans) {
    int c[REMAT_CANDIDATES], nc = candidates(a, s, plans, c), n = 0;
    uint8_t *need0 = ARENA_ARRAY(a, uint8_t, s->nval), *need = ARENA_ARRAY(a, uint8_t, s->nval);
    uint8_t *have = ARENA_ARRAY(a, uint8_t, s->nval), *fixed = ARENA_ARRAY(a, uint8_t, s->nval);
    subset *all = ARENA_ARRAY(a, subset, 1 << nc);
    mark_needed(s, need0);
    for (int v = 0; v < s->nval; v++) fixed[v] = plans->data[0].saved[v] && !given(&s->val[v]);
    for (int k = 0; k < nc; k++) fixed[c[k]] = 0;
    for (int v = 0; v < s->nval; v++) have[v] = given(&s->val[v]) || fixed[v];
    for (int mask = 0; mask < 1 << nc; mask++) {
        memcpy(need, need0, (size_t)s->nval);
        for (int k = 0; k < nc; k++) have[c[k]] = (uint8_t)(mask >> k & 1);
        subset x = {0, 0, mask};
        bool ok = true;
        for (int i = s->nfwd - 1; i >= 0 && ok; i--) {
            const remat_op *op = &s->fwd[i];
            bool run = false;
            for (int j = 0; j < op->nout; j++) run |= need[op->out[j]] && !have[op->out[j]];
            if (!run) continue;
            ok = !(op->flags & REMAT_BAN);
            x.seconds += op->seconds;
            for (int j = 0; j < op->nin; j++) need[op->in[j]] = 1;
        }
        for (int k = 0; k < nc && ok; k++) {
            if (!(mask >> k & 1)) continue;
            ok = need[c[k]]; /* else the subset without it is the same plan */
            x.bytes += s->val[c[k]].bytes;
        }
        for (int v = 0; v < s->nval && ok; v++)
            if (fixed[v] && need[v]) x.bytes += s->val[v].bytes;
        if (ok) all[n++] = x;
    }
    qsort(all, (size_t)n, sizeof *all, subset_cmp);
    double best = INFINITY;
    for (int i = 0; i < n; i++) {
        if (all[i].seconds >= best) continue;
        best = all[i].seconds;
        remat_plan p = {.saved = ARENA_ARRAY(a, uint8_t, s->nval)};
        for (int v = 0; v < s->nval; v++) p.saved[v] = fixed[v] ? REMAT_DEVICE : REMAT_NO;
        for (int k = 0; k < nc; k++)
            if (all[i].mask >> k & 1) p.saved[c[k]] = REMAT_DEVICE;
        ASSERT(remat_complete(s, &p, NULL));
        vec_push(a, plans, p);
    }
}

/* Marks the vertices of the lower convex hull; the plans are undominated and sorted by bytes. */
static void mark_hull(remat_plans *p) {
    int top = 0, *st = malloc(sizeof *st * (size_t)(p->n + 1));
    ASSERT(st);
    for (int i = 0; i < p->n; i++) {
        const remat_plan *z = &p->data[i];
        for (; top >= 2; top--) {
            const remat_plan *x = &p->data[st[top - 2]], *y = &p->data[st[top - 1]];
            double turn = (y->seconds - x->seconds) * (double)(z->bytes - x->bytes) -
                          (z->seconds - x->seconds) * (double)(y->bytes - x->bytes);
            if (turn < 0) break; /* y is below the line from x to z */
        }
        st[top++] = i;
        p->data[i].hull = false;
    }
    for (int i = 0; i < top; i++) p->data[st[i]].hull = true;
    free(st);
}

/* Thins to cap plans, evenly by rank, hull vertices first. */
static void thin(remat_plans *p, int cap) {
    int hulls = 0, others = 0, kept = 0, seen = 0, n = 0;
    for (int i = 0; i < p->n; i++) hulls += p->data[i].hull;
    others = p->n - hulls;
    int room = cap > hulls ? cap - hulls : 0;
    for (int i = 0; i < p->n; i++) {
        bool keep = p->data[i].hull;
        if (!keep) {
            seen++;
            keep = others <= room || (int64_t)seen * room / others > kept;
            kept += keep;
        }
        if (keep) p->data[n++] = p->data[i];
    }
    p->n = n;
}

sp_status remat_front(arena *a, const remat_seg *s, int cap, remat_plans *out) {
    arena *tmp = arena_new(); /* most plans are dropped */
    network net;
    network_build(tmp, s, &net);
    remat_plans p = {0};
    sp_status ok = hull(tmp, &net, &p);
    if (ok == SP_OK) {
        subsets(tmp, s, &p);
        undominated(&p);
        mark_hull(&p);
        thin(&p, cap);
        *out = (remat_plans){0};
        for (int i = 0; i < p.n; i++) {
            remat_plan x = p.data[i];
            x.saved = arena_memdup(a, x.saved, (size_t)s->nval);
            remat_window(s, &x, NULL, NULL);
            vec_push(a, out, x);
        }
    }
    arena_free(tmp);
    return ok;
}

/* ---- host offload ------------------------------------------------------------------------------ */

/* What may go: not what another segment's backward reads, at a time that is not ours to know. */
static int cand_bytes(const remat_seg *s, const remat_plan *p, cand *c) {
    int n = 0;
    for (int v = 0; v < s->nval; v++)
        if (p->saved[v] == REMAT_DEVICE && s->val[v].bytes > 0 && !(s->val[v].flags & (REMAT_SAVE | REMAT_STAY)))
            c[n++] = (cand){v, (double)s->val[v].bytes};
    qsort(c, (size_t)n, sizeof *c, cand_cmp);
    return n;
}

void remat_offload(arena *a, const remat_seg *s, double rate, double fwd_s, double bwd_s, remat_plans *plans) {
    cand *c = ARENA_ARRAY(a, cand, s->nval);
    int n = plans->n;
    for (int i = 0; i < n; i++) {
        int m = cand_bytes(s, &plans->data[i], c);
        for (int k = 1; k <= m; k++) {                       /* the k largest go */
            if (k < m && c[k].key == c[k - 1].key) continue; /* equals go together: fewer plans, as good */
            remat_plan p = plans->data[i];
            p.hull = false;
            p.saved = arena_memdup(a, p.saved, (size_t)s->nval);
            for (int j = 0; j < k; j++) p.saved[c[j].v] = REMAT_HOST;
            ASSERT(remat_complete(s, &p, NULL));
            double copy = (double)p.host / rate;
            p.seconds += fmax(0, copy - fwd_s) + fmax(0, copy - bwd_s - p.seconds);
            remat_window(s, &p, NULL, NULL);
            vec_push(a, plans, p);
        }
    }
}
