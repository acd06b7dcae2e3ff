/* rotary.c - rotary position embedding (Su et al., arXiv 2104.09864), split-half form, from primitive ops.
 *
 *     x * cos + concat(-x[h:], x[:h]) * sin                      => rope(x, cos, sin)
 *     concat(x[:h] * c - x[h:] * s, x[h:] * c + x[:h] * s)       => rope(x, concat(c, c), concat(s, s))
 *
 * x is (B, S, H, D), or any order of S and H (then permutes go around); the tables repeat over heads. A partial
 * rotation is the same on a slice of the last dimension. The interleaved form (pairs 2i, 2i+1) stays as it is.
 */
#include "pass/rewrite.h"

/* A table (repeated over heads) as (B or 1, S, D) for x of rank 4 with heads at dimension `head`; -1 if it is none. */
static ir_val table(rw *r, ir_val v, int head) {
    view w;
    view_of(r, v, VIEW_CHAIN, &w);
    const ir_type *t = rw_type(r, v);
    int seq = 3 - head;
    if (w.first[head + 1] - w.first[head] > 1) return -1;
    if (w.first[head + 1] > w.first[head] && w.atom[w.first[head]].id >= 0) return -1;
    for (int d = 0; d < 4; d++)
        for (int i = w.first[d]; i < w.first[d + 1]; i++)
            if (d != head && d != 0 && w.atom[i].id < 0) return -1;
    bool per_batch = w.first[1] > w.first[0] && w.atom[w.first[0]].id >= 0;
    view z = {.base = w.base, .norder = w.norder, .next_id = w.next_id, .rank = 3};
    memcpy(z.order, w.order, sizeof z.order);
    const int from[3] = {0, seq, 3};
    int n = 0;
    for (int d = 0; d < 3; d++) {
        z.first[d] = n;
        for (int i = w.first[from[d]]; i < w.first[from[d] + 1]; i++)
            if (d > 0 || per_batch) z.atom[n++] = w.atom[i];
    }
    z.first[3] = n;
    (void)t;
    return view_build(r, &z);
}

static ir_val build(rw *r, ir_val x, ir_val cos, ir_val sin, int head) {
    static const int swap[4] = {0, 2, 1, 3};
    if (head == 1) x = rw_permute(r, x, swap);
    ir_val y = rw_op3(r, OP_rope, x, cos, sin, NO_ATTRS);
    return head == 1 ? rw_permute(r, y, swap) : y;
}

/* Are lo and hi the two halves of one range of the last dimension? The base and where the range begins and ends. */
static bool halves(const rw *r, ir_val lo, ir_val hi, ir_val *base, ir_dim *start, ir_dim *stop) {
    int last = rw_type(r, lo)->rank - 1;
    ir_dim a0, a1, b0, b1;
    ir_val a = rw_slice_of(r, lo, last, &a0, &a1), b = rw_slice_of(r, hi, last, &b0, &b1);
    *base = a;
    *start = a0;
    *stop = b1;
    return a == b && a1 == b0 && dim_sub(r->g, a1, a0) == dim_sub(r->g, b1, b0) && a1 != a0;
}

/* Is v the range [start, stop) of base's last dimension? */
static bool is_range(const rw *r, ir_val v, ir_val base, ir_dim start, ir_dim stop) {
    ir_dim a, b;
    ir_val x = rw_slice_of(r, v, rw_type(r, v)->rank - 1, &a, &b);
    if (x == base) return a == start && b == stop;
    return v == base && start == 0 && stop == rw_type(r, base)->dim[rw_type(r, base)->rank - 1];
}

/* x * cos + concat(-hi, lo) * sin */
static bool whole_form(rw *r, const ir_node *n, ir_val *out) {
    for (int i = 0; i < 2; i++) {
        const ir_node *a = rw_def(r, n->in[i]), *b = rw_def(r, n->in[1 - i]);
        if (a->op != OP_mul || b->op != OP_mul || rw_type(r, n->out[0])->rank != 4) return false;
        for (int k = 0; k < 2; k++) {
            ir_node rot = *rw_def(r, b->in[k]);
            if (rot.op != OP_concat || rot.nin != 2 || ir_int(&rot, "dim", 0) != 3) continue;
            if (!rw_is(r, rot.in[0], OP_neg)) continue;
            ir_val hi = rw_def(r, rot.in[0])->in[0], lo = rot.in[1], base, sin = b->in[1 - k];
            ir_dim start, stop;
            if (!halves(r, lo, hi, &base, &start, &stop)) continue;
            for (int m = 0; m < 2; m++) {
                ir_val x = a->in[m], cos = a->in[1 - m];
                if (!is_range(r, x, base, start, stop)) continue;
                for (int head = 2; head >= 1; head--) {
                    ir_val c = table(r, cos, head), s = table(r, sin, head);
                    if (c < 0 || s < 0 || !rw_dims_equal(rw_type(r, c), rw_type(r, s))) continue;
                    out[0] = build(r, x, c, s, head);
                    return true;
                }
            }
        }
    }
    return false;
}

/* p*q with p one of the two given values: the other factor, or -1 */
static ir_val times(const rw *r, ir_val v, ir_val p) {
    const ir_node *n = rw_def(r, v);
    if (n->op != OP_mul) return -1;
    return n->in[0] == p ? n->in[1] : n->in[1] == p ? n->in[0] : -1;
}

/* concat(lo * c - hi * s, hi * c + lo * s) */
static bool split_form(rw *r, const ir_node *n, ir_val *out) {
    if (n->nin != 2 || ir_int(n, "dim", 0) != 3 || rw_type(r, n->out[0])->rank != 4) return false;
    const ir_node *d = rw_def(r, n->in[0]), *s = rw_def(r, n->in[1]);
    if (d->op != OP_sub || s->op != OP_add) return false;
    ir_node first = *rw_def(r, d->in[0]);
    ir_val minus = d->in[1], sum[2] = {s->in[0], s->in[1]};
    if (first.op != OP_mul || !rw_is(r, minus, OP_mul)) return false;
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++) {
            ir_val lo = first.in[i], c = first.in[1 - i], hi = rw_def(r, minus)->in[k],
                   sn = rw_def(r, minus)->in[1 - k];
            ir_val base;
            ir_dim start, stop;
            if (!halves(r, lo, hi, &base, &start, &stop)) continue;
            bool ok = false;
            for (int m = 0; m < 2; m++) ok |= times(r, sum[m], hi) == c && times(r, sum[1 - m], lo) == sn;
            if (!ok) continue;
            for (int head = 2; head >= 1; head--) {
                ir_val ct = table(r, c, head), st = table(r, sn, head), full[2][1];
                if (ct < 0 || st < 0 || !rw_dims_equal(rw_type(r, ct), rw_type(r, st))) continue;
                rw_emit(r, OP_concat, (ir_val[]){ct, ct}, 2, ATTRS(A_I("dim", 2)), NULL, full[0]);
                rw_emit(r, OP_concat, (ir_val[]){st, st}, 2, ATTRS(A_I("dim", 2)), NULL, full[1]);
                out[0] = build(r, rw_slice(r, base, 3, start, stop), full[0][0], full[1][0], head);
                return true;
            }
        }
    return false;
}

bool rw_rotary(rw *r, const ir_node *n, ir_val *out) {
    if (n->op == OP_add) return whole_form(r, n, out);
    if (n->op == OP_concat) return split_form(r, n, out);
    return false;
}
