/* sum.c - sums along rows and across them (a bias's gradient).
 *
 * Terms are added in f32 over at most SUM_ROWS of them, these sums in f64 and in order: long sums keep their precision,
 * and results depend on shapes alone, not on threads.
 */
#include "device/cpu/rows.h"

enum { SUM_ROWS = 512, SUM_VECTORS = 8, SUM_COLS = SUM_VECTORS * VL };

/* Columns [c0, c0+SUM_COLS) of one matrix, or what is left of them. */
INLINE void columns(bool bf, int64_t rows, int64_t n, int64_t c0, const void *x, void *y) {
    double total[SUM_COLS] = {0};
    const int64_t width = min64(SUM_COLS, n - c0), vectors = width / VL;
    for (int64_t r0 = 0; r0 < rows; r0 += SUM_ROWS) {
        const int64_t r1 = min64(rows, r0 + SUM_ROWS);
        float part[SUM_COLS] = {0};
        if (vectors == SUM_VECTORS) {
            vf s[SUM_VECTORS] = {0};
            for (int64_t r = r0; r < r1; r++)
                for (int v = 0; v < SUM_VECTORS; v++) s[v] += vget(bf, x, r * n + c0 + v * VL);
            for (int v = 0; v < SUM_VECTORS; v++) vst(part + v * VL, s[v]);
        } else {
            for (int64_t r = r0; r < r1; r++)
                for (int64_t c = 0; c < width; c++) part[c] += sget(bf, x, r * n + c0 + c);
        }
        for (int64_t c = 0; c < width; c++) total[c] += (double)part[c];
    }
    for (int64_t c = 0; c < width; c++) sput(bf, y, c0 + c, (float)total[c]);
}

void kern_sum_rows(dtype t, int64_t outer, int64_t rows, int64_t n, const void *x, void *y) {
    const int64_t blocks = ceil_div(n, SUM_COLS), size = dtype_size(t);
    PARALLEL_ROWS(t, i, outer * blocks, outer * rows * n, columns, rows, n, i % blocks * SUM_COLS,
                  (const char *)x + i / blocks * rows * n * size, (char *)y + i / blocks * n * size);
}

INLINE void row_sum(bool bf, int64_t r, int64_t n, const void *x, void *y) {
    double total = 0;
    for (int64_t c0 = 0; c0 < n; c0 += SUM_ROWS * VL) {
        const int64_t c1 = min64(n, c0 + SUM_ROWS * VL);
        vf s = vset(0);
        EACH_VECTOR(c, c0, c1, { s += get_part(bf, x, r * n + c, left, 0); });
        total += (double)vsum(s);
    }
    sput(bf, y, r, (float)total);
}

void kern_sum_cols(dtype t, int64_t rows, int64_t n, const void *x, void *y) {
    PARALLEL_ROWS(t, r, rows, rows * n, row_sum, r, n, x, y);
}
