/* Tests of src/train/schedule against closed forms and values computed with PyTorch's formulas by hand. */
#include "train/schedule.h"

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

static void close_to(double a, double b) {
    if (!(fabs(a - b) <= 1e-12 * fmax(1e-6, fabs(b)))) fail_msg("%.17g is not %.17g", a, b);
}

static void warm_up_and_shapes(void **state) {
    (void)state;
    train_schedule s = {.decay = TRAIN_COSINE, .lr = 1e-3, .min_lr = 1e-4, .warmup = 10, .steps = 110};
    close_to(train_lr(&s, 0), 1e-4);
    close_to(train_lr(&s, 4), 5e-4);
    close_to(train_lr(&s, 9), 1e-3);
    close_to(train_lr(&s, 10), 1e-3);
    close_to(train_lr(&s, 60), 5.5e-4);                            /* half-way: the mean of both rates */
    close_to(train_lr(&s, 35), 1e-4 + 9e-4 * (0.5 + sqrt(0.125))); /* cos(pi/4) */
    close_to(train_lr(&s, 110), 1e-4);
    close_to(train_lr(&s, 5000), 1e-4);
    s.decay = TRAIN_LINEAR;
    close_to(train_lr(&s, 35), 1e-3 - 9e-4 / 4);
    close_to(train_lr(&s, 110), 1e-4);
    s.decay = TRAIN_CONSTANT;
    close_to(train_lr(&s, 4), 5e-4);
    close_to(train_lr(&s, 109), 1e-3);
    for (int i = 0; i < 3; i++) { /* never up again after the warm-up */
        s.decay = (train_decay)i;
        for (int k = 10; k < 120; k++) assert_true(train_lr(&s, k + 1) <= train_lr(&s, k));
    }
    s.warmup = 0;
    s.steps = 0;
    s.decay = TRAIN_COSINE;
    assert_true(isfinite(train_lr(&s, 0)));
}

static void clipping(void **state) {
    (void)state;
    close_to(train_clip_factor(0, 100), 1);
    close_to(train_clip_factor(1, 0.5), 1);
    close_to(train_clip_factor(1, 4), 1 / 4.000001);
    close_to(train_clip_factor(2.5, 0), 1);
}

static void names(void **state) {
    (void)state;
    train_decay d = TRAIN_COSINE;
    assert_true(train_decay_parse("linear", &d));
    assert_int_equal(d, TRAIN_LINEAR);
    assert_false(train_decay_parse("step", &d));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(warm_up_and_shapes), cmocka_unit_test(clipping),
                                       cmocka_unit_test(names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
