/* isa.c - does this processor have the instructions that the kernels were compiled for? A program built on one machine
 * of a cluster and started on an older one would otherwise die of an illegal instruction in the middle of a step.
 */
#include "device/cpu/cpu.h"

/* The flags of this file are the kernels' own, so the compiler's macros say what they may use. */
sp_status cpu_runs_here(void) {
#if defined(__x86_64__)
#define NEED(feature)                                                                                                  \
    CHECK(__builtin_cpu_supports(feature),                                                                             \
          "this program was built for a processor with %s, and this one has none: build it on this machine, or with "  \
          "cmake -DAUTOSP_NATIVE=OFF for any",                                                                         \
          feature);
#ifdef __AVX2__
    NEED("avx2")
#endif
#ifdef __FMA__
    NEED("fma")
#endif
#ifdef __AVX512F__
    NEED("avx512f")
#endif
#ifdef __AVX512DQ__
    NEED("avx512dq")
#endif
#ifdef __AVX512BW__
    NEED("avx512bw")
#endif
#ifdef __AVX512VL__
    NEED("avx512vl")
#endif
#ifdef __AVX512BF16__
    NEED("avx512bf16")
#endif
#undef NEED
#endif
    return SP_OK;
}
