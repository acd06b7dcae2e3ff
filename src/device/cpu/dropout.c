/* dropout.c - dropout on the cpu device: rows whose elements have consecutive numbers, by vectors (keep.h). Other forms
 * are left to the kernel of all devices (device/dropout.c), which has the numbering too. */
#include "device/cpu/cpu.h"
#include "device/cpu/keep.h"
#include "device/cpu/rows.h"

/* One row, whose elements have numbers from `at` on. What lies behind it is fetched ahead: numbers take as long as
 * memory does, and so both are under way at once. */
INLINE void row(bool bf, int64_t n, const void *x, void *y, const keep_state *s, uint64_t at, float scale) {
    enum { AHEAD = 4096 };
    uint64_t bits[KEEP_WORDS + 1] = {0};
    for (int64_t i = 0, end; i < n; i = end) {
        const uint64_t word = (at + (uint64_t)i) >> 6;
        const int64_t origin = (int64_t)((word << 6) - at); /* the element of the first bit */
        end = min64(n, origin + 64 * KEEP_WORDS);
        keep_some(s, word, ceil_div(end - origin, 64), bits);
        for (; i + 64 <= end; i += 64) {
            const uint64_t kept = keep_from(bits, i - origin);
            prefetch_run((const char *)elem_at(bf, x, i) + AHEAD, bf ? 128 : 256);
#pragma GCC unroll 16
            for (int j = 0; j < 64; j += 2 * VL) {
                vf a, b;
                vget2(bf, x, i + j, &a, &b);
                vput2(bf, y, i + j, keep_scaled(kept >> j, a, scale), keep_scaled(kept >> (j + VL), b, scale));
            }
        }
        EACH_VECTOR(j, i, end, {
            const uint64_t kept = keep_from(bits, j - origin);
            put_part(bf, y, j, left, keep_scaled(kept, get_part(bf, x, j, left, 0), scale));
        });
    }
}

sp_status cpu_dropout(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    const int last = y->rank - 1;
    if (!dropout_rows_count_up(c) || !cpu_fast_type(y->type) || x->type != y->type || x->stride[last] != 1 ||
        y->stride[last] != 1)
        return dropout_run(c);
    const int64_t *rng = c->in[1].data; /* seed, draw, off */
    const double p = ir_float(c->node, "p", 0);
    const bool bf = y->type == DT_BF16;
    const float scale = p < 1 ? (float)(1 / (1 - p)) : 1; /* p = 1 keeps nothing */
    if (rng[2] != 0 || p == 0) { /* keeps everything */
        kern_copy(y, x);
        return SP_OK;
    }
    const dropout_space space = dropout_space_of(c);
    const keep_state s = keep_start((uint64_t)rng[0], (uint64_t)rng[1], (uint32_t)ir_int(c->node, "id", 0), p);
    const int64_t n = y->dim[last];
    int64_t rows = 1;
    for (int d = 0; d < last; d++) rows *= y->dim[d];
#pragma omp parallel for schedule(static) if (rows * n >= ROWS_ALONE)
    for (int64_t r = 0; r < rows; r++) {
        int64_t index[TENSOR_MAX_RANK] = {0}, xa, ya;
        dropout_row(c, r, index, &xa, &ya);
        const uint64_t at = dropout_number(c, &space, index);
        const void *from = elem_at(bf, x->data, xa);
        void *to = elem_of(bf, y->data, ya);
        if (bf)
            row(true, n, from, to, &s, at, scale);
        else
            row(false, n, from, to, &s, at, scale);
    }
    return SP_OK;
}
