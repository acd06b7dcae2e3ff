/* mapped.h - memory of files that are mapped, not read: weights. */
#ifndef AUTOSP_IMPORT_MAPPED_H
#define AUTOSP_IMPORT_MAPPED_H

#include "base/base.h"

#include <sys/mman.h>
#include <unistd.h>

/* Lets go of the whole pages of [data, data+bytes), part of a private read-only mapping of a file, so that gigabytes of
 * weights are not in memory beside what is loaded from them. Reading there again brings a page back, usually without
 * the disk; the pages at the ends have neighbours and stay. Any thread. */
static inline void mapped_let_go(const void *data, int64_t bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)data;
    const uintptr_t from = (at + page - 1) / page * page, to = (at + (uintptr_t)bytes) / page * page;
    if (from < to) (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

#endif
