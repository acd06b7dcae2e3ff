/* fuse.c - neighbouring element-wise and row instructions become one kernel, so that what they hand on never goes
 * through memory.
 *
 *   before  i7 add b12 <- b10, b11; i8 rmsnorm b13, b14 <- b12, b3      after  i7 fused b12, b13, b14 <- b10, b11, b3
 *
 * Works on the plan's instructions, after views became strides and before buffers are placed: so it sees every
 * instruction that will run, also in loops' bodies and those that `save` put in, and every plan that a budget is held
 * against has its kernels already.
 *
 * Greedy, in order: an instruction joins the groups that made its operands, largest operand first, when
 *   - it reads them element by element in the order in which they are made (or along rows: gen_role), after at most a
 *     reshape; one space of rows and columns holds the whole group;
 *   - the group may run where this instruction stands: nothing between reads what it makes or writes what it reads;
 *   - bytes alive do not rise: neither between, where the group's operands now live longer and its results start later,
 *     nor at the kernel itself.
 * Values that nothing else reads vanish. Deterministic: ranks make equal plans.
 *
 * Every instruction that is not exact (gen_exact) becomes a kernel even alone: its bits are then the same in every
 * grouping, so recomputing a value in another group gives the value.
 */
#include "plan/plan.h"

#include <limits.h>

enum {
    REACH = 64,   /* instructions passed by when a group moves */
    LARGEST = 32, /* members of a group */
    SLACK = 64    /* a kernel may have this part more bytes alive: sums over rows, statistics */
};

/* Rows x columns: the last dimension is the row. */
typedef struct space {
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    bool rows;   /* something is reduced along the last dimension, or over the others */
    bool halves; /* something combines the halves of rows: windows of them are shown */
} space;

typedef struct group {
    VEC(int) member; /* instructions, ascending; the kernel stands where the last stood */
    space s;
} group;

typedef struct fuser {
    plan *p;
    plan_list *list;
    const plan_options *o;
    int prog;     /* the program it belongs to */
    int loop;     /* whose body the list is; -1 the program itself */
    arena *a;     /* scratch */
    int *in;      /* by instruction: its group, -1 */
    int *writer;  /* by buffer: the last instruction so far that wrote it, -1 */
    int *last;    /* by buffer: where it is read for the last time; INT_MAX: it is the program's result */
    int *readers; /* by buffer: how many instructions read it */
    VEC(group) groups;
} fuser;

static plan_instr *instr(const fuser *f, int i) { return &f->list->data[i]; }
static const plan_tensor *tensor_of(const plan_instr *i, int k) { return k < i->nin ? &i->in[k] : &i->out[k - i->nin]; }

/* A buffer of this list that nothing outside it sees? */
static bool own(const fuser *f, int b) {
    const plan_buf *x = &f->p->bufs.data[b];
    return x->section == SEC_WORK && x->loop == f->loop && f->last[b] != INT_MAX;
}

static bool fusable(const plan *p, const plan_instr *i) {
    enum { MOST = 8 };
    const tensor *t[MOST];
    if (i->loop || i->axis >= 0 || !i->node || i->nin + i->nout > MOST || i->nin < 1 || i->nout < 1) return false;
    if (i->accumulate && i->op != OP_accum) return false;
    for (int k = 0; k < i->nin + i->nout; k++) {
        t[k] = &tensor_of(i, k)->t;
        if (t[k]->type == DT_F64 && p->type != DT_F64) return false; /* not compilable */
    }
    if (tensor_numel(&i->in[0].t) == 0) return false;
    return gen_can(i->op, i->node, i->nin, i->nout, t);
}

static space space_of(const plan_instr *i) {
    space s = {.rows = gen_reduces(i->op), .halves = gen_halves(i->op)};
    const tensor *t = s.rows ? &i->in[0].t : &i->out[0].t;
    s.rank = t->rank;
    memcpy(s.dim, t->dim, sizeof s.dim);
    return s;
}

static int64_t numel(const space *s) {
    int64_t n = 1;
    for (int d = 0; d < s->rank; d++) n *= s->dim[d];
    return n;
}

static gen_role role_of(const plan_instr *i, int k) { return gen_role_of(i->op, i->node, i->in[0].t.rank, k); }

/* Does it hold n elements side by side? */
static bool line_of(const plan_tensor *x, int64_t n) { return tensor_contiguous(&x->t) && tensor_numel(&x->t) == n; }

/* Tensor k of an instruction as the space shows it: all its dimensions, stride 0 where the tensor has none. */
static bool placed(const plan_instr *i, int k, const space *s, plan_tensor *out) {
    const plan_tensor *x = tensor_of(i, k);
    gen_role role = role_of(i, k);
    int last = s->rank - 1;
    *out = *x;
    out->t.rank = s->rank;
    memcpy(out->t.dim, s->dim, sizeof s->dim);
    memset(out->t.stride, 0, sizeof out->t.stride);
    if (role == GEN_ANGLES) {
        if (s->rank != 4) return false;
        for (int d = 0; d < 3; d++) out->t.stride[d < 2 ? d : 3] = x->t.dim[d] == 1 ? 0 : x->t.stride[d];
    } else if (role == GEN_COLUMN) {
        if (!line_of(x, s->dim[last])) return false;
        out->t.stride[last] = 1;
    } else if (!plan_reshape_strides(&x->t, role == GEN_ROW ? last : s->rank, s->dim, out->t.stride)) {
        return false;
    }
    for (int d = 0; d < s->rank; d++)
        if (s->dim[d] == 1) out->t.stride[d] = 0;
    return true;
}

static bool same_window(const plan_tensor *a, const plan_tensor *b) {
    return a->buf == b->buf && a->offset == b->offset && a->rank_step == b->rank_step && a->tile_step == b->tile_step &&
           a->t.type == b->t.type && memcmp(a->t.stride, b->t.stride, sizeof a->t.stride) == 0;
}

/* Is it `accum` of a column sum that the group makes? Then it is the sum's place, not a computation. */
static bool adds_columns(const fuser *f, const group *g, const plan_instr *i) {
    int64_t n = g->s.dim[g->s.rank - 1];
    if (i->op != OP_accum || !line_of(&i->in[0], n) || !line_of(&i->out[0], n)) return false;
    for (int m = 0; m < g->member.n; m++) {
        const plan_instr *x = instr(f, g->member.data[m]);
        for (int k = 0; k < x->nout; k++)
            if (x->out[k].buf == i->in[0].buf && x->op != OP_accum)
                return role_of(x, x->nin + k) == GEN_COLUMN && x->out[k].offset == i->in[0].offset &&
                       x->out[k].t.type == i->in[0].t.type;
    }
    return false;
}

/* The member that writes the buffer, and which of its results it is; -1: none. */
static int maker(const fuser *f, const group *g, int id, int *result) {
    for (int m = g->member.n - 1; m >= 0; m--) {
        const plan_instr *x = instr(f, g->member.data[m]);
        for (*result = 0; *result < x->nout; ++*result)
            if (x->out[*result].buf == id) return g->member.data[m];
    }
    return -1;
}

static bool reads(const fuser *f, const group *g, int id) {
    for (int m = 0; m < g->member.n; m++)
        for (int k = 0; k < instr(f, g->member.data[m])->nin; k++)
            if (instr(f, g->member.data[m])->in[k].buf == id) return true;
    return false;
}

/* Can the space show a member of the group? Transposed copies are left to a kernel that goes through cache in blocks.
 */
static bool shown(const fuser *f, const group *g, const plan_instr *i, const space *s) {
    plan_tensor t;
    if (adds_columns(f, g, i)) return true;
    for (int k = 0; k < i->nin + i->nout; k++)
        if (!placed(i, k, s, &t) || (i->op == OP_copy && t.t.stride[s->rank - 1] > 1)) return false;
    return true;
}

/* May the instruction be in a kernel with the group: does it read what the group makes element by element? */
static bool linked(const fuser *f, const group *g, const plan_instr *i, const space *s) {
    plan_tensor mine, made;
    int k;
    for (int j = 0; j < i->nout; j++)
        if (maker(f, g, i->out[j].buf, &k) >= 0 || reads(f, g, i->out[j].buf)) return false;
    if (adds_columns(f, g, i)) return true;
    for (int j = 0; j < i->nin; j++) {
        int m = maker(f, g, i->in[j].buf, &k);
        if (m < 0) continue;
        const plan_instr *x = instr(f, m);
        if (x->op == OP_accum || role_of(x, x->nin + k) == GEN_COLUMN) return false;
        bool fits = placed(i, j, s, &mine) && placed(x, x->nin + k, s, &made);
        if (!fits || !same_window(&mine, &made)) return false;
    }
    return true;
}

/* A space for both groups: that of the one that reduces. */
static bool common(const fuser *f, const group *g, const group *h, space *s) {
    int last = g->s.rank - 1;
    *s = g->s;
    if (h->member.n == 1 && adds_columns(f, g, instr(f, h->member.data[0]))) return true;
    if (numel(&g->s) != numel(&h->s)) return false;
    if (g->s.rows && h->s.rows && g->s.dim[last] != h->s.dim[h->s.rank - 1]) return false;
    if ((g->s.rows || h->s.rows) && (g->s.halves || h->s.halves)) return false;
    if (!g->s.rows && !g->s.halves) *s = h->s;
    if (g->s.halves && h->s.halves && memcmp(g->s.dim, h->s.dim, sizeof g->s.dim) != 0) return false;
    for (int m = 0; m < g->member.n; m++)
        if (!shown(f, g, instr(f, g->member.data[m]), s)) return false;
    for (int m = 0; m < h->member.n; m++)
        if (!shown(f, h, instr(f, h->member.data[m]), s)) return false;
    return true;
}

/* ---- may it move, and what becomes of the bytes alive --------------------------------------------- */

static bool touches(const fuser *f, const group *g, const plan_instr *j) {
    int k;
    for (int x = 0; x < j->nin; x++)
        if (maker(f, g, j->in[x].buf, &k) >= 0) return true;
    for (int x = 0; x < j->nout; x++)
        if (maker(f, g, j->out[x].buf, &k) >= 0 || reads(f, g, j->out[x].buf)) return true;
    return false;
}

/* Distinct buffers of this list. */
typedef struct touched {
    int buf[2 * GEN_MAX_TENSORS];
    int n;
} touched;

static void note(touched *t, int id) {
    for (int i = 0; i < t->n; i++)
        if (t->buf[i] == id) return;
    ASSERT(t->n < (int)(sizeof t->buf / sizeof *t->buf));
    t->buf[t->n++] = id;
}
static bool has(const touched *t, int id) {
    for (int i = 0; i < t->n; i++)
        if (t->buf[i] == id) return true;
    return false;
}

/* What the instructions read and do not make themselves; what they make. */
static void collect(const fuser *f, const int *member, int n, touched *in, touched *out) {
    for (int m = 0; m < n; m++)
        for (int k = 0; k < instr(f, member[m])->nout; k++)
            if (own(f, instr(f, member[m])->out[k].buf)) note(out, instr(f, member[m])->out[k].buf);
    for (int m = 0; m < n; m++)
        for (int k = 0; k < instr(f, member[m])->nin; k++) {
            int b = instr(f, member[m])->in[k].buf;
            if (own(f, b) && !has(out, b)) note(in, b);
        }
}

static int64_t size(const fuser *f, int b) { return round_up(f->p->bufs.data[b].bytes, 256); }

/* Bytes of these buffers that are alive while a kernel of them runs, before and after it: operands and results, less
 * results that take an operand's place (which halves of rows do not). `end`: instructions up to here are over (or in
 * the kernel) when it has run. */
static int64_t alive(const fuser *f, const touched *in, const touched *out, int end, bool halves) {
    int64_t sum = 0;
    bool taken[2 * GEN_MAX_TENSORS] = {0};
    for (int i = 0; i < out->n; i++) {
        taken[i] = f->last[out->buf[i]] <= end; /* it vanishes */
        if (!taken[i]) sum += size(f, out->buf[i]);
    }
    for (int i = 0; i < in->n; i++) {
        sum += size(f, in->buf[i]);
        for (int k = 0; k < out->n && !halves && f->last[in->buf[i]] <= end; k++) {
            if (taken[k] || f->p->bufs.data[out->buf[k]].bytes != f->p->bufs.data[in->buf[i]].bytes) continue;
            taken[k] = true;
            sum -= size(f, out->buf[k]);
            break;
        }
    }
    return sum;
}

/* Do bytes alive not rise when g, which stands at `from`, joins the instructions `with`, which end at `to`? */
static bool lean(const fuser *f, const group *g, const group *with, int to) {
    const bool halves = g->s.halves || with->s.halves;
    touched gi = {.n = 0}, go = {.n = 0}, wi = {.n = 0}, wo = {.n = 0}, in = {.n = 0}, out = {.n = 0};
    int from = g->member.data[g->member.n - 1], both[2 * LARGEST], n = 0;
    for (int m = 0; m < g->member.n; m++) both[n++] = g->member.data[m];
    for (int m = 0; m < with->member.n; m++) both[n++] = with->member.data[m];
    collect(f, g->member.data, g->member.n, &gi, &go);
    collect(f, with->member.data, with->member.n, &wi, &wo);
    collect(f, both, n, &in, &out);
    int64_t longer = 0, later = 0;
    for (int i = 0; i < gi.n; i++)
        if (f->last[gi.buf[i]] <= from) longer += size(f, gi.buf[i]);
    for (int i = 0; i < go.n; i++)
        if (f->last[go.buf[i]] > from) later += size(f, go.buf[i]);
    if (longer > later && to - from > 1) return false;
    /* At the kernel: against g with the other operands waiting, and against the others with g's results waiting. */
    int64_t first = alive(f, &gi, &go, from, g->s.halves), second = alive(f, &wi, &wo, to, with->s.halves);
    for (int i = 0; i < wi.n; i++)
        if (!has(&gi, wi.buf[i]) && !has(&go, wi.buf[i]) && f->writer[wi.buf[i]] < from) first += size(f, wi.buf[i]);
    for (int i = 0; i < go.n; i++)
        if (!has(&wi, go.buf[i]) && f->last[go.buf[i]] > to) second += size(f, go.buf[i]);
    for (int i = 0; i < gi.n; i++)
        if (!has(&wi, gi.buf[i]) && f->last[gi.buf[i]] > to) second += size(f, gi.buf[i]);
    return alive(f, &in, &out, to, halves) <= max64(first, second) + max64(first, second) / SLACK;
}

/* Operands and results of the two together stay few enough for one kernel. */
static bool fits(const fuser *f, const group *g, const group *with) {
    int n = 0;
    for (int m = 0; m < g->member.n; m++) n += instr(f, g->member.data[m])->nin + instr(f, g->member.data[m])->nout;
    for (int m = 0; m < with->member.n; m++)
        n += instr(f, with->member.data[m])->nin + instr(f, with->member.data[m])->nout;
    if (g->s.halves || with->s.halves) n *= 2;
    return n <= GEN_MAX_TENSORS && g->member.n + with->member.n <= LARGEST;
}

/* Does nothing that runs between instructions `at` and i, outside group `to`, stand in the way of group g? */
static bool free_way(const fuser *f, const group *g, int at, int to, int i) {
    for (int j = at + 1; j < i; j++) {
        int other = f->in[j];
        if (other == to) continue;
        if (other < 0) {
            if (touches(f, g, instr(f, j))) return false;
            continue;
        }
        const group *o = &f->groups.data[other];
        if (o->member.data[o->member.n - 1] != j) continue; /* it runs later */
        for (int m = 0; m < o->member.n; m++)
            if (touches(f, g, instr(f, o->member.data[m]))) return false;
    }
    return true;
}

/* Joins group `from` to group `to`, whose last member is instruction i: all members run there. */
static void join(fuser *f, int from, int to, int i) {
    group *g = &f->groups.data[from], *h = &f->groups.data[to];
    int at = g->member.data[g->member.n - 1];
    space s;
    if (i - at > REACH || instr(f, at)->backward != instr(f, i)->backward || !fits(f, g, h)) return;
    if (!common(f, g, h, &s)) return;
    for (int m = 0; m < h->member.n; m++)
        if (!linked(f, g, instr(f, h->member.data[m]), &s)) return;
    if (!free_way(f, g, at, to, i) || !lean(f, g, h, i)) return;
    group both = {.s = s};
    for (int x = 0, y = 0; x < g->member.n || y < h->member.n;) { /* ascending */
        bool left = y == h->member.n || (x < g->member.n && g->member.data[x] < h->member.data[y]);
        vec_push(f->a, &both.member, left ? g->member.data[x++] : h->member.data[y++]);
    }
    for (int m = 0; m < g->member.n; m++) {
        f->in[g->member.data[m]] = to;
        for (int k = 0; k < instr(f, g->member.data[m])->nin; k++) {
            int *last = &f->last[instr(f, g->member.data[m])->in[k].buf];
            if (*last < i) *last = i;
        }
    }
    *h = both;
}

/* Instruction i, alone in its group, joins the groups that made its operands. */
static void grow(fuser *f, int i) {
    const plan_instr *x = instr(f, i);
    bool tried[LARGEST] = {0};
    for (int round = 0; round < x->nin; round++) {
        int best = -1;
        for (int k = 0; k < x->nin; k++)
            if (!tried[k] && (best < 0 || tensor_numel(&x->in[k].t) > tensor_numel(&x->in[best].t))) best = k;
        tried[best] = true;
        int w = f->writer[x->in[best].buf], from = w < 0 ? -1 : f->in[w];
        if (from >= 0 && from != f->in[i]) join(f, from, f->in[i], i);
    }
}

/* ---- the kernel ---------------------------------------------------------------------------------- */

/* A kernel in the making. */
typedef struct draft {
    const fuser *f;
    const group *g;
    space s;
    gen_kernel *k;
    VEC(plan_tensor) in, out;
    VEC(gen_result) result;
    int halves;                    /* 2: windows and statements of both halves of a row; 1 */
    int (*operand)[2][IR_MAX_OUT]; /* by member, by half, by operand: which of `in`; -1: a member makes it */
} draft;

/* Is result k of the member read outside the group? */
static bool escapes(const fuser *f, const group *g, const plan_instr *x, int k) {
    int b = x->out[k].buf, inside = 0;
    if (!own(f, b)) return true;
    for (int m = 0; m < g->member.n; m++) {
        bool here = false;
        for (int j = 0; j < instr(f, g->member.data[m])->nin; j++) here |= instr(f, g->member.data[m])->in[j].buf == b;
        inside += here;
    }
    return f->readers[b] > inside;
}

/* Half h of a window's rows. */
static void cut(const draft *d, int h, plan_tensor *t) {
    int last = t->t.rank - 1;
    if (d->halves == 1) return;
    t->t.dim[last] /= 2;
    t->offset += h * t->t.dim[last] * t->t.stride[last];
}

static void add_result(draft *d, const plan_instr *x, int j, int half, bool columns) {
    plan_tensor t = x->out[j];
    if (columns) { /* of `accum`: its place, row by row the same */
        t.t.rank = d->s.rank;
        memcpy(t.t.dim, d->s.dim, sizeof t.t.dim);
        memset(t.t.stride, 0, sizeof t.t.stride);
        t.t.stride[d->s.rank - 1] = 1;
    } else {
        bool ok = placed(x, x->nin + j, &d->s, &t);
        ASSERT(ok);
        cut(d, half, &t);
    }
    bool sum = columns || role_of(x, x->nin + j) == GEN_COLUMN, adds = x->op == OP_accum;
    gen_result r = {.type = t.t.type,
                    .store = sum    ? (adds ? GEN_COLUMNS_ADD : GEN_COLUMNS)
                             : adds ? GEN_ADD
                                    : GEN_STORE};
    vec_push(d->f->a, &d->out, t);
    vec_push(d->f->a, &d->result, r);
}

/* Operands and results, each window once. */
static void windows(draft *d) {
    const fuser *f = d->f;
    int result;
    for (int i = 0; i < d->g->member.n; i++) {
        const plan_instr *x = instr(f, d->g->member.data[i]);
        bool columns = adds_columns(f, d->g, x);
        for (int j = 0; j < x->nin * d->halves; j++) {
            plan_tensor t;
            int h = j / x->nin, o = j % x->nin;
            d->operand[i][h][o] = -1;
            if (maker(f, d->g, x->in[o].buf, &result) >= 0) continue;
            bool ok = placed(x, o, &d->s, &t);
            ASSERT(ok);
            cut(d, h, &t);
            int w = 0;
            while (w < d->in.n && !same_window(&d->in.data[w], &t)) w++;
            if (w == d->in.n) vec_push(f->a, &d->in, t);
            d->operand[i][h][o] = w;
        }
        for (int j = 0; j < x->nout; j++)
            for (int h = 0; h < d->halves && escapes(f, d->g, x, j); h++) add_result(d, x, j, h, columns);
    }
}

static plan_tensor *window(draft *d, int w) { return w < d->in.n ? &d->in.data[w] : &d->out.data[w - d->in.n]; }

/* Dimensions that step together in all windows become one; rows stay apart where they are reduced. */
static void fold(draft *d) {
    space s = {.rows = d->s.rows};
    int n = d->in.n + d->out.n, last = d->s.rank - 1;
    d->s.dim[last] /= d->halves;
    int64_t(*stride)[TENSOR_MAX_RANK] = arena_alloc(d->f->a, sizeof *stride * (size_t)(n + 1));
    for (int x = 0; x <= last; x++) {
        bool row = x == last && s.rows, joins = s.rank > 0 && !row;
        if (d->s.dim[x] == 1 && !row) continue;
        for (int w = 0; w < n && joins; w++) joins = stride[w][s.rank - 1] == window(d, w)->t.stride[x] * d->s.dim[x];
        int at = joins ? s.rank - 1 : s.rank++;
        s.dim[at] = joins ? s.dim[at] * d->s.dim[x] : d->s.dim[x];
        for (int w = 0; w < n; w++) stride[w][at] = window(d, w)->t.stride[x];
    }
    if (!s.rank) s.dim[s.rank++] = 1;
    for (int w = 0; w < n; w++) {
        tensor *t = &window(d, w)->t;
        t->rank = s.rank;
        memcpy(t->dim, s.dim, sizeof s.dim);
        memcpy(t->stride, stride[w], sizeof t->stride);
    }
    d->s = s;
}

static gen_step step_of(const plan_tensor *t) {
    int64_t s = t->t.stride[t->t.rank - 1];
    return s == 0 ? GEN_STILL : s == 1 ? GEN_UNIT : GEN_STRIDED;
}

/* Is it the same in every row of several? */
static bool fixed(const plan_tensor *t) {
    int64_t rows = 1;
    bool still = true;
    for (int d = 0; d + 1 < t->t.rank; d++) {
        rows *= t->t.dim[d];
        still &= t->t.stride[d] == 0;
    }
    return still && rows > 1;
}

/* The statements of member i's operands, of half h; value: those of all members' results. */
static void operands(draft *d, int i, int h, int (*value)[2][IR_MAX_OUT], int *in) {
    const plan_instr *x = instr(d->f, d->g->member.data[i]);
    for (int j = 0, made = 0; j < x->nin; j++) {
        if (d->operand[i][h][j] >= 0) {
            in[j] = gen_load(d->k, d->operand[i][h][j]);
            continue;
        }
        int m = maker(d->f, d->g, x->in[j].buf, &made), y = 0;
        while (d->g->member.data[y] != m) y++;
        in[j] = value[y][h][made];
    }
}

static void statements(draft *d) {
    const fuser *f = d->f;
    gen_kernel *k = d->k;
    int(*value)[2][IR_MAX_OUT] = arena_alloc(f->a, sizeof *value * (size_t)(d->g->member.n + 1)), results = 0;
    for (int i = 0; i < d->in.n; i++)
        vec_push(k->a, &k->in,
                 ((gen_operand){
                     .type = d->in.data[i].t.type, .step = step_of(&d->in.data[i]), .fixed = fixed(&d->in.data[i])}));
    for (int i = 0; i < d->g->member.n; i++) {
        const plan_instr *x = instr(f, d->g->member.data[i]);
        int in[2][IR_MAX_OUT];
        dtype type[IR_MAX_OUT];
        for (int j = 0; j < x->nout; j++) type[j] = x->out[j].t.type;
        for (int h = 0; h < d->halves; h++) operands(d, i, h, value, in[h]);
        if (gen_halves(x->op)) {
            int both[2][3] = {{in[0][0], in[0][1], in[0][2]}, {in[1][0], in[1][1], in[1][2]}}, y[2];
            gen_halves_member(k, x->node, both, type[0], y);
            value[i][0][0] = y[0];
            value[i][1][0] = y[1];
        }
        for (int h = 0; h < d->halves && !gen_halves(x->op); h++)
            if (adds_columns(f, d->g, x))
                value[i][h][0] = in[h][0];
            else
                gen_member(k, x->op, x->node, x->in[0].t.rank, in[h], type, value[i][h]);
        for (int j = 0; j < x->nout; j++)
            for (int h = 0; h < d->halves && escapes(f, d->g, x, j); h++) {
                gen_result r = d->result.data[results];
                r.value = value[i][h][j];
                r.step = step_of(&d->out.data[results++]);
                vec_push(k->a, &k->out, r);
            }
    }
    gen_finish(k);
}

/* The members' ops; what only brings a column sum to its place, and the tail of a long list, is left out. */
static const char *name_of(const fuser *f, const group *g) {
    enum { LONGEST = 48 };
    buf b = {0};
    for (int m = 0; m < g->member.n; m++) {
        const plan_instr *x = instr(f, g->member.data[m]);
        if (adds_columns(f, g, x)) continue;
        if (b.n > LONGEST) {
            buf_printf(&b, "+...");
            break;
        }
        buf_printf(&b, "%s%s", b.n ? "+" : "", op_table[x->op].name);
    }
    const char *name = arena_strdup(f->p->a, b.data);
    buf_free(&b);
    return name;
}

static plan_instr kernel_instr(const fuser *f, const group *g) {
    plan *p = f->p;
    draft d = {.f = f, .g = g, .s = g->s, .k = gen_new(p->a), .halves = g->s.halves ? 2 : 1};
    d.operand = arena_alloc(f->a, sizeof *d.operand * (size_t)g->member.n);
    windows(&d);
    fold(&d);
    statements(&d);
    d.k->name = name_of(f, g);
    const plan_instr *last = instr(f, g->member.data[g->member.n - 1]);
    plan_instr x = {.op = OP_fused, .node = last->node, .work = -1, .axis = -1, .backward = last->backward};
    x.kernel = d.k;
    x.nin = d.in.n;
    x.nout = d.out.n;
    x.in = arena_memdup(p->a, d.in.data, sizeof *x.in * (size_t)d.in.n);
    x.out = arena_memdup(p->a, d.out.data, sizeof *x.out * (size_t)d.out.n);
    int64_t bytes = f->o->workspace ? f->o->workspace(f->o->ctx, &x) : 0;
    if (bytes > 0) {
        plan_buf b = {.section = SEC_WORK, .bytes = bytes, .offset = -1, .first = -1, .last = -1};
        b.program = f->prog;
        b.loop = f->loop;
        vec_push(p->a, &p->bufs, b);
        x.work = p->bufs.n - 1;
    }
    vec_push(p->a, &p->kernels, d.k);
    return x;
}

/* ---- the list ------------------------------------------------------------------------------------ */

static void find_readers(fuser *f, const plan_tensor *result) {
    for (int i = 0; i < f->list->n; i++) {
        const plan_instr *x = instr(f, i);
        for (int k = 0; k < x->nin; k++) {
            bool again = false;
            for (int j = 0; j < k; j++) again |= x->in[j].buf == x->in[k].buf;
            f->readers[x->in[k].buf] += !again;
            f->last[x->in[k].buf] = i;
        }
    }
    if (result) f->last[result->buf] = INT_MAX;
}

static void rebuild(fuser *f) {
    plan_list out = {0};
    for (int i = 0; i < f->list->n; i++) {
        const group *g = f->in[i] < 0 ? NULL : &f->groups.data[f->in[i]];
        bool kernel = g && (g->member.n > 1 || !gen_exact(instr(f, i)->op));
        if (kernel && g->member.data[g->member.n - 1] != i) continue;
        vec_push(f->p->a, &out, kernel ? kernel_instr(f, g) : *instr(f, i));
    }
    *f->list = out;
}

static void fuse_list(plan *p, plan_list *list, const plan_tensor *result, int prog, int loop, const plan_options *o) {
    for (int i = 0; i < list->n; i++)
        if (list->data[i].loop) fuse_list(p, &list->data[i].loop->body, NULL, prog, list->data[i].work, o);
    fuser f = {.p = p, .list = list, .o = o, .prog = prog, .loop = loop, .a = arena_new()};
    f.in = ARENA_ARRAY(f.a, int, list->n + 1);
    f.writer = ARENA_ARRAY(f.a, int, p->bufs.n);
    f.last = ARENA_ARRAY(f.a, int, p->bufs.n);
    f.readers = ARENA_ARRAY(f.a, int, p->bufs.n);
    memset(f.writer, -1, sizeof *f.writer * (size_t)p->bufs.n);
    find_readers(&f, result);
    for (int i = 0; i < list->n; i++) {
        const plan_instr *x = instr(&f, i);
        f.in[i] = -1;
        if (fusable(p, x)) {
            group g = {.s = space_of(x)};
            vec_push(f.a, &g.member, i);
            f.in[i] = f.groups.n;
            vec_push(f.a, &f.groups, g);
            grow(&f, i);
        }
        for (int k = 0; k < x->nout; k++) f.writer[x->out[k].buf] = i;
    }
    rebuild(&f);
    arena_free(f.a);
}

void plan_fuse(plan *p, int program, const plan_options *o) {
    plan_program *pr = &p->program[program];
    fuse_list(p, &pr->instrs, pr->has_result ? &pr->result : NULL, program, -1, o);
}
