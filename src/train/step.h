/* step.h - what one step computes from its microbatches, on one rank: one loss over one count, whole gradients.
 * The training loop (loop.c) and the public API (api/api.c) stand on it.
 */
#ifndef AUTOSP_TRAIN_STEP_H
#define AUTOSP_TRAIN_STEP_H

#include "exec/exec.h"
#include "train/schedule.h"

/* Where microbatches come from: sets number `micro` (from 0) as the exec's inputs. It may be asked for the same one
 * twice, and must give the same on every rank. */
typedef struct step_source {
    sp_status (*set)(void *ctx, exec *e, int64_t micro);
    void *ctx;
    int64_t n; /* microbatches, >= 1 */
} step_source;

/* Forward and backward of all microbatches. The label count of the whole step comes first, so that each microbatch's
 * gradients are scaled by the one count that the step's mean is over. *loss: the mean; *count: the labels; gradients
 * are whole on every rank. `step` counts from 0 and keys dropout with `seed`. Allocates nothing. SP_FAIL when no label
 * is valid. Collective. */
sp_status step_gradients(exec *e, const step_source *from, int64_t seed, int64_t step, double *loss,
                         double *count) SP_NODISCARD;

/* The mean loss by the plan's forward-only program, dropout off; gradients are undefined afterwards. SP_FAIL when no
 * label is valid. Collective. */
sp_status step_eval(exec *e, const step_source *from, double *loss) SP_NODISCARD;

/* AdamW with the gradients that stand, clipped by `norm` (exec_grad_norm's). */
void step_update(exec *e, const train_adamw *how, double lr, double norm, int64_t step);

#endif
