/* The public API alone: what it computes is held against a finite difference through its own calls, and every mistake
 * that a caller can make is told and leaves nothing behind (leaks are the sanitizers' to find). */
#include "autosp.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL AUTOSP_SOURCE_DIR "/tests/fixtures/llama.pt2"
enum { SEQ = 13 };

static void says(const char *part) {
    if (!strstr(autosp_error(), part)) fail_msg("'%s' does not say '%s'", autosp_error(), part);
}

static int64_t ids[SEQ], labels[SEQ], wrong[SEQ];

static void draw(void) {
    for (int i = 0; i < SEQ; i++) {
        ids[i] = (i * 7 + 3) % 31;
        labels[i] = i % 5 == 4 ? -100 : ids[i];
        wrong[i] = i == 6 ? 1 << 30 : 0;
    }
}

/* The gradient that autosp_step leaves is the slope of autosp_eval. */
static int slopes(autosp_rank *r, void *arg) {
    const char *name = arg;
    const autosp_batch b = {.input_ids = ids, .labels = labels};
    autosp_result res;
    void *w, *g;
    int64_t n, m;
    if (autosp_step(r, 0, &b, 1, NULL, &res)) return 1;
    if (autosp_tensor(r, name, AUTOSP_VALUE, &w, &n) || autosp_tensor(r, name, AUTOSP_GRADIENT, &g, &m)) return 1;
    assert_int_equal(n, m);
    assert_true(res.touched_bytes > 0 && res.labels > 5);
    double dot = 0, length = 0, up, down;
    double *direction = malloc(sizeof *direction * (size_t)n), *keep = malloc(sizeof *keep * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        keep[i] = ((double *)w)[i];
        direction[i] = sin((double)i);
        dot += direction[i] * ((double *)g)[i];
        length += fabs(direction[i] * ((double *)g)[i]);
    }
    const double h = 1e-5;
    for (int64_t i = 0; i < n; i++) ((double *)w)[i] = keep[i] + h * direction[i];
    int s = autosp_eval(r, &b, 1, &up);
    for (int64_t i = 0; i < n; i++) ((double *)w)[i] = keep[i] - h * direction[i];
    s |= autosp_eval(r, &b, 1, &down);
    free(direction), free(keep);
    if (s) return 1;
    if (fabs((up - down) / (2 * h) - dot) > 1e-6 * length)
        fail_msg("slope %g, gradient %g", (up - down) / (2 * h), dot);
    return 0;
}

static int mistakes(autosp_rank *r, void *arg) {
    (void)arg;
    autosp_batch b = {.input_ids = wrong, .labels = labels};
    void *p;
    int64_t n;
    assert_int_not_equal(autosp_step(r, 0, &b, 1, NULL, NULL), 0);
    says("place 6");
    b = (autosp_batch){.input_ids = ids, .labels = wrong};
    assert_int_not_equal(autosp_step(r, 0, &b, 1, NULL, NULL), 0);
    says("label 1073741824");
    b.labels = NULL;
    assert_int_not_equal(autosp_eval(r, &b, 1, &(double){0}), 0);
    says("no labels");
    assert_int_not_equal(autosp_step(r, 0, &b, 0, NULL, NULL), 0);
    says("at least one microbatch");
    assert_int_not_equal(autosp_tensor(r, "nothing", AUTOSP_VALUE, &p, &n), 0);
    says("no parameter 'nothing'");
    const autosp_adamw adamw = {.lr = 1};
    b.labels = labels;
    assert_int_not_equal(autosp_step(r, 0, &b, 1, &adamw, NULL), 0);
    says("inference");
    return 7; /* a body's failure is the run's */
}

static void run(int ranks, int inference, int (*body)(autosp_rank *, void *), void *arg, int expected) {
    autosp_world *w;
    autosp_model *m;
    autosp_plan *p;
    const autosp_options o = {.seq = SEQ, .dtype = "f64", .device = "ref", .inference = inference};
    assert_int_equal(autosp_world_open(ranks, 1, &w), 0);
    if (autosp_model_open(MODEL, NULL, &m)) fail_msg("%s", autosp_error());
    if (autosp_compile(m, w, &o, &p)) fail_msg("%s", autosp_error());
    const autosp_info info = autosp_plan_info(p);
    assert_int_equal(info.ranks, ranks);
    assert_true(info.peak_bytes > info.parameter_bytes + info.activation_bytes);
    assert_true(inference ? info.optimizer_bytes == 0 : info.optimizer_bytes > 0);
    int s = autosp_run(w, m, p, body, arg);
    if (!!s != !!expected) fail_msg("%s", autosp_error());
    autosp_plan_free(p);
    autosp_model_close(m);
    assert_int_equal(!!autosp_world_close(w, s), !!expected);
}

static void gradients_are_slopes(void **state) {
    (void)state;
    draw();
    char name[] = "m.model.layers.0.self_attn.q_proj.weight";
    run(1, 0, slopes, name, 0);
}

static void mistakes_are_told(void **state) {
    (void)state;
    draw();
    run(1, 1, mistakes, NULL, 1);
    run(2, 1, mistakes, NULL, 1);
    autosp_world *w;
    autosp_model *m;
    autosp_plan *p;
    assert_int_not_equal(autosp_world_open(-1, 0, &w), 0);
    says("0 or more");
    assert_int_not_equal(autosp_model_open("/nowhere.pt2", NULL, &m), 0);
    says("/nowhere.pt2");
    assert_int_not_equal(autosp_model_open(NULL, NULL, &m), 0);
    assert_int_equal(autosp_world_open(0, 0, &w), 0);
    assert_int_equal(autosp_model_open(MODEL, NULL, &m), 0);
    autosp_options o = {.seq = SEQ, .dtype = "i32"};
    assert_int_not_equal(autosp_compile(m, w, &o, &p), 0);
    says("f32, bf16 or f64");
    o = (autosp_options){.seq = SEQ, .memory = 1000};
    assert_int_not_equal(autosp_compile(m, w, &o, &p), 0);
    o = (autosp_options){.seq = SEQ, .device = "gpu"};
    assert_int_not_equal(autosp_compile(m, w, &o, &p), 0);
    says("gpu");
    assert_null(p);
    autosp_model_close(m);
    autosp_world_close(w, 0);
    autosp_model_close(NULL);
    autosp_plan_free(NULL);
    assert_int_equal(autosp_world_close(NULL, 0), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_are_slopes), cmocka_unit_test(mistakes_are_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
