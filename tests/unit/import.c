/* Tests of the import (src/import/lower*.c): committed PyTorch exports, small programs written here, and mutated ones.
 * What PyTorch computes with the imported graphs is checked end to end in tests/parity and tests/exec. */
#include "import/import.h"
#include "import/safetensors.h"
#include "scratch.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <unistd.h>
#include <zip.h>

/* ---- real exports ------------------------------------------------------------------------------------------ */

static void check_loss(const ir_graph *g) {
    ir_val loss = ir_find_output(g, "loss");
    assert_true(g->outputs.n == 1 && loss >= 0);
    assert_int_equal(ir_opof(g, loss), OP_div);
    assert_int_equal(ir_typeof(g, loss)->rank, 0);
}

/* The trainable parameters are those for which PyTorch has a gradient. */
static void check_parameters(const char *name, const import_info *info) {
    char file[512];
    snprintf(file, sizeof file, "%s/tests/fixtures/%s.safetensors", AUTOSP_SOURCE_DIR, name);
    st_file *f;
    if (st_open(file, &f) != SP_OK) fail_msg("%s", err_text());
    int grads = 0, trainable = 0;
    for (int i = 0; i < st_count(f); i++) grads += !strncmp(st_at(f, i)->name, "grad.", 5);
    for (int i = 0; i < info->n_params; i++) {
        const import_param *p = &info->params[i];
        if (!p->trainable || !p->used) continue;
        char key[300];
        snprintf(key, sizeof key, "grad.%s", p->name);
        const st_tensor *t = st_find(f, key);
        if (!t) fail_msg("%s: PyTorch has no gradient for %s", name, p->name);
        const pt2_weight *w = &info->program->weights[p->weight];
        assert_int_equal(t->ndim, w->ndim);
        for (int d = 0; d < t->ndim; d++) assert_int_equal(t->size[d], w->size[d]);
        trainable++;
    }
    if (grads != trainable) fail_msg("%s: %d gradients in PyTorch, %d parameters here", name, grads, trainable);
    st_close(f);
}

static int count_op(const ir_graph *g, ir_op op) {
    int n = 0;
    for (int i = 0; i < g->nodes.n; i++) n += g->nodes.data[i].op == op;
    return n;
}

static void exports_of_pytorch_import(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int attention, xent; /* how many nodes */
        bool shifted;
    } cases[] = {
        {"llama", 2, 1, false},          {"llama-shifted", 2, 1, true}, {"llama-packed", 2, 1, false},
        {"llama-eager", 0, 1, false},    {"gpt2", 2, 1, false},         {"qwen2", 2, 1, false},
        {"mistral-window", 2, 1, false}, {"gpt-neox", 2, 1, false},     {"falcon-alibi", 2, 1, false},
        {"gemma2", 0, 1, false},         {"lora", 2, 1, true},          {"einsum", 0, 1, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char file[512];
        snprintf(file, sizeof file, "%s/tests/fixtures/%s.pt2", AUTOSP_SOURCE_DIR, cases[i].name);
        arena *a = arena_new();
        ir_graph *g;
        import_info info;
        if (import_pt2(a, file, &g, &info) != SP_OK) fail_msg("%s", err_text());
        check_loss(g);
        check_parameters(cases[i].name, &info);
        if (count_op(g, OP_attention) != cases[i].attention && cases[i].attention)
            fail_msg("%s: %d attention nodes", cases[i].name, count_op(g, OP_attention));
        assert_int_equal(count_op(g, OP_xent), cases[i].xent);
        assert_int_equal(info.labels_shifted, cases[i].shifted);
        assert_int_equal(info.seq, 0);
        assert_int_equal(info.seq_min, 2);
        /* the text form keeps it */
        buf text = {0}, again = {0};
        ir_graph *h;
        ir_print(g, &text);
        if (ir_parse(a, text.data, cases[i].name, &h) != SP_OK) fail_msg("%s", err_text());
        ir_print(h, &again);
        if (!strstr(text.data, "  #")) fail_msg("values have no names");
        assert_int_equal(h->nodes.n, g->nodes.n);
        buf_free(&text);
        buf_free(&again);
        import_close(&info);
        arena_free(a);
    }
}

static void tied_weights_are_one_parameter(void **state) {
    (void)state;
    arena *a = arena_new();
    ir_graph *g;
    import_info info;
    if (import_pt2(a, AUTOSP_SOURCE_DIR "/tests/fixtures/gpt2.pt2", &g, &info) != SP_OK) fail_msg("%s", err_text());
    int found = 0;
    for (int i = 0; i < info.n_params; i++) {
        assert_string_not_equal(info.params[i].name, "m.lm_head.weight");
        found += !strcmp(info.params[i].name, "m.transformer.wte.weight");
    }
    assert_int_equal(found, 1);
    import_close(&info);
    arena_free(a);
}

static void bad_models_are_named(void **state) {
    (void)state;
    static const struct {
        const char *name, *says[3];
    } cases[] = {
        {"unsupported-ops", {"aten.fft_rfft.default", "aten.linalg_qr.default", "aten.special_bessel_j0.default"}},
        {"experts", {"aten.topk.default", "1 time", ""}},
        {"cond", {"higher_order.cond", "torch.where", "make_bad.py:"}},
        {"loop", {"higher_order.while_loop", "fixed number of turns", "make_bad.py:"}},
        {"selected", {"aten.masked_select.default", "depend on data", "make_bad.py:"}},
        {"kernel", {"mine.fused_scale.default", "plain PyTorch code", "make_bad.py:"}},
        {"quantised", {"aten._weight_int8pack_mm.default", "float32 or bfloat16", "make_bad.py:"}},
        {"buffer-mutation", {"changes mean (b_mean) in place", "", ""}},
        {"two-outputs", {"returns 2 values", "only the loss", ""}},
        {"vector-loss", {"rank 1", "only the loss", ""}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char file[512];
        snprintf(file, sizeof file, "%s/tests/fixtures/bad/%s.pt2", AUTOSP_SOURCE_DIR, cases[i].name);
        arena *a = arena_new();
        ir_graph *g;
        import_info info;
        if (import_pt2(a, file, &g, &info) == SP_OK) fail_msg("%s was accepted", cases[i].name);
        assert_null(info.program);
        for (int k = 0; k < 3; k++)
            if (!strstr(err_text(), cases[i].says[k]))
                fail_msg("\"%s\" does not say \"%s\"", err_text(), cases[i].says[k]);
        if (!strstr(err_text(), file)) fail_msg("\"%s\" does not name the file", err_text());
        arena_free(a);
    }
}

/* ---- small programs ------------------------------------------------------------------------------------------ */

/* Programs are written with ' for ": a program over input_ids, labels (B,S) and the parameters w (6,4), v (4), m (4,4)
 * with the given nodes. EMBED makes x, (B,S,4); MEAN makes the loss of the value `out`. */
/* clang-format off */
#define TENSOR(n) "{'as_tensor':{'name':'" n "'}}"
#define ARG(k, v) "{'name':'" k "','arg':" v ",'kind':1}"
#define T(k, n) ARG(k, TENSOR(n))
#define I(k, v) ARG(k, "{'as_int':" v "}")
#define F(k, v) ARG(k, "{'as_float':" v "}")
#define LIST(k, v) ARG(k, "{'as_ints':[" v "]}")
#define NODE_OUT(target, args, outs) "{'target':'torch.ops." target "','inputs':[" args "],'outputs':[" outs "],'metadata':{}}"
#define NODE(target, args, out) NODE_OUT(target, args, TENSOR(out))
#define SYMBOL(s) "{'as_expr':{'expr_str':'" s "','hint':null}}"
#define SIZE(s) "{'as_int':" s "}"
#define META(t, dims) "{'dtype':" t ",'sizes':[" dims "]}"
#define EMBED NODE("aten.embedding.default", T("weight", "w") "," T("indices", "input_ids"), "x")
#define MEAN NODE("aten.mean.default", T("self", "out"), "loss")

static const char program_text[] =
    "{'graph_module':{'graph':{"
    "'inputs':[" TENSOR("w") "," TENSOR("v") "," TENSOR("m") "," TENSOR("input_ids") "," TENSOR("labels") "],"
    "'outputs':[" TENSOR("loss") "],"
    "'nodes':[%s],"
    "'tensor_values':{%s%s"
    "'input_ids':" META("5", SYMBOL("s0") "," SYMBOL("s1")) ",'labels':" META("5", SYMBOL("s0") "," SYMBOL("s1")) "},"
    "'sym_int_values':{}},"
    "'signature':{'input_specs':["
    "{'parameter':{'arg':{'name':'w'},'parameter_name':'w'}},"
    "{'parameter':{'arg':{'name':'v'},'parameter_name':'v'}},"
    "{'parameter':{'arg':{'name':'m'},'parameter_name':'m'}},"
    "{'user_input':{'arg':" TENSOR("input_ids") "}},"
    "{'user_input':{'arg':" TENSOR("labels") "}}],"
    "'output_specs':[{'user_output':{'arg':" TENSOR("loss") "}}]}},"
    "'range_constraints':{'s1':{'min_val':3,'max_val':1000}},"
    "'schema_version':{'major':8,'minor':14},'torch_version':'2.9.0'}";

#define WEIGHT(name, offset, size, stride) \
    "'" name "':{'path_name':'weight_0','is_param':true,'tensor_meta':{'dtype':7,'sizes':[" size "],'strides':[" stride "]," \
    "'requires_grad':true,'storage_offset':{'as_int':" offset "}}}"
static const char weights_text[] =
    "{'config':{"
    WEIGHT("w", "0", SIZE("6") "," SIZE("4"), SIZE("4") "," SIZE("1")) ","
    WEIGHT("v", "24", SIZE("4"), SIZE("1")) ","
    WEIGHT("m", "28", SIZE("4") "," SIZE("4"), SIZE("4") "," SIZE("1")) "}}";
/* clang-format on */

static void write_program(const char *nodes, const char *metas) {
    unlink(path);
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    assert_non_null(z);
    buf b = {0}, c = {0};
    buf_printf(&b, program_text, nodes, metas ? metas : "", metas ? "," : "");
    buf_printf(&c, "%s", weights_text);
    for (size_t i = 0; i < b.n; i++)
        if (b.data[i] == '\'') b.data[i] = '"';
    for (size_t i = 0; i < c.n; i++)
        if (c.data[i] == '\'') c.data[i] = '"';
    static const float data[44];
    const struct {
        const char *name;
        const void *data;
        size_t n;
    } entries[] = {{"m/models/model.json", b.data, b.n},
                   {"m/data/weights/model_weights_config.json", c.data, c.n},
                   {"m/data/weights/weight_0", data, sizeof data}};
    for (int i = 0; i < 3; i++) {
        zip_int64_t k = zip_file_add(z, entries[i].name, zip_source_buffer(z, entries[i].data, entries[i].n, 0), 0);
        assert_int_equal(zip_set_file_compression(z, (zip_uint64_t)k, ZIP_CM_STORE, 0), 0);
    }
    assert_int_equal(zip_close(z), 0);
    buf_free(&b);
    buf_free(&c);
}

/* The import of a program as text, without its parameters and value names. */
static char *text_of(const char *nodes, const char *metas) {
    write_program(nodes, metas);
    arena *a = arena_new();
    ir_graph *g;
    import_info info;
    if (import_pt2(a, path, &g, &info) != SP_OK) fail_msg("%s", err_text());
    buf b = {0};
    ir_print(g, &b);
    import_close(&info);
    arena_free(a);
    return b.data;
}

static void expect_in(const char *nodes, const char *metas, const char *wanted) {
    char *text = text_of(nodes, metas);
    if (!strstr(text, wanted)) fail_msg("no \"%s\" in\n%s", wanted, text);
    free(text);
}

static void expect_refused(const char *nodes, const char *metas, const char *word) {
    write_program(nodes, metas);
    arena *a = arena_new();
    ir_graph *g;
    import_info info;
    if (import_pt2(a, path, &g, &info) == SP_OK) fail_msg("accepted: expected \"%s\"", word);
    if (!strstr(err_text(), word) || !strstr(err_text(), path))
        fail_msg("\"%s\" does not say \"%s\"", err_text(), word);
    arena_free(a);
}

/* UNARY(op, args): out = op(x, args), then the mean */
#define ON_X(target, args) EMBED "," NODE(target, T("self", "x") args, "out") "," MEAN

static void sizes_are_symbolic(void **state) {
    (void)state;
    expect_in(ON_X("aten.view.default", "," LIST("size", "-1,4")), NULL, ": f32[mul(B,S),4]");
    expect_in(ON_X("aten.view.default", "," LIST("size", "-1,2")), NULL, ": f32[mul(mul(B,S),2),2]");
    expect_in(ON_X("aten.flatten.using_ints", "," I("end_dim", "1")), NULL, ": f32[mul(B,S),4]");
    expect_in(ON_X("aten.slice.Tensor", "," I("dim", "1") "," I("start", "1") "," I("end", "9223372036854775807")),
              NULL, "range=[1,S], step=1} : f32[B,add(S,-1),4]");
    expect_in(ON_X("aten.slice.Tensor", "," I("dim", "1") "," I("end", "-1")), NULL,
              "range=[0,add(S,-1)], step=1} : f32[B,add(S,-1),4]");
    expect_in(ON_X("aten.slice.Tensor", "," I("dim", "-1") "," I("start", "-3") "," I("end", "100")), NULL,
              "range=[1,4], step=1} : f32[B,S,3]");
    expect_in(ON_X("aten.select.int", "," I("dim", "1") "," I("index", "-1")), NULL, "range=[add(S,-1),S]");
    expect_in(ON_X("aten.pad.default", "," LIST("pad", "0,0,1,2")), NULL,
              "pad(%2) {dim=1, lo=1, hi=2, value=0.0} : f32[B,add(S,3),4]");
    expect_in(ON_X("aten.unsqueeze.default", "," I("dim", "-1")), NULL, ": f32[B,S,4,1]");
    expect_in(ON_X("aten.transpose.int", "," I("dim0", "0") "," I("dim1", "-1")), NULL, "{perm=[2,1,0]} : f32[4,S,B]");
}

static void numbers_do_not_promote(void **state) {
    (void)state;
    expect_in(ON_X("aten.add.Tensor", "," F("other", "0.5")), NULL, "fill {value=0.5} : f32[]");
    /* an integer tensor with a float becomes float; with an integer it stays */
    expect_in(EMBED "," NODE("aten.mul.Tensor", T("self", "input_ids") "," F("other", "0.5"), "y") "," NODE(
                  "aten.unsqueeze.default", T("self", "y") "," I("dim", "2"),
                  "y2") "," NODE("aten.mul.Tensor", T("self", "x") "," T("other", "y2"), "out") "," MEAN,
              NULL, ": f32[B,S]");
    expect_in(EMBED "," NODE("aten.eq.Scalar", T("self", "input_ids") "," I("other", "3"), "y") "," NODE(
                  "aten.unsqueeze.default", T("self", "y") "," I("dim", "2"),
                  "y2") "," NODE("aten.mul.Tensor", T("self", "x") "," T("other", "y2"), "out") "," MEAN,
              NULL, "eq(");
    /* alpha; a square is a product */
    expect_in(ON_X("aten.add.Tensor", "," T("other", "x") "," F("alpha", "2.0")), NULL, "fill {value=2.0}");
    expect_in(ON_X("aten.pow.Tensor_Scalar", "," I("exponent", "2")), NULL, "mul(%2, %2)");
    /* the declared element type is kept even where ours would be wider */
    expect_in(ON_X("aten.to.dtype", "," ARG("dtype", "{'as_scalar_type':13}")),
              "'out':" META("13", SYMBOL("s0") "," SYMBOL("s1") "," SIZE("4")), "bf16[B,S,4]");
}

static void regions_stop_gradients(void **state) {
    (void)state;
#define REGION(flag, target)                                                                                           \
    EMBED "," NODE_OUT(                                                                                                \
        "higher_order." target,                                                                                        \
        ARG("", "{'as_bool':" flag "}") ",{'name':'','arg':{'as_graph':{'name':'g','graph':{"                          \
                                        "'inputs':[" TENSOR("a") "],'outputs':[" TENSOR("b") "],'nodes':[" NODE(       \
                                            "aten.exp.default", T("self", "a"),                                        \
                                            "b") "],"                                                                  \
                                                 "'tensor_values':{},'sym_int_values':{}}}}}," T("", "v"),             \
        TENSOR("e")) "," NODE("aten.mul.Tensor", T("self", "x") "," T("other", "e"), "out") "," MEAN
    expect_in(REGION("false", "wrap_with_set_grad_enabled"), NULL, "stop_grad(");
    char *text = text_of(REGION("true", "wrap_with_set_grad_enabled"), NULL);
    assert_null(strstr(text, "stop_grad"));
    assert_non_null(strstr(text, "exp("));
    free(text);
    expect_in(ON_X("aten.detach.default", "") "," NODE("aten.mean.default", T("self", "x"), "l2") "," NODE(
                  "aten.add.Tensor", T("self", "l2") "," T("other", "loss"), "loss"),
              NULL, "stop_grad(");
    expect_refused(ON_X("aten.detach.default", ""), NULL, "no trainable parameter");
}

static void in_place_operators_become_functions(void **state) {
    (void)state;
    /* y = x + 0; y.mul_(y); later uses of y see the new value */
#define COPY_X EMBED "," NODE("aten.exp.default", T("self", "x"), "y")
    expect_in(COPY_X "," NODE("aten.add_.Tensor", T("self", "y") "," F("other", "1.0"),
                              "y2") "," NODE("aten.neg.default", T("self", "y"), "out") "," MEAN,
              NULL, "%7 = add(%3, %6) : f32[B,S,4]  # y2\n  %8 = neg(%7)");
    /* a view taken before the change shows it */
    expect_in(COPY_X "," NODE("aten.transpose.int", T("self", "y") "," I("dim0", "1") "," I("dim1", "2"),
                              "t") "," NODE("aten.add_.Tensor", T("self", "y") "," F("other", "1.0"),
                                            "y2") "," NODE("aten.neg.default", T("self", "t"), "out") "," MEAN,
              NULL,
              "%7 = add(%3, %6) : f32[B,S,4]  # y2\n  %8 = permute(%7) {perm=[0,2,1]} : f32[B,4,S]\n  %9 = neg(%8)");
    /* a change through a view that its base would have to show */
    expect_refused(COPY_X "," NODE("aten.transpose.int", T("self", "y") "," I("dim0", "1") "," I("dim1", "2"),
                                   "t") "," NODE("aten.add_.Tensor", T("self", "t") "," F("other", "1.0"),
                                                 "t2") "," NODE("aten.neg.default", T("self", "y"), "out") "," MEAN,
                   NULL, "in place while y");
    /* but the base may be read before, and never again */
    expect_in(COPY_X "," NODE("aten.transpose.int", T("self", "y") "," I("dim0", "1") "," I("dim1", "2"),
                              "t") "," NODE("aten.add_.Tensor", T("self", "t") "," F("other", "1.0"),
                                            "t2") "," NODE("aten.neg.default", T("self", "t"), "out") "," MEAN,
              NULL, "add(");
    /* the result keeps the target's type */
    expect_in(EMBED "," NODE("aten.ne.Scalar", T("self", "labels") "," I("other", "-100"), "k") "," NODE(
                  "aten.sum.default", T("self", "k"),
                  "n") "," NODE("aten.mul_.Tensor", T("self", "n") "," F("other", "2.0"),
                                "n2") "," NODE("aten.div.Tensor", T("self", "x") "," T("other", "n"), "out") "," MEAN,
              NULL, ": i64[]  # n2");
    expect_refused(EMBED "," NODE("aten.mul_.Tensor", T("self", "v") "," F("other", "2.0"),
                                  "v2") "," NODE("aten.mul.Tensor", T("self", "x") "," T("other", "v"), "out") "," MEAN,
                   NULL, "changes v (v) in place");
    /* a bitwise operator whose name ends in underscores is no in-place one */
    expect_in(EMBED "," NODE("aten.ne.Scalar", T("self", "labels") "," I("other", "-100"), "k") "," NODE(
                  "aten.__and__.Tensor", T("self", "k") "," T("other", "k"),
                  "k2") "," NODE("aten.unsqueeze.default", T("self", "k2") "," I("dim", "2"),
                                 "k3") "," NODE("aten.mul.Tensor", T("self", "x") "," T("other", "k3"), "out") "," MEAN,
              NULL, "and(");
}

static void the_loss_is_a_quotient(void **state) {
    (void)state;
#define LOGITS                                                                                                         \
    EMBED "," NODE("aten.linear.default", T("input", "x") "," T("weight", "w"),                                        \
                   "y") "," NODE("aten.view.default", T("self", "y") "," LIST("size", "-1,6"),                         \
                                 "z") "," NODE("aten.view.default", T("self", "labels") "," LIST("size", "-1"), "t")
    expect_in(LOGITS "," NODE("aten.cross_entropy_loss.default", T("self", "z") "," T("target", "t"), "loss"), NULL,
              "xent(");
    expect_in(LOGITS "," NODE("aten.cross_entropy_loss.default",
                              T("self", "z") "," T("target", "t") "," I("ignore_index", "-1"), "loss"),
              NULL, "{ignore=-1}");
    expect_in(LOGITS "," NODE("aten.log_softmax.int", T("self", "z") "," I("dim", "-1"),
                              "p") "," NODE("aten.nll_loss_nd.default", T("self", "p") "," T("target", "t"), "loss"),
              NULL, "gather(");
    expect_refused(LOGITS "," NODE("aten.cross_entropy_loss.default",
                                   T("self", "z") "," T("target", "t") "," I("reduction", "0"), "loss"),
                   NULL, "rank 1");
}

/* One tensor object given to torch.export as ids and labels is one input there, the later argument: here `labels`, or
 * `input_ids` of a forward that takes them last. The sizes may still be those of the other. What an embedding looks up
 * are ids, what a loss compares with are labels. */
static void one_input_is_two(void **state) {
    (void)state;
#define LOOKED_UP(input)                                                                                               \
    NODE_OUT("aten.sym_size.int", T("self", "input_ids") "," I("dim", "1"), "{'as_sym_int':{'as_name':'s1'}}")         \
    "," NODE("aten.view.default", T("self", input) "," LIST("size", "-1"),                                             \
             "i") "," NODE("aten.embedding.default", T("weight", "w") "," T("indices", "i"), "x")
#define LOSS(input)                                                                                                    \
    NODE("aten.linear.default", T("input", "x") "," T("weight", "w"), "z")                                             \
    "," NODE("aten.view.default", T("self", input) "," LIST("size", "-1"),                                             \
             "t") "," NODE("aten.cross_entropy_loss.default", T("self", "z") "," T("target", "t"), "loss")
    const char *both[] = {LOOKED_UP("labels") "," LOSS("labels"), LOOKED_UP("input_ids") "," LOSS("input_ids"),
                          LOOKED_UP("input_ids") "," LOSS("labels")};
    for (int i = 0; i < 3; i++) {
        write_program(both[i], NULL);
        arena *a = arena_new();
        ir_graph *g;
        import_info info;
        assert_int_equal(import_pt2(a, path, &g, &info), SP_OK);
        int embeddings = 0, losses = 0;
        for (int k = 0; k < g->nodes.n; k++) {
            const ir_node *n = &g->nodes.data[k];
            if (n->op != OP_embedding && n->op != OP_xent) continue;
            const ir_node *from = ir_def(g, n->in[1]);
            while (from->op == OP_reshape) from = ir_def(g, from->in[0]);
            assert_string_equal(ir_str(from, "name"), n->op == OP_xent ? "labels" : "input_ids");
            n->op == OP_xent ? losses++ : embeddings++;
        }
        assert_int_equal(embeddings, 1);
        assert_int_equal(losses, 1);
        import_close(&info);
        arena_free(a);
    }
    /* what else it may be meant for cannot be told */
#define MASKED(input)                                                                                                  \
    LOOKED_UP(input)                                                                                                   \
    "," NODE("aten.ne.Scalar", T("self", "i") "," I("other", "3"),                                                     \
             "k") "," NODE("aten.unsqueeze.default", T("self", "k") "," I("dim", "1"),                                 \
                           "k2") "," NODE("aten.mul.Tensor", T("self", "x") "," T("other", "k2"), "x")
    expect_refused(MASKED("labels") "," LOSS("labels"), NULL, "labels=input_ids.clone()");
    expect_in(MASKED("input_ids") "," LOSS("labels"), NULL, "xent(");
}

static void nonsense_is_refused(void **state) {
    (void)state;
    expect_refused(ON_X("aten.view.default", "," LIST("size", "1,1,1,1,1,1,1,1,1,-1")), NULL, "at most");
    expect_refused(ON_X("aten.view.default", "," LIST("size", "9000000000000000000")), NULL, "out of range");
    expect_refused(ON_X("aten.view.default", "," LIST("size", "1099511627776,1099511627776")), NULL, "shape");
    expect_refused(ON_X("aten.view.default", "," LIST("size", "-7")), NULL, "shape");
    expect_refused(ON_X("aten.view.default", "," LIST("size", "-1,-1")), NULL, "");
    expect_refused(ON_X("aten.transpose.int", "," I("dim0", "0") "," I("dim1", "3")), NULL, "dimension 3");
    expect_refused(ON_X("aten.unsqueeze.default", "," I("dim", "-9")), NULL, "dimension -9");
    expect_refused(ON_X("aten.permute.default", "," LIST("dims", "0,1")), NULL, "permutes 2");
    expect_refused(ON_X("aten.permute.default", "," LIST("dims", "0,1,1")), NULL, "permutation");
    expect_refused(ON_X("aten.slice.Tensor", "," I("dim", "2") "," I("step", "0")), NULL, "step");
    expect_refused(ON_X("aten.add.Tensor", "," T("other", "w")), NULL, "broadcast");
    expect_refused(ON_X("aten.add.Tensor", "," T("other", "nobody")), NULL, "nobody");
    expect_refused(ON_X("aten.add.Tensor", ""), NULL, "other");
    expect_refused(ON_X("aten.matmul.default", "," T("other", "w")), NULL, "dot");
    expect_refused(ON_X("aten.expand.default", "," LIST("size", "4,4")), NULL, "rank");
    expect_refused(ON_X("aten.cat.default", ""), NULL, "tensors");
    expect_refused(ON_X("aten.split.Tensor", "," I("split_size", "0") "," I("dim", "2")), NULL, "parts");
    expect_refused(ON_X("aten.layer_norm.default", "," LIST("normalized_shape", "4,4,4,4,4")), NULL, "input");
    expect_refused(ON_X("aten.to.dtype", "," ARG("dtype", "{'as_scalar_type':6}")), NULL, "float16");
    expect_refused(ON_X("aten.exp.default", ""), "'out':" META("5", SYMBOL("s0")), "declares");
    expect_refused(ON_X("aten.bernoulli.p", "," F("p", "0.5")), NULL, "aten.bernoulli.p (random numbers");
    /* sizes that double their text with every node */
    buf b = {0};
    buf_printf(&b, EMBED
               "," NODE_OUT("aten.sym_size.int", T("self", "x") "," I("dim", "1"), "{'as_sym_int':{'as_name':'s0'}}"));
    for (int i = 0; i < 40; i++)
        buf_printf(
            &b,
            ",{'target':'%s','inputs':[" ARG("a", "{'as_sym_int':{'as_name':'s%d'}}") "," ARG(
                "b",
                "{'as_sym_int':{'as_name':'s%d'}}") "],'outputs':[{'as_sym_int':{'as_name':'s%d'}}],'metadata':{}}",
            i % 2 ? "torch.sym_max" : "_operator.mul", i, i ? i - 1 : 0, i + 1);
    buf_printf(&b, "," NODE("aten.view.default",
                            T("self", "x") "," ARG("size", "{'as_sym_ints':[{'as_name':'s40'},{'as_int':-1}]}"),
                            "out") "," MEAN);
    expect_refused(b.data, NULL, "terms");
    buf_free(&b);
    expect_refused("", NULL, "does not return a tensor");
}

/* ---- mutations ------------------------------------------------------------------------------------------------- */

/* Programs with random damage that the checksums do not show: any answer will do, but no crash. */
static void damaged_programs_never_crash(void **state) {
    (void)state;
    ziparc *z;
    assert_int_equal(ziparc_open(AUTOSP_SOURCE_DIR "/tests/fixtures/llama.pt2", &z), SP_OK);
    uint64_t seed = 11;
    int refused = 0;
    const int rounds = getenv("AUTOSP_FUZZ") ? atoi(getenv("AUTOSP_FUZZ")) : 60;
    for (int round = 0; round < rounds; round++) {
        unlink(path);
        zip_t *out = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
        for (int i = 0; i < ziparc_count(z); i++) {
            char *data, name[300];
            int64_t n;
            assert_int_equal(ziparc_read(z, i, 1 << 24, &data, &n), SP_OK);
            snprintf(name, sizeof name, "m/%s", ziparc_name(z, i));
            for (int k = 0; !strcmp(ziparc_name(z, i), "models/model.json") && k < 1 + round % 4; k++) {
                /* change a digit, or swap a word for another that is there */
                int64_t at = (int64_t)(rng_next(&seed) % (uint64_t)n), from = (int64_t)(rng_next(&seed) % (uint64_t)n);
                while (at < n && (data[at] < '0' || data[at] > '9')) at++;
                if (round % 2 && at < n) data[at] = (char)('0' + rng_next(&seed) % 10);
                if (round % 2) continue;
                while (at > 0 && data[at] != '"') at--;
                while (from > 0 && data[from] != '"') from--;
                for (int j = 1; j < 12 && at + j < n && from + j < n && data[at + j] != '"' && data[from + j] != '"';
                     j++)
                    data[at + j] = data[from + j];
            }
            zip_file_add(out, name, zip_source_buffer(out, data, (zip_uint64_t)n, n > 0), 0);
            if (n == 0) free(data); /* libzip does not free an empty buffer */
        }
        assert_int_equal(zip_close(out), 0);
        arena *a = arena_new();
        ir_graph *g;
        import_info info;
        if (import_pt2(a, path, &g, &info) == SP_OK)
            import_close(&info);
        else
            refused++;
        arena_free(a);
    }
    ziparc_close(z);
    assert_true(refused > 0);
}

static int make_file(void **state) {
    if (make_dir(state) != 0) return -1;
    in_dir("m.pt2");
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exports_of_pytorch_import),
        cmocka_unit_test(tied_weights_are_one_parameter),
        cmocka_unit_test(bad_models_are_named),
        cmocka_unit_test(sizes_are_symbolic),
        cmocka_unit_test(numbers_do_not_promote),
        cmocka_unit_test(regions_stop_gradients),
        cmocka_unit_test(in_place_operators_become_functions),
        cmocka_unit_test(the_loss_is_a_quotient),
        cmocka_unit_test(one_input_is_two),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(damaged_programs_never_crash),
    };
    return cmocka_run_group_tests(tests, make_file, remove_dir);
}
