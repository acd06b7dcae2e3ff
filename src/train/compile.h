/* compile.h - a model and what the user asked for become a plan: passes, planner, device's workspaces. */
#ifndef AUTOSP_TRAIN_COMPILE_H
#define AUTOSP_TRAIN_COMPILE_H

#include "exec/exec.h"
#include "pass/pass.h"
#include "train/data.h"
#include "train/model.h"

typedef struct train_setup {
    int64_t seq, batch; /* 0: as the model was exported */
    int64_t accum;      /* microbatches of each step, where known: plan_options; 0: any number */
    int ranks;          /* of the sequence axis */
    dtype compute;
    const char *device; /* "cpu", "ref" */
    int threads;        /* of one rank's kernels */
    const char *exchange, *save_policy, *tile_policy;
    const char *fuse_policy; /* "auto" (cpu, where there is a C compiler), "on", "off"; NULL: off */
    bool run;                /* the plan will be run: its kernels are compiled too */
    comm *agree;             /* processes that compile the same at the same time and must make one plan; NULL: alone */
    int64_t mask_bytes, tile_bytes, tile_rows; /* pass_options */
    const char *break_rule;                    /* tests only: an op whose layout rule is wrong on purpose; NULL */
    const char *machine;                       /* what operators cost: a description (cost/cost.h); NULL: "cpu" */
    int64_t memory;                            /* bytes a rank; 0: no budget */
    int64_t host_memory;                       /* bytes a rank for values moved to the host; 0: none */
    const char *host_dir;                      /* where their file goes; NULL: TMPDIR */
    bool optimizer;                            /* the plan holds AdamW's moments */
    exec_pages pages;                          /* exec_options */
} train_setup;

typedef struct train_compiled {
    arena *a; /* of the plan and its graphs */
    const device *dev;
    pass_options options; /* with the sizes that were used */
    cost_machine machine;
    cost_step cost;   /* of one microbatch on that machine */
    save_report save; /* what is kept and what is computed again */
    plan *plan;
    const char *host_dir; /* exec_options */
    exec_pages pages;
} train_compiled;

/* Fills in what the export fixed and checks the rest against it; the passes' options. */
sp_status train_options(const train_model *m, const train_setup *s, pass_options *out) SP_NODISCARD;

/* Are instructions fused? Depends on the policy, the device and whether there is a C compiler. */
bool train_fuses(const train_setup *s);

/* Compiles; the model stays as it is and may be compiled again. SP_FAIL when the plan needs more than s->memory, with
 * what it needs, the buffers alive at its peak, and the longest sequence that would fit. Free with train_compiled_free.
 * Collective over s->agree when s->run: kernels are generated when all of its ranks can compile them. */
sp_status train_compile(const train_model *m, const train_setup *s, train_compiled *out) SP_NODISCARD;
void train_compiled_free(train_compiled *c);

/* The longest sequence whose plan fits s->memory (s->seq is not read): doubled until it does not, then bisected to half
 * a percent. SP_FAIL when none does, with why the shortest does not. */
sp_status train_longest(const train_model *m, const train_setup *s, int64_t *best) SP_NODISCARD;

/* Makes the exec of one rank and loads the model's weights into it. Collective. */
sp_status train_load(const train_model *m, const train_compiled *p, comm *c, int threads, exec **out) SP_NODISCARD;

/* One microbatch as the plan wants it: sets the inputs that it has. Absent arrays (NULL) leave inputs as they are. */
sp_status train_set_batch(exec *e, const train_batch *b) SP_NODISCARD;

#endif
