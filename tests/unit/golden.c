/* Golden tests of passes: tests/ir/PASS/NAME.ir goes through the pass, and what comes out must be NAME.out.ir.
 *
 * The first line of NAME.ir may be "# options: batch=2 seq=9 ranks=4" for the passes that take them. The output is
 * verified first. With AUTOSP_BLESS=1 in the environment the expected files are rewritten: read the difference. */
#include "pass/pass.h"

#include <dirent.h>
#include <stdlib.h>

#include <setjmp.h>
#include <cmocka.h>

static sp_status simplify(const ir_graph *g, const pass_options *o, ir_graph **out) {
    (void)o;
    return pass_simplify(g, out);
}

/* The layouts of gradients are what these cases are about. */
static sp_status shard_and_diff(const ir_graph *g, const pass_options *o, ir_graph **out) {
    ir_graph *cut;
    TRY(pass_shard(g, o, &cut));
    return pass_diff(cut, out);
}

/* Tags are not in the text, so all nodes are alike and every region is found at once. */
static sp_status tile(const ir_graph *g, const pass_options *o, ir_graph **out) {
    pass_options t = *o;
    t.tile_rows = 2;
    return pass_tile(g, &t, false, out);
}

static const struct {
    const char *name;
    sp_status (*run)(const ir_graph *g, const pass_options *o, ir_graph **out);
} passes[] = {{"simplify", simplify}, {"tile", tile}, {"shard", pass_shard}, {"diff", shard_and_diff}};

static char *read_text(arena *a, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) return NULL;
    char *text = arena_alloc(a, 1 << 18);
    size_t n = fread(text, 1, (1 << 18) - 1, f);
    text[n] = 0;
    fclose(f);
    return text;
}

static pass_options options_of(const char *text) {
    pass_options o = {.batch = 2, .seq = 8, .ranks = 1};
    const char *end = strchr(text, '\n');
    if (strncmp(text, "# options:", 10) != 0) return o;
    for (const char *c = text; c < end; c++) {
        if (strncmp(c, " batch=", 7) == 0) o.batch = strtoll(c + 7, NULL, 10);
        if (strncmp(c, " seq=", 5) == 0) o.seq = strtoll(c + 5, NULL, 10);
        if (strncmp(c, " ranks=", 7) == 0) o.ranks = (int)strtol(c + 7, NULL, 10);
    }
    return o;
}

/* 1 when the case fails */
static int one(int pass, const char *dir, const char *name) {
    arena *a = arena_new();
    char *path = arena_printf(a, "%s/%s.ir", dir, name), *want_path = arena_printf(a, "%s/%s.out.ir", dir, name);
    char *text = read_text(a, path), *want = read_text(a, want_path);
    ir_graph *g = NULL, *h = NULL;
    int bad = 0;
    buf got = {0};
    pass_options o = options_of(text);
    if (ir_parse(a, text, path, &g) != SP_OK || passes[pass].run(g, &o, &h) != SP_OK ||
        ir_verify(h, passes[pass].name) != SP_OK) {
        print_error("%s: %s\n", path, err_text());
        bad = 1;
    } else {
        ir_print(h, &got);
        const char *expected = want ? want : "";
        while (*expected == '#') { /* its comment */
            const char *line = strchr(expected, '\n');
            expected = line ? line + 1 : "";
        }
        if (strcmp(got.data, expected) != 0) {
            const char *bless = getenv("AUTOSP_BLESS");
            FILE *f = bless && *bless ? fopen(want_path, "w") : NULL;
            if (f) {
                fprintf(f, "%s", got.data);
                fclose(f);
            } else {
                print_error("%s gives\n%s", path, got.data);
                bad = 1;
            }
        }
    }
    buf_free(&got);
    arena_free(a);
    return bad;
}

static int by_name(const void *x, const void *y) { return strcmp(*(char *const *)x, *(char *const *)y); }

static void all_cases(void **state) {
    (void)state;
    int bad = 0, cases = 0;
    for (int p = 0; p < (int)(sizeof passes / sizeof *passes); p++) {
        arena *a = arena_new();
        char *dir = arena_printf(a, AUTOSP_SOURCE_DIR "/tests/ir/%s", passes[p].name);
        DIR *d = opendir(dir);
        assert_non_null(d);
        VEC(char *) names = {0};
        for (struct dirent *e; (e = readdir(d));) {
            size_t n = strlen(e->d_name);
            if (n < 4 || strcmp(e->d_name + n - 3, ".ir") != 0) continue;
            if (n > 7 && strcmp(e->d_name + n - 7, ".out.ir") == 0) continue;
            vec_push(a, &names, arena_printf(a, "%.*s", (int)n - 3, e->d_name));
        }
        closedir(d);
        qsort(names.data, (size_t)names.n, sizeof *names.data, by_name);
        for (int i = 0; i < names.n; i++) bad += one(p, dir, names.data[i]);
        cases += names.n;
        arena_free(a);
    }
    assert_true(cases > 0);
    assert_int_equal(bad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
