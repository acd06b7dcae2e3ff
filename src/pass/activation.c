/* activation.c - activations written out in primitive ops: silu, gelu, gelu_tanh, swiglu.
 *
 * A product is flattened to a number and factors, and the argument of tanh or erf is read as a polynomial in the other
 * factor, so that all ways of writing x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) match.
 */
#include "pass/rewrite.h"

#include <math.h>

enum { MAX_FACTORS = 6, DEGREE = 3 };

typedef struct product {
    double c;
    int n;
    ir_val factor[MAX_FACTORS];
} product;

static bool flatten(const rw *r, ir_val v, product *p) {
    const ir_node *n = rw_def(r, v);
    double c;
    if (rw_const(r, v, &c)) {
        p->c *= c;
        return true;
    }
    if (n->op == OP_mul && n->in[0] != n->in[1]) return flatten(r, n->in[0], p) && flatten(r, n->in[1], p);
    if (n->op == OP_neg) {
        p->c = -p->c;
        return flatten(r, n->in[0], p);
    }
    if (n->op == OP_div && rw_const(r, n->in[1], &c)) {
        p->c /= c;
        return flatten(r, n->in[0], p);
    }
    if (p->n == MAX_FACTORS) return false;
    p->factor[p->n++] = v;
    return true;
}

/* v as a polynomial in x; coefficients of x^0..x^DEGREE */
static bool polynomial(const rw *r, ir_val v, ir_val x, int depth, double *p) {
    double a[DEGREE + 1], b[DEGREE + 1], c;
    for (int i = 0; i <= DEGREE; i++) p[i] = 0;
    if (v == x) {
        p[1] = 1;
        return true;
    }
    if (rw_const(r, v, &c)) {
        p[0] = c;
        return true;
    }
    const ir_node *n = rw_def(r, v);
    if (depth > 16 || (n->op != OP_add && n->op != OP_sub && n->op != OP_mul && n->op != OP_div)) return false;
    if (!polynomial(r, n->in[0], x, depth + 1, a) || !polynomial(r, n->in[1], x, depth + 1, b)) return false;
    if (n->op == OP_add || n->op == OP_sub) {
        for (int i = 0; i <= DEGREE; i++) p[i] = n->op == OP_add ? a[i] + b[i] : a[i] - b[i];
        return true;
    }
    if (n->op == OP_div) {
        for (int i = 1; i <= DEGREE; i++)
            if (b[i] != 0) return false;
        for (int i = 0; i <= DEGREE; i++) p[i] = a[i] / b[0];
        return b[0] != 0;
    }
    for (int i = 0; i <= DEGREE; i++)
        for (int j = 0; j <= DEGREE; j++) {
            if (a[i] * b[j] == 0) continue;
            if (i + j > DEGREE) return false;
            p[i + j] += a[i] * b[j];
        }
    return true;
}

static bool near(double a, double b) { return fabs(a - b) <= 2e-6 * fabs(b); }

/* factors x and 1 + f(poly(x)) with number c: which activation of x? */
static bool gated_by(const rw *r, ir_val x, ir_val gate, double c, ir_op *op) {
    ir_val f;
    double one, p[DEGREE + 1];
    const double root = sqrt(2 / M_PI);
    if (rw_is(r, gate, OP_sigmoid)) {
        *op = OP_silu;
        return c == 1 && rw_def(r, gate)->in[0] == x;
    }
    if (!rw_with_const(r, gate, OP_add, &f, &one) || one != 1 || c != 0.5) return false;
    if (!rw_is(r, f, OP_tanh) && !rw_is(r, f, OP_erf)) return false;
    if (!polynomial(r, rw_def(r, f)->in[0], x, 0, p) || p[0] != 0 || p[2] != 0) return false;
    if (rw_is(r, f, OP_tanh)) {
        *op = OP_gelu_tanh;
        return near(p[1], root) && near(p[3], root * 0.044715);
    }
    *op = OP_gelu;
    return near(p[1], sqrt(0.5)) && p[3] == 0;
}

bool rw_activation(rw *r, const ir_node *n, ir_val *out) {
    if (n->op == OP_div) { /* x / (1 + exp(-x)) */
        ir_val e;
        double one;
        if (!rw_with_const(r, n->in[1], OP_add, &e, &one) || one != 1 || !rw_is(r, e, OP_exp)) return false;
        ir_val m = rw_def(r, e)->in[0];
        if (!rw_is(r, m, OP_neg) || rw_def(r, m)->in[0] != n->in[0]) return false;
        out[0] = rw_op1(r, OP_silu, n->in[0], NO_ATTRS);
        return true;
    }
    if (n->op != OP_mul) return false;
    for (int i = 0; i < 2; i++)
        if (rw_is(r, n->in[i], OP_silu)) {
            out[0] = rw_op2(r, OP_swiglu, rw_def(r, n->in[i])->in[0], n->in[1 - i], NO_ATTRS);
            return true;
        }
    product p = {.c = 1};
    ir_op op;
    if (!flatten(r, n->in[0], &p) || !flatten(r, n->in[1], &p) || p.n != 2) return false;
    for (int i = 0; i < 2; i++)
        if (gated_by(r, p.factor[i], p.factor[1 - i], p.c, &op)) {
            out[0] = rw_op1(r, op, p.factor[i], NO_ATTRS);
            return true;
        }
    return false;
}
