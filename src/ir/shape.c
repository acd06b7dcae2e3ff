/* shape.c - the op table's `shape` column: operand types and attributes give result types.
 *
 * Dimensions may be symbolic; equality is then equality of canonical expressions. A function here checks what the
 * op demands of its operands' shapes and types, and says what it found when they do not fit: these messages reach
 * users through the importer.
 */
#include "ir/shape.h"

#define IN(i) ir_typeof(g, n->in[i])

static const char *type_text(const ir_graph *g, const ir_type *t, char *out, size_t size) {
    buf b = {0};
    ir_print_type(g, t, NULL, &b);
    snprintf(out, size, "%s", b.data);
    buf_free(&b);
    return out;
}

#define TYPE_TEXT(t) type_text(g, (t), (char[160]){0}, 160)

static bool same_dims(const ir_type *a, const ir_type *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

static sp_status check_dim_attr(const ir_node *n, const ir_type *t, int64_t dim) {
    CHECK(dim >= 0 && dim < t->rank, "%s: dimension %lld of a rank-%d operand", op_table[n->op].name, (long long)dim,
          t->rank);
    return SP_OK;
}

sp_status shape_given(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    CHECK(given || (n->op == OP_loop && n->nout == 0), "%s needs a result type", op_table[n->op].name);
    if (n->op == OP_loop) {
        for (int i = 0; i < n->nout; i++) out[i] = given[i];
        return SP_OK;
    }
    out[0] = *given;
    if (n->op == OP_reshape) {
        out[0].t = IN(0)->t;
        ir_dim a = 1, b = 1;
        for (int i = 0; i < IN(0)->rank; i++) a = dim_mul(g, a, IN(0)->dim[i]);
        for (int i = 0; i < given->rank; i++) b = dim_mul(g, b, given->dim[i]);
        CHECK(a == b || a < 0 || b < 0, "reshape: %s does not have as many elements as %s", TYPE_TEXT(IN(0)),
              TYPE_TEXT(given));
    }
    if (n->op == OP_expand) {
        out[0].t = IN(0)->t;
        CHECK(given->rank == IN(0)->rank, "expand: rank %d to rank %d", IN(0)->rank, given->rank);
        for (int i = 0; i < given->rank; i++)
            CHECK(IN(0)->dim[i] == given->dim[i] || IN(0)->dim[i] == 1, "expand: %s cannot become %s", TYPE_TEXT(IN(0)),
                  TYPE_TEXT(given));
    }
    return SP_OK;
}

sp_status shape_plan_only(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)g, (void)given, (void)out;
    FAIL("%s stands in plans only, never in a graph", op_table[n->op].name);
}

sp_status shape_none(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)g, (void)n, (void)given, (void)out;
    return SP_OK;
}

sp_status shape_same(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    for (int i = 1; i < n->nin; i++)
        CHECK(same_dims(IN(0), IN(i)) && IN(0)->t == IN(i)->t, "%s: operands of different types, %s and %s",
              op_table[n->op].name, TYPE_TEXT(IN(0)), TYPE_TEXT(IN(i)));
    out[0] = *IN(0);
    return SP_OK;
}

sp_status shape_cast(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    CHECK(given, "cast needs a result type");
    out[0] = *IN(0);
    out[0].t = given->t;
    return SP_OK;
}

sp_status shape_compare(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    TRY(shape_same(g, n, given, out));
    out[0].t = DT_BOOL;
    return SP_OK;
}

sp_status shape_select(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    CHECK(IN(0)->t == DT_BOOL && IN(1)->t == IN(2)->t && same_dims(IN(0), IN(1)) && same_dims(IN(1), IN(2)),
          "select: operands %s, %s, %s", TYPE_TEXT(IN(0)), TYPE_TEXT(IN(1)), TYPE_TEXT(IN(2)));
    out[0] = *IN(1);
    return SP_OK;
}

sp_status shape_swiglu_grad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    TRY(shape_same(g, n, given, out));
    out[1] = out[0];
    return SP_OK;
}

sp_status shape_dropout(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    double p = ir_float(n, "p", -1);
    CHECK(p >= 0 && p <= 1, "dropout: probability %g", p);
    CHECK(IN(1)->t == DT_I64 && IN(1)->rank == 1 && IN(1)->dim[0] == 3,
          "dropout: the generator's state is %s, not i64[3]", TYPE_TEXT(IN(1)));
    out[0] = *IN(0);
    return SP_OK;
}

sp_status shape_permute(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    const ir_dim *perm;
    int rank = ir_dims(n, "perm", &perm);
    CHECK(rank == IN(0)->rank, "permute: %d numbers for %s", rank, TYPE_TEXT(IN(0)));
    out[0] = *IN(0);
    unsigned seen = 0;
    for (int i = 0; i < rank; i++) {
        CHECK(perm[i] >= 0 && perm[i] < rank && !(seen & 1u << perm[i]), "permute: not a permutation");
        seen |= 1u << perm[i];
        out[0].dim[i] = IN(0)->dim[perm[i]];
    }
    return SP_OK;
}

sp_status shape_slice(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    int64_t dim = ir_int(n, "dim", -1), step = ir_int(n, "step", 1);
    TRY(check_dim_attr(n, IN(0), dim));
    const ir_dim *r;
    CHECK(ir_dims(n, "range", &r) == 2 && step >= 1, "slice: needs range=[start,stop] and a positive step");
    int64_t a, b, e;
    if (dim_value(g, r[0], &a) && dim_value(g, r[1], &b)) {
        CHECK(a >= 0 && b >= a && (!dim_value(g, IN(0)->dim[dim], &e) || b <= e), "slice: [%lld, %lld) of %s",
              (long long)a, (long long)b, TYPE_TEXT(IN(0)));
    }
    out[0] = *IN(0);
    ir_dim len = dim_sub(g, r[1], r[0]);
    out[0].dim[dim] = step == 1 ? len : dim_floordiv(g, dim_add(g, len, dim_const(g, step - 1)), dim_const(g, step));
    return SP_OK;
}

sp_status shape_pad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    int64_t dim = ir_int(n, "dim", -1), lo = ir_int(n, "lo", 0), hi = ir_int(n, "hi", 0);
    TRY(check_dim_attr(n, IN(0), dim));
    int64_t step = ir_int(n, "step", 1);
    CHECK(lo >= 0 && hi >= 0 && step >= 1 && lo < INT32_MAX && hi < INT32_MAX && step < INT32_MAX,
          "pad: lo=%lld hi=%lld step=%lld", (long long)lo, (long long)hi, (long long)step);
    out[0] = *IN(0);
    ir_dim len = IN(0)->dim[dim]; /* (len - 1) * step + 1 when spread out */
    if (step > 1) len = dim_add(g, dim_mul(g, dim_sub(g, len, 1), step), 1);
    out[0].dim[dim] = dim_add(g, len, dim_const(g, lo + hi));
    return SP_OK;
}

sp_status shape_concat(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    int64_t dim = ir_int(n, "dim", -1);
    CHECK(n->nin >= 1, "concat of nothing");
    TRY(check_dim_attr(n, IN(0), dim));
    out[0] = *IN(0);
    for (int i = 1; i < n->nin; i++) {
        CHECK(IN(i)->t == IN(0)->t && IN(i)->rank == IN(0)->rank, "concat: %s and %s", TYPE_TEXT(IN(0)),
              TYPE_TEXT(IN(i)));
        for (int d = 0; d < IN(0)->rank; d++)
            CHECK(d == dim || IN(i)->dim[d] == IN(0)->dim[d], "concat along %lld: %s and %s", (long long)dim,
                  TYPE_TEXT(IN(0)), TYPE_TEXT(IN(i)));
        out[0].dim[dim] = dim_add(g, out[0].dim[dim], IN(i)->dim[dim]);
    }
    return SP_OK;
}

sp_status shape_take(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    CHECK(n->nin >= 2, "take: needs a tensor and an index tensor");
    int k = n->nin - 1;
    CHECK(k <= IN(0)->rank, "take: %d index tensors for %s", k, TYPE_TEXT(IN(0)));
    out[0].t = IN(0)->t;
    int rank = IN(1)->rank + IN(0)->rank - k;
    CHECK(rank <= IR_MAX_RANK, "take: a result of rank %d", rank);
    for (int i = 1; i <= k; i++)
        CHECK(IN(i)->t == DT_I64 && same_dims(IN(i), IN(1)), "take: index tensors %s and %s", TYPE_TEXT(IN(1)),
              TYPE_TEXT(IN(i)));
    out[0].rank = rank;
    for (int d = 0; d < IN(1)->rank; d++) out[0].dim[d] = IN(1)->dim[d];
    for (int d = k; d < IN(0)->rank; d++) out[0].dim[IN(1)->rank + d - k] = IN(0)->dim[d];
    return SP_OK;
}

sp_status shape_gather(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    TRY(check_dim_attr(n, IN(0), ir_int(n, "dim", -1)));
    CHECK(IN(1)->t == DT_I64 && IN(1)->rank == IN(0)->rank, "gather: index %s for %s", TYPE_TEXT(IN(1)),
          TYPE_TEXT(IN(0)));
    for (int d = 0; d < IN(0)->rank; d++)
        CHECK(d == ir_int(n, "dim", -1) || IN(0)->dim[d] == IN(1)->dim[d], "gather: index %s for %s", TYPE_TEXT(IN(1)),
              TYPE_TEXT(IN(0)));
    out[0] = *IN(1);
    out[0].t = IN(0)->t;
    return SP_OK;
}

sp_status shape_scatter_add(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    int64_t dim = ir_int(n, "dim", -1);
    const ir_dim *size;
    TRY(check_dim_attr(n, IN(0), dim));
    CHECK(same_dims(IN(0), IN(1)) && ir_dims(n, "size", &size) == 1, "scatter_add: %s at %s", TYPE_TEXT(IN(0)),
          TYPE_TEXT(IN(1)));
    out[0] = *IN(0);
    out[0].dim[dim] = size[0];
    return SP_OK;
}

sp_status shape_reduce(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    const ir_dim *dims;
    int k = ir_dims(n, "dims", &dims);
    unsigned gone = 0;
    for (int i = 0; i < k; i++) {
        TRY(check_dim_attr(n, IN(0), dims[i]));
        gone |= 1u << dims[i];
    }
    out[0].t = IN(0)->t;
    out[0].rank = 0;
    for (int d = 0; d < IN(0)->rank; d++)
        if (!(gone & 1u << d)) out[0].dim[out[0].rank++] = IN(0)->dim[d];
    return SP_OK;
}

sp_status shape_dot(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    const ir_dim *lc, *rc, *lb, *rb;
    int nc = ir_dims(n, "lc", &lc), nb = ir_dims(n, "lb", &lb);
    const ir_type *x = IN(0), *y = IN(1);
    CHECK(ir_dims(n, "rc", &rc) == nc && ir_dims(n, "rb", &rb) == nb && x->t == y->t && dtype_is_float(x->t),
          "dot: %s and %s do not fit", TYPE_TEXT(x), TYPE_TEXT(y));
    unsigned lgone = 0, rgone = 0;
    out[0].t = x->t == DT_BF16 && ir_int(n, "f32", 0) ? DT_F32 : x->t;
    out[0].rank = 0;
    for (int i = 0; i < nb + nc; i++) {
        ir_dim l = i < nb ? lb[i] : lc[i - nb], r = i < nb ? rb[i] : rc[i - nb];
        CHECK(l >= 0 && l < x->rank && r >= 0 && r < y->rank && x->dim[l] == y->dim[r],
              "dot: dimension %lld of %s is not dimension %lld of %s", (long long)l, TYPE_TEXT(x), (long long)r,
              TYPE_TEXT(y));
        lgone |= 1u << l;
        rgone |= 1u << r;
        if (i < nb) out[0].dim[out[0].rank++] = x->dim[l];
    }
    CHECK(x->rank + y->rank - 2 * nc - nb <= IR_MAX_RANK, "dot: a result of rank past %d", IR_MAX_RANK);
    for (int d = 0; d < x->rank; d++)
        if (!(lgone & 1u << d)) out[0].dim[out[0].rank++] = x->dim[d];
    for (int d = 0; d < y->rank; d++)
        if (!(rgone & 1u << d)) out[0].dim[out[0].rank++] = y->dim[d];
    return SP_OK;
}

sp_status shape_embedding(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    CHECK(IN(0)->rank == 2 && IN(1)->t == DT_I64 && IN(1)->rank < IR_MAX_RANK, "embedding: table %s, ids %s",
          TYPE_TEXT(IN(0)), TYPE_TEXT(IN(1)));
    out[0] = *IN(1);
    out[0].t = IN(0)->t;
    out[0].dim[out[0].rank++] = IN(0)->dim[1];
    return SP_OK;
}

sp_status shape_embedding_grad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    const ir_dim *vocab;
    CHECK(ir_dims(n, "vocab", &vocab) == 1 && IN(0)->rank == IN(1)->rank + 1, "embedding_grad: %s, ids %s",
          TYPE_TEXT(IN(0)), TYPE_TEXT(IN(1)));
    out[0] = (ir_type){IN(0)->t, 2, {vocab[0], IN(0)->dim[IN(0)->rank - 1]}};
    return SP_OK;
}

/* x without its last dimension */
static ir_type rows_of(const ir_type *x, dtype t) {
    ir_type r = *x;
    r.rank--;
    r.t = t;
    return r;
}

static sp_status check_row_weight(ir_graph *g, const ir_node *n, int i) {
    CHECK(IN(0)->rank >= 1 && IN(i)->rank == 1 && IN(i)->dim[0] == IN(0)->dim[IN(0)->rank - 1],
          "%s: rows of %s with a weight %s", op_table[n->op].name, TYPE_TEXT(IN(0)), TYPE_TEXT(IN(i)));
    return SP_OK;
}

/* Statistics of rows are f32, or f64 in an f64 graph. */
static dtype stat_type(dtype t) { return t == DT_F64 ? DT_F64 : DT_F32; }

sp_status shape_rmsnorm(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    TRY(check_row_weight(g, n, 1));
    out[0] = *IN(0);
    out[1] = rows_of(IN(0), stat_type(IN(0)->t));
    return SP_OK;
}

sp_status shape_rmsnorm_grad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    TRY(check_row_weight(g, n, 1));
    CHECK(same_dims(IN(0), IN(3)), "rmsnorm_grad: x %s and dy %s", TYPE_TEXT(IN(0)), TYPE_TEXT(IN(3)));
    out[0] = *IN(0);
    out[1] = *IN(1);
    return SP_OK;
}

sp_status shape_layernorm(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    TRY(check_row_weight(g, n, 1));
    TRY(check_row_weight(g, n, 2));
    out[0] = *IN(0);
    out[1] = out[2] = rows_of(IN(0), stat_type(IN(0)->t));
    return SP_OK;
}

sp_status shape_layernorm_grad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    TRY(check_row_weight(g, n, 1));
    CHECK(same_dims(IN(0), IN(4)), "layernorm_grad: x %s and dy %s", TYPE_TEXT(IN(0)), TYPE_TEXT(IN(4)));
    out[0] = *IN(0);
    out[1] = out[2] = *IN(1);
    return SP_OK;
}

sp_status shape_xent(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    ir_type rows = rows_of(IN(0), stat_type(IN(0)->t));
    CHECK(IN(0)->rank >= 1 && IN(1)->t == DT_I64 && same_dims(&rows, IN(1)), "xent: logits %s, labels %s",
          TYPE_TEXT(IN(0)), TYPE_TEXT(IN(1)));
    out[0] = out[1] = rows;
    return SP_OK;
}

sp_status shape_xent_grad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    out[0] = *IN(0);
    return SP_OK;
}

sp_status shape_rope(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    const ir_type *x = IN(0), *c = IN(1);
    CHECK(x->rank == 4 && c->rank == 3 && same_dims(c, IN(2)) && (c->dim[0] == 1 || c->dim[0] == x->dim[0]) &&
              c->dim[1] == x->dim[1] && c->dim[2] == x->dim[3],
          "rope: x %s with a table %s", TYPE_TEXT(x), TYPE_TEXT(c));
    out[0] = *x;
    return SP_OK;
}

static sp_status check_qkv(ir_graph *g, const ir_node *n) {
    CHECK(n->nin >= 3, "%s: %d operands", op_table[n->op].name, n->nin);
    const ir_type *q = IN(0), *k = IN(1), *v = IN(2);
    int64_t h, kv;
    bool ok = q->rank == 4 && k->rank == 4 && same_dims(k, v) && q->dim[0] == k->dim[0] && q->dim[3] == k->dim[3] &&
              q->t == k->t && q->t == v->t;
    if (ok && dim_value(g, q->dim[2], &h) && dim_value(g, k->dim[2], &kv)) ok = kv > 0 && h % kv == 0;
    CHECK(ok, "attention: q %s, k %s, v %s do not fit (batch, sequence, heads, head size)", TYPE_TEXT(q), TYPE_TEXT(k),
          TYPE_TEXT(v));
    return SP_OK;
}

sp_status shape_attention(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    TRY(check_qkv(g, n));
    out[0] = *IN(0);
    out[1] = (ir_type){stat_type(IN(0)->t), 3, {IN(0)->dim[0], IN(0)->dim[2], IN(0)->dim[1]}};
    return SP_OK;
}

sp_status shape_attention_grad(ir_graph *g, const ir_node *n, const ir_type *given, ir_type *out) {
    (void)given;
    CHECK(n->nin >= 6, "attention_grad: %d operands", n->nin);
    TRY(check_qkv(g, n));
    out[0] = *IN(0);
    out[1] = *IN(1);
    out[2] = *IN(2);
    return SP_OK;
}
