/* Tests of save-or-recompute (src/plan/remat.h).
 *
 * Oracles: all 2^n saved sets of small random segments, closed by a recursion of its own; lifetimes written out as
 * buffers and summed by place_live for the windows; all combinations of plans for short chains; Dijkstra over all live
 * sets of a small joint graph. The Llama segment has
 * the operators of one layer with their true byte and operation counts.
 */
#include "plan/remat.h"
#include "plan/place.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#ifdef AUTOSP_HAVE_GLPK
#include <glpk.h>
#endif

#include <cmocka.h>

static int below(uint64_t *rng, int n) { return (int)(rng_next(rng) % (uint64_t)n); }

enum { MAXV = 40, MAXOP = 40 };

/* A segment with room for what it points to. */
typedef struct toy {
    remat_seg s;
    remat_val val[MAXV];
    remat_op fwd[MAXOP], bwd[MAXOP];
    int in[2 * MAXOP][8], out[2 * MAXOP][2];
    int nlist;
} toy;

static int toy_val(toy *t, int64_t bytes, uint32_t flags) {
    int v = t->s.nval++;
    t->val[v] = (remat_val){bytes, v, flags};
    return v;
}

static remat_op *toy_op(toy *t, bool backward, double seconds, int nin, const int *in, int nout, const int *out) {
    int k = t->nlist++;
    for (int i = 0; i < nin; i++) t->in[k][i] = in[i];
    for (int i = 0; i < nout; i++) t->out[k][i] = out[i];
    remat_op *op = backward ? &t->bwd[t->s.nbwd++] : &t->fwd[t->s.nfwd++];
    *op = (remat_op){.seconds = seconds, .nin = nin, .nout = nout, .in = t->in[k], .out = t->out[k]};
    return op;
}

/* A random segment: x -> n forward ops, some with two results, some views, some banned; a backward that reads some. */
static void random_toy(uint64_t *rng, toy *t, int n, bool exact_times) {
    *t = (toy){0};
    t->s.val = t->val;
    t->s.fwd = t->fwd;
    t->s.bwd = t->bwd;
    int made[MAXV], m = 0;
    made[m++] = toy_val(t, 1 + below(rng, 9), REMAT_INPUT);
    made[m++] = toy_val(t, 50, REMAT_FREE);
    for (int i = 0; i < n; i++) {
        int in[3], out[2], nin = 1 + below(rng, 3), nout = below(rng, 5) == 0 ? 2 : 1;
        for (int j = 0; j < nin; j++) in[j] = made[m > 4 && below(rng, 3) ? m - 1 - below(rng, 4) : below(rng, m)];
        bool view = below(rng, 6) == 0;
        if (view) nin = nout = 1;
        for (int j = 0; j < nout; j++) {
            out[j] = toy_val(t, below(rng, 12), below(rng, 12) == 0 ? REMAT_NOSAVE : 0);
            made[m++] = out[j];
        }
        double seconds = exact_times ? below(rng, 8) : below(rng, 1000) / 64.0;
        if (view) {
            t->val[out[0]] = (remat_val){0, t->val[in[0]].root, 0};
            seconds = 0;
        }
        remat_op *op = toy_op(t, false, seconds, nin, in, nout, out);
        op->work = below(rng, 4);
        if (below(rng, 15) == 0 && !view) op->flags = REMAT_BAN;
    }
    int nf = t->s.nval, grad = toy_val(t, 5, REMAT_GRAD_IN), nb = 1 + below(rng, 5);
    for (int i = 0; i < nb; i++) {
        int in[3] = {grad, below(rng, nf), below(rng, nf)};
        grad = toy_val(t, 1 + below(rng, 9), i == nb - 1 ? REMAT_OUT : 0);
        toy_op(t, true, 0, 1 + below(rng, 3), in, 1, &grad);
    }
}

/* ---- all saved sets ----------------------------------------------------------------------------- */

typedef struct oracle {
    const toy *t;
    const uint8_t *saved;
    bool run[MAXOP], bad;
} oracle;

static void want(oracle *o, int v) {
    uint32_t f = o->t->val[v].flags;
    if (f & (REMAT_FREE | REMAT_INPUT | REMAT_SAVE) || o->saved[v]) return;
    for (int i = 0; i < o->t->s.nfwd; i++)
        for (int j = 0; j < o->t->fwd[i].nout; j++)
            if (o->t->fwd[i].out[j] == v && !o->run[i]) {
                o->run[i] = true;
                o->bad |= o->t->fwd[i].flags & REMAT_BAN;
                for (int k = 0; k < o->t->fwd[i].nin; k++) want(o, o->t->fwd[i].in[k]);
            }
}

/* Bytes and seconds of one saved set; false when it is not allowed or not enough. */
static bool price(const toy *t, const uint8_t *saved, int64_t *bytes, double *seconds) {
    oracle o = {.t = t, .saved = saved};
    *bytes = 0;
    *seconds = 0;
    for (int v = 0; v < t->s.nval; v++) {
        if (t->val[v].flags & REMAT_INPUT) *bytes += t->val[v].bytes;
        if (!saved[v]) continue;
        if (t->val[v].root != v || t->val[v].flags & REMAT_NOSAVE) return false;
        *bytes += t->val[v].bytes;
    }
    for (int i = 0; i < t->s.nbwd; i++)
        for (int j = 0; j < t->bwd[i].nin; j++) want(&o, t->bwd[i].in[j]);
    for (int i = 0; i < t->s.nfwd; i++)
        if (o.run[i]) *seconds += t->fwd[i].seconds;
    return !o.bad;
}

static int free_values(const toy *t, int *v) {
    int n = 0;
    for (int i = 0; i < t->s.nfwd; i++)
        for (int j = 0; j < t->fwd[i].nout; j++)
            if (t->val[t->fwd[i].out[j]].root == t->fwd[i].out[j]) v[n++] = t->fwd[i].out[j];
    return n;
}

static void cut_is_the_best_of_all_saved_sets(void **state) {
    (void)state;
    static const double lambda[6] = {0.01, 0.3, 1, 2.5, 7, 1000};
    uint64_t rng = 1;
    int solved = 0, refused = 0;
    for (int round = 0; round < 1200; round++) {
        toy t;
        random_toy(&rng, &t, 1 + below(&rng, 8), false);
        int v[MAXV], n = free_values(&t, v);
        double best[6];
        for (int k = 0; k < 6; k++) best[k] = INFINITY;
        for (int mask = 0; mask < 1 << n; mask++) {
            uint8_t saved[MAXV] = {0};
            for (int i = 0; i < n; i++) saved[v[i]] = mask >> i & 1;
            int64_t b;
            double s;
            if (!price(&t, saved, &b, &s)) continue;
            for (int k = 0; k < 6; k++) best[k] = fmin(best[k], (double)b + lambda[k] * s);
        }
        arena *a = arena_new();
        for (int k = 0; k < 6; k++) {
            remat_plan p;
            sp_status ok = remat_cut(a, &t.s, lambda[k], &p);
            assert_int_equal(ok == SP_OK, best[k] < INFINITY);
            if (ok != SP_OK) {
                assert_non_null(strstr(err_text(), "neither saved nor computed again"));
                refused++;
                continue;
            }
            int64_t b;
            double s;
            uint8_t saved[MAXV];
            memcpy(saved, p.saved, (size_t)t.s.nval);
            for (int i = 0; i < t.s.nval; i++)
                if (t.val[i].flags & REMAT_INPUT) saved[i] = 0; /* price() adds it */
            assert_true(price(&t, saved, &b, &s));
            assert_int_equal(b, p.bytes);
            assert_true(fabs(s - p.seconds) < 1e-9);
            /* capacities are whole 1/1024 bytes: half of one for each op */
            assert_true(fabs((double)b + lambda[k] * s - best[k]) < 0.5 / 1024 * (t.s.nfwd + 1));
            solved++;
        }
        arena_free(a);
    }
    if (solved <= 4000 || refused < 30) fail_msg("solved %d, refused %d", solved, refused);
}

/* Recomputing gets dearer: what runs again at a higher price also runs again at a lower one. */
static void recompute_sets_are_nested(void **state) {
    (void)state;
    uint64_t rng = 2;
    for (int round = 0; round < 400; round++) {
        toy t;
        random_toy(&rng, &t, 4 + below(&rng, 14), true);
        arena *a = arena_new();
        bool before[MAXOP];
        int64_t bytes = 0;
        for (int k = 0; k < 14; k++) {
            remat_plan p;
            if (remat_cut(a, &t.s, 0.05 * pow(1.7, k), &p) != SP_OK) break;
            bool again[MAXOP];
            assert_true(remat_complete(&t.s, &p, again));
            for (int i = 0; k && i < t.s.nfwd; i++)
                if (t.fwd[i].seconds > 0) assert_true(!again[i] || before[i]);
            assert_true(p.bytes >= bytes);
            bytes = p.bytes;
            memcpy(before, again, sizeof before);
        }
        arena_free(a);
    }
}

typedef struct pair {
    int64_t b;
    double s;
} pair;

static int pair_cmp(const void *x, const void *y) {
    const pair *p = x, *q = y;
    if (p->b != q->b) return p->b < q->b ? -1 : 1;
    return p->s < q->s ? -1 : p->s > q->s;
}

/* The front is the whole set of undominated plans, and its hull vertices are convex. */
static void front_is_complete(void **state) {
    (void)state;
    uint64_t rng = 3;
    int plans = 0;
    for (int round = 0; round < 400; round++) {
        toy t;
        random_toy(&rng, &t, 1 + below(&rng, 8), true);
        int v[MAXV], n = free_values(&t, v), m = 0;
        pair *all = calloc((size_t)1 << n, sizeof *all);
        for (int mask = 0; mask < 1 << n; mask++) {
            uint8_t saved[MAXV] = {0};
            for (int i = 0; i < n; i++) saved[v[i]] = mask >> i & 1;
            if (price(&t, saved, &all[m].b, &all[m].s)) m++;
        }
        qsort(all, (size_t)m, sizeof *all, pair_cmp);
        arena *a = arena_new();
        remat_plans f = {0};
        sp_status ok = remat_front(a, &t.s, 1000, &f);
        assert_int_equal(ok == SP_OK, m > 0);
        if (ok == SP_OK) {
            int k = 0;
            for (int i = 0; i < m; i++) {
                if (k && all[i].s >= all[k - 1].s) continue;
                all[k++] = all[i];
            }
            assert_int_equal(f.n, k);
            double slope = -INFINITY;
            int last = -1;
            for (int i = 0; i < k; i++) {
                assert_int_equal(f.data[i].bytes, all[i].b);
                assert_true(f.data[i].seconds == all[i].s);
                if (!f.data[i].hull) continue;
                if (last >= 0) {
                    double g =
                        (f.data[i].seconds - f.data[last].seconds) / (double)(f.data[i].bytes - f.data[last].bytes);
                    assert_true(g > slope);
                    slope = g;
                }
                last = i;
            }
            assert_int_equal(last, k - 1);
            assert_true(f.data[0].hull);
            plans += k;
        }
        arena_free(a);
        free(all);
    }
    if (plans < 800) fail_msg("%d plans", plans);
}

/* Windows: the schedule's lifetimes as buffers, summed by the memory planner's live bound. */
static int64_t live_of(const toy *t, const remat_plan *p, bool backward) {
    int order[2 * MAXOP], n = t->s.nfwd, nb = 0;
    place_buf b[2 * MAXV];
    for (int i = 0; i < n; i++) order[i] = -1 - i;
    if (backward) n = remat_order(&t->s, p, order);
    for (int r = 0; r < t->s.nval; r++) {
        const remat_val *x = &t->val[r];
        if (x->root != r || x->flags & REMAT_FREE) continue;
        int first = -1, last = -1;
        if (backward ? p->saved[r] || x->flags & REMAT_GRAD_IN : x->flags & REMAT_INPUT) first = 0;
        for (int k = 0; k < n; k++) {
            const remat_op *op = order[k] < 0 ? &t->fwd[-1 - order[k]] : &t->bwd[order[k]];
            bool touched = false;
            for (int j = 0; j < op->nin; j++) touched |= t->val[op->in[j]].root == r;
            for (int j = 0; j < op->nout; j++) touched |= t->val[op->out[j]].root == r;
            if (!touched) continue;
            if (first < 0) first = k + 1;
            last = k + 1;
        }
        if (first < 0) continue;
        if (!backward && p->saved[r]) last = n;
        if (backward && x->flags & REMAT_OUT) last = n;
        if (last < 0) continue; /* alive before, never touched */
        b[nb++] = (place_buf){x->bytes, first, last, 1, -1};
    }
    for (int k = 0; k < n; k++) {
        const remat_op *op = order[k] < 0 ? &t->fwd[-1 - order[k]] : &t->bwd[order[k]];
        b[nb++] = (place_buf){op->work, k + 1, k + 1, 1, -1};
    }
    int64_t bytes = 0;
    assert_int_equal(place_live(b, nb, NULL, &bytes, NULL), SP_OK);
    return bytes;
}

static void windows_are_the_live_bound(void **state) {
    (void)state;
    uint64_t rng = 4;
    int plans = 0;
    for (int round = 0; round < 300; round++) {
        toy t;
        random_toy(&rng, &t, 1 + below(&rng, 12), true);
        arena *a = arena_new();
        remat_plans f = {0};
        if (remat_front(a, &t.s, 20, &f) == SP_OK)
            for (int i = 0; i < f.n; i++, plans++) {
                int64_t fwd, bwd;
                remat_window(&t.s, &f.data[i], &fwd, &bwd);
                assert_int_equal(fwd, live_of(&t, &f.data[i], false));
                assert_int_equal(bwd, live_of(&t, &f.data[i], true));
                assert_int_equal(f.data[i].window, max64(fwd, bwd));
                /* the order has every backward op once, each op to run again once, each before its readers */
                int order[2 * MAXOP], n = remat_order(&t.s, &f.data[i], order);
                bool again[MAXOP], there[MAXV] = {0};
                assert_true(remat_complete(&t.s, &f.data[i], again));
                int runs = 0;
                for (int v = 0; v < t.s.nval; v++)
                    there[v] = f.data[i].saved[v] || t.val[v].flags & (REMAT_FREE | REMAT_GRAD_IN);
                for (int k = 0; k < n; k++) {
                    const remat_op *op = order[k] < 0 ? &t.fwd[-1 - order[k]] : &t.bwd[order[k]];
                    runs += order[k] < 0;
                    if (order[k] < 0) assert_true(again[-1 - order[k]]);
                    for (int j = 0; j < op->nin; j++) assert_true(there[op->in[j]]);
                    for (int j = 0; j < op->nout; j++) there[op->out[j]] = true;
                }
                for (int k = 0; k < t.s.nfwd; k++) runs -= again[k];
                assert_int_equal(runs, 0);
                assert_int_equal(n, t.s.nbwd + (n - t.s.nbwd));
            }
        arena_free(a);
    }
    assert_true(plans > 500);
}

/* x -> a (in place over nothing: x is kept) -> b (over a) -> c of another size: two of the three at a time. */
static void results_take_over_operands(void **state) {
    (void)state;
    toy t = {0};
    t.s.val = t.val;
    t.s.fwd = t.fwd;
    t.s.bwd = t.bwd;
    int x = toy_val(&t, 100, REMAT_INPUT), a = toy_val(&t, 100, 0), b = toy_val(&t, 100, 0),
        c = toy_val(&t, 70, REMAT_OUT);
    toy_op(&t, false, 1, 1, &x, 1, &a)->flags = REMAT_INPLACE;
    toy_op(&t, false, 1, 1, &a, 1, &b)->flags = REMAT_INPLACE;
    toy_op(&t, false, 1, 1, &b, 1, &c)->flags = REMAT_INPLACE;
    uint8_t saved[4] = {0};
    remat_plan p = {.saved = saved};
    int64_t fwd;
    assert_true(remat_complete(&t.s, &p, NULL));
    remat_window(&t.s, &p, &fwd, NULL);
    assert_int_equal(fwd, 100 + 100 + 70);
    t.fwd[1].flags = 0;
    remat_window(&t.s, &p, &fwd, NULL);
    assert_int_equal(fwd, 100 + 100 + 100);
}

/* ---- chains ------------------------------------------------------------------------------------- */

static void chain_is_the_best_of_all_combinations(void **state) {
    (void)state;
    uint64_t rng = 5;
    for (int round = 0; round < 150; round++) {
        arena *a = arena_new();
        remat_plans plans[2] = {{0}, {0}};
        for (int c = 0; c < 2; c++) {
            double s = 60;
            int64_t b = 1 + below(&rng, 5);
            for (int i = 0; i < 2 + below(&rng, 4); i++) {
                remat_plan p = {.bytes = b, .seconds = s, .window = b + below(&rng, 12)};
                vec_push(a, &plans[c], p);
                b += 1 + below(&rng, 6);
                s -= 1 + below(&rng, 12);
            }
        }
        int n = 1 + below(&rng, 5), cls[5];
        for (int i = 0; i < n; i++) cls[i] = below(&rng, 2);
        remat_chain c = {.n = n, .cls = cls, .plans = plans, .resident = 100, .turn = below(&rng, 20)};
        remat_curve *curve = remat_chain_solve(a, &c);
        const remat_points *pts = remat_curve_points(curve);
        double best[400];
        for (int m = 0; m < 400; m++) best[m] = INFINITY;
        int combos = 1, plan[5];
        for (int i = 0; i < n; i++) combos *= plans[cls[i]].n;
        for (int k = 0; k < combos; k++) {
            int rest = k;
            int64_t sum = 0, peak = 0;
            double s = 0;
            for (int i = 0; i < n; i++) {
                const remat_plan *p = &plans[cls[i]].data[rest % plans[cls[i]].n];
                rest /= plans[cls[i]].n;
                peak = max64(peak, sum + p->window);
                sum += p->bytes;
                s += p->seconds;
            }
            peak = 100 + max64(peak, sum + c.turn);
            assert_true(peak < 400);
            best[peak] = fmin(best[peak], s);
        }
        int low = 0; /* the least peak of all combinations, */
        while (best[low] == INFINITY) low++;
        remat_chain_least(&c, 0, plan);
        assert_int_equal(remat_chain_eval(&c, plan).peak, low);
        for (int m = 1; m < 400; m++) best[m] = fmin(best[m], best[m - 1]);
        for (int m = 0; m < 400; m++) {
            int k = remat_curve_find(curve, m);
            assert_int_equal(k >= 0, best[m] < INFINITY);
            if (k < 0) continue;
            assert_true(fabs(pts->data[k].seconds - best[m]) < 1e-9);
            remat_curve_plans(curve, k, plan);
            remat_point e = remat_chain_eval(&c, plan);
            assert_int_equal(e.peak, pts->data[k].peak);
            assert_true(e.peak <= m);
            assert_true(fabs(e.seconds - pts->data[k].seconds) < 1e-9);
            assert_int_equal(e.bytes, pts->data[k].bytes);
        }
        /* With a cap: the same points up to it, the same plans, and a word when there are more. */
        c.cap = 1 + below(&rng, 60);
        remat_curve *part = remat_chain_solve(a, &c);
        const remat_points *some = remat_curve_points(part);
        int upto = 0, with[5];
        while (upto < pts->n && pts->data[upto].peak <= c.resident + c.cap) upto++;
        assert_int_equal(some->n, upto);
        assert_true(remat_curve_cut(part) || upto == pts->n);
        assert_false(remat_curve_cut(curve));
        for (int k = 0; k < some->n; k++) {
            assert_int_equal(some->data[k].peak, pts->data[k].peak);
            assert_true(some->data[k].seconds == pts->data[k].seconds);
            remat_curve_plans(curve, k, plan);
            remat_curve_plans(part, k, with);
            for (int i = 0; i < n; i++) assert_int_equal(plan[i], with[i]);
        }
        arena_free(a);
    }
}

/* Random plans of two classes, most with host bytes; all numbers small enough (below `most`, `host`) to be told apart.
 */
static void random_host_plans(arena *a, uint64_t *rng, int most, int host, remat_plans *plans) {
    for (int c = 0; c < 2; c++)
        for (int i = 0, n = 2 + below(rng, 4); i < n; i++) {
            remat_plan p = {.bytes = 1 + below(rng, most), .seconds = 1 + below(rng, 40)};
            p.window = p.bytes + below(rng, most);
            p.host = i ? below(rng, host + 1) : 0;
            vec_push(a, &plans[c], p);
        }
}

/* Every peak and every host budget against all combinations; the last segment's values never move. */
static void hosts_are_the_best_of_all_combinations(void **state) {
    (void)state;
    enum { PEAK = 200, HOST = 16 };
    uint64_t rng = 11;
    for (int round = 0; round < 150; round++) {
        arena *a = arena_new();
        remat_plans plans[2] = {{0}, {0}};
        random_host_plans(a, &rng, 12, HOST / 3, plans);
        int n = 1 + below(&rng, 4), cls[4], plan[4];
        for (int i = 0; i < n; i++) cls[i] = below(&rng, 2);
        remat_chain c = {
            .n = n, .cls = cls, .plans = plans, .resident = 100, .turn = below(&rng, 20), .host_budget = HOST};
        const remat_curve *all = remat_chain_solve(a, &c);
        double best[HOST][PEAK];
        for (int h = 0; h < HOST; h++)
            for (int m = 0; m < PEAK; m++) best[h][m] = INFINITY;
        int combos = 1;
        for (int i = 0; i < n; i++) combos *= plans[cls[i]].n;
        for (int k = 0; k < combos; k++) {
            for (int i = 0, rest = k; i < n; rest /= plans[cls[i++]].n) plan[i] = rest % plans[cls[i]].n;
            if (plans[cls[n - 1]].data[plan[n - 1]].host) continue;
            remat_point e = remat_chain_eval(&c, plan);
            assert_true(e.peak < PEAK && e.host < HOST);
            for (int h = (int)e.host; h < HOST; h++)
                for (int m = (int)e.peak; m < PEAK; m++) best[h][m] = fmin(best[h][m], e.seconds);
        }
        for (int h = 0; h < HOST; h++) {
            const remat_curve *some = remat_curve_within(a, all, h);
            for (int m = 0; m < PEAK; m++) {
                int k = remat_curve_find(some, m);
                assert_int_equal(k >= 0, best[h][m] < INFINITY);
                if (k < 0) continue;
                const remat_point *p = &remat_curve_points(some)->data[k];
                assert_true(fabs(p->seconds - best[h][m]) < 1e-9);
                remat_curve_plans(some, k, plan);
                remat_point e = remat_chain_eval(&c, plan);
                assert_true(e.peak == p->peak && e.peak <= m && e.host == p->host && e.host <= h &&
                            e.bytes == p->bytes);
                assert_true(fabs(e.seconds - p->seconds) < 1e-9);
            }
        }
        arena_free(a);
    }
}

/* Where states are thinned: a smaller host budget's front is what a larger one's surface says of it, point by point. */
static void host_fronts_are_nested(void **state) {
    (void)state;
    uint64_t rng = 12;
    for (int round = 0; round < 20; round++) {
        arena *a = arena_new();
        remat_plans plans[2] = {{0}, {0}};
        random_host_plans(a, &rng, 1 << 24, 1 << 20, plans);
        int n = 2 + below(&rng, 20), cls[22];
        for (int i = 0; i < n; i++) cls[i] = below(&rng, 2);
        remat_chain c = {.n = n, .cls = cls, .plans = plans, .host_budget = (int64_t)n << 20};
        const remat_curve *all = remat_chain_solve(a, &c);
        for (int i = 0; i < 6; i++) {
            c.host_budget = 1 + below(&rng, n << 20);
            const remat_points *x = remat_curve_points(remat_chain_solve(a, &c));
            const remat_points *y = remat_curve_points(remat_curve_within(a, all, c.host_budget));
            assert_int_equal(x->n, y->n);
            for (int k = 0; k < x->n; k++) {
                assert_int_equal(x->data[k].peak, y->data[k].peak);
                assert_true(x->data[k].seconds == y->data[k].seconds && x->data[k].host == y->data[k].host);
            }
        }
        arena_free(a);
    }
}

/* ---- a Llama layer with true counts --------------------------------------------------------------- */

/* d 4096, 32 query and 8 key heads of 128, f 14336, bf16, S tokens over P ranks, GEMM 590 and attention 500
 * TFLOP/s, 2.7 TB/s, all-to-all 300 GB/s, 3 us a launch: assumed rates that only rank the values. */
typedef struct llama {
    toy t;
    double flops, mem, att, link, rows, seq;
} llama;

static int ew(llama *m, int nin, const int *in, double width, double extra) {
    int64_t bytes = (int64_t)(2 * m->rows * width);
    int v = toy_val(&m->t, bytes, 0);
    double moved = (double)bytes + extra;
    for (int i = 0; i < nin; i++) moved += (double)m->t.val[in[i]].bytes;
    toy_op(&m->t, false, 3e-6 + moved / m->mem, nin, in, 1, &v);
    return v;
}

static int gemm(llama *m, int x, double k, double n) {
    int v = toy_val(&m->t, (int64_t)(2 * m->rows * n), 0);
    toy_op(&m->t, false, 3e-6 + 2 * m->rows * k * n / m->flops, 1, &x, 1, &v);
    return v;
}

static int a2a(llama *m, int x) {
    int v = toy_val(&m->t, m->t.val[x].bytes, 0);
    toy_op(&m->t, false, 3e-6 + (double)m->t.val[x].bytes / m->link, 1, &x, 1, &v);
    return v;
}

/* The backward of one op: reads some forward values and a gradient, makes another. */
static int grad(llama *m, int g, int nin, const int *in, double width, uint32_t flags) {
    int v = toy_val(&m->t, (int64_t)(2 * m->rows * width), flags), list[4] = {g};
    for (int i = 0; i < nin; i++) list[1 + i] = in[i];
    toy_op(&m->t, true, 0, 1 + nin, list, 1, &v);
    return v;
}

static void llama_layer(llama *m, double seq, double ranks) {
    memset(m, 0, sizeof *m);
    m->t.s.val = m->t.val;
    m->t.s.fwd = m->t.fwd;
    m->t.s.bwd = m->t.bwd;
    m->flops = 590e12;
    m->mem = 2.7e12;
    m->att = 500e12;
    m->link = 300e9;
    m->rows = seq / ranks;
    m->seq = seq;
    double d = 4096, kv = 1024, f = 14336;
    int x = toy_val(&m->t, (int64_t)(2 * m->rows * d), REMAT_INPUT);
    int h = ew(m, 1, &x, d, 0);
    int q = gemm(m, h, d, d), k = gemm(m, h, d, kv), v = gemm(m, h, d, kv);
    int qr = ew(m, 1, &q, d, 0), kr = ew(m, 1, &k, kv, 0);
    int qa = a2a(m, qr), ka = a2a(m, kr), va = a2a(m, v);
    int o = toy_val(&m->t, (int64_t)(2 * m->rows * d), 0), lse = toy_val(&m->t, (int64_t)(4 * m->rows * 32), 0);
    toy_op(&m->t, false, 3e-6 + 2 * m->rows * seq * d / m->att, 3, (int[]){qa, ka, va}, 2, (int[]){o, lse});
    int oa = a2a(m, o), op = gemm(m, oa, d, d);
    int x2 = ew(m, 2, (int[]){x, op}, d, 0);
    int h2 = ew(m, 1, &x2, d, 0);
    int g = gemm(m, h2, d, f), u = gemm(m, h2, d, f);
    int act = ew(m, 2, (int[]){g, u}, f, 0);
    int down = gemm(m, act, f, d);
    int y = ew(m, 2, (int[]){x2, down}, d, 0);
    m->t.val[y].flags = REMAT_OUT;
    int dy = toy_val(&m->t, (int64_t)(2 * m->rows * d), REMAT_GRAD_IN);
    int dact = grad(m, dy, 1, &act, f, 0);
    int dg = grad(m, dact, 2, (int[]){g, u}, 2 * f, 0);
    int dh2 = grad(m, dg, 1, &h2, d, 0);
    int dx2 = grad(m, dh2, 1, &x2, d, 0);
    int doo = grad(m, dx2, 1, &oa, d, 0);
    int dq = grad(m, doo, 3, (int[]){qa, ka, va}, d + 2 * kv, 0);
    m->t.in[m->t.nlist - 1][4] = o; /* the attention's gradient reads five forward values */
    m->t.in[m->t.nlist - 1][5] = lse;
    m->t.bwd[m->t.s.nbwd - 1].nin = 6;
    int dh = grad(m, dq, 1, &h, d, 0);
    grad(m, dh, 1, &x, d, REMAT_OUT);
}

/* Within 0.3 % of the step's time of the bound over the budgets of 32- and 126-layer models; monotone; never worse than
 * any fixed rule (the same plan in all layers) at its own peak. */
static void llama_is_near_the_bound(void **state) {
    (void)state;
    static const double lengths[3] = {8192, 131072, 1048576};
    for (int which = 0; which < 3; which++) {
        llama *m = malloc(sizeof *m);
        llama_layer(m, lengths[which], 8);
        arena *a = arena_new();
        remat_plans f = {0};
        assert_int_equal(remat_front(a, &m->t.s, 64, &f), SP_OK);
        assert_true(f.n > 8);
        int cls[126] = {0}, plan[126];
        for (int layers = 32; layers <= 126; layers += 94) {
            remat_chain c = {.n = layers, .cls = cls, .plans = &f, .resident = 1 << 20};
            remat_curve *curve = remat_chain_solve(a, &c);
            const remat_points *pts = remat_curve_points(curve);
            int64_t lo = pts->data[0].peak, hi = pts->data[pts->n - 1].peak;
            assert_true(pts->data[pts->n - 1].seconds < 1e-9);
            double last = INFINITY, step = 0; /* forward and backward, about three times the forward */
            for (int i = 0; i < m->t.s.nfwd; i++) step += 3 * layers * m->t.fwd[i].seconds;
            for (int i = 0; i <= 50; i++) {
                int64_t budget = lo + (int64_t)((double)(hi - lo) * i / 50);
                int k = remat_curve_find(curve, budget);
                assert_true(k >= 0 && pts->data[k].peak <= budget);
                double bound = remat_chain_bound(&c, budget), t = pts->data[k].seconds;
                assert_true(bound <= t * (1 + 1e-9) + 1e-12);
                /* Whole plans for whole layers: the gap is some layer's next plan, small against the step's time; at
                 * the floor that plan runs attention again. */
                assert_true(t - bound <= (i < 3 ? 0.015 : 0.003) * step);
                if (i == 0) assert_true(t <= 1.03 * bound);
                assert_true(t <= last);
                last = t;
            }
            for (int p = 0; p < f.n; p++) { /* the same plan everywhere: what a fixed rule does */
                for (int i = 0; i < layers; i++) plan[i] = p;
                remat_point rule = remat_chain_eval(&c, plan);
                int k = remat_curve_find(curve, rule.peak);
                assert_true(k >= 0 && pts->data[k].seconds <= rule.seconds * (1 + 1e-3) + 1e-9);
            }
        }
        arena_free(a);
        free(m);
    }
}

/* A host tier lowers the least peak and never costs time at a peak; its budget is kept; hidden copies are free. */
static void offload_shifts_the_front(void **state) {
    (void)state;
    llama *m = malloc(sizeof *m);
    llama_layer(m, 131072, 8);
    arena *a = arena_new();
    remat_plans f = {0}, with = {0};
    assert_int_equal(remat_front(a, &m->t.s, 24, &f), SP_OK);
    for (int i = 0; i < f.n; i++) vec_push(a, &with, f.data[i]);
    remat_offload(a, &m->t.s, 50e9, 0.03, 0.08, &with);
    assert_true(with.n > f.n);
    for (int i = f.n; i < with.n; i++) {
        const remat_plan *p = &with.data[i];
        assert_true(p->host > 0 && p->saved != NULL);
        int64_t host = 0, device = 0;
        for (int v = 0; v < m->t.s.nval; v++) {
            host += p->saved[v] == REMAT_HOST ? m->t.val[v].bytes : 0;
            device += p->saved[v] == REMAT_DEVICE ? m->t.val[v].bytes : 0;
        }
        assert_int_equal(host, p->host);
        assert_int_equal(device, p->bytes);
        bool hidden = (double)host / 50e9 <= 0.03; /* behind the forward, and so behind the backward */
        remat_plan same = *p;
        same.saved = arena_memdup(a, p->saved, (size_t)m->t.s.nval);
        assert_true(remat_complete(&m->t.s, &same, NULL));
        assert_true(hidden ? fabs(same.seconds - p->seconds) < 1e-12 : p->seconds > same.seconds);
    }
    int cls[32] = {0}, plan[32];
    int64_t least = 0;
    double seconds = INFINITY;
    for (int64_t gib = 0; gib <= 32; gib += 8) {
        remat_chain c = {.n = 32, .cls = cls, .plans = &with, .host_budget = gib << 30};
        remat_curve *curve = remat_chain_solve(a, &c);
        const remat_points *pts = remat_curve_points(curve);
        int k = remat_curve_find(curve, (int64_t)20 << 30);
        assert_true(k >= 0 && pts->data[k].host <= c.host_budget);
        assert_true(pts->data[k].seconds <= seconds * (1 + 1e-3));
        assert_true(remat_chain_bound(&c, (int64_t)20 << 30) <= pts->data[k].seconds * (1 + 1e-9));
        if (gib) assert_true(pts->data[0].peak <= least && pts->data[k].seconds < seconds);
        remat_chain_least(&c, gib ? 31 : 0, plan);
        assert_true(remat_chain_eval(&c, plan).peak <= pts->data[0].peak);
        remat_curve_plans(curve, k, plan);
        assert_int_equal(remat_chain_eval(&c, plan).peak, pts->data[k].peak);
        assert_int_equal(with.data[plan[31]].host, 0); /* its values would come back at once */
        least = pts->data[0].peak;
        seconds = pts->data[k].seconds;
    }
    arena_free(a);
    free(m);
}

/* The largest price of a second at which op i still runs again: the cheaper its result is to recompute, the larger. */
static double switch_price(const remat_seg *s, int i) {
    double lo = 1e3, hi = 1e18;
    arena *a = arena_new();
    for (int k = 0; k < 60; k++) {
        double mid = sqrt(lo * hi);
        remat_plan p;
        bool again[MAXOP];
        assert_int_equal(remat_cut(a, s, mid, &p), SP_OK);
        assert_true(remat_complete(s, &p, again));
        *(again[i] ? &lo : &hi) = mid;
    }
    arena_free(a);
    return lo;
}

/* What others write as a rule (keep attention past 4096 tokens) falls out of the prices: a byte of a product with inner
 * width k costs k / F seconds, a byte of causal attention S / F. Below the model's width attention goes before the gate
 * and up projections, far above it stays longest. */
static void attention_is_dearest_when_long(void **state) {
    (void)state;
    llama *m = malloc(sizeof *m);
    for (int longer = 0; longer < 2; longer++) {
        llama_layer(m, longer ? 65536 : 1024, 1);
        int attention = -1, gate = -1;
        for (int i = 0; i < m->t.s.nfwd; i++) {
            if (m->t.fwd[i].nout == 2) attention = i;
            if (gate < 0 && m->t.val[m->t.fwd[i].out[0]].bytes == (int64_t)(2 * m->rows * 14336)) gate = i;
        }
        double pa = switch_price(&m->t.s, attention), pg = switch_price(&m->t.s, gate);
        if (longer ? pa >= pg : pa <= pg) fail_msg("attention %g, gate %g", pa, pg);
    }
    free(m);
}

/* ---- against all schedules ------------------------------------------------------------------------ */

/* Three layers x -> h -> u -> x', the loss, and the backward; 17 values. An op computes one value from others. */
enum { LAYERS = 3, VALUES = 5 * LAYERS + 2 };
typedef struct joint_op {
    int nin, in[4], out, seconds;
} joint_op;

/* Least seconds to make `goal` when at most `budget` bytes are alive at a time, over all schedules: values may be
 * computed, dropped and computed again at will. Dijkstra over the sets of live values. -1: impossible. */
static int all_schedules(const joint_op *op, int n, const int *bytes, int start, int goal, int budget) {
    enum { MOST = 4096 };
    int *best = malloc(sizeof *best << VALUES), found = -1;
    VEC(int) bucket[MOST] = {{0}};
    for (int s = 0; s < 1 << VALUES; s++) best[s] = MOST;
    best[start] = 0;
    vec_push(NULL, &bucket[0], start);
    for (int c = 0; c < MOST && found < 0; c++)
        for (int k = 0; k < bucket[c].n && found < 0; k++) {
            int s = bucket[c].data[k], live = 0;
            if (best[s] != c) continue;
            if (s >> goal & 1) found = c;
            for (int v = 0; v < VALUES; v++) live += s >> v & 1 ? bytes[v] : 0;
            for (int v = 0; v < VALUES; v++) {
                int to = s & ~(1 << v);
                if (to == s || best[to] <= c) continue;
                best[to] = c;
                vec_push(NULL, &bucket[c], to);
            }
            for (int i = 0; i < n; i++) {
                bool ready = !(s >> op[i].out & 1) && live + bytes[op[i].out] <= budget;
                for (int j = 0; j < op[i].nin; j++) ready &= s >> op[i].in[j] & 1;
                int to = s | 1 << op[i].out, cost = c + op[i].seconds;
                if (!ready || cost >= MOST || best[to] <= cost) continue;
                best[to] = cost;
                vec_push(NULL, &bucket[cost], to);
            }
        }
    for (int c = 0; c < MOST; c++) vec_free(&bucket[c]);
    free(best);
    return found;
}

/* Our class of schedules (boundaries kept, each value at most twice, just in time) is never better than all schedules,
 * and equal to them but near the least feasible budget. */
static void class_is_near_all_schedules(void **state) {
    (void)state;
    uint64_t rng = 9;
    int equal = 0, worse = 0;
    for (int round = 0; round < 3; round++) {
        int bytes[VALUES], n = 0, base = 0;
        joint_op op[5 * LAYERS + 1];
        toy t[LAYERS];
        arena *a = arena_new();
        remat_plans plans[LAYERS];
        int cls[LAYERS], x[LAYERS + 1], h[LAYERS], u[LAYERS], g[LAYERS + 1], gh[LAYERS];
        for (int v = 0; v < VALUES; v++) bytes[v] = 2 + below(&rng, 6);
        int v = 0;
        for (int l = 0; l <= LAYERS; l++) x[l] = v++, g[l] = v++;
        for (int l = 0; l < LAYERS; l++) h[l] = v++, u[l] = v++, gh[l] = v++;
        for (int l = 0; l < LAYERS; l++) {
            op[n++] = (joint_op){1, {x[l]}, h[l], 1 + below(&rng, 9)};
            op[n++] = (joint_op){1, {h[l]}, u[l], 1 + below(&rng, 9)};
            op[n++] = (joint_op){2, {x[l], u[l]}, x[l + 1], 1 + below(&rng, 9)};
        }
        op[n++] = (joint_op){1, {x[LAYERS]}, g[LAYERS], 50};
        for (int l = LAYERS - 1; l >= 0; l--) {
            op[n++] = (joint_op){3, {h[l], u[l], g[l + 1]}, gh[l], 50};
            op[n++] = (joint_op){3, {x[l], gh[l], g[l + 1]}, g[l], 50};
        }
        for (int i = 0; i < n; i++) base += op[i].seconds;
        for (int l = 0; l < LAYERS; l++) {
            toy *s = &t[l];
            *s = (toy){0};
            s->s.val = s->val;
            s->s.fwd = s->fwd;
            s->s.bwd = s->bwd;
            bool last = l == LAYERS - 1;
            int xs = toy_val(s, bytes[x[l]], REMAT_INPUT), hs = toy_val(s, bytes[h[l]], 0);
            int us = toy_val(s, bytes[u[l]], 0), ys = toy_val(s, bytes[x[l + 1]], last ? 0 : REMAT_OUT);
            int gy = toy_val(s, bytes[g[l + 1]], last ? 0 : REMAT_GRAD_IN), ghs = toy_val(s, bytes[gh[l]], 0);
            int gx = toy_val(s, bytes[g[l]], REMAT_OUT);
            toy_op(s, false, op[3 * l].seconds, 1, &xs, 1, &hs);
            toy_op(s, false, op[3 * l + 1].seconds, 1, &hs, 1, &us);
            toy_op(s, false, op[3 * l + 2].seconds, 2, (int[]){xs, us}, 1, &ys);
            if (last) toy_op(s, true, 0, 1, &ys, 1, &gy);
            toy_op(s, true, 0, 3, (int[]){hs, us, gy}, 1, &ghs);
            toy_op(s, true, 0, 3, (int[]){xs, ghs, gy}, 1, &gx);
            cls[l] = l;
            assert_int_equal(remat_front(a, &s->s, 100, &plans[l]), SP_OK);
        }
        remat_chain c = {.n = LAYERS, .cls = cls, .plans = plans};
        remat_curve *curve = remat_chain_solve(a, &c);
        const remat_points *pts = remat_curve_points(curve);
        int lo = (int)pts->data[0].peak, hi = (int)pts->data[pts->n - 1].peak;
        assert_true(pts->data[pts->n - 1].seconds == 0);
        for (int budget = lo - 2; budget <= hi; budget += 2) {
            int k = remat_curve_find(curve, budget), any = all_schedules(op, n, bytes, 1 << x[0], g[0], budget);
            if (k < 0) continue;
            assert_true(any >= 0);
            int ours = base + (int)pts->data[k].seconds;
            assert_true(ours >= any);
            *(ours == any ? &equal : &worse) += 1;
            if (budget >= lo + 2 * (hi - lo) / 3) assert_int_equal(ours, any);
        }
        arena_free(a);
    }
    if (equal < 2 * worse) fail_msg("equal at %d budgets, worse at %d", equal, worse);
}

/* ---- GLPK as an oracle --------------------------------------------------------------------------- */

#ifdef AUTOSP_HAVE_GLPK

/* The linear relaxation of save-or-recompute for all segments together under one bound on the bytes kept: the least
 * sum t r with  s_v + r_op(v) >= 1 for needed v,  s_u + r_op(u) >= r_i for operands u of op i,  sum b s <= room. */
static double relaxed(const toy *t, int n, double room) {
    glp_prob *lp = glp_create_prob();
    glp_set_obj_dir(lp, GLP_MIN);
    int total = glp_add_rows(lp, 1), idx[2 * MAXV * 4 + 1], m = 0;
    double coef[2 * MAXV * 4 + 1];
    for (int k = 0; k < n; k++) {
        const remat_seg *s = &t[k].s;
        int save[MAXV], run[MAXV];
        for (int v = 0; v < s->nval; v++) save[v] = run[v] = 0;
        for (int i = 0; i < s->nfwd; i++) {
            int col = glp_add_cols(lp, 1);
            bool ban = s->fwd[i].flags & REMAT_BAN;
            glp_set_col_bnds(lp, col, ban ? GLP_FX : GLP_DB, 0, ban ? 0 : 1);
            glp_set_obj_coef(lp, col, s->fwd[i].seconds);
            for (int j = 0; j < s->fwd[i].nout; j++) {
                int v = s->fwd[i].out[j];
                run[v] = col;
                if (s->val[v].root != v || s->val[v].flags & REMAT_NOSAVE) continue;
                save[v] = glp_add_cols(lp, 1);
                glp_set_col_bnds(lp, save[v], GLP_DB, 0, 1);
                idx[++m] = save[v];
                coef[m] = (double)s->val[v].bytes;
            }
        }
        for (int i = 0; i < s->nfwd + s->nbwd; i++) {
            const remat_op *op = i < s->nfwd ? &s->fwd[i] : &s->bwd[i - s->nfwd];
            for (int j = 0; j < op->nin; j++) {
                int v = op->in[j], c = 0, ci[4];
                double cv[4];
                if (!run[v]) continue; /* given, or made by the backward */
                ci[++c] = run[v], cv[c] = 1;
                if (save[v]) ci[++c] = save[v], cv[c] = 1;
                if (i < s->nfwd) ci[++c] = run[op->out[0]], cv[c] = -1;
                int row = glp_add_rows(lp, 1);
                glp_set_row_bnds(lp, row, GLP_LO, i < s->nfwd ? 0 : 1, 0);
                glp_set_mat_row(lp, row, c, ci, cv);
            }
        }
        for (int v = 0; v < s->nval; v++)
            if (s->val[v].flags & REMAT_INPUT) room -= (double)s->val[v].bytes;
    }
    glp_set_row_bnds(lp, total, GLP_UP, 0, room);
    glp_set_mat_row(lp, total, m, idx, coef);
    glp_smcp par;
    glp_init_smcp(&par);
    par.msg_lev = GLP_MSG_OFF;
    bool ok = glp_simplex(lp, &par) == 0 && glp_get_status(lp) == GLP_OPT;
    double best = ok ? glp_get_obj_val(lp) : INFINITY;
    glp_delete_prob(lp);
    return best;
}

static void bound_is_the_linear_relaxation(void **state) {
    (void)state;
    uint64_t rng = 10;
    int solved = 0;
    for (int round = 0; round < 150; round++) {
        enum { SEGS = 3 };
        toy *t = calloc(SEGS, sizeof *t);
        remat_plans plans[SEGS];
        int cls[SEGS] = {0, 1, 2}, n = 0;
        arena *a = arena_new();
        int64_t lo = 0, hi = 0;
        while (n < SEGS) {
            random_toy(&rng, &t[n], 2 + below(&rng, 8), true);
            if (remat_front(a, &t[n].s, 1000, &plans[n]) != SP_OK) continue;
            for (int i = 0; i < plans[n].n; i++) plans[n].data[i].window = 0; /* bytes alone */
            lo += plans[n].data[0].bytes;
            hi += plans[n].data[plans[n].n - 1].bytes;
            n++;
        }
        remat_chain c = {.n = SEGS, .cls = cls, .plans = plans};
        for (int64_t room = lo - 2; room <= hi + 2; room += 3, solved++) {
            double want = relaxed(t, SEGS, (double)room), got = remat_chain_bound(&c, room);
            if (room < lo ? got < INFINITY : fabs(got - want) > 1e-6 * fmax(1, want))
                fail_msg("room %lld of %lld to %lld: %.9g, GLPK %.9g", (long long)room, (long long)lo, (long long)hi,
                         got, want);
        }
        arena_free(a);
        free(t);
    }
    assert_true(solved > 500);
}
#else
static void bound_is_the_linear_relaxation(void **state) {
    (void)state;
    printf("skipped: GLPK, the oracle of linear relaxations, was not found when this was built (libglpk-dev)\n");
    skip();
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_is_the_best_of_all_saved_sets),
        cmocka_unit_test(recompute_sets_are_nested),
        cmocka_unit_test(front_is_complete),
        cmocka_unit_test(windows_are_the_live_bound),
        cmocka_unit_test(results_take_over_operands),
        cmocka_unit_test(chain_is_the_best_of_all_combinations),
        cmocka_unit_test(hosts_are_the_best_of_all_combinations),
        cmocka_unit_test(host_fronts_are_nested),
        cmocka_unit_test(llama_is_near_the_bound),
        cmocka_unit_test(offload_shifts_the_front),
        cmocka_unit_test(attention_is_dearest_when_long),
        cmocka_unit_test(class_is_near_all_schedules),
        cmocka_unit_test(bound_is_the_linear_relaxation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
