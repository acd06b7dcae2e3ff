/* Tests of the minimum cut (src/plan/mincut.h) against all 2^n cuts of small random networks, and on long chains. */
#include "plan/mincut.h"

#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct arc {
    int from, to;
    int64_t cap;
} arc;

static int64_t cut_of(const arc *e, int m, unsigned source) {
    int64_t sum = 0;
    for (int i = 0; i < m; i++) {
        if (!(source >> e[i].from & 1) || source >> e[i].to & 1) continue;
        if (e[i].cap == PLAN_INF) return PLAN_INF;
        sum += e[i].cap;
    }
    return sum;
}

static void cut_is_the_least_of_all(void **state) {
    (void)state;
    uint64_t rng = 1;
    int finite = 0, infinite = 0;
    for (int round = 0; round < 4000; round++) {
        arena *a = arena_new();
        int n = 2 + (int)(rng_next(&rng) % 9), m = (int)(rng_next(&rng) % (unsigned)(3 * n));
        arc e[40];
        plan_flow *f = plan_flow_new(a, n);
        for (int i = 0; i < m; i++) {
            e[i] = (arc){(int)(rng_next(&rng) % (unsigned)n), (int)(rng_next(&rng) % (unsigned)n),
                         (int64_t)(rng_next(&rng) % 20)};
            if (rng_next(&rng) % 5 == 0) e[i].cap = PLAN_INF;
            assert_int_equal(plan_flow_edge(f, e[i].from, e[i].to, e[i].cap), i);
        }
        for (int again = 0; again < 2; again++) { /* the second time with other capacities on the same network */
            int64_t best = PLAN_INF, value = -1;
            unsigned meet = ~0u, join = 0;
            for (unsigned side = 0; side < 1u << n; side++) {
                if (!(side & 1) || side >> (n - 1) & 1) continue;
                int64_t c = cut_of(e, m, side);
                if (c < best) {
                    best = c;
                    meet = side;
                    join = side;
                } else if (c == best) {
                    meet &= side;
                    join |= side;
                }
            }
            bool ok = plan_flow_solve(f, 0, n - 1, &value);
            assert_int_equal(ok, best < PLAN_INF);
            if (ok) {
                assert_int_equal(value, best);
                for (int v = 0; v < n; v++) { /* the least and the greatest of the minimum cuts */
                    assert_int_equal(plan_flow_source_side(f, v), meet >> v & 1);
                    assert_int_equal(plan_flow_source_side_max(f, v), join >> v & 1);
                }
                finite++;
            } else { /* the path is one: s to t along infinite edges */
                const int *path;
                int len = plan_flow_path(f, &path);
                assert_int_equal(path[0], 0);
                assert_int_equal(path[len - 1], n - 1);
                for (int i = 0; i + 1 < len; i++) {
                    bool found = false;
                    for (int j = 0; j < m; j++)
                        found |= e[j].from == path[i] && e[j].to == path[i + 1] && e[j].cap == PLAN_INF;
                    assert_true(found);
                }
                infinite++;
            }
            for (int i = 0; i < m; i++) {
                e[i].cap = (int64_t)(rng_next(&rng) % 9);
                plan_flow_set(f, i, e[i].cap);
            }
        }
        arena_free(a);
    }
    assert_true(finite > 1000 && infinite > 200);
}

/* A chain of 100,000 nodes: the search is as deep as the graph and must not use the stack for it. */
static void deep_chain(void **state) {
    (void)state;
    enum { N = 100000 };
    arena *a = arena_new();
    plan_flow *f = plan_flow_new(a, N);
    for (int v = 0; v + 1 < N; v++) plan_flow_edge(f, v, v + 1, v == 777 ? 3 : 1000000 + v);
    int64_t value = 0;
    assert_true(plan_flow_solve(f, 0, N - 1, &value));
    assert_int_equal(value, 3);
    assert_true(plan_flow_source_side(f, 777));
    assert_false(plan_flow_source_side(f, 778));
    arena_free(a);
}

/* Byte counts of large models: sums near the limit stay exact. */
static void large_capacities(void **state) {
    (void)state;
    arena *a = arena_new();
    plan_flow *f = plan_flow_new(a, 4);
    int64_t big = PLAN_INF / 5;
    plan_flow_edge(f, 0, 1, big);
    plan_flow_edge(f, 0, 2, big + 1);
    plan_flow_edge(f, 1, 3, PLAN_INF);
    plan_flow_edge(f, 2, 3, big - 1);
    int64_t value = 0;
    assert_true(plan_flow_solve(f, 0, 3, &value));
    assert_true(value == 2 * big - 1);
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_is_the_least_of_all),
        cmocka_unit_test(deep_chain),
        cmocka_unit_test(large_capacities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
