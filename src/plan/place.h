/* place.h - static memory planning: lifetimes in, offsets in one arena out.
 *
 * The problem is dynamic storage allocation with known lifetimes (NP-hard): every buffer is a rectangle whose
 * horizontal side, the steps in which it is alive, is fixed, and whose vertical position, its offset, is chosen so
 * that no two rectangles overlap and the highest edge, the arena, is as low as possible. No arena is smaller than the
 * largest sum of the sizes alive at one step, the live bound; an arena equal to it is proved optimal.
 *
 * The functions are pure: same input, same output on every rank and machine (searches are limited by counted work,
 * never by a clock). Nothing here knows the IR.
 */
#ifndef AUTOSP_PLAN_PLACE_H
#define AUTOSP_PLAN_PLACE_H

#include "base/base.h"

/* One buffer. A buffer is alive from the step that first writes it to the step that last reads it, both inclusive;
 * an asynchronous use (a collective, a copy) counts from the step that issues it to the step that waits for it. */
typedef struct place_buf {
    int64_t size;  /* bytes, >= 0; a buffer of 0 bytes takes no room and gets offset 0 */
    int32_t first; /* first step alive, >= 0 */
    int32_t last;  /* last step alive, >= first */
    int64_t align; /* its offset is a multiple of this power of two; 0: the request's */
    int32_t group; /* buffers with the same group >= 0 share one offset (in-place results, views of one storage); the
                    * group is alive from its earliest first to its latest last and as large as its largest member.
                    * -1: the buffer is alone. */
} place_buf;

typedef struct place_opts {
    int64_t align;  /* default alignment, a power of two; 0: 256 bytes */
    int64_t work;   /* limit of each of the two searches behind the greedy, in elementary operations (about 1e9 a
                     * second); 0: 2e8; negative: no search, greedy only */
    int64_t enough; /* any arena of at most so many bytes will do; 0: the least that can be found */
} place_opts;

typedef struct place_stats {
    int64_t arena;      /* bytes, the highest end of a buffer, rounded up to the least alignment in use */
    int64_t bound;      /* bytes, no arena is smaller: live bound, or what the search proved beyond it */
    int64_t live;       /* bytes, the live bound; sizes rounded up to the least alignment in use */
    double gap;         /* (arena - bound) / bound; 0 when arena == bound (then it is optimal) */
    const char *method; /* the one that found it: "skyline/size", ..., "best-fit/area", "search"; static text */
    int blocks;         /* buffers left after groups were merged and empty ones dropped */
    int tried;          /* methods run */
    int64_t nodes;      /* nodes of the search, 0 when none ran */
} place_stats;

/* Writes offset[i] (bytes) for each of the n buffers. Skyline greedy (lowest feasible offset first) with several tie
 * orders, stopping as soon as the arena equals the live bound; else best-fit with several orders; else a bounded
 * depth-first search over canonical placements. opts may be NULL for the defaults; stats may be NULL.
 * Takes O(n log n) to O(n sqrt n) for each tie order: about 0.1 s at 60,000 buffers.
 * Fails, naming the buffer, on a negative size, a lifetime that ends before it begins, an alignment that is not a power
 * of two, and when the sizes do not add up in 63 bits. The result passed place_verify. Not collective. */
sp_status place_plan(const place_buf *bufs, int n, const place_opts *opts, int64_t *offset,
                     place_stats *stats) SP_NODISCARD;

/* Checks a placement without trusting how it was found: alignment, group members at one offset, every end within the
 * arena, no two buffers (of different groups) overlapping in time and bytes. Fails with the two buffers by index.
 * opts gives the default alignment, as in place_plan. O(n log n + n x buffers alive at once). */
sp_status place_verify(const place_buf *bufs, int n, const place_opts *opts, const int64_t *offset,
                       int64_t arena) SP_NODISCARD;

/* The live bound alone, in bytes, and the first step at which it is reached (step may be NULL); what a caller needs
 * while it searches for a schedule, before it places. Same rounding and the same failures as place_plan. */
sp_status place_live(const place_buf *bufs, int n, const place_opts *opts, int64_t *bytes, int32_t *step) SP_NODISCARD;

#endif
