/* coll.c - layout-changing collectives over host memory: pack, exchange, unpack.
 *
 * A dimension that is cut is outer x P x inner, so a tensor is blocks of (outer, P, inner) with contiguous runs of
 * `inner` times the later dimensions. Gathering puts rank r's runs at position r of each block; scattering is the
 * transpose; an all-to-all cuts along `to` and joins along `from`. Where the outer product of dimensions before the cut
 * is 1 the packed form is the tensor itself and no copy is made.
 */
#include "device/device.h"

/* A tensor seen as (outer, P, run) bytes around one cut dimension. */
typedef struct cut {
    int64_t outer, run; /* run in bytes */
} cut;

static cut cut_of(const tensor *whole, axis_layout l, int64_t size) {
    cut c = {l.outer, dtype_size(whole->type)};
    for (int d = 0; d < l.dim; d++) c.outer *= whole->dim[d];
    for (int d = l.dim; d < whole->rank; d++) c.run *= whole->dim[d];
    c.run /= l.outer * size;
    return c;
}

static int64_t bytes_of(const tensor *t) { return tensor_numel(t) * dtype_size(t->type); }

/* dst (P, outer, run) <- src (outer, P, run) */
static void split(char *dst, const char *src, cut c, int64_t P) {
    for (int64_t o = 0; o < c.outer; o++)
        for (int64_t p = 0; p < P; p++)
            memcpy(dst + (p * c.outer + o) * c.run, src + (o * P + p) * c.run, (size_t)c.run);
}

/* dst (outer, P, run) <- src (P, outer, run) */
static void join(char *dst, const char *src, cut c, int64_t P) {
    for (int64_t p = 0; p < P; p++)
        for (int64_t o = 0; o < c.outer; o++)
            memcpy(dst + (o * P + p) * c.run, src + (p * c.outer + o) * c.run, (size_t)c.run);
}

/* For an all-to-all both halves keep whole runs: pieces of `to` are cut from my tensor, pieces of `from` are joined. */
static cut a2a_cut(const tensor *t, int dim, int64_t parts) {
    return cut_of(t, (axis_layout){.dim = (uint8_t)dim, .outer = 1}, parts);
}

/* Only what has to be packed or unpacked: with one sequence a rank an exchange needs one of its two copies, and
 * gathering along the sequence none. How many ranks there are changes nothing here, and is not known yet. */
int64_t coll_workspace(const dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    switch (c->op) {
    case OP_all_to_all: {
        bool send = a2a_cut(x, c->to.dim, 1).outer != 1, recv = a2a_cut(y, c->from.dim, 1).outer != 1;
        return (send + recv) * round_up(bytes_of(x), 64);
    }
    case OP_all_gather:
        return cut_of(y, c->from, 1).outer == 1 ? 0 : bytes_of(y);
    case OP_reduce_scatter:
        return cut_of(x, c->to, 1).outer == 1 ? 0 : bytes_of(x);
    default:
        return 0;
    }
}

sp_status coll_run(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    int64_t P = comm_size(c->comm);
    switch (c->op) {
    case OP_all_reduce:
        return comm_all_reduce(c->comm, x->data, y->data, tensor_numel(x), x->type, COMM_SUM);
    case OP_all_gather: {
        cut k = cut_of(y, c->from, P);
        void *packed = k.outer == 1 ? y->data : c->work;
        TRY(comm_all_gather(c->comm, x->data, packed, bytes_of(x)));
        if (k.outer != 1) join(y->data, packed, k, P);
        return SP_OK;
    }
    case OP_reduce_scatter: {
        cut k = cut_of(x, c->to, P);
        if (k.outer != 1) split(c->work, x->data, k, P);
        return comm_reduce_scatter(c->comm, k.outer == 1 ? x->data : c->work, y->data, tensor_numel(y), x->type);
    }
    case OP_all_to_all: {
        cut out = a2a_cut(x, c->to.dim, P), in = a2a_cut(y, c->from.dim, P);
        char *send = c->work, *recv = out.outer == 1 ? send : send + round_up(bytes_of(x), 64);
        const void *from = out.outer == 1 ? x->data : send;
        void *to = in.outer == 1 ? y->data : recv;
        if (out.outer != 1) split(send, x->data, out, P);
        TRY(comm_all_to_all(c->comm, from, to, bytes_of(x) / P));
        if (in.outer != 1) join(y->data, recv, in, P);
        return SP_OK;
    }
    default:
        ASSERT(!"a collective");
        return SP_FAIL;
    }
}
