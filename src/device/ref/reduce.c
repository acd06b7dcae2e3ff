/* reduce.c - reference kernels: sums, softmax, norms, cross-entropy, embeddings. Accumulation is in double. */
#include "device/ref/ref.h"

#include <math.h>

/* ---- reductions over listed dimensions ---- */

static sp_status reduce(dev_call *c, bool largest) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    const ir_dim *dims;
    int k = ir_dims(c->node, "dims", &dims), kept = 0, outer[IR_MAX_RANK], inner[IR_MAX_RANK], ni = 0;
    for (int d = 0; d < x->rank; d++) {
        bool gone = false;
        for (int i = 0; i < k; i++) gone |= dims[i] == d;
        if (gone)
            inner[ni++] = d;
        else
            outer[kept++] = d;
    }
    for (ref_walk w = ref_walk_begin(1, &y, y->rank, y->dim); w.more; ref_walk_next(&w)) {
        tensor sub = *x;
        int64_t base = 0;
        for (int i = 0; i < kept; i++) base += w.index[i] * x->stride[outer[i]];
        for (int i = 0; i < ni; i++) {
            sub.dim[i] = x->dim[inner[i]];
            sub.stride[i] = x->stride[inner[i]];
        }
        const tensor *s = &sub;
        double acc = largest ? -INFINITY : 0;
        for (ref_walk v = ref_walk_begin(1, &s, ni, sub.dim); v.more; ref_walk_next(&v)) {
            double e = ref_get(x, base + v.at[0]);
            if (!largest)
                acc += e;
            else if (e > acc || e != e)
                acc = e;
        }
        ref_set(y, w.at[0], acc);
    }
    return SP_OK;
}

sp_status ref_sum(dev_call *c) { return reduce(c, false); }
sp_status ref_rmax(dev_call *c) { return reduce(c, true); }

/* Calls f for every line along `dim` of tensors of one shape: base offsets and the extent. */
#define FOR_LINES(c, y, dim, walk)                                                                                     \
    int64_t line_dims[TENSOR_MAX_RANK];                                                                                \
    for (int d_ = 0; d_ < (y)->rank; d_++) line_dims[d_] = d_ == (dim) ? 1 : (y)->dim[d_];                             \
    for (ref_walk walk = ref_walk_begin(1, &(y), (y)->rank, line_dims); walk.more; ref_walk_next(&walk))

static int64_t line_base(const tensor *t, const ref_walk *w) {
    int64_t at = 0;
    for (int d = 0; d < t->rank; d++) at += w->index[d] * t->stride[d];
    return at;
}

sp_status ref_cumsum(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    int64_t dim = ir_int(c->node, "dim", 0);
    FOR_LINES(c, y, dim, w) {
        double acc = 0;
        int64_t xb = line_base(x, &w);
        for (int64_t i = 0; i < y->dim[dim]; i++) {
            acc += ref_get(x, xb + i * x->stride[dim]);
            ref_set(y, w.at[0] + i * y->stride[dim], acc);
        }
    }
    return SP_OK;
}

sp_status ref_softmax(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->out[0];
    int64_t dim = ir_int(c->node, "dim", 0), n = x->dim[dim];
    FOR_LINES(c, y, dim, w) {
        int64_t xb = line_base(x, &w);
        double top = -INFINITY, total = 0;
        for (int64_t i = 0; i < n; i++) top = fmax(top, ref_get(x, xb + i * x->stride[dim]));
        for (int64_t i = 0; i < n && top > -INFINITY; i++) total += exp(ref_get(x, xb + i * x->stride[dim]) - top);
        for (int64_t i = 0; i < n; i++)
            ref_set(y, w.at[0] + i * y->stride[dim],
                    top > -INFINITY ? exp(ref_get(x, xb + i * x->stride[dim]) - top) / total : 0);
    }
    return SP_OK;
}

sp_status ref_softmax_grad(dev_call *c) {
    const tensor *y = &c->in[0], *dy = &c->in[1], *dx = &c->out[0];
    int64_t dim = ir_int(c->node, "dim", 0), n = y->dim[dim];
    FOR_LINES(c, dx, dim, w) {
        int64_t yb = line_base(y, &w), db = line_base(dy, &w);
        double dot = 0;
        for (int64_t i = 0; i < n; i++)
            dot += ref_get(y, yb + i * y->stride[dim]) * ref_get(dy, db + i * dy->stride[dim]);
        for (int64_t i = 0; i < n; i++)
            ref_set(dx, w.at[0] + i * dx->stride[dim],
                    ref_get(y, yb + i * y->stride[dim]) * (ref_get(dy, db + i * dy->stride[dim]) - dot));
    }
    return SP_OK;
}

/* ---- rows (contiguous) ---- */

static int64_t row_length(const tensor *x) { return x->dim[x->rank - 1]; }
static int64_t row_count(const tensor *x) { return row_length(x) ? tensor_numel(x) / row_length(x) : 0; }

sp_status ref_rmsnorm(dev_call *c) {
    const tensor *x = &c->in[0], *wt = &c->in[1], *y = &c->out[0], *rstd = &c->out[1];
    int64_t n = row_length(x);
    double eps = ir_float(c->node, "eps", 0);
    for (int64_t r = 0; r < row_count(x); r++) {
        double ss = 0;
        for (int64_t i = 0; i < n; i++) ss += ref_get(x, r * n + i) * ref_get(x, r * n + i);
        double s = 1 / sqrt(ss / (double)n + eps);
        ref_set(rstd, r, s);
        for (int64_t i = 0; i < n; i++) ref_set(y, r * n + i, ref_get(x, r * n + i) * s * ref_get(wt, i));
    }
    return SP_OK;
}

static void zero(const tensor *t) { memset(t->data, 0, (size_t)(tensor_numel(t) * dtype_size(t->type))); }

sp_status ref_rmsnorm_grad(dev_call *c) {
    const tensor *x = &c->in[0], *wt = &c->in[1], *rstd = &c->in[2], *dy = &c->in[3], *dx = &c->out[0],
                 *dw = &c->out[1];
    int64_t n = row_length(x), rows = row_count(x);
    zero(dw);
    for (int64_t r = 0; r < rows; r++) { /* dx = s (g - xh mean(g xh)), g = dy w, xh = x s */
        double s = ref_get(rstd, r), dot = 0;
        for (int64_t i = 0; i < n; i++) dot += ref_get(dy, r * n + i) * ref_get(wt, i) * ref_get(x, r * n + i) * s;
        for (int64_t i = 0; i < n; i++) {
            double xh = ref_get(x, r * n + i) * s;
            ref_set(dx, r * n + i, s * (ref_get(dy, r * n + i) * ref_get(wt, i) - xh * dot / (double)n));
        }
    }
    for (int64_t i = 0; i < n; i++) {
        double acc = 0;
        for (int64_t r = 0; r < rows; r++) acc += ref_get(dy, r * n + i) * ref_get(x, r * n + i) * ref_get(rstd, r);
        ref_set(dw, i, acc);
    }
    return SP_OK;
}

sp_status ref_layernorm(dev_call *c) {
    const tensor *x = &c->in[0], *wt = &c->in[1], *b = &c->in[2], *y = &c->out[0], *mean = &c->out[1],
                 *rstd = &c->out[2];
    int64_t n = row_length(x);
    double eps = ir_float(c->node, "eps", 0);
    for (int64_t r = 0; r < row_count(x); r++) {
        double m = 0, ss = 0;
        for (int64_t i = 0; i < n; i++) m += ref_get(x, r * n + i);
        m /= (double)n;
        for (int64_t i = 0; i < n; i++) ss += (ref_get(x, r * n + i) - m) * (ref_get(x, r * n + i) - m);
        double s = 1 / sqrt(ss / (double)n + eps);
        ref_set(mean, r, m);
        ref_set(rstd, r, s);
        for (int64_t i = 0; i < n; i++)
            ref_set(y, r * n + i, (ref_get(x, r * n + i) - m) * s * ref_get(wt, i) + ref_get(b, i));
    }
    return SP_OK;
}

sp_status ref_layernorm_grad(dev_call *c) {
    const tensor *x = &c->in[0], *wt = &c->in[1], *mean = &c->in[2], *rstd = &c->in[3], *dy = &c->in[4];
    const tensor *dx = &c->out[0], *dw = &c->out[1], *db = &c->out[2];
    int64_t n = row_length(x), rows = row_count(x);
    for (int64_t r = 0; r < rows; r++) { /* dx = s (g - mean(g) - xh mean(g xh)) */
        double s = ref_get(rstd, r), m = ref_get(mean, r), dot = 0, sum = 0;
        for (int64_t i = 0; i < n; i++) {
            double g = ref_get(dy, r * n + i) * ref_get(wt, i);
            sum += g;
            dot += g * (ref_get(x, r * n + i) - m) * s;
        }
        for (int64_t i = 0; i < n; i++) {
            double g = ref_get(dy, r * n + i) * ref_get(wt, i), xh = (ref_get(x, r * n + i) - m) * s;
            ref_set(dx, r * n + i, s * (g - sum / (double)n - xh * dot / (double)n));
        }
    }
    for (int64_t i = 0; i < n; i++) {
        double w = 0, b = 0;
        for (int64_t r = 0; r < rows; r++) {
            w += ref_get(dy, r * n + i) * (ref_get(x, r * n + i) - ref_get(mean, r)) * ref_get(rstd, r);
            b += ref_get(dy, r * n + i);
        }
        ref_set(dw, i, w);
        ref_set(db, i, b);
    }
    return SP_OK;
}

sp_status ref_xent(dev_call *c) {
    const tensor *x = &c->in[0], *labels = &c->in[1], *loss = &c->out[0], *lse = &c->out[1];
    int64_t n = row_length(x), ignore = ir_int(c->node, "ignore", -100);
    for (int64_t r = 0; r < row_count(x); r++) {
        int64_t y = ((const int64_t *)labels->data)[r];
        double top = -INFINITY, total = 0;
        CHECK(y == ignore || (y >= 0 && y < n), "label %lld in row %lld is outside the vocabulary of %lld",
              (long long)y, (long long)r, (long long)n);
        for (int64_t i = 0; i < n; i++) top = fmax(top, ref_get(x, r * n + i));
        for (int64_t i = 0; i < n; i++) total += exp(ref_get(x, r * n + i) - top);
        double l = top + log(total);
        ref_set(lse, r, l);
        ref_set(loss, r, y == ignore ? 0 : l - ref_get(x, r * n + y));
    }
    return SP_OK;
}

sp_status ref_xent_grad(dev_call *c) {
    const tensor *x = &c->in[0], *labels = &c->in[1], *lse = &c->in[2], *dloss = &c->in[3], *dx = &c->out[0];
    int64_t n = row_length(x), ignore = ir_int(c->node, "ignore", -100), r = 0;
    for (ref_walk w = ref_walk_begin(1, &dloss, dloss->rank, dloss->dim); w.more; ref_walk_next(&w), r++) {
        int64_t y = ((const int64_t *)labels->data)[r];
        double d = ref_get(dloss, w.at[0]), l = ref_get(lse, r);
        for (int64_t i = 0; i < n; i++)
            ref_set(dx, r * n + i, y == ignore ? 0 : d * (exp(ref_get(x, r * n + i) - l) - (i == y)));
    }
    return SP_OK;
}

/* ---- embeddings ---- */

sp_status ref_embedding(dev_call *c) {
    const tensor *wt = &c->in[0], *ids = &c->in[1], *y = &c->out[0];
    int64_t n = wt->dim[1], vocab = wt->dim[0];
    for (int64_t r = 0; r < tensor_numel(ids); r++) {
        int64_t id = ((const int64_t *)ids->data)[r];
        CHECK(id >= 0 && id < vocab, "token %lld in row %lld is outside the vocabulary of %lld", (long long)id,
              (long long)r, (long long)vocab);
        for (int64_t i = 0; i < n; i++) ref_set(y, r * n + i, ref_get(wt, id * n + i));
    }
    return SP_OK;
}

sp_status ref_embedding_grad(dev_call *c) {
    const tensor *dy = &c->in[0], *ids = &c->in[1], *dw = &c->out[0];
    int64_t n = dw->dim[1], pad = ir_int(c->node, "pad", -1);
    if (!c->accumulate) zero(dw);
    for (int64_t r = 0; r < tensor_numel(ids); r++) {
        int64_t id = ((const int64_t *)ids->data)[r];
        if (id == pad) continue;
        for (int64_t i = 0; i < n; i++) ref_set(dw, id * n + i, ref_get(dw, id * n + i) + ref_get(dy, r * n + i));
    }
    return SP_OK;
}
