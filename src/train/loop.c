/* loop.c - one rank's steps (step.c), and what is told and kept of them. After the first step nothing here allocates
 * but a checkpoint.
 */
#include "train/loop.h"

#include "train/measure.h"
#include "train/progress.h"
#include "train/step.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t stop_asked;

static void on_sigterm(int sig) {
    (void)sig;
    stop_asked = 1;
}

void train_stop_on_sigterm(void) {
    struct sigaction a = {.sa_handler = on_sigterm, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    sigaction(SIGTERM, &a, NULL);
}

/* One rank's state. */
typedef struct runner {
    const train_job *job;
    comm *c;
    exec *e;
    train_batch batch; /* (B, S) each, the rank's own */
    train_progress progress;
    int64_t saved;      /* step of the last checkpoint, -1 none */
    int64_t touched[2]; /* bytes of the arena and of the host arena, when last measured */
} runner;

static bool leads(const runner *r) { return comm_rank(r->c) == 0; }

/* ---- checkpoints ------------------------------------------------------------------------------- */

static int param_of(const plan *p, const char *name) {
    for (int i = 0; i < p->params.n; i++)
        if (strcmp(p->params.data[i].name, name) == 0) return i;
    return -1;
}

static int64_t tensor_elements(const ckpt_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->size[i];
    return n;
}

static void *window(exec *e, int param, ckpt_kind kind) {
    return kind == CKPT_MASTER ? exec_param(e, param) : exec_moment(e, param, kind == CKPT_EXP_AVG_SQ);
}

/* ckpt_state.get: parameters and moments are whole on every rank, so rank 0 gives its own; frozen tensors come from
 * where they were loaded. */
static sp_status get_tensor(void *ctx, int which, ckpt_kind kind, void *dst) {
    const runner *r = ctx;
    const ckpt_tensor *t = &r->job->model->tensors[which];
    const plan *p = exec_plan(r->e);
    if (!dst) return SP_OK;
    if (t->frozen) return train_model_read(r->job->model, t->name, p->type, tensor_elements(t), dst);
    int param = param_of(p, t->name);
    ASSERT(param >= 0);
    memcpy(dst, window(r->e, param, kind), (size_t)(tensor_elements(t) * dtype_size(p->type)));
    return SP_OK;
}

static sp_status put_tensor(void *ctx, int which, ckpt_kind kind, const void *src) {
    const runner *r = ctx;
    const ckpt_tensor *t = &r->job->model->tensors[which];
    const plan *p = exec_plan(r->e);
    int param = param_of(p, t->name);
    ASSERT(param >= 0);
    memcpy(window(r->e, param, kind), src, (size_t)(tensor_elements(t) * dtype_size(p->type)));
    return SP_OK;
}

static ckpt_state tensors_of(runner *r) {
    const train_model *m = r->job->model;
    return (ckpt_state){m->ntensors, m->tensors, exec_plan(r->e)->type, get_tensor, put_tensor, r};
}

static sp_status save(runner *r, int64_t step) {
    ckpt_state s = tensors_of(r);
    ckpt_run run = r->job->run;
    run.step = step;
    TRY(ckpt_save(&r->job->place, &s, &run, r->job->plan_text, r->c));
    r->saved = step;
    if (!leads(r)) return SP_OK;
    train_progress_break(&r->progress);
    log_line("saved %s/checkpoint-%lld", r->job->place.out, (long long)step);
    return SP_OK;
}

/* ---- the first step's gradients ------------------------------------------------------------------ */

static sp_status write_grads(runner *r, const char *path) {
    const plan *p = exec_plan(r->e);
    st_writer *w = st_writer_new();
    int *param = malloc(sizeof *param * (size_t)(p->params.n + 1)); /* by the writer's handle */
    ASSERT(param);
    for (int i = 0; i < p->params.n; i++) {
        const plan_param *q = &p->params.data[i];
        if (q->grad >= 0) param[st_writer_add(w, q->name, p->type, q->type.rank, q->type.dim)] = i;
    }
    sp_status s = st_writer_begin(w, path);
    for (int k = 0; k < st_writer_count(w) && s == SP_OK; k++) {
        int id = st_writer_order(w, k), i = param[id];
        s = st_writer_write(w, id, exec_grad(r->e, i), ir_numel(&p->params.data[i].type) * dtype_size(p->type));
    }
    free(param);
    if (s == SP_OK) return st_writer_end(w);
    st_writer_abandon(w);
    return s;
}

/* ---- a step ------------------------------------------------------------------------------------ */

/* step_source.set: microbatches of a training step, of the evaluation file. */
typedef struct feed {
    runner *r;
    int64_t step;
} feed;

static sp_status set_training(void *ctx, exec *e, int64_t micro) {
    const feed *f = ctx;
    TRY(train_data_fill(f->r->job->data, f->step, micro, &f->r->batch));
    return train_set_batch(e, &f->r->batch);
}

static sp_status set_evaluation(void *ctx, exec *e, int64_t micro) {
    const feed *f = ctx;
    TRY(train_data_fill_eval(f->r->job->eval, micro, &f->r->batch));
    return train_set_batch(e, &f->r->batch);
}

static sp_status check_finite(const runner *r, int64_t step, double loss, double norm) {
    if (isfinite(loss) && isfinite(norm)) return SP_OK;
    char saved[64] = "";
    if (r->saved >= 0) snprintf(saved, sizeof saved, "; checkpoint-%lld is whole", (long long)r->saved);
    FAIL("step %lld: the loss is %g and the gradients' norm %g; try a lower --lr, more --warmup or --clip, and look at "
         "the data%s",
         (long long)step + 1, loss, norm, saved);
}

/* What all ranks must know at the end of a step: the largest measured peak, and whether one was asked to stop. Asking
 * the kernel about every page takes some milliseconds a gigabyte, so it is done in the first steps, in every 16th and
 * in the last: touched pages stay touched, the figures between are those of the last time. */
static sp_status agree(runner *r, int64_t step, int64_t *peak, int64_t *host, bool *stop) {
    int64_t own[3] = {r->touched[0], stop_asked, r->touched[1]}, all[3];
    bool ask = step - r->job->first < 3 || step % 16 == 0 || step + 1 == r->job->schedule.steps || stop_asked;
    if (r->job->measure && ask) {
        int64_t bytes;
        void *base = exec_arena(r->e, &bytes);
        TRY(measure_touched(base, min64(bytes, exec_plan(r->e)->memory.arena), &own[0]));
        base = exec_host(r->e, &bytes);
        TRY(measure_touched(base, min64(bytes, exec_plan(r->e)->memory.section[SEC_HOST]), &own[2]));
        r->touched[0] = own[0], r->touched[1] = own[2];
    }
    TRY(comm_all_reduce(r->c, own, all, 3, DT_I64, COMM_MAX));
    *peak = all[0];
    *host = all[2];
    *stop = all[1] != 0;
    return SP_OK;
}

static sp_status one_step(runner *r, int64_t step, bool *stop) {
    const train_job *j = r->job;
    const pass_options *o = &j->compiled->options;
    double start = now_s(), loss, count;
    feed f = {r, step};
    step_source training = {set_training, &f, j->accum};
    TRY(step_gradients(r->e, &training, j->run.seed, step, &loss, &count));
    double norm = exec_grad_norm(r->e);
    if (j->grads && step == j->first && leads(r)) TRY(write_grads(r, j->grads));
    TRY(check_finite(r, step, loss, norm));
    double lr = train_lr(&j->schedule, step);
    step_update(r->e, &j->adamw, lr, norm, step);
    train_step_record rec = {.step = step + 1,
                             .loss = loss,
                             .tokens = o->batch * o->seq * j->accum,
                             .lr = lr,
                             .grad_norm = norm,
                             .planned_peak_bytes = exec_plan(r->e)->memory.arena,
                             .planned_host_bytes = exec_plan(r->e)->memory.section[SEC_HOST]};
    TRY(agree(r, step, &rec.measured_peak_bytes, &rec.measured_host_bytes, stop));
    rec.step_s = now_s() - start;
    rec.tokens_per_s = (double)rec.tokens / rec.step_s;
    bool last = rec.step == j->schedule.steps;
    rec.has_eval = j->eval && (last || (j->eval_every && rec.step % j->eval_every == 0));
    if (rec.has_eval) {
        step_source evaluation = {set_evaluation, &f, train_data_eval_batches(j->eval)};
        TRY(step_eval(r->e, &evaluation, &rec.eval_loss));
    }
    if (leads(r)) {
        if (j->metrics) TRY(train_metrics_write(j->metrics, &rec));
        train_progress_step(&r->progress, &rec);
    }
    bool due = last || *stop || (j->save_every && rec.step % j->save_every == 0);
    return j->place.out && due ? save(r, rec.step) : SP_OK;
}

/* ---- a rank ------------------------------------------------------------------------------------ */

/* Ranks that read different checkpoints would train different models. */
static sp_status same_start(const runner *r) {
    int64_t own[2] = {r->job->first, -r->job->first}, top[2];
    TRY(comm_all_reduce(r->c, own, top, 2, DT_I64, COMM_MAX));
    CHECK(top[0] == -top[1],
          "ranks would resume from different steps (%lld here, %lld elsewhere); is --out on a file system that all "
          "machines share?",
          (long long)r->job->first, (long long)(top[0] == r->job->first ? -top[1] : top[0]));
    return SP_OK;
}

static sp_status steps_of(runner *r) {
    const train_job *j = r->job;
    TRY(same_start(r));
    if (j->resume) {
        ckpt_state s = tensors_of(r);
        TRY(ckpt_load(j->resume, &s));
    }
    bool stop = false;
    for (int64_t step = j->first; step < j->schedule.steps && !stop; step++) {
        if (j->profile) exec_set_profile(r->e, step + 1 == j->schedule.steps);
        TRY(one_step(r, step, &stop));
        if (stop && leads(r)) {
            train_progress_break(&r->progress);
            log_line("stopped by SIGTERM after step %lld%s", (long long)step + 1,
                     j->place.out ? "; go on with --resume" : "");
        }
    }
    if (j->profile && leads(r) && j->first < j->schedule.steps) {
        buf table = {0};
        train_progress_break(&r->progress);
        exec_profile_table(r->e, &table);
        fputs(table.data, stdout);
        buf_free(&table);
        TRY(exec_profile_write(r->e, j->profile));
    }
    return SP_OK;
}

sp_status train_rank(comm *c, void *arg) {
    const train_job *j = arg;
    runner r = {.job = j, .c = c, .saved = j->resume ? j->first : -1};
    if (j->first >= j->schedule.steps) return SP_OK; /* nothing to do: the arena is not even mapped */
    TRY(train_load(j->model, j->compiled, c, j->threads, &r.e));
    const pass_options *o = &j->compiled->options;
    size_t n = (size_t)(o->batch * o->seq);
    int64_t *room = calloc(5 * n, sizeof *room);
    sp_status s =
        room ? SP_OK
             : err_set("out of memory for a batch of %lld x %lld tokens", (long long)o->batch, (long long)o->seq);
    if (s == SP_OK) {
        r.batch = (train_batch){room, room + n, room + 2 * n, room + 3 * n, room + 4 * n};
        r.progress = train_progress_start(STDERR_FILENO, j->first, j->schedule.steps);
        s = steps_of(&r);
        if (leads(&r)) train_progress_break(&r.progress);
    }
    free(room);
    exec_free(r.e);
    return s;
}
