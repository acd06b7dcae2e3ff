/* save_plans.c - the plans of each class of segments that the searches choose from.
 *
 * Why three sets of the same plans: what a segment needs while it runs depends on what a later pass cuts into tiles,
 * which is not decided yet. So a plan's window is estimated whole, in tiles, and as nothing at all; searches try each
 * and the judge sees what comes of it (save_search.c). Plans that move values to the host are added to each set.
 *
 * Requires: a model built with `exact`. Keeps: the plans of remat_front, in its order; plans of the host behind them.
 */
#include "pass/save_impl.h"

#include <stdlib.h>

enum { PLANS = 64 }; /* kept for each class */

/* Adds plans that move values to the host. From the hull's plans only: the others differ from them by less than the
 * host changes. A moved value is charged its alignment in the host arena, and the window what prefetching brings in
 * early: a segment's host copies come back while the segment behind it, usually one like it, runs backward. */
static void add_host_plans(const save_model *m, const save_options *o, const remat_seg *s, remat_plans *plans) {
    enum { ALIGN = 256 };
    remat_plans some = {0};
    double fwd = 0, bwd = 0;
    for (int i = 0; i < s->nfwd; i++) fwd += s->fwd[i].seconds;
    for (int i = 0; i < s->nbwd; i++) bwd += s->bwd[i].seconds;
    for (int i = 0; i < plans->n; i++)
        if (plans->data[i].hull) vec_push(m->a, &some, plans->data[i]);
    int n = some.n;
    remat_offload(m->a, s, o->machine->host_bw, fwd, bwd, &some);
    for (int i = n; i < some.n; i++) {
        remat_plan *p = &some.data[i];
        p->window += p->host;
        for (int v = 0; v < s->nval; v++)
            if (p->saved[v] == REMAT_HOST) p->host += round_up(s->val[v].bytes, ALIGN) - s->val[v].bytes;
    }
    for (int i = n; i < some.n; i++) { /* those that no other plan beats */
        const remat_plan *x = &some.data[i];
        bool beaten = false;
        for (int j = 0; j < some.n && !beaten; j++) {
            const remat_plan *y = &some.data[j];
            bool as_good =
                y->bytes <= x->bytes && y->window <= x->window && y->seconds <= x->seconds && y->host <= x->host;
            bool better = y->bytes < x->bytes || y->window < x->window || y->seconds < x->seconds || y->host < x->host;
            beaten = as_good && (better || j < i);
        }
        if (!beaten) vec_push(m->a, plans, *x);
    }
}

static int by_size(const void *x, const void *y) {
    return (*(const int64_t *)x > *(const int64_t *)y) - (*(const int64_t *)x < *(const int64_t *)y);
}

/* Bytes above which a value is wider than most: a quarter more than the median. What the pass `tile` looks for. */
static int64_t wide_bytes(const save_model *m) {
    VEC(int64_t) size = {0};
    for (int k = 0; k < m->nseg; k++) {
        const remat_seg *s = &m->seg[k].s;
        for (int v = 0; v < s->nval; v++)
            if (s->val[v].root == v && s->val[v].bytes > 0) vec_push(m->a, &size, s->val[v].bytes);
    }
    if (!size.n) return INT64_MAX;
    qsort(size.data, (size_t)size.n, sizeof *size.data, by_size);
    return size.data[size.n / 2] + size.data[size.n / 2] / 4;
}

/* A segment's plans with the windows that tiles leave: a value wider than most never exists whole unless it is kept, so
 * it counts nothing. What counts is what no tile shrinks: the operands of attention, say, that wait for its backward
 * while the MLP's runs. The front then knows that late segments should rather keep attention's result than compute it
 * again, and that early ones, which run beside fewer kept values, need not. s NULL: nothing counts but what is kept. */
static remat_plans in_tiles(const save_model *m, const remat_seg *s, int64_t wide, const remat_plans *plans) {
    remat_plans out = *plans;
    out.data = arena_memdup(m->a, plans->data, sizeof *plans->data * (size_t)plans->n);
    remat_val *val = s ? arena_memdup(m->a, s->val, sizeof *s->val * (size_t)s->nval) : NULL;
    for (int k = 0; k < out.n; k++) {
        remat_plan *p = &out.data[k];
        p->window = p->bytes;
        if (s) {
            remat_seg narrow = *s;
            narrow.val = val;
            for (int v = 0; v < s->nval; v++)
                val[v].bytes = !p->saved[v] && s->val[v].bytes > wide ? 0 : s->val[v].bytes;
            remat_window(&narrow, p, NULL, NULL);
        }
        p->window += p->host;
    }
    return out;
}

remat_plans *save_leanest_on_host(const save_model *m, const remat_plans *plans) {
    remat_plans *out = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    for (int c = 0; c < m->ncls; c++) {
        const remat_plan *lean = NULL;
        for (int k = 0; k < plans[c].n; k++) {
            const remat_plan *x = &plans[c].data[k];
            if (!x->host) vec_push(m->a, &out[c], *x);
            if (x->host && (!lean || x->bytes < lean->bytes || (x->bytes == lean->bytes && x->host < lean->host)))
                lean = x;
        }
        if (lean) vec_push(m->a, &out[c], *lean);
    }
    return out;
}

sp_status save_plans_find(const save_model *m, const save_options *o, save_class_plans *out) {
    out->whole = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    out->tiled = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    out->bare = ARENA_ARRAY(m->a, remat_plans, m->ncls);
    int64_t wide = wide_bytes(m);
    for (int c = 0; c < m->ncls; c++) {
        const remat_seg *x = &m->seg[m->first[c]].s;
        remat_plans *p = &out->whole[c];
        TRY_NOTE(remat_front(m->a, x, PLANS, p), "save: segment %d of %d", m->first[c] + 1, m->nseg);
        if (o->host_memory > 0) add_host_plans(m, o, x, p);
        out->tiled[c] = in_tiles(m, x, wide, p);
        out->bare[c] = in_tiles(m, NULL, 0, p);
    }
    return SP_OK;
}
