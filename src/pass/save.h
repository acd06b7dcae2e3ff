/* save.h - the pass that decides, for every value of the forward that the backward reads, whether it is kept, computed
 * again, or moved to the host. Works on the joint graph; see save.c.
 */
#ifndef AUTOSP_PASS_SAVE_H
#define AUTOSP_PASS_SAVE_H

#include "cost/cost.h"
#include "ir/ir.h"
#include "plan/plan.h"
#include "plan/remat.h"

/* Where a search ended: with the same graph and options, save_options.take goes there without searching. */
typedef struct save_taken {
    int set;       /* which of the fronts, counted from 1; behind them the leanest plans; 0: nothing */
    int point;     /* of the front */
    int64_t host;  /* the host bytes that the front is for */
    int64_t arena; /* bytes of a rank, everything included */
} save_taken;

/* Fronts of chains that were solved already: choices of tiles differ in few of them. */
typedef struct save_curves {
    arena *a; /* the fronts' */
    struct save_curve {
        uint64_t key; /* of all that the front depends on */
        remat_curve *curve;
    } * data;
    int n, cap;
} save_curves;

/* The fronts of policy budget, in the order in which they are tried: of whole windows and of tiled ones without the
 * host; of whole windows, of kept bytes alone, of the leanest moves with it. And how many estimates say which plan is
 * the leanest. */
enum { SAVE_SETS = 5, SAVE_SETS_WITHOUT_HOST = 2, SAVE_LEANEST = 6 };

/* What a choice of tiles took when it was lowered, from host budget to host budget. */
typedef struct save_judged {
    int state; /* remat_point */
    int64_t bytes;
} save_judged;

typedef VEC(save_judged) save_judgements;

typedef struct save_tried {
    arena *a;
    save_judgements known[SAVE_SETS]; /* by front, as are last, lost and wait */
    int64_t last[SAVE_SETS];          /* host bytes that it was last tried with */
    int64_t lean[SAVE_LEANEST];       /* bytes of that leanest plan above its estimate; 0: not tried */
    int lost[SAVE_SETS];              /* how often in a row it had nothing */
    int wait[SAVE_SETS];              /* until which rung it is left alone for that */
    int next;                         /* the first rung that may have something new */
} save_tried;

/* The host budgets that policy budget tries, from the least, each to beat what the ones before found: 0, then eight in
 * each power of two from 256 bytes on. They depend on nothing, and what is tried on one depends on the ones before it
 * only: the plan for a budget is the best of a series whose beginning is a smaller budget's series. So more host memory
 * never slows a step, by construction and not by estimate. Up to a ninth of a budget stays unused for it. */
int64_t save_rung(int rung);  /* bytes */
int save_rungs(int64_t host); /* the last rung of at most so many bytes */
bool save_between(int rung);  /* neither a power of two nor halfway: only the front that is best is tried there */
/* What had nothing to offer on a rung is left alone for half an octave, then for one, two, four. */
void save_back_off(int rung, bool won, int *lost, int *wait);
/* Is a set of save_taken a front with the host? */
static inline bool save_on_host(int set) { return set > SAVE_SETS_WITHOUT_HOST && set <= SAVE_SETS; }

/* The policies of --set save.policy=... :
 *   all      keep every value that the backward reads
 *   layer    keep each layer's input, compute all else of the layer again (full activation checkpointing)
 *   pytorch  the default minimum-cut partitioner of torch.compile: rules by operator, no budget
 *   autosp   the same with AutoSP's rule: products may run again, attention never
 *   budget   ours: the fastest plan within the budget; without one, the same as all
 *   least    ours: the plan with the least peak; what it takes is the least feasible budget */
typedef struct save_options {
    const char *policy;          /* NULL: budget */
    int64_t memory;              /* bytes of one rank, everything included; 0: no budget */
    int64_t host_memory;         /* bytes of one rank that values may be moved to; 0: none are */
    int64_t enough;              /* policy least: any plan of at most so many bytes will do; 0: the leanest */
    double again_limit;          /* policy budget: fails when no plan computes again less; 0: none */
    bool trial;                  /* policy budget: only the plan is wanted: no front above the budget, rough bytes */
    save_curves *curves;         /* policy budget: fronts are looked up and added here; NULL: nowhere */
    save_taken take;             /* policy budget: what a search has found already */
    int rung;                    /* policy budget: the only rung to try, counted from 1 (no host); 0: all */
    int set;                     /* policy budget: of the fronts with the host the only one to try; 0: all */
    save_tried *tried;           /* policy budget: what rungs before this one found out; NULL: nothing */
    const char *rule;            /* policies budget and least: the plan of this policy in place of a search; NULL */
    const cost_machine *machine; /* prices the operators and the link to the host */
    bool keep_collectives;       /* never run a collective twice (default: those that only move data may) */
    /* What becomes of a candidate before it is lowered: the pass `tile`. NULL: nothing. */
    sp_status (*finish)(const void *ctx, const ir_graph *g, ir_graph **out);
    const void *ctx;
    const plan_options *lower; /* how candidates are lowered and placed: what they really take. NULL: estimates only */
} save_options;

/* One segment of the chain (a layer, usually) and what was decided for it. */
typedef struct save_segment {
    const char *name;      /* of a parameter in it, for people; "" when it has none */
    int cls;               /* equal numbers: equal segments */
    int64_t host;          /* bytes moved to the host and back */
    int64_t kept, window;  /* bytes kept; most bytes alive in its own forward or backward */
    double again, forward; /* seconds computed again, of seconds of its forward */
    int kept_values, again_ops;
} save_segment;

typedef struct save_report {
    const char *policy;
    int segments, classes;
    save_segment *segment;     /* in forward order; in the graph's arena */
    int64_t kept;              /* bytes kept from forward to backward, sum over segments */
    int64_t host;              /* bytes moved to the host, sum over segments */
    int64_t estimate;          /* peak of the model: segments only, without what is resident */
    int64_t arena;             /* bytes of a rank under this plan, everything included; 0 without a budget */
    int64_t least;             /* least feasible budget, when the given one was refused */
    int64_t resident;          /* of the bytes of a rank, those that no plan can save (policy budget) */
    int rounds;                /* candidates lowered */
    save_taken taken;          /* where policy budget ended */
    int tiling;                /* of pass_choose; set by pass_pipeline */
    double forward, backward;  /* seconds of one step without recomputation */
    double again, comm_again;  /* seconds computed again; of these collectives */
    double bound;              /* lower bound of `again` at this budget (policy budget); 0 else */
    double step_bound;         /* lower bound of the step's seconds: all operators once, untiled, and `bound`; set by
                                  pass_pipeline */
    double gap;                /* (step - step_bound) / step_bound; set by pass_pipeline */
    const remat_points *front; /* peak (as `estimate`) against time; NULL for fixed policies */
    int point;                 /* the one taken, -1 */
} save_report;

/* Rewrites the joint graph: values to be moved are copied by `offload` behind their last forward reader, and back by
 * `fetch` when the segment after theirs begins its backward; values to be computed again get clones of their operators
 * (tag 2) in the backward, just before their first reader. Results are bit-equal to the unchanged graph's. Fails when
 * the policy is unknown, and when no plan of the policy `budget` fits, naming the least feasible budget and the buffers
 * alive at its peak; other policies do not look at the budget. *r is filled on success, and `least` also on such a
 * failure. Deterministic; not collective. */
sp_status pass_save(const ir_graph *joint, const save_options *o, save_report *r, ir_graph **out) SP_NODISCARD;

#endif
