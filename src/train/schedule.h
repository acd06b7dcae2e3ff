/* schedule.h - the optimizer's numbers: learning rate of a step, clipping factor, AdamW's constants. */
#ifndef AUTOSP_TRAIN_SCHEDULE_H
#define AUTOSP_TRAIN_SCHEDULE_H

#include "base/base.h"

typedef enum train_decay { TRAIN_COSINE, TRAIN_LINEAR, TRAIN_CONSTANT } train_decay;

bool train_decay_parse(const char *name, train_decay *out);

/* The learning rate of a run, steps counted from 0:
 *
 *   k < warmup            lr * (k + 1) / warmup
 *   cosine                min_lr + (lr - min_lr) * (1 + cos(pi * t)) / 2
 *   linear                min_lr + (lr - min_lr) * (1 - t)
 *   constant              lr
 *   with                  t = (k - warmup) / (steps - warmup), at most 1
 *
 * so the first step already moves, step `warmup` has the full rate, and min_lr is what would come after the last
 * step (the formula of llm.c and, but for the warm-up's divisor, of nanoGPT). */
typedef struct train_schedule {
    train_decay decay;
    double lr, min_lr;
    int64_t warmup, steps;
} train_schedule;

double train_lr(const train_schedule *s, int64_t step);

/* AdamW with decoupled decay (Loshchilov and Hutter 2019), as torch.optim.AdamW computes it:
 *   p -= lr*weight_decay*p;  m = beta1*m + (1-beta1)*g;  v = beta2*v + (1-beta2)*g*g
 *   p -= lr * (m/bias1) / (sqrt(v/bias2) + eps),  bias_i = 1 - beta_i^t,  t from 1
 * weight_decay applies to tensors of rank >= 2, to all with decay_all. */
typedef struct train_adamw {
    double beta1, beta2, eps, weight_decay;
    bool decay_all;
    double clip; /* largest global gradient norm; 0: no clipping */
} train_adamw;

/* The factor on every gradient: min(1, clip / (norm + 1e-6)) as torch.nn.utils.clip_grad_norm_ has it; 1 when
 * clip is 0. `norm` is the l2 norm over all gradients of all ranks. */
double train_clip_factor(double clip, double norm);

#endif
