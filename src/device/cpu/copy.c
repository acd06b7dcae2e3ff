/* copy.c - strided N-d copy with conversion.
 *
 * Dimensions of extent 1 are dropped, neighbours that step together are merged, and the rest is sorted by dst's
 * strides, so that the innermost dimension is the one dst is written along. If src is contiguous along another one, the
 * two make square blocks, which are transposed in cache (for f32 in registers): neither side is then walked at a large
 * stride for longer than a block.
 */
#include "device/cpu/rows.h"

typedef struct loop {
    int rank;
    int64_t dim[TENSOR_MAX_RANK], ds[TENSOR_MAX_RANK], ss[TENSOR_MAX_RANK]; /* outermost first; strides in elements */
} loop;

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

static loop normalise(const tensor *dst, const tensor *src) {
    loop l = {0};
    for (int i = 0; i < dst->rank; i++) {
        if (dst->dim[i] == 1) continue;
        ASSERT(dst->stride[i] != 0);
        int j = l.rank++;
        for (; j > 0 && magnitude(l.ds[j - 1]) < magnitude(dst->stride[i]); j--)
            l.dim[j] = l.dim[j - 1], l.ds[j] = l.ds[j - 1], l.ss[j] = l.ss[j - 1];
        l.dim[j] = dst->dim[i], l.ds[j] = dst->stride[i], l.ss[j] = src->stride[i];
    }
    for (int i = l.rank - 2; i >= 0; i--)
        if (l.ds[i] == l.ds[i + 1] * l.dim[i + 1] && l.ss[i] == l.ss[i + 1] * l.dim[i + 1]) {
            l.dim[i] *= l.dim[i + 1], l.ds[i] = l.ds[i + 1], l.ss[i] = l.ss[i + 1];
            for (int j = i + 1; j + 1 < l.rank; j++)
                l.dim[j] = l.dim[j + 1], l.ds[j] = l.ds[j + 1], l.ss[j] = l.ss[j + 1];
            l.rank--;
        }
    if (!l.rank) l = (loop){.rank = 1, .dim = {1}, .ds = {1}, .ss = {1}};
    return l;
}

/* One run of n elements. */
INLINE void line_of(dtype to, dtype from, int64_t n, void *dst, int64_t ds, const void *src, int64_t ss) {
    if (to != from) {
        const bool bf_to = to == DT_BF16, bf_from = from == DT_BF16;
        int64_t i = 0;
        if (ds == 1 && ss == 1)
            for (; i + VL <= n; i += VL) vput(bf_to, dst, i, vget(bf_from, src, i));
        for (; i < n; i++) sput(bf_to, dst, i * ds, sget(bf_from, src, i * ss));
        return;
    }
    const int64_t size = dtype_size(to);
    if (ds == 1 && ss == 1) {
        memcpy(dst, src, (size_t)(n * size));
        return;
    }
    switch (size) {
    case 8:
        for (int64_t i = 0; i < n; i++) ((uint64_t *)dst)[i * ds] = ((const uint64_t *)src)[i * ss];
        break;
    case 4:
        for (int64_t i = 0; i < n; i++) ((uint32_t *)dst)[i * ds] = ((const uint32_t *)src)[i * ss];
        break;
    case 2:
        for (int64_t i = 0; i < n; i++) ((uint16_t *)dst)[i * ds] = ((const uint16_t *)src)[i * ss];
        break;
    default:
        for (int64_t i = 0; i < n; i++) ((uint8_t *)dst)[i * ds] = ((const uint8_t *)src)[i * ss];
    }
}

/* dst[i*ds + j] = src[i + j*ss], i < m, j < n, squares of which go through registers. Only moves f32, and moves and
 * converts bf16, exactly: the widened value rounds back to itself. */
INLINE void block_of(bool to, bool from, int64_t m, int64_t n, void *dst, int64_t ds, const void *src, int64_t ss) {
    for (int64_t i0 = 0; i0 < m; i0 += VL)
        for (int64_t j0 = 0; j0 < n; j0 += VL) {
            const int64_t ni = min64(VL, m - i0), nj = min64(VL, n - j0);
            vf r[VL];
            for (int64_t j = 0; j < VL; j++) r[j] = j < nj ? get_part(from, src, (j0 + j) * ss + i0, ni, 0) : vset(0);
            vtranspose(r);
            for (int64_t i = 0; i < ni; i++) put_part(to, dst, (i0 + i) * ds + j0, nj, r[i]);
        }
}

static void block(bool to, bool from, int64_t m, int64_t n, void *dst, int64_t ds, const void *src, int64_t ss) {
    if (to && from)
        block_of(true, true, m, n, dst, ds, src, ss);
    else if (to)
        block_of(true, false, m, n, dst, ds, src, ss);
    else if (from)
        block_of(false, true, m, n, dst, ds, src, ss);
    else
        block_of(false, false, m, n, dst, ds, src, ss);
}

enum { BLOCK = 64 };

/* Lines of dst, or blocks where src runs along dimension `across`; outer[] counts the dimensions of neither. */
typedef struct job {
    loop l;
    int across; /* -1: lines */
    int64_t items, nblocks, mblocks;
    dtype to, from;
    char *dst;
    const char *src;
} job;

static void item(const job *t, int64_t index) {
    const loop *l = &t->l;
    const int last = l->rank - 1;
    int64_t d = 0, s = 0, i0 = 0, j0 = 0;
    if (t->across >= 0) {
        j0 = index % t->nblocks * BLOCK, index /= t->nblocks;
        i0 = index % t->mblocks * BLOCK, index /= t->mblocks;
    }
    for (int k = last - 1; k >= 0; k--) {
        if (k == t->across) continue;
        d += index % l->dim[k] * l->ds[k], s += index % l->dim[k] * l->ss[k];
        index /= l->dim[k];
    }
    const int64_t to = dtype_size(t->to), from = dtype_size(t->from);
    if (t->across < 0) {
        line_of(t->to, t->from, l->dim[last], t->dst + d * to, l->ds[last], t->src + s * from, l->ss[last]);
        return;
    }
    const int a = t->across;
    const int64_t m = min64(BLOCK, l->dim[a] - i0), n = min64(BLOCK, l->dim[last] - j0);
    d += i0 * l->ds[a] + j0 * l->ds[last], s += i0 * l->ss[a] + j0 * l->ss[last];
    const bool vectors = (to == 4 || t->to == DT_BF16) && (from == 4 || t->from == DT_BF16);
    if (vectors && l->ds[last] == 1)
        block(to == 2, from == 2, m, n, t->dst + d * to, l->ds[a], t->src + s * from, l->ss[last]);
    else
        for (int64_t i = 0; i < m; i++)
            line_of(t->to, t->from, n, t->dst + (d + i * l->ds[a]) * to, l->ds[last],
                    t->src + (s + i * l->ss[a]) * from, l->ss[last]);
}

void kern_copy(const tensor *dst, const tensor *src) {
    ASSERT(dst->rank == src->rank && dst->rank <= TENSOR_MAX_RANK);
    const bool floats = (dst->type == DT_F32 || dst->type == DT_BF16) && (src->type == DT_F32 || src->type == DT_BF16);
    ASSERT(dst->type == src->type || floats);
    for (int i = 0; i < dst->rank; i++) ASSERT(dst->dim[i] == src->dim[i]);
    const int64_t total = tensor_numel(dst);
    if (!total) return;
    job t = {
        .l = normalise(dst, src), .across = -1, .to = dst->type, .from = src->type, .dst = dst->data, .src = src->data};
    loop *l = &t.l;
    if (l->rank == 1 && l->ds[0] == 1 && l->ss[0] == 1 && l->dim[0] > ELEM_CHUNK) {
        /* One long run: cut it up for the team. */
        int64_t whole = l->dim[0] / ELEM_CHUNK * ELEM_CHUNK;
        line_of(t.to, t.from, l->dim[0] - whole, t.dst + whole * dtype_size(t.to), 1,
                t.src + whole * dtype_size(t.from), 1);
        *l = (loop){.rank = 2, .dim = {whole / ELEM_CHUNK, ELEM_CHUNK}, .ds = {ELEM_CHUNK, 1}, .ss = {ELEM_CHUNK, 1}};
    }
    const int last = l->rank - 1;
    if (l->ss[last] != 1)
        for (int i = 0; i < last; i++)
            if (l->ss[i] == 1) t.across = i;
    t.items = 1;
    for (int i = 0; i < last; i++)
        if (i != t.across) t.items *= l->dim[i];
    if (t.across >= 0) {
        t.nblocks = ceil_div(l->dim[last], BLOCK), t.mblocks = ceil_div(l->dim[t.across], BLOCK);
        t.items *= t.nblocks * t.mblocks;
    }
#pragma omp parallel for schedule(static) if (total >= ROWS_ALONE)
    for (int64_t i = 0; i < t.items; i++) item(&t, i);
}
