/* rows_glue.c - norms, softmax, cross-entropy, rotary embedding, embeddings and sums on the cpu device. */
#include "device/cpu/cpu.h"

static int64_t row_length(const tensor *x) { return x->dim[x->rank - 1]; }
static int64_t row_count(const tensor *x) { return row_length(x) ? tensor_numel(x) / row_length(x) : 0; }
static bool fast(const dev_call *c) { return cpu_fast_type(c->in[0].type) && tensor_contiguous(&c->in[0]); }

int64_t cpu_rows_workspace(const dev_call *c) {
    if ((c->op == OP_rmsnorm_grad || c->op == OP_layernorm_grad) && fast(c))
        return (int64_t)kern_norm_bwd_ws(row_count(&c->in[0]), row_length(&c->in[0]));
    return 0;
}

sp_status cpu_rmsnorm(dev_call *c) {
    const tensor *x = &c->in[0];
    if (!fast(c)) return ref_rmsnorm(c);
    int64_t n = row_length(x);
    kern_rmsnorm_fwd(x->type, row_count(x), n, x->data, n, c->in[1].data, (float)ir_float(c->node, "eps", 0),
                     c->out[0].data, n, c->out[1].data);
    return SP_OK;
}

sp_status cpu_rmsnorm_grad(dev_call *c) {
    const tensor *x = &c->in[0];
    if (!fast(c)) return ref_rmsnorm_grad(c);
    int64_t n = row_length(x);
    kern_rmsnorm_bwd(x->type, row_count(x), n, x->data, n, c->in[1].data, c->in[2].data, c->in[3].data, n,
                     c->out[0].data, n, c->out[1].data, false, c->work);
    return SP_OK;
}

sp_status cpu_layernorm(dev_call *c) {
    const tensor *x = &c->in[0];
    if (!fast(c)) return ref_layernorm(c);
    int64_t n = row_length(x);
    kern_layernorm_fwd(x->type, row_count(x), n, x->data, n, c->in[1].data, c->in[2].data,
                       (float)ir_float(c->node, "eps", 0), c->out[0].data, n, c->out[1].data, c->out[2].data);
    return SP_OK;
}

sp_status cpu_layernorm_grad(dev_call *c) {
    const tensor *x = &c->in[0];
    if (!fast(c)) return ref_layernorm_grad(c);
    int64_t n = row_length(x);
    kern_layernorm_bwd(x->type, row_count(x), n, x->data, n, c->in[1].data, c->in[2].data, c->in[3].data, c->in[4].data,
                       n, c->out[0].data, n, c->out[1].data, c->out[2].data, false, c->work);
    return SP_OK;
}

sp_status cpu_xent(dev_call *c) {
    const tensor *x = &c->in[0];
    if (!fast(c)) return ref_xent(c);
    int64_t v = row_length(x);
    return kern_xent_fwd(x->type, row_count(x), v, x->data, v, c->in[1].data, ir_int(c->node, "ignore", -100),
                         c->out[0].data, c->out[1].data);
}

sp_status cpu_xent_grad(dev_call *c) {
    const tensor *x = &c->in[0], *d = &c->in[3];
    bool broadcast = true;
    for (int i = 0; i < d->rank; i++) broadcast &= d->stride[i] == 0 || d->dim[i] == 1;
    if (!fast(c) || !(broadcast || tensor_contiguous(d))) return ref_xent_grad(c);
    int64_t v = row_length(x);
    kern_xent_bwd(x->type, row_count(x), v, x->data, v, c->in[1].data, ir_int(c->node, "ignore", -100), c->in[2].data,
                  d->data, !broadcast, c->out[0].data, v);
    return SP_OK;
}

static bool last_dim(const dev_call *c) { return ir_int(c->node, "dim", -1) == c->in[0].rank - 1; }

sp_status cpu_softmax(dev_call *c) {
    const tensor *x = &c->in[0];
    if (!fast(c) || !last_dim(c)) return ref_softmax(c);
    int64_t n = row_length(x);
    kern_softmax_fwd(x->type, row_count(x), n, x->data, n, c->out[0].data, n);
    return SP_OK;
}

sp_status cpu_softmax_grad(dev_call *c) {
    const tensor *y = &c->in[0];
    if (!fast(c) || !last_dim(c)) return ref_softmax_grad(c);
    int64_t n = row_length(y);
    kern_softmax_bwd(y->type, row_count(y), n, y->data, n, c->in[1].data, n, c->out[0].data, n);
    return SP_OK;
}

sp_status cpu_rope(dev_call *c) {
    if (!cpu_fast_type(c->in[0].type) || c->in[0].dim[3] % 2) return ref_rope(c);
    tensor table[2];
    for (int i = 0; i < 2; i++) { /* (1,S,D) is (S,D) */
        table[i] = c->in[1 + i];
        if (table[i].dim[0] != 1) continue;
        table[i].rank = 2;
        for (int d = 0; d < 2; d++) {
            table[i].dim[d] = table[i].dim[d + 1];
            table[i].stride[d] = table[i].stride[d + 1];
        }
    }
    kern_rope(&c->in[0], &table[0], &table[1], ir_int(c->node, "transpose", 0) != 0, &c->out[0]);
    return SP_OK;
}

sp_status cpu_embedding(dev_call *c) {
    const tensor *w = &c->in[0];
    if (!fast(c)) return ref_embedding(c);
    return kern_embed_fwd(w->type, tensor_numel(&c->in[1]), w->dim[1], w->dim[0], c->in[1].data, w->data,
                          c->out[0].data, w->dim[1]);
}

sp_status cpu_embedding_grad(dev_call *c) {
    const tensor *dy = &c->in[0], *dw = &c->out[0];
    if (!fast(c) || dw->type != DT_F32) return ref_embedding_grad(c);
    if (!c->accumulate) memset(dw->data, 0, (size_t)tensor_numel(dw) * sizeof(float));
    kern_embed_bwd(dy->type, tensor_numel(&c->in[1]), dw->dim[1], c->in[1].data, ir_int(c->node, "pad", -1), dy->data,
                   dw->dim[1], dw->data);
    return SP_OK;
}

/* ---- sums ---- */

sp_status cpu_sum(dev_call *c) {
    const tensor *x = &c->in[0];
    const ir_dim *dims;
    int k = ir_dims(c->node, "dims", &dims);
    unsigned gone = 0;
    for (int i = 0; i < k; i++) gone |= 1u << dims[i];
    /* (outer, rows, inner), of which rows go: dimensions of one element belong to any of them */
    int64_t extent[3] = {1, 1, 1};
    int at = 0;
    for (int d = 0; d < x->rank; d++) {
        if (x->dim[d] == 1) continue;
        bool goes = gone >> d & 1;
        if (at == 0 && goes) at = 1;
        if (at == 1 && !goes) at = 2;
        if (at == 2 && goes) return ref_sum(c);
        extent[at] *= x->dim[d];
    }
    if (!fast(c) || c->out[0].type != x->type) return ref_sum(c);
    if (extent[2] == 1)
        kern_sum_cols(x->type, extent[0], extent[1], x->data, c->out[0].data);
    else
        kern_sum_rows(x->type, extent[0], extent[1], extent[2], x->data, c->out[0].data);
    return SP_OK;
}
