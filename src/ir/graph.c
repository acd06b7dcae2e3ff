/* graph.c - building and looking at graphs. */
#include "ir/ir.h"
#include "ir/shape.h"

const op_info op_table[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = {#name, nin, nout, flags},
#include "ir/ops.def"
#undef OP
};

typedef sp_status (*shape_fn)(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out);
static const shape_fn shape_of[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = shape_##shape,
#include "ir/ops.def"
#undef OP
};

bool op_parse(const char *name, ir_op *op) {
    for (int i = 0; i < OP_COUNT; i++)
        if (strcmp(op_table[i].name, name) == 0) {
            *op = (ir_op)i;
            return true;
        }
    return false;
}

ir_graph *ir_new(arena *a, const char *name) {
    ir_graph *g = ARENA_NEW(a, ir_graph);
    g->a = a;
    g->name = arena_strdup(a, name);
    return g;
}

static ir_attr copy_attr(arena *a, ir_attr x) {
    x.key = arena_strdup(a, x.key);
    if (x.s) x.s = arena_strdup(a, x.s);
    if (x.kind == ATTR_DIMS) x.dims = arena_memdup(a, x.dims, sizeof *x.dims * (size_t)x.n);
    if (x.kind == ATTR_DATA) x.data = arena_memdup(a, x.data, sizeof *x.data * (size_t)x.n);
    return x;
}

static sp_status emit(ir_graph *g, ir_node n, const ir_type *type, const ir_layout *hint, ir_val *out) {
    const op_info *op = &op_table[n.op];
    CHECK(op->nin < 0 || n.nin == op->nin, "%s takes %d operands, not %d", op->name, op->nin, n.nin);
    for (int i = 0; i < n.nin; i++) ASSERT(n.in[i] >= 0 && n.in[i] < g->values.n);
    if (op->nout >= 0) n.nout = op->nout;
    ASSERT(n.nout <= IR_MAX_OUT);
    ir_type types[IR_MAX_OUT];
    ir_layout layouts[IR_MAX_OUT];
    memset(layouts, 0, sizeof layouts);
    TRY(shape_of[n.op](g, &n, type, types));
    for (int i = 0; i < n.nout; i++)
        CHECK(types[i].rank <= IR_MAX_RANK, "%s: a result of rank %d; at most %d", op->name, types[i].rank,
              IR_MAX_RANK);
    n.out = ARENA_ARRAY(g->a, ir_val, n.nout);
    for (int i = 0; i < n.nout; i++) {
        n.out[i] = g->values.n;
        ir_value v = {.node = g->nodes.n, .index = i, .type = types[i]};
        vec_push(g->a, &g->values, v);
    }
    vec_push(g->a, &g->nodes, n);
    if (g->mesh.naxes) {
        ir_node *last = &g->nodes.data[g->nodes.n - 1];
        if (ir_infer_layout(g, last, hint, layouts) != SP_OK) { /* leave the graph as it was */
            g->nodes.n--;
            g->values.n -= n.nout;
            return SP_FAIL;
        }
        for (int i = 0; i < n.nout; i++) g->values.data[n.out[i]].layout = layouts[i];
    }
    if (out) *out = n.nout ? n.out[0] : -1;
    return SP_OK;
}

sp_status ir_emit_region(ir_graph *g, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr,
                         const ir_type *type, int nout, const ir_layout *hint, ir_graph *region, ir_val *out) {
    ir_node n = {.op = op, .nin = nin, .nout = nout, .nattr = nattr, .region = region};
    n.in = arena_memdup(g->a, in, sizeof *in * (size_t)nin);
    n.attr = ARENA_ARRAY(g->a, ir_attr, nattr);
    for (int i = 0; i < nattr; i++) n.attr[i] = copy_attr(g->a, attr[i]);
    return emit(g, n, type, hint, out);
}

sp_status ir_emit(ir_graph *g, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *type,
                  const ir_layout *hint, ir_val *out) {
    return ir_emit_region(g, op, in, nin, attr, nattr, type, 0, hint, NULL, out);
}

sp_status ir_copy_node(ir_graph *g, const ir_graph *from, int i, ir_val *map) {
    const ir_node *old = &from->nodes.data[i];
    ir_node n = {.op = old->op,
                 .nin = old->nin,
                 .nout = old->nout,
                 .nattr = old->nattr,
                 .region = old->region,
                 .src = old->src,
                 .tag = old->tag};
    ir_type types[IR_MAX_OUT];
    n.in = ARENA_ARRAY(g->a, ir_val, n.nin);
    for (int k = 0; k < n.nin; k++) {
        ASSERT(map[old->in[k]] >= 0);
        n.in[k] = map[old->in[k]];
    }
    n.attr = ARENA_ARRAY(g->a, ir_attr, n.nattr);
    for (int k = 0; k < n.nattr; k++) {
        n.attr[k] = copy_attr(g->a, old->attr[k]);
        if (old->attr[k].kind == ATTR_DIMS)
            for (int d = 0; d < n.attr[k].n; d++) n.attr[k].dims[d] = dim_import(g, from, old->attr[k].dims[d]);
    }
    for (int k = 0; k < old->nout; k++) {
        types[k] = *ir_typeof(from, old->out[k]);
        for (int d = 0; d < types[k].rank; d++) types[k].dim[d] = dim_import(g, from, types[k].dim[d]);
    }
    ir_val first = -1;
    TRY(emit(g, n, old->nout ? types : NULL, old->nout && from->mesh.naxes ? ir_layoutof(from, old->out[0]) : NULL,
             &first));
    for (int k = 0; k < old->nout; k++) {
        map[old->out[k]] = first + k;
        g->values.data[first + k].name = from->values.data[old->out[k]].name;
    }
    return SP_OK;
}

/* ---- shorthand for code that knows that its operands fit ---- */

static ir_val must(ir_graph *g, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr,
                   const ir_type *type) {
    ir_val v = -1;
    if (ir_emit(g, op, in, nin, attr, nattr, type, NULL, &v) != SP_OK) {
        log_line("%s", err_text());
        ASSERT(!"operands of a node made by a pass must fit");
    }
    return v;
}

ir_val ir_op0(ir_graph *g, ir_op op, const ir_type *type, const ir_attr *attr, int nattr) {
    return must(g, op, NULL, 0, attr, nattr, type);
}
ir_val ir_op1(ir_graph *g, ir_op op, ir_val x, const ir_attr *attr, int nattr) {
    return must(g, op, &x, 1, attr, nattr, NULL);
}
ir_val ir_op2(ir_graph *g, ir_op op, ir_val x, ir_val y, const ir_attr *attr, int nattr) {
    return must(g, op, (ir_val[]){x, y}, 2, attr, nattr, NULL);
}
ir_val ir_op3(ir_graph *g, ir_op op, ir_val x, ir_val y, ir_val z, const ir_attr *attr, int nattr) {
    return must(g, op, (ir_val[]){x, y, z}, 3, attr, nattr, NULL);
}

ir_val ir_cast(ir_graph *g, ir_val x, dtype t) {
    if (ir_typeof(g, x)->t == t) return x;
    ir_type type = {.t = t};
    return must(g, OP_cast, &x, 1, NO_ATTRS, &type);
}

ir_val ir_reshape(ir_graph *g, ir_val x, int rank, const ir_dim *dim) {
    ir_type type = {.t = ir_typeof(g, x)->t, .rank = rank};
    for (int i = 0; i < rank; i++) type.dim[i] = dim[i];
    if (ir_type_equal(&type, ir_typeof(g, x))) return x;
    return must(g, OP_reshape, &x, 1, NO_ATTRS, &type);
}

ir_val ir_permute(ir_graph *g, ir_val x, const int *perm) {
    ir_dim p[IR_MAX_RANK];
    int rank = ir_typeof(g, x)->rank;
    bool identity = true;
    for (int i = 0; i < rank; i++) {
        p[i] = perm[i];
        identity &= perm[i] == i;
    }
    return identity ? x : ir_op1(g, OP_permute, x, ATTRS(A_D("perm", rank, p)));
}

ir_val ir_expand(ir_graph *g, ir_val x, int rank, const ir_dim *dim) {
    const ir_type *t = ir_typeof(g, x);
    ASSERT(rank >= t->rank);
    ir_type type = {.t = t->t, .rank = rank};
    ir_dim padded[IR_MAX_RANK];
    int lead = rank - t->rank;
    for (int i = 0; i < rank; i++) {
        padded[i] = i < lead ? 1 : t->dim[i - lead];
        type.dim[i] = dim[i];
    }
    x = ir_reshape(g, x, rank, padded);
    return ir_type_equal(&type, ir_typeof(g, x)) ? x : must(g, OP_expand, &x, 1, NO_ATTRS, &type);
}

ir_val ir_slice(ir_graph *g, ir_val x, int dim, ir_dim start, ir_dim stop, int64_t step) {
    if (start == 0 && stop == ir_typeof(g, x)->dim[dim] && step == 1) return x;
    ir_dim range[2] = {start, stop};
    return ir_op1(g, OP_slice, x, ATTRS(A_I("dim", dim), A_D("range", 2, range), A_I("step", step)));
}

ir_val ir_scalar(ir_graph *g, dtype t, double v) {
    ir_type type = {.t = t};
    return ir_op0(g, OP_fill, &type, ATTRS(A_F("value", v)));
}

ir_val ir_fill_like(ir_graph *g, ir_val x, double v) {
    ir_type type = *ir_typeof(g, x);
    ir_layout layout = *ir_layoutof(g, x);
    for (int a = 0; a < IR_MAX_AXES; a++)
        if (layout.axis[a].kind == LAYOUT_PARTIAL) layout.axis[a] = (axis_layout){0};
    ir_val out = -1;
    if (ir_emit(g, OP_fill, NULL, 0, ATTRS(A_F("value", v)), &type, &layout, &out) != SP_OK)
        ASSERT(!"a fill always fits");
    return out;
}

ir_val ir_sum(ir_graph *g, ir_val x, int ndims, const int *dims) {
    ir_dim d[IR_MAX_RANK];
    for (int i = 0; i < ndims; i++) d[i] = dims[i];
    return ndims ? ir_op1(g, OP_sum, x, ATTRS(A_D("dims", ndims, d))) : x;
}

ir_val ir_matmul(ir_graph *g, ir_val x, ir_val y) {
    int nb = ir_typeof(g, x)->rank - 2;
    ASSERT(nb >= 0 && ir_typeof(g, y)->rank == nb + 2);
    ir_dim batch[IR_MAX_RANK], lc = nb + 1, rc = nb;
    for (int i = 0; i < nb; i++) batch[i] = i;
    return ir_op2(g, OP_dot, x, y,
                  ATTRS(A_D("lc", 1, &lc), A_D("rc", 1, &rc), A_D("lb", nb, batch), A_D("rb", nb, batch)));
}

ir_val ir_linear(ir_graph *g, ir_val x, ir_val w) {
    ir_dim lc = ir_typeof(g, x)->rank - 1, rc = 1;
    return ir_op2(g, OP_dot, x, w, ATTRS(A_D("lc", 1, &lc), A_D("rc", 1, &rc), A_D("lb", 0, &lc), A_D("rb", 0, &lc)));
}

void ir_set_output(ir_graph *g, const char *name, ir_val v) {
    ir_output o = {arena_strdup(g->a, name), v};
    vec_push(g->a, &g->outputs, o);
}

/* ---- looking ---- */

const ir_attr *ir_find_attr(const ir_node *n, const char *key) {
    for (int i = 0; i < n->nattr; i++)
        if (strcmp(n->attr[i].key, key) == 0) return &n->attr[i];
    return NULL;
}

int64_t ir_int(const ir_node *n, const char *key, int64_t absent) {
    const ir_attr *a = ir_find_attr(n, key);
    return a && a->kind == ATTR_INT ? a->i : absent;
}

double ir_float(const ir_node *n, const char *key, double absent) {
    const ir_attr *a = ir_find_attr(n, key);
    return !a ? absent : a->kind == ATTR_FLOAT ? a->f : a->kind == ATTR_INT ? (double)a->i : absent;
}

const char *ir_str(const ir_node *n, const char *key) {
    const ir_attr *a = ir_find_attr(n, key);
    return a && a->kind == ATTR_STR ? a->s : NULL;
}

int ir_dims(const ir_node *n, const char *key, const ir_dim **dims) {
    const ir_attr *a = ir_find_attr(n, key);
    if (!a || a->kind != ATTR_DIMS) {
        *dims = NULL;
        return 0;
    }
    *dims = a->dims;
    return a->n;
}

void ir_set_attr(ir_graph *g, ir_node *n, ir_attr attr) {
    for (int i = 0; i < n->nattr; i++)
        if (strcmp(n->attr[i].key, attr.key) == 0) {
            n->attr[i] = copy_attr(g->a, attr);
            return;
        }
    ir_attr *all = ARENA_ARRAY(g->a, ir_attr, n->nattr + 1);
    if (n->nattr) memcpy(all, n->attr, sizeof *all * (size_t)n->nattr);
    all[n->nattr++] = copy_attr(g->a, attr);
    n->attr = all;
}

ir_val ir_find_output(const ir_graph *g, const char *name) {
    for (int i = 0; i < g->outputs.n; i++)
        if (strcmp(g->outputs.data[i].name, name) == 0) return g->outputs.data[i].value;
    return -1;
}

bool ir_type_equal(const ir_type *a, const ir_type *b) {
    if (a->t != b->t || a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

int *ir_use_counts(const ir_graph *g, arena *a) {
    int *uses = ARENA_ARRAY(a, int, g->values.n);
    for (int i = 0; i < g->nodes.n; i++)
        for (int k = 0; k < g->nodes.data[i].nin; k++) uses[g->nodes.data[i].in[k]]++;
    for (int i = 0; i < g->outputs.n; i++) uses[g->outputs.data[i].value]++;
    return uses;
}

int64_t ir_numel(const ir_type *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) {
        ASSERT(t->dim[i] >= 0); /* only after bind */
        bool fits = mul_ok(n, t->dim[i], &n);
        ASSERT(fits); /* bind checks */
    }
    return n;
}

int64_t ir_bytes(const ir_type *t) { return ir_numel(t) * dtype_size(t->t); }

ir_type ir_local_type(const ir_graph *g, ir_val v) {
    ir_type t = *ir_typeof(g, v);
    const ir_layout *l = ir_layoutof(g, v);
    for (int a = 0; a < g->mesh.naxes; a++)
        if (l->axis[a].kind == LAYOUT_SHARD) t.dim[l->axis[a].dim] /= g->mesh.axis[a].size;
    return t;
}

int64_t ir_local_bytes(const ir_graph *g, ir_val v) {
    ir_type t = ir_local_type(g, v);
    return ir_bytes(&t);
}

bool ir_has_effect(const ir_node *n) {
    if (op_table[n->op].flags & F_EFFECT) return true;
    for (int i = 0; n->region && i < n->region->nodes.n; i++)
        if (ir_has_effect(&n->region->nodes.data[i])) return true;
    return false;
}

ir_graph *ir_dce(const ir_graph *g) {
    arena *scratch = arena_new();
    bool *live = ARENA_ARRAY(scratch, bool, g->nodes.n);
    ir_val *map = ARENA_ARRAY(scratch, ir_val, g->values.n);
    for (int i = 0; i < g->outputs.n; i++) live[g->values.data[g->outputs.data[i].value].node] = true;
    for (int i = g->nodes.n - 1; i >= 0; i--) {
        const ir_node *n = &g->nodes.data[i];
        if (ir_has_effect(n)) live[i] = true;
        for (int k = 0; live[i] && k < n->nin; k++) live[g->values.data[n->in[k]].node] = true;
    }
    ir_graph *out = ir_new(g->a, g->name);
    out->mesh = g->mesh;
    out->broken_op = g->broken_op;
    out->seq = g->seq;
    out->seq_valid = g->seq_valid;
    for (int i = 0; i < g->nodes.n; i++)
        if (live[i] && ir_copy_node(out, g, i, map) != SP_OK) {
            log_line("%s", err_text());
            ASSERT(!"a node that was valid stays valid");
        }
    for (int i = 0; i < g->outputs.n; i++) ir_set_output(out, g->outputs.data[i].name, map[g->outputs.data[i].value]);
    arena_free(scratch);
    return out;
}
