/* lower_nn.c - layers: embeddings, norms, dropout, attention and losses. */
#include "import/lower.h"

#include <math.h>

static void embedding(lower *L, const lo_row *row) {
    (void)row;
    ir_val w = lo_tensor(L, "weight"), ids = lo_cast(L, lo_tensor(L, "indices"), DT_I64);
    if (L->one_input) ids = lo_from_input(L, ids, L->ids);
    int64_t pad = lo_int(L, "padding_idx", -1);
    if (lo_bool(L, "scale_grad_by_freq", false)) return lo_fail(L, "an embedding with scale_grad_by_freq");
    lo_return(L, 0,
              pad >= 0 ? lo_op2(L, OP_embedding, w, ids, ATTRS(A_I("pad", pad)))
                       : lo_op2(L, OP_embedding, w, ids, NO_ATTRS));
}

/* ---- norms ----------------------------------------------------------------------------------------------- */

/* The rows to normalise as one last dimension; WEIGHT and BIAS likewise, filled in where absent. */
static ir_val rows(lower *L, ir_val x, int n, ir_type *back) {
    *back = *lo_type(L, x);
    if (n < 1 || n > back->rank) return lo_fail(L, "it normalises %d dimensions of %d", n, back->rank), -1;
    ir_dim size[IR_MAX_RANK];
    int lead = back->rank - n;
    for (int i = 0; i < lead; i++) size[i] = back->dim[i];
    size[lead] = 1;
    for (int i = lead; i < back->rank; i++) size[lead] = dim_mul(L->g, size[lead], back->dim[i]);
    return lo_reshape(L, x, lead + 1, size);
}

static ir_val row_weight(lower *L, const char *name, ir_val x, double absent) {
    const ir_type t = *lo_type(L, x);
    if (t.rank < 1) return -1;
    ir_val w = lo_optional_tensor(L, name);
    if (L->failed) return -1;
    return w < 0 ? lo_fill(L, t.t, absent, 1, &t.dim[t.rank - 1])
                 : lo_reshape(L, lo_cast(L, w, t.t), 1, &t.dim[t.rank - 1]);
}

static void layer_norm(lower *L, const lo_row *row) {
    (void)row;
    ir_dim shape[IR_MAX_RANK];
    int n = lo_sizes(L, "normalized_shape", IR_MAX_RANK, shape);
    ir_type t;
    ir_val x = rows(L, lo_tensor(L, "input"), n, &t);
    ir_val in[3] = {x, row_weight(L, "weight", x, 1), row_weight(L, "bias", x, 0)};
    ir_val y = lo_emit(L, OP_layernorm, in, 3, ATTRS(A_F("eps", lo_float(L, "eps", 1e-5))), NULL);
    lo_return(L, 0, lo_reshape(L, y, t.rank, t.dim));
    if (L->n->n_out < 2 || L->failed) return;
    /* native_layer_norm: mean and rstd keep their dimension */
    for (int i = t.rank - n; i < t.rank; i++) t.dim[i] = 1;
    lo_return(L, 1, lo_reshape(L, y + 1, t.rank, t.dim));
    if (L->n->n_out > 2) lo_return(L, 2, lo_reshape(L, y + 2, t.rank, t.dim));
}

static void rms_norm(lower *L, const lo_row *row) {
    (void)row;
    ir_dim shape[IR_MAX_RANK];
    int n = lo_sizes(L, "normalized_shape", IR_MAX_RANK, shape);
    ir_type t;
    ir_val x = rows(L, lo_tensor(L, "input"), n, &t), w = row_weight(L, "weight", x, 1);
    /* eps None is the machine epsilon of the type that PyTorch computes in: f32 for bf16 */
    double machine = t.t == DT_F64 ? 0x1p-52 : 0x1p-23;
    ir_val y = lo_op2(L, OP_rmsnorm, x, w, ATTRS(A_F("eps", lo_float(L, "eps", machine))));
    lo_return(L, 0, lo_reshape(L, y, t.rank, t.dim));
}

/* ---- dropout --------------------------------------------------------------------------------------------- */

/* The generator's state, an input of the graph, and the number of the next node that draws from it. */
static ir_val generator(lower *L, int64_t *id) {
    ir_val rng = -1;
    *id = 0;
    for (int i = 0; i < L->g->nodes.n; i++) {
        const ir_node *n = &L->g->nodes.data[i];
        if (n->op == OP_input && strcmp(ir_str(n, "name"), "rng") == 0) rng = n->out[0];
        *id += n->op == OP_dropout || (n->op == OP_attention && ir_float(n, "drop_p", 0) > 0);
    }
    ir_type state = {.t = DT_I64, .rank = 1, .dim = {3}};
    return rng >= 0 ? rng : lo_emit(L, OP_input, NULL, 0, ATTRS(A_S("name", "rng")), &state);
}

/* dropout(input, p, train): each active one draws from its own stream of one generator, the input `rng` */
static void dropout(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "input");
    double p = lo_float(L, "p", 0.5);
    if (!lo_bool(L, "train", true) || p == 0) {
        lo_return(L, 0, x);
        return;
    }
    int64_t id;
    ir_val rng = generator(L, &id);
    lo_return(L, 0, lo_op2(L, OP_dropout, x, rng, ATTRS(A_F("p", p), A_I("id", id))));
}

/* ---- attention ------------------------------------------------------------------------------------------- */

/* scaled_dot_product_attention: (B, H, S, D) operands; ours are (B, S, H, D). */
static void attention(lower *L, const lo_row *row) {
    (void)row;
    ir_val q = lo_tensor(L, "query"), k = lo_tensor(L, "key"), v = lo_tensor(L, "value");
    ir_val mask = lo_optional_tensor(L, "attn_mask");
    const ir_type t = *lo_type(L, q), tk = *lo_type(L, k);
    if (L->failed) return;
    if (t.rank != 4 || tk.rank != 4 || lo_type(L, v)->rank != 4)
        return lo_fail(L, "attention of rank %d; it must be (batch, heads, sequence, head size)", t.rank);
    int64_t d;
    if (!dim_value(L->g, t.dim[3], &d) || d < 1) return lo_fail(L, "attention with a head size that is not constant");
    /* one key head broadcasts; more than one, but fewer than query heads, must be asked for */
    if (t.dim[1] != tk.dim[1] && tk.dim[1] != 1 && !lo_bool(L, "enable_gqa", false))
        return lo_fail(L, "attention with fewer key than query heads, without enable_gqa");
    ir_attr attr[6];
    int n = 0;
    const char *side = "", *roles = "";
    attr[n++] = A_F("scale", lo_float(L, "scale", 1 / sqrt((double)d)));
    if (lo_bool(L, "is_causal", false)) attr[n++] = A_I("causal", 1);
    ir_val in[5] = {lo_swap(L, q, 1, 2), lo_swap(L, k, 1, 2), lo_swap(L, v, 1, 2)};
    int nin = 3;
    if (mask >= 0) {
        const ir_type m = *lo_type(L, mask);
        ir_dim size[4] = {1, 1, 1, 1};
        if (m.rank > 4) return lo_fail(L, "an attention mask of rank %d", m.rank);
        for (int i = 0; i < m.rank; i++) size[4 - m.rank + i] = m.dim[i];
        const ir_dim want[4] = {t.dim[0], t.dim[1], t.dim[2], tk.dim[2]};
        for (int i = 0; i < 4; i++)
            if (size[i] != 1 && size[i] != want[i]) return lo_fail(L, "an attention mask that does not fit the scores");
        in[nin++] = lo_reshape(L, m.t == DT_BOOL ? mask : lo_cast(L, mask, t.t), 4, size);
        side = "bhqk";
        roles = m.t == DT_BOOL ? "mask" : "bias";
    }
    double p = lo_float(L, "dropout_p", 0);
    if (p < 0 || p > 1) return lo_fail(L, "dropout with probability %g", p);
    if (p > 0) {
        int64_t id;
        in[nin++] = generator(L, &id);
        attr[n++] = A_F("drop_p", p);
        attr[n++] = A_I("drop_id", id);
        side = *side ? "bhqk r" : "r";
        roles = !*roles ? "rng" : *roles == 'm' ? "mask rng" : "bias rng";
    }
    if (*side) {
        attr[n++] = A_S("side", side);
        attr[n++] = A_S("roles", roles);
    }
    ir_val o = lo_emit(L, OP_attention, in, nin, attr, n, NULL);
    lo_return(L, 0, lo_swap(L, o, 1, 2));
    /* the efficient kernel's log-sum-exp has rows for the kernel's blocks; nothing forward reads it */
    if (L->n->n_out > 1 && !L->failed && !strstr(L->n->target, "_efficient_")) lo_return(L, 1, o + 1);
}

/* ---- losses ----------------------------------------------------------------------------------------------- */

enum { REDUCE_NONE, REDUCE_MEAN, REDUCE_SUM };

/* Do the labels reach V through a shift (a slice that drops the first, or padding)? */
static bool is_shifted(lower *L, ir_val v) {
    while (v >= 0) {
        const ir_node *n = ir_def(L->g, v);
        const ir_dim *range;
        if (n->op == OP_pad || n->op == OP_concat) return true;
        if (n->op == OP_slice && ir_dims(n, "range", &range) == 2 && range[0] != 0) return true;
        if (n->nin != 1) return false;
        v = n->in[0];
    }
    return false;
}

/* The class weight of each label, 0 where it is ignored; -1 without weights. */
static ir_val label_weights(lower *L, ir_val labels, int64_t ignore) {
    ir_val w = lo_optional_tensor(L, "weight");
    if (w < 0 || L->failed) return -1;
    if (lo_needs_grad(L, w)) return lo_fail(L, "class weights that need a gradient"), -1;
    ir_val valid = lo_with_number(L, OP_ne, labels, (double)ignore);
    ir_val at = lo_select(L, valid, labels, lo_number(L, DT_I64, 0));
    ir_val x = lo_emit(L, OP_take, (ir_val[]){w, at}, 2, NO_ATTRS, NULL);
    return lo_op2(L, OP_mul, x, lo_cast(L, valid, lo_type(L, x)->t), NO_ATTRS);
}

/* loss: per row, 0 where ignored, already weighted; weight: label_weights */
static void reduce_loss(lower *L, ir_val loss, ir_val labels, ir_val weight, int64_t ignore, int64_t how) {
    int dims[IR_MAX_RANK], n = lo_type(L, loss)->rank;
    if (how == REDUCE_NONE) return lo_return(L, 0, loss);
    for (int i = 0; i < n; i++) dims[i] = i;
    ir_val sum = lo_sum(L, loss, n, dims, false);
    if (how == REDUCE_SUM) return lo_return(L, 0, sum);
    if (weight < 0) weight = lo_cast(L, lo_with_number(L, OP_ne, labels, (double)ignore), lo_type(L, loss)->t);
    ir_val count = lo_sum(L, lo_cast(L, weight, lo_type(L, loss)->t), n, dims, false);
    lo_return(L, 0, lo_op2(L, OP_div, sum, count, NO_ATTRS));
    if (L->n->n_out > 1) lo_return(L, 1, count); /* nll_loss_forward's total weight */
}

static bool loss_arguments(lower *L, ir_val *logits, ir_val *labels) {
    *logits = lo_tensor(L, "self");
    *labels = lo_tensor(L, "target");
    const ir_type x = *lo_type(L, *logits), y = *lo_type(L, *labels);
    if (!L->failed && dtype_is_float(y.t)) lo_fail(L, "cross-entropy with probabilities as labels");
    if (!L->failed && (x.rank < 1 || x.rank != y.rank + 1))
        lo_fail(L, "cross-entropy of logits and labels that do not fit");
    if (L->failed) return false;
    *labels = lo_cast(L, *labels, DT_I64);
    if (L->one_input) *labels = lo_from_input(L, *labels, L->labels);
    if (L->one_input && lo_depends_on(L, *logits, L->labels))
        return lo_fail(L, "torch.export was given one tensor as input_ids and labels, and the model reads it in other "
                          "places than embeddings: give it labels=input_ids.clone()"),
               false;
    L->shift_seen |= is_shifted(L, *labels);
    if (x.rank > 2) { /* classes are dimension 1: put them last */
        int perm[IR_MAX_RANK];
        for (int i = 0; i < x.rank; i++) perm[i] = i == 0 ? 0 : i == x.rank - 1 ? 1 : i + 1;
        *logits = lo_permute(L, *logits, perm);
    }
    return !L->failed;
}

static void cross_entropy(lower *L, const lo_row *row) {
    (void)row;
    ir_val logits, labels;
    if (!loss_arguments(L, &logits, &labels)) return;
    int64_t ignore = lo_int(L, "ignore_index", -100);
    ir_val loss = lo_op2(L, OP_xent, logits, labels, ATTRS(A_I("ignore", ignore)));
    ir_val weight = label_weights(L, labels, ignore);
    double smooth = lo_float(L, "label_smoothing", 0);
    if (weight >= 0) loss = lo_op2(L, OP_mul, loss, lo_cast(L, weight, lo_type(L, loss)->t), NO_ATTRS);
    if (smooth != 0) { /* (1 - e) loss + e / classes * sum over classes of -w_c log p_c */
        const ir_type t = *lo_type(L, logits);
        int last = t.rank - 1;
        ir_val top = lo_rmax(L, lo_stop_grad(L, logits), 1, &last, true), off = lo_binary(L, OP_sub, logits, top);
        ir_val sum = lo_sum(L, lo_op1(L, OP_exp, off, NO_ATTRS), 1, &last, true);
        ir_val nlp = lo_binary(L, OP_sub, lo_op1(L, OP_log, sum, NO_ATTRS), off);
        ir_val w = lo_optional_tensor(L, "weight");
        if (w >= 0) nlp = lo_binary(L, OP_mul, nlp, lo_cast(L, w, t.t));
        ir_val mean = lo_sum(L, nlp, 1, &last, false);
        mean = lo_binary(L, OP_div, mean, lo_size_value(L, t.t, t.dim[last]));
        ir_val valid = lo_with_number(L, OP_ne, labels, (double)ignore);
        mean = lo_select(L, valid, lo_cast(L, mean, lo_type(L, loss)->t), lo_number(L, lo_type(L, loss)->t, 0));
        loss =
            lo_binary(L, OP_add, lo_with_number(L, OP_mul, loss, 1 - smooth), lo_with_number(L, OP_mul, mean, smooth));
    }
    reduce_loss(L, loss, labels, weight, ignore, lo_int(L, "reduction", REDUCE_MEAN));
}

/* Negative log likelihood of log-probabilities: minus the one at the label, 0 where ignored. */
static void nll_loss(lower *L, const lo_row *row) {
    (void)row;
    ir_val logp, labels;
    if (!loss_arguments(L, &logp, &labels)) return;
    int64_t ignore = lo_int(L, "ignore_index", -100);
    ir_val valid = lo_with_number(L, OP_ne, labels, (double)ignore);
    ir_type t = *lo_type(L, labels);
    ir_val at = lo_select(L, valid, labels, lo_number(L, DT_I64, 0));
    t.dim[t.rank] = 1;
    at = lo_reshape(L, at, t.rank + 1, t.dim);
    ir_val p = lo_op2(L, OP_gather, logp, at, ATTRS(A_I("dim", t.rank)));
    ir_val loss = lo_op1(L, OP_neg, lo_reshape(L, p, t.rank, t.dim), NO_ATTRS);
    loss = lo_select(L, valid, loss, lo_number(L, lo_type(L, loss)->t, 0));
    ir_val weight = label_weights(L, labels, ignore);
    if (weight >= 0) loss = lo_op2(L, OP_mul, loss, lo_cast(L, weight, lo_type(L, loss)->t), NO_ATTRS);
    reduce_loss(L, loss, labels, weight, ignore, lo_int(L, "reduction", REDUCE_MEAN));
}

const lo_row lower_nn[] = {
    {"aten.embedding.default", embedding, 0, 0},
    {"aten.layer_norm.default", layer_norm, 0, 0},
    {"aten.native_layer_norm.default", layer_norm, 0, 0},
    {"aten.rms_norm.default", rms_norm, 0, 0},
    {"aten._fused_rms_norm.default", rms_norm, 0, 0},
    {"aten.dropout.default", dropout, 0, ROW_MAYBE},
    {"aten.native_dropout.default", dropout, 0, 0},
    {"aten.scaled_dot_product_attention.default", attention, 0, 0},
    {"aten._scaled_dot_product_flash_attention_for_cpu.default", attention, 0, 0},
    {"aten._scaled_dot_product_efficient_attention.default", attention, 0, 0},
    {"aten.cross_entropy_loss.default", cross_entropy, 0, ROW_TYPE},
    {"aten.nll_loss.default", nll_loss, 0, ROW_TYPE},
    {"aten.nll_loss_nd.default", nll_loss, 0, ROW_TYPE},
    {"aten.nll_loss_forward.default", nll_loss, 0, ROW_TYPE},
    {NULL, NULL, 0, 0},
};
