/* simplify.c - clean-up and patterns, to a fixed point.
 *
 *   before  %5 = permute(%4) {perm=[0,2,1,3]} : f32[2,4,8,16]     after  %7 = relu(%4) : f32[2,8,4,16]
 *           %6 = relu(%5) : f32[2,4,8,16]
 *           %7 = permute(%6) {perm=[0,2,1,3]} : f32[2,8,4,16]
 *
 * The rules look at one node and what it is made of (rewrite.h), never at names or at node order; a pattern that does
 * not match leaves a correct graph. They are in: fold.c (constants, algebra), view.c and sink.c (reshape, permute,
 * expand), activation.c, norm.c, rotary.c, attention.c (attention written out, repeated key heads), mask.c (attention
 * masks as a description), loss.c (a loss shifted by slices). A sweep rebuilds the graph; sweeps repeat until one
 * changes nothing.
 *
 * Requires: no mesh. Keeps: meaning, up to float rounding; outputs' names. Works before and after bind; before is
 * better, because padding the sequence needs to know which softmax is an attention.
 */
#include "pass/pass.h"
#include "pass/rewrite.h"

enum { MAX_SWEEPS = 50 };

sp_status pass_simplify(const ir_graph *g, ir_graph **out) {
    CHECK(g->mesh.naxes == 0, "simplify runs before the graph is sharded");
    arena *mine[2] = {arena_new(), arena_new()};
    const ir_graph *now = g;
    buf before = {0}, after = {0};
    sp_status s = SP_OK;
    bool done = false;
    for (int i = 0; i < MAX_SWEEPS && !done && s == SP_OK; i++) {
        ir_graph *next = NULL;
        arena_free(mine[0]); /* the sweep before the last one */
        mine[0] = mine[1];
        mine[1] = arena_new();
        s = rw_sweep(mine[1], now, &next);
        if (s != SP_OK) break;
        after.n = 0;
        ir_print(next, &after);
        done = before.n && before.n == after.n && memcmp(before.data, after.data, after.n) == 0;
        buf t = before;
        before = after;
        after = t;
        now = next;
    }
    if (s == SP_OK) { /* into the caller's arena */
        ir_graph *h = ir_new(g->a, g->name);
        h->seq = g->seq;
        h->seq_valid = g->seq_valid;
        arena *scratch = arena_new();
        ir_val *map = ARENA_ARRAY(scratch, ir_val, now->values.n);
        for (int i = 0; i < now->nodes.n && s == SP_OK; i++) s = ir_copy_node(h, now, i, map);
        for (int i = 0; i < now->outputs.n && s == SP_OK; i++)
            ir_set_output(h, now->outputs.data[i].name, map[now->outputs.data[i].value]);
        arena_free(scratch);
        *out = h;
    }
    arena_free(mine[0]);
    arena_free(mine[1]);
    buf_free(&before);
    buf_free(&after);
    return s;
}
