/* safetensors.c - fuzzes the reader of safetensors files: header, ranges, and reading every tensor to its end. */
#include "fuzz/fuzz.h"
#include "import/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    st_file *f;
    if (st_open(fuzz_file(data, size), &f) != SP_OK) return 0;
    for (int i = 0; i < st_count(f); i++) {
        const st_tensor *t = st_at(f, i);
        ASSERT(st_find(f, t->name) != NULL);
        hash_bytes(HASH_INIT, t->data, (size_t)t->bytes);
        if (!t->known || !t->bytes) continue;
        float out[16];
        int64_t n = min64(t->bytes / dtype_size(t->type), 16);
        st_convert(out, DT_F32, t->data, t->type, n);
    }
    st_close(f);
    return 0;
}
