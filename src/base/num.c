/* num.c - checked arithmetic, hashes, clocks, byte sizes as people write them, random numbers. */
#include "base/base.h"

#include <math.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

bool mul_ok(int64_t a, int64_t b, int64_t *out) { return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out); }
bool add_ok(int64_t a, int64_t b, int64_t *out) { return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out); }

uint64_t hash_bytes(uint64_t h, const void *p, size_t n) {
    const unsigned char *s = p;
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 0x100000001b3ULL;
    return h;
}

uint64_t hash_str(uint64_t h, const char *s) { return hash_bytes(h, s, strlen(s) + 1); }

double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

char *human_bytes(int64_t bytes, char *out) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    int u = 0;
    while (fabs(v) >= 1024 && u < 5) {
        v /= 1024;
        u++;
    }
    snprintf(out, 24, u ? "%.2f %s" : "%.0f %s", v, unit[u]);
    return out;
}

sp_status parse_bytes(const char *text, int64_t *bytes) {
    static const struct {
        const char *name;
        double scale;
    } units[] = {{"", 1},      {"B", 1},       {"KB", 1e3},        {"MB", 1e6},          {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 1024},  {"MiB", 1048576},   {"GiB", 1073741824.}, {"TiB", 1099511627776.},
                 {"K", 1024},  {"M", 1048576}, {"G", 1073741824.}, {"T", 1099511627776.}};
    char *end;
    double v = strtod(text, &end);
    bool ok = end != text && isfinite(v) && v >= 0;
    while (*end == ' ') end++;
    for (size_t i = 0; ok && i < sizeof units / sizeof *units; i++)
        if (strcasecmp(end, units[i].name) == 0) {
            v *= units[i].scale;
            if (v > 9e18) break;
            *bytes = (int64_t)v;
            return SP_OK;
        }
    FAIL("'%s' is not a size in bytes; write it as 2GiB, 80GB, 512MiB, 1.5e9 or 4096", text);
}

uint64_t rng_next(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

double rng_uniform(uint64_t *state) { return (double)(rng_next(state) >> 11) * 0x1p-53; }

double rng_normal(uint64_t *state) {
    double u = rng_uniform(state), v = rng_uniform(state); /* Box-Muller; 1-u keeps the log finite */
    return sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
}

static const struct {
    const char *name;
    int size;
} dtypes[DT_COUNT] = {[DT_F32] = {"f32", 4}, [DT_F64] = {"f64", 8}, [DT_BF16] = {"bf16", 2}, [DT_F16] = {"f16", 2},
                      [DT_I64] = {"i64", 8}, [DT_I32] = {"i32", 4}, [DT_BOOL] = {"bool", 1}};

int64_t dtype_size(dtype t) { return dtypes[t].size; }
const char *dtype_name(dtype t) { return dtypes[t].name; }

bool dtype_parse(const char *name, dtype *t) {
    for (int i = 0; i < DT_COUNT; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            *t = (dtype)i;
            return true;
        }
    return false;
}
