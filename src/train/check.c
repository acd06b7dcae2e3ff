/* check.c - see check.h. The gradients of P ranks are copied out, the same step runs on one rank, and the two are
 * compared in f64. */
#include "train/check.h"

#include <math.h>
#include <stdlib.h>

/* One step's outcome on rank 0: the gradients of all trained parameters, one behind the other, in f64. */
typedef struct outcome {
    double loss;
    double *grads;
} outcome;

typedef struct check_job {
    const train_model *model;
    const train_compiled *compiled;
    int threads;
    train_batch batch;
    outcome *out;
} check_job;

static int64_t trained_elements(const plan *p) {
    int64_t n = 0;
    for (int i = 0; i < p->params.n; i++)
        if (p->params.data[i].grad >= 0) n += ir_numel(&p->params.data[i].type);
    return n;
}

static sp_status copy_out(exec *e, outcome *out) {
    const plan *p = exec_plan(e);
    out->grads = malloc(sizeof *out->grads * (size_t)max64(1, trained_elements(p)));
    CHECK(out->grads, "out of memory for a copy of the gradients");
    double *to = out->grads;
    for (int i = 0; i < p->params.n; i++) {
        if (p->params.data[i].grad < 0) continue;
        int64_t n = ir_numel(&p->params.data[i].type);
        st_convert(to, DT_F64, exec_grad(e, i), p->type, n);
        to += n;
    }
    return SP_OK;
}

static sp_status step(exec *e, comm *c, const check_job *j) {
    double count = 0, sum = 0;
    TRY(train_set_batch(e, &j->batch));
    TRY(exec_count(e, &count));
    CHECK(count > 0, "no valid label was drawn; give a longer --seq");
    exec_zero_grads(e);
    exec_set_rng(e, 0, 0, false); /* dropout's masks do not depend on ranks */
    TRY(exec_step(e, 1 / count, &sum));
    TRY(exec_reduce_sum(e, &sum));
    TRY(exec_reduce_grads(e));
    if (comm_rank(c) != 0) return SP_OK;
    j->out->loss = sum / count;
    return copy_out(e, j->out);
}

static sp_status rank_body(comm *c, void *arg) {
    const check_job *j = arg;
    exec *e;
    TRY(train_load(j->model, j->compiled, c, j->threads, &e));
    sp_status s = step(e, c, j);
    exec_free(e);
    return s;
}

/* ---- the data ---------------------------------------------------------------------------------- */

/* Random tokens and labels; labels are ignored singly, and in the last row from three quarters on, so that some shard
 * has none. Documents end at random places. */
static void draw(const train_model *m, const pass_options *o, uint64_t seed, const train_batch *b) {
    uint64_t rng = seed ^ 0x5eed, vocab = (uint64_t)(m->vocab > 0 ? m->vocab : 2);
    for (int64_t i = 0; i < o->batch; i++) {
        int64_t document = 0;
        b->prefix_lengths[i] = (int64_t)(rng_next(&rng) % (uint64_t)o->seq);
        for (int64_t t = 0; t < o->seq; t++) {
            int64_t at = i * o->seq + t;
            b->input_ids[at] = (int64_t)(rng_next(&rng) % vocab);
            bool tail = i == o->batch - 1 && o->seq >= 8 && t >= o->seq - o->seq / 4;
            bool ignored = rng_next(&rng) % 8 == 0 || tail;
            int64_t label = m->labels_shifted ? (int64_t)(rng_next(&rng) % vocab) : b->input_ids[at];
            b->labels[at] = ignored ? m->ignore : label;
            b->position_ids[at] = t;
            b->document_ids[at] = document;
            document += rng_next(&rng) % 16 == 0;
        }
    }
    if (o->seq < 4) b->labels[o->seq - 1] = b->input_ids[o->seq - 1]; /* at least one that counts */
}

/* ---- comparing --------------------------------------------------------------------------------- */

static int worst_first(const void *x, const void *y) {
    const check_row *a = x, *b = y;
    return a->relative != b->relative ? (a->relative > b->relative ? -1 : 1) : strcmp(a->name, b->name);
}

static sp_status compare(const plan *p, const outcome *many, const outcome *one, check_result *r) {
    int64_t total = trained_elements(p);
    double all = 0;
    for (int64_t i = 0; i < total; i++) all += one->grads[i] * one->grads[i];
    r->rows = calloc((size_t)p->params.n + 1, sizeof *r->rows);
    CHECK(r->rows, "out of memory");
    const double *a = many->grads, *b = one->grads;
    for (int i = 0; i < p->params.n; i++) {
        const plan_param *q = &p->params.data[i];
        if (q->grad < 0) continue;
        double off = 0, norm = 0;
        int64_t n = ir_numel(&q->type);
        for (int64_t k = 0; k < n; k++) {
            off += (a[k] - b[k]) * (a[k] - b[k]);
            norm += b[k] * b[k];
        }
        double scale = fmax(sqrt(norm), 1e-4 * sqrt(all)), relative = off == 0 ? 0 : sqrt(off) / scale;
        r->rows[r->n++] = (check_row){q->name, sqrt(norm), isnan(relative) ? INFINITY : relative};
        a += n;
        b += n;
    }
    qsort(r->rows, (size_t)r->n, sizeof *r->rows, worst_first);
    r->loss = many->loss;
    r->loss_one = one->loss;
    r->loss_rel = many->loss == one->loss ? 0 : fabs(many->loss - one->loss) / fabs(one->loss);
    if (isnan(r->loss_rel)) r->loss_rel = INFINITY;
    return SP_OK;
}

/* The names in the rows are the model's, not those of a plan that goes away. */
static void keep_names(const train_model *m, check_result *r) {
    for (int i = 0; i < r->n; i++)
        for (int k = 0; k < m->ntensors; k++)
            if (strcmp(m->tensors[k].name, r->rows[i].name) == 0) r->rows[i].name = m->tensors[k].name;
}

static sp_status run_both(check_job *j, const train_setup *s, const train_world *w, outcome *many, outcome *one,
                          check_result *out) {
    j->out = many;
    TRY(train_world_run(w, rank_body, j));
    if (w->rank != 0) return SP_OK;
    train_setup alone = *s;
    alone.ranks = 1;
    alone.agree = NULL;
    alone.memory = 0; /* the budget is a rank's of P, not of one that holds everything */
    train_compiled single;
    TRY_NOTE(train_compile(j->model, &alone, &single), "compiling for one rank");
    j->compiled = &single;
    j->out = one;
    comm *self = comm_self();
    sp_status st = rank_body(self, j);
    comm_free(self);
    if (st == SP_OK) st = compare(single.plan, many, one, out);
    if (st == SP_OK) keep_names(j->model, out);
    train_compiled_free(&single);
    return st;
}

sp_status check_run(const train_model *m, const train_setup *s, const train_world *w, uint64_t seed,
                    check_result *out) {
    *out = (check_result){0};
    train_compiled compiled;
    TRY(train_compile(m, s, &compiled));
    const pass_options *o = &compiled.options;
    size_t n = (size_t)(o->batch * o->seq);
    int64_t *room = calloc(5 * n, sizeof *room);
    outcome many = {0}, one = {0};
    sp_status st = SP_FAIL;
    if (!room) {
        err_set("out of memory for a batch of %lld x %lld tokens", (long long)o->batch, (long long)o->seq);
    } else {
        check_job j = {.model = m, .compiled = &compiled, .threads = s->threads};
        j.batch = (train_batch){room, room + n, room + 2 * n, room + 3 * n, room + 4 * n};
        draw(m, o, seed, &j.batch);
        st = run_both(&j, s, w, &many, &one, out);
    }
    free(many.grads);
    free(one.grads);
    free(room);
    train_compiled_free(&compiled);
    if (st != SP_OK) {
        free(out->rows);
        *out = (check_result){0};
    }
    return st;
}
