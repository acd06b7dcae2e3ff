/* save.c - decides what is kept from the forward to the backward, what is computed again, and writes the graph.
 *
 * Why this algorithm: bytes alone do not decide (keeping the output of attention is worth more than keeping a norm's),
 * and neither do rules by operator (the same rule serves 8 GB and 80 GB). Seconds as the price of recomputing a value
 * and bytes as the price of keeping it make each layer's choice a minimum cut; all prices give a layer's front, a
 * dynamic program over the layers the front of the whole step (plan/remat.h). Which of its points is taken: see
 * save_search.c.
 *
 * Here: the policies that are one plan, the report, and the entry. The other policies are plans of the same machinery,
 * for comparison: see save.h.
 *
 * Requires: a bound joint graph whose forward nodes have tag 0 and backward nodes tag 1 (pass_diff). Gives: the same
 * results, bit by bit; recomputing nodes have tag 2. Keeps: leaves, outputs, the order of forward and of backward
 * nodes.
 */
#include "pass/save.h"
#include "pass/save_impl.h"

#include <math.h>

remat_plan save_keep_all(arena *a, const remat_seg *s) {
    remat_plan p = {.saved = ARENA_ARRAY(a, uint8_t, s->nval)};
    uint8_t *made = ARENA_ARRAY(a, uint8_t, s->nval);
    for (int i = 0; i < s->nfwd; i++)
        for (int j = 0; j < s->fwd[i].nout; j++) made[s->fwd[i].out[j]] = 1;
    for (int i = 0; i < s->nbwd; i++)
        for (int j = 0; j < s->bwd[i].nin; j++) {
            int r = s->val[s->bwd[i].in[j]].root;
            if (made[r] && !(s->val[r].flags & (REMAT_FREE | REMAT_OUT))) p.saved[r] = REMAT_DEVICE;
        }
    return p;
}

/* Nothing but the boundary is kept, and what must not run twice. */
static sp_status keep_boundary(arena *a, const remat_seg *s, remat_plan *p) {
    *p = (remat_plan){.saved = ARENA_ARRAY(a, uint8_t, s->nval)};
    if (remat_complete(s, p, NULL)) return SP_OK;
    return remat_cut(a, s, 1e-30, p); /* something is banned: the plan with the least bytes */
}

/* ---- the report -------------------------------------------------------------------------------- */

static const char *name_of(const save_model *m, const save_seg *s) {
    for (int v = 0; v < s->s.nval; v++) {
        const ir_node *n = ir_def(m->g, m->root[s->val[v]]);
        if (n->op == OP_param) return ir_str(n, "name");
    }
    return "";
}

void save_report_plans(const save_model *m, const remat_plan *const *chosen, save_report *r) {
    r->segments = m->nseg;
    r->classes = m->ncls;
    r->segment = ARENA_ARRAY(m->g->a, save_segment, m->nseg);
    r->kept = r->estimate = r->host = 0;
    r->again = r->comm_again = r->forward = r->backward = 0;
    for (int k = 0; k < m->nseg; k++) {
        const save_seg *s = &m->seg[k];
        const remat_plan *p = chosen[k];
        save_segment *x = &r->segment[k];
        bool *again = ARENA_ARRAY(m->a, bool, s->s.nfwd);
        remat_plan copy = *p;
        copy.saved = arena_memdup(m->a, p->saved, (size_t)s->s.nval);
        ASSERT(remat_complete(&s->s, &copy, again));
        *x = (save_segment){.name = name_of(m, s), .cls = s->cls, .kept = p->bytes, .window = p->window};
        x->again = p->seconds;
        x->host = copy.host;
        r->host += x->host;
        for (int v = 0; v < s->s.nval; v++) x->kept_values += copy.saved[v] != 0;
        for (int i = 0; i < s->s.nfwd; i++) {
            x->forward += s->s.fwd[i].seconds;
            if (!again[i] || s->s.fwd[i].seconds <= 0) continue;
            x->again_ops++;
            if (op_table[m->g->nodes.data[s->fwd[i]].op].flags & F_COLL) r->comm_again += s->s.fwd[i].seconds;
        }
        for (int i = 0; i < s->s.nbwd; i++) r->backward += s->s.bwd[i].seconds;
        r->estimate = max64(r->estimate, r->kept + x->window);
        r->kept += x->kept;
        r->forward += x->forward;
        r->again += x->again;
    }
}

/* ---- entry ------------------------------------------------------------------------------------- */

static sp_status fixed_policy(const save_model *m, const char *policy, save_report *r, ir_graph **out) {
    const remat_plan **chosen = ARENA_ARRAY(m->a, const remat_plan *, m->nseg);
    bool all = strcmp(policy, "all") == 0 || strcmp(policy, "budget") == 0; /* no budget: nothing runs again */
    for (int k = 0; k < m->nseg; k++) {
        remat_plan *p = ARENA_NEW(m->a, remat_plan);
        const remat_seg *s = &m->seg[k].s;
        if (all) {
            *p = save_keep_all(m->a, s);
        } else if (strcmp(policy, "layer") == 0) {
            TRY_NOTE(keep_boundary(m->a, s, p), "save: segment %d of %d", k + 1, m->nseg);
        } else {
            TRY(save_rule_plan(m, strcmp(policy, "autosp") == 0, p));
        }
        ASSERT(remat_complete(s, p, NULL));
        remat_window(s, p, NULL, NULL);
        chosen[k] = p;
    }
    save_report_plans(m, chosen, r);
    if (all) {
        *out = (ir_graph *)m->g; /* nothing runs again */
    } else {
        TRY(save_emit(m, m->g->a, chosen, out));
    }
    return SP_OK;
}

/* Another policy's plan in place of a search: what it really takes; fails when that is above the budget. */
static sp_status stand_in(const save_model *m, const save_options *o, save_report *r, ir_graph **out) {
    TRY(fixed_policy(m, o->rule, r, out));
    r->bound = INFINITY; /* says nothing about other plans */
    if (!o->lower) return SP_OK;
    ir_graph g = **out; /* passes allocate in their input's arena and do not change it */
    g.a = arena_new();
    sp_status ok = save_lowered(o, &g, r, &r->arena);
    arena_free(g.a);
    TRY(ok);
    CHECK(strcmp(r->policy, "least") == 0 || r->arena <= o->memory, "the rule '%s' takes %lld bytes", o->rule,
          (long long)r->arena);
    return SP_OK;
}

sp_status pass_save(const ir_graph *joint, const save_options *o, save_report *r, ir_graph **out) {
    static const char *const policies[] = {"all", "layer", "pytorch", "autosp", "budget", "least"};
    *r = (save_report){.policy = NULL, .point = -1};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (strcmp(o->policy ? o->policy : "budget", policies[i]) == 0) r->policy = policies[i];
    CHECK(r->policy, "save.policy=%s is unknown; use all, pytorch, autosp, layer, budget or least", o->policy);
    const char *fixed = o->rule ? o->rule : r->policy;
    bool rule = strcmp(fixed, "pytorch") == 0 || strcmp(fixed, "autosp") == 0;
    arena *a = arena_new();
    save_model m;
    bool front = strcmp(fixed, "budget") == 0 && o->memory > 0, least = strcmp(fixed, "least") == 0;
    sp_status ok = save_model_build(a, joint, o, rule, front || least, &m);
    if (ok == SP_OK)
        ok = front     ? save_budget(&m, o, r, out)
             : least   ? save_least(&m, o, r, out)
             : o->rule ? stand_in(&m, o, r, out)
                       : fixed_policy(&m, fixed, r, out);
    arena_free(a);
    return ok;
}
