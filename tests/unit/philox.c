/* Philox4x32-7 against the known answers published with it (Random123, kat_vectors), and dropout's masks: how many
 * elements they keep, that elements do not depend on one another, and that the bits left out of a comparison count. */
#include "device/philox.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void known_answers(void **state) {
    (void)state;
    const uint32_t zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    const uint32_t pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, key[2] = {0xa4093822, 0x299f31d0};
    uint32_t out[4];
    philox4x32(zero, zero, out);
    assert_int_equal(out[0], 0x5f6fb709);
    assert_int_equal(out[1], 0x0d893f64);
    assert_int_equal(out[2], 0x4f121f81);
    assert_int_equal(out[3], 0x4f730a48);
    philox4x32(ones, ones, out);
    assert_int_equal(out[0], 0x5207ddc2);
    assert_int_equal(out[1], 0x45165e59);
    assert_int_equal(out[2], 0x4d8ee751);
    assert_int_equal(out[3], 0x8c52f662);
    philox4x32(key, pi, out);
    assert_int_equal(out[0], 0x4dfccaba);
    assert_int_equal(out[1], 0x190a87f0);
    assert_int_equal(out[2], 0xc47362ba);
    assert_int_equal(out[3], 0xb6b5242a);
}

/* Every half of every word of every block is one element's. */
static void every_half_once(void **state) {
    (void)state;
    enum { N = 4096 };
    bool seen[N] = {false};
    const uint32_t block[4] = {1u << 16, 3u << 16 | 2, 5u << 16 | 4, 7u << 16 | 6};
    for (uint64_t i = 0; i < N; i++) {
        const uint64_t at = philox_block_of(i) * 8 + philox_half_of(block, 1, i);
        assert_true(at < N && !seen[at]);
        seen[at] = true;
    }
}

/* An element is kept when its 32 bits are at least p 2^32, also where half of them leave it open. */
static void all_bits_count(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 3000; i++) {
        const uint64_t upper = philox_half(3, 4, 5, i, false), number = upper << 16 | philox_half(3, 4, 5, i, true);
        assert_true(philox_keeps(3, 4, 5, i, philox_bound_of((double)number * 0x1p-32)) || number == 0);
        assert_false(philox_keeps(3, 4, 5, i, philox_bound_of((double)(number + 1) * 0x1p-32)));
        assert_false(philox_keeps(3, 4, 5, i, philox_bound_of(((double)number + 0.25) * 0x1p-32)));
        assert_true(upper == 0 || philox_keeps(3, 4, 5, i, philox_bound_of((double)upper * 0x1p-16)));
        assert_false(philox_keeps(3, 4, 5, i, philox_bound_of((double)(upper + 1) * 0x1p-16)));
        assert_false(philox_keeps(3, 4, 5, i, philox_bound_of(1)));
    }
}

enum { N = 1 << 17 };
static bool mask[5][N];

static bool near(int count, int of, double p) { return fabs(count - p * of) < 5 * sqrt(p * (1 - p) * of); }

/* Masks of different seeds, steps and nodes have the right share of elements, whose neighbours at any distance (the two
 * halves of a word, the words of a block, blocks of one group and the next) are independent of them, as are other
 * masks: 5 standard deviations of a binomial. */
static void masks_are_independent(void **state) {
    (void)state;
    static const double p[] = {0.1, 0.3, 0.5};
    for (size_t k = 0; k < sizeof p / sizeof *p; k++) {
        for (int m = 0; m < 5; m++)
            for (uint64_t i = 0; i < N; i++)
                mask[m][i] = philox_keeps(m == 1   ? 1
                                          : m == 4 ? 1ull << 32
                                                   : 0,
                                          m == 2 ? 8 : 7, m == 3, i, philox_bound_of(p[k]));
        for (int m = 0; m < 5; m++) {
            int kept = 0;
            for (int i = 0; i < N; i++) kept += mask[m][i];
            assert_true(near(kept, N, 1 - p[k]));
            for (int far = 1; far <= 64; far++) {
                int both = 0;
                for (int i = 0; i + far < N; i++) both += !mask[m][i] && !mask[m][i + far];
                if (!near(both, N - far, p[k] * p[k])) fail_msg("mask %d, %d apart: %d of %d", m, far, both, N - far);
            }
            for (int o = 0; o < m; o++) {
                int both = 0;
                for (int i = 0; i < N; i++) both += !mask[m][i] && !mask[o][i];
                assert_true(near(both, N, p[k] * p[k]));
            }
        }
    }
}

/* The lower halves, each bit: even among themselves, and independent of the upper ones. */
static void halves_are_independent(void **state) {
    (void)state;
    int set[16] = {0}, same[16] = {0};
    for (uint64_t i = 0; i < N; i++) {
        const uint32_t upper = philox_half(0, 7, 1, i, false), lower = philox_half(0, 7, 1, i, true);
        for (int b = 0; b < 16; b++) set[b] += lower >> b & 1, same[b] += (~(upper ^ lower) >> b) & 1;
    }
    for (int b = 0; b < 16; b++) assert_true(near(set[b], N, 0.5) && near(same[b], N, 0.5));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),          cmocka_unit_test(every_half_once),
        cmocka_unit_test(all_bits_count),         cmocka_unit_test(masks_are_independent),
        cmocka_unit_test(halves_are_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
