/* kernels.c - speed of the CPU kernels: bench_kernels [threads] [filter] [wall|cpu]
 *
 * Prints for each kernel and shape the median time and the rate, and what share that is of a peak measured in the same
 * run on as many threads: register-only multiply-adds of the kernel's type for products and attention (peak.c), a triad
 * over arrays that do not fit any cache for the rest. `cpu` takes the processors' time over the number of threads
 * instead of the clock: on a busy machine it is what the time would be near if the threads had the processors to
 * themselves. Attention counts visible scores only (4 D operations a score forward, 10 D backward).
 */
#include "device/cpu/kern.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { REPS = 7 };

static const char *filter = "";
static int threads = 1;
static double peak_flops, peak_bf16, peak_bytes;

static void *xalloc(size_t n) {
    void *p = NULL;
    n = (n + 4095) / 4096 * 4096 + 4096;
    if (posix_memalign(&p, 4096, n)) {
        fprintf(stderr, "bench_kernels: out of memory\n");
        exit(1);
    }
    memset(p, 0, n);
    return p;
}

static float *random_f32(int64_t n) {
    static uint64_t seed = 1;
    float *x = xalloc(4 * (size_t)n);
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_uniform(&seed) - 0.5f;
    return x;
}

static uint16_t *random_bf16(int64_t n) {
    float *x = random_f32(n);
    uint16_t *y = xalloc(2 * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, 4);
        y[i] = (uint16_t)(u >> 16);
    }
    free(x);
    return y;
}

static void *random_of(dtype t, int64_t n) { return t == DT_F32 ? (void *)random_f32(n) : (void *)random_bf16(n); }

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool by_cpu;
static double clock_s(void) {
    struct timespec t;
    if (!by_cpu) return now_s();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / threads;
}

/* TIME(seconds, statement): the median of REPS runs after one to warm up. */
#define TIME(out, ...)                                                                                                 \
    do {                                                                                                               \
        double sample[REPS];                                                                                           \
        __VA_ARGS__;                                                                                                   \
        for (int rep = 0; rep < REPS; rep++) {                                                                         \
            double begin = clock_s();                                                                                  \
            __VA_ARGS__;                                                                                               \
            sample[rep] = clock_s() - begin;                                                                           \
        }                                                                                                              \
        qsort(sample, REPS, sizeof *sample, by_value);                                                                 \
        (out) = sample[REPS / 2];                                                                                      \
    } while (0)

static bool wanted(const char *name) { return strstr(name, filter) != NULL; }
static void report_flops(const char *name, const char *shape, double s, double flops) {
    printf("%-22s %-44s %10.3f ms %9.1f GF/s %5.1f%%\n", name, shape, s * 1e3, flops / s * 1e-9,
           100 * flops / s / (strstr(name, "bf16") ? peak_bf16 : peak_flops));
    fflush(stdout);
}
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

static void measure_peaks(void) {
    const int64_t m = 1 << 25;
    double s;
    peak_flops = kern_peak_flops(DT_F32, threads);
    peak_bf16 = kern_peak_flops(DT_BF16, threads);
    float *a = random_f32(m), *b = random_f32(m), *c = random_f32(m);
    TIME(s, triad(m, a, b, c));
    peak_bytes = 12.0 * (double)m / s;
    free(a), free(b), free(c);
    printf("threads %d: f32 multiply-add peak %.1f GF/s, bf16 %.1f GF/s, triad %.1f GB/s\n", threads, peak_flops * 1e-9,
           peak_bf16 * 1e-9, peak_bytes * 1e-9);
}

/* ---- attention --------------------------------------------------------------------------------- */

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
    for (int i = 0; i < 8; i++) all[i]->data = random_of(t, tensor_numel(all[i]));
    lse.data = xalloc(4 * (size_t)(H * S));
    kern_attn_params p = kern_attn_defaults(1.f / sqrtf((float)D));
    p.causal = causal;
    size_t fwd_bytes = kern_attn_fwd_ws(&q, &k, threads), bwd_bytes = kern_attn_bwd_ws(&q, &k, threads);
    void *ws = xalloc(fwd_bytes > bwd_bytes ? fwd_bytes : bwd_bytes);
    double s, pairs = causal ? 0.5 * (double)S * (double)(S + 1) : (double)S * (double)S;
    double work = pairs * (double)(H * D);
    TIME(s, kern_attn_fwd(&q, &k, &v, &o, &lse, &p, ws, fwd_bytes));
    if (wanted(fwd)) report_flops(fwd, shape, s, 4 * work);
    if (wanted(bwd)) {
        TIME(s, kern_attn_bwd(&q, &k, &v, &o, &lse, &dout, &dq, &dk, &dv, &p, ws, bwd_bytes));
        report_flops(bwd, shape, s, 10 * work);
    }
    for (int i = 0; i < 8; i++) free(all[i]->data);
    free(lse.data), free(ws);
}

/* ---- matrix products --------------------------------------------------------------------------- */

typedef enum form { NT, NN, TN } form; /* y = x W^T, dx = dy W, dW += dy^T x */

static void product(dtype t, form f, kern_gemm_impl_choice impl, int64_t m, int64_t n, int64_t k) {
    static const char *const form_name[] = {"nt", "nn", "tn+"};
    char shape[80], name[40];
    snprintf(name, sizeof name, "gemm_%s %s %s", form_name[f], dtype_name(t),
             impl == KERN_GEMM_OWN ? "own" : "library");
    if (!wanted(name)) return;
    kern_gemm_desc d = {.ab = t,
                        .c = f == TN ? DT_F32 : t,
                        .m = m,
                        .n = n,
                        .k = k,
                        .a_rs = k,
                        .a_cs = 1,
                        .b_rs = n,
                        .b_cs = 1,
                        .c_rs = n,
                        .c_cs = 1,
                        .alpha = 1,
                        .beta = f == TN,
                        .impl = impl,
                        .threads = threads};
    if (f == NT) d.b_rs = 1, d.b_cs = k;
    if (f == TN) d.a_rs = 1, d.a_cs = m;
    kern_gemm *g;
    if (kern_gemm_prepare(&d, &g) != SP_OK) {
        printf("%-22s %s\n", name, err_text());
        return;
    }
    void *a = random_of(t, m * k), *b = random_of(t, n * k), *c = random_of(d.c, m * n), *ws = xalloc(kern_gemm_ws(g));
    snprintf(shape, sizeof shape, "M=%d N=%d K=%d %s", (int)m, (int)n, (int)k, kern_gemm_impl(g));
    double s;
    sp_status status;
    TIME(s, status = kern_gemm_run(g, a, b, c, NULL, ws));
    if (status == SP_OK) report_flops(name, shape, s, 2.0 * (double)m * (double)n * (double)k);
    kern_gemm_free(g);
    free(a), free(b), free(c), free(ws);
}

static void products(dtype t) {
    static const int64_t shape[][3] = {{512, 768, 768},   {512, 3072, 768},   {2048, 768, 768},
                                       {2048, 3072, 768}, {2048, 768, 3072},  {4096, 1024, 1024},
                                       {4096, 256, 256},  {1024, 1024, 2048}, {2048, 2048, 64}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (form f = NT; f <= TN; f++)
            for (kern_gemm_impl_choice c = KERN_GEMM_OWN; c <= KERN_GEMM_LIBRARY; c++)
                product(t, f, c, shape[i][0], shape[i][1], shape[i][2]);
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
    void *x = random_of(t, rows * n), *y = random_of(t, rows * n), *z = random_of(t, rows * n),
         *d = random_of(t, rows * n);
    void *w = random_of(t, n), *b = random_of(t, n), *ws = xalloc(kern_norm_bwd_ws(rows, n));
    float *mean = xalloc(4 * (size_t)rows), *rstd = xalloc(4 * (size_t)rows), *dw = xalloc(4 * (size_t)n);
    float *db = xalloc(4 * (size_t)n);
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
    tensor cs = {.data = random_f32(rows * 64), .type = DT_F32, .rank = 2, .dim = {rows, 64}, .stride = {64, 1}};
    y4.data = y;
    BYTES("rope", "S=8192 H=32 D=64", 2 * all, kern_rope(&a4, &cs, &cs, false, &y4));
    BYTES("copy contiguous", shape, 2 * all, kern_copy(&y4, &a4));
    tensor h4 = y4; /* (B,S,H,D) laid out (B,H,S,D) */
    h4.stride[2] = rows * 64, h4.stride[1] = 64;
    BYTES("copy heads first", "S=8192 H=32 D=64", 2 * all, kern_copy(&h4, &a4));
    tensor a2 = {.data = x, .type = t, .rank = 2, .dim = {rows, n}, .stride = {n, 1}}, t2 = a2;
    t2.data = y, t2.stride[0] = 1, t2.stride[1] = rows;
    BYTES("copy transpose", shape, 2 * all, kern_copy(&t2, &a2));

    int64_t *ids = xalloc(8 * (size_t)rows);
    float *table = random_f32(vocab * n);
    for (int64_t i = 0; i < rows; i++) ids[i] = i * 7919 % vocab;
    sp_status status;
    BYTES("embed_fwd", "rows=8192 n=2048 V=32000", 2 * all,
          status = kern_embed_fwd(t, rows, n, vocab, ids, table, y, n));
    BYTES("embed_bwd", "rows=8192 n=2048 V=32000", all + 8 * rows * n,
          kern_embed_bwd(t, rows, n, ids, -1, x, n, table));
    free(table);
    void *logits = random_of(t, some * vocab);
    float *dl = random_f32(some);
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
        fprintf(stderr, "usage: bench_kernels [threads] [filter] [wall|cpu]\n");
        return 2;
    }
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
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
        products(t);
        row_kernels(t);
    }
    return 0;
}
