/* import.c - how long an exported model takes to become a graph, and how much JSON that is.
 *
 *   cmake --build build --target bench_import && build/bench_import [MODEL.pt2...]     the table in docs/importing.md
 *
 * Without arguments: the shape-only models in examples/, then all of tests/fixtures as one row (the slowest of them).
 * Seconds are CPU seconds of this process, which is single-threaded, the least of five: other load moves them least. */
#include "import/import.h"
#include "import/zip.h"

#include <glob.h>
#include <stdlib.h>
#include <time.h>

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct row {
    double seconds, json; /* megabytes, uncompressed */
    int nodes;
} row;

static sp_status measure(const char *path, row *r) {
    ziparc *z;
    *r = (row){.seconds = 1e9};
    TRY(ziparc_open(path, &z));
    for (int i = 0; i < ziparc_count(z); i++) {
        const char *name = ziparc_name(z, i), *end = strrchr(name, '.');
        if (end && strcmp(end, ".json") == 0) r->json += 1e-6 * (double)ziparc_size(z, i);
    }
    ziparc_close(z);
    for (int rep = 0; rep < 5; rep++) {
        arena *a = arena_new();
        ir_graph *g;
        import_info info;
        double start = cpu_seconds();
        sp_status s = import_pt2(a, path, &g, &info);
        double took = cpu_seconds() - start;
        if (s == SP_OK) {
            r->nodes = g->nodes.n;
            import_close(&info);
        }
        arena_free(a);
        TRY(s);
        if (took < r->seconds) r->seconds = took;
    }
    return SP_OK;
}

static void print(const char *name, const row *r) {
    printf("| %-37s | %8.2f | %6d | %9.1f |\n", name, r->json, r->nodes, 1e3 * r->seconds);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int each(int n, char **path) {
    for (int i = 0; i < n; i++) {
        row r;
        if (measure(path[i], &r) != SP_OK) {
            fprintf(stderr, "bench_import: %s\n", err_text());
            return 1;
        }
        print(base_name(path[i]), &r);
    }
    return 0;
}

int main(int argc, char **argv) {
    printf("| %-37s | %8s | %6s | %9s |\n", "model", "JSON, MB", "nodes", "import, ms");
    printf("|---------------------------------------|----------|--------|-----------|\n");
    if (argc > 1) return each(argc - 1, argv + 1);
    glob_t examples, fixtures;
    if (glob(AUTOSP_SOURCE_DIR "/examples/llama*.pt2", 0, NULL, &examples) != 0 ||
        glob(AUTOSP_SOURCE_DIR "/tests/fixtures/*.pt2", 0, NULL, &fixtures) != 0)
        return 1;
    int failed = each((int)examples.gl_pathc, examples.gl_pathv);
    row worst = {0};
    const char *which = "";
    for (size_t i = 0; i < fixtures.gl_pathc && !failed; i++) {
        row r;
        failed = measure(fixtures.gl_pathv[i], &r) != SP_OK;
        if (failed) fprintf(stderr, "bench_import: %s\n", err_text());
        if (!failed && r.seconds > worst.seconds) {
            worst = r;
            which = base_name(fixtures.gl_pathv[i]);
        }
    }
    char name[96];
    snprintf(name, sizeof name, "slowest of %zu fixtures: %s", fixtures.gl_pathc, which);
    print(name, &worst);
    globfree(&examples);
    globfree(&fixtures);
    return failed;
}
