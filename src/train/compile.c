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
          "--seq %lld is outside the lengths that the model was exported for, %lld to %lld; take another or export it "
          "again",
          (long long)out->seq, (long long)low, (long long)high);
    CHECK(s->ranks <= out->seq, "%d ranks for a sequence of %lld tokens; at most one rank a token", s->ranks,
          (long long)out->seq);
    return SP_OK;
}

static bool ours(const train_setup *s) { return !s->save_policy || strcmp(s->save_policy, "budget") == 0; }

/* What a compilation is for, beside what the user asked for. */
typedef struct purpose {
    bool fuse;
    bool least; /* in place of policy `budget` its leanest plan */
    bool any;   /* with `least`: or any that fits s->memory */
    bool bytes; /* with `least`: only what that takes (c->save.arena), no plan */
    int tiling; /* pass_options */
} purpose;

static sp_status compile_with(const train_model *m, const train_setup *s, purpose d, train_compiled *c) {
    ir_graph forward = *m->forward, *joint; /* passes allocate in their input's arena and do not change it */
    forward.a = c->a;
    exec_options eo = {.dev = c->dev, .threads = s->threads};
    plan_options po = {
        .optimizer = s->optimizer, .fuse = d.fuse, .microbatches = s->accum, .workspace = exec_workspace, .ctx = &eo};
    TRY(train_options(m, s, &c->options));
    pass_options passes = c->options;
    TRY_NOTE(cost_machine_parse(c->a, s->machine ? s->machine : "cpu", &c->machine), "--machine");
    passes.machine = &c->machine;
    passes.save = &c->save;
    passes.lower = &po; /* what a plan really takes depends on the device */
    if (d.least) {
        passes.save_policy = "least";
        passes.enough = d.any ? s->memory : 0;
        passes.tiling = d.tiling;
    }
    TRY(pass_pipeline(&forward, &passes, NULL, NULL, &joint));
    if (d.bytes) return SP_OK;
    c->cost = cost_graph(&c->machine, joint);
    return plan_build(joint, &po, &c->plan);
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

static sp_status compile_into(const train_model *m, const train_setup *s, purpose d, train_compiled *c) {
    TRY(compile_with(m, s, d, c));
    if (!d.fuse || !s->run || d.least) return SP_OK;
    bool have = compile_kernels(c) == SP_OK, all;
    TRY(agree(s, have, true, err_text(), &all));
    d.fuse = false;
    return all ? SP_OK : compile_with(m, s, d, c);
}

static sp_status compile(const train_model *m, const train_setup *s, purpose d, train_compiled *out) {
    *out = (train_compiled){.dev = device_find(s->device), .host_dir = s->host_dir, .pages = s->pages};
    CHECK(out->dev, "this build has no device '%s'", s->device);
    if (out->dev == &device_cpu) TRY(cpu_runs_here());
    CHECK(s->compute != DT_F64 || strcmp(s->device, "ref") == 0, "--dtype f64 needs --device ref");
    d.fuse = train_fuses(s);
    out->a = arena_new();
    if (compile_into(m, s, d, out) == SP_OK) return SP_OK;
    train_compiled_free(out);
    return SP_FAIL;
}

/* ---- the longest sequence ---------------------------------------------------------------------- */

/* A length and what its plan takes, in bytes. Of length 0: what is needed at any. */
typedef struct length {
    int64_t seq, bytes;
} length;

/* The search for the longest length that fits s->memory. Under policy `budget` a length fits when its leanest plan
 * does; to find that takes a fraction of the time that the fastest one takes. */
typedef struct search {
    const train_model *m;
    const train_setup *s;
    int tiling;       /* of the leanest plan, once known: for all lengths; 0 */
    int64_t shortest; /* that the model takes */
    length low, high; /* the first fits; the second does not (seq 0: none known; bytes 0: the model refuses it) */
} search;

static search search_of(const train_model *m, const train_setup *s) {
    return (search){.m = m, .s = s, .shortest = round_up(m->is_text ? 1 : max64(m->import.seq_min, 1), s->ranks)};
}

/* any: what some plan that fits takes will do, until tiles are known. */
static length try_length(search *x, int64_t seq, bool any) {
    train_compiled c;
    train_setup t = *x->s;
    length l = {.seq = seq};
    purpose d = {.least = ours(&t), .bytes = ours(&t), .any = any && !x->tiling, .tiling = x->tiling};
    t.seq = seq;
    t.run = false;
    if (compile(x->m, &t, d, &c) != SP_OK) return l;
    l.bytes = d.least ? c.save.arena : c.plan->memory.arena;
    if (!x->low.bytes) x->low.bytes = d.least ? c.save.resident : l.bytes - c.plan->memory.section[SEC_WORK];
    x->tiling = c.save.tiling;
    train_compiled_free(&c);
    return l;
}

/* Bytes grow nearly in proportion to the length, so a few steps along the line through the two nearest known lengths do
 * where doubling and halving would compile twenty. Each goes for a little less than where that line meets the budget,
 * and from the eighth on every other one for the middle, whatever the line says. Ends when what is known not to fit, or
 * what is left of the budget by the line, is within a part of the length. Requires one known length besides low. */
static void longest(search *x, length last, int64_t part) {
    enum { TRIES = 40 };
    int64_t step = x->s->ranks, top = (int64_t)1 << 32, most = x->m->import.seq_max;
    if (!x->m->is_text && most > 0) top = min64(top, most);
    for (int i = 0; i < TRIES; i++) {
        int64_t near = max64(step, x->low.seq / part), n = x->low.seq + (x->high.seq - x->low.seq) / 2;
        length other = x->high.bytes ? x->high : last;
        double slope = (double)(other.bytes - x->low.bytes) / (double)(other.seq - x->low.seq);
        /* The rules keep less from some length on: there, doubling looks beyond a length that does not fit by the line.
         */
        bool outward = !x->high.seq && x->low.seq && !ours(x->s);
        bool line = other.seq != x->low.seq && slope > 0 && (i < 8 || i % 2 || !x->high.seq) && !outward;
        if (x->high.seq && x->high.seq - x->low.seq <= near) break;
        if (line) {
            double left = (double)(x->s->memory - x->low.bytes) / slope;
            if (x->low.seq && left < (double)near) break;
            n = x->low.seq + (int64_t)(left < (double)top ? left : (double)top);
            n -= n / (2 * part);
        } else if (!x->high.seq) {
            n = 2 * x->low.seq;
        }
        n = max64(max64(n / step * step, x->low.seq + step), x->shortest);
        n = min64(n, x->high.seq ? x->high.seq - step : top / step * step);
        if (n <= x->low.seq || n < x->shortest) break;
        length l = try_length(x, n, true);
        last = x->low;
        if (l.bytes && l.bytes <= x->s->memory)
            x->low = l;
        else
            x->high = l;
    }
}

sp_status train_longest(const train_model *m, const train_setup *s, int64_t *best) {
    search x = search_of(m, s);
    length first = try_length(&x, max64(64 * s->ranks, x.shortest), true), none = x.low;
    if (first.bytes && first.bytes <= s->memory)
        x.low = first;
    else
        x.high = first;
    longest(&x, none, ours(s) ? 256 : 1024);
    if (x.low.seq && ours(s)) { /* the tiles that fit a short length need not be the leanest for this one */
        x.tiling = 0;
        x.low = try_length(&x, x.low.seq, false);
        x.high = (length){0};
        longest(&x, none, 1024);
    }
    *best = x.low.seq;
    if (*best) return SP_OK;
    train_compiled c;
    train_setup shortest = *s;
    shortest.seq = x.high.seq;
    shortest.run = false;
    if (compile(m, &shortest, (purpose){.least = ours(s), .tiling = x.tiling}, &c) == SP_OK) {
        sp_status refused = plan_refuse(c.plan, s->memory, ours(s) ? NULL : c.save.policy);
        ASSERT(refused == SP_FAIL);
        train_compiled_free(&c);
    }
    FAIL("no sequence length fits: %s", err_text());
}

/* Refuses a budget that plan `c`, which is freed, is above; with the longest length that fits, where one may. */
static sp_status refuse(const train_model *m, const train_setup *s, train_compiled *c) {
    const plan_memory *taken = &c->plan->memory;
    length fixed = {0, taken->arena - taken->section[SEC_WORK]};
    search x = search_of(m, s);
    x.tiling = c->save.tiling;
    x.low = fixed;
    x.high = (length){s->seq, taken->arena};
    sp_status refused = plan_refuse(c->plan, s->memory, ours(s) ? NULL : c->save.policy);
    train_compiled_free(c);
    if (m->fixed_seq || fixed.bytes >= s->memory) return refused;
    char have[24], *text = strdup(err_text()); /* trying lengths sets other texts */
    longest(&x, x.low, 128);
    human_bytes(s->memory, have);
    if (x.low.seq)
        err_set("%s\n  the longest sequence that fits %s: --seq %lld; or take more --ranks or --memory", text, have,
                (long long)x.low.seq);
    else
        err_set("%s\n  no sequence length fits %s: take more --memory", text, have);
    free(text);
    return refused;
}

/* Does the leanest plan fit? */
static sp_status feasible(const train_model *m, const train_setup *s) {
    train_compiled c;
    purpose d = {.least = true, .any = true, .bytes = true};
    TRY(compile(m, s, d, &c));
    bool fits = c.save.arena <= s->memory;
    d.bytes = false;
    d.tiling = c.save.tiling;
    train_compiled_free(&c);
    if (fits) return SP_OK;
    TRY(compile(m, s, d, &c));
    return refuse(m, s, &c);
}

sp_status train_compile(const train_model *m, const train_setup *asked, train_compiled *out) {
    train_setup setup = *asked, *s = &setup;
    bool all = true;
    if (s->run && s->agree) TRY(agree(s, train_fuses(s), false, "there is no C compiler ($CC, cc, gcc, clang)", &all));
    if (!all) s->fuse_policy = "off";
    if (s->memory && ours(s)) TRY(feasible(m, s)); /* at once, before the search for the fastest */
    TRY(compile(m, s, (purpose){0}, out));
    if (!s->memory || out->plan->memory.arena <= s->memory) return SP_OK;
    return refuse(m, s, out);
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
    exec_options o = {.dev = p->dev, .comm = c, .threads = threads, .host_dir = p->host_dir, .pages = p->pages};
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
