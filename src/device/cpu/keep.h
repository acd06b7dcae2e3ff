/* keep.h - which elements dropout keeps, 64 at a time: bit i of word w is about element 64 w + i (philox.h).
 *
 * A block of Philox makes four numbers, so a word is 16 blocks, side by side in vectors' lanes.
 */
#ifndef AUTOSP_DEVICE_CPU_KEEP_H
#define AUTOSP_DEVICE_CPU_KEEP_H

#include "device/cpu/vec.h"
#include "device/philox.h"

enum { KEEP_WORDS = 3 };

/* A draw; kept are numbers from `least` on (philox_threshold). */
typedef struct keep_state {
    uint64_t seed, draw;
    uint32_t node, least;
    uint64_t key[10][2]; /* of each round */
} keep_state;

INLINE keep_state keep_start(uint64_t seed, uint64_t draw, uint32_t node, uint32_t least) {
    keep_state s = {.seed = seed, .draw = draw, .node = node, .least = least};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32) ^ node;
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        s.key[round][0] = k0, s.key[round][1] = k1;
    return s;
}

#if defined(__AVX512DQ__) && defined(__BMI2__)
/* Eight blocks, a word of each in the low half of a lane of 64 bits: a multiplication leaves both halves of its product
 * there, and what lies in the high half of a factor is not read, so nothing is put in place between rounds. */
typedef struct keep_blocks {
    __m512i c0, c1, c2, c3;
} keep_blocks;

INLINE void keep_round(keep_blocks *b, __m512i k0, __m512i k1) {
    const __m512i a = _mm512_mul_epu32(b->c0, _mm512_set1_epi64(0xD2511F53)),
                  c = _mm512_mul_epu32(b->c2, _mm512_set1_epi64(0xCD9E8D57));
    b->c0 = _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(c, 0xF5), b->c1, k0, 0x96); /* exclusive or of three */
    b->c2 = _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(a, 0xF5), b->c3, k1, 0x96);
    b->c1 = c;
    b->c3 = a;
}

/* Bit i: is word i of blocks 0, 2, .. of `even` and 1, 3, .. of `odd` kept? */
INLINE uint64_t keep_bits(__m512i even, __m512i odd, __m512i least) {
    const __m512 both = _mm512_mask_moveldup_ps((__m512)even, 0xAAAA, (__m512)odd);
    return _mm512_cmpge_epu32_mask(_mm512_srli_epi32((__m512i)both, 8), least);
}

/* Several words from `word` on, in step: a round waits for the one before, so one word alone leaves the units idle. */
INLINE void keep_words(const keep_state *s, uint64_t word, int n, uint64_t *bits) {
    const __m512i least = _mm512_set1_epi32((int)s->least);
    keep_blocks b[2 * KEEP_WORDS];
#pragma GCC unroll 8
    for (int i = 0; i < 2 * n; i++) {
        const uint64_t first = (word + (uint64_t)i / 2) * 16; /* so all 16 counters have the same high word */
        b[i].c0 = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(uint32_t)first),
                                   i & 1 ? _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1)
                                         : _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0));
        b[i].c1 = _mm512_set1_epi64((int64_t)((first >> 32 & 0xffff) | (s->draw >> 32 & 0xffff) << 16));
        b[i].c2 = _mm512_set1_epi64((int64_t)(uint32_t)s->draw);
        b[i].c3 = _mm512_set1_epi64((int64_t)s->node);
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * n; i++)
            keep_round(&b[i], _mm512_set1_epi64((int64_t)s->key[round][0]),
                       _mm512_set1_epi64((int64_t)s->key[round][1]));
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        bits[i] = _pdep_u64(keep_bits(b[2 * i].c0, b[2 * i + 1].c0, least), 0x1111111111111111u) |
                  _pdep_u64(keep_bits(b[2 * i].c1, b[2 * i + 1].c1, least), 0x2222222222222222u) |
                  _pdep_u64(keep_bits(b[2 * i].c2, b[2 * i + 1].c2, least), 0x4444444444444444u) |
                  _pdep_u64(keep_bits(b[2 * i].c3, b[2 * i + 1].c3, least), 0x8888888888888888u);
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
INLINE void keep_words(const keep_state *s, uint64_t word, int n, uint64_t *bits) {
    for (int i = 0; i < n; i++) bits[i] = keep_word(s, word + (uint64_t)i);
}
#endif

/* A call for all, as it is long: words `word` .. `word` + KEEP_WORDS - 1. */
static __attribute__((noinline)) void keep_some(const keep_state *s, uint64_t word, uint64_t *bits) {
    keep_words(s, word, KEEP_WORDS, bits);
}

/* Lanes that are kept of the elements from bit `at` on; bits[] has a word behind its last. */
INLINE vi keep_lanes(const uint64_t *bits, int64_t at) {
    uint64_t b = bits[at >> 6] >> (at & 63);
    if ((at & 63) + VL > 64) b |= bits[(at >> 6) + 1] << (64 - (at & 63));
#ifdef __AVX512DQ__
    return (vi)_mm512_movm_epi32((__mmask16)b);
#else
    return (((vi){0} + (int32_t)(uint32_t)b) >> viota() & 1) != 0;
#endif
}

#endif
