/* save_search.c - the policies `budget` and `least`: which point of which front is taken.
 *
 * Why a search: the front's estimate of the peak does not know all copies that lowering makes, so a judge (lowering and
 * placement) has the last word. The budget that the front is asked for is corrected by what the judge found, until
 * the plan fits and is not needlessly lean; two or three candidates, usually, where trying the front's points in turn
 * would take hundreds.
 *
 * Requires: a model built with `exact`, a machine, a budget (policy budget). Keeps: nothing taken is above the budget
 * when it is lowered; the host is used only where that makes a step faster, or possible.
 */
#include "pass/save_impl.h"

#include <limits.h>
#include <math.h>

/* ---- host budgets ------------------------------------------------------------------------------ */

enum { OCTAVE = 8, FIRST = 256, RUNGS = OCTAVE * 54 }; /* from what a host copy is aligned to up to 2^62 */

int64_t save_rung(int rung) {
    return rung > 0 ? (int64_t)(OCTAVE + (rung - 1) % OCTAVE) * (FIRST / OCTAVE) << (rung - 1) / OCTAVE : 0;
}

int save_rungs(int64_t host) {
    int k = 0;
    while (k < RUNGS && save_rung(k + 1) <= host) k++;
    return k;
}

bool save_between(int rung) { return (rung - 1) % (OCTAVE / 2) != 0; }

void save_back_off(int rung, bool won, int *lost, int *wait) {
    *lost = won ? 0 : *lost + 1;
    *wait = rung + (won ? 1 : OCTAVE / 2 << min64(*lost - 1, 3));
}

/* ---- one front --------------------------------------------------------------------------------- */

typedef struct search {
    const save_model *m;
    const save_options *o;
    save_report *r;
    arena *a; /* of what is known */
    save_curves *curves;
    remat_chain chain;
    const remat_curve *surface; /* of all host budgets up to the chain's */
    const remat_curve *curve;   /* for `host` bytes of it */
    const remat_points *pts;
    int64_t host;
    save_judgements *known;
    const remat_plan **plan; /* by segment */
    int *choice;
} search;

/* The plans of all segments at a point of the front. */
static const remat_plan *const *taken(search *s, int point) {
    remat_curve_plans(s->curve, point, s->choice);
    for (int k = 0; k < s->m->nseg; k++) s->plan[k] = &s->chain.plans[s->m->cls[k]].data[s->choice[k]];
    return s->plan;
}

sp_status save_lowered(const save_options *o, const ir_graph *g, save_report *r, int64_t *bytes) {
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
    save_judged j = {.state = s->pts->data[point].state};
    for (int i = 0; i < s->known->n; i++)
        if (s->known->data[i].state == j.state) {
            *bytes = s->known->data[i].bytes;
            return SP_OK;
        }
    arena *a = arena_new();
    ir_graph *g;
    sp_status ok = save_emit(s->m, a, taken(s, point), &g);
    if (ok == SP_OK) ok = save_lowered(s->o, g, s->r, bytes);
    arena_free(a);
    j.bytes = *bytes;
    vec_push(s->a, s->known, j);
    return ok;
}

/* No plan fits: names what the leanest one takes. */
static sp_status too_small(const save_model *m, const save_options *o, const remat_plan *const *leanest, int64_t bytes,
                           save_report *r) {
    r->least = bytes;
    save_report_plans(m, leanest, r);
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
    save_curves *all = s->curves;
    struct save_curve fresh = {.key = key_of(s->m, &s->chain)};
    for (int i = 0; i < all->n; i++)
        if (all->data[i].key == fresh.key) return all->data[i].curve;
    fresh.curve = remat_chain_solve(all->a, &s->chain);
    vec_push(all->a, all, fresh);
    return fresh.curve;
}

/* A search over the chain with these plans of each class, and at most cap bytes by their estimates (0: all). */
static search search_of(search s, const remat_plans *plans, int64_t host_memory, int64_t cap) {
    s.a = s.m->a;
    s.chain = (remat_chain){.n = s.m->nseg, .cls = s.m->cls, .plans = plans, .host_budget = host_memory, .cap = cap};
    s.surface = s.curve = curve_of(&s);
    s.pts = remat_curve_points(s.curve);
    s.host = host_memory;
    if (cap > 0 && !s.pts->n) return search_of(s, plans, host_memory, 0);
    s.known = ARENA_NEW(s.a, save_judgements);
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

/* ---- the leanest ------------------------------------------------------------------------------- */

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

/* The estimates that tell which plan is leanest: from the fourth on with the host. */
static const remat_plans *least_set(const save_model *m, const save_class_plans *p, int k) {
    const remat_plans *sets[] = {p->whole, p->tiled, p->bare, p->whole, p->bare};
    return k < 5 ? sets[k] : save_leanest_on_host(m, p->bare);
}

/* The plan that takes the least when it is lowered, of those that the estimates call leanest and that take fewer than
 * `limit` seconds; the first of at most `enough` bytes when one is. moved: only plans with host bytes. tried: passes
 * over what by its estimate, corrected by what the same set's last plan took, is too much; NULL: tries all. Fails only
 * where lowering does; nothing is found where out->plans is NULL. */
static sp_status leanest(const save_model *m, const save_options *o, const save_class_plans *p, int64_t host,
                         bool moved, int64_t enough, double limit, save_tried *tried, save_report *r, found *out) {
    const remat_plan **seen[SAVE_LEANEST];
    int n = 0;
    *out = (found){.point = -1, .arena = INT64_MAX, .seconds = INFINITY};
    for (int k = moved ? 3 : 0; k < (host > 0 ? SAVE_LEANEST : 3) && out->arena > enough; k++) {
        int64_t b, estimate;
        double seconds;
        seen[n] = least_by_estimate(m, least_set(m, p, k), k < 3 ? 0 : host, &b, &seconds);
        estimate = b;
        bool skip = seconds >= limit;
        if (tried && tried->lean[k] != 0) skip |= estimate + tried->lean[k] > enough + enough / 64;
        for (int i = 0; i < n && !skip; i++) skip = same_plans(m, seen[i], seen[n]);
        if (skip) continue;
        if (o->lower) {
            arena *a = arena_new();
            ir_graph *g;
            sp_status ok = save_emit(m, a, seen[n], &g);
            if (ok == SP_OK) ok = save_lowered(o, g, r, &b);
            arena_free(a);
            TRY(ok);
        }
        if (tried) tried->lean[k] = b - estimate;
        if (b < out->arena)
            *out = (found){.set = SAVE_SETS + 1 + k, .point = -1, .arena = b, .seconds = seconds, .plans = seen[n]};
        out->s.host = host;
        n++;
    }
    return SP_OK;
}

static sp_status take_leanest(const save_model *m, const remat_plan *const *chosen, int64_t bytes, save_report *r,
                              ir_graph **out) {
    save_report_plans(m, chosen, r);
    r->arena = bytes;
    return save_emit(m, m->g->a, chosen, out);
}

sp_status save_least(const save_model *m, const save_options *o, save_report *r, ir_graph **out) {
    save_class_plans p;
    found lean;
    TRY(save_plans_find(m, o, &p));
    r->resident = m->resident;
    TRY(leanest(m, o, &p, save_rung(save_rungs(o->host_memory)), false, o->enough, INFINITY, NULL, r, &lean));
    return take_leanest(m, lean.plans, lean.arena, r, out);
}

/* ---- the fastest that fits ---------------------------------------------------------------------- */

/* Does the graph fit as it is, with everything kept? Written again by save_emit it may take a little more: another
 * order of the weights' casts. */
static sp_status unchanged(const save_model *m, const save_options *o, save_report *r, bool *fits) {
    *fits = false;
    if (!o->lower) return SP_OK;
    ir_graph g = *m->g; /* passes allocate in their input's arena and do not change it */
    int64_t bytes = 0;
    g.a = arena_new();
    sp_status ok = save_lowered(o, &g, r, &bytes);
    arena_free(g.a);
    TRY(ok);
    *fits = bytes <= o->memory;
    if (!*fits) return SP_OK;
    const remat_plan **chosen = ARENA_ARRAY(m->a, const remat_plan *, m->nseg);
    for (int k = 0; k < m->nseg; k++) {
        remat_plan *p = ARENA_NEW(m->a, remat_plan);
        *p = save_keep_all(m->a, &m->seg[k].s);
        ASSERT(remat_complete(&m->seg[k].s, p, NULL));
        remat_window(&m->seg[k].s, p, NULL, NULL);
        chosen[k] = p;
    }
    save_report_plans(m, chosen, r);
    r->arena = bytes;
    return SP_OK;
}

/* Seconds that no plan computes again less than, for any tiling. Where the backward starts, all that is kept is alive
 * at once, beside what is always there; in each segment's backward, all that the segments before it keep, beside what
 * is there whole under every plan. None of this is an estimate: these are buffers. */
static double bound_of(const save_model *m, const save_options *o, const remat_plans *plans, int64_t host) {
    remat_plans *bare = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    for (int c = 0; c < m->ncls; c++) {
        int64_t least = save_least_window(m, m->first[c]);
        for (int k = 0; k < plans[c].n; k++) {
            remat_plan p = plans[c].data[k];
            p.window = least;
            vec_push(m->a, &bare[c], p);
        }
    }
    remat_chain kept = {.n = m->nseg, .cls = m->cls, .plans = bare, .host_budget = host};
    return remat_chain_bound(&kept, o->memory - m->resident);
}

/* The policy's search: what it works on and what it has found. */
typedef struct budget_search {
    search s; /* what all fronts' have in common */
    save_class_plans p;
    const remat_plans *set[SAVE_SETS]; /* 0 and 1 without the host */
    int64_t cap;
    double limit; /* INFINITY, or of o->again_limit */
    found best, lean;
    found least; /* the leanest plan without the host, where the fronts had none that fits; plans NULL: not known */
    save_tried *tried;
} budget_search;

static search front_of(budget_search *b, int set) {
    search x = search_of(b->s, b->set[set], set < SAVE_SETS_WITHOUT_HOST ? 0 : INT64_MAX, b->cap);
    if (set >= SAVE_SETS_WITHOUT_HOST && x.chain.cap == b->cap) {
        x.a = b->tried->a;
        x.known = &b->tried->known[set];
    }
    return x;
}

static sp_status without_host(budget_search *b) {
    for (int k = 0; k < SAVE_SETS_WITHOUT_HOST && b->best.seconds > 0; k++) {
        search x = front_of(b, k);
        TRY(try_search(&x, k + 1, &b->best, &b->lean));
    }
    if (b->best.seconds < INFINITY) return SP_OK;
    /* The fronts are exact to their resolution only: the leanest plan may still fit. */
    TRY(leanest(b->s.m, b->s.o, &b->p, 0, false, b->s.o->memory, b->limit, NULL, b->s.r, &b->least));
    if (b->least.arena <= b->s.o->memory) b->best = b->least;
    return SP_OK;
}

/* The first rung from `rung` on on which there may be a plan of less than `limit` seconds: bounds fall with host bytes.
 */
static int first_rung(const budget_search *b, int rung, double limit) {
    int lo = rung - 1, hi = save_rungs(INT64_MAX) + 1;
    for (int mid = rung; hi - lo > 1; mid = lo + (hi - lo) / 2) {
        double bound = bound_of(b->s.m, b->s.o, b->p.whole, save_rung(mid));
        if (bound < INFINITY && bound < limit) {
            hi = mid;
        } else {
            lo = mid;
        }
    }
    return hi;
}

/* What this many host bytes allow that fewer did not: plans faster than all found so far, or, when there are none, the
 * leanest. Between the rungs 1 and 1.5 of an octave only the front that is best is looked at. */
static sp_status with_host(budget_search *b, int rung) {
    save_tried *t = b->tried;
    const int64_t host = save_rung(rung);
    int only = b->s.o->set;
    if (!only && save_between(rung) && save_on_host(b->best.set)) only = b->best.set;
    if (t->next > rung) return SP_OK;
    double limit = fmin(b->best.seconds, b->limit);
    t->next = first_rung(b, rung, limit);
    if (t->next > rung) return SP_OK;
    if (limit == INFINITY) {
        found last;
        TRY(leanest(b->s.m, b->s.o, &b->p, host, true, b->s.o->memory, INFINITY, t, b->s.r, &last));
        t->next = rung + 1;
        if (last.arena > b->s.o->memory) return SP_OK;
        b->best = last;
    }
    int wake = INT_MAX;
    int64_t more = INT64_MAX; /* fewest host bytes of what is out of reach */
    for (int k = SAVE_SETS_WITHOUT_HOST; k < SAVE_SETS && b->best.seconds > 0; k++) {
        search all = front_of(b, k), x = narrowed(all, host);
        bool fresh = false;
        limit = fmin(b->best.seconds, b->limit);
        for (int i = 0; i < x.pts->n; i++) fresh |= x.pts->data[i].host > t->last[k] && x.pts->data[i].seconds < limit;
        if (fresh && (only ? only == k + 1 : rung >= t->wait[k])) {
            t->last[k] = host;
            TRY(try_search(&x, k + 1, &b->best, &b->lean));
            save_back_off(rung, b->best.set == k + 1 && b->best.s.host == host, &t->lost[k], &t->wait[k]);
        } else if (fresh) {
            wake = (int)min64(wake, only ? rung + 1 : t->wait[k]);
        }
        more = min64(more, remat_curve_more(all.surface, host, fmin(b->best.seconds, b->limit)));
    }
    t->next = more == INT64_MAX ? wake : (int)min64(wake, max64(rung, save_rungs(more - 1)) + 1);
    return SP_OK;
}

/* Nothing fits: names what the leanest plan takes. */
static sp_status refuse(budget_search *b) {
    const save_model *m = b->s.m;
    const save_options *o = b->s.o;
    found last = b->least, *lean = &b->lean;
    const int64_t host = save_rung(save_rungs(o->host_memory));
    if (host > 0 || !last.plans) TRY(leanest(m, o, &b->p, host, false, o->memory, INFINITY, NULL, b->s.r, &last));
    ASSERT(last.arena > o->memory);
    if (lean->point >= 0 && lean->arena < last.arena) return too_small(m, o, taken(&lean->s, 0), lean->arena, b->s.r);
    return too_small(m, o, last.plans, last.arena, b->s.r);
}

/* What a search has found already. */
static void take(budget_search *b, const save_taken *t) {
    int64_t peak;
    b->best = (found){.set = t->set, .point = t->point, .arena = t->arena};
    if (t->set > SAVE_SETS) {
        int k = t->set - SAVE_SETS - 1;
        b->best.plans =
            least_by_estimate(b->s.m, least_set(b->s.m, &b->p, k), k < 3 ? 0 : t->host, &peak, &b->best.seconds);
        b->best.s.host = t->host;
    } else {
        b->best.s = narrowed(front_of(b, t->set - 1), t->host);
    }
}

sp_status save_budget(const save_model *m, const save_options *o, save_report *r, ir_graph **out) {
    save_tried none = {.a = m->a};
    save_curves curves = {.a = m->g->a}; /* fronts outlive the pass */
    budget_search b = {.s = {.m = m, .o = o, .r = r, .curves = o->curves ? o->curves : &curves},
                       .limit = o->again_limit > 0 ? o->again_limit : INFINITY,
                       .best = {.point = -1, .seconds = INFINITY},
                       .tried = o->tried ? o->tried : &none};
    const int64_t room = o->memory - m->resident;
    const int from = o->rung ? o->rung - 1 : 0, to = o->rung ? from : save_rungs(o->host_memory);
    TRY(save_plans_find(m, o, &b.p));
    r->resident = m->resident;
    r->bound = bound_of(m, o, b.p.whole, o->host_memory);
    b.lean = b.best;
    b.cap = o->trial && room > 0 ? 2 * room : 0;
    const remat_plans *sets[SAVE_SETS] = {b.p.whole, b.p.tiled, b.p.whole, b.p.bare, NULL};
    memcpy(b.set, sets, sizeof sets);
    if (o->host_memory > 0) b.set[SAVE_SETS - 1] = save_leanest_on_host(m, b.p.bare);
    bool fits = false;
    if (!o->take.set && from == 0) TRY(unchanged(m, o, r, &fits));
    if (fits) {
        search s = front_of(&b, 0);
        r->front = s.pts;
        r->point = s.pts->n - 1;
        *out = (ir_graph *)m->g;
        return SP_OK;
    }
    if (o->take.set) take(&b, &o->take);
    for (int k = from; k <= to && !o->take.set && b.best.seconds > 0; k++) TRY(k ? with_host(&b, k) : without_host(&b));
    if (b.best.seconds == INFINITY && o->again_limit > 0) FAIL("no plan computes again less than %g s", o->again_limit);
    if (b.best.seconds == INFINITY && from > 0 && o->trial)
        FAIL("no plan fits with %lld bytes on the host", (long long)save_rung(from));
    if (b.best.seconds == INFINITY) return refuse(&b);
    r->taken = (save_taken){b.best.set, b.best.point, b.best.s.host, b.best.arena};
    if (b.best.plans) {
        search s = front_of(&b, 0);
        r->front = s.pts;
        r->point = 0;
        return take_leanest(m, b.best.plans, b.best.arena, r, out);
    }
    search *s = &b.best.s;
    r->point = b.best.point;
    r->arena = b.best.arena;
    TRY(save_emit(m, m->g->a, taken(s, r->point), out));
    save_report_plans(m, s->plan, r);
    r->front = s->pts;
    return SP_OK;
}
