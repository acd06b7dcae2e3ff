/* Tests of the pass that decides what is kept (src/pass/save.h), on a decoder of several layers written as IR text.
 *
 * Oracles: the runtime on the graph before the pass (gradients must be equal bit by bit, on one and on several ranks),
 * the arena that the plan really takes, and the segments that the text was written with.
 */
#include "exec/exec.h"
#include "pass/pass.h"
#include "pass/save.h"
#include "pass/save_impl.h"
#include "train/measure.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct shape {
    int layers, d, heads, kv, f, vocab;
} shape;

/* The text of a decoder as exporters give it after simplify: norms, rotary positions, grouped heads, a gated MLP, tied
 * or untied head, a mean cross-entropy. */
static char *decoder(const shape *m) {
    buf b = {0};
    int v = 0, hd = m->d / m->heads;
    int ids = v++, labels = v++, embed = v++, x = v++;
    buf_printf(&b, "graph \"decoder\" {\n");
    buf_printf(&b, "%%%d = input {name=\"input_ids\", seq=1} : i64[B,S]\n", ids);
    buf_printf(&b, "%%%d = input {name=\"labels\", seq=1} : i64[B,S]\n", labels);
    buf_printf(&b, "%%%d = param {name=\"embed\", grad=1} : f32[%d,%d]\n", embed, m->vocab, m->d);
    buf_printf(&b, "%%%d = embedding(%%%d, %%%d) : f32[B,S,%d]\n", x, embed, ids, m->d);
    int pos = v++, posf = v++, col = v++, cfill = v++, crow = v++, cs = v++, ex = v++, cos = v++, sin = v++;
    buf_printf(&b, "%%%d = iota {dim=0, seq=1} : i64[S]\n", pos);
    buf_printf(&b, "%%%d = cast(%%%d) : f32[S]\n", posf, pos);
    buf_printf(&b, "%%%d = reshape(%%%d) : f32[1,S,1]\n", col, posf);
    buf_printf(&b, "%%%d = fill {value=0.3} : f32[]\n", cfill);
    buf_printf(&b, "%%%d = reshape(%%%d) : f32[1,1,1]\n", crow, cfill);
    buf_printf(&b, "%%%d = expand(%%%d) : f32[1,S,%d]\n", cs, crow, hd);
    buf_printf(&b, "%%%d = expand(%%%d) : f32[1,S,%d]\n", ex, col, hd);
    int ang = v++;
    buf_printf(&b, "%%%d = mul(%%%d, %%%d) : f32[1,S,%d]\n", ang, ex, cs, hd);
    buf_printf(&b, "%%%d = cos(%%%d) : f32[1,S,%d]\n%%%d = sin(%%%d) : f32[1,S,%d]\n", cos, ang, hd, sin, ang, hd);
    for (int l = 0; l < m->layers; l++) {
        int w[9];
        static const char *const names[9] = {"norm1", "wq", "wk", "wv", "wo", "norm2", "gate", "up", "down"};
        int rows[9] = {m->d, m->d, m->kv * hd, m->kv * hd, m->d, m->d, m->f, m->f, m->d};
        int cols[9] = {0, m->d, m->d, m->d, m->d, 0, m->d, m->d, m->f};
        for (int i = 0; i < 9; i++) {
            w[i] = v++;
            buf_printf(&b, "%%%d = param {name=\"l%d.%s\", grad=1} : f32[%d", w[i], l, names[i], rows[i]);
            buf_printf(&b, cols[i] ? ",%d]\n" : "]\n", cols[i]);
        }
        int h = v++, rs = v++;
        buf_printf(&b, "%%%d, %%%d = rmsnorm(%%%d, %%%d) {eps=1e-05} : f32[B,S,%d], f32[B,S]\n", h, rs, x, w[0], m->d);
        int qkv[3], heads[3] = {m->heads, m->kv, m->kv};
        for (int i = 0; i < 3; i++) {
            int p = v++, r = v++;
            buf_printf(&b, "%%%d = dot(%%%d, %%%d) {lc=[2], rc=[1], lb=[], rb=[]} : f32[B,S,%d]\n", p, h, w[1 + i],
                       heads[i] * hd);
            buf_printf(&b, "%%%d = reshape(%%%d) : f32[B,S,%d,%d]\n", r, p, heads[i], hd);
            qkv[i] = r;
            if (i == 2) continue;
            qkv[i] = v++;
            buf_printf(&b, "%%%d = rope(%%%d, %%%d, %%%d) : f32[B,S,%d,%d]\n", qkv[i], r, cos, sin, heads[i], hd);
        }
        int o = v++, lse = v++, or = v++, op = v++, x2 = v++;
        buf_printf(&b, "%%%d, %%%d = attention(%%%d, %%%d, %%%d) {scale=0.5, causal=1} : f32[B,S,%d,%d], f32[B,%d,S]\n",
                   o, lse, qkv[0], qkv[1], qkv[2], m->heads, hd, m->heads);
        buf_printf(&b, "%%%d = reshape(%%%d) : f32[B,S,%d]\n", or, o, m->d);
        buf_printf(&b, "%%%d = dot(%%%d, %%%d) {lc=[2], rc=[1], lb=[], rb=[]} : f32[B,S,%d]\n", op, or, w[4], m->d);
        buf_printf(&b, "%%%d = add(%%%d, %%%d) : f32[B,S,%d]\n", x2, x, op, m->d);
        int h2 = v++, rs2 = v++, g = v++, u = v++, act = v++, down = v++, y = v++;
        buf_printf(&b, "%%%d, %%%d = rmsnorm(%%%d, %%%d) {eps=1e-05} : f32[B,S,%d], f32[B,S]\n", h2, rs2, x2, w[5],
                   m->d);
        buf_printf(&b, "%%%d = dot(%%%d, %%%d) {lc=[2], rc=[1], lb=[], rb=[]} : f32[B,S,%d]\n", g, h2, w[6], m->f);
        buf_printf(&b, "%%%d = dot(%%%d, %%%d) {lc=[2], rc=[1], lb=[], rb=[]} : f32[B,S,%d]\n", u, h2, w[7], m->f);
        buf_printf(&b, "%%%d = swiglu(%%%d, %%%d) : f32[B,S,%d]\n", act, g, u, m->f);
        buf_printf(&b, "%%%d = dot(%%%d, %%%d) {lc=[2], rc=[1], lb=[], rb=[]} : f32[B,S,%d]\n", down, act, w[8], m->d);
        buf_printf(&b, "%%%d = add(%%%d, %%%d) : f32[B,S,%d]\n", y, x2, down, m->d);
        x = y;
    }
    int nw = v++, h = v++, rs = v++, logits = v++, rows = v++, lse = v++, sum = v++;
    buf_printf(&b, "%%%d = param {name=\"norm\", grad=1} : f32[%d]\n", nw, m->d);
    buf_printf(&b, "%%%d, %%%d = rmsnorm(%%%d, %%%d) {eps=1e-05} : f32[B,S,%d], f32[B,S]\n", h, rs, x, nw, m->d);
    buf_printf(&b, "%%%d = dot(%%%d, %%%d) {lc=[2], rc=[1], lb=[], rb=[]} : f32[B,S,%d]\n", logits, h, embed, m->vocab);
    buf_printf(&b, "%%%d, %%%d = xent(%%%d, %%%d) {ignore=-100} : f32[B,S], f32[B,S]\n", rows, lse, logits, labels);
    buf_printf(&b, "%%%d = sum(%%%d) {dims=[0,1]} : f32[]\n", sum, rows);
    int ig = v++, ig2 = v++, ig3 = v++, ne = v++, nf = v++, cnt = v++, loss = v++;
    buf_printf(&b, "%%%d = fill {value=-100.0} : i64[]\n%%%d = reshape(%%%d) : i64[1,1]\n", ig, ig2, ig);
    buf_printf(&b, "%%%d = expand(%%%d) : i64[B,S]\n%%%d = ne(%%%d, %%%d) : bool[B,S]\n", ig3, ig2, ne, labels, ig3);
    buf_printf(&b, "%%%d = cast(%%%d) : f32[B,S]\n%%%d = sum(%%%d) {dims=[0,1]} : f32[]\n", nf, ne, cnt, nf);
    buf_printf(&b, "%%%d = div(%%%d, %%%d) : f32[]\nreturn loss=%%%d\n}\n", loss, sum, cnt, loss);
    return b.data;
}

static ir_graph *joint_of(arena *a, const shape *m, int64_t batch, int64_t seq, int ranks) {
    char *text = decoder(m);
    ir_graph *g, *joint;
    if (ir_parse(a, text, "decoder", &g) != SP_OK) fail_msg("%s", err_text());
    free(text);
    pass_options o = {.batch = batch, .seq = seq, .ranks = ranks, .compute = DT_F32};
    if (pass_pipeline(g, &o, NULL, NULL, &joint) != SP_OK) fail_msg("%s", err_text());
    return joint;
}

static sp_status arena_of(void *ctx, const ir_graph *g, int64_t *bytes) {
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = ctx};
    plan *p;
    TRY(plan_build(g, &po, &p));
    *bytes = p->memory.arena;
    return SP_OK;
}

/* ---- gradients ---------------------------------------------------------------------------------- */

typedef struct job {
    const shape *m;
    int64_t batch, seq;
    save_options o;
    bool saved;   /* run the pass */
    float *grads; /* all of them, of rank 0; malloced */
    int64_t numel;
    double loss;
    int64_t arena, touched, host, host_touched;
    save_report report;
} job;

static sp_status rank_body(comm *c, void *arg) {
    job *j = arg;
    arena *a = arena_new();
    ir_graph *g = joint_of(a, j->m, j->batch, j->seq, comm_size(c));
    exec_options eo = {.dev = &device_cpu, .comm = c, .threads = 1};
    save_options o = j->o;
    save_report r = {0};
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    o.lower = &po;
    if (j->saved) {
        TRY(pass_save(g, &o, &r, &g));
        TRY(ir_verify(g, "save"));
    }
    plan *p;
    exec *e;
    TRY(plan_build(g, &po, &p));
    TRY(exec_new(p, &eo, &e));
    uint64_t seed = 3;
    for (int i = 0; i < p->params.n; i++) {
        int64_t n = ir_numel(&p->params.data[i].type);
        for (int64_t k = 0; k < n; k++)
            ((float *)exec_param(e, i))[k] =
                (float)(0.2 * rng_normal(&seed) + (strstr(p->params.data[i].name, "norm") ? 1 : 0));
    }
    int64_t n = j->batch * j->seq, *ids = calloc((size_t)n, 8), *labels = calloc((size_t)n, 8);
    for (int64_t k = 0; k < n; k++) {
        ids[k] = (int64_t)(rng_next(&seed) % (uint64_t)j->m->vocab);
        labels[k] = rng_next(&seed) % 5 == 0 ? -100 : (int64_t)(rng_next(&seed) % (uint64_t)j->m->vocab);
    }
    double count, loss;
    TRY(exec_set_input(e, "input_ids", ids, 0));
    TRY(exec_set_input(e, "labels", labels, p->ignore));
    TRY(exec_count(e, &count));
    exec_zero_grads(e);
    TRY(exec_step(e, 1 / count, &loss));
    TRY(exec_reduce_sum(e, &loss));
    TRY(exec_reduce_grads(e));
    if (comm_rank(c) == 0) {
        j->loss = loss / count;
        j->arena = p->memory.arena;
        j->touched = exec_touched_bytes(e);
        j->host = p->memory.section[SEC_HOST];
        int64_t bytes;
        void *host = exec_host(e, &bytes);
        assert_true(bytes >= j->host);
        TRY(measure_touched(host, j->host, &j->host_touched));
        j->report = r;
        j->report.segment = NULL;
        j->report.front = NULL;
        j->numel = 0;
        j->grads = NULL;
        for (int i = 0; i < p->params.n; i++) {
            int64_t k = ir_numel(&p->params.data[i].type);
            j->grads = realloc(j->grads, sizeof *j->grads * (size_t)(j->numel + k));
            memcpy(j->grads + j->numel, exec_grad(e, i), sizeof *j->grads * (size_t)k);
            j->numel += k;
        }
    }
    free(ids);
    free(labels);
    exec_free(e);
    arena_free(a);
    return SP_OK;
}

static void run(job *j, int ranks) {
    if (comm_loop_run(ranks, rank_body, j) != SP_OK) fail_msg("%d ranks: %s", ranks, err_text());
}

static const shape small = {4, 32, 4, 2, 48, 61};

static cost_machine machine(void) {
    cost_machine m;
    arena *a = arena_new();
    if (cost_machine_parse(a, "cpu", &m) != SP_OK) fail_msg("%s", err_text());
    m.name = "cpu";
    arena_free(a);
    return m;
}

static void gradients_are_equal_bit_by_bit(void **state) {
    (void)state;
    static const char *const policies[] = {"all", "layer", "pytorch", "autosp", "budget", "budget", "budget"};
    cost_machine m = machine();
    for (int ranks = 1; ranks <= 2; ranks++) {
        job plain = {.m = &small, .batch = 1, .seq = 64};
        run(&plain, ranks);
        int64_t least = 0;
        for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
            job j = plain;
            j.saved = true;
            j.o = (save_options){.policy = policies[i], .machine = &m};
            if (i >= 4) { /* three budgets between the leanest and the whole */
                j.o.memory = least + (plain.arena - least) * (int64_t)(i - 4) / 3;
            }
            run(&j, ranks);
            assert_int_equal(j.numel, plain.numel);
            assert_true(j.loss == plain.loss);
            if (memcmp(j.grads, plain.grads, sizeof *j.grads * (size_t)j.numel) != 0)
                fail_msg("%s on %d ranks: gradients differ", policies[i], ranks);
            if (j.o.memory) assert_int_equal(j.arena, j.report.arena);
            if (j.o.memory) assert_true(j.arena <= j.o.memory);
            if (i == 1) least = j.arena;
            if (i == 1) assert_true(j.arena < plain.arena);
            free(j.grads);
        }
        free(plain.grads);
    }
}

/* ---- the model of the graph ---------------------------------------------------------------------- */

/* Each layer is one segment, all but the first alike; in front the embedding, behind the head. */
static void layers_are_segments(void **state) {
    (void)state;
    cost_machine m = machine();
    for (int layers = 3; layers <= 9; layers += 3)
        for (int ranks = 1; ranks <= 4; ranks += 3) {
            shape s = small;
            s.layers = layers;
            arena *a = arena_new();
            ir_graph *g = joint_of(a, &s, 2, 16, ranks), *out;
            save_options o = {.policy = "layer", .machine = &m};
            save_report r;
            if (pass_save(g, &o, &r, &out) != SP_OK) fail_msg("%s", err_text());
            if (r.segments != layers + 2) {
                for (int i = 0; i < r.segments; i++)
                    printf("%d: %s class %d kept %lld window %lld\n", i, r.segment[i].name, r.segment[i].cls,
                           (long long)r.segment[i].kept, (long long)r.segment[i].window);
                fail_msg("%d layers: %d segments", layers, r.segments);
            }
            assert_int_equal(r.classes, 4);     /* the first layer's backward ends with the embedding's */
            for (int l = 1; l <= layers; l++) { /* one value kept: its input */
                assert_int_equal(r.segment[l].kept, 2 * 4 * 16 / ranks * 32);
                assert_int_equal(r.segment[l].kept_values, 1);
                if (l > 1) assert_int_equal(r.segment[l].cls, r.segment[2].cls);
            }
            arena_free(a);
        }
}

/* A plan of the whole pipeline on one rank; 1024 tokens unless o says how many. */
static save_report plan_of(const shape *s, pass_options o, double *seconds, int64_t *bytes) {
    cost_machine m = machine();
    arena *a = arena_new();
    char *text = decoder(s);
    ir_graph *g, *joint;
    save_report r = {0};
    exec_options eo = {.dev = &device_cpu, .threads = 1};
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    if (ir_parse(a, text, "decoder", &g) != SP_OK) fail_msg("%s", err_text());
    free(text);
    o.batch = o.ranks = 1;
    o.seq = o.seq ? o.seq : 1024;
    o.compute = DT_F32;
    o.tile_rows = o.seq / 16;
    o.machine = &m;
    o.lower = &po;
    o.save = &r;
    *seconds = INFINITY;
    save_segment *kept = NULL; /* outlives the arena; the caller's */
    if (pass_pipeline(g, &o, NULL, NULL, &joint) == SP_OK) {
        cost_step c = cost_graph(&m, joint);
        *seconds = c.forward + c.backward + c.again;
        assert_int_equal(arena_of(&eo, joint, bytes), SP_OK);
        if (o.memory) assert_true(*bytes <= o.memory);
        kept = calloc((size_t)r.segments, sizeof *kept);
        memcpy(kept, r.segment, sizeof *kept * (size_t)r.segments);
    }
    r.segment = kept;
    arena_free(a);
    return r;
}

static const shape wide = {8, 32, 4, 4, 88, 4096};

/* The last layer's MLP reads the gradient that the tiled loss head makes in the forward. That does not make the MLP the
 * head's: its values are no more kept than those of the other layers. */
static void a_tiled_loss_leaves_the_last_layer_whole(void **state) {
    (void)state;
    double seconds;
    int64_t bytes;
    pass_options o = {.save_policy = "layer", .tile_policy = "loss"};
    save_report r = plan_of(&wide, o, &seconds, &bytes);
    assert_int_equal(r.segments, wide.layers + 2);
    for (int l = 1; l <= wide.layers; l++) {
        assert_int_equal(r.segment[l].kept, 4 * 1024 * wide.d);
        assert_int_equal(r.segment[l].kept_values, 1);
    }
    free(r.segment);
}

/* Casts of values as wide as the vocabulary, and the loop of the loss head; NULL when it is not tiled. */
static int wide_casts(const ir_graph *g, int vocab, const ir_graph **head) {
    int n = 0;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *x = &g->nodes.data[i];
        const ir_type *t = x->nout ? ir_typeof(g, x->out[0]) : NULL;
        if (x->op == OP_loop && !x->tag) n += wide_casts(*head = x->region, vocab, head);
        n += x->op == OP_cast && t->rank == 3 && t->dim[2] == vocab;
    }
    return n;
}

/* In bf16 the logits' gradient is cast once for both of its products. And the head's loop makes the final norm and its
 * gradient: their operand is there anyway, so the norm's result, and its copy in bf16, need not be. */
static void the_heads_gradient_is_cast_once(void **state) {
    (void)state;
    static const char *const tiles[] = {"off", "loss"};
    cost_machine m = machine();
    for (int i = 0; i < 2; i++) {
        arena *a = arena_new();
        char *text = decoder(&wide);
        ir_graph *g, *joint;
        const ir_graph *head = NULL;
        if (ir_parse(a, text, "decoder", &g) != SP_OK) fail_msg("%s", err_text());
        free(text);
        pass_options o = {.batch = 1, .seq = 1024, .ranks = 1, .compute = DT_BF16, .machine = &m, .save_policy = "all"};
        o.tile_policy = tiles[i];
        if (pass_pipeline(g, &o, NULL, NULL, &joint) != SP_OK) fail_msg("%s", err_text());
        assert_int_equal(wide_casts(joint, wide.vocab, &head), 1);
        assert_true((head != NULL) == (i == 1));
        int norms = 0;
        for (int k = 0; head && k < head->nodes.n; k++)
            norms += head->nodes.data[k].op == OP_rmsnorm || head->nodes.data[k].op == OP_rmsnorm_grad;
        assert_int_equal(norms, 2 * i);
        arena_free(a);
    }
}

/* The first layer's input is an embedding, cheap to make again: the leanest plan keeps none of it. */
static void the_first_layers_input_may_run_again(void **state) {
    (void)state;
    double seconds;
    int64_t bytes;
    save_report r = plan_of(&wide, (pass_options){.save_policy = "least"}, &seconds, &bytes);
    assert_int_equal(r.segments, wide.layers + 1);
    assert_int_equal(r.segment[0].kept, 0);
    for (int l = 1; l < wide.layers; l++) assert_true(r.segment[l].kept >= 4 * 1024 * wide.d);
    free(r.segment);
}

/* With the bytes that another policy takes through the whole pipeline, tiles or not, ours is not slower. The other's
 * seconds and bytes are those of its own graph, lowered by itself. */
static void no_other_policy_is_faster_with_its_own_bytes(void **state) {
    (void)state;
    static const char *const policies[] = {"all", "pytorch", "autosp", "layer"}, *const tiles[] = {"off", "loss",
                                                                                                   "auto"};
    static const shape shapes[] = {{4, 64, 4, 4, 256, 4096}, {4, 128, 8, 8, 352, 8192}, {8, 32, 4, 2, 88, 4096}};
    int faster = 0;
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int i = 0; i < 12; i++) {
            double theirs, ours;
            int64_t bytes, got;
            pass_options o = {.save_policy = policies[i / 3], .tile_policy = tiles[i % 3], .seq = 8192};
            free(plan_of(&shapes[k], o, &theirs, &bytes).segment);
            free(plan_of(&shapes[k], (pass_options){.memory = bytes, .seq = 8192}, &ours, &got).segment);
            if (ours > theirs * (1 + 1e-9))
                fail_msg("shape %zu, %s, tiles %s: %g s in %lld bytes, ours %g s", k, policies[i / 3], tiles[i % 3],
                         theirs, (long long)bytes, ours);
            faster += ours < theirs;
        }
    assert_true(faster > 0);
}

/* More memory never slows the plan, every plan fits, and it is near the bound; too little is refused by name. */
static void budgets_are_monotone(void **state) {
    (void)state;
    cost_machine m = machine();

    arena *a = arena_new();
    shape s = small;
    s.layers = 8;
    ir_graph *g = joint_of(a, &s, 1, 256, 1), *out;
    exec_options eo = {.dev = &device_cpu, .threads = 1};
    int64_t all = 0, lean = 0, bytes = 0;
    assert_int_equal(arena_of(&eo, g, &all), SP_OK);
    save_report r;
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    save_options o = {.policy = "layer", .machine = &m, .lower = &po};
    assert_int_equal(pass_save(g, &o, &r, &out), SP_OK);
    assert_int_equal(arena_of(&eo, out, &lean), SP_OK);
    assert_true(lean < all / 2);
    o.policy = "budget";
    double before = INFINITY;
    for (int i = 0; i <= 12; i++) {
        o.memory = lean + (all - lean) * i / 12;
        if (pass_save(g, &o, &r, &out) != SP_OK) fail_msg("%s", err_text());
        assert_int_equal(arena_of(&eo, out, &bytes), SP_OK);
        assert_int_equal(bytes, r.arena);
        assert_true(bytes <= o.memory);
        assert_true(r.again <= before);
        assert_true(r.bound <= r.again + 1e-12);
        if (getenv("VERBOSE"))
            printf("budget %lld: %lld, again %.3f ms of %.3f, bound %.3f, gap %.3f%%, rounds %d\n", (long long)o.memory,
                   (long long)bytes, 1e3 * r.again, 1e3 * (r.forward + r.backward), 1e3 * r.bound, 100 * r.gap,
                   r.rounds);
        before = r.again;
    }
    assert_true(before == 0);
    o.memory = lean / 2;
    assert_int_equal(pass_save(g, &o, &r, &out), SP_FAIL);
    assert_non_null(strstr(err_text(), "the least feasible budget is"));
    assert_true(r.least > 0 && r.least <= lean);
    int64_t least = r.least;
    o.memory = least; /* and what it names is feasible */
    assert_int_equal(pass_save(g, &o, &r, &out), SP_OK);
    o.memory = least - 1;
    assert_int_equal(pass_save(g, &o, &r, &out), SP_FAIL);
    o.policy = "most";
    assert_int_equal(pass_save(g, &o, &r, &out), SP_FAIL);
    assert_non_null(strstr(err_text(), "all, pytorch, autosp, layer, budget or least"));
    arena_free(a);
}

/* What no plan beats: with the bytes that another policy's plan takes, the bound is not above what that plan computes
 * again. And at the same bytes ours is not slower. */
static void the_bound_holds_for_other_policies(void **state) {
    (void)state;
    static const char *const policies[] = {"all", "layer", "pytorch", "autosp"};
    cost_machine m = machine();
    exec_options eo = {.dev = &device_cpu, .threads = 1};
    plan_options po = {.workspace = exec_workspace, .ctx = &eo};
    int tight = 0;
    for (int layers = 2; layers <= 8; layers += 3)
        for (int ranks = 1; ranks <= 2; ranks++)
            for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
                shape s = small;
                s.layers = layers;
                arena *a = arena_new();
                ir_graph *g = joint_of(a, &s, 1, 256, ranks), *out;
                save_options o = {.policy = policies[i], .machine = &m, .lower = &po};
                save_report theirs, ours;
                if (pass_save(g, &o, &theirs, &out) != SP_OK) fail_msg("%s", err_text());
                assert_int_equal(arena_of(&eo, out, &o.memory), SP_OK);
                o.policy = "budget";
                if (pass_save(g, &o, &ours, &out) != SP_OK)
                    fail_msg("%s at %s's bytes: %s", "ours", policies[i], err_text());
                if (ours.bound > theirs.again * (1 + 1e-9))
                    fail_msg("%d layers, %d ranks, %s: computes %g s again, the bound says %g", layers, ranks,
                             policies[i], theirs.again, ours.bound);
                assert_true(ours.again <= theirs.again * (1 + 1e-9));
                tight += ours.bound > 0.5 * ours.again && ours.again > 0;
                arena_free(a);
            }
    assert_true(tight > 0); /* and it says something */
}

/* Estimated seconds of a step through the whole pipeline under a budget; infinity when nothing fits. */
static double step_of(const shape *s, const char *tiles, int64_t memory, int64_t *bytes) {
    double seconds;
    free(plan_of(s, (pass_options){.tile_policy = tiles, .memory = memory}, &seconds, bytes).segment);
    return seconds;
}

/* Whether to tile is decided with what is kept: never slower than tiles everywhere or nowhere, and monotone. */
static void tiles_are_chosen_with_the_plan(void **state) {
    (void)state;
    shape s = {4, 64, 4, 2, 512, 2048};
    int64_t all, bytes, least = INT64_MAX;
    step_of(&s, "off", 0, &all);
    double before = INFINITY;
    int won = 0;
    for (int i = 2; i <= 10; i++) {
        int64_t budget = all * i / 10;
        double off = step_of(&s, "off", budget, &bytes), both = step_of(&s, "auto", budget, &bytes);
        if (both == INFINITY) {
            assert_true(off == INFINITY);
            continue;
        }
        least = budget < least ? budget : least;
        assert_true(both <= off && both <= before);
        won += both < off;
        before = both;
    }
    assert_true(won > 0 && least < all / 2);
}

/* ---- host copies ---------------------------------------------------------------------------------- */

/* The least budget that is feasible, as the refusal of a byte says. */
static int64_t least_budget(const shape *s, int64_t seq, int ranks, int64_t host_memory) {
    cost_machine m = machine();
    arena *a = arena_new();
    exec_options eo = {.dev = &device_cpu, .threads = 1};
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    save_options o = {.memory = 1, .host_memory = host_memory, .machine = &m, .lower = &po};
    save_report r;
    ir_graph *out;
    assert_int_equal(pass_save(joint_of(a, s, 1, seq, ranks), &o, &r, &out), SP_FAIL);
    arena_free(a);
    return r.least;
}

/* A budget below what recomputation alone can do moves values to the host: same gradients, and all of the planned host
 * arena is really used. With room enough nothing moves; the host's budget is kept too. */
static void values_move_to_the_host(void **state) {
    (void)state;
    cost_machine m = machine();
    int64_t seq = 512, room = 1 << 20;
    shape deep = small; /* the first layer moves nothing: its input is made again */
    deep.layers = 8;
    for (int ranks = 1; ranks <= 2; ranks++) {
        job plain = {.m = &deep, .batch = 1, .seq = seq};
        run(&plain, ranks);
        assert_int_equal(plain.host, 0);
        int64_t without = least_budget(&deep, seq, ranks, 0), with = least_budget(&deep, seq, ranks, room);
        assert_true(with < without);
        int64_t all = 0;
        for (int i = 0; i < 4; i++) {
            job j = plain;
            j.saved = true;
            j.o = (save_options){.memory = with, .host_memory = room, .machine = &m};
            if (i == 1) j.o.memory = with + (without - with) / 2;
            if (i == 2) j.o.memory = plain.arena;
            if (i == 3) {
                j.o.host_memory = all - 1;
                j.o.memory = least_budget(&deep, seq, ranks, all - 1);
                assert_true(j.o.memory < without && j.o.memory >= with);
            }
            run(&j, ranks);
            if (getenv("VERBOSE"))
                printf("%d ranks: %lld bytes (plain %lld, without host %lld), host %lld\n", ranks, (long long)j.arena,
                       (long long)plain.arena, (long long)without, (long long)j.host);
            if (i == 0) all = j.host;
            assert_true(j.arena <= j.o.memory && j.host <= j.o.host_memory);
            assert_true(i == 2 || (j.host > 0 && j.arena < without));
            if (i == 2) assert_int_equal(j.host, 0);
            assert_int_equal(j.host_touched, j.host);
            assert_true(j.loss == plain.loss);
            assert_int_equal(j.numel, plain.numel);
            if (memcmp(j.grads, plain.grads, sizeof *j.grads * (size_t)j.numel) != 0)
                fail_msg("%d ranks: gradients differ with %lld bytes on the host", ranks, (long long)j.host);
            free(j.grads);
        }
        free(plain.grads);
    }
}

/* Copies leave behind the last forward reader, come back a segment early, and nobody in the backward reads the
 * original, which would keep its buffer alive. */
static void moves_stand_where_they_should(void **state) {
    (void)state;
    cost_machine m = machine();
    int64_t seq = 512, room = 1 << 20;
    shape s = small;
    s.layers = 8;
    arena *a = arena_new();
    exec_options eo = {.dev = &device_cpu, .threads = 1};
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    save_options o = {.host_memory = room, .machine = &m, .lower = &po, .memory = least_budget(&s, seq, 1, room)};
    save_report r;
    ir_graph *g;
    if (pass_save(joint_of(a, &s, 1, seq, 1), &o, &r, &g) != SP_OK) fail_msg("%s", err_text());
    int moves = 0;
    ir_val *root = ARENA_ARRAY(a, ir_val, g->values.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        for (int k = 0; k < n->nout; k++) root[n->out[k]] = op_table[n->op].flags & F_VIEW ? root[n->in[0]] : n->out[k];
    }
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_offload) {
            assert_int_equal(n->tag, 0);
            for (int j = i + 1; j < g->nodes.n; j++)
                for (int k = 0; k < g->nodes.data[j].nin; k++)
                    assert_int_not_equal(root[g->nodes.data[j].in[k]], root[n->in[0]]);
        }
        if (n->op != OP_fetch) continue;
        moves++;
        assert_int_equal(n->tag, 1);
        assert_int_equal(ir_def(g, n->in[0])->op, OP_offload);
        int between = 0; /* another layer's backward, or the loss's */
        bool read = false;
        for (int j = i + 1; j < g->nodes.n && !read; j++) {
            const ir_node *x = &g->nodes.data[j];
            for (int k = 0; k < x->nin; k++) read |= root[x->in[k]] == n->out[0];
            between += !read && (x->op == OP_attention_grad || x->op == OP_xent_grad);
        }
        assert_true(read && between == 1);
    }
    assert_true(moves >= s.layers - 1);
    assert_int_equal(r.segment[r.segments - 1].host, 0);
    assert_true(r.host > 0 && r.host <= room);
    arena_free(a);
}

/* ---- the others' rules ---------------------------------------------------------------------------- */

/* What a rule keeps of one decoder, by the operator that made it: "dot dot attention ...", in order, of the middle
 * layer (between its input and the next one's). */
static void kept_by(const char *policy, int64_t seq, int ranks, buf *text) {
    cost_machine mach = machine();
    arena *a = arena_new();
    shape s = small;
    s.layers = 3;
    ir_graph *g = joint_of(a, &s, 1, seq, ranks);
    save_options o = {.machine = &mach};
    save_model m;
    remat_plan p;
    assert_int_equal(save_model_build(a, g, &o, true, false, &m), SP_OK);
    assert_int_equal(save_rule_plan(&m, strcmp(policy, "autosp") == 0, &p), SP_OK);
    assert_true(remat_complete(&m.seg[0].s, &p, NULL));
    int adds = 0;
    for (int i = 0; i < m.seg[0].s.nfwd; i++) {
        const remat_op *op = &m.seg[0].s.fwd[i];
        const ir_node *n = &g->nodes.data[m.seg[0].fwd[i]];
        for (int j = 0; j < op->nout && adds >= 2 && adds < 4; j++)
            if (p.saved[op->out[j]]) buf_printf(text, "%s%s%s", text->n ? " " : "", op_table[n->op].name, j ? "'" : "");
        adds += n->op == OP_add;
    }
    arena_free(a);
}

/* The sets are those of tests/parity/saved_set.py, which asks PyTorch. */
static void rules_keep_what_they_say(void **state) {
    (void)state;
    static const struct {
        const char *policy;
        int64_t seq;
        int ranks;
        const char *kept;
    } cases[] = {
        /* PyTorch: products, attention, what products read again, residual sums. */
        {"pytorch", 64, 1,
         "rmsnorm rmsnorm' rope rope dot attention attention' add rmsnorm rmsnorm' dot dot swiglu add"},
        /* AutoSP frees products by name at any length, and past 4096 rows also what products read again; attention, its
         * rotated operands (dimension 1 of theirs counts heads), residual sums and reductions stay. */
        {"autosp", 64, 1, "rmsnorm rmsnorm' rope rope attention attention' add rmsnorm rmsnorm' swiglu add"},
        {"autosp", 8192, 1, "rmsnorm' rope rope attention attention' add rmsnorm' add"},
        /* Between ranks the operands come out of an exchange, which may run again. Not so the rotation before it: its
         * tables are read far apart, in each layer, so readers behind the first layer's are banned. */
        {"autosp", 16384, 2, "rmsnorm' all_to_all all_to_all attention attention' add rmsnorm' add"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buf kept = {0};
        kept_by(cases[i].policy, cases[i].seq, cases[i].ranks, &kept);
        assert_string_equal(kept.data, cases[i].kept);
        buf_free(&kept);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_are_segments),
        cmocka_unit_test(a_tiled_loss_leaves_the_last_layer_whole),
        cmocka_unit_test(the_heads_gradient_is_cast_once),
        cmocka_unit_test(the_first_layers_input_may_run_again),
        cmocka_unit_test(no_other_policy_is_faster_with_its_own_bytes),
        cmocka_unit_test(gradients_are_equal_bit_by_bit),
        cmocka_unit_test(budgets_are_monotone),
        cmocka_unit_test(the_bound_holds_for_other_policies),
        cmocka_unit_test(tiles_are_chosen_with_the_plan),
        cmocka_unit_test(values_move_to_the_host),
        cmocka_unit_test(moves_stand_where_they_should),
        cmocka_unit_test(rules_keep_what_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
