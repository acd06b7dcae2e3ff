/* Every operator by finite differences: the rows of the importer's tables and the rows of the op table.
 *
 * tests/fixtures/each-operator.pt2 (tests/parity/each_operator.py) calls each operator that the importer knows once, on
 * parameters of its own, "aten/mish/default/x"; the loss is a sum over operators. So the slope of our forward along one
 * element of one parameter is the derivative of one operator, and a wrong one has a name. fixtures.c compares the same
 * gradients with PyTorch; here nothing but our own forward is asked. A row without a case fails.
 *
 * The op table: while gradients are checked (this fixture; tests/ir/block.ir on one rank and on two, by each exchange;
 * tests/ir/rest.ir and sharded.ir, which hold what the others have not), the graphs say which ops lay between a
 * parameter and the loss. Each row with a gradient must be among them; each without has its reason below. Of each op
 * that occurs in a step, layout rule and cost are looked at. */
#include "block_run.h"

#include "cost/cost.h"
#include "import/lower.h"
#include "import/weights.h"

/* ---- which ops have been seen ------------------------------------------------------------------------------- */

static bool differentiated[OP_COUNT], occurs[OP_COUNT];

/* Ops without a gradient, and why none is missed. */
static const struct {
    ir_op op;
    const char *why;
} no_gradient[] = {
    {OP_param, "leaf"},
    {OP_input, "leaf"},
    {OP_const, "leaf"},
    {OP_fill, "leaf"},
    {OP_iota, "leaf"},
    {OP_dimval, "leaf"},
    {OP_stop_grad, "its cotangent is zero"},
    {OP_floordiv, "a step: the importer stops the gradient before it"},
    {OP_mod, "of integers: the importer writes that of floats out"},
    {OP_take, "of integers; trained tensors are looked up by embedding and gather"},
    {OP_not, "bool"},
    {OP_and, "bool"},
    {OP_or, "bool"},
    {OP_eq, "bool"},
    {OP_ne, "bool"},
    {OP_lt, "bool"},
    {OP_le, "bool"},
    {OP_gt, "bool"},
    {OP_ge, "bool"},
    {OP_scatter_add, "backward only"},
    {OP_silu_grad, "backward only"},
    {OP_gelu_grad, "backward only"},
    {OP_gelu_tanh_grad, "backward only"},
    {OP_swiglu_grad, "backward only"},
    {OP_softmax_grad, "backward only"},
    {OP_embedding_grad, "backward only"},
    {OP_rmsnorm_grad, "backward only"},
    {OP_layernorm_grad, "backward only"},
    {OP_xent_grad, "backward only"},
    {OP_attention_grad, "backward only"},
    {OP_accum, "behind differentiation"},
    {OP_offload, "behind differentiation"},
    {OP_fetch, "behind differentiation"},
    {OP_loop, "behind differentiation"},
    {OP_fused, "in plans only"},
};

static const char *reason(int op) {
    for (size_t i = 0; i < sizeof no_gradient / sizeof *no_gradient; i++)
        if ((int)no_gradient[i].op == op) return no_gradient[i].why;
    return NULL;
}

/* Marks the ops on a path from a trained parameter to the loss. */
static void note_path(const ir_graph *g) {
    bool *from = calloc((size_t)g->values.n + 1, 1), *to = calloc((size_t)g->values.n + 1, 1);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        bool is = n->op == OP_param && ir_int(n, "grad", 0);
        for (int k = 0; k < n->nin; k++) is |= from[n->in[k]];
        for (int k = 0; k < n->nout; k++)
            from[n->out[k]] = is && n->op != OP_stop_grad && dtype_is_float(ir_typeof(g, n->out[k])->t);
    }
    for (int i = 0; i < g->outputs.n; i++) to[g->outputs.data[i].value] = true;
    for (int i = g->nodes.n - 1; i >= 0; i--) {
        const ir_node *n = &g->nodes.data[i];
        bool is = false, on = false;
        for (int k = 0; k < n->nout; k++) is |= to[n->out[k]], on |= to[n->out[k]] && from[n->out[k]];
        for (int k = 0; k < n->nin && is; k++) to[n->in[k]] = true;
        if (on && n->op != OP_param) differentiated[n->op] = true;
    }
    free(from);
    free(to);
}

/* Layout rule and cost of each node of a step. */
static void note_costs(const ir_graph *g) {
    static const ir_op own_layout[] = {OP_reshape,        OP_enter,      OP_shard, OP_all_reduce, OP_all_gather,
                                       OP_reduce_scatter, OP_all_to_all, OP_accum, OP_loop};
    arena *a = arena_new();
    cost_machine m;
    assert_int_equal(cost_machine_parse(a, "cpu", &m), SP_OK);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        const char *name = op_table[n->op].name;
        int flags = op_table[n->op].flags;
        cost_work w = cost_node(&m, g, n);
        ir_rule rule;
        bool own = flags & F_LEAF;
        for (size_t k = 0; k < sizeof own_layout / sizeof *own_layout; k++) own |= n->op == own_layout[k];
        if (ir_rule_of(g, n, a, &rule) == own)
            fail_msg("%s: %s", name, own ? "a layout rule too many" : "no layout rule");
        if (!isfinite(w.seconds) || w.seconds < 0) fail_msg("%s: costs %g seconds", name, w.seconds);
        if (!(flags & (F_LEAF | F_VIEW | F_EFFECT)) && !(w.seconds > 0 && w.bytes > 0))
            fail_msg("%s: costs nothing", name);
        occurs[n->op] = true;
    }
    arena_free(a);
}

static void note(void *ctx, const char *pass, const ir_graph *g) {
    (void)ctx;
    if (!strcmp(pass, "shard")) note_path(g);
    if (!strcmp(pass, "diff")) note_costs(g);
}

/* ---- the importer's operators ------------------------------------------------------------------------------- */

static const lo_row *const tables[] = {lower_views, lower_math, lower_nn, lower_index, lower_compose, lower_complex};

typedef struct model {
    arena *a;
    import_info info;
    plan *p;
    exec *e;
    double count, weights[64]; /* of operands in the loss */
} model;

/* "aten/mish/default/x" is a parameter of "aten.mish.default" */
static bool is_of(const char *param, const char *target) {
    size_t n = strlen(target);
    for (size_t i = 0; i < n; i++)
        if (param[i] != (target[i] == '.' ? '/' : target[i])) return false;
    return param[n] == '/' && !strchr(param + n + 1, '/');
}

static sp_status open_model(comm *c, model *m) {
    const char *path = AUTOSP_SOURCE_DIR "/tests/fixtures/each-operator.pt2";
    ir_graph *g, *joint;
    st_file *data;
    wt_source *weights;
    m->a = arena_new();
    TRY(import_pt2(m->a, path, &g, &m->info));
    TRY(st_open(AUTOSP_SOURCE_DIR "/tests/fixtures/each-operator.safetensors", &data));
    TRY(wt_open(m->info.program, NULL, &weights));
    const st_tensor *ids = st_find(data, "input_ids"), *labels = st_find(data, "labels");
    pass_options o = {.batch = ids->size[0], .seq = ids->size[1], .compute = DT_F64, .ranks = 1};
    TRY(pass_pipeline(g, &o, note, NULL, &joint));
    exec_options eo = {.dev = &device_ref, .comm = c, .threads = 1};
    plan_options po = {.workspace = exec_workspace, .ctx = &eo};
    TRY(plan_build(joint, &po, &m->p));
    TRY(exec_new(m->p, &eo, &m->e));
    for (int i = 0; i < m->p->params.n; i++) {
        wt_tensor w;
        TRY(wt_find(weights, m->p->params.data[i].name, &w));
        wt_read(&w, 0, w.count, m->p->params.data[i].type.t, exec_param(m->e, i));
    }
    const st_tensor *t[] = {ids, labels};
    for (int i = 0; i < 2; i++) {
        int64_t *aligned = malloc((size_t)t[i]->bytes);
        memcpy(aligned, t[i]->data, (size_t)t[i]->bytes);
        TRY(exec_set_input(m->e, i ? "labels" : "input_ids", aligned, i ? m->p->ignore : 0));
        free(aligned);
    }
    wt_tensor w;
    float f[64];
    TRY(wt_find(weights, "weights", &w));
    CHECK(w.count == 64, "%lld weights", (long long)w.count);
    wt_read(&w, 0, 64, DT_F32, f);
    for (int i = 0; i < 64; i++) m->weights[i] = (double)f[i];
    wt_close(weights);
    st_close(data);
    return exec_count(m->e, &m->count);
}

/* The loss with element K of parameter I moved by H. */
static double moved(model *m, int i, int64_t k, double h) {
    double *x = (double *)exec_param(m->e, i) + k, was = *x, loss = NAN;
    *x += h;
    if (exec_eval(m->e, &loss) != SP_OK) fail_msg("%s", err_text());
    *x = was;
    return loss / m->count;
}

/* Every row that works on tensors is called in the fixture, on a parameter of its own. */
static void check_coverage(const model *m) {
    const pt2_graph *pg = m->info.program->graph;
    int missing = 0;
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const lo_row *row = tables[t]; row->target; row++) {
            if (row->flags & ROW_SIZE) continue;                           /* arithmetic of sizes: no tensor */
            if (!strcmp(row->target, "aten.lift_fresh.default")) continue; /* torch.export writes lift_fresh_copy */
            bool called = false, trained = false;
            for (int i = 0; i < pg->n_nodes; i++) {
                const char *target = pg->nodes[i].target;
                called |= !strcmp(strncmp(target, "torch.ops.", 10) ? target : target + 10, row->target);
            }
            for (int i = 0; i < m->p->params.n; i++)
                trained |= m->p->params.data[i].trained && is_of(m->p->params.data[i].name, row->target);
            if (called && trained) continue;
            print_error("%s has no case in tests/parity/each_operator.py\n", row->target);
            missing++;
        }
    assert_int_equal(missing, 0);
}

/* Five-point differences at up to five elements of each parameter. Operands are 0.03 away from kinks. */
static sp_status operators_body(comm *c, void *arg) {
    (void)arg;
    model m = {0};
    TRY(open_model(c, &m));
    check_coverage(&m);
    const double h = 1e-3;
    double loss;
    exec_zero_grads(m.e);
    TRY(exec_step(m.e, 1 / m.count, &loss));
    int bad = 0, compared = 0;
    for (int i = 0; i < m.p->params.n; i++) {
        const plan_param *q = &m.p->params.data[i];
        int64_t n = ir_numel(&q->type);
        if (!q->trained || strncmp(q->name, "aten/", 5) != 0) continue;
        for (int64_t k = 0; k < n; k += n / 5 + 1, compared++) {
            bool stopped = strstr(q->name, "/stopped_") != NULL;
            double slope =
                (8 * (moved(&m, i, k, h) - moved(&m, i, k, -h)) - (moved(&m, i, k, 2 * h) - moved(&m, i, k, -2 * h))) /
                (12 * h);
            if (stopped) slope = m.weights[k]; /* detached: nothing comes through the operator */
            double by_backward = ((const double *)exec_grad(m.e, i))[k];
            if (fabs(slope - by_backward) <= 1e-7 * fmax(1, fabs(slope))) continue;
            print_error("%s element %lld: %.10g by differences, %.10g by backward\n", q->name, (long long)k, slope,
                        by_backward);
            bad++;
            break;
        }
    }
    exec_free(m.e);
    import_close(&m.info);
    arena_free(m.a);
    CHECK(bad == 0, "%d parameters have a wrong gradient", bad);
    CHECK(compared > 500, "only %d elements were compared", compared);
    return SP_OK;
}

static void imported_operators(void **state) {
    (void)state;
    if (comm_loop_run(1, operators_body, NULL) != SP_OK) fail_msg("%s", err_text());
}

/* ---- the op table ---------------------------------------------------------------------------------------------- */

static void blocks(void **state) {
    (void)state;
    static const char *const files[] = {"block.ir", "rest.ir"}, *const exchange[] = {"a2a", "gather"};
    for (int f = 0; f < 2; f++) {
        job j = base_job();
        j.file = files[f];
        j.after = note;
        check_derivatives(j, 1, 1e-5, 3);
        for (int x = 0; x < 2; x++) {
            j.o.exchange = exchange[x];
            check_derivatives(j, 2, 1e-5, 3);
        }
    }
    job j = base_job();
    j.file = "sharded.ir";
    j.after = note;
    j.sharded = true;
    check_derivatives(j, 2, 1, MAX_NUMEL);
}

/* Runs last: what the tests above went through. */
static void every_op(void **state) {
    (void)state;
    int missing = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        const char *why = reason(op), *name = op_table[op].name;
        if (!why && !differentiated[op]) {
            print_error("%s: no finite differences; put it into tests/ir/rest.ir\n", name);
            missing++;
        }
        if (why && differentiated[op]) {
            print_error("%s: is said to have no gradient (%s), but lies between a parameter and a loss\n", name, why);
            missing++;
        }
        bool later = op == OP_dimval || op == OP_offload || op == OP_fetch || op == OP_loop || op == OP_fused;
        if (!occurs[op] && !later) {
            print_error("%s: in no step whose layout rules and costs were looked at\n", name);
            missing++;
        }
    }
    assert_int_equal(missing, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(imported_operators), cmocka_unit_test(blocks),
                                       cmocka_unit_test(every_op)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
