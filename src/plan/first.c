/* first.c - gradients whose first contribution in a step is a product that makes all of them: it stores where later
 * ones add, and nobody writes zeros before.
 *
 *   before  zero b7, dot +=: b7[768,3072] ...     after  dot first +=: b7[768,3072] ...
 *
 * Saves two passes over the gradient in each step. The values are those of adding to zeros.
 */
#include "plan/plan.h"

static bool touches(const plan_list *list, int id) {
    for (int i = 0; i < list->n; i++) {
        const plan_instr *in = &list->data[i];
        for (int k = 0; k < in->nin; k++)
            if (in->in[k].buf == id) return true;
        for (int k = 0; k < in->nout; k++)
            if (in->out[k].buf == id) return true;
        if (in->loop && touches(&in->loop->body, id)) return true;
    }
    return false;
}

void plan_first_writes(plan *p) {
    plan_list *step = &p->program[PROG_STEP].instrs;
    for (int i = 0; i < p->params.n; i++) {
        plan_param *q = &p->params.data[i];
        plan_list one = {.n = 1};
        int at = 0;
        if (q->grad < 0) continue;
        while (at < step->n && (one.data = &step->data[at], !touches(&one, q->grad))) at++;
        if (at == step->n) continue;
        plan_instr *in = &step->data[at];
        if (in->op != OP_dot || !in->accumulate || in->out[0].buf != q->grad) continue;
        const tensor *t = &in->out[0].t;
        if (tensor_numel(t) * dtype_size(t->type) != p->bufs.data[q->grad].bytes) continue;
        in->first = q->stored = true;
    }
}
