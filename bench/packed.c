/* packed.c - bench_kernels THREADS packed: would it pay to bring weights into the library's own layout once a step?
 *
 * Forms are those of products.c: nt is y (T, out) = x W^T, nn is dx (T, in) = dy W, with W kept as (out, in). In turns:
 * kern_gemm's product with W as it lies, the library's with W in the layout that it asks for, and bringing W there.
 * Medians of rounds: shares of the peak, the time of packing in products of this length, and the speed against that of
 * plain products when a packed W is used once, 4 and 16 times (row tiles, microbatches, recomputation). The two forms
 * want two layouts, so each use counts within its form.
 */
#include "bench.h"

#ifndef AUTOSP_HAVE_ONEDNN

int bench_packed(int threads, int rounds, const char *type) {
    (void)threads, (void)rounds, (void)type;
    fprintf(stderr, "bench_kernels: built without oneDNN, there is nothing that packs weights\n");
    return 1;
}

#else

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

typedef struct shape {
    int64_t tokens, in, out;
} shape;

static const shape shapes[] = {{512, 768, 768},    {512, 768, 3072},   {512, 3072, 768},   {2048, 768, 3072},
                               {512, 2048, 5632},  {2048, 2048, 5632}, {512, 1024, 4096},  {512, 4096, 1024},
                               {4096, 1024, 4096}, {512, 4096, 4096},  {4096, 2048, 2048}, {512, 768, 32000}};
enum { SHAPES = sizeof shapes / sizeof *shapes, MAX_ROUNDS = 64 };
typedef enum contestant { PLAIN, PACKED, PACK, CONTESTANTS } contestant;

static const double SAMPLE_S = 0.004; /* a sample repeats what it times until it takes about this long */

static dnnl_engine_t engine;
static dnnl_stream_t stream;

/* Ends the program: a library that refuses these forms leaves nothing to measure. */
static void need(dnnl_status_t s) {
    if (s == dnnl_success) return;
    fprintf(stderr, "bench_kernels: oneDNN failed (status %d)\n", (int)s);
    exit(1);
}

typedef struct product {
    kern_gemm *plain;
    dnnl_primitive_t packed, pack;
    dnnl_memory_t x, w, w_packed, y;
    void *px, *pw, *py, *pw_packed, *ws;
} product;

static dnnl_memory_t memory(const dnnl_memory_desc_t *md, void *data) {
    dnnl_memory_t m;
    need(dnnl_memory_create(&m, md, engine, data));
    return m;
}

/* Y (m, n) = X (m, k) B (k, n); B is W transposed (nt) or W. */
static product make(dtype t, bool nt, shape l, int threads) {
    const int64_t m = l.tokens, k = nt ? l.in : l.out, n = nt ? l.out : l.in;
    const dnnl_data_type_t type = t == DT_F32 ? dnnl_f32 : dnnl_bf16;
    kern_gemm_desc d = {.ab = t, .c = t, .m = m, .n = n, .k = k, .alpha = 1, .threads = threads};
    d.a_rs = k, d.a_cs = 1, d.c_rs = n, d.c_cs = 1;
    d.b_rs = nt ? 1 : n, d.b_cs = nt ? k : 1;
    product p = {.px = bench_random(t, m * k), .pw = bench_random(t, k * n)};
    p.py = bench_alloc((size_t)(m * n * dtype_size(t)));
    if (kern_gemm_prepare(&d, &p.plain) != SP_OK) exit(1);
    p.ws = bench_alloc(kern_gemm_ws(p.plain));

    dnnl_memory_desc_t x, w, any, y;
    need(dnnl_memory_desc_init_by_strides(&x, 2, (dnnl_dims_t){m, k}, type, (dnnl_dims_t){k, 1}));
    need(dnnl_memory_desc_init_by_strides(&w, 2, (dnnl_dims_t){k, n}, type, (dnnl_dims_t){d.b_rs, d.b_cs}));
    need(dnnl_memory_desc_init_by_strides(&y, 2, (dnnl_dims_t){m, n}, type, (dnnl_dims_t){n, 1}));
    need(dnnl_memory_desc_init_by_tag(&any, 2, (dnnl_dims_t){k, n}, type, dnnl_format_tag_any));
    dnnl_matmul_desc_t op;
    dnnl_primitive_desc_t pd, reorder;
    need(dnnl_matmul_desc_init(&op, &x, &any, NULL, &y));
    need(dnnl_primitive_desc_create(&pd, &op, NULL, engine, NULL));
    const dnnl_memory_desc_t *own = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    need(dnnl_reorder_primitive_desc_create(&reorder, &w, engine, own, engine, NULL));
    need(dnnl_primitive_create(&p.packed, pd));
    need(dnnl_primitive_create(&p.pack, reorder));
    p.pw_packed = bench_alloc(dnnl_memory_desc_get_size(own));
    p.x = memory(&x, p.px), p.w = memory(&w, p.pw), p.y = memory(&y, p.py), p.w_packed = memory(own, p.pw_packed);
    need(dnnl_primitive_desc_destroy(pd));
    need(dnnl_primitive_desc_destroy(reorder));
    return p;
}

static void drop(product *p) {
    kern_gemm_free(p->plain);
    need(dnnl_primitive_destroy(p->packed));
    need(dnnl_primitive_destroy(p->pack));
    dnnl_memory_t all[] = {p->x, p->w, p->w_packed, p->y};
    for (int i = 0; i < 4; i++) need(dnnl_memory_destroy(all[i]));
    free(p->px), free(p->pw), free(p->py), free(p->pw_packed), free(p->ws);
}

static void run(const product *p, contestant who, int reps) {
    const dnnl_exec_arg_t product_args[] = {
        {DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, p->w_packed}, {DNNL_ARG_DST, p->y}};
    const dnnl_exec_arg_t pack_args[] = {{DNNL_ARG_FROM, p->w}, {DNNL_ARG_TO, p->w_packed}};
    for (int i = 0; i < reps; i++) {
        if (who == PLAIN) {
            if (kern_gemm_run(p->plain, p->px, p->pw, p->py, NULL, p->ws) != SP_OK) exit(1);
            continue;
        }
        if (who == PACKED)
            need(dnnl_primitive_execute(p->packed, stream, 3, product_args));
        else
            need(dnnl_primitive_execute(p->pack, stream, 2, pack_args));
        need(dnnl_stream_wait(stream));
    }
}

static void row(dtype t, bool nt, shape l, int threads, int rounds) {
    double share[2][MAX_ROUNDS], packing[MAX_ROUNDS], times[3][MAX_ROUNDS];
    static const int uses[3] = {1, 4, 16};
    int reps[CONTESTANTS];
    product p = make(t, nt, l, threads);
    for (contestant c = PLAIN; c < CONTESTANTS; c++) {
        run(&p, c, 1);
        double begin = bench_clock();
        run(&p, c, 1);
        reps[c] = (int)(1 + SAMPLE_S / (bench_clock() - begin));
    }
    for (int r = 0; r < rounds; r++) {
        double s[CONTESTANTS], peak = kern_peak_flops(t, threads);
        for (int turn = 0; turn < CONTESTANTS; turn++) {
            contestant c = (contestant)((turn + r) % CONTESTANTS);
            double begin = bench_clock();
            run(&p, c, reps[c]);
            s[c] = (bench_clock() - begin) / reps[c];
        }
        for (contestant c = PLAIN; c <= PACKED; c++)
            share[c][r] = 2.0 * (double)l.tokens * (double)l.in * (double)l.out / s[c] / peak;
        packing[r] = s[PACK] / s[PLAIN];
        for (int u = 0; u < 3; u++) times[u][r] = uses[u] * s[PLAIN] / (s[PACK] + uses[u] * s[PACKED]);
    }
    printf("| %d %d %d %s | %.0f | %.0f | %.3f |", (int)l.tokens, (int)l.in, (int)l.out, nt ? "nt" : "nn",
           100 * bench_median(share[PLAIN], rounds), 100 * bench_median(share[PACKED], rounds),
           bench_median(packing, rounds));
    for (int u = 0; u < 3; u++) printf(" %.3f |", bench_median(times[u], rounds));
    printf("\n");
    fflush(stdout);
    drop(&p);
}

int bench_packed(int threads, int rounds, const char *type) {
    if (rounds > MAX_ROUNDS) rounds = MAX_ROUNDS;
    need(dnnl_engine_create(&engine, dnnl_cpu, 0));
    need(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    for (dtype t = DT_F32; t <= DT_BF16; t += DT_BF16) {
        if (*type && strcmp(type, dtype_name(t)) != 0) continue;
        printf("\n%s weights on %d threads\n\n| tokens in out, form | plain, %% of peak | packed | packing, products | "
               "speed "
               "of 1 use | 4 uses | 16 uses |\n|---|---|---|---|---|---|---|\n",
               dtype_name(t), threads);
        for (double end = now_s() + 1; now_s() < end;) kern_peak_flops(t, threads); /* frequencies settle */
        for (int i = 0; i < SHAPES; i++)
            for (int nt = 1; nt >= 0; nt--) row(t, nt, shapes[i], threads, rounds);
    }
    need(dnnl_stream_destroy(stream));
    need(dnnl_engine_destroy(engine));
    return 0;
}

#endif
