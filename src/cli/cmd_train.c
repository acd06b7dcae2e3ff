/* cmd_train.c - `autosp train`: opens everything that a training needs, in the order in which mistakes are cheapest to
 * find, then runs the loop (train/loop.c) on every rank. */
#include "cli/commands.h"
#include "train/loop.h"
#include "train/measure.h"

#include <errno.h>
#include <stdlib.h>

/* What is open during a training; closed in one place. */
typedef struct training {
    train_model *model;
    train_compiled compiled;
    train_data *data, *eval;
    train_metrics *metrics;
    char *resume;
    buf plan_text;
} training;

static void close_training(training *t) {
    train_metrics_close(t->metrics);
    train_data_close(t->eval);
    train_data_close(t->data);
    train_compiled_free(&t->compiled);
    train_model_close(t->model);
    buf_free(&t->plan_text);
    free(t->resume);
}

static sp_status open_data(const cli_options *o, training *t) {
    const train_model *m = t->model;
    train_data_options d = {.seq = t->compiled.options.seq,
                            .batch = t->compiled.options.batch,
                            .accum = o->accum,
                            .vocab = m->vocab,
                            .eos = o->eos,
                            .ignore_index = m->ignore,
                            .seed = (uint64_t)o->seed,
                            .shuffle = o->shuffle,
                            .labels_shifted = m->labels_shifted,
                            .tokens_u32 = strcmp(o->data_dtype, "u32") == 0};
    TRY(train_data_open(o->data, &d, &t->data));
    if (o->eval) TRY_NOTE(train_data_open(o->eval, &d, &t->eval), "--eval");
    CHECK(m->takes_documents || !train_data_has_documents(t->data),
          "%s, but the model takes no document_ids: documents would see each other. Export it with document_ids, or "
          "leave "
          "them out",
          o->eos >= 0 ? "--eos is given" : "the data file has document_ids");
    CHECK(m->takes_prefixes == train_data_has_prefixes(t->data),
          m->takes_prefixes ? "the model takes prefix_lengths; the data must be a .safetensors file that holds them"
                            : "the data file has prefix_lengths, but the model takes none; export it with "
                              "prefix_lengths, or leave them out");
    CHECK(m->takes_positions || !train_data_has_positions(t->data),
          "the data file has position_ids, but the model takes none; export it with position_ids, or leave them out");
    return SP_OK;
}

/* Data differ after a resume when what they depend on does; that may be meant, so it is only told. */
static void compare_runs(const ckpt_run *was, const ckpt_run *is) {
    if (was->seq != is->seq || was->batch != is->batch || was->accum != is->accum)
        log_warn("the checkpoint was trained with --seq %lld --batch %lld --accum %lld: from here on other tokens are "
                 "read than an unbroken run would have read",
                 (long long)was->seq, (long long)was->batch, (long long)was->accum);
    else if (was->shuffle != is->shuffle || (is->shuffle && was->seed != is->seed))
        log_warn(
            "the checkpoint was trained with %s --seed %lld: from here on other tokens are read than an unbroken run "
            "would have read",
            was->shuffle ? "--shuffle" : "no --shuffle,", (long long)was->seed);
}

static sp_status open_checkpoints(const cli_options *o, const train_world *w, train_job *j, training *t) {
    j->run = (ckpt_run){.seq = j->compiled->options.seq,
                        .batch = j->compiled->options.batch,
                        .accum = o->accum,
                        .seed = o->seed,
                        .shuffle = o->shuffle};
    if (!o->out) return SP_OK;
    j->place = (ckpt_place){
        .out = o->out, .keep = o->keep, .copy_from = o->weights, .nfiles = t->model->nfiles, .files = t->model->files};
    if (w->rank == 0) TRY(ckpt_prepare(&j->place, o->resume));
    if (!o->resume) return SP_OK;
    ckpt_run was;
    TRY(ckpt_newest(o->out, &t->resume, &was));
    j->resume = t->resume;
    if (!t->resume) {
        if (w->rank == 0) log_line("no checkpoint in %s: starting anew", o->out);
        return SP_OK;
    }
    j->first = was.step;
    if (w->rank != 0) return SP_OK;
    compare_runs(&was, &j->run);
    log_line("going on from %s%s", t->resume, was.step >= o->steps ? ": all steps are done" : "");
    return SP_OK;
}

static void tell_start(const train_job *j, const train_world *w, const char *where) {
    const plan *p = j->compiled->plan;
    char bytes[24];
    int64_t n = 0;
    for (int i = 0; i < p->params.n; i++)
        if (p->params.data[i].trained) n += ir_numel(&p->params.data[i].type);
    log_line(
        "%s: %lld parameters; %lld x %lld tokens a microbatch, %lld a step; %d rank%s x %d thread%s on %s; %s a rank",
        j->model->path, (long long)n, (long long)p->batch, (long long)p->seq_valid, (long long)j->accum, w->size,
        w->size == 1 ? "" : "s", w->threads, w->threads == 1 ? "" : "s", where, human_bytes(p->memory.arena, bytes));
}

/* A budget that the machine does not have is a mistake in the number; a plan that it does not have ends in swapping or
 * by the kernel's hand, hours later. */
static sp_status check_memory(int64_t budget, const plan *p, int ranks) {
    char want[24], have[24], each[24];
    int64_t machine = measure_machine_memory();
    CHECK(budget <= machine, "--memory %s is more than the %s of this machine; --memory is what one rank may use",
          human_bytes(budget, want), human_bytes(machine, have));
    CHECK(!p || p->memory.arena <= machine / ranks,
          "%d rank%s of %s each need more than the %s of this machine: lower --memory, --seq or --batch", ranks,
          ranks == 1 ? "" : "s", human_bytes(p->memory.arena, each), human_bytes(machine, have));
    return SP_OK;
}

/* What is written after steps, perhaps days of them, is opened before. */
static sp_status check_writable(const char *option, const char *path) {
    if (!path) return SP_OK;
    FILE *f = fopen(path, "a");
    CHECK(f && fclose(f) == 0, "%s: cannot write %s: %s", option, path, strerror(errno));
    return SP_OK;
}

static sp_status run(const cli_options *o, const train_world *w, training *t) {
    TRY(check_memory(o->memory, NULL, 1));
    TRY(train_model_open(o->model, o->weights, false, (uint64_t)o->seed, &t->model));
    train_setup setup = cli_setup(o, w->size, w->threads);
    setup.agree = w->mpi;
    TRY(train_compile(t->model, &setup, &t->compiled));
    TRY(check_memory(o->memory, t->compiled.plan, w->mpi ? 1 : w->size));
    TRY(open_data(o, t));
    train_job j = {.model = t->model,
                   .compiled = &t->compiled,
                   .threads = w->threads,
                   .data = t->data,
                   .eval = t->eval,
                   .accum = o->accum,
                   .eval_every = o->eval_every,
                   .schedule = o->schedule,
                   .adamw = o->adamw,
                   .save_every = o->save_every,
                   .grads = o->grads,
                   .profile = o->profile,
                   .measure = o->metrics != NULL};
    TRY(open_checkpoints(o, w, &j, t));
    if (o->metrics && w->rank == 0) TRY(train_metrics_open(o->metrics, o->resume ? j.first : -1, &t->metrics));
    j.metrics = t->metrics;
    if (w->rank == 0) TRY(check_writable("--grads", o->grads));
    if (w->rank == 0) TRY(check_writable("--profile", o->profile));
    plan_print(t->compiled.plan, &t->plan_text);
    j.plan_text = t->plan_text.data;
    if (o->out) train_stop_on_sigterm();
    if (w->rank == 0) tell_start(&j, w, o->device);
    return train_world_run(w, train_rank, &j);
}

sp_status cmd_train(const cli_options *o) {
    TRY(cli_supported(o));
    train_world w;
    TRY(train_world_open(cli_ranks(o), o->threads, &w));
    training t = {0};
    sp_status s = run(o, &w, &t);
    close_training(&t);
    return train_world_close(&w, s);
}
