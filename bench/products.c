/* products.c - bench_kernels THREADS products: the matrix products of training, by form and shape.
 *
 * A layer of `in` to `out` channels on T tokens multiplies three times; with weights kept as (out, in), as nn.Linear
 * does:
 *   nt   y (T, out) = x W^T
 *   nn   dx (T, in) = dy W
 *   tn   dW (out, in) = dy^T x, or, when a gradient is there already, tn+: dW += dy^T x
 *   tc+  the same into a gradient kept as (in, out), as GPT-2's are
 * For GPT-2's layers y is an nn product and dx an nt one, of the same sizes.
 *
 * Each cell is two shares of the peak of register-only multiply-adds of its type: the library's, which kern_gemm
 * chooses wherever it has the form, and our own kernel's. They are medians of rounds; a round measures the peak and
 * then both kernels in turns, whichever goes first changing, so that a machine that slows down for a while slows all
 * three. The lines below the table say where our own kernel is so much faster that it ought to be taken (library below
 * 0.8 of it in the median of the rounds' ratios), and the least share of what is chosen by form.
 */
#include "bench.h"

#include <stdlib.h>

typedef enum form { NT, NN, TN, TN_ADD, TC_ADD, FORMS } form;
static const char *const form_name[] = {"nt", "nn", "tn", "tn+", "tc+"};

typedef struct layer {
    int64_t tokens, in, out;
} layer;

static const layer layers[] = {{512, 768, 768},    {512, 768, 2304},   {512, 768, 3072},   {512, 3072, 768},
                               {512, 768, 2048},   {2048, 768, 768},   {2048, 768, 2304},  {2048, 768, 3072},
                               {2048, 3072, 768},  {2048, 2048, 5632}, {4096, 768, 3072},  {512, 768, 32000},
                               {512, 768, 50257},  {1024, 1024, 1024}, {1024, 1024, 4096}, {1024, 4096, 1024},
                               {4096, 1024, 4096}, {4096, 2048, 2048}};
enum { LAYERS = sizeof layers / sizeof *layers, MAX_ROUNDS = 64, IMPLS = 2 };

static const double SAMPLE_S = 0.004; /* a sample repeats a product until it takes about this long */

static kern_gemm_desc describe(dtype t, form f, layer l, int threads) {
    kern_gemm_desc d = {.ab = t, .c = t, .alpha = 1, .threads = threads, .a_cs = 1, .b_cs = 1, .c_cs = 1};
    switch (f) {
    case NT:
        d.m = l.tokens, d.n = l.out, d.k = l.in;
        d.a_rs = l.in, d.b_rs = 1, d.b_cs = l.in, d.c_rs = l.out;
        break;
    case NN:
        d.m = l.tokens, d.n = l.in, d.k = l.out;
        d.a_rs = l.out, d.b_rs = l.in, d.c_rs = l.in;
        break;
    default:
        d.m = l.out, d.n = l.in, d.k = l.tokens;
        d.a_rs = 1, d.a_cs = l.out, d.b_rs = l.in, d.c_rs = l.in;
        d.c = DT_F32, d.beta = f != TN;
        if (f == TC_ADD) d.c_rs = 1, d.c_cs = l.out;
    }
    return d;
}

typedef struct operands {
    void *x, *w, *y; /* (T, in), (out, in) and (T, out), of the type in question */
    void *dx;
    float *dw;
} operands;

static void run(kern_gemm *g, form f, const operands *o, void *ws, int reps, sp_status *s) {
    const void *a = f == NT ? o->x : o->y, *b = f == NT || f == NN ? o->w : o->x;
    void *c = f == NT ? o->y : f == NN ? o->dx : (void *)o->dw;
    for (int i = 0; i < reps && *s == SP_OK; i++) *s = kern_gemm_run(g, a, b, c, NULL, ws);
}

typedef struct cell {
    double share[IMPLS], ratio; /* of the library and our own kernel; library to own, as speed */
    bool library;               /* has it this form? */
} cell;

/* `peaks`: the rounds' peaks, added to the range. */
static sp_status measure(dtype t, form f, layer l, int threads, int rounds, const operands *o, cell *out,
                         double peaks[2]) {
    static const kern_gemm_impl_choice impl[IMPLS] = {KERN_GEMM_LIBRARY, KERN_GEMM_OWN};
    double share[IMPLS][MAX_ROUNDS], ratio[MAX_ROUNDS];
    kern_gemm *g[IMPLS];
    void *ws[IMPLS];
    int reps[IMPLS];
    kern_gemm_desc d = describe(t, f, l, threads);
    const double flops = 2.0 * (double)d.m * (double)d.n * (double)d.k;
    sp_status s = SP_OK;
    for (int i = 0; i < IMPLS; i++) {
        d.impl = impl[i];
        if (kern_gemm_prepare(&d, &g[i]) != SP_OK) {
            g[i] = NULL;
            continue;
        }
        ws[i] = bench_alloc(kern_gemm_ws(g[i]));
        run(g[i], f, o, ws[i], 1, &s);
        double begin = bench_clock();
        run(g[i], f, o, ws[i], 1, &s);
        reps[i] = (int)(1 + SAMPLE_S / (bench_clock() - begin));
    }
    for (int r = 0; r < rounds; r++) {
        const double peak = kern_peak_flops(t, threads);
        peaks[0] = peak < peaks[0] ? peak : peaks[0], peaks[1] = peak > peaks[1] ? peak : peaks[1];
        for (int turn = 0; turn < IMPLS; turn++) {
            int i = (turn + r) % IMPLS;
            if (!g[i]) continue;
            double begin = bench_clock();
            run(g[i], f, o, ws[i], reps[i], &s);
            share[i][r] = flops * reps[i] / (bench_clock() - begin) / peak;
        }
        if (g[0]) ratio[r] = share[0][r] / share[1][r];
    }
    out->library = g[0] != NULL;
    out->ratio = g[0] ? bench_median(ratio, rounds) : 0;
    for (int i = 0; i < IMPLS; i++) {
        if (!g[i]) continue;
        out->share[i] = bench_median(share[i], rounds);
        kern_gemm_free(g[i]);
        free(ws[i]);
    }
    return s;
}

static sp_status table(dtype t, int threads, int rounds) {
    double least[FORMS], peaks[2] = {1e300, 0};
    for (double end = now_s() + 1; now_s() < end;) kern_peak_flops(t, threads); /* frequencies settle */
    int below = 0;
    printf("\n%s products on %d threads: share of the peak in %%, library / own\n\n| tokens in out |", dtype_name(t),
           threads);
    for (int f = 0; f < FORMS; f++) printf(" %s |", form_name[f]);
    printf("\n|---|");
    for (int f = 0; f < FORMS; f++) printf("---|"), least[f] = 1e300;
    printf("\n");
    for (int i = 0; i < LAYERS; i++) {
        const layer l = layers[i];
        operands o = {.x = bench_random(t, l.tokens * l.in),
                      .w = bench_random(t, l.out * l.in),
                      .y = bench_random(t, l.tokens * l.out),
                      .dx = bench_alloc((size_t)(l.tokens * l.in * dtype_size(t))),
                      .dw = bench_alloc(4 * (size_t)(l.out * l.in))};
        printf("| %d %d %d |", (int)l.tokens, (int)l.in, (int)l.out);
        for (form f = NT; f < FORMS; f++) {
            cell c = {0};
            TRY(measure(t, f, l, threads, rounds, &o, &c, peaks));
            if (c.library)
                printf(" %.0f / %.0f |", 100 * c.share[0], 100 * c.share[1]);
            else
                printf(" - / %.0f |", 100 * c.share[1]);
            fflush(stdout);
            if (c.library && c.ratio < 0.8) below++;
            const double chosen = c.share[c.library ? 0 : 1];
            least[f] = chosen < least[f] ? chosen : least[f];
        }
        printf("\n");
        free(o.x), free(o.w), free(o.y), free(o.dx), free(o.dw);
    }
    printf("\nPeak %.0f to %.0f GFLOP/s. Cells in which the library is below 0.8 of our own kernel: %d.\n"
           "Least share of the kernel that is chosen:",
           peaks[0] * 1e-9, peaks[1] * 1e-9, below);
    for (int f = 0; f < FORMS; f++) printf(" %s %.0f %%%s", form_name[f], 100 * least[f], f + 1 < FORMS ? "," : ".\n");
    return SP_OK;
}

int bench_products(int threads, int rounds, const char *type) {
    if (rounds > MAX_ROUNDS) rounds = MAX_ROUNDS;
    for (dtype t = DT_F32; t <= DT_BF16; t += DT_BF16) {
        if (*type && strcmp(type, dtype_name(t)) != 0) continue;
        if (table(t, threads, rounds) == SP_OK) continue;
        fprintf(stderr, "bench_kernels: %s\n", err_text());
        return 1;
    }
    return 0;
}
