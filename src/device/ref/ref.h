/* ref.h - shared by the reference kernels: elements as doubles, and walking several tensors of one shape together. */
#ifndef AUTOSP_DEVICE_REF_H
#define AUTOSP_DEVICE_REF_H

#include "device/device.h"

/* Element i (from the tensor's start, in elements) as a double; i64 up to 2^53. */
static inline double ref_get(const tensor *t, int64_t i) {
    switch (t->type) {
    case DT_F32:
        return ((const float *)t->data)[i];
    case DT_F64:
        return ((const double *)t->data)[i];
    case DT_I64:
        return (double)((const int64_t *)t->data)[i];
    case DT_I32:
        return ((const int32_t *)t->data)[i];
    case DT_BOOL:
        return ((const uint8_t *)t->data)[i];
    case DT_BF16: {
        uint32_t u = (uint32_t)((const uint16_t *)t->data)[i] << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
    case DT_F16:
    case DT_COUNT:
        break;
    }
    return 0;
}

static inline void ref_set(const tensor *t, int64_t i, double v) {
    switch (t->type) {
    case DT_F32:
        ((float *)t->data)[i] = (float)v;
        break;
    case DT_F64:
        ((double *)t->data)[i] = v;
        break;
    case DT_I64:
        ((int64_t *)t->data)[i] = (int64_t)v;
        break;
    case DT_I32:
        ((int32_t *)t->data)[i] = (int32_t)v;
        break;
    case DT_BOOL:
        ((uint8_t *)t->data)[i] = v != 0;
        break;
    case DT_BF16: { /* round to nearest even */
        float f = (float)v;
        uint32_t u;
        memcpy(&u, &f, 4);
        if (f == f) u += 0x7fff + ((u >> 16) & 1);
        ((uint16_t *)t->data)[i] = (uint16_t)(u >> 16 | (f != f ? 0x40 : 0));
        break;
    }
    case DT_F16:
    case DT_COUNT:
        break;
    }
}

/* Walks a multi-index; at[k] is the element offset in tensor k. Start zeroed with walk_begin; false from walk_next at
 * the end. Up to 4 tensors, whose first `rank` dimensions are dim[]. */
typedef struct ref_walk {
    int rank, n;
    int64_t dim[TENSOR_MAX_RANK], index[TENSOR_MAX_RANK];
    const tensor *t[4];
    int64_t at[4];
    bool more;
} ref_walk;

ref_walk ref_walk_begin(int n, const tensor *const *t, int rank, const int64_t *dim);
void ref_walk_next(ref_walk *w);

/* elt.c: an element-wise op of one, two or three numbers. */
double ref_eval(ir_op op, int nargs, const double *x);

/* fused.c: ref_fused interprets c->kernel; its memory is c->state, of ref_fused_scratch bytes. ref.c: takes it. */
int64_t ref_fused_scratch(const dev_call *c);
/* SP_FAIL names the first label of the kernel's operands that is none. */
sp_status ref_fused_check(const dev_call *c);
sp_status ref_fused_prepare(dev_call *c);

#define OP(name, nin, nout, flags, shape, rule, grad, kern) dev_fn ref_##kern;
#include "ir/ops.def"
#undef OP

#endif
