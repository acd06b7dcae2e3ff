/* exec.c - the arena, the call records, and the loop over them. */
#include "exec/exec_impl.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

static int coordinate(const exec *e) { return comm_rank(e->o.comm); }

static void *address(const exec *e, const plan_tensor *w) {
    const plan_buf *b = &e->p->bufs.data[w->buf];
    return (b->section == SEC_HOST ? e->host : e->base) + b->offset +
           (w->offset + w->rank_step * coordinate(e)) * dtype_size(w->t.type);
}

static void fill_call(dev_call *c, const plan_instr *i, tensor *tensors) {
    *c = (dev_call){.op = i->op,
                    .node = i->node,
                    .nin = i->nin,
                    .nout = i->nout,
                    .accumulate = i->accumulate,
                    .first = i->first,
                    .from = i->from,
                    .to = i->to,
                    .tile = i->tile,
                    .tiles = i->tiles,
                    .kernel = i->kernel,
                    .in = tensors,
                    .out = tensors + i->nin};
    for (int k = 0; k < i->nin; k++) c->in[k] = i->in[k].t;
    for (int k = 0; k < i->nout; k++) c->out[k] = i->out[k].t;
}

int64_t exec_workspace(void *ctx, const plan_instr *i) {
    const exec_options *o = ctx;
    tensor *tensors = calloc((size_t)(i->nin + i->nout), sizeof *tensors);
    ASSERT(tensors);
    dev_call c;
    fill_call(&c, i, tensors);
    c.threads = o->threads;
    int64_t bytes = o->dev->workspace(&c);
    free(tensors);
    return bytes;
}

static void write_literals(exec *e) {
    const plan *p = e->p;
    for (int i = 0; i < p->const_at.n; i++) {
        const plan_tensor *w = &p->const_at.data[i];
        const ir_node *n = p->const_node.data[i];
        tensor t = w->t;
        t.data = address(e, w);
        const ir_attr *data = n->op == OP_fill ? NULL : ir_find_attr(n, "data");
        int64_t count = data ? tensor_numel(&t) : 1;
        ASSERT(!data || data->n == count);
        for (int64_t k = 0; k < count; k++) {
            double v = data ? data->data[k] : ir_float(n, "value", 0);
            switch (t.type) {
            case DT_F32:
                ((float *)t.data)[k] = (float)v;
                break;
            case DT_F64:
                ((double *)t.data)[k] = v;
                break;
            case DT_I64:
                ((int64_t *)t.data)[k] = (int64_t)v;
                break;
            case DT_I32:
                ((int32_t *)t.data)[k] = (int32_t)v;
                break;
            case DT_BOOL:
                ((uint8_t *)t.data)[k] = v != 0;
                break;
            case DT_BF16: {
                float f = (float)v;
                uint32_t u;
                memcpy(&u, &f, 4);
                u += 0x7fff + ((u >> 16) & 1);
                ((uint16_t *)t.data)[k] = (uint16_t)(u >> 16);
                break;
            }
            case DT_F16:
            case DT_COUNT:
                ASSERT(!"no literal has this type");
            }
        }
    }
}

/* Machine code of the plan's kernels. Without it they are interpreted: slowly, so it is said. */
static void compile_kernels(exec *e) {
    e->nkernels = plan_kernels(e->p, e->a, &e->kernels);
    e->code = ARENA_ARRAY(e->a, gen_fn *, e->nkernels + 1);
    if (!e->nkernels || !e->o.dev->compile) return;
    if (e->o.dev->compile(e->kernels, e->nkernels, e->code) == SP_OK) return;
    if (comm_rank(e->o.comm) == 0) log_warn("%s; fused kernels are interpreted", err_text());
    memset(e->code, 0, sizeof *e->code * (size_t)e->nkernels);
}

static gen_fn *code_of(const exec *e, const gen_kernel *k) {
    int i = 0;
    while (e->kernels[i]->hash != k->hash) i++;
    return e->code[i];
}

static sp_status prepare_list(exec *e, const plan_list *list, call **out) {
    call *calls = *out = ARENA_ARRAY(e->a, call, list->n);
    for (int i = 0; i < list->n; i++) {
        const plan_instr *in = &list->data[i];
        call *k = &calls[i];
        fill_call(&k->c, in, ARENA_ARRAY(e->a, tensor, in->nin + in->nout));
        if (in->loop) {
            k->tiles = in->loop->tiles;
            k->nbody = in->loop->body.n;
            TRY(prepare_list(e, &in->loop->body, &k->body));
            continue;
        }
        k->start = ARENA_ARRAY(e->a, char *, in->nin + in->nout);
        k->step = ARENA_ARRAY(e->a, int64_t, in->nin + in->nout);
        for (int j = 0; j < in->nin + in->nout; j++) {
            const plan_tensor *w = j < in->nin ? &in->in[j] : &in->out[j - in->nin];
            k->c.in[j].data = k->start[j] = address(e, w); /* results follow operands */
            k->step[j] = w->tile_step * dtype_size(w->t.type);
        }
        k->c.threads = e->o.threads;
        k->c.comm = e->o.comm;
        k->c.offset = in->rank_offset * coordinate(e);
        k->c.head_offset = in->head_offset * coordinate(e);
        if (in->work >= 0) {
            k->c.work = e->base + e->p->bufs.data[in->work].offset;
            k->c.work_bytes = e->p->bufs.data[in->work].bytes;
        }
        if (in->kernel) k->c.code = code_of(e, in->kernel);
        dev_fn *run = e->o.dev->table[in->op];
        CHECK(run, "the device '%s' has no kernel for %s", e->o.dev->name, op_table[in->op].name);
        TRY_NOTE(e->o.dev->prepare(&k->c), "preparing %s", op_table[in->op].name);
        k->run = run;
    }
    return SP_OK;
}

static void release_list(exec *e, call *calls, int n) {
    for (int i = 0; calls && i < n; i++) {
        if (calls[i].run) e->o.dev->release(&calls[i].c);
        release_list(e, calls[i].body, calls[i].nbody);
    }
}

/* All ranks must run the same plan: all_reduce of hash and its complement by maximum shows any difference. */
static sp_status compare_hash(const exec *e) {
    uint64_t hash = plan_hash(e->p);
    int64_t mine[2] = {(int64_t)(hash >> 1), -(int64_t)(hash >> 1)}, top[2];
    TRY(comm_all_reduce(e->o.comm, mine, top, 2, DT_I64, COMM_MAX));
    CHECK(top[0] == -top[1],
          "rank %d compiled another plan than the others (%016llx); do all ranks run the same binary "
          "with the same options and model?",
          comm_rank(e->o.comm), (unsigned long long)hash);
    return SP_OK;
}

sp_status exec_new(const plan *p, const exec_options *o, exec **out) {
    int size = 1;
    for (int a = 0; a < p->mesh.naxes; a++) size *= p->mesh.axis[a].size;
    CHECK(size == comm_size(o->comm), "the plan is for %d ranks, but %d run", size, comm_size(o->comm));
    arena *a = arena_new();
    exec *e = ARENA_NEW(a, exec);
    *e = (exec){.p = p, .o = *o, .a = a};
    *out = e;
    sp_status s = compare_hash(e);
    if (s == SP_OK) s = exec_map_arena(e);
    if (s == SP_OK) s = exec_map_host(e);
    if (s == SP_OK) write_literals(e);
#ifdef _OPENMP
    omp_set_num_threads(o->threads);
#endif
    if (s == SP_OK) compile_kernels(e);
    if (s == SP_OK && p->adamw) e->adamw = code_of(e, p->adamw);
    for (int g = 0; g < PROG_COUNT_OF && s == SP_OK; g++) s = prepare_list(e, &p->program[g].instrs, &e->calls[g]);
    int64_t staging = 0;
    for (int g = 0; g < PROG_COUNT_OF; g++)
        for (int i = 0; i < p->program[g].instrs.n; i++)
            if (p->program[g].instrs.data[i].axis >= 0) {
                const tensor *x = &p->program[g].instrs.data[i].in[0].t, *y = &p->program[g].instrs.data[i].out[0].t;
                staging =
                    max64(staging, max64(tensor_numel(x) * dtype_size(x->type), tensor_numel(y) * dtype_size(y->type)));
            }
    staging = max64(staging, min64(p->memory.section[SEC_GRAD], REDUCE_CHUNK));
    if (s == SP_OK && size > 1) s = comm_reserve(o->comm, staging);
    if (s != SP_OK) {
        exec_free(e);
        *out = NULL;
    }
    return s;
}

void exec_free(exec *e) {
    if (!e) return;
    for (int g = 0; g < PROG_COUNT_OF; g++) release_list(e, e->calls[g], e->p->program[g].instrs.n);
    exec_unmap_arena(e);
    if (e->host) munmap(e->host, (size_t)e->host_bytes);
    arena_free(e->a);
}

static void *at(exec *e, int buf_id) { return buf_id < 0 ? NULL : e->base + e->p->bufs.data[buf_id].offset; }
void *exec_param(exec *e, int i) { return at(e, e->p->params.data[i].buf); }
void *exec_grad(exec *e, int i) { return at(e, e->p->params.data[i].grad); }
void *exec_moment(exec *e, int i, int which) { return at(e, which ? e->p->params.data[i].v : e->p->params.data[i].m); }

sp_status exec_set_input(exec *e, const char *name, const int64_t *data, int64_t pad) {
    for (int i = 0; i < e->p->inputs.n; i++) {
        const plan_input *in = &e->p->inputs.data[i];
        if (strcmp(in->name, name) != 0) continue;
        CHECK(in->type.t == DT_I64 && (in->type.rank == 1 || in->type.rank == 2),
              "the model's input '%s' is not a matrix or a vector of integers", name);
        int64_t *dst = at(e, in->buf), rows = in->type.dim[0], cols = in->type.rank == 2 ? in->type.dim[1] : 1;
        int64_t valid = in->seq_dim == 1 ? e->p->seq_valid : cols;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < cols; c++) dst[r * cols + c] = c < valid ? data[r * valid + c] : pad;
        return SP_OK;
    }
    FAIL("the model has no input '%s'", name);
}

/* tile: which one, in a body; a loop's results are ready when its last tile is done. */
static sp_status run_list(exec *e, call *calls, int n, int64_t tile) {
    for (int i = 0; i < n; i++) {
        call *k = &calls[i];
        double start = e->profile ? now_s() : 0;
        for (int j = 0; k->run && j < k->c.nin + k->c.nout; j++)
            if (k->step[j]) k->c.in[j].data = k->start[j] + tile * k->step[j];
        k->c.tile_index = tile;
        if (k->c.first) k->c.accumulate = !e->fresh;
        sp_status s = k->run ? k->run(&k->c) : SP_OK;
        for (int64_t t = 0; t < k->tiles && s == SP_OK; t++) s = run_list(e, k->body, k->nbody, t);
        if (e->profile) {
            if (tile == 0) k->started = start;
            k->seconds = (tile == 0 ? 0 : k->seconds) + now_s() - start;
        }
        if (s != SP_OK)
            return err_note("%s%s%s", op_table[k->c.op].name, k->c.node && k->c.node->src ? " at " : "",
                            k->c.node && k->c.node->src ? k->c.node->src : "");
    }
    return SP_OK;
}

void exec_set_rng(exec *e, int64_t seed, int64_t draw, bool off) {
    for (int i = 0; i < e->p->inputs.n; i++)
        if (strcmp(e->p->inputs.data[i].name, "rng") == 0) {
            int64_t *state = at(e, e->p->inputs.data[i].buf);
            state[0] = seed;
            state[1] = draw;
            state[2] = off;
        }
}

static sp_status run(exec *e, int program, double *result) {
    const plan_program *pr = &e->p->program[program];
#ifdef _OPENMP
    omp_set_num_threads(e->o.threads);
#endif
    TRY(run_list(e, e->calls[program], pr->instrs.n, 0));
    const void *r = address(e, &pr->result);
    switch (pr->result.t.type) {
    case DT_F64:
        *result = *(const double *)r;
        break;
    case DT_F32:
        *result = *(const float *)r;
        break;
    case DT_I64:
        *result = (double)*(const int64_t *)r;
        break;
    default:
        FAIL("the loss is of type %s", dtype_name(pr->result.t.type));
    }
    return SP_OK;
}

sp_status exec_count(exec *e, double *count) { return run(e, PROG_COUNT, count); }
sp_status exec_eval(exec *e, double *loss_sum) { return run(e, PROG_EVAL, loss_sum); }

sp_status exec_step(exec *e, double inv_count, double *loss_sum) {
    for (int i = 0; i < e->p->inputs.n; i++) {
        const plan_input *in = &e->p->inputs.data[i];
        if (strcmp(in->name, "inv_count") != 0) continue;
        if (in->type.t == DT_F64)
            *(double *)at(e, in->buf) = inv_count;
        else
            *(float *)at(e, in->buf) = (float)inv_count;
    }
    TRY(run(e, PROG_STEP, loss_sum));
    e->fresh = false;
    return SP_OK;
}

int64_t exec_touched_bytes(const exec *e) {
    int64_t page = sysconf(_SC_PAGESIZE), pages = e->bytes / page, touched = 0;
    enum { CHUNK = 4096 };
    unsigned char in_core[CHUNK];
    for (int64_t p = 0; p < pages; p += CHUNK) {
        int64_t n = min64(CHUNK, pages - p);
        if (mincore(e->base + p * page, (size_t)(n * page), in_core) != 0) return -1;
        for (int64_t k = 0; k < n; k++) touched += in_core[k] & 1;
    }
    return touched * page;
}

void *exec_arena(const exec *e, int64_t *bytes) {
    *bytes = e->bytes;
    return e->base;
}

void *exec_host(const exec *e, int64_t *bytes) {
    *bytes = e->host_bytes;
    return e->host;
}

const plan *exec_plan(const exec *e) { return e->p; }
comm *exec_comm(exec *e) { return e->o.comm; }
void exec_set_profile(exec *e, bool on) { e->profile = on; }
