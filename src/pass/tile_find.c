/* tile_find.c - which nodes work row by row along the sequence, and which sets of them are worth a loop.
 *
 * First the sequence dimension of every value is followed from the inputs through the ops' rules (ir_rule), as `shard`
 * does for ranks. A node may be in a region when it has that dimension as a factor that passes or is summed, its
 * results have it too or are sums over it, and it is not attention, a collective or a leaf.
 *
 * Then regions grow around values that are too large to be whole, the largest first. A value is gone from memory when
 * its maker and all its readers are in one region; so a seed brings those, they bring the next large value, until none
 * is left. Values of ordinary size come in only where that makes what is alive beside the loop smaller. A region
 * must be convex: no path leaves it and comes back, regions found before counting as one node each.
 */
#include "pass/tile_impl.h"

#include <stdlib.h>

static bool is_view(const ir_node *n) { return (op_table[n->op].flags & F_VIEW) != 0; }
static bool is_leaf(const ir_node *n) { return (op_table[n->op].flags & F_LEAF) != 0; }

/* Linear in one operand, so that a sum over tiles passes: what stands between a weight gradient and its accum. */
static bool passes_sum(ir_op op) {
    return op == OP_permute || op == OP_reshape || op == OP_cast || op == OP_neg || op == OP_copy || op == OP_accum;
}

/* The factor of n that the sequence is, from its first operand that has one; -1 none. */
static int seq_factor(const tiler *t, const ir_node *n, const ir_rule *r, int64_t *outer) {
    for (int i = 0; i < n->nin; i++) {
        axis_layout l = t->seq[n->in[i]];
        if (l.kind != LAYOUT_SHARD || r->in[i][l.dim] < 0) continue;
        *outer = l.outer;
        return r->in[i][l.dim];
    }
    return -1;
}

axis_layout tile_demand(const tiler *t, const ir_node *n, int i) {
    ir_rule r;
    int64_t outer = 1;
    if (n->op == OP_reshape || passes_sum(n->op)) {
        if (t->seq[n->in[i]].kind != LAYOUT_REPL) return t->seq[n->in[i]];
    }
    if (!ir_rule_of(t->g, n, t->a, &r)) return (axis_layout){0};
    int f = seq_factor(t, n, &r, &outer);
    for (int d = 0; f >= 0 && d < ir_typeof(t->g, n->in[i])->rank; d++)
        if (r.in[i][d] == f) return layout_shard(d, outer);
    return (axis_layout){0};
}

/* The sequence dimension of n's results, and whether n may be in a region. */
static void analyse_node(tiler *t, int index) {
    const ir_graph *g = t->g;
    const ir_node *n = &g->nodes.data[index];
    int64_t dim, cut = t->most * t->o->ranks;
    for (int k = 0; k < n->nout; k++) t->seq[n->out[k]] = (axis_layout){0};
    if (n->op == OP_input || n->op == OP_iota) {
        dim = n->op == OP_input ? ir_int(n, "seq", -1) : ir_int(n, "seq", 0) ? ir_int(n, "dim", 0) : -1;
        if (dim >= 0 && ir_typeof(g, n->out[0])->dim[dim] % cut == 0) t->seq[n->out[0]] = layout_shard((int)dim, 1);
        return;
    }
    if (n->op == OP_loop) {
        for (int k = 0; k < n->nout; k++) {
            axis_layout l = ir_layoutof(n->region, n->region->outputs.data[k].value)->axis[ir_tile_axis(n->region)];
            if (l.kind == LAYOUT_SHARD) t->seq[n->out[k]] = l;
        }
        return;
    }
    if (!n->nin) return;
    axis_layout first = t->seq[n->in[0]];
    if (n->op == OP_offload || n->op == OP_fetch) { /* whole values go to the host, at a fixed place in the order */
        t->seq[n->out[0]] = first;
        return;
    }
    if (first.kind == LAYOUT_PARTIAL) { /* a gradient on its way to its buffer */
        t->fits[index] = passes_sum(n->op);
        if (t->fits[index] && n->nout) t->seq[n->out[0]] = first;
        return;
    }
    if (n->op == OP_reshape) {
        axis_layout l;
        if (first.kind != LAYOUT_SHARD ||
            !ir_reshape_layout(ir_typeof(g, n->in[0]), ir_typeof(g, n->out[0]), first, (int)cut, &l))
            return;
        t->seq[n->out[0]] = l;
        t->fits[index] = true;
        return;
    }
    ir_rule r;
    if (!ir_rule_of(g, n, t->a, &r)) { /* a change of layout: the dimensions stay */
        if (n->nout == 1 && first.kind == LAYOUT_SHARD) t->seq[n->out[0]] = first;
        return;
    }
    bool attention = n->op == OP_attention || n->op == OP_attention_grad;
    int64_t outer = 1;
    int f = seq_factor(t, n, &r, &outer);
    if (f < 0 || r.kind[f] == FACTOR_WHOLE) return;
    bool ok = !attention && n->op != OP_dropout; /* its mask is indexed by the whole tensor */
    for (int i = 0; i < n->nin; i++) {
        axis_layout l = t->seq[n->in[i]], want = {0};
        for (int d = 0; d < ir_typeof(g, n->in[i])->rank; d++)
            if (r.in[i][d] == f) want = layout_shard(d, outer);
        if (l.kind == LAYOUT_PARTIAL) ok = false;
        if (l.kind == LAYOUT_SHARD && (want.kind != l.kind || want.dim != l.dim || want.outer != l.outer)) ok = false;
        if (want.kind == LAYOUT_SHARD && ir_typeof(g, n->in[i])->dim[want.dim] % (outer * cut)) ok = false;
    }
    for (int k = 0; k < n->nout; k++) {
        axis_layout *l = &t->seq[n->out[k]];
        if (ok) l->kind = LAYOUT_PARTIAL;
        for (int d = 0; d < ir_typeof(g, n->out[k])->rank; d++)
            if (r.out[k][d] == f) *l = layout_shard(d, outer);
    }
    if (n->op == OP_attention_grad) { /* dk and dv have rows too: the keys' */
        t->seq[n->out[1]] = t->seq[n->in[1]];
        t->seq[n->out[2]] = t->seq[n->in[2]];
    }
    t->fits[index] = ok;
}

void tile_analyse(tiler *t) {
    const ir_graph *g = t->g;
    int nv = g->values.n, nn = g->nodes.n;
    t->seq = ARENA_ARRAY(t->a, axis_layout, nv);
    t->root = ARENA_ARRAY(t->a, ir_val, nv);
    t->bytes = ARENA_ARRAY(t->a, int64_t, nv);
    t->returned = ARENA_ARRAY(t->a, bool, nv);
    t->first_user = ARENA_ARRAY(t->a, int, nv + 2);
    t->fits = ARENA_ARRAY(t->a, bool, nn);
    t->region = ARENA_ARRAY(t->a, int, nn);
    t->pos = ARENA_ARRAY(t->a, int, nn);
    t->mark = ARENA_ARRAY(t->a, int, nn);
    t->member = ARENA_ARRAY(t->a, int, nn);
    t->count = 1;
    for (int i = 0; i < nn; i++) {
        const ir_node *n = &g->nodes.data[i];
        t->region[i] = -1;
        t->pos[i] = i;
        analyse_node(t, i);
        for (int k = 0; k < n->nout; k++) {
            ir_val v = n->out[k];
            t->root[v] = is_view(n) ? t->root[n->in[0]] : v;
            t->bytes[v] = is_view(n) || is_leaf(n) ? 0 : ir_local_bytes(g, v);
        }
        for (int k = 0; k < n->nin; k++) t->first_user[n->in[k] + 1]++;
    }
    for (int v = 0; v < nv; v++) t->first_user[v + 1] += t->first_user[v];
    t->user = ARENA_ARRAY(t->a, int, t->first_user[nv] + 1);
    int *at = arena_memdup(t->a, t->first_user, sizeof *at * (size_t)(nv + 1));
    for (int i = 0; i < nn; i++)
        for (int k = 0; k < g->nodes.data[i].nin; k++) t->user[at[g->nodes.data[i].in[k]]++] = i;
    for (int i = 0; i < g->outputs.n; i++) t->returned[g->outputs.data[i].value] = true;
}

/* ---- sets of nodes ----------------------------------------------------------------------------- */

/* A set being grown: node i is in it iff t->member[i] == t->count. `list` has them in the order in which they came. */
typedef struct growth {
    tiler *t;
    VEC(int) list;
    bool loss; /* nodes of forward and backward may mix */
} growth;

static bool in_set(const growth *s, int node) { return s->t->member[node] == s->t->count; }

static bool add_node(growth *s, int node) {
    tiler *t = s->t;
    if (in_set(s, node)) return true;
    if (!t->fits[node] || t->region[node] >= 0) return false;
    t->member[node] = t->count;
    vec_push(t->a, &s->list, node);
    return true;
}

static void roll_back(growth *s, int n) {
    while (s->list.n > n) s->t->member[s->list.data[--s->list.n]] = 0;
}

/* Is it a view of its operand? Or, in the loss head, its operand in another type: the same rows, and what is made of
 * them. */
static bool shows(const growth *s, const ir_node *n) { return is_view(n) || (s->loss && n->op == OP_cast); }

/* Brings v's maker and all its readers in, and those of the views through which they see it. */
static bool make_inner(growth *s, ir_val v) {
    tiler *t = s->t;
    const ir_graph *g = t->g;
    int maker = g->values.data[v].node;
    if (t->returned[v] || is_leaf(&g->nodes.data[maker])) return false;
    bool known = in_set(s, maker);
    if (!add_node(s, maker)) return false;
    const ir_node *n = &g->nodes.data[maker];
    if (shows(s, n) && !known && !make_inner(s, n->in[0])) return false;
    for (int u = t->first_user[v]; u < t->first_user[v + 1]; u++) {
        const ir_node *reader = &g->nodes.data[t->user[u]];
        bool there = in_set(s, t->user[u]);
        if (!add_node(s, t->user[u])) return false;
        if (is_view(reader) && !there && !make_inner(s, reader->out[0])) return false;
    }
    return true;
}

/* Sums over tiles bring the way to their accumulation. */
static bool close_sums(growth *s) {
    tiler *t = s->t;
    const ir_graph *g = t->g;
    for (int i = 0; i < s->list.n; i++) {
        const ir_node *n = &g->nodes.data[s->list.data[i]];
        for (int k = 0; k < n->nout; k++) {
            ir_val v = n->out[k];
            if (t->seq[v].kind != LAYOUT_PARTIAL) continue;
            for (int u = t->first_user[v]; u < t->first_user[v + 1]; u++)
                if (t->fits[t->user[u]]) add_node(s, t->user[u]);
        }
    }
    return true;
}

static bool inner(const growth *s, ir_val v) {
    const tiler *t = s->t;
    if (t->returned[v] || !in_set(s, t->g->values.data[v].node)) return false;
    for (int u = t->first_user[v]; u < t->first_user[v + 1]; u++)
        if (!in_set(s, t->user[u])) return false;
    return true;
}

/* The last place at which a node of the set runs. */
static int last_place(const growth *s) {
    int last = 0;
    for (int i = 0; i < s->list.n; i++)
        if (s->t->pos[s->list.data[i]] > last) last = s->t->pos[s->list.data[i]];
    return last;
}

/* Does a path leave the set and come back? Breadth first from its readers outside; a region found before is entered
 * and left as one. Nothing later than the set's last node leads back to it. */
static bool convex(const growth *s) {
    tiler *t = s->t;
    const ir_graph *g = t->g;
    int last = last_place(s), stamp = ++t->stamp;
    VEC(int) queue = {0};
    for (int i = 0; i < s->list.n; i++) vec_push(t->a, &queue, s->list.data[i]);
    for (int q = 0; q < queue.n; q++) {
        int x = queue.data[q];
        bool own = in_set(s, x);
        const ir_node *n = &g->nodes.data[x];
        for (int k = 0; k < n->nout; k++)
            for (int u = t->first_user[n->out[k]]; u < t->first_user[n->out[k] + 1]; u++) {
                int y = t->user[u];
                if (in_set(s, y)) {
                    if (!own) return false;
                    continue;
                }
                if (t->mark[y] == stamp || t->pos[y] > last) continue;
                const tile_region *r = t->region[y] >= 0 ? &t->regions.data[t->region[y]] : NULL;
                for (int m = 0; m < (r ? r->nodes.n : 1); m++) {
                    int z = r ? r->nodes.data[m] : y;
                    t->mark[z] = stamp;
                    vec_push(t->a, &queue, z);
                }
            }
    }
    return true;
}

/* ---- borders ----------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b) {
    return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

static bool holds(const ir_val *list, int n, ir_val v) {
    for (int i = 0; i < n; i++)
        if (list[i] == v) return true;
    return false;
}

/* Inputs, outputs and what crosses. A view that is read outside is made again there, from what it shows. */
static tile_region border(const growth *s) {
    tiler *t = s->t;
    const ir_graph *g = t->g;
    tile_region r = {0};
    for (int i = 0; i < s->list.n; i++) vec_push(t->a, &r.nodes, s->list.data[i]);
    qsort(r.nodes.data, (size_t)r.nodes.n, sizeof *r.nodes.data, by_number);
    VEC(ir_val) storage = {0}; /* of inputs, each counted once */
    for (int i = 0; i < r.nodes.n; i++) {
        const ir_node *n = &g->nodes.data[r.nodes.data[i]];
        for (int k = 0; k < n->nin; k++) {
            ir_val v = n->in[k], root = t->root[v];
            if (in_set(s, g->values.data[v].node)) continue;
            if (!holds(r.inputs.data, r.inputs.n, v)) vec_push(t->a, &r.inputs, v);
            if (holds(storage.data, storage.n, root) || tile_demand(t, n, k).kind != LAYOUT_SHARD) continue;
            vec_push(t->a, &storage, root);
            r.boundary += t->bytes[root];
        }
        for (int k = 0; k < n->nout; k++) {
            ir_val v = n->out[k];
            bool outside = t->returned[v];
            for (int u = t->first_user[v]; u < t->first_user[v + 1]; u++) outside |= !in_set(s, t->user[u]);
            if (!outside) continue;
            while (is_view(ir_def(g, v)) && in_set(s, g->values.data[v].node)) v = ir_def(g, v)->in[0];
            if (!in_set(s, g->values.data[v].node) || holds(r.outputs.data, r.outputs.n, v)) continue;
            vec_push(t->a, &r.outputs, v);
            r.boundary += t->bytes[v];
        }
    }
    return r;
}

/* Tries to make v inner; false and unchanged when it cannot be. */
static bool try_inner(growth *s, ir_val v) {
    int before = s->list.n;
    if (make_inner(s, v) && close_sums(s) && convex(s)) return true;
    roll_back(s, before);
    return false;
}

/* A flattened operand is read through its view in the region, so that a tile of it is one window. */
static void pull_views(growth *s) {
    tiler *t = s->t;
    for (int i = 0; i < s->list.n; i++) {
        const ir_node *n = &t->g->nodes.data[s->list.data[i]];
        for (int k = 0; k < n->nin; k++) {
            int maker = t->g->values.data[n->in[k]].node;
            if (is_view(&t->g->nodes.data[maker]) && t->seq[n->in[k]].outer > 1) add_node(s, maker);
        }
    }
}

static bool mixes(const tiler *t, const tile_region *r) {
    bool forward = false, backward = false;
    for (int i = 0; i < r->nodes.n; i++) *(t->g->nodes.data[r->nodes.data[i]].tag ? &backward : &forward) = true;
    return forward && backward;
}

static bool reads_output(const tile_region *r, const ir_node *n) {
    for (int k = 0; k < n->nin; k++)
        if (holds(r->outputs.data, r->outputs.n, n->in[k])) return true;
    return false;
}

/* Inputs of `now` that were alive while `before` ran (up to place `last`) although it did not read them: they cost
 * nothing. Before `save`, in the loss head, what the backward reads later says nothing, for it may run again by then;
 * but what is read together with the region's results must be there. */
static int64_t alive_anyway(const growth *s, const tile_region *before, const tile_region *now, int last) {
    const tiler *t = s->t;
    const ir_graph *g = t->g;
    int64_t sum = 0;
    for (int i = 0; i < now->inputs.n; i++) {
        ir_val v = now->inputs.data[i];
        if (holds(before->inputs.data, before->inputs.n, v) || t->pos[g->values.data[v].node] > last) continue;
        for (int u = t->first_user[v]; u < t->first_user[v + 1]; u++)
            if (t->pos[t->user[u]] > last && (!s->loss || reads_output(before, &g->nodes.data[t->user[u]]))) {
                sum += t->bytes[v];
                break;
            }
    }
    return sum;
}

/* Makes inner what lets less be alive beside the loop; also, when it costs nothing, cheap nodes at its border: norms
 * and additions whose operands and results then need not be whole at the same time. */
static void absorb(growth *s, ir_val seed) {
    tiler *t = s->t;
    const ir_graph *g = t->g;
    tile_region r = border(s);
    for (int i = 0; i < s->list.n; i++) { /* the list grows */
        const ir_node *n = &g->nodes.data[s->list.data[i]];
        for (int k = 0; k < n->nin + n->nout; k++) {
            ir_val v = k < n->nin ? t->root[n->in[k]] : n->out[k - n->nin];
            if (!t->bytes[v] || 2 * t->bytes[v] > t->bytes[seed] || inner(s, v)) continue;
            int before = s->list.n, last = last_place(s);
            if (!try_inner(s, v)) continue;
            bool product = false;
            for (int x = before; x < s->list.n; x++) product |= g->nodes.data[s->list.data[x]].op == OP_dot;
            tile_region after = border(s);
            int64_t cost = after.boundary - alive_anyway(s, &r, &after, last);
            if (cost < r.boundary || (!product && cost <= r.boundary + r.boundary / 64))
                r = after;
            else
                roll_back(s, before);
        }
    }
}

/* The region around a seed; false when there is none. */
static bool grow(growth *s, ir_val seed, tile_region *out) {
    tiler *t = s->t;
    const ir_graph *g = t->g;
    t->count++;
    s->list.n = 0;
    if (!try_inner(s, seed)) return false;
    for (int i = 0; i < s->list.n; i++) { /* the list grows */
        const ir_node *n = &g->nodes.data[s->list.data[i]];
        for (int k = 0; k < n->nin + n->nout; k++) {
            ir_val v = k < n->nin ? t->root[n->in[k]] : n->out[k - n->nin];
            if (2 * t->bytes[v] > t->bytes[seed] && !inner(s, v)) try_inner(s, v);
        }
    }
    absorb(s, seed);
    absorb(s, seed); /* what was refused may fit now */
    pull_views(s);
    *out = border(s);
    return out->outputs.n <= IR_MAX_OUT && mixes(t, out) == s->loss && convex(s);
}

/* ---- seeds ------------------------------------------------------------------------------------- */

typedef struct seed {
    int64_t bytes;
    ir_val v;
} seed;

/* The largest first; of equal ones the first made. */
static int by_size(const void *a, const void *b) {
    const seed *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return (x->v > y->v) - (x->v < y->v);
}

void tile_find(tiler *t, bool loss) {
    const ir_graph *g = t->g;
    VEC(seed) seeds = {0};
    for (ir_val v = 0; v < g->values.n; v++) {
        seed x = {t->bytes[v], v};
        if (t->seq[v].kind == LAYOUT_SHARD && x.bytes && dtype_is_float(ir_typeof(g, v)->t)) vec_push(t->a, &seeds, x);
    }
    if (!seeds.n) return;
    qsort(seeds.data, (size_t)seeds.n, sizeof *seeds.data, by_size);
    /* Most values of a transformer are as wide as its residual stream; a seed is wider. */
    int64_t common = seeds.data[seeds.n / 2].bytes, least = t->o->tile_bytes ? t->o->tile_bytes : common + common / 4;
    growth s = {.t = t, .loss = loss};
    for (int i = 0; i < seeds.n && seeds.data[i].bytes > least; i++) {
        ir_val v = seeds.data[i].v;
        tile_region r;
        int maker = g->values.data[v].node;
        if (!t->fits[maker] || t->region[maker] >= 0 || !grow(&s, v, &r) || !tile_choose(t, &r)) continue;
        for (int k = 0; k < r.nodes.n; k++) t->region[r.nodes.data[k]] = t->regions.n;
        vec_push(t->a, &t->regions, r);
        tile_order order = {0};
        tile_schedule(t, &order);
        for (int k = 0; k < order.n; k++) {
            int item = order.data[k];
            const tile_region *x = item < 0 ? &t->regions.data[-item - 1] : NULL;
            for (int m = 0; m < (x ? x->nodes.n : 1); m++) t->pos[x ? x->nodes.data[m] : item] = k;
        }
    }
}
