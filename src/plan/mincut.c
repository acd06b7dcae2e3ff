/* mincut.c - Dinic's maximum flow (E. A. Dinic, Soviet Math. Doklady 11, 1970): breadth-first levels, then a blocking
 * flow along them by depth-first search with one current edge per node, until t is out of reach. The search keeps its
 * path in an array, since the graph of a deep model is deeper than a stack should be.
 *
 * Edge 2e is the e-th edge, 2e + 1 its reverse. Both hold what they can still carry.
 */
#include "plan/mincut.h"

typedef struct edge {
    int to, next; /* next edge out of the same node, -1 at the end */
    int64_t room, cap;
} edge;

struct plan_flow {
    int n;
    int *head; /* node -> its first edge */
    VEC(edge) e;
    int *level, *at, *queue, *trail; /* level of the last search; current edge; scratch */
    uint8_t *side;                   /* bit 0: reached from s in what is left; bit 1: t is reached from it */
    int path_len;
    arena *a;
};

plan_flow *plan_flow_new(arena *a, int nodes) {
    plan_flow *f = ARENA_NEW(a, plan_flow);
    f->n = nodes;
    f->a = a;
    f->head = ARENA_ARRAY(a, int, nodes);
    f->level = ARENA_ARRAY(a, int, nodes);
    f->at = ARENA_ARRAY(a, int, nodes);
    f->queue = ARENA_ARRAY(a, int, nodes);
    f->trail = ARENA_ARRAY(a, int, nodes + 1);
    f->side = ARENA_ARRAY(a, uint8_t, nodes);
    for (int v = 0; v < nodes; v++) f->head[v] = -1;
    return f;
}

int plan_flow_edge(plan_flow *f, int from, int to, int64_t cap) {
    ASSERT(from >= 0 && from < f->n && to >= 0 && to < f->n && cap >= 0 && cap <= PLAN_INF);
    edge fwd = {to, f->head[from], 0, cap};
    vec_push(f->a, &f->e, fwd);
    f->head[from] = f->e.n - 1;
    edge back = {from, f->head[to], 0, 0};
    vec_push(f->a, &f->e, back);
    f->head[to] = f->e.n - 1;
    return f->e.n / 2 - 1;
}

void plan_flow_set(plan_flow *f, int number, int64_t cap) {
    ASSERT(number >= 0 && number < f->e.n / 2 && cap >= 0 && cap <= PLAN_INF);
    f->e.data[2 * number].cap = cap;
}

/* A path of infinite edges, breadth first; leaves its nodes in trail and their count in path_len. */
static bool infinite(plan_flow *f, int s, int t) {
    int *from = f->at, head = 0, tail = 0;
    for (int v = 0; v < f->n; v++) from[v] = -1;
    from[s] = s;
    f->queue[tail++] = s;
    while (head < tail && from[t] < 0) {
        int v = f->queue[head++];
        for (int i = f->head[v]; i >= 0; i = f->e.data[i].next) {
            const edge *x = &f->e.data[i];
            if (x->cap < PLAN_INF || from[x->to] >= 0) continue;
            from[x->to] = v;
            f->queue[tail++] = x->to;
        }
    }
    f->path_len = 0;
    if (from[t] < 0) return false;
    for (int v = t;; v = from[v]) {
        f->trail[f->path_len++] = v;
        if (v == s) break;
    }
    for (int i = 0, j = f->path_len - 1; i < j; i++, j--) {
        int v = f->trail[i];
        f->trail[i] = f->trail[j];
        f->trail[j] = v;
    }
    return true;
}

/* Levels by distance from s in what is left; true when t is reached. */
static bool levels(plan_flow *f, int s, int t) {
    for (int v = 0; v < f->n; v++) f->level[v] = -1;
    int head = 0, tail = 0;
    f->level[s] = 0;
    f->queue[tail++] = s;
    while (head < tail) {
        int v = f->queue[head++];
        for (int i = f->head[v]; i >= 0; i = f->e.data[i].next) {
            const edge *x = &f->e.data[i];
            if (x->room <= 0 || f->level[x->to] >= 0) continue;
            f->level[x->to] = f->level[v] + 1;
            f->queue[tail++] = x->to;
        }
    }
    return f->level[t] >= 0;
}

/* A blocking flow along the levels; returns its value. trail holds the edges from s to v. */
static int64_t block(plan_flow *f, int s, int t) {
    int64_t total = 0;
    for (int v = 0; v < f->n; v++) f->at[v] = f->head[v];
    int depth = 0, v = s;
    for (;;) {
        if (v == t) {
            int64_t least = INT64_MAX;
            for (int i = 0; i < depth; i++) least = min64(least, f->e.data[f->trail[i]].room);
            for (int i = depth - 1; i >= 0; i--) {
                edge *x = &f->e.data[f->trail[i]];
                x->room -= least;
                f->e.data[f->trail[i] ^ 1].room += least;
                if (x->room == 0) depth = i; /* go on from the first edge that is full */
            }
            total += least;
            v = f->e.data[f->trail[depth] ^ 1].to;
            continue;
        }
        int *i = &f->at[v];
        while (*i >= 0 && !(f->e.data[*i].room > 0 && f->level[f->e.data[*i].to] == f->level[v] + 1))
            *i = f->e.data[*i].next;
        if (*i >= 0) {
            f->trail[depth++] = *i;
            v = f->e.data[*i].to;
        } else if (depth > 0) { /* a dead end: step back and past the edge that led here */
            int back = f->trail[--depth];
            v = f->e.data[back ^ 1].to;
            f->at[v] = f->e.data[back].next;
        } else {
            return total;
        }
    }
}

bool plan_flow_solve(plan_flow *f, int s, int t, int64_t *value) {
    ASSERT(s != t);
    if (infinite(f, s, t)) return false;
    int64_t finite = 0;
    for (int i = 0; i < f->e.n; i += 2) {
        f->e.data[i].room = f->e.data[i].cap;
        f->e.data[i + 1].room = 0;
        if (f->e.data[i].cap < PLAN_INF) ASSERT(add_ok(finite, f->e.data[i].cap, &finite) && finite < PLAN_INF);
    }
    *value = 0;
    while (levels(f, s, t)) *value += block(f, s, t);
    for (int v = 0; v < f->n; v++) f->side[v] = f->level[v] >= 0;
    int head = 0, tail = 0; /* backwards from t: an edge u -> v with room left is the twin of one out of v */
    f->side[t] |= 2;
    f->queue[tail++] = t;
    while (head < tail) {
        int v = f->queue[head++];
        for (int i = f->head[v]; i >= 0; i = f->e.data[i].next) {
            int u = f->e.data[i].to;
            if (f->e.data[i ^ 1].room <= 0 || f->side[u] & 2) continue;
            f->side[u] |= 2;
            f->queue[tail++] = u;
        }
    }
    return true;
}

bool plan_flow_source_side(const plan_flow *f, int v) { return f->side[v] & 1; }

bool plan_flow_source_side_max(const plan_flow *f, int v) { return !(f->side[v] & 2); }

int plan_flow_path(const plan_flow *f, const int **nodes) {
    *nodes = f->trail;
    return f->path_len;
}
