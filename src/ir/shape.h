/* shape.h - prototypes of the op table's `shape` column (shape.c); private to src/ir. */
#ifndef AUTOSP_IR_SHAPE_H
#define AUTOSP_IR_SHAPE_H

#include "ir/ir.h"

/* Fills out[0..nout-1] from n's operands and attributes; `given` is the type the builder was handed or NULL. */
#define OP(name, nin, nout, flags, shape, rule, grad, kern)                                                            \
    sp_status shape_##shape(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out);
#include "ir/ops.def"
#undef OP

#endif
