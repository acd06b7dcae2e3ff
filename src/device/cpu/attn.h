/* attn.h - what attention forward and backward share: shapes, which keys a block of queries sees, packing.
 *
 * Both compute transposed scores, S^T = K Q^T: queries lie in vector lanes. A score row is then one key against a panel
 * of MICRO_LANES queries, so softmax statistics, masks and rescaling are per lane and nothing is ever summed across
 * lanes; Q is packed transposed (panels of [D][MICRO_LANES]), K and V are only broadcast.
 */
#ifndef AUTOSP_DEVICE_CPU_ATTN_H
#define AUTOSP_DEVICE_CPU_ATTN_H

#include "device/cpu/amx.h"
#include "device/cpu/kern.h"
#include "device/cpu/pack.h"
#include "device/cpu/threads.h"

enum { ATTN_DOC_RUN = 256 };

typedef struct attn {
    const kern_attn_params *p;
    int64_t B, H, Hkv, Sq, Sk, D;
    int64_t Dp;   /* D rounded up to whole vectors: the row length of packed K, V, Q, dO */
    int64_t kv;   /* keys from here on are hidden: min(Sk, kv_valid) */
    bool bf;      /* q, k, v, o are bf16 */
    bool natural; /* softcap or a bias needs scores in natural units before they become powers of two */
    bool pairs;   /* bf16 with hardware dot products of pairs: q, k, v, P, dS enter products as bf16 */
    bool amx;     /* these by tiles: left operands have their pairs side by side, V and K of dQ packed transposed */
    int64_t step; /* what products sum over begins at a multiple of so many keys: of a pair, or of a tile's */
    /* Least and greatest document of every ATTN_DOC_RUN keys, (B, ceil(Sk/ATTN_DOC_RUN)); NULL without documents. */
    const int64_t *doc_min, *doc_max;
    float qscale; /* what q (with pairs: the raw scores) is multiplied by: scale, times log2(e) unless natural */
} attn;

/* Checks shapes and strides and fills *a. */
void attn_init(attn *a, const tensor *q, const tensor *k, const kern_attn_params *p);
/* Asserts that t is (B,S,heads,D) with the type of q and a contiguous D. */
void attn_check(const attn *a, const tensor *t, int64_t s, int64_t heads, dtype type);

/* Fills doc_min and doc_max in mem, of attn_documents_bytes, where there are documents. */
void attn_documents(attn *a, void *mem);
int64_t attn_documents_bytes(int64_t B, int64_t Sk);

/* The keys [*lo, *hi) outside of which no query of rows [q0, q0+nq) of head h sees anything, by causality, window,
 * padding, and documents and formula at both ends; *lo == *hi when there is none. Starts from the given [*lo, *hi). */
void attn_range(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t *lo, int64_t *hi);

/* Turns raw products s[j*ld + i] (query q0+i, i < lanes of which nq are rows; key k0+j, j < nk) into scores in units of
 * log2, hidden ones -inf. deriv, when not NULL, receives d(score)/d(scaled product) of softcap at the same places. */
void attn_scores(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t lanes, int64_t k0, int64_t nk,
                 float *s, int64_t ld, float *deriv);

/* What dropout multiplies the weights of queries [q0, q0+lanes) for keys 4*block .. 4*block+3 by: keep[k][i]. */
enum { ATTN_LANES = 128 };
void attn_keep(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t lanes, int64_t block,
               float keep[4][ATTN_LANES]);

/* dst[i*Dp + d] = src[i*stride + d], 0 for d in [D, Dp). */
void attn_pack_rows(bool bf, const void *src, int64_t stride, int64_t n, int64_t D, int64_t Dp, float *dst);
/* bf16 rows as they are: dst (n, Dp) bf16, 0 for d in [D, Dp); a row is Dp/2 words of pairs along d. */
void attn_pack_pairs(const void *src, int64_t stride, int64_t n, int64_t D, int64_t Dp, float *dst);
/* Pairs across rows of such a pack: dst (ceil(n/2), Dp) words, row 2i low, row 2i+1 (or 0) high. */
void attn_pair_rows(const float *src, int64_t n, int64_t Dp, float *dst);
/* The transpose of such words: dst[d*ld + i] = src[i*Dp + d], i < n, d < D; 0 for i up to the next multiple of VL. */
void attn_transpose_words(const float *src, int64_t n, int64_t D, int64_t Dp, float *dst, int64_t ld);
/* dst[i*stride + d] = src[d*MICRO_LANES + i] * factor[i] (+ what is there, when add), i < n. */
void attn_unpack_t(bool bf, const float *src, const float *factor, int64_t n, int64_t D, bool add, void *dst,
                   int64_t stride);

/* micro_rows_pairs(), or the same by tiles; then ts is 1 (between amx_begin() and amx_end()). */
INLINE void attn_product(const attn *a, int64_t rows, int nv, int64_t nt, const float *x, int64_t rs, int64_t ts,
                         const float *y, int64_t ldy, float *c, int64_t ldc, micro_mode mode, const float *factor) {
    if (a->amx)
        amx_rows_pairs(rows, nv, nt, x, rs, y, ldy, c, ldc, mode, factor);
    else
        micro_rows_pairs(rows, nv, nt, x, rs, ts, y, ldy, c, ldc, mode, factor);
}

INLINE void *attn_at(const tensor *t, int64_t b, int64_t s, int64_t h) {
    return (char *)t->data + dtype_size(t->type) * (b * t->stride[0] + s * t->stride[1] + h * t->stride[2]);
}
INLINE float *attn_lse_at(const tensor *t, int64_t b, int64_t h, int64_t s) {
    return (float *)t->data + b * t->stride[0] + h * t->stride[1] + s * t->stride[2];
}

#define ATTN_LOG2E 1.44269504088896340736f
#define ATTN_LN2 0.69314718055994530942f

#endif
