/* fused.c - interprets kernels of the kernel language in f64: the oracle of generated code, and what runs without any.
 *
 * A row, or a piece of one where rows are not reduced, at a time: statements in their order over its columns, then the
 * stores. So operands are read before results are written, as the language promises, also where a result lies in an
 * operand's place.
 */
#include "device/ref/ref.h"

#include <math.h>

enum { PIECE = 512 };

typedef struct frame {
    const dev_call *c;
    int64_t cols;  /* of this piece */
    int64_t start; /* its first column */
    int64_t *at;   /* by tensor: where it starts, in elements */
    double *value; /* by statement, by column */
    double *sum;   /* by column sum, by column */
} frame;

static double rounded(double v, dtype t) {
    union {
        double f64;
        float f32;
        uint16_t bf16;
    } room;
    const tensor one = {.data = &room, .type = t};
    ref_set(&one, 0, v);
    return ref_get(&one, 0);
}

static double evaluate(const frame *f, const gen_stmt *s, int64_t col) {
    const double *v = f->value + col;
    double x[4] = {0};
    for (int i = 0; s->kind != GEN_LOAD && i < s->nargs; i++) x[i] = v[s->arg[i] * f->cols];
    switch (s->kind) {
    case GEN_LOAD: {
        const tensor *t = &f->c->in[s->arg[0]];
        return ref_get(t, f->at[s->arg[0]] + col * t->stride[t->rank - 1]);
    }
    case GEN_CONST:
        return s->value;
    case GEN_COLS:
        return (double)f->c->out[0].dim[f->c->out[0].rank - 1];
    case GEN_INDEX:
        return (double)(f->start + col);
    case GEN_OP:
        return ref_eval(s->op, s->nargs, x);
    case GEN_ROUND:
        return rounded(x[0], s->type);
    case GEN_NUMERATOR:
        return exp(x[0] - x[1]) * x[3];
    case GEN_SUM:
    case GEN_MAX:
    case GEN_EXP_SUM:
    case GEN_PICK:
    case GEN_KINDS:
        break;
    }
    return 0;
}

static void run_row(const frame *f) {
    const gen_kernel *k = f->c->kernel;
    for (int i = 0; i < k->s.n; i++) {
        const gen_stmt *s = &k->s.data[i];
        double *y = f->value + i * f->cols;
        if (gen_is_reduction(s->kind)) {
            const double *x = f->value + s->arg[0] * f->cols;
            double r = x[0];
            for (int64_t c = 1; c < f->cols; c++)
                r = s->kind == GEN_SUM ? r + x[c] : x[c] > r || x[c] != x[c] ? x[c] : r;
            if (s->kind == GEN_EXP_SUM) {
                const double top = r == -INFINITY ? 0 : r;
                r = 0;
                for (int64_t c = 0; c < f->cols; c++) r += exp(x[c] - top);
            }
            for (int64_t c = 0; c < f->cols; c++) y[c] = r;
        } else if (s->kind == GEN_PICK) {
            const double *x = f->value + s->arg[0] * f->cols, at = f->value[s->arg[1] * f->cols];
            for (int64_t c = 0; c < f->cols; c++) y[c] = at >= 0 && at < (double)f->cols ? x[(int64_t)at] : 0;
        } else {
            for (int64_t c = 0; c < f->cols; c++) y[c] = evaluate(f, s, c);
        }
    }
    double *sum = f->sum;
    for (int i = 0; i < k->out.n; i++) {
        const gen_result *r = &k->out.data[i];
        const tensor *t = &f->c->out[i];
        const double *v = f->value + r->value * f->cols;
        if (r->store >= GEN_COLUMNS) {
            for (int64_t c = 0; c < f->cols; c++) sum[c] += v[c];
            sum += f->cols;
            continue;
        }
        for (int64_t c = 0; c < (r->step == GEN_STILL ? 1 : f->cols); c++) {
            int64_t to = f->at[f->c->nin + i] + c * t->stride[t->rank - 1];
            ref_set(t, to, r->store == GEN_ADD ? ref_get(t, to) + v[c] : v[c]);
        }
    }
}

static void store_sums(const frame *f) {
    const gen_kernel *k = f->c->kernel;
    const double *sum = f->sum;
    for (int i = 0; i < k->out.n; i++) {
        const tensor *t = &f->c->out[i];
        if (k->out.data[i].store < GEN_COLUMNS) continue;
        for (int64_t c = 0; c < f->cols; c++)
            ref_set(t, c, k->out.data[i].store == GEN_COLUMNS_ADD ? ref_get(t, c) + sum[c] : sum[c]);
        sum += f->cols;
    }
}

static int64_t row_length(const dev_call *c) { return c->out[0].dim[c->out[0].rank - 1]; }
static int64_t piece(const dev_call *c) { return c->kernel->whole_rows ? row_length(c) : min64(PIECE, row_length(c)); }

int64_t ref_fused_scratch(const dev_call *c) {
    return (c->kernel->s.n + c->kernel->columns) * piece(c) * (int64_t)sizeof(double);
}

sp_status ref_fused_check(const dev_call *c) {
    const int outer = c->out[0].rank - 1;
    const int64_t *dim = c->out[0].dim;
    int64_t rows = 1;
    for (int d = 0; d < outer; d++) rows *= dim[d];
    for (int i = 0; i < c->nin && c->kernel->labels; i++) {
        const gen_operand *x = &c->kernel->in.data[i];
        for (int64_t r = 0; r < rows && x->labels; r++) {
            int64_t at = 0, rest = r;
            for (int d = outer - 1; d >= 0; d--) {
                at += rest % dim[d] * c->in[i].stride[d];
                rest /= dim[d];
            }
            int64_t label = ((const int64_t *)c->in[i].data)[at];
            CHECK(
                label == x->ignore || (label >= 0 && label < dim[outer]),
                "cross-entropy: the label of row %lld is %lld, but logits have %lld classes and ignore_index is %lld; "
                "check the data's vocabulary",
                (long long)r, (long long)label, (long long)dim[outer], (long long)x->ignore);
        }
    }
    return SP_OK;
}

sp_status ref_fused(dev_call *c) {
    TRY(ref_fused_check(c));
    const tensor *space = &c->out[0];
    int outer = space->rank - 1;
    int64_t cols = space->dim[outer], rows = 1, at[GEN_MAX_TENSORS];
    for (int d = 0; d < outer; d++) rows *= space->dim[d];
    frame f = {.c = c, .cols = piece(c), .at = at, .value = c->state};
    f.sum = f.value + c->kernel->s.n * f.cols;
    memset(f.sum, 0, sizeof(double) * (size_t)(c->kernel->columns * f.cols));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t start = 0; start < cols; start += f.cols) {
            int64_t rest = r;
            f.cols = min64(piece(c), cols - start);
            f.start = start;
            for (int i = 0; i < c->nin + c->nout; i++)
                at[i] = start * (i < c->nin ? &c->in[i] : &c->out[i - c->nin])->stride[outer];
            for (int d = outer - 1; d >= 0; d--) {
                for (int i = 0; i < c->nin + c->nout; i++)
                    at[i] += rest % space->dim[d] * (i < c->nin ? &c->in[i] : &c->out[i - c->nin])->stride[d];
                rest /= space->dim[d];
            }
            run_row(&f);
        }
    store_sums(&f);
    return SP_OK;
}
