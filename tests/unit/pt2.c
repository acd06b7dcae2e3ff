/* Tests of src/import: archives, well-formed and hostile. Small archives are written here with libzip;
 * the damaged ones are cut and flipped copies of a real export. */
#include "import/pt2.h"
#include "import/weights.h"
#include "scratch.h"
#include "train/measure.h"

#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include <zip.h>

/* ---- a small archive: loss = mean(x * w) ---------------------------------------------------------------- */

typedef struct parts { /* what a test changes; NULL is the normal thing */
    const char *version, *weights, *tensor_values, *target, *outputs, *extra, *node_meta, *ranges;
    const char *also; /* name of one more entry */
    bool no_model, deflate;
    const char *format;
} parts;

static void add(zip_t *z, const char *name, const void *data, size_t n, bool deflate) {
    char full[256];
    snprintf(full, sizeof full, "m/%s", name);
    void *copy = malloc(n + 1);
    memcpy(copy, data, n);
    zip_source_t *src = zip_source_buffer(z, copy, n, 1);
    zip_int64_t i = zip_file_add(z, full, src, ZIP_FL_ENC_UTF_8);
    assert_true(i >= 0);
    assert_int_equal(zip_set_file_compression(z, (zip_uint64_t)i, deflate ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 0), 0);
}

#define META(dims)                                                                                                     \
    "{\"dtype\":7,\"sizes\":[" dims "],\"requires_grad\":false,\"storage_offset\":{\"as_int\":0},\"layout\":7}"
#define S77 "{\"as_expr\":{\"expr_str\":\"Symbol('s77', integer=True)\",\"hint\":{\"as_int\":4}}}"
#define WEIGHT(name, offset, sizes, strides)                                                                           \
    "\"" name "\":{\"path_name\":\"weight_0\",\"is_param\":true,\"use_pickle\":false,\"tensor_meta\":{\"dtype\":7,"    \
    "\"sizes\":[" sizes "],\"requires_grad\":true,\"strides\":[" strides "],\"storage_offset\":{\"as_int\":" offset    \
    "},"                                                                                                               \
    "\"layout\":7}}"
#define INT(i) "{\"as_int\":" i "}"

static void write_archive(parts q) {
    unlink(path);
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    assert_non_null(z);
    buf b = {0};
    buf_printf(
        &b,
        "{\"graph_module\":{\"graph\":{\"inputs\":[{\"as_tensor\":{\"name\":\"p_w\"}},{\"as_tensor\":{\"name\":\"x\"}}]"
        ","
        "\"outputs\":[{\"as_tensor\":{\"name\":\"mean\"}}],\"nodes\":["
        "{\"target\":\"%s\",\"inputs\":[{\"name\":\"self\",\"arg\":{\"as_tensor\":{\"name\":\"x\"}},\"kind\":1},"
        "{\"name\":\"other\",\"arg\":{\"as_tensor\":{\"name\":\"p_w\"}},\"kind\":1}],"
        "\"outputs\":[{\"as_tensor\":{\"name\":\"mul\"}}],\"metadata\":%s},"
        "{\"target\":\"torch.ops.aten.mean.default\",\"inputs\":[{\"name\":\"self\",\"arg\":{\"as_tensor\":{\"name\":"
        "\"mul\"}}},"
        "{\"name\":\"eps\",\"arg\":{\"as_float\":\"-Infinity\"}},{\"name\":\"end\",\"arg\":{\"as_int\":"
        "9223372036854775807}},"
        "{\"name\":\"new\",\"arg\":{\"as_never_seen\":[1]}},"
        "{\"name\":\"size\",\"arg\":{\"as_sym_ints\":[{\"as_name\":\"n\"},{\"as_int\":-1}]}},"
        "{\"name\":\"indices\",\"arg\":{\"as_optional_tensors\":[{\"as_none\":true},{\"as_tensor\":{\"name\":\"x\"}}]}}"
        "],"
        "\"outputs\":[{\"as_tensor\":{\"name\":\"mean\"}}],\"metadata\":{}}],"
        "\"tensor_values\":%s,\"sym_int_values\":{\"n\":" S77 "},\"is_single_tensor_return\":false},"
        "\"signature\":{\"input_specs\":[{\"parameter\":{\"arg\":{\"name\":\"p_w\"},\"parameter_name\":\"net.w\"}},"
        "{\"user_input\":{\"arg\":{\"as_tensor\":{\"name\":\"x\"}}}}],\"output_specs\":%s}},"
        "\"range_constraints\":{\"s77\":{\"min_val\":2,\"max_val\":null}},\"schema_version\":%s,\"torch_version\":\"2."
        "13.0\"}",
        q.target ? q.target : "torch.ops.aten.mul.Tensor",
        q.node_meta ? q.node_meta
                    : "{\"stack_trace\":\"File \\\"/home/me/net.py\\\", line 12, in forward\\n  x * w\\n"
                      "  File \\\"/lib/torch/nn/f.py\\\", line 3, in inner\",\"torch_fn\":\"} \\\\\"}",
        q.tensor_values ? q.tensor_values
                        : "{\"p_w\":" META(INT("4")) ",\"x\":" META(S77 "," INT("4")) ",\"mul\":" META(
                              S77 "," INT("4")) ",\"mean\":" META("") "}",
        q.outputs ? q.outputs : "[{\"user_output\":{\"arg\":{\"as_tensor\":{\"name\":\"mean\"}}}}]",
        q.version ? q.version : "{\"major\":8,\"minor\":99}");
    static const float w[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    add(z, "data/weights/weight_0", w, sizeof w, false);
    buf c = {0};
    buf_printf(&c, "{\"config\":{%s}}", q.weights ? q.weights : WEIGHT("net.w", "0", INT("4"), INT("1")));
    add(z, "data/weights/model_weights_config.json", c.data, c.n, q.deflate);
    if (!q.no_model) add(z, "models/model.json", b.data, b.n, q.deflate);
    add(z, "archive_format", q.format ? q.format : "pt2", strlen(q.format ? q.format : "pt2"), false);
    add(z, "byteorder", "little\n", 7, false);
    if (q.extra) add(z, "extra/autosp.json", q.extra, strlen(q.extra), false);
    if (q.also) add(z, q.also, "x", 1, false);
    assert_int_equal(zip_close(z), 0);
    buf_free(&b);
    buf_free(&c);
}

static void expect_failure(parts q, const char *word) {
    write_archive(q);
    pt2 *p;
    if (pt2_open(path, &p) == SP_OK) fail_msg("accepted: expected a message with \"%s\"", word);
    if (!strstr(err_text(), word) || !strstr(err_text(), path))
        fail_msg("\"%s\" does not say \"%s\"", err_text(), word);
}

static void reads_a_program(void **state) {
    (void)state;
    for (int deflate = 0; deflate < 2; deflate++) {
        write_archive((parts){.deflate = deflate,
                              .extra = "{\"labels\":\"same\",\"weights_prefix\":\"net.\",\"tied\":{\"a\":\"b\"}}"});
        pt2 *p;
        if (pt2_open(path, &p) != SP_OK) fail_msg("%s", err_text());
        assert_int_equal(p->minor, 99);
        assert_string_equal(p->torch_version, "2.13.0");
        assert_string_equal(p->labels, "same");
        assert_string_equal(p->weights_prefix, "net.");
        assert_int_equal(p->n_tied, 1);
        assert_int_equal(p->n_in, 2);
        assert_int_equal(p->in[0].kind, PT2_IN_PARAM);
        assert_string_equal(p->in[0].fqn, "net.w");
        assert_int_equal(p->in[1].kind, PT2_IN_USER);
        assert_int_equal(p->ranges[0].lo, 2);
        assert_true(p->ranges[0].hi == INT64_MAX);
        const pt2_graph *g = p->graph;
        assert_int_equal(g->n_nodes, 2);
        const pt2_node *n = &g->nodes[0];
        assert_string_equal(n->target, "torch.ops.aten.mul.Tensor");
        assert_string_equal(pt2_find_arg(n, "other")->name, "p_w");
        assert_null(pt2_find_arg(n, "alpha"));
        assert_string_equal(pt2_source(p->a, n), "net.py:12, in forward");
        assert_string_equal(pt2_source(p->a, &g->nodes[1]), "");
        n = &g->nodes[1];
        assert_true(pt2_find_arg(n, "eps")->f == -INFINITY);
        assert_true(pt2_find_arg(n, "end")->i == INT64_MAX);
        assert_int_equal(pt2_find_arg(n, "new")->kind, PT2_OTHER);
        const pt2_arg *size = pt2_find_arg(n, "size"), *indices = pt2_find_arg(n, "indices");
        assert_int_equal(size->n, 2);
        assert_string_equal(size->syms[0].name, "n");
        assert_int_equal(size->syms[1].value, -1);
        assert_null(indices->names[0]);
        assert_string_equal(indices->names[1], "x");
        int64_t i;
        assert_true(strmap_get(g->meta_index, "x", &i));
        assert_int_equal(g->metas[i].ndim, 2);
        assert_string_equal(g->metas[i].size[0]->name, "s77");
        wt_source *s;
        wt_tensor t;
        float w[3];
        assert_int_equal(wt_open(p, NULL, &s), SP_OK);
        assert_int_equal(wt_find(s, "net.w", &t), SP_OK);
        wt_read(&t, 1, 3, DT_F32, w);
        assert_true(w[0] == 2 && w[1] == 3 && w[2] == 4);
        wt_close(s);
        pt2_close(p);
    }
}

static void values_may_be_called_metadata(void **state) {
    (void)state;
    write_archive((parts){.tensor_values = "{\"metadata\":" META(INT("5")) ",\"x\":" META(INT("6")) "}"});
    pt2 *p;
    if (pt2_open(path, &p) != SP_OK) fail_msg("%s", err_text());
    int64_t i;
    assert_true(strmap_get(p->graph->meta_index, "metadata", &i));
    assert_int_equal(p->graph->metas[i].size[0]->value, 5);
    pt2_close(p);
}

static void weights_view_their_storage(void **state) {
    (void)state;
    write_archive((parts){.weights = WEIGHT("a", "1", INT("2") "," INT("3"), INT("1") "," INT("2")) "," /* transposed */
                          WEIGHT("b", "0", INT("4"), INT("1")) "," WEIGHT("c", "0", INT("4"), INT("1")) "," WEIGHT(
                              "d", "4", INT("4"), INT("1"))});
    pt2 *p;
    if (pt2_open(path, &p) != SP_OK) fail_msg("%s", err_text());
    assert_int_equal(p->weights[1].tied, 1);
    assert_int_equal(p->weights[2].tied, 1);
    assert_int_equal(p->weights[3].tied, 3);
    wt_source *s;
    wt_tensor t;
    assert_int_equal(wt_open(p, NULL, &s), SP_OK);
    assert_int_equal(wt_find(s, "a", &t), SP_OK);
    assert_false(t.contiguous);
    /* storage 1..8, offset 1: a[i][j] = storage[1 + i + 2j] = 2 + i + 2j */
    double all[6], some[3];
    wt_read(&t, 0, 6, DT_F64, all);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) assert_true(all[3 * i + j] == 2 + i + 2 * j);
    wt_read(&t, 2, 3, DT_F64, some);
    assert_true(some[0] == all[2] && some[1] == all[3] && some[2] == all[4]);
    assert_int_equal(wt_find(s, "nothing", &t), SP_FAIL);
    wt_close(s);
    pt2_close(p);
}

static void bad_programs_are_named(void **state) {
    (void)state;
    expect_failure((parts){.version = "{\"major\":9,\"minor\":0}"}, "schema 9.0");
    expect_failure((parts){.version = "{\"major\":7,\"minor\":0}"}, "Re-export");
    expect_failure((parts){.version = "8"}, "schema_version");
    expect_failure((parts){.no_model = true, .also = "data/aotinductor/model/x.so"}, "AOTInductor");
    expect_failure((parts){.no_model = true, .also = "serialized_exported_program.json"}, "torch >= 2.9");
    expect_failure((parts){.also = "data/weights/model.pt"}, "torch >= 2.9");
    expect_failure((parts){.no_model = true, .also = "data.pkl"}, "torch.save");
    expect_failure((parts){.no_model = true}, "not an exported model");
    expect_failure((parts){.also = "models/other.json"}, "2 models");
    expect_failure((parts){.format = "pt3"}, "pt3");
    expect_failure((parts){.outputs = "[]"}, "malformed");
    expect_failure(
        (parts){.outputs = "[{\"buffer_mutation\":{\"arg\":{\"name\":\"mean\"},\"buffer_name\":\"count\"}}]"}, "count");
    expect_failure((parts){.outputs = "[{\"gradient_to_parameter\":{}}]"}, "backward");
    expect_failure((parts){.tensor_values = "[]"}, "tensor_values");
    expect_failure((parts){.tensor_values = "{\"x\":{\"dtype\":7}}"}, "sizes");
    expect_failure((parts){.tensor_values = "{\"x\":" META("{\"as_expr\":{\"expr_str\":\"f(\"}}") "}"}, "expression");
    expect_failure((parts){.tensor_values = "{"}, "JSON");
    expect_failure((parts){.extra = "{\"labels\":\"odd\"}"}, "odd");
    /* 32 bytes are there */
    expect_failure((parts){.weights = WEIGHT("w", "0", INT("9"), INT("1"))}, "needs 36 bytes");
    expect_failure((parts){.weights = WEIGHT("w", "5", INT("4"), INT("1"))}, "needs 36 bytes");
    expect_failure((parts){.weights = WEIGHT("w", "0", INT("2"), INT("8"))}, "needs 36 bytes");
    expect_failure((parts){.weights = WEIGHT("w", "0", INT("4611686018427387904") "," INT("8"), INT("8") "," INT("1"))},
                   "overflows");
    expect_failure((parts){.weights = WEIGHT("w", "0", INT("2"), INT("4611686018427387904"))}, "overflows");
    expect_failure((parts){.weights = WEIGHT("w", "0", INT("-4"), INT("1"))}, "negative");
    expect_failure((parts){.weights = WEIGHT("w", "0", INT("4"), "")}, "strides");
    expect_failure((parts){.weights =
                               "\"w\":{\"path_name\":\"../../etc/passwd\",\"tensor_meta\":{\"dtype\":7,\"sizes\":[],"
                               "\"strides\":[],\"storage_offset\":{\"as_int\":0}}}"},
                   "no entry");
    expect_failure((parts){.weights = "\"w\":{\"use_pickle\":true}"}, "plain tensors");
}

/* ---- damage --------------------------------------------------------------------------------------------- */

static void write_bytes(const char *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static char *read_fixture(size_t *n) {
    FILE *f = fopen(AUTOSP_SOURCE_DIR "/tests/fixtures/llama.pt2", "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *d = malloc(*n);
    assert_int_equal(fread(d, 1, *n, f), *n);
    fclose(f);
    return d;
}

static void cut_archives_are_refused(void **state) {
    (void)state;
    size_t n;
    char *d = read_fixture(&n);
    for (size_t i = 0; i < 100; i++) {
        size_t len = i < 30 ? i : i < 70 ? n - (i - 29) : n * (i - 70) / 30;
        write_bytes(d, len);
        pt2 *p;
        if (pt2_open(path, &p) == SP_OK) fail_msg("%zu of %zu bytes were accepted", len, n);
        if (!strstr(err_text(), path)) fail_msg("\"%s\" does not name the file", err_text());
    }
    free(d);
    pt2 *p;
    assert_int_equal(pt2_open("/nonexistent/x.pt2", &p), SP_FAIL);
    assert_int_equal(pt2_open("/tmp", &p), SP_FAIL);
}

/* Opens the archive and reads every weight. */
static sp_status read_everything(void) {
    pt2 *p;
    TRY(pt2_open(path, &p));
    wt_source *s;
    sp_status status = wt_open(p, NULL, &s);
    wt_tensor t;
    for (int i = 0; i < p->n_weights && status == SP_OK; i++) status = wt_find(s, p->weights[i].fqn, &t);
    wt_close(s);
    pt2_close(p);
    return status;
}

static void flipped_bytes_never_pass_for_weights(void **state) {
    (void)state;
    size_t n;
    char *d = read_fixture(&n);
    write_bytes(d, n);
    if (read_everything() != SP_OK) fail_msg("%s", err_text());
    /* Every entry's bytes are under a checksum: a flip there must be seen. Elsewhere (padding, dates) it need not be.
     */
    ziparc *z;
    assert_int_equal(ziparc_open(path, &z), SP_OK);
    const void *first, *last;
    int64_t len;
    assert_int_equal(ziparc_view(z, 0, &first, &len), SP_OK);
    int last_weight = ziparc_find(z, "data/weights/weight_20");
    assert_true(last_weight > 0);
    assert_int_equal(ziparc_view(z, last_weight, &last, &len), SP_OK);
    size_t span = (size_t)((const char *)last - (const char *)first + len);
    ziparc_close(z);
    uint64_t seed = 1;
    int seen = 0, inside = 0;
    for (int i = 0; i < 300; i++) {
        size_t at = (size_t)(rng_next(&seed) % n);
        if (i < 60) at = n - 1 - (size_t)(rng_next(&seed) % 4000); /* the directory */
        char old = d[at];
        d[at] = (char)(old ^ 1 << (rng_next(&seed) & 7));
        write_bytes(d, n);
        d[at] = old;
        if (read_everything() != SP_OK) seen++;
        if (at < span) inside++;
    }
    free(d);
    /* The weights span nearly all of their range: padding between them is under 64 bytes each. */
    assert_true(inside > 50);
    assert_true(seen > inside * 8 / 10);
}

static void claimed_sizes_are_not_trusted(void **state) {
    (void)state;
    /* A deflated entry that claims 3 GiB: in both directories, so that they agree. */
    write_archive((parts){.deflate = true});
    FILE *f = fopen(path, "rb");
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    char *d = malloc(n);
    assert_int_equal(fread(d, 1, n, f), n);
    fclose(f);
    int changed = 0;
    for (size_t i = 0; i + 46 < n; i++) {
        bool central = !memcmp(d + i, "PK\1\2", 4), local = !memcmp(d + i, "PK\3\4", 4);
        if (!central && !local) continue;
        size_t size = i + (central ? 24 : 22), name = i + (central ? 46 : 30);
        if (n - name < 19 || memcmp(d + name, "m/models/model.json", 19) != 0) continue;
        memcpy(d + size, "\0\0\0\xC0", 4);
        changed++;
    }
    assert_int_equal(changed, 2);
    write_bytes(d, n);
    free(d);
    pt2 *p;
    assert_int_equal(pt2_open(path, &p), SP_FAIL);
    assert_non_null(strstr(err_text(), "impossible size"));

    /* An honest bomb: 80 MB of spaces in a small weights list is refused by its program, not by memory. */
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    size_t big = 20u << 20;
    char *spaces = malloc(big);
    memset(spaces, ' ', big);
    add(z, "extra/autosp.json", spaces, big, true);
    free(spaces);
    assert_int_equal(zip_close(z), 0);
    ziparc *a;
    assert_int_equal(ziparc_open(path, &a), SP_OK);
    char *data;
    int64_t len;
    assert_int_equal(ziparc_read(a, 0, 16 << 20, &data, &len), SP_FAIL);
    assert_int_equal(ziparc_read(a, 0, 32 << 20, &data, &len), SP_OK);
    assert_true(len == (int64_t)big && data[len - 1] == ' ' && data[len] == 0);
    free(data);
    ziparc_close(a);
}

/* A node's argument that nests graphs DEPTH deep. */
static void expect_too_deep(int depth, const char *word) {
    buf b = {0};
    buf_printf(&b, "\",\"x\":0,\"target\":\"torch.ops.higher_order.wrap\",\"inputs\":[],\"outputs\":[]},");
    for (int i = 0; i < depth; i++)
        buf_printf(&b, "{\"target\":\"w\",\"outputs\":[],\"inputs\":[{\"name\":\"\",\"arg\":{\"as_graph\":{\"name\":"
                       "\"g\",\"graph\":"
                       "{\"inputs\":[],\"outputs\":[],\"tensor_values\":{},\"sym_int_values\":{},\"nodes\":[");
    for (int i = 0; i < depth; i++) buf_printf(&b, "]}}}}]}");
    buf_printf(&b, ",{\"target\":\"y");
    expect_failure((parts){.target = b.data}, word);
    buf_free(&b);
}

static void nested_graphs_are_bounded(void **state) {
    (void)state;
    expect_too_deep(100, "nested too deeply");
    expect_too_deep(1000, "depth");
}

/* An entry's checksum reads all of it, and leaves none of it in memory but the pages at its ends. */
static void checked_weights_do_not_stay(void **state) {
    (void)state;
    const int64_t page = sysconf(_SC_PAGESIZE);
    ziparc *z;
    int large = 0;
    assert_int_equal(ziparc_open(AUTOSP_SOURCE_DIR "/examples/demo.pt2", &z), SP_OK);
    for (int i = 0; i < ziparc_count(z); i++) {
        const void *data;
        int64_t size, touched;
        if (ziparc_size(z, i) < 16 * page || ziparc_view(z, i, &data, &size) != SP_OK) continue; /* or compressed */
        assert_int_equal(measure_touched(data, size, &touched), SP_OK);
        assert_true(touched <= 2 * page);
        large++;
    }
    assert_true(large > 0);
    ziparc_close(z);
}

static void real_exports_load(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int tied; /* names that share a tensor with an earlier one */
    } cases[] = {{"llama", 0},        {"gpt2", 1},          {"qwen2", 1},
                 {"llama-packed", 0}, {"llama-shifted", 0}, {"llama-eager", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char file[512];
        snprintf(file, sizeof file, "%s/tests/fixtures/%s.pt2", AUTOSP_SOURCE_DIR, cases[i].name);
        pt2 *p;
        if (pt2_open(file, &p) != SP_OK) fail_msg("%s", err_text());
        wt_source *s;
        wt_tensor t;
        assert_int_equal(wt_open(p, NULL, &s), SP_OK);
        int tied = 0;
        for (int k = 0; k < p->n_weights; k++) {
            if (wt_find(s, p->weights[k].fqn, &t) != SP_OK) fail_msg("%s", err_text());
            tied += p->weights[k].tied != k;
        }
        for (int k = 0; k < p->n_in; k++)
            if (p->in[k].fqn && !strmap_get(p->weight_index, p->in[k].fqn, NULL))
                fail_msg("no bytes for %s", p->in[k].fqn);
        assert_int_equal(tied, cases[i].tied);
        wt_close(s);
        pt2_close(p);
    }
}

static int make_file(void **state) {
    if (make_dir(state) != 0) return -1;
    in_dir("m.pt2");
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_program),
        cmocka_unit_test(values_may_be_called_metadata),
        cmocka_unit_test(weights_view_their_storage),
        cmocka_unit_test(bad_programs_are_named),
        cmocka_unit_test(cut_archives_are_refused),
        cmocka_unit_test(flipped_bytes_never_pass_for_weights),
        cmocka_unit_test(claimed_sizes_are_not_trusted),
        cmocka_unit_test(nested_graphs_are_bounded),
        cmocka_unit_test(checked_weights_do_not_stay),
        cmocka_unit_test(real_exports_load),
    };
    return cmocka_run_group_tests(tests, make_file, remove_dir);
}
