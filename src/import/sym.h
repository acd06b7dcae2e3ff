/* sym.h - the symbolic sizes of an exported program.
 *
 * torch.export writes a size as the text that sympy.srepr gives, e.g.
 * "Add(Mul(Integer(2), Symbol('s77', integer=True, positive=True)), Integer(-1))". It is parsed into a tree
 * here, never evaluated as code.
 */
#ifndef AUTOSP_IMPORT_SYM_H
#define AUTOSP_IMPORT_SYM_H

#include "base/base.h"

typedef enum sym_op {
    SYM_INT,      /* value */
    SYM_SYMBOL,   /* name */
    SYM_ADD,      /* any number of arguments */
    SYM_MUL,      /* any number of arguments */
    SYM_POW,      /* base, exponent (a non-negative integer) */
    SYM_FLOORDIV, /* rounds towards -infinity */
    SYM_CEILDIV,
    SYM_MOD, /* Python's: the sign of the divisor */
    SYM_MAX, /* any number of arguments */
    SYM_MIN,
    SYM_OTHER /* a function this program does not use; name. Only an error when it is evaluated. */
} sym_op;

typedef struct sym_expr {
    sym_op op;
    int n;
    int64_t value;
    const char *name;
    const struct sym_expr **arg; /* n of them */
} sym_expr;

/* Parses TEXT into a tree in arena A. Fails on a text that is not an expression, is nested deeper than 64, or
 * has more than 4096 terms. A bare identifier is a symbol. */
sp_status sym_parse(arena *a, const char *text, const sym_expr **out) SP_NODISCARD;
const sym_expr *sym_int(arena *a, int64_t value);

/* Evaluates E; LOOKUP gives the value of a symbol, or false when it has none. Fails on an unknown symbol or
 * function, a division by zero and an overflow. */
typedef bool sym_lookup(void *ctx, const char *name, int64_t *value);
sp_status sym_eval(const sym_expr *e, sym_lookup *lookup, void *ctx, int64_t *out) SP_NODISCARD;

/* True when E is an integer constant. */
static inline bool sym_is_int(const sym_expr *e) { return e->op == SYM_INT; }

#endif
