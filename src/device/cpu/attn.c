/* attn.c - the parts of attention that forward and backward share; see attn.h. */
#include "device/cpu/attn.h"

#include "device/philox.h"

void attn_check(const attn *a, const tensor *t, int64_t s, int64_t heads, dtype type) {
    ASSERT(t->rank == 4 && t->type == type);
    ASSERT(t->dim[0] == a->B && t->dim[1] == s && t->dim[2] == heads && t->dim[3] == a->D);
    ASSERT(t->stride[3] == 1 || a->D == 1);
}

void attn_init(attn *a, const tensor *q, const tensor *k, const kern_attn_params *p) {
    ASSERT(q->rank == 4 && k->rank == 4);
    ASSERT(q->type == DT_F32 || q->type == DT_BF16);
    *a = (attn){.p = p,
                .B = q->dim[0],
                .H = q->dim[2],
                .Hkv = k->dim[2],
                .Sq = q->dim[1],
                .Sk = k->dim[1],
                .D = q->dim[3],
                .Dp = round_up(q->dim[3], VL),
                .bf = q->type == DT_BF16};
    ASSERT(a->D > 0 && a->Hkv > 0 && a->H % a->Hkv == 0);
    attn_check(a, q, a->Sq, a->H, q->type);
    attn_check(a, k, a->Sk, a->Hkv, q->type);
    ASSERT((p->doc_q != NULL) == (p->doc_k != NULL));
    a->kv = max64(0, min64(a->Sk, p->kv_valid));
    a->natural = p->softcap > 0 || p->bias;
    a->pairs = a->bf && VEC_PAIRS && p->drop.p == 0;
    a->amx = a->pairs && amx_usable();
    a->step = a->amx ? 2 * AMX_PAIRS : 2;
    a->qscale = a->natural ? p->scale : p->scale * ATTN_LOG2E;
}

/* ---- visibility -------------------------------------------------------------------------------- */

enum { DOC_BLOCK = 16 }; /* keys that are trimmed together */

static void doc_minmax(const int64_t *doc, int64_t n, int64_t *lo, int64_t *hi) {
    *lo = *hi = doc[0];
    for (int64_t i = 1; i < n; i++) {
        *lo = min64(*lo, doc[i]);
        *hi = max64(*hi, doc[i]);
    }
}

static bool doc_apart(const int64_t *doc, int64_t n, int64_t lo, int64_t hi) {
    int64_t l, h;
    doc_minmax(doc, n, &l, &h);
    return h < lo || l > hi;
}

int64_t attn_documents_bytes(int64_t B, int64_t Sk) {
    return round_up(16 * B * ceil_div(Sk, ATTN_DOC_RUN), KERN_ALIGN);
}

void attn_documents(attn *a, void *mem) {
    if (!a->p->doc_k) return;
    const int64_t runs = ceil_div(a->Sk, ATTN_DOC_RUN);
    int64_t *least = mem, *greatest = least + a->B * runs;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < a->B * runs; i++) {
        int64_t b = i / runs, k = i % runs * ATTN_DOC_RUN;
        doc_minmax(a->p->doc_k + b * a->p->doc_k_bs + k, min64(ATTN_DOC_RUN, a->Sk - k), &least[i], &greatest[i]);
    }
    a->doc_min = least;
    a->doc_max = greatest;
}

/* Least and greatest number of each pair's vectors over n rows from r0 on. */
static void vector_ranges(const kern_attn_vector *v, int pairs, int64_t b, int64_t h, int64_t r0, int64_t n,
                          int64_t *least, int64_t *greatest) {
    for (int p = 0; p < pairs; p++) {
        const int64_t *x = v[p].at + b * v[p].bs + h * v[p].hs + r0 * v[p].s;
        least[p] = greatest[p] = x[0];
        for (int64_t i = 1; v[p].s && i < n; i++) {
            least[p] = min64(least[p], x[i * v[p].s]);
            greatest[p] = max64(greatest[p], x[i * v[p].s]);
        }
    }
}

/* Cuts off the keys at both ends for which the formula is false for all of the queries. */
static void formula_range(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t *lo, int64_t *hi) {
    const kern_attn_formula *f = a->p->formula;
    int64_t q_min[FORMULA_PAIRS], q_max[FORMULA_PAIRS], k_min[FORMULA_PAIRS], k_max[FORMULA_PAIRS];
    vector_ranges(f->q, f->pairs, b, h, q0, nq, q_min, q_max);
    for (int end = 0; end < 2; end++)
        while (*lo < *hi) {
            int64_t cut = 0;
            for (int size = ATTN_DOC_RUN; !cut && size >= DOC_BLOCK; size /= ATTN_DOC_RUN / DOC_BLOCK) {
                int64_t n = min64(end ? (*hi - 1) % size + 1 : size - *lo % size, *hi - *lo);
                vector_ranges(f->k, f->pairs, b, h, end ? *hi - n : *lo, n, k_min, k_max);
                if (ir_formula_range(&f->code, q_min, q_max, k_min, k_max) == 0) cut = n;
            }
            if (!cut) break;
            if (end)
                *hi -= cut;
            else
                *lo += cut;
        }
}

/* Hides what the formula hides; tiles that are wholly visible or hidden are not looked at element by element. */
static void formula_scores(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0, int64_t nk,
                           float *s, int64_t ld) {
    const kern_attn_formula *f = a->p->formula;
    int64_t q_min[FORMULA_PAIRS], q_max[FORMULA_PAIRS], k_min[FORMULA_PAIRS], k_max[FORMULA_PAIRS];
    vector_ranges(f->q, f->pairs, b, h, q0, nq, q_min, q_max);
    vector_ranges(f->k, f->pairs, b, h, k0, nk, k_min, k_max);
    int known = ir_formula_range(&f->code, q_min, q_max, k_min, k_max);
    if (known == 1) return;
    ASSERT(nq <= ATTN_LANES);
    int64_t q[FORMULA_PAIRS][ATTN_LANES];
    for (int p = 0; p < f->pairs; p++)
        for (int64_t i = 0; i < nq; i++) q[p][i] = f->q[p].at[b * f->q[p].bs + h * f->q[p].hs + (q0 + i) * f->q[p].s];
    for (int64_t j = 0; j < nk; j++) {
        uint8_t see[FORMULA_DEPTH + 1][ATTN_LANES];
        int top = 0;
        for (int c = 0; c < f->code.n; c++) {
            int p = f->code.pair[c];
            if (f->code.op[c] >= FORMULA_AND) {
                uint8_t *x = see[top - 2], *y = see[top - 1];
                if (f->code.op[c] == FORMULA_AND)
                    for (int64_t i = 0; i < nq; i++) x[i] &= y[i];
                else
                    for (int64_t i = 0; i < nq; i++) x[i] |= y[i];
                top--;
                continue;
            }
            int64_t k = f->k[p].at[b * f->k[p].bs + h * f->k[p].hs + (k0 + j) * f->k[p].s];
            uint8_t *x = see[top++];
            if (f->code.op[c] == FORMULA_GE)
                for (int64_t i = 0; i < nq; i++) x[i] = q[p][i] >= k;
            else if (f->code.op[c] == FORMULA_EQ)
                for (int64_t i = 0; i < nq; i++) x[i] = q[p][i] == k;
            else
                for (int64_t i = 0; i < nq; i++) x[i] = q[p][i] != k;
        }
        for (int64_t i = 0; i < nq; i++) s[j * ld + i] = see[0][i] ? s[j * ld + i] : -INFINITY;
    }
}

/* Philox (philox.h) for a vector of queries at a time. */
void attn_keep(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t lanes, int64_t block,
               float keep[4][ATTN_LANES]) {
    const kern_attn_dropout *d = &a->p->drop;
    const uint32_t least = philox_threshold(d->p);
    const float factor = d->p < 1 ? (float)(1 / (1 - d->p)) : 0;
    for (int64_t i0 = 0; i0 < lanes; i0 += VL) {
        uint32_t c[4][VL];
        for (int i = 0; i < VL; i++) {
            c[0][i] = (uint32_t)block;
            c[1][i] = (uint32_t)(a->p->q_offset + q0 + i0 + i);
            c[2][i] = (uint32_t)b << 16 | (uint32_t)(d->head_offset + h);
            c[3][i] = (uint32_t)d->draw;
        }
        philox_rounds(c[0], VL, (uint32_t)d->seed, (uint32_t)(d->seed >> 32) ^ d->node);
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < VL; i++) keep[k][i0 + i] = c[k][i] >> 8 >= least ? factor : 0;
    }
}

void attn_range(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t *lo, int64_t *hi) {
    const kern_attn_params *p = a->p;
    int64_t l = max64(*lo, 0), r = min64(*hi, a->kv);
    int64_t first = p->q_offset + q0, last = first + nq - 1;
    if (p->causal) r = min64(r, last + 1);
    if (p->window > 0) l = max64(l, first - p->window + 1);
    if (p->doc_q && l < r) {
        int64_t dl, dh;
        const int64_t *dk = p->doc_k + b * p->doc_k_bs;
        doc_minmax(p->doc_q + b * p->doc_q_bs + q0, nq, &dl, &dh);
        const int64_t runs = ceil_div(a->Sk, ATTN_DOC_RUN);
        const int64_t *least = a->doc_min + b * runs, *greatest = a->doc_max + b * runs;
        while (l < r) {
            int64_t n = min64(DOC_BLOCK - l % DOC_BLOCK, r - l), run = l / ATTN_DOC_RUN;
            if (greatest[run] < dl || least[run] > dh)
                n = min64(ATTN_DOC_RUN - l % ATTN_DOC_RUN, r - l);
            else if (!doc_apart(dk + l, n, dl, dh))
                break;
            l += n;
        }
        while (l < r) {
            int64_t n = min64((r - 1) % DOC_BLOCK + 1, r - l), run = (r - 1) / ATTN_DOC_RUN;
            if (greatest[run] < dl || least[run] > dh)
                n = min64((r - 1) % ATTN_DOC_RUN + 1, r - l);
            else if (!doc_apart(dk + r - n, n, dl, dh))
                break;
            r -= n;
        }
    }
    if (p->formula) formula_range(a, b, h, q0, nq, &l, &r);
    *lo = l;
    *hi = max64(l, r);
}

/* Softcap, ALiBi and bias on scores in natural units; leaves log2 units. */
static void natural_scores(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t lanes, int64_t k0,
                           int64_t nk, float *s, int64_t ld, float *deriv) {
    const kern_attn_params *p = a->p;
    if (p->softcap > 0) {
        float cap = p->softcap, inv = 1 / cap;
        for (int64_t j = 0; j < nk; j++)
            for (int64_t i = 0; i < lanes; i += VL) {
                vf t = vtanh(vld(s + j * ld + i) * inv);
                vst(s + j * ld + i, t * cap);
                if (deriv) vst(deriv + j * ld + i, 1.f - t * t);
            }
    }
    if (p->alibi)
        for (int64_t j = 0; j < nk; j++)
            for (int64_t i = 0; i < lanes; i++) {
                float distance = (float)(k0 + j - (p->q_offset + q0 + i));
                s[j * ld + i] += p->alibi[h] * distance;
            }
    if (p->bias) p->bias(p->bias_ctx, b, h, q0, nq, k0, nk, s, ld);
    for (int64_t j = 0; j < nk; j++)
        for (int64_t i = 0; i < lanes; i += VL) vst(s + j * ld + i, vld(s + j * ld + i) * ATTN_LOG2E);
}

void attn_scores(const attn *a, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t lanes, int64_t k0, int64_t nk,
                 float *s, int64_t ld, float *deriv) {
    const kern_attn_params *p = a->p;
    if (a->natural) {
        natural_scores(a, b, h, q0, nq, lanes, k0, nk, s, ld, deriv);
    } else if (p->alibi) {
        float slope = p->alibi[h] * ATTN_LOG2E;
        vf iota = __builtin_convertvector(viota(), vf);
        for (int64_t j = 0; j < nk; j++)
            for (int64_t i = 0; i < lanes; i += VL) {
                vf distance = (float)(k0 + j - (p->q_offset + q0 + i)) - iota;
                vst(s + j * ld + i, vld(s + j * ld + i) + slope * distance);
            }
    }
    const vf hidden = vset(-INFINITY);
    int64_t first = p->q_offset + q0, last = first + nq - 1;
    bool causal = p->causal && first < k0 + nk - 1;
    bool window = p->window > 0 && last - k0 >= p->window;
    if (causal || window)
        for (int64_t j = 0; j < nk; j++) {
            /* Lane i sees key k0+j iff from <= i < to. */
            int64_t from = causal ? k0 + j - first : 0;
            int64_t to = window ? k0 + j - first + p->window : lanes;
            from = max64(0, min64(from, lanes));
            to = max64(0, min64(to, lanes));
            for (int64_t i = 0; i < lanes; i += VL) {
                vi lane = viota() + (int32_t)i;
                vi see = (lane >= (int32_t)from) & (lane < (int32_t)to);
                vst(s + j * ld + i, vselect(see, vld(s + j * ld + i), hidden));
            }
        }
    if (p->doc_q) {
        const int64_t *dq = p->doc_q + b * p->doc_q_bs + q0, *dk = p->doc_k + b * p->doc_k_bs + k0;
        int64_t ql, qh, kl, kh;
        doc_minmax(dq, nq, &ql, &qh);
        doc_minmax(dk, nk, &kl, &kh);
        if (ql != kh || qh != kl)
            for (int64_t j = 0; j < nk; j++)
                for (int64_t i = 0; i < nq; i++) s[j * ld + i] = dq[i] == dk[j] ? s[j * ld + i] : -INFINITY;
    }
    if (p->formula) formula_scores(a, b, h, q0, nq, k0, nk, s, ld);
}

/* ---- packing ----------------------------------------------------------------------------------- */

INLINE void pack_rows(bool bf, const void *src, int64_t stride, int64_t n, int64_t D, int64_t Dp, float *dst) {
    int64_t whole = D - D % VL;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t d = 0; d < whole; d += VL) vst(dst + i * Dp + d, vget(bf, src, i * stride + d));
        if (whole < D) vst(dst + i * Dp + whole, vget_n(bf, src, i * stride + whole, D - whole, 0));
    }
}

void attn_pack_rows(bool bf, const void *src, int64_t stride, int64_t n, int64_t D, int64_t Dp, float *dst) {
    if (bf)
        pack_rows(true, src, stride, n, D, Dp, dst);
    else
        pack_rows(false, src, stride, n, D, Dp, dst);
}

void attn_pack_pairs(const void *src, int64_t stride, int64_t n, int64_t D, int64_t Dp, float *dst) {
    uint16_t *to = (uint16_t *)dst;
    for (int64_t i = 0; i < n; i++, to += Dp) {
        memcpy(to, (const uint16_t *)src + i * stride, 2 * (size_t)D);
        if (D < Dp) memset(to + D, 0, 2 * (size_t)(Dp - D));
    }
}

void attn_pair_rows(const float *src, int64_t n, int64_t Dp, float *dst) {
    const uint16_t *from = (const uint16_t *)src;
    for (int64_t i = 0; i < n; i += 2, from += 2 * Dp, dst += Dp)
        for (int64_t d = 0; d < Dp; d += VL) {
            vu low = (vu)vld_bf16(from + d) >> 16, high = {0};
            if (i + 1 < n) high = (vu)vld_bf16(from + Dp + d);
            vst(dst + d, (vf)(low | high));
        }
}

void attn_transpose_words(const float *src, int64_t n, int64_t D, int64_t Dp, float *dst, int64_t ld) {
    for (int64_t i0 = 0; i0 < n; i0 += VL)
        for (int64_t d0 = 0; d0 < D; d0 += VL) {
            vf r[VL];
            for (int64_t i = 0; i < VL; i++) r[i] = i0 + i < n ? vld(src + (i0 + i) * Dp + d0) : vset(0);
            vtranspose(r);
            for (int64_t d = 0; d < min64(VL, D - d0); d++) vst(dst + (d0 + d) * ld + i0, r[d]);
        }
}

INLINE void unpack_t(bool bf, const float *src, const float *factor, int64_t n, int64_t D, bool add, void *dst,
                     int64_t stride) {
    for (int64_t i0 = 0; i0 < n; i0 += VL) {
        vf f = vld(factor + i0);
        int64_t ni = min64(VL, n - i0);
        for (int64_t d0 = 0; d0 < D; d0 += VL) {
            int64_t nd = min64(VL, D - d0);
            vf r[VL];
            for (int64_t d = 0; d < VL; d++) r[d] = d < nd ? vld(src + (d0 + d) * MICRO_LANES + i0) * f : vset(0);
            vtranspose(r);
            for (int64_t i = 0; i < ni; i++) {
                int64_t at = (i0 + i) * stride + d0;
                if (nd == VL)
                    vput(bf, dst, at, add ? vget(bf, dst, at) + r[i] : r[i]);
                else
                    vput_n(bf, dst, at, nd, add ? vget_n(bf, dst, at, nd, 0) + r[i] : r[i]);
            }
        }
    }
}

void attn_unpack_t(bool bf, const float *src, const float *factor, int64_t n, int64_t D, bool add, void *dst,
                   int64_t stride) {
    if (bf)
        unpack_t(true, src, factor, n, D, add, dst, stride);
    else
        unpack_t(false, src, factor, n, D, add, dst, stride);
}
