/* amx_emulated.h - the instructions of AMX that src/device/cpu/amx.c uses, in C, for machines without them.
 *
 * After the operations in Intel's Software Developer's Manual, volume 2: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD,
 * TILESTORED, TDPBF16PS. What faults there (a bad configuration, tiles that are not configured or do not fit each
 * other) aborts here. Included into amx.c alone, in place of its assembly.
 */
#ifndef AUTOSP_TESTS_AMX_EMULATED_H
#define AUTOSP_TESTS_AMX_EMULATED_H

#include <stdatomic.h>
#include <stdio.h>

atomic_int_least64_t amx_emulated_dots;     /* TDPBF16PS so far, of all threads */
_Thread_local bool amx_emulated_configured; /* the calling thread's tiles */
_Thread_local int amx_emulated_wrong;       /* fault injection: 1 swaps TDPBF16PS's halves of B, 2 loses a row */

static _Thread_local tile_config emulated_config;
static _Thread_local uint8_t emulated_tile[8][16][64];

static void emulated_fault(bool wrong, const char *what) {
    if (!wrong) return;
    fprintf(stderr, "AMX, emulated: %s\n", what);
    abort();
}

static void emulated_configure(const void *at) {
    static const tile_config none;
    tile_config c;
    memcpy(&c, at, sizeof c);
    emulated_fault(c.palette != 1, "not palette 1");
    emulated_fault(c.start_row != 0, "start_row is of an interrupted load");
    emulated_fault(memcmp(c.reserved, none.reserved, sizeof c.reserved) != 0, "reserved bytes are not 0");
    for (int t = 0; t < 16; t++) {
        emulated_fault(t >= 8 && (c.rows[t] || c.row_bytes[t]), "there are 8 tiles");
        emulated_fault(c.rows[t] > 16 || c.row_bytes[t] > 64, "a tile is 16 x 64 bytes at most");
        emulated_fault(!c.rows[t] != !c.row_bytes[t], "a tile has rows without bytes, or bytes without rows");
    }
    emulated_fault(amx_emulated_configured, "configured again before a release (allowed, but not what amx.h means)");
    emulated_config = c;
    memset(emulated_tile, 0, sizeof emulated_tile);
    amx_emulated_configured = true;
}

static void emulated_release(void) {
    memset(&emulated_config, 0, sizeof emulated_config);
    memset(emulated_tile, 0, sizeof emulated_tile);
    amx_emulated_configured = false;
}

static void emulated_use(int t) {
    emulated_fault(!amx_emulated_configured, "the thread has not configured its tiles");
    emulated_fault(t < 0 || t >= 8 || !emulated_config.rows[t], "the tile is not configured");
}

static void emulated_zero(int t) {
    emulated_use(t);
    memset(emulated_tile[t], 0, sizeof emulated_tile[t]);
}

static void emulated_load(int t, const void *from, int64_t stride) {
    emulated_use(t);
    memset(emulated_tile[t], 0, sizeof emulated_tile[t]);
    for (int i = 0; i < emulated_config.rows[t]; i++)
        memcpy(emulated_tile[t][i], (const char *)from + i * stride, emulated_config.row_bytes[t]);
}

static void emulated_store(int t, void *to, int64_t stride) {
    emulated_use(t);
    const int lost = amx_emulated_wrong == 2 ? 11 : -1;
    for (int i = 0; i < emulated_config.rows[t]; i++)
        if (i != lost) memcpy((char *)to + i * stride, emulated_tile[t][i], emulated_config.row_bytes[t]);
}

/* Denormals as inputs and results are zeros of their sign. */
static float emulated_flush(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }

static float emulated_fma(uint32_t a, uint32_t b, float c) {
    return emulated_flush(fmaf(emulated_flush(bf16_get((uint16_t)a)), emulated_flush(bf16_get((uint16_t)b)), c));
}

static void emulated_dot(int c, int a, int b) {
    emulated_use(c), emulated_use(a), emulated_use(b);
    const tile_config *f = &emulated_config;
    emulated_fault(c == a || c == b || a == b, "three different tiles");
    emulated_fault(f->row_bytes[a] % 4 || f->row_bytes[b] % 4 || f->row_bytes[c] % 4, "rows of whole words");
    emulated_fault(f->rows[c] != f->rows[a] || f->row_bytes[c] != f->row_bytes[b] || f->row_bytes[a] / 4 != f->rows[b],
                   "the tiles do not fit each other");
    atomic_fetch_add(&amx_emulated_dots, 1);
    for (int m = 0; m < f->rows[c]; m++) {
        float even[16] = {0}, odd[16] = {0}, sum[16];
        uint32_t x[16], y[16];
        memcpy(x, emulated_tile[a][m], sizeof x);
        memcpy(sum, emulated_tile[c][m], sizeof sum);
        for (int k = 0; k < f->row_bytes[a] / 4; k++) {
            memcpy(y, emulated_tile[b][k], sizeof y);
            for (int n = 0; n < f->row_bytes[c] / 4; n++) {
                if (amx_emulated_wrong == 1) y[n] = y[n] << 16 | y[n] >> 16;
                even[n] = emulated_fma(x[k], y[n], even[n]);
                odd[n] = emulated_fma(x[k] >> 16, y[n] >> 16, odd[n]);
            }
        }
        for (int n = 0; n < f->row_bytes[c] / 4; n++)
            sum[n] = emulated_flush(emulated_flush(sum[n]) + emulated_flush(even[n] + odd[n]));
        memcpy(emulated_tile[c][m], sum, f->row_bytes[c]);
    }
}

static bool processor_has_it(void) { return true; }
static bool system_permits_it(void) { return true; }

#define tile_configure(config) emulated_configure(config)
#define tile_release() emulated_release()
#define tile_zero(t) emulated_zero(t)
#define tile_load(t, from, stride) emulated_load(t, from, stride)
#define tile_store(t, to, stride) emulated_store(t, to, stride)
#define tile_dot(c, a, b) emulated_dot(c, a, b)

#endif
