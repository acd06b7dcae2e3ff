/* Tests of src/comm on `self` and `loop`: the collectives (tests/comm/body.c), and what happens when a rank fails,
 * leaves, or calls something else than the others. The mpi backend runs the same body in tests/comm/mpi.c. */
#include "../comm/body.h"

#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static const int sizes[] = {1, 2, 3, 4, 8, 16};
enum { SIZES = sizeof sizes / sizeof *sizes };

static void nap(int ms) { nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL); }

static void expect_ok(sp_status s) {
    if (s != SP_OK) print_error("%s\n", err_text());
    assert_int_equal(s, SP_OK);
}

static void expect_text(const char *part) {
    if (!strstr(err_text(), part)) print_error("'%s' is not in '%s'\n", part, err_text());
    assert_non_null(strstr(err_text(), part));
}

static void loop_collectives(void **state) {
    (void)state;
    for (int i = 0; i < SIZES; i++) {
        expect_ok(comm_loop_run(sizes[i], body_collectives, NULL));
        expect_ok(comm_loop_run(sizes[i], body_split, NULL));
        expect_ok(comm_loop_run(sizes[i], body_stats, NULL));
    }
}

static void self_collectives(void **state) {
    (void)state;
    comm *c = comm_self();
    assert_int_equal(comm_size(c), 1);
    expect_ok(body_collectives(c, NULL));
    expect_ok(body_split(c, NULL));
    expect_ok(body_stats(c, NULL));
    comm_free(c);
    comm_free(NULL);
}

static void reruns_are_bit_equal(void **state) {
    (void)state;
    for (int i = 0; i < SIZES; i++) {
        uint64_t a = 0, b = 1;
        expect_ok(comm_loop_run(sizes[i], body_hash, &a));
        expect_ok(comm_loop_run(sizes[i], body_hash, &b));
        assert_true(a == b && a != 0);
    }
}

/* Sums whose value depends on the order: ranks 0.. hold 2^24, 1, 1: ((2^24+1)+1) = 2^24, 2^24+(1+1) = 2^24+2. */
static sp_status order_body(comm *c, void *unused) {
    (void)unused;
    float x = c->rank == 0 ? 16777216.f : 1.f;
    TRY(comm_all_reduce(c, &x, &x, 1, DT_F32, COMM_SUM));
    CHECK(x == 16777216.f, "rank %d: summed in another order: %.1f", c->rank, x);
    return SP_OK;
}

static void sums_in_rank_order(void **state) {
    (void)state;
    expect_ok(comm_loop_run(3, order_body, NULL));
}

/* ---- failures ---------------------------------------------------------------------------------- */

typedef struct failing {
    comm_op op;        /* the call in the middle of which rank `victim` fails */
    int victim, delay; /* the victim fails after `delay` ms (others wait), or they call `-delay` ms after it */
    bool aborts;       /* by comm_abort; else it returns SP_FAIL */
    atomic_int told;   /* ranks whose call failed for the victim's reason */
    int split;         /* the others use groups that the victim is in (1) or not in (2) */
} failing;

/* Any collective with buffers of its own. */
static sp_status call(comm *c, comm_op op) {
    int64_t a[16] = {0}, b[16];
    int next = (c->rank + 1) % c->size, last = (c->rank + c->size - 1) % c->size;
    comm *sub = NULL;
    sp_status ok = SP_OK;
    switch (op) {
    case COMM_ALL_REDUCE:
        return comm_all_reduce(c, a, b, 16, DT_I64, COMM_SUM);
    case COMM_ALL_TO_ALL:
        return comm_all_to_all(c, a, b, 8);
    case COMM_ALL_GATHER:
        return comm_all_gather(c, a, b, 8);
    case COMM_REDUCE_SCATTER:
        return comm_reduce_scatter(c, a, b, 1, DT_F64);
    case COMM_BROADCAST:
        return comm_broadcast(c, a, 128, 0);
    case COMM_SEND_RECV:
        return comm_send_recv(c, a, next, b, last, 128);
    case COMM_BARRIER:
        return comm_barrier(c);
    case COMM_SPLIT:
        ok = comm_split(c, 0, 0, &sub);
        comm_free(sub);
        return ok;
    case COMM_OP_COUNT:
        break;
    }
    return SP_FAIL;
}

static sp_status failing_body(comm *c, void *arg) {
    failing *f = arg;
    comm *sub = c;
    if (f->split) TRY(comm_split(c, f->split == 1 ? 0 : c->rank == f->victim, 0, &sub));
    for (int i = 0; i < 3; i++) TRY(call(sub, f->op)); /* all is well */
    TRY(comm_barrier(c));
    if (c->rank == f->victim) {
        if (f->delay > 0) nap(f->delay);
        if (!f->aborts) FAIL("disk %d is full", 7);
        comm_abort(sub, "disk 7 is full");
        return SP_OK; /* whoever swallows the failure changes nothing */
    }
    if (f->delay < 0) nap(-f->delay);
    /* A group without the victim may go on for a while, but not for ever. */
    sp_status ok = SP_OK;
    double start = now_s();
    while (ok == SP_OK && now_s() - start < 5) ok = call(sub, f->op);
    char want[64];
    snprintf(want, sizeof want, "rank %d failed: disk 7 is full", f->victim);
    if (ok == SP_FAIL && strstr(err_text(), want) && call(sub, COMM_BARRIER) == SP_FAIL && strstr(err_text(), want) &&
        call(c, COMM_BARRIER) == SP_FAIL)
        atomic_fetch_add(&f->told, 1);
    return ok; /* its groups are left to the job */
}

static void a_failing_rank_ends_all(void **state) {
    (void)state;
    static const int ranks[] = {2, 4, 8, 16};
    for (int p = 0; p < 4; p++)
        for (int op = 0; op < COMM_OP_COUNT; op++)
            for (int variant = 0; variant < 3; variant++)
                for (int split = 0; split < 3; split++) {
                    failing f = {.op = (comm_op)op, .victim = ranks[p] / 2, .aborts = op % 2, .split = split};
                    f.delay = (variant - 1) * 3;
                    char want[64];
                    snprintf(want, sizeof want, "rank %d: disk 7 is full", f.victim);
                    double start = now_s();
                    assert_int_equal(comm_loop_run(ranks[p], failing_body, &f), SP_FAIL);
                    assert_true(now_s() - start < 1);
                    expect_text(want);
                    assert_int_equal(atomic_load(&f.told), ranks[p] - 1);
                }
}

/* A copy in progress is never cut short: a rank that hears of the failure may free its buffers at once (the address
 * sanitizer would see the others read them). Pairs exchange while rank 0 fails at some moment. */
static sp_status buffers_body(comm *c, void *arg) {
    comm *pair;
    TRY(comm_split(c, c->rank == 0 ? 1000 : (c->rank - 1) / 2, 0, &pair));
    if (c->rank == 0) {
        nap(*(int *)arg);
        FAIL("stop");
    }
    enum { N = 1 << 18 };
    for (sp_status ok = SP_OK; ok == SP_OK;) {
        char *a = malloc(2 * N), *b = malloc(2 * N);
        ASSERT(a && b);
        memset(a, c->rank, 2 * N);
        ok = comm_all_to_all(pair, a, b, N);
        bool good = ok != SP_OK || (b[0] - c->rank != b[N] - c->rank && (b[0] == c->rank || b[N] == c->rank));
        free(a), free(b);
        if (!good) FAIL("rank %d: wrong data", c->rank);
    }
    return SP_FAIL;
}

static void failure_leaves_copies_alone(void **state) {
    (void)state;
    for (int ms = 1; ms < 12; ms++) {
        assert_int_equal(comm_loop_run(5, buffers_body, &ms), SP_FAIL);
        assert_string_equal(err_text(), "rank 0: stop");
    }
}

/* ---- mismatches -------------------------------------------------------------------------------- */

typedef struct mismatch {
    int kind;
    atomic_int failed; /* ranks that got the expected text */
    const char *want;
} mismatch;

static sp_status odd_call(comm *c, int kind, bool odd) {
    int64_t a[64] = {0}, b[64];
    int P = c->size, next = (c->rank + 1) % P, last = (c->rank + P - 1) % P;
    switch (kind) {
    case 0:
        return odd ? comm_all_gather(c, a, b, 8) : comm_all_to_all(c, a, b, 8);
    case 1:
        return comm_all_reduce(c, a, b, odd ? 3 : 4, DT_F64, COMM_SUM);
    case 2:
        return comm_all_reduce(c, a, b, 4, odd ? DT_F32 : DT_I64, COMM_SUM);
    case 3:
        return comm_all_reduce(c, a, b, 4, DT_F32, odd ? COMM_MAX : COMM_SUM);
    case 4:
        return comm_broadcast(c, a, 8, odd ? 1 : 0);
    case 5:
        return comm_send_recv(c, a, odd ? last : next, b, last, 8);
    case 6:
        return odd ? comm_barrier(c) : comm_all_to_all(c, a, b, 16);
    default:
        return odd ? SP_OK : comm_all_gather(c, a, b, 16); /* the odd one leaves */
    }
}

static sp_status mismatch_body(comm *c, void *arg) {
    mismatch *m = arg;
    TRY(comm_barrier(c));
    bool odd = c->rank == 2;
    sp_status ok = odd_call(c, m->kind, odd);
    if (ok == SP_FAIL && strstr(err_text(), m->want)) atomic_fetch_add(&m->failed, 1);
    return ok;
}

static void different_calls_are_errors(void **state) {
    (void)state;
    static const char *const want[] = {
        "rank 2 called all_gather of 8 bytes, rank 0 called all_to_all of 8 bytes",
        "rank 2 called all_reduce of 3 f64 (sum), rank 0 called all_reduce of 4 f64 (sum)",
        "rank 2 called all_reduce of 4 f32 (sum), rank 0 called all_reduce of 4 i64 (sum)",
        "rank 2 called all_reduce of 4 f32 (max), rank 0 called all_reduce of 4 f32 (sum)",
        "rank 2 called broadcast of 8 bytes from rank 1, rank 0 called broadcast of 8 bytes from rank 0",
        "send_recv: rank 2 sends to rank 1, which does not receive from it",
        "rank 2 called barrier, rank 0 called all_to_all of 16 bytes",
        "rank 2 has returned, rank 0 called all_gather of 16 bytes",
    };
    for (int kind = 0; kind < 8; kind++)
        for (int rep = 0; rep < 5; rep++) {
            mismatch m = {.kind = kind, .want = want[kind]};
            assert_int_equal(comm_loop_run(4, mismatch_body, &m), SP_FAIL);
            expect_text(want[kind]);
            assert_int_equal(atomic_load(&m.failed), kind == 7 ? 3 : 4);
        }
}

/* Rank 0 and 1 wait for each other in different groups; rank 2 has nothing more to do. */
static sp_status deadlock_body(comm *c, void *unused) {
    (void)unused;
    comm *pair;
    TRY(comm_split(c, c->rank < 2 ? 0 : 1, 0, &pair));
    if (c->rank == 2) return SP_OK;
    return c->rank == 0 ? comm_barrier(pair) : comm_broadcast(c, &(int){0}, 4, 0);
}

static void deadlocks_are_errors(void **state) {
    (void)state;
    for (int rep = 0; rep < 20; rep++) {
        double start = now_s();
        assert_int_equal(comm_loop_run(3, deadlock_body, NULL), SP_FAIL);
        assert_true(now_s() - start < 1);
        assert_string_equal(err_text(),
                            "the ranks wait for each other: rank 0 called barrier, rank 1 called broadcast of 4 "
                            "bytes from rank 0, rank 2 has returned");
    }
}

/* ---- arguments --------------------------------------------------------------------------------- */

static void bad_arguments_are_errors(void **state) {
    (void)state;
    comm *c = comm_self();
    int64_t x = 0;
    assert_int_equal(comm_all_reduce(c, &x, &x, 1, DT_BOOL, COMM_SUM), SP_FAIL);
    expect_text("cannot reduce elements of type bool");
    assert_int_equal(comm_all_to_all(c, &x, &x, -1), SP_FAIL);
    expect_text("negative size");
    assert_int_equal(comm_all_reduce(c, &x, &x, INT64_MAX / 4, DT_F64, COMM_SUM), SP_FAIL);
    expect_text("too large");
    assert_int_equal(comm_broadcast(c, &x, 8, 1), SP_FAIL);
    expect_text("from rank 1 of a communicator of 1");
    assert_int_equal(comm_send_recv(c, &x, 1, &x, 0, 8), SP_FAIL);
    expect_text("to rank 1");
    assert_int_equal(comm_reserve(c, -1), SP_FAIL);
    comm_free(c);
    assert_int_equal(comm_loop_run(0, body_stats, NULL), SP_FAIL);
    expect_text("0 ranks");
    assert_int_equal(comm_loop_run(COMM_LOOP_MAX + 1, body_stats, NULL), SP_FAIL);
}

#ifndef AUTOSP_HAVE_MPI
static void without_mpi(void **state) {
    (void)state;
    comm *world;
    assert_int_equal(comm_mpi_init(&world), SP_FAIL);
    expect_text("built without MPI");
}
#endif

int main(void) {
    alarm(300); /* a hang is a failure */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(self_collectives),
        cmocka_unit_test(loop_collectives),
        cmocka_unit_test(reruns_are_bit_equal),
        cmocka_unit_test(sums_in_rank_order),
        cmocka_unit_test(a_failing_rank_ends_all),
        cmocka_unit_test(failure_leaves_copies_alone),
        cmocka_unit_test(different_calls_are_errors),
        cmocka_unit_test(deadlocks_are_errors),
        cmocka_unit_test(bad_arguments_are_errors),
#ifndef AUTOSP_HAVE_MPI
        cmocka_unit_test(without_mpi),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
