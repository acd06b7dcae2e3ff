/* comm.c - what the collectives of loop and mpi cost on this machine, beside memcpy measured in the same run.
 *
 *   cmake --build build --target bench_comm && build/bench_comm [P...]      (2 4 without arguments)
 *
 * For every P: a table of loop, then the same of mpi (scripts/mpirun starts this program again; MPIEXEC as there). A
 * size is the larger buffer of a rank. The yardstick is a memcpy of that size by all ranks at once, which is what a
 * perfect backend does on one machine: all_to_all, all_gather and send_recv write each byte of the receive buffer
 * once; all_reduce and reduce_scatter read each element of P buffers once, P ranks sharing the work.
 *
 * A figure is the median of REPS repetitions, each a run of calls between two barriers, timed on rank 0, after the
 * same number of memcpys. GB/s is 1e9 bytes of that buffer a second and rank. */
#include "comm/comm.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REPS = 9 };
static const int64_t sizes[] = {64, 4096, 65536, 1 << 20, 16 << 20};
enum { SIZES = sizeof sizes / sizeof *sizes };

typedef enum what {
    MEMCPY,
    ALL_TO_ALL,
    ALL_GATHER,
    REDUCE_SCATTER,
    ALL_REDUCE,
    SEND_RECV,
    BROADCAST,
    BARRIER,
    WHATS
} what;
static const char *const names[WHATS] = {"memcpy",         "all_to_all", "all_gather", "reduce_scatter f32",
                                         "all_reduce f32", "send_recv",  "broadcast",  "barrier"};

static sp_status call(comm *c, what w, char *send, char *recv, int64_t bytes) {
    int P = c->size, next = (c->rank + 1) % P, last = (c->rank + P - 1) % P;
    switch (w) {
    case MEMCPY:
        memcpy(recv, send, (size_t)bytes);
        return SP_OK;
    case ALL_TO_ALL:
        return comm_all_to_all(c, send, recv, bytes / P);
    case ALL_GATHER:
        return comm_all_gather(c, send, recv, bytes / P);
    case REDUCE_SCATTER:
        return comm_reduce_scatter(c, send, recv, bytes / P / 4, DT_F32);
    case ALL_REDUCE:
        return comm_all_reduce(c, send, recv, bytes / 4, DT_F32, COMM_SUM);
    case SEND_RECV:
        return comm_send_recv(c, send, next, recv, last, bytes);
    case BROADCAST:
        return comm_broadcast(c, c->rank == 0 ? send : recv, bytes, 0);
    case BARRIER:
        return comm_barrier(c);
    case WHATS:
        break;
    }
    return SP_FAIL;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static sp_status timed(comm *c, what w, char *send, char *recv, int64_t bytes, double *seconds) {
    int calls = (int)max64(2, min64(200, (4 << 20) / bytes));
    TRY(comm_barrier(c));
    double start = now_s();
    for (int i = 0; i < calls; i++) TRY(call(c, w, send, recv, bytes));
    TRY(comm_barrier(c));
    *seconds = (now_s() - start) / calls;
    return SP_OK;
}

/* Median seconds a call, and the median of memcpy's seconds / the call's, the two timed in turn: on a machine that
 * others use, both slow down together. */
static sp_status measure(comm *c, what w, char *send, char *recv, int64_t bytes, double *seconds, double *share) {
    double t[REPS], ratio[REPS], copy;
    for (int rep = -1; rep < REPS; rep++) { /* the first one warms up */
        int to = rep < 0 ? 0 : rep;
        TRY(timed(c, MEMCPY, send, recv, bytes, &copy));
        TRY(timed(c, w, send, recv, bytes, &t[to]));
        ratio[to] = copy / t[to];
    }
    qsort(t, REPS, sizeof *t, by_value);
    qsort(ratio, REPS, sizeof *ratio, by_value);
    *seconds = t[REPS / 2];
    *share = ratio[REPS / 2];
    return SP_OK;
}

static sp_status bench(comm *c, void *unused) {
    (void)unused;
    size_t most = (size_t)sizes[SIZES - 1];
    char *send = aligned_alloc(4096, most), *recv = aligned_alloc(4096, most);
    CHECK(send && recv, "no memory for the buffers");
    memset(send, 0, most), memset(recv, 0, most);
    sp_status ok = comm_reserve(c, sizes[SIZES - 1]);
    if (c->rank == 0) {
        printf("\n%s, %d ranks; us a call | GB/s (share of memcpy's)\n%-20s", comm_backend(c), c->size, "");
        for (int s = 0; s < SIZES; s++) {
            char size[24];
            printf("%22s", human_bytes(sizes[s], size));
        }
        printf("\n");
    }
    double t, share;
    for (int w = 0; w < WHATS && ok == SP_OK; w++) {
        if (c->rank == 0) printf("%-20s", names[w]);
        for (int s = 0; s < (w == BARRIER ? 1 : SIZES) && ok == SP_OK; s++) {
            ok = measure(c, (what)w, send, recv, sizes[s], &t, &share);
            if (c->rank != 0 || ok != SP_OK) continue;
            if (w == BARRIER || sizes[s] < 65536)
                printf("%19.2f us", t * 1e6);
            else
                printf("%10.0f %5.2f (%3.0f%%)", t * 1e6, (double)sizes[s] / t * 1e-9, 100 * share);
        }
        if (c->rank == 0) printf("\n"), fflush(stdout);
    }
    free(send), free(recv);
    return ok;
}

/* Runs this program under scripts/mpirun. */
static void under_mpi(const char *self, int ranks) {
    char n[16];
    snprintf(n, sizeof n, "%d", ranks);
    pid_t child = fork();
    if (child == 0) {
        execl(AUTOSP_SOURCE_DIR "/scripts/mpirun", "mpirun", "-n", n, self, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) log_warn("no mpi figures for %d ranks", ranks);
}

int main(int argc, char **argv) {
    if (comm_mpi_launched()) {
        comm *world;
        sp_status ok = comm_mpi_init(&world);
        if (ok == SP_OK && bench(world, NULL) != SP_OK) comm_abort(world, err_text());
        if (ok == SP_OK) comm_mpi_finalize(world);
        if (ok != SP_OK) log_line("%s", err_text());
        return ok;
    }
    static const char *const defaults[] = {"", "2", "4"};
    const char *const *ranks = argc > 1 ? (const char *const *)argv : defaults;
    int n = argc > 1 ? argc : 3;
    for (int i = 1; i < n; i++) {
        if (comm_loop_run(atoi(ranks[i]), bench, NULL) != SP_OK) {
            log_line("%s", err_text());
            return 1;
        }
        under_mpi(argv[0], atoi(ranks[i]));
    }
    return 0;
}
