/* kernels.c - speed of the CPU kernels: bench_kernels [threads] [filter] [wall|cpu]
 *                                       bench_kernels THREADS products|packed [wall|cpu] [f32|bf16]
 *
 * Prints for each kernel and shape the median time and the rate, and what share that is of a peak measured in the same
 * run on as many threads: register-only multiply-adds of the kernel's type for products and attention (peak.c), a triad
 * over arrays that do not fit any cache for the rest. `cpu` takes the processors' time over the number of threads
 * instead of the clock: on a busy machine it is what the time would be near if the threads had the processors to
 * themselves. Attention counts visible scores only (4 D operations a score forward, 10 D backward).
 */
#include "bench.h"
#include "device/cpu/vec.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { REPS = 7, ROUNDS = 9 };

static const char *filter = "";
static int threads = 1;
static double peak_flops, peak_bf16, peak_bytes, peak_exp;

void *bench_alloc(size_t n) {
    void *p = NULL;
    n = (n + 4095) / 4096 * 4096 + 4096;
    if (posix_memalign(&p, 4096, n)) {
        fprintf(stderr, "bench_kernels: out of memory\n");
        exit(1);
    }
    memset(p, 0, n);
    return p;
}

void *bench_random(dtype t, int64_t n) {
    static uint64_t seed = 1;
    void *x = bench_alloc((size_t)(n * dtype_size(t)));
    for (int64_t i = 0; i < n; i++) {
        float v = (float)rng_uniform(&seed) - 0.5f;
        uint32_t u;
        memcpy(&u, &v, 4);
        if (t == DT_F32)
            ((float *)x)[i] = v;
        else
            ((uint16_t *)x)[i] = (uint16_t)(u >> 16);
    }
    return x;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

static bool by_cpu;
double bench_clock(void) {
    struct timespec t;
    if (!by_cpu) return now_s();
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / threads;
}

/* TIME(seconds, statement): the median of REPS runs after one to warm up. */
#define TIME(out, ...)                                                                                                 \
    do {                                                                                                               \
        double sample[REPS];                                                                                           \
        __VA_ARGS__;                                                                                                   \
        for (int rep = 0; rep < REPS; rep++) {                                                                         \
            double begin = bench_clock();                                                                              \
            __VA_ARGS__;                                                                                               \
            sample[rep] = bench_clock() - begin;                                                                       \
        }                                                                                                              \
        (out) = bench_median(sample, REPS);                                                                            \
    } while (0)

static bool wanted(const char *name) { return strstr(name, filter) != NULL; }
static void report_bytes(const char *name, const char *shape, double s, double bytes) {
    printf("%-22s %-44s %10.3f ms %9.1f GB/s %5.1f%%\n", name, shape, s * 1e3, bytes / s * 1e-9,
           100 * bytes / s / peak_bytes);
    fflush(stdout);
}

/* ---- peaks ------------------------------------------------------------------------------------- */

static void triad(int64_t n, float *a, const float *b, const float *c) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) a[i] = b[i] + 0.5f * c[i];
}

/* n times 2^-x of SUMS independent vectors, from registers alone. */
INLINE float exponentials(int64_t n) {
    enum { SUMS = 16 };
    vf x[SUMS];
    float sink = 0;
#pragma GCC unroll 16
    for (int j = 0; j < SUMS; j++) x[j] = vset((float)j * 0.05f);
    for (int64_t i = 0; i < n; i += SUMS) {
#pragma GCC unroll 16
        for (int j = 0; j < SUMS; j++) x[j] = vexp2_neg(-x[j]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < SUMS; j++) sink += x[j][0];
    return sink;
}

/* Exponentials a second, the best of short runs as kern_peak_flops takes it. */
static double measure_exp(void) {
    const int64_t n = 400000;
    double best = 0, end = now_s() + 0.1;
    volatile float sink = 0;
    while (now_s() < end) {
        double begin = now_s();
        float sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += exponentials(n);
        sink = sink + sum;
        best = fmax(best, (double)n * VL * threads / (now_s() - begin));
    }
    return best;
}

static void measure_peaks(void) {
    const int64_t m = 1 << 25;
    double s;
    peak_exp = measure_exp();
    peak_flops = kern_peak_flops(DT_F32, threads);
    peak_bf16 = kern_peak_flops(DT_BF16, threads);
    float *a = bench_random(DT_F32, m), *b = bench_random(DT_F32, m), *c = bench_random(DT_F32, m);
    TIME(s, triad(m, a, b, c));
    peak_bytes = 12.0 * (double)m / s;
    free(a), free(b), free(c);
    printf("threads %d: f32 multiply-add peak %.1f GF/s, bf16 %.1f GF/s, %.2f G exponentials/s, triad %.1f GB/s\n",
           threads, peak_flops * 1e-9, peak_bf16 * 1e-9, peak_exp * 1e-9, peak_bytes * 1e-9);
}

/* ---- attention --------------------------------------------------------------------------------- */

/* A score costs `flops` operations of products and one exponential; nothing overlaps, as both are done by the same
 * units. With both at the rates of registers alone, this is the share of the peak that the products can reach: */
static double attainable(dtype t, double flops) {
    double products = flops / (t == DT_F32 ? peak_flops : peak_bf16);
    return products / (products + 1 / peak_exp);
}

static void report_attention(const char *name, dtype t, const char *shape, double s, double scores, double flops) {
    double share = scores * flops / s / (t == DT_F32 ? peak_flops : peak_bf16), bound = attainable(t, flops);
    printf("%-22s %-44s %10.3f ms %9.1f GF/s %5.1f%% of peak; bound %.1f%%, %.1f%% of it\n", name, shape, s * 1e3,
           scores * flops / s * 1e-9, 100 * share, 100 * bound, 100 * share / bound);
    fflush(stdout);
}

static void attention(dtype t, int64_t S, int64_t H, int64_t Hkv, int64_t D, bool causal) {
    char shape[80];
    const char *fwd = t == DT_F32 ? "attn_fwd f32" : "attn_fwd bf16",
               *bwd = t == DT_F32 ? "attn_bwd f32" : "attn_bwd bf16";
    if (!wanted(fwd) && !wanted(bwd)) return;
    snprintf(shape, sizeof shape, "S=%d H=%d/%d D=%d%s", (int)S, (int)H, (int)Hkv, (int)D, causal ? " causal" : "");
    tensor q = {.type = t, .rank = 4, .dim = {1, S, H, D}, .stride = {S * H * D, H * D, D, 1}}, k = q;
    k.dim[2] = Hkv, k.stride[0] = S * Hkv * D, k.stride[1] = Hkv * D;
    tensor v = k, dk = k, dv = k, o = q, dq = q, dout = q;
    tensor lse = {.type = DT_F32, .rank = 3, .dim = {1, H, S}, .stride = {H * S, S, 1}};
    tensor *all[] = {&q, &k, &v, &o, &dout, &dq, &dk, &dv};
    for (int i = 0; i < 8; i++) all[i]->data = bench_random(t, tensor_numel(all[i]));
    lse.data = bench_alloc(4 * (size_t)(H * S));
    kern_attn_params p = kern_attn_defaults(1.f / sqrtf((float)D));
    p.causal = causal;
    size_t fwd_bytes = kern_attn_fwd_ws(&q, &k, &p, threads), bwd_bytes = kern_attn_bwd_ws(&q, &k, &p, threads);
    void *ws = bench_alloc(fwd_bytes > bwd_bytes ? fwd_bytes : bwd_bytes);
    double s, pairs = causal ? 0.5 * (double)S * (double)(S + 1) : (double)S * (double)S;
    const double scores = pairs * (double)H;
    TIME(s, kern_attn_fwd(&q, &k, &v, &o, &lse, &p, ws, fwd_bytes));
    if (wanted(fwd)) report_attention(fwd, t, shape, s, scores, 4.0 * (double)D);
    if (wanted(bwd)) {
        TIME(s, kern_attn_bwd(&q, &k, &v, &o, &lse, &dout, &dq, &dk, &dv, &p, ws, bwd_bytes));
        report_attention(bwd, t, shape, s, scores, 10.0 * (double)D);
    }
    for (int i = 0; i < 8; i++) free(all[i]->data);
    free(lse.data), free(ws);
}

/* ---- rows and elements: bytes that have to move, read and written ------------------------------ */

/* BYTES("name", shape, bytes, call) */
#define BYTES(name, shape, bytes, ...)                                                                                 \
    do {                                                                                                               \
        char full[64];                                                                                                 \
        double s;                                                                                                      \
        snprintf(full, sizeof full, "%s %s", name, dtype_name(t));                                                     \
        if (!wanted(full)) break;                                                                                      \
        TIME(s, __VA_ARGS__);                                                                                          \
        report_bytes(full, shape, s, (double)(bytes));                                                                 \
    } while (0)

static void row_kernels(dtype t) {
    const int64_t rows = 8192, n = 2048, e = dtype_size(t), all = rows * n * e, vocab = 32000, some = 512;
    const char *shape = "rows=8192 n=2048";
    void *x = bench_random(t, rows * n), *y = bench_random(t, rows * n), *z = bench_random(t, rows * n),
         *d = bench_random(t, rows * n);
    void *w = bench_random(t, n), *b = bench_random(t, n), *ws = bench_alloc(kern_norm_bwd_ws(rows, n));
    float *mean = bench_alloc(4 * (size_t)rows), *rstd = bench_alloc(4 * (size_t)rows),
          *dw = bench_alloc(4 * (size_t)n);
    float *db = bench_alloc(4 * (size_t)n);
    BYTES("rmsnorm_fwd", shape, 2 * all, kern_rmsnorm_fwd(t, rows, n, x, n, w, 1e-5f, y, n, rstd));
    BYTES("rmsnorm_bwd", shape, 3 * all, kern_rmsnorm_bwd(t, rows, n, x, n, w, rstd, z, n, d, n, dw, true, ws));
    BYTES("layernorm_fwd", shape, 2 * all, kern_layernorm_fwd(t, rows, n, x, n, w, b, 1e-5f, y, n, mean, rstd));
    BYTES("layernorm_bwd", shape, 3 * all,
          kern_layernorm_bwd(t, rows, n, x, n, w, mean, rstd, z, n, d, n, dw, db, true, ws));
    BYTES("softmax_fwd", shape, 2 * all, kern_softmax_fwd(t, rows, n, x, n, y, n));
    BYTES("softmax_bwd", shape, 3 * all, kern_softmax_bwd(t, rows, n, y, n, z, n, d, n));
    BYTES("silu_fwd", shape, 2 * all, kern_act_fwd(KERN_SILU, t, rows * n, x, y));
    BYTES("gelu_fwd", shape, 2 * all, kern_act_fwd(KERN_GELU, t, rows * n, x, y));
    BYTES("gelu_bwd", shape, 3 * all, kern_act_bwd(KERN_GELU, t, rows * n, x, z, d));
    BYTES("gelu_tanh_fwd", shape, 2 * all, kern_act_fwd(KERN_GELU_TANH, t, rows * n, x, y));
    BYTES("gelu_tanh_bwd", shape, 3 * all, kern_act_bwd(KERN_GELU_TANH, t, rows * n, x, z, d));
    BYTES("swiglu_fwd", shape, 3 * all, kern_swiglu_fwd(t, rows, n, x, n, z, n, y, n));
    BYTES("swiglu_bwd", shape, 5 * all, kern_swiglu_bwd(t, rows, n, x, n, z, n, y, n, d, n, y, n));
    BYTES("add", shape, 3 * all, kern_add(t, rows * n, x, z, y));
    BYTES("axpy", shape, 3 * all, kern_axpy(t, rows * n, 0.5f, x, y));
    volatile double sink;
    BYTES("sumsq", shape, all, sink = kern_sumsq(t, rows * n, x));
    (void)sink;

    tensor a4 = {.data = x, .type = t, .rank = 4, .dim = {1, rows, 32, 64}, .stride = {rows * n, n, 64, 1}}, y4 = a4;
    tensor cs = {
        .data = bench_random(DT_F32, rows * 64), .type = DT_F32, .rank = 2, .dim = {rows, 64}, .stride = {64, 1}};
    y4.data = y;
    BYTES("rope", "S=8192 H=32 D=64", 2 * all, kern_rope(&a4, &cs, &cs, false, &y4));
    BYTES("copy contiguous", shape, 2 * all, kern_copy(&y4, &a4));
    tensor h4 = y4; /* (B,S,H,D) laid out (B,H,S,D) */
    h4.stride[2] = rows * 64, h4.stride[1] = 64;
    BYTES("copy heads first", "S=8192 H=32 D=64", 2 * all, kern_copy(&h4, &a4));
    tensor a2 = {.data = x, .type = t, .rank = 2, .dim = {rows, n}, .stride = {n, 1}}, t2 = a2;
    t2.data = y, t2.stride[0] = 1, t2.stride[1] = rows;
    BYTES("copy transpose", shape, 2 * all, kern_copy(&t2, &a2));

    int64_t *ids = bench_alloc(8 * (size_t)rows);
    float *table = bench_random(DT_F32, vocab * n);
    for (int64_t i = 0; i < rows; i++) ids[i] = i * 7919 % vocab;
    sp_status status;
    BYTES("embed_fwd", "rows=8192 n=2048 V=32000", 2 * all,
          status = kern_embed_fwd(t, rows, n, vocab, ids, table, y, n));
    BYTES("embed_bwd", "rows=8192 n=2048 V=32000", all + 8 * rows * n,
          kern_embed_bwd(t, rows, n, ids, -1, x, n, table));
    free(table);
    void *logits = bench_random(t, some * vocab);
    float *dl = bench_random(DT_F32, some);
    BYTES("xent_fwd", "rows=512 V=32000", some * vocab * e,
          status = kern_xent_fwd(t, some, vocab, logits, vocab, ids, -100, mean, rstd));
    BYTES("xent_bwd", "rows=512 V=32000 in place", 2 * some * vocab * e,
          kern_xent_bwd(t, some, vocab, logits, vocab, ids, -100, rstd, dl, 1, logits, vocab));
    (void)status;
    if (t == DT_F32) {
        adamw_params p = {.lr = 1e-5, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_scale = 1, .step = 10};
        memset(d, 0, (size_t)all), memset(z, 0, (size_t)all);
        BYTES("adamw", "n=16M", 7 * all, kern_adamw(rows * n, x, y, d, z, &p, NULL));
    }
    void *each[] = {x, y, z, d, w, b, ws, mean, rstd, dw, db, cs.data, ids, logits, dl};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) free(each[i]);
}

int main(int argc, char **argv) {
    if (argc > 1) threads = atoi(argv[1]);
    if (argc > 2) filter = argv[2];
    if (argc > 3) by_cpu = strcmp(argv[3], "cpu") == 0;
    if (threads < 1) {
        fprintf(stderr, "usage: bench_kernels [threads] [filter] [wall|cpu]\n"
                        "       bench_kernels THREADS products|packed [wall|cpu] [f32|bf16]\n");
        return 2;
    }
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    if (strcmp(filter, "products") == 0) return bench_products(threads, ROUNDS, argc > 4 ? argv[4] : "");
    if (strcmp(filter, "packed") == 0) return bench_packed(threads, ROUNDS, argc > 4 ? argv[4] : "");
    measure_peaks();
    for (dtype t = DT_F32; t <= DT_BF16; t += DT_BF16) {
        attention(t, 2048, 8, 8, 64, true);
        attention(t, 4096, 8, 2, 64, true);
        attention(t, 4096, 12, 12, 64, true);
        attention(t, 4096, 4, 4, 128, true);
        attention(t, 16384, 2, 2, 64, true);
        attention(t, 2048, 8, 8, 64, false);
        attention(t, 2048, 8, 8, 80, true);
        attention(t, 2048, 8, 8, 32, true);
        attention(t, 2048, 2, 2, 256, true);
        row_kernels(t);
    }
    return 0;
}
