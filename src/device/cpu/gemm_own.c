/* gemm_own.c - matrix products by packing and the register micro-kernel (Goto and van de Geijn 2008).
 *
 * A chunk of B's columns is packed by all threads into strips of MICRO_LANES columns, whole in k. Then each item, a
 * block of BM rows by some strips, is one thread's: it copies its rows of A for KC steps of k, so that rows at large
 * strides do not fall into the same cache sets, and multiplies them with KC steps of a strip (in the first-level
 * cache). bf16 is widened while packing. The sum over k of an element runs in one order whatever the item it belongs
 * to: results do not depend on the number of threads.
 */
#include "device/cpu/gemm_own.h"

#include "device/cpu/pack.h"
#include "device/cpu/threads.h"

enum {
    KC = 256,             /* k steps of a strip: 32 KiB with 32 lanes */
    BM = 8 * MICRO_ROWS,  /* rows of an item */
    BN = 8 * MICRO_LANES, /* columns of an item, at most */
    CHUNK_BYTES = 4 << 20 /* packed B at once */
};

typedef struct sizes {
    int64_t kp, chunk;                    /* k packed (at least 1), columns of B packed at once */
    int64_t b_floats, a_floats, t_floats; /* shared packed B; a thread's A and C */
} sizes;

static sizes gemm_sizes(const kern_gemm_desc *d) {
    sizes s = {.kp = max64(d->k, 1)};
    int64_t strips = max64(1, CHUNK_BYTES / 4 / MICRO_LANES / s.kp);
    strips = max64(strips, ceil_div(BN, MICRO_LANES));
    s.chunk = min64(strips * MICRO_LANES, round_up(max64(d->n, 1), MICRO_LANES));
    s.b_floats = s.kp * s.chunk;
    s.a_floats = round_up(BM * (KC + 16), KERN_ALIGN / 4);
    s.t_floats = BM * BN;
    return s;
}

size_t gemm_own_ws(const kern_gemm_desc *d) {
    sizes s = gemm_sizes(d);
    return sizeof(float) * (size_t)(s.b_floats + (s.a_floats + s.t_floats) * max64(d->threads, 1));
}

/* B's columns [n0, n0+lanes) as a strip [k][MICRO_LANES], times alpha, zeros in missing lanes. */
INLINE void pack_strip(bool bf, const kern_gemm_desc *d, const void *b, int64_t n0, int64_t lanes, float *dst) {
    if (d->b_rs == 1 && d->b_cs != 1) {
        pack_transposed(bf, (const char *)b + n0 * d->b_cs * (bf ? 2 : 4), d->b_cs, lanes, d->k, d->alpha, dst);
        return;
    }
    for (int64_t k = 0; k < d->k; k++)
        for (int64_t l = 0; l < MICRO_LANES; l += VL) {
            int64_t at = k * d->b_rs + (n0 + l) * d->b_cs, left = lanes - l;
            vf x = vset(0);
            if (left >= VL && d->b_cs == 1)
                x = vget(bf, b, at);
            else
                for (int64_t i = 0; i < min64(left, VL); i++) x[i] = sget(bf, b, at + i * d->b_cs);
            vst(dst + k * MICRO_LANES + l, x * d->alpha);
        }
}

/* A's rows [m0, m0+rows) and k steps [k0, k0+nk); returns their strides in dst. */
INLINE void pack_a(bool bf, const kern_gemm_desc *d, const void *a, int64_t m0, int64_t rows, int64_t k0, int64_t nk,
                   float *dst, int64_t *rs, int64_t *ts) {
    const bool by_k = d->a_rs == 1 && d->a_cs != 1; /* rows are contiguous: keep them so */
    const int64_t outer = by_k ? nk : rows, inner = by_k ? rows : nk;
    const int64_t so = by_k ? d->a_cs : d->a_rs, si = by_k ? d->a_rs : d->a_cs;
    const int64_t ld = by_k ? BM : KC + 16, base = m0 * d->a_rs + k0 * d->a_cs;
    for (int64_t i = 0; i < outer; i++) {
        int64_t j = 0;
        if (si == 1)
            for (; j + VL <= inner; j += VL) vst(dst + i * ld + j, vget(bf, a, base + i * so + j));
        for (; j < inner; j++) dst[i * ld + j] = sget(bf, a, base + i * so + j * si);
    }
    *rs = by_k ? 1 : ld;
    *ts = by_k ? ld : 1;
}

/* C's tile (rows, lanes) from the sums t (rows, ldt): beta, bias, rounding. */
INLINE void finish(bool bf, const kern_gemm_desc *d, void *c, int64_t m0, int64_t n0, int64_t rows, int64_t lanes,
                   const float *t, int64_t ldt, const void *bias) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < lanes;) {
            int64_t at = (m0 + i) * d->c_rs + (n0 + j) * d->c_cs;
            if (j + VL <= lanes && d->c_cs == 1) {
                vf x = vld(t + i * ldt + j);
                if (d->beta != 0) x += d->beta * vget(bf, c, at);
                if (bias) x += vget(bf, bias, n0 + j);
                vput(bf, c, at, x);
                j += VL;
            } else {
                float x = t[i * ldt + j];
                if (d->beta != 0) x += d->beta * sget(bf, c, at);
                if (bias) x += sget(bf, bias, n0 + j);
                sput(bf, c, at, x);
                j++;
            }
        }
}

/* One item: rows [m0, m0+rows) by columns [n0, n0+cols), whose strips are packed from `strip` on. */
INLINE void item(bool ab_bf, bool c_bf, const kern_gemm_desc *d, const void *a, void *c, const void *bias, int64_t m0,
                 int64_t rows, int64_t n0, int64_t cols, const float *strip, int64_t kp, float *abuf, float *tbuf) {
    /* Whole strips of f32 are summed in C itself. */
    const bool direct = !c_bf && !bias && d->c_cs == 1 && cols % MICRO_LANES == 0 && (d->beta == 0 || d->beta == 1);
    float *t = direct ? (float *)c + m0 * d->c_rs + n0 : tbuf;
    const int64_t ldt = direct ? d->c_rs : BN;
    for (int64_t k0 = 0; k0 < d->k || k0 == 0; k0 += KC) {
        int64_t nk = min64(KC, d->k - k0), rs, ts;
        pack_a(ab_bf, d, a, m0, rows, k0, nk, abuf, &rs, &ts);
        micro_mode mode = k0 || (direct && d->beta == 1) ? MICRO_ADD : MICRO_SET;
        for (int64_t j = 0; j < cols; j += MICRO_LANES)
            micro_rows(rows, MICRO_NV, nk, abuf, rs, ts, strip + j * kp + k0 * MICRO_LANES, MICRO_LANES, t + j, ldt,
                       mode, NULL);
    }
    if (!direct) finish(c_bf, d, c, m0, n0, rows, cols, t, ldt, bias);
}

static void one(const kern_gemm_desc *d, const void *a, const void *b, void *c, const void *bias, float *ws) {
    const sizes s = gemm_sizes(d);
    const bool ab_bf = d->ab == DT_BF16, c_bf = d->c == DT_BF16;
    const int64_t mblocks = ceil_div(d->m, BM);
    const int threads = d->threads;
#pragma omp parallel num_threads(threads)
    {
        float *abuf = ws + s.b_floats + (s.a_floats + s.t_floats) * omp_get_thread_num(), *tbuf = abuf + s.a_floats;
        for (int64_t c0 = 0; c0 < d->n; c0 += s.chunk) {
            const int64_t width = min64(s.chunk, d->n - c0), strips = ceil_div(width, MICRO_LANES);
            /* Column parts as wide as leaves every thread a few items. */
            int64_t parts = ceil_div(width, BN);
            while (mblocks * parts < 4 * threads && ceil_div(strips, parts) > 1) parts++;
            const int64_t per = ceil_div(strips, parts) * MICRO_LANES;
            parts = ceil_div(width, per);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < strips; i++) {
                int64_t n0 = c0 + i * MICRO_LANES, lanes = min64(MICRO_LANES, d->n - n0);
                float *dst = ws + i * MICRO_LANES * s.kp;
                if (ab_bf)
                    pack_strip(true, d, b, n0, lanes, dst);
                else
                    pack_strip(false, d, b, n0, lanes, dst);
            }
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < mblocks * parts; i++) {
                int64_t m0 = i / parts * BM, rows = min64(BM, d->m - m0), j = i % parts * per;
                int64_t cols = min64(per, width - j);
                const float *strip = ws + j * s.kp;
                if (!ab_bf && !c_bf)
                    item(false, false, d, a, c, bias, m0, rows, c0 + j, cols, strip, s.kp, abuf, tbuf);
                else
                    item(ab_bf, c_bf, d, a, c, bias, m0, rows, c0 + j, cols, strip, s.kp, abuf, tbuf);
            }
        }
    }
}

void gemm_own_run(const kern_gemm_desc *d, const void *a, const void *b, void *c, const void *bias, void *ws) {
    if (d->m == 0 || d->n == 0) return;
    int64_t index[KERN_GEMM_BATCH] = {0};
    for (;;) {
        int64_t ao = 0, bo = 0, co = 0;
        for (int i = 0; i < d->nbatch; i++) {
            if (d->batch[i] == 0) return;
            ao += index[i] * d->a_bs[i], bo += index[i] * d->b_bs[i], co += index[i] * d->c_bs[i];
        }
        one(d, (const char *)a + ao * dtype_size(d->ab), (const char *)b + bo * dtype_size(d->ab),
            (char *)c + co * dtype_size(d->c), bias, ws);
        int i = d->nbatch - 1;
        while (i >= 0 && ++index[i] == d->batch[i]) index[i--] = 0;
        if (i < 0) return;
    }
}
