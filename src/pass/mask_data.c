/* mask_data.c - masks of attention that stayed data: allowed while they are small, refused with size and origin if not.
 *
 * mask.c turns what it can into descriptions that kernels evaluate tile by tile. What is left has an element for each
 * query and key: at 131072 tokens 16 GiB as bytes. Such a value is never dropped and never silently materialised; the
 * user is told which line made it. Biases with a gradient are not seen here: their attention is written out
 * (attention.c), and the plan shows what that takes.
 *
 * Requires: bound sizes.
 */
#include "pass/pass.h"

static const int64_t MOST = 64 << 20;

sp_status pass_check_masks(const ir_graph *g, const pass_options *o) {
    int64_t most = o->mask_bytes > 0 ? o->mask_bytes : MOST;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op != OP_attention) continue;
        for (int k = 3; k < n->nin; k++) {
            const ir_type *t = ir_typeof(g, n->in[k]);
            if (t->rank != 4 || ir_bytes(t) <= most) continue;
            const char *src = ir_def(g, n->in[k])->src;
            if (!src) src = n->src;
            FAIL(
                "attention with a mask that is data: [%lld, %lld, %lld, %lld] of %s, %lld MiB, made %s%s; more than "
                "%lld "
                "MiB is not kept. Compute the mask from positions, document ids or lengths (comparisons joined by and, "
                "or: autosp evaluates them tile by tile), take a shorter --seq, or allow it by --set "
                "mask.bytes=%lldMiB",
                (long long)t->dim[0], (long long)t->dim[1], (long long)t->dim[2], (long long)t->dim[3],
                dtype_name(t->t), (long long)(ir_bytes(t) >> 20), src ? "at " : "outside of the forward pass",
                src ? src : "", (long long)(most >> 20), (long long)((ir_bytes(t) >> 20) + 1));
        }
    }
    return SP_OK;
}
