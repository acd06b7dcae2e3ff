/* comm.c - what is common to all backends: arguments are checked and calls counted here, once, and the words for a
 * call in messages. */
#include "comm/backend.h"

static const char *const names[COMM_OP_COUNT] = {
    [COMM_ALL_REDUCE] = "all_reduce", [COMM_ALL_TO_ALL] = "all_to_all",
    [COMM_ALL_GATHER] = "all_gather", [COMM_REDUCE_SCATTER] = "reduce_scatter",
    [COMM_BROADCAST] = "broadcast",   [COMM_SEND_RECV] = "send_recv",
    [COMM_BARRIER] = "barrier",       [COMM_SPLIT] = "split",
};

const char *comm_op_name(comm_op op) { return names[op]; }

/* Divides without forming count * r, which may overflow. */
int64_t comm_share(int64_t count, int r, int size) { return count / size * r + min64(r, count % size); }

int64_t comm_sent_bytes(comm_op op, int rank, int size, int64_t bytes, int64_t elem, int root) {
    int64_t others = size - 1;
    switch (op) {
    case COMM_ALL_REDUCE: {
        int64_t count = bytes / elem;
        int64_t share = (comm_share(count, rank + 1, size) - comm_share(count, rank, size)) * elem;
        return bytes - share + others * share;
    }
    case COMM_ALL_TO_ALL:
    case COMM_ALL_GATHER:
    case COMM_REDUCE_SCATTER:
        return others * bytes;
    case COMM_BROADCAST:
        return rank == root ? others * bytes : 0;
    case COMM_SEND_RECV:
        return bytes; /* callers know whether they send, and to whom */
    case COMM_BARRIER:
    case COMM_SPLIT:
    case COMM_OP_COUNT:
        break;
    }
    return 0;
}

static void count_call(comm *c, comm_op op, int64_t bytes) {
    c->stats[op].calls++;
    c->stats[op].bytes += bytes;
}

void comm_stats_reset(comm *c) { memset(c->stats, 0, sizeof c->stats); }

/* Bytes of `blocks` blocks of n elements must fit int64_t. */
static sp_status check_size(const comm *c, comm_op op, int64_t n, int64_t elem, int64_t blocks) {
    int64_t bytes;
    CHECK(n >= 0, "rank %d: %s of a negative size, %lld", c->rank, names[op], (long long)n);
    CHECK(mul_ok(n, elem, &bytes) && mul_ok(bytes, 2 * blocks, &bytes), "rank %d: %s of %lld elements is too large",
          c->rank, names[op], (long long)n);
    return SP_OK;
}

static sp_status check_reduce(const comm *c, comm_op op, int64_t count, dtype t, int64_t blocks) {
    CHECK(t == DT_F32 || t == DT_F64 || t == DT_BF16 || t == DT_I64,
          "rank %d: %s cannot reduce elements of type %s; the types are f32, f64, bf16 and i64", c->rank, names[op],
          dtype_name(t));
    return check_size(c, op, count, dtype_size(t), blocks);
}

sp_status comm_all_reduce(comm *c, const void *send, void *recv, int64_t count, dtype t, comm_reduce op) {
    TRY(check_reduce(c, COMM_ALL_REDUCE, count, t, c->size));
    TRY(c->ops->all_reduce(c, send, recv, count, t, op));
    int64_t elem = dtype_size(t);
    count_call(c, COMM_ALL_REDUCE, comm_sent_bytes(COMM_ALL_REDUCE, c->rank, c->size, count * elem, elem, 0));
    return SP_OK;
}

sp_status comm_all_to_all(comm *c, const void *send, void *recv, int64_t bytes) {
    TRY(check_size(c, COMM_ALL_TO_ALL, bytes, 1, c->size));
    TRY(c->ops->all_to_all(c, send, recv, bytes));
    count_call(c, COMM_ALL_TO_ALL, comm_sent_bytes(COMM_ALL_TO_ALL, c->rank, c->size, bytes, 1, 0));
    return SP_OK;
}

sp_status comm_all_gather(comm *c, const void *send, void *recv, int64_t bytes) {
    TRY(check_size(c, COMM_ALL_GATHER, bytes, 1, c->size));
    TRY(c->ops->all_gather(c, send, recv, bytes));
    count_call(c, COMM_ALL_GATHER, comm_sent_bytes(COMM_ALL_GATHER, c->rank, c->size, bytes, 1, 0));
    return SP_OK;
}

sp_status comm_reduce_scatter(comm *c, const void *send, void *recv, int64_t count, dtype t) {
    TRY(check_reduce(c, COMM_REDUCE_SCATTER, count, t, c->size));
    TRY(c->ops->reduce_scatter(c, send, recv, count, t));
    int64_t elem = dtype_size(t);
    count_call(c, COMM_REDUCE_SCATTER, comm_sent_bytes(COMM_REDUCE_SCATTER, c->rank, c->size, count * elem, elem, 0));
    return SP_OK;
}

sp_status comm_broadcast(comm *c, void *data, int64_t bytes, int root) {
    TRY(check_size(c, COMM_BROADCAST, bytes, 1, c->size));
    CHECK(root >= 0 && root < c->size, "rank %d: broadcast from rank %d of a communicator of %d", c->rank, root,
          c->size);
    TRY(c->ops->broadcast(c, data, bytes, root));
    count_call(c, COMM_BROADCAST, comm_sent_bytes(COMM_BROADCAST, c->rank, c->size, bytes, 1, root));
    return SP_OK;
}

sp_status comm_send_recv(comm *c, const void *send, int dst, void *recv, int src, int64_t bytes) {
    TRY(check_size(c, COMM_SEND_RECV, bytes, 1, 1));
    CHECK(dst >= -1 && dst < c->size && src >= -1 && src < c->size,
          "rank %d: send_recv to rank %d, from rank %d, of a communicator of %d", c->rank, dst, src, c->size);
    TRY(c->ops->send_recv(c, send, dst, recv, src, bytes));
    bool sends = dst >= 0 && dst != c->rank;
    count_call(c, COMM_SEND_RECV, sends ? comm_sent_bytes(COMM_SEND_RECV, c->rank, c->size, bytes, 1, 0) : 0);
    return SP_OK;
}

sp_status comm_barrier(comm *c) {
    TRY(c->ops->barrier(c));
    count_call(c, COMM_BARRIER, 0);
    return SP_OK;
}

sp_status comm_split(comm *c, int color, int key, comm **out) {
    *out = NULL;
    TRY(c->ops->split(c, color, key, out));
    count_call(c, COMM_SPLIT, 0);
    return SP_OK;
}

sp_status comm_reserve(comm *c, int64_t bytes) {
    CHECK(bytes >= 0, "rank %d: comm_reserve of a negative size, %lld", c->rank, (long long)bytes);
    return c->ops->reserve ? c->ops->reserve(c, bytes) : SP_OK;
}

void comm_abort(comm *c, const char *reason) { c->ops->abort(c, reason); }

void comm_free(comm *c) {
    if (c) c->ops->free(c);
}

bool comm_call_equal(const comm_call *a, const comm_call *b) {
    return a->op == b->op && a->n == b->n && a->type == b->type && a->extra == b->extra;
}

char *comm_call_text(const comm_call *c, char *out) {
    long long n = (long long)c->n;
    if (c->op == COMM_RETURNED)
        snprintf(out, COMM_CALL_TEXT, "has returned");
    else if (c->type >= 0)
        snprintf(out, COMM_CALL_TEXT, "called %s of %lld %s (%s)", names[c->op], n, dtype_name((dtype)c->type),
                 c->extra == COMM_MAX ? "max" : "sum");
    else if (c->op == COMM_BROADCAST)
        snprintf(out, COMM_CALL_TEXT, "called %s of %lld bytes from rank %lld", names[c->op], n, (long long)c->extra);
    else if (c->op == COMM_BARRIER || c->op == COMM_SPLIT)
        snprintf(out, COMM_CALL_TEXT, "called %s", names[c->op]);
    else
        snprintf(out, COMM_CALL_TEXT, "called %s of %lld bytes", names[c->op], n);
    return out;
}

sp_status comm_call_mismatch(int rank_a, const comm_call *a, int rank_b, const comm_call *b) {
    char ta[COMM_CALL_TEXT], tb[COMM_CALL_TEXT];
    FAIL("the ranks of one communicator made different calls: rank %d %s, rank %d %s", rank_a, comm_call_text(a, ta),
         rank_b, comm_call_text(b, tb));
}
