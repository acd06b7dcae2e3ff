/* build.c - joint graph to linear program: strides for views, copies where strides cannot say it, one instruction per
 * node that moves or computes something.
 *
 *   before  %7 = permute(%6) {perm=[0,2,1,3]}; %8 = attention(%7, ...)
 *   after   i12 attention b9[2,4,8,16 : strides 512,16,64,1] ...       (no instruction for %7)
 *
 * A view is a window (buffer, offset, strides) into its operand's buffer. A reshape of a strided window is a window
 * again when the strides allow it, else a copy. `shard` is a window that starts at the rank's part. A gradient
 * contribution whose producer can add (`dot`, `embedding_grad`) writes straight into the gradient buffer.
 *
 * A loop is one instruction with a body, lowered by the same functions: an operand that tiles cut is a window that
 * moves with the tile (`tile_step`), and what makes a result writes into such a window of the result's buffer.
 *
 * Then, if asked for, instructions are fused (fuse.c), and results take over operands' buffers (inplace.c).
 */
#include "plan/plan.h"

typedef struct builder {
    plan *p;
    const ir_graph *g;
    const plan_options *o;
    plan_tensor *at; /* by value; .buf -1: not made in this program */
    int *uses;
    const strmap *params; /* name -> plan_param */
    int prog;
    plan_list *code;     /* where instructions go */
    int loop;            /* the loop's workspace while its body is lowered; -1 */
    plan_tensor *target; /* by value, in a body: where a result of the loop goes, .buf -1: nowhere; NULL outside */
} builder;

static int new_buf(plan *p, plan_section section, int64_t bytes, int program) {
    plan_buf b = {
        .section = section, .bytes = bytes, .offset = -1, .first = -1, .last = -1, .program = program, .loop = -1};
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

static int work_buf(builder *b, int64_t bytes) {
    int id = new_buf(b->p, SEC_WORK, bytes, b->prog);
    b->p->bufs.data[id].loop = b->loop;
    return id;
}

static plan_tensor fresh(builder *b, const ir_type *local) { return window(work_buf(b, ir_bytes(local)), local); }

static plan_instr *add_instr(builder *b, ir_op op, const ir_node *n, int nin, int nout) {
    plan_instr i = {.op = op, .node = n, .nin = nin, .nout = nout, .work = -1, .axis = -1};
    i.in = ARENA_ARRAY(b->p->a, plan_tensor, nin);
    i.out = ARENA_ARRAY(b->p->a, plan_tensor, nout);
    i.backward = n && n->tag >= 1;
    vec_push(b->p->a, b->code, i);
    return &b->code->data[b->code->n - 1];
}

static void add_copy(builder *b, const ir_node *n, plan_tensor src, plan_tensor dst) {
    plan_instr *i = add_instr(b, OP_copy, n, 1, 1);
    i->in[0] = src;
    i->out[0] = dst;
}

static plan_tensor materialize(builder *b, const ir_node *n, plan_tensor src) {
    ir_type t = {.t = src.t.type, .rank = src.t.rank};
    for (int d = 0; d < t.rank; d++) t.dim[d] = src.t.dim[d];
    plan_tensor dst = fresh(b, &t);
    add_copy(b, n, src, dst);
    return dst;
}

/* ---- views ---- */

bool plan_reshape_strides(const tensor *from, int rank, const int64_t *to, int64_t *stride) {
    int64_t dim[IR_MAX_RANK], st[IR_MAX_RANK];
    int n = 0;
    for (int d = 0; d < from->rank; d++)
        if (from->dim[d] != 1) {
            dim[n] = from->dim[d];
            st[n++] = from->stride[d];
        }
    if (tensor_numel(from) == 0) {
        for (int d = 0; d < rank; d++) stride[d] = 0;
        return true;
    }
    int i = 0, k = 0;
    while (k < rank) {
        if (to[k] == 1) {
            stride[k++] = 0;
            continue;
        }
        if (i >= n) return false;
        int i1 = i + 1, k1 = k + 1;
        int64_t a = dim[i], c = to[k];
        while (a != c) {
            if (a < c) {
                if (i1 >= n) return false;
                a *= dim[i1++];
            } else {
                if (k1 >= rank) return false;
                c *= to[k1++];
            }
        }
        for (int x = i; x + 1 < i1; x++)
            if (st[x] != st[x + 1] * dim[x + 1]) return false;
        int64_t s = st[i1 - 1];
        for (int x = k1 - 1; x >= k; x--) {
            stride[x] = s;
            s *= to[x];
        }
        i = i1;
        k = k1;
    }
    return true;
}

static bool reshape_strides(const tensor *from, const ir_type *to, int64_t *stride) {
    return plan_reshape_strides(from, to->rank, to->dim, stride);
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

/* Part of x: dimension l.dim is (l.outer, size, inner), of which one of `size` is taken. *step is where the window's
 * steps from part to part are counted (x.rank_step or x.tile_step). With l.outer > 1 the part has a rank more, and
 * *joined is false. */
static plan_tensor cut(plan_tensor x, axis_layout l, int64_t size, bool tile, bool *joined) {
    int d = l.dim;
    int64_t inner = x.t.dim[d] / (l.outer * size);
    *joined = l.outer == 1;
    if (l.outer > 1) { /* show the dimension as two */
        ASSERT(x.t.rank < IR_MAX_RANK);
        for (int k = x.t.rank; k > d; k--) {
            x.t.dim[k] = x.t.dim[k - 1];
            x.t.stride[k] = x.t.stride[k - 1];
        }
        x.t.rank++;
        x.t.dim[d] = l.outer;
        x.t.stride[d] = x.t.stride[d + 1] * inner * size;
        d++;
    }
    x.t.dim[d] = inner;
    *(tile ? &x.tile_step : &x.rank_step) += inner * x.t.stride[d];
    return x;
}

static plan_tensor view_shard(builder *b, const ir_node *n, plan_tensor x) {
    int axis = ir_axis(b->g, ir_str(n, "axis"));
    ir_type local = ir_local_type(b->g, n->out[0]);
    bool joined;
    x = cut(x, ir_layoutof(b->g, n->out[0])->axis[axis], b->g->mesh.axis[axis].size, false, &joined);
    return joined ? x : view_reshape(b, n, x, &local);
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
    case OP_dropout:
    case OP_take:
    case OP_offload:
    case OP_fetch:
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

static plan_param *find_param(const builder *b, const char *name) {
    int64_t i;
    return strmap_get(b->params, name, &i) ? &b->p->params.data[i] : NULL;
}

/* The gradient buffer seen through the inverse of the permutes between a product and its accumulation. */
static plan_tensor grad_window(const builder *b, const ir_node *accum, const ir_val *chain, int len) {
    const plan_param *q = find_param(b, ir_str(accum, "param"));
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

/* Zeros everywhere, without a buffer of that size. */
static plan_tensor zeros(builder *b, const ir_type *local) {
    static ir_attr value = {.key = "value", .kind = ATTR_FLOAT};
    static const ir_node node = {.op = OP_fill, .nattr = 1, .attr = &value};
    ir_type one = {.t = local->t};
    plan_tensor w = window(new_buf(b->p, SEC_CONST, dtype_size(local->t), -1), &one);
    vec_push(b->p->a, &b->p->const_at, w);
    vec_push(b->p->a, &b->p->const_node, &node);
    w.t.rank = local->rank;
    for (int d = 0; d < local->rank; d++) {
        w.t.dim[d] = local->dim[d];
        w.t.stride[d] = 0;
    }
    return w;
}

static sp_status lower_loop(builder *b, const ir_node *n);

/* Where result v of the node being lowered goes: a gradient or a sum over tiles that it can add to, a loop's result
 * that it can write, or a buffer of its own. */
static plan_tensor result_window(builder *b, ir_val v, bool adds, bool *accumulate) {
    ir_type local = ir_local_type(b->g, v);
    if (b->target && b->target[v].buf >= 0) {
        bool sum = ir_layoutof(b->g, v)->axis[ir_tile_axis(b->g)].kind == LAYOUT_PARTIAL;
        if (tensor_contiguous(&b->target[v].t) && b->target[v].t.rank == local.rank && (!sum || adds)) {
            *accumulate = sum;
            return b->target[v];
        }
    }
    return fresh(b, &local);
}

/* In a body: brings result v of the loop to its place, when it was not made there. */
static void store_result(builder *b, const ir_node *n, ir_val v) {
    if (!b->target || b->target[v].buf < 0 || b->at[v].buf < 0) return;
    plan_tensor to = b->target[v], from = b->at[v];
    if (from.buf == to.buf) return;
    if (ir_layoutof(b->g, v)->axis[ir_tile_axis(b->g)].kind == LAYOUT_PARTIAL) {
        plan_instr *i = add_instr(b, OP_accum, n, 1, 1);
        i->in[0] = from;
        i->out[0] = to;
        i->accumulate = true;
        return;
    }
    int64_t stride[IR_MAX_RANK];
    ir_type shown = {.t = to.t.type, .rank = to.t.rank}; /* as the window shows it: a dimension may be two */
    for (int d = 0; d < to.t.rank; d++) shown.dim[d] = to.t.dim[d];
    if (!reshape_strides(&from.t, &shown, stride)) {
        from = materialize(b, n, from);
        bool fits = reshape_strides(&from.t, &shown, stride);
        ASSERT(fits);
    }
    tensor t = to.t;
    memcpy(t.stride, stride, sizeof stride);
    from.t = t;
    add_copy(b, n, from, to);
}

/* Operand i of n, which does not take it as it lies. Where a dense one would not do either - a product contracts
 * dimensions with a free one between them, (e, f) of (e, d, f) - the copy's dimensions lie batch, free, contracted. */
static plan_tensor materialize_operand(builder *b, const ir_node *n, int i, plan_tensor src) {
    plan_tensor dense = materialize(b, n, src);
    if (takes(n, i, &dense.t)) return dense;
    ASSERT(n->op == OP_dot);
    const ir_dim *c, *bt;
    int nc = ir_dims(n, i ? "rc" : "lc", &c), nb = ir_dims(n, i ? "rb" : "lb", &bt), order[IR_MAX_RANK], k = 0;
    tensor *t = &b->code->data[b->code->n - 1].out[0].t; /* where the copy writes */
    for (int j = 0; j < nb; j++) order[k++] = (int)bt[j];
    for (int d = 0; d < t->rank; d++)
        if (!listed(c, nc, d) && !listed(bt, nb, d)) order[k++] = d;
    for (int j = 0; j < nc; j++) order[k++] = (int)c[j];
    int64_t stride = 1;
    for (int j = k - 1; j >= 0; j--) {
        t->stride[order[j]] = stride;
        stride *= t->dim[order[j]];
    }
    dense.t = *t;
    return dense;
}

static sp_status lower_node(builder *b, const ir_node *n, const int *user, bool *done) {
    plan *p = b->p;
    int flags = op_table[n->op].flags;
    if (n->op == OP_param || n->op == OP_input) return SP_OK; /* placed before */
    if (n->op == OP_loop) return lower_loop(b, n);
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
        if (!takes(n, i, &in[i].t)) in[i] = materialize_operand(b, n, i, in[i]);
        ASSERT(takes(n, i, &in[i].t));
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
            i->out[k] = n->op == OP_offload ? window(new_buf(p, SEC_HOST, ir_bytes(&local), b->prog), &local)
                                            : result_window(b, n->out[k], n->op == OP_dot, &i->accumulate);
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
    if (n->op == OP_dropout) { /* random numbers belong to elements of the whole tensor */
        for (int a = 0; a < b->p->mesh.naxes; a++) i->to = ir_layoutof(b->g, n->out[0])->axis[a];
        i->rank_offset = 1;
        int tile = ir_tile_axis(b->g);
        if (tile >= 0) {
            i->tile = ir_layoutof(b->g, n->out[0])->axis[tile];
            i->tiles = b->g->mesh.axis[tile].size;
        }
    }
    if (n->op == OP_iota || n->op == OP_attention || n->op == OP_attention_grad) {
        ir_val v = n->op == OP_iota ? n->out[0] : n->in[0];
        int dim = n->op == OP_iota ? (int)ir_int(n, "dim", 0) : 1;
        for (int a = 0; a < b->g->mesh.naxes; a++) {
            axis_layout l = ir_layoutof(b->g, v)->axis[a];
            if (l.kind == LAYOUT_SHARD && l.dim == dim) i->rank_offset = ir_local_type(b->g, v).dim[dim];
            if (n->op != OP_iota && l.kind == LAYOUT_SHARD && l.dim == 2)
                i->head_offset = ir_local_type(b->g, v).dim[2];
        }
    }
    if (b->o->workspace) {
        plan_instr most = *i;
        most.first = i->accumulate; /* whether it is the first to add is not known yet (first.c) */
        int64_t bytes = b->o->workspace(b->o->ctx, &most);
        if (bytes > 0) {
            i->work = work_buf(b, bytes);
            p->bufs.data[i->work].comm = i->axis >= 0;
        }
    }
    return SP_OK;
}

static sp_status lower_loop(builder *b, const ir_node *n) {
    plan *p = b->p;
    const ir_graph *r = n->region;
    int tile = ir_tile_axis(r), operand = 0;
    plan_loop *loop = ARENA_NEW(p->a, plan_loop);
    loop->tiles = ir_int(n, "tiles", 1);
    plan_tensor *out = ARENA_ARRAY(p->a, plan_tensor, n->nout);
    builder in = {.p = p, .g = r, .o = b->o, .params = b->params, .prog = b->prog, .code = &loop->body};
    in.uses = ir_use_counts(r, p->a);
    in.at = ARENA_ARRAY(p->a, plan_tensor, r->values.n);
    in.target = ARENA_ARRAY(p->a, plan_tensor, r->values.n);
    for (int v = 0; v < r->values.n; v++) in.at[v].buf = in.target[v].buf = -1;
    for (int k = 0; k < n->nout; k++) {
        ir_val v = r->outputs.data[k].value;
        axis_layout l = ir_layoutof(r, v)->axis[tile];
        ir_type local = ir_local_type(b->g, n->out[k]);
        bool joined;
        CHECK(in.target[v].buf < 0, "loop: the region returns one value twice");
        out[k] = b->at[n->out[k]] = in.target[v] = fresh(b, &local);
        if (l.kind == LAYOUT_PARTIAL)
            add_copy(b, n, zeros(b, &local), out[k]);
        else
            in.target[v] = cut(out[k], l, loop->tiles, true, &joined);
    }
    in.loop = work_buf(b, 0); /* as large as the body's buffers; layout.c */
    plan_instr *i = add_instr(b, OP_loop, n, n->nin, n->nout);
    i->loop = loop;
    i->work = in.loop;
    for (int k = 0; k < n->nin; k++) {
        i->in[k] = b->at[n->in[k]];
        ASSERT(i->in[k].buf >= 0);
    }
    if (n->nout) memcpy(i->out, out, sizeof *out * (size_t)n->nout);
    plan_tensor *operands = i->in; /* `i` moves when the list grows; this does not */
    int *user = ARENA_ARRAY(p->a, int, r->values.n);
    bool *done = ARENA_ARRAY(p->a, bool, r->nodes.n);
    memset(user, -1, sizeof *user * (size_t)r->values.n);
    for (int x = 0; x < r->nodes.n; x++)
        for (int k = 0; k < r->nodes.data[x].nin; k++) user[r->nodes.data[x].in[k]] = x;
    for (int x = 0; x < r->nodes.n; x++) {
        const ir_node *m = &r->nodes.data[x];
        if (m->op == OP_input) {
            ir_val v = m->out[0];
            axis_layout l = ir_layoutof(r, v)->axis[tile];
            plan_tensor w = operands[operand++];
            bool joined = true;
            if (l.kind == LAYOUT_SHARD) w = cut(w, l, loop->tiles, true, &joined);
            ir_type local = ir_local_type(r, v);
            in.at[v] = joined ? w : view_reshape(&in, m, w, &local);
        } else {
            TRY(lower_node(&in, m, user, done));
        }
        for (int k = 0; k < m->nout; k++) store_result(&in, m, m->out[k]);
    }
    for (int x = 0; x < loop->body.n; x++) loop->body.data[x].backward = n->tag == 1;
    return SP_OK;
}

/* Which nodes does the program need for this output: what it depends on, and (effects) what every effect does. */
static bool *needed(const ir_graph *g, const char *output, bool effects) {
    bool *need = ARENA_ARRAY(g->a, bool, g->nodes.n);
    need[g->values.data[ir_find_output(g, output)].node] = true;
    for (int i = g->nodes.n - 1; i >= 0; i--) {
        const ir_node *n = &g->nodes.data[i];
        need[i] |= effects && ir_has_effect(n);
        for (int k = 0; need[i] && k < n->nin; k++) need[g->values.data[n->in[k]].node] = true;
    }
    return need;
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

/* Whose gradients are partial sums over the ranks? */
static void mark_partial(const builder *b, const ir_graph *g) {
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_loop) mark_partial(b, n->region);
        plan_param *q = n->op == OP_accum ? find_param(b, ir_str(n, "param")) : NULL;
        for (int a = 0; q && a < g->mesh.naxes; a++)
            q->partial |= ir_layoutof(g, n->in[0])->axis[a].kind == LAYOUT_PARTIAL;
    }
}

/* The label that counts as none. */
static void find_ignore(plan *p, const ir_graph *g) {
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_loop) find_ignore(p, n->region);
        if (n->op == OP_xent) p->ignore = ir_int(n, "ignore", -100);
    }
}

static void place_leaves(builder *b) {
    plan *p = b->p;
    strmap *names = strmap_new(p->a);
    b->params = names;
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
            strmap_put(names, q.name, p->params.n);
            vec_push(p->a, &p->params, q);
        } else if (n->op == OP_input) {
            plan_input in = {.name = ir_str(n, "name"), .type = *ir_typeof(b->g, n->out[0])};
            in.seq_dim = (int)ir_int(n, "seq", -1);
            in.buf = new_buf(p, SEC_INPUT, ir_bytes(&in.type), -1);
            b->at[n->out[0]] = window(in.buf, &in.type);
            vec_push(p->a, &p->inputs, in);
        }
    }
    mark_partial(b, b->g);
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
        if (n->op == OP_input && ir_typeof(g, n->out[0])->rank == 2) p->batch = ir_typeof(g, n->out[0])->dim[0];
    }
    find_ignore(p, g);
    builder b = {.p = p, .g = g, .o = o, .uses = ir_use_counts(g, g->a), .loop = -1};
    b.at = ARENA_ARRAY(g->a, plan_tensor, g->values.n);
    for (int v = 0; v < g->values.n; v++) b.at[v].buf = -1;
    place_leaves(&b);
    plan_tensor *leaves = arena_memdup(g->a, b.at, sizeof *b.at * (size_t)g->values.n);
    for (b.prog = 0; b.prog < PROG_COUNT_OF; b.prog++) {
        const char *result = b.prog == PROG_COUNT ? "count" : "loss_sum";
        bool *need = needed(g, result, b.prog == PROG_STEP);
        b.code = &p->program[b.prog].instrs;
        memcpy(b.at, leaves, sizeof *b.at * (size_t)g->values.n);
        TRY(lower_program(&b, need, result));
        if (o->fuse) plan_fuse(p, b.prog, o);
        plan_in_place(p, b.prog);
    }
    if (o->fuse && o->optimizer && p->type == DT_F32) p->adamw = gen_adamw(p->a);
    plan_first_writes(p, o);
    TRY(plan_layout(p, o));
    *out = p;
    return SP_OK;
}
