/* pack.c - see pack.h. */
#include "device/cpu/pack.h"

INLINE void pack(bool bf, bool scale, const void *src, int64_t stride, int64_t n, int64_t D, float factor, float *dst) {
    for (int64_t i0 = 0; i0 < MICRO_LANES; i0 += VL)
        for (int64_t d0 = 0; d0 < D; d0 += VL) {
            int64_t nd = min64(VL, D - d0);
            vf r[VL];
            for (int64_t i = 0; i < VL; i++) {
                int64_t at = (i0 + i) * stride + d0;
                r[i] = i0 + i >= n ? vset(0) : nd == VL ? vget(bf, src, at) : vget_n(bf, src, at, nd, 0);
            }
            vtranspose(r);
            for (int64_t d = 0; d < nd; d++) vst(dst + (d0 + d) * MICRO_LANES + i0, scale ? r[d] * factor : r[d]);
        }
}

void pack_transposed(bool bf, const void *src, int64_t stride, int64_t n, int64_t D, float factor, float *dst) {
    if (bf)
        pack(true, true, src, stride, n, D, factor, dst);
    else
        pack(false, true, src, stride, n, D, factor, dst);
}

void pack_transposed_words(const float *src, int64_t stride, int64_t n, int64_t D, float *dst) {
    pack(false, false, src, stride, n, D, 1, dst);
}
