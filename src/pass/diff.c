/* diff.c - the forward graph becomes the joint graph: forward, backward, and one accumulation per gradient.
 *
 *   before  loss = div(num, den)
 *   after   ... forward ...
 *           %d = input {name="inv_count"} : f32[]      1 / the labels counted over all microbatches and ranks
 *           ... backward, newest node first ...
 *           accum(%dw) {param="w"}                     adds to w's gradient; a partial sum stays one until the step
 * ends return loss_sum=num, count=den
 *
 * Reverse mode over the SSA list. Contributions to a value are added in the order in which its uses appear backward, so
 * the order of a gradient's sum is fixed by the graph. A parameter's contributions are accumulated one by one as they
 * appear (tied weights: several), which frees each at once and lets a product accumulate in place. A gradient is
 * reduced over the ranks once, at the end of the step: where some contributions are partial sums, one that is whole on
 * every rank counts for 1/P on each. The loss is split into one sum over one count: with the cotangent of the sum being
 * 1/count of the whole step, microbatches and ranks may each count as many labels as they like.
 *
 * Requires: bound; sharded or not. Keeps: the forward nodes and their order. Nodes get tag 0 (forward) or 1 (backward).
 */
#include "pass/grad.h"
#include "pass/pass.h"

typedef struct contribution {
    ir_val param, dv;
} contribution;

typedef struct differ {
    ir_graph *g;
    arena *a;
    bool *need;              /* by value: depends on a trained parameter and is a float */
    ir_val *cot;             /* by forward value: the cotangent so far, -1 none */
    VEC(contribution) whole; /* contributions to parameters that are whole along some axis of the mesh */
} differ;

/* The denominator of the loss, or -1 when the loss is not a quotient by something untrained. Looks through what does
 * not change a scalar. */
static void split_loss(const ir_graph *g, const bool *need, ir_val loss, ir_val *num, ir_val *den) {
    *num = loss;
    *den = -1;
    for (ir_val v = loss;;) {
        const ir_node *n = ir_def(g, v);
        switch (n->op) {
        case OP_reshape:
        case OP_cast:
        case OP_all_reduce:
        case OP_copy:
            v = n->in[0];
            continue;
        case OP_div:
            if (need[n->in[1]]) return;
            *num = n->in[0];
            *den = n->in[1];
            return;
        default:
            return;
        }
    }
}

/* A weight's gradient is not rounded to bf16 on its way into the f32 sum: cast(permute*(dot)) takes dot's f32 result.
 */
static ir_val unrounded(ir_graph *g, ir_val dv) {
    ir_node n = *ir_def(g, dv);
    if (n.op == OP_cast && ir_typeof(g, dv)->t == DT_F32 && ir_typeof(g, n.in[0])->t == DT_BF16) {
        ir_val x = n.in[0], chain[4];
        int len = 0;
        while ((ir_opof(g, x) == OP_permute || ir_opof(g, x) == OP_enter) && len < 4) {
            chain[len++] = x;
            x = ir_def(g, x)->in[0];
        }
        n = *ir_def(g, x);
        if (n.op != OP_dot) return dv;
        ir_attr *attr = ARENA_ARRAY(g->a, ir_attr, n.nattr + 1);
        memcpy(attr, n.attr, sizeof *attr * (size_t)n.nattr);
        attr[n.nattr] = A_I("f32", 1);
        x = ir_op2(g, OP_dot, n.in[0], n.in[1], attr, n.nattr + 1); /* the rounded one is dead */
        while (len-- > 0) {
            ir_node view = *ir_def(g, chain[len]);
            x = ir_op1(g, view.op, x, view.attr, view.nattr);
        }
        return x;
    }
    return dv;
}

static sp_status emit_accum(differ *d, ir_val param, ir_val dv) {
    const char *name = ir_str(ir_def(d->g, param), "name");
    return ir_emit(d->g, OP_accum, &dv, 1, ATTRS(A_S("param", name)), NULL, NULL, NULL);
}

static sp_status accumulate(differ *d, ir_val param, ir_val dv) {
    dv = unrounded(d->g, dv);
    const char *name = ir_str(ir_def(d->g, param), "name");
    const ir_type *t = ir_typeof(d->g, param);
    CHECK(ir_typeof(d->g, dv)->rank == t->rank, "parameter '%s': a gradient of another rank", name);
    for (int a = 0; a < d->g->mesh.naxes; a++)
        if (d->g->mesh.axis[a].size > 1 &&
            ir_layoutof(d->g, dv)->axis[a].kind != LAYOUT_PARTIAL) { /* what the others are is not known yet */
            contribution c = {param, dv};
            vec_push(d->a, &d->whole, c);
            return SP_OK;
        }
    return emit_accum(d, param, dv);
}

/* Is any contribution to PARAM a partial sum over axis A? */
static bool reduced_over(const differ *d, ir_val param, int a) {
    const ir_graph *g = d->g;
    const char *name = ir_str(ir_def(g, param), "name");
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_accum && !strcmp(ir_str(n, "param"), name) &&
            ir_layoutof(g, n->in[0])->axis[a].kind == LAYOUT_PARTIAL)
            return true;
    }
    for (int i = 0; i < d->whole.n; i++) {
        const contribution *c = &d->whole.data[i];
        if (c->param == param && ir_layoutof(g, c->dv)->axis[a].kind == LAYOUT_PARTIAL) return true;
    }
    return false;
}

static sp_status accumulate_whole(differ *d) {
    for (int i = 0; i < d->whole.n; i++) {
        contribution c = d->whole.data[i];
        double share = 1;
        for (int a = 0; a < d->g->mesh.naxes; a++)
            if (ir_layoutof(d->g, c.dv)->axis[a].kind != LAYOUT_PARTIAL && reduced_over(d, c.param, a))
                share /= d->g->mesh.axis[a].size;
        if (share != 1) c.dv = ir_op2(d->g, OP_mul, c.dv, ir_fill_like(d->g, c.dv, share), NO_ATTRS);
        TRY(emit_accum(d, c.param, c.dv));
    }
    return SP_OK;
}

static sp_status add_cotangent(differ *d, ir_val v, ir_val dv) {
    if (ir_opof(d->g, v) == OP_param) return accumulate(d, v, dv);
    const ir_node *def = ir_def(d->g, v);
    if (def->op == OP_cast && ir_typeof(d->g, v)->t == DT_BF16 && ir_typeof(d->g, def->in[0])->t == DT_F32)
        dv = unrounded(d->g, ir_cast(d->g, dv, DT_F32)); /* every reader's part, before it is rounded, adds up in f32 */
    if (d->cot[v] < 0) {
        d->cot[v] = dv;
        return SP_OK;
    }
    ir_val a = d->cot[v];
    if (!ir_layout_equal(d->g, ir_layoutof(d->g, a), ir_layoutof(d->g, dv))) { /* replicated + partial */
        a = grad_reduced(d->g, a);
        dv = grad_reduced(d->g, dv);
    }
    d->cot[v] = ir_op2(d->g, OP_add, a, dv, NO_ATTRS);
    return SP_OK;
}

enum { MAX_PARTS = 16 };

/* The addends of the sum v, but for pads of zeros that go to disjoint windows of dimension *dim; n of them, in order of
 * their windows. False where there is another one. */
static bool windows(const ir_graph *g, ir_val v, int *dim, ir_node *part, int *n) {
    const ir_node *def = ir_def(g, v);
    if (def->op == OP_add) return windows(g, def->in[0], dim, part, n) && windows(g, def->in[1], dim, part, n);
    if (def->op != OP_pad || ir_int(def, "step", 1) != 1 || ir_float(def, "value", 0) != 0 || *n == MAX_PARTS)
        return false;
    int64_t at = ir_int(def, "lo", 0);
    if (*n && ir_int(def, "dim", -1) != *dim) return false;
    *dim = (int)ir_int(def, "dim", -1);
    int i = (*n)++;
    for (; i > 0 && ir_int(&part[i - 1], "lo", 0) > at; i--) part[i] = part[i - 1];
    part[i] = *def;
    return true;
}

/* The cotangent of a value that only slices read, a sum of one pad for each, written as what it is: their concatenation
 * (GPT-2's c_attn, whose result is cut into q, k and v). */
static ir_val joined(ir_graph *g, ir_val v) {
    ir_node part[MAX_PARTS];
    ir_val in[MAX_PARTS];
    int dim = -1, n = 0;
    if (v < 0 || ir_opof(g, v) != OP_add || !windows(g, v, &dim, part, &n)) return v;
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        in[i] = part[i].in[0];
        if (ir_int(&part[i], "lo", 0) != at) return v;
        at += ir_typeof(g, in[i])->dim[dim];
    }
    if (at != ir_typeof(g, v)->dim[dim]) return v;
    for (int a = 0; a < g->mesh.naxes; a++) {
        const axis_layout *l = &ir_layoutof(g, v)->axis[a];
        if (l->kind == LAYOUT_SHARD && l->dim == dim) return v;
    }
    ir_val out = -1;
    return ir_emit(g, OP_concat, in, n, ATTRS(A_I("dim", dim)), NULL, NULL, &out) == SP_OK ? out : v;
}

static sp_status backward(differ *d, int i) {
    ir_node n = d->g->nodes.data[i]; /* a copy: the list grows */
    ir_val dout[IR_MAX_OUT], *din = ARENA_ARRAY(d->a, ir_val, n.nin);
    bool *need = ARENA_ARRAY(d->a, bool, n.nin), any_out = false, any_in = false;
    for (int k = 0; k < n.nout; k++) {
        dout[k] = joined(d->g, d->cot[n.out[k]]);
        any_out |= dout[k] >= 0;
    }
    for (int k = 0; k < n.nin; k++) {
        need[k] = d->need[n.in[k]];
        din[k] = -1;
        any_in |= need[k];
    }
    if (!any_out || !any_in || n.op == OP_stop_grad) return SP_OK;
    for (int k = 0; k < n.nout && grad_wants_sums(n.op); k++)
        if (dout[k] >= 0) dout[k] = grad_reduced(d->g, dout[k]);
    TRY(grad_of(n.op)(d->g, &n, dout, need, din));
    for (int k = 0; k < n.nin; k++)
        if (need[k]) {
            ASSERT(din[k] >= 0);
            TRY(add_cotangent(d, n.in[k], din[k]));
        }
    return SP_OK;
}

sp_status pass_diff(const ir_graph *forward, ir_graph **out) {
    ir_graph *g = ir_dce(forward);
    int nodes = g->nodes.n, values = g->values.n;
    differ d = {.g = g, .a = g->a};
    d.need = ARENA_ARRAY(d.a, bool, values);
    d.cot = ARENA_ARRAY(d.a, ir_val, values);
    memset(d.cot, -1, sizeof *d.cot * (size_t)values);
    int trained = 0;
    for (int i = 0; i < nodes; i++) {
        const ir_node *n = &g->nodes.data[i];
        bool need = n->op == OP_param && ir_int(n, "grad", 0);
        trained += need;
        for (int k = 0; k < n->nin; k++) need |= d.need[n->in[k]];
        if (n->op == OP_stop_grad) need = false;
        for (int k = 0; k < n->nout; k++) d.need[n->out[k]] = need && dtype_is_float(ir_typeof(g, n->out[k])->t);
    }
    ir_val loss = ir_find_output(g, "loss"), num, den;
    CHECK(loss >= 0, "the graph has no output 'loss'");
    CHECK(ir_typeof(g, loss)->rank == 0 && dtype_is_float(ir_typeof(g, loss)->t),
          "the output 'loss' is not one floating-point number; return only the loss from the exported module");
    CHECK(trained > 0, "no parameter is trained: the graph has none with requires_grad");
    CHECK(d.need[loss], "the loss does not depend on any trained parameter");
    split_loss(g, d.need, loss, &num, &den);
    ir_type scalar = {.t = ir_typeof(g, num)->t};
    if (den < 0) den = ir_scalar(g, scalar.t, 1);
    den = grad_reduced(g, den);
    ir_val inv = ir_op0(g, OP_input, &scalar, ATTRS(A_S("name", "inv_count")));
    d.cot[num] = ir_reshape(g, inv, ir_typeof(g, num)->rank, ir_typeof(g, num)->dim);
    num = ir_reshape(g, num, 0, NULL);
    den = ir_reshape(g, den, 0, NULL);
    int turn = g->nodes.n; /* the results belong to the forward */
    for (int i = nodes - 1; i >= 0; i--) TRY(backward(&d, i));
    TRY(accumulate_whole(&d));
    for (int i = turn; i < g->nodes.n; i++) g->nodes.data[i].tag = 1;
    g->outputs.n = 0;
    ir_set_output(g, "loss_sum", num);
    ir_set_output(g, "count", den);
    *out = ir_dce(g);
    return SP_OK;
}
