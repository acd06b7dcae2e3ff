/* embed.c - embedding rows: gather, and the scatter-add of its gradient. Rows stand anywhere, so nothing fetches them
 * early but we: some rows ahead. */
#include "device/cpu/rows.h"

enum { AHEAD = 6 };

sp_status kern_embed_fwd(dtype t, int64_t rows, int64_t n, int64_t vocab, const int64_t *ids, const void *table,
                         void *y, int64_t ldy) {
    const int64_t size = dtype_size(t);
    for (int64_t r = 0; r < rows; r++)
        CHECK(
            ids[r] >= 0 && ids[r] < vocab,
            "embedding: the id of row %lld is %lld, but the table has %lld rows; check the data's vocabulary, or --seq "
            "where it is a table of positions",
            (long long)r, (long long)ids[r], (long long)vocab);
    const int64_t bytes = n * size;
    const bool stream = rows * bytes >= STREAM_BYTES && whole_lines(y, bytes) && whole_lines(y, ldy * size);
#pragma omp parallel if (rows * n >= ROWS_ALONE)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            prefetch_run((const char *)table + ids[min64(r + AHEAD, rows - 1)] * bytes, bytes);
            copy_run((char *)y + r * ldy * size, (const char *)table + ids[r] * bytes, bytes, stream);
        }
        if (stream) vst_stream_end();
    }
    return SP_OK;
}

/* Every thread takes a range of columns and goes through all rows in order: no two threads meet in a word of the table,
 * and the order of additions is that of the rows. */
INLINE void scatter(bool bf, int64_t part, int64_t parts, int64_t rows, int64_t n, const int64_t *ids, int64_t skip,
                    const void *dy, int64_t lddy, float *dtable) {
    const int64_t vectors = ceil_div(n, VL);
    const int64_t from = vectors * part / parts * VL, to = min64(n, vectors * (part + 1) / parts * VL);
    for (int64_t r = 0; r < rows; r++) {
        if (ids[r] == skip) continue;
        const int64_t soon = min64(r + AHEAD, rows - 1);
        float *to_row = dtable + ids[r] * n;
        EACH_VECTOR(j, from, to, {
            __builtin_prefetch(dtable + ids[soon] * n + j, 1);
            __builtin_prefetch(elem_at(bf, dy, soon * lddy + j));
            put_part(false, to_row, j, left,
                     get_part(false, to_row, j, left, 0) + get_part(bf, dy, r * lddy + j, left, 0));
        });
    }
}

void kern_embed_bwd(dtype t, int64_t rows, int64_t n, const int64_t *ids, int64_t skip, const void *dy, int64_t lddy,
                    float *dtable) {
    const int64_t parts = max64(1, min64(omp_get_max_threads(), n / VL));
    PARALLEL_ROWS(t, part, parts, rows * n, scatter, part, parts, rows, n, ids, skip, dy, lddy, dtable);
}
