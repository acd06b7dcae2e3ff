/* softmax.c - softmax over the last dimension, written out.
 *
 *     exp(z) / sum(exp(z))            =>  softmax(z)            (z minus anything per row is the same)
 *     exp(z - log(sum(exp(z))))       =>  softmax(z)            (the exponential of a log-softmax)
 * Attention is found by its softmax (attention.c), and only attention is evaluated without the scores of all pairs and
 * with keys behind the end of a padded sequence hidden. A maximum that is subtracted first cancels in the value and in
 * the gradient; softmax subtracts its own.
 */
#include "pass/rewrite.h"

/* z is x minus anything per row? x, else z */
static ir_val unshifted(const rw *r, ir_val z) {
    const ir_node *d = rw_def(r, z);
    return d->op == OP_sub && rw_per_row(r, d->in[1]) >= 0 ? d->in[0] : z;
}

/* v is a sum over the last dimension? What is summed, else -1 */
static ir_val summed(const rw *r, ir_val v) {
    const ir_dim *dims;
    const ir_node *s = rw_def(r, rw_unpadded(r, v));
    if (s->op != OP_sum || ir_dims(s, "dims", &dims) != 1) return -1;
    return dims[0] == rw_type(r, s->in[0])->rank - 1 ? s->in[0] : -1;
}

/* log(sum(exp(z))) over the last dimension? z */
static ir_val log_sum_exp(const rw *r, ir_val v) {
    if (!rw_is(r, v = rw_unpadded(r, v), OP_log)) return -1;
    const ir_val e = summed(r, rw_def(r, v)->in[0]);
    return e >= 0 && rw_is(r, e, OP_exp) ? rw_def(r, e)->in[0] : -1;
}

ir_val rw_log_softmax(const rw *r, ir_val v) {
    const ir_node *n = rw_def(r, v);
    if (n->op == OP_log && rw_is(r, n->in[0], OP_softmax)) {
        const ir_node *s = rw_def(r, n->in[0]);
        return ir_int(s, "dim", -1) == rw_type(r, v)->rank - 1 ? s->in[0] : -1;
    }
    if (n->op != OP_sub) return -1;
    ir_val lse = rw_per_row(r, n->in[1]), z = n->in[0];
    if (lse < 0) return -1;
    ir_val y = log_sum_exp(r, lse), m, c;
    if (y == z) return unshifted(r, z);
    const ir_node *a = rw_def(r, rw_unpadded(r, lse)); /* x - (lse(x - m) + m) */
    if (a->op != OP_add) return -1;
    for (int i = 0; i < 2; i++) {
        if ((y = log_sum_exp(r, a->in[i])) < 0 || !rw_is(r, y, OP_sub) || rw_def(r, y)->in[0] != z) continue;
        m = rw_per_row(r, rw_def(r, y)->in[1]);
        c = a->in[1 - i];
        if (m >= 0 && rw_unpadded(r, m) == rw_unpadded(r, c)) return z;
    }
    return -1;
}

bool rw_softmax(rw *r, const ir_node *n, ir_val *out) {
    ir_val x = -1;
    if (n->op == OP_exp) {
        x = rw_log_softmax(r, n->in[0]);
    } else if (n->op == OP_div && rw_is(r, n->in[0], OP_exp)) {
        const ir_val total = rw_per_row(r, n->in[1]);
        if (total >= 0 && summed(r, total) == n->in[0]) x = unshifted(r, rw_def(r, n->in[0])->in[0]);
    }
    if (x < 0) return false;
    const ir_type *t = rw_type(r, x), *y = rw_type(r, n->out[0]);
    if (t->t != y->t || !rw_dims_equal(t, y)) return false;
    out[0] = rw_op1(r, OP_softmax, x, ATTRS(A_I("dim", t->rank - 1)));
    return true;
}
