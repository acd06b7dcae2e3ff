/* layout.c - sections, lifetimes, offsets; the memory table; the plan as text.
 *
 * One arena holds everything of a rank: parameters, gradients, moments, literals, inputs, then the work area, which is
 * placed by lifetime (place.c). The programs never run at once, so their work areas lie over each other. Host
 * copies have an arena of their own, placed in the same way.
 */
#include "plan/place.h"
#include "plan/plan.h"

enum { SECTION_ALIGN = 64, WORK_ALIGN = 256 };

static void touch(plan *p, int id, int at) {
    plan_buf *b = &p->bufs.data[id];
    if (b->section != SEC_WORK && b->section != SEC_HOST) return;
    if (b->first < 0) b->first = at;
    b->last = at;
}

/* loop: whose body the list is; -1 a program. Buffers from outside a body live as long as the loop says. */
static void list_lifetimes(plan *p, const plan_list *list, int loop) {
    for (int i = 0; i < list->n; i++) {
        const plan_instr *in = &list->data[i];
        for (int k = 0; k < in->nin; k++)
            if (p->bufs.data[in->in[k].buf].loop == loop) touch(p, in->in[k].buf, i);
        for (int k = 0; k < in->nout; k++)
            if (p->bufs.data[in->out[k].buf].loop == loop) touch(p, in->out[k].buf, i);
        if (in->work >= 0) touch(p, in->work, i);
        if (in->loop) list_lifetimes(p, &in->loop->body, in->work);
    }
}

static void lifetimes(plan *p) {
    for (int g = 0; g < PROG_COUNT_OF; g++) {
        plan_program *pr = &p->program[g];
        list_lifetimes(p, &pr->instrs, -1);
        if (pr->has_result) touch(p, pr->result.buf, max64(pr->instrs.n - 1, 0) > 0 ? pr->instrs.n - 1 : 0);
    }
}

/* Places those of n buffers (ids) that are in a section: of one program, or of one body. room: plan_options.judge
 * without what lies before, INT64_MAX for a plan; when even the live size is above it, that is the size and nothing is
 * placed. */
static sp_status place_list(plan *p, plan_section sec, const int *ids, int n, int64_t align, int64_t base, int64_t room,
                            int64_t *size, int64_t *bound) {
    VEC(place_buf) bufs = {0};
    VEC(int) index = {0};
    for (int k = 0; k < n; k++) {
        const plan_buf *x = &p->bufs.data[ids[k]];
        if (x->section != sec || x->first < 0) continue;
        place_buf y = {.size = x->bytes, .first = x->first, .last = x->last, .align = align, .group = -1};
        vec_push(p->a, &bufs, y);
        vec_push(p->a, &index, ids[k]);
    }
    *size = *bound = 0;
    if (!bufs.n) return SP_OK;
    int64_t *offset = ARENA_ARRAY(p->a, int64_t, bufs.n);
    place_opts opts = {.align = align};
    place_stats stats;
    if (room < INT64_MAX) {
        TRY(place_live(bufs.data, bufs.n, &opts, bound, NULL));
        *size = *bound;
        if (*size > room) return SP_OK;
        opts.enough = room;
    }
    TRY(place_plan(bufs.data, bufs.n, &opts, offset, &stats));
    TRY(place_verify(bufs.data, bufs.n, &opts, offset, stats.arena));
    for (int i = 0; i < bufs.n; i++) p->bufs.data[index.data[i]].offset = base + offset[i];
    *size = stats.arena;
    *bound = stats.live;
    return SP_OK;
}

/* Places program g, work and host copies. */
static sp_status place_program(plan *p, int g, int64_t align, int64_t base, int64_t room, int64_t *size, int64_t *bound,
                               int64_t *host) {
    const plan_list *list = &p->program[g].instrs;
    /* Its buffers, those of the program itself first (start[0]), then those of each body (start[1 + its workspace]). */
    int *start = ARENA_ARRAY(p->a, int, p->bufs.n + 3), *ids = ARENA_ARRAY(p->a, int, p->bufs.n);
    for (int b = 0; b < p->bufs.n; b++)
        if (p->bufs.data[b].program == g) start[p->bufs.data[b].loop + 3]++;
    for (int b = 2; b < p->bufs.n + 3; b++) start[b] += start[b - 1];
    for (int b = 0; b < p->bufs.n; b++)
        if (p->bufs.data[b].program == g) ids[start[p->bufs.data[b].loop + 2]++] = b;
    for (int i = 0; i < list->n; i++) /* bodies first: their arenas are buffers of the program */
        if (list->data[i].loop) {
            int64_t live;
            int w = list->data[i].work, at = start[w + 1];
            TRY(place_list(p, SEC_WORK, ids + at, start[w + 2] - at, align, 0, INT64_MAX, &p->bufs.data[w].bytes,
                           &live));
        }
    TRY(place_list(p, SEC_WORK, ids, start[1], align, base, room, size, bound));
    int64_t host_bound;
    TRY(place_list(p, SEC_HOST, ids, start[1], align, 0, INT64_MAX, host, &host_bound));
    for (int b = 0; b < p->bufs.n; b++) {
        plan_buf *x = &p->bufs.data[b];
        if (x->program == g && x->loop >= 0 && x->first >= 0) x->offset += p->bufs.data[x->loop].offset;
    }
    return SP_OK;
}

/* What is alive at the step program's fullest instruction, by kind; and what the backward reads of the forward. */
static void peak_parts(plan *p) {
    plan_memory *m = &p->memory;
    const plan_program *pr = &p->program[PROG_STEP];
    int n = pr->instrs.n, turn = n;
    int64_t *live = ARENA_ARRAY(p->a, int64_t, n + 1), best = -1, now = 0;
    for (int i = n - 1; i >= 0; i--)
        if (pr->instrs.data[i].backward) turn = i;
    for (int b = 0; b < p->bufs.n; b++) {
        const plan_buf *x = &p->bufs.data[b];
        if (x->section != SEC_WORK || x->program != PROG_STEP || x->first < 0 || x->loop >= 0) continue;
        live[x->first] += round_up(x->bytes, WORK_ALIGN);
        live[x->last + 1] -= round_up(x->bytes, WORK_ALIGN);
        if (x->first < turn && x->last >= turn) m->saved += x->bytes;
    }
    for (int i = 0; i < n; i++)
        if ((now += live[i]) > best) {
            best = now;
            m->peak_instr = i;
        }
    for (int b = 0; b < p->bufs.n; b++) {
        const plan_buf *x = &p->bufs.data[b];
        if (x->section != SEC_WORK || x->program != PROG_STEP || x->first > m->peak_instr || x->last < m->peak_instr ||
            x->first < 0 || x->loop >= 0)
            continue;
        int64_t *part = x->comm                              ? &m->peak_comm
                        : x->first < turn && x->last >= turn ? &m->peak_saved
                                                             : &m->peak_working;
        *part += x->bytes;
    }
}

sp_status plan_layout(plan *p, const plan_options *o) {
    int64_t at = 0, align = o->align ? o->align : WORK_ALIGN;
    plan_memory *m = &p->memory;
    bool *second = ARENA_ARRAY(p->a, bool, p->bufs.n);
    for (int k = 0; k < p->params.n; k++)
        if (p->params.data[k].v >= 0) second[p->params.data[k].v] = true;
    for (int s = 0; s < SEC_WORK; s++) {
        int64_t start = at;
        for (int half = 0; half < (s == SEC_MOMENT ? 2 : 1); half++)
            for (int b = 0; b < p->bufs.n; b++) {
                plan_buf *x = &p->bufs.data[b];
                if ((int)x->section != s) continue;
                if (s == SEC_MOMENT && second[b] != (half == 1)) continue; /* all first moments, then all second */
                x->offset = at;
                CHECK(add_ok(at, round_up(x->bytes, SECTION_ALIGN), &at), "the plan needs more than 2^63 bytes");
            }
        at = round_up(at, WORK_ALIGN);
        m->section[s] = at - start;
    }
    lifetimes(p);
    int64_t work = 0;
    for (int g = 0; g < PROG_COUNT_OF; g++) {
        int64_t size, bound, host;
        TRY(place_program(p, g, align, at, o->judge > 0 ? o->judge - at : INT64_MAX, &size, &bound, &host));
        work = max64(work, size);
        m->live_bound = max64(m->live_bound, bound);
        m->section[SEC_HOST] = max64(m->section[SEC_HOST], host);
    }
    m->section[SEC_WORK] = work;
    CHECK(add_ok(at, work, &m->arena), "the plan needs more than 2^63 bytes");
    peak_parts(p);
    return SP_OK;
}

/* ---- text ---- */

static void print_window(const plan_tensor *w, buf *out) {
    buf_printf(out, " b%d:%s[", w->buf, dtype_name(w->t.type));
    for (int d = 0; d < w->t.rank; d++) buf_printf(out, "%s%lld", d ? "," : "", (long long)w->t.dim[d]);
    buf_printf(out, "]");
    if (!tensor_contiguous(&w->t)) {
        buf_printf(out, "(");
        for (int d = 0; d < w->t.rank; d++) buf_printf(out, "%s%lld", d ? "," : "", (long long)w->t.stride[d]);
        buf_printf(out, ")");
    }
    if (w->offset) buf_printf(out, "+%lld", (long long)w->offset);
    if (w->rank_step) buf_printf(out, "+%lldr", (long long)w->rank_step);
    if (w->tile_step) buf_printf(out, "+%lldt", (long long)w->tile_step);
}

static void print_list(const plan_list *list, int indent, buf *out) {
    for (int i = 0; i < list->n; i++) {
        const plan_instr *in = &list->data[i];
        buf_printf(out, "%*si%d %s%s:", indent, "", i, op_table[in->op].name,
                   in->first        ? " first +="
                   : in->accumulate ? "+="
                                    : "");
        for (int k = 0; k < in->nout; k++) print_window(&in->out[k], out);
        buf_printf(out, " <-");
        for (int k = 0; k < in->nin; k++) print_window(&in->in[k], out);
        if (in->work >= 0) buf_printf(out, " work b%d", in->work);
        if (in->rank_offset) buf_printf(out, " at %lldr", (long long)in->rank_offset);
        if (in->head_offset) buf_printf(out, " heads at %lldr", (long long)in->head_offset);
        if (in->loop) buf_printf(out, " %lld times", (long long)in->loop->tiles);
        if (in->kernel) buf_printf(out, " kernel %016llx", (unsigned long long)in->kernel->hash);
        buf_printf(out, "\n");
        if (in->loop) print_list(&in->loop->body, indent + 2, out);
    }
}

int plan_kernels(const plan *p, arena *a, gen_kernel ***out) {
    VEC(gen_kernel *) list = {0};
    for (int i = 0; i < p->kernels.n; i++) {
        bool seen = false;
        for (int j = 0; j < list.n && !seen; j++) seen = list.data[j]->hash == p->kernels.data[i]->hash;
        if (!seen) vec_push(a, &list, p->kernels.data[i]);
    }
    if (p->adamw) vec_push(a, &list, p->adamw);
    *out = list.data;
    return list.n;
}

void plan_print(const plan *p, buf *out) {
    static const char *const section[] = {"param", "grad", "moment", "const", "input", "work", "host"};
    static const char *const program[] = {"count", "step", "eval"};
    buf_printf(out, "plan \"%s\" mesh(", p->graph->name);
    for (int a = 0; a < p->mesh.naxes; a++)
        buf_printf(out, "%s%s=%d", a ? "," : "", p->mesh.axis[a].name, p->mesh.axis[a].size);
    buf_printf(out, ") seq(%lld/%lld) arena=%lld live_bound=%lld\n", (long long)p->seq_valid, (long long)p->seq,
               (long long)p->memory.arena, (long long)p->memory.live_bound);
    for (int i = 0; i < p->params.n; i++)
        buf_printf(out, "param b%d \"%s\"%s%s\n", p->params.data[i].buf, p->params.data[i].name,
                   p->params.data[i].trained ? " trained" : "", p->params.data[i].partial ? " partial" : "");
    for (int b = 0; b < p->bufs.n; b++) {
        const plan_buf *x = &p->bufs.data[b];
        if (x->offset < 0) continue;
        buf_printf(out, "b%d %s %lld @%lld", b, section[x->section], (long long)x->bytes, (long long)x->offset);
        if (x->section == SEC_WORK || x->section == SEC_HOST)
            buf_printf(out, " %s[%d,%d]", program[x->program], x->first, x->last);
        if (x->loop >= 0) buf_printf(out, " in b%d", x->loop);
        buf_printf(out, "\n");
    }
    for (int g = 0; g < PROG_COUNT_OF; g++) {
        buf_printf(out, "program %s\n", program[g]);
        print_list(&p->program[g].instrs, 2, out);
    }
    arena *a = arena_new();
    gen_kernel **kernel;
    int n = plan_kernels(p, a, &kernel);
    for (int i = 0; i < n; i++) {
        buf_printf(out, "kernel %016llx\n", (unsigned long long)kernel[i]->hash);
        gen_print(kernel[i], out);
    }
    arena_free(a);
}

uint64_t plan_hash(const plan *p) {
    buf text = {0};
    plan_print(p, &text);
    uint64_t h = hash_bytes(HASH_INIT, text.data, text.n);
    buf_free(&text);
    return h;
}
