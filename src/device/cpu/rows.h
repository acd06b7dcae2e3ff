/* rows.h - loops that the row and element-wise kernels are made of. */
#ifndef AUTOSP_DEVICE_CPU_ROWS_H
#define AUTOSP_DEVICE_CPU_ROWS_H

#include "device/cpu/kern.h"
#include "device/cpu/threads.h"
#include "device/cpu/vec.h"

/* Less work than this, in elements, is not worth a team. */
enum { ROWS_ALONE = 1 << 15, ELEM_CHUNK = 1 << 14 };

#define ROWS_PRAGMA(x) _Pragma(#x)

/* Runs f(bf, args...) for i in [0, n) in parallel, with bf a constant of each of the two copies. The iteration variable
 * is visible to the arguments. `work` is the number of elements of the whole loop. */
#define PARALLEL_ROWS(t, i, n, work, f, ...)                                                                           \
    do {                                                                                                               \
        SP_UNUSED const bool rows_team = (work) >= ROWS_ALONE;                                                         \
        ASSERT((t) == DT_F32 || (t) == DT_BF16);                                                                       \
        if ((t) == DT_BF16) {                                                                                          \
            ROWS_PRAGMA(omp parallel for schedule(static) if (rows_team))                                              \
            for (int64_t i = 0; i < (n); i++) f(true, __VA_ARGS__);                                                    \
        } else {                                                                                                       \
            ROWS_PRAGMA(omp parallel for schedule(static) if (rows_team))                                              \
            for (int64_t i = 0; i < (n); i++) f(false, __VA_ARGS__);                                                   \
        }                                                                                                              \
    } while (0)

/* f(bf, from, to, args...) over n contiguous elements in chunks. */
#define PARALLEL_CHUNKS(t, n, f, ...)                                                                                  \
    PARALLEL_ROWS(t, chunk, ceil_div(n, ELEM_CHUNK), n, f, chunk *ELEM_CHUNK, min64((n), (chunk + 1) * ELEM_CHUNK),    \
                  __VA_ARGS__)

/* Byte address of element i of an array of f32 or bf16. */
INLINE const void *elem_at(bool bf, const void *p, int64_t i) { return (const char *)p + i * (bf ? 2 : 4); }
INLINE void *elem_of(bool bf, void *p, int64_t i) { return (char *)p + i * (bf ? 2 : 4); }

/* Results of so many bytes do not stay in the caches until they are read: they are stored past them. */
enum { STREAM_BYTES = 16 << 20, LINE_BYTES = 64 };

INLINE bool whole_lines(const void *p, int64_t bytes) {
    return (uintptr_t)p % LINE_BYTES == 0 && bytes % LINE_BYTES == 0;
}

/* Copies bytes from here to there; `stream` (both whole_lines of `to`) past the caches. */
INLINE void copy_run(void *to, const void *from, int64_t bytes, bool stream) {
    if (!stream) {
        memcpy(to, from, (size_t)bytes);
        return;
    }
    for (int64_t i = 0; i < bytes / 4; i += VL) vst_stream((float *)to + i, vld((const float *)from + i));
}

INLINE void prefetch_run(const void *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += LINE_BYTES) __builtin_prefetch((const char *)from + i);
}

#endif
