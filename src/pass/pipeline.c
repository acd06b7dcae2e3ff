/* pipeline.c - the passes in order, readable top to bottom. The verifier runs after each. */
#include "pass/pass.h"

/* Runs one pass: verify, show it to the caller. */
#define RUN(name, call)                                                                                                \
    do {                                                                                                               \
        TRY(call);                                                                                                     \
        TRY(ir_verify(g, name));                                                                                       \
        if (after) after(ctx, name, g);                                                                                \
    } while (0)

sp_status pass_pipeline(const ir_graph *imported, const pass_options *o, pass_after *after, void *ctx,
                        ir_graph **joint) {
    ir_graph *g;
    g = (ir_graph *)imported;
    if (after) after(ctx, "import", g);
    RUN("simplify", pass_simplify(g, &g)); /* patterns; masks become descriptions; sizes still symbolic */
    RUN("bind", pass_bind(g, o, &g));      /* sizes become numbers; S padded to the ranks */
    RUN("fold", pass_simplify(g, &g));     /* again, with numbers */
    RUN("cast", pass_cast(g, o, &g));      /* f64, or mixed bf16 */
    RUN("shard", pass_shard(g, o, &g));    /* layouts and collectives */
    RUN("diff", pass_diff(g, &g));         /* the joint graph */
    RUN("schedule", pass_schedule(g, &g)); /* an order with a lower peak */
    *joint = g;
    return SP_OK;
}

const char *const pass_names[] = {"import", "simplify", "bind", "fold", "cast", "shard", "diff", "schedule", NULL};
