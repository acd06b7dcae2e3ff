/* loop.h - the training loop of one rank. */
#ifndef AUTOSP_TRAIN_LOOP_H
#define AUTOSP_TRAIN_LOOP_H

#include "train/compile.h"
#include "train/metrics.h"
#include "train/schedule.h"

/* Everything is read-only and shared by the ranks of a process. */
typedef struct train_job {
    const train_model *model;
    const train_compiled *compiled;
    int threads;
    const train_data *data, *eval; /* eval NULL: none */
    int64_t accum, eval_every;     /* eval_every 0: after the last step only */
    train_schedule schedule;       /* with the number of steps */
    train_adamw adamw;
    ckpt_place place;       /* place.out NULL: no checkpoints */
    ckpt_run run;           /* what a checkpoint notes; its step is filled in */
    int64_t save_every;     /* 0: after the last step only */
    const char *resume;     /* checkpoint folder to start from, NULL: none */
    int64_t first;          /* steps done before */
    const char *grads;      /* file for the first step's gradients, NULL: none */
    train_metrics *metrics; /* rank 0's, NULL: none */
    const char *profile;    /* file for a trace of the last step, NULL: none */
    bool measure;           /* measure the peak each step */
    const char *plan_text;  /* for checkpoints */
} train_job;

/* Trains steps first+1 .. schedule.steps on one rank; arg is a const train_job. For train_world_run. Collective. A loss
 * that is not finite ends it before it can touch the weights. SIGTERM, when train_stop_on_sigterm was called, ends it
 * after the running step, with a checkpoint. */
sp_status train_rank(comm *c, void *arg) SP_NODISCARD;

/* From now on SIGTERM is a request to stop after the running step. Once a process. */
void train_stop_on_sigterm(void);

#endif
