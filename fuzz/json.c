/* json.c - fuzzes the decoding of an archive's JSON and its lowering to a graph: the input is the program's text, which
 * the target puts into an archive with valid checksums. Behind a NUL byte may follow the list of weights. */
#include "fuzz/fuzz.h"
#include "import/pt2.h"

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
    pt2 *p;
    if (pt2_open(fuzz_zip_end(&z), &p) == SP_OK) {
        arena *a = arena_new();
        for (int i = 0; i < p->graph->n_nodes; i++) pt2_source(a, &p->graph->nodes[i]);
        arena_free(a);
        pt2_close(p);
    }
    return 0;
}
