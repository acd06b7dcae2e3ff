/* amx.c - see amx.h.
 *
 * Eight tiles of 16 rows of 64 bytes: C in four (2 x 2, so that every operand that is loaded is used twice), A and B in
 * two each. All have their full size always; remainders of rows or pairs are copied to a buffer that zeros fill up, so
 * that one configuration serves a whole block of attention and nothing outside of the operands is read or written.
 *
 * The instructions are written as assembly: gcc 12's intrinsics do not say that they read the configuration and the
 * operands from memory, and stores before them were removed. With AUTOSP_AMX_EMULATED, the name of a header, that
 * header defines the instructions instead (tests/unit/amx_emulated.h).
 */
#include "device/cpu/amx.h"

#if VEC_PAIRS && (defined(AUTOSP_AMX_EMULATED) || (defined(AUTOSP_HAVE_AMX) && defined(__linux__)))

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 16 }; /* rows of a tile, and words or floats of a row */

/* What LDTILECFG reads. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;
_Static_assert(sizeof(tile_config) == 64, "the processor's layout");

#ifdef AUTOSP_AMX_EMULATED
#define TILES
#include AUTOSP_AMX_EMULATED
#else

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __clang__
#define TILES __attribute__((target("amx-tile,amx-bf16"))) /* its assembler asks for it */
#else
#define TILES
#endif
#define tile_configure(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(config)) : "memory")
#define tile_release() __asm__ volatile("tilerelease" ::: "memory")
#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t ::: "memory")
/* 16 rows, `stride` bytes apart. */
#define tile_load(t, from, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(stride) : "memory")
#define tile_store(t, to, stride)                                                                                      \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(stride) : "memory")
/* c += a b over 16 pairs. */
#define tile_dot(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

static bool processor_has_it(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false; /* BF16, TILE */
    if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d)) return false;                                  /* palette 1 */
    const unsigned row_bytes = b & 0xffff, names = b >> 16, rows = c & 0xffff;
    if (row_bytes != 4 * TILE || names < 8 || rows != TILE) return false;
    uint32_t low, high; /* XGETBV, by its bytes because assemblers want a flag for its name */
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3; /* the system saves the tiles' configuration and data */
}

/* Linux hands out the tiles' state only to processes that ask for it. */
static bool system_permits_it(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

TILES void amx_begin(void) {
    tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = TILE, config.row_bytes[t] = 4 * TILE;
    tile_configure(&config);
}

TILES void amx_end(void) { tile_release(); }

/* x itself where it has 16 rows of `words` words, words being `width`; otherwise its copy in 16 x width, zeros added.
 */
INLINE const float *whole(const float *x, int64_t *ld, int64_t rows, int64_t words, int64_t width, float *copy) {
    if (rows == TILE && words == width) return x;
    for (int64_t i = 0; i < TILE; i++)
        for (int64_t w = 0; w < width; w += VL)
            vst(copy + i * width + w, i >= rows        ? vset(0)
                                      : words == width ? vld(x + i * *ld + w)
                                                       : vget_n(false, x, i * *ld, words, 0));
    *ld = width;
    return copy;
}

/* C (rows <= 32, nv * 16) = sums, or += where `add`. Tiles: C in 0 to 3, two a row of tiles; A in 4, 5; B in 6, 7. */
TILES static void block(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, const float *b, int64_t ldb,
                        float *c, int64_t ldc, bool add) {
    _Alignas(64) float a_copy[2][TILE * TILE], b_copy[TILE * 2 * TILE], c_copy[TILE * 2 * TILE];
    const int64_t row = (int64_t)sizeof(float), width = nv * TILE;
    const int64_t rows0 = min64(rows, TILE), rows1 = rows - rows0, last = rows1 ? rows1 : rows0;
    /* A last row of tiles that is not full lives in c_copy. */
    float *c0 = c, *c1 = c + TILE * ldc;
    int64_t ldc0 = ldc, ldc1 = ldc;
    if (last < TILE) {
        float **to = rows1 ? &c1 : &c0;
        for (int64_t i = 0; add && i < TILE; i++)
            for (int64_t w = 0; w < width; w += VL)
                vst(c_copy + i * width + w, i < last ? vld(*to + i * ldc + w) : vset(0));
        *to = c_copy;
        *(rows1 ? &ldc1 : &ldc0) = width;
    }
    if (add) {
        tile_load(0, c0, ldc0 * row);
        if (nv == 2) tile_load(1, c0 + TILE, ldc0 * row);
        if (rows1) tile_load(2, c1, ldc1 * row);
        if (rows1 && nv == 2) tile_load(3, c1 + TILE, ldc1 * row);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (int64_t t = 0; t < nt; t += TILE) {
        const int64_t words = min64(TILE, nt - t);
        int64_t ld0 = rs, ld1 = rs, ld = ldb;
        const float *b0 = words == TILE ? b + t * ldb : whole(b + t * ldb, &ld, words, width, width, b_copy);
        const float *a0 = whole(a + t, &ld0, rows0, words, TILE, a_copy[0]);
        tile_load(4, a0, ld0 * row);
        tile_load(6, b0, ld * row);
        tile_dot(0, 4, 6);
        if (nv == 2) {
            tile_load(7, b0 + TILE, ld * row);
            tile_dot(1, 4, 7);
        }
        if (rows1) {
            const float *a1 = whole(a + TILE * rs + t, &ld1, rows1, words, TILE, a_copy[1]);
            tile_load(5, a1, ld1 * row);
            tile_dot(2, 5, 6);
            if (nv == 2) tile_dot(3, 5, 7);
        }
    }
    tile_store(0, c0, ldc0 * row);
    if (nv == 2) tile_store(1, c0 + TILE, ldc0 * row);
    if (rows1) tile_store(2, c1, ldc1 * row);
    if (rows1 && nv == 2) tile_store(3, c1 + TILE, ldc1 * row);
    if (last < TILE)
        for (int64_t i = 0; i < last; i++)
            for (int64_t w = 0; w < width; w += VL) vst(c + (rows - last + i) * ldc + w, vld(c_copy + i * width + w));
}

INLINE void scale(int64_t rows, int nv, float *c, int64_t ldc, const float *factor) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t w = 0; w < nv * TILE; w += VL) vst(c + i * ldc + w, vld(c + i * ldc + w) * vld(factor + w));
}

void amx_rows_pairs(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, const float *b, int64_t ldb, float *c,
                    int64_t ldc, micro_mode mode, const float *factor) {
    for (int64_t r = 0; r < rows; r += 2 * TILE) {
        const int64_t n = min64(2 * TILE, rows - r);
        if (mode == MICRO_RESCALE) scale(n, nv, c + r * ldc, ldc, factor);
        block(n, nv, nt, a + r * rs, rs, b, ldb, c + r * ldc, ldc, mode == MICRO_ADD || mode == MICRO_RESCALE);
        if (mode == MICRO_SCALE) scale(n, nv, c + r * ldc, ldc, factor);
    }
}

/* ---- the self-check ---------------------------------------------------------------------------- */

/* Integers in [-8, 8] that repeat after 2^32; exact in bf16. */
static float small_integer(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (float)((int)((*seed >> 16) % 17) - 8);
}

static uint32_t two_of(uint32_t *seed) {
    const uint32_t low = bf16_put(small_integer(seed)), high = bf16_put(small_integer(seed));
    return low | high << 16;
}

enum { CHECK_ROWS = 49, CHECK_PAIRS = 40, CHECK_LD = 35, CHECK_RS = CHECK_PAIRS + 1 };

/* One product; everything around C has to be left as it was. */
static bool check_one(int64_t rows, int nv, int64_t nt, micro_mode mode) {
    _Alignas(64) float a[CHECK_ROWS * CHECK_RS], b[CHECK_PAIRS * CHECK_LD], factor[2 * TILE];
    _Alignas(64) float c[CHECK_ROWS * CHECK_LD], want[CHECK_ROWS * CHECK_LD];
    uint32_t seed = (uint32_t)(rows * 1000 + nt * 10 + nv) * 4 + (uint32_t)mode;
    memset(a, 0xff, sizeof a), memset(b, 0xff, sizeof b); /* NaN outside of the operands */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t t = 0; t < nt; t++) memcpy(&a[i * CHECK_RS + t], &(uint32_t){two_of(&seed)}, sizeof *a);
    for (int64_t t = 0; t < nt; t++)
        for (int64_t l = 0; l < nv * TILE; l++) memcpy(&b[t * CHECK_LD + l], &(uint32_t){two_of(&seed)}, sizeof *b);
    for (int l = 0; l < 2 * TILE; l++) factor[l] = l % 3 ? 0.5f : 2;
    for (int i = 0; i < CHECK_ROWS * CHECK_LD; i++) c[i] = want[i] = small_integer(&seed);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t l = 0; l < nv * TILE; l++) {
            float sum = 0;
            for (int64_t t = 0; t < nt; t++) {
                uint32_t x, y;
                memcpy(&x, &a[i * CHECK_RS + t], sizeof x), memcpy(&y, &b[t * CHECK_LD + l], sizeof y);
                sum += bf16_get((uint16_t)x) * bf16_get((uint16_t)y);
                sum += bf16_get((uint16_t)(x >> 16)) * bf16_get((uint16_t)(y >> 16));
            }
            float *to = &want[i * CHECK_LD + l];
            *to = mode == MICRO_SET     ? sum
                  : mode == MICRO_ADD   ? *to + sum
                  : mode == MICRO_SCALE ? sum * factor[l]
                                        : *to * factor[l] + sum;
        }
    amx_rows_pairs(rows, nv, nt, a, CHECK_RS, b, CHECK_LD, c, CHECK_LD, mode, factor);
    for (int i = 0; i < CHECK_ROWS * CHECK_LD; i++)
        if (c[i] != want[i]) return false;
    return true;
}

bool amx_check(void) {
    const int64_t rows[] = {1, 15, 16, 17, 31, 32, 33, CHECK_ROWS}, nt[] = {1, 15, 16, 17, 32, CHECK_PAIRS};
    bool right = true;
    amx_begin();
    for (int r = 0; r < 8; r++)
        for (int t = 0; t < 6; t++)
            for (int nv = 1; nv <= 2; nv++)
                for (int mode = MICRO_SET; mode <= MICRO_SCALE; mode++)
                    right &= check_one(rows[r], nv, nt[t], (micro_mode)mode);
    amx_end();
    return right;
}

static pthread_once_t asked = PTHREAD_ONCE_INIT;
static bool usable;

static void ask(void) {
    const char *choice = getenv("AUTOSP_AMX");
    if (choice && strcmp(choice, "0") == 0) return;
    if (!processor_has_it() || !system_permits_it()) return;
    usable = amx_check();
    if (!usable)
        log_warn("this processor's AMX computes something else than expected; attention in bf16 does without it");
}

bool amx_usable(void) {
    pthread_once(&asked, ask);
    return usable;
}

#else /* no AMX in what this is compiled for */

bool amx_usable(void) { return false; }
bool amx_check(void) { return false; }
void amx_begin(void) {}
void amx_end(void) {}
void amx_rows_pairs(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, const float *b, int64_t ldb, float *c,
                    int64_t ldc, micro_mode mode, const float *factor) {
    (void)rows, (void)nv, (void)nt, (void)a, (void)rs, (void)b, (void)ldb, (void)c, (void)ldc, (void)mode, (void)factor;
    ASSERT(!"amx_usable() was false");
}

#endif
