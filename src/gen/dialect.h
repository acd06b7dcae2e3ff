/* dialect.h - what a language of generated kernels is: how its pieces are written. source.c walks a kernel and calls
 * these; the expressions of element-wise ops (expr.def) are the same for all.
 *
 * Statement i's value is the variable v<i>. A dialect decides what holds it: a vector of columns (C), or one thread's
 * element (a GPU's). Then it needs no loop over columns in open_columns, and reductions meet in shared memory.
 */
#ifndef AUTOSP_GEN_DIALECT_H
#define AUTOSP_GEN_DIALECT_H

#include "gen/kernel.h"

typedef struct gen_dialect {
    /* In front of all kernels: types, gen_args, and the functions that expr.def names. */
    void (*prelude)(buf *out);
    /* A kernel's head, up to the point where a row's operands can be addressed; and its end. */
    void (*open)(const gen_kernel *k, buf *out);
    void (*close)(const gen_kernel *k, buf *out);
    /* Around what is done for each column of a row. */
    void (*open_columns)(buf *out);
    void (*close_columns)(buf *out);
    /* v<i> = operand arg[0]; v<i> = a number, the row's length, the column's number k_index(c), or text of expr.def
     * with v<j> in it. row: outside the columns, one value a row. */
    void (*load)(const gen_kernel *k, int i, buf *out);
    void (*value)(const gen_kernel *k, int i, const char *text, buf *out);
    /* A reduction: before the columns, at each column, behind them (where v<i> appears). */
    void (*reduce_open)(const gen_kernel *k, int i, buf *out);
    void (*reduce)(const gen_kernel *k, int i, buf *out);
    void (*reduce_close)(const gen_kernel *k, int i, buf *out);
    /* v<i> = arg[0] of one column, whose number is v<arg[1]>: around the statements that make that element, which name
     * the column as those of open_columns do. */
    void (*pick_open)(const gen_kernel *k, int i, buf *out);
    void (*pick_close)(const gen_kernel *k, int i, buf *out);
    /* Result i. */
    void (*store)(const gen_kernel *k, int i, buf *out);
} gen_dialect;

extern const gen_dialect gen_dialect_c;

/* source.c: the whole source in a dialect. */
void gen_source_in(const gen_dialect *d, gen_kernel *const *k, int n, buf *out);

#endif
