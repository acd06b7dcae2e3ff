/* remat_chain.c - a plan for every segment of a chain: the front of peak against time, and lower bounds.
 *
 * Walking the chain from its end, what the segments i..n need on top of what the ones before keep is
 *     R_i = max(W_i, B_i + R_{i+1}),   R_{n+1} = turn,
 * one number. Both R and T only grow with R_{i+1} and T_{i+1}, so that dominated suffixes can be dropped, and the
 * undominated pairs (R_1, T_1) are all budgets' answers at once. (Usual formulations walk forward with the budget
 * fixed and the bytes so far as the state: one run for each budget.)
 *
 * A front may grow by the factor of the plans at each segment; it is thinned to one state for each of 2^11 steps of a
 * power of two of R, the fastest. A state's numbers stay exact, so that a peak is never underestimated.
 *
 * With host bytes H, which add up, the state is (R, H, T) and the front a surface: one state for each of 2^8 steps of R
 * and 8 of H to a power of two. It does not depend on the host's budget but for its end, so that more of it leaves all
 * points of less, and one surface serves all host budgets (remat_curve_within).
 */
#include "plan/remat.h"

#include <math.h>
#include <stdlib.h>

/* Steps of a power of two, as powers of two: of R without and with host bytes, of H; and below the most host bytes that
 * the chain can take, the powers of two whose steps are told apart. */
enum { STEPS_LOG = 11, STEPS_LOG_HOST = 8, HOST_LOG = 3, HOST_OCTAVES = 7 };

typedef struct state {
    int64_t r, bytes, host;
    double t;       /* seconds */
    int next, plan; /* state of the suffix after this segment; our segment's plan */
} state;

typedef VEC(state) states;

/* What is kept to walk from a point to its plans. */
typedef struct back {
    int32_t next;
    int32_t plan;
} back;

struct remat_curve {
    remat_points all;    /* the surface, by point_cmp */
    remat_points points; /* the front of one host budget */
    back **level;        /* per segment: its states */
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

/* Where states fall: a bucket of R and a bin of H. */
typedef struct grid {
    int log, nr, top;     /* of R: steps, buckets, the last one that is wanted */
    int first, nh, top_h; /* of H: the bucket that bin 1 starts with, bins, the last one wanted */
} grid;

static int bin(const grid *g, int64_t host) {
    int b = host ? bucket(host, HOST_LOG) - g->first + 1 : 0;
    return host && b < 1 ? 1 : b;
}

static grid grid_of(const remat_chain *c) {
    grid g = {.log = c->host_budget > 0 ? STEPS_LOG_HOST : STEPS_LOG, .nh = 1};
    g.nr = buckets(g.log);
    /* R only grows towards the front of the chain: what is above the cap stays there, and so does H. Whole buckets, so
     * that the states below are those of a run without it. */
    g.top = c->cap > 0 ? bucket(c->cap, g.log) : g.nr - 1;
    if (c->host_budget <= 0) return g;
    int64_t total = 0;
    for (int i = 0; i + 1 < c->n; i++) {
        int64_t most = 0;
        for (int j = 0; j < c->plans[c->cls[i]].n; j++) most = max64(most, c->plans[c->cls[i]].data[j].host);
        total += most;
    }
    g.first = bucket(total >> HOST_OCTAVES, HOST_LOG);
    g.top_h = bin(&g, min64(total, c->host_budget));
    g.nh = g.top_h + 1;
    return g;
}

/* The best state of a bucket so far; t INFINITY: none. */
typedef struct slot {
    double t;
    int64_t r, host;
    int next, plan;
} slot;

static bool better(const slot *x, const slot *y) {
    if (x->t != y->t) return x->t < y->t;
    if (x->r != y->r) return x->r < y->r;
    return x->host < y->host;
}

/* The slots that states have fallen into, as an interval of buckets; bins behind one another. */
typedef struct field {
    grid g;
    slot *slot;    /* nh x nr: megabytes, of which a run touches little */
    double *under; /* nr: the least time with fewer host bytes and at most this R */
    int lo, hi;
} field;

/* Puts segment x's plan number `plan` before the suffixes cur[from..to), which are in one bin of H and by R. */
static void extend(field *f, const remat_plan *x, int plan, const state *cur, int from, int to, bool *cut) {
    const int own = from < to ? bin(&f->g, cur[from].host) : 0;
    /* Suffixes that the window hides give the same R: of those the last, which costs least, will do, unless it takes
     * more host bytes. */
    for (int k = from; k + 1 < to && x->bytes + cur[k + 1].r <= x->window; k++)
        if (!x->host || bin(&f->g, cur[k + 1].host + x->host) <= bin(&f->g, cur[from].host + x->host)) from = k + 1;
    for (int k = from; k < to; k++) {
        slot s = {.t = cur[k].t + x->seconds,
                  .r = max64(x->window, x->bytes + cur[k].r),
                  .host = cur[k].host + x->host,
                  .next = k,
                  .plan = plan};
        int b = bucket(s.r, f->g.log), h = x->host ? bin(&f->g, s.host) : own;
        if (b > f->g.top) {
            *cut = true;
            return; /* the next suffixes need more still */
        }
        if (h > f->g.top_h) continue;
        slot *best = &f->slot[(size_t)h * (size_t)f->g.nr + (size_t)b];
        if (!better(&s, best)) continue;
        *best = s;
        f->lo = b < f->lo ? b : f->lo;
        f->hi = b > f->hi ? b : f->hi;
    }
}

/* Moves what no other state beats, by host bytes and R, from the slots to `out`. */
static void harvest(field *f, const remat_plans *p, const states *cur, states *out) {
    out->n = 0;
    for (int b = f->lo; b <= f->hi; b++) f->under[b] = INFINITY;
    for (int h = 0; h < f->g.nh; h++) {
        double best = INFINITY;
        for (int b = f->lo; b <= f->hi; b++) {
            slot *s = &f->slot[(size_t)h * (size_t)f->g.nr + (size_t)b];
            if (s->t < best && s->t < f->under[b]) {
                state fresh = {.r = s->r,
                               .bytes = cur->data[s->next].bytes + p->data[s->plan].bytes,
                               .host = s->host,
                               .t = s->t,
                               .next = s->next,
                               .plan = s->plan};
                vec_push(NULL, out, fresh);
            }
            best = fmin(best, s->t);
            f->under[b] = fmin(f->under[b], best);
            s->t = INFINITY;
        }
    }
    f->lo = f->g.nr;
    f->hi = -1;
}

static int point_cmp(const void *x, const void *y) {
    const remat_point *p = x, *q = y;
    if (p->peak != q->peak) return p->peak < q->peak ? -1 : 1;
    if (p->seconds != q->seconds) return p->seconds < q->seconds ? -1 : 1;
    if (p->host != q->host) return p->host < q->host ? -1 : 1;
    return p->state - q->state;
}

/* The surface; no points. */
static remat_curve *solve(arena *a, const remat_chain *c) {
    remat_curve *out = ARENA_NEW(a, remat_curve);
    states cur = {0}, next = {0};
    state last = {.r = c->turn, .next = -1, .plan = -1};
    field f = {.g = grid_of(c)};
    const size_t nslot = (size_t)f.g.nr * (size_t)f.g.nh;
    out->n = c->n;
    out->level = ARENA_ARRAY(a, back *, c->n + 1);
    f.lo = f.g.nr, f.hi = -1;
    f.slot = malloc(sizeof *f.slot * nslot);
    f.under = malloc(sizeof *f.under * (size_t)f.g.nr);
    ASSERT(f.slot && f.under);
    for (size_t b = 0; b < nslot; b++) f.slot[b].t = INFINITY;
    vec_push(NULL, &cur, last);
    for (int i = c->n - 1; i >= 0; i--) {
        const remat_plans *p = &c->plans[c->cls[i]];
        for (int from = 0, to; from < cur.n; from = to) {
            int h = bin(&f.g, cur.data[from].host);
            for (to = from + 1; to < cur.n && bin(&f.g, cur.data[to].host) == h; to++) {
            }
            for (int j = 0; j < p->n; j++) {
                const remat_plan *x = &p->data[j];
                if (x->host && (c->host_budget <= 0 || i == c->n - 1))
                    continue; /* the last's would come back at once */
                extend(&f, x, j, cur.data, from, to, &out->cut);
            }
        }
        harvest(&f, p, &cur, &next);
        states swap = cur;
        cur = next;
        next = swap;
        out->level[i] = ARENA_ARRAY(a, back, cur.n);
        for (int k = 0; k < cur.n; k++) out->level[i][k] = (back){cur.data[k].next, cur.data[k].plan};
    }
    for (int k = 0; k < cur.n; k++) {
        const state *s = &cur.data[k];
        remat_point pt = {.peak = c->resident + s->r, .seconds = s->t, .bytes = s->bytes, .host = s->host, .state = k};
        vec_push(a, &out->all, pt);
    }
    if (out->all.n) qsort(out->all.data, (size_t)out->all.n, sizeof *out->all.data, point_cmp); /* none: a low cap */
    vec_free(&cur);
    vec_free(&next);
    free(f.slot);
    free(f.under);
    return out;
}

remat_curve *remat_curve_within(arena *a, const remat_curve *c, int64_t host) {
    remat_curve *out = ARENA_NEW(a, remat_curve);
    double best = INFINITY;
    *out = *c;
    out->points = (remat_points){0};
    for (int i = 0; i < c->all.n; i++) {
        const remat_point *p = &c->all.data[i];
        if (p->host > host || p->seconds >= best) continue;
        best = p->seconds;
        vec_push(a, &out->points, *p);
    }
    return out;
}

int64_t remat_curve_more(const remat_curve *c, int64_t host, double limit) {
    int64_t more = INT64_MAX;
    for (int i = 0; i < c->all.n; i++)
        if (c->all.data[i].host > host && c->all.data[i].seconds < limit) more = min64(more, c->all.data[i].host);
    return more;
}

remat_curve *remat_chain_solve(arena *a, const remat_chain *c) {
    return remat_curve_within(a, solve(a, c), c->host_budget);
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
        const back *b = &c->level[i][k];
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
    remat_point p = {.state = -1};
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
