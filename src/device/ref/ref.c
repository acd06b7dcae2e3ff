/* ref.c - the reference device's table, and the walk that its kernels share. */
#include "device/ref/ref.h"

#include <stdlib.h>

ref_walk ref_walk_begin(int n, const tensor *const *t, int rank, const int64_t *dim) {
    ref_walk w = {.rank = rank, .n = n, .more = true};
    for (int d = 0; d < rank; d++) {
        w.dim[d] = dim[d];
        w.more &= dim[d] > 0;
    }
    for (int k = 0; k < n; k++) w.t[k] = t[k];
    return w;
}

void ref_walk_next(ref_walk *w) {
    for (int d = w->rank - 1; d >= 0; d--) {
        for (int k = 0; k < w->n; k++) w->at[k] += w->t[k]->stride[d];
        if (++w->index[d] < w->dim[d]) return;
        for (int k = 0; k < w->n; k++) w->at[k] -= w->t[k]->stride[d] * w->dim[d];
        w->index[d] = 0;
    }
    w->more = false;
}

/* ops that never become instructions */
#define ref_leaf NULL
#define ref_constant NULL
#define ref_fill NULL
#define ref_loop NULL
#define ref_dropout dropout_run
#define ref_all_reduce coll_run
#define ref_all_gather coll_run
#define ref_reduce_scatter coll_run
#define ref_all_to_all coll_run

static dev_fn *const table[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = ref_##kern,
#include "ir/ops.def"
#undef OP
};

/* An interpreted kernel's memory is its own: plans have room for what compiled ones need. */
sp_status ref_fused_prepare(dev_call *c) {
    c->state = malloc((size_t)ref_fused_scratch(c));
    CHECK(c->state, "no memory for interpreting a kernel");
    return SP_OK;
}

static sp_status prepare(dev_call *c) {
    c->state = NULL;
    return c->op == OP_fused ? ref_fused_prepare(c) : SP_OK;
}
static void release(dev_call *c) { free(c->state); }

const device device_ref = {
    .name = "ref", .table = table, .workspace = coll_workspace, .prepare = prepare, .release = release};
