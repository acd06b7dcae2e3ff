/* checkpoint.h - training state on disk: OUT/checkpoint-STEP, whole or not there.
 *
 *     OUT/checkpoint-20/
 *         model.safetensors         the weights, names and element types as they were loaded; with config.json
 *         config.json, ...          and the tokenizer's files beside it, transformers.from_pretrained opens the folder
 *         autosp/state.safetensors  master.NAME, exp_avg.NAME, exp_avg_sq.NAME: whole tensors in the master type
 *         autosp/state.json         the step and what the data order depends on; written last
 *         autosp/plan.txt           the plan that trained it, for reading
 *
 * Everything is written into OUT/checkpoint-20.tmp, synced, and renamed: a folder under the final name is complete,
 * whatever happened. Tensors are in global layout under their parameters' names, so any mesh can load them. The
 * caller's tensors are reached through callbacks, one whole tensor at a time: nothing here knows how ranks hold them.
 */
#ifndef AUTOSP_TRAIN_CHECKPOINT_H
#define AUTOSP_TRAIN_CHECKPOINT_H

#include "comm/comm.h"

typedef enum ckpt_kind { CKPT_MASTER, CKPT_EXP_AVG, CKPT_EXP_AVG_SQ } ckpt_kind;

typedef struct ckpt_tensor {
    const char *name;   /* of the parameter in the exported model; unique */
    const char *stored; /* its name in model.safetensors; unique */
    dtype stored_type;  /* a floating type */
    int ndim;
    const int64_t *size;
    bool frozen; /* no optimizer state: it is in model.safetensors only */
} ckpt_tensor;

/* The tensors of a training and how to reach them. A tied parameter is one tensor. */
typedef struct ckpt_state {
    int n;
    const ckpt_tensor *tensors;
    dtype master; /* of what get gives and put takes: DT_F32, or DT_F64 */
    /* Gives one whole tensor (row-major, type `master`) in dst on rank 0; dst is NULL on the other ranks, which only
     * take part. Called on every rank in the same order; a frozen tensor is asked for its CKPT_MASTER only. */
    sp_status (*get)(void *ctx, int tensor, ckpt_kind kind, void *dst);
    /* Takes one whole tensor, on every rank. Never called for a frozen tensor. */
    sp_status (*put)(void *ctx, int tensor, ckpt_kind kind, const void *src);
    void *ctx;
} ckpt_state;

/* What a resumed run must know, and what its data order depends on. */
typedef struct ckpt_run {
    int64_t step; /* steps done */
    int64_t seq, batch, accum, seed;
    bool shuffle;
} ckpt_run;

/* A small file to put beside model.safetensors, from the archive's extra/. */
typedef struct ckpt_file {
    const char *name;
    const void *data;
    int64_t bytes;
} ckpt_file;

typedef struct ckpt_place {
    const char *out;       /* OUT */
    int64_t keep;          /* newest checkpoints to keep; 0: all */
    const char *copy_from; /* the --weights folder, or a file in it; NULL */
    int nfiles;            /* used where copy_from lacks the file */
    const ckpt_file *files;
} ckpt_place;

/* Makes OUT, removes what a killed run left half-written, and tries to write. Without `resume` it refuses a folder
 * that already holds checkpoints: nothing is ever overwritten by mistake. Rank 0 only. */
sp_status ckpt_prepare(const ckpt_place *p, bool resume) SP_NODISCARD;

/* Writes OUT/checkpoint-STEP and removes the oldest ones past `keep`. Collective: all ranks call it, rank 0 writes;
 * on failure every rank fails, no half-written folder stays, and earlier checkpoints are as they were. `plan` may be
 * NULL. Memory: one whole tensor twice, on rank 0, for the time of the call. */
sp_status ckpt_save(const ckpt_place *p, const ckpt_state *s, const ckpt_run *run, const char *plan,
                    comm *c) SP_NODISCARD;

/* The newest complete checkpoint of OUT; an incomplete one is skipped with a warning. *path is on the heap (free), or
 * NULL when there is none. */
sp_status ckpt_newest(const char *out, char **path, ckpt_run *run) SP_NODISCARD;

/* Loads a checkpoint's tensors through put. Each rank reads the file itself. SP_FAIL names a tensor that is missing, of
 * another shape, or not of this model. */
sp_status ckpt_load(const char *path, const ckpt_state *s) SP_NODISCARD;

/* Is NAME one of the files (configuration, tokenizer) that belong beside the weights? */
bool ckpt_is_companion(const char *name);

#endif
