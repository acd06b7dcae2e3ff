/* rewrite.h - the rewriting framework that the parts of `simplify` share (not for other passes).
 *
 * A sweep rebuilds a graph node by node. Every node that is built, copied or made by a rule, goes through rw_emit: an
 * equal node is reused (CSE), else the rules look at it; a rule that fires gives replacements for its results. Rules
 * look upwards only, at operands that are already in simplest form, so one sweep does nearly everything and what a
 * rule leaves behind is dead. Replaced nodes stay in the graph until the sweep's end removes what is not used.
 */
#ifndef AUTOSP_PASS_REWRITE_H
#define AUTOSP_PASS_REWRITE_H

#include "ir/ir.h"

typedef struct elem_ctx elem_ctx;

typedef struct rw {
    ir_graph *g;         /* being built; unsharded */
    arena *scratch;      /* of this sweep */
    VEC(ir_val) fwd;     /* for every value of g: what stands for it now */
    VEC(bool) trainable; /* for every value of g: does it depend on a parameter that has a gradient? */
    int *slots, nslots;  /* CSE: open addressing, node index + 1 */
    int depth;           /* of rules within rules */
    ir_dim seq;          /* the extent of the sequence as a number; 0: symbolic or not known */
    const char *src;     /* given to new nodes */
    int tag;
    elem_ctx *elem; /* element expressions of this sweep (elem.c), made when first needed */
} rw;

/* A rule: if node n (a copy, operands in r->g) can be replaced, writes a value for each result and returns true. The
 * replacements must have the results' types. */
typedef bool rw_rule(rw *r, const ir_node *n, ir_val *out);
rw_rule rw_fold, rw_algebra, rw_views, rw_raise, rw_sink, rw_activation, rw_norm, rw_rotary, rw_attention, rw_mask,
    rw_softmax, rw_loss;

bool rw_sink_dot(rw *r, const ir_node *n, ir_val *out); /* rw_sink's part for dot */

/* One sweep over `from`; result in a new graph of arena `a`, dead nodes removed. */
sp_status rw_sweep(arena *a, const ir_graph *from, ir_graph **out) SP_NODISCARD;

/* ---- building; operands must fit (our bug otherwise) ------------------------------------------- */

/* Builds a node and applies the rules to it; the (replaced) results into out[]. given: as for ir_emit. */
void rw_emit(rw *r, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *given,
             ir_val *out);
/* The same without rules, only CSE: for results that are known to be in simplest form. First result. */
ir_val rw_raw(rw *r, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *given);
ir_val rw_op1(rw *r, ir_op op, ir_val x, const ir_attr *attr, int nattr);
ir_val rw_op2(rw *r, ir_op op, ir_val x, ir_val y, const ir_attr *attr, int nattr);
ir_val rw_op3(rw *r, ir_op op, ir_val x, ir_val y, ir_val z, const ir_attr *attr, int nattr);
ir_val rw_cast(rw *r, ir_val x, dtype t);
ir_val rw_reshape(rw *r, ir_val x, int rank, const ir_dim *dim);
ir_val rw_permute(rw *r, ir_val x, const int *perm);
ir_val rw_expand(rw *r, ir_val x, int rank, const ir_dim *dim); /* same rank */
ir_val rw_slice(rw *r, ir_val x, int dim, ir_dim start, ir_dim stop);
ir_val rw_scalar(rw *r, dtype t, double v);
/* v everywhere, in the shape and type of `like`, as an expanded scalar */
ir_val rw_splat(rw *r, const ir_type *like, double v);

/* ---- matching ---------------------------------------------------------------------------------- */

static inline const ir_node *rw_def(const rw *r, ir_val v) { return ir_def(r->g, v); }
static inline const ir_type *rw_type(const rw *r, ir_val v) { return ir_typeof(r->g, v); }
static inline bool rw_is(const rw *r, ir_val v, ir_op op) { return ir_opof(r->g, v) == op; }
/* Is every element of v the same known number? Looks through views. */
bool rw_const(const rw *r, ir_val v, double *c);
/* rw_const with value c */
bool rw_is_const(const rw *r, ir_val v, double c);
/* Is v = op(a, b) with one operand constant c (either order when the op commutes: add, mul, max, min, and, or; else
 * only the right one)? The other operand in *x. */
bool rw_with_const(const rw *r, ir_val v, ir_op op, ir_val *x, double *c);
/* v as base[start : stop] along dim; v itself and its whole extent when it is no slice of step 1. */
ir_val rw_slice_of(const rw *r, ir_val v, int dim, ir_dim *start, ir_dim *stop);
/* v is a vector over `dim` of `like` repeated over all other dimensions; the vector (rank 1) or -1. */
ir_val rw_row_vector(rw *r, ir_val v);
/* v, a number per row repeated over the last dimension: those numbers, with the last dimension 1 or gone; else -1 */
ir_val rw_per_row(const rw *r, ir_val v);
/* x of log_softmax(x) over the last dimension; else -1 */
ir_val rw_log_softmax(const rw *r, ir_val v);
/* v through reshapes that only add or remove last dimensions of 1 */
ir_val rw_unpadded(const rw *r, ir_val v);
/* x through casts between float types */
ir_val rw_uncast(const rw *r, ir_val v);
/* v = x[start : stop] along *dim, the sequence, with at most 8 rows left out: x; else -1 */
ir_val rw_short_slice(const rw *r, ir_val v, int *dim, ir_dim *start, ir_dim *stop);
/* Could this extent be the sequence's (S or an expression of it; its number, when it has one)? */
bool rw_is_seq(const rw *r, ir_dim d);
bool rw_dims_equal(const ir_type *a, const ir_type *b);
/* The result of an element-wise op on numbers x of type `in`, rounded to type t; false when it is not defined or a
 * double cannot hold it. */
bool rw_eval(ir_op op, dtype in, dtype t, const double *x, double *y);
/* Rounds c as storing it in element type t does. */
double rw_round(dtype t, double c);

/* ---- views (view.c): a chain of reshape, permute and expand in one normal form -------------------- */

enum { VIEW_ATOMS = 24, VIEW_CHAIN = 16 };

/* The extents of base, split into factors (`order`), then put in another order with broadcast factors between, then
 * grouped: dimension d of the result is atoms first[d] .. first[d+1]. Factors of extent 1 do not exist. */
typedef struct view {
    ir_val base;
    int chain;  /* how many nodes it took */
    int norder; /* the base's factors, in the base's order */
    struct {
        int id;
        ir_dim ext;
        int dim; /* of the base */
    } order[VIEW_ATOMS];
    int rank, first[IR_MAX_RANK + 1];
    struct {
        int id; /* -1: broadcast */
        ir_dim ext;
    } atom[VIEW_ATOMS];
    int next_id;
} view;

/* v as a view of the value that at most `limit` view nodes away is its base. */
void view_of(const rw *r, ir_val v, int limit, view *w);
/* The view of base with every dimension an atom of its own. */
void view_identity(const rw *r, ir_val base, view *w);
/* Is it the base itself, unchanged? */
bool view_trivial(const rw *r, const view *w);
bool view_broadcasts(const view *w);
/* Does every dimension of the base lie, unsplit, in one dimension of the result? */
bool view_whole(const view *w);
/* Index in w->atom of the base's dimension `dim` (unsplit); -1 when it has extent 1. */
int view_atom_of(const view *w, int dim);
/* The same split, order and grouping of bases of one shape? */
bool view_same(const rw *r, const view *a, const view *b);
/* Builds it (element type: the base's). */
ir_val view_build(rw *r, const view *w);
/* y has the result shape of w, which must not broadcast: builds the u with w(u) = y. False when u would need a copy
 * that is larger than y's own data. */
bool view_invert(rw *r, const view *w, ir_val y, ir_val *u);

#endif
