/* reduce.c - the one reduction of loop and mpi: element by element in rank order, so that the bits of a result
 * depend on neither backend, message size nor rank. Blocks of BLOCK elements are accumulated in L1: every input is
 * read once, the output written once. bf16 accumulates in f32 and is rounded once. */
#include "comm/backend.h"

enum { BLOCK = 1024 };

static float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t f32_to_bf16(float f) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (f != f) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* MAX keeps the accumulator unless x is larger or NaN: a NaN, once in, stays. i64 sums wrap, hence unsigned. */
#define ADD(a, x) ((a) + (x))
#define WRAP(a, x) ((int64_t)((uint64_t)(a) + (uint64_t)(x)))
#define MAX(a, x) ((x) > (a) || (x) != (x) ? (x) : (a))
#define SAME(x) (x)

/* T in memory, A in the accumulator. No loop-carried dependence, no multiplication to contract: vectorised, and
 * still the same bits at every optimisation level. */
#define REDUCE(NAME, T, A, LOAD, STORE, OP)                                                                            \
    static void NAME(T *out, const void *const *in, int n, int64_t first, int64_t count) {                             \
        A acc[BLOCK];                                                                                                  \
        for (int64_t at = 0; at < count; at += BLOCK) {                                                                \
            int m = (int)min64(BLOCK, count - at);                                                                     \
            const T *x = (const T *)in[0] + first + at;                                                                \
            for (int k = 0; k < m; k++) acc[k] = LOAD(x[k]);                                                           \
            for (int i = 1; i < n; i++) {                                                                              \
                x = (const T *)in[i] + first + at;                                                                     \
                for (int k = 0; k < m; k++) acc[k] = OP(acc[k], LOAD(x[k]));                                           \
            }                                                                                                          \
            for (int k = 0; k < m; k++) out[at + k] = STORE(acc[k]);                                                   \
        }                                                                                                              \
    }

REDUCE(sum_f32, float, float, SAME, SAME, ADD)
REDUCE(sum_f64, double, double, SAME, SAME, ADD)
REDUCE(sum_bf16, uint16_t, float, bf16_to_f32, f32_to_bf16, ADD)
REDUCE(sum_i64, int64_t, int64_t, SAME, SAME, WRAP)
REDUCE(max_f32, float, float, SAME, SAME, MAX)
REDUCE(max_f64, double, double, SAME, SAME, MAX)
REDUCE(max_bf16, uint16_t, float, bf16_to_f32, f32_to_bf16, MAX)
REDUCE(max_i64, int64_t, int64_t, SAME, SAME, MAX)

void comm_reduce_range(void *out, const void *const *in, int n, int64_t first, int64_t count, dtype t, comm_reduce op) {
    bool max = op == COMM_MAX;
    switch (t) {
    case DT_F32:
        (max ? max_f32 : sum_f32)(out, in, n, first, count);
        return;
    case DT_F64:
        (max ? max_f64 : sum_f64)(out, in, n, first, count);
        return;
    case DT_BF16:
        (max ? max_bf16 : sum_bf16)(out, in, n, first, count);
        return;
    case DT_I64:
        (max ? max_i64 : sum_i64)(out, in, n, first, count);
        return;
    default:
        ASSERT(!"a type that comm.c lets through");
    }
}
