/* norm.c - rmsnorm and layernorm, forward and backward.
 *
 * A row is read from memory once and stays in the first-level cache for its second pass. Weight gradients are sums
 * over rows: fixed chunks of rows make partial sums in the workspace, which are added in order, so that the result
 * does not depend on the number of threads.
 */
#include "device/cpu/rows.h"

enum { MAX_CHUNKS = 64, CHUNK_ROWS = 16 };

static int64_t chunk_count(int64_t rows) { return max64(1, min64(MAX_CHUNKS, ceil_div(rows, CHUNK_ROWS))); }

size_t kern_norm_bwd_ws(int64_t rows, int64_t n) { return (size_t)(2 * chunk_count(rows) * round_up(n, VL) * 4); }

/* sum of (x - mean)^2 over a row. */
INLINE float centred_squares(bool bf, const void *x, int64_t n, float mean) {
    vf s0 = vset(0), s1 = vset(0);
    int64_t j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) {
        vf a = vget(bf, x, j) - mean, b = vget(bf, x, j + VL) - mean;
        s0 += a * a;
        s1 += b * b;
    }
    for (; j < n; j += VL) {
        vf a = get_part(bf, x, j, n - j, mean) - mean;
        s0 += a * a;
    }
    return vsum(s0 + s1);
}

INLINE void rms_row(bool bf, int64_t r, int64_t n, const void *x0, int64_t ldx, const void *w, float eps, void *y0,
                    int64_t ldy, float *rstd) {
    const void *x = elem_at(bf, x0, r * ldx);
    void *y = elem_of(bf, y0, r * ldy);
    float s = 1 / sqrtf(centred_squares(bf, x, n, 0) / (float)n + eps);
    rstd[r] = s;
    EACH_VECTOR(j, 0, n, {
        vf v = get_part(bf, x, j, left, 0) * s;
        if (w) v *= get_part(bf, w, j, left, 0);
        put_part(bf, y, j, left, v);
    });
}

void kern_rmsnorm_fwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, float eps, void *y,
                      int64_t ldy, float *rstd) {
    PARALLEL_ROWS(t, r, rows, rows * n, rms_row, r, n, x, ldx, w, eps, y, ldy, rstd);
}

INLINE void layer_row(bool bf, int64_t r, int64_t n, const void *x0, int64_t ldx, const void *w, const void *b,
                      float eps, void *y0, int64_t ldy, float *mean, float *rstd) {
    const void *x = elem_at(bf, x0, r * ldx);
    void *y = elem_of(bf, y0, r * ldy);
    vf sum = vset(0);
    for (int64_t j = 0; j < n; j += VL) sum += get_part(bf, x, j, n - j, 0);
    float m = vsum(sum) / (float)n, s = 1 / sqrtf(centred_squares(bf, x, n, m) / (float)n + eps);
    mean[r] = m;
    rstd[r] = s;
    EACH_VECTOR(j, 0, n, {
        vf v = (get_part(bf, x, j, left, 0) - m) * s;
        if (w) v *= get_part(bf, w, j, left, 0);
        if (b) v += get_part(bf, b, j, left, 0);
        put_part(bf, y, j, left, v);
    });
}

void kern_layernorm_fwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, const void *b,
                        float eps, void *y, int64_t ldy, float *mean, float *rstd) {
    PARALLEL_ROWS(t, r, rows, rows * n, layer_row, r, n, x, ldx, w, b, eps, y, ldy, mean, rstd);
}

/* What both backward kernels are given. mean is NULL for rmsnorm. */
typedef struct norm_bwd {
    int64_t rows, n;
    const void *x, *w, *dy;
    int64_t ldx, lddy, lddx;
    const float *mean, *rstd;
    void *dx;
    float *dw, *db; /* partial sums, (chunks, round_up(n, VL)); NULL for none */
} norm_bwd;

/* With g = dy * w and xh = (x - mean) * rstd: dx = rstd * (g - [mean(g)] - xh * mean(g * xh)), the bracket for
 * layernorm. */
INLINE void bwd_row(bool bf, const norm_bwd *p, int64_t r, float *dw, float *db) {
    const void *x = elem_at(bf, p->x, r * p->ldx), *dy = elem_at(bf, p->dy, r * p->lddy);
    void *dx = elem_of(bf, p->dx, r * p->lddx);
    const int64_t n = p->n;
    const float s = p->rstd[r], m = p->mean ? p->mean[r] : 0;
    vf sum_g = vset(0), sum_gx = vset(0);
    EACH_VECTOR(j, 0, n, {
        vf g = get_part(bf, dy, j, left, 0);
        if (p->w) g *= get_part(bf, p->w, j, left, 0);
        sum_g += g;
        sum_gx += g * ((get_part(bf, x, j, left, m) - m) * s);
    });
    const float mean_g = p->mean ? vsum(sum_g) / (float)n : 0, mean_gx = vsum(sum_gx) / (float)n;
    EACH_VECTOR(j, 0, n, {
        vf d = get_part(bf, dy, j, left, 0), xh = (get_part(bf, x, j, left, m) - m) * s, g = d;
        if (p->w) g *= get_part(bf, p->w, j, left, 0);
        /* The partial sums are padded to whole vectors. */
        if (dw) vst(dw + j, vld(dw + j) + d * xh);
        if (db) vst(db + j, vld(db + j) + d);
        put_part(bf, dx, j, left, (g - mean_g - xh * mean_gx) * s);
    });
}

INLINE void bwd_chunk(bool bf, const norm_bwd *p, int64_t chunk, int64_t chunks) {
    const int64_t np = round_up(p->n, VL);
    float *dw = p->dw ? p->dw + chunk * np : NULL, *db = p->db ? p->db + chunk * np : NULL;
    if (dw) memset(dw, 0, sizeof(float) * (size_t)np);
    if (db) memset(db, 0, sizeof(float) * (size_t)np);
    for (int64_t r = p->rows * chunk / chunks; r < p->rows * (chunk + 1) / chunks; r++) bwd_row(bf, p, r, dw, db);
}

static void add_chunks(const float *part, int64_t chunks, int64_t n, bool accumulate, float *out) {
    const int64_t np = round_up(n, VL);
    EACH_VECTOR(j, 0, n, {
        vf s = accumulate ? get_part(false, out, j, left, 0) : vset(0);
        for (int64_t c = 0; c < chunks; c++) s += vld(part + c * np + j);
        put_part(false, out, j, left, s);
    });
}

static void backward(dtype t, norm_bwd *p, float *dw, float *db, bool accumulate, void *ws) {
    const int64_t chunks = chunk_count(p->rows), np = round_up(p->n, VL);
    if (dw) p->dw = ws;
    if (db) p->db = (float *)ws + chunks * np;
    PARALLEL_ROWS(t, c, chunks, p->rows * p->n, bwd_chunk, p, c, chunks);
    if (dw) add_chunks(p->dw, chunks, p->n, accumulate, dw);
    if (db) add_chunks(p->db, chunks, p->n, accumulate, db);
}

void kern_rmsnorm_bwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, const float *rstd,
                      const void *dy, int64_t lddy, void *dx, int64_t lddx, float *dw, bool accumulate, void *ws) {
    norm_bwd p = {
        .rows = rows, .n = n, .x = x, .w = w, .dy = dy, .ldx = ldx, .lddy = lddy, .lddx = lddx, .rstd = rstd, .dx = dx};
    backward(t, &p, dw, NULL, accumulate, ws);
}

void kern_layernorm_bwd(dtype t, int64_t rows, int64_t n, const void *x, int64_t ldx, const void *w, const float *mean,
                        const float *rstd, const void *dy, int64_t lddy, void *dx, int64_t lddx, float *dw, float *db,
                        bool accumulate, void *ws) {
    norm_bwd p = {.rows = rows,
                  .n = n,
                  .x = x,
                  .w = w,
                  .dy = dy,
                  .ldx = ldx,
                  .lddy = lddy,
                  .lddx = lddx,
                  .mean = mean,
                  .rstd = rstd,
                  .dx = dx};
    backward(t, &p, dw, db, accumulate, ws);
}
