/* mpi.c - ranks as MPI processes (Open MPI, MPICH). Built only where an MPI library is found.
 *
 * Data movement is MPI's own collective where a block fits an int, else pairwise exchanges in pieces. Reductions are
 * never MPI's, whose order is unspecified: small ones gather everything and reduce it on every rank, in rank order;
 * larger ones send each rank its share of the elements directly, reduce there in rank order, and gather the results,
 * piece by piece through a bounded staging buffer that stays in cache. Both give the bits of loop.c.
 *
 * MPI_ERRORS_RETURN: an MPI error becomes our error text with rank and call. There is no recovery on MPI (no ULFM in
 * what distributions ship): a failed communicator ends with the job, through comm_abort or comm_mpi_finalize.
 */
#include "comm/backend.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>

enum {
    GATHER_MAX = 16384,  /* bytes over all ranks up to which an all_reduce gathers: one round instead of two */
    PIECE_MAX = 1 << 30, /* bytes a message; AUTOSP_MPI_PIECE lowers it, for tests */
};

typedef struct mpi_comm {
    comm base;
    MPI_Comm mpi;
    int world_rank; /* for messages */
    bool check;
    comm_call call; /* the current or last one, for messages */
    int64_t piece;
    char *stage; /* staged inputs of a reduction */
    int64_t stage_bytes;
    const void **in;      /* [size] a reduction's inputs */
    comm_call *all_calls; /* [size] with check */
    MPI_Request *request; /* [2 size] */
    MPI_Status *status;   /* [2 size] */
} mpi_comm;

/* Why the job is dead, for every communicator of it; empty while it lives. A process has one MPI world. */
static char dead[512];

static mpi_comm *self(comm *c) { return (mpi_comm *)c; }

/* ---- errors ------------------------------------------------------------------------------------ */

/* The error text is the end of the job. */
static sp_status die(void) {
    snprintf(dead, sizeof dead, "%s", err_text());
    return SP_FAIL;
}

static sp_status failed(mpi_comm *m, int rc) {
    char text[MPI_MAX_ERROR_STRING] = "unknown error", call[COMM_CALL_TEXT];
    int n;
    MPI_Error_string(rc, text, &n);
    err_set("rank %d %s: MPI failed: %s", m->world_rank, comm_call_text(&m->call, call), text);
    return die();
}

#define TRY_MPI(m, call)                                                                                               \
    do {                                                                                                               \
        int rc_ = (call);                                                                                              \
        if (rc_ != MPI_SUCCESS) return failed((m), rc_);                                                               \
    } while (0)

/* MPI_Waitall on the first n requests; the error of a request, not just "in status". */
static sp_status wait_all(mpi_comm *m, int n) {
    int rc = MPI_Waitall(n, m->request, m->status);
    if (rc == MPI_SUCCESS) return SP_OK;
    for (int i = 0; rc == MPI_ERR_IN_STATUS && i < n; i++) {
        int e = m->status[i].MPI_ERROR;
        if (e != MPI_SUCCESS && e != MPI_ERR_PENDING) rc = e;
    }
    return failed(m, rc);
}

/* Every call starts here. */
static sp_status begin(comm *c, comm_call call) {
    mpi_comm *m = self(c);
    CHECK(!*dead, "after an earlier failure: %s", dead);
    m->call = call;
    if (!m->check) return SP_OK;
    TRY_MPI(m, MPI_Allgather(&m->call, (int)sizeof call, MPI_BYTE, m->all_calls, (int)sizeof call, MPI_BYTE, m->mpi));
    for (int i = 1; i < c->size; i++)
        if (!comm_call_equal(&m->all_calls[i], &m->all_calls[0])) {
            comm_call_mismatch(i, &m->all_calls[i], 0, &m->all_calls[0]);
            return die();
        }
    return SP_OK;
}

/* ---- moving ------------------------------------------------------------------------------------ */

enum { TAG = 1 };

static void copy(void *to, const void *from, int64_t bytes) {
    if (to != from && bytes > 0) memcpy(to, from, (size_t)bytes);
}

/* MPI_Sendrecv of any size; a partner may be MPI_PROC_NULL. */
static sp_status exchange(mpi_comm *m, const void *send, int dst, void *recv, int src, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += m->piece) {
        int n = (int)min64(m->piece, bytes - at);
        TRY_MPI(m, MPI_Sendrecv((const char *)send + at, n, MPI_BYTE, dst, TAG, (char *)recv + at, n, MPI_BYTE, src,
                                TAG, m->mpi, MPI_STATUS_IGNORE));
    }
    return SP_OK;
}

static sp_status mpi_all_to_all(comm *c, const void *send, void *recv, int64_t bytes) {
    mpi_comm *m = self(c);
    TRY(begin(c, comm_call_move(COMM_ALL_TO_ALL, bytes, 0)));
    if (bytes <= m->piece) {
        TRY_MPI(m, MPI_Alltoall(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, m->mpi));
        return SP_OK;
    }
    copy((char *)recv + c->rank * bytes, (const char *)send + c->rank * bytes, bytes);
    for (int k = 1; k < c->size; k++) {
        int dst = (c->rank + k) % c->size, src = (c->rank - k + c->size) % c->size;
        TRY(exchange(m, (const char *)send + dst * bytes, dst, (char *)recv + src * bytes, src, bytes));
    }
    return SP_OK;
}

static sp_status mpi_all_gather(comm *c, const void *send, void *recv, int64_t bytes) {
    mpi_comm *m = self(c);
    TRY(begin(c, comm_call_move(COMM_ALL_GATHER, bytes, 0)));
    char *own = (char *)recv + c->rank * bytes;
    if (bytes <= m->piece) {
        const void *from = send == own ? MPI_IN_PLACE : send;
        TRY_MPI(m, MPI_Allgather(from, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, m->mpi));
        return SP_OK;
    }
    copy(own, send, bytes);
    for (int k = 1; k < c->size; k++) {
        int dst = (c->rank + k) % c->size, src = (c->rank - k + c->size) % c->size;
        TRY(exchange(m, own, dst, (char *)recv + src * bytes, src, bytes));
    }
    return SP_OK;
}

static sp_status mpi_broadcast(comm *c, void *data, int64_t bytes, int root) {
    mpi_comm *m = self(c);
    TRY(begin(c, comm_call_move(COMM_BROADCAST, bytes, root)));
    for (int64_t at = 0; at < bytes; at += m->piece)
        TRY_MPI(m, MPI_Bcast((char *)data + at, (int)min64(m->piece, bytes - at), MPI_BYTE, root, m->mpi));
    return SP_OK;
}

static sp_status mpi_send_recv(comm *c, const void *send, int dst, void *recv, int src, int64_t bytes) {
    TRY(begin(c, comm_call_move(COMM_SEND_RECV, bytes, 0)));
    return exchange(self(c), send, dst < 0 ? MPI_PROC_NULL : dst, recv, src < 0 ? MPI_PROC_NULL : src, bytes);
}

static sp_status mpi_barrier(comm *c) {
    TRY(begin(c, comm_call_move(COMM_BARRIER, 0, 0)));
    TRY_MPI(self(c), MPI_Barrier(self(c)->mpi));
    return SP_OK;
}

/* ---- reducing ---------------------------------------------------------------------------------- */

/* The elements of every rank's send that rank j reduces: all_reduce divides `count` elements, reduce_scatter has a
 * block of `count` for each rank. Both go in pieces of at most `piece` elements a rank; `rounds` of them. */
typedef struct shares {
    bool blocks;
    int size;
    int64_t count, elem, slot, piece, rounds;
} shares;

/* Piece and rounds follow from the call alone: the ranks, whatever each has reserved, must agree on them. */
static shares shares_of(bool blocks, int size, int64_t count, int64_t elem) {
    int64_t most = blocks ? count : ceil_div(count, size);
    int64_t slot = max64(round_up(min64(most * elem, COMM_STAGING_SLOT), 64), 64);
    return (shares){.blocks = blocks,
                    .size = size,
                    .count = count,
                    .elem = elem,
                    .slot = slot,
                    .piece = slot / elem,
                    .rounds = ceil_div(most, slot / elem)};
}

/* Elements [*at, *at + n) are rank j's in the given round; returns n. */
static int64_t share_piece(const shares *s, int j, int64_t round, int64_t *at) {
    int64_t first = s->blocks ? j * s->count : comm_share(s->count, j, s->size);
    int64_t end = s->blocks ? first + s->count : comm_share(s->count, j + 1, s->size);
    *at = min64(first + round * s->piece, end);
    return min64(s->piece, end - *at);
}

static sp_status stage_at_least(mpi_comm *m, int64_t bytes) {
    if (bytes <= m->stage_bytes) return SP_OK;
    char *stage = aligned_alloc(64, (size_t)round_up(bytes, 64));
    CHECK(stage, "rank %d: no memory for %lld bytes of staging", m->world_rank, (long long)bytes);
    free(m->stage);
    m->stage = stage;
    m->stage_bytes = bytes;
    return SP_OK;
}

static sp_status mpi_reserve(comm *c, int64_t bytes) {
    int64_t most = max64(shares_of(false, c->size, bytes, 1).slot * c->size, GATHER_MAX);
    return stage_at_least(self(c), most);
}

/* Sends each rank its piece, and reduces the own one, of all ranks in rank order, into out. */
static sp_status scatter_round(mpi_comm *m, const shares *s, int64_t round, const void *send, void *out, dtype t,
                               comm_reduce op) {
    int rank = m->base.rank, n = 0;
    int64_t at, mine = share_piece(s, rank, round, &at);
    m->in[rank] = (const char *)send + at * s->elem;
    for (int k = 1; mine > 0 && k < s->size; k++) {
        int i = (rank - k + s->size) % s->size;
        char *slot = m->stage + i * s->slot;
        m->in[i] = slot;
        TRY_MPI(m, MPI_Irecv(slot, (int)(mine * s->elem), MPI_BYTE, i, TAG, m->mpi, &m->request[n++]));
    }
    for (int k = 1; k < s->size; k++) {
        int i = (rank + k) % s->size;
        int64_t count = share_piece(s, i, round, &at);
        const char *from = (const char *)send + at * s->elem;
        if (count > 0) TRY_MPI(m, MPI_Isend(from, (int)(count * s->elem), MPI_BYTE, i, TAG, m->mpi, &m->request[n++]));
    }
    TRY(wait_all(m, n));
    if (mine > 0) comm_reduce_range(out, m->in, s->size, 0, mine, t, op);
    return SP_OK;
}

/* Everybody gets everybody's reduced piece of the round. */
static sp_status gather_round(mpi_comm *m, const shares *s, int64_t round, char *recv) {
    int rank = m->base.rank, n = 0;
    int64_t at, count;
    for (int k = 1; k < s->size; k++) {
        int i = (rank - k + s->size) % s->size;
        if ((count = share_piece(s, i, round, &at)) > 0)
            TRY_MPI(m,
                    MPI_Irecv(recv + at * s->elem, (int)(count * s->elem), MPI_BYTE, i, TAG, m->mpi, &m->request[n++]));
    }
    count = share_piece(s, rank, round, &at);
    for (int k = 1; count > 0 && k < s->size; k++) {
        int i = (rank + k) % s->size;
        TRY_MPI(m, MPI_Isend(recv + at * s->elem, (int)(count * s->elem), MPI_BYTE, i, TAG, m->mpi, &m->request[n++]));
    }
    return wait_all(m, n);
}

static sp_status mpi_all_reduce(comm *c, const void *send, void *recv, int64_t count, dtype t, comm_reduce op) {
    mpi_comm *m = self(c);
    int64_t elem = dtype_size(t), bytes = count * elem;
    TRY(begin(c, comm_call_reduce(COMM_ALL_REDUCE, count, t, op)));
    if (count == 0) return SP_OK;
    if (bytes <= GATHER_MAX / c->size) {
        TRY(stage_at_least(m, GATHER_MAX));
        TRY_MPI(m, MPI_Allgather(send, (int)bytes, MPI_BYTE, m->stage, (int)bytes, MPI_BYTE, m->mpi));
        for (int i = 0; i < c->size; i++) m->in[i] = m->stage + i * bytes;
        comm_reduce_range(recv, m->in, c->size, 0, count, t, op);
        return SP_OK;
    }
    shares s = shares_of(false, c->size, count, elem);
    TRY(stage_at_least(m, s.slot * c->size));
    /* send == recv: a round has sent its elements of send before it writes the same ones of recv. */
    for (int64_t round = 0; round < s.rounds; round++) {
        int64_t at;
        share_piece(&s, c->rank, round, &at);
        TRY(scatter_round(m, &s, round, send, (char *)recv + at * elem, t, op));
        TRY(gather_round(m, &s, round, recv));
    }
    return SP_OK;
}

static sp_status mpi_reduce_scatter(comm *c, const void *send, void *recv, int64_t count, dtype t) {
    mpi_comm *m = self(c);
    TRY(begin(c, comm_call_reduce(COMM_REDUCE_SCATTER, count, t, COMM_SUM)));
    shares s = shares_of(true, c->size, count, dtype_size(t));
    TRY(stage_at_least(m, s.slot * c->size));
    for (int64_t round = 0; round < s.rounds; round++)
        TRY(scatter_round(m, &s, round, send, (char *)recv + round * s.piece * s.elem, t, COMM_SUM));
    return SP_OK;
}

/* ---- groups, start, end ------------------------------------------------------------------------ */

static const comm_ops mpi_ops;

static void release(mpi_comm *m) {
    free(m->stage), free(m->in), free(m->all_calls), free(m->request), free(m->status), free(m);
}

/* Takes the MPI communicator over. `m` of the parent gives settings; NULL for the world. */
static sp_status mpi_comm_new(MPI_Comm mpi, const mpi_comm *parent, comm **out) {
    int rank, size;
    MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN);
    MPI_Comm_rank(mpi, &rank);
    MPI_Comm_size(mpi, &size);
    mpi_comm *m = calloc(1, sizeof *m);
    size_t n = (size_t)size;
    if (m) {
        m->in = calloc(n, sizeof *m->in);
        m->all_calls = calloc(n, sizeof *m->all_calls);
        m->request = calloc(2 * n, sizeof *m->request);
        m->status = calloc(2 * n, sizeof *m->status);
    }
    if (!m || !m->in || !m->all_calls || !m->request || !m->status) {
        if (m) release(m);
        FAIL("rank %d: no memory for a communicator of %d ranks", rank, size);
    }
    m->base = (comm){.ops = &mpi_ops, .rank = rank, .size = size};
    m->mpi = mpi;
    if (parent) {
        m->world_rank = parent->world_rank;
        m->check = parent->check;
        m->piece = parent->piece;
    } else {
        const char *check = getenv("AUTOSP_COMM_CHECK"), *piece = getenv("AUTOSP_MPI_PIECE");
        m->world_rank = rank;
        m->check = check && strcmp(check, "1") == 0;
        m->piece = piece ? max64(1, min64(PIECE_MAX, strtoll(piece, NULL, 10))) : PIECE_MAX;
    }
    *out = &m->base;
    return SP_OK;
}

static sp_status mpi_split(comm *c, int color, int key, comm **out) {
    mpi_comm *m = self(c);
    MPI_Comm made;
    TRY(begin(c, comm_call_move(COMM_SPLIT, 0, 0)));
    TRY_MPI(m, MPI_Comm_split(m->mpi, color < 0 ? MPI_UNDEFINED : color, key, &made));
    return made == MPI_COMM_NULL ? SP_OK : mpi_comm_new(made, m, out);
}

/* The launcher kills the other ranks; some launchers pass no message on, so ours comes first. */
static void mpi_abort(comm *c, const char *reason) {
    log_line("rank %d failed: %s", self(c)->world_rank, reason);
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort(); /* MPI_Abort does not return, but its declaration does not say so */
}

static void mpi_free(comm *c) {
    mpi_comm *m = self(c);
    if (!*dead) MPI_Comm_free(&m->mpi);
    release(m);
}

static const comm_ops mpi_ops = {
    .name = "mpi",
    .all_reduce = mpi_all_reduce,
    .all_to_all = mpi_all_to_all,
    .all_gather = mpi_all_gather,
    .reduce_scatter = mpi_reduce_scatter,
    .broadcast = mpi_broadcast,
    .send_recv = mpi_send_recv,
    .barrier = mpi_barrier,
    .split = mpi_split,
    .reserve = mpi_reserve,
    .abort = mpi_abort,
    .free = mpi_free,
};

sp_status comm_mpi_init(comm **world) {
    int provided, rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm mine;
    *world = NULL;
    CHECK(rc == MPI_SUCCESS, "MPI_Init_thread failed with code %d", rc);
    CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI library does not allow threads beside the one that calls it");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    /* A communicator of our own: no message of another library's is ours. */
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &mine);
    CHECK(rc == MPI_SUCCESS, "MPI_Comm_dup failed with code %d", rc);
    return mpi_comm_new(mine, NULL, world);
}

void comm_mpi_finalize(comm *world) {
    if (*dead) mpi_abort(world, dead); /* MPI_Finalize would wait for the others */
    mpi_free(world);
    MPI_Finalize();
}
