/* comm.h - ranks and the collectives between them; the one interface of `self`, `loop`, `mpi` and `nccl`.
 *
 * Every call below is collective over the communicator unless it says otherwise: all ranks call it, in the
 * same order, with the same counts. A failing call returns SP_FAIL with the reason; after that the
 * communicator is dead and every later call on it fails too. Whoever fails for a reason of its own calls
 * comm_abort, so that no rank is left waiting (comm_loop_run does it for a body that returns SP_FAIL).
 *
 * Reductions sum in rank order 0..P-1, ((x0 + x1) + x2) + ..., whatever the backend and the message's size: a
 * result is bit-equal on all ranks, in every rerun, and between loop and mpi.
 *
 * Counts are int64_t: messages past INT_MAX are split inside. Buffers may not overlap unless said, and must be
 * aligned to their element type. No call allocates in its steady state: staging comes from comm_reserve.
 * A communicator belongs to one thread: no two calls on it at once.
 */
#ifndef AUTOSP_COMM_H
#define AUTOSP_COMM_H

#include "base/base.h"

typedef struct comm comm;

/* COMM_MAX of floats: a NaN on any rank gives NaN. */
typedef enum comm_reduce { COMM_SUM, COMM_MAX } comm_reduce;

/* The kinds of calls, for counters and messages. */
typedef enum comm_op {
    COMM_ALL_REDUCE,
    COMM_ALL_TO_ALL,
    COMM_ALL_GATHER,
    COMM_REDUCE_SCATTER,
    COMM_BROADCAST,
    COMM_SEND_RECV,
    COMM_BARRIER,
    COMM_SPLIT,
    COMM_OP_COUNT
} comm_op;

/* What this rank did since the communicator was made or comm_stats_reset: completed calls, and payload bytes
 * sent to other ranks (comm_sent_bytes; a rank's block for itself is not counted). */
typedef struct comm_counter {
    int64_t calls, bytes;
} comm_counter;

/* A backend's table. Callers use the functions below, which check arguments and count; backends may rely on
 * those checks: counts >= 0 whose bytes fit int64_t, roots and partners in range, reducible types. */
typedef struct comm_ops {
    const char *name; /* "self", "loop", "mpi", "nccl" */
    sp_status (*all_reduce)(comm *c, const void *send, void *recv, int64_t count, dtype t, comm_reduce op);
    sp_status (*all_to_all)(comm *c, const void *send, void *recv, int64_t bytes);
    sp_status (*all_gather)(comm *c, const void *send, void *recv, int64_t bytes);
    sp_status (*reduce_scatter)(comm *c, const void *send, void *recv, int64_t count, dtype t);
    sp_status (*broadcast)(comm *c, void *data, int64_t bytes, int root);
    sp_status (*send_recv)(comm *c, const void *send, int dst, void *recv, int src, int64_t bytes);
    sp_status (*barrier)(comm *c);
    sp_status (*split)(comm *c, int color, int key, comm **out);
    sp_status (*reserve)(comm *c, int64_t bytes);
    void (*abort)(comm *c, const char *reason);
    void (*free)(comm *c);
} comm_ops;

/* A backend's own struct starts with this one. */
struct comm {
    const comm_ops *ops;
    int rank, size;
    comm_counter stats[COMM_OP_COUNT];
};

static inline int comm_rank(const comm *c) { return c->rank; }
static inline int comm_size(const comm *c) { return c->size; }
static inline const char *comm_backend(const comm *c) { return c->ops->name; }

/* ---- the calls --------------------------------------------------------------------------------- */

/* recv[i] of every rank = reduction over ranks of send[i]; send == recv allowed. Types: f32, f64, bf16 (summed in
 * f32, rounded once to nearest even), i64 (wraps). */
sp_status comm_all_reduce(comm *c, const void *send, void *recv, int64_t count, dtype t, comm_reduce op) SP_NODISCARD;
/* send: P blocks of `bytes`, block j goes to rank j; recv: block i came from rank i. */
sp_status comm_all_to_all(comm *c, const void *send, void *recv, int64_t bytes) SP_NODISCARD;
/* recv: P blocks of `bytes`, block i is rank i's send; send may be recv's own block. */
sp_status comm_all_gather(comm *c, const void *send, void *recv, int64_t bytes) SP_NODISCARD;
/* send: P blocks of `count` elements; recv = the sum over ranks of block `rank`, types as in comm_all_reduce;
 * recv may be send's own block. */
sp_status comm_reduce_scatter(comm *c, const void *send, void *recv, int64_t count, dtype t) SP_NODISCARD;
/* data of every rank = root's data. */
sp_status comm_broadcast(comm *c, void *data, int64_t bytes, int root) SP_NODISCARD;
/* Sends to dst and receives from src at once (the ring's step); returns when both are done. -1 for dst or src:
 * nothing is sent or received. All ranks take part with the same bytes, and rank i's src names i as its dst. */
sp_status comm_send_recv(comm *c, const void *send, int dst, void *recv, int src, int64_t bytes) SP_NODISCARD;
sp_status comm_barrier(comm *c) SP_NODISCARD;
/* *out = the communicator of the ranks with the same color, ordered by key, then by rank here; NULL for a rank
 * whose color is negative. The caller frees it with comm_free. */
sp_status comm_split(comm *c, int color, int key, comm **out) SP_NODISCARD;

/* Not collective. Reserves the staging space that reductions of buffers up to `bytes` need, so that they do not
 * allocate; without it the first such call does. At most COMM_STAGING_SLOT bytes times the ranks, none on loop. */
sp_status comm_reserve(comm *c, int64_t bytes) SP_NODISCARD;
enum { COMM_STAGING_SLOT = 256 << 10 };

/* Not collective. Gives the job up for `reason`. loop: every rank's current and later calls, on every
 * communicator of the job, fail with "rank R failed: reason". mpi: prints that line and takes the job down; does
 * not return. self: nothing. */
void comm_abort(comm *c, const char *reason);
/* Frees a communicator made by comm_self or comm_split, not collective; NULL is allowed. The one that
 * comm_loop_run hands to its body is left alone, the one of comm_mpi_init goes with comm_mpi_finalize. */
void comm_free(comm *c);

/* ---- counters ---------------------------------------------------------------------------------- */

/* The counters, COMM_OP_COUNT of them, indexed by comm_op; owned by c. Not collective. */
static inline const comm_counter *comm_stats(const comm *c) { return c->stats; }
void comm_stats_reset(comm *c);
const char *comm_op_name(comm_op op);
/* Payload bytes that one rank of `size` sends to others in one call: what the counters add up and a planner may
 * predict. `bytes`: the argument of that name, for reductions count * element size; `root` only matters to
 * broadcast. All-reduce counts reduce-scatter + all-gather of the rank's share of the elements (P ranks
 * together: 2 (P-1) bytes), the other ones what their definition moves. */
int64_t comm_sent_bytes(comm_op op, int rank, int size, int64_t bytes, int64_t elem, int root);

/* ---- the backends ------------------------------------------------------------------------------ */

/* A communicator of one rank; every collective is a copy. Never fails. Free with comm_free. */
comm *comm_self(void);

/* Runs body(comm, arg) on `ranks` threads, each with its own rank of one `loop` communicator, and joins them.
 * SP_FAIL when any rank failed; the error text then names the first failing rank ("rank 3: ..."). Data goes by
 * direct copies between the ranks' buffers (one copy a byte, no staging), with barriers that sleep when a rank is
 * late (there may be more ranks than cores). What would hang or corrupt elsewhere is an error on all ranks here:
 * a rank that failed, calls or sizes that differ between ranks, ranks that wait for each other for ever. */
sp_status comm_loop_run(int ranks, sp_status (*body)(comm *c, void *arg), void *arg) SP_NODISCARD;
enum { COMM_LOOP_MAX = 1024 }; /* ranks */

/* True when this process was started by mpirun, mpiexec or srun (from the environment that Open MPI, MPICH and
 * Slurm set). Not collective. */
bool comm_mpi_launched(void);
/* MPI_Init (thread level FUNNELED: calls from the main thread only) and the world communicator; SP_FAIL when
 * built without MPI. With AUTOSP_COMM_CHECK=1 in the environment every call first compares what the ranks call
 * (one small all-gather more), so that a mismatch is an error instead of a hang. */
sp_status comm_mpi_init(comm **world) SP_NODISCARD;
/* MPI_Finalize, and frees world. Collective; after a failed call it takes the job down instead. */
void comm_mpi_finalize(comm *world);

#endif
