/* coll.c - layout-changing collectives (src/device/coll.c) on `loop` ranks: every element of a tensor whose value is
 * its index ends where the layouts say, and the workspace that was asked for is used to its last byte and not beyond.
 */
#include "device/device.h"

#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

enum { D4 = 4, MAX_RANKS = 4 };

/* Shares of them, for 2 to 4 ranks, are multiples of 64 bytes: workspaces have no padding. */
static const int64_t global[][D4] = {{1, 12, 12, 4}, {2, 12, 24, 4}, {3, 12, 12, 4}};

/* dim[d] of the global tensor, a share of it on each of P ranks. */
static tensor shard(const int64_t *dim, int d, int64_t P) {
    tensor t = {.type = DT_F32, .rank = D4};
    int64_t stride = 1;
    for (int i = D4 - 1; i >= 0; i--) {
        t.dim[i] = i == d ? dim[i] / P : dim[i];
        t.stride[i] = stride;
        stride *= t.dim[i];
    }
    t.data = malloc(4 * (size_t)stride);
    return t;
}

/* The global index of element i of rank r's share along d. */
static int64_t index_of(const tensor *t, const int64_t *dim, int d, int64_t r, int64_t i) {
    int64_t at[D4], index = 0;
    for (int k = D4 - 1; k >= 0; k--) at[k] = i % t->dim[k], i /= t->dim[k];
    if (d >= 0) at[d] += r * t->dim[d];
    for (int k = 0; k < D4; k++) index = index * dim[k] + at[k];
    return index;
}

typedef struct job {
    ir_op op;
    const int64_t *dim;
    int from, to; /* -1: whole on every rank */
} job;

static sp_status body(comm *c, void *ctx) {
    const job *j = ctx;
    const int64_t P = comm_size(c), r = comm_rank(c);
    tensor io[2] = {shard(j->dim, j->from, P), shard(j->dim, j->to, P)};
    const tensor *x = &io[0], *y = &io[1];
    const bool sums = j->op == OP_reduce_scatter;
    for (int64_t i = 0; i < tensor_numel(x); i++) /* sums: rank r has r + 1 times the index */
        ((float *)x->data)[i] = (float)(index_of(x, j->dim, j->from, r, i) * (sums ? r + 1 : 1));
    dev_call call = {.op = j->op, .nin = 1, .nout = 1, .in = &io[0], .out = &io[1]};
    call.from = (axis_layout){.kind = LAYOUT_SHARD, .dim = (uint8_t)(j->from < 0 ? 0 : j->from), .outer = 1};
    call.to = (axis_layout){.kind = LAYOUT_SHARD, .dim = (uint8_t)(j->to < 0 ? 0 : j->to), .outer = 1};
    const size_t bytes = (size_t)coll_workspace(&call); /* asked without a communicator, as the planner does */
    call.comm = c, call.work_bytes = (int64_t)bytes;
    uint32_t *work = call.work = bytes ? aligned_alloc(64, bytes) : NULL;
    if (bytes) memset(work, 0xff, bytes); /* NaNs */
    TRY(coll_run(&call));
    for (int64_t i = 0; i < tensor_numel(y); i++) {
        float want = (float)(index_of(y, j->dim, j->to, r, i) * (sums ? P * (P + 1) / 2 : 1));
        CHECK(((float *)y->data)[i] == want, "element %lld is %g, want %g", (long long)i, ((float *)y->data)[i], want);
    }
    for (size_t i = 0; i < bytes / 4; i++)
        CHECK(work[i] != UINT32_MAX, "word %zu of the %zu bytes of workspace is not used", i, bytes);
    for (int i = 0; i < 2; i++) free(io[i].data);
    free(work);
    return SP_OK;
}

static void expect(job j) {
    for (int P = 2; P <= MAX_RANKS; P++)
        if (comm_loop_run(P, body, &j) != SP_OK)
            fail_msg("%s of (%lld, %lld, %lld, %lld) from dimension %d to %d on %d ranks: %s", op_table[j.op].name,
                     (long long)j.dim[0], (long long)j.dim[1], (long long)j.dim[2], (long long)j.dim[3], j.from, j.to,
                     P, err_text());
}

static void exchanges(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof global / sizeof *global; i++) {
        expect((job){OP_all_to_all, global[i], 1, 2});
        expect((job){OP_all_to_all, global[i], 2, 1});
        for (int d = 1; d <= 2; d++) {
            expect((job){OP_all_gather, global[i], d, -1});
            expect((job){OP_reduce_scatter, global[i], -1, d});
        }
    }
}

static int64_t workspace(ir_op op, const int64_t *dim, int from, int to) {
    tensor io[2] = {shard(dim, from, 2), shard(dim, to, 2)};
    dev_call call = {.op = op, .nin = 1, .nout = 1, .in = &io[0], .out = &io[1]};
    call.from.dim = (uint8_t)(from < 0 ? 0 : from), call.to.dim = (uint8_t)(to < 0 ? 0 : to);
    call.from.outer = call.to.outer = 1;
    for (int i = 0; i < 2; i++) free(io[i].data);
    return coll_workspace(&call);
}

/* One sequence: what is cut or joined along the sequence lies as the exchange wants it. */
static void one_sequence_packs_half(void **state) {
    (void)state;
    const int64_t one[] = {1, 16, 4, 8}, two[] = {2, 16, 4, 8}, bytes = 16 * 4 * 8 * 4;
    assert_int_equal(workspace(OP_all_to_all, one, 1, 2), bytes / 2);
    assert_int_equal(workspace(OP_all_to_all, one, 2, 1), bytes / 2);
    assert_int_equal(workspace(OP_all_to_all, two, 1, 2), 2 * bytes);
    assert_int_equal(workspace(OP_all_gather, one, 1, -1), 0);
    assert_int_equal(workspace(OP_all_gather, two, 1, -1), 2 * bytes);
    assert_int_equal(workspace(OP_reduce_scatter, one, -1, 1), 0);
    assert_int_equal(workspace(OP_reduce_scatter, one, -1, 2), bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exchanges),
        cmocka_unit_test(one_sequence_packs_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
