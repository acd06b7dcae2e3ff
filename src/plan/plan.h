/* plan.h - the plan: a linear program over fixed offsets in one arena. The one handover from compiler to runtime.
 *
 * A plan holds three programs over the same inputs: `count` (how many labels a microbatch has), `step` (forward,
 * backward, accumulation into the gradient section) and `eval` (the loss alone). Every instruction names its operands
 * as strided windows into buffers; every buffer has its offset. Nothing is decided after this: a device looks up a
 * kernel per instruction and runs the list. The plan is the same on all ranks; what differs by rank are two numbers per
 * operand, both multiples of the rank's coordinate on the mesh axis (`rank_step`, `rank_offset`).
 */
#ifndef AUTOSP_PLAN_PLAN_H
#define AUTOSP_PLAN_PLAN_H

#include "device/tensor.h"
#include "gen/kernel.h"
#include "ir/ir.h"

typedef enum plan_section {
    SEC_PARAM,  /* parameters and large buffers: master weights, f32 (f64 in an f64 plan) */
    SEC_GRAD,   /* accumulated gradients of trained parameters */
    SEC_MOMENT, /* AdamW's two moments: m of all parameters, then v of all */
    SEC_CONST,  /* literals and scalars */
    SEC_INPUT,  /* one microbatch of integers, and the 1/count scalar */
    SEC_WORK,   /* activations, cotangents, workspaces: placed by lifetime */
    SEC_HOST,   /* host copies of values that wait for the backward: an arena of their own, placed by lifetime too */
    SEC_COUNT
} plan_section;

typedef struct plan_buf {
    plan_section section;
    int64_t bytes;
    int64_t offset;  /* from its arena's start; after placement */
    int first, last; /* SEC_WORK, SEC_HOST: instructions of its program, inclusive */
    int program;     /* SEC_WORK, SEC_HOST: which program */
    int loop;        /* the workspace of the loop in whose body it lives (first, last: of the body); -1 none */
    bool comm;       /* staging of a collective */
} plan_buf;

typedef struct plan_tensor {
    int buf;
    tensor t;          /* type, local dimensions and strides; data is NULL in a plan */
    int64_t offset;    /* elements from the buffer's start */
    int64_t rank_step; /* elements more for each coordinate on the mesh axis */
    int64_t tile_step; /* elements more for each tile; in the body of a loop */
} plan_tensor;

typedef struct plan_instr plan_instr;

typedef struct plan_list { /* in order of execution; a VEC */
    plan_instr *data;
    int n, cap;
} plan_list;

/* Run `tiles` times, first tile first. The instruction's `in` and `out` are what the body reads and writes outside; its
 * workspace is the arena of the body's own buffers. */
typedef struct plan_loop {
    int64_t tiles;
    plan_list body;
} plan_loop;

struct plan_instr {
    ir_op op;
    const ir_node *node; /* attributes and source; shapes in it are global */
    int nin, nout;
    plan_tensor *in, *out;
    bool accumulate;      /* the result is added to what `out` holds (gradient buffers) */
    bool first;           /* with accumulate: in the first microbatch of a step it is stored instead (first.c) */
    int work;             /* workspace buffer, -1 none */
    int axis;             /* mesh axis of a collective, -1 none */
    axis_layout from, to; /* of a collective: its operand's and its result's layout on the axis */
    int64_t rank_offset;  /* iota: first index; attention: position of query row 0 - per coordinate */
    int64_t head_offset;  /* attention: number of query head 0 - per coordinate */
    bool backward;
    axis_layout tile; /* dropout in a body: how the tiles cut its result; how many there are */
    int64_t tiles;
    plan_loop *loop;          /* OP_loop */
    const gen_kernel *kernel; /* OP_fused: what it computes; operands and results all have its space's dimensions */
};

typedef struct plan_param {
    const char *name;
    int buf, grad, m, v; /* buffers; grad, m, v are -1 when it is not trained */
    ir_type type;
    bool trained;
    bool stored;     /* the first microbatch stores its gradient whole: no zeros are needed before */
    bool partial;    /* ranks hold partial sums of its gradient: reduce over the mesh at the end of a step */
    bool decay_rank; /* rank >= 2: weight decay applies by default */
} plan_param;

typedef struct plan_input {
    const char *name;
    int buf;
    ir_type type; /* global, padded; inputs are whole on every rank */
    int seq_dim;  /* dimension that holds the sequence, -1 none */
} plan_input;

enum { PROG_COUNT, PROG_STEP, PROG_EVAL, PROG_COUNT_OF };

typedef struct plan_program {
    plan_list instrs;
    plan_tensor result; /* f32 or f64 scalar: `count` or `loss_sum` */
    bool has_result;
    bool partial; /* the result is a partial sum over the mesh */
} plan_program;

/* Bytes of one rank by part, and where the peak is. */
typedef struct plan_memory {
    int64_t section[SEC_COUNT];                  /* SEC_WORK, SEC_HOST: the placed arenas */
    int64_t arena;                               /* everything but SEC_HOST: what exec maps on the device */
    int64_t live_bound;                          /* SEC_WORK's live-size lower bound: no placement is smaller */
    int64_t peak_saved, peak_working, peak_comm; /* of what is alive at the peak */
    int peak_instr;
    int64_t saved; /* made by the forward, read by the backward */
} plan_memory;

typedef struct plan {
    arena *a;
    const ir_graph *graph; /* the joint graph it was made from */
    ir_mesh mesh;
    int64_t seq, seq_valid, batch, ignore;
    dtype type; /* of master weights, gradients and moments */
    VEC(plan_buf) bufs;
    VEC(plan_param) params;
    VEC(plan_input) inputs;
    VEC(plan_tensor) const_at; /* where const and fill data go, beside const_node */
    VEC(const ir_node *) const_node;
    VEC(gen_kernel *) kernels; /* of all OP_fused instructions */
    gen_kernel *adamw;         /* the optimizer's step; NULL: it is not generated */
    plan_program program[PROG_COUNT_OF];
    plan_memory memory;
} plan;

typedef struct plan_options {
    bool optimizer; /* reserve moments */
    int64_t align;  /* of buffers; 0: 256 */
    int64_t judge;  /* > 0: only plan_memory.arena is wanted, and roughly: does a rank take more bytes than that? The
                     * plan cannot run when it does. 0: a plan */
    bool fuse;      /* element-wise and row instructions become generated kernels (fuse.c) */
    int64_t microbatches; /* of each step, where known; 0: any number. With 1 nothing is ever added to a gradient that
                           * its first product makes whole (first.c), so that no workspace for adding is planned */
    /* Workspace bytes that the device's kernel of an instruction wants; NULL: none. */
    int64_t (*workspace)(void *ctx, const plan_instr *i);
    void *ctx;
} plan_options;

/* Lowers a joint graph (pass_diff's) to a plan in the graph's arena: views become strides (with copies only where they
 * cannot), results take over operands' buffers where that is safe, gradients accumulate in place, buffers are placed.
 * Fails when a value cannot be laid out. */
sp_status plan_build(const ir_graph *g, const plan_options *o, plan **out) SP_NODISCARD;

/* The plan's kernels, each once; how many. The list is in `a`. */
int plan_kernels(const plan *p, arena *a, gen_kernel ***out);

/* The plan as text: one line per buffer and instruction. */
void plan_print(const plan *p, buf *out);

/* Of the plan's text; ranks compare it before the first collective. */
uint64_t plan_hash(const plan *p);

/* alive.c: the buffers of the work area that are alive where the step program is fullest, the `most` largest first, a
 * line each ("\n  16.00 MiB f32[1,512,2048] dot 'linear_4' with model.layers.0.mlp.up.weight, kept for the backward
 * (model.py:31)"), then what the others sum up to. */
void plan_print_peak(const plan *p, int most, buf *out);
/* The refusal of a budget below what a plan takes: its parts and the largest buffers at its peak, the latter in lines
 * of their own. policy: whose plan it is; NULL: the leanest plan that there is. Always SP_FAIL. */
sp_status plan_refuse(const plan *p, int64_t budget, const char *policy) SP_NODISCARD;

/* ---- used by plan.c; place_plan behind them ---- */

/* numpy's rule for a reshape without a copy: strides of the same elements in another shape; false when none exist. */
bool plan_reshape_strides(const tensor *from, int rank, const int64_t *dim, int64_t *stride);
/* fuse.c: groups instructions into kernels. Edits the program. */
void plan_fuse(plan *p, int program, const plan_options *o);
/* inplace.c: lets results take over operands' buffers. Edits the program. */
void plan_in_place(plan *p, int program);
/* first.c: finds the products that make a gradient whole before anything else adds to it, and asks anew for the
 * workspaces of all that add. Edits the step program. */
void plan_first_writes(plan *p, const plan_options *o);
/* layout.c: lifetimes, sections, offsets and the memory table. */
sp_status plan_layout(plan *p, const plan_options *o) SP_NODISCARD;

#endif
