/* peak.c - the machine's own limits, measured: multiply-adds from registers alone, and bytes that stream through
 * memory.
 *
 * Each takes a tenth of a second and the best of short runs: a limit is what is reached when nothing else disturbs.
 */
#include "device/cpu/kern.h"
#include "device/cpu/threads.h"
#include "device/cpu/vec.h"

#include <stdlib.h>

/* Independent sums enough to hide an operation's latency; they have to fit the registers. */
enum { SUMS = 12, PAIR_SUMS = VEC_PAIRS ? 24 : SUMS, BUDGET_MS = 100 };

INLINE float chain(bool pairs, int sums, int64_t n) {
    /* Read at run time: a compiler that knows them drops a sum which stays as it is (1 * 0.5 + 0.5). */
    volatile float half = 0.5f, start = 2;
    vf acc[PAIR_SUMS], x = vset(half);
#pragma GCC unroll 24
    for (int j = 0; j < sums; j++) acc[j] = vset(start);
    for (int64_t i = 0; i < n; i++) {
#pragma GCC unroll 24
        for (int j = 0; j < sums; j++) acc[j] = pairs ? vdot_pairs(acc[j], x, x) : acc[j] * x + x;
        __asm__ volatile("" ::: "memory");
    }
    float sink = 0;
#pragma GCC unroll 24
    for (int j = 0; j < sums; j++) sink += acc[j][0];
    return sink;
}

double kern_peak_flops(dtype t, int threads) {
    const bool pairs = t == DT_BF16 && VEC_PAIRS;
    const int64_t n = 400000;
    double best = 0, end = now_s() + 1e-3 * BUDGET_MS;
    volatile float sink = 0;
    for (int rep = 0; rep < 4 || now_s() < end; rep++) {
        double begin = now_s();
        float sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += pairs ? chain(true, PAIR_SUMS, n) : chain(false, SUMS, n);
        sink = sink + sum;
        double rate = (pairs ? 4.0 * PAIR_SUMS : 2.0 * SUMS) * VL * (double)n * threads / (now_s() - begin);
        best = rate > best ? rate : best;
    }
    return best;
}

double kern_peak_bytes(int threads) {
    enum { PART = 1 << 14 };
    const int64_t n = (int64_t)32 << 20; /* floats: more than the caches hold */
    float *x = malloc(sizeof *x * (size_t)n);
    if (!x) return 0;
    double best = 0;
    for (int rep = 0; rep < 5; rep++) { /* the first one touches the pages */
        double begin = now_s();
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t i = 0; i < n; i += PART)
            for (int64_t k = i; k < i + PART; k += VL) vst(x + k, rep ? vld(x + k) * 0.5f : vset(1));
        double rate = 8.0 * (double)n / (now_s() - begin);
        if (rep) best = rate > best ? rate : best;
    }
    free(x);
    return best;
}
