/* gemm.c - kern_gemm: a matrix product prepared ahead of time, by a library (gemm_library.c) or by our own kernel
 * (gemm_own.c) where there is none and where it lacks the form. */
#include "device/cpu/gemm_library.h"
#include "device/cpu/gemm_own.h"

#include <stdlib.h>

struct kern_gemm {
    kern_gemm_desc d;
    bool swapped;          /* d is of C^T = B^T A^T */
    gemm_library *library; /* NULL: our own */
};

static void check(const kern_gemm_desc *d) {
    ASSERT(d->m >= 0 && d->n >= 0 && d->k >= 0 && d->threads > 0);
    ASSERT(d->nbatch >= 0 && d->nbatch <= KERN_GEMM_BATCH);
    ASSERT((d->ab == DT_F32 && d->c == DT_F32) || (d->ab == DT_BF16 && (d->c == DT_F32 || d->c == DT_BF16)));
    ASSERT(d->a_rs == 1 || d->a_cs == 1 || d->m <= 1 || d->k <= 1);
    ASSERT(d->b_rs == 1 || d->b_cs == 1 || d->n <= 1 || d->k <= 1);
    ASSERT(d->c_rs == 1 || d->c_cs == 1 || d->m <= 1 || d->n <= 1);
}

/* C^T = B^T A^T: a C of unit row stride becomes one of unit column stride, which the library has kernels for and ours
 * adds to without a detour. */
static kern_gemm_desc transposed(const kern_gemm_desc *d) {
    kern_gemm_desc t = *d;
    t.m = d->n, t.n = d->m;
    t.a_rs = d->b_cs, t.a_cs = d->b_rs;
    t.b_rs = d->a_cs, t.b_cs = d->a_rs;
    t.c_rs = d->c_cs, t.c_cs = d->c_rs;
    memcpy(t.a_bs, d->b_bs, sizeof t.a_bs);
    memcpy(t.b_bs, d->a_bs, sizeof t.b_bs);
    return t;
}

sp_status kern_gemm_prepare(const kern_gemm_desc *d, kern_gemm **out) {
    check(d);
    kern_gemm *g = calloc(1, sizeof *g);
    CHECK(g, "out of memory for a matrix product's handle");
    g->swapped = d->c_cs != 1 && d->c_rs == 1 && !d->bias;
    g->d = g->swapped ? transposed(d) : *d;
    if (d->impl != KERN_GEMM_OWN) g->library = gemm_library_new(&g->d);
    if (!g->library && d->impl == KERN_GEMM_LIBRARY) {
        free(g);
        FAIL("no library has this form of a %lldx%lldx%lld matrix product; leave impl at KERN_GEMM_BEST",
             (long long)d->m, (long long)d->n, (long long)d->k);
    }
    *out = g;
    return SP_OK;
}

size_t kern_gemm_ws(const kern_gemm *g) { return g->library ? gemm_library_ws(g->library) : gemm_own_ws(&g->d); }
const char *kern_gemm_impl(const kern_gemm *g) { return g->library ? gemm_library_impl(g->library) : "own"; }

sp_status kern_gemm_run(kern_gemm *g, const void *a, const void *b, void *c, const void *bias, void *ws) {
    ASSERT(!bias == !g->d.bias);
    if (g->swapped) {
        const void *left = b;
        b = a, a = left;
    }
    if (g->library) return gemm_library_run(g->library, a, b, c, bias, ws);
    gemm_own_run(&g->d, a, b, c, bias, ws);
    return SP_OK;
}

void kern_gemm_free(kern_gemm *g) {
    if (!g) return;
    gemm_library_free(g->library);
    free(g);
}
