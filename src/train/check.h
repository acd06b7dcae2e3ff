/* check.h - P ranks against one: the loss and every gradient of one step on drawn data. */
#ifndef AUTOSP_TRAIN_CHECK_H
#define AUTOSP_TRAIN_CHECK_H

#include "train/compile.h"
#include "train/world.h"

typedef struct check_row {
    const char *name; /* the parameter; lives as long as the model */
    double norm;      /* of its gradient on one rank */
    double relative;  /* the number contract's: |a-b| / max(|b|, 1e-4 |g|) */
} check_row;

typedef struct check_result {
    double loss, loss_one, loss_rel; /* on P ranks, on one, |difference| / |loss_one| */
    int n;
    check_row *rows; /* the worst first; free */
} check_result;

/* Compiles s (its ranks are the world's) and the same for one rank, runs one step of each on tokens drawn from `seed`,
 * about an eighth of the labels ignored, and compares. Collective under mpirun; the result is rank 0's process's, empty
 * elsewhere. NaN counts as infinitely wrong. */
sp_status check_run(const train_model *m, const train_setup *s, const train_world *w, uint64_t seed,
                    check_result *out) SP_NODISCARD;

#endif
