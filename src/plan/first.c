/* first.c - gradients whose first contribution in a step is a product that makes all of them: it stores where later
 * ones add, and nobody writes zeros before.
 *
 *   before  zero b7, dot +=: b7[768,3072] ...     after  dot first +=: b7[768,3072] ...
 *                                                 or, with one microbatch a step, dot: b7[768,3072] ...
 *
 * Saves two passes over the gradient in each step. The values are those of adding to zeros.
 *
 * A product that adds may want another workspace than one that stores (oneDNN's sum to a buffer first). Lowering asks
 * for the larger; here each gets what it will use, so that a plan has no byte that nobody touches.
 */
#include "plan/plan.h"

#include <stdlib.h>

/* first[b]: the number of the first instruction of the step that touches buffer b; a loop's body counts as the loop. */
static void note_first(const plan_list *list, int loop, int *first) {
    for (int i = 0; i < list->n; i++) {
        const plan_instr *in = &list->data[i];
        int at = loop < 0 ? i : loop;
        for (int k = 0; k < in->nin; k++)
            if (in->in[k].buf >= 0 && first[in->in[k].buf] < 0) first[in->in[k].buf] = at;
        for (int k = 0; k < in->nout; k++)
            if (in->out[k].buf >= 0 && first[in->out[k].buf] < 0) first[in->out[k].buf] = at;
        if (in->loop) note_first(&in->loop->body, at, first);
    }
}

static void ask_again(plan *p, plan_instr *in, const plan_options *o) {
    if (in->work < 0) return;
    p->bufs.data[in->work].bytes = o->workspace(o->ctx, in);
    if (p->bufs.data[in->work].bytes <= 0) in->work = -1; /* never alive, so never placed */
}

/* Products that only ever add, bodies of loops included. */
static void ask_adding(plan *p, const plan_list *list, const plan_options *o) {
    for (int i = 0; i < list->n; i++) {
        plan_instr *in = &list->data[i];
        if (in->loop) ask_adding(p, &in->loop->body, o);
        if (in->op == OP_dot && in->accumulate && !in->first) ask_again(p, in, o);
    }
}

void plan_first_writes(plan *p, const plan_options *o) {
    plan_list *step = &p->program[PROG_STEP].instrs;
    int *first = malloc(sizeof *first * (size_t)(p->bufs.n + 1));
    ASSERT(first);
    for (int b = 0; b < p->bufs.n; b++) first[b] = -1;
    note_first(step, -1, first);
    for (int i = 0; i < p->params.n; i++) {
        plan_param *q = &p->params.data[i];
        if (q->grad < 0 || first[q->grad] < 0) continue;
        plan_instr *in = &step->data[first[q->grad]];
        if (in->op != OP_dot || !in->accumulate || in->out[0].buf != q->grad) continue;
        const tensor *t = &in->out[0].t;
        if (tensor_numel(t) * dtype_size(t->type) != p->bufs.data[q->grad].bytes) continue;
        q->stored = true;
        in->first = o->microbatches != 1;
        in->accumulate = in->first;
        if (!in->accumulate) ask_again(p, in, o);
    }
    free(first);
    ask_adding(p, step, o);
}
