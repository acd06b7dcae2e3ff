/* alive.c - what fills the arena where a step is fullest, in the user's terms, and the refusal of a budget below that.
 *
 * A buffer is described by its size, its shape, what makes it, and the nearest parameter in front of that: "dot with
 * model.layers.3.mlp.up_proj.weight" says where in the model it is, whatever the exporter called the value. The walk
 * to the parameter goes from operand to operand, nearest first, and gives up after a few dozen nodes.
 */
#include "plan/plan.h"

enum { WALK = 48 };

/* The parameter nearest in front of a node; *direct: it is an operand, perhaps cast or seen through views. */
static const char *nearest_param(const ir_graph *g, const ir_node *n, bool *direct) {
    const ir_node *queue[WALK] = {n};
    bool plain[WALK] = {true}; /* only views and casts between the node and n */
    int count = 1;
    for (int at = 0; at < count; at++)
        for (int k = 0; k < queue[at]->nin; k++) {
            const ir_node *d = ir_def(g, queue[at]->in[k]);
            int flags = op_table[d->op].flags;
            if (d->op == OP_param) {
                *direct = plain[at];
                return ir_str(d, "name");
            }
            if (count == WALK || flags & F_LEAF) continue;
            plain[count] = plain[at] && (flags & F_VIEW || d->op == OP_cast || d->op == OP_enter);
            queue[count++] = d;
        }
    return NULL;
}

/* The instruction that wrote what a buffer holds at the peak (results take over operands' buffers: the last to write),
 * or that has it as its workspace. */
static const plan_instr *maker_of(const plan *p, int b) {
    const plan_list *list = &p->program[PROG_STEP].instrs;
    const plan_instr *maker = NULL;
    for (int i = p->bufs.data[b].first; i < list->n && i <= p->memory.peak_instr; i++) {
        const plan_instr *x = &list->data[i];
        if (x->work == b) maker = x;
        for (int k = 0; k < x->nout; k++)
            if (x->out[k].buf == b) maker = x;
    }
    return maker;
}

/* The parameter whose gradient an instruction adds to, NULL. */
static const char *gradient_of(const plan *p, const plan_instr *i) {
    for (int k = 0; i->nout == 1 && k < p->params.n; k++)
        if (p->params.data[k].grad == i->out[0].buf) return p->params.data[k].name;
    return NULL;
}

/* What people know an instruction by: its op, or the ops that were fused in it. */
static const char *name_of(const plan_instr *i) {
    return i->loop ? "of a loop over tiles" : i->kernel ? i->kernel->name : op_table[i->op].name;
}

/* Is it a node of the plan's own graph (and not of a loop's region)? */
static bool in_graph(const ir_graph *g, const ir_node *n) {
    return n && n >= g->nodes.data && n < g->nodes.data + g->nodes.n;
}

static void describe(const plan *p, int b, int turn, buf *out) {
    const plan_buf *x = &p->bufs.data[b];
    const plan_instr *i = maker_of(p, b);
    char bytes[24];
    buf_printf(out, "%s", human_bytes(x->bytes, bytes));
    if (!i) return;
    const ir_node *n = i->node;
    bool direct = false;
    const char *param = in_graph(p->graph, n) ? nearest_param(p->graph, n, &direct) : NULL;
    if (i->work == b) {
        if (i->loop)
            buf_printf(out, " working set of one of %lld tiles", (long long)i->loop->tiles);
        else
            buf_printf(out, " workspace of %s", name_of(i));
    } else {
        const plan_tensor *t = NULL;
        int which = 0;
        for (int k = i->nout - 1; k >= 0; k--)
            if (i->out[k].buf == b) t = &i->out[which = k];
        buf_printf(out, " %s[", dtype_name(t->t.type));
        for (int d = 0; d < t->t.rank; d++) buf_printf(out, "%s%lld", d ? "," : "", (long long)t->t.dim[d]);
        buf_printf(out, "] %s", name_of(i));
        const char *name = in_graph(p->graph, n) && which < n->nout ? p->graph->values.data[n->out[which]].name : NULL;
        if (name) buf_printf(out, " '%s'", name);
    }
    const char *grad = gradient_of(p, i);
    if (grad)
        buf_printf(out, " for the gradient of %s", grad);
    else if (param)
        buf_printf(out, " %s %s", direct ? "with" : "behind", param);
    if (i->backward)
        buf_printf(out, ", backward");
    else if (x->first < turn && x->last >= turn)
        buf_printf(out, ", kept for the backward");
    if (n && n->src) buf_printf(out, " (%s)", n->src);
}

void plan_print_peak(const plan *p, int most, buf *out) {
    const plan_list *list = &p->program[PROG_STEP].instrs;
    int turn = list->n, at = p->memory.peak_instr, alive = 0;
    for (int i = list->n - 1; i >= 0; i--)
        if (list->data[i].backward) turn = i;
    arena *tmp = arena_new();
    bool *done = ARENA_ARRAY(tmp, bool, p->bufs.n + 1);
    for (int b = 0; b < p->bufs.n; b++) {
        const plan_buf *x = &p->bufs.data[b];
        done[b] = x->section != SEC_WORK || x->program != PROG_STEP || x->loop >= 0 || x->first < 0 || x->first > at ||
                  x->last < at;
        alive += !done[b];
    }
    int64_t rest = 0;
    for (int k = 0; k < most && k < alive; k++) {
        int best = -1;
        for (int b = 0; b < p->bufs.n; b++)
            if (!done[b] && (best < 0 || p->bufs.data[b].bytes > p->bufs.data[best].bytes)) best = b;
        done[best] = true;
        buf_printf(out, "\n  ");
        describe(p, best, turn, out);
    }
    for (int b = 0; b < p->bufs.n; b++)
        if (!done[b]) rest += p->bufs.data[b].bytes;
    char bytes[24];
    if (alive > most) buf_printf(out, "\n  %s in %d smaller ones", human_bytes(rest, bytes), alive - most);
    arena_free(tmp);
}

sp_status plan_refuse(const plan *p, int64_t budget, const char *policy) {
    enum { SHOWN = 6 };
    const plan_memory *m = &p->memory;
    char have[24], need[24], params[24], grads[24], state[24], work[24];
    bool never = m->arena - m->section[SEC_WORK] > budget;
    buf takes = {0}, list = {0};
    if (policy)
        buf_printf(&takes, "save.policy=%s takes", policy);
    else
        buf_printf(&takes, "the least feasible budget is");
    plan_print_peak(p, SHOWN, &list);
    err_set(
        "--memory %s is too small: %s %s (%lld bytes), of it parameters %s, gradients %s, optimizer %s, activations "
        "%s%s; alive at its peak:%s",
        human_bytes(budget, have), takes.data, human_bytes(m->arena, need), (long long)m->arena,
        human_bytes(m->section[SEC_PARAM], params), human_bytes(m->section[SEC_GRAD], grads),
        human_bytes(m->section[SEC_MOMENT], state), human_bytes(m->section[SEC_WORK], work),
        never ? "; all but the activations is needed at any length: no sequence fits" : "", list.data);
    buf_free(&takes);
    buf_free(&list);
    return SP_FAIL;
}
