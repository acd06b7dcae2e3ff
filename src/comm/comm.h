/* comm.h - ranks and the collectives between them; the one interface of `loop`, `mpi` and `nccl`.
 *
 * Every call below is collective over the communicator unless it says otherwise: all ranks call it, in the
 * same order, with the same counts. A failing call returns SP_FAIL with the reason; after that the
 * communicator is dead and every rank's next call fails too, so that no rank is left waiting.
 * Reductions sum in rank order 0..P-1, so that a result is bit-equal on all ranks and in every rerun.
 * Counts are int64_t: messages past INT_MAX elements are split inside. Buffers may not overlap unless said.
 * No call allocates in its steady state: staging space comes from comm_reserve.
 */
#ifndef AUTOSP_COMM_H
#define AUTOSP_COMM_H

#include "base/base.h"

typedef struct comm comm;

typedef enum comm_reduce { COMM_SUM, COMM_MAX } comm_reduce;

/* The backend's table; a backend's comm starts with `const comm_ops *ops; int rank, size;`. */
typedef struct comm_ops {
    const char *name;
    /* recv[i] of every rank = reduction over ranks of send[i]; send == recv allowed. Types: f32 f64 bf16 (summed
     * in f32) i64. */
    sp_status (*all_reduce)(comm *c, const void *send, void *recv, int64_t count, dtype t, comm_reduce op);
    /* send: P blocks of `bytes`, block j goes to rank j; recv: block i came from rank i. */
    sp_status (*all_to_all)(comm *c, const void *send, void *recv, int64_t bytes);
    /* recv: P blocks of `bytes`, block i is rank i's send; send may be recv's own block. */
    sp_status (*all_gather)(comm *c, const void *send, void *recv, int64_t bytes);
    /* send: P blocks of `count` elements; recv = the sum over ranks of block `rank`. */
    sp_status (*reduce_scatter)(comm *c, const void *send, void *recv, int64_t count, dtype t);
    sp_status (*broadcast)(comm *c, void *buf, int64_t bytes, int root);
    /* Sends to dst and receives from src at once (the ring's step); returns when both are done. */
    sp_status (*send_recv)(comm *c, const void *send, int dst, void *recv, int src, int64_t bytes);
    sp_status (*barrier)(comm *c);
    /* Makes the communicator of the ranks with the same color, ordered by key; freed with comm_free. */
    sp_status (*split)(comm *c, int color, int key, comm **out);
    /* Not collective: records the reason and makes every other rank's next or current call fail (loop), or
     * takes the whole job down (mpi). */
    void (*abort)(comm *c, const char *reason);
    void (*free)(comm *c);
} comm_ops;

struct comm {
    const comm_ops *ops;
    int rank, size;
};

static inline int comm_rank(const comm *c) { return c->rank; }
static inline int comm_size(const comm *c) { return c->size; }

/* A communicator of one rank; every collective is a copy. Never fails. Free with c->ops->free(c). */
comm *comm_self(void);

/* Runs body(comm, arg) on P threads, each with its own rank of one `loop` communicator, and joins them.
 * SP_FAIL when any rank failed; the error text then names the first failing rank ("rank 3: ..."). The loop
 * communicator moves data by direct copies between the ranks' buffers (one copy a byte, no staging), with
 * barriers that sleep when a rank is late (there may be more ranks than cores). */
sp_status comm_loop_run(int ranks, sp_status (*body)(comm *c, void *arg), void *arg) SP_NODISCARD;

/* True when this process was started by mpirun or srun (environment of Open MPI, MPICH/PMI, Slurm). */
bool comm_mpi_launched(void);
/* MPI_Init (thread level FUNNELED) and the world communicator; SP_FAIL when built without MPI. */
sp_status comm_mpi_init(comm **world) SP_NODISCARD;
/* MPI_Finalize. Collective. */
void comm_mpi_finalize(comm *world);

#endif
