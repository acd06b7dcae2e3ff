/* kern_amx.c - the micro-kernel of AMX with its instructions emulated: against a product in double precision, the sums'
 * independence of what is computed beside them, and the self-check, which has to find a processor that errs.
 * Attention through the same emulation is unit.kern_attn_amx (kern_attn.c once more). */
#include "device/cpu/amx.h"

#include <math.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <cmocka.h>

#if VEC_PAIRS

extern atomic_int_least64_t amx_emulated_dots;
extern _Thread_local bool amx_emulated_configured;
extern _Thread_local int amx_emulated_wrong;

enum { ROWS = 70, PAIRS = 75, LANES = 32, LD = 37, RS = 81 };

typedef struct operands {
    float a[ROWS * RS], b[PAIRS * LD], c[ROWS * LD], factor[LANES];
} operands;

static float word(uint64_t *seed) {
    const uint32_t low = bf16_put((float)rng_normal(seed)), high = bf16_put((float)rng_normal(seed)),
                   both = low | high << 16;
    float x;
    memcpy(&x, &both, sizeof x);
    return x;
}

static double half(float x, int which) {
    uint32_t both;
    memcpy(&both, &x, sizeof both);
    return (double)bf16_get((uint16_t)(both >> 16 * which));
}

static void fill(operands *x, uint64_t seed) {
    for (int i = 0; i < ROWS * RS; i++) x->a[i] = word(&seed);
    for (int i = 0; i < PAIRS * LD; i++) x->b[i] = word(&seed);
    for (int i = 0; i < ROWS * LD; i++) x->c[i] = (float)rng_normal(&seed);
    for (int i = 0; i < LANES; i++) x->factor[i] = (float)rng_normal(&seed);
}

static void product(operands *x, int64_t rows, int nv, int64_t nt, micro_mode mode) {
    amx_begin();
    amx_rows_pairs(rows, nv, nt, x->a, RS, x->b, LD, x->c, LD, mode, x->factor);
    amx_end();
}

/* Every number of rows and of pairs that tiles treat differently; the error is bounded term by term. */
static void against_double(void **state) {
    (void)state;
    static operands x, before;
    const int64_t rows[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 64, ROWS},
                  pairs[] = {1, 5, 15, 16, 17, 31, 32, 40, PAIRS};
    for (int r = 0; r < 11; r++)
        for (int t = 0; t < 9; t++)
            for (int nv = 1; nv <= 2; nv++)
                for (int mode = MICRO_SET; mode <= MICRO_SCALE; mode++) {
                    fill(&x, (uint64_t)(r * 100 + t * 10 + nv));
                    before = x;
                    product(&x, rows[r], nv, pairs[t], (micro_mode)mode);
                    for (int64_t i = 0; i < ROWS; i++)
                        for (int64_t l = 0; l < LD; l++) {
                            const float was = before.c[i * LD + l];
                            if (i >= rows[r] || l >= nv * 16) {
                                assert_true(x.c[i * LD + l] == was);
                                continue;
                            }
                            double sum = 0, size = 0;
                            for (int64_t k = 0; k < pairs[t]; k++)
                                for (int h = 0; h < 2; h++) {
                                    double term = half(x.a[i * RS + k], h) * half(x.b[k * LD + l], h);
                                    sum += term, size += fabs(term);
                                }
                            const double f = (double)x.factor[l], c = (double)was;
                            double want = mode == MICRO_SET     ? sum
                                          : mode == MICRO_ADD   ? c + sum
                                          : mode == MICRO_SCALE ? sum * f
                                                                : c * f + sum;
                            if (mode == MICRO_SCALE) size *= fabs(f);
                            size += mode == MICRO_ADD ? fabs(c) : mode == MICRO_RESCALE ? fabs(c * f) : 0;
                            /* 16 additions in a tile, one for each further tile and half, scaling */
                            assert_true(fabs((double)x.c[i * LD + l] - want) <= 24 * 0x1p-24 * size + 1e-30);
                        }
                }
}

/* The bits of an element do not depend on how many rows and lanes there are, nor on a tile of zeros in front. */
static void bits(void **state) {
    (void)state;
    static operands x, y;
    fill(&x, 1);
    product(&x, ROWS, 2, PAIRS, MICRO_SET);
    for (int64_t rows = 1; rows < ROWS; rows += 6)
        for (int nv = 1; nv <= 2; nv++) {
            fill(&y, 1);
            product(&y, rows, nv, PAIRS, MICRO_SET);
            for (int64_t i = 0; i < rows; i++) assert_memory_equal(&x.c[i * LD], &y.c[i * LD], sizeof(float) * 16 * nv);
        }
    const int64_t n = PAIRS - AMX_PAIRS;
    fill(&x, 2);
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t k = 0; k < AMX_PAIRS; k++) x.a[i * RS + k] = 0;
    y = x;
    product(&x, ROWS, 2, PAIRS, MICRO_ADD);
    amx_begin();
    amx_rows_pairs(ROWS, 2, n, y.a + AMX_PAIRS, RS, y.b + AMX_PAIRS * LD, LD, y.c, LD, MICRO_ADD, NULL);
    amx_end();
    assert_memory_equal(x.c, y.c, sizeof x.c);
}

static void self_check(void **state) {
    (void)state;
    for (int wrong = 0; wrong < 3; wrong++) {
        amx_emulated_wrong = wrong;
        assert_int_equal(amx_check(), wrong == 0);
        assert_false(amx_emulated_configured);
    }
    amx_emulated_wrong = 0;
    assert_true(amx_usable());
    assert_true(atomic_load(&amx_emulated_dots) > 0);
}

/* Asked once in a process, so in one of its own: by wrong products it is refused with a warning, by the switch without.
 */
static void refused(void **state) {
    (void)state;
    amx_emulated_wrong = 1;
    assert_false(amx_usable());
    amx_emulated_wrong = 0;
    assert_false(amx_usable());
}
static void switched_off(void **state) {
    (void)state;
    assert_false(amx_usable());
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_double), cmocka_unit_test(bits),
                                       cmocka_unit_test(self_check)};
    const struct CMUnitTest wrong[] = {cmocka_unit_test(refused)}, off[] = {cmocka_unit_test(switched_off)};
    if (argc == 2 && strcmp(argv[1], "wrong") == 0) return cmocka_run_group_tests(wrong, NULL, NULL);
    if (argc == 2 && strcmp(argv[1], "off") == 0) return cmocka_run_group_tests(off, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void) {
    printf("the kernels are not compiled for pairs of bf16: skipped\n");
    return 0;
}

#endif
