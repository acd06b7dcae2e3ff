/* dropout.c - dropout on the cpu device: rows whose elements have consecutive numbers, by vectors (keep.h). Other forms
 * are left to the kernel of all devices (device/dropout.c), which has the numbering too. */
#include "device/cpu/cpu.h"
#include "device/cpu/keep.h"
#include "device/cpu/rows.h"

/* One row, whose elements have numbers from `at` on; scale 0 keeps everything as it is. */
INLINE void row(bool bf, int64_t n, const void *x, void *y, const keep_state *s, uint64_t at, float scale) {
    uint64_t bits[KEEP_WORDS + 1] = {0};
    for (int64_t i = 0, end; i < n; i = end) {
        const uint64_t word = (at + (uint64_t)i) >> 6;
        const int64_t origin = (int64_t)((word << 6) - at); /* the element of the first bit */
        end = min64(n, origin + 64 * KEEP_WORDS);
        if (scale != 0) keep_some(s, word, bits);
        EACH_VECTOR(j, i, end, {
            vf v = get_part(bf, x, j, left, 0);
            if (scale != 0) v = vselect(keep_lanes(bits, j - origin), v * scale, vset(0));
            put_part(bf, y, j, left, v);
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
    const float scale = rng[2] != 0 || p == 0 ? 0 : p < 1 ? (float)(1 / (1 - p)) : 1; /* p = 1 keeps nothing */
    const uint32_t least = philox_threshold(p);
    const keep_state s = keep_start((uint64_t)rng[0], (uint64_t)rng[1], (uint32_t)ir_int(c->node, "id", 0), least);
    int64_t rows = 1;
    for (int d = 0; d < last; d++) rows *= y->dim[d];
#pragma omp parallel for schedule(static) if (rows * y->dim[last] >= ROWS_ALONE)
    for (int64_t r = 0; r < rows; r++) {
        int64_t index[TENSOR_MAX_RANK] = {0}, xa, ya;
        dropout_row(c, r, index, &xa, &ya);
        const uint64_t at = dropout_number(c, index);
        if (bf)
            row(true, y->dim[last], elem_at(true, x->data, xa), elem_of(true, y->data, ya), &s, at, scale);
        else
            row(false, y->dim[last], elem_at(false, x->data, xa), elem_of(false, y->data, ya), &s, at, scale);
    }
    return SP_OK;
}
