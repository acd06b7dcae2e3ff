/* cpu.h - what the files that fit the CPU kernels to the device's table share. Each falls back to the reference kernel
 * for types and forms that the fast one does not have; what runs in a training step of a transformer does not fall
 * back. */
#ifndef AUTOSP_DEVICE_CPU_H
#define AUTOSP_DEVICE_CPU_H

#include "device/cpu/kern.h"
#include "device/device.h"
#include "device/ref/ref.h"

/* The types the fast kernels compute in. */
static inline bool cpu_fast_type(dtype t) { return t == DT_F32 || t == DT_BF16; }

/* dot.c */
dev_fn cpu_dot;
int64_t cpu_dot_workspace(const dev_call *c);
sp_status cpu_dot_prepare(dev_call *c);
void cpu_dot_release(dev_call *c);

/* attention.c */
dev_fn cpu_attention, cpu_attention_grad;
int64_t cpu_attention_workspace(const dev_call *c);

/* rows.c */
dev_fn cpu_rmsnorm, cpu_rmsnorm_grad, cpu_layernorm, cpu_layernorm_grad, cpu_xent, cpu_xent_grad, cpu_softmax,
    cpu_softmax_grad, cpu_rope, cpu_embedding, cpu_embedding_grad, cpu_sum;
int64_t cpu_rows_workspace(const dev_call *c);

/* elt.c */
dev_fn cpu_unary, cpu_binary, cpu_compare, cpu_select, cpu_swiglu_grad, cpu_copy, cpu_cast, cpu_accum, cpu_concat,
    cpu_pad;

/* dropout.c */
dev_fn cpu_dropout;

/* fused.c */
dev_fn cpu_fused;
int64_t cpu_fused_workspace(const dev_call *c);
sp_status cpu_fused_prepare(dev_call *c);
void cpu_fused_release(dev_call *c);

#endif
