/* save_model.c - the joint graph as a chain of segments: what remat.h works on.
 *
 * A segment ends where exactly one activation is alive: everything later depends on everything earlier through it. In a
 * residual network these are the points between its blocks. Blocks repeat (attention, MLP, attention, MLP ...); the
 * shortest repeating group is a layer, and only the points between layers stay boundaries, so that the leanest plan
 * keeps one value for each layer. Nothing here looks at names: any graph has such points, at worst none.
 *
 * Values that depend on inputs only (rotary tables, masks, positions) belong to no segment and live through the step;
 * they are small. Values that depend on parameters only (casts of weights) are made again in each segment that reads
 * them, just before: tied weights would otherwise keep a cast alive from the first layer to the last.
 *
 * A backward node belongs to the segment whose forward values it reads; nodes that read none go with the ones before.
 */
#include "pass/save_impl.h"

#include <stdlib.h>

/* ---- kinds and roots --------------------------------------------------------------------------- */

static void classify(save_model *m) {
    const ir_graph *g = m->g;
    enum { INPUT = 1, PARAM = 2 };
    uint8_t *on = ARENA_ARRAY(m->a, uint8_t, g->values.n); /* what it depends on */
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        int flags = op_table[n->op].flags;
        uint8_t dep = n->op == OP_input || n->op == OP_iota ? INPUT : n->op == OP_param ? PARAM : 0;
        for (int k = 0; k < n->nin; k++) dep |= on[n->in[k]];
        for (int k = 0; k < n->nout; k++) {
            ir_val v = n->out[k];
            bool view = (flags & F_VIEW) != 0;
            on[v] = dep;
            m->root[v] = view ? m->root[n->in[0]] : v;
            save_kind kind = n->tag                   ? KIND_BACK
                             : dep == (INPUT | PARAM) ? KIND_ACT
                             : dep == PARAM           ? KIND_WEIGHT
                                                      : KIND_SIDE;
            if ((flags & F_LEAF && n->op != OP_iota) || (view && m->kind[n->in[0]] == KIND_FREE)) kind = KIND_FREE;
            m->kind[v] = (uint8_t)kind;
        }
    }
}

/* ---- where the forward falls apart ------------------------------------------------------------- */

typedef VEC(int) ints;

/* Nodes after which exactly one activation's storage is still to be read: the ends of the elementary segments. */
static void find_ends(const save_model *m, ints *ends) {
    const ir_graph *g = m->g;
    int *last = ARENA_ARRAY(m->a, int, g->values.n), alive = 0;
    int64_t sum = 0; /* of the numbers of the storages alive: of one, its number */
    for (int i = 0; i < g->nodes.n; i++)
        for (int k = 0; !g->nodes.data[i].tag && k < g->nodes.data[i].nin; k++)
            last[m->root[g->nodes.data[i].in[k]]] = i;
    for (int k = 0; k < g->outputs.n; k++) last[m->root[g->outputs.data[k].value]] = g->nodes.n;
    int64_t before = -1;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->tag) continue;
        bool act = false;
        for (int k = 0; k < n->nout; k++) {
            ir_val v = n->out[k];
            act |= m->kind[v] == KIND_ACT;
            if (m->kind[v] != KIND_ACT || m->root[v] != v || last[v] <= i) continue;
            alive++;
            sum += v;
        }
        for (int k = 0; k < n->nin; k++) {
            ir_val r = m->root[n->in[k]];
            bool again = false; /* the same storage twice among the operands */
            for (int j = 0; j < k; j++) again |= m->root[n->in[j]] == r;
            if (again || m->kind[r] != KIND_ACT || last[r] != i) continue;
            alive--;
            sum -= r;
        }
        if (act && alive == 1 && sum != before && i != g->nodes.n - 1) {
            before = sum;
            vec_push(m->a, ends, i);
        }
    }
}

/* A fingerprint of the activation nodes in (lo, hi]: ops, types, operand kinds. */
static uint64_t fingerprint(const save_model *m, int lo, int hi) {
    const ir_graph *g = m->g;
    uint64_t h = HASH_INIT;
    for (int i = lo + 1; i <= hi; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->tag || !n->nout || m->kind[n->out[0]] != KIND_ACT) continue;
        int id[3] = {(int)n->op, n->nin, n->nout};
        h = hash_bytes(h, id, sizeof id);
        for (int k = 0; k < n->nin + n->nout; k++) {
            ir_val v = k < n->nin ? n->in[k] : n->out[k - n->nin];
            ir_type t = ir_local_type(g, v);
            h = hash_bytes(h, &m->kind[v], 1);
            h = hash_bytes(h, &t.t, sizeof t.t);
            h = hash_bytes(h, t.dim, sizeof *t.dim * (size_t)t.rank);
        }
    }
    return h;
}

/* Joins elementary segments into layers: the period with the longest run of equal fingerprints. What stands before the
 * first layer becomes one segment, or part of the first layer (`front`: what is cheap there, an embedding, need not be
 * kept), and what stands behind the last (the final norm and the loss) one, unless that is more than two layers' worth:
 * there every point between blocks stays a boundary. */
static void join_layers(const save_model *m, bool front, ints *ends) {
    int n = ends->n, period = 0, start = 0, len = 0;
    uint64_t *h = ARENA_ARRAY(m->a, uint64_t, n + 1);
    for (int e = 0; e < n; e++) h[e] = fingerprint(m, e ? ends->data[e - 1] : -1, ends->data[e]);
    for (int p = 1; p <= 16 && p < n; p++)
        for (int s = 0; s + p < n;) {
            int e = s;
            while (e + p < n && h[e] == h[e + p]) e++;
            if (e - s >= p && e - s > len) { /* at least two whole groups */
                period = p;
                start = s;
                len = e - s;
            }
            s = e + 1;
        }
    if (!period) return;
    int end = start + (len / period + 1) * period, k = 0, most = 2 * period > 8 ? 2 * period : 8;
    for (int e = 0; e < n; e++) {
        bool before = start > most || (e == start - 1 && !front), last = (e - start) % period == period - 1;
        if (e < start ? before : e < end ? last : n - end > most) ends->data[k++] = ends->data[e];
    }
    ends->n = k;
}

/* ---- nodes to segments ------------------------------------------------------------------------- */

/* Is r a gradient that the forward makes, in the loop of the loss head? The last layer's backward reads it, and is no
 * part of the head's for that: else its widest values would be another segment's to keep. */
static bool made_by_loop(const save_model *m, ir_val r) { return ir_def(m->g, r)->op == OP_loop; }

static void assign(save_model *m, const ints *ends, const bool *boundary) {
    const ir_graph *g = m->g;
    int k = 0;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        m->home[i] = -1;
        if (n->tag) continue;
        while (k < ends->n && i > ends->data[k]) k++;
        if (n->nout && m->kind[n->out[0]] == KIND_ACT) m->home[i] = k;
    }
    m->nseg = ends->n + 1;
    int cur = m->nseg - 1;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (!n->tag) continue;
        int s = -1;
        for (int j = 0; j < n->nin; j++) {
            ir_val v = n->in[j], r = m->root[v];
            if (m->kind[r] != KIND_ACT || made_by_loop(m, r)) continue;
            int at = m->home[g->values.data[r].node] + (boundary[r] ? 1 : 0);
            s = at > s ? at : s;
        }
        if (s >= 0 && s < cur) cur = s;
        m->home[i] = cur;
    }
}

/* ---- one segment ------------------------------------------------------------------------------- */

typedef struct maker {
    save_model *m;
    const save_options *o;
    const bool *boundary, *forced; /* by value: storages that end a segment; that are read in another's backward */
    const int *far;                /* by value of the backward: a segment other than its own that reads it, -1 */
    const bool *direct;            /* by value of the backward: read by one accum only, perhaps permuted */
    int *local;                    /* by value: number in this segment, -1 */
    int k;
    VEC(ir_val) val;
    VEC(remat_val) vals;
    VEC(int) fwd, bwd;
    VEC(remat_op) fops, bops;
} maker;

static int new_val(maker *b, ir_val v, int64_t bytes, int root, uint32_t flags) {
    int n = b->vals.n;
    remat_val x = {bytes, root < 0 ? n : root, flags};
    vec_push(b->m->a, &b->val, v);
    vec_push(b->m->a, &b->vals, x);
    b->local[v] = n;
    return n;
}

static int ref(maker *b, ir_val v);

static void add_op(maker *b, int node, bool backward) {
    save_model *m = b->m;
    const ir_graph *g = m->g;
    const ir_node *n = &g->nodes.data[node];
    int flags = op_table[n->op].flags, *in = ARENA_ARRAY(m->a, int, n->nin), *out = ARENA_ARRAY(m->a, int, n->nout);
    for (int j = 0; j < n->nin; j++) in[j] = ref(b, n->in[j]);
    for (int j = 0; j < n->nout; j++) {
        ir_val v = n->out[j], r = m->root[v];
        uint32_t f = m->kind[v] == KIND_FREE ? REMAT_FREE : m->kind[r] == KIND_WEIGHT ? REMAT_STAY : 0;
        bool view = r != v && !(f & REMAT_FREE);
        if (m->kind[v] == KIND_ACT && b->boundary[v]) f |= REMAT_OUT;
        if (m->kind[v] == KIND_ACT && b->forced[v]) f |= REMAT_SAVE;
        if (m->kind[v] == KIND_BACK && b->far[v] >= 0) f |= REMAT_OUT;
        int root = view ? ref(b, r) : -1;
        if (view && f & REMAT_OUT) {
            b->vals.data[root].flags |= REMAT_OUT;
            f &= ~(uint32_t)REMAT_OUT;
        }
        out[j] = new_val(b, v, view || f & REMAT_FREE ? 0 : ir_local_bytes(g, v), root, f);
    }
    /* A product's contribution to a gradient goes straight into the gradient's buffer (plan/build.c). */
    if (backward && (n->op == OP_dot || n->op == OP_embedding_grad) && b->direct[n->out[0]]) {
        b->vals.data[out[0]].bytes = 0;
        b->vals.data[out[0]].flags |= REMAT_FREE;
    }
    cost_work w = cost_node(b->o->machine, g, n);
    remat_op op = {.seconds = w.seconds, .work = m->work[node], .nin = n->nin, .nout = n->nout, .in = in, .out = out};
    bool moves = n->op == OP_all_to_all || n->op == OP_all_gather;
    if ((flags & F_ELT && n->op != OP_copy) || n->op == OP_xent_grad) op.flags |= REMAT_INPLACE;
    if (ir_has_effect(n) || (w.comm && (!moves || b->o->keep_collectives))) op.flags |= REMAT_BAN;
    if (backward) {
        vec_push(m->a, &b->bops, op);
        vec_push(m->a, &b->bwd, node);
    } else {
        vec_push(m->a, &b->fops, op);
        vec_push(m->a, &b->fwd, node);
    }
}

/* The local number of a value, entered at its first mention. */
static int ref(maker *b, ir_val v) {
    save_model *m = b->m;
    if (b->local[v] >= 0) return b->local[v];
    ir_val r = m->root[v];
    int node = m->g->values.data[v].node;
    switch ((save_kind)m->kind[v]) {
    case KIND_FREE:
    case KIND_SIDE:
        return new_val(b, v, 0, -1, REMAT_FREE);
    case KIND_WEIGHT:
        add_op(b, node, false);
        return b->local[v];
    case KIND_ACT: { /* of another segment: its result is our input, or it keeps the value for us */
        int home = m->home[m->g->values.data[r].node];
        if (home > b->k && made_by_loop(m, r)) {
            int root = v == r ? -1 : ref(b, r);
            return new_val(b, v, v == r ? ir_local_bytes(m->g, v) : 0, root, v == r ? REMAT_GRAD_IN : 0);
        }
        bool input = b->boundary[r] && home == b->k - 1;
        if (!input) return new_val(b, v, 0, -1, REMAT_FREE);
        if (v == r) return new_val(b, v, ir_local_bytes(m->g, v), -1, REMAT_INPUT);
        ref(b, r);
        return new_val(b, v, 0, -1, REMAT_FREE); /* a view made there */
    }
    case KIND_BACK:
    default:
        if (m->kind[r] != KIND_BACK) return new_val(b, v, 0, -1, REMAT_FREE);
        if (v == r) return new_val(b, v, ir_local_bytes(m->g, v), -1, REMAT_GRAD_IN);
        {
            int root = ref(b, r);
            return new_val(b, v, 0, root, 0);
        }
    }
}

static void build_segment(maker b, const int *nodes, int nnodes, int k) {
    save_model *m = b.m;
    b.k = k;
    for (int j = 0; j < nnodes; j++)
        if (!m->g->nodes.data[nodes[j]].tag) add_op(&b, nodes[j], false);
    for (int j = 0; j < nnodes; j++)
        if (m->g->nodes.data[nodes[j]].tag) add_op(&b, nodes[j], true);
    for (int v = 0; v < b.val.n; v++) b.local[b.val.data[v]] = -1;
    save_seg *s = &m->seg[k];
    s->val = b.val.data;
    s->fwd = b.fwd.data;
    s->bwd = b.bwd.data;
    s->s = (remat_seg){b.vals.n, b.fops.n, b.bops.n, b.vals.data, b.fops.data, b.bops.data};
}

/* ---- classes ----------------------------------------------------------------------------------- */

static bool same_ops(const remat_op *x, const remat_op *y, int n) {
    for (int i = 0; i < n; i++) {
        if (x[i].seconds != y[i].seconds || x[i].work != y[i].work || x[i].flags != y[i].flags ||
            x[i].nin != y[i].nin || x[i].nout != y[i].nout)
            return false;
        for (int j = 0; j < x[i].nin; j++)
            if (x[i].in[j] != y[i].in[j]) return false;
        for (int j = 0; j < x[i].nout; j++)
            if (x[i].out[j] != y[i].out[j]) return false;
    }
    return true;
}

/* Equal in every number: a plan of one is a plan of the other. */
static bool same_segment(const remat_seg *x, const remat_seg *y) {
    if (x->nval != y->nval || x->nfwd != y->nfwd || x->nbwd != y->nbwd) return false;
    for (int v = 0; v < x->nval; v++)
        if (x->val[v].bytes != y->val[v].bytes || x->val[v].root != y->val[v].root ||
            x->val[v].flags != y->val[v].flags)
            return false;
    return same_ops(x->fwd, y->fwd, x->nfwd) && same_ops(x->bwd, y->bwd, x->nbwd);
}

static void find_classes(save_model *m) {
    m->cls = ARENA_ARRAY(m->a, int, m->nseg);
    m->first = ARENA_ARRAY(m->a, int, m->nseg);
    for (int i = 0; i < m->nseg; i++) {
        int c = 0;
        while (c < m->ncls && !same_segment(&m->seg[i].s, &m->seg[m->first[c]].s)) c++;
        if (c == m->ncls) m->first[m->ncls++] = i;
        m->cls[i] = m->seg[i].cls = c;
    }
}

/* Which values only go into one gradient, as they are or permuted? */
static bool *accumulated(const save_model *m) {
    const ir_graph *g = m->g;
    int *uses = ir_use_counts(g, m->a);
    bool *direct = ARENA_ARRAY(m->a, bool, g->values.n);
    for (int i = g->nodes.n - 1; i >= 0; i--) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_accum || (n->op == OP_permute && direct[n->out[0]])) direct[n->in[0]] = uses[n->in[0]] == 1;
    }
    return direct;
}

/* What the device's kernels want beside operands and results, and the copies that strided operands cost: from the
 * unchanged graph's plan. Only copies that die at once count here; the plan of a candidate has them all. */
static sp_status workspaces(save_model *m, const plan_options *lower) {
    plan *p;
    m->work = ARENA_ARRAY(m->a, int64_t, m->g->nodes.n);
    m->scratch = ARENA_ARRAY(m->a, int64_t, m->g->nodes.n);
    if (!lower) return SP_OK;
    TRY(plan_build(m->g, lower, &p));
    m->resident = p->memory.arena - p->memory.section[SEC_WORK];
    const plan_program *pr = &p->program[PROG_STEP];
    for (int i = 0; i < pr->instrs.n; i++) {
        const plan_instr *x = &pr->instrs.data[i];
        if (!x->node) continue;
        int64_t *work = &m->work[x->node - m->g->nodes.data];
        if (x->work >= 0) *work += p->bufs.data[x->work].bytes;
        if (x->work >= 0) m->scratch[x->node - m->g->nodes.data] = p->bufs.data[x->work].bytes;
        if (x->op != x->node->op && x->nout == 1) {
            const plan_buf *b = &p->bufs.data[x->out[0].buf];
            if (b->section == SEC_WORK && b->last - b->first <= x->node->nin) *work += b->bytes;
        }
    }
    return SP_OK;
}

sp_status save_model_build(arena *a, const ir_graph *g, const save_options *o, bool one, bool exact, save_model *m) {
    *m = (save_model){.g = g, .a = a};
    m->kind = ARENA_ARRAY(a, uint8_t, g->values.n);
    m->root = ARENA_ARRAY(a, ir_val, g->values.n);
    m->home = ARENA_ARRAY(a, int, g->nodes.n);
    TRY(workspaces(m, exact ? o->lower : NULL));
    classify(m);
    ints ends = {0};
    if (!one) {
        find_ends(m, &ends);
        join_layers(m, exact, &ends);
    }
    /* The storage that each end hands over. */
    bool *boundary = ARENA_ARRAY(a, bool, g->values.n), *forced = ARENA_ARRAY(a, bool, g->values.n);
    int *last = ARENA_ARRAY(a, int, g->values.n), *far = ARENA_ARRAY(a, int, g->values.n);
    for (int i = 0; i < g->nodes.n; i++)
        for (int k = 0; !g->nodes.data[i].tag && k < g->nodes.data[i].nin; k++)
            last[m->root[g->nodes.data[i].in[k]]] = i;
    for (int k = 0; k < g->outputs.n; k++) last[m->root[g->outputs.data[k].value]] = g->nodes.n;
    for (int e = 0; e < ends.n; e++)
        for (int i = 0, end = ends.data[e]; i <= end; i++)
            for (int k = 0; k < g->nodes.data[i].nout; k++) {
                ir_val v = g->nodes.data[i].out[k];
                if (m->kind[v] == KIND_ACT && m->root[v] == v && last[v] > end) boundary[v] = true;
            }
    assign(m, &ends, boundary);
    for (int v = 0; v < g->values.n; v++) far[v] = -1;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        for (int j = 0; n->tag && j < n->nin; j++) {
            ir_val v = n->in[j], r = m->root[v];
            int at = m->home[g->values.data[v].node], root_at = m->home[g->values.data[r].node];
            if (m->kind[v] == KIND_BACK && at != m->home[i]) far[v] = m->home[i];
            if (m->kind[r] == KIND_ACT && root_at != m->home[i] && !boundary[r]) forced[r] = true;
        }
    }
    /* Nodes by segment, in order. */
    m->seg = ARENA_ARRAY(a, save_seg, m->nseg);
    int *start = ARENA_ARRAY(a, int, m->nseg + 2), *nodes = ARENA_ARRAY(a, int, g->nodes.n);
    for (int i = 0; i < g->nodes.n; i++)
        if (m->home[i] >= 0) start[m->home[i] + 2]++;
    for (int k = 0; k < m->nseg; k++) start[k + 2] += start[k + 1];
    for (int i = 0; i < g->nodes.n; i++)
        if (m->home[i] >= 0) nodes[start[m->home[i] + 1]++] = i;
    int *local = ARENA_ARRAY(a, int, g->values.n);
    memset(local, -1, sizeof *local * (size_t)g->values.n);
    maker b = {.m = m, .o = o, .boundary = boundary, .forced = forced, .far = far, .local = local};
    b.direct = accumulated(m);
    for (int k = 0; k < m->nseg; k++) build_segment(b, nodes + start[k], start[k + 1] - start[k], k);
    find_classes(m);
    return SP_OK;
}
