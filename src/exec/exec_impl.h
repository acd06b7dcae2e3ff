/* exec_impl.h - what the files of src/exec share. */
#ifndef AUTOSP_EXEC_IMPL_H
#define AUTOSP_EXEC_IMPL_H

#include "exec/exec.h"

/* Bytes of gradients reduced by one message: bounds the communicator's staging. */
#define REDUCE_CHUNK ((int64_t)32 << 20)

typedef struct call {
    dev_call c;
    dev_fn *run; /* NULL: a loop, which has a body instead */
    struct call *body;
    int nbody;
    int64_t tiles;
    char **start; /* by operand, then result: its data in tile 0, and the bytes further on for each tile */
    int64_t *step;
    double started, seconds; /* of its last run (in a body: of all tiles), when profiling */
} call;

struct exec {
    const plan *p;
    exec_options o;
    arena *a;
    gen_kernel **kernels; /* of the plan, each once */
    gen_fn **code;        /* of each; NULL: interpreted */
    int nkernels;
    gen_fn *adamw;     /* the optimizer's step; NULL: the device's */
    char *base, *host; /* the arena; the arena of host copies, NULL: none */
    int64_t bytes, host_bytes;
    char *map; /* the arena's mapping, which begins before it and ends behind it */
    int64_t mapped;
    bool profile;
    bool fresh; /* no microbatch has run since exec_zero_grads */
    call *calls[PROG_COUNT_OF];
};

comm *exec_comm(exec *e);

/* pages.c: maps e->base for the plan's arena, zeroed. */
sp_status exec_map_arena(exec *e) SP_NODISCARD;
void exec_unmap_arena(exec *e);
/* host.c: maps e->host for the plan's host copies, if it has any. */
sp_status exec_map_host(exec *e) SP_NODISCARD;

#endif
