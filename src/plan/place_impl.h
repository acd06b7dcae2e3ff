/* place_impl.h - private to src/plan/place*.c: the problem after groups are merged and time is compressed. */
#ifndef AUTOSP_PLAN_PLACE_IMPL_H
#define AUTOSP_PLAN_PLACE_IMPL_H

#include "plan/place.h"

/* A rectangle to place. Times are ranks among the distinct first steps: two blocks overlap in ranks exactly when they
 * overlap in steps, since the later of the two first steps is a rank inside both. */
typedef struct block {
    int64_t size;   /* > 0, rounded up to the least alignment */
    int64_t align;  /* power of two */
    int32_t t0, t1; /* inclusive, in [0, T) */
} block;

/* Skyline greedy; see place_skyline.c. The tree over the blocks is built once and used for every order. */
typedef struct skyline skyline;
skyline *place_skyline_new(arena *a, const block *b, int n, int T);
/* Places in tie order `order` (a permutation of the blocks, first preferred); returns the arena, fills off. */
int64_t place_skyline_run(skyline *s, const int *order, int64_t *off);

/* Best fit among the blocks already placed, in the given order. Returns the arena, or -1 when *work ran out. */
int64_t place_best_fit(arena *a, const block *b, int n, const int *order, int64_t *off, int64_t *work);

/* Bounded search for an arena below `best` (that of `off`); improves off in place and returns the best arena. *bound is
 * raised when the search proves that less is impossible; *nodes counts. */
int64_t place_search(arena *a, const block *b, int n, int T, int64_t best, int64_t *bound, int64_t *off, int64_t work,
                     int64_t *nodes);

#endif
