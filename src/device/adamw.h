/* adamw.h - the numbers of one AdamW step, between the runtime and a device's kernel. */
#ifndef AUTOSP_DEVICE_ADAMW_H
#define AUTOSP_DEVICE_ADAMW_H

#include "base/base.h"

typedef struct adamw_params {
    double lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* 1, or the clipping factor */
    int64_t step;     /* from 1 */
} adamw_params;

#endif
