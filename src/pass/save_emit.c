/* save_emit.c - writes the joint graph again with the chosen plans in it.
 *
 *   before  %5 = dot(%4, %1)   ... forward ...          after  %5 = dot(%4, %1)   ... forward ...
 *           %9 = silu_grad(%5, %8)                             %5' = dot(%4, %1)            tag 2
 *                                                              %9 = silu_grad(%5', %8)
 *
 * The forward keeps its order, save that weights' casts come just before their first reader in each segment. The
 * backward keeps its order, with the clones of remat_order before their first readers: the schedule whose windows the
 * planner counted. What nothing reads any more goes (ir_dce).
 *
 * A value that moves to the host is copied there right behind its last forward reader, so that its buffer is free from
 * then on, and back before the backward of the segment behind its own: one segment earlier than it is needed, which is
 * the time that the copy has. The value is named in the plan of the segment that keeps it; the plan's last segment
 * moves none (remat_chain.c). All readers that come later see the copy.
 */
#include "pass/save_impl.h"

typedef struct emitter {
    const save_model *m;
    ir_graph *out;
    ir_val *map;   /* by value of the old graph: free, side and backward values; scratch for the others */
    ir_val **once; /* by segment, by local value: made by the forward, -1 */
    ir_val *host;  /* by value of the old graph: its host copy in the new one; -1: none; -2: not yet made */
    ir_val *back;  /* by value: what fetch brought back, -1 */
} emitter;

/* Copies a forward op of segment k; operands by `from` (local value -> new value, -1: the map's). */
static sp_status copy_op(emitter *e, int k, int op, const ir_val *from, ir_val *to, int tag) {
    const save_seg *s = &e->m->seg[k];
    const remat_op *x = &s->s.fwd[op];
    for (int j = 0; j < x->nin; j++)
        if (from[x->in[j]] >= 0) e->map[s->val[x->in[j]]] = from[x->in[j]];
    TRY(ir_copy_node(e->out, e->m->g, s->fwd[op], e->map));
    e->out->nodes.data[e->out->nodes.n - 1].tag = tag;
    for (int j = 0; j < x->nout; j++) to[x->out[j]] = e->map[s->val[x->out[j]]];
    return SP_OK;
}

/* The values that the plans move. */
static void mark_moved(emitter *e, const remat_plan *const *chosen) {
    const save_model *m = e->m;
    for (int k = 0; k < m->nseg; k++)
        for (int v = 0; v < m->seg[k].s.nval; v++)
            if (chosen[k]->saved[v] == REMAT_HOST) e->host[m->seg[k].val[v]] = -2;
}

/* By node of the forward: the first moved value that it is the last to make or read, itself or through a view, -1;
 * next: by value, the next of them. */
static int *last_readers(const emitter *e, ir_val *next) {
    const save_model *m = e->m;
    const ir_graph *g = m->g;
    int *first = ARENA_ARRAY(m->a, int, g->nodes.n), *last = ARENA_ARRAY(m->a, int, g->values.n);
    memset(first, -1, sizeof *first * (size_t)g->nodes.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        for (int k = 0; !n->tag && k < n->nout; k++) last[n->out[k]] = i;
        for (int k = 0; !n->tag && k < n->nin; k++) last[m->root[n->in[k]]] = i;
    }
    for (ir_val v = 0; v < g->values.n; v++) {
        if (e->host[v] != -2) continue;
        next[v] = first[last[v]];
        first[last[v]] = v;
    }
    return first;
}

/* One end of a move. */
static sp_status emit_move(emitter *e, ir_op op, ir_val x, int tag, ir_val *out) {
    TRY(ir_emit(e->out, op, &x, 1, NULL, 0, NULL, NULL, out));
    e->out->nodes.data[e->out->nodes.n - 1].tag = tag;
    return SP_OK;
}

/* Brings segment k's values back; from here on everybody reads these. */
static sp_status emit_fetches(emitter *e, int k, const remat_plan *p) {
    const save_seg *s = &e->m->seg[k];
    for (int v = 0; v < s->s.nval; v++) {
        ir_val old = s->val[v];
        if (p->saved[v] != REMAT_HOST) continue;
        TRY(emit_move(e, OP_fetch, e->host[old], 1, &e->back[old]));
        e->map[old] = e->back[old];
    }
    return SP_OK;
}

static sp_status emit_forward(emitter *e) {
    const save_model *m = e->m;
    const ir_graph *g = m->g;
    int *next = ARENA_ARRAY(m->a, int, m->nseg); /* by segment: the first op not yet written */
    ir_val *more = ARENA_ARRAY(m->a, ir_val, g->values.n);
    int *moved = last_readers(e, more);
    for (int k = 0; k < m->nseg; k++) {
        e->once[k] = ARENA_ARRAY(m->a, ir_val, m->seg[k].s.nval);
        memset(e->once[k], -1, sizeof **e->once * (size_t)m->seg[k].s.nval);
    }
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->tag) continue;
        int k = m->home[i];
        if (k < 0) {
            if (n->nout && m->kind[n->out[0]] == KIND_WEIGHT) continue;
            TRY(ir_copy_node(e->out, g, i, e->map));
        }
        const save_seg *s = k < 0 ? NULL : &m->seg[k];
        for (int op = s ? next[k] : 0; s && op < s->s.nfwd; op++) {
            TRY(copy_op(e, k, op, e->once[k], e->once[k], 0));
            next[k] = op + 1;
            if (s->fwd[op] == i) break;
        }
        for (ir_val v = moved[i]; v >= 0; v = more[v]) TRY(emit_move(e, OP_offload, e->map[v], 0, &e->host[v]));
    }
    for (int k = 0; k < m->nseg; k++) /* weights that only the backward reads */
        for (; next[k] < m->seg[k].s.nfwd; next[k]++) TRY(copy_op(e, k, next[k], e->once[k], e->once[k], 0));
    return SP_OK;
}

/* What a backward reader sees of value v of segment k when it is kept; -1 when it is not. */
static ir_val kept(const emitter *e, int k, const remat_plan *p, int v) {
    const save_seg *s = &e->m->seg[k];
    if (!p->saved[v] && !(s->s.val[v].flags & (REMAT_INPUT | REMAT_SAVE | REMAT_OUT))) return -1;
    ir_val back = e->back[s->val[v]];
    return back >= 0 ? back : e->once[k][v];
}

static sp_status emit_backward(emitter *e, int k, const remat_plan *p) {
    const save_model *m = e->m;
    const save_seg *s = &m->seg[k];
    arena *tmp = arena_new();
    int *order = ARENA_ARRAY(tmp, int, s->s.nfwd + s->s.nbwd + 1);
    ir_val *have = ARENA_ARRAY(tmp, ir_val, s->s.nval + 1); /* what a backward reader sees of each forward value */
    int n = remat_order(&s->s, p, order);
    for (int v = 0; v < s->s.nval; v++) have[v] = kept(e, k, p, v);
    sp_status ok = SP_OK;
    for (int i = 0; i < n && ok == SP_OK; i++) {
        if (order[i] < 0) {
            const remat_op *op = &s->s.fwd[-1 - order[i]];
            ok = copy_op(e, k, -1 - order[i], have, have, 2);
            for (int j = 0; j < op->nout; j++) { /* runs again for one result: another may have been kept */
                ir_val old = kept(e, k, p, op->out[j]);
                if (old >= 0) have[op->out[j]] = old;
            }
            continue;
        }
        const remat_op *op = &s->s.bwd[order[i]];
        for (int j = 0; j < op->nin; j++)
            if (have[op->in[j]] >= 0) e->map[s->val[op->in[j]]] = have[op->in[j]];
        ok = ir_copy_node(e->out, m->g, s->bwd[order[i]], e->map);
    }
    arena_free(tmp);
    return ok;
}

sp_status save_emit(const save_model *m, arena *a, const remat_plan *const *chosen, ir_graph **out) {
    const ir_graph *g = m->g;
    emitter e = {.m = m, .out = ir_new(a, g->name)};
    e.out->mesh = g->mesh;
    e.out->broken_op = g->broken_op;
    e.out->seq = g->seq;
    e.out->seq_valid = g->seq_valid;
    e.map = ARENA_ARRAY(m->a, ir_val, g->values.n);
    memset(e.map, -1, sizeof *e.map * (size_t)g->values.n);
    e.once = ARENA_ARRAY(m->a, ir_val *, m->nseg);
    e.host = arena_memdup(m->a, e.map, sizeof *e.map * (size_t)g->values.n);
    e.back = arena_memdup(m->a, e.map, sizeof *e.map * (size_t)g->values.n);
    mark_moved(&e, chosen);
    TRY(emit_forward(&e));
    /* The forward's values as the outputs and other segments see them: of their home. */
    for (int k = 0; k < m->nseg; k++)
        for (int v = 0; v < m->seg[k].s.nval; v++)
            if (e.once[k][v] >= 0) e.map[m->seg[k].val[v]] = e.once[k][v];
    int outputs = g->outputs.n;
    ir_val *result = ARENA_ARRAY(m->a, ir_val, outputs);
    for (int i = 0; i < outputs; i++) result[i] = e.map[g->outputs.data[i].value];
    for (int k = m->nseg - 1; k >= 0; k--) {
        if (k) TRY(emit_fetches(&e, k - 1, chosen[k - 1]));
        TRY(emit_backward(&e, k, chosen[k]));
        for (int v = 0; v < m->seg[k].s.nval; v++) { /* clones are this segment's own */
            ir_val old = m->seg[k].val[v];
            if (e.once[k][v] >= 0) e.map[old] = e.back[old] >= 0 ? e.back[old] : e.once[k][v];
        }
    }
    for (int i = 0; i < outputs; i++) ir_set_output(e.out, g->outputs.data[i].name, result[i]);
    *out = ir_dce(e.out);
    return SP_OK;
}
