/* place.c - the entry points of static memory planning: checks, groups, compressed time, the portfolio, the verifier.
 *
 * The order of attempts follows measurements on transformer training graphs: saved activations are last in, first out,
 * so the skyline greedy usually meets the live bound with its first order and nothing else runs. Crossing lifetimes
 * (gathered parameters, staging buffers, gradients handed over) sometimes need another tie order. Best fit and the
 * search are for unusual graphs.
 */
#include "plan/place.h"
#include "plan/place_impl.h"

#include <stdlib.h>

/* The request after checks: one block for each group and each lone buffer of more than 0 bytes. */
typedef struct problem {
    block *b;
    int32_t *first, *last; /* of each block, in steps */
    int *of;               /* buffer -> block, -1 when it is empty */
    int *witness;          /* block -> one of its buffers, for messages */
    int n, T;
    int64_t unit; /* least alignment in use: every offset and rounded size is a multiple */
} problem;

static int64_t alignment(const place_buf *b, const place_opts *o) {
    return b->align ? b->align : o && o->align ? o->align : 256;
}

static bool power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

typedef struct keyed {
    int32_t key;
    int i;
} keyed;

static int keyed_cmp(const void *x, const void *y) {
    const keyed *p = x, *q = y;
    return p->key != q->key ? (p->key < q->key ? -1 : 1) : p->i - q->i;
}

static sp_status check(const place_buf *bufs, int n, const place_opts *o) {
    for (int i = 0; i < n; i++) {
        const place_buf *b = &bufs[i];
        CHECK(b->size >= 0, "buffer %d: its size is %lld bytes, below 0", i, (long long)b->size);
        CHECK(b->first >= 0 && b->last >= b->first, "buffer %d: alive from step %d to step %d, which is no lifetime", i,
              b->first, b->last);
        CHECK(power_of_two(alignment(b, o)), "buffer %d: alignment %lld is not a power of two", i,
              (long long)alignment(b, o));
        CHECK(b->group >= -1, "buffer %d: group %d, want -1 or a number from 0", i, b->group);
    }
    return SP_OK;
}

/* Merges groups and drops empty buffers. Groups are found by sorting: their numbers need not be dense. */
static sp_status contract(arena *a, const place_buf *bufs, int n, const place_opts *o, problem *p) {
    *p = (problem){.unit = INT64_MAX};
    p->b = ARENA_ARRAY(a, block, n);
    p->first = ARENA_ARRAY(a, int32_t, n);
    p->last = ARENA_ARRAY(a, int32_t, n);
    p->of = ARENA_ARRAY(a, int, n);
    p->witness = ARENA_ARRAY(a, int, n);
    keyed *by = ARENA_ARRAY(a, keyed, n);
    for (int i = 0; i < n; i++) by[i] = (keyed){bufs[i].group, i};
    qsort(by, (size_t)n, sizeof *by, keyed_cmp);
    for (int s = 0, e; s < n; s = e) {
        for (e = s + 1; e < n && by[s].key >= 0 && by[e].key == by[s].key;) e++;
        int k = p->n;
        block *x = &p->b[k];
        *x = (block){.align = 1};
        for (int j = s; j < e; j++) { /* empty members use nothing */
            int i = by[j].i;
            p->of[i] = bufs[i].size ? k : -1;
            if (!bufs[i].size) continue;
            p->first[k] = x->size ? (bufs[i].first < p->first[k] ? bufs[i].first : p->first[k]) : bufs[i].first;
            p->last[k] = x->size ? (bufs[i].last > p->last[k] ? bufs[i].last : p->last[k]) : bufs[i].last;
            x->size = max64(x->size, bufs[i].size);
            x->align = max64(x->align, alignment(&bufs[i], o));
            p->witness[k] = i;
        }
        if (!x->size) continue;
        p->unit = min64(p->unit, x->align);
        p->n++;
    }
    int64_t sum = 0;
    for (int k = 0; k < p->n; k++) {
        block *x = &p->b[k];
        CHECK(add_ok(sum, x->size, &sum) && add_ok(sum, 2 * x->align, &sum),
              "the sizes of the %d buffers do not add up in 63 bits", n);
        x->size = round_up(x->size, p->unit);
    }
    return SP_OK;
}

/* Gives each block its times among the distinct first steps. */
static void compress(arena *a, problem *p) {
    keyed *by = ARENA_ARRAY(a, keyed, p->n);
    int32_t *start = ARENA_ARRAY(a, int32_t, p->n);
    for (int k = 0; k < p->n; k++) by[k] = (keyed){p->first[k], k};
    qsort(by, (size_t)p->n, sizeof *by, keyed_cmp);
    for (int j = 0; j < p->n; j++) {
        if (!j || by[j].key != by[j - 1].key) start[p->T++] = by[j].key;
        p->b[by[j].i].t0 = p->T - 1;
    }
    for (int k = 0; k < p->n; k++) {
        int lo = p->b[k].t0, hi = p->T - 1; /* the last start that is not after the block's last step */
        while (lo < hi) {
            int mid = lo + (hi - lo + 1) / 2;
            if (start[mid] <= p->last[k]) {
                lo = mid;
            } else {
                hi = mid - 1;
            }
        }
        p->b[k].t1 = lo;
    }
}

/* The largest sum of sizes alive at one time: reached at some block's first step. *first (may be NULL): that step. */
static int64_t live_bound(arena *a, const problem *p, int32_t *first) {
    int64_t *change = ARENA_ARRAY(a, int64_t, p->T + 1), live = 0, most = 0;
    int32_t *start = ARENA_ARRAY(a, int32_t, p->T + 1);
    for (int k = 0; k < p->n; k++) {
        change[p->b[k].t0] += p->b[k].size;
        change[p->b[k].t1 + 1] -= p->b[k].size;
        start[p->b[k].t0] = p->first[k];
    }
    for (int t = 0; t < p->T; t++) {
        live += change[t];
        if (live <= most) continue;
        most = live;
        if (first) *first = start[t];
    }
    return most;
}

/* ---- tie orders -------------------------------------------------------------------------------- */

typedef struct ranked {
    double key, second; /* larger first */
    int i;
} ranked;

static int ranked_cmp(const void *x, const void *y) {
    const ranked *p = x, *q = y;
    if (p->key != q->key) return p->key > q->key ? -1 : 1;
    if (p->second != q->second) return p->second > q->second ? -1 : 1;
    return p->i - q->i;
}

enum { BY_LIFE, BY_SIZE, BY_START, BY_AREA, BY_END, BY_FLAT_AREA, ORDERS };

static void fill_order(const problem *p, int kind, ranked *tmp, int *order) {
    for (int k = 0; k < p->n; k++) {
        const block *x = &p->b[k];
        double life = x->t1 - x->t0 + 1, size = (double)x->size, key = 0, second = size;
        switch (kind) {
        case BY_LIFE:
            key = life;
            break; /* outer lifetimes first: exact on nested ones */
        case BY_SIZE:
            key = size, second = life;
            break;
        case BY_START:
            key = -x->t0, second = life;
            break;
        case BY_AREA:
            key = size * life;
            break;
        case BY_END:
            key = x->t1, second = life;
            break;
        case BY_FLAT_AREA: { /* size * life^(1/4), the square root twice: no libm rounding to differ between machines */
            double root = life;
            for (int i = 0; i < 2; i++) root = __builtin_sqrt(root);
            key = size * root;
            break;
        }
        default:
            break;
        }
        tmp[k] = (ranked){key, second, k};
    }
    qsort(tmp, (size_t)p->n, sizeof *tmp, ranked_cmp);
    for (int k = 0; k < p->n; k++) order[k] = tmp[k].i;
}

/* ---- entry points ------------------------------------------------------------------------------ */

static void solve(arena *a, const problem *p, const place_opts *o, int64_t *best_off, place_stats *st) {
    static const char *const greedy[ORDERS] = {"skyline/life", "skyline/size", "skyline/start",
                                               "skyline/area", "skyline/end",  "skyline/flat-area"};
    static const char *const fit[ORDERS] = {NULL, "best-fit/size", NULL, "best-fit/area", NULL, "best-fit/flat-area"};
    int *order = ARENA_ARRAY(a, int, p->n);
    ranked *tmp = ARENA_ARRAY(a, ranked, p->n);
    int64_t *off = ARENA_ARRAY(a, int64_t, p->n);
    int64_t work = o && o->work ? o->work : 200000000;
    skyline *sky = place_skyline_new(a, p->b, p->n, p->T);
    int64_t enough = o ? max64(o->enough, st->bound) : st->bound;
    st->arena = INT64_MAX;
    for (int pass = 0; pass < 2 && st->arena > enough; pass++) {
        int64_t left = work;
        for (int kind = 0; kind < ORDERS && st->arena > enough; kind++) {
            if (pass == 1 && (!fit[kind] || work < 0)) continue;
            fill_order(p, kind, tmp, order);
            int64_t got =
                pass == 0 ? place_skyline_run(sky, order, off) : place_best_fit(a, p->b, p->n, order, off, &left);
            if (got < 0) break; /* best fit ran out of work; the later orders would too */
            st->tried++;
            if (got >= st->arena) continue;
            st->arena = got;
            st->method = pass == 0 ? greedy[kind] : fit[kind];
            memcpy(best_off, off, sizeof *off * (size_t)p->n);
        }
    }
    if (st->arena > enough && work > 0) {
        int64_t got = place_search(a, p->b, p->n, p->T, st->arena, &st->bound, best_off, work, &st->nodes);
        st->tried++;
        if (got < st->arena) st->method = "search";
        st->arena = got;
    }
}

sp_status place_plan(const place_buf *bufs, int n, const place_opts *opts, int64_t *offset, place_stats *stats) {
    TRY(check(bufs, n, opts));
    place_stats st = {.method = "nothing to place"};
    arena *a = arena_new();
    problem p;
    sp_status ok = contract(a, bufs, n, opts, &p);
    if (ok == SP_OK) {
        int64_t *off = ARENA_ARRAY(a, int64_t, p.n);
        st.blocks = p.n;
        if (p.n) {
            compress(a, &p);
            st.live = st.bound = live_bound(a, &p, NULL);
            solve(a, &p, opts, off, &st);
            st.gap = (double)(st.arena - st.bound) / (double)st.bound;
        }
        for (int i = 0; i < n; i++) offset[i] = p.of[i] < 0 ? 0 : off[p.of[i]];
        if (place_verify(bufs, n, opts, offset, st.arena) != SP_OK) {
            log_warn("static memory planning (%s): %s", st.method, err_text());
            ASSERT(!"the placement is valid");
        }
        if (stats) *stats = st;
    }
    arena_free(a);
    return ok;
}

sp_status place_live(const place_buf *bufs, int n, const place_opts *opts, int64_t *bytes, int32_t *step) {
    TRY(check(bufs, n, opts));
    arena *a = arena_new();
    problem p;
    *bytes = 0;
    if (step) *step = 0;
    sp_status ok = contract(a, bufs, n, opts, &p);
    if (ok == SP_OK && p.n) {
        compress(a, &p);
        *bytes = live_bound(a, &p, step);
    }
    arena_free(a);
    return ok;
}

/* ---- the verifier ------------------------------------------------------------------------------ */

/* Sweeps the steps and keeps the blocks that are alive sorted by offset: a block that is disjoint from its neighbours
 * there is disjoint from all. Shares nothing with the planner but the merging of groups. */
static sp_status sweep(arena *a, const problem *p, const int64_t *off) {
    keyed *in = ARENA_ARRAY(a, keyed, p->n), *out = ARENA_ARRAY(a, keyed, p->n);
    int *alive = ARENA_ARRAY(a, int, p->n), m = 0, j = 0;
    for (int k = 0; k < p->n; k++) {
        in[k] = (keyed){p->first[k], k};
        out[k] = (keyed){p->last[k], k};
    }
    qsort(in, (size_t)p->n, sizeof *in, keyed_cmp);
    qsort(out, (size_t)p->n, sizeof *out, keyed_cmp);
    for (int i = 0; i < p->n; i++) {
        for (;;) {
            bool leave = j < p->n && out[j].key < in[i].key;
            int k = leave ? out[j++].i : in[i].i, lo = 0, hi = m;
            while (lo < hi) { /* the first one alive at or above k's offset */
                int mid = lo + (hi - lo) / 2;
                if (off[alive[mid]] < off[k]) {
                    lo = mid + 1;
                } else {
                    hi = mid;
                }
            }
            if (leave) {
                memmove(&alive[lo], &alive[lo + 1], sizeof *alive * (size_t)(--m - lo));
                continue;
            }
            for (int side = 0; side < 2; side++) {
                if (side ? lo >= m : lo == 0) continue;
                int q = alive[side ? lo : lo - 1], below = side ? k : q, above = side ? q : k;
                CHECK(off[below] + p->b[below].size <= off[above],
                      "buffers %d and %d overlap: offsets %lld and %lld, sizes %lld and %lld, alive in steps %d to %d "
                      "and %d to %d",
                      p->witness[below], p->witness[above], (long long)off[below], (long long)off[above],
                      (long long)p->b[below].size, (long long)p->b[above].size, p->first[below], p->last[below],
                      p->first[above], p->last[above]);
            }
            memmove(&alive[lo + 1], &alive[lo], sizeof *alive * (size_t)(m++ - lo));
            alive[lo] = k;
            break;
        }
    }
    return SP_OK;
}

static sp_status verify(arena *a, const place_buf *bufs, int n, const place_opts *opts, const int64_t *offset,
                        int64_t arena_bytes) {
    problem p;
    TRY(contract(a, bufs, n, opts, &p));
    int64_t *off = ARENA_ARRAY(a, int64_t, p.n);
    for (int k = 0; k < p.n; k++) off[k] = offset[p.witness[k]];
    for (int i = 0; i < n; i++) {
        if (p.of[i] < 0) continue;
        int k = p.of[i];
        CHECK(offset[i] == off[k], "buffers %d and %d of group %d have offsets %lld and %lld", i, p.witness[k],
              bufs[i].group, (long long)offset[i], (long long)off[k]);
        CHECK(offset[i] >= 0 && offset[i] % alignment(&bufs[i], opts) == 0,
              "buffer %d: offset %lld is not a multiple of its alignment %lld", i, (long long)offset[i],
              (long long)alignment(&bufs[i], opts));
        CHECK(bufs[i].size <= arena_bytes && offset[i] <= arena_bytes - bufs[i].size,
              "buffer %d: %lld bytes at offset %lld end behind the arena of %lld bytes", i, (long long)bufs[i].size,
              (long long)offset[i], (long long)arena_bytes);
    }
    return sweep(a, &p, off);
}

sp_status place_verify(const place_buf *bufs, int n, const place_opts *opts, const int64_t *offset,
                       int64_t arena_bytes) {
    TRY(check(bufs, n, opts));
    arena *a = arena_new();
    sp_status ok = verify(a, bufs, n, opts, offset, arena_bytes);
    arena_free(a);
    return ok;
}
