/* P ranks against one: the loss and every gradient of tests/ir/block.ir, through every pass and the runtime; and one
 * rank against finite differences. f64 on the reference device: P against one within 1e-11 (DESIGN: Numbers). */
#include "exec/exec.h"
#include "pass/pass.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

enum { MAX_PARAMS = 16, MAX_NUMEL = 1024 };

typedef struct run_result {
    double loss;
    int nparams;
    int64_t numel[MAX_PARAMS];
    double grad[MAX_PARAMS][MAX_NUMEL];
} run_result;

typedef struct job {
    pass_options o;
    int accum, threads;
    const device *dev;
    int nudge_param; /* finite differences: this parameter's element is changed by `nudge`; -1 none */
    int64_t nudge_at;
    double nudge;
    uint64_t seed;
    run_result *result;  /* written by rank 0 */
    bool no_last_labels; /* the last half of each row has no valid label: shards without any */
} job;

static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    buf b = {0};
    char chunk[4096];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;) buf_write(&b, chunk, n);
    fclose(f);
    return b.data;
}

static ir_graph *load(arena *a) {
    char *text = read_file(AUTOSP_SOURCE_DIR "/tests/ir/block.ir");
    ir_graph *g = NULL;
    if (ir_parse(a, text, "block.ir", &g) != SP_OK) fail_msg("%s", err_text());
    free(text);
    return g;
}

static sp_status rank_body(comm *c, void *arg) {
    const job *j = arg;
    arena *a = arena_new();
    ir_graph *g = load(a), *joint;
    pass_options o = j->o;
    o.ranks = comm_size(c);
    TRY(pass_pipeline(g, &o, NULL, NULL, &joint));
    exec_options eo = {.dev = j->dev, .comm = c, .threads = j->threads};
    plan_options po = {.workspace = exec_workspace, .ctx = &eo};
    plan *p;
    exec *e;
    TRY(plan_build(joint, &po, &p));
    TRY(exec_new(p, &eo, &e));
    uint64_t seed = j->seed;
    for (int i = 0; i < p->params.n; i++) {
        int64_t n = ir_numel(&p->params.data[i].type);
        for (int64_t k = 0; k < n; k++) {
            double v = 0.3 * rng_normal(&seed) + (strstr(p->params.data[i].name, "norm") ? 1 : 0);
            if (i == j->nudge_param && k == j->nudge_at) v += j->nudge;
            if (p->type == DT_F64)
                ((double *)exec_param(e, i))[k] = v;
            else
                ((float *)exec_param(e, i))[k] = (float)v;
        }
    }
    int64_t B = o.batch, S = o.seq, *ids = calloc((size_t)(j->accum * B * S), 8),
            *labels = calloc((size_t)(j->accum * B * S), 8);
    for (int64_t k = 0; k < j->accum * B * S; k++) {
        ids[k] = (int64_t)(rng_next(&seed) % 13);
        labels[k] = rng_next(&seed) % 4 == 0 ? -100 : (int64_t)(rng_next(&seed) % 13);
        if (j->no_last_labels && k % S >= S / 2) labels[k] = -100;
    }
    double count = 0, loss = 0;
    for (int m = 0; m < j->accum; m++) {
        double n;
        TRY(exec_set_input(e, "labels", labels + m * B * S, p->ignore));
        TRY(exec_count(e, &n));
        count += n;
    }
    exec_zero_grads(e);
    for (int m = 0; m < j->accum; m++) {
        double sum;
        TRY(exec_set_input(e, "input_ids", ids + m * B * S, 0));
        TRY(exec_set_input(e, "labels", labels + m * B * S, p->ignore));
        exec_set_rng(e, 99, m, false);
        TRY(exec_step(e, 1 / count, &sum));
        loss += sum;
    }
    TRY(exec_reduce_sum(e, &loss));
    TRY(exec_reduce_grads(e));
    if (comm_rank(c) == 0) {
        j->result->loss = loss / count;
        j->result->nparams = p->params.n;
        for (int i = 0; i < p->params.n; i++) {
            j->result->numel[i] = ir_numel(&p->params.data[i].type);
            assert_true(j->result->numel[i] <= MAX_NUMEL);
            for (int64_t k = 0; k < j->result->numel[i]; k++)
                j->result->grad[i][k] =
                    p->type == DT_F64 ? ((double *)exec_grad(e, i))[k] : (double)((float *)exec_grad(e, i))[k];
        }
    }
    free(ids);
    free(labels);
    exec_free(e);
    arena_free(a);
    return SP_OK;
}

static void run(job j, int ranks, run_result *r) {
    j.result = r;
    if (comm_loop_run(ranks, rank_body, &j) != SP_OK) fail_msg("%d ranks: %s", ranks, err_text());
}

/* The number contract: |a-b| <= tol * max(|b|, 1e-4 |g|) for every gradient. Returns the worst ratio. */
static double worst(const run_result *a, const run_result *b) {
    double all = 0, bad = fabs(a->loss - b->loss) / fabs(b->loss);
    for (int i = 0; i < b->nparams; i++)
        for (int64_t k = 0; k < b->numel[i]; k++) all += b->grad[i][k] * b->grad[i][k];
    for (int i = 0; i < b->nparams; i++) {
        double diff = 0, norm = 0;
        for (int64_t k = 0; k < b->numel[i]; k++) {
            diff += (a->grad[i][k] - b->grad[i][k]) * (a->grad[i][k] - b->grad[i][k]);
            norm += b->grad[i][k] * b->grad[i][k];
        }
        double rel = sqrt(diff) / fmax(sqrt(norm), 1e-4 * sqrt(all));
        if (!(rel <= bad)) bad = rel;
    }
    return bad;
}

static job base_job(void) {
    return (job){.o = {.batch = 2, .seq = 8, .compute = DT_F64},
                 .accum = 1,
                 .threads = 1,
                 .dev = &device_ref,
                 .nudge_param = -1,
                 .seed = 7};
}

static run_result one, many;

static void ranks_agree(void **state) {
    (void)state;
    static const int ranks[] = {2, 3, 4, 8}, lengths[] = {8, 9, 16, 13};
    for (int batch = 1; batch <= 3; batch += 2)
        for (int accum = 1; accum <= 3; accum += 2)
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                job j = base_job();
                j.o.batch = batch;
                j.o.seq = lengths[l];
                j.accum = accum;
                j.no_last_labels = l % 2;
                run(j, 1, &one);
                for (size_t p = 0; p < sizeof ranks / sizeof *ranks; p++) {
                    if (ranks[p] > lengths[l]) continue;
                    run(j, ranks[p], &many);
                    double w = worst(&many, &one);
                    if (!(w <= 1e-11))
                        fail_msg("B=%d A=%d S=%d P=%d: worst difference %g", batch, accum, lengths[l], ranks[p], w);
                }
            }
}

/* Central differences of the loss at a few elements of every parameter. */
static void gradients_are_derivatives(void **state) {
    (void)state;
    job j = base_job();
    run(j, 1, &one);
    const double h = 1e-5;
    for (int i = 0; i < one.nparams; i++)
        for (int64_t k = 0; k < one.numel[i]; k += one.numel[i] / 3 + 1) {
            j.nudge_param = i;
            j.nudge_at = k;
            j.nudge = h;
            run(j, 1, &many);
            double up = many.loss;
            j.nudge = -h;
            run(j, 1, &many);
            double slope = (up - many.loss) / (2 * h);
            if (fabs(slope - one.grad[i][k]) > 1e-7 * fmax(1, fabs(slope)))
                fail_msg("parameter %d element %lld: %.10g by differences, %.10g by backward", i, (long long)k, slope,
                         one.grad[i][k]);
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
    for (int seq = 13; seq <= 64; seq += 51) {
        job j = base_job();
        j.o.seq = seq > 40 ? 40 : seq; /* the position table has 40 rows */
        j.accum = 2;
        run(j, 1, &many);
        j.dev = &device_cpu;
        j.o.compute = DT_F32;
        j.threads = 2;
        run(j, 1, &one);
        double w = worst(&one, &many);
        if (!(w <= 1e-5)) fail_msg("S=%d: cpu against ref: %g", seq, w);
        for (int ranks = 2; ranks <= 4; ranks++) {
            run(j, ranks, &many);
            w = worst(&many, &one);
            if (!(w <= 1e-5)) fail_msg("S=%d P=%d: %g", seq, ranks, w);
        }
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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ranks_agree), cmocka_unit_test(gradients_are_derivatives),
                                       cmocka_unit_test(exchanges_agree), cmocka_unit_test(cpu_device_agrees),
                                       cmocka_unit_test(broken_rule_is_caught)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
