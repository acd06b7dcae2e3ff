/* attn_bwd.c - gradients of attention by blocks, scores recomputed from the log-sum-exp.
 *
 * With P = exp(S - lse), dP = dO V^T and delta = rowsum(dO * O) (FlashAttention-2, Dao 2023):
 *   dS = P * (dP - delta),  dV = P^T dO,  dK = scale dS^T Q,  dQ = scale dS K.
 * A thread owns a block of keys of one kv head: its dK and dV stay in its workspace while all query heads of the group
 * and all their tiles pass by, in ascending order. dQ gets a term from every key block. To add these in one fixed order
 * without computing the scores twice and without a copy of dQ per thread, key block j adds to a query tile only after
 * blocks 0..j-1 have passed it: the threads run through a head one behind the other, like a wave. Key blocks are handed
 * out in ascending order, so the block waited for is always running or done. Results do not depend on thread count.
 *
 * For bf16, dQ is summed in f32 in the workspace, for a few kv heads at a time, and rounded once.
 */
#include "device/cpu/attn.h"

#include <sched.h>
#include <stdatomic.h>

enum {
    WAVE_BYTES = 16 << 20, /* f32 sums of dQ, for bf16; what is always allowed */
    BQ = 64,               /* queries of a tile */
    KB_MAX = 256,          /* keys of a block; less where D is large, see key_block */
    KB_WORK = 24576,       /* elements of one of K, V, dK, dV that keep a thread's working set inside 1 MiB of cache */
};

static int64_t key_block(int64_t D) { return max64(64, min64(KB_MAX, KB_WORK / D / 32 * 32)); }

/* One thread's workspace, in floats. */
typedef struct scratch {
    float *k, *v, *dk, *dv, *s, *ds, *cap, *qt, *dot, *q, *dout, *dqt, *lse, *delta, *qscale;
    float *k2, *p16, *ds16, *ds2, *q2, *dout2; /* words of pairs, see tile_pairs */
} scratch;

/* What a scratch has room for: the queries, keys, type and scores there are, so that a plan counts what is touched. */
typedef struct room {
    int64_t D, Dp;
    int64_t keys, queries; /* of a block, of a tile */
    int64_t seen;          /* keys of a block that a tile of queries sees, at most: few under a window */
    bool softcap;
    bool rows, pairs; /* operands as rows of f32, as words of pairs; both where dropout may be off or on */
} room;

static room room_for(const tensor *q, const tensor *k, const kern_attn_params *p) {
    const int64_t D = q->dim[3], S = max64(q->dim[1], 1);
    room r = {.D = D, .Dp = round_up(D, VL), .softcap = p->softcap > 0};
    r.keys = min64(key_block(D), round_up(max64(k->dim[1], 1), 64));
    r.queries = min64(BQ, round_up(S, MICRO_LANES));
    r.pairs = VEC_PAIRS && q->type == DT_BF16;
    const int64_t step = r.pairs && amx_usable() ? 2 * AMX_PAIRS : 2; /* attn.step; one more may complete a pair */
    r.seen = p->causal && p->window > 0 ? min64(r.keys, round_up(min64(S, BQ) - 1 + p->window, 2) + step) : r.keys;
    r.rows = !r.pairs || p->drop.p > 0;
    return r;
}

static int64_t scratch_layout(const room *r, float *base, scratch *w) {
    const int64_t KB = r->keys, SB = r->seen, Q = r->queries, D = r->D, Dp = r->Dp, pairs = r->pairs;
    const int64_t half = r->rows ? 1 : 2; /* a row of pairs takes half as many words */
    float **part[] = {&w->k,      &w->v,   &w->dk,  &w->dv,   &w->s,   &w->ds,  &w->cap,
                      &w->qt,     &w->dot, &w->q,   &w->dout, &w->dqt, &w->lse, &w->delta,
                      &w->qscale, &w->k2,  &w->p16, &w->ds16, &w->ds2, &w->q2,  &w->dout2};
    int64_t size[] = {KB * Dp / half,
                      KB * Dp / half,
                      KB * Dp,
                      KB * Dp,
                      SB * BQ,
                      SB * BQ,
                      r->softcap ? SB * BQ : 0,
                      Q * D,
                      Q * D,
                      Q * Dp / half,
                      Q * Dp / half,
                      Q * D,
                      Q,
                      Q,
                      MICRO_LANES,
                      pairs * KB * Dp / 2,
                      pairs * SB * BQ / 2,
                      pairs * SB * BQ / 2,
                      pairs * SB * BQ / 2,
                      pairs * Q * Dp / 2,
                      pairs * Q * Dp / 2};
    int64_t total = 0;
    for (int i = 0; i < 21; i++) {
        if (base) *part[i] = base + total;
        total += round_up(size[i], KERN_ALIGN / 4);
    }
    return total;
}

/* How far a key block has come in its head group's sequence of query tiles; a cache line each. */
typedef struct passed {
    _Alignas(KERN_ALIGN) atomic_int_least64_t step;
} passed;

/* The workspace: shared parts first, then one scratch a thread. */
typedef struct plan {
    int64_t blocks, tiles, group; /* key blocks a head, query tiles a head, query heads a kv head */
    int64_t units, wave;          /* kv heads in the batch; how many of them are in work at once */
    int64_t off_docs, off_passed, off_delta, off_dq, off_threads, part; /* bytes */
    room room;
    size_t bytes;
} plan;

static plan make_plan(const tensor *q, const tensor *k, const kern_attn_params *p, int threads) {
    const int64_t B = q->dim[0], Sq = q->dim[1], H = q->dim[2], D = q->dim[3], Sk = k->dim[1], Hkv = k->dim[2];
    plan x = {.blocks = ceil_div(Sk, key_block(D)), .tiles = ceil_div(Sq, BQ), .group = H / Hkv, .units = B * Hkv};
    const bool bf = q->type == DT_BF16;
    /* Of f32 sums for bf16: enough kv heads at once that threads seldom meet at a wave's end. */
    const int64_t head = max64(1, 4 * x.group * Sq * D);
    x.wave = max64(ceil_div(8 * threads, max64(x.blocks, 1)), WAVE_BYTES / head);
    x.wave = bf ? min64(x.units, x.wave) : x.units;
    scratch w;
    x.room = room_for(q, k, p);
    x.part = 4 * scratch_layout(&x.room, NULL, &w);
    x.off_docs = KERN_ALIGN; /* the first line holds the counter of blocks handed out */
    x.off_passed = x.off_docs + attn_documents_bytes(B, Sk);
    x.off_delta = x.off_passed + (int64_t)sizeof(passed) * x.units * x.blocks;
    x.off_dq = x.off_delta + round_up(4 * B * H * Sq, KERN_ALIGN);
    x.off_threads = x.off_dq + (bf ? round_up(4 * x.wave * x.group * Sq * D, KERN_ALIGN) : 0);
    x.bytes = (size_t)(x.off_threads + x.part * threads);
    return x;
}

size_t kern_attn_bwd_ws(const tensor *q, const tensor *k, const kern_attn_params *p, int threads) {
    return make_plan(q, k, p, threads).bytes;
}

typedef struct job {
    attn a;
    plan x;
    const tensor *q, *k, *v, *o, *lse, *dout, *dq, *dk, *dv;
    char *ws;
} job;

/* Where query row s of head h accumulates its dQ, and the stride of rows. */
static float *dq_row(const job *t, int64_t unit, int64_t b, int64_t h, int64_t s, int64_t *stride) {
    if (!t->a.bf) {
        *stride = t->dq->stride[1];
        return attn_at(t->dq, b, s, h);
    }
    *stride = t->a.D;
    int64_t slot = unit % t->x.wave * t->x.group + h % t->x.group;
    return (float *)(t->ws + t->x.off_dq) + (slot * t->a.Sq + s) * t->a.D;
}

/* delta[s] = <dO[s], O[s]> for rows [s0, s0+n) of one head. */
static void row_products(const job *t, int64_t b, int64_t h, int64_t s0, int64_t n, float *delta) {
    for (int64_t s = s0; s < s0 + n; s++) {
        const void *x = attn_at(t->o, b, s, h), *y = attn_at(t->dout, b, s, h);
        vf sum = vset(0);
        int64_t d = 0;
        for (; d + VL <= t->a.D; d += VL) sum += vget(t->a.bf, x, d) * vget(t->a.bf, y, d);
        if (d < t->a.D) sum += vget_n(t->a.bf, x, d, t->a.D - d, 0) * vget_n(t->a.bf, y, d, t->a.D - d, 0);
        delta[s - s0] = vsum(sum);
    }
}

/* Waits until key blocks [*done, j) of this kv head are past `step`; *done is the caller's count of finished ones. */
static void wait_turn(passed *block, int64_t j, int64_t step, int64_t *done) {
    for (int64_t i = *done; i < j; i++) {
        int spins = 0;
        int64_t at;
        while ((at = atomic_load_explicit(&block[i].step, memory_order_acquire)) <= step)
            if (++spins > 200) sched_yield(), spins = 0;
        if (at == INT64_MAX && i == *done) ++*done;
    }
}

/* c (rows, Dp) += a^T-like product over n queries: c[r] += sum_i a[r*BQ + i] * b[i*Dp ..]. */
static void add_rows(const attn *a, int64_t rows, int64_t n, const float *p, const float *b, float *c) {
    for (int64_t d = 0; d < a->Dp; d += MICRO_LANES)
        micro_rows(rows, a->Dp - d >= MICRO_LANES ? 2 : 1, n, p, BQ, 1, b + d, a->Dp, c + d, a->Dp, MICRO_ADD, NULL);
}

/* The tile's lse in units of log2 and delta; lanes that are no rows, and rows that see nothing, get exp(s - inf) = 0.
 */
static void load_rows(const job *t, const scratch *w, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t lanes) {
    const float *delta = (float *)(t->ws + t->x.off_delta) + (b * t->a.H + h) * t->a.Sq + q0;
    for (int64_t i = 0; i < lanes; i++) {
        float lse = i < nq ? *attn_lse_at(t->lse, b, h, q0 + i) : -INFINITY;
        w->lse[i] = lse == -INFINITY ? INFINITY : lse * ATTN_LOG2E;
        w->delta[i] = i < nq ? delta[i] : 0;
    }
}

/* With dropout m = 0 or 1/(1-p) of each weight, dV takes m P and dS = P (m dP - delta): s becomes m P, ds becomes dS.
 */
static void dropped_weights(const attn *a, const scratch *w, int64_t b, int64_t h, int64_t q0, int64_t lanes,
                            int64_t k0, int64_t n, const float *cap) {
    float keep[4][ATTN_LANES];
    for (int64_t k = k0 - k0 % 4; k < k0 + n; k += 4) {
        attn_keep(a, b, h, q0, lanes, k / 4, keep);
        for (int64_t j = max64(k, k0); j < min64(k + 4, k0 + n); j++)
            for (int64_t i = 0; i < lanes; i += VL) {
                const int64_t x = (j - k0) * BQ + i;
                vf m = vld(keep[j - k] + i), p = vexp2(vld(w->s + x) - vld(w->lse + i));
                vf ds = p * (vld(w->ds + x) * m - vld(w->delta + i));
                if (cap) ds *= vld(cap + x);
                vst(w->s + x, p * m);
                vst(w->ds + x, ds);
            }
    }
}

/* One query tile of head h against keys [lo, hi) of the block from key k0 on: adds to dK and dV, leaves dS in w->ds. */
static void tile(const job *t, const scratch *w, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0, int64_t lo,
                 int64_t hi) {
    const attn *a = &t->a;
    const int64_t L = MICRO_LANES, n = hi - lo, panels = ceil_div(nq, L), lanes = panels * L;
    const float *k = w->k + (lo - k0) * a->Dp, *v = w->v + (lo - k0) * a->Dp;
    attn_pack_rows(a->bf, attn_at(t->q, b, q0, h), t->q->stride[1], nq, a->D, a->Dp, w->q);
    attn_pack_rows(a->bf, attn_at(t->dout, b, q0, h), t->dout->stride[1], nq, a->D, a->Dp, w->dout);
    load_rows(t, w, b, h, q0, nq, lanes);
    for (int64_t i = 0; i < panels; i++) {
        int64_t m = min64(L, nq - i * L);
        float *qt = w->qt + i * L * a->D, *dot = w->dot + i * L * a->D;
        pack_transposed(false, w->q + i * L * a->Dp, a->Dp, m, a->D, a->qscale, qt);
        pack_transposed(false, w->dout + i * L * a->Dp, a->Dp, m, a->D, 1, dot);
        micro_rows(n, MICRO_NV, a->D, k, a->Dp, 1, qt, L, w->s + i * L, BQ, MICRO_SET, NULL);
        micro_rows(n, MICRO_NV, a->D, v, a->Dp, 1, dot, L, w->ds + i * L, BQ, MICRO_SET, NULL);
    }
    float *cap = a->p->softcap > 0 ? w->cap : NULL;
    attn_scores(a, b, h, q0, nq, lanes, lo, n, w->s, BQ, cap);
    if (a->p->drop.p > 0) dropped_weights(a, w, b, h, q0, lanes, lo, n, cap);
    for (int64_t i = 0; i < lanes && a->p->drop.p == 0; i += VL) {
        vf lse = vld(w->lse + i), dl = vld(w->delta + i);
        for (int64_t j = 0; j < n; j++) {
            vf p = vexp2(vld(w->s + j * BQ + i) - lse);
            vf ds = p * (vld(w->ds + j * BQ + i) - dl);
            if (cap) ds *= vld(cap + j * BQ + i);
            vst(w->s + j * BQ + i, p);
            vst(w->ds + j * BQ + i, ds);
        }
    }
    add_rows(a, n, nq, w->s, w->dout, w->dv + (lo - k0) * a->Dp);
    add_rows(a, n, nq, w->ds, w->q, w->dk + (lo - k0) * a->Dp);
}

/* As add_rows, for words of pairs of queries. */
static void add_rows_pairs(const attn *a, int64_t rows, int64_t n, const float *p, const float *b, float *c) {
    for (int64_t d = 0; d < a->Dp; d += MICRO_LANES)
        attn_product(a, rows, a->Dp - d >= MICRO_LANES ? 2 : 1, ceil_div(n, 2), p, BQ / 2, 1, b + d, a->Dp, c + d,
                     a->Dp, MICRO_ADD, NULL);
}

/* The same in bf16 products: S and dP pair dimensions, dV and dK pair queries (P and dS as rows p16, ds16; Q and dO
 * across rows q2, dout2), dQ pairs keys (dS across rows, left in w->ds2). [lo, hi) is of whole steps and pairs, of
 * which keys outside of [seen0, seen1) are hidden. */
static void tile_pairs(const job *t, const scratch *w, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0,
                       int64_t lo, int64_t hi, int64_t seen0, int64_t seen1) {
    const attn *a = &t->a;
    const int64_t L = MICRO_LANES, n = hi - lo, panels = ceil_div(nq, L), lanes = panels * L, D2 = ceil_div(a->D, 2);
    const int64_t row = a->Dp / 2;
    const float *k = w->k + (lo - k0) * row, *v = w->v + (lo - k0) * row;
    attn_pack_pairs(attn_at(t->q, b, q0, h), t->q->stride[1], nq, a->D, a->Dp, w->q);
    attn_pack_pairs(attn_at(t->dout, b, q0, h), t->dout->stride[1], nq, a->D, a->Dp, w->dout);
    attn_pair_rows(w->q, nq, a->Dp, w->q2);
    attn_pair_rows(w->dout, nq, a->Dp, w->dout2);
    load_rows(t, w, b, h, q0, nq, lanes);
    for (int64_t i = 0; i < panels; i++) {
        int64_t m = min64(L, nq - i * L);
        float *qt = w->qt + i * L * a->D, *dot = w->dot + i * L * a->D;
        pack_transposed_words(w->q + i * L * row, row, m, D2, qt);
        pack_transposed_words(w->dout + i * L * row, row, m, D2, dot);
        attn_product(a, n, MICRO_NV, D2, k, row, 1, qt, L, w->s + i * L, BQ, MICRO_SCALE, w->qscale);
        attn_product(a, n, MICRO_NV, D2, v, row, 1, dot, L, w->ds + i * L, BQ, MICRO_SET, NULL);
    }
    float *cap = a->p->softcap > 0 ? w->cap : NULL;
    attn_scores(a, b, h, q0, nq, lanes, seen0, seen1 - seen0, w->s + (seen0 - lo) * BQ, BQ,
                cap ? cap + (seen0 - lo) * BQ : NULL);
    for (int64_t i = 0; i < lanes; i += VL) {
        for (int64_t j = 0; j < seen0 - lo; j++) {
            vst(w->s + j * BQ + i, vset(-INFINITY));
            if (cap) vst(cap + j * BQ + i, vset(0));
        }
        if (seen1 < hi) vst(w->s + (n - 1) * BQ + i, vset(-INFINITY));
        if (cap && seen1 < hi) vst(cap + (n - 1) * BQ + i, vset(0));
    }
    uint16_t *p16 = (uint16_t *)w->p16, *ds16 = (uint16_t *)w->ds16;
    for (int64_t i = 0; i < lanes; i += VL) {
        vf lse = vld(w->lse + i), dl = vld(w->delta + i);
        for (int64_t j = 0; j < n; j += 2) {
            const int64_t x = j * BQ + i, y = x + BQ;
            vf px = vexp2(vld(w->s + x) - lse), py = vexp2(vld(w->s + y) - lse);
            vf dx = px * (vld(w->ds + x) - dl), dy = py * (vld(w->ds + y) - dl);
            if (cap) dx *= vld(cap + x), dy *= vld(cap + y);
            vst_bf16(p16 + x, px);
            vst_bf16(p16 + y, py);
            vst_bf16(ds16 + x, dx);
            vst_bf16(ds16 + y, dy);
            vst(w->ds2 + j / 2 * BQ + i, vpair(dx, dy));
        }
    }
    add_rows_pairs(a, n, nq, w->p16, w->dout2, w->dv + (lo - k0) * a->Dp);
    add_rows_pairs(a, n, nq, w->ds16, w->q2, w->dk + (lo - k0) * a->Dp);
}

/* x (n, D) = src (n, Dp) * factor. */
static void store_rows(const attn *a, const tensor *x, int64_t b, int64_t s0, int64_t n, int64_t h, const float *src,
                       float factor) {
    for (int64_t s = 0; s < n; s++) {
        void *row = attn_at(x, b, s0 + s, h);
        int64_t d = 0;
        for (; d + VL <= a->D; d += VL) vput(a->bf, row, d, vld(src + s * a->Dp + d) * factor);
        if (d < a->D) vput_n(a->bf, row, d, a->D - d, vld(src + s * a->Dp + d) * factor);
    }
}

/* The K and V of a block. */
static void pack_keys(const job *t, const scratch *w, int64_t b, int64_t hkv, int64_t k0, int64_t n) {
    const attn *a = &t->a;
    const void *k = attn_at(t->k, b, k0, hkv), *v = attn_at(t->v, b, k0, hkv);
    const int64_t ks = t->k->stride[1], vs = t->v->stride[1];
    if (!a->pairs) {
        attn_pack_rows(a->bf, k, ks, n, a->D, a->Dp, w->k);
        attn_pack_rows(a->bf, v, vs, n, a->D, a->Dp, w->v);
        return;
    }
    attn_pack_pairs(k, ks, n, a->D, a->Dp, w->k);
    attn_pack_pairs(v, vs, n, a->D, a->Dp, w->v);
    if (a->amx) { /* by way of dk, which holds nothing yet */
        attn_pair_rows(w->k, n, a->Dp, w->dk);
        attn_transpose_words(w->dk, ceil_div(n, 2), a->D, a->Dp, w->k2, t->x.room.keys / 2);
    } else {
        attn_pair_rows(w->k, n, a->Dp, w->k2);
    }
    if (n % 2) { /* the key that completes the last pair */
        memset(w->k + n * a->Dp / 2, 0, 2 * (size_t)a->Dp);
        memset(w->v + n * a->Dp / 2, 0, 2 * (size_t)a->Dp);
    }
}

/* dQ^T of one panel (lanes from p on) from the dS that tile() left, into its part of w->dqt. */
static void query_gradient(const job *t, const scratch *w, int64_t p, int64_t k0, int64_t lo, int64_t hi) {
    const attn *a = &t->a;
    float *dqt = w->dqt + p * a->D;
    if (a->amx)
        amx_rows_pairs(a->D, MICRO_NV, (hi - lo) / 2, w->k2 + (lo - k0) / 2, t->x.room.keys / 2, w->ds2 + p, BQ, dqt,
                       MICRO_LANES, MICRO_SET, NULL);
    else if (a->pairs)
        micro_rows_pairs(a->D, MICRO_NV, (hi - lo) / 2, w->k2 + (lo - k0) / 2 * a->Dp, 1, a->Dp, w->ds2 + p, BQ, dqt,
                         MICRO_LANES, MICRO_SET, NULL);
    else
        micro_rows(a->D, MICRO_NV, hi - lo, w->k + (lo - k0) * a->Dp, 1, a->Dp, w->ds + p, BQ, dqt, MICRO_LANES,
                   MICRO_SET, NULL);
}

static void block(const job *t, const scratch *w, int64_t unit, int64_t j) {
    const attn *a = &t->a;
    const plan *x = &t->x;
    const int64_t KB = key_block(a->D), b = unit / a->Hkv, hkv = unit % a->Hkv, k0 = j * KB;
    const int64_t nk = min64(KB, a->Sk - k0), L = MICRO_LANES;
    passed *line = (passed *)(t->ws + x->off_passed) + unit * x->blocks;
    int64_t done = 0;
    float factor[MICRO_LANES];
    for (int i = 0; i < MICRO_LANES; i++) factor[i] = a->p->scale, w->qscale[i] = a->qscale;
    pack_keys(t, w, b, hkv, k0, nk);
    memset(w->dk, 0, sizeof(float) * (size_t)(x->room.keys * a->Dp));
    memset(w->dv, 0, sizeof(float) * (size_t)(x->room.keys * a->Dp));
    for (int64_t g = 0; g < x->group; g++)
        for (int64_t i = 0; i < x->tiles; i++) {
            const int64_t h = hkv * x->group + g, q0 = i * BQ, nq = min64(BQ, a->Sq - q0), step = g * x->tiles + i;
            int64_t lo = k0, hi = k0 + nk;
            attn_range(a, b, h, q0, nq, &lo, &hi);
            if (lo < hi) {
                if (a->pairs) {
                    const int64_t seen0 = lo, seen1 = hi;
                    lo -= (lo - k0) % a->step, hi += (hi - k0) % 2;
                    tile_pairs(t, w, b, h, q0, nq, k0, lo, hi, seen0, seen1);
                } else {
                    tile(t, w, b, h, q0, nq, k0, lo, hi);
                }
                for (int64_t p = 0; p < nq; p += L) query_gradient(t, w, p, k0, lo, hi);
                wait_turn(line, j, step, &done);
                for (int64_t p = 0; p < nq; p += L) {
                    int64_t stride;
                    float *dq = dq_row(t, unit, b, h, q0 + p, &stride);
                    attn_unpack_t(false, w->dqt + p * a->D, factor, min64(L, nq - p), a->D, true, dq, stride);
                }
            }
            atomic_store_explicit(&line[j].step, step + 1, memory_order_release);
        }
    atomic_store_explicit(&line[j].step, INT64_MAX, memory_order_release);
    store_rows(a, t->dk, b, k0, nk, hkv, w->dk, a->p->scale);
    store_rows(a, t->dv, b, k0, nk, hkv, w->dv, 1);
}

/* Query tile i of head h of the unit: dq = 0 before the key blocks, or the rounded sums after them (bf16). */
static void dq_tile(const job *t, int64_t unit, int64_t g, int64_t i, bool finish) {
    const attn *a = &t->a;
    const int64_t b = unit / a->Hkv, h = unit % a->Hkv * t->x.group + g;
    for (int64_t s = i * BQ; s < min64(a->Sq, i * BQ + BQ); s++) {
        int64_t stride;
        float *sum = dq_row(t, unit, b, h, s, &stride);
        if (!finish) {
            memset(sum, 0, sizeof(float) * (size_t)a->D);
        } else if (a->bf) {
            uint16_t *row = attn_at(t->dq, b, s, h);
            for (int64_t d = 0; d < a->D; d++) row[d] = bf16_put(sum[d]);
        }
    }
}

void kern_attn_bwd(const tensor *q, const tensor *k, const tensor *v, const tensor *o, const tensor *lse,
                   const tensor *dout, const tensor *dq, const tensor *dk, const tensor *dv, const kern_attn_params *p,
                   void *ws, size_t ws_bytes) {
    job t = {.q = q, .k = k, .v = v, .o = o, .lse = lse, .dout = dout, .dq = dq, .dk = dk, .dv = dv, .ws = ws};
    attn_init(&t.a, q, k, p);
    const attn *a = &t.a;
    attn_check(a, v, a->Sk, a->Hkv, q->type), attn_check(a, dk, a->Sk, a->Hkv, q->type);
    attn_check(a, dv, a->Sk, a->Hkv, q->type), attn_check(a, o, a->Sq, a->H, q->type);
    attn_check(a, dout, a->Sq, a->H, q->type), attn_check(a, dq, a->Sq, a->H, q->type);
    ASSERT(lse->rank == 3 && lse->type == DT_F32 && lse->dim[0] == a->B && lse->dim[1] == a->H && lse->dim[2] == a->Sq);
    const int threads = omp_get_max_threads();
    t.x = make_plan(q, k, p, threads);
    const plan *x = &t.x;
    ASSERT(ws_bytes >= x->bytes);
    attn_documents(&t.a, t.ws + x->off_docs);
    atomic_int_least64_t *next = ws;
    passed *line = (passed *)(t.ws + x->off_passed);
    float *delta = (float *)(t.ws + x->off_delta);
    const int64_t rows = x->units * x->group * x->tiles;
#pragma omp parallel num_threads(threads)
    {
        scratch w = {0};
        scratch_layout(&x->room, (float *)(t.ws + x->off_threads + x->part * omp_get_thread_num()), &w);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) {
            int64_t bh = i / x->tiles, s = i % x->tiles * BQ;
            row_products(&t, bh / a->H, bh % a->H, s, min64(BQ, a->Sq - s), delta + bh * a->Sq + s);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < x->units * x->blocks; i++) atomic_init(&line[i].step, 0);
        for (int64_t u0 = 0; u0 < x->units; u0 += x->wave) {
            const int64_t nu = min64(x->wave, x->units - u0), tiles = nu * x->group * x->tiles;
#pragma omp single
            atomic_init(next, 0);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tiles; i++)
                dq_tile(&t, u0 + i / (x->group * x->tiles), i / x->tiles % x->group, i % x->tiles, false);
            for (int64_t i; (i = atomic_fetch_add(next, 1)) < nu * x->blocks;) {
                if (a->amx) amx_begin();
                block(&t, &w, u0 + i / x->blocks, i % x->blocks);
                if (a->amx) amx_end();
            }
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tiles; i++)
                dq_tile(&t, u0 + i / (x->group * x->tiles), i / x->tiles % x->group, i % x->tiles, true);
        }
    }
}
