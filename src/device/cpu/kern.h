/* kern.h - the fast CPU kernels: pure functions over pointers, sizes and strides, without any notion of a graph.
 *
 * Common rules.
 *   Threads    a kernel opens an OpenMP team of the calling thread's current maximum (omp_set_num_threads); several
 *              threads may call kernels at once, each with its own team and its own workspace.
 *   Memory     nothing is allocated. Where a kernel needs a workspace, NAME_ws() gives its size in bytes; the
 *              workspace is 64-byte aligned, needs no initialisation and holds nothing between calls.
 *   Order      every reduction has a fixed order, so that results are bit-equal from run to run; unless said otherwise
 *              they do not depend on the number of threads either.
 *   Types      `dtype t` is the element type of the activations, DT_F32 or DT_BF16; accumulation is f32 always.
 *              Statistics, losses and weight gradients are f32.
 *   Errors     wrong data from a user (a label outside the vocabulary) is an SP_FAIL; wrong sizes, strides or types
 *              are a caller's bug and ASSERTed.
 *   Aliasing   outputs do not overlap inputs unless a comment allows it.
 */
#ifndef AUTOSP_DEVICE_CPU_KERN_H
#define AUTOSP_DEVICE_CPU_KERN_H

#include "base/base.h"
#include "device/adamw.h"
#include "device/tensor.h"
#include "ir/formula.h"

/* Alignment of every workspace, in bytes. */
enum { KERN_ALIGN = 64 };

/* ---- attention (attn.c, attn_fwd.c, attn_bwd.c) ------------------------------------------------ */

/* Changes the scores of one tile in place, after softcap and ALiBi and before the masks: adds a bias, or writes
 * -INFINITY to hide. The tile is key-major: the score of query row q0+i and key row k0+j is s[j*ld + i], i < nq,
 * j < nk. Rows are indices into q and k (not global positions). Called from several threads; has to be a function of
 * its arguments alone, because backward calls it again. */
typedef void (*kern_attn_bias)(void *ctx, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0, int64_t nk,
                               float *s, int64_t ld);

/* A number for each row (a query or a key), by batch row and head; strides in elements, 0 where it does not depend. */
typedef struct kern_attn_vector {
    const int64_t *at;
    int64_t bs, hs, s;
} kern_attn_vector;

/* Key j is visible to row i iff the formula is true of the vectors' numbers. */
typedef struct kern_attn_formula {
    ir_formula code;
    int pairs;
    kern_attn_vector q[FORMULA_PAIRS], k[FORMULA_PAIRS];
} kern_attn_formula;

/* Dropout of the weights: softmax's result is multiplied by 0 with probability p, else by 1/(1-p) (philox.h). */
typedef struct kern_attn_dropout {
    double p; /* 0: none */
    uint32_t node;
    uint64_t seed, draw;
    int64_t head_offset; /* number of head 0; a row's number is its position, q_offset + i */
} kern_attn_dropout;

/* What scores become and which are visible: s = scale * <q, k>; softcap; ALiBi; bias; masks. A key is visible to a
 * query iff all of the masks given let it be. Start from kern_attn_defaults(). */
typedef struct kern_attn_params {
    float scale;
    bool causal;      /* key j is visible to row i iff j <= q_offset + i */
    int64_t q_offset; /* position of query row 0 counted from key row 0; may be negative (keys of a later rank) */
    int64_t kv_valid; /* keys j >= kv_valid are hidden (padding); INT64_MAX for none */
    int64_t window;   /* > 0: key j is visible iff q_offset + i - j < window; 0 for none */
    const int64_t *doc_q, *doc_k; /* (B,Sq), (B,Sk): visible iff equal; both or neither; NULL for none */
    int64_t doc_q_bs, doc_k_bs;   /* their strides over the batch in elements (0: one for the whole batch) */
    float softcap;                /* > 0: s -> softcap * tanh(s / softcap); 0 for none */
    const float *alibi;           /* (H): s += alibi[h] * (j - (q_offset + i)); NULL for none */
    kern_attn_bias bias;          /* NULL for none */
    void *bias_ctx;
    const kern_attn_formula *formula; /* NULL for none */
    kern_attn_dropout drop;
} kern_attn_params;

static inline kern_attn_params kern_attn_defaults(float scale) {
    return (kern_attn_params){.scale = scale, .kv_valid = INT64_MAX};
}

/* o = softmax(scores) v, with lse = log(sum(exp(scores))), by blocks with a running softmax: memory is O(D) a row.
 * q, o: (B,Sq,H,D); k, v: (B,Sk,Hkv,D), H a multiple of Hkv, query head h reads kv head h / (H/Hkv); any strides, but D
 * is contiguous; q, k, v, o of one type. lse: (B,H,Sq) f32, any strides. Sq and Sk may be 0.
 * A row that sees no key gets o = 0, lse = -inf. o may be q itself.
 * bf16 enters the products as it is where the machine multiplies pairs of it: by AMX's tiles, unless AUTOSP_AMX=0 is in
 * the environment (amx.h), or by AVX512-BF16; elsewhere, and with dropout, it is widened. Each has its own bits. */
void kern_attn_fwd(const tensor *q, const tensor *k, const tensor *v, const tensor *o, const tensor *lse,
                   const kern_attn_params *p, void *ws, size_t ws_bytes);
/* Bytes for at most `threads` threads (omp_get_max_threads() of the thread that will call). Of p drop.p is read; above
 * 0 there is room for calls with dropout and without. */
size_t kern_attn_fwd_ws(const tensor *q, const tensor *k, const kern_attn_params *p, int threads);

/* dq, dk, dv (overwritten; shapes and type of q, k, v, any strides, D contiguous) from o, lse of the forward pass and
 * its cotangent dout. o and lse may belong to a softmax over more keys than these (a ring's global ones): the
 * gradients are then this block's terms. Rows with lse = -inf have gradient 0. The bias gets no gradient. */
void kern_attn_bwd(const tensor *q, const tensor *k, const tensor *v, const tensor *o, const tensor *lse,
                   const tensor *dout, const tensor *dq, const tensor *dk, const tensor *dv, const kern_attn_params *p,
                   void *ws, size_t ws_bytes);
/* The same for it. Of p softcap, causal, window and drop.p are read: capped scores have derivatives, a window hides. */
size_t kern_attn_bwd_ws(const tensor *q, const tensor *k, const kern_attn_params *p, int threads);

/* Folds the result of attention over other keys into (o, lse): lse' = log(e^lse + e^lse2),
 * o' = o e^(lse-lse') + o2 e^(lse2-lse'). o f32 (B,Sq,H,D); o2 f32 or bf16; lse, lse2 (B,H,Sq) f32. */
void kern_attn_merge(const tensor *o, const tensor *lse, const tensor *o2, const tensor *lse2);

/* ---- matrix products (gemm.c) ------------------------------------------------------------------ */

enum { KERN_GEMM_BATCH = 4 };

/* Which implementation: the faster one that exists, or one of them for tests and comparisons. */
typedef enum kern_gemm_impl_choice { KERN_GEMM_BEST, KERN_GEMM_OWN, KERN_GEMM_LIBRARY } kern_gemm_impl_choice;

/* C = alpha * A B + beta * C + bias, for every index of the batch. A (m,k), B (k,n), C (m,n), bias (n).
 * Strides in elements; of each operand's row and column stride one is 1 (a transpose is a swap of the two). A batch
 * stride of 0 repeats that operand (not C). y = x W^T is b_rs = 1, b_cs = ldw; dW += dy^T x is a_rs = 1, a_cs = lddy,
 * beta = 1. */
typedef struct kern_gemm_desc {
    dtype ab, c; /* types of A and B, of C and bias: f32/f32, bf16/bf16, bf16/f32 */
    int64_t m, n, k;
    int64_t a_rs, a_cs, b_rs, b_cs, c_rs, c_cs;
    int nbatch; /* batch dimensions in use, 0 for one product */
    int64_t batch[KERN_GEMM_BATCH], a_bs[KERN_GEMM_BATCH], b_bs[KERN_GEMM_BATCH], c_bs[KERN_GEMM_BATCH];
    float alpha, beta;
    bool bias;
    kern_gemm_impl_choice impl;
    int threads; /* the team size at run time; part of the plan because splits may depend on it */
} kern_gemm_desc;

typedef struct kern_gemm kern_gemm;

/* Chooses an implementation and creates what it needs ahead of time; the handle is freed by kern_gemm_free (NULL is
 * allowed). One handle serves one thread at a time. Results are bit-equal for equal desc (threads included).
 * SP_FAIL: the library refused. */
sp_status kern_gemm_prepare(const kern_gemm_desc *d, kern_gemm **out) SP_NODISCARD;
size_t kern_gemm_ws(const kern_gemm *g);
const char *kern_gemm_impl(const kern_gemm *g); /* "own" or the library's name for its kernel */
/* bias is NULL unless desc.bias. Fails only when the library does. */
sp_status kern_gemm_run(kern_gemm *g, const void *a, const void *b, void *c, const void *bias, void *ws) SP_NODISCARD;
void kern_gemm_free(kern_gemm *g);

/* ---- normalisation (norm.c) -------------------------------------------------------------------- */

/* Rows x (rows, n) with row stride ldx; y likewise; w, b (n) of type t; b may be NULL (layernorm without bias), w too.
 * rmsnorm: y = x * rstd * w, rstd (rows) = 1/sqrt(mean(x^2) + eps). y may be x. */
void kern_rmsnorm_fwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, float eps, void *y,
                      int64_t ldy, float *rstd);
/* dx = (overwritten; may be dy), dw (n) f32: += when accumulate, else =. dw NULL skips it (then no workspace). */
void kern_rmsnorm_bwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, const float *rstd,
                      const void *dy, int64_t lddy, void *dx, int64_t lddx, float *dw, bool accumulate, void *ws);
/* layernorm: y = (x - mean) * rstd * w + b; mean, rstd (rows). */
void kern_layernorm_fwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, const void *b,
                        float eps, void *y, int64_t ldy, float *mean, float *rstd);
void kern_layernorm_bwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, const float *mean,
                        const float *rstd, const void *dy, int64_t lddy, void *dx, int64_t lddx, float *dw, float *db,
                        bool accumulate, void *ws);
/* Workspace of both backward kernels. */
size_t kern_norm_bwd_ws(int64_t rows, int64_t n);

/* ---- softmax and the loss (softmax.c) ---------------------------------------------------------- */

/* y = softmax(x) on the last dimension; rows of -inf only give 0. y may be x. */
void kern_softmax_fwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, void *y, int64_t ldy);
/* dx = y * (dy - <y, dy>). dx may be dy or y. */
void kern_softmax_bwd(dtype t, int64_t rows, int64_t n, const void *y, int64_t ldy, const void *dy, int64_t lddy,
                      void *dx, int64_t lddx);
/* logits (rows, v), labels (rows); loss[r] = lse[r] - logits[r][label], 0 where the label is ignore_index; lse (rows)
 * is kept for backward. SP_FAIL names the first row whose label is outside [0, v) and not ignore_index. */
sp_status kern_xent_fwd(dtype t, int64_t rows, int64_t v, const void *logits, int64_t ld, const int64_t *labels,
                        int64_t ignore_index, float *loss, float *lse) SP_NODISCARD;
/* dlogits[r] = (softmax(logits[r]) - onehot(label)) * dloss[r * dloss_stride], 0 for ignored rows; dloss_stride is 0
 * or 1. dlogits may be logits. Labels were checked by the forward pass. */
void kern_xent_bwd(dtype t, int64_t rows, int64_t v, const void *logits, int64_t ld, const int64_t *labels,
                   int64_t ignore_index, const float *lse, const float *dloss, int64_t dloss_stride, void *dlogits,
                   int64_t ldd);

/* ---- rotary embedding (rope.c) ----------------------------------------------------------------- */

/* y = x * cos + rotate_half(x) * sin, rotate_half(x) = (-x[D/2:], x[:D/2]); with transpose the transposed map, which
 * is the gradient. x, y (B,S,H,D), D even and contiguous; cos, sin (S,D) or (B,S,D), last dimension contiguous, of x's
 * type or f32. y may be x. */
void kern_rope(const tensor *x, const tensor *cos, const tensor *sin, bool transpose, const tensor *y);

/* ---- element-wise (elem.c) --------------------------------------------------------------------- */

typedef enum kern_act { KERN_SILU, KERN_GELU, KERN_GELU_TANH } kern_act;
/* n contiguous elements; y may be x, dx may be dy. */
void kern_act_fwd(kern_act act, dtype t, int64_t n, const void *x, void *y);
void kern_act_bwd(kern_act act, dtype t, int64_t n, const void *x, const void *dy, void *dx);
/* y = silu(g) * u, rows (rows, n) with row strides, so that g and u may be halves of one matrix. y may be g or u. */
void kern_swiglu_fwd(dtype t, int64_t rows, int64_t n, const void *g, int64_t ldg, const void *u, int64_t ldu, void *y,
                     int64_t ldy);
/* dg may be g, du may be u, either may be dy. */
void kern_swiglu_bwd(dtype t, int64_t rows, int64_t n, const void *g, int64_t ldg, const void *u, int64_t ldu,
                     const void *dy, int64_t lddy, void *dg, int64_t lddg, void *du, int64_t lddu);
void kern_axpy(dtype t, int64_t n, float alpha, const void *x, void *y);  /* y += alpha x */
void kern_scale(dtype t, int64_t n, float alpha, const void *x, void *y); /* y = alpha x; y may be x */
void kern_add(dtype t, int64_t n, const void *a, const void *b, void *y); /* y = a + b; y may be a or b */
void kern_mul(dtype t, int64_t n, const void *a, const void *b, void *y); /* y = a * b; y may be a or b */
double kern_sumsq(dtype t, int64_t n, const void *x);                     /* sum of squares in f64 */
/* y (outer, n) = sum over the rows of x (outer, rows, n); y (rows) = sum over the columns of x (rows, n). Contiguous, y
 * of type t; added in f32 and f64 (sum.c). */
void kern_sum_rows(dtype t, int64_t outer, int64_t rows, int64_t n, const void *x, void *y);
void kern_sum_cols(dtype t, int64_t rows, int64_t n, const void *x, void *y);
/* dst = src for any strides and up to TENSOR_MAX_RANK dimensions, equal dims; converts between f32 and bf16 (round to
 * nearest even), else the types are equal. Transposes are blocked. dst has no zero strides over dims > 1. */
void kern_copy(const tensor *dst, const tensor *src);

/* ---- embedding, optimizer (embed.c, adamw.c) --------------------------------------------------- */

/* y[r] = table[ids[r]], r < rows; table (vocab, n), y row stride ldy. SP_FAIL names the first bad id. */
sp_status kern_embed_fwd(dtype t, int64_t rows, int64_t n, int64_t vocab, const int64_t *ids, const void *table,
                         void *y, int64_t ldy) SP_NODISCARD;
/* dtable (vocab, n) f32 += the sum of dy[r] over rows r with that id, in the order of r. Ids were checked. Rows with
 * id skip (-1 for none) add nothing (padding_idx). Does not clear dtable. */
void kern_embed_bwd(dtype t, int64_t rows, int64_t n, const int64_t *ids, int64_t skip, const void *dy, int64_t lddy,
                    float *dtable);

/* AdamW as torch.optim.AdamW: p -= lr*wd*p; m, v moments of g*grad_scale; bias corrections for step (from 1);
 * p -= lr * mhat / (sqrt(vhat) + eps). p, g, m, v f32 (n); copy (bf16, n) receives the rounded new p; NULL for none. */
void kern_adamw(int64_t n, float *p, const float *g, float *m, float *v, const adamw_params *a, void *copy);

/* ---- the machine's limits (peak.c) -------------------------------------------------------------- */

/* Operations a second that `threads` threads reach from registers alone: multiply-adds of f32, or, where the machine
 * has them, dot products of bf16 pairs (else as f32). About 0.1 s. */
double kern_peak_flops(dtype t, int threads);
/* Bytes a second, read and written, when 128 MiB are scaled in place; 0: no memory for it. About 0.1 s. */
double kern_peak_bytes(int threads);

#endif
