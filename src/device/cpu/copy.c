/* copy.c - strided N-d copy with conversion.
 *
 * Dimensions of extent 1 are dropped, neighbours that step together are merged, and the rest is sorted by dst's
 * strides, so that the innermost dimension is the one dst is written along. If src is contiguous along another one, the
 * two make square blocks, which are transposed in registers (elements of 4 bytes, and of 2): neither side is then
 * walked at a large stride for longer than a block, and both read and write whole lines of 64 bytes. The source of the
 * next block, or of a line some way ahead, is fetched early, as no hardware sees these strides. Results that are larger
 * than the caches are stored past them (rows.h).
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

/* Stores n <= VL elements; bf16 that were bf16 keep their bits, whatever these mean. */
INLINE void put_moved(bool to, bool from, void *p, int64_t i, int64_t n, vf x) {
    if (!to || !from) {
        put_part(to, p, i, n, x);
        return;
    }
    const vh h = __builtin_convertvector((vu)x >> 16, vh);
    memcpy((uint16_t *)p + i, &h, (size_t)n * sizeof(uint16_t));
}

/* dst[i*ds + j] = src[i + j*ss], i < m, j < n, squares of which go through registers. */
INLINE void block_of(bool to, bool from, int64_t m, int64_t n, void *dst, int64_t ds, const void *src, int64_t ss) {
    for (int64_t i0 = 0; i0 < m; i0 += VL)
        for (int64_t j0 = 0; j0 < n; j0 += VL) {
            const int64_t ni = min64(VL, m - i0), nj = min64(VL, n - j0);
            vf r[VL];
            for (int64_t j = 0; j < VL; j++) r[j] = j < nj ? get_part(from, src, (j0 + j) * ss + i0, ni, 0) : vset(0);
            vtranspose(r);
            for (int64_t i = 0; i < ni; i++) put_moved(to, from, dst, (i0 + i) * ds + j0, nj, r[i]);
        }
}

/* The same for whole tiles, without conversion: of VL x VL elements of 4 bytes, of 2 VL x 2 VL elements of 2 bytes. A
 * row of dst is a vector; a pair of rows of src is, for 2 bytes, first made VL words of two elements each. */
INLINE void store_tile(char *dst, int64_t ds, const vf *r, bool stream) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < VL; i++)
        if (stream)
            vst_stream((float *)(dst + i * ds), r[i]);
        else
            vst((float *)(dst + i * ds), r[i]);
}
INLINE void tile_words(char *dst, int64_t ds, const char *src, int64_t ss, bool stream) {
    vf r[VL];
#pragma GCC unroll 16
    for (int64_t j = 0; j < VL; j++) r[j] = vld((const float *)(src + j * ss));
    vtranspose(r);
    store_tile(dst, ds, r, stream);
}
INLINE void tile_halves(char *dst, int64_t ds, const char *src, int64_t ss, bool stream) {
    vf r[VL];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
#pragma GCC unroll 16
        for (int64_t j = 0; j < VL; j++)
            r[j] = vzip_words((const uint16_t *)(src + 2 * j * ss), (const uint16_t *)(src + (2 * j + 1) * ss), h);
        vtranspose(r);
        store_tile(dst + h * VL * ds, ds, r, stream);
    }
}

/* Strides in bytes, m and n multiples of a tile's side. `next`: the source of the block behind this one, or this. */
INLINE void tiles_of(int64_t size, int64_t m, int64_t n, char *dst, int64_t ds, const char *src, int64_t ss,
                     const char *next, bool stream) {
    const int64_t side = VEC_BYTES / size;
    for (int64_t j0 = 0; j0 < n; j0 += side)
        for (int64_t i0 = 0; i0 < m; i0 += side) {
            for (int64_t j = 0; j < side; j++) __builtin_prefetch(next + (j0 + j) * ss + i0 * size);
            if (size == 4)
                tile_words(dst + i0 * ds + j0 * size, ds, src + j0 * ss + i0 * size, ss, stream);
            else
                tile_halves(dst + i0 * ds + j0 * size, ds, src + j0 * ss + i0 * size, ss, stream);
        }
}
static void tiles(int64_t size, int64_t m, int64_t n, char *dst, int64_t ds, const char *src, int64_t ss,
                  const char *next, bool stream) {
    if (size == 4 && stream)
        tiles_of(4, m, n, dst, ds, src, ss, next, true);
    else if (size == 4)
        tiles_of(4, m, n, dst, ds, src, ss, next, false);
    else if (stream)
        tiles_of(2, m, n, dst, ds, src, ss, next, true);
    else
        tiles_of(2, m, n, dst, ds, src, ss, next, false);
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

enum { BLOCK = 64, LINES_AHEAD = 16, LONG_LINE = 4096 };

/* Lines of dst, or blocks where src runs along dimension `across`; outer[] counts the dimensions of neither. */
typedef struct job {
    loop l;
    int across; /* -1: lines */
    int64_t items, nblocks, mblocks;
    dtype to, from;
    char *dst;
    const char *src;
    bool stream; /* dst is large, and all of its lines or rows of blocks are whole */
} job;

/* Where an item starts, in bytes; of a block also its place in the plane of dst's rows and columns. */
typedef struct place {
    char *dst;
    const char *src;
    int64_t i0, j0;
    int64_t at[TENSOR_MAX_RANK];
} place;

static place place_of(const job *t, int64_t index) {
    const loop *l = &t->l;
    const int last = l->rank - 1;
    const int64_t to = dtype_size(t->to), from = dtype_size(t->from);
    place p = {.dst = t->dst, .src = t->src};
    if (t->across >= 0) {
        p.i0 = index % t->mblocks * BLOCK, index /= t->mblocks;
        p.j0 = index % t->nblocks * BLOCK, index /= t->nblocks;
        p.dst += (p.i0 * l->ds[t->across] + p.j0 * l->ds[last]) * to;
        p.src += (p.i0 * l->ss[t->across] + p.j0 * l->ss[last]) * from;
    }
    for (int k = last - 1; k >= 0; k--) {
        if (k == t->across) continue;
        p.at[k] = index % l->dim[k];
        p.dst += p.at[k] * l->ds[k] * to, p.src += p.at[k] * l->ss[k] * from;
        index /= l->dim[k];
    }
    return p;
}

/* n lines, src's and dst's each as far apart; those of src behind them, from `next` on, are as far apart too. */
INLINE void run_of_lines(int64_t n, int64_t bytes, char *dst, int64_t ds, const char *src, int64_t ss, const char *next,
                         bool stream) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t soon = i + LINES_AHEAD;
        prefetch_run(soon < n ? src + soon * ss : next + min64(soon - n, n - 1) * ss, bytes);
        copy_run(dst + i * ds, src + i * ss, bytes, stream);
    }
}

static void lines(const job *t, int64_t first, int64_t end) {
    const loop *l = &t->l;
    const int last = l->rank - 1;
    const int64_t to = dtype_size(t->to), from = dtype_size(t->from), bytes = l->dim[last] * to;
    const bool runs = t->to == t->from && l->ds[last] == 1 && l->ss[last] == 1;
    place p = place_of(t, first);
    while (first < end) { /* up to where the dimension of the lines begins anew */
        const int64_t n = last ? min64(end - first, l->dim[last - 1] - p.at[last - 1]) : 1;
        const int64_t ds = last ? l->ds[last - 1] * to : 0, ss = last ? l->ss[last - 1] * from : 0;
        const place next = place_of(t, min64(first + n, t->items - 1));
        if (!runs)
            for (int64_t i = 0; i < n; i++)
                line_of(t->to, t->from, l->dim[last], p.dst + i * ds, l->ds[last], p.src + i * ss, l->ss[last]);
        else if (bytes > LONG_LINE)
            for (int64_t i = 0; i < n; i++) copy_run(p.dst + i * ds, p.src + i * ss, bytes, t->stream);
        else if (t->stream && bytes == 2 * LINE_BYTES) /* heads of 64 elements */
            run_of_lines(n, 2 * LINE_BYTES, p.dst, ds, p.src, ss, next.src, true);
        else if (t->stream)
            run_of_lines(n, bytes, p.dst, ds, p.src, ss, next.src, true);
        else
            run_of_lines(n, bytes, p.dst, ds, p.src, ss, next.src, false);
        first += n;
        p = next;
    }
}

static void one_block(const job *t, int64_t index) {
    const loop *l = &t->l;
    const int last = l->rank - 1, a = t->across;
    const place p = place_of(t, index);
    const int64_t to = dtype_size(t->to), from = dtype_size(t->from);
    const int64_t m = min64(BLOCK, l->dim[a] - p.i0), n = min64(BLOCK, l->dim[last] - p.j0);
    const int64_t ds = l->ds[a], ss = l->ss[last];
    int64_t whole_m = 0, whole_n = 0;
    if (l->ds[last] == 1 && t->to == t->from && (to == 4 || to == 2)) {
        const int64_t side = VEC_BYTES / to;
        whole_m = m / side * side, whole_n = n / side * side;
        const place next = index + 1 < t->items ? place_of(t, index + 1) : p;
        const bool full = min64(l->dim[a] - next.i0, l->dim[last] - next.j0) >= BLOCK;
        tiles(to, whole_m, whole_n, p.dst, ds * to, p.src, ss * from, full ? next.src : p.src, t->stream);
    }
    /* What the tiles left: columns of dst behind them, then rows below. */
    const bool vectors = (t->to == DT_F32 || t->to == DT_BF16) && (t->from == DT_F32 || t->from == DT_BF16);
    for (int below = 0; below < 2; below++) {
        const int64_t i0 = below ? whole_m : 0, i1 = below ? m : whole_m, j0 = below ? 0 : whole_n;
        if (i0 >= i1 || j0 >= n) continue;
        char *d = p.dst + (i0 * ds + j0 * l->ds[last]) * to;
        const char *s = p.src + (i0 * l->ss[a] + j0 * ss) * from;
        if (vectors && l->ds[last] == 1) {
            block(to == 2, from == 2, i1 - i0, n - j0, d, ds, s, ss);
            continue;
        }
        for (int64_t i = 0; i < i1 - i0; i++)
            line_of(t->to, t->from, n - j0, d + i * ds * to, l->ds[last], s + i * l->ss[a] * from, ss);
    }
}

/* Are lines of dst, or vectors in rows of whole tiles, whole lines of memory? */
static bool can_stream(const job *t, int64_t total) {
    const loop *l = &t->l;
    const int last = l->rank - 1;
    const int64_t size = dtype_size(t->to);
    if (t->to != t->from || l->ds[last] != 1 || total * size < STREAM_BYTES) return false;
    bool whole = whole_lines(t->dst, t->across < 0 ? l->dim[last] * size : 0);
    for (int k = 0; k < last; k++) whole &= l->ds[k] * size % LINE_BYTES == 0;
    return whole && (t->across < 0 ? l->ss[last] == 1 : VEC_BYTES == LINE_BYTES);
}

/* Shares the lines or blocks of a loop out; `total` elements are copied by this and its likes. */
static void run(job *t, int64_t total) {
    const loop *l = &t->l;
    const int last = l->rank - 1;
    t->across = -1;
    if (l->ss[last] != 1)
        for (int i = 0; i < last; i++)
            if (l->ss[i] == 1) t->across = i;
    t->items = 1;
    for (int i = 0; i < last; i++)
        if (i != t->across) t->items *= l->dim[i];
    if (t->across >= 0) {
        t->nblocks = ceil_div(l->dim[last], BLOCK), t->mblocks = ceil_div(l->dim[t->across], BLOCK);
        t->items *= t->nblocks * t->mblocks;
    }
    t->stream = can_stream(t, total);
    const int64_t several = t->across >= 0 ? 1 : max64(1, ELEM_CHUNK / l->dim[last]);
#pragma omp parallel if (total >= ROWS_ALONE)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < t->items; i += several) {
            if (t->across >= 0)
                one_block(t, i);
            else
                lines(t, i, min64(i + several, t->items));
        }
        if (t->stream) vst_stream_end();
    }
}

/* Do short lines of src lie beside one another along a dimension further out than the one that dst goes on along, as
 * when heads are put first? Then whole passes over src would take a line of each page. */
static bool crosses(const loop *l) {
    const int last = l->rank - 1, b = last - 1;
    if (last < 2 || l->rank == TENSOR_MAX_RANK || l->ss[last] != 1 || l->dim[b] < 2 * BLOCK) return false;
    bool nearer = false;
    for (int i = 0; i < b; i++) nearer |= magnitude(l->ss[i]) < magnitude(l->ss[b]);
    return nearer;
}

/* Makes pieces of BLOCK lines of that dimension the outermost loop; what the pieces leave, if anything, is `rest`. */
static int64_t beside(job *t, job *rest) {
    loop *l = &t->l;
    const int b = l->rank - 2;
    const int64_t pieces = l->dim[b] / BLOCK, whole = pieces * BLOCK, left = l->dim[b] - whole;
    const int64_t ds = l->ds[b], ss = l->ss[b];
    rest->l.dim[b] = left;
    rest->dst += whole * ds * dtype_size(t->to), rest->src += whole * ss * dtype_size(t->from);
    l->dim[b] = BLOCK;
    for (int i = l->rank++; i > 0; i--) l->dim[i] = l->dim[i - 1], l->ds[i] = l->ds[i - 1], l->ss[i] = l->ss[i - 1];
    l->dim[0] = pieces, l->ds[0] = BLOCK * ds, l->ss[0] = BLOCK * ss;
    return left;
}

void kern_copy(const tensor *dst, const tensor *src) {
    ASSERT(dst->rank == src->rank && dst->rank <= TENSOR_MAX_RANK);
    const bool floats = (dst->type == DT_F32 || dst->type == DT_BF16) && (src->type == DT_F32 || src->type == DT_BF16);
    ASSERT(dst->type == src->type || floats);
    for (int i = 0; i < dst->rank; i++) ASSERT(dst->dim[i] == src->dim[i]);
    const int64_t total = tensor_numel(dst);
    if (!total) return;
    job t = {.l = normalise(dst, src), .to = dst->type, .from = src->type, .dst = dst->data, .src = src->data};
    loop *l = &t.l;
    if (l->rank == 1 && l->ds[0] == 1 && l->ss[0] == 1 && l->dim[0] > ELEM_CHUNK) {
        /* One long run: cut it up for the team. */
        int64_t whole = l->dim[0] / ELEM_CHUNK * ELEM_CHUNK;
        line_of(t.to, t.from, l->dim[0] - whole, t.dst + whole * dtype_size(t.to), 1,
                t.src + whole * dtype_size(t.from), 1);
        *l = (loop){.rank = 2, .dim = {whole / ELEM_CHUNK, ELEM_CHUNK}, .ds = {ELEM_CHUNK, 1}, .ss = {ELEM_CHUNK, 1}};
    }
    if (!crosses(l)) {
        run(&t, total);
        return;
    }
    job rest = t;
    const int64_t left = beside(&t, &rest);
    run(&t, total);
    if (left) run(&rest, total);
}
