/* threads.h - OpenMP's queries, or those of one thread where it is absent. */
#ifndef AUTOSP_DEVICE_CPU_THREADS_H
#define AUTOSP_DEVICE_CPU_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
#endif

#endif
