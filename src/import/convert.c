/* convert.c - element type conversion for weights and checkpoints. See st_convert in safetensors.h.
 *
 * Two loops: the pairs that matter for size (f32 with bf16, f16, f64) are direct; everything else goes through a
 * double, which holds every value of every type but the largest int64 exactly.
 */
#include "import/safetensors.h"

static float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint16_t f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); /* NaN stays NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff, u;
    if (e == 31) {
        u = sign | 0x7f800000 | m << 13;
    } else if (e) {
        u = sign | (e + 112) << 23 | m << 13;
    } else if (m) { /* subnormal: the value is m * 2^-24 */
        float f = (float)m * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    } else {
        u = sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* From a double, so that one rounding is made whatever the source. */
static uint16_t f64_to_f16(double d) {
    uint16_t sign = 0;
    uint64_t u;
    memcpy(&u, &d, 8);
    if (u >> 63) sign = 0x8000, d = -d;
    if (d != d) return sign | 0x7e00;
    if (d >= 65520.0) return sign | 0x7c00; /* halfway to the first value that does not fit: rounds to infinity */
    if (d < 0x1p-14) { /* subnormal: adding 2^28 leaves units of 2^-24, rounded to even by the addition */
        double r = d + 0x1p28;
        return (uint16_t)(sign | (uint16_t)((r - 0x1p28) * 0x1p24));
    }
    memcpy(&u, &d, 8);
    u += ((uint64_t)1 << 41) - 1 + (u >> 42 & 1);
    return (uint16_t)(sign | (uint16_t)(((u >> 52) - 1008) << 10 | (u >> 42 & 0x3ff)));
}

/* Straight from a double: through f32 a value near a halfway point would round twice. Rounding to odd in f32 first
 * keeps the halfway information (Boldo and Melquiond, 2008). */
static uint16_t f64_to_bf16(double d) {
    float f = (float)d;
    if (f == f && (double)f != d) {
        uint32_t u;
        memcpy(&u, &f, 4);
        bool away = (double)f > d ? d > 0 : d < 0; /* |f| > |d| */
        if (away) u--;
        u |= 1;
        memcpy(&f, &u, 4);
        if ((u & 0x7fffffff) > 0x7f800000) f = d > 0 ? __builtin_inff() : -__builtin_inff();
    }
    return f32_to_bf16(f);
}

static double load(const uint8_t *p, dtype t) {
    uint16_t h;
    int32_t i;
    int64_t l;
    float f;
    double d;
    switch (t) {
    case DT_F32:
        memcpy(&f, p, 4);
        return f;
    case DT_F64:
        memcpy(&d, p, 8);
        return d;
    case DT_BF16:
        memcpy(&h, p, 2);
        return bf16_to_f32(h);
    case DT_F16:
        memcpy(&h, p, 2);
        return f16_to_f32(h);
    case DT_I64:
        memcpy(&l, p, 8);
        return (double)l;
    case DT_I32:
        memcpy(&i, p, 4);
        return i;
    case DT_BOOL:
        return *p != 0;
    default:
        return 0;
    }
}

/* Truncates; NaN gives 0 and what does not fit gives the nearest bound. */
static int64_t to_int(double d, int64_t lo, int64_t hi) {
    if (d != d) return 0;
    if (d <= (double)lo) return lo;
    return d >= (double)hi ? hi : (int64_t)d;
}

static void store(uint8_t *p, dtype t, double d) {
    uint16_t h;
    int32_t i;
    int64_t l;
    float f;
    switch (t) {
    case DT_F32:
        f = (float)d, memcpy(p, &f, 4);
        break;
    case DT_F64:
        memcpy(p, &d, 8);
        break;
    case DT_BF16:
        h = f64_to_bf16(d), memcpy(p, &h, 2);
        break;
    case DT_F16:
        h = f64_to_f16(d), memcpy(p, &h, 2);
        break;
    case DT_I64:
        l = to_int(d, INT64_MIN, INT64_MAX), memcpy(p, &l, 8);
        break;
    case DT_I32:
        i = (int32_t)to_int(d, INT32_MIN, INT32_MAX), memcpy(p, &i, 4);
        break;
    case DT_BOOL:
        *p = d != 0;
        break;
    default:
        break;
    }
}

void st_convert(void *dst, dtype to, const void *src, dtype from, int64_t n) {
    uint8_t *d = dst;
    const uint8_t *s = src;
    if (n <= 0) return;
    if (to == from) {
        memcpy(d, s, (size_t)(n * dtype_size(to)));
    } else if (from == DT_BF16 && to == DT_F32) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, s + 2 * i, 2);
            float f = bf16_to_f32(h);
            memcpy(d + 4 * i, &f, 4);
        }
    } else if (from == DT_F32 && to == DT_BF16) {
        for (int64_t i = 0; i < n; i++) {
            float f;
            memcpy(&f, s + 4 * i, 4);
            uint16_t h = f32_to_bf16(f);
            memcpy(d + 2 * i, &h, 2);
        }
    } else if (from == DT_I64 && to == DT_I32) {
        for (int64_t i = 0; i < n; i++) {
            int64_t l;
            memcpy(&l, s + 8 * i, 8);
            int32_t v = (int32_t)max64(INT32_MIN, min64(INT32_MAX, l));
            memcpy(d + 4 * i, &v, 4);
        }
    } else {
        const int64_t ds = dtype_size(to), ss = dtype_size(from);
        for (int64_t i = 0; i < n; i++) store(d + i * ds, to, load(s + i * ss, from));
    }
}
