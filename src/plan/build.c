/* build.c - joint graph to linear program: strides for views, copies where strides cannot say it, one instruction per
 * node that moves or computes something.
 *
 *   before  %7 = permute(%6) {perm=[0,2,1,3]}; %8 = attention(%7, ...)
 *   after   i12 attention b9[2,4,8,16 : strides 512,16,64,1] ...       (no instruction for %7)
 *
 * A view is a window (buffer, offset, strides) into its operand's buffer. A reshape of a strided window is a window
 * again when the strides allow it, else a copy. `shard` is a window that starts at the rank's part. A gradient
 * contribution whose producer can add (`dot`, `embedding_grad`) writes straight into the gradient buffer.
 */
#include "plan/plan.h"

typedef struct builder {
    plan *p;
    const ir_graph *g;
    const plan_options *o;
    plan_tensor *at; /* by value; .buf -1: not made in this program */
    int *uses;
    int prog;
} builder;

static int new_buf(plan *p, plan_section section, int64_t bytes, int program) {
    plan_buf b = {.section = section, .bytes = bytes, .offset = -1, .first = -1, .last = -1, .program = program};
    vec_push(p->a, &p->bufs, b);
    return p->bufs.n - 1;
}

/* A contiguous window over a whole buffer. */
static plan_tensor window(int id, const ir_type *local) {
    plan_tensor w = {.buf = id};
    w.t.type = local->t;
    w.t.rank = local->rank;
    int64_t stride = 1;
    for (int d = local->rank - 1; d >= 0; d--) {
        w.t.dim[d] = local->dim[d];
        w.t.stride[d] = stride;
        stride *= local->dim[d];
    }
    return w;
}

static plan_tensor fresh(builder *b, const ir_type *local) {
    return window(new_buf(b->p, SEC_WORK, ir_bytes(local), b->prog), local);
}

static plan_instr *add_instr(builder *b, ir_op op, const ir_node *n, int nin, int nout) {
    plan_program *pr = &b->p->program[b->prog];
    plan_instr i = {.op = op, .node = n, .nin = nin, .nout = nout, .work = -1, .axis = -1};
    i.in = ARENA_ARRAY(b->p->a, plan_tensor, nin);
    i.out = ARENA_ARRAY(b->p->a, plan_tensor, nout);
    i.backward = n && n->tag == 1;
    vec_push(b->p->a, &pr->instrs, i);
    return &pr->instrs.data[pr->instrs.n - 1];
}

static plan_tensor materialize(builder *b, const ir_node *n, plan_tensor src) {
    ir_type t = {.t = src.t.type, .rank = src.t.rank};
    for (int d = 0; d < t.rank; d++) t.dim[d] = src.t.dim[d];
    plan_tensor dst = fresh(b, &t);
    plan_instr *i = add_instr(b, OP_copy, n, 1, 1);
    i->in[0] = src;
    i->out[0] = dst;
    return dst;
}

/* ---- views ---- */

/* Strides for the same elements in another shape; false when none exist (numpy's rule for reshape without a copy). */
static bool reshape_strides(const tensor *from, const ir_type *to, int64_t *stride) {
    int64_t dim[IR_MAX_RANK], st[IR_MAX_RANK];
    int n = 0;
    for (int d = 0; d < from->rank; d++)
        if (from->dim[d] != 1) {
            dim[n] = from->dim[d];
            st[n++] = from->stride[d];
        }
    if (tensor_numel(from) == 0) {
        for (int d = 0; d < to->rank; d++) stride[d] = 0;
        return true;
    }
    int i = 0, k = 0;
    while (k < to->rank) {
        if (to->dim[k] == 1) {
            stride[k++] = 0;
            continue;
        }
        if (i >= n) return false;
        int i1 = i + 1, k1 = k + 1;
        int64_t a = dim[i], c = to->dim[k];
        while (a != c) {
            if (a < c) {
                if (i1 >= n) return false;
                a *= dim[i1++];
            } else {
                if (k1 >= to->rank) return false;
                c *= to->dim[k1++];
            }
        }
        for (int x = i; x + 1 < i1; x++)
            if (st[x] != st[x + 1] * dim[x + 1]) return false;
        int64_t s = st[i1 - 1];
        for (int x = k1 - 1; x >= k; x--) {
            stride[x] = s;
            s *= to->dim[x];
        }
        i = i1;
        k = k1;
    }
    return true;
}

static plan_tensor view_reshape(builder *b, const ir_node *n, plan_tensor x, const ir_type *local) {
    int64_t stride[IR_MAX_RANK];
    if (!reshape_strides(&x.t, local, stride)) {
        x = materialize(b, n, x);
        bool fits = reshape_strides(&x.t, local, stride);
        ASSERT(fits);
    }
    x.t.rank = local->rank;
    for (int d = 0; d < local->rank; d++) {
        x.t.dim[d] = local->dim[d];
        x.t.stride[d] = stride[d];
    }
    return x;
}

static plan_tensor view_shard(builder *b, const ir_node *n, plan_tensor x) {
    axis_layout l = ir_layoutof(b->g, n->out[0])->axis[ir_axis(b->g, ir_str(n, "axis"))];
    int64_t size = b->g->mesh.axis[ir_axis(b->g, ir_str(n, "axis"))].size;
    int d = l.dim;
    int64_t inner = x.t.dim[d] / (l.outer * size);
    if (l.outer == 1) {
        x.t.dim[d] = inner;
        x.rank_step += inner * x.t.stride[d];
        return x;
    }
    /* (outer, P, inner) in one dimension: show it as two, copy the rank's part, join them again */
    ASSERT(x.t.rank < IR_MAX_RANK);
    for (int k = x.t.rank; k > d; k--) {
        x.t.dim[k] = x.t.dim[k - 1];
        x.t.stride[k] = x.t.stride[k - 1];
    }
    x.t.rank++;
    x.t.dim[d] = l.outer;
    x.t.stride[d] = x.t.stride[d + 1] * inner * size;
    x.t.dim[d + 1] = inner;
    x.rank_step += inner * x.t.stride[d + 1];
    ir_type joined = ir_local_type(b->g, n->out[0]);
    return view_reshape(b, n, x, &joined);
}

static plan_tensor view(builder *b, const ir_node *n) {
    plan_tensor x = b->at[n->in[0]];
    ir_type local = ir_local_type(b->g, n->out[0]);
    switch (n->op) {
    case OP_enter:
    case OP_stop_grad:
        return x;
    case OP_reshape:
        return view_reshape(b, n, x, &local);
    case OP_permute: {
        const ir_dim *perm;
        plan_tensor y = x;
        ir_dims(n, "perm", &perm);
        for (int d = 0; d < x.t.rank; d++) {
            y.t.dim[d] = x.t.dim[perm[d]];
            y.t.stride[d] = x.t.stride[perm[d]];
        }
        return y;
    }
    case OP_expand:
        for (int d = 0; d < x.t.rank; d++)
            if (x.t.dim[d] != local.dim[d]) {
                x.t.dim[d] = local.dim[d];
                x.t.stride[d] = 0;
            }
        return x;
    case OP_slice: {
        const ir_dim *range;
        int64_t d = ir_int(n, "dim", 0), step = ir_int(n, "step", 1);
        ir_dims(n, "range", &range);
        x.offset += range[0] * x.t.stride[d];
        x.t.dim[d] = local.dim[d];
        x.t.stride[d] *= step;
        return x;
    }
    case OP_shard:
        return view_shard(b, n, x);
    default:
        ASSERT(!"a view op has a case here");
        return x;
    }
}

/* ---- what operands must look like ---- */

/* Do dimensions list[0..n) of t fold into one with a single stride? *stride and *extent of the fold. */
static bool folds(const tensor *t, const int *list, int n, int64_t *extent, int64_t *stride) {
    *extent = 1;
    *stride = 1;
    for (int i = n - 1; i >= 0; i--) {
        int d = list[i];
        if (t->dim[d] == 1) continue;
        if (*extent == 1)
            *stride = t->stride[d];
        else if (t->stride[d] != *stride * *extent)
            return false;
        *extent *= t->dim[d];
    }
    return true;
}

static bool listed(const ir_dim *list, int n, int d) {
    for (int i = 0; i < n; i++)
        if (list[i] == d) return true;
    return false;
}

/* A matrix product takes a window whose free dimensions fold into one and whose contracted dimensions fold into one,
 * one of the two with stride 1. */
static bool dot_takes(const ir_node *n, int side, const tensor *t) {
    const ir_dim *c, *bt;
    int nc = ir_dims(n, side ? "rc" : "lc", &c), nb = ir_dims(n, side ? "rb" : "lb", &bt);
    int con[IR_MAX_RANK], fre[IR_MAX_RANK], k = 0;
    int64_t ce, cs, fe, fs;
    for (int i = 0; i < nc; i++) con[i] = (int)c[i];
    for (int d = 0; d < t->rank; d++)
        if (!listed(c, nc, d) && !listed(bt, nb, d)) fre[k++] = d;
    if (!folds(t, con, nc, &ce, &cs) || !folds(t, fre, k, &fe, &fs)) return false;
    return ce == 1 || fe == 1 || ((cs == 1 && fs >= ce) || (fs == 1 && cs >= fe));
}

static bool takes(const ir_node *n, int i, const tensor *t) {
    int flags = op_table[n->op].flags;
    switch (n->op) {
    case OP_dot:
        return dot_takes(n, i, t);
    case OP_attention:
    case OP_attention_grad: /* head rows contiguous; statistics and side vectors have strides */
        return i == 4 || (n->op == OP_attention && i > 2) || i > 5 || t->stride[t->rank - 1] == 1 ||
               t->dim[t->rank - 1] == 1;
    case OP_rope:
        return i == 0 ? t->stride[3] == 1 : tensor_contiguous(t);
    case OP_concat:
    case OP_pad:
    case OP_sum:
    case OP_rmax:
    case OP_accum:
    case OP_take:
        return true;
    case OP_xent_grad:
        return i == 3 || tensor_contiguous(t);
    default:
        return (flags & F_ELT) || tensor_contiguous(t);
    }
}

/* ---- gradients that accumulate in place ---- */

/* The accum node at the end of v's only chain of permutes, or NULL; *steps the permutes, nearest to v first. */
static const ir_node *lone_accum(const builder *b, const int *user, ir_val v, ir_val *chain, int *len) {
    *len = 0;
    while (b->uses[v] == 1 && user[v] >= 0) {
        const ir_node *n = &b->g->nodes.data[user[v]];
        if (n->op == OP_accum) return n;
        if (n->op != OP_permute || *len == 4) return NULL;
        chain[(*len)++] = v = n->out[0];
    }
    return NULL;
}

static const plan_param *find_param(const plan *p, const char *name) {
    for (int i = 0; i < p->params.n; i++)
        if (strcmp(p->params.data[i].name, name) == 0) return &p->params.data[i];
    return NULL;
}

/* The gradient buffer seen through the inverse of the permutes between a product and its accumulation. */
static plan_tensor grad_window(const builder *b, const ir_node *accum, const ir_val *chain, int len) {
    const plan_param *q = find_param(b->p, ir_str(accum, "param"));
    ir_type t = q->type;
    t.t = b->p->type;
    plan_tensor w = window(q->grad, &t);
    for (int i = len - 1; i >= 0; i--) {
        const ir_dim *perm;
        plan_tensor x = w;
        ir_dims(ir_def(b->g, chain[i]), "perm", &perm);
        for (int d = 0; d < w.t.rank; d++) {
            x.t.dim[perm[d]] = w.t.dim[d];
            x.t.stride[perm[d]] = w.t.stride[d];
        }
        w = x;
    }
    return w;
}

/* ---- nodes ---- */

static void collective(builder *b, plan_instr *i, const ir_node *n) {
    i->axis = ir_axis(b->g, ir_str(n, "axis"));
    ASSERT(i->axis >= 0);
    i->from = ir_layoutof(b->g, n->in[0])->axis[i->axis];
    i->to = ir_layoutof(b->g, n->out[0])->axis[i->axis];
}

static void lower_const(builder *b, const ir_node *n) {
    ir_type local = ir_local_type(b->g, n->out[0]), one = {.t = local.t};
    plan_tensor w = window(new_buf(b->p, SEC_CONST, n->op == OP_fill ? dtype_size(local.t) : ir_bytes(&local), -1),
                           n->op == OP_fill ? &one : &local);
    vec_push(b->p->a, &b->p->const_at, w);
    vec_push(b->p->a, &b->p->const_node, n);
    if (n->op == OP_fill) { /* one element, shown everywhere */
        w.t.rank = local.rank;
        for (int d = 0; d < local.rank; d++) {
            w.t.dim[d] = local.dim[d];
            w.t.stride[d] = 0;
        }
    }
    b->at[n->out[0]] = w;
}

static sp_status lower_node(builder *b, const ir_node *n, const int *user, bool *done) {
    plan *p = b->p;
    int flags = op_table[n->op].flags;
    if (n->op == OP_param || n->op == OP_input) return SP_OK; /* placed before */
    if (n->op == OP_fill || n->op == OP_const) {
        lower_const(b, n);
        return SP_OK;
    }
    if (flags & F_VIEW) {
        b->at[n->out[0]] = view(b, n);
        return SP_OK;
    }
    if (n->op == OP_accum && done[n - b->g->nodes.data]) return SP_OK;
    plan_tensor *in = ARENA_ARRAY(p->a, plan_tensor, n->nin);
    for (int i = 0; i < n->nin; i++) {
        in[i] = b->at[n->in[i]];
        ASSERT(in[i].buf >= 0);
        if (!takes(n, i, &in[i].t)) {
            in[i] = materialize(b, n, in[i]);
            if (n->op == OP_dot && !takes(n, i, &in[i].t)) { /* contracted dimensions in the middle: reorder */
                FAIL("dot: operand %d has its contracted dimensions spread out; this product is not supported", i);
            }
        }
    }
    plan_instr *i = add_instr(b, n->op, n, n->nin, n->nout);
    memcpy(i->in, in, sizeof *in * (size_t)n->nin);
    for (int k = 0; k < n->nout; k++) {
        ir_type local = ir_local_type(b->g, n->out[k]);
        ir_val chain[4];
        int len;
        const ir_node *acc = NULL;
        if ((n->op == OP_dot || n->op == OP_embedding_grad) && local.t == p->type)
            acc = lone_accum(b, user, n->out[k], chain, &len);
        if (acc && (n->op == OP_dot || len == 0)) {
            i->out[k] = grad_window(b, acc, chain, len);
            i->accumulate = true;
            done[acc - b->g->nodes.data] = true;
            for (int c = 0; c < len; c++) b->at[chain[c]] = i->out[k];
        } else {
            i->out[k] = fresh(b, &local);
        }
        b->at[n->out[k]] = i->out[k];
    }
    if (flags & F_COLL) collective(b, i, n);
    if (n->op == OP_accum) {
        i->nout = 1;
        i->out = ARENA_ARRAY(p->a, plan_tensor, 1);
        i->out[0] = grad_window(b, n, NULL, 0);
        i->accumulate = true;
    }
    if (n->op == OP_iota || n->op == OP_attention || n->op == OP_attention_grad) {
        ir_val v = n->op == OP_iota ? n->out[0] : n->in[0];
        int dim = n->op == OP_iota ? (int)ir_int(n, "dim", 0) : 1;
        for (int a = 0; a < b->g->mesh.naxes; a++) {
            axis_layout l = ir_layoutof(b->g, v)->axis[a];
            if (l.kind == LAYOUT_SHARD && l.dim == dim) i->rank_offset = ir_local_type(b->g, v).dim[dim];
        }
    }
    if (b->o->workspace) {
        int64_t bytes = b->o->workspace(b->o->ctx, i);
        if (bytes > 0) {
            i->work = new_buf(p, SEC_WORK, bytes, b->prog);
            p->bufs.data[i->work].comm = i->axis >= 0;
        }
    }
    return SP_OK;
}

/* Which nodes does value v need? Marks them. */
static void mark(const ir_graph *g, ir_val v, bool *need) {
    int start = g->values.data[v].node;
    need[start] = true;
    for (int i = start; i >= 0; i--)
        for (int k = 0; need[i] && k < g->nodes.data[i].nin; k++)
            need[g->values.data[g->nodes.data[i].in[k]].node] = true;
}

static sp_status lower_program(builder *b, const bool *need, const char *result) {
    const ir_graph *g = b->g;
    int *user = ARENA_ARRAY(b->p->a, int, g->values.n);
    bool *done = ARENA_ARRAY(b->p->a, bool, g->nodes.n);
    memset(user, -1, sizeof *user * (size_t)g->values.n);
    for (int i = 0; i < g->nodes.n; i++)
        for (int k = 0; k < g->nodes.data[i].nin; k++) user[g->nodes.data[i].in[k]] = i;
    for (int i = 0; i < g->nodes.n; i++)
        if (need[i]) TRY(lower_node(b, &g->nodes.data[i], user, done));
    plan_program *pr = &b->p->program[b->prog];
    ir_val v = ir_find_output(g, result);
    pr->result = b->at[v];
    pr->has_result = true;
    for (int a = 0; a < g->mesh.naxes; a++) pr->partial |= ir_layoutof(g, v)->axis[a].kind == LAYOUT_PARTIAL;
    return SP_OK;
}

static void place_leaves(builder *b) {
    plan *p = b->p;
    for (int i = 0; i < b->g->nodes.n; i++) {
        const ir_node *n = &b->g->nodes.data[i];
        if (n->op == OP_param) {
            plan_param q = {
                .name = ir_str(n, "name"), .grad = -1, .m = -1, .v = -1, .type = *ir_typeof(b->g, n->out[0])};
            q.trained = ir_int(n, "grad", 0) && dtype_is_float(q.type.t);
            q.decay_rank = q.type.rank >= 2;
            q.buf = new_buf(p, SEC_PARAM, ir_bytes(&q.type), -1);
            b->at[n->out[0]] = window(q.buf, &q.type);
            ir_type master = q.type;
            master.t = p->type;
            if (q.trained) {
                q.grad = new_buf(p, SEC_GRAD, ir_bytes(&master), -1);
                if (b->o->optimizer) q.m = new_buf(p, SEC_MOMENT, ir_bytes(&master), -1);
                if (b->o->optimizer) q.v = new_buf(p, SEC_MOMENT, ir_bytes(&master), -1);
            }
            vec_push(p->a, &p->params, q);
        } else if (n->op == OP_input) {
            plan_input in = {.name = ir_str(n, "name"), .type = *ir_typeof(b->g, n->out[0])};
            in.seq_dim = (int)ir_int(n, "seq", -1);
            in.buf = new_buf(p, SEC_INPUT, ir_bytes(&in.type), -1);
            b->at[n->out[0]] = window(in.buf, &in.type);
            vec_push(p->a, &p->inputs, in);
        }
    }
    for (int i = 0; i < b->g->nodes.n; i++) { /* whose gradients are partial sums? */
        const ir_node *n = &b->g->nodes.data[i];
        for (int k = 0; n->op == OP_accum && k < p->params.n; k++)
            if (strcmp(p->params.data[k].name, ir_str(n, "param")) == 0)
                for (int a = 0; a < b->g->mesh.naxes; a++)
                    p->params.data[k].partial |= ir_layoutof(b->g, n->in[0])->axis[a].kind == LAYOUT_PARTIAL;
    }
}

sp_status plan_build(const ir_graph *g, const plan_options *o, plan **out) {
    plan *p = ARENA_NEW(g->a, plan);
    p->a = g->a;
    p->graph = g;
    p->mesh = g->mesh;
    p->seq = g->seq;
    p->seq_valid = g->seq_valid;
    p->type = DT_F32;
    p->ignore = -100;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_param && ir_typeof(g, n->out[0])->t == DT_F64) p->type = DT_F64;
        if (n->op == OP_xent) p->ignore = ir_int(n, "ignore", -100);
        if (n->op == OP_input && ir_typeof(g, n->out[0])->rank == 2) p->batch = ir_typeof(g, n->out[0])->dim[0];
    }
    builder b = {.p = p, .g = g, .o = o, .uses = ir_use_counts(g, g->a)};
    b.at = ARENA_ARRAY(g->a, plan_tensor, g->values.n);
    for (int v = 0; v < g->values.n; v++) b.at[v].buf = -1;
    place_leaves(&b);
    plan_tensor *leaves = arena_memdup(g->a, b.at, sizeof *b.at * (size_t)g->values.n);
    for (b.prog = 0; b.prog < PROG_COUNT_OF; b.prog++) {
        bool *need = ARENA_ARRAY(g->a, bool, g->nodes.n);
        const char *result = b.prog == PROG_COUNT ? "count" : "loss_sum";
        mark(g, ir_find_output(g, result), need);
        for (int i = 0; b.prog == PROG_STEP && i < g->nodes.n; i++)
            if (op_table[g->nodes.data[i].op].flags & F_EFFECT) mark(g, g->nodes.data[i].in[0], need), need[i] = true;
        memcpy(b.at, leaves, sizeof *b.at * (size_t)g->values.n);
        TRY(lower_program(&b, need, result));
        plan_in_place(p, b.prog);
    }
    TRY(plan_layout(p, o));
    buf text = {0};
    plan_print(p, &text);
    p->hash = hash_bytes(HASH_INIT, text.data, text.n);
    buf_free(&text);
    *out = p;
    return SP_OK;
}
