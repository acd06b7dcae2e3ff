/* lower_complex.c - complex tensors, as far as rotary embeddings are written with them: Meta's Llama multiplies pairs
 * of the heads by cos + i sin.
 *
 *     view_as_real(view_as_complex(x.reshape(..., -1, 2)) * polar(ones, angles))
 *
 * A complex tensor is two real values of the core IR, its parts, under one name (lo_value.v and .im). What only moves
 * elements is lowered once for each part. Products are written out; nothing else is supported. A complex buffer is
 * stored as pairs and comes as a real tensor with a last dimension of 2 (pt2_weights.c).
 */
#include "import/lower.h"

/* Part K of pairs in the last dimension. */
static ir_val part(lower *L, ir_val pairs, int k) {
    const ir_type t = *lo_type(L, pairs);
    int64_t two;
    if (t.rank < 1 || !dim_value(L->g, t.dim[t.rank - 1], &two) || two != 2) {
        lo_fail(L, "its last dimension does not hold pairs");
        return -1;
    }
    return lo_reshape(L, lo_slice(L, pairs, t.rank - 1, dim_const(L->g, k), dim_const(L->g, k + 1), 1), t.rank - 1,
                      t.dim);
}

static void return_parts(lower *L, ir_val re, ir_val im) {
    L->part = LO_REAL;
    lo_return(L, 0, re);
    L->part = LO_IMAGINARY;
    lo_return(L, 0, im);
    L->part = LO_WHOLE;
}

static ir_val read_part(lower *L, const char *name, lo_part p) {
    L->part = p;
    ir_val v = lo_tensor(L, name);
    L->part = LO_WHOLE;
    return v;
}

static void view_as_complex(lower *L, const lo_row *row) {
    (void)row;
    ir_val x = lo_tensor(L, "self");
    return_parts(L, part(L, x, 0), part(L, x, 1));
}

static void view_as_real(lower *L, const lo_row *row) {
    (void)row;
    if (!lo_is_complex(L)) return lo_fail(L, "its operand is not complex");
    ir_val x[2] = {read_part(L, "self", LO_REAL), read_part(L, "self", LO_IMAGINARY)};
    ir_type t = *lo_type(L, x[0]);
    if (L->failed || t.rank >= IR_MAX_RANK) return lo_fail(L, "a complex tensor of rank %d", t.rank);
    t.dim[t.rank++] = 1;
    for (int k = 0; k < 2; k++) x[k] = lo_reshape(L, x[k], t.rank, t.dim);
    lo_return(L, 0, lo_emit(L, OP_concat, x, 2, ATTRS(A_I("dim", t.rank - 1)), NULL));
}

/* polar(abs, angle) = abs cos(angle) + i abs sin(angle) */
static void polar(lower *L, const lo_row *row) {
    (void)row;
    ir_val r = lo_tensor(L, "abs"), a = lo_tensor(L, "angle");
    return_parts(L, lo_binary(L, OP_mul, r, lo_op1(L, OP_cos, a, NO_ATTRS)),
                 lo_binary(L, OP_mul, r, lo_op1(L, OP_sin, a, NO_ATTRS)));
}

/* complex(real, imag) */
static void from_parts(lower *L, const lo_row *row) {
    (void)row;
    return_parts(L, lo_tensor(L, "real"), lo_tensor(L, "imag"));
}

void lo_complex_bind(lower *L, const char *name, ir_val pairs, lo_value value) {
    value.v = part(L, pairs, 0);
    value.im = part(L, pairs, 1);
    value.complex = true;
    if (!L->failed) lo_bind(L, name, value);
}

/* (a + bi)(c + di) = ac - bd + (ad + bc)i; a real factor has no b or d. */
static void multiply(lower *L) {
    const lo_value *v[2] = {NULL, NULL};
    static const char *const names[2] = {"self", "other"};
    ir_val re[2], im[2];
    for (int k = 0; k < 2; k++) {
        const pt2_arg *a = lo_arg(L, names[k]);
        if (a && a->kind == PT2_TENSOR) v[k] = lo_find(L, a->name);
        if (!v[k] || v[k]->kind != LO_TENSOR) return lo_fail(L, "a complex product with something that is no tensor");
        re[k] = v[k]->v, im[k] = v[k]->complex ? v[k]->im : -1;
        if (!dtype_is_float(lo_type(L, re[k])->t)) return lo_fail(L, "a complex product with integers");
    }
    dtype t = lo_type(L, re[0])->t == DT_F64 || lo_type(L, re[1])->t == DT_F64 ? DT_F64 : DT_F32;
    for (int k = 0; k < 2; k++) {
        re[k] = lo_cast(L, re[k], t);
        if (im[k] >= 0) im[k] = lo_cast(L, im[k], t);
    }
    if (im[0] < 0 || im[1] < 0) {
        int c = im[0] < 0;
        return return_parts(L, lo_binary(L, OP_mul, re[c], re[1 - c]), lo_binary(L, OP_mul, im[c], re[1 - c]));
    }
    ir_val x = lo_binary(L, OP_sub, lo_binary(L, OP_mul, re[0], re[1]), lo_binary(L, OP_mul, im[0], im[1]));
    ir_val y = lo_binary(L, OP_add, lo_binary(L, OP_mul, re[0], im[1]), lo_binary(L, OP_mul, im[0], re[1]));
    return_parts(L, x, y);
}

static bool complex_name(lower *L, const char *name) {
    const lo_value *v = name ? lo_find(L, name) : NULL;
    return v && v->kind == LO_TENSOR && v->complex;
}

bool lo_is_complex(lower *L) {
    for (int i = 0; i < L->n->n_in; i++) {
        const pt2_arg *a = &L->n->in[i].arg;
        if (a->kind == PT2_TENSOR && complex_name(L, a->name)) return true;
        for (int k = 0; a->kind == PT2_TENSORS && k < a->n; k++)
            if (complex_name(L, a->names[k])) return true;
    }
    return false;
}

void lo_complex(lower *L, bool inplace) {
    static const char *const moves[] = {"aten.clone.default",  "aten.cat.default",          "aten.stack.default",
                                        "aten.index.Tensor",   "aten.index_select.default", "aten._unsafe_view.default",
                                        "aten.repeat.default", "aten._to_copy.default"};
    bool moved = L->row->flags & (ROW_VIEW | ROW_MAYBE);
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) moved |= !strcmp(L->row->target, moves[i]);
    if (L->row->fn == view_as_real) return view_as_real(L, L->row);
    if (!inplace && !strcmp(L->row->target, "aten.mul.Tensor")) return multiply(L);
    if (inplace || !moved || L->row->fn == view_as_complex)
        return lo_fail(L, "complex numbers are supported as rotary embeddings need them: views, products and "
                          "view_as_real; write this with real numbers");
    for (int p = LO_REAL; p <= LO_IMAGINARY; p++) {
        L->part = (lo_part)p;
        L->row->fn(L, L->row);
    }
    L->part = LO_WHOLE;
}

const lo_row lower_complex[] = {
    {"aten.view_as_complex.default", view_as_complex, 0, ROW_VIEW},
    {"aten.view_as_real.default", view_as_real, 0, ROW_VIEW},
    {"aten.polar.default", polar, 0, 0},
    {"aten.complex.default", from_parts, 0, 0},
    {NULL, NULL, 0, 0},
};
