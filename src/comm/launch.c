/* launch.c - was this process started by an MPI launcher, and what to say when built without MPI. */
#include "comm/comm.h"

#include <stdlib.h>

bool comm_mpi_launched(void) {
    /* Open MPI's mpirun; PMIx launchers (srun --mpi=pmix, prterun); MPICH's Hydra and srun --mpi=pmi2. */
    static const char *const rank[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof rank / sizeof *rank; i++)
        if (getenv(rank[i])) return true;
    /* srun sets both; a batch script, which is no rank, has the second only. */
    return getenv("SLURM_STEP_ID") && getenv("SLURM_PROCID");
}

#ifndef AUTOSP_HAVE_MPI
sp_status comm_mpi_init(comm **world) {
    *world = NULL;
    FAIL("this autosp was built without MPI and cannot run under mpirun; use --ranks P, or install Open MPI or MPICH "
         "and "
         "configure again");
}

void comm_mpi_finalize(comm *world) { ASSERT(!world); }
#endif
