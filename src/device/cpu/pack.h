/* pack.h - bringing rows into the micro-kernel's strips. */
#ifndef AUTOSP_DEVICE_CPU_PACK_H
#define AUTOSP_DEVICE_CPU_PACK_H

#include "device/cpu/micro.h"

/* dst[d*MICRO_LANES + i] = factor * src[i*stride + d], i < n, d < D; 0 for the other lanes. src is bf16 or f32. */
void pack_transposed(bool bf, const void *src, int64_t stride, int64_t n, int64_t D, float factor, float *dst);
/* The same for words of any content (pairs of bf16), moved unchanged. */
void pack_transposed_words(const float *src, int64_t stride, int64_t n, int64_t D, float *dst);

#endif
