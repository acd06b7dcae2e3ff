/* autosp.h - the public C API of autosp: open an exported model, compile its training step for P ranks and a byte
 * budget, know the peak, and run steps on tokens of your own.
 *
 * Every function that can fail returns 0 on success; otherwise nothing was changed but what is said, and autosp_error()
 * holds one line for the calling thread: what, where, what to do. Sizes are elements unless a name says bytes; arrays
 * are row-major. Handles are opaque. A model and a plan are read-only once made and may be shared by threads; a rank
 * belongs to the thread that its body runs on. "Collective" means: every rank calls it, in the same order, with the
 * same arguments. Link with `pkg-config --libs --static autosp`.
 *
 * The whole life of a program, without the checks:
 *
 *     autosp_world *world;   autosp_world_open(4, 0, &world);           4 ranks in this process, or mpirun's
 *     autosp_model *model;   autosp_model_open("model.pt2", NULL, &model);
 *     autosp_options o = {.seq = 32768, .memory = 8LL << 30};
 *     autosp_plan *plan;     autosp_compile(model, world, &o, &plan);   fails when no plan fits
 *     status =               autosp_run(world, model, plan, body, arg); body(rank, arg) on every rank
 *     autosp_plan_free(plan); autosp_model_close(model); return autosp_world_close(world, status);
 *
 * and in the body, per step:
 *
 *     autosp_batch b = {.input_ids = ids, .labels = labels};            whole (B, S) arrays, the same on every rank
 *     autosp_step(rank, step, &b, 1, &adamw, &result);
 */
#ifndef AUTOSP_H
#define AUTOSP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define AUTOSP_API __attribute__((visibility("default")))

typedef struct autosp_world autosp_world; /* the ranks: threads of this process, or mpirun's processes */
typedef struct autosp_model autosp_model; /* a model's graph and weights */
typedef struct autosp_plan autosp_plan;   /* a compiled step */
typedef struct autosp_rank autosp_rank;   /* one rank's memory, while autosp_run lasts */

/* The version, "0.1.0". */
AUTOSP_API const char *autosp_version(void);
/* The calling thread's last error; never NULL; valid until its next call. */
AUTOSP_API const char *autosp_error(void);

/* Under mpirun the world size is the number of processes, and `ranks` must be 0 or that; else `ranks` threads (0: one).
 * `threads`: of a rank's kernels; 0: the cores, shared out evenly. Collective under mpirun; once a process at a time.
 */
AUTOSP_API int autosp_world_open(int ranks, int threads, autosp_world **out);
AUTOSP_API int autosp_world_size(const autosp_world *w);
/* The first rank of this process: 0 where ranks are threads. Who prints asks for 0. */
AUTOSP_API int autosp_world_rank(const autosp_world *w);
/* Ends the world and returns `status`. Under mpirun a status other than 0 takes all processes down with the error's
 * text, so that none waits for one that gave up; then it does not return. NULL is allowed. */
AUTOSP_API int autosp_world_close(autosp_world *w, int status);

/* Opens a .pt2 (or .ir). `weights`: a folder or .safetensors when the archive holds none; NULL otherwise. Not
 * collective. */
AUTOSP_API int autosp_model_open(const char *path, const char *weights, autosp_model **out);
AUTOSP_API void autosp_model_close(autosp_model *m); /* NULL is allowed */

/* What to compile for; zero means the default. */
typedef struct autosp_options {
    int64_t seq, batch; /* tokens a sequence, sequences a microbatch; 0: as exported (batch: else 1) */
    int64_t memory,
        host_memory;     /* bytes a rank, all included; bytes for values moved to the host; 0: no budget; none */
    const char *dtype;   /* "f32" (default), "bf16", "f64" */
    const char *device;  /* "cpu" (default), "ref" */
    const char *machine; /* what operators cost: as `autosp plan --machine`; NULL: this kind of machine */
    int inference;       /* not 0: no optimizer state; autosp_step then takes no autosp_adamw */
} autosp_options;

/* Compiles for the world's ranks. The plan borrows the model. Not collective, but all ranks of a world must
 * compile the same; autosp_run compares. Fails, naming the least feasible budget, when nothing fits options->memory. */
AUTOSP_API int autosp_compile(const autosp_model *m, const autosp_world *w, const autosp_options *options,
                              autosp_plan **out);
AUTOSP_API void autosp_plan_free(autosp_plan *p); /* NULL is allowed */

/* What is known before the first step; bytes are of one rank. */
typedef struct autosp_info {
    int ranks;
    int64_t seq, batch;
    int64_t peak_bytes; /* everything, exactly */
    int64_t parameter_bytes, gradient_bytes, optimizer_bytes, activation_bytes, host_bytes;
    int64_t live_lower_bound_bytes; /* of the activations: no placement takes less */
    double step_seconds;            /* estimated on the machine, one microbatch */
    double recompute_fraction;      /* of step_seconds */
} autosp_info;
AUTOSP_API autosp_info autosp_plan_info(const autosp_plan *p);

/* Maps each rank's memory, loads the weights and runs `body` once on every rank, on threads of its own where ranks are
 * threads. Not 0 when a rank failed or a body returned other than 0; a body's failure ends the others' next collective
 * call with an error. Collective under mpirun. */
AUTOSP_API int autosp_run(autosp_world *w, const autosp_model *m, const autosp_plan *p,
                          int (*body)(autosp_rank *r, void *arg), void *arg);
AUTOSP_API int autosp_rank_index(const autosp_rank *r);

/* One microbatch: whole (batch, seq) arrays, the same on every rank; NULL where the model has no such input. A label
 * equal to the model's ignore_index (-100) counts for nothing. position_ids NULL: 0..seq-1; document_ids NULL: zeros.
 */
typedef struct autosp_batch {
    const int64_t *input_ids, *labels, *position_ids, *document_ids;
    const int64_t *prefix_lengths; /* (batch); NULL: zeros */
} autosp_batch;

/* AdamW as torch.optim.AdamW; decay applies to tensors of rank >= 2. clip: largest global gradient norm, 0: none. */
typedef struct autosp_adamw {
    double lr, beta1, beta2, eps, weight_decay, clip;
} autosp_adamw;

typedef struct autosp_result {
    double loss;           /* mean over the valid labels of all microbatches */
    double labels;         /* how many those are */
    double grad_norm;      /* before clipping */
    int64_t touched_bytes; /* of this rank's arena, as the operating system counts its pages */
} autosp_result;

/* One training step, number `step` from 0 (it keys dropout and Adam's bias correction), over n microbatches: one loss
 * over one count. adamw NULL: the gradients are computed and left for autosp_tensor. result NULL is allowed.
 * Collective. Fails, before the weights change, when no label is valid or the loss is not finite. */
AUTOSP_API int autosp_step(autosp_rank *r, int64_t step, const autosp_batch *microbatches, int n,
                           const autosp_adamw *adamw, autosp_result *result);
/* The mean loss over n microbatches, dropout off; weights stay, gradients are undefined afterwards. Collective. */
AUTOSP_API int autosp_eval(autosp_rank *r, const autosp_batch *microbatches, int n, double *loss);

typedef enum autosp_part { AUTOSP_VALUE, AUTOSP_GRADIENT, AUTOSP_MOMENT1, AUTOSP_MOMENT2 } autosp_part;
/* A window into the rank's memory: the whole tensor of the parameter that the exported model calls `name`; *count
 * elements of the plan's master type (f32; f64 with dtype "f64"; a frozen parameter: the type computed in). Valid while
 * the body runs; written values count from the next step, and must be the same on every rank. Fails for an unknown name
 * or a part that a frozen parameter does not have. */
AUTOSP_API int autosp_tensor(autosp_rank *r, const char *name, autosp_part part, void **data, int64_t *count);

#ifdef __cplusplus
}
#endif
#endif
