/* pipeline.c - the passes in order, readable top to bottom. The verifier runs after each. */
#include "pass/pass.h"

#include <math.h>

/* Runs one pass: verify, show it to the caller. */
#define RUN(name, call)                                                                                                \
    do {                                                                                                               \
        TRY(call);                                                                                                     \
        TRY(ir_verify(g, name));                                                                                       \
        if (after) after(ctx, name, g);                                                                                \
    } while (0)

/* What comes after `save`, on its candidates. */
static sp_status tile(const void *options, const ir_graph *g, ir_graph **out) {
    return pass_tile(g, options, false, out);
}

/* The pass `save` with the pipeline's options. */
static sp_status save(const ir_graph *g, const pass_options *o, ir_graph **out) {
    cost_machine cpu;
    save_report unused;
    TRY(cost_machine_parse(g->a, "cpu", &cpu));
    save_options so = {.policy = o->save_policy,
                       .memory = o->memory,
                       .host_memory = o->host_memory,
                       .enough = o->enough,
                       .again_limit = o->again_limit,
                       .trial = o->trial,
                       .curves = o->curves,
                       .take = o->take,
                       .rung = o->rung,
                       .set = o->set,
                       .tried = o->tried,
                       .rule = o->rule,
                       .machine = o->machine ? o->machine : &cpu,
                       .lower = o->lower,
                       .finish = tile,
                       .ctx = o};
    return pass_save(g, &so, o->save ? o->save : &unused, out);
}

sp_status pass_memory(const ir_graph *joint, const pass_options *o, pass_after *after, void *ctx, ir_graph **out) {
    ir_graph *g = (ir_graph *)joint;
    RUN("tile_loss", pass_tile(g, o, true, &g)); /* the loss head: a loop over tiles of the sequence */
    RUN("schedule", pass_schedule(g, &g));       /* an order with a lower peak */
    RUN("save", save(g, o, &g));                 /* what the backward needs: kept or computed again */
    RUN("tile", pass_tile(g, o, false, &g));     /* the MLP and what is like it, forward and backward */
    *out = g;
    return SP_OK;
}

/* How far the step is from what no plan beats: all operators once, whole, and the least that any choice of tiles must
 * compute again. (A choice that pass_choose did not plan takes more than the one taken even if it kept everything.) */
static sp_status bounds(const ir_graph *before, const ir_graph *after, const pass_options *o) {
    cost_machine cpu;
    save_report *r = o->save;
    if (!r) return SP_OK;
    TRY(cost_machine_parse(before->a, "cpu", &cpu));
    const cost_machine *m = o->machine ? o->machine : &cpu;
    cost_step least = cost_graph(m, before), is = cost_graph(m, after);
    double step = is.forward + is.backward + is.again;
    r->bound = fmin(r->bound, o->again_bound);
    if (o->rule) r->bound = fmin(r->bound, r->again); /* another policy's plan may be outside the bound's class */
    r->step_bound = least.forward + least.backward + r->bound;
    if (o->rule) r->step_bound = fmin(r->step_bound, step);
    r->gap = step / r->step_bound - 1;
    return SP_OK;
}

sp_status pass_pipeline(const ir_graph *imported, const pass_options *o, pass_after *after, void *ctx,
                        ir_graph **joint) {
    ir_graph *g;
    g = (ir_graph *)imported;
    if (after) after(ctx, "import", g);
    RUN("simplify", pass_simplify(g, &g)); /* patterns; masks become descriptions; sizes still symbolic */
    RUN("bind", pass_bind(g, o, &g));      /* sizes become numbers; S padded to the ranks */
    RUN("fold", pass_simplify(g, &g));     /* again, with numbers */
    TRY(pass_check_masks(g, o));
    RUN("cast", pass_cast(g, o, &g));   /* f64, or mixed bf16 */
    RUN("shard", pass_shard(g, o, &g)); /* layouts and collectives */
    RUN("diff", pass_diff(g, &g));      /* the joint graph */
    pass_options chosen;
    TRY(pass_choose(g, o, &chosen)); /* how finely to tile under the budget */
    TRY(pass_memory(g, &chosen, after, ctx, joint));
    if (o->save) o->save->tiling = chosen.tiling;
    return bounds(g, *joint, &chosen);
}

const char *const pass_names[] = {"import", "simplify",  "bind",     "fold", "cast", "shard",
                                  "diff",   "tile_loss", "schedule", "save", "tile", NULL};
