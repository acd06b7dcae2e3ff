/* vec.h - f32 vectors of the machine's width, in GCC's vector extension, and the functions kernels need of them.
 *
 * The width follows the flags this folder is compiled with (AUTOSP_NATIVE): 16 lanes with AVX-512, 8 with AVX, 4 else
 * (SSE2, NEON). Loads and stores are unaligned. bf16 is read by a shift and written with round to nearest even.
 * Multiply-adds of functions are written as such (vfma), so that their bits do not depend on what the compiler
 * contracts. Polynomials are minimax fits (Lawson's weighted least squares) of degrees chosen so that rounding
 * dominates.
 */
#ifndef AUTOSP_DEVICE_CPU_VEC_H
#define AUTOSP_DEVICE_CPU_VEC_H

#ifndef VEC_ALONE /* generated code has this file's text in front of it, and no other of ours (gen/dialect_c.c) */
#include "base/base.h"
#endif

#include <math.h>

#ifdef __AVX512F__
#include <immintrin.h>
#define VEC_BYTES 64
#elif defined(__AVX__)
#include <immintrin.h>
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif

enum { VL = VEC_BYTES / 4 };

#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(VEC_BYTES)));
typedef int32_t vi __attribute__((vector_size(VEC_BYTES)));
typedef float vf_mem __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VEC_BYTES / 2)));
typedef uint16_t vh_mem __attribute__((vector_size(VEC_BYTES / 2), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(VEC_BYTES)));

INLINE vf vld(const float *p) { return *(const vf_mem *)p; }
INLINE void vst(float *p, vf x) { *(vf_mem *)p = x; }
/* A store past the caches, for whole lines (64 bytes) of what will not be read soon: the line is not read first. p is
 * aligned to a vector. vst_stream_end orders such stores before whatever tells other threads of them. */
INLINE void vst_stream(float *p, vf x) {
#ifdef __AVX512F__
    _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)x);
#else
    vst(p, x);
#endif
}
INLINE void vst_stream_end(void) {
#ifdef __AVX__
    _mm_sfence();
#endif
}
INLINE vf vset(float x) { return x - (vf){0}; } /* exact also for -0 */
/* a b + c, rounded once where the machine can. */
INLINE vf vfma(vf a, vf b, vf c) {
#ifdef __AVX512F__
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float bf16_get(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } x = {(uint32_t)h << 16};
    return x.f;
}
/* Round to nearest even; a NaN stays one. */
INLINE uint16_t bf16_put(float f) {
    union {
        float f;
        uint32_t u;
    } x = {f};
    if (f != f) return (uint16_t)((x.u >> 16) | 0x40);
    return (uint16_t)((x.u + 0x7fff + ((x.u >> 16) & 1)) >> 16);
}
INLINE vf vwiden(vh h) { /* gcc 12 makes two halves of the conversion */
#ifdef __AVX512F__
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
INLINE vf vld_bf16(const uint16_t *p) { return vwiden(*(const vh_mem *)p); }
/* The bits of x rounded to bf16, in the low half of each lane. */
INLINE vu vround_bf16(vf x) {
    vu u = (vu)x;
    vu even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (u >> 16) | 0x40;
    vi is_nan = x != x;
    return (even & ~(vu)is_nan) | (nan & (vu)is_nan);
}
INLINE vh vnarrow(vf x) {
#ifdef __AVX512BF16__
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    return __builtin_convertvector(vround_bf16(x), vh);
#endif
}
INLINE void vst_bf16(uint16_t *p, vf x) { *(vh_mem *)p = vnarrow(x); }

/* Two vectors at a time, which lie one behind the other: with AVX-512 one permutation then widens each and one
 * conversion rounds both. The words of a result's low halves are masked off. */
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
INLINE void vwiden2(__m512i words, vf *a, vf *b) {
    const __mmask32 high = 0xaaaaaaaa;
    const __m512i first = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0,
                                           3, 0, 2, 0, 1, 0, 0, 0);
    *a = (vf)_mm512_maskz_permutexvar_epi16(high, first, words);
    *b = (vf)_mm512_maskz_permutexvar_epi16(high, _mm512_add_epi16(first, _mm512_set1_epi16(16)), words);
}
#endif
INLINE void vld2_bf16(const uint16_t *p, vf *a, vf *b) {
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
    vwiden2(_mm512_loadu_si512(p), a, b);
#else
    *a = vld_bf16(p), *b = vld_bf16(p + VL);
#endif
}
INLINE void vst2_bf16(uint16_t *p, vf a, vf b) {
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
#else
    vst_bf16(p, a), vst_bf16(p + VL, b);
#endif
}

/* Pairs: a lane of 32 bits holds two bf16, and a dot step adds both products to a lane of f32. Where the machine has
 * this (AVX512-BF16), it doubles the rate of multiply-adds; elsewhere bf16 is widened and pairs are not used. */
#ifdef __AVX512BF16__
#define VEC_PAIRS 1
INLINE vf vdot_pairs(vf acc, vf a, vf b) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
INLINE vf vset_word(const float *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return (vf)_mm512_set1_epi32(word);
}
/* Lane i: even[i] in the low half, odd[i] in the high one. */
INLINE vf vpair(vf even, vf odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
}
#else
#define VEC_PAIRS 0
INLINE vf vdot_pairs(vf acc, vf a, vf b) {
    vf a0 = (vf)((vi)a << 16), b0 = (vf)((vi)b << 16);
    vf a1 = (vf)((vi)a & (int32_t)0xffff0000), b1 = (vf)((vi)b & (int32_t)0xffff0000);
    return acc + a0 * b0 + a1 * b1;
}
INLINE vf vset_word(const float *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return (vf)((vi){0} + word);
}
INLINE vf vpair(vf even, vf odd) { return (vf)(vround_bf16(even) | vround_bf16(odd) << 16); }
#endif

/* x as a bf16 would hold it. */
INLINE vf vbf16(vf x) {
#ifdef __AVX512BF16__
    return vwiden((vh)_mm512_cvtneps_pbh((__m512)x));
#else
    return (vf)(vround_bf16(x) << 16);
#endif
}

INLINE void vbf16_2(vf x, vf y, vf *a, vf *b) {
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
    vwiden2((__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x), a, b);
#else
    *a = vbf16(x), *b = vbf16(y);
#endif
}

/* Element i of an f32 or bf16 array; `bf` is a constant wherever speed matters. */
INLINE vf vget(bool bf, const void *p, int64_t i) {
    return bf ? vld_bf16((const uint16_t *)p + i) : vld((const float *)p + i);
}
INLINE void vput(bool bf, void *p, int64_t i, vf x) {
    if (bf)
        vst_bf16((uint16_t *)p + i, x);
    else
        vst((float *)p + i, x);
}
INLINE void vget2(bool bf, const void *p, int64_t i, vf *a, vf *b) {
    if (bf)
        vld2_bf16((const uint16_t *)p + i, a, b);
    else
        *a = vld((const float *)p + i), *b = vld((const float *)p + i + VL);
}
INLINE void vput2(bool bf, void *p, int64_t i, vf a, vf b) {
    if (bf)
        vst2_bf16((uint16_t *)p + i, a, b);
    else
        vst((float *)p + i, a), vst((float *)p + i + VL, b);
}
INLINE float sget(bool bf, const void *p, int64_t i) {
    return bf ? bf16_get(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void sput(bool bf, void *p, int64_t i, float x) {
    if (bf)
        ((uint16_t *)p)[i] = bf16_put(x);
    else
        ((float *)p)[i] = x;
}
/* The first n < VL elements from i on; the other lanes are `rest`. */
INLINE vf vget_n(bool bf, const void *p, int64_t i, int64_t n, float rest) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 m = (__mmask16)((1u << n) - 1);
    if (!bf) return (vf)_mm512_mask_loadu_ps((__m512)vset(rest), m, (const float *)p + i);
    const vh h = (vh)_mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i);
    return (vf)_mm512_mask_mov_ps((__m512)vset(rest), m, (__m512)vwiden(h));
#else
    float tmp[VL];
    vst(tmp, vset(rest));
    for (int64_t j = 0; j < n; j++) tmp[j] = sget(bf, p, i + j);
    return vld(tmp);
#endif
}
INLINE void vput_n(bool bf, void *p, int64_t i, int64_t n, vf x) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 m = (__mmask16)((1u << n) - 1);
    if (bf)
        _mm256_mask_storeu_epi16((uint16_t *)p + i, m, (__m256i)vnarrow(x));
    else
        _mm512_mask_storeu_ps((float *)p + i, m, (__m512)x);
#else
    float tmp[VL];
    vst(tmp, x);
    for (int64_t j = 0; j < n; j++) sput(bf, p, i + j, tmp[j]);
#endif
}

/* Loads n <= VL elements; n == VL is the fast case. Stores likewise. */
INLINE vf get_part(bool bf, const void *p, int64_t i, int64_t n, float rest) {
    return n >= VL ? vget(bf, p, i) : vget_n(bf, p, i, n, rest);
}
INLINE void put_part(bool bf, void *p, int64_t i, int64_t n, vf x) {
    if (n >= VL)
        vput(bf, p, i, x);
    else
        vput_n(bf, p, i, n, x);
}

/* The body for i = from, from + VL, ... with `left` elements to go: VL, a constant, in the loop, and fewer in a last
 * round of its own, so that the loop has no slow path. */
#define EACH_VECTOR(i, from, to, ...)                                                                                  \
    do {                                                                                                               \
        int64_t i = (from);                                                                                            \
        for (; i + VL <= (to); i += VL) {                                                                              \
            const int64_t left = VL;                                                                                   \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
        if (i < (to)) {                                                                                                \
            const int64_t left = (to)-i;                                                                               \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

INLINE vf vselect(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
/* A NaN in x is kept; one in the bound is not expected. */
INLINE vf vmax(vf bound, vf x) {
#ifdef __AVX512F__
    return (vf)_mm512_max_ps((__m512)bound, (__m512)x);
#else
    return vselect(bound > x, bound, x);
#endif
}
INLINE vf vmin(vf bound, vf x) {
#ifdef __AVX512F__
    return (vf)_mm512_min_ps((__m512)bound, (__m512)x);
#else
    return vselect(bound < x, bound, x);
#endif
}
/* Lane sums in a fixed (tree) order. */
INLINE float vsum(vf x) {
#ifdef __AVX512F__
    __m256 a = _mm512_castps512_ps256((__m512)x) + (__m256)_mm512_extractf64x4_pd((__m512d)x, 1);
    __m128 b = _mm256_castps256_ps128(a) + _mm256_extractf128_ps(a, 1);
    b += _mm_movehl_ps(b, b);
    return b[0] + b[1];
#endif
    float t[VL];
    vst(t, x);
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}
INLINE float vmaxlane(vf x) { /* NaN where one is */
#ifdef __AVX512F__
    if (_mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q)) return NAN;
    return _mm512_reduce_max_ps((__m512)x);
#endif
    float t[VL];
    vst(t, x);
    float m = t[0];
    for (int i = 1; i < VL; i++) m = t[i] > m || t[i] != t[i] ? t[i] : m;
    return m;
}
INLINE vf vsqrt(vf x) {
#ifdef __AVX512F__
    return (vf)_mm512_sqrt_ps((__m512)x);
#else
    for (int i = 0; i < VL; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* p * 2^n for integral n in [-150, 128], p in [0.5, 2]: subnormal results become 0 except with AVX-512, where n may be
 * any number, of which the integer below counts. */
INLINE vf vscale2(vf p, vf n) {
#ifdef __AVX512F__
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi e = __builtin_convertvector(n, vi);
    vi half = e >> 1; /* two factors, because 2^128 and 2^-127 have no exponent field of their own */
    vf a = (vf)((half + 127) << 23), b = (vf)((e - half + 127) << 23);
    return p * a * b;
#endif
}
INLINE vf vround(vf x) {
#ifdef __AVX512F__
    return (vf)_mm512_roundscale_ps((__m512)x, 8);
#else
    return (x + 12582912.f) - 12582912.f; /* |x| < 2^22 */
#endif
}
/* For the exponentials of base 2: x = n + f, n integral, where x <= 129 (vexp2_bound). NaN is kept. f lies between -1/2
 * and 1/2; with AVX-512 between 0 and 1, as n is for vscale2 only, which then takes x in its place and nobody rounds x.
 * VEXP2 chooses between coefficients for the one interval and the other, of the same errors. */
#ifdef __AVX512DQ__
#define VEXP2(from_0_to_1, around_0) vset(from_0_to_1)
#else
#define VEXP2(from_0_to_1, around_0) vset(around_0)
#endif
INLINE vf vexp2_parts(vf x, vf *n) {
#ifdef __AVX512DQ__ /* what is left of infinity is 0, and scaling by it is right */
    *n = x;
    return (vf)_mm512_reduce_ps((__m512)x, 9);
#else
    x = vmax(vset(-151.f), x);
    *n = vround(x);
    return x - *n;
#endif
}
INLINE vf vexp2_bound(vf x) {
#ifdef __AVX512DQ__
    return x;
#else
    return vmin(vset(129.f), x);
#endif
}
/* 2^x for x <= 0 (softmax numerators), relative error 1e-7; 0 below 2^-150, NaN kept. */
INLINE vf vexp2_neg(vf x) {
    vf n, f = vexp2_parts(x, &n);
    vf p = vfma(f, VEXP2(2.161291632e-04f, 1.534581156e-04f), VEXP2(1.246784581e-03f, 1.339993122e-03f));
    p = vfma(p, f, VEXP2(9.675451554e-03f, 9.618488959e-03f));
    p = vfma(p, f, VEXP2(5.548528209e-02f, 5.550328777e-02f));
    p = vfma(p, f, VEXP2(2.402293086e-01f, 2.402264689e-01f));
    p = vfma(p, f, VEXP2(6.931470633e-01f, 6.931472057e-01f));
    p = vfma(p, f, vset(1.f));
    return vscale2(p, n);
}
/* 2^x: the same with an upper bound; inf from 2^128 on. */
INLINE vf vexp2(vf x) { return vexp2_neg(vexp2_bound(x)); }
/* e^x, 1-2 ulp: the argument is reduced with ln 2 in two parts. */
INLINE vf vexp(vf x) {
    x = vmax(vset(-105.f), x);
    x = vmin(vset(89.f), x);
    vf n = vround(x * 1.442695041f);
    vf r = vfma(n, vset(-0.693145752f), x); /* 16 bits: the product is exact */
    r = vfma(n, vset(-1.42860682e-06f), r);
    vf p = vfma(r, vset(1.381459837e-03f), vset(8.368716898e-03f));
    p = vfma(p, r, vset(4.166838805e-02f));
    p = vfma(p, r, vset(1.666652063e-01f));
    p = vfma(p, r, vset(4.999999345e-01f));
    p = vfma(p * r, r, r) + 1.f;
    return vscale2(p, n);
}
/* log x, 1-2 ulp: x = m 2^n with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s), s = (m - 1) / (m + 1), by its series.
 */
INLINE vf vlog(vf x) {
    vi tiny = x < 1.17549435e-38f; /* subnormal */
    vi u = (vi)vselect(tiny, x * 8388608.f, x), e = (u - 0x3f3504f3) >> 23;
    vf m = (vf)(u - (e << 23)), n = __builtin_convertvector(e, vf) - vselect(tiny, vset(23.f), vset(0));
    vf s = (m - 1.f) / (m + 1.f), z = s * s;
    vf p = vfma(z, vset(2.f / 9), vset(2.f / 7));
    p = vfma(p, z, vset(2.f / 5));
    p = vfma(p, z, vset(2.f / 3));
    vf r = vfma(p * z, s, s + s);
    r = vfma(n, vset(1.42860682e-06f), r);
    r = vfma(n, vset(0.693145752f), r); /* 16 bits: the product is exact */
    r = vselect(x > 0.f, r, vselect(x == 0.f, vset(-INFINITY), vset(NAN)));
    return vselect(x == INFINITY, x, r);
}
/* The rounding of x log2(e) is a relative error of 6e-8 |x| of the exponential, which is small beside 1 where x is
 * large and 4e-7 of the result at -10. */
INLINE vf vsigmoid(vf x) { return 1.f / (1.f + vexp2(x * -1.44269504088896340736f)); }
INLINE vf vtanh(vf x) {
    vf z = x * x;
    vf p = vfma(z, vset(2.064665136e-03f), vset(-8.091968335e-03f));
    p = vfma(p, z, vset(2.166634693e-02f));
    p = vfma(p, z, vset(-5.394056318e-02f));
    p = vfma(p, z, vset(1.333315790e-01f));
    p = vfma(p, z, vset(-3.333332961e-01f));
    vf small = vfma(p * z, x, x);
    vf big = 1.f - 2.f / (1.f + vexp(x + x));
    vf a = (vf)((vi)x & 0x7fffffff);
    return vselect(a < 0.625f, small, big);
}
/* erf(x) = x P(x^2) / Q(x^2) up to 4, where it is 1: absolute error 3.5e-7. Half as long as a polynomial near 0 beside
 * an exponential behind it. */
INLINE vf verf(vf x) {
    x = vmax(vset(-4.f), vmin(vset(4.f), x));
    vf z = x * x;
    vf p = vfma(z, vset(1.986802545e-06f), vset(2.845644637e-04f));
    p = vfma(p, z, vset(3.883259138e-03f));
    p = vfma(p, z, vset(5.310147628e-02f));
    p = vfma(p, z, vset(1.935430169e-01f));
    p = vfma(p, z, vset(1.128379107e+00f));
    vf q = vfma(z, vset(3.742031186e-05f), vset(1.185551635e-03f));
    q = vfma(q, z, vset(1.520707831e-02f));
    q = vfma(q, z, vset(1.153491586e-01f));
    q = vfma(q, z, vset(5.048555732e-01f));
    q = vfma(q, z, vset(1.f));
    return vmax(vset(-1.f), vmin(vset(1.f), x * p / q));
}

/* e^(-y^2 / 2) and the normal distribution's tail beyond y over it, for 0 <= y: a polynomial in t = 1 / (1 + y / 4),
 * whose weighted fit has relative error 4e-8 up to 3, 2e-6 at 13. Behind 14.4 the exponential is 0. */
INLINE vf vtail(vf y, vf *e) {
    *e = vexp2_neg(y * y * -0.72134752044448170f);
    vf t = 1.f / vfma(y, vset(0.25f), vset(1.f));
    vf p = vfma(t, vset(-9.835999279e-02f), vset(3.738616482e-01f));
    p = vfma(p, t, vset(-3.312739843e-01f));
    p = vfma(p, t, vset(3.502464545e-01f));
    p = vfma(p, t, vset(-1.820835537e-02f));
    p = vfma(p, t, vset(1.276133248e-01f));
    p = vfma(p, t, vset(9.589761279e-02f));
    return vfma(p, t, vset(2.232713277e-04f));
}
/* x Phi(x) as max(x, 0) - |x| Phi(-|x|): with an erf, what 1 + erf cancels would be multiplied by x. */
INLINE vf vgelu(vf x) {
    vf y = vmin(vset(16.f), (vf)((vi)x & 0x7fffffff)), e, tail = vtail(y, &e);
    return vfma(-y * e, tail, vmax(vset(0), x));
}
/* Phi(x) + x phi(x), from its value w at -|x|: 1 - w at |x|. */
INLINE vf vgelu_slope(vf x) {
    vf y = vmin(vset(16.f), (vf)((vi)x & 0x7fffffff)), e, tail = vtail(y, &e);
    vf w = e * vfma(y, vset(-0.39894228040143268f), tail);
    return vselect(x < 0.f, w, 1.f - w);
}

/* ---- log of the sum of exponentials, in one pass ---- */

/* Is x > bound in any lane? */
INLINE bool vany_above(vf x, vf bound) {
#ifdef __AVX512F__
    return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GT_OQ) != 0;
#else
    vi above = x > bound;
    int32_t any = 0;
    for (int i = 0; i < VL; i++) any |= above[i];
    return any != 0;
#endif
}
/* 2^x, relative error 1.6e-7: a term of a sum. */
INLINE vf vexp2_term(vf x) {
    vf n, f = vexp2_parts(x, &n);
    vf p = vfma(f, VEXP2(1.867130166e-03f, 1.326472725e-03f), VEXP2(9.017029777e-03f, 9.671512786e-03f));
    p = vfma(p, f, VEXP2(5.579991266e-02f, 5.550733744e-02f));
    p = vfma(p, f, VEXP2(2.401644439e-01f, 2.402224208e-01f));
    p = vfma(p, f, VEXP2(6.931512952e-01f, 6.931469776e-01f));
    p = vfma(p, f, vset(1.f));
    return vscale2(p, n);
}

/* The same of relative error 3e-6: one degree less. */
INLINE vf vexp2_neg_near(vf x) {
    vf n, f = vexp2_parts(x, &n);
    vf p = vfma(f, VEXP2(1.342668571e-02f, 9.582853426e-03f), VEXP2(5.224247277e-02f, 5.590642846e-02f));
    p = vfma(p, f, VEXP2(2.412802130e-01f, 2.402409863e-01f));
    p = vfma(p, f, VEXP2(6.930448413e-01f, 6.931241930e-01f));
    p = vfma(p, f, vset(1.f));
    return vscale2(p, n);
}

/* The sum of e^(x - top) over all x so far, of which top is the greatest. What is added up is 2^(x log2 e - shift) for
 * an integer shift next to top log2 e, so that sums are scaled without an error when top grows, which is rare, and a
 * term costs one exponential. The product of x and log2 e is not rounded before shift is taken off; what its constant
 * lacks is taken back at the end, where x is top. (The online normaliser of Milakov and Gimelshein, 2018, with one
 * maximum for all lanes.) */
enum { VEXP_BLOCK = 4 };
typedef struct vexp_sum {
    vf sum[VEXP_BLOCK];
    vf top, less; /* less: -shift. In all lanes: a block of vectors then costs no copying of them */
    bool far;     /* top is too large for its product with log2 e, or products are rounded: differences are taken */
} vexp_sum;

INLINE vexp_sum vexp_sum_start(void) { return (vexp_sum){.top = vset(-INFINITY)}; }
/* Adds n <= VEXP_BLOCK vectors; -inf adds nothing. term[] becomes what is added, which may lie in x's place. `near`:
 * terms of relative error 3e-6, for x that are bf16, whose own is 2e-3 of x. */
INLINE vexp_sum vexp_sum_terms(vexp_sum s, const vf *x, int n, vf *term, bool near) {
    const float log2e = 1.44269504088896340736f;
    vf most = x[0];
#pragma GCC unroll 4
    for (int i = 1; i < n; i++) most = vmax(most, x[i]);
    if (__builtin_expect(vany_above(most, s.top), 0)) {
        const float top = vmaxlane(most), shift = rintf(top * log2e);
#if defined(__AVX512F__) || defined(__FMA__)
        const bool far = top > 1e30f || top < -1e30f; /* what was summed before top became so, or was so, is nothing */
#else
        const bool far = true;
#endif
        vf factor = vset(0);
        if (far == s.far && s.top[0] != -INFINITY) factor = vexp2_neg(far ? (s.top - top) * log2e : -s.less - shift);
#pragma GCC unroll 4
        for (int i = 0; i < VEXP_BLOCK; i++) s.sum[i] *= factor;
        s.top = vset(top), s.less = vset(far ? 0 : -shift), s.far = far;
    }
    vf t[VEXP_BLOCK];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) t[i] = vfma(x[i], vset(log2e), s.less);
    if (__builtin_expect(s.far, 0)) {
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) t[i] = (x[i] - s.top) * log2e;
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) s.sum[i] += term[i] = near ? vexp2_neg_near(t[i]) : vexp2_term(t[i]);
    return s;
}
INLINE vexp_sum vexp_sum_add(vexp_sum s, const vf *x, int n, bool near) {
    vf term[VEXP_BLOCK];
    return vexp_sum_terms(s, x, n, term, near);
}
/* What terms are to be multiplied with at the end, when they are over e^top: near 1. */
INLINE vf vexp_sum_rest(vexp_sum s) {
    if (s.far || s.top[0] == -INFINITY) return vset(1);
    return vexp2_neg(vfma(s.top, vset(-1.44269504088896340736f), -s.less));
}
/* 1 or more, 0 when all were -inf, NaN when one was. */
INLINE float vexp_sum_end(vexp_sum s) {
    float total = vsum((s.sum[0] + s.sum[1]) + (s.sum[2] + s.sum[3]));
    if (s.top[0] == -INFINITY) return total;
    total *= vexp_sum_rest(s)[0];
    return total < 1 ? 1 : total;
}

/* The same with the terms kept, for numerators: each with what it was taken relative to, which a greater x behind it
 * may have changed. */
INLINE float vexp_sum_from(vexp_sum s) { return s.far ? s.top[0] : -s.less[0]; }
INLINE vexp_sum vexp_sum_keep(vexp_sum s, const vf *x, int n, bool near, float *term, float *from) {
    vf t[VEXP_BLOCK];
    s = vexp_sum_terms(s, x, n, t, near);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) vst(term + i * VL, t[i]);
    *from = vexp_sum_from(s);
    return s;
}
/* What makes e^(x - top) of terms relative to `from`, when all have been added: from one such piece of the row to the
 * next it seldom changes. */
typedef struct vexp_scale {
    float from;
    vf factor;
} vexp_scale;
INLINE vexp_scale vexp_scale_of(vexp_sum s, float from) {
    const float apart = s.far ? (from - s.top[0]) * 1.44269504088896340736f : from + s.less[0];
    return (vexp_scale){from, vexp2_neg(vmin(vset(0), vset(apart))) * vexp_sum_rest(s)};
}
INLINE vexp_scale vexp_scale_next(vexp_scale k, vexp_sum s, float from) {
    return __builtin_expect(from == k.from, 1) ? k : vexp_scale_of(s, from);
}

/* ---- for results that are rounded to bf16 next, whose half unit is 2e-3 ---- */

INLINE vf vrcp_near(vf x) { /* relative error 6e-5 where the machine estimates; 0 for inf */
#ifdef __AVX512F__
    return (vf)_mm512_rcp14_ps((__m512)x);
#else
    return 1.f / x;
#endif
}
/* 2^x of relative error 3e-6, and of 8e-5: one degree less. */
INLINE vf vexp2_near(vf x) { return vexp2_neg_near(vexp2_bound(x)); }
INLINE vf vexp2_rough(vf x) {
    vf n, f = vexp2_parts(vexp2_bound(x), &n);
    vf p = vfma(f, VEXP2(7.802452147e-02f, 5.517166856e-02f), VEXP2(2.260671556e-01f, 2.426111477e-01f));
    p = vfma(p, f, VEXP2(6.958335638e-01f, 6.932609878e-01f));
    p = vfma(p, f, VEXP2(9.999251962e-01f, 9.999280721e-01f));
    return vscale2(p, n);
}
INLINE vf vsigmoid_near(vf x) { return vrcp_near(1.f + vexp2_rough(x * -1.44269504088896340736f)); }
/* s = 1 / (1 + e) and s (1 - s), where e = 2^x: 1 - s as e s, because the estimate's error of s may be all of 1 - s. */
INLINE vf vsigmoid_slope_near(vf x, vf *s) {
    vf e = vexp2_rough(vmin(vset(126.f), x));
    *s = vrcp_near(1.f + e);
    return *s * (e * *s);
}
/* The normal distribution's tail beyond y >= 0 over e^(-y^2 / 2): a polynomial in t = 1 / (1 + 0.34 y). Relative error
 * 1.6e-4 up to 6, behind which the tail is 1e-9, and that of t comes to it. */
INLINE vf vtail_near(vf y) {
    vf t = vrcp_near(vfma(y, vset(0.34f), vset(1.f)));
    vf p = vfma(t, vset(3.554314485e-01f), vset(-3.993811870e-02f));
    p = vfma(p, t, vset(1.909579612e-01f));
    return vfma(p, t, vset(-6.373091976e-03f));
}

/* Transposes the square of VL vectors in place: log2(VL) rounds of interleaving the two halves. The WORDS do the same
 * to elements of 16 bits. */
#if VEC_BYTES == 64
#define VEC_WORDS_LO                                                                                                   \
    0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47
#define VEC_WORDS_HI                                                                                                   \
    16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61,    \
        30, 62, 31, 63
#define VEC_LO 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define VEC_HI 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VEC_BYTES == 32
#define VEC_WORDS_LO 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define VEC_WORDS_HI 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define VEC_LO 0, 8, 1, 9, 2, 10, 3, 11
#define VEC_HI 4, 12, 5, 13, 6, 14, 7, 15
#else
#define VEC_WORDS_LO 0, 8, 1, 9, 2, 10, 3, 11
#define VEC_WORDS_HI 4, 12, 5, 13, 6, 14, 7, 15
#define VEC_LO 0, 4, 1, 5
#define VEC_HI 2, 6, 3, 7
#endif
INLINE void vtranspose(vf r[VL]) {
    vf t[VL];
#pragma GCC unroll 4
    for (int w = 1; w < VL; w *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < VL / 2; i++) {
            t[2 * i] = __builtin_shufflevector(r[i], r[i + VL / 2], VEC_LO);
            t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + VL / 2], VEC_HI);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) r[i] = t[i];
    }
}
/* Lane i: a[i] in front of b[i], of the first VL or, `high`, the second VL of 2 VL elements of 16 bits. */
INLINE vf vzip_words(const uint16_t *a, const uint16_t *b, bool high) {
    typedef uint16_t words __attribute__((vector_size(VEC_BYTES)));
    typedef uint16_t words_mem __attribute__((vector_size(VEC_BYTES), aligned(2), may_alias));
    words x = *(const words_mem *)a, y = *(const words_mem *)b;
    return high ? (vf)__builtin_shufflevector(x, y, VEC_WORDS_HI) : (vf)__builtin_shufflevector(x, y, VEC_WORDS_LO);
}
INLINE vi viota(void) {
    vi x = {0};
    for (int i = 0; i < VL; i++) x[i] = i;
    return x;
}

#endif
