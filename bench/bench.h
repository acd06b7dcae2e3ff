/* bench.h - what the files of bench_kernels share. */
#ifndef AUTOSP_BENCH_H
#define AUTOSP_BENCH_H

#include "device/cpu/kern.h"

/* Zeroed memory on a page boundary, freed with free(); ends the program when there is none. */
void *bench_alloc(size_t bytes);
/* n numbers of f32 or bf16 in [-0.5, 0.5). */
void *bench_random(dtype t, int64_t n);
/* Sorts x and returns its median. */
double bench_median(double *x, int n);

/* Seconds: the clock's, or with `cpu` on the command line the processor's, of one thread of this program. */
double bench_clock(void);

/* products.c: the table of matrix products that training does, by form and shape; type: f32, bf16 or both ("").
 * Returns 0, or 1 when a product failed. */
int bench_products(int threads, int rounds, const char *type);
/* packed.c: products with weights as they lie and in the library's own layout, and what bringing them there takes.
 * Returns 0, or 1 when there is no library. */
int bench_packed(int threads, int rounds, const char *type);

#endif
