/* values.h - for tests of kernels: aligned arrays of f32 or bf16 that are read and written as numbers. The bf16
 * rounding is written out here on its own, to nearest even, and is not the library's. */
#ifndef AUTOSP_TEST_VALUES_H
#define AUTOSP_TEST_VALUES_H

#include "device/cpu/kern.h"

#include <stdlib.h>

/* Filled with NaN, so that a missing or stray access shows. */
static inline void *xalloc(int64_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, KERN_ALIGN, bytes > 0 ? (size_t)bytes : 1)) abort();
    memset(p, 0xff, (size_t)bytes);
    return p;
}
static inline double get(dtype t, const void *x, int64_t i) {
    if (t == DT_F32) return (double)((const float *)x)[i];
    uint32_t u = (uint32_t)((const uint16_t *)x)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return (double)f;
}
static inline void put(dtype t, void *x, int64_t i, float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    if (t == DT_F32)
        ((float *)x)[i] = v;
    else
        ((uint16_t *)x)[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline void *filled(dtype t, int64_t n, uint64_t *seed) {
    void *x = xalloc(n * dtype_size(t));
    for (int64_t i = 0; i < n; i++) put(t, x, i, (float)rng_normal(seed));
    return x;
}

#endif
