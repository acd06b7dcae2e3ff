/* cmd_plan.c - `autosp plan`: what a step needs, before anything runs. Nothing is loaded and nothing is allocated: only
 * the shapes of the model are read. */
#include "cli/commands.h"
#include "cli/report.h"

#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

enum { COMMS = 5 }; /* the four collectives of microbatches, and the gradients' reduction at the end */

/* What one rank sends to others in a step, by collective. */
static void communication(const train_compiled *c, int64_t accum, report_comm out[COMMS]) {
    static const struct {
        ir_op op;
        comm_op as;
    } table[COMMS - 1] = {{OP_all_to_all, COMM_ALL_TO_ALL},
                          {OP_all_gather, COMM_ALL_GATHER},
                          {OP_reduce_scatter, COMM_REDUCE_SCATTER},
                          {OP_all_reduce, COMM_ALL_REDUCE}};
    const plan *p = c->plan;
    for (int k = 0; k < COMMS; k++)
        out[k] = (report_comm){.name = k < COMMS - 1 ? op_table[table[k].op].name : "all_reduce of gradients"};
    for (int i = 0; i < p->program[PROG_STEP].instrs.n; i++) {
        const plan_instr *in = &p->program[PROG_STEP].instrs.data[i];
        if (in->axis < 0) continue;
        const tensor *x = &in->in[0].t, *y = &in->out[0].t;
        int size = p->mesh.axis[in->axis].size;
        int64_t elem = dtype_size(x->type), from = tensor_numel(x) * elem, to = tensor_numel(y) * elem;
        for (int k = 0; k < COMMS - 1; k++) {
            if (in->op != table[k].op) continue;
            /* The calls' `bytes`: a block of an all-to-all, a rank's part of a gather, a whole of a reduction. */
            int64_t bytes = in->op == OP_all_to_all ? from / size : in->op == OP_reduce_scatter ? to : from;
            *(in->backward ? &out[k].backward : &out[k].forward) += accum;
            out[k].bytes += accum * comm_sent_bytes(table[k].as, 0, size, bytes, elem, 0);
            if (in->node) out[k].seconds += (double)accum * cost_node(&c->machine, p->graph, in->node).seconds;
        }
    }
    report_comm *last = &out[COMMS - 1];
    for (int i = 0; i < p->params.n; i++) {
        const plan_param *q = &p->params.data[i];
        int64_t elem = dtype_size(p->type), bytes = ir_numel(&q->type) * elem;
        if (q->grad < 0 || !q->partial || !p->mesh.naxes) continue;
        last->backward++;
        last->bytes += comm_sent_bytes(COMM_ALL_REDUCE, 0, p->mesh.axis[0].size, bytes, elem, 0);
        last->seconds += cost_collective(&c->machine, OP_all_reduce, bytes, p->mesh.axis[0].size);
    }
}

static int64_t comm_bytes(const report_comm *c) {
    int64_t sum = 0;
    for (int k = 0; k < COMMS; k++) sum += c[k].bytes;
    return sum;
}

static double comm_seconds(const report_comm *c) {
    double sum = 0;
    for (int k = 0; k < COMMS; k++) sum += c[k].seconds;
    return sum;
}

/* Seconds of a step on the machine: microbatches, the reduction of partial gradients, the update (which reads weight,
 * gradient and moments and writes all but the gradient). */
static double step_seconds(const train_compiled *c, int64_t accum) {
    const plan *p = c->plan;
    const cost_machine *m = &c->machine;
    double s = (double)accum * (c->cost.forward + c->cost.backward + c->cost.again);
    for (int i = 0; i < p->params.n; i++) {
        const plan_param *q = &p->params.data[i];
        if (q->grad < 0) continue;
        int64_t bytes = ir_numel(&q->type) * dtype_size(p->type);
        if (q->partial && p->mesh.naxes) s += cost_collective(m, OP_all_reduce, bytes, p->mesh.axis[0].size);
        s += 7 * (double)bytes / m->mem_bw;
    }
    return s;
}

/* How far the whole step is above the lower bound of its seconds: what the passes did not decide is in both. */
static double gap_of(const train_compiled *c, int64_t accum) {
    double is = step_seconds(c, accum), passes = (double)accum * (c->cost.forward + c->cost.backward + c->cost.again),
           bound = (double)accum * c->save.step_bound + is - passes;
    return is / bound - 1;
}

static sp_status print_json(const cli_options *o, const train_compiled *c, int ranks, int64_t max_seq) {
    const plan *p = c->plan;
    report_comm sent[COMMS];
    communication(c, o->accum, sent);
    double step = step_seconds(c, o->accum), again = (double)o->accum * c->cost.again;
    bool ours = strcmp(c->save.policy, "budget") == 0;
    const plan_memory *m = &p->memory;
    char mesh[32];
    snprintf(mesh, sizeof mesh, "dp=1,seq=%d", ranks);
    int64_t bound = m->arena - m->section[SEC_WORK] + m->live_bound;
    json_t *j = json_pack("{s:I, s:i, s:s, s:I, s:o, s:I, s:I, s:I, s:f, s:o, s:I, s:o, s:o, s:I, s:o}", "seq",
                          (json_int_t)p->seq_valid, "ranks", ranks, "mesh", mesh, "peak_bytes", (json_int_t)m->arena,
                          "budget_bytes", o->memory ? json_integer(o->memory) : json_null(), "live_lower_bound_bytes",
                          (json_int_t)bound, "arena_bytes", (json_int_t)m->arena, "saved_bytes", (json_int_t)m->saved,
                          "recompute_fraction", again / step, "lower_bound_gap",
                          ours ? json_real(gap_of(c, o->accum)) : json_null(), "comm_bytes_per_rank",
                          (json_int_t)comm_bytes(sent), "step_seconds_estimate", json_real(step), "max_seq",
                          max_seq ? json_integer(max_seq) : json_null(), "host_bytes", (json_int_t)m->section[SEC_HOST],
                          "host_budget_bytes", o->host_memory ? json_integer(o->host_memory) : json_null());
    CHECK(j, "out of memory");
    static const char *const parts[SEC_COUNT] = {"parameters", "gradients", "optimizer", "constants",
                                                 "inputs",     "working",   "host"};
    json_t *sections = json_object();
    for (int i = 0; i < SEC_COUNT; i++) json_object_set_new(sections, parts[i], json_integer(m->section[i]));
    json_object_set_new(j, "parts", sections);
    json_object_set_new(j, "comm_fraction", json_real(comm_seconds(sent) / step));
    json_object_set_new(j, "machine", json_string(c->machine.name));
    json_dumpf(j, stdout, 0);
    putchar('\n');
    json_decref(j);
    return SP_OK;
}

static void row(const char *name, int64_t bytes) {
    char text[24];
    printf("  %-34s %14lld  %12s\n", name, (long long)bytes, human_bytes(bytes, text));
}

static void seconds(const char *name, double s) { printf("  %-34s %14.6f  s\n", name, s); }

/* Each thread's workspace is planned too. A plan does not depend on the cores of the machine that makes it. */
static int threads_of(const cli_options *o) { return (int)max64(1, o->threads); }

static void print_table(const cli_options *o, const train_compiled *c, int ranks, int64_t max_seq) {
    const plan *p = c->plan;
    const plan_memory *m = &p->memory;
    report_comm sent[COMMS];
    communication(c, o->accum, sent);
    if (max_seq) printf("longest sequence within the budget: %lld tokens\n\n", (long long)max_seq);
    const int threads = threads_of(o);
    printf("%lld tokens a sequence, %lld a microbatch, %d rank%s x %d thread%s; bytes on each rank\n\n",
           (long long)p->seq_valid, (long long)p->batch, ranks, ranks == 1 ? "" : "s", threads,
           threads == 1 ? "" : "s");
    row("parameters", m->section[SEC_PARAM]);
    row("gradients", m->section[SEC_GRAD]);
    row("optimizer", m->section[SEC_MOMENT]);
    row("constants and inputs", m->section[SEC_CONST] + m->section[SEC_INPUT]);
    row("activations, placed", m->section[SEC_WORK]);
    row("  alive at their peak: saved", m->peak_saved);
    row("  alive at their peak: working", m->peak_working);
    row("  alive at their peak: communication", m->peak_comm);
    row("  least that any placement needs", m->live_bound);
    row("peak", m->arena);
    buf list = {0};
    plan_print_peak(p, 8, &list);
    if (o->host_memory) row("host copies", m->section[SEC_HOST]);
    printf("\n  largest activations alive at the peak:%s\n\n", list.data ? list.data : "");
    buf_free(&list);
    row("saved by forward for backward", m->saved);
    row("sent to other ranks in a step", comm_bytes(sent));
    printf("\n");
    printf("  estimated on the machine %s\n", c->machine.name);
    seconds("a step", step_seconds(c, o->accum));
    seconds("  of it computed again", (double)o->accum * c->cost.again);
    seconds("  of it communication", comm_seconds(sent));
    if (strcmp(c->save.policy, "budget") == 0 && o->memory) {
        seconds("  no plan computes again less than", (double)o->accum * c->save.bound);
        printf("  %-34s %14.2f  %%\n", "  the step is above its bound by", 100 * gap_of(c, o->accum));
    }
}

static sp_status write_report(const cli_options *o, const train_compiled *c, int ranks, int64_t max_seq) {
    report_comm sent[COMMS];
    communication(c, o->accum, sent);
    report_facts f = {.model = o->model,
                      .ranks = ranks,
                      .accum = o->accum,
                      .budget = o->memory,
                      .max_seq = max_seq,
                      .comm_bytes = comm_bytes(sent),
                      .comm = sent,
                      .ncomm = COMMS,
                      .machine = c->machine.name,
                      .step_seconds = step_seconds(c, o->accum),
                      .again_seconds = (double)o->accum * c->cost.again,
                      .comm_seconds = comm_seconds(sent),
                      .save = &c->save};
    return report_write(o->report, c->plan, &f);
}

static sp_status run(const cli_options *o, const train_model *m, int ranks) {
    train_setup s = cli_setup(o, ranks, threads_of(o));
    int64_t max_seq = 0;
    if (o->seq_max) {
        CHECK(o->memory, "--seq max needs --memory BYTES, or a --machine");
        CHECK(!m->fixed_seq, "the model was exported for sequences of %lld tokens only", (long long)m->fixed_seq);
        TRY(train_longest(m, &s, &max_seq));
        s.seq = max_seq;
    }
    train_compiled c;
    TRY(train_compile(m, &s, &c));
    sp_status st = SP_OK;
    if (o->json)
        st = print_json(o, &c, ranks, max_seq);
    else
        print_table(o, &c, ranks, max_seq);
    if (st == SP_OK && o->report) st = write_report(o, &c, ranks, max_seq);
    train_compiled_free(&c);
    return st;
}

/* A described machine gives what was not said: as many ranks as it has devices, a budget of one device's memory. */
static sp_status apply_machine(cli_options *o, int *ranks) {
    *ranks = (int)max64(1, cli_ranks(o));
    if (!o->machine) return SP_OK;
    arena *a = arena_new();
    cost_machine m;
    sp_status ok = cost_machine_parse(a, o->machine, &m);
    arena_free(a);
    TRY_NOTE(ok, "--machine");
    if (m.count && !cli_ranks(o)) *ranks = m.count;
    CHECK(!m.count || *ranks <= m.count, "--machine %s has %d devices; --ranks %d is more", o->machine, m.count,
          *ranks);
    char want[24], have[24];
    CHECK(o->memory <= m.mem_bytes,
          "--memory %s is more than the %s of one device of --machine %s; describe a larger one, as in %s,mem=%s",
          human_bytes(o->memory, want), human_bytes(m.mem_bytes, have), o->machine, o->machine, "200GB");
    if (!o->memory) o->memory = m.mem_bytes;
    return SP_OK;
}

/* A search lowers dozens of candidates, each in an arena of its own: what one gives back the next one takes, without
 * the system (a tenth of the time at 126 layers). */
static void keep_freed_memory(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

sp_status cmd_plan(const cli_options *given) {
    keep_freed_memory();
    cli_options o = *given;
    int ranks;
    TRY(cli_supported(&o));
    TRY(apply_machine(&o, &ranks));
    train_model *m;
    TRY(train_model_open(o.model, NULL, true, 0, &m));
    sp_status s = run(&o, m, ranks);
    train_model_close(m);
    return s;
}
