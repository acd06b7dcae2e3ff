/* exec.h - runs a plan on one rank: maps the arena, prepares the kernels once, then only runs lists of calls.
 *
 * An exec belongs to one rank and one thread. Calls marked collective must be made by all ranks of the communicator in
 * the same order. After exec_new a step allocates nothing.
 */
#ifndef AUTOSP_EXEC_H
#define AUTOSP_EXEC_H

#include "device/device.h"
#include "plan/plan.h"

typedef struct exec exec;

/* When and how parameters, gradients and moments get their memory; activations get theirs when they are touched. */
typedef enum exec_pages {
    EXEC_PAGES_LATE,  /* when they are touched */
    EXEC_PAGES_SMALL, /* at once: for runs that touch all of it */
    EXEC_PAGES_HUGE   /* at once, in huge pages where the kernel has them */
} exec_pages;

typedef struct exec_options {
    const device *dev;
    comm *comm;  /* the mesh's one axis; its size is the plan's; borrowed */
    int threads; /* of this rank's kernels; >= 1 */
    /* Folder of the file behind the host arena (removed from the folder at once); NULL: TMPDIR, else /tmp. */
    const char *host_dir;
    exec_pages pages;
} exec_options;

/* For plan_options: what the device's kernels need as workspace. ctx: an exec_options (dev and threads are read). */
int64_t exec_workspace(void *ctx, const plan_instr *i);

/* Maps the arena (zeroed), writes literals, prepares kernels. A plan with host copies gets a file for them, of which
 * all blocks are taken here: a folder without room for them fails now, not in a later step. Collective: compares the
 * plan's hash on all ranks. The plan is borrowed and must outlive the exec. Free with exec_free. */
sp_status exec_new(const plan *p, const exec_options *o, exec **out) SP_NODISCARD;
void exec_free(exec *e); /* NULL allowed */

/* Windows into the arena: parameter i's master values, gradient and moments; NULL when it has none. Contiguous,
 * row-major, of the plan's type (parameters of other types: plan_param.type). Owned by the exec. */
void *exec_param(exec *e, int i);
void *exec_grad(exec *e, int i);
void *exec_moment(exec *e, int i, int which); /* 0: m, 1: v */

/* Copies one microbatch of an integer input: data is (B, S) of the user's S; rows are padded to the plan's S with
 * `pad`. Fails when the plan has no such input. */
sp_status exec_set_input(exec *e, const char *name, const int64_t *data, int64_t pad) SP_NODISCARD;

/* The state of dropout's generator for the next programs: masks depend on seed and draw (one number per microbatch of
 * the run). `off` switches dropout off (evaluation). Nothing to do in plans without dropout. */
void exec_set_rng(exec *e, int64_t seed, int64_t draw, bool off);

/* The label count of the microbatch that is set. Not collective: labels are whole on every rank. */
sp_status exec_count(exec *e, double *count) SP_NODISCARD;
/* Forward, backward and accumulation of the microbatch that is set; *loss_sum is this rank's part of the sum of losses
 * (exec_reduce_sum adds them). Collective. */
sp_status exec_step(exec *e, double inv_count, double *loss_sum) SP_NODISCARD;
/* The sum of losses alone: what the loss needs and nothing else (a tiled loss head brings its backward along; gradients
 * may change). *loss_sum as exec_step's. Collective. */
sp_status exec_eval(exec *e, double *loss_sum) SP_NODISCARD;
/* Starts a step: the next exec_step begins the gradients anew. Until then they are not defined. */
void exec_zero_grads(exec *e);
/* Adds the ranks' partial gradients up; after it every rank holds the whole gradient. Collective. */
sp_status exec_reduce_grads(exec *e) SP_NODISCARD;
/* Adds the ranks' parts of loss_sum (when the plan says that they are parts). Collective. */
sp_status exec_reduce_sum(exec *e, double *loss_sum) SP_NODISCARD;
/* Euclidean norm of all gradients together (after exec_reduce_grads; the same on all ranks). */
double exec_grad_norm(const exec *e);

/* AdamW, decoupled weight decay, moments in the plan's type; formulas as torch.optim.AdamW. step counts from 1. */
typedef struct exec_adamw_options {
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    bool decay_all; /* else only parameters of rank >= 2 decay */
    int64_t step;
} exec_adamw_options;
void exec_adamw(exec *e, const exec_adamw_options *o);

/* Profiling: while on, every instruction of a program is timed. The table sums the last step by kernel (milliseconds,
 * share, GFLOP/s, GB/s); the file is a trace for Chrome or Perfetto. */
void exec_set_profile(exec *e, bool on);
void exec_profile_table(const exec *e, buf *out);
sp_status exec_profile_write(const exec *e, const char *path) SP_NODISCARD;
double exec_call_flops(const dev_call *c);
double exec_call_bytes(const dev_call *c);

/* Pages of the arena that were ever touched, in bytes, asked of the kernel (mincore). */
int64_t exec_touched_bytes(const exec *e);
/* The address range of the arena. */
void *exec_arena(const exec *e, int64_t *bytes);
/* The address range of the host arena (file-backed, zeroed); NULL and 0 when the plan has no host copies. */
void *exec_host(const exec *e, int64_t *bytes);
const plan *exec_plan(const exec *e);

#endif
