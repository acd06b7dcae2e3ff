/* compile.c - from options to a plan, and from a plan to a loaded runtime on one rank. */
#include "train/compile.h"

#include <stdlib.h>

static sp_status fixed_or(int64_t fixed, int64_t asked, const char *option, const char *what, int64_t *out) {
    CHECK(fixed || asked, "the model takes any %s; give --%s N", what, option);
    CHECK(!fixed || !asked || fixed == asked, "the model was exported for a %s of %lld only; give --%s %lld", what,
          (long long)fixed, option, (long long)fixed);
    *out = asked ? asked : fixed;
    return SP_OK;
}

sp_status train_options(const train_model *m, const train_setup *s, pass_options *out) {
    *out = (pass_options){.ranks = s->ranks,
                          .compute = s->compute,
                          .exchange = s->exchange,
                          .save_policy = s->save_policy,
                          .mask_bytes = s->mask_bytes,
                          .tile_policy = s->tile_policy,
                          .tile_bytes = s->tile_bytes,
                          .tile_rows = s->tile_rows,
                          .break_rule = s->break_rule,
                          .memory = s->memory,
                          .host_memory = s->host_memory};
    bool ours = !s->save_policy || strcmp(s->save_policy, "budget") == 0;
    CHECK(!s->host_memory || s->memory,
          "--host-memory needs --memory BYTES: values move to the host when a rank's memory is too small for them");
    CHECK(!s->host_memory || ours, "--host-memory needs --set save.policy=budget: '%s' moves nothing to the host",
          s->save_policy);
    TRY(fixed_or(m->fixed_seq, s->seq, "seq", "sequence length", &out->seq));
    TRY(fixed_or(m->fixed_batch, s->batch ? s->batch : m->fixed_batch ? 0 : 1, "batch", "batch", &out->batch));
    int64_t low = m->import.seq_min, high = m->import.seq_max;
    CHECK(m->is_text || m->fixed_seq || (out->seq >= low && (high == 0 || out->seq <= high)),
          "--seq %lld is outside the lengths that the model was exported for, %lld to %lld; export it again for longer "
          "ones",
          (long long)out->seq, (long long)low, (long long)high);
    CHECK(s->ranks <= out->seq, "%d ranks for a sequence of %lld tokens; at most one rank a token", s->ranks,
          (long long)out->seq);
    return SP_OK;
}

/* Why the budget refused a plan; zeros when something else went wrong. */
typedef struct shortage {
    int64_t need, fixed; /* bytes that the leanest plan takes; of them at any length */
} shortage;

static sp_status compile_with(const train_model *m, const train_setup *s, bool fuse, train_compiled *c, shortage *why) {
    ir_graph forward = *m->forward, *joint; /* passes allocate in their input's arena and do not change it */
    forward.a = c->a;
    exec_options eo = {.dev = c->dev, .threads = s->threads};
    plan_options po = {.optimizer = s->optimizer, .fuse = fuse, .workspace = exec_workspace, .ctx = &eo};
    TRY(train_options(m, s, &c->options));
    pass_options passes = c->options;
    TRY_NOTE(cost_machine_parse(c->a, s->machine ? s->machine : "cpu", &c->machine), "--machine");
    passes.machine = &c->machine;
    passes.save = &c->save;
    passes.lower = &po; /* what a plan really takes depends on the device */
    if (pass_pipeline(&forward, &passes, NULL, NULL, &joint) != SP_OK) {
        *why = (shortage){c->save.least, c->save.resident};
        return SP_FAIL;
    }
    c->cost = cost_graph(&c->machine, joint);
    TRY(plan_build(joint, &po, &c->plan));
    if (!s->memory || c->plan->memory.arena <= s->memory) return SP_OK;
    const plan_memory *taken = &c->plan->memory;
    *why = (shortage){taken->arena, taken->arena - taken->section[SEC_WORK]};
    return plan_refuse(c->plan, s->memory, c->save.policy);
}

bool train_fuses(const train_setup *s) {
    if (!s->fuse_policy || strcmp(s->fuse_policy, "off") == 0) return false;
    return strcmp(s->fuse_policy, "on") == 0 || (strcmp(s->device, "cpu") == 0 && gen_compiler());
}

/* Do the plan's kernels compile? exec_new finds them then. */
static sp_status compile_kernels(const train_compiled *c) {
    gen_kernel **k;
    int n = plan_kernels(c->plan, c->a, &k);
    return n && c->dev->compile ? c->dev->compile(k, n, ARENA_ARRAY(c->a, gen_fn *, n)) : SP_OK;
}

/* Plans with kernels and without differ, so all ranks must have them: *all says so. One that lacks them says why; when
 * nobody has them only if `loud`. */
static sp_status agree(const train_setup *s, bool have, bool loud, const char *why, bool *all) {
    const int size = s->agree ? comm_size(s->agree) : 1, rank = s->agree ? comm_rank(s->agree) : 0;
    int64_t mine[2] = {have, have ? 0 : size - rank}, top[2] = {mine[0], mine[1]};
    char *text = strdup(why);
    sp_status st = size > 1 ? comm_all_reduce(s->agree, mine, top, 2, DT_I64, COMM_MAX) : SP_OK;
    *all = top[1] == 0;
    if (st == SP_OK && !have && mine[1] == top[1] && (loud || top[0])) { /* the first of them */
        if (size > 1)
            log_warn("rank %d: %s; all ranks are going on without fused kernels", rank, text);
        else
            log_warn("%s; going on without fused kernels", text);
    }
    free(text);
    return st;
}

static sp_status compile_into(const train_model *m, const train_setup *s, train_compiled *c, shortage *why) {
    bool fuse = train_fuses(s);
    TRY(compile_with(m, s, fuse, c, why));
    if (!fuse || !s->run) return SP_OK;
    bool have = compile_kernels(c) == SP_OK, all;
    TRY(agree(s, have, true, err_text(), &all));
    return all ? SP_OK : compile_with(m, s, false, c, why);
}

static sp_status compile(const train_model *m, const train_setup *s, train_compiled *out, shortage *why) {
    *out = (train_compiled){.dev = device_find(s->device), .host_dir = s->host_dir};
    *why = (shortage){0};
    CHECK(out->dev, "this build has no device '%s'", s->device);
    if (out->dev == &device_cpu) TRY(cpu_runs_here());
    CHECK(s->compute != DT_F64 || strcmp(s->device, "ref") == 0, "--dtype f64 needs --device ref");
    out->a = arena_new();
    if (compile_into(m, s, out, why) == SP_OK) return SP_OK;
    train_compiled_free(out);
    return SP_FAIL;
}

/* Does a length fit? *bytes: what its plan takes, or would. Lengths that the model refuses for other reasons count as
 * not fitting, with 0 bytes. */
static bool fits(const train_model *m, const train_setup *s, int64_t seq, int64_t *bytes) {
    train_compiled c;
    train_setup t = *s;
    shortage why;
    t.seq = seq;
    t.run = false;
    if (compile(m, &t, &c, &why) != SP_OK) {
        *bytes = why.need;
        return false;
    }
    *bytes = c.plan->memory.arena;
    train_compiled_free(&c);
    return true;
}

/* The longest sequence that fits, from one that is known to (0: none is): outwards in doubling steps until one does not
 * fit, then bisected to half a percent. */
static sp_status longest_from(const train_model *m, const train_setup *s, int64_t low, int64_t *best) {
    int64_t step = s->ranks, high = 0, start = low, bytes;
    for (int64_t n = low ? low + max64(step, low / 256 / step * step) : 64 * step; n <= (int64_t)1 << 32;
         n = start ? n + 2 * (n - start) : 2 * n) {
        if (!fits(m, s, n, &bytes)) {
            high = n;
            break;
        }
        low = n;
    }
    CHECK(low || high > step, "no sequence length fits: %s", err_text());
    while (high && high - low > max64(step, low / 256)) {
        int64_t n = low + (high - low) / 2 / step * step;
        if (n == low) break;
        if (fits(m, s, n, &bytes))
            low = n;
        else
            high = n;
    }
    CHECK(low > 0, "no sequence length fits: %s", err_text());
    *best = low;
    return SP_OK;
}

/* Plans under a budget take longest to make, and at the longest length they are nearly those of full recomputation: its
 * length, found first, is where their search begins. */
sp_status train_longest(const train_model *m, const train_setup *s, int64_t *best) {
    int64_t from = 0, bytes;
    if (!s->save_policy || strcmp(s->save_policy, "budget") == 0) {
        train_setup lean = *s;
        lean.save_policy = "layer";
        lean.host_memory = 0;
        if (longest_from(m, &lean, 0, &from) != SP_OK || !fits(m, s, from, &bytes)) from = 0;
    }
    return longest_from(m, s, from, best);
}

/* The longest length below s->seq, which does not fit, mostly to a percent; 0 when none is found. Bytes grow
 * nearly in proportion to the length, so a few steps along the line through the nearest lengths on both sides do where
 * bisection would take a dozen compilations. */
static int64_t longest_below(const train_model *m, const train_setup *s, const shortage *why) {
    enum { TRIES = 5 };
    int64_t step = s->ranks, low = 0, high = s->seq / step * step, low_bytes = why->fixed, high_bytes = why->need;
    for (int i = 0; i < TRIES && high - low > max64(step, low / 128); i++) {
        double slope = (double)(high_bytes - low_bytes) / (double)(high - low);
        int64_t guess = low + (int64_t)((double)(s->memory - low_bytes) / slope), bytes;
        guess = max64(guess, low + low / 128); /* above what fits already, by what decides */
        int64_t n = min64(max64(guess / step * step, low + step), high - step);
        if (n <= low) break;
        if (fits(m, s, n, &bytes)) {
            low = n;
            low_bytes = bytes;
        } else if (bytes) {
            high = n;
            high_bytes = bytes;
        } else {
            break; /* shorter than the model takes */
        }
    }
    for (int i = 0; !low && i < 2 * TRIES; i++) { /* not even nearly a line */
        int64_t n = high / 2 / step * step, bytes;
        if (n < step) break;
        if (fits(m, s, n, &bytes))
            low = n;
        else
            high = n;
    }
    return low;
}

sp_status train_compile(const train_model *m, const train_setup *asked, train_compiled *out) {
    shortage why;
    train_setup setup = *asked, *s = &setup;
    bool all = true;
    if (s->run && s->agree) TRY(agree(s, train_fuses(s), false, "there is no C compiler ($CC, cc, gcc, clang)", &all));
    if (!all) s->fuse_policy = "off";
    if (compile(m, s, out, &why) == SP_OK) return SP_OK;
    if (!why.need || m->fixed_seq || why.fixed >= s->memory) return SP_FAIL;
    char have[24], *text = strdup(err_text()); /* trying lengths sets other texts */
    int64_t best = longest_below(m, s, &why);
    human_bytes(s->memory, have);
    if (best)
        err_set("%s\n  the longest sequence that fits %s: --seq %lld; or take more --ranks or --memory", text, have,
                (long long)best);
    else
        err_set("%s\n  no sequence length fits %s: take more --memory", text, have);
    free(text);
    return SP_FAIL;
}

void train_compiled_free(train_compiled *c) {
    arena_free(c->a);
    *c = (train_compiled){0};
}

/* The loader can fill these inputs; the plan may have fewer. */
static sp_status check_inputs(const plan *p) {
    static const char *const known[] = {"input_ids",      "labels",    "position_ids", "document_ids",
                                        "prefix_lengths", "inv_count", "rng"};
    for (int i = 0; i < p->inputs.n; i++) {
        bool ok = false;
        for (int k = 0; k < 7; k++) ok |= strcmp(p->inputs.data[i].name, known[k]) == 0;
        CHECK(ok,
              "the model has an input '%s'; training data has input_ids, labels, position_ids, document_ids and "
              "prefix_lengths only: export the model without it",
              p->inputs.data[i].name);
    }
    return SP_OK;
}

static sp_status load_weights(const train_model *m, exec *e) {
    const plan *p = exec_plan(e);
    for (int i = 0; i < p->params.n; i++) {
        const plan_param *q = &p->params.data[i];
        TRY(train_model_read(m, q->name, q->type.t, ir_numel(&q->type), exec_param(e, i)));
    }
    return SP_OK;
}

sp_status train_load(const train_model *m, const train_compiled *p, comm *c, int threads, exec **out) {
    *out = NULL;
    TRY(check_inputs(p->plan));
    exec_options o = {.dev = p->dev, .comm = c, .threads = threads, .host_dir = p->host_dir};
    exec *e;
    TRY(exec_new(p->plan, &o, &e));
    if (load_weights(m, e) != SP_OK) {
        exec_free(e);
        return SP_FAIL;
    }
    *out = e;
    return SP_OK;
}

sp_status train_set_batch(exec *e, const train_batch *b) {
    const plan *p = exec_plan(e);
    const struct {
        const char *name;
        const int64_t *data;
        int64_t pad;
    } all[] = {{"input_ids", b->input_ids, 0},
               {"labels", b->labels, p->ignore},
               {"position_ids", b->position_ids, 0},
               {"document_ids", b->document_ids, -1},
               {"prefix_lengths", b->prefix_lengths, 0}};
    for (int i = 0; i < p->inputs.n; i++)
        for (int k = 0; k < 5; k++)
            if (all[k].data && strcmp(p->inputs.data[i].name, all[k].name) == 0)
                TRY(exec_set_input(e, all[k].name, all[k].data, all[k].pad));
    return SP_OK;
}
