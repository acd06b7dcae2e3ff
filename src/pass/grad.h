/* grad.h - the op table's `grad` column (grad.c) as diff.c uses it; private to src/pass. */
#ifndef AUTOSP_PASS_GRAD_H
#define AUTOSP_PASS_GRAD_H

#include "ir/ir.h"

/* One node's backward. Appends nodes to g. n is a copy of the node; dout[k] is the cotangent of result k or -1 when it
 * is zero (never all of them); need[i] says whether operand i wants one; the function sets din[i] (preset to -1). */
typedef sp_status grad_fn(ir_graph *g, const ir_node *n, const ir_val *dout, const bool *need, ir_val *din);

/* The function of an op; never NULL. Ops without a gradient fail when a float operand needs one. */
grad_fn *grad_of(ir_op op);

/* Is an op's gradient built of more than linear operations on the cotangent, so that it cannot take partial sums? They
 * come where the operand is whole on every rank and enters sharded compute later, as relu of a parameter. */
bool grad_wants_sums(ir_op op);

/* The same value with partial sums over any axis added up. */
ir_val grad_reduced(ir_graph *g, ir_val v);

#endif
