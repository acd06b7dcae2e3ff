/* raise.c - computes tables in the order in which they are used, instead of transposing them.
 *
 * Views sink (sink.c), so a rotary table that a model computes as (D, S) ends in a transpose, which at long sequences
 * is a copy of the whole table. Where everything above the transpose is element-wise work on repeated vectors, it
 * can be done in the other order from the start: vectors have no order.
 *     permute(cos(concat(a, a)))  a = mul(expand(f: D,1), expand(i: 1,S))   =>   cos(concat(a', a'))  a' of (S, D)
 * Only values without a gradient are treated. Nothing above has a transpose afterwards, so sinking does not undo it.
 */
#include "pass/rewrite.h"

/* v with dimension i of the result being dimension perm[i] of v; -1: it would need a transpose or too much work */
static ir_val reordered(rw *r, ir_val v, const int *perm, int depth) {
    const ir_node n = *rw_def(r, v);
    const ir_type t = *rw_type(r, v);
    ir_val in[3], out[IR_MAX_OUT];
    view w;
    view_of(r, v, VIEW_CHAIN, &w);
    if (w.norder <= 1) { /* one vector, repeated */
        view z = w;
        int k = 0;
        for (int d = 0; d < t.rank; d++) {
            z.first[d] = k;
            for (int i = w.first[perm[d]]; i < w.first[perm[d] + 1]; i++) z.atom[k++] = w.atom[i];
        }
        z.first[t.rank] = k;
        return view_build(r, &z);
    }
    if (depth > 12 || n.nin < 1 || n.nin > 3) return -1;
    if (n.op == OP_concat) {
        ir_dim dim = ir_int(&n, "dim", 0);
        for (int d = 0; d < t.rank; d++)
            if (perm[d] == ir_int(&n, "dim", 0)) dim = d;
        for (int i = 0; i < n.nin; i++)
            if ((in[i] = reordered(r, n.in[i], perm, depth + 1)) < 0) return -1;
        rw_emit(r, OP_concat, in, n.nin, ATTRS(A_I("dim", dim)), NULL, out);
        return out[0];
    }
    if (!(op_table[n.op].flags & F_ELT) || n.nout != 1) return -1;
    for (int i = 0; i < n.nin; i++)
        if ((in[i] = reordered(r, n.in[i], perm, depth + 1)) < 0) return -1;
    ir_type want = {.t = t.t, .rank = t.rank};
    for (int d = 0; d < t.rank; d++) want.dim[d] = t.dim[perm[d]];
    rw_emit(r, n.op, in, n.nin, n.attr, n.nattr, &want, out);
    return out[0];
}

bool rw_raise(rw *r, const ir_node *n, ir_val *out) {
    if (n->op != OP_permute && n->op != OP_reshape) return false;
    view w;
    view_of(r, n->out[0], VIEW_CHAIN, &w);
    if (!w.chain || view_broadcasts(&w) || !view_whole(&w) || r->trainable.data[w.base]) return false;
    const ir_node *b = rw_def(r, w.base);
    if (b->op != OP_concat && !(op_table[b->op].flags & F_ELT)) return false;
    const ir_type *t = rw_type(r, w.base);
    int perm[IR_MAX_RANK], k = 0;
    bool moved = false;
    for (int d = 0; d < t->rank; d++)
        if (t->dim[d] == 1) perm[k++] = d;
    for (int i = 0; i < w.first[w.rank]; i++) {
        int o = 0;
        while (w.order[o].id != w.atom[i].id) o++;
        moved |= o != i;
        perm[k++] = w.order[o].dim;
    }
    if (!moved || k != t->rank) return false;
    ir_val v = reordered(r, w.base, perm, 0);
    if (v < 0) return false;
    const ir_type *to = rw_type(r, n->out[0]);
    out[0] = rw_reshape(r, v, to->rank, to->dim);
    return true;
}
