/* Philox4x32-10 against the known answers published with it (Random123, kat_vectors), and the rate of a dropout mask.
 */
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
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    philox4x32(ones, ones, out);
    assert_int_equal(out[0], 0x408f276d);
    assert_int_equal(out[3], 0x6d5451fd);
    philox4x32(key, pi, out);
    assert_int_equal(out[0], 0xd16cfe09);
    assert_int_equal(out[1], 0x94fdcceb);
    assert_int_equal(out[2], 0x5001e420);
    assert_int_equal(out[3], 0x24126ea1);
}

/* Draws of different seeds, steps and nodes differ, and each is uniform: 5 standard deviations of a binomial. */
static void streams_are_uniform(void **state) {
    (void)state;
    enum { N = 100000 };
    int same = 0;
    for (int stream = 0; stream < 4; stream++) {
        int below = 0;
        for (uint64_t i = 0; i < N; i++) {
            float u = philox_uniform(stream & 1, 7, (uint32_t)(stream >> 1), i);
            assert_true(u >= 0 && u < 1);
            below += u < 0.3f;
            same += stream && u == philox_uniform(0, 7, 0, i);
        }
        assert_true(fabs(below - 0.3 * N) < 5 * sqrt(0.3 * 0.7 * N));
    }
    assert_true(same < 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_answers), cmocka_unit_test(streams_are_uniform)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
