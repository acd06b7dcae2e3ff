/* elem.h - element expressions: what one element of a value is, as a function of its indices (not for other passes).
 *
 * elem_of(c, v, {b, 0, q, k}) walks up from v through views, index arithmetic, comparisons and look-ups and gives an
 * expression over the variables b, q, k whose leaves are numbers, sizes and elements of values that it cannot see
 * through. Expressions are hash-consed and simplified as they are built: integers are linear forms, comparisons of
 * integers are "form >= 0" or "form == 0" and are decided where the ranges of the variables allow. So an S x S mask is
 * understood without any S x S value.
 */
#ifndef AUTOSP_PASS_ELEM_H
#define AUTOSP_PASS_ELEM_H

#include "pass/rewrite.h"

typedef int32_t ex; /* an expression of an elem_ctx; equal numbers are equal expressions */

typedef enum ex_kind {
    EX_NUM,  /* num, of type t */
    EX_VAR,  /* variable `var`: 0 <= var < dim */
    EX_SIZE, /* dim, as a number */
    EX_LIN,  /* c + sum of coef[i] * arg[i]; i64 */
    EX_ELEM, /* element arg[0..n) of value v */
    EX_GE0,  /* arg[0] >= 0 */
    EX_EQ0,  /* arg[0] == 0 */
    EX_OP    /* op(arg[0..n)) of type t */
} ex_kind;

typedef struct ex_node {
    ex_kind kind;
    dtype t;
    ir_op op;
    ir_val v;
    int var;
    ir_dim dim;
    double num;
    int64_t c;
    int n;
    ex *arg;
    int64_t *coef;
    uint64_t vars; /* bit i: depends on variable i */
    ex value;      /* EX_ELEM: what it was resolved to; itself: opaque; -1: not yet */
} ex_node;

/* A linear form being taken apart or built. */
enum { LIN_MAX = 24 };
typedef struct lin {
    int n;
    ex arg[LIN_MAX];
    int64_t coef[LIN_MAX];
    int64_t c;
} lin;

elem_ctx *elem_context(rw *r); /* r's own, made when first needed */
const ex_node *ex_get(const elem_ctx *c, ex e);
/* The variable with this letter and range: always the same one. -1: too many. */
ex elem_var(elem_ctx *c, char letter, ir_dim extent);
/* Its letter. */
char elem_letter(const elem_ctx *c, ex var);
/* A variable of its own. -1: too many. */
ex elem_fresh_var(elem_ctx *c, ir_dim extent);
rw *elem_rw(const elem_ctx *c);
/* Were so many expressions made that it is time to stop looking closer? */
bool elem_full(const elem_ctx *c);
/* The element of v at idx (one expression for each dimension). */
ex elem_of(elem_ctx *c, ir_val v, const ex *idx);

ex ex_num(elem_ctx *c, dtype t, double v);
ex ex_op(elem_ctx *c, ir_op op, dtype t, const ex *arg, int n); /* simplified */
ex ex_not(elem_ctx *c, ex e);
lin ex_lin(const elem_ctx *c, ex e); /* of an integer expression */
ex ex_of_lin(elem_ctx *c, lin l);
ex ex_ge0(elem_ctx *c, lin l);
ex ex_eq0(elem_ctx *c, lin l);
static inline lin lin_const(int64_t v) { return (lin){.c = v}; }
lin lin_size(elem_ctx *c, ir_dim d);      /* a size as a form over the symbols in it */
lin lin_add(lin a, lin b, int64_t times); /* a + times * b */
/* op: floordiv or mod by a number k > 0. The part of the form that is a multiple of k comes out. */
ex ex_divide(elem_ctx *c, ir_op op, ex e, int64_t k);
/* Element idx of v as a leaf, and what it was resolved to (ex_node.value). */
ex ex_element(elem_ctx *c, ir_val v, const ex *idx);
void ex_set_value(elem_ctx *c, ex e, ex value);
bool ex_is_num(const elem_ctx *c, ex e, double *v);
/* e as a * var + b with a and b free of var; false when it is not that. */
bool ex_linear_in(elem_ctx *c, ex e, ex var, ex *a, ex *b);

/* e as a value of rank n whose dimension i is vars[i] (extent 1 where e does not depend on it). -1: impossible. */
ir_val elem_build(elem_ctx *c, ex e, rw *r, int n, const ex *vars);

#endif
