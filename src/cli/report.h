/* report.h - `autosp plan --report`: one self-contained HTML page about a plan. */
#ifndef AUTOSP_CLI_REPORT_H
#define AUTOSP_CLI_REPORT_H

#include "pass/save.h"
#include "plan/plan.h"

/* A kind of collective in a step: calls of all microbatches, bytes that a rank sends, seconds on the machine. */
typedef struct report_comm {
    const char *name;
    int64_t forward, backward, bytes;
    double seconds;
} report_comm;

/* What the page shows beside the plan; zeros and NULLs are left out. */
typedef struct report_facts {
    const char *model;
    int ranks;
    int64_t accum, budget, max_seq; /* bytes; tokens */
    int64_t comm_bytes;             /* sent by a rank in a step: the sum of `comm` */
    const report_comm *comm;
    int ncomm;
    const char *machine; /* the estimate's; NULL: no estimate */
    double step_seconds, again_seconds, comm_seconds;
    const save_report *save;
} report_facts;

/* Writes the page to PATH: the table of parts, memory over the instructions of a step coloured by part, where every
 * buffer lies, the choices by layer, peak against time with the chosen point, and the communication. It needs no
 * network and no script, and is well-formed XML. */
sp_status report_write(const char *path, const plan *p, const report_facts *f) SP_NODISCARD;

#endif
