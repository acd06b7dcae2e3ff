/* P ranks against one: the loss and every gradient of tests/ir/block.ir, through every pass and the runtime; and one
 * rank against finite differences. f64 on the reference device: P against one within 1e-11 (DESIGN: Numbers). */
#include "block_run.h"

static run_result one, many;

/* j on 2, 3, 4 and 8 ranks against one. */
static void ranks_match_one(job j) {
    static const int ranks[] = {2, 3, 4, 8};
    run(j, 1, &one);
    for (size_t p = 0; p < sizeof ranks / sizeof *ranks; p++) {
        if (ranks[p] > j.o.seq) continue;
        run(j, ranks[p], &many);
        double w = worst(&many, &one);
        if (!(w <= 1e-11))
            fail_msg("%s: B=%d A=%d S=%d P=%d: worst difference %g", j.file ? j.file : "block.ir", (int)j.o.batch,
                     j.accum, (int)j.o.seq, ranks[p], w);
    }
}

static void ranks_agree(void **state) {
    (void)state;
    static const int lengths[] = {8, 9, 16, 13};
    for (int batch = 1; batch <= 3; batch += 2)
        for (int accum = 1; accum <= 3; accum += 2)
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                job j = base_job();
                j.o.batch = batch;
                j.o.seq = lengths[l];
                j.accum = accum;
                j.no_last_labels = l % 2;
                ranks_match_one(j);
                assert_true(one.stored > 0 && one.stored < one.nparams); /* norms' weights are added to zeros */
            }
}

static void gradients_are_derivatives(void **state) {
    (void)state;
    check_derivatives(base_job(), 1, 1e-5, 3);
}

/* A prefix that all see and dropout of attention's weights: the same whatever the ranks, exchange, padding and device;
 * with the random numbers held fixed, gradients are derivatives. */
static void masks_and_dropout_of_attention(void **state) {
    (void)state;
    static const int lengths[] = {8, 9, 16, 21};
    job j = base_job();
    j.file = "attention.ir";
    check_derivatives(j, 1, 1e-5, 3);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        j.o.seq = lengths[l];
        j.dev = &device_ref;
        j.o.compute = DT_F64;
        ranks_match_one(j);
        j.o.exchange = "gather";
        run(j, 2, &many);
        assert_true(worst(&many, &one) <= 1e-11);
        j.o.exchange = NULL;
        j.dev = &device_cpu;
        j.o.compute = DT_F32;
        for (int p = 1; p <= 4; p++) {
            run(j, p, &many);
            double w = worst(&many, &one);
            if (!(w <= 1e-5)) fail_msg("S=%d P=%d: cpu against ref: %g", lengths[l], p, w);
        }
    }
}

/* What is cut off the sequence or joined to it is cut and joined at the user's S, wherever its padding ends. */
static void rows_that_move(void **state) {
    (void)state;
    static const int lengths[] = {8, 9, 16, 21};
    job j = base_job();
    j.file = "padded.ir";
    check_derivatives(j, 1, 1e-5, 3);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        j.o.seq = lengths[l];
        ranks_match_one(j);
    }
}

/* Where the real rows of a padded length would not come first, or would be mixed with the padding, it is refused. */
static void rows_that_cannot_move(void **state) {
    (void)state;
    static const struct {
        const char *nodes, *why;
    } cases[] = {{"%2 = reshape(%1) : f32[mul(B,S)]\n"
                  "%3 = slice(%2) {dim=0, range=[0,add(mul(B,S),-1)], step=1} : f32[add(mul(B,S),-1)]\n",
                  "rows of several sequences"},
                 {"%3 = concat(%1, %1) {dim=1} : f32[B,mul(S,2)]\n", "joins values along the sequence"},
                 {"%2 = fill {value=1.0} : f32[S]\n%3, %4 = rmsnorm(%1, %2) {eps=1e-5} : f32[B,S], f32[B]\n",
                  "padding would count"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        arena *a = arena_new();
        buf text = {0};
        buf_printf(&text,
                   "graph \"g\" {\n%%0 = input {name=\"input_ids\", seq=1} : i64[B,S]\n%%1 = cast(%%0) : f32[B,S]\n"
                   "%sreturn y=%%3\n}\n",
                   cases[i].nodes);
        ir_graph *g, *h;
        if (ir_parse(a, text.data, "g", &g) != SP_OK) fail_msg("%s", err_text());
        pass_options o = {.batch = 2, .seq = 8, .ranks = 2};
        if (pass_bind(g, &o, &h) != SP_OK) fail_msg("%s: %s", cases[i].why, err_text());
        o.seq = 9;
        assert_int_not_equal(pass_bind(g, &o, &h), SP_OK);
        if (!strstr(err_text(), cases[i].why)) fail_msg("not %s: %s", cases[i].why, err_text());
        buf_free(&text);
        arena_free(a);
    }
}

static void exchanges_agree(void **state) {
    (void)state;
    job j = base_job();
    run(j, 1, &one);
    j.o.exchange = "a2a";
    run(j, 2, &many);
    assert_true(worst(&many, &one) <= 1e-11);
    j.o.exchange = "gather";
    run(j, 2, &many);
    assert_true(worst(&many, &one) <= 1e-11);
}

/* The fast device: P against one, and one against the reference in f64, at f32 (DESIGN: Numbers). */
static void cpu_device_agrees(void **state) {
    (void)state;
    static const int ranks[] = {2, 3, 4, 8}, lengths[] = {9, 13, 40}; /* the position table has 40 rows */
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (int batch = 1; batch <= 3; batch += 2) {
            job j = base_job();
            j.o.seq = lengths[l];
            j.o.batch = j.accum = batch;
            j.no_last_labels = l % 2;
            run(j, 1, &many);
            j.dev = &device_cpu;
            j.o.compute = DT_F32;
            j.threads = 2;
            run(j, 1, &one);
            double w = worst(&one, &many);
            if (!(w <= 1e-5)) fail_msg("B=A=%d S=%d: cpu against ref: %g", batch, lengths[l], w);
            for (size_t p = 0; p < sizeof ranks / sizeof *ranks; p++) {
                run(j, ranks[p], &many);
                w = worst(&many, &one);
                if (!(w <= 1e-5)) fail_msg("B=A=%d S=%d P=%d: %g", batch, lengths[l], ranks[p], w);
            }
        }
}

/* Dropout's masks do not depend on ranks and padding (nor on tiles: it is never in one). */
static void dropout_is_one_mask(void **state) {
    (void)state;
    job j = base_job();
    j.file = "dropout.ir";
    j.o.batch = 1;
    j.o.seq = 61;
    j.o.tile_policy = "off";
    run(j, 1, &one);
    for (int ranks = 1; ranks <= 3; ranks++) {
        j.o.tile_policy = "auto";
        run(j, ranks, &many);
        double w = worst(&many, &one);
        if (!(w <= 1e-11)) fail_msg("P=%d tiled: %g", ranks, w);
    }
}

/* A layout rule that passes partial sums off as whole must be caught by the comparison. */
static void broken_rule_is_caught(void **state) {
    (void)state;
    job j = base_job();
    run(j, 1, &one);
    j.o.break_rule = "rmsnorm_grad";
    run(j, 2, &many);
    assert_true(worst(&many, &one) > 1e-2);
}

/* Kernels that the plan fuses, interpreted in f64 and compiled in f32, against the ordinary ones. */
static void fused_equals_plain(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks += 3)
        for (int f32 = 0; f32 < 2; f32++) {
            job j = base_job();
            j.o.seq = 40;
            if (f32) {
                j.dev = &device_cpu;
                j.o.compute = DT_F32;
                j.threads = 2;
            }
            run(j, ranks, &many);
            j.plain = true;
            run(j, ranks, &one);
            double w = worst(&many, &one);
            if (!(w <= (f32 ? 1e-5 : 1e-12))) fail_msg("P=%d on %s: %g", ranks, j.dev->name, w);
            assert_true(many.work <= one.work); /* what vanishes takes no room */
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(fused_equals_plain),
                                       cmocka_unit_test(ranks_agree),
                                       cmocka_unit_test(gradients_are_derivatives),
                                       cmocka_unit_test(rows_that_move),
                                       cmocka_unit_test(rows_that_cannot_move),
                                       cmocka_unit_test(exchanges_agree),
                                       cmocka_unit_test(cpu_device_agrees),
                                       cmocka_unit_test(dropout_is_one_mask),
                                       cmocka_unit_test(masks_and_dropout_of_attention),
                                       cmocka_unit_test(broken_rule_is_caught)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
