/* Tests of src/import/safetensors.c, safetensors_write.c, convert.c and weights.c: round trips, hostile files,
 * conversion against the compiler's own half precision and against brute force. */
#include "import/safetensors.h"
#include "import/weights.h"
#include "scratch.h"

#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int make_file(void **state) {
    if (make_dir(state) != 0) return -1;
    in_dir("model.safetensors");
    return 0;
}

static void clean(void) {
    char cmd[300];
    snprintf(cmd, sizeof cmd, "rm -rf %s/*", dir);
    assert_int_equal(system(cmd), 0);
}

/* A file of header text and N data bytes; LENGTH overrides the header's length when not negative. */
static void write_file(const char *name, const char *header, long length, size_t n) {
    FILE *f = fopen(name, "wb");
    assert_non_null(f);
    uint64_t len = length >= 0 ? (uint64_t)length : strlen(header);
    fwrite(&len, 8, 1, f);
    fputs(header, f);
    for (size_t i = 0; i < n; i++) fputc((int)i, f);
    assert_int_equal(fclose(f), 0);
}

static void round_trip(void **state) {
    (void)state;
    clean();
    st_writer *w = st_writer_new();
    int64_t s34[2] = {3, 4}, s0[1] = {0}, s5[1] = {5};
    int a = st_writer_add(w, "a", DT_BF16, 2, s34), b = st_writer_add(w, "b\"\\x", DT_F32, 1, s5);
    int c = st_writer_add(w, "c", DT_I64, 0, NULL), e = st_writer_add(w, "empty", DT_F32, 1, s0);
    st_writer_metadata(w, "format", "pt");
    assert_int_equal(st_writer_begin(w, path), SP_OK);
    uint16_t av[12];
    float bv[5];
    int64_t cv = -17;
    for (int i = 0; i < 12; i++) av[i] = (uint16_t)(i * 257);
    for (int i = 0; i < 5; i++) bv[i] = (float)i / 3;
    assert_int_equal(st_writer_order(w, 0), c); /* the widest first */
    for (int k = 0; k < st_writer_count(w); k++) {
        int t = st_writer_order(w, k);
        sp_status s = SP_OK;
        if (t == a) s = st_writer_write(w, a, av, 10) || st_writer_write(w, a, av + 5, 14);
        if (t == b) s = st_writer_write(w, b, bv, sizeof bv);
        if (t == c) s = st_writer_write(w, c, &cv, 8);
        if (t == e) s = st_writer_write(w, e, NULL, 0);
        assert_int_equal(s, SP_OK);
    }
    assert_int_equal(st_writer_end(w), SP_OK);

    st_file *f;
    if (st_open(path, &f) != SP_OK) fail_msg("%s", err_text());
    assert_int_equal(st_count(f), 4);
    assert_string_equal(st_metadata(f, "format"), "pt");
    const st_tensor *t = st_find(f, "a");
    assert_true(t && t->type == DT_BF16 && t->ndim == 2 && t->size[1] == 4 && t->bytes == 24);
    assert_memory_equal(t->data, av, 24);
    t = st_find(f, "b\"\\x");
    assert_true(t && t->bytes == 20);
    assert_memory_equal(t->data, bv, 20);
    t = st_find(f, "c");
    assert_true(t && t->ndim == 0 && t->bytes == 8);
    assert_memory_equal(t->data, &cv, 8);
    assert_true(st_find(f, "empty")->bytes == 0);
    assert_null(st_find(f, "z"));
    st_close(f);
    if (st_open(dir, &f) != SP_OK) fail_msg("%s", err_text()); /* the folder means the file in it */
    st_close(f);
}

static void expect_bad(const char *header, long length, size_t n, const char *word) {
    write_file(path, header, length, n);
    st_file *f;
    if (st_open(path, &f) == SP_OK) fail_msg("accepted %s", header);
    if (!strstr(err_text(), word) || !strstr(err_text(), path))
        fail_msg("\"%s\" does not say \"%s\"", err_text(), word);
}

#define T(name, type, shape, lo, hi)                                                                                   \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" lo "," hi "]}"

static void bad_files_are_refused(void **state) {
    (void)state;
    clean();
    expect_bad("{" T("a", "F32", "2", "0", "8") "}", -1, 7, "truncated");
    expect_bad("{" T("a", "F32", "2", "0", "8") "}", -1, 9, "after the last");
    expect_bad("{" T("a", "F32", "2", "0", "4") "}", -1, 4, "need 8");
    expect_bad("{" T("a", "F32", "2", "4", "12") "}", -1, 12, "hole");
    expect_bad("{" T("a", "F32", "1", "0", "4") "," T("b", "F32", "1", "0", "4") "}", -1, 4, "overlap");
    expect_bad("{" T("a", "F32", "1", "0", "4") "," T("b", "F32", "1", "8", "12") "}", -1, 12, "hole");
    expect_bad("{" T("a", "F32", "1", "0", "4") "," T("a", "F32", "1", "4", "8") "}", -1, 8, "duplicate");
    expect_bad("{" T("a", "F33", "1", "0", "4") "}", -1, 4, "F33");
    expect_bad("{" T("a", "F32", "-1", "0", "4") "}", -1, 4, "shape");
    expect_bad("{" T("a", "F32", "4611686018427387904,4", "0", "4") "}", -1, 4, "shape");
    expect_bad("{" T("a", "F4", "1", "0", "1") "}", -1, 1, "whole number");
    expect_bad("{" T("a", "F32", "1", "-4", "0") "}", -1, 4, "outside");
    expect_bad("{\"a\":{\"dtype\":\"F32\"}}", -1, 4, "data_offsets");
    expect_bad("{\"a\":7}", -1, 4, "without dtype");
    expect_bad("{", -1, 0, "longer");
    expect_bad("{}", 3, 0, "longer");
    expect_bad("{}", 1L << 40, 0, "longer");
    expect_bad("[]", -1, 0, "no header");
    expect_bad("{\"__metadata__\":{\"k\":1}}", -1, 0, "metadata");
    FILE *f = fopen(path, "wb");
    fputs("short", f);
    fclose(f);
    st_file *s;
    assert_int_equal(st_open(path, &s), SP_FAIL);
    assert_int_equal(st_open("/nonexistent", &s), SP_FAIL);
}

static void write_text(const char *name, const char *text) {
    FILE *f = fopen(name, "wb");
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void shards(void **state) {
    (void)state;
    clean();
    char one[300], two[300], index[300];
    snprintf(one, sizeof one, "%s/model-1.safetensors", dir);
    snprintf(two, sizeof two, "%s/model-2.safetensors", dir);
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    write_file(one, "{" T("a", "F32", "1", "0", "4") "}", -1, 4);
    write_file(two, "{" T("b", "BF16", "2", "0", "4") "," T("c", "BOOL", "1", "4", "5") "}", -1, 5);
    write_text(
        index,
        "{\"metadata\":{\"total_size\":9},\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\","
        "\"c\":\"model-2.safetensors\"}}");
    st_file *f;
    if (st_open(dir, &f) != SP_OK) fail_msg("%s", err_text());
    assert_int_equal(st_count(f), 3);
    assert_true(((const char *)st_find(f, "b")->data)[1] == 1);
    st_close(f);
    write_text(index, "{\"weight_map\":{\"a\":\"model-1.safetensors\",\"z\":\"model-1.safetensors\"}}");
    assert_int_equal(st_open(dir, &f), SP_FAIL);
    assert_non_null(strstr(err_text(), "weight z"));
    write_text(index, "{\"weight_map\":{\"a\":\"model-3.safetensors\"}}");
    assert_int_equal(st_open(dir, &f), SP_FAIL);
    assert_non_null(strstr(err_text(), "model-3"));
    write_text(index, "{\"weight_map\":{\"a\":\"../model-1.safetensors\"}}");
    assert_int_equal(st_open(dir, &f), SP_FAIL);
    assert_non_null(strstr(err_text(), "plain file name"));
    write_text(index, "{\"weight_map\":");
    assert_int_equal(st_open(dir, &f), SP_FAIL);
    unlink(index);
    assert_int_equal(st_open(dir, &f), SP_FAIL);
    assert_non_null(strstr(err_text(), "2 .safetensors files"));
}

static void full_disk_and_bad_folder(void **state) {
    (void)state;
    st_writer *w = st_writer_new();
    int64_t n[1] = {4};
    st_writer_add(w, "a", DT_F32, 1, n);
    assert_int_equal(st_writer_begin(w, "/nonexistent/x.safetensors"), SP_FAIL);
    assert_non_null(strstr(err_text(), "/nonexistent/x.safetensors"));
    st_writer_abandon(w);
    w = st_writer_new();
    st_writer_add(w, "a", DT_F32, 1, n);
    if (access("/dev/full", W_OK) == 0) {
        assert_int_equal(st_writer_begin(w, "/dev/full"), SP_FAIL);
        assert_non_null(strstr(err_text(), "/dev/full"));
    }
    st_writer_abandon(w);
    assert_true(access("/dev/full", F_OK) == 0 || access("/dev/null", F_OK) == 0); /* devices are not removed */
    w = st_writer_new();
    st_writer_add(w, "a", DT_F32, 1, n);
    st_writer_add(w, "a", DT_F32, 1, n);
    assert_int_equal(st_writer_begin(w, path), SP_FAIL);
    st_writer_abandon(w);
}

/* ---- conversion --------------------------------------------------------------------------------------------- */

static void halves_match_the_compiler(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t in = (uint16_t)h, back;
        _Float16 x;
        float f;
        memcpy(&x, &in, 2);
        st_convert(&f, DT_F32, &in, DT_F16, 1);
        if (isnan((float)x)) {
            assert_true(isnan(f));
            continue;
        }
        assert_true(f == (float)x && signbit(f) == signbit((float)x));
        st_convert(&back, DT_F16, &f, DT_F32, 1);
        assert_int_equal(back, in);
    }
    uint64_t seed = 5;
    for (int i = 0; i < 200000; i++) {
        double d = ldexp(rng_normal(&seed), (int)(rng_next(&seed) % 44) - 27);
        float f = (float)d;
        uint16_t got;
        _Float16 want = (_Float16)f;
        st_convert(&got, DT_F16, &f, DT_F32, 1);
        assert_memory_equal(&got, &want, 2);
    }
}

/* The bfloat16 nearest to d, ties to even, by trying the neighbours of its truncation. */
static uint16_t nearest_bf16(double d) {
    float f = (float)d;
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t best = 0;
    double dist = INFINITY;
    for (int k = -1; k <= 2; k++) {
        uint16_t h = (uint16_t)((u >> 16) + k);
        uint32_t v = (uint32_t)h << 16;
        float g;
        memcpy(&g, &v, 4);
        double e = fabs((double)g - d);
        if (e < dist || (e == dist && !(h & 1))) dist = e, best = h;
    }
    return best;
}

static void bfloats_round_to_nearest(void **state) {
    (void)state;
    uint64_t seed = 6;
    for (int i = 0; i < 200000; i++) {
        double d = ldexp(1 + rng_uniform(&seed), (int)(rng_next(&seed) % 200) - 100);
        if (i & 1) d = -d;
        /* Half of the cases at, or a little beside, the middle between two bfloat16s, where double rounding shows. */
        if (i & 2) {
            uint64_t u;
            memcpy(&u, &d, 8);
            u = (u >> 45 << 45) | (uint64_t)1 << 44;
            if (i & 4) u += (i & 8) ? 1 : -1;
            memcpy(&d, &u, 8);
        }
        uint16_t got, want = nearest_bf16(d);
        st_convert(&got, DT_BF16, &d, DT_F64, 1);
        if (got != want) fail_msg("%.20g: %04x, not %04x", d, got, want);
        float f = (float)d;
        st_convert(&got, DT_BF16, &f, DT_F32, 1);
        assert_int_equal(got, nearest_bf16(f));
    }
    float special[3] = {NAN, INFINITY, -INFINITY}, back[3];
    uint16_t h[3];
    st_convert(h, DT_BF16, special, DT_F32, 3);
    st_convert(back, DT_F32, h, DT_BF16, 3);
    assert_true(isnan(back[0]) && back[1] == INFINITY && back[2] == -INFINITY);
    st_convert(h, DT_F16, special, DT_F32, 3);
    st_convert(back, DT_F32, h, DT_F16, 3);
    assert_true(isnan(back[0]) && back[1] == INFINITY && back[2] == -INFINITY);
}

static void integers_and_bools(void **state) {
    (void)state;
    float f[4] = {-2.9f, 2.9f, 1e30f, NAN}, back[4];
    int64_t l[4];
    int32_t i[4];
    uint8_t b[4];
    st_convert(l, DT_I64, f, DT_F32, 4);
    assert_true(l[0] == -2 && l[1] == 2 && l[2] == INT64_MAX && l[3] == 0);
    st_convert(i, DT_I32, l, DT_I64, 4);
    assert_true(i[0] == -2 && i[2] == INT32_MAX);
    st_convert(b, DT_BOOL, i, DT_I32, 4);
    assert_true(b[0] == 1 && b[3] == 0);
    st_convert(back, DT_F32, i, DT_I32, 2);
    assert_true(back[0] == -2 && back[1] == 2);
}

/* ---- weights from --weights ------------------------------------------------------------------------------------ */

static pt2 *open_fixture(const char *name) {
    char file[512];
    snprintf(file, sizeof file, "%s/tests/fixtures/%s.pt2", AUTOSP_SOURCE_DIR, name);
    pt2 *p;
    if (pt2_open(file, &p) != SP_OK) fail_msg("%s", err_text());
    return p;
}

/* Writes the parameters of P to PATH, under their names from character SKIP on; the one called OMIT is left out; the
 * one called RESHAPE loses a row, the one called RETYPE becomes f64. */
static void write_weights(const pt2 *p, size_t skip, const char *omit, const char *reshape, const char *retype) {
    wt_source *s;
    assert_int_equal(wt_open(p, NULL, &s), SP_OK);
    st_writer *w = st_writer_new();
    wt_tensor *t = calloc((size_t)p->n_weights, sizeof *t);
    dtype *type = calloc((size_t)p->n_weights, sizeof *type);
    int n = 0;
    for (int i = 0; i < p->n_weights; i++) {
        const pt2_weight *x = &p->weights[i];
        if (!x->is_param || (omit && !strcmp(x->fqn, omit))) continue;
        assert_int_equal(wt_find(s, x->fqn, &t[n]), SP_OK);
        int64_t size[ST_MAX_DIMS];
        for (int d = 0; d < t[n].ndim; d++) size[d] = t[n].size[d];
        if (reshape && !strcmp(x->fqn, reshape)) t[n].count -= t[n].count / size[0], size[0]--;
        type[n] = retype && !strcmp(x->fqn, retype) ? DT_F64 : t[n].type;
        assert_int_equal(st_writer_add(w, x->fqn + skip, type[n], t[n].ndim, size), n);
        n++;
    }
    assert_int_equal(st_writer_begin(w, path), SP_OK);
    for (int k = 0; k < n; k++) {
        int i = st_writer_order(w, k);
        int64_t bytes = t[i].count * dtype_size(type[i]);
        void *d = malloc((size_t)bytes);
        wt_read(&t[i], 0, t[i].count, type[i], d);
        assert_int_equal(st_writer_write(w, i, d, bytes), SP_OK);
        free(d);
    }
    assert_int_equal(st_writer_end(w), SP_OK);
    free(t);
    free(type);
    wt_close(s);
}

static void expect_all(const pt2 *p) {
    wt_source *in, *out;
    assert_int_equal(wt_open(p, NULL, &in), SP_OK);
    if (wt_open(p, path, &out) != SP_OK) fail_msg("%s", err_text());
    for (int i = 0; i < p->n_weights; i++) {
        wt_tensor a, b;
        assert_int_equal(wt_find(in, p->weights[i].fqn, &a), SP_OK);
        if (wt_find(out, p->weights[i].fqn, &b) != SP_OK) fail_msg("%s", err_text());
        assert_true(a.count == b.count && a.contiguous && b.contiguous);
        assert_memory_equal(a.data, b.data, (size_t)(a.count * dtype_size(a.type)));
        if (p->weights[i].is_param) assert_string_equal(b.file, path);
    }
    wt_close(in);
    wt_close(out);
}

static void weights_are_found_by_any_of_their_names(void **state) {
    (void)state;
    clean();
    pt2 *p = open_fixture("qwen2"); /* tied, weights_prefix "m.": m.model.layers.0... */
    assert_string_equal(p->weights_prefix, "m.");
    write_weights(p, 0, NULL, NULL, NULL);
    expect_all(p);
    write_weights(p, 2, NULL, NULL, NULL);
    expect_all(p);
    write_weights(p, 2, "m.lm_head.weight", NULL, NULL);
    expect_all(p);
    write_weights(p, 2, "m.model.embed_tokens.weight", NULL, NULL);
    expect_all(p);
    pt2_close(p);
}

static void base_models_are_found(void **state) {
    (void)state;
    clean();
    pt2 *p = open_fixture("gpt2");
    write_weights(p, strlen("m.transformer."), "m.lm_head.weight", NULL, NULL); /* "h.0.ln_1.weight", as on the hub */
    expect_all(p);
    pt2_close(p);
}

static void expect_wrong(const pt2 *p, const char *name, const char *word) {
    wt_source *s;
    wt_tensor t;
    assert_int_equal(wt_open(p, path, &s), SP_OK);
    assert_int_equal(wt_find(s, name, &t), SP_FAIL);
    const char *bare = strchr(name, '.') + 1;
    if (!strstr(err_text(), word) || !strstr(err_text(), bare))
        fail_msg("\"%s\" does not say \"%s\"", err_text(), word);
    wt_close(s);
}

static void wrong_weights_are_named(void **state) {
    (void)state;
    clean();
    pt2 *p = open_fixture("llama");
    const char *name = "m.model.layers.1.mlp.up_proj.weight";
    write_weights(p, 2, name, NULL, NULL);
    expect_wrong(p, name, "is not in");
    write_weights(p, 2, NULL, name, NULL);
    expect_wrong(p, name, "shape");
    write_weights(p, 2, NULL, NULL, name);
    expect_wrong(p, name, "F64");
    pt2_close(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(shards),
        cmocka_unit_test(full_disk_and_bad_folder),
        cmocka_unit_test(halves_match_the_compiler),
        cmocka_unit_test(bfloats_round_to_nearest),
        cmocka_unit_test(integers_and_bools),
        cmocka_unit_test(weights_are_found_by_any_of_their_names),
        cmocka_unit_test(base_models_are_found),
        cmocka_unit_test(wrong_weights_are_named),
    };
    return cmocka_run_group_tests(tests, make_file, remove_dir);
}
