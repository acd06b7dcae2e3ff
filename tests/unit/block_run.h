/* block_run.h - for tests: tests/ir/block.ir through every pass and the runtime on P ranks, and the comparison of two
 * such runs. */
#ifndef AUTOSP_TEST_BLOCK_RUN_H
#define AUTOSP_TEST_BLOCK_RUN_H

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
    int64_t work, largest; /* bytes: of all activations; of the largest buffer among them */
    int loops;
    int stored; /* parameters whose gradient the first microbatch stores */
} run_result;

typedef struct job {
    pass_options o;
    const char *file; /* of tests/ir; NULL: block.ir */
    int accum, threads;
    const device *dev;
    int nudge_param; /* finite differences: this parameter's element is changed by `nudge`; -1 none */
    int64_t nudge_at;
    double nudge;
    uint64_t seed;
    bool sharded;        /* the file is cut already: it is only differentiated */
    pass_after *after;   /* sees the graphs of rank 0; NULL */
    run_result *result;  /* written by rank 0 */
    bool plain;          /* no fused kernels */
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

static ir_graph *load(arena *a, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/ir/%s", AUTOSP_SOURCE_DIR, name);
    char *text = read_file(path);
    ir_graph *g = NULL;
    if (ir_parse(a, text, name, &g) != SP_OK) fail_msg("%s", err_text());
    free(text);
    return g;
}

static sp_status rank_body(comm *c, void *arg) {
    const job *j = arg;
    arena *a = arena_new();
    ir_graph *g = load(a, j->file ? j->file : "block.ir"), *joint;
    pass_options o = j->o;
    o.ranks = comm_size(c);
    pass_after *after = comm_rank(c) == 0 ? j->after : NULL;
    if (j->sharded) {
        g->seq = g->seq_valid = o.seq;
        if (after) after(NULL, "shard", g);
        TRY(pass_diff(g, &joint));
        if (after) after(NULL, "diff", joint);
    } else {
        TRY(pass_pipeline(g, &o, after, NULL, &joint));
    }
    exec_options eo = {.dev = j->dev, .comm = c, .threads = j->threads};
    plan_options po = {.fuse = !j->plain, .workspace = exec_workspace, .ctx = &eo};
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
    for (int i = 0; i < p->params.n; i++) /* what an earlier step left may not matter */
        if (exec_grad(e, i)) memset(exec_grad(e, i), 0xff, (size_t)p->bufs.data[p->params.data[i].grad].bytes);
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
        j->result->stored = 0;
        for (int i = 0; i < p->params.n; i++) j->result->stored += p->params.data[i].stored;
        j->result->work = p->memory.section[SEC_WORK];
        j->result->largest = j->result->loops = 0;
        for (int i = 0; i < p->bufs.n; i++)
            if (p->bufs.data[i].section == SEC_WORK && p->bufs.data[i].first >= 0)
                j->result->largest = max64(j->result->largest, p->bufs.data[i].bytes);
        for (int i = 0; i < p->program[PROG_STEP].instrs.n; i++)
            j->result->loops += p->program[PROG_STEP].instrs.data[i].op == OP_loop;
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
static inline double worst(const run_result *a, const run_result *b) {
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

/* Central differences of the loss, H to each side, at up to FEW elements of every parameter. */
static inline void check_derivatives(job j, int ranks, double h, int few) {
    static run_result at, near;
    run(j, ranks, &at);
    j.after = NULL;
    for (int i = 0; i < at.nparams; i++)
        for (int64_t k = 0; k < at.numel[i]; k += at.numel[i] / few + 1) {
            j.nudge_param = i;
            j.nudge_at = k;
            j.nudge = h;
            run(j, ranks, &near);
            double up = near.loss;
            j.nudge = -h;
            run(j, ranks, &near);
            double slope = (up - near.loss) / (2 * h);
            if (!(fabs(slope - at.grad[i][k]) <= 1e-7 * fmax(1, fabs(slope))))
                fail_msg("parameter %d element %lld: %.10g by differences, %.10g by backward", i, (long long)k, slope,
                         at.grad[i][k]);
        }
}

#endif
