/* gemm_library.h - matrix products by oneDNN, where the program was built with it; kern_gemm (gemm.c) chooses. */
#ifndef AUTOSP_DEVICE_CPU_GEMM_LIBRARY_H
#define AUTOSP_DEVICE_CPU_GEMM_LIBRARY_H

#include "device/cpu/kern.h"

typedef struct gemm_library gemm_library;

/* NULL when there is no library, or when it has no good kernel for the form. Free with gemm_library_free. */
gemm_library *gemm_library_new(const kern_gemm_desc *d);
void gemm_library_free(gemm_library *g); /* NULL allowed */
size_t gemm_library_ws(const gemm_library *g);
const char *gemm_library_impl(const gemm_library *g); /* the library's name for its kernel */
/* Operands as kern_gemm_run's. Fails when the library does. */
sp_status gemm_library_run(gemm_library *g, const void *a, const void *b, void *c, const void *bias,
                           void *ws) SP_NODISCARD;

#endif
