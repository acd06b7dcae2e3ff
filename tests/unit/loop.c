/* Loops, from text to numbers: a loop is what its region says when it is written out, whatever the number of tiles;
 * what is not a loop is refused. */
#include "comm/comm.h"
#include "exec/exec.h"

#include <math.h>
#include <stdlib.h>

#include <setjmp.h>
#include <cmocka.h>

enum { MAX_NUMEL = 128, MAX_PARAMS = 4 };

typedef struct numbers {
    double loss, grad[MAX_PARAMS][MAX_NUMEL];
    int n, numel[MAX_PARAMS];
    int64_t work;
} numbers;

static char *text_of(arena *a, const char *name) {
    FILE *f = fopen(arena_printf(a, "%s/tests/ir/%s", AUTOSP_SOURCE_DIR, name), "r");
    assert_non_null(f);
    char *t = arena_alloc(a, 1 << 16);
    t[fread(t, 1, (1 << 16) - 1, f)] = 0;
    fclose(f);
    return t;
}

/* The graph with the nodes of every region in its loop's place. */
static ir_graph *inlined(const ir_graph *g) {
    ir_graph *h = ir_new(g->a, g->name);
    h->seq = g->seq;
    h->seq_valid = g->seq_valid;
    ir_val *map = ARENA_ARRAY(g->a, ir_val, g->values.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op != OP_loop) {
            assert_int_equal(ir_copy_node(h, g, i, map), SP_OK);
            continue;
        }
        ir_val *in = ARENA_ARRAY(g->a, ir_val, n->region->values.n);
        int operand = 0;
        for (int k = 0; k < n->region->nodes.n; k++) {
            const ir_node *m = &n->region->nodes.data[k];
            if (m->op == OP_input)
                in[m->out[0]] = map[n->in[operand++]];
            else
                assert_int_equal(ir_copy_node(h, n->region, k, in), SP_OK);
        }
        for (int k = 0; k < n->nout; k++) map[n->out[k]] = in[n->region->outputs.data[k].value];
    }
    for (int i = 0; i < g->outputs.n; i++) ir_set_output(h, g->outputs.data[i].name, map[g->outputs.data[i].value]);
    return h;
}

typedef struct job {
    const ir_graph *g;
    const device *dev;
    numbers *r;
} job;

static sp_status body(comm *c, void *ctx) {
    job *j = ctx;
    exec_options eo = {.dev = j->dev, .comm = c, .threads = 2};
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    plan *p;
    exec *e;
    TRY(plan_build(j->g, &po, &p));
    TRY(exec_new(p, &eo, &e));
    uint64_t seed = 5;
    int64_t ids[16], labels[16];
    for (int i = 0; i < p->params.n; i++)
        for (int64_t k = 0; k < ir_numel(&p->params.data[i].type); k++)
            ((double *)exec_param(e, i))[k] = rng_normal(&seed);
    for (int k = 0; k < 16; k++) {
        ids[k] = (int64_t)(rng_next(&seed) % 13);
        labels[k] = k % 5 ? (int64_t)(rng_next(&seed) % 13) : -100;
    }
    exec_zero_grads(e);
    for (int twice = 0; twice < 2; twice++) { /* gradients add up; nothing else is left over */
        TRY(exec_set_input(e, "input_ids", ids, 0));
        TRY(exec_set_input(e, "labels", labels, -100));
        TRY(exec_step(e, 0.25, &j->r->loss));
    }
    j->r->n = p->params.n;
    j->r->work = p->memory.section[SEC_WORK];
    for (int i = 0; i < p->params.n; i++) {
        j->r->numel[i] = (int)ir_numel(&p->params.data[i].type);
        memcpy(j->r->grad[i], exec_grad(e, i), sizeof(double) * (size_t)j->r->numel[i]);
    }
    exec_free(e);
    return SP_OK;
}

static void run(const ir_graph *g, const device *dev, numbers *r) {
    job j = {g, dev, r};
    if (comm_loop_run(1, body, &j) != SP_OK) fail_msg("%s", err_text());
}

static void loop_equals_its_region(void **state) {
    (void)state;
    static const int tiles[] = {2, 4, 8};
    arena *a = arena_new();
    char *text = text_of(a, "loop.ir");
    for (size_t t = 0; t < sizeof tiles / sizeof *tiles; t++) {
        char *tiled = arena_strdup(a, text);
        for (char *c = tiled; (c = strstr(c, "tiles=4"));) c[6] = (char)('0' + tiles[t]), c += 7;
        for (char *c = tiled; (c = strstr(c, "tile=4)"));) c[5] = (char)('0' + tiles[t]), c += 6;
        ir_graph *g;
        numbers in_tiles, whole;
        if (ir_parse(a, tiled, "loop.ir", &g) != SP_OK || ir_verify(g, "parsing") != SP_OK) fail_msg("%s", err_text());
        ir_graph *h = inlined(g);
        assert_int_equal(ir_verify(h, "inlining"), SP_OK);
        for (int d = 0; d < 2; d++) {
            run(g, d ? &device_cpu : &device_ref, &in_tiles);
            run(h, d ? &device_cpu : &device_ref, &whole);
            assert_true(fabs(in_tiles.loss - whole.loss) <= 1e-13 * fabs(whole.loss));
            assert_int_equal(in_tiles.n, 3);
            for (int i = 0; i < whole.n; i++)
                for (int k = 0; k < whole.numel[i]; k++)
                    if (!(fabs(in_tiles.grad[i][k] - whole.grad[i][k]) <= 1e-13))
                        fail_msg("%d tiles, parameter %d element %d: %.17g, written out %.17g", tiles[t], i, k,
                                 in_tiles.grad[i][k], whole.grad[i][k]);
        }
        if (tiles[t] == 8) assert_true(in_tiles.work < whole.work);
    }
    arena_free(a);
}

static void text_is_stable(void **state) {
    (void)state;
    arena *a = arena_new();
    ir_graph *g, *h;
    buf x = {0}, y = {0};
    assert_int_equal(ir_parse(a, text_of(a, "loop.ir"), "loop.ir", &g), SP_OK);
    ir_print(g, &x);
    assert_int_equal(ir_parse(a, x.data, "printed", &h), SP_OK);
    ir_print(h, &y);
    assert_string_equal(x.data, y.data);
    buf_free(&x);
    buf_free(&y);
    arena_free(a);
}

static void wrong_loops_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *says;
    } edits[] = {
        {"{tiles=4}", "{tiles=2}", "axis has 4"},
        {"mesh(tile=4)", "mesh(tiles=4)", "an axis of the mesh"},
        {"loop(%5, %3, %9, %8, %4)", "loop(%5, %3, %9, %8)", "more inputs"},
        {"loop(%5, %3, %9, %8, %4)", "loop(%5, %2, %9, %9, %4)", "another type"},
        {"f64[2,8,6]@tile=S1\n    %1", "f64[2,8,6]@tile=S0\n    %1", "the axis divides"},
        {"{name=\"norm\"} : f64[6]", "{name=\"norm\"} : f64[6]@tile=P", "which only linear"},
        {"dnorm=%17, lse", "dnorm=%4, lse", "the same in every tile"},
        {"    %19 = reshape(%10)", "    %20 = param {name=\"q\"} : f64[6]\n    %19 = reshape(%10)",
         "not be in a region"},
        {"dims=[0]} : f64[]@tile=P", "dims=[0]} : f64[]", "not as written"},
        {"dnorm=%17, ", "", "the region returns 3"},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        arena *a = arena_new();
        char *text = text_of(a, "loop.ir"), *at = strstr(text, edits[i].from);
        assert_non_null(at);
        char *edited = arena_printf(a, "%.*s%s%s", (int)(at - text), text, edits[i].to, at + strlen(edits[i].from));
        ir_graph *g = NULL;
        if (ir_parse(a, edited, "loop.ir", &g) == SP_OK && ir_verify(g, "parsing") == SP_OK)
            fail_msg("accepted with '%s'", edits[i].to);
        if (!strstr(err_text(), edits[i].says)) fail_msg("'%s': %s", edits[i].to, err_text());
        arena_free(a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(loop_equals_its_region), cmocka_unit_test(text_is_stable),
                                       cmocka_unit_test(wrong_loops_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
