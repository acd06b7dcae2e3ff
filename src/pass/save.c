/* save.c - decides what is kept from the forward to the backward, what is computed again, and writes the graph.
 *
 * Why this algorithm: bytes alone do not decide (keeping the output of attention is worth more than keeping a norm's),
 * and neither do rules by operator (the same rule serves 8 GB and 80 GB). Seconds as the price of recomputing a value
 * and bytes as the price of keeping it make each layer's choice a minimum cut; all prices give a layer's front, a
 * dynamic program over the layers the front of the whole step (plan/remat.h). The estimate of the peak knows neither
 * in-place results nor copies of strided operands nor workspaces, so a judge (lowering and placement) has the last
 * word: the budget that the front is asked for is corrected by what the judge found, until the plan fits and is not
 * needlessly lean.
 *
 * The other policies are plans of the same machinery, for comparison: see save.h.
 *
 * Requires: a bound joint graph whose forward nodes have tag 0 and backward nodes tag 1 (pass_diff). Gives: the same
 * results, bit by bit; recomputing nodes have tag 2. Keeps: leaves, outputs, the order of forward and of backward
 * nodes.
 */
#include "pass/save.h"
#include "pass/save_impl.h"

#include <math.h>
#include <stdlib.h>

enum { PLANS = 64 }; /* kept for each class */

/* Every needed value is kept. */
static remat_plan keep_all(arena *a, const remat_seg *s) {
    remat_plan p = {.saved = ARENA_ARRAY(a, uint8_t, s->nval)};
    uint8_t *made = ARENA_ARRAY(a, uint8_t, s->nval);
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) made[s->fwd[i].out[j]] = 1;
    for (int i = 0; i < s->nbwd; i++)
        for (int j = 0; j < s->bwd[i].nin; j++) {
            int r = s->val[s->bwd[i].in[j]].root;
            if (made[r] && !(s->val[r].flags & (REMAT_FREE | REMAT_OUT))) p.saved[r] = REMAT_DEVICE;
        }
    return p;
}

/* Nothing but the boundary is kept, and what must not run twice. */
static sp_status keep_boundary(arena *a, const remat_seg *s, remat_plan *p) {
    *p = (remat_plan){.saved = ARENA_ARRAY(a, uint8_t, s->nval)};
    if (remat_complete(s, p, NULL)) return SP_OK;
    return remat_cut(a, s, 1e-30, p); /* something is banned: the plan with the least bytes */
}

/* ---- the report -------------------------------------------------------------------------------- */

static const char *name_of(const save_model *m, const save_seg *s) {
    for (int v = 0; v < s->s.nval; v++) {
        const ir_node *n = ir_def(m->g, m->root[s->val[v]]);
        if (n->op == OP_param) return ir_str(n, "name");
    }
    return "";
}

static void report_plans(const save_model *m, const remat_plan *const *chosen, save_report *r) {
    r->segments = m->nseg;
    r->classes = m->ncls;
    r->segment = ARENA_ARRAY(m->g->a, save_segment, m->nseg);
    r->kept = r->estimate = r->host = 0;
    r->again = r->comm_again = r->forward = r->backward = 0;
    for (int k = 0; k < m->nseg; k++) {
        const save_seg *s = &m->seg[k];
        const remat_plan *p = chosen[k];
        save_segment *x = &r->segment[k];
        bool *again = ARENA_ARRAY(m->a, bool, s->s.nfwd);
        remat_plan copy = *p;
        copy.saved = arena_memdup(m->a, p->saved, (size_t)s->s.nval);
        ASSERT(remat_complete(&s->s, &copy, again));
        *x = (save_segment){.name = name_of(m, s), .cls = s->cls, .kept = p->bytes, .window = p->window};
        x->again = p->seconds;
        x->host = copy.host;
        r->host += x->host;
        for (int v = 0; v < s->s.nval; v++) x->kept_values += copy.saved[v] != 0;
        for (int i = 0; i < s->s.nfwd; i++) {
            x->forward += s->s.fwd[i].seconds;
            if (!again[i] || s->s.fwd[i].seconds <= 0) continue;
            x->again_ops++;
            if (op_table[m->g->nodes.data[s->fwd[i]].op].flags & F_COLL) r->comm_again += s->s.fwd[i].seconds;
        }
        for (int i = 0; i < s->s.nbwd; i++) r->backward += s->s.bwd[i].seconds;
        r->estimate = max64(r->estimate, r->kept + x->window);
        r->kept += x->kept;
        r->forward += x->forward;
        r->again += x->again;
    }
}

/* ---- ours -------------------------------------------------------------------------------------- */

/* What points of a chain's surface took when they were lowered. */
typedef struct judged {
    int state; /* remat_point */
    int64_t bytes;
} judged;

typedef VEC(judged) judgements;

typedef struct search {
    const save_model *m;
    const save_options *o;
    save_report *r;
    remat_chain chain;
    const remat_curve *surface; /* of all host budgets up to the chain's */
    const remat_curve *curve;   /* for `host` bytes of it */
    const remat_points *pts;
    int64_t host;
    judgements *known;
    const remat_plan **plan; /* by segment */
    int *choice;
} search;

/* The plans of all segments at a point of the front. */
static const remat_plan *const *taken(search *s, int point) {
    remat_curve_plans(s->curve, point, s->choice);
    for (int k = 0; k < s->m->nseg; k++) s->plan[k] = &s->chain.plans[s->m->cls[k]].data[s->choice[k]];
    return s->plan;
}

/* The bytes of a rank when the graph is lowered and placed. */
static sp_status lowered(const save_options *o, const ir_graph *g, save_report *r, int64_t *bytes) {
    plan *p;
    ir_graph *done = (ir_graph *)g;
    r->rounds++;
    plan_options lower = *o->lower;
    if (o->trial) lower.judge = o->memory;
    if (o->finish) TRY(o->finish(o->ctx, g, &done));
    TRY(plan_build(done, &lower, &p));
    *bytes = p->memory.arena;
    r->resident = p->memory.arena - p->memory.section[SEC_WORK];
    return SP_OK;
}

/* What a point of the front really takes. Candidates live in an arena of their own. */
static sp_status try_point(search *s, int point, int64_t *bytes) {
    if (!s->o->lower) {
        *bytes = s->pts->data[point].peak;
        return SP_OK;
    }
    judged j = {.state = s->pts->data[point].state};
    for (int i = 0; i < s->known->n; i++)
        if (s->known->data[i].state == j.state) {
            *bytes = s->known->data[i].bytes;
            return SP_OK;
        }
    arena *a = arena_new();
    ir_graph *g;
    sp_status ok = save_emit(s->m, a, taken(s, point), &g);
    if (ok == SP_OK) ok = lowered(s->o, g, s->r, bytes);
    arena_free(a);
    j.bytes = *bytes;
    vec_push(s->m->a, s->known, j);
    return ok;
}

/* No plan fits: names what the leanest one takes. */
static sp_status too_small(const save_model *m, const save_options *o, const remat_plan *const *leanest, int64_t bytes,
                           save_report *r) {
    r->least = bytes;
    report_plans(m, leanest, r);
    char have[24], want[24];
    if (!o->lower)
        FAIL("--memory %s is too small: the least feasible budget is %s (%lld bytes), by estimate",
             human_bytes(o->memory, have), human_bytes(bytes, want), (long long)bytes);
    arena *a = arena_new();
    ir_graph *g;
    plan *p;
    sp_status ok = save_emit(m, a, leanest, &g);
    if (ok == SP_OK && o->finish) ok = o->finish(o->ctx, g, &g);
    if (ok == SP_OK) ok = plan_build(g, o->lower, &p);
    if (ok == SP_OK) ok = plan_refuse(p, o->memory, NULL);
    arena_free(a);
    return ok;
}

/* Of the points from `first` on: that one, or when it does not fit a later one that does, of a few. By kept bytes alone
 * (a bound from below) the leanest plans compute most again at once, and take more than those behind them. */
static sp_status probe(search *s, int first, int *point) {
    *point = first;
    for (int k = first, step = 1; k < s->pts->n && step <= 16; k += step, step *= 2) {
        int64_t bytes;
        if (k > first && s->pts->data[k].peak + s->m->resident > s->o->memory) break;
        TRY(try_point(s, k, &bytes));
        if (bytes > s->o->memory) continue;
        *point = k;
        break;
    }
    return SP_OK;
}

/* The fastest point that fits, -1 when none does (*least: the leanest's bytes): guess by the estimate and the last
 * candidate's correction, then close in. Only points of less than `limit` seconds count: the leanest of them is tried
 * first, and when it does not fit nothing else is. */
static sp_status fit(search *s, double limit, int *point, int64_t *least) {
    int first = 0;
    while (first < s->pts->n && s->pts->data[first].seconds >= limit) first++;
    int lo = first - 1, hi = s->pts->n, k; /* lo fits, hi does not */
    int64_t bytes = INT64_MAX, budget = s->o->memory;
    k = remat_curve_find(s->curve, budget - s->m->resident);
    if (k < 0 || first) k = first;
    if (first && first < hi && s->host > 0) TRY(probe(s, first, &k));
    for (int round = 0; hi - lo > 1; round++) {
        TRY(try_point(s, k, &bytes));
        if (budget <= 0 || bytes <= budget) {
            lo = k;
            s->r->arena = bytes;
            if (budget <= 0 || (round >= 4 && bytes > budget - budget / 500) || round >= 10) break;
        } else {
            hi = k;
        }
        int guess = remat_curve_find(s->curve, s->pts->data[k].peak + (budget - bytes));
        k = round < 6 ? guess : lo + (hi - lo) / 2;
        if (k <= lo) k = lo + 1;
        if (k >= hi) k = hi - 1;
    }
    *least = bytes;
    *point = lo < first ? -1 : lo;
    return SP_OK;
}

static uint64_t key_of(const save_model *m, const remat_chain *c) {
    uint64_t h = hash_bytes(HASH_INIT, c->cls, sizeof *c->cls * (size_t)c->n);
    int64_t sizes[] = {c->resident, c->turn, c->host_budget, c->cap};
    h = hash_bytes(h, sizes, sizeof sizes);
    for (int k = 0; k < m->ncls; k++)
        for (int i = 0; i < c->plans[k].n; i++) {
            const remat_plan *p = &c->plans[k].data[i];
            int64_t bytes[] = {k, p->bytes, p->window, p->host};
            h = hash_bytes(hash_bytes(h, bytes, sizeof bytes), &p->seconds, sizeof p->seconds);
        }
    return h;
}

static remat_curve *curve_of(const search *s) {
    save_curves *all = s->o->curves;
    if (!all) return remat_chain_solve(s->m->g->a, &s->chain); /* the front outlives the pass */
    struct save_curve fresh = {.key = key_of(s->m, &s->chain)};
    for (int i = 0; i < all->n; i++)
        if (all->data[i].key == fresh.key) return all->data[i].curve;
    fresh.curve = remat_chain_solve(all->a, &s->chain);
    vec_push(all->a, all, fresh);
    return fresh.curve;
}

/* A search over the chain with these plans of each class, and at most cap bytes by their estimates (0: all). */
static search search_of(search s, const remat_plans *plans, int64_t host_memory, int64_t cap) {
    s.chain = (remat_chain){.n = s.m->nseg, .cls = s.m->cls, .plans = plans, .host_budget = host_memory, .cap = cap};
    s.surface = s.curve = curve_of(&s);
    s.pts = remat_curve_points(s.curve);
    s.host = host_memory;
    if (cap > 0 && !s.pts->n) return search_of(s, plans, host_memory, 0);
    s.known = ARENA_NEW(s.m->a, judgements);
    s.plan = ARENA_ARRAY(s.m->a, const remat_plan *, s.m->nseg);
    s.choice = ARENA_ARRAY(s.m->a, int, s.m->nseg);
    return s;
}

/* A plan that was lowered. */
typedef struct found {
    search s;
    int set, point; /* which of the fronts, from 1; -1: none, or not on a front */
    int64_t arena;
    double seconds;           /* computed again; INFINITY: nothing found */
    const remat_plan **plans; /* of all segments, where it is not on a front */
} found;

/* The same search with fewer host bytes. */
static search narrowed(search s, int64_t host) {
    s.host = host;
    s.curve = remat_curve_within(s.m->g->a, s.surface, host); /* the front outlives the pass */
    s.pts = remat_curve_points(s.curve);
    return s;
}

/* Is a point of this search's front faster than the best? When none of it fits: is its leanest the leanest so far? */
static sp_status try_search(search *s, int set, found *best, found *lean) {
    int point;
    int64_t least;
    double limit = s->o->again_limit > 0 ? fmin(best->seconds, s->o->again_limit) : best->seconds;
    TRY(fit(s, limit, &point, &least));
    if (remat_curve_cut(s->curve) && point == s->pts->n - 1) { /* the estimates are more than twice too high */
        *s = narrowed(search_of(*s, s->chain.plans, s->chain.host_budget, 0), s->host);
        TRY(fit(s, limit, &point, &least));
    }
    if (point < 0 && (lean->point < 0 || least < lean->arena)) *lean = (found){*s, set, 0, least, INFINITY, NULL};
    double seconds = point < 0 ? INFINITY : s->pts->data[point].seconds;
    if (seconds < best->seconds) *best = (found){*s, set, point, s->r->arena, seconds, NULL};
    return SP_OK;
}

/* The same for every host budget in turn, powers of two and halfway between, from the fewest bytes that this front
 * moves up to the search's own. A front holds all that a smaller budget's has, or what beats it, by estimates; the
 * judge may see that otherwise. So the smaller ones are tried first, and larger ones add to what they found. Only
 * where a front has something new. */
static sp_status try_hosts(search *s, int set, found *best, found *lean) {
    int64_t last = -1, least = s->host;
    for (int i = 0; i < s->pts->n; i++)
        if (s->pts->data[i].host) least = min64(least, s->pts->data[i].host);
    int64_t power = 1;
    while (power <= least / 2) power *= 2;
    for (int64_t host = power; last < s->host; host += max64(power / 2, 1)) {
        if (host >= 2 * power) power *= 2;
        search x = narrowed(*s, min64(host, s->host));
        bool fresh = false;
        for (int i = 0; i < x.pts->n; i++)
            fresh |= x.pts->data[i].host > last && x.pts->data[i].seconds < best->seconds;
        last = x.host;
        if (fresh) TRY(try_search(&x, set, best, lean));
    }
    return SP_OK;
}

/* Adds plans that move values to the host. From the hull's plans only: the others differ from them by less than the
 * host changes. A moved value is charged its alignment in the host arena, and the window what prefetching brings in
 * early: a segment's host copies come back while the segment behind it, usually one like it, runs backward. */
static void add_host_plans(const save_model *m, const save_options *o, const remat_seg *s, remat_plans *plans) {
    enum { ALIGN = 256 };
    remat_plans some = {0};
    double fwd = 0, bwd = 0;
    for (int i = 0; i < s->nfwd; i++) fwd += s->fwd[i].seconds;
    for (int i = 0; i < s->nbwd; i++) bwd += s->bwd[i].seconds;
    for (int i = 0; i < plans->n; i++)
        if (plans->data[i].hull) vec_push(m->a, &some, plans->data[i]);
    int n = some.n;
    remat_offload(m->a, s, o->machine->host_bw, fwd, bwd, &some);
    for (int i = n; i < some.n; i++) {
        remat_plan *p = &some.data[i];
        p->window += p->host;
        for (int v = 0; v < s->nval; v++)
            if (p->saved[v] == REMAT_HOST) p->host += round_up(s->val[v].bytes, ALIGN) - s->val[v].bytes;
    }
    for (int i = n; i < some.n; i++) { /* those that no other plan beats */
        const remat_plan *x = &some.data[i];
        bool beaten = x->host > o->host_memory;
        for (int j = 0; j < some.n && !beaten; j++) {
            const remat_plan *y = &some.data[j];
            bool as_good =
                y->bytes <= x->bytes && y->window <= x->window && y->seconds <= x->seconds && y->host <= x->host;
            bool better = y->bytes < x->bytes || y->window < x->window || y->seconds < x->seconds || y->host < x->host;
            beaten = as_good && (better || j < i);
        }
        if (!beaten) vec_push(m->a, plans, *x);
    }
}

static int by_size(const void *x, const void *y) {
    return (*(const int64_t *)x > *(const int64_t *)y) - (*(const int64_t *)x < *(const int64_t *)y);
}

/* Bytes above which a value is wider than most: a quarter more than the median. What the pass `tile` looks for. */
static int64_t wide_bytes(const save_model *m) {
    VEC(int64_t) size = {0};
    for (int k = 0; k < m->nseg; k++) {
        const remat_seg *s = &m->seg[k].s;
        for (int v = 0; v < s->nval; v++)
            if (s->val[v].root == v && s->val[v].bytes > 0) vec_push(m->a, &size, s->val[v].bytes);
    }
    if (!size.n) return INT64_MAX;
    qsort(size.data, (size_t)size.n, sizeof *size.data, by_size);
    return size.data[size.n / 2] + size.data[size.n / 2] / 4;
}

/* A segment's plans with the windows that tiles leave: a value wider than most never exists whole unless it is kept, so
 * it counts nothing. What counts is what no tile shrinks: the operands of attention, say, that wait for its backward
 * while the MLP's runs. The front then knows that late segments should rather keep attention's result than compute it
 * again, and that early ones, which run beside fewer kept values, need not. s NULL: nothing counts but what is kept. */
static remat_plans in_tiles(const save_model *m, const remat_seg *s, int64_t wide, const remat_plans *plans) {
    remat_plans out = *plans;
    out.data = arena_memdup(m->a, plans->data, sizeof *plans->data * (size_t)plans->n);
    remat_val *val = s ? arena_memdup(m->a, s->val, sizeof *s->val * (size_t)s->nval) : NULL;
    for (int k = 0; k < out.n; k++) {
        remat_plan *p = &out.data[k];
        p->window = p->bytes;
        if (s) {
            remat_seg narrow = *s;
            narrow.val = val;
            for (int v = 0; v < s->nval; v++)
                val[v].bytes = !p->saved[v] && s->val[v].bytes > wide ? 0 : s->val[v].bytes;
            remat_window(&narrow, p, NULL, NULL);
        }
        p->window += p->host;
    }
    return out;
}

/* Each class's plans without the host, and with it the one that leaves least on the device for the fewest host bytes
 * (usually the layer's input moves, all else is computed again): near the floor the estimates of larger moves mislead.
 */
static remat_plans *leanest_on_host(const save_model *m, const remat_plans *plans) {
    remat_plans *out = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    for (int c = 0; c < m->ncls; c++) {
        const remat_plan *lean = NULL;
        for (int k = 0; k < plans[c].n; k++) {
            const remat_plan *x = &plans[c].data[k];
            if (!x->host) vec_push(m->a, &out[c], *x);
            if (x->host && (!lean || x->bytes < lean->bytes || (x->bytes == lean->bytes && x->host < lean->host)))
                lean = x;
        }
        if (lean) vec_push(m->a, &out[c], *lean);
    }
    return out;
}

/* Does the graph fit as it is, with everything kept? Written again by save_emit it may take a little more: another
 * order of the weights' casts. */
static sp_status unchanged(const save_model *m, const save_options *o, save_report *r, bool *fits) {
    *fits = false;
    if (!o->lower) return SP_OK;
    ir_graph g = *m->g; /* passes allocate in their input's arena and do not change it */
    int64_t bytes = 0;
    g.a = arena_new();
    sp_status ok = lowered(o, &g, r, &bytes);
    arena_free(g.a);
    TRY(ok);
    *fits = bytes <= o->memory;
    if (!*fits) return SP_OK;
    const remat_plan **chosen = ARENA_ARRAY(m->a, const remat_plan *, m->nseg);
    for (int k = 0; k < m->nseg; k++) {
        remat_plan *p = ARENA_NEW(m->a, remat_plan);
        *p = keep_all(m->a, &m->seg[k].s);
        ASSERT(remat_complete(&m->seg[k].s, p, NULL));
        remat_window(&m->seg[k].s, p, NULL, NULL);
        chosen[k] = p;
    }
    report_plans(m, chosen, r);
    r->arena = bytes;
    return SP_OK;
}

/* ---- the leanest ------------------------------------------------------------------------------- */

/* The plans of each class, three times: with the windows of segments that run whole; with those of segments that a
 * later pass tiles; by kept bytes alone. The judge sees them all. */
typedef struct class_plans {
    remat_plans *whole, *tiled, *bare;
} class_plans;

static sp_status find_plans(const save_model *m, const save_options *o, class_plans *out) {
    out->whole = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    out->tiled = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    out->bare = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    int64_t wide = wide_bytes(m);
    for (int c = 0; c < m->ncls; c++) {
        const remat_seg *x = &m->seg[m->first[c]].s;
        remat_plans *p = &out->whole[c];
        TRY_NOTE(remat_front(m->a, x, PLANS, p), "save: segment %d of %d", m->first[c] + 1, m->nseg);
        if (o->host_memory > 0) add_host_plans(m, o, x, p);
        out->tiled[c] = in_tiles(m, x, wide, p);
        out->bare[c] = in_tiles(m, NULL, 0, p);
    }
    return SP_OK;
}

/* The chain's leanest plan by these estimates; with a host, values of as many of the first segments as its memory
 * allows are moved there. *seconds: computed again. */
static const remat_plan **least_by_estimate(const save_model *m, const remat_plans *plans, int64_t host_memory,
                                            int64_t *peak, double *seconds) {
    remat_chain c = {.n = m->nseg, .cls = m->cls, .plans = plans, .host_budget = host_memory};
    int *choice = ARENA_ARRAY(m->a, int, m->nseg), with = 0;
    for (int lo = 0, hi = m->nseg; host_memory > 0 && hi - lo > 1;) { /* not the last's: they would come back at once */
        int mid = lo + (hi - lo) / 2;
        remat_chain_least(&c, mid, choice);
        if (remat_chain_eval(&c, choice).host <= host_memory)
            with = lo = mid;
        else
            hi = mid;
    }
    remat_chain_least(&c, with, choice);
    remat_point e = remat_chain_eval(&c, choice);
    *peak = e.peak;
    *seconds = e.seconds;
    const remat_plan **out = ARENA_ARRAY(m->a, const remat_plan *, m->nseg);
    for (int k = 0; k < m->nseg; k++) out[k] = &plans[m->cls[k]].data[choice[k]];
    return out;
}

/* The same values kept in every segment? */
static bool same_plans(const save_model *m, const remat_plan *const *x, const remat_plan *const *y) {
    for (int k = 0; k < m->nseg; k++)
        if (x[k]->saved != y[k]->saved) return false;
    return true;
}

/* The plan that takes the least when it is lowered, of those that the estimates call leanest and that take fewer than
 * `limit` seconds; the first of at most `enough` bytes when one is. Fails only where lowering does; nothing is found
 * where out->plans is NULL. */
static sp_status leanest(const save_model *m, const save_options *o, const class_plans *p, int64_t host, int64_t enough,
                         double limit, save_report *r, found *out) {
    const remat_plans *sets[] = {p->whole, p->tiled, p->bare, p->whole, p->bare, NULL};
    const remat_plan **seen[6];
    int n = 0;
    *out = (found){.point = -1, .arena = INT64_MAX, .seconds = INFINITY};
    if (host > 0) sets[5] = leanest_on_host(m, p->bare);
    for (int k = 0; k < (host > 0 ? 6 : 3) && out->arena > enough; k++) {
        int64_t b;
        double seconds;
        seen[n] = least_by_estimate(m, sets[k], k < 3 ? 0 : host, &b, &seconds);
        bool skip = seconds >= limit;
        for (int i = 0; i < n && !skip; i++) skip = same_plans(m, seen[i], seen[n]);
        if (skip) continue;
        if (o->lower) {
            arena *a = arena_new();
            ir_graph *g;
            sp_status ok = save_emit(m, a, seen[n], &g);
            if (ok == SP_OK) ok = lowered(o, g, r, &b);
            arena_free(a);
            TRY(ok);
        }
        if (b < out->arena) *out = (found){.point = -1, .arena = b, .seconds = seconds, .plans = seen[n]};
        n++;
    }
    return SP_OK;
}

static sp_status take_leanest(const save_model *m, const remat_plan *const *chosen, int64_t bytes, save_report *r,
                              ir_graph **out) {
    report_plans(m, chosen, r);
    r->arena = bytes;
    return save_emit(m, m->g->a, chosen, out);
}

static sp_status least_policy(const save_model *m, const save_options *o, save_report *r, ir_graph **out) {
    class_plans p;
    found lean;
    TRY(find_plans(m, o, &p));
    r->resident = m->resident;
    TRY(leanest(m, o, &p, o->host_memory, o->enough, INFINITY, r, &lean));
    return take_leanest(m, lean.plans, lean.arena, r, out);
}

/* ---- the fastest that fits ---------------------------------------------------------------------- */

/* Seconds that no plan computes again less than, for any tiling. Where the backward starts, all that is kept is alive
 * at once, beside what is always there; in each segment's backward, all that the segments before it keep, beside what
 * is there whole under every plan. None of this is an estimate: these are buffers. */
static double bound_of(const save_model *m, const save_options *o, const remat_plans *plans) {
    remat_plans *bare = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    for (int c = 0; c < m->ncls; c++) {
        int64_t least = save_least_window(m, m->first[c]);
        for (int k = 0; k < plans[c].n; k++) {
            remat_plan p = plans[c].data[k];
            p.window = least;
            vec_push(m->a, &bare[c], p);
        }
    }
    remat_chain kept = {.n = m->nseg, .cls = m->cls, .plans = bare, .host_budget = o->host_memory};
    return remat_chain_bound(&kept, o->memory - m->resident);
}

static sp_status budget_policy(const save_model *m, const save_options *o, save_report *r, ir_graph **out) {
    search s = {.m = m, .o = o, .r = r};
    class_plans p;
    TRY(find_plans(m, o, &p));
    /* First without the host: it is used only where that makes a step faster, or possible. */
    r->resident = m->resident;
    r->bound = bound_of(m, o, p.whole);
    bool fits = false;
    if (!o->take.set) TRY(unchanged(m, o, r, &fits));
    if (fits) {
        s = search_of(s, p.whole, 0, 0);
        r->front = s.pts;
        r->point = s.pts->n - 1;
        *out = (ir_graph *)m->g;
        return SP_OK;
    }
    found best = {.point = -1, .seconds = INFINITY}, lean = best;
    double limit = o->again_limit > 0 ? o->again_limit : INFINITY;
    int64_t room = o->memory - m->resident, cap = o->trial && room > 0 ? 2 * room : 0;
    remat_plans *sets[] = {p.whole, p.tiled, p.whole, p.bare, leanest_on_host(m, p.bare)};
    for (int k = 0; k < (o->host_memory > 0 ? 5 : 2); k++) {
        if (o->take.set && o->take.set != k + 1) continue;
        if (best.seconds <= 0) break;
        search x = search_of(s, sets[k], k < 2 ? 0 : o->host_memory, cap);
        if (o->take.set)
            best = (found){narrowed(x, o->take.host), k + 1, o->take.point, o->take.arena, 0, NULL};
        else
            TRY((k < 2 ? try_search : try_hosts)(&x, k + 1, &best, &lean));
        /* The fronts are exact to their resolution only: the leanest plan may still fit. Without the host before with.
         */
        if (k == 1 && best.seconds == INFINITY && !o->take.set) {
            found last;
            TRY(leanest(m, o, &p, 0, o->memory, limit, r, &last));
            if (last.arena <= o->memory) best = last;
        }
    }
    if (best.seconds == INFINITY && o->again_limit > 0) FAIL("no plan computes again less than %g s", o->again_limit);
    if (best.seconds == INFINITY) {
        found last;
        TRY(leanest(m, o, &p, o->host_memory, o->memory, limit, r, &last));
        if (last.arena > o->memory && lean.arena < last.arena) return too_small(m, o, taken(&lean.s, 0), lean.arena, r);
        if (last.arena > o->memory) return too_small(m, o, last.plans, last.arena, r);
        best = last;
    }
    if (best.plans) {
        s = lean.s;
        r->front = s.pts;
        r->point = 0;
        return take_leanest(m, best.plans, best.arena, r, out);
    }
    s = best.s;
    r->point = best.point;
    r->arena = best.arena;
    r->taken = (save_taken){best.set, best.point, s.host, best.arena};
    TRY(save_emit(m, m->g->a, taken(&s, r->point), out));
    report_plans(m, s.plan, r);
    r->front = s.pts;
    return SP_OK;
}

/* ---- entry ------------------------------------------------------------------------------------- */

static sp_status fixed_policy(const save_model *m, const char *policy, save_report *r, ir_graph **out) {
    const remat_plan **chosen = ARENA_ARRAY(m->a, const remat_plan *, m->nseg);
    bool all = strcmp(policy, "all") == 0 || strcmp(policy, "budget") == 0; /* no budget: nothing runs again */
    for (int k = 0; k < m->nseg; k++) {
        remat_plan *p = ARENA_NEW(m->a, remat_plan);
        const remat_seg *s = &m->seg[k].s;
        if (all) {
            *p = keep_all(m->a, s);
        } else if (strcmp(policy, "layer") == 0) {
            TRY_NOTE(keep_boundary(m->a, s, p), "save: segment %d of %d", k + 1, m->nseg);
        } else {
            TRY(save_rule_plan(m, strcmp(policy, "autosp") == 0, p));
        }
        ASSERT(remat_complete(s, p, NULL));
        remat_window(s, p, NULL, NULL);
        chosen[k] = p;
    }
    report_plans(m, chosen, r);
    if (all) {
        *out = (ir_graph *)m->g; /* nothing runs again */
    } else {
        TRY(save_emit(m, m->g->a, chosen, out));
    }
    return SP_OK;
}

/* Another policy's plan in place of a search: what it really takes; fails when that is above the budget. */
static sp_status stand_in(const save_model *m, const save_options *o, save_report *r, ir_graph **out) {
    TRY(fixed_policy(m, o->rule, r, out));
    r->bound = INFINITY; /* says nothing about other plans */
    if (!o->lower) return SP_OK;
    ir_graph g = **out; /* passes allocate in their input's arena and do not change it */
    g.a = arena_new();
    sp_status ok = lowered(o, &g, r, &r->arena);
    arena_free(g.a);
    TRY(ok);
    CHECK(strcmp(r->policy, "least") == 0 || r->arena <= o->memory, "the rule '%s' takes %lld bytes", o->rule,
          (long long)r->arena);
    return SP_OK;
}

sp_status pass_save(const ir_graph *joint, const save_options *o, save_report *r, ir_graph **out) {
    static const char *const policies[] = {"all", "layer", "pytorch", "autosp", "budget", "least"};
    *r = (save_report){.policy = NULL, .point = -1};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (strcmp(o->policy ? o->policy : "budget", policies[i]) == 0) r->policy = policies[i];
    CHECK(r->policy, "save.policy=%s is unknown; use all, pytorch, autosp, layer, budget or least", o->policy);
    const char *fixed = o->rule ? o->rule : r->policy;
    bool rule = strcmp(fixed, "pytorch") == 0 || strcmp(fixed, "autosp") == 0;
    arena *a = arena_new();
    save_model m;
    bool front = strcmp(fixed, "budget") == 0 && o->memory > 0, least = strcmp(fixed, "least") == 0;
    sp_status ok = save_model_build(a, joint, o, rule, front || least, &m);
    if (ok == SP_OK)
        ok = front     ? budget_policy(&m, o, r, out)
             : least   ? least_policy(&m, o, r, out)
             : o->rule ? stand_in(&m, o, r, out)
                       : fixed_policy(&m, fixed, r, out);
    arena_free(a);
    return ok;
}
