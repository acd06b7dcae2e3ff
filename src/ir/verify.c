/* verify.c - every invariant of a graph, checked after every pass; and the attributes that each op requires.
 *
 * Types and layouts are inferred a second time from the operands and compared with what the graph holds, so a pass
 * that edits a node without keeping the rest true is named here rather than found in a wrong number.
 */
#include "ir/ir.h"
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
};

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
        CHECK(strcmp(attr[i].key, "dim") || attr[i].kind != ATTR_INT || (attr[i].i >= 0 && attr[i].i < IR_MAX_RANK),
              "%s: dimension %lld", op_table[op].name, (long long)attr[i].i);
        CHECK(strcmp(attr[i].key, "outer") || attr[i].kind != ATTR_INT || attr[i].i >= 1, "%s: outer=%lld",
              op_table[op].name, (long long)attr[i].i);
    }
    if (op == OP_attention || op == OP_attention_grad) {
        int first = op == OP_attention ? 3 : 6;
        CHECK(nin >= first, "%s: %d operands", op_table[op].name, nin);
        const char *side = ir_str(&n, "side");
        int words = 0, letters = 0;
        for (const char *c = side ? side : ""; *c; c++) {
            CHECK(strchr("bqkh ", *c), "%s: side=\"%s\" may hold b, q, k, h and spaces", op_table[op].name, side);
            if (*c == ' ') {
                CHECK(letters > 0, "%s: side=\"%s\" has an empty word", op_table[op].name, side);
                letters = 0;
            } else if (!letters++) {
                words++;
            }
        }
        CHECK(words == nin - first, "%s: %d side operands, but side names %d", op_table[op].name, nin - first, words);
    }
    return SP_OK;
}

/* The side words of an attention must be as long as its side operands' ranks. */
static sp_status check_side(const ir_graph *g, const ir_node *n) {
    if (n->op != OP_attention && n->op != OP_attention_grad) return SP_OK;
    const char *side = ir_str(n, "side");
    for (int i = n->op == OP_attention ? 3 : 6; i < n->nin; i++) {
        int len = 0;
        while (side && side[len] && side[len] != ' ') len++;
        CHECK(len == ir_typeof(g, n->in[i])->rank, "%s: side word %d does not name the dimensions of its operand",
              op_table[n->op].name, i);
        side += len;
        while (side && *side == ' ') side++;
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
