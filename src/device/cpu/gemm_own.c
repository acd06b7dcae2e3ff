/* gemm_own.c - matrix products by packing and the register micro-kernel (Goto and van de Geijn 2008).
 *
 * For some columns of B and some steps of k at a time, all threads pack B into strips of MICRO_LANES columns. Then each
 * item, a block of rows by those columns, is one thread's: it packs its rows of A into panels of at most MICRO_ROWS,
 * once, and multiplies them with every strip. Packing reads an operand along its contiguous direction, once, so that
 * rows at strides of powers of two, which fall into the same cache sets, do no harm. It waits for memory more than it
 * moves, so what it reads next is prefetched, and so is C before a tile is added to it. bf16 is widened while packing.
 *
 * Sums of these steps are added in C itself where that is f32 with unit column stride. Otherwise the strips are packed
 * whole in k and an item's sums wait in a buffer. Either way the sum over k of an element runs in one order whatever
 * the item it belongs to: results do not depend on the number of threads.
 */
#include "device/cpu/gemm_own.h"

#include "device/cpu/pack.h"
#include "device/cpu/threads.h"

enum {
    KC = 768,              /* k steps of a panel, at most */
    BM = 16 * MICRO_ROWS,  /* rows of an item, at most */
    BN = 8 * MICRO_LANES,  /* columns of an item whose sums wait in a buffer, at most */
    GROUP = 8,             /* k steps of B that are packed at once */
    CHUNK_BYTES = 4 << 20, /* packed B at once */
    AHEAD_K = 8,           /* k steps of A, and */
    AHEAD_COLS = 256       /* columns of B, prefetched while packing */
};

/* How a product is cut, and the room that this takes: no more than the product needs, as plans count all of it. */
typedef struct sizes {
    bool direct;                          /* sums are added in C */
    int64_t panels, blocks;               /* of rows; an item has the panels of a block */
    int64_t kc;                           /* k steps of a panel: equal parts */
    int64_t ld, panel;                    /* floats of a panel's row (no multiple of 4096 bytes), and of a panel */
    int64_t ldt;                          /* floats of a row of an item's sums */
    int64_t kp, chunk;                    /* k steps and columns of B packed at once */
    int64_t strip;                        /* floats from one strip to the next */
    int64_t b_floats, a_floats, t_floats; /* shared packed B; a thread's A and C */
} sizes;

static sizes gemm_sizes(const kern_gemm_desc *d) {
    sizes s = {.direct = d->c == DT_F32 && !d->bias && d->c_cs == 1 && (d->beta == 0 || d->beta == 1)};
    s.panels = ceil_div(d->m, MICRO_ROWS);
    s.blocks = min64(s.panels, round_up(ceil_div(d->m, BM - MICRO_ROWS), max64(d->threads, 1)));
    s.kc = max64(ceil_div(d->k, max64(ceil_div(d->k, KC), 1)), 1);
    s.ld = round_up(s.kc, 16) + 16;
    s.panel = MICRO_ROWS * s.ld;
    s.ldt = min64(BN, round_up(max64(d->n, 1), MICRO_LANES));
    s.kp = s.direct ? s.kc : max64(d->k, 1);
    s.strip = s.kp * MICRO_LANES + 16;
    int64_t strips = max64(CHUNK_BYTES / 4 / s.strip, BN / MICRO_LANES);
    s.chunk = min64(strips * MICRO_LANES, round_up(max64(d->n, 1), MICRO_LANES));
    s.b_floats = round_up(s.chunk / MICRO_LANES * s.strip, KERN_ALIGN / 4);
    const int64_t most = ceil_div(s.panels, max64(s.blocks, 1)); /* panels of an item */
    s.a_floats = round_up(most * s.panel, KERN_ALIGN / 4);
    s.t_floats = s.direct ? 0 : most * MICRO_ROWS * s.ldt;
    return s;
}

size_t gemm_own_ws(const kern_gemm_desc *d) {
    sizes s = gemm_sizes(d);
    return sizeof(float) * (size_t)(s.b_floats + (s.a_floats + s.t_floats) * max64(d->threads, 1));
}

/* Columns [n0, n0+lanes) and k steps [k0, k0+nk) of B as part of a strip [k][MICRO_LANES], times alpha, zeros in
 * missing lanes. */
INLINE void pack_strip(bool bf, const kern_gemm_desc *d, const void *b, int64_t n0, int64_t lanes, int64_t k0,
                       int64_t nk, float *dst) {
    if (d->b_rs == 1 && d->b_cs != 1) {
        pack_transposed(bf, (const char *)b + (n0 * d->b_cs + k0) * (bf ? 2 : 4), d->b_cs, lanes, nk, d->alpha, dst);
        return;
    }
    for (int64_t k = 0; k < nk; k++)
        for (int64_t l = 0; l < MICRO_LANES; l += VL) {
            int64_t at = (k0 + k) * d->b_rs + (n0 + l) * d->b_cs, left = lanes - l;
            vf x = vset(0);
            if (left >= VL && d->b_cs == 1)
                x = vget(bf, b, at);
            else
                for (int64_t i = 0; i < min64(left, VL); i++) x[i] = sget(bf, b, at + i * d->b_cs);
            vst(dst + k * MICRO_LANES + l, x * d->alpha);
        }
}

/* The thread's share of B's columns [c0, c0+width) and k steps [k0, k0+nk). */
static void pack_b(const kern_gemm_desc *d, const sizes *s, const void *b, int64_t c0, int64_t width, int64_t k0,
                   int64_t nk, float *dst) {
    const int64_t strips = ceil_div(width, MICRO_LANES);
    const int64_t step = d->b_rs == 1 && d->b_cs != 1 ? max64(nk, 1) : GROUP; /* a transposed strip at once */
    const int64_t size = dtype_size(d->ab), groups = ceil_div(nk, step), run = d->b_cs == 1 ? strips : 1,
                  runs = ceil_div(strips, run);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < groups * runs; i++) {
        const int64_t k = i % groups * step, n = min64(step, nk - k);
        for (int64_t j = i / groups * run; j < min64(strips, (i / groups + 1) * run); j++) {
            const int64_t n0 = c0 + j * MICRO_LANES, lanes = min64(MICRO_LANES, c0 + width - n0);
            for (int64_t q = 0; d->b_cs == 1 && n0 + AHEAD_COLS < c0 + width && q < n; q++) {
                const char *next = (const char *)b + ((k0 + k + q) * d->b_rs + n0 + AHEAD_COLS) * size;
                for (int64_t l = 0; l < MICRO_LANES * size; l += 64) __builtin_prefetch(next + l);
            }
            float *to = dst + j * s->strip + k * MICRO_LANES;
            if (d->ab == DT_BF16)
                pack_strip(true, d, b, n0, lanes, k0 + k, n, to);
            else
                pack_strip(false, d, b, n0, lanes, k0 + k, n, to);
        }
    }
}

/* Rows are dealt out to panels, and panels to blocks, as evenly as they go. */
static int64_t row_of(const kern_gemm_desc *d, int64_t panel) { return d->m * panel / ceil_div(d->m, MICRO_ROWS); }

static bool rows_contiguous(const kern_gemm_desc *d) { return d->a_cs == 1 || d->a_rs != 1; }

/* A's panels [p0, p1) and k steps [k0, k0+nk): rows of ld floats each, or [k][rows] when A lies by columns. */
INLINE void pack_a(bool bf, const kern_gemm_desc *d, const sizes *s, const void *a, int64_t p0, int64_t p1, int64_t k0,
                   int64_t nk, float *dst) {
    if (rows_contiguous(d)) {
        for (int64_t p = p0; p < p1; p++, dst += s->panel)
            for (int64_t r = row_of(d, p), q = 0; r < row_of(d, p + 1); r++, q++) {
                int64_t at = r * d->a_rs + k0 * d->a_cs, j = 0;
                float *to = dst + q * s->ld;
                if (d->a_cs == 1)
                    for (; j + VL <= nk; j += VL) vst(to + j, vget(bf, a, at + j));
                for (; j < nk; j++) to[j] = sget(bf, a, at + j * d->a_cs);
            }
        return;
    }
    const int64_t size = bf ? 2 : 4;
    for (int64_t k = 0; k < nk; k++) {
        const int64_t at = (k0 + k) * d->a_cs;
        int64_t r = row_of(d, p0);
        float *to = dst;
        if (k + AHEAD_K < nk)
            for (int64_t q = r; q < row_of(d, p1); q += 64 / size)
                __builtin_prefetch((const char *)a + (at + AHEAD_K * d->a_cs + q) * size);
        for (int64_t p = p0; p < p1; p++, to += s->panel) {
            const int64_t end = row_of(d, p + 1), n = end - r;
            /* Whole vectors: what is too much of them is overwritten by the next k, or lies behind the panel. */
            for (int64_t j = 0; j < n; j += VL) vst(to + k * n + j, get_part(bf, a, at + r + j, d->m - r - j, 0));
            r = end;
        }
    }
}

/* C's tile (rows, lanes) from the sums t (rows, ldt): beta, bias, rounding. */
INLINE void finish(bool bf, const kern_gemm_desc *d, float beta, void *c, int64_t m0, int64_t n0, int64_t rows,
                   int64_t lanes, const float *t, int64_t ldt, const void *bias) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < lanes;) {
            int64_t at = (m0 + i) * d->c_rs + (n0 + j) * d->c_cs;
            if (j + VL <= lanes && d->c_cs == 1) {
                vf x = vld(t + i * ldt + j);
                if (beta != 0) x += beta * vget(bf, c, at);
                if (bias) x += vget(bf, bias, n0 + j);
                vput(bf, c, at, x);
                j += VL;
            } else {
                float x = t[i * ldt + j];
                if (beta != 0) x += beta * sget(bf, c, at);
                if (bias) x += sget(bf, bias, n0 + j);
                sput(bf, c, at, x);
                j++;
            }
        }
}

/* An item: the rows of panels [p0, p1) by columns [n0, n0+cols), whose strips of k steps [k0, k0+nk) are packed. */
typedef struct block {
    int64_t p0, p1, n0, cols, k0, nk;
    const float *strip;
    float *abuf, *tbuf;
} block;

/* Packed rows times every strip; `first`: t is set, not added to. */
static void multiply(const kern_gemm_desc *d, const sizes *s, const block *i, const float *strip, int64_t nk,
                     bool first, float *t, int64_t ldt) {
    const bool by_rows = rows_contiguous(d);
    const int64_t m0 = row_of(d, i->p0);
    for (int64_t j = 0; j < i->cols; j += MICRO_LANES, strip += s->strip) {
        const float *panel = i->abuf;
        const int64_t lanes = min64(MICRO_LANES, i->cols - j);
        for (int64_t p = i->p0, r = m0; p < i->p1; p++, panel += s->panel) {
            const int64_t n = row_of(d, p + 1) - r;
            float *to = t + (r - m0) * ldt + j, rest[MICRO_ROWS * MICRO_LANES];
            if (lanes < MICRO_LANES) {
                micro_rows(n, MICRO_NV, nk, panel, by_rows ? s->ld : 1, by_rows ? 1 : n, strip, MICRO_LANES, rest,
                           MICRO_LANES, MICRO_SET, NULL);
                for (int64_t q = 0; q < n; q++)
                    for (int64_t l = 0; l < lanes; l++)
                        to[q * ldt + l] = (first ? 0 : to[q * ldt + l]) + rest[q * MICRO_LANES + l];
            } else {
                for (int64_t q = 0; q < n; q++) {
                    __builtin_prefetch(to + q * ldt);
                    __builtin_prefetch(to + q * ldt + MICRO_LANES - 1);
                }
                micro_rows(n, MICRO_NV, nk, panel, by_rows ? s->ld : 1, by_rows ? 1 : n, strip, MICRO_LANES, to, ldt,
                           first ? MICRO_SET : MICRO_ADD, NULL);
            }
            r += n;
        }
    }
}

INLINE void item(bool ab_bf, bool c_bf, const kern_gemm_desc *d, const sizes *s, const void *a, void *c,
                 const void *bias, const block *i) {
    const int64_t m0 = row_of(d, i->p0), rows = row_of(d, i->p1) - m0;
    float *t = s->direct ? (float *)c + m0 * d->c_rs + i->n0 : i->tbuf;
    for (int64_t k = 0; k < i->nk || k == 0; k += s->kc) {
        const int64_t nk = min64(s->kc, i->nk - k);
        pack_a(ab_bf, d, s, a, i->p0, i->p1, i->k0 + k, nk, i->abuf);
        const bool first = i->k0 + k == 0 && !(s->direct && d->beta == 1);
        multiply(d, s, i, i->strip + k * MICRO_LANES, nk, first, t, s->direct ? d->c_rs : s->ldt);
    }
    if (!s->direct) finish(c_bf, d, d->beta, c, m0, i->n0, rows, i->cols, t, s->ldt, bias);
}

static void one(const kern_gemm_desc *d, const void *a, const void *b, void *c, const void *bias, float *ws) {
    const sizes s = gemm_sizes(d);
    const bool ab_bf = d->ab == DT_BF16, c_bf = d->c == DT_BF16;
    const int threads = d->threads;
    const int64_t panels = s.panels, blocks = s.blocks;
#pragma omp parallel num_threads(threads)
    {
        float *abuf = ws + s.b_floats + (s.a_floats + s.t_floats) * omp_get_thread_num(), *tbuf = abuf + s.a_floats;
        for (int64_t c0 = 0; c0 < d->n; c0 += s.chunk) {
            const int64_t width = min64(s.chunk, d->n - c0), strips = ceil_div(width, MICRO_LANES);
            /* Column parts as wide as leaves every thread a few items. */
            int64_t parts = s.direct ? 1 : ceil_div(width, BN);
            while (blocks * parts < 2 * threads && ceil_div(strips, parts) > 1) parts++;
            const int64_t per = ceil_div(strips, parts) * MICRO_LANES;
            parts = ceil_div(width, per);
            for (int64_t k0 = 0; k0 < d->k || k0 == 0; k0 += s.kp) {
                const int64_t nk = min64(s.kp, d->k - k0);
                pack_b(d, &s, b, c0, width, k0, nk, ws);
#pragma omp for schedule(dynamic)
                for (int64_t i = 0; i < blocks * parts; i++) {
                    const int64_t j = i % parts * per, row = i / parts;
                    const block it = {.p0 = panels * row / blocks,
                                      .p1 = panels * (row + 1) / blocks,
                                      .n0 = c0 + j,
                                      .cols = min64(per, width - j),
                                      .k0 = k0,
                                      .nk = nk,
                                      .strip = ws + j / MICRO_LANES * s.strip,
                                      .abuf = abuf,
                                      .tbuf = tbuf};
                    if (!ab_bf && !c_bf)
                        item(false, false, d, &s, a, c, bias, &it);
                    else
                        item(ab_bf, c_bf, d, &s, a, c, bias, &it);
                }
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
