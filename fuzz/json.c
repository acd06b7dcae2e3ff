/* json.c - fuzzes the decoding of an archive's JSON and its lowering to a graph: the input is the program's text, which
 * the target puts into an archive with valid checksums. Behind a NUL byte may follow the list of weights. */
#include "fuzz/fuzz.h"
#include "import/import.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t n = nul ? (size_t)(nul - data) : size;
    fuzz_zip z = {0};
    static const char weight[4096];
    fuzz_zip_add(&z, "m/archive_format", "pt2", 3);
    fuzz_zip_add(&z, "m/models/model.json", data, n);
    if (nul) fuzz_zip_add(&z, "m/data/weights/model_weights_config.json", nul + 1, size - n - 1);
    fuzz_zip_add(&z, "m/data/weights/weight_0", weight, sizeof weight);
    fuzz_zip_add(&z, "m/data/weights/weight_1", weight, 0);
    arena *a = arena_new();
    ir_graph *g;
    import_info info;
    if (import_pt2(a, fuzz_zip_end(&z), &g, &info) == SP_OK) {
        ASSERT(ir_verify(g, "import") == SP_OK);
        for (int i = 0; i < info.program->graph->n_nodes; i++) pt2_source(a, &info.program->graph->nodes[i]);
        import_close(&info);
    }
    arena_free(a);
    return 0;
}
