/* mpi.c - the tests of the collectives as MPI processes; tests/comm/mpi.sh runs it in each mode:
 *   body      the tests of body.c; prints "ok"
 *   hash      prints the hash of body_hash; without a launcher `hash P` prints that of P loop ranks
 *   abort     rank 1 gives up while the others wait: the job must end
 *   kill      rank 1 is killed while the others wait: likewise
 *   mismatch  rank 1 calls something else; with AUTOSP_COMM_CHECK=1 every rank must say so
 *   truncate  rank 0 broadcasts more than the others expect: MPI's error must be told */
#include "body.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static sp_status run(comm *c, const char *mode) {
    char a[4096] = {0}, b[4096];
    if (strcmp(mode, "body") == 0) {
        TRY(body_collectives(c, NULL));
        TRY(body_split(c, NULL));
        TRY(body_stats(c, NULL));
        if (c->rank == 0) puts("ok");
        return SP_OK;
    }
    if (strcmp(mode, "hash") == 0) {
        uint64_t h = 0;
        TRY(body_hash(c, &h));
        if (c->rank == 0) printf("%016llx\n", (unsigned long long)h);
        return SP_OK;
    }
    if (strcmp(mode, "abort") == 0) {
        for (int i = 0; c->rank != 1 || i < 3; i++) TRY(comm_all_reduce(c, a, b, 100, DT_F32, COMM_SUM));
        FAIL("disk 7 is full");
    }
    if (strcmp(mode, "kill") == 0) {
        for (int i = 0; c->rank != 1 || i < 3; i++) TRY(comm_all_to_all(c, a, b, 16));
        kill(getpid(), SIGKILL);
    }
    if (strcmp(mode, "mismatch") == 0) {
        TRY(comm_barrier(c));
        return c->rank == 1 ? comm_all_gather(c, a, b, 8) : comm_all_to_all(c, a, b, 8);
    }
    if (strcmp(mode, "truncate") == 0) {
        comm *other; /* the failure ends the job, not just the communicator that met it */
        TRY(comm_split(c, 0, c->rank, &other));
        sp_status ok = comm_broadcast(other, a, c->rank == 0 ? 100 : 10, 0);
        if (ok != SP_OK && (comm_barrier(c) != SP_FAIL || !strstr(err_text(), "after an earlier failure: ")))
            FAIL("the job goes on after an MPI error");
        return comm_barrier(c);
    }
    FAIL("no mode '%s'", mode);
}

static sp_status loop_hash(comm *c, void *unused) {
    (void)unused;
    return run(c, "hash");
}

int main(int argc, char **argv) {
    alarm(60); /* a hang is a failure, whoever launched us */
    comm *c;
    if (argc == 3 && strcmp(argv[1], "hash") == 0) {
        sp_status ok = comm_loop_run(atoi(argv[2]), loop_hash, NULL);
        if (ok != SP_OK) log_line("%s", err_text());
        return ok;
    }
    if (argc != 2 || !comm_mpi_launched()) {
        fprintf(stderr, "usage: scripts/mpirun -n P %s MODE | %s hash P\n", argv[0], argv[0]);
        return 2;
    }
    if (comm_mpi_init(&c) != SP_OK) {
        log_line("%s", err_text());
        return 1;
    }
    if (run(c, argv[1]) != SP_OK) {
        /* A mismatch is known to all: each says so, then the job ends. */
        if (strcmp(argv[1], "mismatch") == 0) {
            log_line("rank %d heard: %s", comm_rank(c), err_text());
            sleep(1);
        }
        comm_abort(c, err_text());
    }
    comm_mpi_finalize(c);
    return 0;
}
