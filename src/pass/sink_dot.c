/* sink_dot.c - views and short slices move below a dot: the part of sink.c that knows dot's dimension numbers.
 *
 * Operands that are transposed, flattened or split into batches are used as they were before that: order and merging go
 * into the numbers, and what is left becomes a view of the result.
 *     dot(reshape(x: B,S,D -> B*S,D), permute(w: D,N -> N,D))  =>  reshape(dot(x, w: lc=[2] rc=[0]))
 */
#include "pass/rewrite.h"

/* Where a dimension of dot's result comes from: operand and dimension. */
typedef struct origin {
    int side, dim;
} origin;

static int dot_origins(const rw *r, const ir_node *n, const ir_dim *lc, const ir_dim *rc, int nc, const ir_dim *lb,
                       const ir_dim *rb, int nb, origin *o) {
    int k = 0;
    for (int i = 0; i < nb; i++) o[k++] = (origin){0, (int)lb[i]};
    for (int side = 0; side < 2; side++)
        for (int d = 0; d < rw_type(r, n->in[side])->rank; d++) {
            bool used = false;
            for (int i = 0; i < nc; i++) used |= (side ? rc : lc)[i] == d;
            for (int i = 0; i < nb; i++) used |= (side ? rb : lb)[i] == d;
            if (!used) o[k++] = (origin){side, d};
        }
    return k;
}

/* dims of the base that make up dimension d of the (whole, not broadcasting) view, in the result's order */
static int base_dims(const view *w, int d, int *dims) {
    int n = 0;
    for (int i = w->first[d]; i < w->first[d + 1]; i++) {
        int k = 0;
        while (w->order[k].id != w->atom[i].id) k++;
        dims[n++] = w->order[k].dim;
    }
    return n;
}

/* Merges the base dimensions that make up dimension d of w already in the base, where they are neighbours. */
static bool merge_first(rw *r, view *w, int d) {
    int ds[VIEW_ATOMS] = {0}, k = base_dims(w, d, ds);
    const ir_type t = *rw_type(r, w->base);
    for (int i = 1; i < k; i++)
        if (ds[i] != ds[i - 1] + 1) return false;
    ir_dim dims[IR_MAX_RANK] = {0};
    int to[IR_MAX_RANK], n = 0;
    for (int i = 0; i < t.rank; i++) {
        bool joins = i > ds[0] && i <= ds[k - 1];
        if (joins)
            dims[n - 1] = dim_mul(r->g, dims[n - 1], t.dim[i]);
        else
            dims[n++] = t.dim[i];
        to[i] = n - 1;
    }
    view id, old = *w;
    view_identity(r, rw_reshape(r, w->base, n, dims), &id);
    *w = id;
    w->chain = old.chain;
    w->rank = old.rank;
    int m = 0;
    for (int e = 0; e < old.rank; e++) {
        w->first[e] = m;
        int es[VIEW_ATOMS], c = base_dims(&old, e, es);
        for (int i = 0; i < c; i++)
            if (i == 0 || to[es[i]] != to[es[i - 1]]) w->atom[m++] = id.atom[id.first[to[es[i]]]];
    }
    w->first[old.rank] = m;
    return true;
}

/* Contracted dimensions that are several in one operand and one in the other become one in both. */
static bool match_contractions(rw *r, const ir_node *n, view *w) {
    const ir_dim *c[2];
    int nc = ir_dims(n, "lc", &c[0]), ds[VIEW_ATOMS];
    ir_dims(n, "rc", &c[1]);
    for (int i = 0; i < nc; i++) {
        int kl = base_dims(&w[0], (int)c[0][i], ds), kr = base_dims(&w[1], (int)c[1][i], ds);
        if (kl == kr) continue;
        if (kl > 1 && !merge_first(r, &w[0], (int)c[0][i])) return false;
        if (kr > 1 && !merge_first(r, &w[1], (int)c[1][i])) return false;
    }
    return true;
}

static bool sink_dot_with(rw *r, const ir_node *n, const view *w, ir_val *out) {
    const ir_dim *c[2], *b[2];
    int nc = ir_dims(n, "lc", &c[0]), nb = ir_dims(n, "lb", &b[0]);
    ir_dims(n, "rc", &c[1]);
    ir_dims(n, "rb", &b[1]);
    ir_dim nc_dims[2][IR_MAX_RANK], nb_dims[2][IR_MAX_RANK];
    int nnc = 0, nnb = 0;
    for (int i = 0; i < nc + nb; i++) {
        const ir_dim *const *which = i < nc ? c : b;
        int at = i < nc ? i : i - nc, ld[VIEW_ATOMS], rd[VIEW_ATOMS];
        int kl = base_dims(&w[0], (int)which[0][at], ld), kr = base_dims(&w[1], (int)which[1][at], rd);
        if (kl != kr) return false;
        for (int k = 0; k < kl; k++) {
            if (rw_type(r, w[0].base)->dim[ld[k]] != rw_type(r, w[1].base)->dim[rd[k]]) return false;
            if (i < nc) {
                nc_dims[0][nnc] = ld[k];
                nc_dims[1][nnc++] = rd[k];
            } else {
                nb_dims[0][nnb] = ld[k];
                nb_dims[1][nnb++] = rd[k];
            }
        }
    }
    if (nnc == 0) return false; /* a product without a sum: not a matrix product's job */
    /* dimensions of extent 1 only get in the way: the new operands do without them */
    ir_val in[2], res[1];
    int now[2][IR_MAX_RANK], rank = 0;
    for (int s = 0; s < 2; s++) {
        const ir_type t = *rw_type(r, w[s].base);
        ir_dim dims[IR_MAX_RANK];
        int kept = 0;
        for (int d = 0; d < t.rank; d++) {
            now[s][d] = kept;
            if (t.dim[d] != 1) dims[kept++] = t.dim[d];
        }
        rank += kept;
        in[s] = rw_reshape(r, w[s].base, kept, dims);
        for (int i = 0; i < nnc; i++) nc_dims[s][i] = now[s][nc_dims[s][i]];
        for (int i = 0; i < nnb; i++) nb_dims[s][i] = now[s][nb_dims[s][i]];
    }
    if (rank - 2 * nnc - nnb > IR_MAX_RANK) return false;
    rw_emit(r, OP_dot, in, 2,
            ATTRS(A_D("lc", nnc, nc_dims[0]), A_D("rc", nnc, nc_dims[1]), A_D("lb", nnb, nb_dims[0]),
                  A_D("rb", nnb, nb_dims[1])),
            NULL, res);
    /* the old result as a view of the new one */
    const ir_node fake = {.op = OP_dot, .nin = 2, .in = in};
    origin old_o[2 * IR_MAX_RANK], new_o[2 * IR_MAX_RANK];
    int no = dot_origins(r, n, c[0], c[1], nc, b[0], b[1], nb, old_o);
    int nn = dot_origins(r, &fake, nc_dims[0], nc_dims[1], nnc, nb_dims[0], nb_dims[1], nnb, new_o);
    const ir_type *nt = rw_type(r, res[0]);
    view v;
    view_identity(r, res[0], &v);
    ASSERT(nn == nt->rank);
    view ident = v;
    v.rank = no;
    int m = 0;
    for (int d = 0; d < no; d++) {
        int ds[VIEW_ATOMS], k = base_dims(&w[old_o[d].side], old_o[d].dim, ds);
        v.first[d] = m;
        for (int i = 0; i < k; i++)
            for (int e = 0; e < nn; e++)
                if (new_o[e].side == old_o[d].side && new_o[e].dim == now[old_o[d].side][ds[i]]) {
                    int a = ident.first[e];
                    ASSERT(ident.first[e + 1] == a + 1);
                    v.atom[m++] = ident.atom[a];
                }
    }
    v.first[no] = m;
    ASSERT(m == v.norder);
    out[0] = view_build(r, &v);
    return true;
}

/* Nothing for a dot to gain from w: it is the base, or drops dimensions of extent 1 and no more. */
static bool unit_view(const rw *r, const view *w) {
    if (view_trivial(r, w)) return true;
    for (int d = 0; d < w->rank; d++)
        if (w->first[d + 1] - w->first[d] != 1 || d >= w->norder || w->atom[w->first[d]].id != w->order[d].id)
            return false;
    return w->rank == w->norder;
}

/* Views of operands that only order and merge whole dimensions move below a dot: transposes go into its dimension
 * numbers, flattened rows and flattened batches come apart. */
static bool sink_dot(rw *r, const ir_node *n, ir_val *out) {
    for (int left = VIEW_CHAIN; left >= 0; left = left > 3 ? 3 : left - 1)
        for (int right = VIEW_CHAIN; right >= 0; right = right > 3 ? 3 : right - 1) {
            view w[2];
            view_of(r, n->in[0], left, &w[0]);
            view_of(r, n->in[1], right, &w[1]);
            bool same = true, ok = true;
            for (int s = 0; s < 2; s++) {
                same &= unit_view(r, &w[s]);
                ok &= view_whole(&w[s]) && !view_broadcasts(&w[s]);
            }
            if (same || !ok || !match_contractions(r, n, w)) continue;
            if (unit_view(r, &w[0]) && unit_view(r, &w[1])) continue; /* all there was were those */
            if (sink_dot_with(r, n, w, out)) return true;
        }
    return false;
}

static bool sink_slice_dot(rw *r, const ir_node *n, ir_val *out) {
    for (int s = 0; s < 2; s++) {
        int dim;
        ir_dim start, stop;
        ir_val x = rw_short_slice(r, n->in[s], &dim, &start, &stop);
        if (x < 0) continue;
        const ir_dim *lc, *rc, *lb, *rb;
        int nc = ir_dims(n, "lc", &lc), nb = ir_dims(n, "lb", &lb);
        ir_dims(n, "rc", &rc);
        ir_dims(n, "rb", &rb);
        origin o[2 * IR_MAX_RANK];
        int no = dot_origins(r, n, lc, rc, nc, lb, rb, nb, o);
        for (int d = nb; d < no; d++) {
            if (o[d].side != s || o[d].dim != dim) continue;
            ir_val in[2] = {n->in[0], n->in[1]};
            in[s] = x;
            ir_val y = rw_op2(r, OP_dot, in[0], in[1], n->attr, n->nattr);
            out[0] = rw_slice(r, y, d, start, stop);
            return true;
        }
    }
    return false;
}

bool rw_sink_dot(rw *r, const ir_node *n, ir_val *out) { return sink_dot(r, n, out) || sink_slice_dot(r, n, out); }
