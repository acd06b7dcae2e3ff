/* fused.c - runs generated kernels: shares their rows, or pieces of rows, out among the threads.
 *
 * Sums over rows (gradients of biases and of norms' weights) are taken in fixed chunks of rows, whose partial sums lie
 * in the workspace and are added in order: they depend on neither the number of threads nor on what else is in the
 * kernel. The code has no threads of its own, so there is one pool only.
 */
#include "device/cpu/cpu.h"
#include "device/cpu/rows.h"

#include <stdlib.h>

enum { MAX_CHUNKS = 64, CHUNK_ROWS = 16, LINE = 16 };

static int64_t row_count(const dev_call *c) {
    int64_t n = 1;
    for (int d = 0; d + 1 < c->out[0].rank; d++) n *= c->out[0].dim[d];
    return n;
}
static int64_t row_length(const dev_call *c) { return c->out[0].dim[c->out[0].rank - 1]; }
static int64_t chunk_count(int64_t rows) { return max64(1, min64(MAX_CHUNKS, ceil_div(rows, CHUNK_ROWS))); }

/* Threads at most: as many as the workspace was asked for. */
static int team(const dev_call *c) { return (int)max64(1, min64(c->threads, omp_get_max_threads())); }

/* Floats of the chunks' sums; behind them, for each thread, what its row keeps of exponentials. */
static int64_t sum_floats(const dev_call *c) {
    return c->kernel->columns * chunk_count(row_count(c)) * round_up(row_length(c), LINE);
}
static int64_t kept_floats(const dev_call *c) {
    return gen_compilable(c->kernel) ? c->kernel->terms * gen_terms_floats(row_length(c)) : 0; /* else interpreted */
}

int64_t cpu_fused_workspace(const dev_call *c) {
    return (sum_floats(c) + max64(1, c->threads) * kept_floats(c)) * (int64_t)sizeof(float);
}

/* The arguments of the calling thread. */
static gen_args mine(const dev_call *c, const gen_args *a) {
    gen_args m = *a;
    m.terms = (float *)c->work + sum_floats(c) + omp_get_thread_num() * kept_floats(c);
    return m;
}

/* Without code the kernel is interpreted. */
sp_status cpu_fused_prepare(dev_call *c) { return c->code ? SP_OK : ref_fused_prepare(c); }
void cpu_fused_release(dev_call *c) { free(c->state); }

static gen_args args_of(const dev_call *c) {
    gen_args a = {.cols = row_length(c), .outer = c->out[0].rank - 1};
    for (int d = 0; d < a.outer; d++) a.dim[d] = c->out[0].dim[d];
    for (int i = 0; i < c->nin + c->nout; i++) {
        const tensor *t = i < c->nin ? &c->in[i] : &c->out[i - c->nin];
        a.data[i] = t->data;
        a.step[i] = t->stride[a.outer];
        for (int d = 0; d < a.outer; d++) a.stride[i][d] = t->stride[d];
    }
    a.columns_stride = round_up(a.cols, LINE);
    return a;
}

/* out[c] = or += the chunks' sums, first chunk first; a vector of columns at a time, which the sums are padded to. */
static void add_chunks(const gen_args *a, const gen_result *r, void *out, const float *sums, int64_t chunks,
                       int64_t apart) {
    const bool bf = r->type == DT_BF16;
    for (int64_t c = 0; c < a->cols; c += VL) {
        const int64_t left = a->cols - c;
        vf s = r->store == GEN_COLUMNS_ADD ? get_part(bf, out, c, left, 0) : vset(0);
        for (int64_t k = 0; k < chunks; k++) s += vld(sums + k * apart + c);
        put_part(bf, out, c, left, s);
    }
}

static void run_columns(const dev_call *c, const gen_args *a, int64_t rows) {
    const int64_t chunks = chunk_count(rows), apart = c->kernel->columns * a->columns_stride;
#pragma omp parallel for schedule(static) num_threads(team(c)) if (rows * a->cols >= ROWS_ALONE)
    for (int64_t k = 0; k < chunks; k++) {
        gen_args m = mine(c, a);
        m.columns = (float *)c->work + k * apart;
        memset(m.columns, 0, sizeof(float) * (size_t)apart);
        c->code(&m, rows * k / chunks, rows * (k + 1) / chunks, 0, a->cols);
    }
    const float *sums = c->work;
    for (int i = 0; i < c->nout; i++) {
        if (c->kernel->out.data[i].store < GEN_COLUMNS) continue;
        add_chunks(a, &c->kernel->out.data[i], c->out[i].data, sums, chunks, apart);
        sums += a->columns_stride;
    }
}

sp_status cpu_fused(dev_call *c) {
    if (!c->code) return ref_fused(c);
    TRY(ref_fused_check(c));
    const gen_args a = args_of(c);
    const int64_t rows = row_count(c), pieces = c->kernel->whole_rows ? 1 : ceil_div(a.cols, ELEM_CHUNK);
    if (c->kernel->columns) {
        run_columns(c, &a, rows);
        return SP_OK;
    }
    /* Blocks of rows, so that a call has work enough. */
    const int64_t block =
        pieces > 1 ? 1 : max64(1, min64(ceil_div(rows, 2 * omp_get_max_threads()), ceil_div(ELEM_CHUNK, a.cols)));
    const int64_t blocks = ceil_div(rows, block);
#pragma omp parallel num_threads(team(c)) if (rows * a.cols >= ROWS_ALONE)
    {
        const gen_args m = mine(c, &a);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks * pieces; i++) {
            int64_t r = i / pieces * block, p = i % pieces * ELEM_CHUNK;
            c->code(&m, r, min64(rows, r + block), p, pieces > 1 ? min64(a.cols, p + ELEM_CHUNK) : a.cols);
        }
    }
    return SP_OK;
}
