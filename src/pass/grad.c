/* grad.c - the op table's `grad` column: cotangents of results give cotangents of operands.
 *
 * Shapes are global and layouts are inferred by the builder, so nothing here knows of ranks except the collectives,
 * whose gradients are each other's transposes:
 *   all_to_all      <-> the inverse all_to_all
 *   all_gather      <-> reduce_scatter (of a partial cotangent), or this rank's slice (of a replicated one)
 *   all_reduce      ->  identity (partial sums have replicated cotangents)
 *   shard           <-> all_gather
 *   enter           ->  identity: the cotangent stays a partial sum until the parameter's accumulation is reduced
 * Layouts of a value and of its cotangent are dual: sharded <-> sharded, partial -> replicated, replicated ->
 * replicated or (behind enter) partial.
 */
#include "pass/grad.h"

#include <math.h>

#define X (n->in[0])
#define Y (n->in[1])
#define DY (dout[0])
#define OUT (n->out[0])
#define TYPE(v) ir_typeof(g, (v))
#define UNUSED (void)g, (void)n, (void)dout, (void)need, (void)din
#define GRAD(name)                                                                                                     \
    static sp_status grad_##name(ir_graph *g, const ir_node *n, const ir_val *dout, const bool *need, ir_val *din)

static ir_val mul(ir_graph *g, ir_val a, ir_val b) { return ir_op2(g, OP_mul, a, b, NO_ATTRS); }

static ir_val sub(ir_graph *g, ir_val a, ir_val b) { return ir_op2(g, OP_sub, a, b, NO_ATTRS); }
static ir_val un(ir_graph *g, ir_op op, ir_val a) { return ir_op1(g, op, a, NO_ATTRS); }
static ir_val scale(ir_graph *g, ir_val a, double c) { return mul(g, a, ir_fill_like(g, a, c)); }

ir_val grad_reduced(ir_graph *g, ir_val v) {
    for (int a = 0; a < g->mesh.naxes; a++)
        if (ir_layoutof(g, v)->axis[a].kind == LAYOUT_PARTIAL)
            v = ir_op1(g, OP_all_reduce, v, ATTRS(A_S("axis", g->mesh.axis[a].name)));
    return v;
}

GRAD(none) {
    UNUSED;
    FAIL("%s%s%s has no gradient, but a parameter is trained through it; use a differentiable form or freeze the "
         "parameter",
         op_table[n->op].name, n->src ? " at " : "", n->src ? n->src : "");
}

/* ---- views and moves ---- */

GRAD(pass) {
    UNUSED;
    din[0] = DY;
    return SP_OK;
}

GRAD(reshape) {
    UNUSED;
    din[0] = ir_reshape(g, DY, TYPE(X)->rank, TYPE(X)->dim);
    return SP_OK;
}

GRAD(permute) {
    UNUSED;
    const ir_dim *perm;
    int inverse[IR_MAX_RANK], rank = ir_dims(n, "perm", &perm);
    for (int i = 0; i < rank; i++) inverse[perm[i]] = i;
    din[0] = ir_permute(g, DY, inverse);
    return SP_OK;
}

GRAD(expand) {
    UNUSED;
    int dims[IR_MAX_RANK], k = 0;
    for (int d = 0; d < TYPE(X)->rank; d++)
        if (TYPE(X)->dim[d] != TYPE(OUT)->dim[d]) dims[k++] = d;
    dtype t = TYPE(DY)->t; /* sums of bf16 are f32 */
    ir_val sum = k ? ir_sum(g, ir_cast(g, DY, t == DT_BF16 ? DT_F32 : t), k, dims) : DY;
    din[0] = ir_reshape(g, ir_cast(g, sum, t), TYPE(X)->rank, TYPE(X)->dim);
    return SP_OK;
}

GRAD(slice) {
    UNUSED;
    const ir_dim *range;
    int64_t dim = ir_int(n, "dim", 0), step = ir_int(n, "step", 1), extent = TYPE(X)->dim[dim];
    ir_dims(n, "range", &range);
    int64_t covered = TYPE(OUT)->dim[dim] ? (TYPE(OUT)->dim[dim] - 1) * step + 1 : 0;
    din[0] = ir_op1(g, OP_pad, DY,
                    ATTRS(A_I("dim", dim), A_I("lo", range[0]), A_I("hi", extent - range[0] - covered),
                          A_F("value", 0.0), A_I("step", step)));
    return SP_OK;
}

GRAD(pad) {
    UNUSED;
    int64_t dim = ir_int(n, "dim", 0), lo = ir_int(n, "lo", 0), step = ir_int(n, "step", 1);
    int64_t extent = TYPE(X)->dim[dim];
    din[0] = ir_slice(g, DY, (int)dim, lo, lo + (extent ? (extent - 1) * step + 1 : 0), step);
    return SP_OK;
}

GRAD(concat) {
    UNUSED;
    int64_t dim = ir_int(n, "dim", 0), at = 0;
    for (int i = 0; i < n->nin; i++) {
        int64_t extent = TYPE(n->in[i])->dim[dim];
        if (need[i]) din[i] = ir_slice(g, DY, (int)dim, at, at + extent, 1);
        at += extent;
    }
    return SP_OK;
}

GRAD(gather) {
    UNUSED;
    int64_t dim = ir_int(n, "dim", 0);
    ir_dim size = TYPE(X)->dim[dim];
    din[0] = ir_op2(g, OP_scatter_add, DY, Y, ATTRS(A_I("dim", dim), A_D("size", 1, &size)));
    return SP_OK;
}

GRAD(dropout) { /* the same mask again */
    UNUSED;
    return ir_emit(g, OP_dropout, (ir_val[]){DY, Y}, 2, n->attr, n->nattr, NULL, NULL, &din[0]);
}

GRAD(cast) {
    UNUSED;
    din[0] = ir_cast(g, DY, TYPE(X)->t);
    return SP_OK;
}

/* ---- element-wise ---- */

GRAD(neg) {
    UNUSED;
    din[0] = un(g, OP_neg, DY);
    return SP_OK;
}

GRAD(abs) {
    UNUSED;
    ir_val positive = ir_op2(g, OP_ge, X, ir_fill_like(g, X, 0), NO_ATTRS);
    din[0] = ir_op3(g, OP_select, positive, DY, un(g, OP_neg, DY), NO_ATTRS);
    return SP_OK;
}

GRAD(exp) {
    UNUSED;
    din[0] = mul(g, DY, OUT);
    return SP_OK;
}

GRAD(log) {
    UNUSED;
    din[0] = ir_op2(g, OP_div, DY, X, NO_ATTRS);
    return SP_OK;
}

GRAD(sqrt) {
    UNUSED;
    din[0] = ir_op2(g, OP_div, scale(g, DY, 0.5), OUT, NO_ATTRS);
    return SP_OK;
}

GRAD(rsqrt) { /* d x^-1/2 = -1/2 y^3 */
    UNUSED;
    din[0] = mul(g, scale(g, DY, -0.5), mul(g, OUT, mul(g, OUT, OUT)));
    return SP_OK;
}

GRAD(recip) {
    UNUSED;
    din[0] = un(g, OP_neg, mul(g, DY, mul(g, OUT, OUT)));
    return SP_OK;
}

GRAD(sin) {
    UNUSED;
    din[0] = mul(g, DY, un(g, OP_cos, X));
    return SP_OK;
}

GRAD(cos) {
    UNUSED;
    din[0] = un(g, OP_neg, mul(g, DY, un(g, OP_sin, X)));
    return SP_OK;
}

GRAD(tanh) { /* 1 - y^2 */
    UNUSED;
    din[0] = mul(g, DY, sub(g, ir_fill_like(g, OUT, 1), mul(g, OUT, OUT)));
    return SP_OK;
}

GRAD(erf) { /* 2/sqrt(pi) exp(-x^2) */
    UNUSED;
    din[0] = mul(g, scale(g, DY, 2 / sqrt(3.14159265358979323846)), un(g, OP_exp, un(g, OP_neg, mul(g, X, X))));
    return SP_OK;
}

GRAD(sigmoid) { /* y (1 - y) */
    UNUSED;
    din[0] = mul(g, DY, mul(g, OUT, sub(g, ir_fill_like(g, OUT, 1), OUT)));
    return SP_OK;
}

GRAD(silu) {
    UNUSED;
    din[0] = ir_op2(g, OP_silu_grad, X, DY, NO_ATTRS);
    return SP_OK;
}

GRAD(gelu) {
    UNUSED;
    din[0] = ir_op2(g, OP_gelu_grad, X, DY, NO_ATTRS);
    return SP_OK;
}

GRAD(gelu_tanh) {
    UNUSED;
    din[0] = ir_op2(g, OP_gelu_tanh_grad, X, DY, NO_ATTRS);
    return SP_OK;
}

GRAD(relu) {
    UNUSED;
    ir_val zero = ir_fill_like(g, OUT, 0);
    din[0] = ir_op3(g, OP_select, ir_op2(g, OP_gt, OUT, zero, NO_ATTRS), DY, zero, NO_ATTRS);
    return SP_OK;
}

GRAD(add) {
    UNUSED;
    din[0] = din[1] = DY;
    return SP_OK;
}

GRAD(sub) {
    UNUSED;
    din[0] = DY;
    if (need[1]) din[1] = un(g, OP_neg, DY);
    return SP_OK;
}

GRAD(mul) {
    UNUSED;
    if (need[0]) din[0] = mul(g, DY, Y);
    if (need[1]) din[1] = mul(g, DY, X);
    return SP_OK;
}

GRAD(div) { /* y = a/b: da = dy/b, db = -dy y/b */
    UNUSED;
    ir_val q = ir_op2(g, OP_div, DY, Y, NO_ATTRS);
    if (need[0]) din[0] = q;
    if (need[1]) din[1] = un(g, OP_neg, mul(g, q, OUT));
    return SP_OK;
}

GRAD(pow) { /* c x^(c-1) */
    UNUSED;
    CHECK(!need[1], "pow%s%s: no gradient to the exponent", n->src ? " at " : "", n->src ? n->src : "");
    ir_val less = ir_op2(g, OP_pow, X, sub(g, Y, ir_fill_like(g, Y, 1)), NO_ATTRS);
    din[0] = mul(g, DY, mul(g, Y, less));
    return SP_OK;
}

static sp_status grad_extremum(ir_graph *g, const ir_node *n, const ir_val *dout, const bool *need, ir_val *din,
                               ir_op cmp) {
    ir_val first = ir_op2(g, cmp, X, Y, NO_ATTRS), zero = ir_fill_like(g, DY, 0); /* a tie goes to operand 0 */
    if (need[0]) din[0] = ir_op3(g, OP_select, first, DY, zero, NO_ATTRS);
    if (need[1]) din[1] = ir_op3(g, OP_select, first, zero, DY, NO_ATTRS);
    return SP_OK;
}

GRAD(max) { return grad_extremum(g, n, dout, need, din, OP_ge); }
GRAD(min) { return grad_extremum(g, n, dout, need, din, OP_le); }

GRAD(select) {
    UNUSED;
    ir_val zero = ir_fill_like(g, DY, 0);
    if (need[1]) din[1] = ir_op3(g, OP_select, X, DY, zero, NO_ATTRS);
    if (need[2]) din[2] = ir_op3(g, OP_select, X, zero, DY, NO_ATTRS);
    return SP_OK;
}

GRAD(swiglu) {
    UNUSED;
    ir_val d = ir_op3(g, OP_swiglu_grad, X, Y, DY, NO_ATTRS);
    din[0] = d;
    din[1] = d + 1;
    return SP_OK;
}

/* ---- reductions ---- */

/* v, whose dimensions `dims` of `like` were reduced away, repeated to like's shape and layout. */
static sp_status spread(ir_graph *g, ir_val v, ir_val like, const ir_node *n, ir_val *out) {
    const ir_dim *dims;
    int k = ir_dims(n, "dims", &dims);
    ir_type keep = *TYPE(like), full = keep;
    keep.t = full.t = TYPE(v)->t;
    for (int i = 0; i < k; i++) keep.dim[dims[i]] = 1;
    ir_val r = ir_reshape(g, v, keep.rank, keep.dim);
    return ir_emit(g, OP_expand, &r, 1, NO_ATTRS, &full, ir_layoutof(g, like), out);
}

GRAD(sum) {
    UNUSED;
    return spread(g, DY, X, n, &din[0]);
}

GRAD(cumsum) { /* from each element on: all of dy less what comes before */
    UNUSED;
    int dim = (int)ir_int(n, "dim", 0);
    ir_type keep = *TYPE(X), full = keep;
    keep.dim[dim] = 1;
    ir_val all = ir_reshape(g, ir_sum(g, DY, 1, &dim), keep.rank, keep.dim);
    TRY(ir_emit(g, OP_expand, &all, 1, NO_ATTRS, &full, ir_layoutof(g, X), &all));
    ir_val before = ir_op2(g, OP_sub, ir_op1(g, OP_cumsum, DY, ATTRS(A_I("dim", dim))), DY, NO_ATTRS);
    din[0] = ir_op2(g, OP_sub, all, before, NO_ATTRS);
    return SP_OK;
}

GRAD(rmax) { /* equal shares to equal largest elements, as torch.amax */
    UNUSED;
    const ir_dim *d;
    int dims[IR_MAX_RANK], k = ir_dims(n, "dims", &d);
    for (int i = 0; i < k; i++) dims[i] = (int)d[i];
    ir_val top, share;
    TRY(spread(g, OUT, X, n, &top));
    ir_val is_top = ir_cast(g, ir_op2(g, OP_eq, X, top, NO_ATTRS), TYPE(X)->t);
    TRY(spread(g, ir_op2(g, OP_div, DY, ir_sum(g, is_top, k, dims), NO_ATTRS), X, n, &share));
    din[0] = mul(g, share, is_top);
    return SP_OK;
}

GRAD(softmax) {
    UNUSED;
    din[0] = ir_op2(g, OP_softmax_grad, OUT, DY, ATTRS(A_I("dim", ir_int(n, "dim", 0))));
    return SP_OK;
}

/* ---- products ---- */

static bool listed(const ir_dim *list, int n, int d) {
    for (int i = 0; i < n; i++)
        if (list[i] == d) return true;
    return false;
}

/* The cotangent of one operand of dot. y has batch, left free, right free dimensions; side 0 wants the left operand's,
 * from dy and the right one contracted over the right free dimensions, and the other way round. */
static ir_val dot_side(ir_graph *g, const ir_node *n, ir_val dy, int side) {
    const ir_dim *c[2], *b[2];
    int nc = ir_dims(n, "lc", &c[0]), nb = ir_dims(n, "lb", &b[0]);
    ir_dims(n, "rc", &c[1]);
    ir_dims(n, "rb", &b[1]);
    const ir_type mine = *TYPE(n->in[side]), other = *TYPE(n->in[1 - side]);
    int my_free = mine.rank - nc - nb, other_free = other.rank - nc - nb;
    ir_dim yb[IR_MAX_RANK], ob[IR_MAX_RANK], yc[IR_MAX_RANK], oc[IR_MAX_RANK];
    for (int i = 0; i < nb; i++) {
        yb[i] = i;
        ob[i] = b[1 - side][i];
    }
    int k = 0;
    for (int d = 0; d < other.rank; d++)
        if (!listed(c[1 - side], nc, d) && !listed(b[1 - side], nb, d)) {
            yc[k] = nb + (side == 0 ? my_free : 0) + k;
            oc[k++] = d;
        }
    ASSERT(k == other_free);
    ir_val r = ir_op2(g, OP_dot, dy, n->in[1 - side],
                      ATTRS(A_D("lc", k, yc), A_D("rc", k, oc), A_D("lb", nb, yb), A_D("rb", nb, ob)));
    /* r: batch, my free, then the contracted dimensions in the order that they have in the other operand */
    int at[IR_MAX_RANK] = {0}, perm[IR_MAX_RANK], free_at = nb, used = 0;
    for (int d = 0; d < other.rank; d++)
        for (int i = 0; i < nc; i++)
            if (c[1 - side][i] == d) at[i] = nb + my_free + used++;
    for (int d = 0; d < mine.rank; d++) {
        perm[d] = -1;
        for (int i = 0; i < nb; i++)
            if (b[side][i] == d) perm[d] = i;
        for (int i = 0; i < nc; i++)
            if (c[side][i] == d) perm[d] = at[i];
        if (perm[d] < 0) perm[d] = free_at++;
    }
    return ir_permute(g, r, perm);
}

GRAD(dot) {
    UNUSED;
    ir_val dy = ir_cast(g, DY, TYPE(X)->t); /* logits: an f32 cotangent of bf16 operands; once for both products */
    for (int side = 0; side < 2; side++)
        if (need[side]) din[side] = dot_side(g, n, dy, side);
    return SP_OK;
}

GRAD(embedding) {
    UNUSED;
    ir_dim vocab = TYPE(X)->dim[0];
    din[0] = ir_op2(g, OP_embedding_grad, DY, Y, ATTRS(A_D("vocab", 1, &vocab), A_I("pad", ir_int(n, "pad", -1))));
    return SP_OK;
}

/* ---- rows ---- */

GRAD(rmsnorm) {
    UNUSED;
    CHECK(dout[1] < 0, "rmsnorm: the statistics have no gradient");
    ir_val in[4] = {X, Y, n->out[1], DY};
    ir_val d;
    TRY(ir_emit(g, OP_rmsnorm_grad, in, 4, n->attr, n->nattr, NULL, NULL, &d));
    din[0] = d;
    din[1] = d + 1;
    return SP_OK;
}

GRAD(layernorm) {
    UNUSED;
    CHECK(dout[1] < 0 && dout[2] < 0, "layernorm: the statistics have no gradient");
    ir_val in[5] = {X, Y, n->out[1], n->out[2], DY}, d;
    TRY(ir_emit(g, OP_layernorm_grad, in, 5, n->attr, n->nattr, NULL, NULL, &d));
    for (int i = 0; i < 3; i++) din[i] = d + i;
    return SP_OK;
}

GRAD(xent) {
    UNUSED;
    CHECK(dout[1] < 0, "xent: the log-sum-exp has no gradient");
    ir_val in[4] = {X, Y, n->out[1], DY};
    return ir_emit(g, OP_xent_grad, in, 4, n->attr, n->nattr, NULL, NULL, &din[0]);
}

GRAD(rope) {
    UNUSED;
    CHECK(!need[1] && !need[2], "rope: the tables have no gradient");
    din[0] = ir_op3(g, OP_rope, DY, Y, n->in[2], ATTRS(A_I("transpose", !ir_int(n, "transpose", 0))));
    return SP_OK;
}

GRAD(attention) {
    UNUSED;
    CHECK(dout[1] < 0, "attention: the log-sum-exp has no gradient");
    for (int i = 3; i < n->nin; i++)
        CHECK(!need[i], "attention%s%s: a mask or bias that depends on a trained parameter has no gradient here",
              n->src ? " at " : "", n->src ? n->src : "");
    ir_val *in = ARENA_ARRAY(g->a, ir_val, n->nin + 3);
    for (int i = 0; i < 3; i++) in[i] = n->in[i];
    in[3] = n->out[0];
    in[4] = n->out[1];
    in[5] = DY;
    for (int i = 3; i < n->nin; i++) in[i + 3] = n->in[i];
    ir_val d;
    TRY(ir_emit_region(g, OP_attention_grad, in, n->nin + 3, n->attr, n->nattr, NULL, 3, NULL, n->region, &d));
    for (int i = 0; i < 3; i++) din[i] = d + i;
    return SP_OK;
}

/* ---- layouts ---- */

static axis_layout own_layout(const ir_graph *g, const ir_node *n, ir_val v) {
    return ir_layoutof(g, v)->axis[ir_axis(g, ir_str(n, "axis"))];
}

GRAD(enter) {
    UNUSED;
    din[0] = DY;
    return SP_OK;
}

GRAD(shard) {
    UNUSED;
    axis_layout l = own_layout(g, n, OUT);
    din[0] =
        ir_op1(g, OP_all_gather, DY, ATTRS(A_S("axis", ir_str(n, "axis")), A_I("dim", l.dim), A_I("outer", l.outer)));
    return SP_OK;
}

GRAD(all_reduce) {
    UNUSED;
    din[0] = own_layout(g, n, DY).kind == LAYOUT_PARTIAL
                 ? ir_op1(g, OP_all_reduce, DY, ATTRS(A_S("axis", ir_str(n, "axis"))))
                 : DY;
    return SP_OK;
}

GRAD(all_gather) {
    UNUSED;
    axis_layout l = own_layout(g, n, X);
    ir_op op = own_layout(g, n, DY).kind == LAYOUT_PARTIAL ? OP_reduce_scatter : OP_shard;
    din[0] = ir_op1(g, op, DY, ATTRS(A_S("axis", ir_str(n, "axis")), A_I("dim", l.dim), A_I("outer", l.outer)));
    return SP_OK;
}

GRAD(reduce_scatter) {
    UNUSED;
    axis_layout l = own_layout(g, n, OUT);
    din[0] =
        ir_op1(g, OP_all_gather, DY, ATTRS(A_S("axis", ir_str(n, "axis")), A_I("dim", l.dim), A_I("outer", l.outer)));
    return SP_OK;
}

GRAD(all_to_all) {
    UNUSED;
    din[0] =
        ir_op1(g, OP_all_to_all, DY,
               ATTRS(A_S("axis", ir_str(n, "axis")), A_I("from", ir_int(n, "to", 0)), A_I("to", ir_int(n, "from", 0))));
    return SP_OK;
}

bool grad_wants_sums(ir_op op) {
    switch (op) {
    case OP_abs:
    case OP_relu:
    case OP_max:
    case OP_min:
    case OP_select: /* these select */
    case OP_silu:
    case OP_gelu:
    case OP_gelu_tanh:
    case OP_swiglu:
    case OP_cumsum:
    case OP_softmax:
    case OP_rmsnorm:
    case OP_layernorm:
    case OP_xent:
    case OP_attention: /* these have an op for it */
        return true;
    default:
        return false;
    }
}

grad_fn *grad_of(ir_op op) {
    static grad_fn *const table[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = grad_##grad,
#include "ir/ops.def"
#undef OP
    };
    return table[op];
}
