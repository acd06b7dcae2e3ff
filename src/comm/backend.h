/* backend.h - what the backends of comm.h share: the description of a call, for messages and for comparing ranks,
 * and the reduction in rank order. Private to src/comm. */
#ifndef AUTOSP_COMM_BACKEND_H
#define AUTOSP_COMM_BACKEND_H

#include "comm/comm.h"

/* What all ranks of a communicator must agree on in one call. All fields int64_t: no padding, so that ranks may
 * exchange it as bytes. */
typedef struct comm_call {
    int64_t op;    /* a comm_op, or COMM_RETURNED */
    int64_t n;     /* bytes, or elements of a reduction */
    int64_t type;  /* dtype of a reduction, else -1 */
    int64_t extra; /* comm_reduce, or the root */
} comm_call;

/* The rank's body has returned: "called" by comm_loop_run for it. */
enum { COMM_RETURNED = COMM_OP_COUNT, COMM_CALL_TEXT = 96 };

bool comm_call_equal(const comm_call *a, const comm_call *b);
/* "called all_reduce of 12 f32 (sum)" into out (COMM_CALL_TEXT bytes); returns out. */
char *comm_call_text(const comm_call *c, char *out);
/* Sets "the ranks of one communicator made different calls: rank 2 ... while rank 0 ..."; returns SP_FAIL. */
sp_status comm_call_mismatch(int rank_a, const comm_call *a, int rank_b, const comm_call *b);

static inline comm_call comm_call_reduce(comm_op op, int64_t count, dtype t, comm_reduce r) {
    return (comm_call){.op = op, .n = count, .type = t, .extra = r};
}
static inline comm_call comm_call_move(comm_op op, int64_t bytes, int root) {
    return (comm_call){.op = op, .n = bytes, .type = -1, .extra = root};
}

/* out[i] = in[0][first + i] (+) ... (+) in[n-1][first + i], 0 <= i < count, in that order. out may be one of the
 * inputs' own ranges. */
void comm_reduce_range(void *out, const void *const *in, int n, int64_t first, int64_t count, dtype t, comm_reduce op);
/* The first element of rank r's share of `count` elements over `size` ranks; shares differ by at most one. */
int64_t comm_share(int64_t count, int r, int size);

#endif
