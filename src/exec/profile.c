/* profile.c - where the time of a step goes: a table by kernel, and a trace that Chrome and Perfetto read.
 *
 * Times are of whole calls on this rank, taken in the run loop with a monotonic clock. FLOPs and bytes are counted from
 * the operands' shapes: a product is 2 m n k; attention counts the visible half when it is causal, 4 D per score
 * forward and 10 D backward (FlashAttention-2's convention, arXiv 2307.08691, section 4); bytes are operands read plus
 * results written once.
 */
#include "exec/exec_impl.h"

#include <errno.h>
#include <stdlib.h>

static double numel(const tensor *t) { return (double)tensor_numel(t); }

/* Elements that are stored: a broadcast dimension counts once. */
static double stored_bytes(const tensor *t) {
    double n = (double)dtype_size(t->type);
    for (int d = 0; d < t->rank; d++)
        if (t->stride[d] != 0) n *= (double)t->dim[d];
    return n;
}

double exec_call_flops(const dev_call *c) {
    switch (c->op) {
    case OP_dot: {
        const ir_dim *lc;
        double k = 1;
        int nc = ir_dims(c->node, "lc", &lc);
        for (int i = 0; i < nc; i++) k *= (double)c->in[0].dim[lc[i]];
        return 2 * k * numel(&c->out[0]);
    }
    case OP_attention:
    case OP_attention_grad: {
        double q = (double)c->in[0].dim[1], k = (double)c->in[1].dim[1], first = (double)c->offset;
        double scores = q * k; /* visible ones of a head */
        if (ir_int(c->node, "causal", 0)) scores = q * (first + 1) + q * (q - 1) / 2;
        return (c->op == OP_attention ? 4 : 10) * scores *
               (double)(c->in[0].dim[0] * c->in[0].dim[2] * c->in[0].dim[3]);
    }
    default:
        return 0;
    }
}

double exec_call_bytes(const dev_call *c) {
    double bytes = 0;
    for (int i = 0; i < c->nin; i++) bytes += stored_bytes(&c->in[i]);
    for (int i = 0; i < c->nout; i++) bytes += stored_bytes(&c->out[i]) * (c->accumulate ? 2 : 1);
    return bytes;
}

typedef struct row {
    const char *name;
    int calls;
    double seconds, flops, bytes;
} row;

static int by_time(const void *a, const void *b) {
    double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return (x < y) - (x > y);
}

static void add_rows(const call *calls, int n, double runs, row *rows, double *total) {
    for (int i = 0; i < n; i++) {
        const call *k = &calls[i];
        row *r = &rows[k->c.op];
        if (!k->run) { /* a loop: what its tiles did */
            add_rows(k->body, k->nbody, runs * (double)k->tiles, rows, total);
            continue;
        }
        r->calls += (int)runs;
        r->seconds += k->seconds;
        r->flops += runs * exec_call_flops(&k->c);
        r->bytes += runs * exec_call_bytes(&k->c);
        *total += k->seconds;
    }
}

void exec_profile_table(const exec *e, buf *out) {
    row rows[OP_COUNT];
    double total = 0;
    for (int op = 0; op < OP_COUNT; op++) rows[op] = (row){.name = op_table[op].name};
    add_rows(e->calls[PROG_STEP], e->p->program[PROG_STEP].instrs.n, 1, rows, &total);
    qsort(rows, OP_COUNT, sizeof *rows, by_time);
    buf_printf(out, "%-16s %6s %10s %6s %9s %9s\n", "kernel", "calls", "ms", "share", "GFLOP/s", "GB/s");
    for (int i = 0; i < OP_COUNT && rows[i].calls; i++)
        buf_printf(out, "%-16s %6d %10.3f %5.1f%% %9.1f %9.1f\n", rows[i].name, rows[i].calls, 1e3 * rows[i].seconds,
                   100 * rows[i].seconds / total, 1e-9 * rows[i].flops / rows[i].seconds,
                   1e-9 * rows[i].bytes / rows[i].seconds);
    buf_printf(out, "%-16s %6s %10.3f\n", "all", "", 1e3 * total);
}

sp_status exec_profile_write(const exec *e, const char *path) {
    FILE *f = fopen(path, "w");
    CHECK(f, "cannot write the profile to %s: %s", path, strerror(errno));
    const plan_program *pr = &e->p->program[PROG_STEP];
    double start = pr->instrs.n ? e->calls[PROG_STEP][0].started : 0;
    fprintf(f, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    for (int i = 0; i < pr->instrs.n; i++) {
        const call *k = &e->calls[PROG_STEP][i];
        fprintf(f,
                "%s{\"name\":\"%s\",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":0,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,"
                "\"args\":{\"instr\":%d,\"gflop\":%.6g,\"mbytes\":%.6g}}",
                i ? ",\n" : "", op_table[k->c.op].name, pr->instrs.data[i].backward ? "backward" : "forward",
                comm_rank(e->o.comm), 1e6 * (k->started - start), 1e6 * k->seconds, i, 1e-9 * exec_call_flops(&k->c),
                1e-6 * exec_call_bytes(&k->c));
    }
    fprintf(f, "\n]}\n");
    bool bad = ferror(f) != 0;
    bad |= fclose(f) != 0;
    CHECK(!bad, "cannot write the profile to %s: %s", path, strerror(errno));
    return SP_OK;
}
