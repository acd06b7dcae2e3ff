/* verify.c - every invariant of a graph, checked after every pass; and the attributes that each op requires.
 *
 * Types and layouts are inferred a second time from the operands and compared with what the graph holds, so a pass
 * that edits a node without keeping the rest true is named here rather than found in a wrong number.
 */
#include "ir/ir.h"
#include "ir/formula.h"
#include "ir/shape.h"

typedef sp_status (*shape_fn)(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out);
static const shape_fn shape_of[OP_COUNT] = {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) [OP_##name] = shape_##shape,
#include "ir/ops.def"
#undef OP
};

static const struct {
    ir_op op;
    const char *key;
    attr_kind kind;
    int count; /* of ATTR_DIMS; -1 any */
} required[] = {
    {OP_param, "name", ATTR_STR, 0},
    {OP_input, "name", ATTR_STR, 0},
    {OP_const, "data", ATTR_DATA, -1},
    {OP_fill, "value", ATTR_FLOAT, 0},
    {OP_iota, "dim", ATTR_INT, 0},
    {OP_dimval, "dims", ATTR_DIMS, 1},
    {OP_permute, "perm", ATTR_DIMS, -1},
    {OP_slice, "dim", ATTR_INT, 0},
    {OP_slice, "range", ATTR_DIMS, 2},
    {OP_enter, "axis", ATTR_STR, 0},
    {OP_shard, "axis", ATTR_STR, 0},
    {OP_shard, "dim", ATTR_INT, 0},
    {OP_concat, "dim", ATTR_INT, 0},
    {OP_pad, "dim", ATTR_INT, 0},
    {OP_gather, "dim", ATTR_INT, 0},
    {OP_scatter_add, "dim", ATTR_INT, 0},
    {OP_scatter_add, "size", ATTR_DIMS, 1},
    {OP_sum, "dims", ATTR_DIMS, -1},
    {OP_rmax, "dims", ATTR_DIMS, -1},
    {OP_cumsum, "dim", ATTR_INT, 0},
    {OP_softmax, "dim", ATTR_INT, 0},
    {OP_softmax_grad, "dim", ATTR_INT, 0},
    {OP_dot, "lc", ATTR_DIMS, -1},
    {OP_dot, "rc", ATTR_DIMS, -1},
    {OP_dot, "lb", ATTR_DIMS, -1},
    {OP_dot, "rb", ATTR_DIMS, -1},
    {OP_embedding_grad, "vocab", ATTR_DIMS, 1},
    {OP_rmsnorm, "eps", ATTR_FLOAT, 0},
    {OP_layernorm, "eps", ATTR_FLOAT, 0},
    {OP_attention, "scale", ATTR_FLOAT, 0},
    {OP_attention_grad, "scale", ATTR_FLOAT, 0},
    {OP_all_reduce, "axis", ATTR_STR, 0},
    {OP_all_gather, "axis", ATTR_STR, 0},
    {OP_all_gather, "dim", ATTR_INT, 0},
    {OP_reduce_scatter, "axis", ATTR_STR, 0},
    {OP_reduce_scatter, "dim", ATTR_INT, 0},
    {OP_all_to_all, "axis", ATTR_STR, 0},
    {OP_all_to_all, "from", ATTR_INT, 0},
    {OP_all_to_all, "to", ATTR_INT, 0},
    {OP_accum, "param", ATTR_STR, 0},
    {OP_loop, "tiles", ATTR_INT, 0},
    {OP_dropout, "p", ATTR_FLOAT, 0},
    {OP_dropout, "id", ATTR_INT, 0},
};

/* What side operands do: as many words as there are operands, of the known ones; fq and fk come in pairs, which the
 * formula names. */
static sp_status check_roles(const ir_node *n, int words) {
    static const char *const known[] = {"docq", "dock", "keep", "alibi", "mask", "bias", "fq", "fk", "rng"};
    const char *roles = ir_str(n, "roles");
    int count = 0, fq = 0, fk = 0, rng = 0;
    for (const char *c = roles ? roles : ""; *c;) {
        size_t len = strcspn(c, " ");
        bool ok = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            ok |= len == strlen(known[i]) && memcmp(c, known[i], len) == 0;
        CHECK(ok, "roles=\"%s\" has a word that is not known", roles);
        fq += len == 2 && c[1] == 'q', fk += len == 2 && c[1] == 'k', rng += *c == 'r';
        count++;
        c += len;
        while (*c == ' ') c++;
    }
    CHECK(count == words, "%d side operands, but %d roles", words, count);
    CHECK(fq == fk && fq <= FORMULA_PAIRS, "%d query vectors and %d key vectors; at most %d pairs", fq, fk,
          FORMULA_PAIRS);
    double p = ir_float(n, "drop_p", 0);
    CHECK(rng <= 1 && p >= 0 && p <= 1 && (p == 0 || rng == 1), "dropout needs drop_p in [0, 1] and one rng");
    ir_formula unused;
    return ir_formula_parse(ir_str(n, "formula"), fq, &unused);
}

sp_status ir_check_attrs(ir_op op, int nin, const ir_attr *attr, int nattr) {
    const ir_node n = {.op = op, .nin = nin, .attr = (ir_attr *)attr, .nattr = nattr};
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        if (required[i].op != op) continue;
        const ir_attr *a = ir_find_attr(&n, required[i].key);
        CHECK(a && a->kind == required[i].kind, "%s needs the attribute '%s'", op_table[op].name, required[i].key);
        CHECK(required[i].kind != ATTR_DIMS || required[i].count < 0 || a->n == required[i].count,
              "%s: attribute '%s' has %d numbers", op_table[op].name, required[i].key, a->n);
    }
    for (int i = 0; i < nattr; i++) {
        CHECK(attr[i].kind != ATTR_DIMS || attr[i].n <= IR_MAX_RANK, "%s: attribute '%s' is too long",
              op_table[op].name, attr[i].key);
        CHECK(strcmp(attr[i].key, "dim") != 0 || attr[i].kind != ATTR_INT ||
                  (attr[i].i >= 0 && attr[i].i < IR_MAX_RANK),
              "%s: dimension %lld", op_table[op].name, (long long)attr[i].i);
        CHECK(strcmp(attr[i].key, "outer") != 0 || attr[i].kind != ATTR_INT || attr[i].i >= 1, "%s: outer=%lld",
              op_table[op].name, (long long)attr[i].i);
    }
    if (op == OP_attention || op == OP_attention_grad) {
        int first = op == OP_attention ? 3 : 6;
        CHECK(nin >= first, "%s: %d operands", op_table[op].name, nin);
        const char *side = ir_str(&n, "side");
        int words = 0, letters = 0;
        for (const char *c = side ? side : ""; *c; c++) {
            CHECK(strchr("bqkhr ", *c), "%s: side=\"%s\" may hold b, q, k, h, r and spaces", op_table[op].name, side);
            if (*c == ' ') {
                CHECK(letters > 0, "%s: side=\"%s\" has an empty word", op_table[op].name, side);
                letters = 0;
            } else if (!letters++) {
                words++;
            }
        }
        CHECK(words == nin - first, "%s: %d side operands, but side names %d", op_table[op].name, nin - first, words);
        CHECK(words <= ATTENTION_SIDES, "%s: %d side operands; at most %d", op_table[op].name, words, ATTENTION_SIDES);
        TRY_NOTE(check_roles(&n, words), "%s", op_table[op].name);
    }
    return SP_OK;
}

/* The side words of an attention must be as long as its side operands' ranks. */
static sp_status check_side(const ir_graph *g, const ir_node *n) {
    if (n->op != OP_attention && n->op != OP_attention_grad) return SP_OK;
    const char *side = ir_str(n, "side"), *roles = ir_str(n, "roles");
    for (int i = n->op == OP_attention ? 3 : 6; i < n->nin; i++) {
        const ir_type *t = ir_typeof(g, n->in[i]);
        bool ints = *roles == 'd' || *roles == 'f' || *roles == 'r', flags = *roles == 'k' || *roles == 'm';
        CHECK(ints    ? t->t == DT_I64
              : flags ? t->t == DT_BOOL
                      : dtype_is_float(t->t),
              "%s: side operand %d is %s", op_table[n->op].name, i, dtype_name(t->t));
        CHECK(*roles != 'r' || (t->rank == 1 && t->dim[0] == 3), "%s: the generator's state is not i64[3]",
              op_table[n->op].name);
        roles += strcspn(roles, " ");
        while (*roles == ' ') roles++;
        int len = 0;
        while (side && side[len] && side[len] != ' ') len++;
        CHECK(len == ir_typeof(g, n->in[i])->rank, "%s: side word %d does not name the dimensions of its operand",
              op_table[n->op].name, i);
        side += len;
        while (side && *side == ' ') side++;
    }
    return SP_OK;
}

/* ---- loops ---- */

static bool same_axes(const ir_graph *g, const ir_layout *outside, const ir_layout *inside) {
    return ir_layout_equal(g, outside, inside); /* looks at g's axes only */
}

/* A region sees its operands as `input` nodes and its tiles as a mesh axis of its own: docs/ir.md, "Loops". */
static sp_status verify_loop(const ir_graph *g, const ir_node *n) {
    const ir_graph *r = n->region;
    int64_t tiles = ir_int(n, "tiles", 0);
    int tile = ir_tile_axis(r), k = 0;
    CHECK(tiles >= 1, "tiles=%lld", (long long)tiles);
    CHECK(tile >= 0 && tile == r->mesh.naxes - 1 && r->mesh.naxes == g->mesh.naxes + 1,
          "the region's mesh is not the graph's with a last axis 'tile'");
    CHECK(r->mesh.axis[tile].size == tiles, "tiles=%lld, but the region's axis has %d", (long long)tiles,
          r->mesh.axis[tile].size);
    for (int a = 0; a < g->mesh.naxes; a++)
        CHECK(strcmp(g->mesh.axis[a].name, r->mesh.axis[a].name) == 0 && g->mesh.axis[a].size == r->mesh.axis[a].size,
              "the region's mesh differs from the graph's");
    for (int i = 0; i < r->nodes.n; i++) {
        const ir_node *m = &r->nodes.data[i];
        CHECK(!(op_table[m->op].flags & F_COLL) && m->op != OP_loop && m->op != OP_param && m->op != OP_iota &&
                  m->op != OP_shard && m->op != OP_attention && m->op != OP_attention_grad,
              "%s may not be in a region", op_table[m->op].name);
        if (m->op != OP_input) continue;
        CHECK(k < n->nin, "the region has more inputs than the loop operands");
        CHECK(ir_type_equal(ir_typeof(r, m->out[0]), ir_typeof(g, n->in[k])), "input %d of the region has another type",
              k);
        CHECK(same_axes(g, ir_layoutof(g, n->in[k]), ir_layoutof(r, m->out[0])),
              "input %d of the region has another layout", k);
        CHECK(ir_layoutof(r, m->out[0])->axis[tile].kind != LAYOUT_PARTIAL, "input %d is a sum over tiles", k);
        k++;
    }
    CHECK(k == n->nin, "%d operands, but the region has %d inputs", n->nin, k);
    CHECK(r->outputs.n == n->nout, "%d results, but the region returns %d", n->nout, r->outputs.n);
    for (k = 0; k < n->nout; k++) {
        ir_val v = r->outputs.data[k].value;
        axis_layout l = ir_layoutof(r, v)->axis[tile];
        CHECK(ir_type_equal(ir_typeof(r, v), ir_typeof(g, n->out[k])), "result %d of the region has another type", k);
        CHECK(l.kind != LAYOUT_REPL, "result %d is the same in every tile", k);
        CHECK(l.kind != LAYOUT_PARTIAL || ir_typeof(r, v)->t == DT_F32 || ir_typeof(r, v)->t == DT_F64,
              "result %d is a sum over tiles of type %s; only f32 and f64 are summed", k,
              dtype_name(ir_typeof(r, v)->t));
    }
    return SP_OK;
}

/* Every dimension must divide by all axes that cut it. */
static sp_status check_cuts(const ir_graph *g, ir_val v) {
    const ir_type *t = ir_typeof(g, v);
    for (int d = 0; d < t->rank; d++) {
        int64_t cut = 1;
        for (int a = 0; a < g->mesh.naxes; a++) {
            axis_layout l = ir_layoutof(g, v)->axis[a];
            if (l.kind == LAYOUT_SHARD && l.dim == d)
                CHECK(mul_ok(cut, g->mesh.axis[a].size, &cut) && t->dim[d] % cut == 0 && t->dim[d] % l.outer == 0,
                      "dimension %d of %lld is cut in %lld", d, (long long)t->dim[d], (long long)cut);
        }
    }
    return SP_OK;
}

static sp_status verify_node(ir_graph *g, int i) {
    const ir_node *n = &g->nodes.data[i];
    const op_info *op = &op_table[n->op];
    CHECK(op->nin < 0 || op->nin == n->nin, "%d operands", n->nin);
    CHECK(op->nout < 0 || op->nout == n->nout, "%d results", n->nout);
    for (int k = 0; k < n->nin; k++) {
        CHECK(n->in[k] >= 0 && n->in[k] < g->values.n, "operand %d does not exist", k);
        CHECK(g->values.data[n->in[k]].node < i, "operand %d is defined later", k);
    }
    for (int k = 0; k < n->nout; k++) {
        const ir_value *v = &g->values.data[n->out[k]];
        CHECK(v->node == i && v->index == k, "result %d belongs to another node", k);
    }
    TRY(ir_check_attrs(n->op, n->nin, n->attr, n->nattr));
    TRY(check_side(g, n));
    ir_type types[IR_MAX_OUT], given[IR_MAX_OUT];
    ir_layout layouts[IR_MAX_OUT];
    for (int k = 0; k < n->nout; k++) given[k] = *ir_typeof(g, n->out[k]);
    TRY(shape_of[n->op](g, n, n->nout ? given : NULL, types));
    for (int k = 0; k < n->nout; k++) {
        buf b = {0};
        bool ok = ir_type_equal(&types[k], &given[k]);
        if (!ok) {
            ir_print_type(g, &types[k], NULL, &b);
            err_set("result %d should be %s", k, b.data);
            buf_free(&b);
            return SP_FAIL;
        }
    }
    if (g->mesh.naxes) {
        TRY(ir_infer_layout(g, n, n->nout ? ir_layoutof(g, n->out[0]) : NULL, layouts));
        for (int k = 0; k < n->nout; k++)
            CHECK(ir_layout_equal(g, &layouts[k], ir_layoutof(g, n->out[k])),
                  "the layout of result %d does not follow "
                  "from the operands",
                  k);
    }
    for (int k = 0; k < n->nout; k++) TRY(check_cuts(g, n->out[k]));
    if (n->op == OP_loop) TRY(verify_loop(g, n));
    if (n->region) TRY(ir_verify(n->region, "a nested graph"));
    return SP_OK;
}

sp_status ir_verify(const ir_graph *g, const char *after) {
    for (int i = 0; i < g->nodes.n; i++)
        /* dimension arithmetic may intern new expressions, nothing else of the graph changes */
        TRY_NOTE(verify_node((ir_graph *)g, i), "after %s: node %d (%s)", after, i, op_table[g->nodes.data[i].op].name);
    for (int i = 0; i < g->outputs.n; i++)
        CHECK(g->outputs.data[i].value >= 0 && g->outputs.data[i].value < g->values.n,
              "after %s: output '%s' does not exist", after, g->outputs.data[i].name);
    return SP_OK;
}
