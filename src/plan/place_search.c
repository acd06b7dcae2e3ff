/* place_search.c - what place_plan tries when the skyline greedy leaves a gap: best fit, then a bounded exact search.
 *
 * Best fit is the usual one of inference planners (Pisarchyk and Lee, arXiv 2001.03288): take the blocks in a static
 * order and put each into the tightest hole left by the placed blocks that live at the same time.
 *
 * The search asks for an arena of at most `cap` and bisects on cap. Any placement can be pushed down until every block
 * rests on the floor or on another block, and its blocks can then be listed by increasing offset, so it is enough to
 * search the lists in which each block lands on the skyline of those before it and offsets never decrease (canonical
 * placements, as in MiniMalloc, Moffitt, ASPLOS 2023; written from the idea). A branch ends when
 *   - some time's height, at least the current offset, plus what must still be put there exceeds cap;
 *   - no unplaced block lands at or above the current offset: the list could only go on unsorted;
 *   - the candidate's offset is at or above the top that some other block would reach if placed now: that block could
 *     then go underneath, so another list is no worse.
 * Independent stretches of time are searched one by one. Work is counted, not timed: every rank finds the same.
 */
#include "plan/place_impl.h"

#include <stdlib.h>

/* ---- best fit ---------------------------------------------------------------------------------- */

int64_t place_best_fit(arena *a, const block *b, int n, const int *order, int64_t *off, int64_t *work) {
    int *low = ARENA_ARRAY(a, int, n); /* placed blocks by increasing offset */
    int64_t arena_bytes = 0;
    for (int m = 0; m < n; m++) {
        if ((*work -= m) < 0) return -1;
        const block *x = &b[order[m]];
        int64_t top = 0, best = -1, best_room = INT64_MAX;
        for (int i = 0; i < m; i++) {
            const block *y = &b[low[i]];
            if (y->t1 < x->t0 || y->t0 > x->t1) continue;
            int64_t at = round_up(top, x->align), room = off[low[i]] - at;
            if (room >= x->size && room < best_room) {
                best = at;
                best_room = room;
            }
            top = max64(top, off[low[i]] + y->size);
        }
        if (best < 0) best = round_up(top, x->align);
        off[order[m]] = best;
        arena_bytes = max64(arena_bytes, best + x->size);
        int at = m;
        for (; at > 0 && off[low[at - 1]] > best; at--) low[at] = low[at - 1];
        low[at] = order[m];
    }
    return arena_bytes;
}

/* ---- the search -------------------------------------------------------------------------------- */

enum { MAX_BLOCKS = 4096 }; /* a stretch of time with more blocks than this is not searched: depth and n^2 steps */

typedef struct undo {
    int32_t index; /* block >= 0: its feasible offset; time t: -1 - t */
    int64_t old;
} undo;

typedef struct search {
    const block *b; /* the stretch's blocks, in order of preference, times from 0 */
    int n, T;
    int64_t cap, work, nodes;
    int64_t *sky, *rest;  /* per time: height reached, bytes still to place */
    int64_t *low;         /* per block: lowest feasible offset */
    int64_t *off, *found; /* per block: -1 while unplaced; the placement that was found */
    VEC(undo) trail;
    arena *mem;
    bool out_of_work;
} search;

static bool overlap(const block *x, const block *y) { return x->t0 <= y->t1 && y->t0 <= x->t1; }

static void set(search *s, int64_t *cell, int32_t index, int64_t v) {
    undo u = {index, *cell};
    vec_push(s->mem, &s->trail, u);
    *cell = v;
}

/* Does what must still be put at offset `at` or above fit under cap at every time? */
static bool viable(const search *s, int64_t at) {
    for (int t = 0; t < s->T; t++)
        if (s->rest[t] > 0 && max64(s->sky[t], at) + s->rest[t] > s->cap) return false;
    return true;
}

/* Extends the list, whose last block `last` lies at offset `at`. */
static bool descend(search *s, int placed, int64_t at, int last) {
    if (placed == s->n) {
        memcpy(s->found, s->off, sizeof *s->off * (size_t)s->n);
        return true;
    }
    s->nodes++;
    if ((s->work -= s->n + s->T) < 0) {
        s->out_of_work = true;
        return false;
    }
    if (!viable(s, at)) return false;
    int64_t ceiling = INT64_MAX;
    for (int i = 0; i < s->n; i++)
        if (s->off[i] < 0) ceiling = min64(ceiling, s->low[i] + s->b[i].size);
    /* Candidates by increasing offset, then preference, from the last one on: a block that would land below it must
     * wait until something lifts it. Repeated selection, since few are ever tried. */
    int64_t seen_low = at;
    int seen = last;
    for (;;) {
        int k = -1;
        for (int i = 0; i < s->n; i++) {
            if (s->off[i] >= 0 || s->low[i] >= ceiling) continue;
            if (s->low[i] < seen_low || (s->low[i] == seen_low && i <= seen)) continue;
            if (k < 0 || s->low[i] < s->low[k]) k = i;
        }
        if (k < 0) return false;
        seen = k;
        seen_low = s->low[k];
        const block *x = &s->b[k];
        int64_t base = seen_low, top = base + x->size;
        if (top > s->cap) continue;
        int mark = s->trail.n;
        for (int t = x->t0; t <= x->t1; t++) {
            set(s, &s->sky[t], -1 - t, top);
            s->rest[t] -= x->size;
        }
        s->off[k] = base;
        for (int i = 0; i < s->n; i++)
            if (s->off[i] < 0 && s->low[i] < top && overlap(&s->b[i], x))
                set(s, &s->low[i], i, round_up(top, s->b[i].align));
        s->work -= s->n;
        if (descend(s, placed + 1, base, k)) return true;
        while (s->trail.n > mark) {
            undo u = s->trail.data[--s->trail.n];
            *(u.index >= 0 ? &s->low[u.index] : &s->sky[-1 - u.index]) = u.old;
        }
        for (int t = x->t0; t <= x->t1; t++) s->rest[t] += x->size;
        s->off[k] = -1;
        if (s->out_of_work) return false;
    }
}

/* One question: a placement of at most cap within `work`? 1 found (in s->found), 0 proved impossible, -1 unknown. */
static int ask(search *s, int64_t cap, int64_t work) {
    memset(s->sky, 0, sizeof *s->sky * (size_t)s->T);
    memset(s->rest, 0, sizeof *s->rest * (size_t)s->T);
    memset(s->low, 0, sizeof *s->low * (size_t)s->n);
    for (int i = 0; i < s->n; i++) {
        s->off[i] = -1;
        for (int t = s->b[i].t0; t <= s->b[i].t1; t++) s->rest[t] += s->b[i].size;
    }
    s->trail.n = 0;
    s->cap = cap;
    s->work = work;
    s->out_of_work = false;
    bool ok = descend(s, 0, 0, -1);
    return ok ? 1 : s->out_of_work ? -1 : 0;
}

typedef struct pick {
    double key;
    int i;
} pick;

static int pick_cmp(const void *x, const void *y) {
    const pick *p = x, *q = y;
    if (p->key != q->key) return p->key > q->key ? -1 : 1;
    return p->i - q->i;
}

/* Searches the stretch of time [lo, hi], whose blocks are idx[0..n); every size and alignment is a multiple of unit.
 * Returns its new height. */
static int64_t search_stretch(arena *a, const block *b, const int *idx, int n, int lo, int hi, int64_t unit,
                              int64_t best, int64_t *bound, int64_t *off, int64_t work, int64_t *nodes) {
    search s = {.n = n, .T = hi - lo + 1, .mem = a};
    block *own = ARENA_ARRAY(a, block, n);
    pick *order = ARENA_ARRAY(a, pick, n);
    s.b = own;
    s.sky = ARENA_ARRAY(a, int64_t, s.T);
    s.rest = ARENA_ARRAY(a, int64_t, s.T);
    s.low = ARENA_ARRAY(a, int64_t, n);
    s.off = ARENA_ARRAY(a, int64_t, n);
    s.found = ARENA_ARRAY(a, int64_t, n);
    int64_t proved = *bound, open = *bound; /* caps below proved are impossible; below open, not worth asking again */
    /* Each round asks for one cap: first the bound itself, where a success ends it all, then the middle of what is
     * open. Preference by area, by length of life, by size: none dominates the others. */
    enum { ROUNDS = 12, WAYS = 3 };
    for (int round = 0; round < ROUNDS && open < best; round++) {
        int64_t cap = round == 0 ? open : open + (best - open) / 2 / unit * unit;
        int answer = -1;
        for (int way = 0; way < WAYS && answer < 0; way++) {
            for (int i = 0; i < n; i++) {
                const block *x = &b[idx[i]];
                double life = x->t1 - x->t0 + 1, size = (double)x->size;
                order[i] = (pick){way == 0 ? life * size : way == 1 ? life : size, idx[i]};
            }
            qsort(order, (size_t)n, sizeof *order, pick_cmp);
            for (int i = 0; i < n; i++) {
                own[i] = b[order[i].i];
                own[i].t0 -= lo;
                own[i].t1 -= lo;
            }
            answer = ask(&s, cap, work / (ROUNDS * WAYS));
        }
        if (answer > 0) {
            best = 0;
            for (int i = 0; i < n; i++) {
                off[order[i].i] = s.found[i];
                best = max64(best, s.found[i] + own[i].size);
            }
            continue;
        }
        open = cap + unit;
        if (answer == 0) proved = open;
    }
    *bound = max64(*bound, min64(proved, best));
    *nodes += s.nodes;
    return best;
}

int64_t place_search(arena *a, const block *b, int n, int T, int64_t best, int64_t *bound, int64_t *off, int64_t work,
                     int64_t *nodes) {
    /* reach[t]: is some block alive at both t and t + 1? Where not, time falls apart. */
    int *reach = ARENA_ARRAY(a, int, T + 1);
    for (int i = 0; i < n; i++) {
        reach[b[i].t0]++;
        reach[b[i].t1]--;
    }
    for (int t = 1; t < T; t++) reach[t] += reach[t - 1];
    int *idx = ARENA_ARRAY(a, int, n);
    int64_t arena_bytes = 0, proved = *bound, unit = INT64_MAX;
    for (int i = 0; i < n; i++) unit = min64(unit, b[i].align);
    for (int lo = 0; lo < T;) {
        int hi = lo, m = 0;
        while (hi + 1 < T && reach[hi] > 0) hi++;
        int64_t height = 0;
        for (int i = 0; i < n; i++) {
            if (b[i].t0 < lo || b[i].t1 > hi) continue;
            idx[m++] = i;
            height = max64(height, off[i] + b[i].size);
        }
        if (height > *bound && m <= MAX_BLOCKS) {
            int64_t own = *bound;
            height = search_stretch(a, b, idx, m, lo, hi, unit, height, &own, off, work, nodes);
            proved = max64(proved, own);
        }
        arena_bytes = max64(arena_bytes, height);
        lo = hi + 1;
    }
    ASSERT(arena_bytes <= best);
    *bound = proved;
    return arena_bytes;
}
