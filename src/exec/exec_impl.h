/* exec_impl.h - what the files of src/exec share. */
#ifndef AUTOSP_EXEC_IMPL_H
#define AUTOSP_EXEC_IMPL_H

#include "exec/exec.h"

/* Bytes of gradients reduced by one message: bounds the communicator's staging. */
#define REDUCE_CHUNK ((int64_t)32 << 20)

typedef struct call {
    dev_call c;
    dev_fn *run;
    double started, seconds; /* of its last run, when profiling */
} call;

struct exec {
    const plan *p;
    exec_options o;
    arena *a;
    char *base;
    int64_t bytes;
    bool profile;
    call *calls[PROG_COUNT_OF];
};

comm *exec_comm(exec *e);

#endif
