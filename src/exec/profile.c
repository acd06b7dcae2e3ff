/* profile.c - where the time of a step goes: a table by kernel, and a trace that Chrome and Perfetto read.
 *
 * Times are of whole calls on this rank, taken in the run loop with a monotonic clock. FLOPs and bytes are counted from
 * the operands' shapes: a product is 2 m n k; attention counts the visible half when it is causal, 4 D per score
 * forward and 10 D backward (FlashAttention-2's convention, arXiv 2307.08691, section 4); bytes are operands read plus
 * results written once. "limit" is the share of the machine's limit: the time that the operations would take at the
 * peak rate of their type, or the bytes at memory's bandwidth, whichever is longer, over the time taken. Both limits
 * are measured by the device when the table is made; data that a cache still holds passes the second one.
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

/* Longest name of a row: "dot f32 4096x768x3072 nt+" with three numbers of 19 digits fits. */
enum { NAME_SIZE = 96 };

/* Whether the first of dims d[0..n) of t lies next to itself in memory (stride 1). */
static bool unit_stride(const tensor *t, const ir_dim *d, int n) { return n > 0 && t->stride[d[n - 1]] == 1; }

/* "dot TYPE MxNxK FORM": M rows of the first operand, N of the second, K summed. FORM as BLAS has it, of row-major
 * operands: nt where both lie along K (y = x W^T), nn where the second lies along N, tn where the first lies along M
 * (dW = dy^T x); + where it adds to its result. */
static void dot_name(const dev_call *c, char *name) {
    const ir_dim *lc, *rc, *lb;
    int nc = ir_dims(c->node, "lc", &lc), nb = ir_dims(c->node, "lb", &lb);
    (void)ir_dims(c->node, "rc", &rc);
    double k = 1, batch = 1;
    for (int i = 0; i < nc; i++) k *= (double)c->in[0].dim[lc[i]];
    for (int i = 0; i < nb; i++) batch *= (double)c->in[0].dim[lb[i]];
    double m = numel(&c->in[0]) / (k * batch), n = numel(&c->in[1]) / (k * batch);
    int at = snprintf(name, NAME_SIZE, "dot %s ", dtype_name(c->in[0].type));
    if (batch > 1) at += snprintf(name + at, NAME_SIZE - (size_t)at, "%.0f x ", batch);
    snprintf(name + at, NAME_SIZE - (size_t)at, "%.0fx%.0fx%.0f %c%c%s", m, n, k,
             unit_stride(&c->in[0], lc, nc) ? 'n' : 't', unit_stride(&c->in[1], rc, nc) ? 't' : 'n',
             c->accumulate ? "+" : "");
}

/* What people know a call by: its op, or the ops that were fused in it. */
static const char *short_name(const dev_call *c) { return c->kernel ? c->kernel->name : op_table[c->op].name; }

/* The same; a product also by its sizes. */
static void full_name(const dev_call *c, char *name) {
    if (c->op == OP_dot)
        dot_name(c, name);
    else
        snprintf(name, NAME_SIZE, "%s", short_name(c));
}

typedef struct row {
    char name[NAME_SIZE];
    int calls;
    double seconds, flops, bytes;
    double least; /* seconds at the machine's limits */
} row;

typedef struct limits {
    double flops[2], bytes; /* a second; f32, bf16; 0: not known */
} limits;

static limits measure_limits(const exec *e) {
    const device *d = e->o.dev;
    limits l = {{0, 0}, 0};
    if (d->peak_flops)
        l.flops[0] = d->peak_flops(DT_F32, e->o.threads), l.flops[1] = d->peak_flops(DT_BF16, e->o.threads);
    if (d->peak_bytes) l.bytes = d->peak_bytes(e->o.threads);
    return l;
}

static double least_seconds(const limits *l, const dev_call *c) {
    double peak = l->flops[c->nin && c->in[0].type == DT_BF16];
    double by_flops = peak > 0 ? exec_call_flops(c) / peak : 0;
    double by_bytes = l->bytes > 0 ? exec_call_bytes(c) / l->bytes : 0;
    return by_flops > by_bytes ? by_flops : by_bytes;
}

static int by_time(const void *a, const void *b) {
    double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return (x < y) - (x > y);
}

typedef VEC(row) row_list;

static row *find_row(row_list *rows, const char *name) {
    for (int i = 0; i < rows->n; i++)
        if (strcmp(rows->data[i].name, name) == 0) return &rows->data[i];
    row fresh = {.calls = 0};
    snprintf(fresh.name, sizeof fresh.name, "%s", name);
    vec_push(NULL, rows, fresh);
    return &rows->data[rows->n - 1];
}

static void add_rows(const call *calls, int n, double runs, const limits *l, row_list *rows, double *total) {
    for (int i = 0; i < n; i++) {
        const call *k = &calls[i];
        if (!k->run) { /* a loop: what its tiles did */
            add_rows(k->body, k->nbody, runs * (double)k->tiles, l, rows, total);
            continue;
        }
        char name[NAME_SIZE];
        full_name(&k->c, name);
        row *r = find_row(rows, name);
        r->calls += (int)runs;
        r->seconds += k->seconds;
        r->flops += runs * exec_call_flops(&k->c);
        r->bytes += runs * exec_call_bytes(&k->c);
        r->least += runs * least_seconds(l, &k->c);
        *total += k->seconds;
    }
}

void exec_profile_table(const exec *e, buf *out) {
    row_list rows = {0};
    double total = 0, least = 0;
    const limits l = measure_limits(e);
    add_rows(e->calls[PROG_STEP], e->p->program[PROG_STEP].instrs.n, 1, &l, &rows, &total);
    if (rows.n) qsort(rows.data, (size_t)rows.n, sizeof *rows.data, by_time);
    if (l.bytes > 0)
        buf_printf(out, "limits on %d threads: %.1f GFLOP/s in f32, %.1f in bf16, %.1f GB/s\n", e->o.threads,
                   1e-9 * l.flops[0], 1e-9 * l.flops[1], 1e-9 * l.bytes);
    buf_printf(out, "%-30s %6s %10s %6s %9s %9s %6s\n", "kernel", "calls", "ms", "share", "GFLOP/s", "GB/s", "limit");
    for (int i = 0; i < rows.n; i++) {
        const row *r = &rows.data[i];
        buf_printf(out, "%-30s %6d %10.3f %5.1f%% %9.1f %9.1f %5.0f%%\n", r->name, r->calls, 1e3 * r->seconds,
                   100 * r->seconds / total, 1e-9 * r->flops / r->seconds, 1e-9 * r->bytes / r->seconds,
                   100 * r->least / r->seconds);
        least += r->least;
    }
    buf_printf(out, "%-30s %6s %10.3f %34s %5.0f%%\n", "all", "", 1e3 * total, "", 100 * least / total);
    vec_free(&rows);
}

sp_status exec_profile_write(const exec *e, const char *path) {
    FILE *f = fopen(path, "w");
    CHECK(f, "cannot write the profile to %s: %s", path, strerror(errno));
    const plan_program *pr = &e->p->program[PROG_STEP];
    double start = pr->instrs.n ? e->calls[PROG_STEP][0].started : 0;
    fprintf(f, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    for (int i = 0; i < pr->instrs.n; i++) {
        const call *k = &e->calls[PROG_STEP][i];
        char name[NAME_SIZE];
        full_name(&k->c, name);
        fprintf(f,
                "%s{\"name\":\"%s\",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":0,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,"
                "\"args\":{\"kernel\":\"%s\",\"instr\":%d,\"gflop\":%.6g,\"mbytes\":%.6g}}",
                i ? ",\n" : "", short_name(&k->c), pr->instrs.data[i].backward ? "backward" : "forward",
                comm_rank(e->o.comm), 1e6 * (k->started - start), 1e6 * k->seconds, name, i,
                1e-9 * exec_call_flops(&k->c), 1e-6 * exec_call_bytes(&k->c));
    }
    fprintf(f, "\n]}\n");
    bool bad = ferror(f) != 0;
    bad |= fclose(f) != 0;
    CHECK(!bad, "cannot write the profile to %s: %s", path, strerror(errno));
    return SP_OK;
}
