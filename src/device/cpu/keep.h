/* keep.h - which elements dropout keeps, 64 at a time: bit i of word w is about element 64 w + i (philox.h).
 *
 * A block of Philox decides about eight elements, so a word is 8 blocks, side by side in vectors' lanes.
 */
#ifndef AUTOSP_DEVICE_CPU_KEEP_H
#define AUTOSP_DEVICE_CPU_KEEP_H

#include "device/cpu/vec.h"
#include "device/philox.h"

enum { KEEP_WORDS = 5 };

typedef struct keep_state {
    uint64_t seed, draw;
    uint32_t node;
    philox_bound bound;
    uint64_t key[PHILOX_ROUNDS][2]; /* of each round */
} keep_state;

INLINE keep_state keep_start(uint64_t seed, uint64_t draw, uint32_t node, double p) {
    keep_state s = {.seed = seed, .draw = draw, .node = node, .bound = philox_bound_of(p)};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32) ^ node;
    for (int round = 0; round < PHILOX_ROUNDS; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        s.key[round][0] = k0, s.key[round][1] = k1;
    return s;
}

/* Adds to the bits of a word those whose upper halves, in `open`, leave it to the lower ones. */
static __attribute__((noinline, unused)) uint64_t keep_open(const keep_state *s, uint64_t word, uint64_t bits,
                                                            uint64_t open) {
    for (; open; open &= open - 1) {
        const int i = __builtin_ctzll(open);
        bits |= (uint64_t)philox_keeps(s->seed, s->draw, s->node, word * 64 + (uint64_t)i, s->bound) << i;
    }
    return bits;
}

/* x * scale in the lanes whose bits are set, 0 in the others. */
INLINE vf keep_scaled(uint64_t bits, vf x, float scale) {
#ifdef __AVX512F__
    return (vf)_mm512_maskz_mul_ps((__mmask16)bits, (__m512)x, (__m512)vset(scale));
#else
    const vi kept = (((vi){0} + (int32_t)(uint32_t)bits) >> viota() & 1) != 0;
    return vselect(kept, x * scale, vset(0));
#endif
}

/* Words of elements whose bits are known: y = x * scale where one is set, else 0. */
typedef struct keep_work {
    bool bf;
    float scale;
    const void *x;
    void *y;
    const uint64_t *bits;
} keep_work;

/* Word w. What memory will be asked for a little later is fetched ahead: bits take about as long as memory does, and so
 * both are under way at once. */
INLINE void keep_do(const keep_work *k, int w) {
    enum { AHEAD = 4096 };
    const uint64_t bits = k->bits[w];
    const char *ahead = (const char *)k->x + w * (k->bf ? 128 : 256) + AHEAD;
    __builtin_prefetch(ahead), __builtin_prefetch(ahead + 64);
    if (!k->bf) __builtin_prefetch(ahead + 128), __builtin_prefetch(ahead + 192);
#pragma GCC unroll 16
    for (int j = 0; j < 64; j += 2 * VL) {
        vf a, b;
        vget2(k->bf, k->x, w * 64 + j, &a, &b);
        vput2(k->bf, k->y, w * 64 + j, keep_scaled(bits >> j, a, k->scale), keep_scaled(bits >> (j + VL), b, k->scale));
    }
}

#if defined(__AVX512DQ__) && defined(__AVX512BW__)
typedef uint32_t keep_mask __attribute__((may_alias)); /* straight from a mask register to half a word */

/* Eight blocks, a word of each in the low half of a lane of 64 bits: a multiplication leaves both halves of its product
 * there, and what lies in the high half of a factor is not read, so nothing is put in place between rounds. */
typedef struct keep_blocks {
    __m512i c0, c1, c2, c3;
} keep_blocks;

INLINE __m512i keep_high(__m512i x) { return _mm512_shuffle_epi32(x, 0xF5); }
INLINE __m512i keep_xor(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

/* The first two rounds: blocks differ in their lowest word alone, so half of it is the same for all. */
INLINE keep_blocks keep_two_rounds(const keep_state *s, uint64_t first) {
    const uint64_t m0 = 0xD2511F53, m1 = 0xCD9E8D57, c = (s->draw & 0xffffffff) * m1;
    const uint64_t high = (first >> 32 & 0xffff) | (s->draw >> 32 & 0xffff) << 16;
    const uint64_t same = ((c >> 32) ^ high ^ s->key[0][0]) * m0;
    const __m512i counter =
        _mm512_add_epi64(_mm512_set1_epi64((int64_t)(first & 0xffffffff)), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    const __m512i a = _mm512_mul_epu32(counter, _mm512_set1_epi64((int64_t)m0));
    const __m512i c2 = _mm512_xor_si512(keep_high(a), _mm512_set1_epi64((int64_t)(s->node ^ s->key[0][1])));
    keep_blocks b;
    b.c1 = _mm512_mul_epu32(c2, _mm512_set1_epi64((int64_t)m1));
    b.c0 = _mm512_xor_si512(keep_high(b.c1), _mm512_set1_epi64((int64_t)(c ^ s->key[1][0])));
    b.c2 = _mm512_xor_si512(a, _mm512_set1_epi64((int64_t)(same >> 32 ^ s->key[1][1])));
    b.c3 = _mm512_set1_epi64((int64_t)same);
    return b;
}
INLINE void keep_round(keep_blocks *b, __m512i k0, __m512i k1) {
    const __m512i a = _mm512_mul_epu32(b->c0, _mm512_set1_epi64(0xD2511F53)),
                  c = _mm512_mul_epu32(b->c2, _mm512_set1_epi64(0xCD9E8D57));
    b->c0 = keep_xor(keep_high(c), b->c1, k0);
    b->c2 = keep_xor(keep_high(a), b->c3, k1);
    b->c1 = c;
    b->c3 = a;
}
/* The last round, with words 0 and 2 of a result left in the high half, where its product has them. */
INLINE void keep_last_round(const keep_blocks *b, __m512i k0, __m512i k1, __m512i *front, __m512i *behind) {
    *front = keep_xor(_mm512_mul_epu32(b->c2, _mm512_set1_epi64(0xCD9E8D57)), _mm512_slli_epi64(b->c1, 32), k0);
    *behind = keep_xor(_mm512_mul_epu32(b->c0, _mm512_set1_epi64(0xD2511F53)), _mm512_slli_epi64(b->c3, 32), k1);
}

/* n words from `word` on, in step: a round waits for the one before, so one word alone leaves the units idle. Between
 * rounds as many words of `work` are done, whose bits are there. */
INLINE void keep_words(const keep_state *s, uint64_t word, int n, uint64_t *bits, const keep_work *work) {
    enum { LAST = PHILOX_ROUNDS - 1 };
    const __m512i upper = _mm512_set1_epi16((int16_t)s->bound.upper);
    keep_blocks b[KEEP_WORDS];
    __m512i front[KEEP_WORDS], behind[KEEP_WORDS]; /* upper halves of elements 0 .. 31, 32 .. 63 */
    __mmask32 open = 0;
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) b[i] = keep_two_rounds(s, (word + (uint64_t)i) * 8);
#pragma GCC unroll 8
    for (int round = 2; round < LAST; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            keep_round(&b[i], _mm512_set1_epi64((int64_t)s->key[round][0]),
                       _mm512_set1_epi64((int64_t)s->key[round][1]));
        if (work && round - 2 < n) keep_do(work, round - 2);
    }
#pragma GCC unroll 8
    for (int w = LAST - 2; work && w < n; w++) keep_do(work, w);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        keep_last_round(&b[i], _mm512_set1_epi64((int64_t)(s->key[LAST][0] << 32)),
                        _mm512_set1_epi64((int64_t)(s->key[LAST][1] << 32)), &front[i], &behind[i]);
        ((keep_mask *)(bits + i))[0] = _mm512_cmpgt_epu16_mask(front[i], upper);
        ((keep_mask *)(bits + i))[1] = _mm512_cmpgt_epu16_mask(behind[i], upper);
        open = _kor_mask32(
            open, _kor_mask32(_mm512_cmpeq_epu16_mask(front[i], upper), _mm512_cmpeq_epu16_mask(behind[i], upper)));
    }
    if (__builtin_expect(_kortestz_mask32_u8(open, open), 1)) return;
    for (int i = 0; i < n; i++)
        bits[i] = keep_open(s, word + (uint64_t)i, bits[i],
                            _mm512_cmpeq_epu16_mask(front[i], upper) |
                                (uint64_t)_mm512_cmpeq_epu16_mask(behind[i], upper) << 32);
}
#else
INLINE void keep_words(const keep_state *s, uint64_t word, int n, uint64_t *bits, const keep_work *work) {
    for (int w = 0; w < n && work; w++) keep_do(work, w);
    for (int w = 0; w < n; w++) {
        uint32_t c[4][8];
        const uint64_t first = (word + (uint64_t)w) * 8;
        for (int i = 0; i < 8; i++) {
            c[0][i] = (uint32_t)first + (uint32_t)i;
            c[1][i] = (uint32_t)(first >> 32 & 0xffff) | (uint32_t)(s->draw >> 32 & 0xffff) << 16;
            c[2][i] = (uint32_t)s->draw;
            c[3][i] = s->node;
        }
        philox_rounds(c[0], 8, (uint32_t)s->seed, (uint32_t)(s->seed >> 32) ^ s->node);
        uint64_t above = 0, open = 0;
        for (int i = 0; i < 64; i++) {
            const uint32_t upper = philox_half_of(c[0] + i / 4 % 8, 8, (uint64_t)i);
            above |= (uint64_t)(upper > s->bound.upper) << i;
            open |= (uint64_t)(upper == s->bound.upper) << i;
        }
        bits[w] = keep_open(s, word + (uint64_t)w, above, open);
    }
}
#endif

/* A word. */
static __attribute__((noinline, unused)) uint64_t keep_one(const keep_state *s, uint64_t word) {
    uint64_t bits;
    keep_words(s, word, 1, &bits, NULL);
    return bits;
}

#endif
