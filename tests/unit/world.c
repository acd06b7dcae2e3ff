/* world.c - how many threads a rank gets when nobody says: ranks x threads never exceed the cores, but one each. */
#include "train/world.h"

#include <sched.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

static int threads(int64_t ranks, int64_t asked) {
    train_world w;
    assert_int_equal(train_world_open(ranks, asked, &w), SP_OK);
    int n = w.threads;
    assert_int_equal(w.size, ranks ? ranks : 1);
    assert_int_equal(train_world_close(&w, SP_OK), SP_OK);
    return n;
}

/* Runs `body` with the process bound to its first n cores. */
static void bound_to(int n, void (*body)(int cores)) {
    cpu_set_t was, some;
    assert_int_equal(sched_getaffinity(0, sizeof was, &was), 0);
    if (CPU_COUNT(&was) < n) return;
    CPU_ZERO(&some);
    for (int c = 0, k = 0; k < n; c++)
        if (CPU_ISSET(c, &was)) {
            CPU_SET(c, &some);
            k++;
        }
    assert_int_equal(sched_setaffinity(0, sizeof some, &some), 0);
    body(n);
    assert_int_equal(sched_setaffinity(0, sizeof was, &was), 0);
}

static void shares(int cores) {
    assert_int_equal(threads(0, 0), cores); /* one rank has them all */
    for (int ranks = 1; ranks <= 16; ranks++) {
        int n = threads(ranks, 0);
        if (ranks <= cores)
            assert_true(n * ranks <= cores && (n + 1) * ranks > cores);
        else
            assert_int_equal(n, 1);
        assert_int_equal(threads(ranks, 3), 3); /* who asks gets it */
    }
}

static void cores_are_shared_out(void **state) {
    (void)state;
    for (int n = 1; n <= 8; n++) bound_to(n, shares);
}

int main(void) {
    /* Not under mpirun: its ranks have shares of their own. */
    if (getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_RANK")) return 0;
    const struct CMUnitTest tests[] = {cmocka_unit_test(cores_are_shared_out)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
