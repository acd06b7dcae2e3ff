/* place_skyline.c - the greedy behind static memory planning: always place a block with the lowest feasible offset.
 *
 * The skyline is the height reached at each time. A block's lowest feasible offset is the skyline's maximum over its
 * lifetime, so the blocks with the lowest one are those that lie inside the skyline's lowest flat stretch; among them
 * the tie order decides. When none lies inside, nothing can ever be put into that dent: the stretch is raised to its
 * lower neighbour and merged with it. On nested lifetimes (saved activations are last in, first out) with outer
 * lifetimes first this gives exactly the live bound: a block's offset is the sum of the blocks around it.
 *
 * The order by offset is MiniMalloc's (Moffitt, ASPLOS 2023). Textbook versions keep every block in a heap and repair
 * stale keys, which costs n times the nesting depth; here the blocks are points (t0, t1) in a k-d tree that answers
 * "the first of the tie order inside [a, b]" in O(sqrt n) at worst, and stretches, not blocks, are in the heap.
 *
 * With mixed alignments the lowest stretch need not hold the lowest feasible offset; the result stays valid.
 */
#include "plan/place_impl.h"

#include <limits.h>

enum { LEAF = 8 }; /* points in a leaf of the tree */

typedef struct node {
    int32_t x0, x1, y0, y1; /* bounding box of t0 and of t1, of all points, placed or not */
    int32_t best;           /* least rank of an unplaced point; INT_MAX: none */
} node;

/* A flat stretch [a, b] of the skyline. prev and next are neighbours in time, -1 at the ends. */
typedef struct stretch {
    int64_t level;
    int32_t a, b, prev, next;
    bool dead;
} stretch;

typedef struct entry {
    int64_t level;
    int32_t a, id;
} entry;

struct skyline {
    const block *b;
    int n, T;
    int *point; /* blocks in tree order: a node owns a range of it */
    int *place; /* block -> position in point */
    int *rank;  /* position in point -> rank in the tie order, INT_MAX once placed */
    node *node; /* 1-based binary heap layout, children 2k and 2k + 1 */
    VEC(stretch) str;
    VEC(entry) heap;
    arena *mem;
};

/* ---- the tree ---------------------------------------------------------------------------------- */

static int32_t coord(const block *b, int axis) { return axis ? b->t1 : b->t0; }

static bool point_less(const skyline *s, int axis, int p, int q) {
    int32_t cp = coord(&s->b[p], axis), cq = coord(&s->b[q], axis);
    return cp != cq ? cp < cq : p < q;
}

/* Hoare's selection: puts the k-th point of [lo, hi) by the axis into its place, smaller ones before it. */
static void select_kth(skyline *s, int lo, int hi, int k, int axis) {
    int *p = s->point;
    while (hi - lo > 1) {
        int pivot = p[lo + (hi - lo) / 2], i = lo, j = hi - 1;
        while (i <= j) {
            while (point_less(s, axis, p[i], pivot)) i++;
            while (point_less(s, axis, pivot, p[j])) j--;
            if (i <= j) {
                int t = p[i];
                p[i++] = p[j];
                p[j--] = t;
            }
        }
        if (k <= j) {
            hi = j + 1;
        } else if (k >= i) {
            lo = i;
        } else {
            return;
        }
    }
}

static void tree_build(skyline *s, int k, int lo, int hi, int axis) {
    node *nd = &s->node[k];
    *nd = (node){INT_MAX, -1, INT_MAX, -1, INT_MAX};
    for (int i = lo; i < hi; i++) {
        const block *b = &s->b[s->point[i]];
        if (b->t0 < nd->x0) nd->x0 = b->t0;
        if (b->t0 > nd->x1) nd->x1 = b->t0;
        if (b->t1 < nd->y0) nd->y0 = b->t1;
        if (b->t1 > nd->y1) nd->y1 = b->t1;
    }
    if (hi - lo <= LEAF) return;
    int mid = lo + (hi - lo) / 2;
    select_kth(s, lo, hi, mid, axis);
    tree_build(s, 2 * k, lo, mid, !axis);
    tree_build(s, 2 * k + 1, mid, hi, !axis);
}

static int tree_fill(skyline *s, int k, int lo, int hi) {
    int best = INT_MAX;
    if (hi - lo <= LEAF) {
        for (int i = lo; i < hi; i++) best = s->rank[i] < best ? s->rank[i] : best;
    } else {
        int mid = lo + (hi - lo) / 2;
        int l = tree_fill(s, 2 * k, lo, mid), r = tree_fill(s, 2 * k + 1, mid, hi);
        best = l < r ? l : r;
    }
    return s->node[k].best = best;
}

/* The least rank below `best` among the unplaced points with t0 >= a and t1 <= b. */
static int tree_query(const skyline *s, int k, int lo, int hi, int32_t a, int32_t b, int best) {
    const node *nd = &s->node[k];
    if (nd->best >= best || nd->x1 < a || nd->y0 > b) return best;
    if (nd->x0 >= a && nd->y1 <= b) return nd->best;
    if (hi - lo <= LEAF) {
        for (int i = lo; i < hi; i++) {
            const block *p = &s->b[s->point[i]];
            if (s->rank[i] < best && p->t0 >= a && p->t1 <= b) best = s->rank[i];
        }
        return best;
    }
    int mid = lo + (hi - lo) / 2;
    best = tree_query(s, 2 * k, lo, mid, a, b, best);
    return tree_query(s, 2 * k + 1, mid, hi, a, b, best);
}

/* Takes the point at position i out; refreshes the nodes above it. */
static void tree_remove(skyline *s, int k, int lo, int hi, int i) {
    if (hi - lo <= LEAF) {
        s->rank[i] = INT_MAX;
        tree_fill(s, k, lo, hi);
        return;
    }
    int mid = lo + (hi - lo) / 2;
    if (i < mid) {
        tree_remove(s, 2 * k, lo, mid, i);
    } else {
        tree_remove(s, 2 * k + 1, mid, hi, i);
    }
    int l = s->node[2 * k].best, r = s->node[2 * k + 1].best;
    s->node[k].best = l < r ? l : r;
}

/* ---- the stretches ----------------------------------------------------------------------------- */

static bool entry_less(entry x, entry y) { return x.level != y.level ? x.level < y.level : x.a < y.a; }

static void heap_push(skyline *s, entry e) {
    vec_push(s->mem, &s->heap, e);
    entry *h = s->heap.data;
    int i = s->heap.n - 1;
    for (; i > 0 && entry_less(e, h[(i - 1) / 2]); i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = e;
}

static entry heap_pop(skyline *s) {
    entry *h = s->heap.data, top = h[0], e = h[--s->heap.n];
    int n = s->heap.n, i = 0;
    for (int c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && entry_less(h[c + 1], h[c])) c++;
        if (!entry_less(h[c], e)) break;
        h[i] = h[c];
    }
    if (n > 0) h[i] = e;
    return top;
}

/* Appends the stretch [a, b] at `level` after stretch `prev` (-1: at the front), before `next`; merges it with `prev`
 * when their levels are equal. Returns its id. Does not queue it. */
static int add(skyline *s, int32_t a, int32_t b, int64_t level, int prev, int next) {
    if (prev >= 0 && s->str.data[prev].level == level) {
        s->str.data[prev].dead = true;
        a = s->str.data[prev].a;
        prev = s->str.data[prev].prev;
    }
    if (next >= 0 && s->str.data[next].level == level) {
        s->str.data[next].dead = true;
        b = s->str.data[next].b;
        next = s->str.data[next].next;
    }
    int id = s->str.n;
    stretch st = {level, a, b, prev, next, false};
    vec_push(s->mem, &s->str, st);
    if (prev >= 0) s->str.data[prev].next = id;
    if (next >= 0) s->str.data[next].prev = id;
    return id;
}

static void queue(skyline *s, int id) {
    const stretch *t = &s->str.data[id];
    heap_push(s, (entry){t->level, t->a, id});
}

skyline *place_skyline_new(arena *a, const block *b, int n, int T) {
    skyline *s = ARENA_NEW(a, skyline);
    *s = (skyline){.b = b, .n = n, .T = T, .mem = a};
    s->point = ARENA_ARRAY(a, int, n);
    s->place = ARENA_ARRAY(a, int, n);
    s->rank = ARENA_ARRAY(a, int, n);
    int nodes = 2;
    for (int m = n; m > LEAF; m = (m + 1) / 2) nodes *= 2;
    s->node = ARENA_ARRAY(a, node, nodes);
    for (int i = 0; i < n; i++) s->point[i] = i;
    tree_build(s, 1, 0, n, 0);
    for (int i = 0; i < n; i++) s->place[s->point[i]] = i;
    return s;
}

int64_t place_skyline_run(skyline *s, const int *order, int64_t *off) {
    for (int r = 0; r < s->n; r++) s->rank[s->place[order[r]]] = r;
    tree_fill(s, 1, 0, s->n);
    s->str.n = s->heap.n = 0;
    queue(s, add(s, 0, s->T - 1, 0, -1, -1));
    int64_t arena_bytes = 0;
    for (int placed = 0; placed < s->n;) {
        ASSERT(s->heap.n > 0);
        int id = heap_pop(s).id;
        stretch t = s->str.data[id];
        if (t.dead) continue;
        s->str.data[id].dead = true;
        int r = tree_query(s, 1, 0, s->n, t.a, t.b, INT_MAX);
        if (r == INT_MAX) { /* a dent that nothing fits into: raise it to its lower neighbour */
            int64_t left = t.prev >= 0 ? s->str.data[t.prev].level : INT64_MAX;
            int64_t right = t.next >= 0 ? s->str.data[t.next].level : INT64_MAX;
            ASSERT(t.prev >= 0 || t.next >= 0);
            queue(s, add(s, t.a, t.b, min64(left, right), t.prev, t.next));
            continue;
        }
        int k = order[r];
        const block *b = &s->b[k];
        off[k] = round_up(t.level, b->align);
        int64_t top = off[k] + b->size;
        arena_bytes = max64(arena_bytes, top);
        tree_remove(s, 1, 0, s->n, s->place[k]);
        placed++;
        /* [a, b] becomes left rest, block, right rest; the block's part may reach the level of a neighbour. */
        int prev = t.prev, next = t.next, left = -1, right = -1;
        if (b->t0 > t.a) prev = left = add(s, t.a, b->t0 - 1, t.level, prev, -1);
        if (b->t1 < t.b) next = right = add(s, b->t1 + 1, t.b, t.level, -1, next);
        int mid = add(s, b->t0, b->t1, top, prev, next);
        if (left >= 0) queue(s, left);
        queue(s, mid);
        if (right >= 0) queue(s, right);
    }
    return arena_bytes;
}
