/* softmax.c - softmax and softmax cross-entropy on rows, forward and backward. */
#include "device/cpu/rows.h"

/* Maximum of a row; a NaN may be lost here, but comes back from the exponentials. */
INLINE float row_max(bool bf, const void *x, int64_t n) {
    vf m0 = vset(-INFINITY), m1 = m0;
    int64_t j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) {
        m0 = vmax(m0, vget(bf, x, j));
        m1 = vmax(m1, vget(bf, x, j + VL));
    }
    for (; j < n; j += VL) m0 = vmax(m0, get_part(bf, x, j, n - j, -INFINITY));
    return vmaxlane(vmax(m0, m1));
}

/* e^(x - shift) for x <= shift, as a power of two. */
INLINE vf exp_below(vf x, float shift) { return vexp2_neg((x - shift) * 1.44269504088896340736f); }

/* sum of e^(x - shift) */
INLINE float row_sum(bool bf, const void *x, int64_t n, float shift) {
    vf s0 = vset(0), s1 = vset(0);
    int64_t j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) {
        s0 += exp_below(vget(bf, x, j), shift);
        s1 += exp_below(vget(bf, x, j + VL), shift);
    }
    for (; j < n; j += VL) s0 += exp_below(get_part(bf, x, j, n - j, -INFINITY), shift);
    return vsum(s0 + s1);
}

INLINE void fwd_row(bool bf, int64_t r, int64_t n, const void *x0, int64_t ldx, void *y0, int64_t ldy) {
    const void *x = elem_at(bf, x0, r * ldx);
    void *y = elem_of(bf, y0, r * ldy);
    float max = row_max(bf, x, n), shift = max == -INFINITY ? 0 : max;
    if (bf) { /* numerators are computed twice rather than rounded twice */
        float sum = row_sum(bf, x, n, shift), factor = sum == 0 ? 0 : 1 / sum;
        EACH_VECTOR(j, 0, n, { put_part(bf, y, j, left, exp_below(get_part(bf, x, j, left, 0), shift) * factor); });
        return;
    }
    vf total = vset(0);
    EACH_VECTOR(j, 0, n, {
        vf e = exp_below(get_part(bf, x, j, left, -INFINITY), shift);
        put_part(bf, y, j, left, e);
        total += e;
    });
    float sum = vsum(total), factor = sum == 0 ? 0 : 1 / sum;
    EACH_VECTOR(j, 0, n, { put_part(bf, y, j, left, get_part(bf, y, j, left, 0) * factor); });
}

void kern_softmax_fwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, void *y, int64_t ldy) {
    PARALLEL_ROWS(t, r, rows, rows * n, fwd_row, r, n, x, ldx, y, ldy);
}

INLINE void bwd_row(bool bf, int64_t r, int64_t n, const void *y0, int64_t ldy, const void *dy0, int64_t lddy,
                    void *dx0, int64_t lddx) {
    const void *y = elem_at(bf, y0, r * ldy), *dy = elem_at(bf, dy0, r * lddy);
    void *dx = elem_of(bf, dx0, r * lddx);
    vf sum = vset(0);
    for (int64_t j = 0; j < n; j += VL) sum += get_part(bf, y, j, n - j, 0) * get_part(bf, dy, j, n - j, 0);
    float dot = vsum(sum);
    EACH_VECTOR(j, 0, n,
                { put_part(bf, dx, j, left, get_part(bf, y, j, left, 0) * (get_part(bf, dy, j, left, 0) - dot)); });
}

void kern_softmax_bwd(dtype t, int64_t rows, int64_t n, const void *y, int64_t ldy, const void *dy, int64_t lddy,
                      void *dx, int64_t lddx) {
    PARALLEL_ROWS(t, r, rows, rows * n, bwd_row, r, n, y, ldy, dy, lddy, dx, lddx);
}

INLINE void loss_row(bool bf, int64_t r, int64_t v, const void *logits, int64_t ld, const int64_t *labels,
                     int64_t ignore, float *loss, float *lse) {
    const void *x = elem_at(bf, logits, r * ld);
    vexp_sum s = vexp_sum_start();
    int64_t j = 0;
    for (; j + VEXP_BLOCK * VL <= v; j += VEXP_BLOCK * VL) {
        vf block[VEXP_BLOCK];
        for (int i = 0; i < VEXP_BLOCK; i += 2) vget2(bf, x, j + i * VL, &block[i], &block[i + 1]);
        s = vexp_sum_add(s, block, VEXP_BLOCK, false);
    }
    for (; j < v; j += VL) s = vexp_sum_add(s, (vf[]){get_part(bf, x, j, v - j, -INFINITY)}, 1, false);
    const float top = s.top[0] == -INFINITY ? 0 : s.top[0], log_sum = logf(vexp_sum_end(s));
    lse[r] = top + log_sum;
    /* (top - x) first: it is exact when x is near the maximum, and the logarithm is then not lost in it. */
    loss[r] = labels[r] == ignore ? 0 : (top - sget(bf, x, labels[r])) + log_sum;
}

sp_status kern_xent_fwd(dtype t, int64_t rows, int64_t v, const void *logits, int64_t ld, const int64_t *labels,
                        int64_t ignore_index, float *loss, float *lse) {
    for (int64_t r = 0; r < rows; r++)
        CHECK(labels[r] == ignore_index || (labels[r] >= 0 && labels[r] < v),
              "cross-entropy: the label of row %lld is %lld, but logits have %lld classes and ignore_index is %lld; "
              "check the data's vocabulary",
              (long long)r, (long long)labels[r], (long long)v, (long long)ignore_index);
    PARALLEL_ROWS(t, r, rows, rows * v, loss_row, r, v, logits, ld, labels, ignore_index, loss, lse);
    return SP_OK;
}

INLINE void loss_bwd_row(bool bf, int64_t r, int64_t v, const void *logits, int64_t ld, const int64_t *labels,
                         int64_t ignore, const float *lse, const float *dloss, int64_t dloss_stride, void *dlogits,
                         int64_t ldd) {
    const void *x = elem_at(bf, logits, r * ld);
    void *dx = elem_of(bf, dlogits, r * ldd);
    if (labels[r] == ignore) {
        memset(dx, 0, (size_t)(v * (bf ? 2 : 4)));
        return;
    }
    const float g = dloss[r * dloss_stride], shift = lse[r], at_label = sget(bf, x, labels[r]);
    EACH_VECTOR(j, 0, v, {
        const vf t = (get_part(bf, x, j, left, 0) - shift) * 1.44269504088896340736f;
        put_part(bf, dx, j, left, (bf ? vexp2_near(t) : vexp2_neg(t)) * g);
    });
    sput(bf, dx, labels[r], (expf(at_label - shift) - 1) * g);
}

void kern_xent_bwd(dtype t, int64_t rows, int64_t v, const void *logits, int64_t ld, const int64_t *labels,
                   int64_t ignore_index, const float *lse, const float *dloss, int64_t dloss_stride, void *dlogits,
                   int64_t ldd) {
    PARALLEL_ROWS(t, r, rows, rows * v, loss_bwd_row, r, v, logits, ld, labels, ignore_index, lse, dloss, dloss_stride,
                  dlogits, ldd);
}
