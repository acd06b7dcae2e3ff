/* measure.h - memory as the kernel counts it, to hold against what the plan says. Allocates nothing. */
#ifndef AUTOSP_TRAIN_MEASURE_H
#define AUTOSP_TRAIN_MEASURE_H

#include "base/base.h"

/* Bytes of [base, base+bytes) that lie in pages the process has touched (present or swapped out in
 * /proc/self/pagemap; resident by mincore where pagemap cannot be read). Pages at the ends count with their part
 * inside the range. A page that was only reserved does not count; with transparent huge pages one touch brings
 * 2 MiB. Meant for anonymous memory. SP_FAIL when neither source can be read. */
sp_status measure_touched(const void *base, int64_t bytes, int64_t *touched) SP_NODISCARD;

/* The process's largest resident size so far (VmHWM) and its present one (VmRSS), in bytes; 0 where /proc is
 * missing. Both count every thread's memory, the libraries' and mapped files' pages. */
int64_t measure_process_peak(void);
int64_t measure_process_now(void);

/* Bytes of memory that this process may use: the machine's, or its control group's limit where that is lower. */
int64_t measure_machine_memory(void);

#endif
