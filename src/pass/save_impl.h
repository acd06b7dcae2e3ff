/* save_impl.h - private to src/pass/save*.c: the joint graph as a chain of segments. */
#ifndef AUTOSP_PASS_SAVE_IMPL_H
#define AUTOSP_PASS_SAVE_IMPL_H

#include "pass/save.h"

/* What a value is to this pass. */
typedef enum save_kind {
    KIND_FREE,   /* a leaf, or a view of one: always there */
    KIND_SIDE,   /* computed from inputs and positions only (rotary tables, masks, labels): small, kept all step */
    KIND_WEIGHT, /* computed from parameters only (a cast): made where it is used, once in each segment */
    KIND_ACT,    /* an activation */
    KIND_BACK    /* made by the backward */
} save_kind;

typedef struct save_seg {
    remat_seg s;
    ir_val *val;    /* local value -> value of the joint graph */
    int *fwd, *bwd; /* local op -> node of the joint graph */
    int cls;
} save_seg;

typedef struct save_model {
    const ir_graph *g;
    arena *a;
    uint8_t *kind; /* by value: save_kind */
    ir_val *root;  /* by value: whose storage it lies in */
    int *home;     /* by node: its segment; -1 for leaves, side values and weights */
    int nseg, ncls;
    save_seg *seg;
    int *cls;         /* by segment */
    int *first;       /* by class: one of its segments */
    int64_t *work;    /* by node: workspace and short-lived copies of its operands, bytes */
    int64_t *scratch; /* by node: its workspace alone */
    int64_t resident; /* bytes of parameters, gradients, moments, constants and inputs; 0 without a way to lower */
} save_model;

/* Cuts the forward where exactly one activation is alive, joins what repeats into layers, and describes each segment;
 * one: the whole graph as a single segment, for policies that do not know layers; exact: for plans that are lowered:
 * windows count workspaces, and what stands before the first layer is part of it. */
sp_status save_model_build(arena *a, const ir_graph *g, const save_options *o, bool one, bool exact,
                           save_model *m) SP_NODISCARD;

/* save_bound.c: bytes alive at once in segment k's backward under every plan and every tiling, at least. */
int64_t save_least_window(const save_model *m, int k);

/* The saved sets of PyTorch's default partitioner and of AutoSP's rule on a model of one segment. */
sp_status save_rule_plan(const save_model *m, bool autosp, remat_plan *p) SP_NODISCARD;

/* The plans of each class, three times: with the windows of segments that run whole; with those of segments that a
 * later pass tiles; by kept bytes alone. The judge sees them all. */
typedef struct save_class_plans {
    remat_plans *whole, *tiled, *bare;
} save_class_plans;

/* save_plans.c: what the searches choose from; with host memory also plans that move values there. */
sp_status save_plans_find(const save_model *m, const save_options *o, save_class_plans *out) SP_NODISCARD;
/* Each class's plans without the host, and with it the one that leaves least on the device for the fewest host bytes
 * (usually the layer's input moves, all else is computed again): near the floor the estimates of larger moves mislead.
 */
remat_plans *save_leanest_on_host(const save_model *m, const remat_plans *plans);

/* save.c: every needed value is kept. */
remat_plan save_keep_all(arena *a, const remat_seg *s);
/* Fills the report's segments and sums; chosen: the plan of each segment. */
void save_report_plans(const save_model *m, const remat_plan *const *chosen, save_report *r);

/* save_search.c: the policies `budget`, with a budget, and `least`. */
sp_status save_budget(const save_model *m, const save_options *o, save_report *r, ir_graph **out) SP_NODISCARD;
sp_status save_least(const save_model *m, const save_options *o, save_report *r, ir_graph **out) SP_NODISCARD;
/* The bytes of a rank when the graph is lowered and placed. */
sp_status save_lowered(const save_options *o, const ir_graph *g, save_report *r, int64_t *bytes) SP_NODISCARD;

/* Builds in arena `a` the graph in which segment i runs under chosen[i]. */
sp_status save_emit(const save_model *m, arena *a, const remat_plan *const *chosen, ir_graph **out) SP_NODISCARD;

#endif
