/* world.h - the ranks of a command: threads of this process, or the processes that mpirun started. */
#ifndef AUTOSP_TRAIN_WORLD_H
#define AUTOSP_TRAIN_WORLD_H

#include "comm/comm.h"

typedef struct train_world {
    int size;    /* ranks in all */
    int rank;    /* of this process; 0 when ranks are threads */
    int threads; /* a rank's share of the cores, at least 1 */
    comm *mpi;   /* NULL: ranks are threads */
} train_world;

/* Under mpirun the world size is the rank count, and `ranks` must be 0 or equal to it; else `ranks` threads (0: one).
 * `threads` 0: the cores that this process may use, shared out evenly among the ranks of this machine. Collective
 * under mpirun. Close with train_world_close. */
sp_status train_world_open(int64_t ranks, int64_t threads, train_world *w) SP_NODISCARD;

/* Runs body once on every rank: on new threads, or here. SP_FAIL when a rank of this process failed. */
sp_status train_world_run(const train_world *w, sp_status (*body)(comm *c, void *arg), void *arg) SP_NODISCARD;

/* Ends the world and passes `status` on. Under mpirun a failed status takes the whole job down with the error text, so
 * that no rank waits for one that gave up, and does not return. */
sp_status train_world_close(train_world *w, sp_status status) SP_NODISCARD;

#endif
