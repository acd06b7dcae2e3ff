/* dropout.c - dropout on the cpu device: rows whose elements have consecutive numbers, by vectors (keep.h). Other forms
 * are left to the kernel of all devices (device/dropout.c), which has the numbering too. */
#include "device/cpu/cpu.h"
#include "device/cpu/keep.h"
#include "device/cpu/rows.h"

/* Part of a word: elements [i, end), of which the first has bit `from`. */
INLINE void part(bool bf, int64_t i, int64_t end, const void *x, void *y, uint64_t bits, int from, float scale) {
    EACH_VECTOR(j, i, end, {
        put_part(bf, y, j, left, keep_scaled(bits >> (from + (int)(j - i)), get_part(bf, x, j, left, 0), scale));
    });
}

/* n elements with numbers from `at` on: the words between the first and the last by KEEP_WORDS, whose bits are made
 * while those before are at work. */
INLINE void run(bool bf, int64_t n, const void *x, void *y, const keep_state *s, uint64_t at, float scale) {
    enum { SOME = 64 * KEEP_WORDS };
    uint64_t word = at >> 6, bits[2][KEEP_WORDS];
    int64_t i = 0;
    if (at % 64) {
        i = min64(n, 64 - (int64_t)(at % 64));
        part(bf, 0, i, x, y, keep_one(s, word++), (int)(at % 64), scale);
    }
    keep_work work = {.bf = bf, .scale = scale};
    const bool many = i + SOME <= n;
    int which = 0;
    if (many) keep_words(s, word, KEEP_WORDS, bits[0], NULL);
    for (; i + SOME <= n; i += SOME, which ^= 1, word += KEEP_WORDS) {
        work.x = elem_at(bf, x, i), work.y = elem_of(bf, y, i), work.bits = bits[which];
        keep_words(s, word + KEEP_WORDS, KEEP_WORDS, bits[!which], &work);
    }
    for (int w = 0; i < n; i += 64, w++)
        part(bf, i, min64(n, i + 64), x, y, many ? bits[which][w] : keep_one(s, word + (uint64_t)w), 0, scale);
}

sp_status cpu_dropout(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    const int last = y->rank - 1;
    const dropout_space space = dropout_space_of(c);
    if (last < 0 || !dropout_counts_up(c, &space, last) || !cpu_fast_type(y->type) || x->type != y->type ||
        x->stride[last] != 1 || y->stride[last] != 1)
        return dropout_run(c);
    const int64_t *rng = c->in[1].data; /* seed, draw, off */
    const double p = ir_float(c->node, "p", 0);
    const bool bf = y->type == DT_BF16;
    const float scale = p < 1 ? (float)(1 / (1 - p)) : 1; /* p = 1 keeps nothing */
    if (rng[2] != 0 || p == 0) {                          /* keeps everything */
        if (y->data != x->data) kern_copy(y, x);
        return SP_OK;
    }
    const keep_state s = keep_start((uint64_t)rng[0], (uint64_t)rng[1], (uint32_t)ir_int(c->node, "id", 0), p);
    const int64_t n = y->dim[last];
    int64_t rows = 1, along = 1; /* rows that are one row, of elements and of numbers */
    for (int d = 0; d < last; d++) rows *= y->dim[d];
    if (last > 0 && x->stride[last - 1] == n && y->stride[last - 1] == n && space.dims[last] == n &&
        dropout_counts_up(c, &space, last - 1))
        along = y->dim[last - 1];
    const int64_t some = min64(along, ceil_div(ELEM_CHUNK, max64(n, 1))), parts = ceil_div(along, some);
#pragma omp parallel for schedule(static) if (rows * n >= ROWS_ALONE)
    for (int64_t i = 0; i < rows / along * parts; i++) {
        int64_t index[TENSOR_MAX_RANK] = {0}, xa, ya;
        const int64_t first = i % parts * some;
        dropout_row(c, i / parts * along + first, index, &xa, &ya);
        const uint64_t at = dropout_number(c, &space, index);
        const int64_t len = n * min64(some, along - first);
        const void *from = elem_at(bf, x->data, xa);
        void *to = elem_of(bf, y->data, ya);
        if (bf)
            run(true, len, from, to, &s, at, scale);
        else
            run(false, len, from, to, &s, at, scale);
    }
    return SP_OK;
}
