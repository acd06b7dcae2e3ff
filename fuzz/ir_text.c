/* ir_text.c - fuzzes the parser of the graph's text form. What parses must print to text that parses to the same. */
#include "fuzz/fuzz.h"
#include "ir/ir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    arena *a = arena_new();
    char *text = arena_alloc(a, size + 1);
    if (size) memcpy(text, data, size);
    ir_graph *g, *again;
    if (ir_parse(a, text, "fuzz", &g) == SP_OK && ir_verify(g, "parse") == SP_OK) {
        buf first = {0}, second = {0};
        ir_print(g, &first);
        ASSERT(ir_parse(a, first.data, "printed", &again) == SP_OK);
        ir_print(again, &second);
        ASSERT(strcmp(first.data, second.data) == 0);
        buf_free(&first);
        buf_free(&second);
    }
    arena_free(a);
    return 0;
}
