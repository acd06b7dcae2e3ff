/* micro.c - the micro-kernel for every row count it may meet; see micro.h. */
#include "device/cpu/micro.h"

typedef void (*tile_fn)(int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb, float *c,
                        int64_t ldc, micro_mode mode, const float *factor);

#define TILE(KIND, PAIRS, NV, R)                                                                                       \
    static void KIND##_##R(int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb, float *c,  \
                           int64_t ldc, micro_mode mode, const float *factor) {                                        \
        micro_tile(PAIRS, R, NV, nt, a, rs, ts, b, ldb, c, ldc, mode, factor);                                         \
    }
#define TILES6(KIND, PAIRS, NV)                                                                                        \
    TILE(KIND, PAIRS, NV, 1)                                                                                           \
    TILE(KIND, PAIRS, NV, 2)                                                                                           \
    TILE(KIND, PAIRS, NV, 3)                                                                                           \
    TILE(KIND, PAIRS, NV, 4)                                                                                           \
    TILE(KIND, PAIRS, NV, 5)                                                                                           \
    TILE(KIND, PAIRS, NV, 6)
#define NAMES6(KIND) KIND##_1, KIND##_2, KIND##_3, KIND##_4, KIND##_5, KIND##_6
#if MICRO_ROWS == 12
#define TILES(KIND, PAIRS, NV)                                                                                         \
    TILES6(KIND, PAIRS, NV)                                                                                            \
    TILE(KIND, PAIRS, NV, 7)                                                                                           \
    TILE(KIND, PAIRS, NV, 8)                                                                                           \
    TILE(KIND, PAIRS, NV, 9)                                                                                           \
    TILE(KIND, PAIRS, NV, 10)                                                                                          \
    TILE(KIND, PAIRS, NV, 11)                                                                                          \
    TILE(KIND, PAIRS, NV, 12)
#define NAMES(KIND) NAMES6(KIND), KIND##_7, KIND##_8, KIND##_9, KIND##_10, KIND##_11, KIND##_12
#else
#define TILES TILES6
#define NAMES NAMES6
#endif

TILES(f32_nv1, false, 1)
TILES(f32_nv2, false, 2)
TILES(pairs_nv1, true, 1)
TILES(pairs_nv2, true, 2)

static const tile_fn f32_tile[2][MICRO_ROWS] = {{NAMES(f32_nv1)}, {NAMES(f32_nv2)}};
static const tile_fn pairs_tile[2][MICRO_ROWS] = {{NAMES(pairs_nv1)}, {NAMES(pairs_nv2)}};

static void deal(const tile_fn *tile, int64_t rows, int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b,
                 int64_t ldb, float *c, int64_t ldc, micro_mode mode, const float *factor) {
    if (rows <= 0) return;
    int64_t parts = ceil_div(rows, MICRO_ROWS), small = rows / parts, large = rows % parts;
    for (int64_t i = 0, r = 0; i < parts; i++) {
        int64_t n = small + (i < large);
        tile[n - 1](nt, a + r * rs, rs, ts, b, ldb, c + r * ldc, ldc, mode, factor);
        r += n;
    }
}

void micro_rows(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b, int64_t ldb,
                float *c, int64_t ldc, micro_mode mode, const float *factor) {
    deal(f32_tile[nv - 1], rows, nt, a, rs, ts, b, ldb, c, ldc, mode, factor);
}

void micro_rows_pairs(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, int64_t ts, const float *b,
                      int64_t ldb, float *c, int64_t ldc, micro_mode mode, const float *factor) {
    deal(pairs_tile[nv - 1], rows, nt, a, rs, ts, b, ldb, c, ldc, mode, factor);
}
