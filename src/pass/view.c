/* view.c - reshape, permute and expand in one normal form, and the rule that puts every chain of them into it.
 *
 * A chain of views is a list of factors ("atoms") of the base's dimensions in another order and grouping, with
 * broadcast factors between them; that list says all there is to say, so two chains that mean the same build the
 * same nodes: reshape (split), permute, reshape (make room), expand, reshape (merge), each only where needed.
 *     permute(reshape(permute(x, [0,2,1,3])), [0,2,1]) and the like cancel to what is left of them.
 * Extents may be symbolic: a split needs one extent to divide the other exactly as expressions. A reshape whose
 * factors cannot be told apart is a base of its own.
 */
#include "pass/rewrite.h"

/* *q = a / b when that is exact */
static bool divides(ir_graph *g, ir_dim b, ir_dim a, ir_dim *q) {
    if (b == 0 || a == 0) return false;
    *q = dim_floordiv(g, a, b);
    return dim_mul(g, *q, b) == a;
}

void view_identity(const rw *r, ir_val base, view *w) {
    const ir_type *t = rw_type(r, base);
    memset(w, 0, sizeof *w);
    w->base = base;
    w->rank = t->rank;
    for (int d = 0; d < t->rank; d++) {
        w->first[d] = w->norder;
        if (t->dim[d] == 1) continue;
        w->order[w->norder].id = w->atom[w->norder].id = w->next_id++;
        w->order[w->norder].ext = w->atom[w->norder].ext = t->dim[d];
        w->order[w->norder].dim = d;
        w->norder++;
    }
    w->first[t->rank] = w->norder;
}

/* Splits atom i into (outer, inner). */
static bool split_atom(view *w, int i, ir_dim outer, ir_dim inner) {
    int n = w->first[w->rank];
    if (n + 1 > VIEW_ATOMS || w->norder + 1 > VIEW_ATOMS) return false;
    memmove(&w->atom[i + 1], &w->atom[i], sizeof *w->atom * (size_t)(n - i));
    w->atom[i].ext = outer;
    w->atom[i + 1].ext = inner;
    for (int d = 0; d <= w->rank; d++)
        if (w->first[d] > i) w->first[d]++;
    if (w->atom[i].id < 0) return true;
    int k = 0;
    while (w->order[k].id != w->atom[i].id) k++;
    memmove(&w->order[k + 1], &w->order[k], sizeof *w->order * (size_t)(w->norder - k));
    w->norder++;
    w->order[k].ext = outer;
    w->order[k + 1].ext = inner;
    w->order[k + 1].id = w->atom[i + 1].id = w->next_id++;
    return true;
}

/* Groups the atoms anew so that the result has shape `to`. */
static bool regroup(ir_graph *g, view *w, const ir_type *to) {
    int end = w->first[w->rank]; /* atoms from here on are given out */
    int count[IR_MAX_RANK];
    for (int d = to->rank - 1; d >= 0; d--) {
        ir_dim need = to->dim[d], q;
        count[d] = 0;
        while (need != 1) {
            if (end == 0) return false;
            ir_dim have = w->atom[end - 1].ext;
            if (divides(g, have, need, &q)) {
                need = q;
            } else if (divides(g, need, have, &q)) {
                if (!split_atom(w, end - 1, q, need)) return false;
                end++;
                need = 1;
            } else {
                return false;
            }
            end--;
            count[d]++;
        }
    }
    if (end != 0) return false;
    int total = 0;
    for (int d = 0; d < to->rank; d++) {
        w->first[d] = total;
        total += count[d];
    }
    w->rank = to->rank;
    w->first[to->rank] = total;
    return true;
}

static bool apply_permute(view *w, const ir_dim *perm) {
    view old = *w;
    int n = 0;
    for (int d = 0; d < w->rank; d++) {
        w->first[d] = n;
        for (int i = old.first[perm[d]]; i < old.first[perm[d] + 1]; i++) w->atom[n++] = old.atom[i];
    }
    return true;
}

static bool apply_expand(view *w, const ir_type *to) {
    view old = *w;
    int n = 0;
    for (int d = 0; d < w->rank; d++) {
        w->first[d] = n;
        int k = old.first[d + 1] - old.first[d];
        if (n + k + 1 > VIEW_ATOMS) return false;
        if (k) {
            memcpy(&w->atom[n], &old.atom[old.first[d]], sizeof *w->atom * (size_t)k);
            n += k;
        } else if (to->dim[d] != 1) {
            w->atom[n].id = -1;
            w->atom[n++].ext = to->dim[d];
        }
    }
    w->first[w->rank] = n;
    return true;
}

/* Neighbours that always go together become one atom. */
static void coalesce(ir_graph *g, view *w) {
    for (int d = 0; d < w->rank; d++)
        for (int i = w->first[d]; i + 1 < w->first[d + 1];) {
            int a = w->atom[i].id, b = w->atom[i + 1].id, k = 0;
            bool join = a < 0 && b < 0;
            if (a >= 0 && b >= 0) {
                while (w->order[k].id != a) k++;
                join = k + 1 < w->norder && w->order[k + 1].id == b && w->order[k].dim == w->order[k + 1].dim;
            }
            if (!join) {
                i++;
                continue;
            }
            ir_dim ext = dim_mul(g, w->atom[i].ext, w->atom[i + 1].ext);
            w->atom[i].ext = ext;
            int n = w->first[w->rank];
            memmove(&w->atom[i + 1], &w->atom[i + 2], sizeof *w->atom * (size_t)(n - i - 2));
            for (int e = 0; e <= w->rank; e++)
                if (w->first[e] > i) w->first[e]--;
            if (a < 0) continue;
            w->order[k].ext = ext;
            memmove(&w->order[k + 1], &w->order[k + 2], sizeof *w->order * (size_t)(w->norder - k - 2));
            w->norder--;
        }
}

void view_of(const rw *r, ir_val v, int limit, view *w) {
    int chain[VIEW_CHAIN], n = 0;
    ir_val base = v;
    while (n < limit && n < VIEW_CHAIN) {
        const ir_node *d = rw_def(r, base);
        if (d->op != OP_reshape && d->op != OP_permute && d->op != OP_expand) break;
        chain[n++] = r->g->values.data[base].node;
        base = d->in[0];
    }
    view_identity(r, base, w);
    while (n-- > 0) {
        const ir_node *d = &r->g->nodes.data[chain[n]];
        const ir_dim *perm;
        bool ok = false;
        if (d->op == OP_reshape) {
            ok = regroup(r->g, w, rw_type(r, d->out[0]));
        } else if (d->op == OP_permute) {
            ir_dims(d, "perm", &perm);
            ok = apply_permute(w, perm);
        } else {
            ok = apply_expand(w, rw_type(r, d->out[0]));
        }
        if (ok) {
            w->chain++;
        } else {
            view_identity(r, d->out[0], w);
        }
    }
    coalesce(r->g, w);
}

bool view_broadcasts(const view *w) {
    for (int i = 0; i < w->first[w->rank]; i++)
        if (w->atom[i].id < 0) return true;
    return false;
}

bool view_whole(const view *w) {
    for (int i = 1; i < w->norder; i++)
        if (w->order[i].dim == w->order[i - 1].dim) return false;
    return true;
}

int view_atom_of(const view *w, int dim) {
    for (int k = 0; k < w->norder; k++)
        if (w->order[k].dim == dim)
            for (int i = 0; i < w->first[w->rank]; i++)
                if (w->atom[i].id == w->order[k].id) return i;
    return -1;
}

bool view_same(const rw *r, const view *a, const view *b) {
    if (a->rank != b->rank || a->norder != b->norder || a->first[a->rank] != b->first[b->rank]) return false;
    if (!rw_dims_equal(rw_type(r, a->base), rw_type(r, b->base))) return false;
    for (int d = 0; d <= a->rank; d++)
        if (a->first[d] != b->first[d]) return false;
    for (int i = 0; i < a->first[a->rank]; i++) {
        int ka = 0, kb = 0;
        if (a->atom[i].ext != b->atom[i].ext || (a->atom[i].id < 0) != (b->atom[i].id < 0)) return false;
        if (a->atom[i].id < 0) continue;
        while (a->order[ka].id != a->atom[i].id) ka++;
        while (b->order[kb].id != b->atom[i].id) kb++;
        if (ka != kb || a->order[ka].dim != b->order[kb].dim) return false;
    }
    return true;
}

/* ---- building ---- */

typedef struct plan {
    int n;
    ir_op op[5];
    ir_type type[5];
    ir_dim perm[IR_MAX_RANK];
} plan;

static void plan_add(plan *p, ir_op op, const ir_type *t, ir_type *now) {
    if (op != OP_permute && ir_type_equal(t, now)) return;
    if (op == OP_reshape && p->n && p->op[p->n - 1] == OP_reshape) { /* two in a row are one */
        p->n--;
        *now = (ir_type){.rank = -1};
    }
    p->op[p->n] = op;
    p->type[p->n++] = *t;
    *now = *t;
}

/* The nodes that build w; false when they would need too many dimensions. */
static bool make_plan(const rw *r, const view *w, plan *p) {
    const ir_type *base = rw_type(r, w->base);
    ir_type now = *base, t = {.t = base->t};
    p->n = 0;
    int pos[VIEW_ATOMS], k = 0; /* of the base's factors in the result, in the result's order */
    bool moved = false;
    for (int i = 0; i < w->first[w->rank]; i++) {
        if (w->atom[i].id < 0) continue;
        for (pos[k] = 0; w->order[pos[k]].id != w->atom[i].id;) pos[k]++;
        moved |= k && pos[k] < pos[k - 1];
        k++;
    }
    ASSERT(k == w->norder);
    if (moved) {
        if (w->norder > IR_MAX_RANK) return false;
        t.rank = w->norder;
        for (int i = 0; i < w->norder; i++) t.dim[i] = w->order[i].ext;
        plan_add(p, OP_reshape, &t, &now);
        for (int i = 0; i < w->norder; i++) {
            p->perm[i] = pos[i];
            t.dim[i] = w->order[pos[i]].ext;
        }
        plan_add(p, OP_permute, &t, &now);
    }
    /* make room for the broadcast factors: runs of broadcast or of other atoms within a dimension */
    ir_type room = {.t = base->t}, full = {.t = base->t}, result = {.t = base->t, .rank = w->rank};
    bool bcast = false;
    for (int d = 0; d < w->rank; d++) {
        result.dim[d] = 1;
        int runs = 0;
        for (int i = w->first[d]; i < w->first[d + 1]; i++) {
            bool b = w->atom[i].id < 0;
            result.dim[d] = dim_mul(r->g, result.dim[d], w->atom[i].ext);
            bcast |= b;
            if (i == w->first[d] || b != (w->atom[i - 1].id < 0)) {
                if (room.rank == IR_MAX_RANK) return false;
                room.dim[room.rank++] = 1;
                full.dim[full.rank++] = 1;
                runs++;
            }
            if (!b) room.dim[room.rank - 1] = dim_mul(r->g, room.dim[room.rank - 1], w->atom[i].ext);
            full.dim[full.rank - 1] = dim_mul(r->g, full.dim[full.rank - 1], w->atom[i].ext);
        }
        if (runs == 0) {
            if (room.rank == IR_MAX_RANK) return false;
            room.dim[room.rank++] = 1;
            full.dim[full.rank++] = 1;
        }
    }
    if (bcast) {
        plan_add(p, OP_reshape, &room, &now);
        plan_add(p, OP_expand, &full, &now);
    }
    plan_add(p, OP_reshape, &result, &now);
    return true;
}

bool view_trivial(const rw *r, const view *w) {
    plan p;
    return make_plan(r, w, &p) && p.n == 0;
}

ir_val view_build(rw *r, const view *given) {
    view w = *given;
    coalesce(r->g, &w);
    plan p;
    bool ok = make_plan(r, &w, &p);
    ASSERT(ok); /* ranks are those of chains that were there, or smaller */
    ir_val v = w.base;
    for (int i = 0; i < p.n; i++)
        v = p.op[i] == OP_permute ? rw_raw(r, OP_permute, &v, 1, ATTRS(A_D("perm", p.type[i].rank, p.perm)), NULL)
                                  : rw_raw(r, p.op[i], &v, 1, NO_ATTRS, &p.type[i]);
    return v;
}

bool view_invert(rw *r, const view *w, ir_val y, ir_val *u) {
    view x;
    view_of(r, y, VIEW_CHAIN, &x);
    if (x.rank != w->rank) return false;
    /* cut y's atoms so that every atom of w is a run of them, and find each run */
    int begin[VIEW_ATOMS] = {0}, end[VIEW_ATOMS] = {0};
    for (int d = 0; d < w->rank; d++) {
        int i = x.first[d + 1];
        for (int a = w->first[d + 1] - 1; a >= w->first[d]; a--) {
            ir_dim need = w->atom[a].ext, q;
            if (w->atom[a].id < 0) return false;
            int last = i;
            while (need != 1) {
                if (i == x.first[d]) return false;
                ir_dim have = x.atom[i - 1].ext;
                if (divides(r->g, have, need, &q)) {
                    need = q;
                } else if (divides(r->g, need, have, &q)) {
                    if (!split_atom(&x, i - 1, q, need)) return false;
                    for (int b = a + 1; b < w->first[d + 1]; b++) {
                        begin[b]++;
                        end[b]++;
                    }
                    i++;
                    last++;
                    need = 1;
                } else {
                    return false;
                }
                i--;
            }
            begin[a] = i;
            end[a] = last;
        }
        if (i != x.first[d]) return false;
    }
    view z = {.base = x.base, .norder = x.norder, .next_id = x.next_id};
    memcpy(z.order, x.order, sizeof z.order);
    const ir_type *to = rw_type(r, w->base);
    z.rank = to->rank;
    int n = 0, k = 0;
    for (int d = 0; d < z.rank; d++) {
        z.first[d] = n;
        bool some = false, bcast = false;
        for (; k < w->norder && w->order[k].dim == d; k++) {
            int a = 0;
            while (w->atom[a].id != w->order[k].id) a++;
            for (int i = begin[a]; i < end[a]; i++) {
                z.atom[n++] = x.atom[i];
                some |= x.atom[i].id >= 0;
                bcast |= x.atom[i].id < 0;
            }
        }
        if (some && bcast) return false; /* a dimension that repeats data cannot be an expand alone */
    }
    z.first[z.rank] = n;
    coalesce(r->g, &z);
    plan p;
    if (!make_plan(r, &z, &p)) return false;
    *u = view_build(r, &z);
    return true;
}

/* ---- the rule ---- */

bool rw_views(rw *r, const ir_node *n, ir_val *out) {
    if (n->op != OP_reshape && n->op != OP_permute && n->op != OP_expand) return false;
    view w;
    view_of(r, n->out[0], VIEW_CHAIN, &w);
    if (!w.chain) return false;
    plan p;
    if (!make_plan(r, &w, &p)) return false;
    if (!ir_type_equal(p.n ? &p.type[p.n - 1] : rw_type(r, w.base), rw_type(r, n->out[0]))) return false;
    /* is it there already? */
    bool same = p.n == w.chain;
    ir_val v = n->out[0];
    for (int i = p.n - 1; same && i >= 0; i--) {
        const ir_node *d = rw_def(r, v);
        same = d->op == p.op[i] && ir_type_equal(rw_type(r, v), &p.type[i]);
        v = d->in[0];
    }
    if (same) return false;
    out[0] = view_build(r, &w);
    return true;
}
