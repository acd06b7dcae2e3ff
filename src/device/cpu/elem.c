/* elem.c - element-wise kernels: activations, swiglu, sums and scales, the sum of squares. */
#include "device/cpu/rows.h"

static const float GELU_A = 0.79788456080286536f, GELU_B = 0.044715f; /* sqrt(2/pi), and the cubic's factor */

INLINE vf act(kern_act kind, vf x) {
    if (kind == KERN_SILU) return x * vsigmoid(x);
    if (kind == KERN_GELU) return vgelu(x);
    return x * vsigmoid(2.f * GELU_A * (x + GELU_B * x * x * x)); /* (1 + tanh(u)) / 2 = sigmoid(2u) */
}

INLINE vf act_slope(kern_act kind, vf x) {
    if (kind == KERN_SILU) {
        vf s = vsigmoid(x);
        return s * vfma(x, 1.f - s, vset(1.f));
    }
    if (kind == KERN_GELU) return vgelu_slope(x);
    vf s = vsigmoid(2.f * GELU_A * (x + GELU_B * x * x * x));
    return s + s * (1.f - s) * x * (2.f * GELU_A) * (1.f + 3.f * GELU_B * x * x);
}

INLINE void act_chunk(bool bf, int64_t from, int64_t to, kern_act kind, const void *x, const void *dy, void *y) {
    EACH_VECTOR(i, from, to, {
        vf v = get_part(bf, x, i, left, 0);
        if (dy)
            put_part(bf, y, i, left, get_part(bf, dy, i, left, 0) * act_slope(kind, v));
        else
            put_part(bf, y, i, left, act(kind, v));
    });
}

void kern_act_fwd(kern_act kind, dtype t, int64_t n, const void *x, void *y) {
    if (kind == KERN_SILU)
        PARALLEL_CHUNKS(t, n, act_chunk, KERN_SILU, x, NULL, y);
    else if (kind == KERN_GELU)
        PARALLEL_CHUNKS(t, n, act_chunk, KERN_GELU, x, NULL, y);
    else
        PARALLEL_CHUNKS(t, n, act_chunk, KERN_GELU_TANH, x, NULL, y);
}

void kern_act_bwd(kern_act kind, dtype t, int64_t n, const void *x, const void *dy, void *dx) {
    ASSERT(dy);
    if (kind == KERN_SILU)
        PARALLEL_CHUNKS(t, n, act_chunk, KERN_SILU, x, dy, dx);
    else if (kind == KERN_GELU)
        PARALLEL_CHUNKS(t, n, act_chunk, KERN_GELU, x, dy, dx);
    else
        PARALLEL_CHUNKS(t, n, act_chunk, KERN_GELU_TANH, x, dy, dx);
}

INLINE void swiglu_row(bool bf, int64_t r, int64_t n, const void *g0, int64_t ldg, const void *u0, int64_t ldu,
                       void *y0, int64_t ldy) {
    const void *g = elem_at(bf, g0, r * ldg), *u = elem_at(bf, u0, r * ldu);
    void *y = elem_of(bf, y0, r * ldy);
    EACH_VECTOR(j, 0, n, {
        put_part(bf, y, j, left, act(KERN_SILU, get_part(bf, g, j, left, 0)) * get_part(bf, u, j, left, 0));
    });
}

INLINE void swiglu_bwd_row(bool bf, int64_t r, int64_t n, const void *g0, int64_t ldg, const void *u0, int64_t ldu,
                           const void *dy0, int64_t lddy, void *dg0, int64_t lddg, void *du0, int64_t lddu) {
    const void *gr = elem_at(bf, g0, r * ldg), *ur = elem_at(bf, u0, r * ldu), *dyr = elem_at(bf, dy0, r * lddy);
    void *dg = elem_of(bf, dg0, r * lddg), *du = elem_of(bf, du0, r * lddu);
    EACH_VECTOR(j, 0, n, {
        vf g = get_part(bf, gr, j, left, 0), u = get_part(bf, ur, j, left, 0), dy = get_part(bf, dyr, j, left, 0);
        vf s = vsigmoid(g);
        put_part(bf, dg, j, left, dy * u * s * (1.f + g * (1.f - s)));
        put_part(bf, du, j, left, dy * g * s);
    });
}

/* Rows without gaps between them are one run, cut into chunks. */
INLINE void swiglu_chunk(bool bf, int64_t from, int64_t to, const void *g, const void *u, void *y) {
    swiglu_row(bf, 0, to - from, elem_at(bf, g, from), 0, elem_at(bf, u, from), 0, elem_of(bf, y, from), 0);
}
INLINE void swiglu_bwd_chunk(bool bf, int64_t from, int64_t to, const void *g, const void *u, const void *dy, void *dg,
                             void *du) {
    swiglu_bwd_row(bf, 0, to - from, elem_at(bf, g, from), 0, elem_at(bf, u, from), 0, elem_at(bf, dy, from), 0,
                   elem_of(bf, dg, from), 0, elem_of(bf, du, from), 0);
}

void kern_swiglu_fwd(dtype t, int64_t rows, int64_t n, const void *g, int64_t ldg, const void *u, int64_t ldu, void *y,
                     int64_t ldy) {
    if (rows == 1 || (ldg == n && ldu == n && ldy == n))
        PARALLEL_CHUNKS(t, rows * n, swiglu_chunk, g, u, y);
    else
        PARALLEL_ROWS(t, r, rows, rows * n, swiglu_row, r, n, g, ldg, u, ldu, y, ldy);
}

void kern_swiglu_bwd(dtype t, int64_t rows, int64_t n, const void *g, int64_t ldg, const void *u, int64_t ldu,
                     const void *dy, int64_t lddy, void *dg, int64_t lddg, void *du, int64_t lddu) {
    if (rows == 1 || (ldg == n && ldu == n && lddy == n && lddg == n && lddu == n))
        PARALLEL_CHUNKS(t, rows * n, swiglu_bwd_chunk, g, u, dy, dg, du);
    else
        PARALLEL_ROWS(t, r, rows, rows * n, swiglu_bwd_row, r, n, g, ldg, u, ldu, dy, lddy, dg, lddg, du, lddu);
}

typedef enum linear_op { AXPY, SCALE, ADD, MUL } linear_op;

INLINE void linear_chunk(bool bf, int64_t from, int64_t to, linear_op op, float alpha, const void *a, const void *b,
                         void *y) {
    EACH_VECTOR(i, from, to, {
        vf x = get_part(bf, a, i, left, 0);
        if (op == AXPY)
            x = get_part(bf, y, i, left, 0) + alpha * x;
        else if (op == SCALE)
            x *= alpha;
        else if (op == ADD)
            x += get_part(bf, b, i, left, 0);
        else
            x *= get_part(bf, b, i, left, 0);
        put_part(bf, y, i, left, x);
    });
}

void kern_axpy(dtype t, int64_t n, float alpha, const void *x, void *y) {
    PARALLEL_CHUNKS(t, n, linear_chunk, AXPY, alpha, x, NULL, y);
}
void kern_scale(dtype t, int64_t n, float alpha, const void *x, void *y) {
    PARALLEL_CHUNKS(t, n, linear_chunk, SCALE, alpha, x, NULL, y);
}
void kern_add(dtype t, int64_t n, const void *a, const void *b, void *y) {
    PARALLEL_CHUNKS(t, n, linear_chunk, ADD, 0, a, b, y);
}
void kern_mul(dtype t, int64_t n, const void *a, const void *b, void *y) {
    PARALLEL_CHUNKS(t, n, linear_chunk, MUL, 0, a, b, y);
}

/* ---- sum of squares ---------------------------------------------------------------------------- */

enum { SUM_PARTS = 512, SUM_LANES = 16 };

/* SUM_LANES running sums in f64, added up in order. */
INLINE void squares(bool bf, int64_t part, int64_t n, int64_t len, const void *x, double *out) {
    double s[SUM_LANES] = {0};
    const int64_t from = min64(n, part * len), to = min64(n, from + len);
    int64_t i = from;
    for (; i + SUM_LANES <= to; i += SUM_LANES)
        for (int l = 0; l < SUM_LANES; l++) {
            double v = (double)sget(bf, x, i + l);
            s[l] += v * v;
        }
    for (int l = 0; i < to; i++, l++) {
        double v = (double)sget(bf, x, i);
        s[l] += v * v;
    }
    double sum = 0;
    for (int l = 0; l < SUM_LANES; l++) sum += s[l];
    out[part] = sum;
}

double kern_sumsq(dtype t, int64_t n, const void *x) {
    /* The parts depend on n alone, never on the team. */
    double part[SUM_PARTS], sum = 0;
    const int64_t len = round_up(max64(1 << 12, ceil_div(n, SUM_PARTS)), SUM_LANES), parts = ceil_div(n, len);
    PARALLEL_ROWS(t, i, parts, n, squares, i, n, len, x, part);
    for (int64_t i = 0; i < parts; i++) sum += part[i];
    return sum;
}
