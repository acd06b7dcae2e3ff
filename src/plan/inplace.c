/* inplace.c - results of element-wise instructions take over an operand's buffer.
 *
 *   before  i7 add b12 <- b10, b11        after  i7 add b10 <- b10, b11       (b10 is not read after i7)
 *
 * Safe iff: the instruction reads element i before it writes element i (element-wise ops; xent_grad, whose rows are
 * read twice and then written), this is the operand's last use through any window, the operand's window is the whole
 * buffer in row-major order, the sizes are equal, and no other operand looks at that buffer through another window.
 * Done before placement, because it lowers the live-size bound that placement can only approach. (notes: XLA's buffer
 * aliasing rules; one forward sweep suffices because a taken-over buffer ends exactly where its heir begins.)
 */
#include "plan/plan.h"

static int find(int *heir, int b) {
    while (heir[b] != b) b = heir[b] = heir[heir[b]];
    return b;
}

/* Is w all of a work buffer of this list's own (loop: whose body; -1 the program)? */
static bool whole(const plan *p, const plan_tensor *w, int64_t bytes, int loop) {
    const plan_buf *b = &p->bufs.data[w->buf];
    return b->section == SEC_WORK && b->loop == loop && b->bytes == bytes && w->offset == 0 && w->rank_step == 0 &&
           w->tile_step == 0 && tensor_contiguous(&w->t) && tensor_numel(&w->t) * dtype_size(w->t.type) == bytes;
}

/* Is element k of that operand read before element k of the result is written, and not after? */
static bool may_overwrite(const plan_instr *i, int operand, int result) {
    if (i->op == OP_xent_grad) return operand == 0;
    if (i->op == OP_fused) /* both run along the kernel's whole space */
        return i->kernel->out.data[result].store == GEN_STORE && i->kernel->out.data[result].step == GEN_UNIT &&
               i->kernel->in.data[operand].step == GEN_UNIT && !i->kernel->in.data[operand].fixed &&
               dtype_size(i->in[operand].t.type) == dtype_size(i->out[result].t.type);
    return i->op != OP_copy && (op_table[i->op].flags & F_ELT) != 0;
}

/* The buffers of a loop's body that live outside: renamed as the list around it was. */
static void rename_body(plan_list *body, int *heir) {
    for (int i = 0; i < body->n; i++) {
        plan_instr *in = &body->data[i];
        for (int k = 0; k < in->nin; k++) in->in[k].buf = find(heir, in->in[k].buf);
        for (int k = 0; k < in->nout; k++) in->out[k].buf = find(heir, in->out[k].buf);
    }
}

/* Do both windows cover the same bytes of their buffers, in every tile? */
static bool same_part(const plan_tensor *a, const plan_tensor *b) {
    return a->offset == b->offset && a->rank_step == b->rank_step && a->tile_step == b->tile_step &&
           dtype_size(a->t.type) == dtype_size(b->t.type) && tensor_numel(&a->t) == tensor_numel(&b->t) &&
           tensor_contiguous(&a->t) && tensor_contiguous(&b->t);
}

/* May a loop's result lie in its operand's buffer? In each tile the operand's part is read for the last time before
 * the result's part is written, or by the element-wise instruction that writes it; and the parts are the same. */
static bool tile_by_tile(const plan_list *body, int operand, int result) {
    const plan_tensor *part = NULL;
    bool written = false;
    for (int i = 0; i < body->n; i++)
        for (int k = 0; k < body->data[i].nout; k++)
            if (body->data[i].out[k].buf == result) part = &body->data[i].out[k];
    if (!part || part->tile_step == 0) return false;
    for (int i = 0; i < body->n; i++) {
        const plan_instr *in = &body->data[i];
        bool writes = false;
        int which = 0;
        for (int k = 0; k < in->nout; k++) {
            if (in->out[k].buf == operand) return false;
            if (in->out[k].buf != result) continue;
            if (in->accumulate || !same_part(&in->out[k], part)) return false;
            writes = true;
            which = k;
        }
        for (int k = 0; k < in->nin; k++) {
            if (in->in[k].buf != operand) continue;
            bool over = in->op == OP_copy || may_overwrite(in, k, which);
            if (written || !same_part(&in->in[k], part) || (writes && !over)) return false;
        }
        written |= writes;
    }
    return true;
}

static void rename_buf(plan_list *body, int from, int to) {
    for (int i = 0; i < body->n; i++)
        for (int k = 0; k < body->data[i].nin + body->data[i].nout; k++) {
            plan_instr *in = &body->data[i];
            plan_tensor *w = k < in->nin ? &in->in[k] : &in->out[k - in->nin];
            if (w->buf == from) w->buf = to;
        }
}

/* By buffer, for one depth of loops; set for the buffers of the list at hand only. */
typedef struct scratch {
    int *heir, *last;
    struct scratch *inner;
} scratch;

static scratch *scratch_new(plan *p) {
    scratch *s = ARENA_NEW(p->a, scratch);
    s->heir = ARENA_ARRAY(p->a, int, p->bufs.n);
    s->last = ARENA_ARRAY(p->a, int, p->bufs.n);
    return s;
}

static void in_place(plan *p, plan_list *list, plan_tensor *result, int loop, scratch *s) {
    int *heir = s->heir, *last = s->last;
    for (int i = 0; i < list->n; i++) {
        const plan_instr *in = &list->data[i];
        for (int k = 0; k < in->nin + in->nout; k++) {
            int b = (k < in->nin ? &in->in[k] : &in->out[k - in->nin])->buf;
            heir[b] = b;
            last[b] = i;
        }
        for (int j = 0; in->loop && j < in->loop->body.n; j++) { /* renamed with the list around them */
            const plan_instr *x = &in->loop->body.data[j];
            for (int k = 0; k < x->nin; k++) heir[x->in[k].buf] = x->in[k].buf;
            for (int k = 0; k < x->nout; k++) heir[x->out[k].buf] = x->out[k].buf;
        }
    }
    if (result) heir[result->buf] = result->buf;
    if (result) last[result->buf] = list->n;
    for (int i = 0; i < list->n; i++) {
        plan_instr *in = &list->data[i];
        for (int k = 0; k < in->nin; k++) in->in[k].buf = find(heir, in->in[k].buf);
        if (in->loop) {
            rename_body(&in->loop->body, heir);
            if (!s->inner) s->inner = scratch_new(p);
            in_place(p, &in->loop->body, NULL, in->work, s->inner);
        }
        for (int k = 0; k < in->nout; k++) {
            int out = in->out[k].buf = find(heir, in->out[k].buf);
            int64_t bytes = p->bufs.data[out].bytes;
            if (in->accumulate || !whole(p, &in->out[k], bytes, loop)) continue;
            for (int j = 0; j < in->nin; j++) {
                int b = in->in[j].buf;
                bool over = in->loop ? tile_by_tile(&in->loop->body, b, out) : may_overwrite(in, j, k);
                bool ok = over && last[b] == i && whole(p, &in->in[j], bytes, loop) && b != out;
                for (int x = 0; ok && x < in->nin; x++) ok = in->in[x].buf != b || whole(p, &in->in[x], bytes, loop);
                for (int x = 0; ok && x < k; x++) ok = in->out[x].buf != b;
                if (!ok) continue;
                heir[out] = b;
                last[b] = last[out];
                in->out[k].buf = b;
                if (in->loop) rename_buf(&in->loop->body, out, b);
                break;
            }
        }
    }
    if (result) result->buf = find(heir, result->buf);
}

void plan_in_place(plan *p, int program) {
    plan_program *pr = &p->program[program];
    in_place(p, &pr->instrs, pr->has_result ? &pr->result : NULL, -1, scratch_new(p));
}
