/* philox.h - Philox4x32-7, a counter-based generator: random bits as a pure function of (key, counter).
 *
 * J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC'11), section 3.3,
 * constants from table 2. Seven rounds are the fewest that passed BigCrush there, and what PyTorch's flash attention
 * draws its dropout with; ten, which leave a margin for simulations, cost half as much again. What an element of a
 * dropout mask is depends on seed, step, node and its index in the whole tensor only: on any number of ranks, and when
 * it is computed a second time, it is the same.
 */
#ifndef AUTOSP_DEVICE_PHILOX_H
#define AUTOSP_DEVICE_PHILOX_H

#include <stdbool.h>
#include <stdint.h>

enum { PHILOX_ROUNDS = 7 };

/* n counters under one key, side by side: word w of counter i is c[w n + i]. In place; vectors where n is a constant.
 */
static inline __attribute__((always_inline)) void philox_rounds(uint32_t *c, int n, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        for (int i = 0; i < n; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c[i], p1 = (uint64_t)0xCD9E8D57u * c[2 * n + i];
            c[i] = (uint32_t)(p1 >> 32) ^ c[n + i] ^ k0;
            c[2 * n + i] = (uint32_t)(p0 >> 32) ^ c[3 * n + i] ^ k1;
            c[n + i] = (uint32_t)p1;
            c[3 * n + i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static inline void philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    for (int w = 0; w < 4; w++) out[w] = counter[w];
    philox_rounds(out, 1, key[0], key[1]);
}

/* Dropout keeps an element whose number, 32 random bits, is at least p 2^32 (rounded up). Its upper 16 bits decide but
 * once in 65536 elements, so a block has the upper halves of eight numbers, and another block their lower halves, which
 * is drawn only when an upper half leaves it open. */
typedef struct philox_bound {
    uint32_t upper, lower; /* kept: an upper half above `upper`, or equal to it and a lower half of at least `lower` */
} philox_bound;

static inline philox_bound philox_bound_of(double p) { /* 0 < p <= 1 */
    uint64_t least = (uint64_t)(p * 0x1p32);
    least += (double)least < p * 0x1p32;
    const uint32_t upper = (uint32_t)((least - 1) >> 16);
    return (philox_bound){upper, (uint32_t)(least - ((uint64_t)upper << 16))}; /* lower in 1 .. 65536 */
}

/* Eight blocks, side by side, are for 64 elements: a block's words 1 and 0 for four among the first 32, its words 3 and
 * 2 for four among the others, which is how vectors have them in order (cpu/keep.h). */
static inline uint64_t philox_block_of(uint64_t index) { return (index >> 6) * 8 + (index >> 2 & 7); }

/* The half of element `index` in its block, whose words lie n apart. */
static inline uint32_t philox_half_of(const uint32_t *block, int n, uint64_t index) {
    const int word = (int)(index >> 4 & 2) | (int)(~index >> 1 & 1);
    return block[word * n] >> (index & 1) * 16 & 0xffff;
}

/* The half, upper or lower, of element `index`. Counters are (half, block, draw): elements below 2^50, draws below
 * 2^48. */
static inline uint32_t philox_half(uint64_t seed, uint64_t draw, uint32_t node, uint64_t index, bool lower) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32) ^ node};
    const uint64_t block = philox_block_of(index) | (uint64_t)lower << 47;
    const uint32_t counter[4] = {(uint32_t)block,
                                 (uint32_t)(block >> 32 & 0xffff) | (uint32_t)(draw >> 32 & 0xffff) << 16,
                                 (uint32_t)draw, node};
    uint32_t out[4];
    philox4x32(key, counter, out);
    return philox_half_of(out, 1, index);
}

/* Is element `index` of draw (seed, draw, node) kept? */
static inline bool philox_keeps(uint64_t seed, uint64_t draw, uint32_t node, uint64_t index, philox_bound bound) {
    const uint32_t upper = philox_half(seed, draw, node, index, false);
    if (upper != bound.upper || bound.lower > 0xffff) return upper > bound.upper;
    return philox_half(seed, draw, node, index, true) >= bound.lower;
}

/* Dropout of attention's weights: the number of (batch row, head, query, key) of draw (seed, draw, node). The four
 * indices are the counter, so that padding, cuts and tiles do not matter; one block serves four keys. Batch rows and
 * heads are below 2^16, draws below 2^32, queries and keys below 2^32. */
static inline void philox_attention_block(uint64_t seed, uint64_t draw, uint32_t node, int64_t b, int64_t h, int64_t q,
                                          int64_t k_block, uint32_t out[4]) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32) ^ node};
    uint32_t counter[4] = {(uint32_t)k_block, (uint32_t)q, (uint32_t)b << 16 | (uint32_t)h, (uint32_t)draw};
    philox4x32(key, counter, out);
}
static inline uint32_t philox_attention(uint64_t seed, uint64_t draw, uint32_t node, int64_t b, int64_t h, int64_t q,
                                        int64_t k) {
    uint32_t out[4];
    philox_attention_block(seed, draw, node, b, h, q, k >> 2, out);
    return out[k & 3] >> 8;
}
/* A weight is kept when its number is at least this. */
static inline uint32_t philox_threshold(double p) {
    return (uint32_t)((float)p * 0x1p24f) + ((float)(uint32_t)((float)p * 0x1p24f) < (float)p * 0x1p24f);
}

#endif
