/* Conditions of attention as text: values, ranges against all values in them, and what is no formula. */
#include "ir/formula.h"

#include <setjmp.h>
#include <cmocka.h>

static void values(void **state) {
    (void)state;
    ir_formula f;
    const int64_t q[3] = {5, 1, 7}, k[3] = {5, 2, 7}, far[3] = {9, 1, 7};
    static const struct {
        const char *text;
        bool near, far;
    } cases[] = {{"0>=", true, true},
                 {"0==", true, false},
                 {"1!=", true, true},
                 {"0>= 1== &", false, false},
                 {"0>= 1== |", true, true},
                 {"0>= 1== & 2== |", true, true},
                 {"2!= 0!= | 1== |", false, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(ir_formula_parse(cases[i].text, 3, &f), SP_OK);
        assert_int_equal(ir_formula_at(&f, q, k), cases[i].near);
        assert_int_equal(ir_formula_at(&f, far, k), cases[i].far);
    }
    assert_int_equal(ir_formula_parse(NULL, 0, &f), SP_OK); /* no condition */
    assert_true(f.n == 0 && ir_formula_at(&f, q, k));
}

/* What a range says holds for every number in it; one comparison of ranges that do not overlap is decided. */
static void ranges(void **state) {
    (void)state;
    static const char *const text[] = {"0>=", "0==", "0!=", "0>= 1== &", "0>= 1== |", "0!= 1>= & 0== |"};
    uint64_t seed = 5;
    int decided = 0;
    for (int t = 0; t < 3000; t++) {
        ir_formula f;
        int64_t q0[2], q1[2], k0[2], k1[2];
        assert_int_equal(ir_formula_parse(text[t % 6], 2, &f), SP_OK);
        for (int i = 0; i < 2; i++) {
            q0[i] = (int64_t)(rng_next(&seed) % 6), q1[i] = q0[i] + (int64_t)(rng_next(&seed) % 3);
            k0[i] = (int64_t)(rng_next(&seed) % 6), k1[i] = k0[i] + (int64_t)(rng_next(&seed) % 3);
        }
        int known = ir_formula_range(&f, q0, q1, k0, k1);
        decided += known >= 0;
        int64_t q[2], k[2];
        for (q[0] = q0[0]; q[0] <= q1[0]; q[0]++)
            for (q[1] = q0[1]; q[1] <= q1[1]; q[1]++)
                for (k[0] = k0[0]; k[0] <= k1[0]; k[0]++)
                    for (k[1] = k0[1]; k[1] <= k1[1]; k[1]++)
                        if (known >= 0) assert_int_equal(ir_formula_at(&f, q, k), known);
    }
    assert_true(decided > 1000);
}

static void nonsense(void **state) {
    (void)state;
    static const char *const text[] = {"",        "&",
                                       "0>",      "0>= &",
                                       "0>= 1==", "3>=",
                                       "-1>=",    "0>=1==",
                                       "0<= ",    "99999999999999999999>=",
                                       "x",       "0>= 0>= 0>= 0>= 0>= 0>= 0>= 0>= 0>= & & & & & & & &"};
    ir_formula f;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        if (ir_formula_parse(text[i], 3, &f) == SP_OK) fail_msg("\"%s\" was taken for a formula", text[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(ranges), cmocka_unit_test(nonsense)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
