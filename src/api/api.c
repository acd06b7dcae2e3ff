/* api.c - the public C API (include/autosp.h) over train/: handles, their checks, and nothing that decides.
 *
 * A handle is a struct of this file around the library's own objects. Bad arguments are a caller's mistakes and are
 * told, not asserted.
 */
#include "autosp.h"

#include "train/compile.h"
#include "train/measure.h"
#include "train/step.h"
#include "train/world.h"

#include <math.h>
#include <stdlib.h>

struct autosp_world {
    train_world w;
};

struct autosp_model {
    train_model *m;
};

struct autosp_plan {
    train_compiled c;
    bool optimizer;
};

struct autosp_rank {
    exec *e;
    comm *c;
    const train_model *model;
    const autosp_plan *plan;
    int64_t *positions, *documents; /* (B, S): what a batch without them gets */
};

/* A handle's storage. No memory is an error, not an abort. */
static sp_status new_handle(size_t bytes, void *out) {
    void *h = calloc(1, bytes);
    CHECK(h, "out of memory for a handle");
    memcpy(out, &h, sizeof h);
    return SP_OK;
}

const char *autosp_version(void) { return AUTOSP_VERSION; }
const char *autosp_error(void) { return err_text(); }

/* ---- world ------------------------------------------------------------------------------------- */

int autosp_world_open(int ranks, int threads, autosp_world **out) {
    *out = NULL;
    CHECK(ranks >= 0 && threads >= 0, "autosp_world_open: %d ranks with %d threads each; 0 or more", ranks, threads);
    autosp_world *w;
    TRY(new_handle(sizeof *w, &w));
    if (train_world_open(ranks, threads, &w->w) != SP_OK) {
        free(w);
        return SP_FAIL;
    }
    *out = w;
    return SP_OK;
}

int autosp_world_size(const autosp_world *w) { return w->w.size; }
int autosp_world_rank(const autosp_world *w) { return w->w.rank; }

int autosp_world_close(autosp_world *w, int status) {
    if (!w) return status;
    sp_status s = train_world_close(&w->w, status ? SP_FAIL : SP_OK);
    free(w);
    return s;
}

/* ---- model ------------------------------------------------------------------------------------- */

int autosp_model_open(const char *path, const char *weights, autosp_model **out) {
    *out = NULL;
    CHECK(path, "autosp_model_open: no path");
    autosp_model *m;
    TRY(new_handle(sizeof *m, &m));
    if (train_model_open(path, weights, false, 0, &m->m) != SP_OK) {
        free(m);
        return SP_FAIL;
    }
    *out = m;
    return SP_OK;
}

void autosp_model_close(autosp_model *m) {
    if (!m) return;
    train_model_close(m->m);
    free(m);
}

/* ---- plan -------------------------------------------------------------------------------------- */

static sp_status setup_of(const autosp_options *o, const train_world *w, train_setup *out) {
    *out = (train_setup){.seq = o->seq,
                         .batch = o->batch,
                         .ranks = w->size,
                         .compute = DT_F32,
                         .device = o->device ? o->device : "cpu",
                         .threads = w->threads,
                         .fuse_policy = "auto",
                         .run = true,
                         .machine = o->machine,
                         .memory = o->memory,
                         .host_memory = o->host_memory,
                         .optimizer = !o->inference};
    CHECK(o->seq >= 0 && o->batch >= 0 && o->memory >= 0 && o->host_memory >= 0,
          "autosp_compile: negative seq, batch, memory or host_memory");
    bool known = !o->dtype || (dtype_parse(o->dtype, &out->compute) &&
                               (out->compute == DT_F32 || out->compute == DT_F64 || out->compute == DT_BF16));
    CHECK(known, "autosp_compile: dtype '%s'; it is f32, bf16 or f64", o->dtype);
    return SP_OK;
}

int autosp_compile(const autosp_model *m, const autosp_world *w, const autosp_options *options, autosp_plan **out) {
    *out = NULL;
    train_setup setup;
    TRY(setup_of(options, &w->w, &setup));
    autosp_plan *p;
    TRY(new_handle(sizeof *p, &p));
    p->optimizer = setup.optimizer;
    if (train_compile(m->m, &setup, &p->c) != SP_OK) {
        free(p);
        return SP_FAIL;
    }
    *out = p;
    return SP_OK;
}

void autosp_plan_free(autosp_plan *p) {
    if (!p) return;
    train_compiled_free(&p->c);
    free(p);
}

autosp_info autosp_plan_info(const autosp_plan *p) {
    const plan *q = p->c.plan;
    const plan_memory *m = &q->memory;
    const cost_step *c = &p->c.cost;
    double seconds = c->forward + c->backward + c->again;
    return (autosp_info){.ranks = p->c.options.ranks,
                         .seq = q->seq_valid,
                         .batch = q->batch,
                         .peak_bytes = m->arena,
                         .parameter_bytes = m->section[SEC_PARAM],
                         .gradient_bytes = m->section[SEC_GRAD],
                         .optimizer_bytes = m->section[SEC_MOMENT],
                         .activation_bytes = m->section[SEC_WORK],
                         .host_bytes = m->section[SEC_HOST],
                         .live_lower_bound_bytes = m->live_bound,
                         .step_seconds = seconds,
                         .recompute_fraction = seconds > 0 ? c->again / seconds : 0};
}

/* ---- ranks ------------------------------------------------------------------------------------- */

typedef struct launch {
    const autosp_world *w;
    const autosp_model *m;
    const autosp_plan *p;
    int (*body)(autosp_rank *r, void *arg);
    void *arg;
} launch;

static sp_status default_inputs(autosp_rank *r) {
    const plan *p = r->plan->c.plan;
    int64_t n = p->batch * p->seq_valid;
    r->positions = calloc((size_t)(2 * n), sizeof *r->positions);
    CHECK(r->positions, "out of memory for a batch of %lld x %lld tokens", (long long)p->batch,
          (long long)p->seq_valid);
    r->documents = r->positions + n;
    for (int64_t i = 0; i < n; i++) r->positions[i] = i % p->seq_valid;
    return SP_OK;
}

/* The body of one rank, for train_world_run. */
static sp_status run_rank(comm *c, void *arg) {
    const launch *l = arg;
    autosp_rank r = {.c = c, .model = l->m->m, .plan = l->p};
    TRY(train_load(l->m->m, &l->p->c, c, l->w->w.threads, &r.e));
    sp_status s = default_inputs(&r);
    if (s == SP_OK && l->body(&r, l->arg) != 0) {
        s = SP_FAIL;
        if (!*err_text()) err_set("the body of rank %d returned an error", comm_rank(c));
    }
    free(r.positions);
    exec_free(r.e);
    return s;
}

int autosp_run(autosp_world *w, const autosp_model *m, const autosp_plan *p, int (*body)(autosp_rank *r, void *arg),
               void *arg) {
    CHECK(p->c.options.ranks == w->w.size, "the plan is for %d ranks, the world has %d", p->c.options.ranks, w->w.size);
    launch l = {w, m, p, body, arg};
    return train_world_run(&w->w, run_rank, &l);
}

int autosp_rank_index(const autosp_rank *r) { return comm_rank(r->c); }

/* ---- steps ------------------------------------------------------------------------------------- */

typedef struct batches {
    const autosp_rank *r;
    const autosp_batch *b;
} batches;

/* step_source.set. Ids outside the vocabulary would read outside the embedding. */
static sp_status set_batch(void *ctx, exec *e, int64_t micro) {
    const batches *all = ctx;
    const autosp_batch *b = &all->b[micro];
    const plan *p = exec_plan(e);
    const train_model *m = all->r->model;
    CHECK(b->input_ids && b->labels, "microbatch %lld has no %s", (long long)micro,
          b->input_ids ? "labels" : "input_ids");
    for (int64_t i = 0; i < p->batch * p->seq_valid; i++) {
        CHECK(b->input_ids[i] >= 0 && (!m->vocab || b->input_ids[i] < m->vocab),
              "microbatch %lld: input id %lld at place %lld; the vocabulary has %lld", (long long)micro,
              (long long)b->input_ids[i], (long long)i, (long long)m->vocab);
        CHECK(b->labels[i] == m->ignore || (b->labels[i] >= 0 && (!m->vocab || b->labels[i] < m->vocab)),
              "microbatch %lld: label %lld at place %lld; labels are below %lld, or %lld to be ignored",
              (long long)micro, (long long)b->labels[i], (long long)i, (long long)m->vocab, (long long)m->ignore);
    }
    train_batch t = {(int64_t *)b->input_ids, (int64_t *)b->labels,
                     b->position_ids ? (int64_t *)b->position_ids : all->r->positions,
                     b->document_ids ? (int64_t *)b->document_ids : all->r->documents,
                     b->prefix_lengths ? (int64_t *)b->prefix_lengths : all->r->documents}; /* zeros */
    return train_set_batch(e, &t);
}

static sp_status source_of(const autosp_rank *r, const autosp_batch *b, int n, batches *ctx, step_source *out) {
    CHECK(b && n >= 1, "a step needs at least one microbatch");
    *ctx = (batches){r, b};
    *out = (step_source){set_batch, ctx, n};
    return SP_OK;
}

int autosp_step(autosp_rank *r, int64_t step, const autosp_batch *microbatches, int n, const autosp_adamw *adamw,
                autosp_result *result) {
    batches ctx;
    step_source from;
    double loss, labels;
    CHECK(!adamw || r->plan->optimizer, "the plan was compiled for inference: it has no optimizer state");
    CHECK(step >= 0, "step %lld: steps count from 0", (long long)step);
    TRY(source_of(r, microbatches, n, &ctx, &from));
    TRY(step_gradients(r->e, &from, 0, step, &loss, &labels));
    double norm = exec_grad_norm(r->e);
    CHECK(isfinite(loss) && isfinite(norm),
          "step %lld: the loss is %g and the gradients' norm %g; weights are untouched", (long long)step, loss, norm);
    if (adamw) {
        train_adamw how = {.beta1 = adamw->beta1,
                           .beta2 = adamw->beta2,
                           .eps = adamw->eps,
                           .weight_decay = adamw->weight_decay,
                           .clip = adamw->clip};
        step_update(r->e, &how, adamw->lr, norm, step);
    }
    if (!result) return SP_OK;
    *result = (autosp_result){.loss = loss, .labels = labels, .grad_norm = norm};
    int64_t bytes;
    const void *base = exec_arena(r->e, &bytes);
    return measure_touched(base, min64(bytes, exec_plan(r->e)->memory.arena), &result->touched_bytes);
}

int autosp_eval(autosp_rank *r, const autosp_batch *microbatches, int n, double *loss) {
    batches ctx;
    step_source from;
    TRY(source_of(r, microbatches, n, &ctx, &from));
    return step_eval(r->e, &from, loss);
}

int autosp_tensor(autosp_rank *r, const char *name, autosp_part part, void **data, int64_t *count) {
    const plan *p = exec_plan(r->e);
    *data = NULL;
    for (int i = 0; i < p->params.n; i++) {
        if (strcmp(p->params.data[i].name, name) != 0) continue;
        *data = part == AUTOSP_VALUE      ? exec_param(r->e, i)
                : part == AUTOSP_GRADIENT ? exec_grad(r->e, i)
                                          : exec_moment(r->e, i, part == AUTOSP_MOMENT2);
        CHECK(*data, "parameter '%s' has no %s: it is frozen, or the plan is for inference", name,
              part == AUTOSP_GRADIENT ? "gradient" : "optimizer state");
        *count = ir_numel(&p->params.data[i].type);
        return SP_OK;
    }
    FAIL("the model has no parameter '%s'", name);
}
