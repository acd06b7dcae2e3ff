/* archive.c - fuzzes the ZIP container and all that is read from it: the input is a whole .pt2 file. */
#include "fuzz/fuzz.h"
#include "import/pt2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = fuzz_file(data, size);
    ziparc *z;
    if (ziparc_open(path, &z) == SP_OK) {
        for (int i = 0; i < ziparc_count(z); i++) {
            const void *view;
            char *copy;
            int64_t n;
            if (ziparc_view(z, i, &view, &n) == SP_OK) hash_bytes(HASH_INIT, view, (size_t)n); /* readable to its end */
            if (ziparc_read(z, i, 1 << 20, &copy, &n) == SP_OK) free(copy);
        }
        ziparc_close(z);
    }
    pt2 *p;
    if (pt2_open(path, &p) == SP_OK) pt2_close(p);
    return 0;
}
