/* save_emit.c - writes the joint graph again with the chosen plans in it.
 *
 *   before  %5 = dot(%4, %1)   ... forward ...          after  %5 = dot(%4, %1)   ... forward ...
 *           %9 = silu_grad(%5, %8)                             %5' = dot(%4, %1)            tag 2
 *                                                              %9 = silu_grad(%5', %8)
 *
 * The forward keeps its order, save that weights' casts come just before their first reader in each segment. The
 * backward keeps its order, with the clones of remat_order before their first readers: the schedule whose windows the
 * planner counted. What nothing reads any more goes (ir_dce).
 */
#include "pass/save_impl.h"

typedef struct emitter {
    const save_model *m;
    ir_graph *out;
    ir_val *map;   /* by value of the old graph: free, side and backward values; scratch for the others */
    ir_val **once; /* by segment, by local value: made by the forward, -1 */
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

static sp_status emit_forward(emitter *e) {
    const save_model *m = e->m;
    const ir_graph *g = m->g;
    int *next = ARENA_ARRAY(m->a, int, m->nseg); /* by segment: the first op not yet written */
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
            continue;
        }
        const save_seg *s = &m->seg[k];
        for (int op = next[k]; op < s->s.nfwd; op++) {
            TRY(copy_op(e, k, op, e->once[k], e->once[k], 0));
            next[k] = op + 1;
            if (s->fwd[op] == i) break;
        }
    }
    for (int k = 0; k < m->nseg; k++) /* weights that only the backward reads */
        for (; next[k] < m->seg[k].s.nfwd; next[k]++) TRY(copy_op(e, k, next[k], e->once[k], e->once[k], 0));
    return SP_OK;
}

static sp_status emit_backward(emitter *e, int k, const remat_plan *p) {
    const save_model *m = e->m;
    const save_seg *s = &m->seg[k];
    arena *tmp = arena_new();
    int *order = ARENA_ARRAY(tmp, int, s->s.nfwd + s->s.nbwd + 1);
    ir_val *have = ARENA_ARRAY(tmp, ir_val, s->s.nval + 1); /* what a backward reader sees of each forward value */
    int n = remat_order(&s->s, p, order);
    for (int v = 0; v < s->s.nval; v++) {
        uint32_t f = s->s.val[v].flags;
        bool kept = p->saved[v] || f & (REMAT_INPUT | REMAT_SAVE | REMAT_OUT);
        have[v] = kept ? e->once[k][v] : -1;
    }
    sp_status ok = SP_OK;
    for (int i = 0; i < n && ok == SP_OK; i++) {
        if (order[i] < 0) {
            ok = copy_op(e, k, -1 - order[i], have, have, 2);
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
    TRY(emit_forward(&e));
    /* The forward's values as the outputs and other segments see them: of their home. */
    for (int k = 0; k < m->nseg; k++)
        for (int v = 0; v < m->seg[k].s.nval; v++)
            if (e.once[k][v] >= 0) e.map[m->seg[k].val[v]] = e.once[k][v];
    int outputs = g->outputs.n;
    ir_val *result = ARENA_ARRAY(m->a, ir_val, outputs);
    for (int i = 0; i < outputs; i++) result[i] = e.map[g->outputs.data[i].value];
    for (int k = m->nseg - 1; k >= 0; k--) {
        TRY(emit_backward(&e, k, chosen[k]));
        for (int v = 0; v < m->seg[k].s.nval; v++) /* clones are this segment's own */
            if (e.once[k][v] >= 0) e.map[m->seg[k].val[v]] = e.once[k][v];
    }
    for (int i = 0; i < outputs; i++) ir_set_output(e.out, g->outputs.data[i].name, result[i]);
    *out = ir_dce(e.out);
    return SP_OK;
}
