/* kern_gemm.c - matrix products, ours and the library's, against a triple loop in double precision. */
#include "values.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

enum { TEAM = 3 };

/* Elements an operand spans: the furthest one and its pad. */
static int64_t span(int64_t rows, int64_t cols, int64_t rs, int64_t cs, const kern_gemm_desc *d, const int64_t *bs) {
    int64_t last = (max64(rows, 1) - 1) * rs + (max64(cols, 1) - 1) * cs;
    for (int i = 0; i < d->nbatch; i++) last += (d->batch[i] - 1) * bs[i];
    return last + 1;
}

static void check(const kern_gemm_desc *d) {
    kern_gemm *g = NULL;
    uint64_t seed = 9;
    if (kern_gemm_prepare(d, &g) != SP_OK) {
        assert_int_equal(d->impl, KERN_GEMM_LIBRARY); /* not built in, or not a form it has */
        return;
    }
    int64_t na = span(d->m, d->k, d->a_rs, d->a_cs, d, d->a_bs), nb = span(d->k, d->n, d->b_rs, d->b_cs, d, d->b_bs);
    int64_t nc = span(d->m, d->n, d->c_rs, d->c_cs, d, d->c_bs), batches = 1;
    void *a = filled(d->ab, na, &seed), *b = filled(d->ab, nb, &seed), *c = filled(d->c, nc, &seed);
    void *bias = filled(d->c, d->n, &seed), *was = xalloc((size_t)(nc * dtype_size(d->c)));
    bool *touched = calloc((size_t)nc, 1);
    memcpy(was, c, (size_t)(nc * dtype_size(d->c)));
    void *ws = xalloc(kern_gemm_ws(g));
    memset(ws, 0xff, kern_gemm_ws(g));
    assert_int_equal(kern_gemm_run(g, a, b, c, d->bias ? bias : NULL, ws), SP_OK);
    for (int i = 0; i < d->nbatch; i++) batches *= d->batch[i];
    for (int64_t x = 0; x < batches; x++) {
        int64_t ao = 0, bo = 0, co = 0, rest = x;
        for (int i = d->nbatch - 1; i >= 0; i--) {
            int64_t j = rest % d->batch[i];
            rest /= d->batch[i];
            ao += j * d->a_bs[i], bo += j * d->b_bs[i], co += j * d->c_bs[i];
        }
        for (int64_t i = 0; i < d->m; i++)
            for (int64_t j = 0; j < d->n; j++) {
                int64_t at = co + i * d->c_rs + j * d->c_cs;
                double sum = 0, size = 0;
                for (int64_t k = 0; k < d->k; k++) {
                    double term =
                        get(d->ab, a, ao + i * d->a_rs + k * d->a_cs) * get(d->ab, b, bo + k * d->b_rs + j * d->b_cs);
                    sum += term, size += fabs(term);
                }
                double want = (double)d->alpha * sum + (double)d->beta * get(d->c, was, at);
                if (d->bias) want += get(d->c, bias, j);
                touched[at] = true;
                /* f32 rounding of each term; a bf16 result is rounded once more to 8 bits. */
                double tol = 2e-7 * (4 + sqrt((double)d->k)) * (1 + size) + (d->c == DT_BF16 ? 0.004 * fabs(want) : 0);
                double have = get(d->c, c, at);
                if (!(fabs(have - want) <= tol))
                    fail_msg("%s m=%lld n=%lld k=%lld [%lld,%lld]: %.9g, want %.9g", kern_gemm_impl(g), (long long)d->m,
                             (long long)d->n, (long long)d->k, (long long)i, (long long)j, have, want);
            }
    }
    for (int64_t i = 0; i < nc; i++)
        if (!touched[i]) assert_true(get(d->c, c, i) == get(d->c, was, i));
    kern_gemm_free(g);
    free(a), free(b), free(c), free(bias), free(was), free(touched), free(ws);
}

static kern_gemm_desc desc(dtype ab, dtype c, int64_t m, int64_t n, int64_t k, bool ta, bool tb, int64_t pad) {
    kern_gemm_desc d = {
        .ab = ab, .c = c, .m = m, .n = n, .k = k, .alpha = 1, .threads = TEAM, .c_rs = n + pad, .c_cs = 1};
    d.a_rs = ta ? 1 : k + pad, d.a_cs = ta ? m + pad : 1;
    d.b_rs = tb ? 1 : n + pad, d.b_cs = tb ? k + pad : 1;
    return d;
}

static void all_forms(void **state) {
    (void)state;
    const int64_t size[][3] = {{1, 1, 1},       {7, 33, 5},   {13, 64, 300}, {129, 70, 33},
                               {100, 257, 520}, {1, 300, 64}, {65, 1, 40}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int f = 0; f < 4; f++)
            for (int t = 0; t < 3; t++)
                for (kern_gemm_impl_choice impl = KERN_GEMM_BEST; impl <= KERN_GEMM_LIBRARY; impl++) {
                    dtype ab = t ? DT_BF16 : DT_F32, c = t == 2 ? DT_BF16 : DT_F32;
                    kern_gemm_desc d = desc(ab, c, size[i][0], size[i][1], size[i][2], f & 1, f & 2, f);
                    d.impl = impl;
                    check(&d);
                    d.beta = 1;
                    check(&d);
                }
}

/* Long sides, which the library gets in parts and ours packs in several turns: every form, with and without what the
 * first part alone may do. */
static void in_parts(void **state) {
    (void)state;
    const int64_t size[][3] = {{3, 5, 3600},    {2, 4, 5400},   {3700, 3, 4},   {2, 1800, 7},
                               {1801, 2, 1793}, {2, 2053, 520}, {403, 31, 900}, {1023, 5, 6}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int f = 0; f < 4; f++)
            for (int c = 0; c < 3; c++) {
                kern_gemm_desc d = desc(DT_F32, DT_F32, size[i][0], size[i][1], size[i][2], f & 1, f & 2, f);
                d.beta = c == 1, d.bias = c == 2;
                check(&d);
                d.impl = KERN_GEMM_OWN;
                check(&d);
                d.ab = DT_BF16;
                check(&d);
                d.impl = KERN_GEMM_BEST;
                check(&d);
            }
}

/* Results that are large, or large enough to be added to another way, and just below that; also with rows of C apart
 * and with a sum over k that is done in parts. */
static void large(void **state) {
    (void)state;
    const int64_t size[][3] = {{1024, 1040, 9}, {1023, 1025, 6}, {512, 519, 20}, {511, 600, 7}, {513, 512, 1801}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int f = 0; f < 4; f++)
            for (int c = 0; c < (size[i][2] > 1000 ? 2 : 4); c++) {
                kern_gemm_desc d =
                    desc(DT_F32, DT_F32, size[i][0], size[i][1], size[i][2], f & 1, f & 2, c == 1 ? 3 : 0);
                d.beta = c == 0 ? 0 : c == 3 ? -0.25f : 1, d.alpha = c == 3 ? 0.5f : 1;
                check(&d);
            }
}

/* A read by columns a multiple of 4096 bytes apart, which is copied for the library, in parts of m and of k. */
static void rows_in_same_sets(void **state) {
    (void)state;
    const int64_t size[][3] = {{1808, 512, 40}, {20, 515, 1800}, {1, 512, 30}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int c = 0; c < 4; c++) {
            kern_gemm_desc d = desc(DT_F32, DT_F32, size[i][0], size[i][1], size[i][2], true, false, 0);
            d.a_cs = 2048, d.beta = c == 1, d.bias = c == 2;
            if (c == 3) { /* prepared as its transpose */
                d = desc(DT_F32, DT_F32, size[i][1], size[i][0], size[i][2], true, false, 0);
                d.b_rs = 2048, d.c_rs = 1, d.c_cs = size[i][1], d.beta = 1;
            }
            check(&d);
        }
}

/* B of bf16 is packed for the library where C has many rows. */
static void packed(void **state) {
    (void)state;
    const int64_t size[][3] = {{512, 48, 37}, {515, 70, 300}, {513, 1, 64}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int f = 0; f < 6; f++) {
            kern_gemm_desc d =
                desc(DT_BF16, f & 2 ? DT_F32 : DT_BF16, size[i][0], size[i][1], size[i][2], f & 1, false, f);
            d.beta = f == 3, d.bias = f == 4;
            check(&d);
        }
}

/* n integers from -4 to 4 as bf16. */
static uint16_t *integers(int64_t n, uint64_t *seed) {
    uint16_t *x = xalloc(2 * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        float v = (float)((int)(9 * rng_uniform(seed)) - 4);
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        x[i] = (uint16_t)(bits >> 16);
    }
    return x;
}

/* Some columns at a time when k is long, which is too much for the triple loop: small integers, whose sums are exact in
 * any order, against our own kernel. */
static void packed_in_parts(void **state) {
    (void)state;
    enum { M = 512, N = 600, K = 8000 };
    kern_gemm_desc d = desc(DT_BF16, DT_F32, M, N, K, false, false, 0);
    uint64_t seed = 3;
    uint16_t *a = integers(M * K, &seed), *b = integers(K * N, &seed);
    float *c[2];
    for (int own = 0; own < 2; own++) {
        kern_gemm *g;
        d.impl = own ? KERN_GEMM_OWN : KERN_GEMM_BEST;
        assert_int_equal(kern_gemm_prepare(&d, &g), SP_OK);
        void *ws = xalloc(kern_gemm_ws(g));
        c[own] = xalloc(4 * M * N);
        assert_int_equal(kern_gemm_run(g, a, b, c[own], NULL, ws), SP_OK);
        kern_gemm_free(g);
        free(ws);
    }
    assert_memory_equal(c[0], c[1], 4 * M * N);
    free(a), free(b), free(c[0]), free(c[1]);
}

/* The stride of a dimension of extent 1 may be anything. */
static void strides_of_one(void **state) {
    (void)state;
    static const int64_t extent[] = {1, 12, 17}, stray[] = {0, 1, 5};
    for (int i = 0; i < 3 * 3 * 3 * 4 * 3; i++) {
        int64_t m = extent[i % 3], n = extent[i / 3 % 3], k = extent[i / 9 % 3], s = stray[i / 108];
        kern_gemm_desc d = desc(DT_F32, DT_F32, m, n, k, i / 27 & 1, i / 27 & 2, 0);
        if (m == 1) d.a_rs = d.c_rs = s;
        if (n == 1) d.b_cs = d.c_cs = s;
        if (k == 1) d.a_cs = d.b_rs = s;
        check(&d);
    }
}

static void scales_and_bias(void **state) {
    (void)state;
    for (kern_gemm_impl_choice impl = KERN_GEMM_BEST; impl <= KERN_GEMM_LIBRARY; impl++)
        for (int c = 0; c < 8; c++) {
            kern_gemm_desc d = desc(DT_F32, DT_F32, 40, 96, 70, false, true, 0);
            d.impl = impl, d.alpha = c & 1 ? 0.5f : 1, d.beta = c & 2 ? -0.25f : 0, d.bias = c & 4;
            check(&d);
        }
}

static void transposed_output(void **state) {
    (void)state;
    for (kern_gemm_impl_choice impl = KERN_GEMM_BEST; impl <= KERN_GEMM_LIBRARY; impl++) {
        kern_gemm_desc d = desc(DT_F32, DT_F32, 40, 67, 70, false, true, 0);
        d.impl = impl, d.c_rs = 1, d.c_cs = 45, d.beta = 1;
        check(&d);
    }
}

static void batches(void **state) {
    (void)state;
    for (kern_gemm_impl_choice impl = KERN_GEMM_BEST; impl <= KERN_GEMM_LIBRARY; impl++) {
        /* (B,S,H,D) q and k: scores (B,H,S,S), heads strided inside rows. */
        kern_gemm_desc d = desc(DT_F32, DT_F32, 19, 19, 8, false, true, 0);
        d.impl = impl, d.nbatch = 2, d.batch[0] = 2, d.batch[1] = 3;
        d.a_rs = d.b_cs = 24, d.a_bs[0] = d.b_bs[0] = 19 * 24, d.a_bs[1] = d.b_bs[1] = 8;
        d.c_bs[0] = 3 * 19 * 19, d.c_bs[1] = 19 * 19;
        check(&d);
        d.b_bs[0] = 0; /* one k for the whole batch */
        check(&d);
        d.a_bs[0] = 0; /* q too */
        check(&d);
    }
}

static void empty(void **state) {
    (void)state;
    kern_gemm_desc d = desc(DT_F32, DT_F32, 5, 6, 0, false, false, 0);
    d.a_rs = d.b_rs = 6;
    check(&d); /* no terms: C = 0 */
    d.beta = 1;
    check(&d); /* C stays */
}

/* Ours is bit-equal on any team; k beyond one step of it, so that partial sums exist. */
static void bits(void **state) {
    uint64_t seed = 4, want = 0;
    const bool by_columns = *state;
    kern_gemm_desc d = desc(DT_F32, DT_F32, 300, 200, 900, by_columns, !by_columns, 0);
    float *a = filled(DT_F32, 300 * 900, &seed), *b = filled(DT_F32, 200 * 900, &seed), *c = xalloc(4 * 300 * 200);
    d.impl = KERN_GEMM_OWN;
    for (d.threads = 1; d.threads < 5; d.threads++) {
        kern_gemm *g;
        assert_int_equal(kern_gemm_prepare(&d, &g), SP_OK);
        void *ws = xalloc(kern_gemm_ws(g));
        assert_int_equal(kern_gemm_run(g, a, b, c, NULL, ws), SP_OK);
        uint64_t h = hash_bytes(HASH_INIT, c, 4 * 300 * 200);
        if (d.threads == 1) want = h;
        assert_true(h == want);
        kern_gemm_free(g);
        free(ws);
    }
    free(a), free(b), free(c);
}

int main(void) {
    static bool by_columns = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_forms),
        cmocka_unit_test(in_parts),
        cmocka_unit_test(large),
        cmocka_unit_test(rows_in_same_sets),
        cmocka_unit_test(packed),
        cmocka_unit_test(packed_in_parts),
        cmocka_unit_test(strides_of_one),
        cmocka_unit_test(scales_and_bias),
        cmocka_unit_test(transposed_output),
        cmocka_unit_test(batches),
        cmocka_unit_test(empty),
        cmocka_unit_test(bits),
        cmocka_unit_test_prestate(bits, &by_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
