/* dropout.c - the kernel of dropout, for every device on the host: y = x * keep / (1 - p).
 *
 * The random number of an element is keyed on its index in the whole, unpadded tensor, so the mask is the same however
 * the sequence is cut, tiled or padded. bind writes those extents (`dims`), and of the dimension that holds the
 * sequence how long a row is with and without padding.
 */
#include "device/philox.h"
#include "device/ref/ref.h"

/* The extent of dimension d on this rank, of which the result may be one tile. */
static int64_t rows_of(const dev_call *c, int d) {
    return c->out[0].dim[d] * (c->tile.kind == LAYOUT_SHARD && c->tile.dim == d ? c->tiles : 1);
}

void dropout_row(const dev_call *c, int64_t r, int64_t *index, int64_t *xa, int64_t *ya) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    *xa = *ya = 0;
    for (int d = y->rank - 2; d >= 0; d--) {
        index[d] = r % y->dim[d];
        r /= y->dim[d];
        *xa += index[d] * x->stride[d];
        *ya += index[d] * y->stride[d];
    }
}

dropout_space dropout_space_of(const dev_call *c) {
    dropout_space s = {.seq = ir_int(c->node, "seq", -1), .padded = ir_int(c->node, "padded", 1)};
    s.valid = ir_int(c->node, "valid", 1);
    const int rank = ir_dims(c->node, "dims", &s.dims);
    ASSERT(rank == c->out[0].rank);
    return s;
}

uint64_t dropout_number(const dev_call *c, const dropout_space *s, const int64_t *index) {
    const tensor *y = &c->out[0];
    uint64_t at = 0;
    for (int d = 0; d < y->rank; d++) {
        int64_t g = index[d];
        if (c->tile.kind == LAYOUT_SHARD && c->tile.dim == d) {
            int64_t inner = y->dim[d] / c->tile.outer;
            g = (g / inner * c->tiles + c->tile_index) * inner + g % inner;
        }
        if (c->to.kind == LAYOUT_SHARD && c->to.dim == d) {
            int64_t inner = rows_of(c, d) / c->to.outer;
            g = (g / inner * comm_size(c->comm) + c->offset) * inner + g % inner;
        }
        if (d == s->seq) g = g / s->padded * s->valid + g % s->padded;
        at = at * (uint64_t)s->dims[d] + (uint64_t)g;
    }
    return at;
}

bool dropout_counts_up(const dev_call *c, const dropout_space *s, int d) {
    const axis_layout *cut[] = {&c->tile, &c->to};
    for (int i = 0; i < 2; i++)
        if (cut[i]->kind == LAYOUT_SHARD && cut[i]->dim == d && cut[i]->outer > 1) return false;
    return d != s->seq || s->padded == s->valid;
}

sp_status dropout_run(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    const int64_t *rng = c->in[1].data; /* seed, draw, off */
    const ir_node *n = c->node;
    double p = ir_float(n, "p", 0), keep = p < 1 ? 1 / (1 - p) : 0;
    uint32_t id = (uint32_t)ir_int(n, "id", 0);
    int last = y->rank - 1;
    bool off = rng[2] != 0 || p == 0;
    const dropout_space space = dropout_space_of(c);
    const philox_bound bound = philox_bound_of(off ? 1 : p);
    int64_t rows = 1, len = y->rank ? y->dim[last] : 1;
    for (int d = 0; d < last; d++) rows *= y->dim[d];
#pragma omp parallel for schedule(static) if (rows * len > 4096)
    for (int64_t r = 0; r < rows; r++) {
        int64_t index[TENSOR_MAX_RANK] = {0}, xa, ya;
        dropout_row(c, r, index, &xa, &ya);
        for (int64_t i = 0; i < len; i++) {
            if (last >= 0) index[last] = i;
            uint64_t at = dropout_number(c, &space, index);
            double v = ref_get(x, xa + (last >= 0 ? i * x->stride[last] : 0));
            bool kept = off || philox_keeps((uint64_t)rng[0], (uint64_t)rng[1], id, at, bound);
            ref_set(y, ya + (last >= 0 ? i * y->stride[last] : 0), kept ? (off ? v : v * keep) : 0);
        }
    }
    return SP_OK;
}
