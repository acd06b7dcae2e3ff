/* Tiles change nothing: the block with every row-wise region in tiles against the untiled one, on one rank and on
 * several, at lengths that no number of tiles divides; and they take less memory. Oracle: the untiled run, whose
 * gradients unit.spmd compares with finite differences. */
#include "block_run.h"

static run_result untiled, tiled, other;

/* Tiles of two rows wherever a region allows. */
static job small_tiles(void) {
    job j = base_job();
    j.o.tile_bytes = 1;
    j.o.tile_rows = 2;
    return j;
}

static void tiles_agree(void **state) {
    (void)state;
    static const int ranks[] = {1, 2, 3}, lengths[] = {8, 16, 13, 23};
    static const char *const policies[] = {"all", "layer", "autosp"};
    for (int batch = 1; batch <= 2; batch++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
            for (size_t s = 0; s < sizeof policies / sizeof *policies; s++) {
                job j = small_tiles(), plain;
                j.o.batch = batch;
                j.o.seq = lengths[l];
                j.o.save_policy = policies[s];
                j.accum = 1 + (int)l % 2;
                plain = j;
                plain.o.tile_policy = "off";
                run(plain, 1, &untiled);
                assert_int_equal(untiled.loops, 0);
                for (size_t p = 0; p < sizeof ranks / sizeof *ranks; p++) {
                    run(j, ranks[p], &tiled);
                    if (!tiled.loops && lengths[l] >= 4 * ranks[p])
                        fail_msg("B=%d S=%d P=%d save.policy=%s: no loop", batch, lengths[l], ranks[p], policies[s]);
                    double w = worst(&tiled, &untiled);
                    if (!(w <= 1e-11))
                        fail_msg("B=%d S=%d P=%d save.policy=%s: worst difference %g", batch, lengths[l], ranks[p],
                                 policies[s], w);
                }
            }
}

/* Gradients at the same tiling do not depend on what is kept: bit by bit. `loss` tiles before that is decided. */
static void plans_are_bit_equal(void **state) {
    (void)state;
    static const char *const tilings[] = {"off", "loss"}, *const policies[] = {"layer", "autosp", "pytorch"};
    for (int t = 0; t < 2; t++) {
        job j = small_tiles();
        j.o.seq = 32;
        j.o.tile_policy = tilings[t];
        j.o.save_policy = "all";
        run(j, 1, &tiled);
        assert_int_equal(tiled.loops > 0, t);
        for (size_t s = 0; s < sizeof policies / sizeof *policies; s++) {
            j.o.save_policy = policies[s];
            run(j, 1, &other);
            assert_true(worst(&other, &tiled) == 0);
        }
    }
}

static void gradients_are_derivatives(void **state) {
    (void)state;
    job j = small_tiles();
    j.o.save_policy = "layer";
    run(j, 1, &tiled);
    assert_true(tiled.loops >= 1);
    const double h = 1e-5;
    for (int i = 0; i < tiled.nparams; i++) {
        int64_t k = tiled.numel[i] / 2;
        double loss[2];
        j.nudge_param = i;
        j.nudge_at = k;
        for (int side = 0; side < 2; side++) {
            j.nudge = side ? -h : h;
            run(j, 1, &other);
            loss[side] = other.loss;
        }
        double slope = (loss[0] - loss[1]) / (2 * h);
        if (fabs(slope - tiled.grad[i][k]) > 1e-7 * fmax(1, fabs(slope)))
            fail_msg("parameter %d: %.10g by differences, %.10g by backward", i, slope, tiled.grad[i][k]);
    }
}

static void cpu_device_agrees(void **state) {
    (void)state;
    job j = small_tiles();
    j.o.seq = 30;
    j.o.compute = DT_F32;
    j.o.save_policy = "layer";
    j.o.tile_policy = "off";
    run(j, 1, &untiled);
    j.o.tile_policy = "auto";
    for (int p = 1; p <= 3; p += 2) {
        j.dev = &device_cpu;
        j.threads = 2;
        run(j, p, &tiled);
        assert_true(worst(&tiled, &untiled) <= 1e-5);
    }
}

/* No buffer as large as a tiled value is left, and the whole takes less. */
static void memory_falls(void **state) {
    (void)state;
    job j = small_tiles();
    j.o.batch = 1;
    j.o.seq = 40; /* as long as the table of positions */
    j.o.save_policy = "layer";
    run(j, 1, &tiled);
    j.o.tile_policy = "off";
    run(j, 1, &untiled);
    int64_t ffn = 40 * 24 * 8;
    assert_true(untiled.largest >= ffn);
    assert_true(tiled.largest < ffn);
    if (!(tiled.work < untiled.work))
        fail_msg("%lld bytes in tiles, %lld whole", (long long)tiled.work, (long long)untiled.work);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiles_agree), cmocka_unit_test(plans_are_bit_equal),
                                       cmocka_unit_test(gradients_are_derivatives), cmocka_unit_test(cpu_device_agrees),
                                       cmocka_unit_test(memory_falls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
