/* save_rules.c - what others would keep: PyTorch's default partitioner, and AutoSP's change to it, as plans of ours.
 *
 * PyTorch (torch/_functorch/partitioners.py, solve_min_cut with its default MinCutOptions) solves one minimum cut over
 * the whole forward in which recomputation costs nothing or is banned; bytes are weighted by the distance from the
 * backward (1.1 per node, at most 100 nodes) and doubled for values that fusion would not write to memory. Banned are,
 * in this order:
 *   1. operators that are not on its list (products, attention, embedding lookups, collectives ...);
 *   2. values that some backward operator reads from memory (it does not fuse with their producer);
 *   3. reductions (results less than a quarter of the operands);
 *   4. of a value's late readers, those behind the first reader that does not fuse (this keeps residual sums).
 * AutoSP (deepspeed/compile/passes/long_context_checkpointing.py) replaces rules 1 and 2: attention is always kept; no
 * other operator is banned by its name; rule 2 is waived where dimension 1 of the local value has 4096 or more. Its
 * all-to-all is no collective to the partitioner and may run twice.
 *
 * Differences from the originals, all from working on our operators: a norm, an activation with its gate, rotary
 * positions and the cross-entropy are one node each, where theirs are several pointwise nodes and reductions; a view is
 * never kept, the storage behind it is; values computed from positions and labels only are always kept; the ban on
 * chains of more than 100 fusible nodes is left out. Attention operands are (B, S, H, D) here and [B, H, S, D] there:
 * for values of rank 4 AutoSP's dimension 1 is our dimension 2.  tests/parity/saved_set.py compares the sets with
 * those of PyTorch's own partitioner.
 */
#include "pass/save_impl.h"
#include "plan/mincut.h"

#include <stdlib.h>

enum { FAR = 1 << 30 }; /* no backward operator follows */

/* Operators that PyTorch would fuse into their neighbours and, in the forward, compute again. */
static bool fusible(ir_op op) {
    switch (op) {
    case OP_rmsnorm:
    case OP_rmsnorm_grad:
    case OP_layernorm:
    case OP_layernorm_grad:
    case OP_softmax:
    case OP_softmax_grad:
    case OP_xent:
    case OP_xent_grad:
    case OP_rope:
    case OP_sum:
    case OP_rmax:
    case OP_concat:
    case OP_pad:
    case OP_take:
    case OP_gather:
    case OP_iota:
        return true;
    default:
        return (op_table[op].flags & (F_ELT | F_VIEW | F_LEAF)) != 0;
    }
}

typedef struct rules {
    const save_model *m;
    const save_seg *s;
    bool autosp;
    int *maker;          /* value -> forward op, -1 */
    int *start, *reader; /* value -> its readers, start[v] .. start[v + 1]; forward op i is i, backward op j nfwd + j */
    int *dist;           /* value -> nodes to the nearest backward operator */
    bool *banned;        /* forward op */
} rules;

static const ir_node *node_of(const rules *r, int op) {
    const save_seg *s = r->s;
    return &r->m->g->nodes.data[op < s->s.nfwd ? s->fwd[op] : s->bwd[op - s->s.nfwd]];
}

static bool is_view(const rules *r, int op) { return (op_table[node_of(r, op)->op].flags & F_VIEW) != 0; }

static bool fuses(const rules *r, int a, int b) { return fusible(node_of(r, a)->op) && fusible(node_of(r, b)->op); }

static const remat_op *op_at(const rules *r, int op) {
    return op < r->s->s.nfwd ? &r->s->s.fwd[op] : &r->s->s.bwd[op - r->s->s.nfwd];
}

static void find_readers(rules *r, arena *a) {
    const remat_seg *s = &r->s->s;
    int n = s->nfwd + s->nbwd;
    r->maker = ARENA_ARRAY(a, int, s->nval);
    r->start = ARENA_ARRAY(a, int, s->nval + 2);
    r->dist = ARENA_ARRAY(a, int, s->nval);
    r->banned = ARENA_ARRAY(a, bool, s->nfwd);
    for (int v = 0; v < s->nval; v++) r->maker[v] = -1;
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) r->maker[s->fwd[i].out[j]] = i;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < op_at(r, i)->nin; j++) r->start[op_at(r, i)->in[j] + 2]++;
    for (int v = 0; v < s->nval; v++) r->start[v + 2] += r->start[v + 1];
    r->reader = ARENA_ARRAY(a, int, r->start[s->nval + 1]);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < op_at(r, i)->nin; j++) r->reader[r->start[op_at(r, i)->in[j] + 1]++] = i;
    for (int v = 0; v < s->nval; v++) r->dist[v] = FAR;
    for (int i = s->nfwd - 1; i >= 0; i--)
        for (int j = 0; j < s->fwd[i].nout; j++) {
            int v = s->fwd[i].out[j];
            for (int k = r->start[v]; k < r->start[v + 1]; k++) {
                const remat_op *x = op_at(r, r->reader[k]);
                int d = 0;
                for (int o = 0; r->reader[k] < s->nfwd && o < x->nout; o++)
                    d = o == 0 || r->dist[x->out[o]] < d ? r->dist[x->out[o]] : d;
                if (d < FAR && d + 1 < r->dist[v]) r->dist[v] = d + 1;
            }
        }
}

/* Does a backward operator read v, perhaps through views, without fusing with what makes it? */
static bool materialized_in_backward(const rules *r, int v, int maker, int depth) {
    for (int k = r->start[v]; k < r->start[v + 1]; k++) {
        int x = r->reader[k];
        if (x >= r->s->s.nfwd && !fuses(r, maker, x)) return true;
        if (is_view(r, x) && depth < 32 && materialized_in_backward(r, op_at(r, x)->out[0], x, depth + 1)) return true;
    }
    return false;
}

static bool long_rows(const rules *r, int v) {
    ir_type t = ir_local_type(r->m->g, r->s->val[v]);
    return t.rank >= 2 && t.dim[t.rank == 4 ? 2 : 1] >= 4096;
}

static bool should_ban(const rules *r, int i) {
    const remat_op *op = &r->s->s.fwd[i];
    const ir_node *n = node_of(r, i);
    int64_t in = 0, out = 0;
    if (is_view(r, i)) return false;
    if (r->autosp ? n->op == OP_attention : !fusible(n->op)) return true;
    if (r->autosp && !fusible(n->op)) return false;
    for (int j = 0; j < op->nout; j++) {
        int v = op->out[j];
        if (materialized_in_backward(r, v, i, 0) && !(r->autosp && long_rows(r, v))) return true;
        out += ir_local_bytes(r->m->g, r->s->val[v]);
    }
    for (int j = 0; j < op->nin; j++) in += ir_local_bytes(r->m->g, r->s->val[op->in[j]]);
    return out * 4 < in;
}

/* A value that is computed from positions only: part of no segment here, but of the forward there. */
static bool is_side(const rules *r, int v) { return r->m->kind[r->s->val[v]] == KIND_SIDE; }

/* Would PyTorch fuse forward op x into the maker of v? */
static bool fuses_with_maker(const rules *r, int v, int x) {
    return fusible(ir_def(r->m->g, r->s->val[v])->op) && fusible(node_of(r, x)->op);
}

/* Forward order of the first operator after `v`'s readers that does not fuse with the one before it, at most `most`. */
static int first_unfusible(const rules *r, int v, int most, uint8_t *seen) {
    int nfwd = r->s->s.nfwd, from = nfwd;
    memset(seen, 0, (size_t)nfwd);
    for (int k = r->start[v]; k < r->start[v + 1]; k++)
        if (r->reader[k] < nfwd) {
            seen[r->reader[k]] = 1; /* 1: fuses with its reader's operand, 2: does not */
            from = r->reader[k] < from ? r->reader[k] : from;
        }
    for (int i = from; i <= most; i++) {
        if (seen[i] == 2) return i;
        if (!seen[i]) continue;
        for (int j = 0; j < r->s->s.fwd[i].nout; j++) {
            int o = r->s->s.fwd[i].out[j];
            for (int k = r->start[o]; k < r->start[o + 1]; k++) {
                int x = r->reader[k];
                if (x >= nfwd || x > most) continue;
                seen[x] = (uint8_t)(!fuses(r, i, x) ? 2 : seen[x] ? seen[x] : 1);
            }
        }
    }
    return most;
}

static void ban_far_readers(rules *r, arena *a) {
    const remat_seg *s = &r->s->s;
    uint8_t *seen = ARENA_ARRAY(a, uint8_t, s->nfwd);
    for (int v = 0; v < s->nval; v++) {
        int most = -1, readers = 0;
        if (r->maker[v] < 0 && !is_side(r, v)) continue;
        for (int k = r->start[v]; k < r->start[v + 1]; k++) {
            if (r->reader[k] >= s->nfwd) continue;
            readers++;
            most = r->reader[k] > most ? r->reader[k] : most;
        }
        if (readers < 2) continue; /* the only reader is not behind itself */
        int stop = first_unfusible(r, v, most, seen);
        for (int k = r->start[v]; k < r->start[v + 1]; k++) {
            int x = r->reader[k];
            if (x < s->nfwd && x > stop && fuses_with_maker(r, v, x) && !is_view(r, x)) r->banned[x] = true;
        }
    }
}

/* Is v what a norm reduced its rows to? There a reduction of its own, which rule 3 bans whatever becomes of the norm.
 */
static bool is_statistic(const rules *r, int v) {
    const ir_node *n = ir_def(r->m->g, r->s->val[v]);
    return (n->op == OP_rmsnorm || n->op == OP_layernorm) && n->out[0] != r->s->val[v];
}

static double weight(const rules *r, int v) {
    int d = r->dist[v] < 1 ? 1 : r->dist[v] > 100 ? 100 : r->dist[v];
    double w = (double)r->s->s.val[v].bytes;
    bool written = false;
    for (int i = 0; i < d; i++) w *= 1.1;
    for (int k = r->start[v]; k < r->start[v + 1]; k++) written |= !fuses(r, r->maker[v], r->reader[k]);
    return written ? w : 2 * w;
}

sp_status save_rule_plan(const save_model *m, bool autosp, remat_plan *p) {
    ASSERT(m->nseg == 1);
    const save_seg *g = &m->seg[0];
    const remat_seg *s = &g->s;
    rules r = {.m = m, .s = g, .autosp = autosp};
    find_readers(&r, m->a);
    for (int i = 0; i < s->nfwd; i++) r.banned[i] = should_ban(&r, i) || s->fwd[i].flags & REMAT_BAN;
    ban_far_readers(&r, m->a);
    /* Nodes: 0 source, 1 sink, operators, values; edges as in plan/remat.c. */
    plan_flow *f = plan_flow_new(m->a, 2 + s->nfwd + s->nval);
    double total = 1;
    for (int v = 0; v < s->nval; v++)
        if (r.maker[v] >= 0) total += weight(&r, v);
    double scale = (double)PLAN_INF / 8 / total < 1 ? (double)PLAN_INF / 8 / total : 1;
    for (int i = 0; i < s->nfwd; i++) {
        if (r.banned[i]) plan_flow_edge(f, 0, 2 + i, PLAN_INF);
        for (int j = 0; j < s->fwd[i].nin; j++) {
            int v = s->fwd[i].in[j];
            if (r.maker[v] >= 0) plan_flow_edge(f, 2 + s->nfwd + v, 2 + i, PLAN_INF);
        }
        for (int j = 0; j < s->fwd[i].nout; j++) {
            int v = s->fwd[i].out[j];
            bool needed = false;
            for (int k = r.start[v]; k < r.start[v + 1]; k++) needed |= r.reader[k] >= s->nfwd;
            plan_flow_edge(f, 2 + i, 2 + s->nfwd + v,
                           s->val[v].root != v ? PLAN_INF : (int64_t)(weight(&r, v) * scale));
            if (needed) plan_flow_edge(f, 2 + s->nfwd + v, 1, PLAN_INF);
        }
    }
    int64_t value;
    CHECK(plan_flow_solve(f, 0, 1, &value),
          "save.policy=%s: a value that the backward needs may neither be kept nor "
          "computed again",
          autosp ? "autosp" : "pytorch");
    *p = (remat_plan){.saved = ARENA_ARRAY(m->a, uint8_t, s->nval)};
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) {
            int v = s->fwd[i].out[j];
            bool here = plan_flow_source_side(f, 2 + i), there = plan_flow_source_side(f, 2 + s->nfwd + v);
            bool kept = (here && !there) || is_statistic(&r, v);
            if (kept && s->val[v].root == v && !(s->val[v].flags & REMAT_FREE)) p->saved[v] = REMAT_DEVICE;
        }
    return SP_OK;
}
