/* cmd_dump.c - `autosp dump`: the graph after a pass, as text that autosp reads back; the plan; or the source of its
 * generated kernels. */
#include "cli/commands.h"

typedef struct dumper {
    const char *after;
    bool done;
} dumper;

static void print_after(void *ctx, const char *pass, const ir_graph *g) {
    dumper *d = ctx;
    if (d->done || strcmp(pass, d->after) != 0) return;
    buf text = {0};
    ir_print(g, &text);
    fwrite(text.data, 1, text.n, stdout);
    buf_free(&text);
    d->done = true;
}

/* The pass that is asked for; by default the last. *is_plan: it is the plan. */
static sp_status find_pass(const char *after, const char **name, bool *is_plan) {
    const char *names[64];
    int n = 0;
    while (pass_names[n]) names[n] = pass_names[n], n++;
    *name = names[n - 1];
    names[n++] = "plan";
    *is_plan = false;
    if (!after) return SP_OK;
    for (int i = 0; i < n; i++)
        if (strcmp(after, names[i]) == 0) {
            *name = names[i];
            *is_plan = i == n - 1;
            return SP_OK;
        }
    const char *near = cli_suggest(after, names, n);
    CHECK(!near, "--after: no pass '%s'; did you mean %s?", after, near);
    buf all = {0};
    for (int i = 0; i < n; i++) buf_printf(&all, "%s%s", i ? ", " : "", names[i]);
    err_set("--after: no pass '%s'; there are %s", after, all.data);
    buf_free(&all);
    return SP_FAIL;
}

static sp_status dump_plan(const train_model *m, const train_setup *s, bool kernels) {
    train_compiled c;
    TRY(train_compile(m, s, &c));
    buf text = {0};
    gen_kernel **k;
    int n = plan_kernels(c.plan, c.a, &k);
    if (kernels)
        gen_source(k, n, &text);
    else
        plan_print(c.plan, &text);
    fwrite(text.data, 1, text.n, stdout);
    buf_free(&text);
    train_compiled_free(&c);
    return SP_OK;
}

static sp_status dump(const train_model *m, const train_setup *s, const char *after, bool kernels) {
    dumper d = {0};
    bool is_plan;
    pass_options po;
    ir_graph *joint;
    TRY(find_pass(after, &d.after, &is_plan));
    if (strcmp(d.after, "import") == 0) { /* needs no sizes */
        print_after(&d, d.after, m->forward);
        return SP_OK;
    }
    CHECK(!kernels || !after || is_plan, "--kernels are of the plan; leave --after %s out", after);
    CHECK(!kernels || train_fuses(s), "nothing is fused here (fuse.policy=%s%s)", s->fuse_policy,
          strcmp(s->fuse_policy, "auto") == 0 ? ", without the cpu device or a C compiler" : "");
    if (is_plan || kernels) return dump_plan(m, s, kernels);
    TRY(train_options(m, s, &po));
    exec_options eo = {.dev = device_find(s->device), .threads = s->threads};
    plan_options lower = {.optimizer = s->optimizer,
                          .fuse = train_fuses(s),
                          .microbatches = s->accum,
                          .workspace = exec_workspace,
                          .ctx = &eo};
    CHECK(eo.dev, "this build has no device '%s'", s->device);
    po.lower = &lower;
    sp_status st = pass_pipeline(m->forward, &po, print_after, &d, &joint);
    return d.done ? SP_OK : st; /* a failure in a later pass is not in the way */
}

sp_status cmd_dump(const cli_options *o) {
    TRY(cli_supported(o));
    int ranks = (int)max64(1, cli_ranks(o));
    train_model *m;
    TRY(train_model_open(o->model, NULL, true, 0, &m));
    train_setup s = cli_setup(o, ranks, 1);
    sp_status st = dump(m, &s, o->after, o->kernels);
    train_model_close(m);
    return st;
}
