/* cast.c - the graph in another element type.
 *
 * --dtype f64: every f32 value becomes f64 (the oracle's type). --dtype f32: as imported.
 *
 *   before  %2 = dot(%0, %1) : f32[4,4]          after (f64)  %2 = dot(%0, %1) : f64[4,4]
 *
 * Requires: bound. Keeps: node order and everything but types.
 */
#include "pass/pass.h"

sp_status pass_cast(const ir_graph *g, const pass_options *o, ir_graph **out) {
    if (o->compute == DT_F32) {
        *out = (ir_graph *)g;
        return SP_OK;
    }
    CHECK(o->compute == DT_F64, "--dtype %s is not supported; use f32 or f64", dtype_name(o->compute));
    ir_graph *h = ir_new(g->a, g->name);
    h->seq = g->seq;
    h->seq_valid = g->seq_valid;
    ir_val *map = ARENA_ARRAY(g->a, ir_val, g->values.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        ir_val *in = ARENA_ARRAY(g->a, ir_val, n->nin), first = -1;
        ir_type types[IR_MAX_OUT];
        for (int k = 0; k < n->nin; k++) in[k] = map[n->in[k]];
        for (int k = 0; k < n->nout; k++) {
            types[k] = *ir_typeof(g, n->out[k]);
            if (dtype_is_float(types[k].t)) types[k].t = DT_F64;
        }
        TRY(ir_emit_region(h, n->op, in, n->nin, n->attr, n->nattr, types, n->nout, NULL, n->region, &first));
        h->nodes.data[h->nodes.n - 1].src = n->src;
        h->nodes.data[h->nodes.n - 1].tag = n->tag;
        for (int k = 0; k < n->nout; k++) {
            map[n->out[k]] = first + k;
            h->values.data[first + k].name = g->values.data[n->out[k]].name;
        }
    }
    for (int i = 0; i < g->outputs.n; i++) ir_set_output(h, g->outputs.data[i].name, map[g->outputs.data[i].value]);
    *out = h;
    return SP_OK;
}
