/* Tests of static memory planning (src/plan/place.h).
 *
 * Oracles: every offset of every buffer, and all n! orders of lowest-offset placement (some order of it is optimal), on
 * small problems; nested lifetimes, whose optimum is the live bound; overlap by pairs. The transformer graphs are
 * synthetic training steps with saved, recomputed and transient buffers, with and without crossing gather buffers.
 */
#include "plan/place.h"

#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

static int below(uint64_t *rng, int n) { return (int)(rng_next(rng) % (uint64_t)n); }

/* Overlap by the definition, each pair; groups not used here. */
static bool valid_by_pairs(const place_buf *b, int n, const int64_t *off, int64_t arena_bytes) {
    for (int i = 0; i < n; i++) {
        if (off[i] < 0 || off[i] + b[i].size > arena_bytes || off[i] % b[i].align) return false;
        for (int j = 0; j < i; j++)
            if (b[i].first <= b[j].last && b[j].first <= b[i].last && off[i] < off[j] + b[j].size &&
                off[j] < off[i] + b[i].size)
                return false;
    }
    return true;
}

static int64_t live_by_steps(const place_buf *b, int n) {
    int64_t most = 0;
    for (int i = 0; i < n; i++) {
        int64_t live = 0;
        for (int j = 0; j < n; j++)
            if (b[j].first <= b[i].first && b[i].first <= b[j].last) live += b[j].size;
        most = max64(most, live);
    }
    return most;
}

static void random_bufs(uint64_t *rng, place_buf *b, int n, int steps, int size, int align_log) {
    for (int i = 0; i < n; i++) {
        int x = below(rng, steps), y = below(rng, steps);
        int64_t align = 1LL << below(rng, align_log + 1);
        b[i] = (place_buf){1 + below(rng, size), x < y ? x : y, x < y ? y : x, align, -1};
    }
}

/* The least arena over all orders in which each buffer takes its lowest free offset; `placed` is a bit set. */
static void all_orders(const place_buf *b, int n, unsigned placed, int64_t *off, int64_t top, int64_t *best) {
    if (top >= *best) return;
    if (placed == (1u << n) - 1) {
        *best = top;
        return;
    }
    for (int k = 0; k < n; k++) {
        if (placed >> k & 1) continue;
        int64_t at = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (int j = 0; j < n; j++) {
                bool meets = b[k].first <= b[j].last && b[j].first <= b[k].last;
                if (!(placed >> j & 1) || !meets || off[j] >= at + b[k].size || at >= off[j] + b[j].size) continue;
                at = round_up(off[j] + b[j].size, b[k].align);
                moved = true;
            }
        }
        off[k] = at;
        all_orders(b, n, placed | 1u << k, off, max64(top, at + b[k].size), best);
    }
}

/* A problem whose live size is the same at every step: at each step some buffers end and others of the same total
 * begin. These are tight everywhere, so that many have no placement at the live bound. Returns the count. */
static int constant_load(uint64_t *rng, place_buf *b, int max, int load, int most) {
    int n = 0, alive[32], m = 0;
    for (int t = 0, room = load; n < max; t++) {
        while (room > 0 && n < max && m < 32) {
            int size = 1 + below(rng, room < most ? room : most);
            alive[m++] = n;
            b[n++] = (place_buf){size, t, t, 1, -1};
            room -= size;
        }
        for (int i = 0; i < m; i++) b[alive[i]].last = t;
        for (int i = m - 1; i >= 0; i--)
            if (below(rng, 5) < 2) {
                room += (int)b[alive[i]].size;
                alive[i] = alive[--m];
            }
    }
    return n;
}

/* Is there a placement within cap? Every offset of every buffer, buffer by buffer as they come (by first step). */
static bool fits(const place_buf *b, int n, int k, int64_t cap, int64_t *off) {
    if (k == n) return true;
    for (off[k] = 0; off[k] + b[k].size <= cap; off[k]++) {
        bool clear = true;
        for (int j = 0; j < k && clear; j++)
            clear = b[j].last < b[k].first || off[j] + b[j].size <= off[k] || off[k] + b[k].size <= off[j];
        if (clear && fits(b, n, k + 1, cap, off)) return true;
    }
    return false;
}

/* The search behind the greedy finds the optimum of small problems, and says that it is one. Where the arena equals the
 * live bound there is nothing to ask the oracle. */
static void small_problems_are_optimal(void **state) {
    (void)state;
    uint64_t rng = 1;
    int above = 0, searched = 0;
    for (int round = 0; round < 4000; round++) {
        place_buf b[18];
        int n = constant_load(&rng, b, 12 + round % 7, 8, 9);
        int64_t off[18], try_off[18];
        place_stats st;
        assert_int_equal(place_plan(b, n, NULL, off, &st), SP_OK);
        assert_true(valid_by_pairs(b, n, off, st.arena));
        assert_int_equal(st.live, live_by_steps(b, n));
        assert_int_equal(st.arena, st.bound);
        searched += st.nodes > 0;
        if (st.arena == st.live) continue;
        assert_false(fits(b, n, 0, st.arena - 1, try_off));
        above++;
    }
    assert_true(above >= 20 && searched >= 2 * above); /* the sample holds both kinds of hard problems */
}

/* The same with paddings, which put the optimum above the live bound more often; here against every order. */
static void mixed_alignments_are_optimal(void **state) {
    (void)state;
    uint64_t rng = 2;
    int above = 0;
    for (int round = 0; round < 300; round++) {
        int n = 1 + below(&rng, 7);
        place_buf b[8];
        random_bufs(&rng, b, n, 8, 40, 4);
        int64_t off[8], try_off[8], best = INT64_MAX;
        place_stats st;
        assert_int_equal(place_plan(b, n, NULL, off, &st), SP_OK);
        assert_true(valid_by_pairs(b, n, off, st.arena));
        all_orders(b, n, 0, try_off, 0, &best);
        int64_t unit = 16;
        for (int i = 0; i < n; i++) unit = min64(unit, b[i].align);
        assert_int_equal(st.bound, round_up(best, unit));
        assert_int_equal(st.arena, round_up(best, unit));
        above += st.arena > st.live;
    }
    assert_true(above > 20);
}

static void random_problems_are_valid(void **state) {
    (void)state;
    uint64_t rng = 3;
    for (int round = 0; round < 60; round++) {
        int n = 1 + below(&rng, 300);
        place_buf b[300];
        random_bufs(&rng, b, n, 1 + below(&rng, 400), 1000, round % 5);
        int64_t off[300];
        place_stats st;
        place_opts o = {.work = round % 3 ? -1 : 1000000};
        assert_int_equal(place_plan(b, n, &o, off, &st), SP_OK);
        assert_true(valid_by_pairs(b, n, off, st.arena));
        assert_int_equal(place_verify(b, n, &o, off, st.arena), SP_OK);
        assert_true(st.arena >= st.bound && st.bound >= st.live);
        int64_t live = 0;
        int32_t step = -1;
        assert_int_equal(place_live(b, n, &o, &live, &step), SP_OK);
        assert_int_equal(live, st.live);
        if (round % 5 == 0) { /* alignment 1: the live bytes by definition, and reached at that step */
            assert_int_equal(live, live_by_steps(b, n));
            int64_t at = 0;
            for (int i = 0; i < n; i++) at += b[i].first <= step && step <= b[i].last ? b[i].size : 0;
            assert_int_equal(at, live);
        }
    }
}

/* Nested or disjoint lifetimes: the arena is the live bound, by the first order. */
static void nest(uint64_t *rng, place_buf *b, int *n, int max, int lo, int hi) {
    while (lo <= hi && *n < max) {
        int end = lo + below(rng, hi - lo + 1);
        b[(*n)++] = (place_buf){1 + below(rng, 5000), lo, end, 64, -1};
        nest(rng, b, n, max, lo + below(rng, 2), end - below(rng, 2));
        lo = end + 1;
    }
}

static void nested_lifetimes_have_no_gap(void **state) {
    (void)state;
    uint64_t rng = 4;
    place_buf *b = calloc(2000, sizeof *b);
    int64_t *off = calloc(2000, sizeof *off);
    for (int round = 0; round < 200; round++) {
        int n = 0;
        nest(&rng, b, &n, 1 + below(&rng, 2000), 0, 1 + below(&rng, 300));
        for (int i = n - 1; i > 0; i--) { /* in no particular order */
            int j = below(&rng, i + 1);
            place_buf t = b[i];
            b[i] = b[j];
            b[j] = t;
        }
        place_stats st;
        assert_int_equal(place_plan(b, n, NULL, off, &st), SP_OK);
        assert_int_equal(st.arena, st.live);
        assert_int_equal(st.tried, 1);
        assert_true(st.gap == 0);
    }
    free(b);
    free(off);
}

/* ---- synthetic training steps of a transformer -------------------------------------------------- */

typedef struct tape {
    place_buf *b;
    int n, cap;
} tape;

static int put(tape *t, int64_t size, int first, int last) {
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 1024;
        t->b = realloc(t->b, sizeof *t->b * (size_t)t->cap);
        assert_non_null(t->b);
    }
    t->b[t->n] = (place_buf){size, first, last, 0, -1};
    return t->n++;
}

/* One layer's forward values: size in units of one row's bytes, by how far (in ops) each is read in the forward. */
enum { VALUES = 24 };
static const int unit_of[VALUES] = {8, 16, 16, 1, 16, 8, 8, 2, 2, 16, 4, 8, 2, 2, 8, 1, 8, 8, 16, 1, 8, 28, 28, 56};
static const int reach_of[VALUES] = {9, 2, 1, 2, 1, 4, 2, 2, 3, 2, 2, 4, 3, 2, 3, 4, 2, 5, 1, 3, 2, 3, 2, 1};

/* plan: which values are saved; the others are computed again just in time in the backward of their layer. */
static void transformer(tape *t, int layers, int plan, bool zero, uint64_t seed) {
    static const uint32_t saves[5] = {0x00c001, 0xdea9a0, 0x000001, 0xffffff, 0x31c0a1};
    uint32_t saved = saves[plan];
    int64_t row = 4096 * 7;
    int fwd = 2 * VALUES, bwd = 5 * VALUES, end = layers * (fwd + bwd) + 40;
    t->n = 0;
    for (int l = 0; l < layers; l++) {
        int f = l * fwd, r = layers * fwd + 40 + (layers - 1 - l) * bwd; /* steps of its forward and its backward */
        for (int v = 0; v < VALUES; v++) {
            int64_t size = unit_of[v] * row + below(&seed, 3) * 256;
            int born = f + 2 * v, use = f + 2 * v + 2 * reach_of[v];
            bool last = v == VALUES - 1;
            if (last) use = f + fwd + 4;
            int need = r + VALUES + 2 * (VALUES - v); /* its gradient's step reads it */
            if (saved >> v & 1) {
                put(t, size, born, need);
            } else {
                put(t, size, born, use);
                put(t, size, r + v, need);
            }
            put(t, size, need, need + 2 + 2 * reach_of[v]); /* its gradient */
            put(t, 8 * row, born, born);                    /* a workspace */
            if (zero && v % 6 == 0) {                       /* gathers that cross other lifetimes */
                put(t, 40 * row, born > 11 ? born - 11 : 0, born + 7);
                put(t, 40 * row, need - 9, need + 5);
                put(t, 40 * row, need + 3, need + 21 < end ? need + 21 : end);
            }
        }
    }
    put(t, 500 * row, layers * fwd + 4, layers * fwd + 38); /* the loss */
    put(t, 250 * row, layers * fwd + 9, layers * fwd + 40);
}

static void transformer_steps_meet_the_bound(void **state) {
    (void)state;
    static const int layers[4] = {1, 4, 32, 126};
    tape t = {0};
    int64_t *off = NULL;
    for (int l = 0; l < 4; l++)
        for (int plan = 0; plan < 5; plan++)
            for (int zero = 0; zero < 2; zero++) {
                transformer(&t, layers[l], plan, zero, 5);
                off = realloc(off, sizeof *off * (size_t)t.n);
                place_stats st;
                assert_int_equal(place_plan(t.b, t.n, NULL, off, &st), SP_OK);
                assert_true(st.arena <= st.live + st.live / 500); /* the alarm at 0.2 % */
                assert_int_equal(st.arena, st.bound);
            }
    free(t.b);
    free(off);
}

static void sixty_thousand_buffers(void **state) {
    (void)state;
    tape t = {0};
    transformer(&t, 700, 4, true, 6);
    assert_true(t.n > 60000);
    int64_t *off = calloc((size_t)t.n, sizeof *off);
    place_stats st;
    assert_int_equal(place_plan(t.b, t.n, NULL, off, &st), SP_OK);
    assert_int_equal(st.arena, st.bound);
    free(t.b);
    free(off);
}

/* ---- groups, edges, bad input ------------------------------------------------------------------- */

static void groups_share_one_offset(void **state) {
    (void)state;
    /* 0 and 2 are in place of one another: one storage alive in 0..5 of 100 bytes; 1 must keep clear of all of it. */
    place_buf b[4] = {{100, 0, 2, 64, 7}, {50, 1, 4, 64, -1}, {60, 3, 5, 128, 7}, {0, 0, 9, 64, 7}};
    int64_t off[4];
    place_stats st;
    assert_int_equal(place_plan(b, 4, NULL, off, &st), SP_OK);
    assert_int_equal(st.blocks, 2);
    assert_int_equal(off[0], off[2]);
    assert_int_equal(off[0] % 128, 0);
    assert_int_equal(off[3], 0);
    assert_true(off[1] >= off[0] + 100 || off[0] >= off[1] + 50);
    off[2] += 128;
    assert_int_equal(place_verify(b, 4, NULL, off, 4096), SP_FAIL);
    assert_non_null(strstr(err_text(), "group 7"));
}

static void verifier_names_the_buffers(void **state) {
    (void)state;
    place_buf b[3] = {{100, 0, 4, 4, -1}, {100, 2, 6, 4, -1}, {100, 5, 9, 4, -1}};
    int64_t good[3] = {0, 100, 0}, meets[3] = {0, 96, 300}, high[3] = {0, 100, 101}, odd[3] = {0, 102, 0};
    assert_int_equal(place_verify(b, 3, NULL, good, 200), SP_OK);
    assert_int_equal(place_verify(b, 3, NULL, meets, 400), SP_FAIL);
    assert_non_null(strstr(err_text(), "buffers 0 and 1 overlap"));
    assert_int_equal(place_verify(b, 3, NULL, high, 200), SP_FAIL);
    assert_int_equal(place_verify(b, 3, NULL, good, 199), SP_FAIL);
    assert_non_null(strstr(err_text(), "buffer 1"));
    assert_int_equal(place_verify(b, 3, NULL, odd, 400), SP_FAIL);
    assert_non_null(strstr(err_text(), "alignment"));
}

/* Every single move of a buffer into another one that is alive at the same time is found. */
static void verifier_finds_every_overlap(void **state) {
    (void)state;
    uint64_t rng = 8;
    int caught = 0;
    for (int round = 0; round < 2000; round++) {
        place_buf b[30];
        int64_t off[30];
        int n = 2 + below(&rng, 29);
        random_bufs(&rng, b, n, 40, 60, 0);
        place_stats st;
        place_opts o = {.work = -1};
        assert_int_equal(place_plan(b, n, &o, off, &st), SP_OK);
        off[below(&rng, n)] = below(&rng, (int)st.arena);
        bool ok = valid_by_pairs(b, n, off, st.arena);
        assert_int_equal(place_verify(b, n, &o, off, st.arena), ok ? SP_OK : SP_FAIL);
        caught += !ok;
    }
    assert_true(caught > 1000);
}

static void bad_requests_are_refused(void **state) {
    (void)state;
    int64_t off[2];
    place_stats st;
    place_buf negative = {-1, 0, 1, 0, -1}, ends = {8, 3, 1, 0, -1}, odd = {8, 0, 1, 3, -1};
    assert_int_equal(place_plan(&negative, 1, NULL, off, NULL), SP_FAIL);
    assert_non_null(strstr(err_text(), "below 0"));
    assert_int_equal(place_plan(&ends, 1, NULL, off, NULL), SP_FAIL);
    assert_int_equal(place_plan(&odd, 1, NULL, off, NULL), SP_FAIL);
    assert_non_null(strstr(err_text(), "power of two"));
    place_buf huge[2] = {{INT64_MAX - 8, 0, 1, 1, -1}, {INT64_MAX / 2, 0, 1, 1, -1}};
    assert_int_equal(place_plan(huge, 2, NULL, off, NULL), SP_FAIL);
    assert_non_null(strstr(err_text(), "63 bits"));
    assert_int_equal(place_plan(NULL, 0, NULL, off, &st), SP_OK);
    assert_int_equal(st.arena, 0);
    place_buf empty = {0, 0, 5, 0, -1};
    assert_int_equal(place_plan(&empty, 1, NULL, off, &st), SP_OK);
    assert_int_equal(off[0], 0);
    assert_int_equal(st.arena, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_problems_are_optimal),       cmocka_unit_test(mixed_alignments_are_optimal),
        cmocka_unit_test(random_problems_are_valid),        cmocka_unit_test(nested_lifetimes_have_no_gap),
        cmocka_unit_test(transformer_steps_meet_the_bound), cmocka_unit_test(sixty_thousand_buffers),
        cmocka_unit_test(groups_share_one_offset),          cmocka_unit_test(verifier_names_the_buffers),
        cmocka_unit_test(verifier_finds_every_overlap),     cmocka_unit_test(bad_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
