/* rewrite.c - the rewriting framework of `simplify`: sweeps, CSE, node building, matching helpers. See rewrite.h.
 *
 * Nodes are emitted first and matched afterwards, because emitting infers their types; a node that turns out to equal
 * an older one is taken back at once. Rules must shrink something (nodes, views above compute, index arithmetic), so
 * that sweeps reach a fixed point; the depth limit only keeps a mistake in a rule from becoming an endless recursion.
 */
#include "pass/rewrite.h"

#include <math.h>

enum { MAX_DEPTH = 100 };

/* Earlier rules see the node first: cheap clean-up before patterns. */
static rw_rule *const rules[] = {rw_fold, rw_algebra, rw_views,   rw_raise,     rw_sink, rw_activation,
                                 rw_norm, rw_rotary,  rw_softmax, rw_attention, rw_mask, rw_loss};

/* ---- CSE ---- */

static uint64_t hash_attr(uint64_t h, const ir_attr *a) {
    h = hash_str(h, a->key);
    h = hash_bytes(h, &a->i, sizeof a->i);
    h = hash_bytes(h, &a->f, sizeof a->f);
    if (a->s) h = hash_str(h, a->s);
    if (a->kind == ATTR_DIMS && a->n) h = hash_bytes(h, a->dims, sizeof *a->dims * (size_t)a->n);
    if (a->kind == ATTR_DATA && a->n) h = hash_bytes(h, a->data, sizeof *a->data * (size_t)a->n);
    return h;
}

static bool attr_equal(const ir_attr *a, const ir_attr *b) {
    if (strcmp(a->key, b->key) != 0 || a->kind != b->kind || a->i != b->i || a->n != b->n) return false;
    uint64_t x, y; /* bits: -0.0 is not 0.0, NaN is itself */
    memcpy(&x, &a->f, 8);
    memcpy(&y, &b->f, 8);
    if (x != y) return false;
    if (a->kind == ATTR_STR) return strcmp(a->s, b->s) == 0;
    if (a->kind == ATTR_DIMS && a->n) return memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)a->n) == 0;
    if (a->kind == ATTR_DATA && a->n) return memcmp(a->data, b->data, sizeof *a->data * (size_t)a->n) == 0;
    return true;
}

static uint64_t hash_node(const ir_graph *g, const ir_node *n) {
    uint64_t h = hash_bytes(HASH_INIT, &n->op, sizeof n->op);
    if (n->nin) h = hash_bytes(h, n->in, sizeof *n->in * (size_t)n->nin);
    for (int i = 0; i < n->nattr; i++) h = hash_attr(h, &n->attr[i]);
    for (int k = 0; k < n->nout; k++) {
        const ir_type *t = ir_typeof(g, n->out[k]);
        h = hash_bytes(h, &t->t, sizeof t->t);
        if (t->rank) h = hash_bytes(h, t->dim, sizeof *t->dim * (size_t)t->rank);
    }
    return h;
}

static bool node_equal(const ir_graph *g, const ir_node *a, const ir_node *b) {
    if (a->op != b->op || a->nin != b->nin || a->nout != b->nout || a->nattr != b->nattr || a->region != b->region)
        return false;
    for (int i = 0; i < a->nin; i++)
        if (a->in[i] != b->in[i]) return false;
    for (int i = 0; i < a->nattr; i++)
        if (!attr_equal(&a->attr[i], &b->attr[i])) return false;
    for (int k = 0; k < a->nout; k++)
        if (!ir_type_equal(ir_typeof(g, a->out[k]), ir_typeof(g, b->out[k]))) return false;
    return true;
}

static void grow_slots(rw *r) {
    int n = r->nslots ? r->nslots * 2 : 1024;
    int *slots = ARENA_ARRAY(r->scratch, int, n);
    for (int i = 0; i < r->nslots; i++) {
        if (!r->slots[i]) continue;
        uint64_t h = hash_node(r->g, &r->g->nodes.data[r->slots[i] - 1]);
        while (slots[h & (uint64_t)(n - 1)]) h++;
        slots[h & (uint64_t)(n - 1)] = r->slots[i];
    }
    r->slots = slots;
    r->nslots = n;
}

/* The node that was emitted last: takes it back and returns an equal older one, or returns itself. */
static int dedupe(rw *r, bool *fresh) {
    ir_graph *g = r->g;
    int last = g->nodes.n - 1;
    const ir_node *n = &g->nodes.data[last];
    *fresh = true;
    if (op_table[n->op].flags & F_EFFECT) return last;
    if (2 * (last + 1) >= r->nslots) grow_slots(r);
    ASSERT(r->slots);
    uint64_t h = hash_node(g, n);
    for (;; h++) {
        int *slot = &r->slots[h & (uint64_t)(r->nslots - 1)];
        if (!*slot) {
            *slot = last + 1;
            return last;
        }
        if (node_equal(g, &g->nodes.data[*slot - 1], n)) {
            g->nodes.n--;
            g->values.n -= n->nout;
            *fresh = false;
            return *slot - 1;
        }
    }
}

static void note_values(rw *r, const ir_node *n) {
    bool trainable = n->op == OP_param && ir_int(n, "grad", 0);
    ASSERT(n->nin == 0 || r->trainable.data);
    for (int i = 0; i < n->nin; i++) trainable |= r->trainable.data[n->in[i]];
    if (n->op == OP_stop_grad) trainable = false;
    for (int k = 0; k < n->nout; k++) {
        bool t = trainable && dtype_is_float(ir_typeof(r->g, n->out[k])->t);
        vec_push(r->scratch, &r->fwd, n->out[k]);
        vec_push(r->scratch, &r->trainable, t);
    }
}

/* After a node was emitted at the end of r->g: CSE, then the rules; the values that stand for its results. */
static void settle(rw *r, bool with_rules, ir_val *out) {
    bool fresh;
    int at = dedupe(r, &fresh);
    ir_node n = r->g->nodes.data[at];
    if (fresh) {
        note_values(r, &n);
        r->g->nodes.data[at].src = n.src ? n.src : r->src;
        r->g->nodes.data[at].tag = n.tag ? n.tag : r->tag;
        if (with_rules && r->depth < MAX_DEPTH) {
            r->depth++;
            for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
                ir_val to[IR_MAX_OUT];
                if (!rules[i](r, &n, to)) continue;
                bool other = false;
                for (int k = 0; k < n.nout; k++) {
                    ASSERT(ir_type_equal(rw_type(r, to[k]), rw_type(r, n.out[k])));
                    other |= to[k] != n.out[k];
                }
                if (!other) continue; /* it came to the same node */
                for (int k = 0; k < n.nout; k++) r->fwd.data[n.out[k]] = to[k];
                break;
            }
            r->depth--;
        }
    }
    ASSERT(n.nout == 0 || r->fwd.data);
    for (int k = 0; k < n.nout; k++) {
        out[k] = n.out[k];
        if (with_rules)
            while (r->fwd.data[out[k]] != out[k]) out[k] = r->fwd.data[out[k]];
    }
}

/* ---- building ---- */

static void emit_or_die(rw *r, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr,
                        const ir_type *given) {
    if (ir_emit(r->g, op, in, nin, attr, nattr, given, NULL, NULL) != SP_OK) {
        log_line("%s", err_text());
        ASSERT(!"a rewrite built a node whose operands do not fit");
    }
}

void rw_emit(rw *r, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *given,
             ir_val *out) {
    emit_or_die(r, op, in, nin, attr, nattr, given);
    settle(r, true, out);
}

ir_val rw_raw(rw *r, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *given) {
    ir_val out[IR_MAX_OUT];
    emit_or_die(r, op, in, nin, attr, nattr, given);
    settle(r, false, out);
    return out[0];
}

ir_val rw_op1(rw *r, ir_op op, ir_val x, const ir_attr *attr, int nattr) {
    ir_val out[IR_MAX_OUT];
    rw_emit(r, op, &x, 1, attr, nattr, NULL, out);
    return out[0];
}

ir_val rw_op2(rw *r, ir_op op, ir_val x, ir_val y, const ir_attr *attr, int nattr) {
    ir_val out[IR_MAX_OUT];
    rw_emit(r, op, (ir_val[]){x, y}, 2, attr, nattr, NULL, out);
    return out[0];
}

ir_val rw_op3(rw *r, ir_op op, ir_val x, ir_val y, ir_val z, const ir_attr *attr, int nattr) {
    ir_val out[IR_MAX_OUT];
    rw_emit(r, op, (ir_val[]){x, y, z}, 3, attr, nattr, NULL, out);
    return out[0];
}

static ir_val given1(rw *r, ir_op op, ir_val x, const ir_type *type) {
    ir_val out[IR_MAX_OUT];
    rw_emit(r, op, &x, 1, NO_ATTRS, type, out);
    return out[0];
}

ir_val rw_cast(rw *r, ir_val x, dtype t) {
    if (rw_type(r, x)->t == t) return x;
    ir_type type = {.t = t};
    return given1(r, OP_cast, x, &type);
}

static ir_type shaped(const rw *r, ir_val x, int rank, const ir_dim *dim) {
    ir_type type = {.t = rw_type(r, x)->t, .rank = rank};
    for (int i = 0; i < rank; i++) type.dim[i] = dim[i];
    return type;
}

ir_val rw_reshape(rw *r, ir_val x, int rank, const ir_dim *dim) {
    ir_type type = shaped(r, x, rank, dim);
    return ir_type_equal(&type, rw_type(r, x)) ? x : given1(r, OP_reshape, x, &type);
}

ir_val rw_expand(rw *r, ir_val x, int rank, const ir_dim *dim) {
    ir_type type = shaped(r, x, rank, dim);
    return ir_type_equal(&type, rw_type(r, x)) ? x : given1(r, OP_expand, x, &type);
}

ir_val rw_permute(rw *r, ir_val x, const int *perm) {
    ir_dim p[IR_MAX_RANK];
    int rank = rw_type(r, x)->rank;
    bool identity = true;
    for (int i = 0; i < rank; i++) {
        p[i] = perm[i];
        identity &= perm[i] == i;
    }
    return identity ? x : rw_op1(r, OP_permute, x, ATTRS(A_D("perm", rank, p)));
}

ir_val rw_slice(rw *r, ir_val x, int dim, ir_dim start, ir_dim stop) {
    if (start == 0 && stop == rw_type(r, x)->dim[dim]) return x;
    ir_dim range[2] = {start, stop};
    return rw_op1(r, OP_slice, x, ATTRS(A_I("dim", dim), A_D("range", 2, range), A_I("step", 1)));
}

ir_val rw_scalar(rw *r, dtype t, double v) {
    ir_type type = {.t = t};
    ir_val out[IR_MAX_OUT];
    rw_emit(r, OP_fill, NULL, 0, ATTRS(A_F("value", v)), &type, out);
    return out[0];
}

ir_val rw_splat(rw *r, const ir_type *like, double v) {
    ir_val x = rw_scalar(r, like->t, v);
    ir_dim ones[IR_MAX_RANK];
    for (int i = 0; i < like->rank; i++) ones[i] = 1;
    x = rw_reshape(r, x, like->rank, ones);
    return rw_expand(r, x, like->rank, like->dim);
}

/* ---- matching ---- */

bool rw_const(const rw *r, ir_val v, double *c) {
    for (;;) {
        const ir_node *n = rw_def(r, v);
        switch (n->op) {
        case OP_fill:
            *c = ir_float(n, "value", 0);
            return true;
        case OP_const: {
            const ir_attr *a = ir_find_attr(n, "data");
            if (!a->n) return false;
            for (int i = 1; i < a->n; i++)
                if (a->data[i] != a->data[0]) return false;
            *c = a->data[0];
            return true;
        }
        case OP_reshape:
        case OP_permute:
        case OP_expand:
        case OP_slice:
        case OP_stop_grad:
        case OP_copy:
            v = n->in[0];
            break;
        default:
            return false;
        }
    }
}

bool rw_is_const(const rw *r, ir_val v, double c) {
    double x;
    return rw_const(r, v, &x) && x == c;
}

bool rw_with_const(const rw *r, ir_val v, ir_op op, ir_val *x, double *c) {
    const ir_node *n = rw_def(r, v);
    if (n->op != op || n->nin != 2) return false;
    if (rw_const(r, n->in[1], c)) {
        *x = n->in[0];
        return true;
    }
    bool commutes = op == OP_add || op == OP_mul || op == OP_max || op == OP_min || op == OP_and || op == OP_or;
    if (commutes && rw_const(r, n->in[0], c)) {
        *x = n->in[1];
        return true;
    }
    return false;
}

ir_val rw_slice_of(const rw *r, ir_val v, int dim, ir_dim *start, ir_dim *stop) {
    const ir_node *n = rw_def(r, v);
    const ir_dim *range;
    if (n->op == OP_slice && ir_int(n, "dim", -1) == dim && ir_int(n, "step", 1) == 1 &&
        ir_dims(n, "range", &range) == 2) {
        *start = range[0];
        *stop = range[1];
        return n->in[0];
    }
    *start = 0;
    *stop = rw_type(r, v)->dim[dim];
    return v;
}

ir_val rw_uncast(const rw *r, ir_val v) {
    while (rw_is(r, v, OP_cast)) {
        ir_val x = rw_def(r, v)->in[0];
        if (!dtype_is_float(rw_type(r, x)->t) || !dtype_is_float(rw_type(r, v)->t)) break;
        v = x;
    }
    return v;
}

bool rw_is_seq(const rw *r, ir_dim d) {
    int64_t v;
    return dim_value(r->g, d, &v) ? d == r->seq && v > 0 : dim_mentions(r->g, d, "S");
}

bool rw_dims_equal(const ir_type *a, const ir_type *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

double rw_round(dtype t, double c) {
    switch (t) {
    case DT_F32:
        return (double)(float)c;
    case DT_BF16: {
        float f = (float)c;
        uint32_t u;
        if (!isfinite(f)) return (double)f;
        memcpy(&u, &f, 4);
        u = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u; /* to nearest, ties to even */
        memcpy(&f, &u, 4);
        return (double)f;
    }
    default:
        return c;
    }
}

ir_val rw_row_vector(rw *r, ir_val v) {
    view w;
    view_of(r, v, VIEW_CHAIN, &w);
    const ir_type *t = rw_type(r, v);
    if (t->rank == 0) return -1;
    ir_dim n = t->dim[t->rank - 1];
    /* every dimension but the last is broadcast, the last is the base's only content */
    view vec = {.base = w.base, .norder = w.norder, .rank = 1, .next_id = w.next_id};
    memcpy(vec.order, w.order, sizeof vec.order);
    for (int d = 0; d < t->rank; d++)
        for (int i = w.first[d]; i < w.first[d + 1]; i++) {
            if (d < t->rank - 1) {
                if (w.atom[i].id >= 0) return -1;
                continue;
            }
            vec.atom[vec.first[1]++] = w.atom[i];
        }
    ir_val out = view_build(r, &vec);
    ASSERT(rw_type(r, out)->rank == 1 && rw_type(r, out)->dim[0] == n);
    return out;
}

ir_val rw_per_row(const rw *r, ir_val v) {
    bool dropped = false;
    for (;;) {
        const ir_node *n = rw_def(r, v);
        const ir_type *t = rw_type(r, v);
        if (n->op == OP_expand) {
            const ir_type *s = rw_type(r, n->in[0]);
            for (int d = 0; d < t->rank - 1; d++)
                if (s->dim[d] != t->dim[d]) return -1;
            if (t->rank && s->dim[t->rank - 1] != 1) return -1;
            dropped = true;
        } else if (n->op != OP_reshape) {
            return dropped ? v : -1;
        }
        v = n->in[0];
    }
}

ir_val rw_unpadded(const rw *r, ir_val v) {
    while (rw_is(r, v, OP_reshape)) {
        const ir_type *t = rw_type(r, v), *s = rw_type(r, rw_def(r, v)->in[0]);
        int n = t->rank < s->rank ? t->rank : s->rank;
        for (int d = 0; d < n; d++)
            if (t->dim[d] != s->dim[d]) return v;
        for (int d = n; d < t->rank; d++)
            if (t->dim[d] != 1) return v;
        for (int d = n; d < s->rank; d++)
            if (s->dim[d] != 1) return v;
        v = rw_def(r, v)->in[0];
    }
    return v;
}

/* ---- sweeps ---- */

/* The extent of the sequence as a number: bound, or fixed when the model was exported; else 0. */
static ir_dim sequence(const ir_graph *g) {
    if (g->seq) return g->seq;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        int64_t d = n->op == OP_input ? ir_int(n, "seq", -1) : -1, v;
        if (d >= 0 && d < ir_typeof(g, n->out[0])->rank && dim_value(g, ir_typeof(g, n->out[0])->dim[d], &v)) return v;
    }
    return 0;
}

sp_status rw_sweep(arena *a, const ir_graph *from, ir_graph **out) {
    rw r = {.scratch = arena_new(), .g = ir_new(a, from->name)};
    r.g->seq = from->seq;
    r.g->seq_valid = from->seq_valid;
    r.seq = sequence(from);
    ir_val *map = ARENA_ARRAY(r.scratch, ir_val, from->values.n);
    sp_status s = SP_OK;
    for (int i = 0; i < from->nodes.n && s == SP_OK; i++) {
        const ir_node *old = &from->nodes.data[i];
        r.src = old->src;
        r.tag = old->tag;
        s = ir_copy_node(r.g, from, i, map);
        if (s != SP_OK) break;
        ir_val settled[IR_MAX_OUT] = {0};
        settle(&r, true, settled);
        for (int k = 0; k < old->nout; k++) map[old->out[k]] = settled[k];
    }
    if (s == SP_OK) {
        for (int i = 0; i < from->outputs.n; i++)
            ir_set_output(r.g, from->outputs.data[i].name, map[from->outputs.data[i].value]);
        *out = ir_dce(r.g);
    }
    arena_free(r.scratch);
    return s;
}
