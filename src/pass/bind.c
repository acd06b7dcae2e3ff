/* bind.c - symbols become numbers, and the sequence is padded to the mesh.
 *
 *   before  %1 = input {name="input_ids", seq=1} : i64[B,S]         (B=2, S=9, 8 ranks)
 *   after   %1 = input {name="input_ids", seq=1} : i64[2,16]        graph: seq(9/16)
 *
 * S is replaced by the next multiple of the sequence axis, so that every later pass sees even cuts; a little further
 * when a rank's rows are otherwise a number that tiles cannot divide (pass_tile_padding). The padding rows are inert:
 * the runtime gives them token 0 and the ignored label, positions made here become 0 where a table is read, `xent`
 * gives those no loss, and attention (`kv_valid`) and softmax hide keys past the user's S. A dimension's real rows
 * come first: a slice begins where it does at the user's S (x[:, -1:] is the last real row), and what a pad or a
 * concat puts behind the last real row is put there. Where a graph would let padding into a number - a sum over the
 * sequence that is not masked by labels - the length is refused by name rather than computed wrongly.
 *
 * Requires: an imported or parsed graph. Keeps: node order. After it no size is symbolic.
 */
#include "pass/pass.h"

#include <math.h>

typedef struct env {
    int64_t batch, seq;
} env;

static bool lookup(void *ctx, const char *name, int64_t *v) {
    const env *e = ctx;
    if (strcmp(name, "B") == 0)
        *v = e->batch;
    else if (strcmp(name, "S") == 0)
        *v = e->seq;
    else
        return false;
    return true;
}

static sp_status bind_type(const ir_graph *g, ir_type *t, env *e) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) {
        int64_t v;
        TRY(dim_eval(g, t->dim[i], lookup, e, &v));
        CHECK(v >= 0, "a size of the model is %lld at B=%lld, S=%lld", (long long)v, (long long)e->batch,
              (long long)e->seq);
        t->dim[i] = v;
        CHECK(mul_ok(n, v, &n) && n < INT64_MAX / 16, "a tensor of the model has more than 2^59 elements");
    }
    return SP_OK;
}

static bool mentions_seq(const ir_graph *g, ir_val v, int dim) {
    return dim_mentions(g, ir_typeof(g, v)->dim[dim], "S");
}

/* The node behind v's views and casts. */
static const ir_node *behind_views(const ir_graph *g, ir_val v) {
    for (;;) {
        const ir_node *n = ir_def(g, v);
        if (n->op != OP_reshape && n->op != OP_permute && n->op != OP_expand && n->op != OP_slice && n->op != OP_cast &&
            n->op != OP_copy)
            return n;
        v = n->in[0];
    }
}

static bool is_fill(const ir_graph *g, ir_val v, double value) {
    const ir_node *n = behind_views(g, v);
    return n->op == OP_fill && ir_float(n, "value", 0) == value;
}

/* The labels, as they come or shifted (padded with the ignored label and cut). */
static bool is_labels(const ir_graph *g, ir_val v, double ignore) {
    const ir_node *n = behind_views(g, v);
    if (n->op == OP_pad && ir_float(n, "value", 0) == ignore) n = behind_views(g, n->in[0]);
    const char *name = n->op == OP_input ? ir_str(n, "name") : NULL;
    return name && strcmp(name, "labels") == 0;
}

/* Is the value zero (false) on padding rows? True for per-row losses and label counts, and what keeps zeros. */
static bool zero_at_padding(const ir_graph *g, ir_val v) {
    const double ignore = -100; /* what the runtime puts on padding where no xent says otherwise */
    const ir_node *n = ir_def(g, v);
    switch (n->op) {
    case OP_xent:
        return g->values.data[v].index == 0;
    case OP_ne:
        return (is_labels(g, n->in[0], ignore) && is_fill(g, n->in[1], ignore)) ||
               (is_labels(g, n->in[1], ignore) && is_fill(g, n->in[0], ignore));
    case OP_fill:
        return ir_float(n, "value", 1) == 0;
    case OP_select:
        return zero_at_padding(g, n->in[2]) && (zero_at_padding(g, n->in[0]) || zero_at_padding(g, n->in[1]));
    case OP_reshape:
    case OP_permute:
    case OP_slice:
    case OP_cast:
    case OP_neg:
    case OP_expand:
    case OP_copy:
    case OP_sum:
        return zero_at_padding(g, n->in[0]);
    case OP_add:
    case OP_sub:
        return zero_at_padding(g, n->in[0]) && zero_at_padding(g, n->in[1]);
    case OP_mul:
    case OP_and:
        return zero_at_padding(g, n->in[0]) || zero_at_padding(g, n->in[1]);
    case OP_div:
        return zero_at_padding(g, n->in[0]);
    default:
        return false;
    }
}

/* Is v zero along dimension `dim` past the user's S? Softmax over the sequence hides the padding (see bind_to). */
static bool zero_past_end(const ir_graph *g, ir_val v, int dim) {
    const ir_node *n = ir_def(g, v);
    while (n->op == OP_cast || n->op == OP_copy || n->op == OP_dropout) n = ir_def(g, n->in[0]);
    return n->op == OP_softmax && ir_int(n, "dim", 0) == dim;
}

/* Ops that would mix padding into real rows. */
static sp_status check_padding(const ir_graph *g, const ir_node *n, int64_t seq, int ranks) {
    const ir_dim *dims;
    int k = 0;
    bool crosses = false;
    if (n->op == OP_sum || n->op == OP_rmax) {
        k = ir_dims(n, "dims", &dims);
        for (int i = 0; i < k; i++) crosses |= mentions_seq(g, n->in[0], (int)dims[i]);
        if (n->op == OP_sum && zero_at_padding(g, n->in[0])) crosses = false;
    } else if (n->op == OP_dot) {
        const ir_dim *rc;
        k = ir_dims(n, "lc", &dims);
        ir_dims(n, "rc", &rc);
        for (int i = 0; i < k; i++)
            crosses |= mentions_seq(g, n->in[0], (int)dims[i]) && !zero_past_end(g, n->in[0], (int)dims[i]) &&
                       !zero_past_end(g, n->in[1], (int)rc[i]);
    }
    if (n->op == OP_layernorm || n->op == OP_rmsnorm)
        crosses = mentions_seq(g, n->in[0], ir_typeof(g, n->in[0])->rank - 1);
    CHECK(!crosses,
          "a sequence of %lld must be padded for %d ranks, but %s%s%s reduces over the sequence where padding would "
          "count; take a multiple of %d",
          (long long)seq, ranks, op_table[n->op].name, n->src ? " at " : "", n->src ? n->src : "", ranks);
    return SP_OK;
}

/* Does v depend on the index along the sequence rather than on data that the runtime pads? */
static bool from_iota(const ir_graph *g, ir_val v) {
    const ir_node *n = ir_def(g, v);
    if (n->op == OP_iota) return ir_int(n, "seq", 0) || mentions_seq(g, v, (int)ir_int(n, "dim", 0));
    for (int k = 0; k < n->nin; k++)
        if (from_iota(g, n->in[k])) return true;
    return false;
}

/* Learned positions 0 .. S-1: is the table long enough? */
static sp_status check_positions(const ir_graph *g, const ir_node *n, int64_t seq) {
    const ir_node *ids = behind_views(g, n->in[1]);
    int64_t rows;
    if (ids->op != OP_iota || !mentions_seq(g, ids->out[0], (int)ir_int(ids, "dim", 0))) return SP_OK;
    CHECK(!dim_value(g, ir_typeof(g, n->in[0])->dim[0], &rows) || seq <= rows,
          "a sequence of %lld tokens, but the model's table of positions%s%s has %lld; take --seq %lld or less, or "
          "export "
          "the model with a longer table",
          (long long)seq, n->src ? " at " : "", n->src ? n->src : "", (long long)rows, (long long)rows);
    return SP_OK;
}

/* Is the index along `dim` less than `end`? As x's shape. */
static ir_val before_row(ir_graph *h, ir_val x, int dim, int64_t end) {
    ir_type t = *ir_typeof(h, x);
    t.t = DT_I64;
    ir_val row = ir_op0(h, OP_iota, &t, ATTRS(A_I("dim", dim), A_I("seq", 1)));
    return ir_op2(h, OP_lt, row, ir_fill_like(h, row, (double)end), NO_ATTRS);
}

/* Position ids on padding rows may lie past the model's table of positions: they become 0. */
static ir_val inert_ids(ir_graph *h, const ir_graph *g, ir_val old, ir_val ids, int64_t valid) {
    for (int d = 0; d < ir_typeof(h, ids)->rank; d++) {
        if (!mentions_seq(g, old, d)) continue;
        ids = ir_op3(h, OP_select, before_row(h, ids, d, valid), ids, ir_fill_like(h, ids, 0), NO_ATTRS);
    }
    return ids;
}

/* x whose elements past the `valid` first along `dim` are -inf: softmax makes them 0. */
static ir_val hide_padding(ir_graph *h, ir_val x, int dim, int64_t valid) {
    return ir_op3(h, OP_select, before_row(h, x, dim, valid), x, ir_fill_like(h, x, -INFINITY), NO_ATTRS);
}

/* ---- rows that move: what is cut off the sequence or joined to it ---- */

static sp_status real_extent(const ir_graph *g, ir_val v, int dim, env *real, int64_t *out) {
    return dim_eval(g, ir_typeof(g, v)->dim[dim], lookup, real, out);
}

/* The rows of v along `dim`, of which n cuts or joins some: the real ones must come first. They do not where S was
 * folded into other dimensions, (B, S) as B*S. */
static sp_status real_rows(const ir_graph *g, const ir_node *n, ir_val v, int dim, env *real, env *padded,
                           int64_t *rows) {
    int64_t all;
    TRY(real_extent(g, v, dim, real, rows));
    TRY(real_extent(g, v, dim, padded, &all));
    CHECK(all - *rows <= padded->seq - real->seq,
          "a sequence of %lld must be padded to %lld, but %s%s%s cuts or joins rows of several sequences; take a "
          "multiple of the ranks, or keep the batch a dimension of its own",
          (long long)real->seq, (long long)padded->seq, op_table[n->op].name, n->src ? " at " : "",
          n->src ? n->src : "");
    return SP_OK;
}

/* slice(x): begins where it does at the user's S. What it then takes past the end of x is padding: zeros. */
static sp_status slice_real(ir_graph *h, const ir_graph *g, const ir_node *n, ir_val x, int64_t len, env *real,
                            env *padded, ir_val *out) {
    const ir_dim *range;
    int dim = (int)ir_int(n, "dim", 0);
    int64_t step = ir_int(n, "step", 1), start, rows, all = ir_typeof(h, x)->dim[dim];
    ir_dims(n, "range", &range);
    TRY(dim_eval(g, range[0], lookup, real, &start));
    TRY(real_rows(g, n, n->in[0], dim, real, padded, &rows));
    CHECK(start >= 0 && start <= rows, "slice%s%s: it begins at %lld of %lld rows", n->src ? " at " : "",
          n->src ? n->src : "", (long long)start, (long long)rows);
    int64_t fits = min64(len, (all - start + step - 1) / step);
    *out = ir_slice(h, x, dim, start, start + (fits ? (fits - 1) * step + 1 : 0), step);
    if (fits < len)
        *out = ir_op1(h, OP_pad, *out, ATTRS(A_I("dim", dim), A_I("lo", 0), A_I("hi", len - fits), A_F("value", 0)));
    return SP_OK;
}

/* pad(x) and concat(..., x, t, ...), as y: what comes behind x along the sequence lies behind x's padding. It is put
 * behind the real rows as well, over that padding. */
static sp_status join_real(ir_graph *h, const ir_graph *g, const ir_node *n, const ir_val *in, env *real, env *padded,
                           ir_val *y) {
    int dim = (int)ir_int(n, "dim", 0), x = -1;
    int64_t end = ir_int(n, "lo", 0), more = ir_int(n, "hi", 0), rows;
    bool ignored = n->op == OP_pad && ir_float(n, "value", 0) == -100; /* as the runtime pads labels */
    for (int i = 0; i < n->nin; i++) {
        int64_t part = ir_typeof(h, in[i])->dim[dim];
        TRY(real_extent(g, n->in[i], dim, real, &rows));
        if (rows == part) { /* the same at the user's S */
            *(x < 0 ? &end : &more) += part;
            if (x >= 0) ignored = is_fill(g, n->in[i], -100);
            continue;
        }
        CHECK(x < 0,
              "a sequence of %lld must be padded to %lld, but %s%s%s joins values along the sequence; take a multiple "
              "of the ranks",
              (long long)real->seq, (long long)padded->seq, op_table[n->op].name, n->src ? " at " : "",
              n->src ? n->src : "");
        x = i;
    }
    if (x < 0) return SP_OK;
    TRY(real_rows(g, n, n->in[x], dim, real, padded, &rows));
    if (more == 0 || (ignored && is_labels(g, n->in[x], -100))) return SP_OK;
    end += rows;
    ir_val tail;
    if (n->op == OP_pad) {
        tail = ir_fill_like(h, *y, ir_float(n, "value", 0));
    } else {
        int64_t all = ir_typeof(h, *y)->dim[dim];
        tail = in[x + 1];
        if (n->nin - x > 2)
            TRY(ir_emit(h, OP_concat, in + x + 1, n->nin - x - 1, n->attr, n->nattr, NULL, NULL, &tail));
        tail = ir_op1(h, OP_pad, tail,
                      ATTRS(A_I("dim", dim), A_I("lo", end), A_I("hi", all - end - more), A_F("value", 0)));
    }
    ir_val behind = ir_op3(h, OP_select, before_row(h, *y, dim, end + more), tail, *y, NO_ATTRS);
    *y = ir_op3(h, OP_select, before_row(h, *y, dim, end), *y, behind, NO_ATTRS);
    return SP_OK;
}

static sp_status bind_to(const ir_graph *g, const pass_options *o, int64_t seq, ir_graph **out) {
    env padded = {o->batch, seq}, real = {o->batch, o->seq};
    bool pads = padded.seq != real.seq;
    ir_graph *h = ir_new(g->a, g->name);
    h->seq = padded.seq;
    h->seq_valid = o->seq;
    ir_val *map = ARENA_ARRAY(g->a, ir_val, g->values.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (pads) TRY(check_padding(g, n, o->seq, o->ranks));
        ir_type types[IR_MAX_OUT];
        for (int k = 0; k < n->nout; k++) {
            types[k] = *ir_typeof(g, n->out[k]);
            TRY_NOTE(bind_type(g, &types[k], &padded), "%s%s%s", op_table[n->op].name, n->src ? " at " : "",
                     n->src ? n->src : "");
        }
        ir_attr *attr = arena_memdup(g->a, n->attr, sizeof *attr * (size_t)n->nattr);
        int nattr = n->nattr;
        ir_op op = n->op;
        for (int k = 0; k < nattr; k++) {
            if (attr[k].kind != ATTR_DIMS) continue;
            attr[k].dims = arena_memdup(g->a, attr[k].dims, sizeof *attr[k].dims * (size_t)attr[k].n);
            for (int d = 0; d < attr[k].n; d++) {
                int64_t v;
                TRY(dim_eval(g, attr[k].dims[d], lookup, op == OP_dimval ? &real : &padded, &v));
                attr[k].dims[d] = dim_const(h, v);
            }
        }
        if (op == OP_dimval) { /* a size used as a number is the user's, not the padded one */
            int64_t v;
            dim_value(h, attr[0].dims[0], &v);
            double *value = ARENA_NEW(g->a, double);
            *value = (double)v;
            attr[0] = A_DATA("data", 1, value);
            nattr = 1;
            op = OP_const;
        }
        ir_val in[64], first = -1, *ins = n->nin <= 64 ? in : ARENA_ARRAY(g->a, ir_val, n->nin);
        for (int k = 0; k < n->nin; k++) ins[k] = map[n->in[k]];
        if (op == OP_embedding) TRY(check_positions(g, n, o->seq));
        if (pads && op == OP_embedding && from_iota(g, n->in[1])) ins[1] = inert_ids(h, g, n->in[1], ins[1], o->seq);
        int dim = (int)ir_int(n, "dim", 0);
        int64_t valid;
        if (pads && op == OP_softmax && mentions_seq(g, n->in[0], dim)) {
            TRY(real_extent(g, n->in[0], dim, &real, &valid));
            ins[0] = hide_padding(h, ins[0], dim, valid);
        }
        int nodes = h->nodes.n;
        if (pads && op == OP_slice)
            TRY(slice_real(h, g, n, ins[0], types[0].dim[dim], &real, &padded, &first));
        else
            TRY_NOTE(ir_emit_region(h, op, ins, n->nin, attr, nattr, n->nout ? types : NULL, n->nout, NULL, n->region,
                                    &first),
                     "at B=%lld, S=%lld%s%s", (long long)o->batch, (long long)o->seq, n->src ? ", " : "",
                     n->src ? n->src : "");
        if (pads && (op == OP_pad || op == OP_concat)) TRY(join_real(h, g, n, ins, &real, &padded, &first));
        for (int k = nodes; k < h->nodes.n; k++) {
            h->nodes.data[k].src = n->src;
            h->nodes.data[k].tag = n->tag;
        }
        ir_node *made = &h->nodes.data[h->nodes.n - 1];
        for (int k = 0; k < n->nout; k++) {
            map[n->out[k]] = first + k;
            h->values.data[first + k].name = g->values.data[n->out[k]].name;
        }
        if (op == OP_dropout) { /* masks are indexed by the unpadded tensor */
            ir_dim dims[IR_MAX_RANK];
            int rank = ir_typeof(g, n->in[0])->rank;
            for (int d = 0; d < rank; d++) {
                TRY(dim_eval(g, ir_typeof(g, n->in[0])->dim[d], lookup, &real, &dims[d]));
                if (mentions_seq(g, n->in[0], d)) ir_set_attr(h, made, A_I("seq", d));
            }
            ir_set_attr(h, made, A_D("dims", rank, dims));
            ir_set_attr(h, made, A_I("padded", padded.seq));
            ir_set_attr(h, made, A_I("valid", real.seq));
        }
        if (pads && op == OP_attention && mentions_seq(g, n->in[1], 1)) {
            TRY(real_extent(g, n->in[1], 1, &real, &valid));
            ir_set_attr(h, made, A_I("kv_valid", valid));
        }
    }
    for (int i = 0; i < g->outputs.n; i++) ir_set_output(h, g->outputs.data[i].name, map[g->outputs.data[i].value]);
    *out = h;
    return SP_OK;
}

sp_status pass_bind(const ir_graph *g, const pass_options *o, ir_graph **out) {
    CHECK(o->batch >= 1, "a batch of %lld sequences; at least 1", (long long)o->batch);
    CHECK(o->seq >= 1, "a sequence of %lld tokens; at least 1", (long long)o->seq);
    CHECK(o->ranks <= o->seq, "%d ranks for a sequence of %lld tokens; at most one rank a token", o->ranks,
          (long long)o->seq);
    int64_t ranks = o->ranks > 1 ? o->ranks : 1, seq = round_up(o->seq, ranks);
    int64_t rows = pass_tile_padding(o, seq / ranks);
    if (rows > seq / ranks && bind_to(g, o, rows * ranks, out) == SP_OK) return SP_OK;
    return bind_to(g, o, seq, out); /* padding that only tiles ask for is not worth a refusal */
}
