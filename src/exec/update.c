/* update.c - what happens once a step, after the last microbatch: reduction of gradients, their norm, AdamW.
 *
 * Gradients lie side by side in one section, so partial ones are reduced in few large messages. Sums are taken in a
 * fixed order that depends on neither ranks nor threads: a norm is the sum of per-parameter sums in f64.
 */
#include "exec/exec_impl.h"

#include <math.h>

/* By the team, in the parts that AdamW will take: where memory belongs to a processor, its pages are that thread's. */
static void zero(char *at, int64_t bytes) {
    enum { PART = 1 << 16 };
#pragma omp parallel for schedule(static) if (bytes > 8 * PART)
    for (int64_t i = 0; i < bytes; i += PART) memset(at + i, 0, (size_t)min64(PART, bytes - i));
}

void exec_zero_grads(exec *e) {
    e->fresh = true;
    for (int i = 0; i < exec_plan(e)->params.n; i++) {
        const plan_param *p = &exec_plan(e)->params.data[i];
        if (p->grad >= 0 && !p->stored) zero(exec_grad(e, i), exec_plan(e)->bufs.data[p->grad].bytes);
    }
}

sp_status exec_reduce_grads(exec *e) {
    const plan *p = exec_plan(e);
    comm *c = exec_comm(e);
    if (comm_size(c) == 1) return SP_OK;
    int64_t elem = dtype_size(p->type);
    for (int i = 0; i < p->params.n;) {
        if (p->params.data[i].grad < 0 || !p->params.data[i].partial) {
            i++;
            continue;
        }
        char *start = exec_grad(e, i), *end = start; /* a run of neighbours, with the gaps between them (zero) */
        for (; i < p->params.n && (p->params.data[i].grad < 0 || p->params.data[i].partial); i++)
            if (p->params.data[i].grad >= 0) end = (char *)exec_grad(e, i) + p->bufs.data[p->params.data[i].grad].bytes;
        for (char *at = start; at < end; at += REDUCE_CHUNK) {
            int64_t bytes = min64(REDUCE_CHUNK, end - at);
            TRY_NOTE(comm_all_reduce(c, at, at, bytes / elem, p->type, COMM_SUM), "reducing gradients");
        }
    }
    return SP_OK;
}

sp_status exec_reduce_sum(exec *e, double *loss_sum) {
    if (!exec_plan(e)->program[PROG_STEP].partial) return SP_OK;
    return comm_all_reduce(exec_comm(e), loss_sum, loss_sum, 1, DT_F64, COMM_SUM);
}

static double sum_squares(dtype t, int64_t n, const void *data) {
    double acc = 0;
    enum { BLOCK = 4096 };
    for (int64_t b = 0; b < n; b += BLOCK) { /* blocks keep the f64 sum short of long chains */
        double s = 0;
        int64_t end = min64(n, b + BLOCK);
        for (int64_t i = b; i < end; i++) {
            double x = t == DT_F64 ? ((const double *)data)[i] : (double)((const float *)data)[i];
            s += x * x;
        }
        acc += s;
    }
    return acc;
}

double exec_grad_norm(const exec *ce) {
    exec *e = (exec *)ce;
    double acc = 0;
    for (int i = 0; i < exec_plan(e)->params.n; i++) {
        const plan_param *p = &exec_plan(e)->params.data[i];
        if (p->grad < 0) continue;
        bool fast = e->o.dev->sumsq && exec_plan(e)->type == DT_F32;
        acc += (fast ? e->o.dev->sumsq : sum_squares)(exec_plan(e)->type, ir_numel(&p->type), exec_grad(e, i));
    }
    return sqrt(acc);
}

/* torch.optim.AdamW (decoupled decay, arXiv 1711.05101): p *= 1 - lr wd; m, v; p -= lr mhat / (sqrt(vhat) + eps). */
#define ADAMW(T, SQRT)                                                                                                 \
    static void adamw_##T(int64_t n, T *p, const T *g, T *m, T *v, const exec_adamw_options *o, double decay) {        \
        const T b1 = (T)o->beta1, b2 = (T)o->beta2, keep = (T)(1 - o->lr * decay), eps = (T)o->eps;                    \
        const T one_b1 = (T)(1 - o->beta1), one_b2 = (T)(1 - o->beta2), scale = (T)o->grad_scale;                      \
        const T step = (T)(o->lr / (1 - pow(o->beta1, (double)o->step)));                                              \
        const T root = (T)(1 / sqrt(1 - pow(o->beta2, (double)o->step)));                                              \
        _Pragma("omp parallel for simd schedule(static)") for (int64_t i = 0; i < n; i++) {                            \
            T x = g[i] * scale;                                                                                        \
            m[i] = b1 * m[i] + one_b1 * x;                                                                             \
            v[i] = b2 * v[i] + one_b2 * x * x;                                                                         \
            p[i] = keep * p[i] - step * m[i] / (SQRT(v[i]) * root + eps);                                              \
        }                                                                                                              \
    }
ADAMW(float, sqrtf)
ADAMW(double, sqrt)

/* The generated kernel on one parameter: a row, and the numbers of the step. */
static void run_adamw(const exec *e, int64_t n, void *const *data, const adamw_params *a) {
    float number[GEN_ADAMW_NUMBERS];
    tensor t[4 + GEN_ADAMW_NUMBERS + 3];
    gen_adamw_numbers(a, number);
    for (int i = 0; i < 4; i++) t[i] = (tensor){.data = data[i], .type = DT_F32, .rank = 1, .dim = {n}, .stride = {1}};
    for (int i = 0; i < GEN_ADAMW_NUMBERS; i++)
        t[4 + i] = (tensor){.data = number + i, .type = DT_F32, .rank = 1, .dim = {n}};
    tensor *out = t + 4 + GEN_ADAMW_NUMBERS;
    out[0] = t[0], out[1] = t[2], out[2] = t[3];
    dev_call c = {
        .op = OP_fused, .kernel = e->p->adamw, .code = e->adamw, .in = t, .out = out, .threads = e->o.threads};
    c.nin = 4 + GEN_ADAMW_NUMBERS;
    c.nout = 3;
    sp_status s = e->o.dev->table[OP_fused](&c);
    ASSERT(s == SP_OK); /* it has no labels that could be wrong */
}

void exec_adamw(exec *e, const exec_adamw_options *o) {
    const plan *p = exec_plan(e);
    for (int i = 0; i < p->params.n; i++) {
        const plan_param *q = &p->params.data[i];
        if (q->grad < 0 || q->m < 0) continue;
        double decay = q->decay_rank || o->decay_all ? o->weight_decay : 0;
        int64_t n = ir_numel(&q->type);
        adamw_params fast = {o->lr, o->beta1, o->beta2, o->eps, decay, (float)o->grad_scale, o->step};
        void *const data[] = {exec_param(e, i), exec_grad(e, i), exec_moment(e, i, 0), exec_moment(e, i, 1)};
        if (e->adamw)
            run_adamw(e, n, data, &fast);
        else if (p->type == DT_F32 && e->o.dev->adamw)
            e->o.dev->adamw(n, exec_param(e, i), exec_grad(e, i), exec_moment(e, i, 0), exec_moment(e, i, 1), &fast,
                            NULL);
        else if (p->type == DT_F64)
            adamw_double(n, exec_param(e, i), exec_grad(e, i), exec_moment(e, i, 0), exec_moment(e, i, 1), o, decay);
        else
            adamw_float(n, exec_param(e, i), exec_grad(e, i), exec_moment(e, i, 0), exec_moment(e, i, 1), o, decay);
    }
}
