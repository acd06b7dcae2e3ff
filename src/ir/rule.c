/* rule.c - layouts: each op's einsum-like rule, and the one algorithm that infers result layouts from it.
 *
 * A rule names, for every dimension of every operand and result, the factor that it is. A mesh axis may cut one
 * factor; then every operand that has the factor must be cut the same way, results that have it are cut, and results
 * that lack it are partial sums (FACTOR_SUM). Partial sums pass through what is linear in them and are rejected
 * everywhere else, so that partial + replicated or relu(partial) can never be built. Same idea as Shardy's
 * per-op factor rules (openxla/shardy, docs/propagation.md).
 */
#include "ir/ir.h"

axis_layout layout_shard(int dim, int64_t outer) {
    return (axis_layout){.kind = LAYOUT_SHARD, .dim = (uint8_t)dim, .outer = outer};
}

int ir_axis(const ir_graph *g, const char *name) {
    for (int a = 0; a < g->mesh.naxes; a++)
        if (name && strcmp(g->mesh.axis[a].name, name) == 0) return a;
    return -1;
}

bool ir_layout_equal(const ir_graph *g, const ir_layout *a, const ir_layout *b) {
    for (int i = 0; i < g->mesh.naxes; i++) {
        const axis_layout *x = &a->axis[i], *y = &b->axis[i];
        if (x->kind != y->kind) return false;
        if (x->kind == LAYOUT_SHARD && (x->dim != y->dim || x->outer != y->outer)) return false;
    }
    return true;
}

/* ---- the rule column ---- */

static int new_factor(ir_rule *r, factor_kind kind) {
    ASSERT(r->nfactor < RULE_MAX_FACTORS);
    r->kind[r->nfactor] = (uint8_t)kind;
    return r->nfactor++;
}

#define IN(i) ir_typeof(g, n->in[i])

typedef void rule_fn(const ir_graph *g, const ir_node *n, ir_rule *r);

static void rule_eltwise(const ir_graph *g, const ir_node *n, ir_rule *r) {
    for (int d = 0; d < IN(0)->rank; d++) {
        int f = new_factor(r, FACTOR_PASS);
        for (int i = 0; i < n->nin; i++) r->in[i][d] = (int8_t)f;
        for (int o = 0; o < n->nout; o++) r->out[o][d] = (int8_t)f;
    }
}

static void rule_dropout(const ir_graph *g, const ir_node *n, ir_rule *r) {
    (void)g;
    for (int d = 0; d < IN(0)->rank; d++) r->in[0][d] = r->out[0][d] = (int8_t)new_factor(r, FACTOR_PASS);
}

static void rule_permute(const ir_graph *g, const ir_node *n, ir_rule *r) {
    const ir_dim *perm;
    int rank = ir_dims(n, "perm", &perm);
    (void)g;
    for (int d = 0; d < rank; d++) {
        int f = new_factor(r, FACTOR_PASS);
        r->in[0][perm[d]] = (int8_t)f;
        r->out[0][d] = (int8_t)f;
    }
}

static void rule_expand(const ir_graph *g, const ir_node *n, ir_rule *r) {
    const ir_type *to = ir_typeof(g, n->out[0]);
    for (int d = 0; d < to->rank; d++) {
        int f = new_factor(r, FACTOR_PASS);
        if (IN(0)->dim[d] == to->dim[d]) r->in[0][d] = (int8_t)f;
        r->out[0][d] = (int8_t)f;
    }
}

/* slice and pad: the dimension whose extent changes must be whole */
static void rule_slice(const ir_graph *g, const ir_node *n, ir_rule *r) {
    (void)g;
    int64_t dim = ir_int(n, "dim", -1);
    for (int d = 0; d < IN(0)->rank; d++) {
        int f = new_factor(r, d == dim ? FACTOR_WHOLE : FACTOR_PASS);
        r->in[0][d] = (int8_t)f;
        if (d != dim) r->out[0][d] = (int8_t)f;
    }
}

static void rule_concat(const ir_graph *g, const ir_node *n, ir_rule *r) {
    (void)g;
    int64_t dim = ir_int(n, "dim", -1);
    for (int d = 0; d < IN(0)->rank; d++) {
        int f = new_factor(r, d == dim ? FACTOR_WHOLE : FACTOR_PASS);
        for (int i = 0; i < n->nin; i++) r->in[i][d] = (int8_t)f;
        if (d != dim) r->out[0][d] = (int8_t)f;
    }
}

static void rule_whole_dim(const ir_graph *g, const ir_node *n, ir_rule *r) {
    rule_eltwise(g, n, r);
    r->kind[ir_int(n, "dim", 0)] = FACTOR_WHOLE;
}

static void rule_take(const ir_graph *g, const ir_node *n, ir_rule *r) {
    int k = n->nin - 1, rank = IN(1)->rank;
    for (int d = 0; d < rank; d++) {
        int f = new_factor(r, FACTOR_PASS);
        for (int i = 1; i <= k; i++) r->in[i][d] = (int8_t)f;
        r->out[0][d] = (int8_t)f;
    }
    for (int d = 0; d < IN(0)->rank; d++) {
        int f = new_factor(r, d < k ? FACTOR_WHOLE : FACTOR_PASS);
        r->in[0][d] = (int8_t)f;
        if (d >= k) r->out[0][rank + d - k] = (int8_t)f;
    }
}

static void rule_gather(const ir_graph *g, const ir_node *n, ir_rule *r) {
    int64_t dim = ir_int(n, "dim", 0);
    (void)g;
    for (int d = 0; d < IN(0)->rank; d++) {
        int f = new_factor(r, d == dim ? FACTOR_WHOLE : FACTOR_PASS);
        r->in[0][d] = (int8_t)f;
        if (d == dim) f = new_factor(r, FACTOR_PASS);
        r->in[1][d] = (int8_t)f;
        r->out[0][d] = (int8_t)f;
    }
}

static void rule_gather_grad(const ir_graph *g, const ir_node *n, ir_rule *r) {
    int64_t dim = ir_int(n, "dim", 0);
    (void)g;
    for (int d = 0; d < IN(0)->rank; d++) {
        int f = new_factor(r, d == dim ? FACTOR_SUM : FACTOR_PASS);
        r->in[0][d] = (int8_t)f;
        r->in[1][d] = (int8_t)f;
        if (d != dim) r->out[0][d] = (int8_t)f;
    }
}

static void reduce_with(const ir_graph *g, const ir_node *n, ir_rule *r, factor_kind kind) {
    const ir_dim *dims;
    int k = ir_dims(n, "dims", &dims), o = 0;
    (void)g;
    for (int d = 0; d < IN(0)->rank; d++) {
        bool gone = false;
        for (int i = 0; i < k; i++) gone |= dims[i] == d;
        int f = new_factor(r, gone ? kind : FACTOR_PASS);
        r->in[0][d] = (int8_t)f;
        if (!gone) r->out[0][o++] = (int8_t)f;
    }
}

static void rule_reduce(const ir_graph *g, const ir_node *n, ir_rule *r) { reduce_with(g, n, r, FACTOR_SUM); }
static void rule_reduce_max(const ir_graph *g, const ir_node *n, ir_rule *r) { reduce_with(g, n, r, FACTOR_WHOLE); }

static void rule_dot(const ir_graph *g, const ir_node *n, ir_rule *r) {
    const ir_dim *lc, *rc, *lb, *rb;
    int nc = ir_dims(n, "lc", &lc), nb = ir_dims(n, "lb", &lb), o = 0;
    ir_dims(n, "rc", &rc);
    ir_dims(n, "rb", &rb);
    for (int i = 0; i < nb + nc; i++) {
        int f = new_factor(r, i < nb ? FACTOR_PASS : FACTOR_SUM);
        r->in[0][i < nb ? lb[i] : lc[i - nb]] = (int8_t)f;
        r->in[1][i < nb ? rb[i] : rc[i - nb]] = (int8_t)f;
        if (i < nb) r->out[0][o++] = (int8_t)f;
    }
    for (int side = 0; side < 2; side++)
        for (int d = 0; d < IN(side)->rank; d++)
            if (r->in[side][d] < 0) {
                int f = new_factor(r, FACTOR_PASS);
                r->in[side][d] = (int8_t)f;
                r->out[0][o++] = (int8_t)f;
            }
}

static void rule_embedding(const ir_graph *g, const ir_node *n, ir_rule *r) {
    int v = new_factor(r, FACTOR_WHOLE), dm = new_factor(r, FACTOR_PASS);
    r->in[0][0] = (int8_t)v;
    r->in[0][1] = (int8_t)dm;
    for (int d = 0; d < IN(1)->rank; d++) {
        int f = new_factor(r, FACTOR_PASS);
        r->in[1][d] = (int8_t)f;
        r->out[0][d] = (int8_t)f;
    }
    r->out[0][IN(1)->rank] = (int8_t)dm;
}

static void rule_embedding_grad(const ir_graph *g, const ir_node *n, ir_rule *r) {
    int dm = new_factor(r, FACTOR_PASS);
    for (int d = 0; d < IN(1)->rank; d++) {
        int f = new_factor(r, FACTOR_SUM);
        r->in[0][d] = (int8_t)f;
        r->in[1][d] = (int8_t)f;
    }
    r->in[0][IN(1)->rank] = (int8_t)dm;
    r->out[0][1] = (int8_t)dm;
}

/* Rows: leading dimensions of operand 0 pass (or are summed into weight-shaped results), the last must be whole.
 * like[i] says of operand or result i: 'x' as operand 0, 'r' its rows, 'w' a vector over the last dimension. */
static void rows(const ir_graph *g, const ir_node *n, ir_rule *r, const char *in, const char *out) {
    int rank = IN(0)->rank;
    bool sums = strchr(out, 'w') != NULL;
    for (int d = 0; d < rank; d++) {
        int f = new_factor(r, d == rank - 1 ? FACTOR_WHOLE : sums ? FACTOR_SUM : FACTOR_PASS);
        for (int i = 0; i < n->nin + n->nout; i++) {
            char like = i < n->nin ? in[i] : out[i - n->nin];
            int8_t *row = i < n->nin ? r->in[i] : r->out[i - n->nin];
            if (like == 'x' || (like == 'r' && d < rank - 1)) row[d] = (int8_t)f;
            if (like == 'w' && d == rank - 1) row[0] = (int8_t)f;
        }
    }
    (void)g;
}

static void rule_rmsnorm(const ir_graph *g, const ir_node *n, ir_rule *r) { rows(g, n, r, "xw", "xr"); }
static void rule_rmsnorm_grad(const ir_graph *g, const ir_node *n, ir_rule *r) { rows(g, n, r, "xwrx", "xw"); }
static void rule_layernorm(const ir_graph *g, const ir_node *n, ir_rule *r) { rows(g, n, r, "xww", "xrr"); }
static void rule_layernorm_grad(const ir_graph *g, const ir_node *n, ir_rule *r) { rows(g, n, r, "xwrrx", "xww"); }
static void rule_xent(const ir_graph *g, const ir_node *n, ir_rule *r) { rows(g, n, r, "xr", "rr"); }
static void rule_xent_grad(const ir_graph *g, const ir_node *n, ir_rule *r) { rows(g, n, r, "xrrr", "x"); }

static void rule_rope(const ir_graph *g, const ir_node *n, ir_rule *r) {
    int f[4]; /* b s h d */
    for (int i = 0; i < 4; i++)
        r->in[0][i] = r->out[0][i] = (int8_t)(f[i] = new_factor(r, i == 3 ? FACTOR_WHOLE : FACTOR_PASS));
    for (int t = 1; t <= 2; t++) {
        if (IN(1)->dim[0] != 1) r->in[t][0] = (int8_t)f[0];
        r->in[t][1] = (int8_t)f[1];
        r->in[t][2] = (int8_t)f[3];
    }
}

/* Attention: b, q (query rows), k (key rows, whole), h (heads; grouped key heads are cut alike), d (whole). Side
 * operands say in the attribute "side" which of their dimensions is what, e.g. "bq bk h"; extents of 1 broadcast. */
static void attention_rule(const ir_graph *g, const ir_node *n, ir_rule *r, bool grad) {
    int b = new_factor(r, FACTOR_PASS), q = new_factor(r, grad ? FACTOR_SUM : FACTOR_PASS),
        k = new_factor(r, FACTOR_WHOLE), h = new_factor(r, FACTOR_PASS), d = new_factor(r, FACTOR_WHOLE);
    int8_t qrow[4] = {(int8_t)b, (int8_t)q, (int8_t)h, (int8_t)d},
           krow[4] = {(int8_t)b, (int8_t)k, (int8_t)h, (int8_t)d};
    int8_t lse[3] = {(int8_t)b, (int8_t)h, (int8_t)q};
    memcpy(r->in[0], qrow, 4);
    memcpy(r->in[1], krow, 4);
    memcpy(r->in[2], krow, 4);
    if (grad) {
        memcpy(r->in[3], qrow, 4);
        memcpy(r->in[4], lse, 3);
        memcpy(r->in[5], qrow, 4);
        memcpy(r->out[0], qrow, 4);
        memcpy(r->out[1], krow, 4);
        memcpy(r->out[2], krow, 4);
    } else {
        memcpy(r->out[0], qrow, 4);
        memcpy(r->out[1], lse, 3);
    }
    const char *side = ir_str(n, "side");
    for (int i = grad ? 6 : 3; i < n->nin; i++) {
        ASSERT(side);
        for (int dim = 0; dim < IN(i)->rank; dim++, side++) {
            ASSERT(*side);
            if (IN(i)->dim[dim] != 1)
                r->in[i][dim] = (int8_t)(*side == 'b'   ? b
                                         : *side == 'q' ? q
                                         : *side == 'k' ? k
                                         : *side == 'h' ? h
                                                        : new_factor(r, FACTOR_WHOLE));
        }
        while (*side == ' ') side++;
    }
}

static void rule_attention(const ir_graph *g, const ir_node *n, ir_rule *r) { attention_rule(g, n, r, false); }
static void rule_attention_grad(const ir_graph *g, const ir_node *n, ir_rule *r) { attention_rule(g, n, r, true); }

/* ops that have no factor rule: ir_infer_layout treats them by name */
#define rule_leaf NULL
#define rule_reshape NULL
#define rule_enter NULL
#define rule_shard NULL
#define rule_all_reduce NULL
#define rule_all_gather NULL
#define rule_reduce_scatter NULL
#define rule_all_to_all NULL
#define rule_accum NULL
#define rule_loop NULL

static rule_fn *const rule_table[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = rule_##rule,
#include "ir/ops.def"
#undef OP
};

bool ir_rule_of(const ir_graph *g, const ir_node *n, arena *a, ir_rule *r) {
    if (!rule_table[n->op]) return false;
    r->nfactor = 0;
    r->in = arena_alloc(a, sizeof *r->in * (size_t)(n->nin + n->nout));
    r->out = r->in + n->nin;
    memset(r->in, -1, sizeof *r->in * (size_t)(n->nin + n->nout));
    rule_table[n->op](g, n, r);
    return true;
}

/* ---- reshapes ---- */

bool ir_reshape_layout(const ir_type *from, const ir_type *to, axis_layout in, int size, axis_layout *out) {
    /* What a reshape keeps is how many blocks lie outside the cut: the product of the dimensions before the cut one,
     * times the outer part inside it. Find the dimension of `to` where that many blocks begin. */
    int64_t blocks = in.outer;
    for (int d = 0; d < in.dim; d++) blocks *= from->dim[d];
    int64_t before = 1;
    for (int d = 0; d < to->rank; d++) {
        if (before && blocks % before == 0) {
            int64_t outer = blocks / before;
            if (outer > 0 && to->dim[d] % (outer * size) == 0) {
                *out = layout_shard(d, outer);
                return true;
            }
        }
        before *= to->dim[d];
        if (before > blocks) break;
    }
    return false;
}

/* ---- inference ---- */

static sp_status infer_axis(const ir_graph *g, const ir_node *n, const ir_rule *r, int axis, const ir_layout *hint,
                            ir_layout *out) {
    const char *name = op_table[n->op].name, *aname = g->mesh.axis[axis].name;
    int flags = op_table[n->op].flags, factor = -1, partial = 0;
    int64_t outer = 1;
    if (n->op == OP_pad && ir_float(n, "value", 0) == 0) flags |= F_LIN0; /* with zeros it is linear */
    for (int i = 0; i < n->nin; i++) {
        axis_layout l = ir_layoutof(g, n->in[i])->axis[axis];
        if (l.kind == LAYOUT_PARTIAL) {
            partial++;
            CHECK((flags & (F_LIN1 | F_LINALL)) || ((flags & F_LIN0) && i == 0),
                  "%s: operand %d is a partial sum over '%s', which only linear operations may take", name, i, aname);
        }
        if (l.kind != LAYOUT_SHARD) continue;
        int f = r->in[i][l.dim];
        CHECK(f >= 0 && r->kind[f] != FACTOR_WHOLE, "%s: dimension %d of operand %d must be whole, but '%s' cuts it",
              name, l.dim, i, aname);
        CHECK(factor < 0 || (factor == f && outer == l.outer), "%s: '%s' cuts operands in different ways", name, aname);
        factor = f;
        outer = l.outer;
    }
    if (partial) {
        CHECK(factor < 0, "%s: an operand is a partial sum over '%s', another is cut by it", name, aname);
        if (flags & F_LIN1) CHECK(partial == 1, "%s: two partial sums over '%s' multiplied", name, aname);
        if (flags & F_LINALL)
            CHECK(partial == n->nin, "%s: a partial sum over '%s' beside a replicated value", name, aname);
        for (int o = 0; o < n->nout; o++) out[o].axis[axis].kind = LAYOUT_PARTIAL;
        return SP_OK;
    }
    if (factor < 0) { /* nothing cut: a dimension that no operand has may be cut by the hint */
        axis_layout h = hint ? hint->axis[axis] : (axis_layout){0};
        if (h.kind == LAYOUT_SHARD && n->nout == 1) {
            int f = r->out[0][h.dim];
            for (int i = 0; i < n->nin; i++)
                for (int d = 0; d < IN(i)->rank; d++)
                    CHECK(r->in[i][d] != f, "%s: '%s' cuts a result dimension that an operand has whole", name, aname);
            out[0].axis[axis] = h;
        }
        return SP_OK;
    }
    for (int i = 0; i < n->nin; i++)
        for (int d = 0; d < IN(i)->rank; d++)
            if (r->in[i][d] == factor) {
                axis_layout l = ir_layoutof(g, n->in[i])->axis[axis];
                CHECK(l.kind == LAYOUT_SHARD && l.dim == d, "%s: operand %d is whole where '%s' cuts another", name, i,
                      aname);
                CHECK(IN(i)->dim[d] % (outer * g->mesh.axis[axis].size) == 0,
                      "%s: %lld of operand %d is not divisible by the %d ranks of '%s'", name, (long long)IN(i)->dim[d],
                      i, g->mesh.axis[axis].size, aname);
            }
    for (int o = 0; o < n->nout; o++) {
        out[o].axis[axis].kind = g->broken_op == (int)n->op + 1 ? LAYOUT_REPL : LAYOUT_PARTIAL;
        for (int d = 0; d < ir_typeof(g, n->out[o])->rank; d++)
            if (r->out[o][d] == factor) out[o].axis[axis] = layout_shard(d, outer);
        ASSERT(out[o].axis[axis].kind == LAYOUT_SHARD || r->kind[factor] == FACTOR_SUM);
    }
    return SP_OK;
}

/* Ops that change layouts themselves, on axis `axis`; own: the node's own axis. */
static sp_status infer_special(const ir_graph *g, const ir_node *n, int axis, bool own, const ir_layout *hint,
                               axis_layout *out) {
    const char *name = op_table[n->op].name, *aname = g->mesh.axis[axis].name;
    axis_layout in = n->nin ? ir_layoutof(g, n->in[0])->axis[axis] : (axis_layout){0};
    int size = g->mesh.axis[axis].size;
    *out = in;
    switch (n->op) {
    case OP_input: /* of a loop's region: as the region says; the verifier compares with the operand */
        *out = hint && ir_tile_axis(g) >= 0 ? hint->axis[axis] : (axis_layout){0};
        return SP_OK;
    case OP_param:
    case OP_const:
    case OP_dimval:
        *out = (axis_layout){0};
        return SP_OK;
    case OP_fill:
    case OP_iota:
        if (hint && hint->axis[axis].kind == LAYOUT_SHARD) *out = hint->axis[axis];
        return SP_OK;
    case OP_reshape:
        if (in.kind == LAYOUT_SHARD)
            CHECK(ir_reshape_layout(IN(0), ir_typeof(g, n->out[0]), in, size, out),
                  "reshape: the dimension that '%s' cuts is split", aname);
        return SP_OK;
    case OP_enter:
        if (own) CHECK(in.kind == LAYOUT_REPL, "enter: the operand is not replicated over '%s'", aname);
        return SP_OK;
    case OP_shard:
        if (!own) return SP_OK;
        CHECK(in.kind == LAYOUT_REPL, "shard: the operand is not replicated over '%s'", aname);
        *out = layout_shard((int)ir_int(n, "dim", 0), ir_int(n, "outer", 1));
        CHECK(out->dim < IN(0)->rank && IN(0)->dim[out->dim] % (out->outer * size) == 0,
              "shard: %lld is not divisible by the %d ranks of '%s'", (long long)IN(0)->dim[out->dim], size, aname);
        return SP_OK;
    case OP_all_reduce:
        if (!own) return SP_OK;
        CHECK(in.kind == LAYOUT_PARTIAL, "all_reduce: the operand is not a partial sum over '%s'", aname);
        *out = (axis_layout){0};
        return SP_OK;
    case OP_all_gather:
        if (!own) return SP_OK;
        CHECK(in.kind == LAYOUT_SHARD && in.dim == ir_int(n, "dim", -1), "all_gather: '%s' does not cut dimension %lld",
              aname, (long long)ir_int(n, "dim", -1));
        *out = (axis_layout){0};
        return SP_OK;
    case OP_reduce_scatter:
        if (!own) return SP_OK;
        CHECK(in.kind == LAYOUT_PARTIAL, "reduce_scatter: the operand is not a partial sum over '%s'", aname);
        *out = layout_shard((int)ir_int(n, "dim", 0), ir_int(n, "outer", 1));
        CHECK(out->dim < IN(0)->rank && IN(0)->dim[out->dim] % (out->outer * size) == 0,
              "reduce_scatter: %lld is not divisible by the %d ranks of '%s'", (long long)IN(0)->dim[out->dim], size,
              aname);
        return SP_OK;
    case OP_all_to_all: {
        if (!own) return SP_OK;
        int64_t from = ir_int(n, "from", -1), to = ir_int(n, "to", -1);
        CHECK(in.kind == LAYOUT_SHARD && in.dim == from && in.outer == 1,
              "all_to_all: '%s' does not cut dimension %lld", aname, (long long)from);
        CHECK(to >= 0 && to < IN(0)->rank && to != from && IN(0)->dim[to] % size == 0,
              "all_to_all: dimension %lld is not divisible by the %d ranks of '%s'", (long long)to, size, aname);
        *out = layout_shard((int)to, 1);
        return SP_OK;
    }
    default:
        break;
    }
    FAIL("%s: no layout rule", name);
}

sp_status ir_infer_layout(const ir_graph *g, const ir_node *n, const ir_layout *hint, ir_layout *out) {
    memset(out, 0, sizeof *out * (size_t)n->nout);
    if (n->op == OP_accum) return SP_OK;
    if (n->op == OP_loop) { /* results carry the layouts of the region's, less the tile axis (the region's last) */
        ASSERT(n->region);
        for (int o = 0; o < n->nout && o < n->region->outputs.n; o++)
            for (int a = 0; a < g->mesh.naxes; a++)
                out[o].axis[a] = ir_layoutof(n->region, n->region->outputs.data[o].value)->axis[a];
        return SP_OK;
    }
    arena *scratch = arena_new();
    ir_rule r;
    sp_status s = SP_OK;
    if (ir_rule_of(g, n, scratch, &r)) {
        for (int a = 0; a < g->mesh.naxes && s == SP_OK; a++) s = infer_axis(g, n, &r, a, hint, out);
    } else {
        int own = ir_axis(g, ir_str(n, "axis"));
        for (int a = 0; a < g->mesh.naxes && s == SP_OK; a++)
            s = infer_special(g, n, a, a == own, hint, &out[0].axis[a]);
    }
    arena_free(scratch);
    return s;
}
