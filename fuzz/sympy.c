/* sympy.c - fuzzes the parser of symbolic sizes and their evaluation. */
#include "fuzz/fuzz.h"
#include "import/sym.h"

static bool lookup(void *ctx, const char *name, int64_t *value) {
    (void)ctx;
    *value = (int64_t)(hash_str(HASH_INIT, name) % 1000);
    return name[0] != 'x';
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    arena *a = arena_new();
    char *text = arena_alloc(a, size + 1);
    if (size) memcpy(text, data, size);
    const sym_expr *e;
    int64_t v;
    if (sym_parse(a, text, &e) == SP_OK && sym_eval(e, lookup, NULL, &v) == SP_OK && sym_is_int(e))
        ASSERT(v == e->value);
    arena_free(a);
    return 0;
}
