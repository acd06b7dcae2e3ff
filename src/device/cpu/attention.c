/* attention.c - attention on the cpu device: the mask description of the node becomes kern_attn_params. */
#include "device/cpu/cpu.h"

#include <math.h>

enum { MAX_SIDE = 8 };

/* Side operands that the kernel has no field for: padding, masks and biases as data, documents of odd strides. */
typedef struct side_data {
    const tensor *t;
    char role;   /* 'k'eep or 'm'ask: hide where 0; 'b'ias: add; 'a'libi: add slope * distance */
    int axis[4]; /* 0 b, 1 h, 2 q, 3 k, of each dimension */
} side_data;

typedef struct bias_data {
    side_data side[MAX_SIDE];
    int n;
    int64_t q_offset, ahead;
} bias_data;

static void apply(void *ctx, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0, int64_t nk, float *s,
                  int64_t ld) {
    const bias_data *d = ctx;
    for (int x = 0; x < d->n; x++) {
        const side_data *y = &d->side[x];
        int64_t stride[4] = {0};
        for (int i = 0; i < y->t->rank; i++)
            if (y->t->dim[i] != 1) stride[y->axis[i]] = y->t->stride[i];
        int64_t base = b * stride[0] + h * stride[1];
        for (int64_t j = 0; j < nk; j++)
            for (int64_t i = 0; i < nq; i++) {
                double v = ref_get(y->t, base + (q0 + i) * stride[2] + (k0 + j) * stride[3]);
                float *e = &s[j * ld + i];
                if (y->role == 'b')
                    *e += (float)v;
                else if (y->role == 'a')
                    *e += (float)(v * (double)(k0 + j - (d->q_offset + q0 + i)));
                else if (v == 0)
                    *e = -INFINITY;
            }
    }
    for (int64_t j = 0; d->ahead && j < nk; j++)
        for (int64_t i = 0; i < nq; i++)
            if (k0 + j - (d->q_offset + q0 + i) >= d->ahead) s[j * ld + i] = -INFINITY;
}

static kern_attn_params params(const dev_call *c, int first, bias_data *data) {
    const ir_node *n = c->node;
    kern_attn_params p = kern_attn_defaults((float)ir_float(n, "scale", 1));
    p.causal = ir_int(n, "causal", 0) != 0;
    p.q_offset = c->offset;
    if (ir_int(n, "kv_valid", 0)) p.kv_valid = ir_int(n, "kv_valid", 0);
    p.window = ir_int(n, "window", 0);
    p.softcap = (float)ir_float(n, "softcap", 0);
    *data = (bias_data){.q_offset = c->offset, .ahead = ir_int(n, "window_ahead", 0)};
    const char *side = ir_str(n, "side"), *roles = ir_str(n, "roles");
    for (int i = first; i < c->nin; i++) {
        const tensor *t = &c->in[i];
        ASSERT(side && roles && data->n < MAX_SIDE);
        side_data y = {.t = t, .role = roles[0]};
        for (int d = 0; d < t->rank; d++, side++)
            y.axis[d] = *side == 'b' ? 0 : *side == 'h' ? 1 : *side == 'q' ? 2 : 3;
        while (*side == ' ') side++;
        if (strncmp(roles, "doc", 3) == 0) { /* i64 (B|1, rows), rows contiguous: build.c sees to it */
            int64_t bs = t->dim[0] == 1 ? 0 : t->stride[0];
            if (roles[3] == 'q')
                p.doc_q = t->data, p.doc_q_bs = bs;
            else
                p.doc_k = t->data, p.doc_k_bs = bs;
        } else if (y.role == 'a' && t->rank == 1 && t->type == DT_F32 && t->stride[0] == 1) {
            p.alibi = t->data;
        } else {
            data->side[data->n++] = y;
        }
        while (*roles && *roles != ' ') roles++;
        while (*roles == ' ') roles++;
    }
    if (data->n || data->ahead) {
        p.bias = apply;
        p.bias_ctx = data;
    }
    return p;
}

int64_t cpu_attention_workspace(const dev_call *c) {
    if (!cpu_fast_type(c->in[0].type)) return 0;
    return (int64_t)(c->op == OP_attention ? kern_attn_fwd_ws(&c->in[0], &c->in[1], c->threads)
                                           : kern_attn_bwd_ws(&c->in[0], &c->in[1], c->threads));
}

sp_status cpu_attention(dev_call *c) {
    if (!cpu_fast_type(c->in[0].type)) return ref_attention(c);
    bias_data data;
    kern_attn_params p = params(c, 3, &data);
    kern_attn_fwd(&c->in[0], &c->in[1], &c->in[2], &c->out[0], &c->out[1], &p, c->work, (size_t)c->work_bytes);
    return SP_OK;
}

sp_status cpu_attention_grad(dev_call *c) {
    if (!cpu_fast_type(c->in[0].type)) return ref_attention_grad(c);
    bias_data data;
    kern_attn_params p = params(c, 6, &data);
    kern_attn_bwd(&c->in[0], &c->in[1], &c->in[2], &c->in[3], &c->in[4], &c->in[5], &c->out[0], &c->out[1], &c->out[2],
                  &p, c->work, (size_t)c->work_bytes);
    return SP_OK;
}
