/* world.c - see world.h. */
#include "train/world.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

/* Ranks of this machine, as the launchers tell their processes; 1 when none does. */
static int local_ranks(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = getenv(names[i]);
        long n = text ? strtol(text, NULL, 10) : 0; /* Slurm's goes on after the number: 4(x2) */
        if (n > 0 && n < 4096) return (int)n;
    }
    return 1;
}

/* Cores for one rank. A launcher that binds has already shared them out: what is left to this process is its share. */
static int core_share(int ranks, bool processes) {
    cpu_set_t set;
    int mine = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    bool bound = mine < (int)sysconf(_SC_NPROCESSORS_ONLN);
    int sharers = processes ? (bound ? 1 : local_ranks()) : ranks;
    return mine > sharers ? mine / sharers : 1;
}

sp_status train_world_open(int64_t ranks, int64_t threads, train_world *w) {
    *w = (train_world){.size = ranks ? (int)ranks : 1};
    if (comm_mpi_launched()) {
        TRY(comm_mpi_init(&w->mpi));
        w->size = comm_size(w->mpi);
        w->rank = comm_rank(w->mpi);
        CHECK(!ranks || ranks == w->size, "mpirun started %d ranks, but %lld are asked for; leave --ranks out", w->size,
              (long long)ranks);
    }
    CHECK(w->mpi || w->size <= COMM_LOOP_MAX, "%d ranks as threads are too many; at most %d, more with mpirun", w->size,
          COMM_LOOP_MAX);
    w->threads = threads ? (int)threads : core_share(w->size, w->mpi != NULL);
    return SP_OK;
}

sp_status train_world_run(const train_world *w, sp_status (*body)(comm *c, void *arg), void *arg) {
    if (w->mpi) return body(w->mpi, arg);
    if (w->size > 1) return comm_loop_run(w->size, body, arg);
    comm *self = comm_self();
    sp_status s = body(self, arg);
    comm_free(self);
    return s;
}

sp_status train_world_close(train_world *w, sp_status status) {
    if (!w->mpi) return status;
    if (status != SP_OK) {
        if (w->rank != 0) usleep(300000); /* what fails on all ranks is told by rank 0 alone */
        comm_abort(w->mpi, err_text());
        return status;
    }
    comm_mpi_finalize(w->mpi);
    w->mpi = NULL;
    return SP_OK;
}
