/* cpu.c - the cpu device: its table, workspaces and preparation. */
#include "device/cpu/cpu.h"

#define cpu_leaf NULL
#define cpu_constant NULL
#define cpu_fill NULL
#define cpu_loop NULL
#define cpu_all_reduce coll_run
#define cpu_all_gather coll_run
#define cpu_reduce_scatter coll_run
#define cpu_all_to_all coll_run
/* index arithmetic: integers of the size of a sequence */
#define cpu_iota ref_iota
#define cpu_take ref_take
#define cpu_gather ref_gather
#define cpu_scatter_add ref_scatter_add
#define cpu_rmax ref_rmax
#define cpu_cumsum ref_cumsum

static dev_fn *const table[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = cpu_##kern,
#include "ir/ops.def"
#undef OP
};

static int64_t workspace(const dev_call *c) {
    switch (c->op) {
    case OP_dot:
        return cpu_dot_workspace(c);
    case OP_attention:
    case OP_attention_grad:
        return cpu_attention_workspace(c);
    case OP_all_to_all:
    case OP_all_gather:
    case OP_reduce_scatter:
    case OP_all_reduce:
        return coll_workspace(c);
    case OP_fused:
        return cpu_fused_workspace(c);
    default:
        return cpu_rows_workspace(c);
    }
}

static sp_status prepare(dev_call *c) {
    c->state = NULL;
    return c->op == OP_dot ? cpu_dot_prepare(c) : c->op == OP_fused ? cpu_fused_prepare(c) : SP_OK;
}

static void release(dev_call *c) {
    if (c->op == OP_dot) cpu_dot_release(c);
    if (c->op == OP_fused) cpu_fused_release(c);
}

const device device_cpu = {.name = "cpu",
                           .table = table,
                           .workspace = workspace,
                           .compile = gen_library,
                           .prepare = prepare,
                           .release = release,
                           .sumsq = kern_sumsq,
                           .adamw = kern_adamw,
                           .peak_flops = kern_peak_flops,
                           .peak_bytes = kern_peak_bytes};

const device *device_find(const char *name) {
    if (strcmp(name, "cpu") == 0) return &device_cpu;
    if (strcmp(name, "ref") == 0) return &device_ref;
    return NULL;
}
