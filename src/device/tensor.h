/* tensor.h - what a kernel sees: a pointer, a type, dimensions and strides in elements.
 *
 * A stride of 0 is a broadcast. Kernels may assume what their op's row says of strides (docs/ir.md), never
 * that a tensor is contiguous unless they check.
 */
#ifndef AUTOSP_TENSOR_H
#define AUTOSP_TENSOR_H

#include "base/base.h"

enum { TENSOR_MAX_RANK = 8 };

typedef struct tensor {
    void *data;
    dtype type;
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    int64_t stride[TENSOR_MAX_RANK]; /* in elements */
} tensor;

static inline int64_t tensor_numel(const tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->dim[i];
    return n;
}

/* Row-major without gaps (dimensions of extent 1 may have any stride). */
static inline bool tensor_contiguous(const tensor *t) {
    int64_t want = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        if (t->dim[i] != 1 && t->stride[i] != want) return false;
        want *= t->dim[i];
    }
    return true;
}

#endif
