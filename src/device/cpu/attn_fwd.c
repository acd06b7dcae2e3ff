/* attn_fwd.c - attention forward by blocks with a running softmax.
 *
 * FlashAttention-2's order (Dao 2023): a thread owns a block of queries of one head and walks over the keys it sees;
 * per query it keeps the maximum, the sum of exponentials and the unnormalised output, rescaled whenever the maximum
 * grows. Every block is computed by one thread in a fixed order, so results do not depend on the number of threads.
 * Scores are kept in units of log2 (the factor is folded into q), exponentials are powers of two.
 *
 * One thread's working set: Q^T and O^T of the block, one tile of K and V (packed: rows at large strides would fall
 * into the same cache sets), scores of one panel.
 */
#include "device/cpu/attn.h"

enum {
    BQ_MAX = 256, /* queries of a block: K and V are packed once for all its panels */
    BQ_MIN = 64,  /* where fewer blocks would leave threads idle; what a row gets does not depend on its block */
    BC = 96,      /* keys of a tile: a multiple of the micro-kernel's rows, enough to amortise reloading O^T */
    PANELS = BQ_MAX / MICRO_LANES
};

/* One thread's workspace, in floats. */
typedef struct scratch {
    float *qt, *ot, *k, *v, *s, *max, *sum, *factor, *qscale, *tmp;
} scratch;

/* The queries of a block: fewer where threads would be idle. */
static int64_t queries_of(const tensor *q, int threads) {
    int64_t bq = BQ_MAX;
    while (bq > BQ_MIN && ceil_div(q->dim[1], bq) * q->dim[0] * q->dim[2] < 4 * threads) bq /= 2;
    return bq;
}

/* Sized for the queries, the keys and the type that there are, so that a plan counts what is touched. */
static int64_t scratch_layout(const tensor *q, const tensor *k, const kern_attn_params *p, int threads, float *base,
                              scratch *w) {
    float *at = base;
    const int64_t D = q->dim[3], Dp = round_up(D, VL);
    const int64_t Q = min64(queries_of(q, threads), round_up(max64(q->dim[1], 1), MICRO_LANES));
    const bool pairs = VEC_PAIRS && q->type == DT_BF16, amx = pairs && amx_usable();
    const int64_t K = amx ? BC : min64(BC, round_up(max64(k->dim[1], 1), 2)), tmp = max64(K, MICRO_LANES);
    const int64_t half = pairs && p->drop.p == 0 ? 2 : 1; /* a row of pairs takes half as many words */
    float **part[] = {&w->qt, &w->ot, &w->k, &w->v, &w->s, &w->max, &w->sum, &w->factor, &w->qscale, &w->tmp};
    int64_t size[] = {Q * D, Q * D, K * Dp / half, K * Dp / half, K * MICRO_LANES,
                      Q,     Q,     MICRO_LANES,   MICRO_LANES,   pairs ? tmp * Dp / (amx ? 1 : 2) : 0};
    int64_t total = 0;
    for (int i = 0; i < 10; i++) {
        if (at) *part[i] = at + total;
        total += round_up(size[i], KERN_ALIGN / 4);
    }
    return total;
}

size_t kern_attn_fwd_ws(const tensor *q, const tensor *k, const kern_attn_params *p, int threads) {
    scratch w;
    const int64_t part = scratch_layout(q, k, p, threads, NULL, &w);
    return (size_t)(attn_documents_bytes(q->dim[0], k->dim[1]) + 4 * part * threads);
}

/* The running softmax over n (even with pairs) score rows of one panel: s becomes P, max and sum move on, and factor is
 * what earlier sums are worth now. With pairs, P is left as words of two keys in the first n/2 rows. */
INLINE void softmax_step(bool pairs, int64_t n, float *s, float *max, float *sum, float *factor) {
    const int64_t L = MICRO_LANES;
    for (int v = 0; v < MICRO_LANES; v += VL) {
        float *col = s + v;
        vf before = vld(max + v), m0 = before, m1 = before, m2 = before, m3 = before;
        int64_t j = 0;
        for (; j + 4 <= n; j += 4) {
            m0 = vmax(m0, vld(col + j * L));
            m1 = vmax(m1, vld(col + (j + 1) * L));
            m2 = vmax(m2, vld(col + (j + 2) * L));
            m3 = vmax(m3, vld(col + (j + 3) * L));
        }
        for (; j < n; j++) m0 = vmax(m0, vld(col + j * L));
        m0 = vmax(vmax(m0, m1), vmax(m2, m3));
        /* A row that has seen nothing yet keeps -inf; its exponentials are taken against 0 and are 0. */
        vf shift = vselect(m0 == -INFINITY, vset(0), m0);
        vf total0 = vset(0), total1 = vset(0);
        for (j = 0; j + 2 <= n; j += 2) {
            vf p0 = vexp2_neg(vld(col + j * L) - shift), p1 = vexp2_neg(vld(col + (j + 1) * L) - shift);
            if (pairs) {
                vst(col + j / 2 * L, vpair(p0, p1)); /* over a row that was read already */
            } else {
                vst(col + j * L, p0);
                vst(col + (j + 1) * L, p1);
            }
            total0 += p0;
            total1 += p1;
        }
        if (j < n) {
            vf p0 = vexp2_neg(vld(col + j * L) - shift);
            vst(col + j * L, p0);
            total0 += p0;
        }
        vf worth = vexp2_neg(before - shift);
        vst(max + v, m0);
        vst(factor + v, worth);
        vst(sum + v, vld(sum + v) * worth + (total0 + total1));
    }
}

/* Dropout of the weights s of keys [k0, k0+n), after softmax took its sums. */
static void drop_weights(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t k0, int64_t n, float *s) {
    float keep[4][ATTN_LANES];
    for (int64_t k = k0 - k0 % 4; k < k0 + n; k += 4) {
        attn_keep(a, b, h, q0, MICRO_LANES, k / 4, keep);
        for (int64_t j = max64(k, k0); j < min64(k + 4, k0 + n); j++)
            for (int64_t i = 0; i < MICRO_LANES; i += VL) {
                float *x = s + (j - k0) * MICRO_LANES + i;
                vst(x, vld(x) * vld(keep[j - k] + i));
            }
    }
}

/* One panel against keys [lo, hi) whose tile is packed from key t0 on. */
static void panel_step(const attn *a, const scratch *w, int64_t b, int64_t h, int64_t q0, int64_t nq, int panel,
                       int64_t t0, int64_t lo, int64_t hi) {
    const int64_t L = MICRO_LANES, D = a->D, Dp = a->Dp;
    float *s = w->s, *max = w->max + panel * L, *sum = w->sum + panel * L, *ot = w->ot + panel * L * D;
    const float *qt = w->qt + panel * L * D;
    if (!a->pairs) {
        const int64_t n = hi - lo;
        micro_rows(n, MICRO_NV, D, w->k + (lo - t0) * Dp, Dp, 1, qt, L, s, L, MICRO_SET, NULL);
        attn_scores(a, b, h, q0, nq, L, lo, n, s, L, NULL);
        softmax_step(false, n, s, max, sum, w->factor);
        if (a->p->drop.p > 0) drop_weights(a, b, h, q0, lo, n, s);
        micro_rows(D, MICRO_NV, n, w->v + (lo - t0) * Dp, 1, Dp, s, L, ot, L, MICRO_RESCALE, w->factor);
        return;
    }
    /* Whole pairs, or whole steps from the front: more rows at either end, hidden. */
    const int64_t first = lo - lo % a->step, n = hi + hi % 2 - first;
    attn_product(a, n, MICRO_NV, ceil_div(D, 2), w->k + (first - t0) * Dp / 2, Dp / 2, 1, qt, L, s, L, MICRO_SCALE,
                 w->qscale);
    attn_scores(a, b, h, q0, nq, L, lo, hi - lo, s + (lo - first) * L, L, NULL);
    for (int64_t i = 0; i < L; i += VL) {
        for (int64_t j = 0; j < lo - first; j++) vst(s + j * L + i, vset(-INFINITY));
        if (first + n > hi) vst(s + (n - 1) * L + i, vset(-INFINITY));
    }
    softmax_step(true, n, s, max, sum, w->factor);
    const float *v = w->v + (first - t0) / 2 * (a->amx ? 1 : Dp);
    attn_product(a, D, MICRO_NV, n / 2, v, a->amx ? BC / 2 : 1, a->amx ? 1 : Dp, s, L, ot, L, MICRO_RESCALE, w->factor);
}

/* Q^T of one panel. */
static void pack_queries(const attn *a, const scratch *w, const void *q, int64_t stride, int64_t n, float *qt) {
    if (!a->pairs) {
        pack_transposed(a->bf, q, stride, n, a->D, a->qscale, qt);
        return;
    }
    attn_pack_pairs(q, stride, n, a->D, a->Dp, w->tmp);
    pack_transposed_words(w->tmp, a->Dp / 2, n, ceil_div(a->D, 2), qt);
}

/* K and V of a tile of n keys. */
static void pack_keys(const attn *a, const scratch *w, const void *k, int64_t ks, const void *v, int64_t vs,
                      int64_t n) {
    if (!a->pairs) {
        attn_pack_rows(a->bf, k, ks, n, a->D, a->Dp, w->k);
        attn_pack_rows(a->bf, v, vs, n, a->D, a->Dp, w->v);
        return;
    }
    attn_pack_pairs(k, ks, n, a->D, a->Dp, w->k);
    if (n % 2) memset(w->k + n * a->Dp / 2, 0, 2 * (size_t)a->Dp);
    attn_pack_pairs(v, vs, n, a->D, a->Dp, w->tmp);
    if (a->amx) {
        float *rows = w->tmp + BC * a->Dp / 2; /* pairs left its second half free */
        attn_pair_rows(w->tmp, n, a->Dp, rows);
        attn_transpose_words(rows, ceil_div(n, 2), a->D, a->Dp, w->v, BC / 2);
    } else {
        attn_pair_rows(w->tmp, n, a->Dp, w->v);
    }
}

static void block(const attn *a, const scratch *w, const tensor *q, const tensor *k, const tensor *v, const tensor *o,
                  const tensor *lse, int64_t b, int64_t h, int64_t q0, int64_t nq) {
    const int64_t L = MICRO_LANES, hkv = h / (a->H / a->Hkv);
    const int panels = (int)ceil_div(nq, L);
    int64_t lo[PANELS], hi[PANELS], from = a->Sk, to = 0;
    for (int i = 0; i < panels; i++) {
        int64_t n = min64(L, nq - i * L);
        lo[i] = 0, hi[i] = a->Sk;
        attn_range(a, b, h, q0 + i * L, n, &lo[i], &hi[i]);
        if (lo[i] < hi[i]) from = min64(from, lo[i]), to = max64(to, hi[i]);
        pack_queries(a, w, attn_at(q, b, q0 + i * L, h), q->stride[1], n, w->qt + i * L * a->D);
    }
    memset(w->ot, 0, sizeof(float) * (size_t)(panels * L * a->D));
    for (int64_t i = 0; i < panels * L; i++) w->max[i] = -INFINITY, w->sum[i] = 0;
    for (int64_t i = 0; i < L; i++) w->qscale[i] = a->qscale;
    /* Tiles start at multiples of BC, whatever the first visible key, so that a row's sums do not depend on others. */
    for (int64_t t0 = from - from % BC; t0 < to; t0 += BC) {
        int64_t k0 = max64(t0, from - from % a->step), k1 = min64(t0 + BC, to);
        int64_t plo[PANELS], phi[PANELS];
        bool any = false;
        for (int i = 0; i < panels; i++) {
            plo[i] = max64(k0, lo[i]), phi[i] = min64(k1, hi[i]);
            if (plo[i] < phi[i] && (a->p->doc_q || a->p->formula))
                attn_range(a, b, h, q0 + i * L, min64(L, nq - i * L), &plo[i], &phi[i]);
            any |= plo[i] < phi[i];
        }
        if (!any) continue;
        pack_keys(a, w, attn_at(k, b, k0, hkv), k->stride[1], attn_at(v, b, k0, hkv), v->stride[1], k1 - k0);
        for (int i = 0; i < panels; i++)
            if (plo[i] < phi[i]) panel_step(a, w, b, h, q0 + i * L, min64(L, nq - i * L), i, k0, plo[i], phi[i]);
    }
    for (int i = 0; i < panels; i++) {
        int64_t n = min64(L, nq - i * L);
        for (int64_t j = 0; j < L; j++) {
            float sum = w->sum[i * L + j];
            w->factor[j] = sum == 0 ? 0 : 1 / sum;
            if (j < n)
                *attn_lse_at(lse, b, h, q0 + i * L + j) =
                    sum == 0 ? -INFINITY : (w->max[i * L + j] + log2f(sum)) * ATTN_LN2;
        }
        attn_unpack_t(a->bf, w->ot + i * L * a->D, w->factor, n, a->D, false, attn_at(o, b, q0 + i * L, h),
                      o->stride[1]);
    }
}

void kern_attn_fwd(const tensor *q, const tensor *k, const tensor *v, const tensor *o, const tensor *lse,
                   const kern_attn_params *p, void *ws, size_t ws_bytes) {
    attn a;
    attn_init(&a, q, k, p);
    attn_check(&a, v, a.Sk, a.Hkv, q->type);
    attn_check(&a, o, a.Sq, a.H, q->type);
    ASSERT(lse->rank == 3 && lse->type == DT_F32 && lse->dim[0] == a.B && lse->dim[1] == a.H && lse->dim[2] == a.Sq);
    const int threads = omp_get_max_threads();
    ASSERT(ws_bytes >= kern_attn_fwd_ws(q, k, p, threads));
    const int64_t bq = queries_of(q, threads);
    const int64_t blocks = ceil_div(a.Sq, bq), items = blocks * a.B * a.H;
    if (!items) return;
    scratch unused;
    const int64_t part = scratch_layout(q, k, p, threads, NULL, &unused);
    float *scratches = (float *)((char *)ws + attn_documents_bytes(a.B, a.Sk));
    attn_documents(&a, ws);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; item++) {
        scratch w = {0};
        scratch_layout(q, k, p, threads, scratches + part * omp_get_thread_num(), &w);
        /* Last blocks first: under a causal mask they are the longest. */
        int64_t i = blocks - 1 - item / (a.B * a.H), bh = item % (a.B * a.H);
        if (a.amx) amx_begin();
        block(&a, &w, q, k, v, o, lse, bh / a.H, bh % a.H, i * bq, min64(bq, a.Sq - i * bq));
        if (a.amx) amx_end();
    }
}
