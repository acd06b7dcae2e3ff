/* kern_attn.c - the attention kernels against a naive one in double precision, over sizes, strides and masks; backward
 * also against finite differences of that naive one. */
#include "device/cpu/kern.h"
#include "device/philox.h"

#ifdef AUTOSP_AMX_EMULATED
#include "device/cpu/amx.h"

#include <stdatomic.h>
#else
#define VEC_PAIRS 0 /* whatever the library has, these tests do not ask */
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

enum { TEAM = 3 }; /* more than one, whatever the machine */

typedef struct shape {
    int64_t B, Sq, Sk, H, Hkv, D;
} shape;

/* Which strides a tensor gets: (B,S,H,D) dense, (B,H,S,D) in memory, or (B,S,H,D) cut out of wider rows. */
typedef enum layout { DENSE, HEADS_FIRST, WIDE } layout;

static void *xalloc(size_t n) {
    void *p = NULL;
    if (posix_memalign(&p, KERN_ALIGN, n ? n : 1)) abort();
    return p;
}

static tensor make(dtype t, layout l, int64_t B, int64_t S, int64_t H, int64_t D) {
    tensor x = {.type = t, .rank = 4, .dim = {B, S, H, D}};
    int64_t pad = l == WIDE ? 3 : 0;
    x.stride[3] = 1;
    if (l == HEADS_FIRST) {
        x.stride[1] = D, x.stride[2] = S * D, x.stride[0] = H * S * D;
    } else {
        x.stride[2] = D, x.stride[1] = H * D + pad, x.stride[0] = S * x.stride[1];
    }
    size_t n = (size_t)(B * S * (H * D + pad));
    x.data = xalloc(n * (size_t)dtype_size(t));
    memset(x.data, 0xff, n * (size_t)dtype_size(t)); /* NaN, so that a missing or stray access shows */
    return x;
}

static float bf(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t to_bf(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static int64_t at(const tensor *x, int64_t b, int64_t s, int64_t h, int64_t d) {
    return b * x->stride[0] + s * x->stride[1] + h * x->stride[2] + d * x->stride[3];
}
static double get(const tensor *x, int64_t b, int64_t s, int64_t h, int64_t d) {
    int64_t i = at(x, b, s, h, d);
    return x->type == DT_F32 ? (double)((float *)x->data)[i] : (double)bf(((uint16_t *)x->data)[i]);
}
static void fill(const tensor *x, uint64_t *seed) {
    for (int64_t b = 0; b < x->dim[0]; b++)
        for (int64_t s = 0; s < x->dim[1]; s++)
            for (int64_t h = 0; h < x->dim[2]; h++)
                for (int64_t d = 0; d < x->dim[3]; d++) {
                    float v = (float)rng_normal(seed);
                    if (x->type == DT_F32)
                        ((float *)x->data)[at(x, b, s, h, d)] = v;
                    else
                        ((uint16_t *)x->data)[at(x, b, s, h, d)] = to_bf(v);
                }
}

/* A bias that is a function of indices, and hides every key of row 5 and key 2 of all rows. */
static double index_bias(int64_t b, int64_t h, int64_t i, int64_t j) {
    if (i == 5 || j == 2) return -INFINITY;
    return 0.25 * (double)((b * 7 + h * 5 + i * 3 + j) % 11 - 5);
}
static void bias_tile(void *ctx, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0, int64_t nk, float *s,
                      int64_t ld) {
    assert_ptr_equal(ctx, &index_bias);
    for (int64_t j = 0; j < nk; j++)
        for (int64_t i = 0; i < nq; i++) s[j * ld + i] += (float)index_bias(b, h, q0 + i, k0 + j);
}

static bool visible(const kern_attn_params *p, int64_t b, int64_t h, int64_t i, int64_t j) {
    int64_t pos = p->q_offset + i;
    if (p->causal && j > pos) return false;
    if (j >= p->kv_valid) return false;
    if (p->window > 0 && pos - j >= p->window) return false;
    if (p->doc_q && p->doc_q[b * p->doc_q_bs + i] != p->doc_k[b * p->doc_k_bs + j]) return false;
    if (p->formula) { /* the one formula of these tests: (0>= and 1==) or 2!= */
        const kern_attn_formula *f = p->formula;
        int64_t x[3], y[3];
        for (int c = 0; c < 3; c++) {
            x[c] = f->q[c].at[b * f->q[c].bs + h * f->q[c].hs + i * f->q[c].s];
            y[c] = f->k[c].at[b * f->k[c].bs + h * f->k[c].hs + j * f->k[c].s];
        }
        return (x[0] >= y[0] && x[1] == y[1]) || x[2] != y[2];
    }
    return true;
}

/* What dropout multiplies a weight by: Philox by its definition, one number at a time. */
static double kept(const kern_attn_params *p, int64_t b, int64_t h, int64_t i, int64_t j) {
    if (p->drop.p == 0) return 1;
    uint32_t key[2] = {(uint32_t)p->drop.seed, (uint32_t)(p->drop.seed >> 32) ^ p->drop.node}, out[4];
    uint32_t counter[4] = {(uint32_t)(j / 4), (uint32_t)(p->q_offset + i),
                           (uint32_t)(b * 65536 + p->drop.head_offset + h), (uint32_t)p->drop.draw};
    philox4x32(key, counter, out);
    return (double)(out[j % 4] >> 8) / (1 << 24) < p->drop.p ? 0 : 1 / (1 - p->drop.p);
}

/* Dense copies in double: index with NAIVE(x, ...). */
typedef struct naive {
    shape n;
    double *q, *k, *v, *o, *lse, *dout, *dq, *dk, *dv;
} naive;
#define QI(n, b, s, h, d) ((((b) * (n).Sq + (s)) * (n).H + (h)) * (n).D + (d))
#define KI(n, b, s, h, d) ((((b) * (n).Sk + (s)) * (n).Hkv + (h)) * (n).D + (d))

static double score(const naive *x, const kern_attn_params *p, int64_t b, int64_t h, int64_t i, int64_t j,
                    double *deriv) {
    shape n = x->n;
    int64_t hk = h / (n.H / n.Hkv);
    double s = 0;
    *deriv = 1;
    for (int64_t d = 0; d < n.D; d++) s += x->q[QI(n, b, i, h, d)] * x->k[KI(n, b, j, hk, d)];
    s *= (double)p->scale;
    if (p->softcap > 0) {
        double t = tanh(s / (double)p->softcap);
        s = (double)p->softcap * t;
        *deriv = 1 - t * t;
    }
    if (p->alibi) s += (double)p->alibi[h] * (double)(j - (p->q_offset + i));
    if (p->bias) s += index_bias(b, h, i, j);
    return visible(p, b, h, i, j) ? s : -INFINITY;
}

static void naive_fwd(naive *x, const kern_attn_params *p) {
    shape n = x->n;
    double *s = xalloc(sizeof(double) * (size_t)(n.Sk + 1)), deriv;
    for (int64_t b = 0; b < n.B; b++)
        for (int64_t h = 0; h < n.H; h++)
            for (int64_t i = 0; i < n.Sq; i++) {
                double max = -INFINITY, sum = 0;
                int64_t hk = h / (n.H / n.Hkv);
                for (int64_t j = 0; j < n.Sk; j++) max = fmax(max, s[j] = score(x, p, b, h, i, j, &deriv));
                for (int64_t j = 0; j < n.Sk; j++) sum += s[j] = max == -INFINITY ? 0 : exp(s[j] - max);
                x->lse[(b * n.H + h) * n.Sq + i] = sum > 0 ? max + log(sum) : -INFINITY;
                for (int64_t d = 0; d < n.D; d++) {
                    double o = 0;
                    for (int64_t j = 0; j < n.Sk; j++) o += s[j] * kept(p, b, h, i, j) * x->v[KI(n, b, j, hk, d)];
                    x->o[QI(n, b, i, h, d)] = sum > 0 ? o / sum : 0;
                }
            }
    free(s);
}

static void naive_bwd(naive *x, const kern_attn_params *p) {
    shape n = x->n;
    memset(x->dq, 0, sizeof(double) * (size_t)(n.B * n.Sq * n.H * n.D));
    memset(x->dk, 0, sizeof(double) * (size_t)(n.B * n.Sk * n.Hkv * n.D));
    memset(x->dv, 0, sizeof(double) * (size_t)(n.B * n.Sk * n.Hkv * n.D));
    for (int64_t b = 0; b < n.B; b++)
        for (int64_t h = 0; h < n.H; h++)
            for (int64_t i = 0; i < n.Sq; i++) {
                int64_t hk = h / (n.H / n.Hkv);
                double lse = x->lse[(b * n.H + h) * n.Sq + i], delta = 0;
                if (lse == -INFINITY) continue;
                for (int64_t d = 0; d < n.D; d++) delta += x->dout[QI(n, b, i, h, d)] * x->o[QI(n, b, i, h, d)];
                for (int64_t j = 0; j < n.Sk; j++) {
                    double deriv, P = exp(score(x, p, b, h, i, j, &deriv) - lse), dP = 0;
                    for (int64_t d = 0; d < n.D; d++) dP += x->dout[QI(n, b, i, h, d)] * x->v[KI(n, b, j, hk, d)];
                    double m = kept(p, b, h, i, j), ds = P * (m * dP - delta) * deriv * (double)p->scale;
                    for (int64_t d = 0; d < n.D; d++) {
                        x->dv[KI(n, b, j, hk, d)] += P * m * x->dout[QI(n, b, i, h, d)];
                        x->dk[KI(n, b, j, hk, d)] += ds * x->q[QI(n, b, i, h, d)];
                        x->dq[QI(n, b, i, h, d)] += ds * x->k[KI(n, b, j, hk, d)];
                    }
                }
            }
}

static double *dense(const tensor *x) {
    int64_t n = tensor_numel(x), i = 0;
    double *y = xalloc(sizeof(double) * (size_t)n);
    for (int64_t b = 0; b < x->dim[0]; b++)
        for (int64_t s = 0; s < x->dim[1]; s++)
            for (int64_t h = 0; h < x->dim[2]; h++)
                for (int64_t d = 0; d < x->dim[3]; d++) y[i++] = get(x, b, s, h, d);
    return y;
}

/* |x - y| <= tol * max(terms, max|y|) everywhere; `terms` is the size of terms that may cancel. */
static void close_to(const char *what, const char *name, const tensor *x, const double *y, double terms, double tol) {
    double top = terms;
    int64_t n = tensor_numel(x);
    double *have = dense(x);
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(y[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(have[i] - y[i]) <= tol * top))
            fail_msg("%s: %s[%lld] is %.9g, want %.9g (max %.3g)", name, what, (long long)i, have[i], y[i], top);
    free(have);
}

/* f32 to 2e-6 forward and 4e-6 backward, times `slack`. */
static void run_slack(const char *name, dtype t, layout l, shape n, const kern_attn_params *p, double slack) {
    uint64_t seed = 11;
    const double tol = slack * (t == DT_F32 ? 4e-6 : 2e-2);
    tensor q = make(t, l, n.B, n.Sq, n.H, n.D), k = make(t, l, n.B, n.Sk, n.Hkv, n.D),
           v = make(t, l, n.B, n.Sk, n.Hkv, n.D), o = make(t, l, n.B, n.Sq, n.H, n.D),
           dout = make(t, l, n.B, n.Sq, n.H, n.D), dq = make(t, l, n.B, n.Sq, n.H, n.D),
           dk = make(t, l, n.B, n.Sk, n.Hkv, n.D), dv = make(t, l, n.B, n.Sk, n.Hkv, n.D);
    tensor lse = {.type = DT_F32, .rank = 3, .dim = {n.B, n.H, n.Sq}, .stride = {n.H * n.Sq, n.Sq, 1}};
    lse.data = xalloc(sizeof(float) * (size_t)(n.B * n.H * n.Sq));
    fill(&q, &seed), fill(&k, &seed), fill(&v, &seed), fill(&dout, &seed);
    naive x = {.n = n, .q = dense(&q), .k = dense(&k), .v = dense(&v), .dout = dense(&dout)};
    size_t nq = (size_t)(n.B * n.Sq * n.H * n.D), nk = (size_t)(n.B * n.Sk * n.Hkv * n.D);
    x.o = xalloc(8 * nq), x.lse = xalloc(8 * (size_t)(n.B * n.H * n.Sq));
    x.dq = xalloc(8 * nq), x.dk = xalloc(8 * nk), x.dv = xalloc(8 * nk);
    naive_fwd(&x, p);
    size_t bytes = kern_attn_fwd_ws(&q, &k, p, TEAM);
    void *ws = xalloc(bytes);
    memset(ws, 0xff, bytes);
    kern_attn_fwd(&q, &k, &v, &o, &lse, p, ws, bytes);
    free(ws);
    close_to("o", name, &o, x.o, 1, slack * (t == DT_F32 ? 2e-6 : 1e-2));
    for (int64_t i = 0; i < n.B * n.H * n.Sq; i++) {
        double have = (double)((float *)lse.data)[i], want = x.lse[i];
        if (!(have == want || fabs(have - want) <= 4e-6 * fmax(1, fabs(want))))
            fail_msg("%s: lse[%lld] is %.9g, want %.9g", name, (long long)i, have, want);
    }
    naive_bwd(&x, p);
    bytes = kern_attn_bwd_ws(&q, &k, p, TEAM);
    ws = xalloc(bytes);
    memset(ws, 0xff, bytes);
    kern_attn_bwd(&q, &k, &v, &o, &lse, &dout, &dq, &dk, &dv, p, ws, bytes);
    free(ws);
    close_to("dv", name, &dv, x.dv, 1, tol);
    /* dP and delta are sums of D products of N(0,1), and cancel where a row sees one key. */
    close_to("dk", name, &dk, x.dk, sqrt((double)n.D), tol);
    close_to("dq", name, &dq, x.dq, sqrt((double)n.D), tol);
    double *all[] = {x.q, x.k, x.v, x.o, x.lse, x.dout, x.dq, x.dk, x.dv};
    for (int i = 0; i < 9; i++) free(all[i]);
    void *data[] = {q.data, k.data, v.data, o.data, dout.data, dq.data, dk.data, dv.data, lse.data};
    for (int i = 0; i < 9; i++) free(data[i]);
}

static void run_case(const char *name, dtype t, layout l, shape n, const kern_attn_params *p) {
    run_slack(name, t, l, n, p, 1);
}

static kern_attn_params causal_params(int64_t D) {
    kern_attn_params p = kern_attn_defaults(1.f / sqrtf((float)D));
    p.causal = true;
    return p;
}

static void sizes(void **state) {
    (void)state;
    const int64_t S[] = {1, 7, 33, 129, 300}, D[] = {1, 5, 32, 64, 80, 128};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 6; j++) {
            char name[64];
            if (S[i] == 300 && D[j] % 32) continue; /* the naive one is slow */
            snprintf(name, sizeof name, "S=%d D=%d", (int)S[i], (int)D[j]);
            kern_attn_params p = causal_params(D[j]);
            run_case(name, DT_F32, (layout)((i + j) % 3), (shape){1, S[i], S[i], 2, 1 + j % 2, D[j]}, &p);
            p.causal = false;
            run_case(name, DT_F32, (layout)((i + j + 1) % 3), (shape){2, S[i], S[(i + 2) % 4], 2, 2, D[j]}, &p);
        }
    kern_attn_params p = causal_params(256);
    run_case("D=256", DT_F32, DENSE, (shape){1, 70, 70, 2, 1, 256}, &p);
}

static void grouped_heads(void **state) {
    (void)state;
    kern_attn_params p = causal_params(16);
    run_case("H=6 Hkv=2", DT_F32, DENSE, (shape){2, 90, 90, 6, 2, 16}, &p);
    run_case("H=4 Hkv=1", DT_F32, WIDE, (shape){1, 300, 300, 4, 1, 16}, &p);
}

static void offsets(void **state) {
    (void)state;
    const int64_t offset[] = {-200, -40, -1, 0, 1, 77, 500};
    for (int i = 0; i < 7; i++) {
        char name[64];
        snprintf(name, sizeof name, "q_offset=%d", (int)offset[i]);
        kern_attn_params p = causal_params(24);
        p.q_offset = offset[i];
        run_case(name, DT_F32, DENSE, (shape){1, 150, 170, 2, 1, 9}, &p);
        p.window = 50;
        run_case(name, DT_F32, DENSE, (shape){1, 150, 170, 2, 1, 9}, &p);
        p.causal = false;
        run_case(name, DT_F32, DENSE, (shape){1, 150, 170, 2, 1, 9}, &p);
    }
}

/* Workspaces are as small as the queries, the keys and what a window shows of them. */
static void narrow_windows(void **state) {
    (void)state;
    const int64_t window[] = {1, 2, 7, 33, 200}, rows[][2] = {{300, 300}, {1, 300}, {20, 45}, {65, 257}, {600, 600}};
    for (int t = DT_F32; t <= DT_BF16; t += DT_BF16)
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < 5; j++) {
                char name[64];
                kern_attn_params p = causal_params(16);
                p.window = window[i], p.q_offset = rows[j][1] - rows[j][0], p.softcap = j % 2 ? 5 : 0;
                snprintf(name, sizeof name, "window %d, %d of %d rows", (int)window[i], (int)rows[j][0],
                         (int)rows[j][1]);
                run_case(name, t, DENSE, (shape){1, rows[j][0], rows[j][1], 4, 2, j == 2 ? 80 : 16}, &p);
            }
}

static void padding(void **state) {
    (void)state;
    const int64_t valid[] = {-3, 0, 1, 100, 170, 1000};
    for (int i = 0; i < 6; i++) {
        kern_attn_params p = causal_params(24);
        p.kv_valid = valid[i];
        run_case("kv_valid, causal", DT_F32, DENSE, (shape){1, 170, 170, 2, 1, 24}, &p);
        p.causal = false;
        run_case("kv_valid", DT_F32, DENSE, (shape){1, 40, 170, 2, 1, 24}, &p);
    }
    kern_attn_params p = causal_params(24);
    run_case("no keys", DT_F32, DENSE, (shape){1, 40, 0, 2, 1, 24}, &p);
    run_case("no queries", DT_F32, DENSE, (shape){1, 0, 40, 2, 1, 24}, &p);
}

static void documents(void **state) {
    (void)state;
    enum { S = 330 };
    int64_t sorted[2 * S], mixed[2 * S], one[S];
    for (int i = 0; i < 2 * S; i++) sorted[i] = (i % S) / 37 + (i / S), mixed[i] = (i * 7) % 3 - 1;
    for (int i = 0; i < S; i++) one[i] = i < 130 ? INT64_MAX : INT64_MIN;
    for (int c = 0; c < 2; c++) {
        kern_attn_params p = causal_params(32);
        p.causal = c;
        p.doc_q = p.doc_k = sorted, p.doc_q_bs = p.doc_k_bs = S;
        run_case("sorted documents", DT_F32, DENSE, (shape){2, S, S, 1, 1, 8}, &p);
        p.doc_q = p.doc_k = mixed;
        run_case("mixed documents", DT_F32, DENSE, (shape){2, S, S, 1, 1, 8}, &p);
        p.doc_q = p.doc_k = one, p.doc_q_bs = p.doc_k_bs = 0;
        run_case("shared documents", DT_F32, DENSE, (shape){2, S, S, 1, 1, 8}, &p);
        p.doc_k = sorted, p.doc_k_bs = S;
        run_case("no document in common", DT_F32, DENSE, (shape){2, S, S, 1, 1, 8}, &p);
    }
}

/* Conditions by a formula: sorted numbers (tiles wholly hidden or visible), mixed ones, by head, broadcast. */
static void formulas(void **state) {
    (void)state;
    enum { S = 330 };
    int64_t row[S], mixed[2 * S], head[2 * S], one = 1, zero = 0;
    for (int i = 0; i < S; i++) row[i] = i;
    for (int i = 0; i < 2 * S; i++) mixed[i] = (i * 7) % 3 - 1, head[i] = i % S < 100 ? 1 : 1 + i / S;
    kern_attn_formula f = {.pairs = 3};
    assert_int_equal(ir_formula_parse("0>= 1== & 2!= |", 3, &f.code), SP_OK);
    const kern_attn_vector by_row = {row, 0, 0, 1}, by_mixed = {mixed, S, 0, 1}, by_head = {head, 0, S, 1},
                           ones = {&one, 0, 0, 0}, zeros = {&zero, 0, 0, 0};
    const kern_attn_vector q[][3] = {{by_row, ones, zeros}, {by_row, by_mixed, zeros}, {by_row, ones, by_head}},
                           k[][3] = {{by_row, ones, zeros}, {by_row, by_mixed, zeros}, {by_row, ones, ones}};
    for (int c = 0; c < 3; c++) {
        kern_attn_params p = kern_attn_defaults(0.3f);
        memcpy(f.q, q[c], sizeof q[c]), memcpy(f.k, k[c], sizeof k[c]);
        p.formula = &f;
        run_case("formula", DT_F32, DENSE, (shape){2, S, S, 2, 1, 8}, &p);
        run_case("formula, bf16", DT_BF16, DENSE, (shape){2, S, S, 2, 1, 8}, &p);
        p.window = 70;
        run_case("formula, window", DT_F32, DENSE, (shape){2, S, S, 2, 1, 8}, &p);
    }
}

static void dropout(void **state) {
    (void)state;
    kern_attn_params p = causal_params(32);
    p.drop = (kern_attn_dropout){.p = 0.3, .node = 5, .seed = 0x123456789abcdef, .draw = 7, .head_offset = 3};
    run_case("dropout", DT_F32, DENSE, (shape){2, 140, 140, 4, 2, 32}, &p);
    p.q_offset = 31, p.window = 50;
    run_case("dropout, window, offset", DT_F32, WIDE, (shape){1, 75, 170, 2, 1, 9}, &p);
    p.softcap = 1.5f, p.causal = false;
    run_case("dropout, softcap", DT_F32, DENSE, (shape){2, 140, 140, 4, 2, 8}, &p);
    run_slack("dropout, bf16", DT_BF16, DENSE, (shape){2, 140, 140, 4, 2, 32}, &p, 2);
    p.drop.p = 1;
    run_case("dropout of everything", DT_F32, DENSE, (shape){1, 20, 20, 1, 1, 8}, &p);
}

static void scores(void **state) {
    (void)state;
    const float slope[] = {0.5f, 0.0625f, 0.25f, 1.f};
    kern_attn_params p = causal_params(32);
    shape n = {2, 140, 140, 4, 2, 8};
    p.softcap = 1.5f;
    run_case("softcap", DT_F32, DENSE, n, &p);
    p.alibi = slope;
    run_case("softcap, alibi", DT_F32, DENSE, n, &p);
    p.softcap = 0;
    run_case("alibi", DT_F32, DENSE, n, &p);
    p.bias = bias_tile, p.bias_ctx = (void *)&index_bias;
    run_case("alibi, bias", DT_F32, DENSE, n, &p);
    p.softcap = 2, p.window = 60, p.q_offset = 3, p.kv_valid = 120;
    run_case("everything", DT_F32, WIDE, n, &p);
    /* Scores of several hundreds: nothing overflows, but P is only as exact as they are, 300 times less. */
    p = kern_attn_defaults(30.f);
    run_slack("large scores", DT_F32, DENSE, (shape){1, 65, 65, 1, 1, 8}, &p, 300);
}

/* The naive gradients against central differences of the naive forward, so that both oracles stand on each other. */
static void oracle_differences(void **state) {
    (void)state;
    uint64_t seed = 5;
    shape n = {1, 6, 7, 2, 1, 4};
    kern_attn_params p = causal_params(4);
    p.softcap = 1, p.q_offset = 1;
    double mem[9][64], *x[3];
    naive a = {n, mem[0], mem[1], mem[2], mem[3], mem[4], mem[5], mem[6], mem[7], mem[8]};
    int size[3] = {48, 28, 28};
    x[0] = a.q, x[1] = a.k, x[2] = a.v;
    double *grad[3] = {a.dq, a.dk, a.dv};
    for (int i = 0; i < 48; i++) a.q[i] = rng_normal(&seed), a.dout[i] = rng_normal(&seed);
    for (int i = 0; i < 28; i++) a.k[i] = rng_normal(&seed), a.v[i] = rng_normal(&seed);
    naive_fwd(&a, &p);
    naive_bwd(&a, &p);
    for (int w = 0; w < 3; w++)
        for (int i = 0; i < size[w]; i++) {
            double old = x[w][i], loss[2] = {0, 0}, h = 1e-5;
            for (int side = 0; side < 2; side++) {
                x[w][i] = old + (side ? h : -h);
                naive_fwd(&a, &p);
                for (int j = 0; j < 48; j++) loss[side] += a.o[j] * a.dout[j];
            }
            x[w][i] = old;
            double diff = (loss[1] - loss[0]) / (2 * h);
            assert_true(fabs(diff - grad[w][i]) < 1e-8 * fmax(1, fabs(diff)));
        }
}

/* Bit-equal whatever the team, and from run to run. */
static void bits_of(dtype t, int64_t window) {
    uint64_t seed = 3;
    const shape n = {2, 700, 700, 4, 2, 64};
    kern_attn_params p = causal_params(64);
    p.window = window;
    tensor q = make(t, DENSE, n.B, n.Sq, n.H, n.D), k = make(t, DENSE, n.B, n.Sk, n.Hkv, n.D),
           v = make(t, DENSE, n.B, n.Sk, n.Hkv, n.D), dout = make(t, DENSE, n.B, n.Sq, n.H, n.D);
    fill(&q, &seed), fill(&k, &seed), fill(&v, &seed), fill(&dout, &seed);
    tensor lse = {.type = DT_F32, .rank = 3, .dim = {n.B, n.H, n.Sq}, .stride = {n.H * n.Sq, n.Sq, 1}};
    uint64_t want = 0;
    for (int run = 0; run < 4; run++) {
        const int threads = run % 2 ? 1 : TEAM + run;
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        tensor o = make(t, DENSE, n.B, n.Sq, n.H, n.D), dq = make(t, DENSE, n.B, n.Sq, n.H, n.D),
               dk = make(t, DENSE, n.B, n.Sk, n.Hkv, n.D), dv = make(t, DENSE, n.B, n.Sk, n.Hkv, n.D);
        size_t rows = (size_t)(n.B * n.H * n.Sq), bytes = kern_attn_fwd_ws(&q, &k, &p, threads);
        lse.data = xalloc(4 * rows);
        void *ws = xalloc(bytes);
        kern_attn_fwd(&q, &k, &v, &o, &lse, &p, ws, bytes);
        free(ws);
        bytes = kern_attn_bwd_ws(&q, &k, &p, threads);
        ws = xalloc(bytes);
        kern_attn_bwd(&q, &k, &v, &o, &lse, &dout, &dq, &dk, &dv, &p, ws, bytes);
        free(ws);
        uint64_t h = hash_bytes(HASH_INIT, lse.data, 4 * rows);
        h = hash_bytes(h, o.data, (size_t)dtype_size(t) * (size_t)tensor_numel(&o));
        h = hash_bytes(h, dq.data, (size_t)dtype_size(t) * (size_t)tensor_numel(&dq));
        h = hash_bytes(h, dk.data, (size_t)dtype_size(t) * (size_t)tensor_numel(&dk));
        h = hash_bytes(h, dv.data, (size_t)dtype_size(t) * (size_t)tensor_numel(&dv));
        if (!run) want = h;
        assert_true(h == want);
        void *data[] = {o.data, dq.data, dk.data, dv.data, lse.data};
        for (int i = 0; i < 5; i++) free(data[i]);
    }
    free(q.data), free(k.data), free(v.data), free(dout.data);
#ifdef _OPENMP
    omp_set_num_threads(TEAM);
#endif
}

static void bits(void **state) {
    (void)state;
    bits_of(DT_F32, 0);
    bits_of(DT_BF16, 0);
    bits_of(DT_BF16, 130);
}

/* Three blocks of keys, one of them hidden from everybody and one from some rows, merged and against the whole. */
static void merge(void **state) {
    (void)state;
    uint64_t seed = 8;
    const int64_t Sq = 40, Sk = 90, H = 2, D = 12, cut[] = {0, 30, 60, 90};
    tensor q = make(DT_F32, DENSE, 1, Sq, H, D), k = make(DT_F32, WIDE, 1, Sk, H, D),
           v = make(DT_F32, WIDE, 1, Sk, H, D);
    tensor o[2] = {make(DT_F32, DENSE, 1, Sq, H, D), make(DT_F32, WIDE, 1, Sq, H, D)},
           whole = make(DT_F32, DENSE, 1, Sq, H, D);
    tensor lse[3];
    for (int i = 0; i < 3; i++) {
        lse[i] = (tensor){.type = DT_F32, .rank = 3, .dim = {1, H, Sq}, .stride = {H * Sq, Sq, 1}};
        lse[i].data = xalloc(4 * (size_t)(H * Sq));
    }
    fill(&q, &seed), fill(&k, &seed), fill(&v, &seed);
    kern_attn_params p = causal_params(D);
    p.q_offset = 20;
    size_t bytes = kern_attn_fwd_ws(&q, &k, &p, TEAM);
    void *ws = xalloc(bytes);
    kern_attn_fwd(&q, &k, &v, &whole, &lse[2], &p, ws, bytes);
    for (int i = 2; i >= 0; i--) { /* the hidden block first: merging starts from rows that saw nothing */
        tensor kp = k, vp = v;
        kp.dim[1] = vp.dim[1] = cut[i + 1] - cut[i];
        kp.data = (float *)k.data + cut[i] * k.stride[1], vp.data = (float *)v.data + cut[i] * v.stride[1];
        p.q_offset = 20 - cut[i];
        kern_attn_fwd(&q, &kp, &vp, &o[i < 2], &lse[i < 2], &p, ws, bytes);
        if (i < 2) kern_attn_merge(&o[0], &lse[0], &o[1], &lse[1]);
    }
    double *want = dense(&whole);
    close_to("o", "merge", &o[0], want, 1, 2e-6);
    for (int64_t i = 0; i < H * Sq; i++)
        assert_true(fabsf(((float *)lse[0].data)[i] - ((float *)lse[2].data)[i]) < 4e-6f);
    void *data[] = {q.data,      k.data,      v.data,      o[0].data, o[1].data, whole.data,
                    lse[0].data, lse[1].data, lse[2].data, ws,        want};
    for (int i = 0; i < 11; i++) free(data[i]);
}

/* Pairs of keys, queries and dimensions: odd sizes, and visible ranges that begin and end inside a pair. */
static void bf16(void **state) {
    (void)state;
    kern_attn_params p = causal_params(80);
    run_case("bf16", DT_BF16, DENSE, (shape){1, 300, 300, 2, 1, 80}, &p);
    const int64_t S[] = {1, 2, 7, 33, 129}, D[] = {1, 5, 16, 33, 64};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            char name[64];
            snprintf(name, sizeof name, "bf16 S=%d D=%d", (int)S[i], (int)D[j]);
            p = causal_params(D[j]);
            p.q_offset = i % 2;
            run_case(name, DT_BF16, (layout)((i + j) % 3), (shape){1, S[i], S[(i + j) % 5], 2, 1 + j % 2, D[j]}, &p);
            p.window = 9, p.kv_valid = 101;
            run_case(name, DT_BF16, (layout)((i + j + 1) % 3), (shape){1, S[i] + 64, S[(i + j) % 5] + 64, 2, 1, D[j]},
                     &p);
            p.causal = false;
            run_case(name, DT_BF16, DENSE, (shape){1, S[i], 200, 2, 1, D[j]}, &p);
        }
    enum { N = 330 };
    int64_t doc[N];
    for (int i = 0; i < N; i++) doc[i] = i / 37;
    p = causal_params(32);
    p.doc_q = p.doc_k = doc;
    run_case("bf16 documents", DT_BF16, DENSE, (shape){2, N, N, 1, 1, 8}, &p);
    p.softcap = 2, p.bias = bias_tile, p.bias_ctx = (void *)&index_bias;
    run_case("bf16 softcap, bias", DT_BF16, DENSE, (shape){2, N, N, 1, 1, 8}, &p);
}

#if VEC_PAIRS
/* This program once more, with products of bf16 by emulated tiles (amx_emulated.h): were they, and given back after? */
extern atomic_int_least64_t amx_emulated_dots;
extern _Thread_local bool amx_emulated_configured;

static void tiles_were_used(void **state) {
    (void)state;
    int64_t before = atomic_load(&amx_emulated_dots);
    bf16(state);
    assert_true(amx_usable());
    assert_true(atomic_load(&amx_emulated_dots) > before);
    int kept = 0;
#pragma omp parallel reduction(+ : kept)
    kept += amx_emulated_configured;
    assert_int_equal(kept, 0);
}

/* Rows that start elsewhere in a panel see other keys beside them, and have the same bits. Values of neighbours nearly
 * cancel, so that the order of sums shows in bf16. */
static void rows_alone(void **state) {
    (void)state;
    uint64_t seed = 4;
    const int64_t S = 200, D = 48;
    tensor q = make(DT_BF16, DENSE, 1, S, 1, D), k = make(DT_BF16, DENSE, 1, S, 1, D),
           v = make(DT_BF16, DENSE, 1, S, 1, D), o = make(DT_BF16, DENSE, 1, S, 1, D),
           lse = {.type = DT_F32, .rank = 3, .dim = {1, 1, S}, .stride = {S, S, 1}, .data = xalloc(4 * (size_t)S)};
    fill(&q, &seed), fill(&k, &seed), fill(&v, &seed);
    uint16_t *value = v.data;
    for (int64_t s = 0; s < S; s++)
        for (int64_t d = 0; d < D; d++)
            if (s % 16 < 2)
                value[s * D + d] = to_bf(0x1p-9f * bf(value[s * D + d]));
            else if (s % 2)
                value[s * D + d] = value[(s - 1) * D + d] ^ 0x8000;
    kern_attn_params p = kern_attn_defaults(0);
    p.causal = true, p.window = 38;
    size_t bytes = kern_attn_fwd_ws(&q, &k, &p, TEAM);
    void *ws = xalloc(bytes);
    kern_attn_fwd(&q, &k, &v, &o, &lse, &p, ws, bytes);
    for (int64_t from = 1; from < 64; from += 5) {
        tensor part = q, out = make(DT_BF16, DENSE, 1, S - from, 1, D), sums = lse;
        part.dim[1] = sums.dim[2] = S - from;
        part.data = (uint16_t *)q.data + from * D;
        sums.data = xalloc(4 * (size_t)S);
        p.q_offset = from;
        kern_attn_fwd(&part, &k, &v, &out, &sums, &p, ws, bytes);
        assert_memory_equal(out.data, (uint16_t *)o.data + from * D, 2 * (size_t)((S - from) * D));
        assert_memory_equal(sums.data, (float *)lse.data + from, 4 * (size_t)(S - from));
        free(out.data), free(sums.data);
    }
    void *data[] = {q.data, k.data, v.data, o.data, lse.data, ws};
    for (int i = 0; i < 6; i++) free(data[i]);
}
#endif

int main(void) {
#ifdef _OPENMP
    omp_set_num_threads(TEAM);
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(grouped_heads),
        cmocka_unit_test(offsets),
        cmocka_unit_test(narrow_windows),
        cmocka_unit_test(padding),
        cmocka_unit_test(documents),
        cmocka_unit_test(formulas),
        cmocka_unit_test(dropout),
        cmocka_unit_test(scores),
        cmocka_unit_test(oracle_differences),
        cmocka_unit_test(bits),
        cmocka_unit_test(merge),
        cmocka_unit_test(bf16),
#if VEC_PAIRS
        cmocka_unit_test(tiles_were_used),
        cmocka_unit_test(rows_alone),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
