/* dialect.h - what a language of generated kernels is: how its pieces are written. source.c walks a kernel and calls
 * these; the expressions of element-wise ops (expr.def) are the same for all.
 *
 * Statement i's value is the variable v<i>. A dialect decides what holds it: a vector of columns (C), or one thread's
 * element (a GPU's). Then it needs no loop over columns in open_columns, and reductions meet in shared memory.
 *
 * A pass is written twice where a dialect has blocks: for `block` vectors at a time, whose chains of instructions then
 * overlap, and for what is left of the row, one at a time; kernels on half rows, which reduce nothing, have pairs in
 * between. In a block the value of vector u is v<i>_<u>; every statement is written for all of them, then the next one,
 * stores last.
 */
#ifndef AUTOSP_GEN_DIALECT_H
#define AUTOSP_GEN_DIALECT_H

#include "gen/kernel.h"

enum { GEN_ALONE = -1 }; /* instead of a vector's number in a block */

typedef struct gen_dialect {
    /* In front of all kernels: types, gen_args, and the functions that expr.def names. */
    void (*prelude)(buf *out);
    /* A kernel's head, up to the point where a row's operands can be addressed; and its end. */
    void (*open)(const gen_kernel *k, buf *out);
    void (*close)(const gen_kernel *k, buf *out);
    int block; /* how many vectors; 0: no blocks */
    /* Around what is done for each column of a row: for the columns that are whole blocks of that many vectors, which
     * come first, then for pairs (2), then for those left (0). */
    void (*open_columns)(const gen_kernel *k, int pass, int block, buf *out);
    void (*close_columns)(buf *out);
    /* v<i> = operand arg[0]; arg[0] as `type` would hold it; the column's number; a number, the row's length, or text
     * of expr.def with v<j> in it. Rows' values are outside the columns and ALONE. */
    void (*load)(const gen_kernel *k, int i, int u, buf *out);
    void (*reload)(const gen_kernel *k, int i, int u, buf *out); /* v<i> = what the first pass stored of it */
    void (*round)(const gen_kernel *k, int i, int u, buf *out);
    void (*index)(const gen_kernel *k, int i, int u, buf *out);
    void (*value)(const gen_kernel *k, int i, int u, const char *text, buf *out);
    /* v<i> = v<arg[1]> in the column whose number is v<j>, a row's value, and v<arg[2]> in others: a select by arg[0],
     * which compares the column's number with v<j>. */
    void (*here)(const gen_kernel *k, int i, int u, buf *out);
    /* v<i> = a term that the pass of the sum arg[2] kept. */
    void (*numerator)(const gen_kernel *k, int i, int u, buf *out);
    /* A reduction: before the columns, at each column, behind them (where v<i> appears). */
    void (*reduce_open)(const gen_kernel *k, int i, buf *out);
    void (*reduce)(const gen_kernel *k, int i, int u, buf *out);
    void (*reduce_close)(const gen_kernel *k, int i, buf *out);
    /* v<i> = arg[0] of one column, whose number is v<arg[1]>: around the statements that make that element, which name
     * the column as those of open_columns do. */
    void (*pick_open)(const gen_kernel *k, int i, buf *out);
    void (*pick_close)(const gen_kernel *k, int i, buf *out);
    /* Result i. */
    void (*store)(const gen_kernel *k, int i, int u, buf *out);
} gen_dialect;

extern const gen_dialect gen_dialect_c;

/* Writes the name of statement i's value; rows' values have one name everywhere. */
void gen_name(const gen_kernel *k, int i, int u, buf *out);

/* source.c: the whole source in a dialect. */
void gen_source_in(const gen_dialect *d, gen_kernel *const *k, int n, buf *out);

#endif
