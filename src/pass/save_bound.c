/* save_bound.c - bytes that every plan of a segment needs at once, however its row-wise parts are tiled.
 *
 * Attention and collectives need whole sequences of operands: no tile holds a part of them. While such an operator of
 * the backward runs, these are in memory, whole, under every plan:
 *   - its operands, its results, its workspace;
 *   - every value of the backward from which its operands come and which something that comes of its results still
 *     reads (the residual's gradient passes by attention): values of the backward are made once;
 *   - the segment's boundary, if something that comes of the results reads it: every plan keeps it.
 * Storage that is shared counts once, at the least that its users need.
 *
 * This is what makes the lower bound of the recomputation tight near the least feasible budget, where the kept bytes of
 * all layers alone leave too much room.
 */
#include "pass/save_impl.h"

typedef struct scan {
    const save_model *m;
    const save_seg *s;
    bool *before, *behind; /* by backward op: its results lead to the operator's operands; it reads what came of it */
    bool *led;             /* by value: led to the operands */
    bool *came;            /* by value: came of the results */
    int64_t *held;         /* by root: bytes */
} scan;

/* Of a value that is alive: no more than its storage, no more than itself (a window into wider rows may be copied out).
 */
static void hold(scan *x, int v) {
    const remat_val *val = x->s->s.val;
    if (val[v].flags & REMAT_FREE) return;
    int r = val[v].root;
    int64_t bytes = min64(val[r].bytes, ir_local_bytes(x->m->g, x->s->val[v]));
    x->held[r] = max64(x->held[r], bytes);
}

static int64_t at_op(scan *x, int op) {
    const remat_seg *s = &x->s->s;
    const remat_op *o = &s->bwd[op];
    memset(x->before, 0, (size_t)s->nbwd);
    memset(x->behind, 0, (size_t)s->nbwd);
    memset(x->led, 0, (size_t)s->nval);
    memset(x->came, 0, (size_t)s->nval);
    memset(x->held, 0, sizeof *x->held * (size_t)s->nval);
    for (int j = 0; j < o->nin; j++) x->led[o->in[j]] = true;
    for (int i = op - 1; i >= 0; i--) {
        const remat_op *p = &s->bwd[i];
        for (int j = 0; j < p->nout; j++) x->before[i] |= x->led[p->out[j]];
        for (int j = 0; x->before[i] && j < p->nin; j++) x->led[p->in[j]] = true;
    }
    for (int j = 0; j < o->nout; j++) x->came[o->out[j]] = true;
    for (int i = op + 1; i < s->nbwd; i++) {
        const remat_op *p = &s->bwd[i];
        for (int j = 0; j < p->nin; j++) x->behind[i] |= x->came[p->in[j]];
        for (int j = 0; x->behind[i] && j < p->nout; j++) x->came[p->out[j]] = true;
    }
    for (int j = 0; j < o->nin; j++) hold(x, o->in[j]);
    for (int j = 0; j < o->nout; j++) hold(x, o->out[j]);
    for (int i = op + 1; i < s->nbwd; i++)
        for (int j = 0; x->behind[i] && j < s->bwd[i].nin; j++) {
            int v = s->bwd[i].in[j];
            uint32_t f = s->val[v].flags;
            bool backward = x->m->kind[x->s->val[v]] == KIND_BACK;
            if ((backward && x->led[v]) || f & REMAT_INPUT) hold(x, v);
        }
    int64_t sum = x->m->scratch[x->s->bwd[op]];
    for (int v = 0; v < s->nval; v++) sum += x->held[v];
    return sum;
}

int64_t save_least_window(const save_model *m, int k) {
    const save_seg *s = &m->seg[k];
    arena *a = arena_new();
    scan x = {.m = m, .s = s};
    x.before = ARENA_ARRAY(a, bool, s->s.nbwd + 1);
    x.behind = ARENA_ARRAY(a, bool, s->s.nbwd + 1);
    x.led = ARENA_ARRAY(a, bool, s->s.nval + 1);
    x.came = ARENA_ARRAY(a, bool, s->s.nval + 1);
    x.held = ARENA_ARRAY(a, int64_t, s->s.nval + 1);
    int64_t most = 0;
    for (int i = 0; i < s->s.nbwd; i++) {
        ir_op op = m->g->nodes.data[s->bwd[i]].op;
        bool whole = op == OP_attention_grad || op_table[op].flags & F_COLL;
        if (whole) most = max64(most, at_op(&x, i));
    }
    arena_free(a);
    return most;
}
