/* args.h - what a compiled kernel is called with. Part of the generated source too: it stands in front of the kernels.
 * Rows are a space of up to 7 dimensions; operands come first, results behind them. */
#ifndef AUTOSP_GEN_ARGS_H
#define AUTOSP_GEN_ARGS_H

#include <stdint.h>

enum { GEN_MAX_TENSORS = 24, GEN_MAX_OUTER = 7 };

typedef struct gen_args {
    int64_t cols;
    int outer;                  /* dimensions of the rows */
    int64_t dim[GEN_MAX_OUTER]; /* outermost first */
    char *data[GEN_MAX_TENSORS];
    int64_t stride[GEN_MAX_TENSORS][GEN_MAX_OUTER]; /* in elements, along the rows' dimensions */
    int64_t step[GEN_MAX_TENSORS];                  /* in elements, along a row */
    float *columns;                                 /* column sums of these rows: one after the other, */
    int64_t columns_stride;                         /* so many elements apart, a multiple of 64 bytes */
    float *terms;                                   /* gen_terms_floats for each sum of exponentials with its terms */
} gen_args;

/* Terms of one row, in whole blocks of vectors of up to 16, and what these are relative to: a number for each block of
 * 4 vectors, which have 4 elements or more, and for up to 4 vectors alone. */
static inline int64_t gen_terms_room(int64_t cols) { return (cols + 63) / 64 * 64; }
static inline int64_t gen_terms_floats(int64_t cols) { return gen_terms_room(cols) + (cols / 16 + 4 + 15) / 16 * 16; }

#endif
