/* body.h - the tests of the collectives that run on any communicator: as threads in tests/unit/comm.c, as processes
 * in tests/comm/mpi.c. A failing check is SP_FAIL with the reason, never an assertion: ranks are threads. */
#ifndef AUTOSP_TEST_COMM_BODY_H
#define AUTOSP_TEST_COMM_BODY_H

#include "comm/comm.h"

/* Every collective, type and operation against brute force, in place and not, sizes from 0 to about a MiB a rank. */
sp_status body_collectives(comm *c, void *unused);
/* Groups by color and key, groups of groups, collectives on several at once. */
sp_status body_split(comm *c, void *unused);
/* The counters of a known sequence of calls. */
sp_status body_stats(comm *c, void *unused);
/* *hash of the bits of all_reduce (sum) results of random f32 and bf16, from a handful to some 100,000 elements; checks
 * that it is the same on all ranks. */
sp_status body_hash(comm *c, void *hash);

#endif
