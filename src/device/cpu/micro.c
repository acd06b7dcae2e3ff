/* micro.c - the micro-kernel for every row count it may meet; see micro.h. */
#include "device/cpu/micro.h"

typedef void (*tile_fn)(int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb, float *c,
                        int64_t ldc, micro_mode mode, const float *factor);

#define TILE(R)                                                                                                        \
    static void tile2_##R(int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb, float *c,   \
                          int64_t ldc, micro_mode mode, const float *factor) {                                         \
        micro_tile(R, 2, nt, a, rs, ts, b, ldb, c, ldc, mode, factor);                                                 \
    }                                                                                                                  \
    static void tile1_##R(int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb, float *c,   \
                          int64_t ldc, micro_mode mode, const float *factor) {                                         \
        micro_tile(R, 1, nt, a, rs, ts, b, ldb, c, ldc, mode, factor);                                                 \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
#if MICRO_ROWS == 12
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)
static const tile_fn tile2[] = {tile2_1, tile2_2, tile2_3, tile2_4,  tile2_5,  tile2_6,
                                tile2_7, tile2_8, tile2_9, tile2_10, tile2_11, tile2_12};
static const tile_fn tile1[] = {tile1_1, tile1_2, tile1_3, tile1_4,  tile1_5,  tile1_6,
                                tile1_7, tile1_8, tile1_9, tile1_10, tile1_11, tile1_12};
#else
static const tile_fn tile2[] = {tile2_1, tile2_2, tile2_3, tile2_4, tile2_5, tile2_6};
static const tile_fn tile1[] = {tile1_1, tile1_2, tile1_3, tile1_4, tile1_5, tile1_6};
#endif

void micro_rows(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb,
                float *c, int64_t ldc, micro_mode mode, const float *factor) {
    if (rows <= 0) return;
    const tile_fn *tile = nv == 2 ? tile2 : tile1;
    int64_t parts = ceil_div(rows, MICRO_ROWS), small = rows / parts, large = rows % parts;
    for (int64_t i = 0, r = 0; i < parts; i++) {
        int64_t n = small + (i < large);
        tile[n - 1](nt, a + r * rs, rs, ts, b, ldb, c + r * ldc, ldc, mode, factor);
        r += n;
    }
}
