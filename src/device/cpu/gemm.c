/* gemm.c - kern_gemm: a matrix product prepared ahead of time, by oneDNN or by our own kernel (gemm_own.c).
 *
 * oneDNN's primitives are created in prepare with a workspace of the caller's, so that running allocates nothing.
 */
#include "device/cpu/gemm_own.h"
#include "device/cpu/threads.h"

#include <stdlib.h>

#ifdef AUTOSP_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#endif

struct kern_gemm {
    kern_gemm_desc d;
    bool swapped; /* d is of C^T = B^T A^T */
    size_t ws;
    const char *impl;
#ifdef AUTOSP_HAVE_ONEDNN
    dnnl_primitive_desc_t pd; /* owns the text impl points to */
    dnnl_primitive_t prim;    /* NULL: own */
    dnnl_stream_t stream;
    dnnl_memory_t a, b, c, bias, scratch;
#endif
};

static void check(const kern_gemm_desc *d) {
    ASSERT(d->m >= 0 && d->n >= 0 && d->k >= 0 && d->threads > 0);
    ASSERT(d->nbatch >= 0 && d->nbatch <= KERN_GEMM_BATCH);
    ASSERT((d->ab == DT_F32 && d->c == DT_F32) || (d->ab == DT_BF16 && (d->c == DT_F32 || d->c == DT_BF16)));
    ASSERT(d->a_rs == 1 || d->a_cs == 1 || d->m <= 1 || d->k <= 1);
    ASSERT(d->b_rs == 1 || d->b_cs == 1 || d->n <= 1 || d->k <= 1);
    ASSERT(d->c_rs == 1 || d->c_cs == 1 || d->m <= 1 || d->n <= 1);
}

#ifdef AUTOSP_HAVE_ONEDNN

static pthread_once_t engine_once = PTHREAD_ONCE_INIT;
static dnnl_engine_t engine; /* one for the process, made once, never destroyed: it holds no resources on a CPU */

static void make_engine(void) {
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) engine = NULL;
}

static dnnl_data_type_t data_type(dtype t) { return t == DT_F32 ? dnnl_f32 : dnnl_bf16; }

/* A matrix (rows, cols) under d's batch dimensions; a batch stride of 0 is a dimension of 1. */
static bool matrix(const kern_gemm_desc *d, dtype t, int64_t rows, int64_t cols, int64_t rs, int64_t cs,
                   const int64_t *bs, dnnl_memory_desc_t *md) {
    dnnl_dims_t dims, strides;
    for (int i = 0; i < d->nbatch; i++) {
        dims[i] = bs[i] == 0 ? 1 : d->batch[i];
        strides[i] = bs[i] == 0 ? rows * cols : bs[i];
    }
    dims[d->nbatch] = rows, dims[d->nbatch + 1] = cols;
    /* The stride of an extent of 1 means nothing to us; the library takes it for a leading dimension and refuses one
     * that is too short, at run time. */
    if (rows == 1) rs = cs == 1 ? cols : 1;
    if (cols == 1) cs = rs == 1 ? rows : 1;
    strides[d->nbatch] = rs, strides[d->nbatch + 1] = cs;
    return dnnl_memory_desc_init_by_strides(md, d->nbatch + 2, dims, data_type(t), strides) == dnnl_success;
}

/* Forms that the library has: no empty matrices, bias only unscaled, no batch dimension repeated by all operands. */
static bool library_form(const kern_gemm_desc *d) {
    if (d->m == 0 || d->n == 0 || d->k == 0 || (d->bias && d->alpha != 1)) return false;
    for (int i = 0; i < d->nbatch; i++)
        if (d->batch[i] == 0 || d->c_bs[i] == 0 || (d->a_bs[i] == 0 && d->b_bs[i] == 0 && d->batch[i] != 1))
            return false;
    return true;
}

static bool library_primitive(kern_gemm *g) {
    const kern_gemm_desc *d = &g->d;
    dnnl_memory_desc_t a, b, c, bias;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_matmul_desc_t op;
    bool ok = matrix(d, d->ab, d->m, d->k, d->a_rs, d->a_cs, d->a_bs, &a) &&
              matrix(d, d->ab, d->k, d->n, d->b_rs, d->b_cs, d->b_bs, &b) &&
              matrix(d, d->c, d->m, d->n, d->c_rs, d->c_cs, d->c_bs, &c);
    if (d->bias) {
        dnnl_dims_t dims, strides;
        for (int i = 0; i <= d->nbatch + 1; i++) dims[i] = 1, strides[i] = d->n;
        dims[d->nbatch + 1] = d->n, strides[d->nbatch + 1] = 1;
        ok = ok && !dnnl_memory_desc_init_by_strides(&bias, d->nbatch + 2, dims, data_type(d->c), strides);
    }
    ok = ok && !dnnl_primitive_attr_create(&attr);
    ok = ok && !dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (d->alpha != 1) ok = ok && !dnnl_primitive_attr_set_output_scales(attr, 1, 0, &d->alpha);
    if (d->beta != 0) {
        ok = ok && !dnnl_post_ops_create(&ops) && !dnnl_post_ops_append_sum(ops, d->beta);
        ok = ok && !dnnl_primitive_attr_set_post_ops(attr, ops);
    }
    ok = ok && !dnnl_matmul_desc_init(&op, &a, &b, d->bias ? &bias : NULL, &c);
    ok = ok && !dnnl_primitive_desc_create(&g->pd, &op, attr, engine, NULL);
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    ok = ok && !dnnl_primitive_desc_query(g->pd, dnnl_query_impl_info_str, 0, &g->impl);
    /* The library's reference code is slower than ours by orders of magnitude. */
    ok = ok && !strstr(g->impl, "ref");
    ok = ok && !dnnl_primitive_create(&g->prim, g->pd);
    if (!ok) return false;
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(g->pd, dnnl_query_scratchpad_md, 0);
    g->ws = dnnl_memory_desc_get_size(scratch);
    return !dnnl_stream_create(&g->stream, engine, dnnl_stream_default_flags) &&
           !dnnl_memory_create(&g->a, &a, engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&g->b, &b, engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&g->c, &c, engine, DNNL_MEMORY_NONE) &&
           (!d->bias || !dnnl_memory_create(&g->bias, &bias, engine, DNNL_MEMORY_NONE)) &&
           !dnnl_memory_create(&g->scratch, scratch, engine, DNNL_MEMORY_NONE);
}

static void library_free(kern_gemm *g) {
    dnnl_memory_t all[] = {g->a, g->b, g->c, g->bias, g->scratch};
    for (int i = 0; i < 5; i++)
        if (all[i]) dnnl_memory_destroy(all[i]);
    if (g->prim) dnnl_primitive_destroy(g->prim);
    if (g->pd) dnnl_primitive_desc_destroy(g->pd);
    if (g->stream) dnnl_stream_destroy(g->stream);
    g->a = g->b = g->c = g->bias = g->scratch = NULL;
    g->prim = NULL, g->pd = NULL, g->stream = NULL;
}

/* Leaves g->prim NULL when the library has no good kernel for the form. */
static void library_prepare(kern_gemm *g) {
    pthread_once(&engine_once, make_engine);
    if (!engine || !library_form(&g->d)) return;
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(g->d.threads); /* the library plans for the current team size */
#endif
    if (!library_primitive(g)) library_free(g);
#ifdef _OPENMP
    omp_set_num_threads(before);
#endif
}

static sp_status library_run(kern_gemm *g, const void *a, const void *b, void *c, const void *bias, void *ws) {
    /* The interface has no const; inputs are not written. */
    struct {
        int arg;
        dnnl_memory_t memory;
        void *data;
    } use[] = {{DNNL_ARG_SRC, g->a, (void *)(uintptr_t)a},
               {DNNL_ARG_WEIGHTS, g->b, (void *)(uintptr_t)b},
               {DNNL_ARG_DST, g->c, c},
               {DNNL_ARG_SCRATCHPAD, g->scratch, ws},
               {DNNL_ARG_BIAS, g->bias, (void *)(uintptr_t)bias}};
    dnnl_exec_arg_t args[5];
    int n = g->d.bias ? 5 : 4;
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < n && status == dnnl_success; i++) {
        args[i] = (dnnl_exec_arg_t){use[i].arg, use[i].memory};
        status = dnnl_memory_set_data_handle(use[i].memory, use[i].data);
    }
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(g->d.threads);
#endif
    if (status == dnnl_success) status = dnnl_primitive_execute(g->prim, g->stream, n, args);
    if (status == dnnl_success) status = dnnl_stream_wait(g->stream);
#ifdef _OPENMP
    omp_set_num_threads(before);
#endif
    CHECK(status == dnnl_success, "oneDNN failed (status %d) in a %lldx%lldx%lld matrix product", (int)status,
          (long long)g->d.m, (long long)g->d.n, (long long)g->d.k);
    return SP_OK;
}

#endif

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
#ifdef AUTOSP_HAVE_ONEDNN
    if (d->impl != KERN_GEMM_OWN) library_prepare(g);
    if (g->prim) {
        *out = g;
        return SP_OK;
    }
#endif
    if (d->impl == KERN_GEMM_LIBRARY) {
        free(g);
        FAIL("no library has this form of a %lldx%lldx%lld matrix product; leave impl at KERN_GEMM_BEST",
             (long long)d->m, (long long)d->n, (long long)d->k);
    }
    g->impl = "own";
    g->ws = gemm_own_ws(&g->d);
    *out = g;
    return SP_OK;
}

size_t kern_gemm_ws(const kern_gemm *g) { return g->ws; }
const char *kern_gemm_impl(const kern_gemm *g) { return g->impl; }

sp_status kern_gemm_run(kern_gemm *g, const void *a, const void *b, void *c, const void *bias, void *ws) {
    ASSERT(!bias == !g->d.bias);
    if (g->swapped) {
        const void *left = b;
        b = a, a = left;
    }
#ifdef AUTOSP_HAVE_ONEDNN
    if (g->prim) return library_run(g, a, b, c, bias, ws);
#endif
    gemm_own_run(&g->d, a, b, c, bias, ws);
    return SP_OK;
}

void kern_gemm_free(kern_gemm *g) {
    if (!g) return;
#ifdef AUTOSP_HAVE_ONEDNN
    library_free(g);
#endif
    free(g);
}
