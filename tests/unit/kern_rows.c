/* kern_rows.c - the row and element-wise kernels against plain loops in double precision, f32 and bf16; gradients of
 * the activations also against differences of the functions themselves. */
#include "device/device.h"
#include "values.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

#ifdef _OPENMP
#include <omp.h>
#endif

static uint64_t seed = 17;
/* |have - want| <= tol * max(1, |want|), plus the rounding of the result to t. */
static void near(const char *what, dtype t, double have, double want, double tol) {
    double bound = tol * fmax(1, fabs(want)) + (t == DT_BF16 ? 0.004 * fabs(want) : 0);
    if (!(have == want || fabs(have - want) <= bound)) fail_msg("%s: %.9g, want %.9g", what, have, want);
}

static const int64_t ROWS[] = {1, 7, 100}, WIDTH[] = {1, 5, 16, 33, 129, 768};
#define EACH_SIZE(t, rows, n)                                                                                          \
    for (int each = 0; each < 36; each++)                                                                              \
        for (dtype t = each & 1 ? DT_BF16 : DT_F32, *once = &t; once; once = NULL)                                     \
            for (int64_t rows = ROWS[each / 2 % 3], n = WIDTH[each / 6], *go = &n; go; go = NULL)

static void norms(void **state) {
    (void)state;
    EACH_SIZE(t, rows, n) {
        const int64_t ld = n + 3;
        void *x = filled(t, rows * ld, &seed), *w = filled(t, n, &seed), *b = filled(t, n, &seed),
             *dy = filled(t, rows * ld, &seed);
        void *y = filled(t, rows * ld, &seed), *dx = filled(t, rows * ld, &seed),
             *ws = xalloc((int64_t)kern_norm_bwd_ws(rows, n));
        float *mean = xalloc(4 * rows), *rstd = xalloc(4 * rows), *dw = xalloc(4 * n), *db = xalloc(4 * n);
        for (int kind = 0; kind < 4; kind++) { /* rmsnorm, layernorm; then adding to dw, db */
            const bool layer = kind & 1, add = kind & 2;
            double *wdw = calloc((size_t)n, 8), *wdb = calloc((size_t)n, 8);
            for (int64_t j = 0; j < n && add; j++) wdw[j] = (double)dw[j], wdb[j] = (double)db[j];
            if (layer) {
                kern_layernorm_fwd(t, rows, n, x, ld, w, b, 1e-5f, y, ld, mean, rstd);
                kern_layernorm_bwd(t, rows, n, x, ld, w, mean, rstd, dy, ld, dx, ld, dw, db, add, ws);
            } else {
                kern_rmsnorm_fwd(t, rows, n, x, ld, w, 1e-5f, y, ld, rstd);
                kern_rmsnorm_bwd(t, rows, n, x, ld, w, rstd, dy, ld, dx, ld, dw, add, ws);
            }
            for (int64_t r = 0; r < rows; r++) {
                double m = 0, var = 0, g1 = 0, g2 = 0;
                for (int64_t j = 0; j < n && layer; j++) m += get(t, x, r * ld + j) / (double)n;
                for (int64_t j = 0; j < n; j++) var += pow(get(t, x, r * ld + j) - m, 2) / (double)n;
                const double s = 1 / sqrt(var + 1e-5);
                near("rstd", DT_F32, (double)rstd[r], s, 1e-5);
                for (int64_t j = 0; j < n; j++) {
                    double xh = (get(t, x, r * ld + j) - m) * s, g = get(t, dy, r * ld + j) * get(t, w, j);
                    near("norm y", t, get(t, y, r * ld + j), xh * get(t, w, j) + (layer ? get(t, b, j) : 0), 1e-5);
                    g1 += g / (double)n, g2 += g * xh / (double)n;
                    wdw[j] += get(t, dy, r * ld + j) * xh;
                    wdb[j] += get(t, dy, r * ld + j);
                }
                for (int64_t j = 0; j < n; j++) {
                    double xh = (get(t, x, r * ld + j) - m) * s, g = get(t, dy, r * ld + j) * get(t, w, j);
                    /* One element: g - mean(g) - ... cancels against rstd of up to 316. */
                    near("norm dx", t, get(t, dx, r * ld + j), s * (g - (layer ? g1 : 0) - xh * g2), 2e-6 * (s + 4));
                }
            }
            for (int64_t j = 0; j < n; j++) {
                near("norm dw", DT_F32, (double)dw[j], wdw[j], 2e-5);
                if (layer) near("norm db", DT_F32, (double)db[j], wdb[j], 2e-5);
                if (!layer && !add) db[j] = 1; /* for the += that comes */
            }
            free(wdw), free(wdb);
        }
        free(x), free(w), free(b), free(dy), free(y), free(dx), free(ws), free(mean), free(rstd), free(dw), free(db);
    }
}

static void softmaxes(void **state) {
    (void)state;
    EACH_SIZE(t, rows, n) {
        const int64_t ld = n + 2;
        void *x = filled(t, rows * ld, &seed), *dy = filled(t, rows * ld, &seed), *y = filled(t, rows * ld, &seed),
             *dx = filled(t, rows * ld, &seed);
        for (int64_t j = 0; j < n; j++) put(t, x, j, -INFINITY); /* row 0 sees nothing */
        if (n > 1 && rows > 1) put(t, x, ld + 1, -INFINITY);
        kern_softmax_fwd(t, rows, n, x, ld, y, ld);
        kern_softmax_bwd(t, rows, n, y, ld, dy, ld, dx, ld);
        for (int64_t r = 0; r < rows; r++) {
            double max = -INFINITY, sum = 0, dot = 0;
            for (int64_t j = 0; j < n; j++) { /* no fmax: gcc 12 for aarch64 falls over the reduction */
                const double v = get(t, x, r * ld + j);
                if (v > max) max = v;
            }
            for (int64_t j = 0; j < n; j++) sum += r ? exp(get(t, x, r * ld + j) - max) : 0;
            for (int64_t j = 0; j < n; j++) dot += get(t, y, r * ld + j) * get(t, dy, r * ld + j);
            for (int64_t j = 0; j < n; j++) {
                near("softmax", t, get(t, y, r * ld + j), r ? exp(get(t, x, r * ld + j) - max) / sum : 0, 1e-6);
                near("softmax dx", t, get(t, dx, r * ld + j), get(t, y, r * ld + j) * (get(t, dy, r * ld + j) - dot),
                     1e-6);
            }
        }
        kern_softmax_fwd(t, rows, n, x, ld, x, ld);
        for (int64_t r = 0; r < rows; r++)
            assert_memory_equal((char *)x + r * ld * dtype_size(t), (char *)y + r * ld * dtype_size(t),
                                (size_t)(n * dtype_size(t)));
        free(x), free(dy), free(y), free(dx);
    }
}

static void cross_entropy(void **state) {
    (void)state;
    EACH_SIZE(t, rows, n) {
        const int64_t ld = n + 1;
        void *x = filled(t, rows * ld, &seed), *dx = filled(t, rows * ld, &seed);
        int64_t *label = xalloc(8 * rows);
        float *loss = xalloc(4 * rows), *lse = xalloc(4 * rows), *dloss = filled(DT_F32, rows, &seed);
        for (int64_t r = 0; r < rows; r++) label[r] = r % 4 == 1 ? -100 : (r * 31) % n;
        assert_int_equal(kern_xent_fwd(t, rows, n, x, ld, label, -100, loss, lse), SP_OK);
        kern_xent_bwd(t, rows, n, x, ld, label, -100, lse, dloss, each % 2, dx, ld);
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            const bool ignored = label[r] == -100;
            for (int64_t j = 0; j < n; j++) sum += exp(get(t, x, r * ld + j));
            near("lse", DT_F32, (double)lse[r], log(sum), 1e-6);
            near("loss", DT_F32, (double)loss[r], ignored ? 0 : log(sum) - get(t, x, r * ld + label[r]), 2e-6);
            for (int64_t j = 0; j < n; j++) {
                double want = (exp(get(t, x, r * ld + j)) / sum - (j == label[r])) * (double)dloss[r * (each % 2)];
                near("dlogits", t, get(t, dx, r * ld + j), ignored ? 0 : want, 1e-6);
            }
        }
        kern_xent_bwd(t, rows, n, x, ld, label, -100, lse, dloss, each % 2, x, ld);
        for (int64_t r = 0; r < rows; r++)
            assert_memory_equal((char *)x + r * ld * dtype_size(t), (char *)dx + r * ld * dtype_size(t),
                                (size_t)(n * dtype_size(t)));
        label[rows - 1] = n;
        assert_int_equal(kern_xent_fwd(t, rows, n, x, ld, label, -100, loss, lse), SP_FAIL);
        label[rows - 1] = -1;
        assert_int_equal(kern_xent_fwd(t, rows, n, x, ld, label, -100, loss, lse), SP_FAIL);
        free(x), free(dx), free(label), free(loss), free(lse), free(dloss);
    }
    /* Logits of a thousand neither overflow nor lose the loss. */
    float far[3] = {1000, 999, -1000}, loss, lse;
    int64_t label = 1;
    assert_int_equal(kern_xent_fwd(DT_F32, 1, 3, far, 3, &label, -100, &loss, &lse), SP_OK);
    near("far loss", DT_F32, (double)loss, 1.3132616875182228, 1e-6);
}

/* Rows whose greatest logit comes first, last, or grows all the time; hidden classes, nothing but hidden ones, NaN. */
static void cross_entropy_orders(void **state) {
    (void)state;
    enum { N = 1000 };
    float x[N], loss, lse;
    int64_t label = 617;
    for (int c = 0; c < 9; c++) {
        double top = -INFINITY, sum = 0;
        for (int j = 0; j < N; j++) {
            const float ramp[] = {
                0.7f * (float)j - 300, 400 - 0.3f * (float)j, sinf((float)j),       j % 7 ? -INFINITY : 3,  -3.3e38f,
                1e-30f * (float)j,     (float)(j * j % 613),  j == 617 ? 12 : -200, 1000.f * cosf((float)j)};
            x[j] = ramp[c];
            if ((double)x[j] > top) top = (double)x[j];
        }
        for (int j = 0; j < N; j++) sum += exp((double)x[j] - top);
        if (c == 3) label = 700;
        assert_int_equal(kern_xent_fwd(DT_F32, 1, N, x, N, &label, -100, &loss, &lse), SP_OK);
        near("lse", DT_F32, (double)lse, top + log(sum), 1e-6);
        near("loss", DT_F32, (double)loss, top - (double)x[label] + log(sum), 1e-6);
        assert_true(loss >= 0);
    }
    x[3] = NAN;
    assert_int_equal(kern_xent_fwd(DT_F32, 1, N, x, N, &label, -100, &loss, &lse), SP_OK);
    assert_true(isnan(loss) && isnan(lse));
    for (int j = 0; j < N; j++) x[j] = -INFINITY;
    assert_int_equal(kern_xent_fwd(DT_F32, 1, N, x, N, &label, -100, &loss, &lse), SP_OK);
    assert_true(lse == -INFINITY);
}

static void rotary(void **state) {
    (void)state;
    const int64_t D[] = {2, 6, 32, 64, 80};
    for (int c = 0; c < 40; c++) {
        const dtype t = c & 1 ? DT_BF16 : DT_F32, ta = c & 4 ? t : DT_F32;
        const bool transpose = c & 2, batched = c & 1;
        const int64_t B = 2, S = 9, H = 3, d = D[c / 8], half = d / 2, row = H * d + 5;
        tensor x = {.type = t, .rank = 4, .dim = {B, S, H, d}, .stride = {S * row, row, d, 1}}, y = x;
        tensor cs = {.type = ta, .rank = batched ? 3 : 2}, sn;
        cs.dim[0] = B, cs.dim[batched] = S, cs.dim[batched + 1] = d;
        cs.stride[0] = S * d, cs.stride[batched] = d, cs.stride[batched + 1] = 1;
        sn = cs;
        x.data = filled(t, B * S * row, &seed), y.data = filled(t, B * S * row, &seed);
        cs.data = filled(ta, B * S * d, &seed), sn.data = filled(ta, B * S * d, &seed);
        kern_rope(&x, &cs, &sn, transpose, &y);
        for (int64_t b = 0; b < B; b++)
            for (int64_t s = 0; s < S; s++)
                for (int64_t h = 0; h < H; h++)
                    for (int64_t j = 0; j < d; j++) {
                        int64_t at = b * S * row + s * row + h * d, a = (batched ? b * S * d : 0) + s * d;
                        int64_t other = j < half ? j + half : j - half;
                        double sign = (j < half) == transpose ? 1 : -1;
                        double want = get(t, x.data, at + j) * get(ta, cs.data, a + j) +
                                      sign * get(t, x.data, at + other) * get(ta, sn.data, a + (transpose ? other : j));
                        near("rope", t, get(t, y.data, at + j), want, 1e-6);
                    }
        kern_rope(&x, &cs, &sn, transpose, &x);
        for (int64_t i = 0; i < B * S; i++)
            assert_memory_equal((char *)x.data + i * row * dtype_size(t), (char *)y.data + i * row * dtype_size(t),
                                (size_t)(H * d * dtype_size(t)));
        free(x.data), free(y.data), free(cs.data), free(sn.data);
    }
}

static double act(int kind, double x) {
    if (kind == KERN_SILU) return x / (1 + exp(-x));
    if (kind == KERN_GELU) return 0.5 * x * erfc(-x / sqrt(2));
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

static void activations(void **state) {
    (void)state;
    const int64_t n = 80001;
    for (int kind = KERN_SILU; kind <= KERN_GELU_TANH; kind++)
        for (dtype t = DT_F32; t <= DT_BF16; t += DT_BF16) {
            void *x = filled(t, n, &seed), *y = filled(t, n, &seed), *dy = filled(t, n, &seed),
                 *dx = filled(t, n, &seed);
            for (int64_t i = 0; i < 40001; i++) put(t, x, i, (float)(i - 20000) * 0.001f);
            put(t, x, 0, -200), put(t, x, 1, 200), put(t, x, 2, 0);
            kern_act_fwd((kern_act)kind, t, n, x, y);
            kern_act_bwd((kern_act)kind, t, n, x, dy, dx);
            for (int64_t i = 0; i < n; i++) {
                double v = get(t, x, i), h = 1e-5, slope = (act(kind, v + h) - act(kind, v - h)) / (2 * h);
                near("activation", t, get(t, y, i), act(kind, v), kind == KERN_GELU ? 2e-7 : 5e-7);
                near("activation dx", t, get(t, dx, i), slope * get(t, dy, i), 2e-6);
            }
            kern_act_fwd((kern_act)kind, t, n, x, x);
            assert_memory_equal(x, y, (size_t)(n * dtype_size(t)));
            free(x), free(y), free(dy), free(dx);
        }
}

static void swiglu(void **state) {
    (void)state;
    EACH_SIZE(t, rows, n) {
        const int64_t ld = 2 * n; /* g and u side by side */
        void *gu = filled(t, rows * ld, &seed), *y = filled(t, rows * n, &seed), *dy = filled(t, rows * n, &seed),
             *d = filled(t, rows * ld, &seed);
        void *u = (char *)gu + n * dtype_size(t), *du = (char *)d + n * dtype_size(t);
        kern_swiglu_fwd(t, rows, n, gu, ld, u, ld, y, n);
        kern_swiglu_bwd(t, rows, n, gu, ld, u, ld, dy, n, d, ld, du, ld);
        for (int64_t i = 0; i < rows * n; i++) {
            double a = get(t, gu, i / n * ld + i % n), b = get(t, u, i / n * ld + i % n), s = 1 / (1 + exp(-a));
            near("swiglu", t, get(t, y, i), a * s * b, 1e-6);
            near("swiglu dg", t, get(t, d, i / n * ld + i % n), get(t, dy, i) * b * s * (1 + a * (1 - s)), 1e-6);
            near("swiglu du", t, get(t, du, i / n * ld + i % n), get(t, dy, i) * a * s, 1e-6);
        }
        free(gu), free(y), free(dy), free(d);
    }
    /* One run longer than a chunk. */
    const int64_t n = 40001;
    float *g = filled(DT_F32, n, &seed), *u = filled(DT_F32, n, &seed), *y = filled(DT_F32, n, &seed),
          *dg = filled(DT_F32, n, &seed);
    float *du = filled(DT_F32, n, &seed);
    kern_swiglu_fwd(DT_F32, 1, n, g, n, u, n, y, n);
    kern_swiglu_bwd(DT_F32, 1, n, g, n, u, n, u, n, dg, n, du, n);
    for (int64_t i = 0; i < n; i++) {
        double a = (double)g[i], b = (double)u[i], s = 1 / (1 + exp(-a));
        near("swiglu", DT_F32, (double)y[i], a * s * b, 1e-6);
        near("swiglu dg", DT_F32, (double)dg[i], b * b * s * (1 + a * (1 - s)), 1e-6);
        near("swiglu du", DT_F32, (double)du[i], b * a * s, 1e-6);
    }
    free(g), free(u), free(y), free(dg), free(du);
}

static void linear(void **state) {
    (void)state;
    const int64_t size[] = {0, 1, 37, 70001};
    for (int c = 0; c < 8; c++) {
        const dtype t = c & 1 ? DT_BF16 : DT_F32;
        const int64_t n = size[c / 2];
        void *a = filled(t, n, &seed), *b = filled(t, n, &seed), *y = filled(t, n, &seed),
             *was = xalloc(n * dtype_size(t));
        double squares = 0;
        memcpy(was, y, (size_t)(n * dtype_size(t)));
        kern_axpy(t, n, 0.3f, a, y);
        for (int64_t i = 0; i < n; i++)
            near("axpy", t, get(t, y, i), get(t, was, i) + (double)0.3f * get(t, a, i), 1e-6);
        kern_scale(t, n, 0.3f, a, y);
        for (int64_t i = 0; i < n; i++) near("scale", t, get(t, y, i), (double)0.3f * get(t, a, i), 1e-6);
        kern_add(t, n, a, b, y);
        for (int64_t i = 0; i < n; i++) near("add", t, get(t, y, i), get(t, a, i) + get(t, b, i), 1e-6);
        kern_mul(t, n, a, b, y);
        for (int64_t i = 0; i < n; i++) near("mul", t, get(t, y, i), get(t, a, i) * get(t, b, i), 1e-6);
        for (int64_t i = 0; i < n; i++) squares += get(t, a, i) * get(t, a, i);
        near("sumsq", DT_F32, kern_sumsq(t, n, a), squares, 1e-13);
        free(a), free(b), free(y), free(was);
    }
}

/* Sums along and across rows, with whole blocks of columns and parts of them, and more rows than are added in f32. */
static void sums(void **state) {
    (void)state;
    const int64_t shape[][3] = {{1, 1, 1}, {1, 700, 5}, {2, 3, 129}, {1, 1100, 256}, {3, 40, 300}, {1, 9000, 1}};
    for (size_t c = 0; c < sizeof shape / sizeof *shape; c++)
        for (dtype t = DT_F32; t <= DT_BF16; t += DT_BF16) {
            const int64_t outer = shape[c][0], rows = shape[c][1], n = shape[c][2];
            void *x = filled(t, outer * rows * n, &seed), *y = filled(t, outer * rows * n, &seed);
            kern_sum_rows(t, outer, rows, n, x, y);
            for (int64_t o = 0; o < outer; o++)
                for (int64_t j = 0; j < n; j++) {
                    double want = 0, size = 0;
                    for (int64_t r = 0; r < rows; r++) {
                        double e = get(t, x, (o * rows + r) * n + j);
                        want += e, size += fabs(e);
                    }
                    assert_true(fabs(get(t, y, o * n + j) - want) <=
                                (t == DT_BF16 ? 4e-3 : 0) * fabs(want) + 1e-6 * size);
                }
            kern_sum_cols(t, outer, rows * n, x, y);
            for (int64_t o = 0; o < outer; o++) {
                double want = 0, size = 0;
                for (int64_t j = 0; j < rows * n; j++) {
                    double e = get(t, x, o * rows * n + j);
                    want += e, size += fabs(e);
                }
                assert_true(fabs(get(t, y, o) - want) <= (t == DT_BF16 ? 4e-3 : 0) * fabs(want) + 1e-6 * size);
            }
            free(x), free(y);
        }
}

/* Random permutations, gaps and zero strides of the source, all element sizes and both conversions. */
static void copies(void **state) {
    (void)state;
    const dtype type[] = {DT_F32, DT_BF16, DT_F64, DT_I64, DT_I32, DT_BOOL};
    for (int c = 0; c < 300; c++) {
        tensor src = {.type = type[rng_next(&seed) % 6]}, dst;
        src.rank = (int)(rng_next(&seed) % 5);
        dst = src;
        if (c % 5 == 0) src.type = DT_F32, dst.type = DT_BF16;
        if (c % 5 == 1) src.type = DT_BF16, dst.type = DT_F32;
        for (int side = 0; side < 2; side++) {
            tensor *x = side ? &dst : &src;
            int order[TENSOR_MAX_RANK];
            int64_t step = 1;
            for (int i = 0; i < x->rank; i++) {
                if (!side) src.dim[i] = dst.dim[i] = (int64_t[]){1, 2, 3, 17, 70}[rng_next(&seed) % 5];
                order[i] = i;
            }
            for (int i = x->rank - 1; i > 0; i--) {
                int j = (int)(rng_next(&seed) % (uint64_t)(i + 1)), tmp = order[i];
                order[i] = order[j], order[j] = tmp;
            }
            for (int i = 0; i < x->rank; i++) {
                bool repeat = !side && rng_next(&seed) % 8 == 0;
                x->stride[order[i]] = repeat ? 0 : step;
                if (!repeat) step = step * x->dim[order[i]] + (int64_t)(rng_next(&seed) % 2) * 3;
            }
            x->data = xalloc(step * dtype_size(x->type));
            if (dtype_is_float(x->type) && x->type != DT_F64)
                for (int64_t i = 0; i < step; i++) put(x->type, x->data, i, (float)rng_normal(&seed));
            else
                for (int64_t i = 0; i < step * dtype_size(x->type); i++)
                    ((uint8_t *)x->data)[i] = (uint8_t)rng_next(&seed);
        }
        kern_copy(&dst, &src);
        for (int64_t i = 0; i < tensor_numel(&src); i++) {
            int64_t s = 0, d = 0, rest = i, size = dtype_size(src.type);
            for (int k = src.rank - 1; k >= 0; k--) {
                s += rest % src.dim[k] * src.stride[k], d += rest % src.dim[k] * dst.stride[k];
                rest /= src.dim[k];
            }
            if (src.type == dst.type) {
                assert_memory_equal((char *)dst.data + d * size, (char *)src.data + s * size, (size_t)size);
            } else {
                uint16_t rounded[2];
                put(DT_BF16, rounded, 0, (float)get(src.type, src.data, s));
                assert_true(get(dst.type, dst.data, d) == get(DT_BF16, rounded, 0));
            }
        }
        free(src.data), free(dst.data);
    }
}

/* Copies and embeddings that are large enough for stores past the caches, and dimensions long enough to be cut: heads
 * put first and back, rows turned into columns, with and without whole lines. */
static void large_copies(void **state) {
    (void)state;
    const int64_t dim[][3] = {{1100, 40, 96}, {40, 1100, 96}, {1, 2100, 2048}, {1, 2100, 2111}, {3, 1000, 1600}};
    for (int c = 0; c < 20; c++) {
        const dtype t = (dtype[]){DT_F32, DT_BF16, DT_I32, DT_F64}[c % 4];
        const int64_t *d = dim[c / 4], n = d[0] * d[1] * d[2] * (t == DT_BF16 ? 2 : 1), size = dtype_size(t);
        const int64_t D[3] = {d[0] * (t == DT_BF16 ? 2 : 1), d[1], d[2]}; /* as many bytes */
        tensor src = {.type = t, .rank = 3, .dim = {D[0], D[1], D[2]}, .stride = {D[1] * D[2], D[2], 1}}, dst = src;
        src.data = aligned_alloc(64, (size_t)(n * size + 63) / 64 * 64);
        dst.data = aligned_alloc(64, (size_t)(n * size + 63) / 64 * 64);
        assert_non_null(src.data), assert_non_null(dst.data);
        if (c < 8)
            dst.stride[0] = D[2], dst.stride[1] = D[0] * D[2];
        else
            dst.stride[1] = 1, dst.stride[2] = D[1];
        for (int64_t i = 0; i < n * size / 2; i++) ((uint16_t *)src.data)[i] = (uint16_t)(i * 40503 >> 3);
        kern_copy(&dst, &src);
        for (int64_t i = 0, s = 0; i < D[0]; i++)
            for (int64_t j = 0; j < D[1]; j++)
                for (int64_t k = 0; k < D[2]; k++, s++) {
                    const int64_t to = i * dst.stride[0] + j * dst.stride[1] + k * dst.stride[2];
                    if (memcmp((char *)dst.data + to * size, (char *)src.data + s * size, (size_t)size) != 0)
                        fail_msg("copy %d: element %lld %lld %lld", c, (long long)i, (long long)j, (long long)k);
                }
        free(src.data), free(dst.data);
    }
    enum { ROWS_OF = 6000, WIDE = 768, VOCAB = 11 };
    float *table = filled(DT_F32, VOCAB * WIDE, &seed), *y = aligned_alloc(64, sizeof(float) * ROWS_OF * WIDE);
    int64_t *ids = xalloc(8 * ROWS_OF);
    assert_non_null(y);
    for (int64_t r = 0; r < ROWS_OF; r++) ids[r] = r * 7 % VOCAB;
    assert_int_equal(kern_embed_fwd(DT_F32, ROWS_OF, WIDE, VOCAB, ids, table, y, WIDE), SP_OK);
    for (int64_t r = 0; r < ROWS_OF; r++)
        assert_memory_equal(y + r * WIDE, table + ids[r] * WIDE, sizeof(float) * WIDE);
    free(table), free(y), free(ids);
}

static void embeddings(void **state) {
    (void)state;
    EACH_SIZE(t, rows, n) {
        const int64_t vocab = 11;
        void *table = filled(t, vocab * n, &seed), *y = filled(t, rows * n, &seed), *dy = filled(t, rows * n, &seed);
        float *grad = filled(DT_F32, vocab * n, &seed);
        int64_t *ids = xalloc(8 * rows);
        double *want = calloc((size_t)(vocab * n), 8);
        for (int64_t r = 0; r < rows; r++) ids[r] = (r * 7 + 3) % vocab;
        for (int64_t i = 0; i < vocab * n; i++) want[i] = (double)grad[i];
        assert_int_equal(kern_embed_fwd(t, rows, n, vocab, ids, table, y, n), SP_OK);
        kern_embed_bwd(t, rows, n, ids, 3, dy, n, grad);
        for (int64_t i = 0; i < rows * n; i++) {
            assert_true(get(t, y, i) == get(t, table, ids[i / n] * n + i % n));
            if (ids[i / n] != 3) want[ids[i / n] * n + i % n] += get(t, dy, i);
        }
        for (int64_t i = 0; i < vocab * n; i++) near("embedding gradient", DT_F32, (double)grad[i], want[i], 3e-6);
        ids[rows / 2] = vocab;
        assert_int_equal(kern_embed_fwd(t, rows, n, vocab, ids, table, y, n), SP_FAIL);
        free(table), free(y), free(dy), free(grad), free(ids), free(want);
    }
}

static void optimizer(void **state) {
    (void)state;
    const int64_t n = 40007;
    float *p = filled(DT_F32, n, &seed), *m = calloc((size_t)n, 4), *v = calloc((size_t)n, 4);
    uint16_t *copy = xalloc(2 * n);
    double *wp = xalloc(8 * n), *wm = calloc((size_t)n, 8), *wv = calloc((size_t)n, 8);
    for (int64_t i = 0; i < n; i++) wp[i] = (double)p[i];
    adamw_params a = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .grad_scale = 0.5f};
    for (a.step = 1; a.step <= 3; a.step++) {
        float *g = filled(DT_F32, n, &seed);
        g[5] = 0;
        kern_adamw(n, p, g, m, v, &a, copy);
        for (int64_t i = 0; i < n; i++) {
            double grad = 0.5 * (double)g[i];
            wp[i] *= 1 - 1e-2 * 0.1;
            wm[i] = 0.9 * wm[i] + 0.1 * grad;
            wv[i] = 0.95 * wv[i] + 0.05 * grad * grad;
            double mh = wm[i] / (1 - pow(0.9, (double)a.step)), vh = wv[i] / (1 - pow(0.95, (double)a.step));
            wp[i] -= 1e-2 * mh / (sqrt(vh) + 1e-8);
            near("adamw p", DT_F32, (double)p[i], wp[i], 1e-6);
            near("adamw m", DT_F32, (double)m[i], wm[i], 1e-6);
            near("adamw v", DT_F32, (double)v[i], wv[i], 1e-6);
            uint16_t rounded[2];
            put(DT_BF16, rounded, 0, p[i]);
            assert_int_equal(copy[i], rounded[0]);
        }
        free(g);
    }
    free(p), free(m), free(v), free(copy), free(wp), free(wm), free(wv);
}

/* The vectors' dropout keeps what the general kernel keeps, one number at a time, in every numbering: rows that start
 * anywhere in a word of 64, a tile in the middle, padding inside a sequence; in so many elements that the upper halves
 * of some leave them open; and keeps everything when it is off. */
static void dropout_by_words(void **state) {
    (void)state;
    const int64_t width[] = {1, 3, 16, 37, 64, 200, 768, 1000};
    for (int c = 0; c < 41; c++) {
        const dtype t = c % 2 ? DT_BF16 : DT_F32;
        const int64_t n = c == 40 ? 1000 : width[rng_next(&seed) % 8], S = c == 40 ? 200 : 10, B = 3;
        const int64_t gap = c == 40 ? 0 : c % 3;
        ir_dim dims[] = {B, c % 4 == 1 ? 8 : c % 4 == 2 ? 3 * S : S, n};
        ir_attr attr[] = {A_F("p", c == 7 ? 1 : 0.3),      A_D("dims", 3, dims), A_I("id", c),
                          A_I("seq", c % 4 == 1 ? 1 : -1), A_I("padded", S),     A_I("valid", 8)};
        const ir_node node = {.op = OP_dropout, .attr = attr, .nattr = c % 4 == 1 ? 6 : 3};
        int64_t rng[] = {0x123456789abcdef, 5 + c, c == 5};
        tensor x = {.type = t, .rank = 3, .dim = {B, S, n}, .stride = {S * (n + gap), n + gap, 1}}, y = x;
        tensor r = {.data = rng, .type = DT_I64, .rank = 1, .dim = {3}, .stride = {1}};
        x.data = filled(t, B * S * (n + gap), &seed);
        tensor in[] = {x, r};
        dev_call call = {.op = OP_dropout, .node = &node, .nin = 2, .nout = 1, .in = in, .out = &y};
        if (c % 4 == 2)
            call.tile = (axis_layout){.kind = LAYOUT_SHARD, .dim = 1, .outer = 1}, call.tiles = 3, call.tile_index = 1;
        void *want = xalloc(B * S * (n + gap) * dtype_size(t)), *got = xalloc(B * S * (n + gap) * dtype_size(t));
        memset(want, 0, (size_t)(B * S * (n + gap) * dtype_size(t)));
        memset(got, 0, (size_t)(B * S * (n + gap) * dtype_size(t)));
        y.data = want;
        assert_int_equal(dropout_run(&call), SP_OK);
        y.data = got;
        assert_int_equal(device_cpu.table[OP_dropout](&call), SP_OK);
        int64_t zeros = 0;
        for (int64_t i = 0; i < B * S * (n + gap); i++) {
            zeros += get(t, got, i) == 0;
            assert_true((get(t, got, i) == 0) == (get(t, want, i) == 0));
            assert_true(fabs(get(t, got, i) - get(t, want, i)) <= (t == DT_BF16 ? 1e-2 : 1e-6) * fabs(get(t, want, i)));
        }
        if (c == 7) assert_int_equal(zeros, B * S * (n + gap));
        free(x.data), free(want), free(got);
    }
}

int main(void) {
#ifdef _OPENMP
    omp_set_num_threads(3);
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms),         cmocka_unit_test(softmaxes),
        cmocka_unit_test(cross_entropy), cmocka_unit_test(cross_entropy_orders),
        cmocka_unit_test(rotary),        cmocka_unit_test(swiglu),
        cmocka_unit_test(activations),   cmocka_unit_test(linear),
        cmocka_unit_test(copies),        cmocka_unit_test(large_copies),
        cmocka_unit_test(embeddings),    cmocka_unit_test(optimizer),
        cmocka_unit_test(sums),          cmocka_unit_test(dropout_by_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
