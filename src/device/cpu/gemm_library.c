/* gemm_library.c - matrix products by oneDNN; see gemm_library.h.
 *
 * Primitives are created ahead of time, with a workspace of the caller's. The library has two kinds of kernels for f32:
 * "brg", which works in that workspace, and "gemm:jit", the one behind dnnl_sgemm, which takes about 1 MB a thread
 * from malloc in each call and gives them back. As a primitive that adds, gemm:jit reads and writes the whole result
 * once more behind the product, to no effect; dnnl_sgemm does not, so it is called in its place. It is also faster
 * than brg for a large result, or to add to one, and is called there too.
 *
 * The library copies operands that are not laid out as its kernels read them, and for some shapes of f32 it does so
 * badly (2.6): dx = dy W falls from 90 % of the peak to 60 % as the sum over k gets longer, dW = dy^T x from 88 % to
 * 72 % with the width of a dW that is not large both ways. Such a product is done in parts of at most PART rows and
 * columns, or steps of k, where later steps add to the sums of earlier ones; each part is then one of the fast shapes
 * (docs/kernels.md has the table).
 *
 * Rows of an operand read by columns that lie a multiple of 4096 bytes apart fall into the same cache sets. Such parts
 * are first copied to the workspace, where their rows lie otherwise.
 *
 * In bf16 the library interleaves pairs of B's rows, and does so again for every block of rows of C. Where C has many
 * rows, B is brought into the layout that the library asks for first, once, as many columns of it at a time as stay in
 * a cache.
 */
#include "device/cpu/gemm_library.h"

#ifndef AUTOSP_HAVE_ONEDNN

gemm_library *gemm_library_new(const kern_gemm_desc *d) {
    (void)d;
    return NULL;
}
void gemm_library_free(gemm_library *g) { (void)g; }
size_t gemm_library_ws(const gemm_library *g) {
    (void)g;
    return 0;
}
const char *gemm_library_impl(const gemm_library *g) {
    (void)g;
    return "";
}
sp_status gemm_library_run(gemm_library *g, const void *a, const void *b, void *c, const void *bias, void *ws) {
    (void)g, (void)a, (void)b, (void)c, (void)bias, (void)ws;
    FAIL("this program was built without oneDNN");
}

#else

#include "device/cpu/threads.h"

#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdlib.h>

/* PART: the most rows or columns of C, or steps of k, of one part; a multiple of ALIGN.
 * LARGE: rows and columns from which a result is large; MIDDLING: from which dnnl_sgemm is the faster to add to one.
 * SETS: rows a multiple of so many bytes apart share the sets of the first-level cache.
 * PACKED_BYTES: the most of B that is packed at once. */
enum { PART = 1792, LARGE = 1024, MIDDLING = 512, ALIGN = 16, SETS = 4096, PACKED_BYTES = 8 << 20 };

/* Parts of k: the first sets or adds as asked, later ones add; the last may be short. */
typedef enum step { FIRST, LATER, SHORT, STEPS } step;

typedef struct product {
    dnnl_primitive_desc_t pd; /* owns the text impl points to */
    dnnl_primitive_t prim;    /* NULL: no part has this shape, or dnnl_sgemm does it */
    kern_gemm_desc sgemm;     /* where m is not 0, dnnl_sgemm does it */
    dnnl_memory_t a, b, c, bias, scratch;
    dnnl_primitive_t pack; /* brings B into the layout that prim reads; NULL: prim reads it as it lies */
    dnnl_memory_t packed, pack_scratch;
} product;

struct gemm_library {
    kern_gemm_desc d;
    int64_t m, n, k; /* of a part that is not short */
    int64_t ld;      /* from one k step to the next of the copy of A's part; 0: A is used where it lies */
    bool packs;      /* B's part is packed first, where the library has a layout for it */
    size_t packed;   /* bytes of that */
    size_t ws;       /* of the library; the copy of A's part and then B's packed one lie before it */
    const char *impl;
    dnnl_stream_t stream;
    product part[2][2][STEPS]; /* [m is short][n is short][step] */
};

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

/* A memory for the scratchpad of pd, for which there will be room. */
static bool make_scratch(gemm_library *g, const_dnnl_primitive_desc_t pd, dnnl_memory_t *scratch) {
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    const size_t ws = dnnl_memory_desc_get_size(md);
    if (ws > g->ws) g->ws = ws;
    return !dnnl_memory_create(scratch, md, engine, DNNL_MEMORY_NONE);
}

/* What packs B, described by b, for a product that wants it in another layout. */
static bool make_pack(const dnnl_memory_desc_t *b, const_dnnl_primitive_attr_t attr, gemm_library *g, product *p) {
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(p->pd, dnnl_query_weights_md, 0);
    if (dnnl_memory_desc_equal(packed, b)) return true;
    const size_t bytes = (size_t)round_up((int64_t)dnnl_memory_desc_get_size(packed), KERN_ALIGN);
    if (bytes > g->packed) g->packed = bytes;
    dnnl_primitive_desc_t pd = NULL;
    bool ok = !dnnl_reorder_primitive_desc_create(&pd, b, engine, packed, engine, attr) &&
              !dnnl_primitive_create(&p->pack, pd) && make_scratch(g, pd, &p->pack_scratch) &&
              !dnnl_memory_create(&p->packed, packed, engine, DNNL_MEMORY_NONE);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return ok;
}

static bool both_from(const kern_gemm_desc *d, int64_t least) { return d->m >= least && d->n >= least; }

/* Has dnnl_sgemm the form d of a part, and is it faster than the primitive, whose name is impl? */
static bool takes_sgemm(const kern_gemm_desc *d, const char *impl) {
    if (d->ab != DT_F32 || d->nbatch || d->bias || d->c_cs != 1 || d->m == 1 || d->n == 1 || d->k == 1) return false;
    if (strcmp(impl, "gemm:jit") == 0) return true;
    return strncmp(impl, "brg:", 4) == 0 && (both_from(d, LARGE) || (d->beta != 0 && both_from(d, MIDDLING)));
}

/* The primitive of one part's shape, d. */
static bool make_product(const kern_gemm_desc *d, gemm_library *g, product *p) {
    dnnl_memory_desc_t a, b, wanted, c, bias;
    dnnl_primitive_attr_t attr = NULL, plain = NULL;
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
    wanted = b;
    if (g->packs) ok = ok && !dnnl_memory_desc_init_by_tag(&wanted, 2, b.dims, b.data_type, dnnl_format_tag_any);
    ok = ok && !dnnl_primitive_attr_create(&attr);
    ok = ok && !dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    ok = ok && !dnnl_primitive_attr_clone(&plain, attr);
    if (d->alpha != 1) ok = ok && !dnnl_primitive_attr_set_output_scales(attr, 1, 0, &d->alpha);
    if (d->beta != 0) {
        ok = ok && !dnnl_post_ops_create(&ops) && !dnnl_post_ops_append_sum(ops, d->beta);
        ok = ok && !dnnl_primitive_attr_set_post_ops(attr, ops);
    }
    ok = ok && !dnnl_matmul_desc_init(&op, &a, &wanted, d->bias ? &bias : NULL, &c);
    ok = ok && !dnnl_primitive_desc_create(&p->pd, &op, attr, engine, NULL);
    if (g->packs) ok = ok && make_pack(&b, plain, g, p);
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (plain) dnnl_primitive_attr_destroy(plain);
    ok = ok && !dnnl_primitive_desc_query(p->pd, dnnl_query_impl_info_str, 0, &g->impl);
    /* The library's reference code is slower than ours by orders of magnitude. */
    ok = ok && !strstr(g->impl, "ref");
    if (ok && takes_sgemm(d, g->impl)) {
        p->sgemm = *d;
        g->impl = "sgemm";
        return true;
    }
    ok = ok && !dnnl_primitive_create(&p->prim, p->pd);
    if (!ok) return false;
    return !dnnl_memory_create(&p->a, &a, engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&p->b, &b, engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&p->c, &c, engine, DNNL_MEMORY_NONE) &&
           (!d->bias || !dnnl_memory_create(&p->bias, &bias, engine, DNNL_MEMORY_NONE)) &&
           make_scratch(g, p->pd, &p->scratch);
}

/* The same. The library thinks about a large product for milliseconds, which a planner that tries many would wait for;
 * where dnnl_sgemm will do it, a smaller one of its kind says so. */
static bool make_part(const kern_gemm_desc *d, gemm_library *g, product *p) {
    if (!both_from(d, LARGE) || !takes_sgemm(d, "brg:")) return make_product(d, g, p);
    kern_gemm_desc small = *d;
    small.m = min64(d->m, PART), small.n = min64(d->n, PART), small.k = min64(d->k, PART);
    if (!make_product(&small, g, p)) return false;
    p->sgemm = *d; /* a kernel of another name than those two, which this library does not have, gives way too */
    return true;
}

/* Nearly equal parts of at most `most`, so that none is too thin. */
static int64_t nearly_equal(int64_t x, int64_t most) {
    int64_t parts = ceil_div(x, most);
    return parts == 1 ? x : round_up(ceil_div(x, parts), ALIGN);
}
static int64_t part_of(int64_t x) { return nearly_equal(x, PART); }

/* Columns of bf16 that are packed at once, at most. */
static int64_t packed_columns(const kern_gemm_desc *d) { return PACKED_BYTES / (2 * d->k) / ALIGN * ALIGN; }

/* Is packing B worth it? Not for few rows, nor where the parts would be thin, nor for a B that is transposed too. */
static bool packs(const kern_gemm_desc *d) {
    return !d->nbatch && d->b_cs == 1 && d->n > 1 && d->m >= 512 && packed_columns(d) >= min64(d->n, 256);
}

/* Is A worth copying? Not for a narrow C, where that takes as long as it saves; with a C of 16 MiB nothing is left of
 * the gain, and the copies would be large. */
static bool copies(const kern_gemm_desc *d) {
    return d->m > 1 && d->a_rs == 1 && d->a_cs % (SETS / 4) == 0 && d->n >= 512 && d->m * d->n < (16 << 20) / 4;
}

static void choose_parts(gemm_library *g) {
    const kern_gemm_desc *d = &g->d;
    g->m = d->m, g->n = d->n, g->k = d->k;
    if (d->ab == DT_BF16 && packs(d)) {
        g->packs = true;
        g->n = nearly_equal(d->n, packed_columns(d));
    }
    /* Sums of bf16 would be rounded after each part of k; the other forms are fast as they are. */
    if (d->ab != DT_F32 || d->nbatch || d->b_cs != 1) return;
    const bool large = both_from(d, LARGE), copy = !large && copies(d);
    if (!large) g->n = part_of(d->n);
    if (!large && d->a_cs != 1) g->m = part_of(d->m);
    if (d->a_cs == 1 || copy) g->k = part_of(d->k);
    if (copy) g->ld = round_up(g->m, 2 * ALIGN) + ALIGN; /* an odd number of lines */
}

static bool make_parts(gemm_library *g) {
    const kern_gemm_desc *d = &g->d;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            for (step s = FIRST; s < STEPS; s++) {
                kern_gemm_desc part = *d;
                part.m = i ? d->m % g->m : g->m;
                part.n = j ? d->n % g->n : g->n;
                part.k = s == SHORT ? d->k % g->k : g->k;
                if (s != FIRST) part.beta = 1, part.bias = false;
                if (g->ld) part.a_cs = g->ld;
                bool exists = part.m && part.n && part.k && (s != LATER || d->k >= 2 * g->k);
                if (exists && !make_part(&part, g, &g->part[i][j][s])) return false;
            }
    return !dnnl_stream_create(&g->stream, engine, dnnl_stream_default_flags);
}

gemm_library *gemm_library_new(const kern_gemm_desc *d) {
    pthread_once(&engine_once, make_engine);
    if (!engine || !library_form(d)) return NULL;
    gemm_library *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    g->d = *d;
    choose_parts(g);
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(d->threads); /* the library plans for the current team size */
#endif
    if (!make_parts(g)) {
        gemm_library_free(g);
        g = NULL;
    }
#ifdef _OPENMP
    omp_set_num_threads(before);
#endif
    return g;
}

void gemm_library_free(gemm_library *g) {
    if (!g) return;
    product *all = &g->part[0][0][0];
    for (int i = 0; i < 2 * 2 * STEPS; i++) {
        product *p = &all[i];
        dnnl_memory_t memory[] = {p->a, p->b, p->c, p->bias, p->scratch, p->packed, p->pack_scratch};
        for (size_t k = 0; k < sizeof memory / sizeof *memory; k++)
            if (memory[k]) dnnl_memory_destroy(memory[k]);
        if (p->pack) dnnl_primitive_destroy(p->pack);
        if (p->prim) dnnl_primitive_destroy(p->prim);
        if (p->pd) dnnl_primitive_desc_destroy(p->pd);
    }
    if (g->stream) dnnl_stream_destroy(g->stream);
    free(g);
}

static size_t copy_bytes(const gemm_library *g) { return sizeof(float) * (size_t)(g->k * g->ld); }

size_t gemm_library_ws(const gemm_library *g) { return copy_bytes(g) + g->packed + g->ws; }
const char *gemm_library_impl(const gemm_library *g) { return g->impl; }

typedef struct use {
    int arg;
    dnnl_memory_t memory;
    void *data;
} use;

static dnnl_status_t execute(const gemm_library *g, dnnl_primitive_t prim, int n, const use *uses) {
    dnnl_exec_arg_t args[5];
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < n && status == dnnl_success; i++) {
        args[i] = (dnnl_exec_arg_t){uses[i].arg, uses[i].memory};
        status = dnnl_memory_set_data_handle(uses[i].memory, uses[i].data);
    }
    if (status == dnnl_success) status = dnnl_primitive_execute(prim, g->stream, n, args);
    /* What it reads or writes may be overwritten next. */
    return status == dnnl_success ? dnnl_stream_wait(g->stream) : status;
}

/* The interface has no const; inputs are not written. */
static void *input(const void *p) { return (void *)(uintptr_t)p; }

static dnnl_status_t run_sgemm(const kern_gemm_desc *d, const void *a, const void *b, void *c) {
    const bool a_rows = d->a_cs == 1, b_rows = d->b_cs == 1;
    return dnnl_sgemm(a_rows ? 'N' : 'T', b_rows ? 'N' : 'T', d->m, d->n, d->k, d->alpha, a, a_rows ? d->a_rs : d->a_cs,
                      b, b_rows ? d->b_rs : d->b_cs, d->beta, c, d->c_rs);
}

static dnnl_status_t run_product(const gemm_library *g, const product *p, const void *a, const void *b, void *c,
                                 const void *bias, char *ws) {
    if (p->sgemm.m) return run_sgemm(&p->sgemm, a, b, c);
    char *packed = ws + copy_bytes(g), *scratch = packed + g->packed;
    if (p->pack) {
        const use pack[] = {{DNNL_ARG_FROM, p->b, input(b)},
                            {DNNL_ARG_TO, p->packed, packed},
                            {DNNL_ARG_SCRATCHPAD, p->pack_scratch, scratch}};
        dnnl_status_t status = execute(g, p->pack, 3, pack);
        if (status != dnnl_success) return status;
    }
    const use args[] = {{DNNL_ARG_SRC, p->a, input(a)},
                        {DNNL_ARG_WEIGHTS, p->pack ? p->packed : p->b, p->pack ? packed : input(b)},
                        {DNNL_ARG_DST, p->c, c},
                        {DNNL_ARG_SCRATCHPAD, p->scratch, scratch},
                        {DNNL_ARG_BIAS, p->bias, input(bias)}};
    return execute(g, p->prim, p->bias ? 5 : 4, args);
}

/* The part of A from row m0 and step k0 on, where its product takes it from. */
static const char *part_of_a(const gemm_library *g, int64_t m0, int64_t k0, const char *a, void *copy) {
    const kern_gemm_desc *d = &g->d;
    const char *from = a + (m0 * d->a_rs + k0 * d->a_cs) * dtype_size(d->ab);
    if (!g->ld) return from;
    const int64_t rows = min64(g->m, d->m - m0), steps = min64(g->k, d->k - k0);
    tensor to = {.data = copy, .type = d->ab, .rank = 2, .dim = {steps, rows}, .stride = {g->ld, 1}}, at = to;
    at.data = (void *)(uintptr_t)from, at.stride[0] = d->a_cs;
    kern_copy(&to, &at);
    return copy;
}

static dnnl_status_t run_parts(gemm_library *g, const char *a, const char *b, char *c, const char *bias, char *ws) {
    const kern_gemm_desc *d = &g->d;
    const int64_t ab = dtype_size(d->ab), ce = dtype_size(d->c);
    for (int64_t m0 = 0; m0 < d->m; m0 += g->m)
        for (int64_t k0 = 0; k0 < d->k; k0 += g->k) {
            const step s = k0 == 0 ? FIRST : k0 + g->k <= d->k ? LATER : SHORT;
            const char *part = part_of_a(g, m0, k0, a, ws);
            for (int64_t n0 = 0; n0 < d->n; n0 += g->n) {
                const product *p = &g->part[m0 + g->m > d->m][n0 + g->n > d->n][s];
                dnnl_status_t status =
                    run_product(g, p, part, b + (k0 * d->b_rs + n0 * d->b_cs) * ab,
                                c + (m0 * d->c_rs + n0 * d->c_cs) * ce, bias ? bias + n0 * ce : NULL, ws);
                if (status != dnnl_success) return status;
            }
        }
    return dnnl_success;
}

sp_status gemm_library_run(gemm_library *g, const void *a, const void *b, void *c, const void *bias, void *ws) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(g->d.threads);
#endif
    dnnl_status_t status = run_parts(g, a, b, c, bias, ws);
#ifdef _OPENMP
    omp_set_num_threads(before);
#endif
    CHECK(status == dnnl_success, "oneDNN failed (status %d) in a %lldx%lldx%lld matrix product", (int)status,
          (long long)g->d.m, (long long)g->d.n, (long long)g->d.k);
    return SP_OK;
}

#endif
