/* gemm_own.h - the portable matrix product; kern_gemm (gemm.c) chooses between it and a library. */
#ifndef AUTOSP_DEVICE_CPU_GEMM_OWN_H
#define AUTOSP_DEVICE_CPU_GEMM_OWN_H

#include "device/cpu/kern.h"

size_t gemm_own_ws(const kern_gemm_desc *d);
void gemm_own_run(const kern_gemm_desc *d, const void *a, const void *b, void *c, const void *bias, void *ws);

#endif
