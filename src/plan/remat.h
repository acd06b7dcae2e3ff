/* remat.h - what to save, recompute or move to the host: the exact algorithms on abstract segments, no IR.
 *
 * A model is a chain of segments (usually: before the layers, each layer, the head). A segment's boundary, the value
 * that it gets from the one before, is saved by every plan; inside, each value that the backward reads is saved or
 * computed again just in time in the segment's own backward. Three levels:
 *
 *   remat_front   one segment: the plans (saved bytes B, recompute seconds T) that no other plan beats. Price seconds
 * at lambda bytes each; then save-or-recompute is exactly a minimum cut, and all prices are swept. remat_windows each
 * plan's window: the most bytes alive inside the segment's forward or backward under it. remat_chain   a plan for every
 * segment: all trade-offs between the peak of the step and its recompute time at once.
 *
 * With the segments 1..n, B_i the bytes that segment i keeps, W_i its window, the peak of a step is
 *     max( resident + max_i (B_1 + ... + B_{i-1} + W_i),  resident + B_1 + ... + B_n + turn ).
 * The class of schedules: every value is computed at most twice, boundaries are saved, recomputation is just in time.
 * Inside it the cut is exact and the chain is optimal up to the stated resolution; unrestricted schedules can do better
 * only near the least feasible peak.
 *
 * All functions are deterministic: every rank that has the same numbers gets the same plan.
 */
#ifndef AUTOSP_PLAN_REMAT_H
#define AUTOSP_PLAN_REMAT_H

#include "base/base.h"

/* ---- a segment --------------------------------------------------------------------------------- */

enum {                   /* of a value */
       REMAT_FREE = 1,   /* always there and counted elsewhere: parameters, values that live through the step */
       REMAT_INPUT = 2,  /* the boundary: there from the start, saved by every plan; counts in B */
       REMAT_SAVE = 4,   /* made here and saved by every plan; counts in B */
       REMAT_NOSAVE = 8, /* must not be saved */
       REMAT_OUT =
           16, /* alive at the end of the forward (the next boundary) or of the backward (the gradient of ours) */
       REMAT_GRAD_IN = 32, /* alive when the backward starts: the gradient of the next boundary */
       REMAT_STAY = 64     /* never moved to the host: each segment that reads it makes its own */
};

typedef struct remat_val {
    int64_t bytes; /* of its storage; 0 for a view */
    int root;      /* the value whose storage it lies in; its own number unless it is a view */
    uint32_t flags;
} remat_val;

enum {                /* of an op */
       REMAT_BAN = 1, /* never run twice (side effects, random numbers that cannot be replayed) */
       REMAT_INPLACE =
           2 /* a result may take over the storage of an operand of the same size that is read for the last time */
};

typedef struct remat_op {
    double seconds; /* to run it again; a view's op: 0 */
    int64_t work;   /* bytes of workspace while it runs */
    uint32_t flags;
    int nin, nout;
    const int *in, *out; /* values; a view's op has one result, whose root is not itself */
} remat_op;

/* Values are numbered 0..nval-1 over forward and backward. Forward ops make forward values, each once, before they are
 * read; backward ops read both kinds and make backward values. A forward value that a backward op reads is needed. */
typedef struct remat_seg {
    int nval, nfwd, nbwd;
    const remat_val *val;
    const remat_op *fwd, *bwd; /* in execution order */
} remat_seg;

enum { REMAT_NO = 0, REMAT_DEVICE = 1, REMAT_HOST = 2 };

typedef struct remat_plan {
    int64_t bytes;  /* B: kept on the device from the forward to the backward, the boundary included */
    double seconds; /* T: of recomputation, and of host copies that compute does not hide */
    int64_t window; /* W: set by remat_windows */
    int64_t host;   /* bytes kept on the host */
    bool hull;      /* a vertex of the lower convex hull of (B, T) */
    uint8_t *saved; /* per value REMAT_NO, REMAT_DEVICE or REMAT_HOST; set on roots only */
} remat_plan;

/* Completes a saved set: which forward ops run again (again[nfwd], may be NULL), and the plan's bytes, seconds and host
 * bytes (boundaries and forced values are added to `saved`, values that nothing would read are dropped from it).
 * False when an op that must not run twice would have to, or a value that must not be saved is. */
bool remat_complete(const remat_seg *s, remat_plan *p, bool *again);

/* The order in which the segment's backward runs under a plan: entry k >= 0 is backward op k, entry -1 - k runs forward
 * op k again, just before its first reader. order has room for nfwd + nbwd; returns the count. */
int remat_order(const remat_seg *s, const remat_plan *p, int *order);

/* Sets the plan's window: the most bytes alive at one step of the segment's forward, or of its backward in remat_order,
 * not counting what other segments keep. Values die after their last reader. fwd and bwd (may
 * be NULL) get the two peaks. */
void remat_window(const remat_seg *s, remat_plan *p, int64_t *fwd, int64_t *bwd);

/* ---- one segment's front ----------------------------------------------------------------------- */

typedef VEC(remat_plan) remat_plans;

/* One minimum cut: the plan with the least B + lambda T, lambda in bytes per second, 0 < lambda; infinity: the least B
 * among the plans with the least T. Fails, naming the values on the way, when some needed value can be neither saved
 * nor computed again. */
sp_status remat_cut(arena *a, const remat_seg *s, double lambda, remat_plan *out) SP_NODISCARD;

/* The undominated plans of a segment by increasing B (decreasing T): all vertices of the convex hull, found by
 * intersecting lines (each cut at the slope between two known plans either finds a plan below the line or proves that
 * there is none: Eisner and Severance, J. ACM 23(4), 1976), and between them the plans found by trying all subsets of
 * up to REMAT_CANDIDATES values. The whole front when the segment has no more candidates than that; else the subsets
 * are taken over those that the hull switches first. Windows are set. At most `cap` plans, hull vertices always kept.
 */
enum { REMAT_CANDIDATES = 14 };
sp_status remat_front(arena *a, const remat_seg *s, int cap, remat_plans *out) SP_NODISCARD;

/* Adds to a front the plans that keep part of what they save on the host instead. rate: bytes a second of the link in
 * each direction while the segment computes; fwd_s, bwd_s: seconds of its forward and backward, behind which copies
 * hide; what does not hide is charged as time. The window gains a staging ring of two of the largest moved
 * values.
 * (A front moved by the hidden bytes O: T_off(B) = T(B + O).) */
void remat_offload(arena *a, const remat_seg *s, double rate, double fwd_s, double bwd_s, remat_plans *plans);

/* ---- a chain of segments ----------------------------------------------------------------------- */

typedef struct remat_chain {
    int n;                    /* segments in forward order */
    const int *cls;           /* n: each segment's class */
    const remat_plans *plans; /* per class: its plans, with windows */
    int64_t resident;         /* bytes always alive: parameters, gradients, optimizer state */
    int64_t turn;             /* bytes besides all B when the backward starts, where no segment's window has them */
    int64_t host_budget;      /* bytes; 0: plans with host bytes are not used */
    int64_t cap;              /* bytes: what needs more (by a step of the resolution) is left out; 0: nothing is */
} remat_chain;

/* One trade-off: no other plan of the chain has both a lower peak and less time (up to the resolution). */
typedef struct remat_point {
    int64_t peak;   /* bytes, resident included */
    double seconds; /* added to a step */
    int64_t bytes;  /* sum of B */
    int64_t host;
    int state; /* private to remat_chain.c */
} remat_point;

typedef struct remat_curve remat_curve;
typedef VEC(remat_point) remat_points;

/* All trade-offs of the chain, by increasing peak and decreasing time. A dynamic program from the last segment to the
 * first: what a suffix of the chain needs on top of the segments before it is one number, R_i = max(W_i, B_i +
 * R_{i+1}), so that a front of (R, T) is the whole state, for all budgets at once, and budgets are monotone by
 * construction. Fronts are thinned to a relative resolution of 2^-11 in R, exact numbers kept. O(n x plans x 2^11
 * log(peak range)). With a host budget the state has the host's bytes, too, and a resolution of 2^-8 and 2^-3. */
remat_curve *remat_chain_solve(arena *a, const remat_chain *c);
const remat_points *remat_curve_points(const remat_curve *c);
/* The same chain's trade-offs with another, smaller, host budget: all of its own that take no more host bytes, and
 * those that they beat. So more host memory never gives a point of more seconds at a peak, by construction. */
remat_curve *remat_curve_within(arena *a, const remat_curve *c, int64_t host);

/* The fewest host bytes, more than `host`, of a point of any host budget that takes less than `limit` seconds;
 * INT64_MAX: there is none. */
int64_t remat_curve_more(const remat_curve *c, int64_t host, double limit);

/* Has `cap` left something out? The points that are there are the first ones of the whole front. */
bool remat_curve_cut(const remat_curve *c);
/* The fastest point whose peak is within the budget; -1 when none is (the first point has the least peak). */
int remat_curve_find(const remat_curve *c, int64_t budget);
/* The plan number of each segment at a point. */
void remat_curve_plans(const remat_curve *c, int point, int *plan);

/* The plan number of each segment under which the chain's peak is least, of equals the fastest; plans with host bytes
 * in the first `with_host` segments only. Exact: R_i of remat_chain_solve only grows with R_{i+1}, so that each segment
 * takes what makes its own R least. The host's budget is not looked at. O(n x plans). */
void remat_chain_least(const remat_chain *c, int with_host, int *plan);

/* The peak and the sums of given plans of the chain. */
remat_point remat_chain_eval(const remat_chain *c, const int *plan);

/* A lower bound in seconds on the recompute time of every plan of the chain within the budget, whatever the mix: the
 * convex hulls of all segments added up (the linear relaxation; the cut's matrix is totally unimodular) at the bytes
 * that the budget leaves to saved values, for every prefix of the chain with the least window of the segment after it,
 * and for the whole. Infinity when the budget is below the least peak by these bounds. */
double remat_chain_bound(const remat_chain *c, int64_t budget);

#endif
