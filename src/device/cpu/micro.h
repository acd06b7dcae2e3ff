/* micro.h - the f32 register-blocked micro-kernel under attention and the own matrix product.
 *
 * C[r][l] (+)= sum_t A[r*rs + t*ts] * B[t*ldb + l] for MICRO_ROWS rows and MICRO_NV vectors of lanes: A is broadcast
 * from memory, B loaded once per step, C stays in registers. 12 x 2 vectors fill AVX-512's 32 registers (24 sums, 2 of
 * B) and reach 95% of the FMA peak from the first-level cache; with 16 registers 6 x 2 is the same shape.
 */
#ifndef AUTOSP_DEVICE_CPU_MICRO_H
#define AUTOSP_DEVICE_CPU_MICRO_H

#include "device/cpu/vec.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define MICRO_ROWS 12
#else
#define MICRO_ROWS 6
#endif
enum { MICRO_NV = 2, MICRO_LANES = MICRO_NV * VL };

/* With sums A B: C = sums, C += sums, C = C * factor + sums, C = sums * factor; factors are per lane. */
typedef enum micro_mode { MICRO_SET, MICRO_ADD, MICRO_RESCALE, MICRO_SCALE } micro_mode;

/* With pairs, A and B are words of two bf16 each, and t counts pairs. */
INLINE void micro_tile(const bool pairs, const int rows, const int nv, int64_t nt, const float *a, int64_t rs,
                       int64_t ts, const float *b, int64_t ldb, float *c, int64_t ldc, micro_mode mode,
                       const float *factor) {
    vf acc[MICRO_ROWS][MICRO_NV];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[r][v] = (vf){0};
    for (int64_t t = 0; t < nt; t++) {
        vf bv[MICRO_NV];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) bv[v] = vld(b + t * ldb + v * VL);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            if (pairs) {
                vf av = vset_word(a + r * rs + t * ts);
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) acc[r][v] = vdot_pairs(acc[r][v], av, bv[v]);
            } else {
                float av = a[r * rs + t * ts];
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) acc[r][v] += av * bv[v];
            }
        }
    }
    if (mode == MICRO_RESCALE) {
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) acc[r][v] += vld(c + r * ldc + v * VL) * vld(factor + v * VL);
    } else if (mode == MICRO_ADD) {
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) acc[r][v] += vld(c + r * ldc + v * VL);
    } else if (mode == MICRO_SCALE) {
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) acc[r][v] *= vld(factor + v * VL);
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) vst(c + r * ldc + v * VL, acc[r][v]);
}

/* Any number of rows over one strip of MICRO_LANES lanes (nv = 1: VL lanes): rows are dealt out in nearly equal parts
 * of at most MICRO_ROWS, so that no remainder is too thin to hide the latency of its sums. */
void micro_rows(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb,
                float *c, int64_t ldc, micro_mode mode, const float *factor);
/* The same over pairs of bf16: strides in words, nt in pairs. */
void micro_rows_pairs(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b,
                      int64_t ldb, float *c, int64_t ldc, micro_mode mode, const float *factor);

#endif
