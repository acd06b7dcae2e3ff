/* attn_merge.c - one softmax out of two over disjoint keys, as in ring attention (Liu et al. 2023). */
#include "device/cpu/attn.h"

INLINE void merge_row(bool bf, int64_t D, float *o, const void *o2, float *lse, float lse2) {
    const float top = *lse > lse2 ? *lse : lse2;
    if (lse2 == -INFINITY || top == -INFINITY) return; /* nothing new; o is 0 where neither saw a key */
    const float e1 = expf(*lse - top), e2 = expf(lse2 - top), sum = e1 + e2;
    const float w1 = e1 / sum, w2 = e2 / sum;
    int64_t d = 0;
    for (; d + VL <= D; d += VL) vst(o + d, vld(o + d) * w1 + vget(bf, o2, d) * w2);
    for (; d < D; d++) o[d] = o[d] * w1 + sget(bf, o2, d) * w2;
    *lse = top + logf(sum);
}

void kern_attn_merge(const tensor *o, const tensor *lse, const tensor *o2, const tensor *lse2) {
    ASSERT(o->rank == 4 && o2->rank == 4 && o->type == DT_F32 && (o2->type == DT_F32 || o2->type == DT_BF16));
    ASSERT(lse->rank == 3 && lse2->rank == 3 && lse->type == DT_F32 && lse2->type == DT_F32);
    const int64_t B = o->dim[0], S = o->dim[1], H = o->dim[2], D = o->dim[3];
    for (int i = 0; i < 4; i++) ASSERT(o->dim[i] == o2->dim[i]);
    ASSERT((o->stride[3] == 1 && o2->stride[3] == 1) || D == 1);
    ASSERT(lse->dim[0] == B && lse->dim[1] == H && lse->dim[2] == S);
    ASSERT(lse2->dim[0] == B && lse2->dim[1] == H && lse2->dim[2] == S);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < B * S; i++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t b = i / S, s = i % S;
            float *to = attn_at(o, b, s, h), *sum = attn_lse_at(lse, b, h, s);
            const float sum2 = *attn_lse_at(lse2, b, h, s);
            if (o2->type == DT_BF16)
                merge_row(true, D, to, attn_at(o2, b, s, h), sum, sum2);
            else
                merge_row(false, D, to, attn_at(o2, b, s, h), sum, sum2);
        }
}
