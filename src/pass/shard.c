/* shard.c - a mesh; every value gets a layout, and collectives appear where layouts meet.
 *
 *   before  %5 = embedding(%4, %1) : f32[2,8,16]                  after, on 2 ranks
 *           %2 = shard(%1) {axis="seq", dim=1} : i64[2,8]@seq=S1
 *           %4 = enter(%3) {axis="seq"} : f32[32,16]
 *           %5 = embedding(%4, %2) : f32[2,8,16]@seq=S1
 *
 * Two kinds of values. A *main* value depends on a parameter; its layout is decided once, walking forward: an op takes
 * the cut of its first cut operand along (ir_rule), and its other operands are brought to match. A *side* value depends
 * on inputs and constants only (labels, positions, rotary tables, documents): it stays replicated until something
 * demands it, and is then built in the demanded layout by asking its own operands for theirs, down to an `iota` that
 * starts at the rank's offset or a slice of an input. So positions are right at every border, a label shift across one
 * is exact, and tables cost a rank its share only.
 *
 * At attention the query rows may stay cut and the keys must be whole. That is the one place where sequence parallelism
 * happens: "a2a" cuts heads instead (two all-to-alls, DeepSpeed-Ulysses, arXiv 2309.14509); "gather" gathers keys
 * and values (any head count). A replicated value that goes into rank-varying compute passes `enter`.
 *
 * Requires: bound, simplified. Keeps: node order; shapes stay global. With one rank it only copies.
 */
#include "pass/pass.h"

typedef struct memo {
    axis_layout layout;
    ir_val value;
    struct memo *next;
} memo;

typedef struct sharder {
    const ir_graph *g;
    ir_graph *h;
    const pass_options *o;
    bool *main;      /* by old value */
    ir_val *map;     /* old main value -> new */
    memo **side;     /* old side value -> its forms */
    strmap *entered; /* new value -> its enter */
    arena *a;
} sharder;

static const char AXIS[] = "seq";
static const axis_layout REPL = {0};

static bool is_shard(axis_layout l) { return l.kind == LAYOUT_SHARD; }
static bool same(axis_layout x, axis_layout y) {
    return x.kind == y.kind && (x.kind != LAYOUT_SHARD || (x.dim == y.dim && x.outer == y.outer));
}
static axis_layout layout_of(const sharder *s, ir_val v) { return ir_layoutof(s->h, v)->axis[0]; }

static ir_val convert(sharder *s, ir_val v, axis_layout to) {
    axis_layout from = layout_of(s, v);
    if (same(from, to)) return v;
    ir_graph *h = s->h;
    if (from.kind == LAYOUT_PARTIAL) return convert(s, ir_op1(h, OP_all_reduce, v, ATTRS(A_S("axis", AXIS))), to);
    if (from.kind == LAYOUT_REPL)
        return ir_op1(h, OP_shard, v, ATTRS(A_S("axis", AXIS), A_I("dim", to.dim), A_I("outer", to.outer)));
    if (is_shard(to) && from.outer == 1 && to.outer == 1)
        return ir_op1(h, OP_all_to_all, v, ATTRS(A_S("axis", AXIS), A_I("from", from.dim), A_I("to", to.dim)));
    v = ir_op1(h, OP_all_gather, v, ATTRS(A_S("axis", AXIS), A_I("dim", from.dim), A_I("outer", from.outer)));
    return convert(s, v, to);
}

/* A replicated operand of a rank-varying op. */
static ir_val enter(sharder *s, ir_val v) {
    if (layout_of(s, v).kind != LAYOUT_REPL || ir_opof(s->h, v) == OP_enter) return v;
    char key[16];
    int64_t found;
    snprintf(key, sizeof key, "%d", v);
    if (strmap_get(s->entered, key, &found)) return (ir_val)found;
    ir_val e = ir_op1(s->h, OP_enter, v, ATTRS(A_S("axis", AXIS)));
    strmap_put(s->entered, key, e);
    return e;
}

/* Copies old node n onto given operands; a hint for dimensions that no operand has. Returns the first result. */
static sp_status rebuild(sharder *s, const ir_node *n, const ir_val *in, axis_layout hint, ir_val *out) {
    ir_layout l = {.axis = {hint}};
    ir_type types[IR_MAX_OUT];
    for (int k = 0; k < n->nout; k++) types[k] = *ir_typeof(s->g, n->out[k]);
    TRY_NOTE(ir_emit_region(s->h, n->op, in, n->nin, n->attr, n->nattr, types, n->nout, &l, n->region, out),
             "sharding%s%s", n->src ? " " : "", n->src ? n->src : "");
    ir_node *made = &s->h->nodes.data[s->h->nodes.n - 1];
    made->src = n->src;
    made->tag = n->tag;
    for (int k = 0; k < n->nout; k++) s->h->values.data[*out + k].name = s->g->values.data[n->out[k]].name;
    return SP_OK;
}

/* ---- side values ---- */

/* The layout that a side value would take if the sequence were cut where inputs say. */
static axis_layout natural(sharder *s, ir_val v) {
    const ir_node *n = ir_def(s->g, v);
    const ir_type *t = ir_typeof(s->g, v);
    int64_t dim;
    if (n->op == OP_input && (dim = ir_int(n, "seq", -1)) >= 0) return layout_shard((int)dim, 1);
    if (n->op == OP_iota && ir_int(n, "seq", 0)) return layout_shard((int)ir_int(n, "dim", 0), 1);
    if (!n->nin) return REPL;
    axis_layout l;
    if (n->op == OP_reshape) {
        l = natural(s, n->in[0]);
        return is_shard(l) && ir_reshape_layout(ir_typeof(s->g, n->in[0]), t, l, s->o->ranks, &l) ? l : REPL;
    }
    ir_rule r;
    if (!ir_rule_of(s->g, n, s->a, &r)) return REPL;
    for (int i = 0; i < n->nin; i++) {
        l = natural(s, n->in[i]);
        if (!is_shard(l)) continue;
        int f = r.in[i][l.dim];
        if (f < 0 || r.kind[f] == FACTOR_WHOLE) continue;
        for (int d = 0; d < t->rank; d++)
            if (r.out[s->g->values.data[v].index][d] == f) return layout_shard(d, l.outer);
    }
    return REPL;
}

static sp_status side_value(sharder *s, ir_val v, axis_layout want, ir_val *out);

/* Builds side value v directly in the wanted layout when its op allows; *out = -1 when it does not. */
static sp_status side_direct(sharder *s, ir_val v, axis_layout want, ir_val *out) {
    const ir_node *n = ir_def(s->g, v);
    int size = s->o->ranks;
    *out = -1;
    if (n->op == OP_fill || n->op == OP_iota) {
        if (is_shard(want) && n->op == OP_iota && want.dim == ir_int(n, "dim", 0) && want.outer != 1) return SP_OK;
        return rebuild(s, n, NULL, want, out);
    }
    if (!n->nin) return want.kind == LAYOUT_REPL ? rebuild(s, n, NULL, REPL, out) : SP_OK;
    ir_val *in = ARENA_ARRAY(s->a, ir_val, n->nin);
    if (n->op == OP_reshape) {
        axis_layout l = want;
        if (is_shard(want) && !ir_reshape_layout(ir_typeof(s->g, v), ir_typeof(s->g, n->in[0]), want, size, &l))
            return SP_OK;
        TRY(side_value(s, n->in[0], l, &in[0]));
        TRY(rebuild(s, n, in, REPL, out));
        if (!same(layout_of(s, *out), want)) *out = -1; /* an extent of 1 made it ambiguous */
        return SP_OK;
    }
    ir_rule r;
    if (!ir_rule_of(s->g, n, s->a, &r)) return SP_OK;
    int f = -1, index = s->g->values.data[v].index;
    if (is_shard(want)) {
        f = r.out[index][want.dim];
        if (f < 0 || r.kind[f] != FACTOR_PASS) return SP_OK;
    }
    for (int i = 0; i < n->nin; i++) {
        axis_layout l = REPL;
        for (int d = 0; d < ir_typeof(s->g, n->in[i])->rank; d++)
            if (f >= 0 && r.in[i][d] == f) l = layout_shard(d, want.outer);
        TRY(side_value(s, n->in[i], l, &in[i]));
    }
    TRY(rebuild(s, n, in, want, out));
    *out += index;
    return SP_OK;
}

static sp_status side_value(sharder *s, ir_val v, axis_layout want, ir_val *out) {
    for (memo *m = s->side[v]; m; m = m->next)
        if (same(m->layout, want)) {
            *out = m->value;
            return SP_OK;
        }
    TRY(side_direct(s, v, want, out));
    if (*out < 0) { /* whole first, then this rank's part */
        ir_val whole;
        ASSERT(is_shard(want));
        TRY(side_value(s, v, REPL, &whole));
        *out = convert(s, whole, want);
    }
    memo *m = ARENA_NEW(s->a, memo);
    *m = (memo){want, *out, s->side[v]};
    s->side[v] = m;
    return SP_OK;
}

/* ---- main values ---- */

/* A whole value that was repeated along the dimension to be cut (a bias for every row) is repeated less instead of cut:
 * its gradient is then a local sum, where the gradient of cutting would gather every row on every rank. *out = -1: no
 * such. */
static sp_status repeat_less(sharder *s, ir_val v, axis_layout want, ir_val *out) {
    *out = -1;
    const ir_node *n = ir_def(s->h, v);
    if (n->op != OP_expand || !is_shard(want) || layout_of(s, v).kind != LAYOUT_REPL) return SP_OK;
    if (ir_typeof(s->h, n->in[0])->dim[want.dim] != 1 || ir_typeof(s->h, v)->dim[want.dim] == 1) return SP_OK;
    ir_type t = *ir_typeof(s->h, v);
    ir_layout hint = {.axis = {want}};
    const char *src = n->src;
    ir_val x = enter(s, n->in[0]);
    TRY(ir_emit(s->h, OP_expand, &x, 1, NO_ATTRS, &t, &hint, out));
    ir_def(s->h, *out)->src = src;
    return SP_OK;
}

/* Operand i of n in the wanted layout. */
static sp_status operand(sharder *s, const ir_node *n, int i, axis_layout want, bool varying, ir_val *out) {
    if (!s->main[n->in[i]]) return side_value(s, n->in[i], want, out);
    TRY(repeat_less(s, s->map[n->in[i]], want, out));
    if (*out >= 0) return SP_OK;
    *out = convert(s, s->map[n->in[i]], want);
    if (varying && want.kind == LAYOUT_REPL) *out = enter(s, *out);
    return SP_OK;
}

static sp_status shard_attention(sharder *s, const ir_node *n, ir_val *out) {
    int P = s->o->ranks;
    int64_t H = ir_typeof(s->g, n->in[0])->dim[2], G = ir_typeof(s->g, n->in[1])->dim[2];
    const char *how = s->o->exchange ? s->o->exchange : "auto";
    bool divides = H % P == 0 && G % P == 0;
    bool a2a = strcmp(how, "a2a") == 0 || (strcmp(how, "auto") == 0 && divides);
    CHECK(!a2a || divides,
          "shard.exchange=a2a cuts heads, but %lld query heads and %lld key heads are not divisible by "
          "%d ranks; use shard.exchange=gather or auto",
          (long long)H, (long long)G, P);
    axis_layout q_want = layout_shard(a2a ? 2 : 1, 1), k_want = a2a ? q_want : REPL;
    ir_rule r;
    ir_rule_of(s->g, n, s->a, &r);
    int f = r.in[0][q_want.dim];
    ir_val *in = ARENA_ARRAY(s->a, ir_val, n->nin), o;
    for (int i = 0; i < n->nin; i++) {
        axis_layout want = i == 0 ? q_want : i < 3 ? k_want : REPL;
        for (int d = 0; i >= 3 && d < ir_typeof(s->g, n->in[i])->rank; d++)
            if (r.in[i][d] == f) want = layout_shard(d, 1);
        TRY(operand(s, n, i, want, true, &in[i]));
    }
    TRY(rebuild(s, n, in, REPL, &o));
    s->map[n->out[1]] = o + 1;
    s->map[n->out[0]] = convert(s, o, layout_shard(1, 1));
    *out = -1; /* results are recorded */
    return SP_OK;
}

static sp_status shard_main(sharder *s, const ir_node *n) {
    ir_val *in = ARENA_ARRAY(s->a, ir_val, n->nin), out = -1;
    bool cut = false;
    for (int i = 0; i < n->nin; i++) {
        if (s->main[n->in[i]]) cut |= is_shard(layout_of(s, s->map[n->in[i]]));
    }
    if (n->op == OP_attention && cut) return shard_attention(s, n, &out);
    if (n->op == OP_reshape) {
        ir_val x = s->map[n->in[0]];
        axis_layout l = layout_of(s, x);
        if (is_shard(l) &&
            !ir_reshape_layout(ir_typeof(s->g, n->in[0]), ir_typeof(s->g, n->out[0]), l, s->o->ranks, &l))
            x = convert(s, x, REPL); /* the reshape splits the cut dimension */
        TRY(rebuild(s, n, &x, REPL, &out));
        s->map[n->out[0]] = out;
        return SP_OK;
    }
    ir_rule r;
    if (!ir_rule_of(s->g, n, s->a, &r)) { /* a parameter */
        TRY(rebuild(s, n, NULL, REPL, &out));
        s->map[n->out[0]] = out;
        return SP_OK;
    }
    /* the factor that is cut: what the first cut main operand brings, else what a side operand would */
    int f = -1;
    int64_t outer = 1;
    bool partial = false;
    for (int pass = 0; pass < 2 && f < 0; pass++)
        for (int i = 0; i < n->nin && f < 0; i++) {
            bool is_main = s->main[n->in[i]];
            if (is_main != (pass == 0)) continue;
            axis_layout l = is_main ? layout_of(s, s->map[n->in[i]]) : natural(s, n->in[i]);
            partial |= l.kind == LAYOUT_PARTIAL;
            if (!is_shard(l) || r.in[i][l.dim] < 0 || r.kind[r.in[i][l.dim]] == FACTOR_WHOLE) continue;
            f = r.in[i][l.dim];
            outer = l.outer;
        }
    for (int i = 0; i < n->nin; i++) /* does the cut divide everywhere? */
        for (int d = 0; f >= 0 && d < ir_typeof(s->g, n->in[i])->rank; d++)
            if (r.in[i][d] == f && ir_typeof(s->g, n->in[i])->dim[d] % (outer * s->o->ranks)) f = -1;
    int flags = op_table[n->op].flags;
    if (partial && f < 0) { /* a partial sum stays one through linear ops */
        bool keep = (flags & F_LIN0) != 0 && s->main[n->in[0]];
        for (int i = 1; i < n->nin; i++)
            keep &= !s->main[n->in[i]] || layout_of(s, s->map[n->in[i]]).kind == LAYOUT_REPL;
        if (keep && layout_of(s, s->map[n->in[0]]).kind == LAYOUT_PARTIAL) {
            in[0] = s->map[n->in[0]];
            for (int i = 1; i < n->nin; i++) TRY(operand(s, n, i, REPL, false, &in[i]));
            TRY(rebuild(s, n, in, REPL, &out));
            for (int k = 0; k < n->nout; k++) s->map[n->out[k]] = out + k;
            return SP_OK;
        }
    }
    for (int i = 0; i < n->nin; i++) {
        axis_layout want = REPL;
        for (int d = 0; f >= 0 && d < ir_typeof(s->g, n->in[i])->rank; d++)
            if (r.in[i][d] == f) want = layout_shard(d, outer);
        TRY(operand(s, n, i, want, f >= 0, &in[i]));
    }
    TRY(rebuild(s, n, in, REPL, &out));
    for (int k = 0; k < n->nout; k++) s->map[n->out[k]] = out + k;
    return SP_OK;
}

sp_status pass_shard(const ir_graph *g, const pass_options *o, ir_graph **out) {
    sharder s = {.g = g, .o = o, .a = g->a};
    s.h = ir_new(g->a, g->name);
    s.h->seq = g->seq;
    s.h->seq_valid = g->seq_valid;
    if (o->ranks > 1) {
        s.h->mesh.naxes = 1;
        s.h->mesh.axis[0].name = AXIS;
        s.h->mesh.axis[0].size = o->ranks;
    }
    if (o->break_rule) {
        ir_op op;
        CHECK(op_parse(o->break_rule, &op), "shard.break: there is no op '%s'", o->break_rule);
        s.h->broken_op = (int)op + 1;
    }
    s.main = ARENA_ARRAY(g->a, bool, g->values.n);
    s.map = ARENA_ARRAY(g->a, ir_val, g->values.n);
    s.side = ARENA_ARRAY(g->a, memo *, g->values.n);
    s.entered = strmap_new(g->a);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        bool is_main = n->op == OP_param;
        for (int k = 0; k < n->nin; k++) is_main |= s.main[n->in[k]];
        for (int k = 0; k < n->nout; k++) s.main[n->out[k]] = is_main;
        if (!is_main) continue;
        if (o->ranks > 1) {
            TRY(shard_main(&s, n));
            continue;
        }
        ir_val *in = ARENA_ARRAY(g->a, ir_val, n->nin), first = -1;
        for (int k = 0; k < n->nin; k++) {
            if (s.main[n->in[k]])
                in[k] = s.map[n->in[k]];
            else
                TRY(side_value(&s, n->in[k], REPL, &in[k]));
        }
        TRY(rebuild(&s, n, in, REPL, &first));
        for (int k = 0; k < n->nout; k++) s.map[n->out[k]] = first + k;
    }
    for (int i = 0; i < g->outputs.n; i++) {
        ir_val v = g->outputs.data[i].value, w;
        if (s.main[v])
            w = s.map[v];
        else
            TRY(side_value(&s, v, REPL, &w));
        ir_set_output(s.h, g->outputs.data[i].name, w);
    }
    *out = s.h;
    return SP_OK;
}
