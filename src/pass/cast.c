/* cast.c - the graph in the element type that --dtype asks for.
 *
 *   before (bf16)  %3 = dot(%1, %2) : f32[8,4]          %1 activations, %2 a weight
 *   after          %4 = cast(%1) : bf16[8,4]   %5 = cast(%2) : bf16[4,4]   %3 = dot(%4, %5) : bf16[8,4]
 *
 * f64: every floating value becomes f64 (the oracle's type). f32: every floating value f32; a native bf16 export is
 * then computed in f32. bf16 is a policy over any f32 graph, the one of PyTorch's autocast:
 *   bf16   products (with the bias that is added to one: the sum is of f32, rounded once), attention, rotary embedding,
 * and element-wise ops whose operands all are (activations, biases) f32    parameters, gradients and moments; norms,
 * softmax, the loss, reductions; tables made from positions; sums of bf16 and f32, so the residual stream stays f32;
 * the product that makes the logits has bf16 operands and an f32 result A value is cast at most once each way; that a
 * cotangent of such a shared cast is summed in f32 is pass_diff's part. Explicit casts of a native bf16 export are
 * kept; its parameters become f32 masters that are cast.
 *
 * Requires: bound. Keeps: node order and everything but types.
 */
#include "pass/pass.h"

typedef struct caster {
    const ir_graph *g;
    ir_graph *h;
    dtype compute;
    ir_val *f32, *low; /* by old value: its f32 (or f64, or integer) and its bf16 form; -1 none */
    bool *main;        /* by old value: depends on a parameter */
    bool *data;        /* by old value: depends on an input */
    bool *logits;      /* by old value: reaches the loss through element-wise ops only */
    bool *biased;      /* by old value: a product that nothing but the addition of a bias reads */
} caster;

static bool is_low(const caster *c, ir_val v) { return c->low[v] >= 0 && c->f32[v] < 0; }

static ir_val wide(caster *c, ir_val v) {
    if (c->f32[v] < 0) c->f32[v] = ir_cast(c->h, c->low[v], DT_F32);
    return c->f32[v];
}

static ir_val narrow(caster *c, ir_val v) {
    if (!dtype_is_float(ir_typeof(c->g, v)->t)) return c->f32[v];
    if (c->low[v] < 0) c->low[v] = ir_cast(c->h, c->f32[v], DT_BF16);
    return c->low[v];
}

static void facts(caster *c, arena *a) {
    const ir_graph *g = c->g;
    c->main = ARENA_ARRAY(a, bool, g->values.n);
    c->data = ARENA_ARRAY(a, bool, g->values.n);
    c->logits = ARENA_ARRAY(a, bool, g->values.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        bool m = n->op == OP_param, d = n->op == OP_input || n->op == OP_iota;
        for (int k = 0; k < n->nin; k++) {
            m |= c->main[n->in[k]];
            d |= c->data[n->in[k]];
        }
        for (int k = 0; k < n->nout; k++) {
            c->main[n->out[k]] = m;
            c->data[n->out[k]] = d;
        }
    }
    int *readers = ARENA_ARRAY(a, int, g->values.n);
    for (int i = 0; i < g->nodes.n; i++)
        for (int k = 0; k < g->nodes.data[i].nin; k++) readers[g->nodes.data[i].in[k]]++;
    for (int i = 0; i < g->outputs.n; i++) readers[g->outputs.data[i].value]++;
    c->biased = ARENA_ARRAY(a, bool, g->values.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        for (int k = 0; n->op == OP_add && k < 2; k++) {
            ir_val x = n->in[k], bias = n->in[1 - k];
            c->biased[x] |= ir_opof(g, x) == OP_dot && readers[x] == 1 && c->data[x] && c->main[bias] && !c->data[bias];
        }
    }
    for (int i = g->nodes.n - 1; i >= 0; i--) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_xent) c->logits[n->in[0]] = true;
        bool passes = (op_table[n->op].flags & (F_ELT | F_VIEW)) != 0, feeds = false;
        for (int k = 0; k < n->nout; k++) feeds |= c->logits[n->out[k]];
        for (int k = 0; passes && feeds && k < n->nin; k++) c->logits[n->in[k]] |= c->main[n->in[k]];
    }
}

/* Does node n compute in bf16? */
static bool computes_low(const caster *c, const ir_node *n) {
    if (c->compute != DT_BF16 || !n->nout || !c->main[n->out[0]]) return false;
    switch (n->op) {
    case OP_dot:
    case OP_attention:
    case OP_rope:
        return true;
    case OP_div:
    case OP_pow:
    case OP_exp:
    case OP_log:
    case OP_rsqrt:
    case OP_sqrt:
    case OP_recip:
    case OP_cast:
        return false;
    default:
        break;
    }
    int flags = op_table[n->op].flags;
    if (!(flags & (F_ELT | F_VIEW)) && n->op != OP_concat && n->op != OP_pad && n->op != OP_dropout) return false;
    bool any = false;
    for (int k = 0; k < n->nin; k++) { /* activations must be bf16; weights (biases) and constants follow */
        if (!dtype_is_float(ir_typeof(c->g, n->in[k])->t)) continue;
        bool follows = !c->data[n->in[k]];
        any |= is_low(c, n->in[k]);
        if (!follows && !is_low(c, n->in[k])) return false;
    }
    return any;
}

static dtype plain(const caster *c, dtype t) {
    if (!dtype_is_float(t)) return t;
    return c->compute == DT_F64 ? DT_F64 : c->compute == DT_BF16 && t == DT_BF16 ? DT_BF16 : DT_F32;
}

static sp_status rebuild(caster *c, const ir_node *n) {
    ir_graph *h = c->h;
    bool low = computes_low(c, n);
    bool f32_result = low && n->op == OP_dot && (c->logits[n->out[0]] || c->biased[n->out[0]]);
    bool rounds = false; /* a product with its bias: summed in f32, rounded once */
    for (int k = 0; c->compute == DT_BF16 && n->op == OP_add && k < 2; k++)
        rounds |= c->biased[n->in[k]] && !c->logits[n->out[0]];
    ir_val in[64], first = -1, *ins = n->nin <= 64 ? in : ARENA_ARRAY(h->a, ir_val, n->nin);
    ir_type types[IR_MAX_OUT];
    for (int k = 0; k < n->nin; k++) {
        bool table = (n->op == OP_rope && k > 0) || (n->op == OP_attention && k > 2);
        ins[k] = low && !table ? narrow(c, n->in[k]) : wide(c, n->in[k]);
    }
    for (int k = 0; k < n->nout; k++) {
        types[k] = *ir_typeof(c->g, n->out[k]);
        bool leaf = n->op == OP_param || n->op == OP_cast; /* native bf16: explicit casts stay casts */
        types[k].t = low && dtype_is_float(types[k].t) ? DT_BF16 : plain(c, types[k].t);
        if (!low && types[k].t == DT_BF16 && !(leaf && n->op == OP_cast)) types[k].t = DT_F32;
    }
    ir_attr *attr = n->attr;
    int nattr = n->nattr;
    if (f32_result) {
        attr = ARENA_ARRAY(h->a, ir_attr, nattr + 1);
        memcpy(attr, n->attr, sizeof *attr * (size_t)nattr);
        attr[nattr++] = A_I("f32", 1);
    }
    TRY(ir_emit_region(h, n->op, ins, n->nin, attr, nattr, types, n->nout, NULL, n->region, &first));
    ir_node *made = &h->nodes.data[h->nodes.n - 1];
    made->src = n->src;
    made->tag = n->tag;
    for (int k = 0; k < n->nout; k++) {
        bool is_bf = ir_typeof(h, first + k)->t == DT_BF16;
        *(is_bf ? &c->low[n->out[k]] : &c->f32[n->out[k]]) = first + k;
        h->values.data[first + k].name = c->g->values.data[n->out[k]].name;
    }
    if (rounds) {
        narrow(c, n->out[0]);
        c->f32[n->out[0]] = -1;
    }
    return SP_OK;
}

sp_status pass_cast(const ir_graph *g, const pass_options *o, ir_graph **out) {
    CHECK(o->compute == DT_F32 || o->compute == DT_F64 || o->compute == DT_BF16, "--dtype %s: use f32, bf16 or f64",
          dtype_name(o->compute));
    caster c = {.g = g, .compute = o->compute};
    c.h = ir_new(g->a, g->name);
    c.h->seq = g->seq;
    c.h->seq_valid = g->seq_valid;
    c.f32 = ARENA_ARRAY(g->a, ir_val, g->values.n);
    c.low = ARENA_ARRAY(g->a, ir_val, g->values.n);
    memset(c.f32, -1, sizeof *c.f32 * (size_t)g->values.n);
    memset(c.low, -1, sizeof *c.low * (size_t)g->values.n);
    facts(&c, g->a);
    for (int i = 0; i < g->nodes.n; i++) TRY(rebuild(&c, &g->nodes.data[i]));
    for (int i = 0; i < g->outputs.n; i++)
        ir_set_output(c.h, g->outputs.data[i].name, wide(&c, g->outputs.data[i].value));
    *out = c.h;
    return SP_OK;
}
