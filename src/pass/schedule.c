/* schedule.c - the order of the joint graph's nodes, chosen for a lower peak of live bytes.
 *
 *   before  %4 = cos(%3)   ... 200 nodes ...   %9 = rope(%8, %4, %5)
 *   after   ... 200 nodes ...   %4 = cos(%3)   %9 = rope(%8, %4, %5)
 *
 * Reverse list scheduling. The order is built from its end: of the nodes whose users are all placed, the one that came
 * last in the program is placed next - except that a node which makes more bytes than it frees is placed at once,
 * directly before its first user. So tables, masks and recomputed values appear where they are needed, and what shrinks
 * its operands (a norm's backward, a product with few columns) stays where it was. The live-byte peak of both orders is
 * simulated and the program's own order is kept unless the new one is lower: the pass never raises the peak.
 *
 * Parameters and inputs come first, in their order. Collectives and effects keep their order among themselves, so all
 * ranks still meet in the same sequence. Requires: a joint graph. Keeps: every node, unchanged.
 */
#include "pass/pass.h"

typedef struct sched {
    const ir_graph *g;
    int *root;      /* by value: the value whose storage it shows (views) */
    int64_t *bytes; /* by root value: local bytes; 0 for parameters, inputs and literals */
    int *left;      /* by node: users not placed yet */
} sched;

static bool fixed(const ir_node *n) { return (op_table[n->op].flags & F_COLL) || ir_has_effect(n); }

static void storage(sched *s, arena *a) {
    const ir_graph *g = s->g;
    s->root = ARENA_ARRAY(a, int, g->values.n);
    s->bytes = ARENA_ARRAY(a, int64_t, g->values.n);
    for (int v = 0; v < g->values.n; v++) {
        const ir_node *n = ir_def(g, v);
        int flags = op_table[n->op].flags;
        bool resident = n->op == OP_param || n->op == OP_input || n->op == OP_const || n->op == OP_fill;
        s->root[v] = (flags & F_VIEW) ? s->root[n->in[0]] : v;
        s->bytes[v] = resident || (flags & F_VIEW) ? 0 : ir_local_bytes(g, v);
    }
}

/* Peak of live bytes when the nodes run in this order; storage lives from its maker to its last user. */
static int64_t peak(const sched *s, const int *order, arena *a) {
    const ir_graph *g = s->g;
    int *last = ARENA_ARRAY(a, int, g->values.n);
    int64_t *delta = ARENA_ARRAY(a, int64_t, g->nodes.n + 2), now = 0, top = 0;
    memset(last, -1, sizeof *last * (size_t)g->values.n);
    for (int at = 0; at < g->nodes.n; at++) {
        const ir_node *n = &g->nodes.data[order[at]];
        for (int k = 0; k < n->nin; k++) last[s->root[n->in[k]]] = at;
        for (int k = 0; k < n->nout; k++) last[s->root[n->out[k]]] = at;
    }
    for (int i = 0; i < g->outputs.n; i++) last[s->root[g->outputs.data[i].value]] = g->nodes.n;
    for (int at = 0; at < g->nodes.n; at++) {
        const ir_node *n = &g->nodes.data[order[at]];
        for (int k = 0; k < n->nout; k++) {
            delta[at] += s->bytes[n->out[k]];
            delta[last[s->root[n->out[k]]] + 1] -= s->bytes[n->out[k]];
        }
    }
    for (int at = 0; at < g->nodes.n; at++) top = max64(top, now += delta[at]);
    return top;
}

/* Would placing node n here, last of what is not placed, hold fewer bytes than leaving it where it was? Its results
 * then live shorter; operands that nothing placed later reads live longer. */
static bool sinks(const sched *s, const ir_node *n, const bool *read_later) {
    int64_t made = 0, held = 0;
    for (int k = 0; k < n->nout; k++) made += s->bytes[n->out[k]];
    for (int k = 0; k < n->nin; k++) {
        int r = s->root[n->in[k]];
        bool again = false;
        for (int j = 0; j < k; j++) again |= s->root[n->in[j]] == r;
        if (!again && !read_later[r]) held += s->bytes[r];
    }
    return (op_table[n->op].flags & F_VIEW) || made >= held;
}

static void reverse_greedy(sched *s, int *order, arena *a) {
    const ir_graph *g = s->g;
    const int n = g->nodes.n;
    if (n < 1) return;
    int at = n, cursor = n - 1, last_fixed = -1;
    bool *placed = ARENA_ARRAY(a, bool, n), *read_later = ARENA_ARRAY(a, bool, g->values.n);
    int *next_fixed = ARENA_ARRAY(a, int, n);
    s->left = ARENA_ARRAY(a, int, n);
    for (int i = 0; i < n; i++) {
        const ir_node *x = &g->nodes.data[i];
        for (int k = 0; k < x->nin; k++) s->left[g->values.data[x->in[k]].node]++;
        next_fixed[i] = -1;
        if (fixed(x)) {
            if (last_fixed >= 0) {
                next_fixed[last_fixed] = i;
                s->left[last_fixed]++; /* the later one counts as a user of the earlier */
            }
            last_fixed = i;
        }
    }
    int *prev = ARENA_ARRAY(a, int, n);
    memset(prev, -1, sizeof *prev * (size_t)n);
    for (int i = 0; i < n; i++)
        if (next_fixed[i] >= 0) prev[next_fixed[i]] = i;
    int leaves = 0; /* parameters and inputs keep their place and order at the top: the plan lists them so */
    for (int i = 0; i < n; i++)
        if (g->nodes.data[i].op == OP_param || g->nodes.data[i].op == OP_input) {
            placed[i] = true;
            order[leaves++] = i;
        }
    while (cursor > 0 && placed[cursor]) cursor--;
    VEC(int) stack = {0}; /* nodes to place now, the last one first */
    while (at > leaves) {
        int i;
        if (stack.n) {
            i = stack.data[--stack.n];
        } else {
            int c = cursor; /* the last node of the program that is free */
            while (placed[c] || s->left[c] > 0) c--;
            i = c;
        }
        if (placed[i]) continue;
        const ir_node *x = &g->nodes.data[i];
        placed[i] = true;
        order[--at] = i;
        for (int k = 0; k < x->nin; k++) read_later[s->root[x->in[k]]] = true;
        if (prev[i] >= 0) s->left[prev[i]]--;
        for (int k = 0; k < x->nin; k++) {
            int d = g->values.data[x->in[k]].node;
            if (--s->left[d] == 0 && !placed[d] && !fixed(&g->nodes.data[d]) && sinks(s, &g->nodes.data[d], read_later))
                vec_push(a, &stack, d);
        }
        while (cursor > 0 && placed[cursor]) cursor--;
    }
}

sp_status pass_schedule(const ir_graph *g, ir_graph **out) {
    arena *scratch = arena_new();
    sched s = {.g = g};
    storage(&s, scratch);
    int *order = ARENA_ARRAY(scratch, int, g->nodes.n), *own = ARENA_ARRAY(scratch, int, g->nodes.n);
    for (int i = 0; i < g->nodes.n; i++) own[i] = i;
    reverse_greedy(&s, order, scratch);
    if (peak(&s, order, scratch) >= peak(&s, own, scratch)) {
        arena_free(scratch);
        *out = (ir_graph *)g;
        return SP_OK;
    }
    ir_graph *h = ir_new(g->a, g->name);
    h->mesh = g->mesh;
    h->broken_op = g->broken_op;
    h->seq = g->seq;
    h->seq_valid = g->seq_valid;
    ir_val *map = ARENA_ARRAY(scratch, ir_val, g->values.n);
    sp_status st = SP_OK;
    for (int i = 0; i < g->nodes.n && st == SP_OK; i++) st = ir_copy_node(h, g, order[i], map);
    for (int i = 0; i < g->outputs.n && st == SP_OK; i++)
        ir_set_output(h, g->outputs.data[i].name, map[g->outputs.data[i].value]);
    arena_free(scratch);
    *out = h;
    return st;
}
