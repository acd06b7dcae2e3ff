/* attention.c - attention on the cpu device: the mask description of the node becomes kern_attn_params. */
#include "device/cpu/cpu.h"
#include "device/cpu/vec.h"

#include <math.h>

/* Side operands that the kernel has no field for: padding, masks and biases as data, slopes per batch row. */
typedef struct side_data {
    const tensor *t;
    char role;         /* 'k'eep or 'm'ask: hide where 0; 'b'ias: add; 'a'libi: add slope * distance */
    int64_t stride[4]; /* by b, h, q, k; 0 where it broadcasts */
} side_data;

typedef struct bias_data {
    side_data side[ATTENTION_SIDES];
    int n;
    int64_t q_offset, ahead;
    kern_attn_formula formula;
} bias_data;

/* Element i as what is added to a score: of a bias itself, of a mask 0 or -inf. */
INLINE float element(const side_data *y, int64_t i) {
    const void *x = y->t->data;
    switch (y->t->type) {
    case DT_F32:
        return ((const float *)x)[i];
    case DT_BF16:
        return bf16_get(((const uint16_t *)x)[i]);
    case DT_BOOL:
        return ((const uint8_t *)x)[i] ? 0 : -INFINITY;
    default:
        return (float)ref_get(y->t, i);
    }
}

typedef uint8_t vbytes __attribute__((vector_size(VL)));

/* n <= VL neighbours from element i on. */
INLINE vf neighbours(dtype t, const void *x, int64_t i, int64_t n) {
    if (t == DT_BOOL) {
        vbytes flag = {0};
        if (n == VL)
            memcpy(&flag, (const uint8_t *)x + i, VL);
        else
            memcpy(&flag, (const uint8_t *)x + i, (size_t)n);
        vi see = __builtin_convertvector(flag, vi) != 0;
        return vselect(see, vset(0), vset(-INFINITY));
    }
    return n == VL ? vget(t == DT_BF16, x, i) : vget_n(t == DT_BF16, x, i, n, 0);
}

/* Adds a tile of data whose keys are neighbours: rows are loaded as vectors and transposed to the tile's order. */
INLINE void add_rows(dtype t, const void *x, int64_t base, int64_t row, int64_t nq, int64_t nk, float *s, int64_t ld) {
    for (int64_t i = 0; i < nq; i += VL)
        for (int64_t j = 0; j < nk; j += VL) {
            vf r[VL];
            int64_t rows = min64(VL, nq - i), n = min64(VL, nk - j);
            for (int64_t k = 0; k < VL; k++) r[k] = k < rows ? neighbours(t, x, base + (i + k) * row + j, n) : vset(0);
            vtranspose(r);
            for (int64_t k = 0; k < n; k++) {
                float *to = s + (j + k) * ld + i;
                vst(to, vld(to) + r[k]);
            }
        }
}

static void add_side(const side_data *y, int64_t base, int64_t nq, int64_t nk, float *s, int64_t ld) {
    const int64_t sq = y->stride[2], sk = y->stride[3];
    const dtype t = y->t->type;
    if (sq == 0) { /* the same for every query */
        for (int64_t j = 0; j < nk; j++) {
            vf v = vset(element(y, base + j * sk));
            for (int64_t i = 0; i < nq; i += VL) vst(s + j * ld + i, vld(s + j * ld + i) + v);
        }
    } else if (sk == 1 && t == DT_F32) {
        add_rows(DT_F32, y->t->data, base, sq, nq, nk, s, ld);
    } else if (sk == 1 && t == DT_BF16) {
        add_rows(DT_BF16, y->t->data, base, sq, nq, nk, s, ld);
    } else if (sk == 1 && t == DT_BOOL) {
        add_rows(DT_BOOL, y->t->data, base, sq, nq, nk, s, ld);
    } else {
        for (int64_t j = 0; j < nk; j++)
            for (int64_t i = 0; i < nq; i++) s[j * ld + i] += element(y, base + i * sq + j * sk);
    }
}

static void apply(void *ctx, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0, int64_t nk, float *s,
                  int64_t ld) {
    const bias_data *d = ctx;
    for (int x = 0; x < d->n; x++) {
        const side_data *y = &d->side[x];
        int64_t base = b * y->stride[0] + h * y->stride[1] + q0 * y->stride[2] + k0 * y->stride[3];
        if (y->role != 'a') {
            add_side(y, base, nq, nk, s, ld);
            continue;
        }
        float slope = element(y, base);
        for (int64_t j = 0; j < nk; j++)
            for (int64_t i = 0; i < nq; i++) s[j * ld + i] += slope * (float)(k0 + j - (d->q_offset + q0 + i));
    }
    for (int64_t j = 0; d->ahead && j < nk; j++)
        for (int64_t i = 0; i < nq; i++)
            if (k0 + j - (d->q_offset + q0 + i) >= d->ahead) s[j * ld + i] = -INFINITY;
}

/* What the node alone says. */
static kern_attn_params fixed_params(const ir_node *n) {
    kern_attn_params p = kern_attn_defaults((float)ir_float(n, "scale", 1));
    p.causal = ir_int(n, "causal", 0) != 0;
    if (ir_int(n, "kv_valid", 0)) p.kv_valid = ir_int(n, "kv_valid", 0);
    p.window = ir_int(n, "window", 0);
    p.softcap = (float)ir_float(n, "softcap", 0);
    return p;
}

static kern_attn_params params(const dev_call *c, int first, bias_data *data) {
    const ir_node *n = c->node;
    kern_attn_params p = fixed_params(n);
    int nq = 0, nk = 0;
    p.q_offset = c->offset;
    *data = (bias_data){.q_offset = c->offset, .ahead = ir_int(n, "window_ahead", 0)};
    const char *side = ir_str(n, "side"), *roles = ir_str(n, "roles");
    for (int i = first; i < c->nin; i++) {
        const tensor *t = &c->in[i];
        ASSERT(side && roles && data->n < ATTENTION_SIDES);
        side_data y = {.t = t, .role = roles[0]};
        for (int d = 0; d < t->rank; d++, side++) {
            int axis = *side == 'b' ? 0 : *side == 'h' ? 1 : *side == 'q' ? 2 : 3;
            if (t->dim[d] != 1) y.stride[axis] = t->stride[d];
        }
        while (*side == ' ') side++;
        if (strncmp(roles, "doc", 3) == 0) { /* i64 (B|1, rows), rows contiguous: build.c sees to it */
            if (roles[3] == 'q')
                p.doc_q = t->data, p.doc_q_bs = y.stride[0];
            else
                p.doc_k = t->data, p.doc_k_bs = y.stride[0];
        } else if (y.role == 'f') {
            bool q = roles[1] == 'q';
            kern_attn_vector v = {t->data, y.stride[0], y.stride[1], y.stride[q ? 2 : 3]};
            if (q)
                data->formula.q[nq++] = v;
            else
                data->formula.k[nk++] = v;
        } else if (y.role == 'r') {
            const int64_t *rng = t->data; /* seed, draw, off */
            p.drop = (kern_attn_dropout){.p = rng[2] ? 0 : ir_float(n, "drop_p", 0),
                                         .node = (uint32_t)ir_int(n, "drop_id", 0),
                                         .seed = (uint64_t)rng[0],
                                         .draw = (uint64_t)rng[1],
                                         .head_offset = c->head_offset};
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
    if (nq) {
        bool parsed = ir_formula_parse(ir_str(n, "formula"), nq, &data->formula.code) == SP_OK;
        ASSERT(parsed && nq == nk); /* the verifier saw it */
        data->formula.pairs = nq;
        if (data->formula.code.n) p.formula = &data->formula;
    }
    return p;
}

int64_t cpu_attention_workspace(const dev_call *c) {
    if (!cpu_fast_type(c->in[0].type)) return 0;
    kern_attn_params p = fixed_params(c->node);
    p.drop.p = ir_float(c->node, "drop_p", 0);
    return (int64_t)(c->op == OP_attention ? kern_attn_fwd_ws(&c->in[0], &c->in[1], &p, c->threads)
                                           : kern_attn_bwd_ws(&c->in[0], &c->in[1], &p, c->threads));
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
