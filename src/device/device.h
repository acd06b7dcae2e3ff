/* device.h - what executes an instruction: one table of kernels per device, one call record per instruction.
 *
 * A device knows nothing of plans or passes. The runtime fills a dev_call per instruction once, at set-up, and then
 * only runs the list. `ref` is plain C in double arithmetic, the oracle; `cpu` overrides what is worth it; collectives
 * work on host memory and are shared (coll.c).
 */
#ifndef AUTOSP_DEVICE_H
#define AUTOSP_DEVICE_H

#include "comm/comm.h"
#include "device/adamw.h"
#include "device/tensor.h"
#include "gen/kernel.h"
#include "ir/ir.h"

typedef struct dev_call {
    ir_op op;
    const ir_node *node; /* attributes and source; its shapes are global, the tensors below are local */
    int nin, nout;
    tensor *in, *out;
    bool accumulate; /* add to out instead of overwriting it */
    bool first;      /* dot: accumulate may be false in one run and true in another; true in workspace and prepare */
    void *work;      /* workspace, 64-byte aligned; contents are lost between calls */
    int64_t work_bytes;
    struct comm *comm; /* collectives: the ranks of the mesh axis */
    axis_layout from, to;
    axis_layout tile; /* in a loop, dropout: how tiles cut the result; of how many this is which */
    int64_t tiles, tile_index;
    int64_t offset;           /* iota: the first index; attention: position of query row 0 among the keys */
    int64_t head_offset;      /* attention: number of query head 0 in the whole tensor */
    int threads;              /* the team that runs it */
    const gen_kernel *kernel; /* OP_fused */
    gen_fn *code;             /* its machine code; NULL: none, it is interpreted */
    void *state;              /* the device's own, made by prepare */
} dev_call;

typedef sp_status dev_fn(dev_call *c);

typedef struct device {
    const char *name;
    dev_fn *const *table; /* by op; NULL entries: the op has no instructions */
    /* Workspace in bytes of a call whose tensors have no data yet; c->work is not set. May not fail. */
    int64_t (*workspace)(const dev_call *c);
    /* Machine code of a plan's kernels, in fn; NULL: the device has none and interprets them. */
    sp_status (*compile)(gen_kernel *const *k, int n, gen_fn **fn);
    /* Makes c->state (NULL allowed), once, with data pointers known. release frees it. */
    sp_status (*prepare)(dev_call *c);
    void (*release)(dev_call *c);
    /* The optimizer's kernels over f32, with results that do not depend on the number of threads; NULL: exec's plain
     * loops. adamw: n elements; copy (NULL allowed) gets p in bf16. */
    double (*sumsq)(dtype t, int64_t n, const void *x);
    void (*adamw)(int64_t n, float *p, const float *g, float *m, float *v, const adamw_params *a, void *copy);
    /* The machine's limits as kernels of this device could reach them, measured (kern.h); NULL: not known. */
    double (*peak_flops)(dtype t, int threads);
    double (*peak_bytes)(int threads);
} device;

extern const device device_ref, device_cpu;

/* "ref", "cpu"; NULL when there is none of that name. */
const device *device_find(const char *name);
/* SP_FAIL when this processor lacks instructions that the cpu device's kernels were compiled for. */
sp_status cpu_runs_here(void) SP_NODISCARD;

/* dropout.c: the same for every device on the host. c->to is the operand's layout, c->offset the rank's coordinate. */
sp_status dropout_run(dev_call *c);
/* Row r (all dimensions but the last) of the call's result: its local index, and where it begins in operand and result,
 * in elements. index[last] is left as it is. */
void dropout_row(const dev_call *c, int64_t r, int64_t *index, int64_t *xa, int64_t *ya);
/* The whole tensor without padding, in which elements have their numbers: its extents; the dimension that holds the
 * sequence, -1 none, and how long a row of it is with and without padding. */
typedef struct dropout_space {
    const ir_dim *dims;
    int64_t seq, padded, valid;
} dropout_space;
dropout_space dropout_space_of(const dev_call *c);
/* The number of an element of the call's result, given by its local index; and whether indices of dimension d that
 * follow one another in the result do so in the whole tensor. */
uint64_t dropout_number(const dev_call *c, const dropout_space *s, const int64_t *index);
bool dropout_counts_up(const dev_call *c, const dropout_space *s, int d);

/* coll.c: collectives over host memory, for every device that lives there. */
sp_status coll_run(dev_call *c);
int64_t coll_workspace(const dev_call *c);

#endif
