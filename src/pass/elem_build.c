/* elem_build.c - element expressions back into graph values, each with only the dimensions that it depends on. */
#include "pass/elem.h"

typedef struct builder {
    elem_ctx *c;
    rw *r;
    int n;
    const ex *vars;
    ir_dim ext[IR_MAX_RANK];
} builder;

static ir_val build(const builder *b, ex e);

/* number of the variable that e is, or -1 */
static int which(const builder *b, ex e) {
    for (int i = 0; i < b->n; i++)
        if (b->vars[i] == e) return i;
    return -1;
}

static ir_val splat(const builder *b, dtype t, double v) {
    ir_type type = {.t = t, .rank = b->n};
    for (int i = 0; i < b->n; i++) type.dim[i] = 1;
    return rw_splat(b->r, &type, v);
}

/* Expands values to the shape they have together. */
static void broadcast(const builder *b, ir_val *x, int n) {
    ir_dim dim[IR_MAX_RANK] = {0};
    for (int d = 0; d < b->n; d++) {
        dim[d] = 1;
        for (int i = 0; i < n; i++)
            if (rw_type(b->r, x[i])->dim[d] != 1) dim[d] = rw_type(b->r, x[i])->dim[d];
    }
    for (int i = 0; i < n; i++) x[i] = rw_expand(b->r, x[i], b->n, dim);
}

static ir_val binary(const builder *b, ir_op op, ir_val x, ir_val y) {
    ir_val in[2] = {x, y};
    if (x < 0 || y < 0) return -1;
    broadcast(b, in, 2);
    return rw_op2(b->r, op, in[0], in[1], NO_ATTRS);
}

/* The sum of the terms whose coefficients have the given sign, made positive; the constant if it has that sign. */
static ir_val side(const builder *b, const lin *l, int sign) {
    ir_val sum = -1;
    for (int i = 0; i < l->n; i++) {
        int64_t k = l->coef[i] * sign;
        if (k < 0) continue;
        ir_val t = build(b, l->arg[i]);
        if (t < 0) return -1;
        t = rw_cast(b->r, t, DT_I64);
        if (k != 1) t = binary(b, OP_mul, t, splat(b, DT_I64, (double)k));
        sum = sum < 0 ? t : binary(b, OP_add, sum, t);
    }
    if (l->c * sign > 0 || sum < 0) {
        ir_val k = splat(b, DT_I64, l->c * sign > 0 ? (double)(l->c * sign) : 0);
        sum = sum < 0 ? k : binary(b, OP_add, sum, k);
    }
    return sum;
}

static bool has_sign(const lin *l, int sign) {
    bool has = l->c * sign > 0;
    for (int i = 0; i < l->n; i++) has |= l->coef[i] * sign > 0;
    return has;
}

static ir_val compare_sides(const builder *b, ir_op op, ex form) {
    lin l = ex_lin(b->c, form);
    ir_val p = side(b, &l, 1), m = side(b, &l, -1);
    return p < 0 || m < 0 ? -1 : binary(b, op, p, m);
}

/* Element idx of v: slices where the indices are variables or numbers, else a look-up. */
static ir_val element(const builder *b, const ex_node *n) {
    rw *r = b->r;
    const ir_type t = *rw_type(r, n->v);
    int at[IR_MAX_RANK] = {0};
    bool used[IR_MAX_RANK] = {false}, plain = true;
    ir_val v = n->v;
    for (int d = 0; d < t.rank && plain; d++) { /* var + number, or a number */
        lin l = ex_lin(b->c, n->arg[d]);
        at[d] = -1;
        ir_dim start = dim_const(r->g, l.c), len = 1;
        if (l.n == 1) {
            at[d] = which(b, l.arg[0]);
            plain = at[d] >= 0 && l.coef[0] == 1 && !used[at[d]] && l.c >= 0;
            if (!plain) break;
            used[at[d]] = true;
            len = b->ext[at[d]];
        } else {
            plain = l.n == 0 && l.c >= 0;
        }
        if (plain && !(start == 0 && len == rw_type(r, v)->dim[d])) {
            int64_t room;
            plain =
                dim_value(r->g, dim_sub(r->g, rw_type(r, v)->dim[d], dim_add(r->g, start, len)), &room) && room >= 0;
            if (plain) v = rw_slice(r, v, d, start, dim_add(r->g, start, len));
        }
    }
    if (plain) {
        int perm[IR_MAX_RANK] = {0}, k = 0;
        ir_dim dim[IR_MAX_RANK] = {0};
        for (int i = 0; i < b->n; i++) {
            dim[i] = 1;
            for (int d = 0; d < t.rank; d++)
                if (at[d] == i) {
                    perm[k++] = d;
                    dim[i] = rw_type(r, v)->dim[d];
                }
        }
        for (int d = 0; d < t.rank; d++)
            if (at[d] < 0) perm[k++] = d;
        return rw_reshape(r, rw_permute(r, v, perm), b->n, dim);
    }
    if (r->trainable.data[n->v] || t.rank == 0) return -1; /* take has no gradient */
    ir_val in[IR_MAX_RANK + 1] = {0}, out[IR_MAX_OUT];
    for (int d = 0; d < t.rank; d++) {
        in[d + 1] = build(b, n->arg[d]);
        if (in[d + 1] < 0) return -1;
        in[d + 1] = rw_cast(r, in[d + 1], DT_I64);
    }
    broadcast(b, in + 1, t.rank);
    in[0] = n->v;
    rw_emit(r, OP_take, in, t.rank + 1, NO_ATTRS, NULL, out);
    return out[0];
}

static ir_val build(const builder *b, ex e) {
    const ex_node n = *ex_get(b->c, e);
    rw *r = b->r;
    ir_val in[3] = {0}, out[IR_MAX_OUT];
    switch (n.kind) {
    case EX_NUM:
        return splat(b, n.t, n.num);
    case EX_VAR: {
        int i = which(b, e);
        ir_type t = {.t = DT_I64, .rank = b->n};
        if (i < 0) return -1;
        for (int d = 0; d < b->n; d++) t.dim[d] = d == i ? b->ext[i] : 1;
        const ir_attr attr[2] = {A_I("dim", i), A_I("seq", 1)};
        char letter = elem_letter(b->c, e);
        bool seq = (letter == 'q' || letter == 'k') && rw_is_seq(r, b->ext[i]);
        rw_emit(r, OP_iota, NULL, 0, attr, seq ? 2 : 1, &t, out);
        return out[0];
    }
    case EX_SIZE: {
        ir_type t = {.t = DT_I64};
        ir_dim ones[IR_MAX_RANK];
        for (int d = 0; d < b->n; d++) ones[d] = 1;
        rw_emit(r, OP_dimval, NULL, 0, ATTRS(A_D("dims", 1, (ir_dim *)&n.dim)), &t, out);
        return rw_reshape(r, out[0], b->n, ones);
    }
    case EX_LIN: {
        lin l = ex_lin(b->c, e);
        ir_val p = side(b, &l, 1);
        return has_sign(&l, -1) ? binary(b, OP_sub, p, side(b, &l, -1)) : p;
    }
    case EX_ELEM:
        return element(b, &n);
    case EX_GE0:
        return compare_sides(b, OP_ge, n.arg[0]);
    case EX_EQ0:
        return compare_sides(b, OP_eq, n.arg[0]);
    case EX_OP:
        for (int i = 0; i < n.n; i++)
            if ((in[i] = build(b, n.arg[i])) < 0) return -1;
        broadcast(b, in, n.n);
        ir_type t = {.t = n.t};
        rw_emit(r, n.op, in, n.n, NO_ATTRS, &t, out);
        return out[0];
    }
    return -1;
}

ir_val elem_build(elem_ctx *c, ex e, rw *r, int n, const ex *vars) {
    builder b = {.c = c, .r = r, .n = n, .vars = vars};
    for (int i = 0; i < n; i++) b.ext[i] = ex_get(c, vars[i])->dim;
    return build(&b, e);
}
