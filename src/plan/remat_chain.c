/* remat_chain.c - a plan for every segment of a chain: the front of peak against time, and lower bounds.
 *
 * Walking the chain from its end, what the segments i..n need on top of what the ones before keep is
 *     R_i = max(W_i, B_i + R_{i+1}),   R_{n+1} = turn,
 * one number. Both R and T only grow with R_{i+1} and T_{i+1}, so that dominated suffixes can be dropped, and the
 * undominated pairs (R_1, T_1) are all budgets' answers at once. (Usual formulations walk forward with the budget
 * fixed and the bytes so far as the state: one run for each budget.)
 *
 * A front may grow by the factor of the plans at each segment; it is thinned to one state for each of 2^11 steps of a
 * power of two of R, the fastest. A state's numbers stay exact, so that a peak is never underestimated. With host bytes
 * there are many more plans and several runs, none of them optimal: these take 2^9 steps.
 */
#include "plan/remat.h"

#include <math.h>
#include <stdlib.h>

enum { STEPS_LOG = 11, HOST_STEPS_LOG = 9 };

typedef struct state {
    int64_t r, bytes, host;
    double t, cost; /* seconds; and with the price of host bytes */
    int next, plan; /* state of the suffix after this segment; our segment's plan */
} state;

typedef VEC(state) states;

/* What is kept to walk from a point to its plans. */
typedef struct back {
    int32_t next;
    int32_t plan;
} back;

typedef struct run {
    back **level; /* per segment: its states */
} run;

struct remat_curve {
    remat_points points;
    VEC(run) runs;
    int n;
    bool cut;
};

/* Number of the bucket of r: the exponent and `log` bits behind the leading one; increasing in r. */
static int bucket(int64_t r, int log) {
    if (r < 1 << log) return (int)r;
    int top = 63 - __builtin_clzll((unsigned long long)r);
    return ((top - log + 1) << log) + (int)(r >> (top - log) & ((1 << log) - 1));
}

static int buckets(int log) { return (64 - log + 1) << log; }

/* The best state of a bucket so far; cost INFINITY: none. */
typedef struct slot {
    double cost;
    int64_t r, host;
    int next, plan;
} slot;

static bool better(const slot *x, const slot *y) {
    if (x->cost != y->cost) return x->cost < y->cost;
    if (x->r != y->r) return x->r < y->r;
    return x->host < y->host;
}

/* One run of the program; plans with host bytes only in the first `with_host` segments, and a host byte as dear as
 * `price` seconds. */
static void solve(arena *a, const remat_chain *c, int with_host, double price, remat_curve *out) {
    run r = {.level = ARENA_ARRAY(a, back *, c->n + 1)};
    states cur = {0}, next = {0};
    state last = {.r = c->turn, .next = -1, .plan = -1};
    int log = with_host > 0 ? HOST_STEPS_LOG : STEPS_LOG, nslot = buckets(log);
    /* R only grows towards the front of the chain: what is above the cap stays there. Whole buckets, so that the
     * states below are those of a run without it. */
    int top = c->cap > 0 ? bucket(c->cap, log) : nslot - 1;
    slot *slots = malloc(sizeof *slots * (size_t)nslot); /* megabytes, of which a run touches little */
    ASSERT(slots);
    for (int b = 0; b < nslot; b++) slots[b].cost = INFINITY;
    vec_push(NULL, &cur, last);
    for (int i = c->n - 1; i >= 0; i--) {
        const remat_plans *p = &c->plans[c->cls[i]];
        int lo = nslot, hi = -1;
        for (int j = 0; j < p->n; j++) {
            const remat_plan *x = &p->data[j];
            if (x->host && i >= with_host) continue;
            /* Suffixes that the window hides give the same R: of those the last, which costs least, will do. */
            int from = 0;
            while (from + 1 < cur.n && x->bytes + cur.data[from + 1].r <= x->window &&
                   cur.data[from + 1].host + x->host <= c->host_budget)
                from++;
            double moved = price * (double)x->host;
            for (int k = from; k < cur.n; k++) {
                const state *rest = &cur.data[k];
                if (rest->host + x->host > c->host_budget) continue;
                slot s = {.r = max64(x->window, x->bytes + rest->r),
                          .host = rest->host + x->host,
                          .cost = rest->cost + x->seconds + moved,
                          .next = k,
                          .plan = j};
                int b = bucket(s.r, log);
                if (b > top) {
                    out->cut = true;
                    break; /* the next suffixes need more still */
                }
                if (!better(&s, &slots[b])) continue;
                slots[b] = s;
                lo = b < lo ? b : lo;
                hi = b > hi ? b : hi;
            }
        }
        double best = INFINITY;
        next.n = 0;
        for (int b = lo; b <= hi; b++) {
            const slot *s = &slots[b];
            if (s->cost < best) {
                const remat_plan *x = &p->data[s->plan];
                const state *rest = &cur.data[s->next];
                state fresh = {.r = s->r,
                               .bytes = rest->bytes + x->bytes,
                               .host = s->host,
                               .t = rest->t + x->seconds,
                               .cost = s->cost,
                               .next = s->next,
                               .plan = s->plan};
                best = s->cost;
                vec_push(NULL, &next, fresh);
            }
            slots[b].cost = INFINITY;
        }
        states swap = cur;
        cur = next;
        next = swap;
        r.level[i] = ARENA_ARRAY(a, back, cur.n);
        for (int k = 0; k < cur.n; k++) r.level[i][k] = (back){cur.data[k].next, cur.data[k].plan};
    }
    for (int k = 0; k < cur.n; k++) {
        remat_point pt = {.peak = c->resident + cur.data[k].r,
                          .seconds = cur.data[k].t,
                          .bytes = cur.data[k].bytes,
                          .host = cur.data[k].host,
                          .run = out->runs.n,
                          .state = k};
        vec_push(a, &out->points, pt);
    }
    vec_push(a, &out->runs, r);
    vec_free(&cur);
    vec_free(&next);
    free(slots);
}

static int point_cmp(const void *x, const void *y) {
    const remat_point *p = x, *q = y;
    if (p->peak != q->peak) return p->peak < q->peak ? -1 : 1;
    if (p->seconds != q->seconds) return p->seconds < q->seconds ? -1 : 1;
    if (p->host != q->host) return p->host < q->host ? -1 : 1;
    return p->run != q->run ? p->run - q->run : p->state - q->state;
}

remat_curve *remat_chain_solve(arena *a, const remat_chain *c) {
    remat_curve *out = ARENA_NEW(a, remat_curve);
    out->n = c->n;
    solve(a, c, 0, 0, out);
    /* The host takes early segments first, whose values wait longest, never the last one's, which come back at once. A
     * run for each eighth of the chain: together they hold every budget's best up to that step. */
    int tried = 0;
    for (int part = 1; part <= 8 && c->host_budget > 0; part++) {
        int with_host = (c->n - 1) * part / 8;
        if (with_host <= tried) continue;
        tried = with_host;
        solve(a, c, with_host, 0, out);
    }
    /* The host's budget is no part of a state, and free host bytes would be spent where the walk starts. Priced against
     * recomputation, from a little to more than all of it is worth, they go where they help most. */
    double all = 0;
    for (int i = 0; i < c->n; i++) {
        double most = 0;
        for (int j = 0; j < c->plans[c->cls[i]].n; j++) most = fmax(most, c->plans[c->cls[i]].data[j].seconds);
        all += most;
    }
    for (double price = 1.0 / 16; price <= 256 && c->host_budget > 0; price *= 8)
        solve(a, c, c->n - 1, price * all / (double)c->host_budget, out);
    remat_points *p = &out->points;
    if (p->n) qsort(p->data, (size_t)p->n, sizeof *p->data, point_cmp); /* none under a cap that is too low */
    int n = 0;
    for (int i = 0; i < p->n; i++)
        if (!n || p->data[i].seconds < p->data[n - 1].seconds) p->data[n++] = p->data[i];
    p->n = n;
    return out;
}

const remat_points *remat_curve_points(const remat_curve *c) { return &c->points; }

bool remat_curve_cut(const remat_curve *c) { return c->cut; }

int remat_curve_find(const remat_curve *c, int64_t budget) {
    int lo = -1, hi = c->points.n - 1; /* the last point within the budget: time decreases */
    while (lo < hi) {
        int mid = lo + (hi - lo + 1) / 2;
        if (c->points.data[mid].peak <= budget) {
            lo = mid;
        } else {
            hi = mid - 1;
        }
    }
    return lo;
}

void remat_curve_plans(const remat_curve *c, int point, int *plan) {
    const remat_point *p = &c->points.data[point];
    int k = p->state;
    for (int i = 0; i < c->n; i++) {
        const back *b = &c->runs.data[p->run].level[i][k];
        plan[i] = b->plan;
        k = b->next;
    }
}

void remat_chain_least(const remat_chain *c, int with_host, int *plan) {
    int64_t r = c->turn;
    for (int i = c->n - 1; i >= 0; i--) {
        const remat_plans *p = &c->plans[c->cls[i]];
        int best = -1;
        int64_t least = INT64_MAX;
        for (int j = 0; j < p->n; j++) {
            const remat_plan *x = &p->data[j];
            int64_t need = max64(x->window, x->bytes + r);
            if (x->host && i >= with_host) continue;
            if (need > least || (need == least && x->seconds >= p->data[best].seconds)) continue;
            best = j;
            least = need;
        }
        ASSERT(best >= 0);
        plan[i] = best;
        r = least;
    }
}

remat_point remat_chain_eval(const remat_chain *c, const int *plan) {
    remat_point p = {.run = -1};
    int64_t most = 0;
    for (int i = 0; i < c->n; i++) {
        const remat_plan *x = &c->plans[c->cls[i]].data[plan[i]];
        most = max64(most, p.bytes + x->window);
        p.bytes += x->bytes;
        p.host += x->host;
        p.seconds += x->seconds;
    }
    p.peak = c->resident + max64(most, p.bytes + c->turn);
    return p;
}

/* ---- the lower bound --------------------------------------------------------------------------- */

/* An edge of a hull: giving up `bytes` costs `price` seconds a byte. */
typedef struct slope {
    double price, bytes;
} slope;

static int slope_cmp(const void *x, const void *y) {
    const slope *p = x, *q = y;
    return p->price < q->price ? -1 : p->price > q->price;
}

/* The lower hull of a class, from its fastest plan to its leanest: the plans' own hull vertices, which are exact. Host
 * plans are left out: their bytes are given back as room. */
static int slopes_of(const remat_plans *p, slope *out, double *bytes, double *seconds) {
    const remat_plan *cur = NULL;
    int n = 0;
    for (int i = 0; i < p->n; i++)
        if (p->data[i].hull && (!cur || p->data[i].seconds < cur->seconds)) cur = &p->data[i];
    ASSERT(cur);
    *bytes = (double)cur->bytes;
    *seconds = cur->seconds;
    while (cur) { /* the next vertex down is the one at the least price */
        const remat_plan *next = NULL;
        double least = INFINITY;
        for (int i = 0; i < p->n; i++) {
            const remat_plan *x = &p->data[i];
            if (!x->hull || x->bytes >= cur->bytes) continue;
            double price = (x->seconds - cur->seconds) / (double)(cur->bytes - x->bytes);
            if (price < least || (price == least && x->bytes < next->bytes)) {
                least = price;
                next = x;
            }
        }
        if (next) out[n++] = (slope){least, (double)(cur->bytes - next->bytes)};
        cur = next;
    }
    return n;
}

/* Least time at which the first m segments keep at most `room` bytes, by their hulls. */
static double hull_time(const remat_chain *c, int m, double room) {
    VEC(slope) all = {0};
    double bytes = 0, seconds = 0;
    for (int i = 0; i < m; i++) {
        const remat_plans *p = &c->plans[c->cls[i]];
        slope *own = malloc(sizeof *own * (size_t)(p->n + 1));
        ASSERT(own);
        double b = 0, t = 0;
        int n = slopes_of(p, own, &b, &t);
        bytes += b;
        seconds += t;
        for (int j = 0; j < n; j++) vec_push(NULL, &all, own[j]);
        free(own);
    }
    if (all.n) qsort(all.data, (size_t)all.n, sizeof *all.data, slope_cmp);
    for (int i = 0; i < all.n && bytes > room; i++) {
        double take = fmin(all.data[i].bytes, bytes - room);
        seconds += take * all.data[i].price;
        bytes -= take;
    }
    vec_free(&all);
    return bytes > room * (1 + 1e-12) ? INFINITY : seconds;
}

double remat_chain_bound(const remat_chain *c, int64_t budget) {
    double room = (double)(budget - c->resident) + (double)c->host_budget;
    double most = hull_time(c, c->n, room - (double)c->turn);
    for (int m = 0; m < c->n; m++) {
        const remat_plans *p = &c->plans[c->cls[m]];
        int64_t least = INT64_MAX;
        for (int i = 0; i < p->n; i++) least = min64(least, p->data[i].window);
        most = fmax(most, hull_time(c, m, room - (double)least));
    }
    return most;
}
