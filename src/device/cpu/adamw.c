/* adamw.c - the fused AdamW step (Loshchilov and Hutter 2019), in PyTorch's order of operations. */
#include "device/cpu/rows.h"

typedef struct factors {
    float decay, beta1, beta2, rest1, rest2, step, root, eps, scale;
} factors;

static void range(const factors *f, int64_t from, int64_t to, float *p, const float *g, float *m, float *v,
                  uint16_t *copy) {
    EACH_VECTOR(i, from, to, {
        vf grad = get_part(false, g, i, left, 0) * f->scale;
        vf mi = get_part(false, m, i, left, 0) * f->beta1 + grad * f->rest1;
        vf vi_ = get_part(false, v, i, left, 0) * f->beta2 + grad * grad * f->rest2;
        vf pi = get_part(false, p, i, left, 0) * f->decay;
        pi -= f->step * (mi / (vsqrt(vi_) * f->root + f->eps));
        put_part(false, m, i, left, mi);
        put_part(false, v, i, left, vi_);
        put_part(false, p, i, left, pi);
        if (copy) put_part(true, copy, i, left, pi);
    });
}

void kern_adamw(int64_t n, float *p, const float *g, float *m, float *v, const adamw_params *a, void *copy) {
    const double fix1 = 1 - pow(a->beta1, (double)a->step), fix2 = 1 - pow(a->beta2, (double)a->step);
    const factors f = {.decay = (float)(1 - a->lr * a->weight_decay),
                       .beta1 = (float)a->beta1,
                       .beta2 = (float)a->beta2,
                       .rest1 = (float)(1 - a->beta1),
                       .rest2 = (float)(1 - a->beta2),
                       .step = (float)(a->lr / fix1),
                       .root = (float)(1 / sqrt(fix2)),
                       .eps = (float)a->eps,
                       .scale = a->grad_scale};
#pragma omp parallel for schedule(static) if (n >= ROWS_ALONE)
    for (int64_t c = 0; c < ceil_div(n, ELEM_CHUNK); c++)
        range(&f, c * ELEM_CHUNK, min64(n, (c + 1) * ELEM_CHUNK), p, g, m, v, copy);
}
