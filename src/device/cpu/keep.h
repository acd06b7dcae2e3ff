/* keep.h - which elements dropout keeps, 64 at a time: bit i of word w is about element 64 w + i (philox.h).
 *
 * A block of Philox makes four numbers, so a word is 16 blocks, side by side in a vector's lanes.
 */
#ifndef AUTOSP_DEVICE_CPU_KEEP_H
#define AUTOSP_DEVICE_CPU_KEEP_H

#include "device/cpu/vec.h"
#include "device/philox.h"

/* A draw, and the word that was computed last: elements are asked for in order. */
typedef struct keep_state {
    uint64_t seed, draw;
    uint32_t node, least; /* kept: numbers from philox_threshold on */
    uint64_t word, bits;
} keep_state;

INLINE keep_state keep_start(uint64_t seed, uint64_t draw, uint32_t node, uint32_t least) {
    return (keep_state){seed, draw, node, least, UINT64_MAX, 0};
}

#if defined(__AVX512F__) && defined(__BMI2__)
/* High and low words of the products of each lane with m. */
INLINE void keep_mul(__m512i x, __m512i m, __m512i *high, __m512i *low) {
    const __m512i even = _mm512_mul_epu32(x, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mullo_epi32(x, m);
}
INLINE uint64_t keep_word(const keep_state *s, uint64_t word) {
    const uint64_t first = word * 16;
    const __m512i m0 = _mm512_set1_epi32((int)0xD2511F53u), m1 = _mm512_set1_epi32((int)0xCD9E8D57u);
    __m512i k0 = _mm512_set1_epi32((int)(uint32_t)s->seed);
    __m512i k1 = _mm512_set1_epi32((int)((uint32_t)(s->seed >> 32) ^ s->node));
    __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)first), (__m512i)viota());
    __m512i c1 = _mm512_set1_epi32((int)((uint32_t)(first >> 32 & 0xffff) | (uint32_t)(s->draw >> 32 & 0xffff) << 16));
    __m512i c2 = _mm512_set1_epi32((int)(uint32_t)s->draw), c3 = _mm512_set1_epi32((int)s->node);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        __m512i high0, low0, high1, low1;
        keep_mul(c0, m0, &high0, &low0);
        keep_mul(c2, m1, &high1, &low1);
        c0 = _mm512_ternarylogic_epi32(high1, c1, k0, 0x96); /* exclusive or of three */
        c2 = _mm512_ternarylogic_epi32(high0, c3, k1, 0x96);
        c1 = low1;
        c3 = low0;
        k0 = _mm512_add_epi32(k0, _mm512_set1_epi32((int)0x9E3779B9u));
        k1 = _mm512_add_epi32(k1, _mm512_set1_epi32((int)0xBB67AE85u));
    }
    const __m512i number[4] = {c0, c1, c2, c3}, least = _mm512_set1_epi32((int)s->least);
    uint64_t bits = 0;
    for (int j = 0; j < 4; j++)
        bits |= _pdep_u64(_mm512_cmpge_epu32_mask(_mm512_srli_epi32(number[j], 8), least), 0x1111111111111111u << j);
    return bits;
}
#else
INLINE uint64_t keep_word(const keep_state *s, uint64_t word) {
    uint32_t c[4][16];
    const uint64_t first = word * 16;
    for (int i = 0; i < 16; i++) {
        c[0][i] = (uint32_t)first + (uint32_t)i;
        c[1][i] = (uint32_t)(first >> 32 & 0xffff) | (uint32_t)(s->draw >> 32 & 0xffff) << 16;
        c[2][i] = (uint32_t)s->draw;
        c[3][i] = s->node;
    }
    philox_rounds(c[0], 16, (uint32_t)s->seed, (uint32_t)(s->seed >> 32) ^ s->node);
    uint64_t bits = 0;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) bits |= (uint64_t)(c[j][i] >> 8 >= s->least) << (4 * i + j);
    return bits;
}
#endif

/* Lanes that are kept of elements at, at + 1, ... */
INLINE vi keep_lanes(keep_state *s, uint64_t at) {
    const uint64_t word = at >> 6, shift = at & 63;
    if (s->word != word) s->word = word, s->bits = keep_word(s, word);
    uint64_t bits = s->bits >> shift;
    if (shift + VL > 64) {
        s->word = word + 1, s->bits = keep_word(s, word + 1);
        bits |= s->bits << (64 - shift);
    }
    return (((vi){0} + (int32_t)(uint32_t)bits) >> viota() & 1) != 0;
}

#endif
