/* dot.c - reference kernels: products, rotary embedding, attention. Attention is the plain definition over one row of
 * scores at a time; it is the oracle for the blocked one. */
#include "device/philox.h"
#include "device/ref/ref.h"
#include "ir/formula.h"

#include <math.h>

static bool listed(const ir_dim *list, int n, int d) {
    for (int i = 0; i < n; i++)
        if (list[i] == d) return true;
    return false;
}

sp_status ref_dot(dev_call *c) {
    const tensor *x = &c->in[0], *y = &c->in[1], *z = &c->out[0];
    const ir_dim *lc, *rc, *lb, *rb;
    int nc = ir_dims(c->node, "lc", &lc), nb = ir_dims(c->node, "lb", &lb), k = nb;
    ir_dims(c->node, "rc", &rc);
    ir_dims(c->node, "rb", &rb);
    int64_t xs[IR_MAX_RANK] = {0}, ys[IR_MAX_RANK] = {0}; /* strides of x and y by result dimension */
    for (int i = 0; i < nb; i++) {
        xs[i] = x->stride[lb[i]];
        ys[i] = y->stride[rb[i]];
    }
    for (int d = 0; d < x->rank; d++)
        if (!listed(lc, nc, d) && !listed(lb, nb, d)) xs[k++] = x->stride[d];
    for (int d = 0; d < y->rank; d++)
        if (!listed(rc, nc, d) && !listed(rb, nb, d)) ys[k++] = y->stride[d];
    tensor cx = *x, cy = *y; /* the contracted dimensions only */
    for (int i = 0; i < nc; i++) {
        cx.dim[i] = cy.dim[i] = x->dim[lc[i]];
        cx.stride[i] = x->stride[lc[i]];
        cy.stride[i] = y->stride[rc[i]];
    }
    const tensor *both[2] = {&cx, &cy};
    for (ref_walk w = ref_walk_begin(1, &z, z->rank, z->dim); w.more; ref_walk_next(&w)) {
        int64_t xb = 0, yb = 0;
        for (int d = 0; d < z->rank; d++) {
            xb += w.index[d] * xs[d];
            yb += w.index[d] * ys[d];
        }
        double acc = c->accumulate ? ref_get(z, w.at[0]) : 0;
        for (ref_walk v = ref_walk_begin(2, both, nc, cx.dim); v.more; ref_walk_next(&v))
            acc += ref_get(x, xb + v.at[0]) * ref_get(y, yb + v.at[1]);
        ref_set(z, w.at[0], acc);
    }
    return SP_OK;
}

sp_status ref_rope(dev_call *c) {
    const tensor *x = &c->in[0], *cs = &c->in[1], *sn = &c->in[2], *y = &c->out[0];
    int64_t half = x->dim[3] / 2;
    double sign = ir_int(c->node, "transpose", 0) ? -1 : 1;
    for (ref_walk w = ref_walk_begin(1, &y, 4, y->dim); w.more; ref_walk_next(&w)) {
        int64_t i = w.index[3], pair = i < half ? i + half : i - half;
        int64_t xb = w.index[0] * x->stride[0] + w.index[1] * x->stride[1] + w.index[2] * x->stride[2];
        int64_t tb = (cs->dim[0] == 1 ? 0 : w.index[0]) * cs->stride[0] + w.index[1] * cs->stride[1];
        /* y = x cos + rotate_half(x) sin; the transpose takes sin at the partner's index and turns the other way */
        double s = ref_get(sn, tb + (sign < 0 ? pair : i) * sn->stride[2]);
        double turned = (i < half ? -sign : sign) * ref_get(x, xb + pair * x->stride[3]);
        ref_set(y, w.at[0], ref_get(x, xb + i * x->stride[3]) * ref_get(cs, tb + i * cs->stride[2]) + turned * s);
    }
    return SP_OK;
}

/* ---- attention ---- */

typedef struct mask {
    const dev_call *c;
    const tensor *side[ATTENTION_SIDES];
    char role[ATTENTION_SIDES];   /* d: docq, D: dock, f: fq, F: fk, k: keep, a: alibi, m: mask, b: bias, r: rng */
    int axis[ATTENTION_SIDES][4]; /* which of b, q, k, h each dimension is */
    int n;
    int64_t causal, window, ahead, valid;
    double scale, softcap;
    ir_formula formula;
    const int64_t *rng; /* seed, draw, off; NULL: no dropout */
    double p;
} mask;

static mask mask_of(const dev_call *c, int first) {
    const ir_node *n = c->node;
    mask m = {.c = c,
              .causal = ir_int(n, "causal", 0),
              .window = ir_int(n, "window", 0),
              .ahead = ir_int(n, "window_ahead", 0),
              .valid = ir_int(n, "kv_valid", 0),
              .scale = ir_float(n, "scale", 1),
              .softcap = ir_float(n, "softcap", 0),
              .p = ir_float(n, "drop_p", 0)};
    const char *side = ir_str(n, "side"), *roles = ir_str(n, "roles");
    bool parsed = ir_formula_parse(ir_str(n, "formula"), FORMULA_PAIRS, &m.formula) == SP_OK;
    ASSERT(parsed); /* the verifier saw it */
    for (int i = first; i < c->nin; i++, m.n++) {
        ASSERT(m.n < ATTENTION_SIDES && side && roles);
        m.side[m.n] = &c->in[i];
        for (int d = 0; d < c->in[i].rank; d++, side++)
            m.axis[m.n][d] = *side == 'b' ? 0 : *side == 'q' ? 1 : *side == 'k' ? 2 : 3;
        while (*side == ' ') side++;
        m.role[m.n] = strncmp(roles, "dock", 4) == 0 ? 'D' : strncmp(roles, "fk", 2) == 0 ? 'F' : roles[0];
        if (m.role[m.n] == 'r') m.rng = c->in[i].data;
        while (*roles && *roles != ' ') roles++;
        while (*roles == ' ') roles++;
    }
    return m;
}

static double side_at(const mask *m, int i, const int64_t *bqkh) {
    int64_t at = 0;
    for (int d = 0; d < m->side[i]->rank; d++)
        if (m->side[i]->dim[d] != 1) at += bqkh[m->axis[i][d]] * m->side[i]->stride[d];
    return ref_get(m->side[i], at);
}

/* The score after softcap, biases and masks; -inf when hidden. *slope: d score / d (q.k * scale). */
static double score(const mask *m, double s, int64_t b, int64_t q, int64_t k, int64_t h, double *slope) {
    int64_t bqkh[4] = {b, q, k, h}, i = q + m->c->offset;
    double docq = 0, dock = 0;
    int64_t fq[FORMULA_PAIRS] = {0}, fk[FORMULA_PAIRS] = {0};
    int nq = 0, nk = 0;
    *slope = 1;
    if (m->softcap > 0) {
        double t = tanh(s / m->softcap);
        *slope = 1 - t * t;
        s = m->softcap * t;
    }
    bool hidden = (m->causal && k > i) || (m->window && i - k >= m->window) || (m->ahead && k - i >= m->ahead) ||
                  (m->valid && k >= m->valid);
    for (int x = 0; x < m->n; x++) {
        double v = m->role[x] == 'r' ? 0 : side_at(m, x, bqkh);
        switch (m->role[x]) {
        case 'f':
            fq[nq++] = (int64_t)v;
            break;
        case 'F':
            fk[nk++] = (int64_t)v;
            break;
        case 'r':
            break;
        case 'd':
            docq = v;
            break;
        case 'D':
            dock = v;
            break;
        case 'a':
            s += v * (double)(k - i);
            break;
        case 'b':
            s += v;
            break;
        default:
            hidden |= v == 0; /* keep, mask */
        }
    }
    if (m->formula.n && !hidden) hidden = !ir_formula_at(&m->formula, fq, fk);
    return hidden || docq != dock ? -INFINITY : s;
}

/* What dropout multiplies a weight by. */
static double kept(const mask *m, int64_t b, int64_t q, int64_t k, int64_t h) {
    if (!m->rng || m->rng[2] || m->p == 0) return 1;
    uint32_t node = (uint32_t)ir_int(m->c->node, "drop_id", 0);
    uint32_t r =
        philox_attention((uint64_t)m->rng[0], (uint64_t)m->rng[1], node, b, h + m->c->head_offset, q + m->c->offset, k);
    return r >= philox_threshold(m->p) ? 1 / (1 - m->p) : 0;
}

static double qk(const tensor *q, const tensor *k, int64_t b, int64_t i, int64_t j, int64_t h, int64_t g) {
    int64_t qa = b * q->stride[0] + i * q->stride[1] + h * q->stride[2],
            ka = b * k->stride[0] + j * k->stride[1] + g * k->stride[2];
    double s = 0;
    for (int64_t d = 0; d < q->dim[3]; d++) s += ref_get(q, qa + d * q->stride[3]) * ref_get(k, ka + d * k->stride[3]);
    return s;
}

sp_status ref_attention(dev_call *c) {
    const tensor *q = &c->in[0], *k = &c->in[1], *v = &c->in[2], *o = &c->out[0], *lse = &c->out[1];
    mask m = mask_of(c, 3);
    int64_t group = q->dim[2] / k->dim[2], D = q->dim[3], n = k->dim[1];
    for (int64_t b = 0; b < q->dim[0]; b++)
        for (int64_t h = 0; h < q->dim[2]; h++)
            for (int64_t i = 0; i < q->dim[1]; i++) {
                double top = -INFINITY, total = 0, slope;
                int64_t at = b * o->stride[0] + i * o->stride[1] + h * o->stride[2];
                for (int64_t j = 0; j < n; j++)
                    top = fmax(top, score(&m, m.scale * qk(q, k, b, i, j, h, h / group), b, i, j, h, &slope));
                for (int64_t d = 0; d < D; d++) ref_set(o, at + d * o->stride[3], 0);
                for (int64_t j = 0; j < n && top > -INFINITY; j++)
                    total += exp(score(&m, m.scale * qk(q, k, b, i, j, h, h / group), b, i, j, h, &slope) - top);
                double l = top > -INFINITY ? top + log(total) : -INFINITY;
                ref_set(lse, b * lse->stride[0] + h * lse->stride[1] + i * lse->stride[2], l);
                double acc[1024] = {0};
                ASSERT(D <= 1024);
                for (int64_t j = 0; j < n && top > -INFINITY; j++) {
                    double p = exp(score(&m, m.scale * qk(q, k, b, i, j, h, h / group), b, i, j, h, &slope) - l) *
                               kept(&m, b, i, j, h);
                    int64_t va = b * v->stride[0] + j * v->stride[1] + h / group * v->stride[2];
                    for (int64_t d = 0; p != 0 && d < D; d++) acc[d] += p * ref_get(v, va + d * v->stride[3]);
                }
                for (int64_t d = 0; d < D; d++) ref_set(o, at + d * o->stride[3], acc[d]);
            }
    return SP_OK;
}

static void add_row(const tensor *t, int64_t at, double scale, const tensor *x, int64_t xat) {
    for (int64_t d = 0; d < t->dim[3]; d++)
        ref_set(t, at + d * t->stride[3],
                ref_get(t, at + d * t->stride[3]) + scale * ref_get(x, xat + d * x->stride[3]));
}

sp_status ref_attention_grad(dev_call *c) {
    const tensor *q = &c->in[0], *k = &c->in[1], *v = &c->in[2], *o = &c->in[3], *lse = &c->in[4], *dy = &c->in[5];
    const tensor *dq = &c->out[0], *dk = &c->out[1], *dv = &c->out[2];
    mask m = mask_of(c, 6);
    int64_t group = q->dim[2] / k->dim[2], D = q->dim[3];
    for (int i = 0; i < 3; i++)
        memset(c->out[i].data, 0, (size_t)(tensor_numel(&c->out[i]) * dtype_size(c->out[i].type)));
#define AT(t, b, i, h) ((b) * (t)->stride[0] + (i) * (t)->stride[1] + (h) * (t)->stride[2])
    for (int64_t b = 0; b < q->dim[0]; b++)
        for (int64_t h = 0; h < q->dim[2]; h++)
            for (int64_t i = 0; i < q->dim[1]; i++) {
                int64_t g = h / group;
                double l = ref_get(lse, b * lse->stride[0] + h * lse->stride[1] + i * lse->stride[2]), delta = 0, slope;
                if (l == -INFINITY) continue;
                for (int64_t d = 0; d < D; d++)
                    delta += ref_get(o, AT(o, b, i, h) + d * o->stride[3]) *
                             ref_get(dy, AT(dy, b, i, h) + d * dy->stride[3]);
                for (int64_t j = 0; j < k->dim[1]; j++) {
                    double p = exp(score(&m, m.scale * qk(q, k, b, i, j, h, g), b, i, j, h, &slope) - l), dp = 0;
                    double keep = kept(&m, b, i, j, h);
                    if (p == 0) continue;
                    for (int64_t d = 0; d < D; d++)
                        dp += ref_get(dy, AT(dy, b, i, h) + d * dy->stride[3]) *
                              ref_get(v, AT(v, b, j, g) + d * v->stride[3]);
                    double ds = p * (dp * keep - delta) * slope * m.scale;
                    add_row(dv, AT(dv, b, j, g), p * keep, dy, AT(dy, b, i, h));
                    add_row(dq, AT(dq, b, i, h), ds, k, AT(k, b, j, g));
                    add_row(dk, AT(dk, b, j, g), ds, q, AT(q, b, i, h));
                }
            }
    return SP_OK;
}
