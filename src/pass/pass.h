/* pass.h - the passes: one file, one entry function each; and the pipeline that runs them (pipeline.c).
 *
 * A pass takes a graph and gives a new one in the same arena (or edits in place where it says so). The pipeline
 * verifies after every pass. Passes know nothing of devices or of execution.
 */
#ifndef AUTOSP_PASS_H
#define AUTOSP_PASS_H

#include "ir/ir.h"
#include "pass/save.h"

/* ---- options: what the user asked for, for all passes ------------------------------------------ */

typedef struct pass_options {
    int64_t batch, seq;      /* B of one microbatch over all dp ranks; the user's S */
    int ranks;               /* of the sequence axis; 1: not sharded */
    dtype compute;           /* DT_F32, DT_F64 or DT_BF16 */
    const char *exchange;    /* "auto", "a2a", "gather" (ring comes later) */
    int64_t mask_bytes;      /* most that a mask kept as data may take, on all ranks together; 0: 64 MiB */
    const char *save_policy; /* save.h; NULL: "budget" */
    const char *tile_policy; /* "auto", "loss" (the loss head only), "off" */
    int tile_share;          /* a loop's working set: at most what crosses its border / this; 0: 8 */
    int loss_share;          /* the same for the loss head */
    int tile_late;           /* loops behind `save` only in the last 1/tile_late of forward, first of backward; 0: 1 */
    int tile_fine;           /* tile_share only in the last 1/tile_fine of forward, first of backward; 0: 1 */
    double again_limit;      /* pass_choose: a choice whose plans compute again no less has lost; 0: none */
    bool trial;              /* set by pass_choose while it tries: the report's front may end at the budget */
    save_curves *curves;     /* set by pass_choose while it tries: what its searches share */
    int rung, set;           /* set by pass_choose while it tries: save_options */
    save_tried *tried;       /* set by pass_choose while it tries: save_options */
    save_taken take;         /* set by pass_choose: what its search under the choice has found */
    double again_bound;      /* set by pass_choose: no plan under any of its choices computes again less */
    const char *rule;        /* set by pass_choose: the plan of this other policy in place of a search */
    int64_t tile_bytes;      /* bound on a loop's working set, and values above it are tiled; 0: by widths */
    int64_t tile_rows;       /* fewest rows of one rank in a tile; 0: 256 */
    int tiling;              /* of pass_choose's choices the one to take, counted from 1; 0: it chooses */
    int64_t enough;          /* save_policy least: any plan of at most so many bytes will do; 0: the leanest */
    int64_t memory;          /* bytes a rank, 0: no budget */
    int64_t host_memory;     /* bytes a rank for values moved to the host; 0: none */
    const cost_machine *machine; /* prices operators; NULL: "cpu" */
    const plan_options *lower;   /* how plans are lowered, for what they really take; NULL: only estimates */
    save_report *save;           /* filled by the pass `save` when not NULL */
    const char *break_rule;      /* test only: name of an op whose layout rule is deliberately broken */
} pass_options;

/* bind.c: symbols become numbers; S is padded to a multiple of the ranks, keys past S are masked. */
sp_status pass_bind(const ir_graph *g, const pass_options *o, ir_graph **out) SP_NODISCARD;

/* simplify.c: functional clean-up and patterns, to a fixed point: cancelled views, folded constants, CSE; norms,
 * rotary embedding, gated activations, attention with its mask as a description. Works before and after bind. */
sp_status pass_simplify(const ir_graph *g, ir_graph **out) SP_NODISCARD;

/* mask_data.c: refuses masks and biases that stayed data and are large; changes nothing. */
sp_status pass_check_masks(const ir_graph *g, const pass_options *o) SP_NODISCARD;

/* cast.c: the graph in another element type. */
sp_status pass_cast(const ir_graph *g, const pass_options *o, ir_graph **out) SP_NODISCARD;

/* shard.c: a mesh; every value gets a layout, collectives appear. */
sp_status pass_shard(const ir_graph *g, const pass_options *o, ir_graph **out) SP_NODISCARD;

/* diff.c: forward -> joint graph: outputs loss_sum and count, `accum` of every trainable parameter's gradient. */
sp_status pass_diff(const ir_graph *g, ir_graph **out) SP_NODISCARD;

/* tile.c: regions that work row by row become loops over tiles of the sequence. loss: those that hold forward and
 * backward nodes (the loss head; before pass_save), else the others (after it). */
sp_status pass_tile(const ir_graph *joint, const pass_options *o, bool loss, ir_graph **out) SP_NODISCARD;
/* The rows of a rank after padding for tiles: as they are when they can be cut well or need not be, else up to the next
 * multiple of a power of two; at most one row in tile_rows more. */
int64_t pass_tile_padding(const pass_options *o, int64_t rows);

/* schedule.c: the nodes in an order with a lower peak of live bytes, or the same order. */
sp_status pass_schedule(const ir_graph *g, ir_graph **out) SP_NODISCARD;

/* choose.c: how finely to tile, by trying; changes tiling, tile_policy, the shares, tile_late, tile_fine, rule and
 * again_bound of the options. */
sp_status pass_choose(const ir_graph *joint, const pass_options *o, pass_options *out) SP_NODISCARD;

/* ---- pipeline.c ------------------------------------------------------------------------------- */

/* Called after each pass, for dumps. */
typedef void pass_after(void *ctx, const char *pass, const ir_graph *g);
/* Imported graph to joint graph: all passes above, in order, verified after each. after may be NULL. */
sp_status pass_pipeline(const ir_graph *imported, const pass_options *o, pass_after *after, void *ctx,
                        ir_graph **joint) SP_NODISCARD;
/* The part of it behind `diff`: tiles, order, what is kept. */
sp_status pass_memory(const ir_graph *joint, const pass_options *o, pass_after *after, void *ctx,
                      ir_graph **out) SP_NODISCARD;
extern const char *const pass_names[]; /* in order, NULL at the end */

#endif
