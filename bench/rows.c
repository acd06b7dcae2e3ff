/* rows.c - bench_rows [threads] [filter] [wall|cpu]: how near the kernels that are bound by memory come to it.
 *
 * All kernels of a training step but products, attention and exchanges, as training runs them: generated ones built
 * from the same statements that fusion builds them from (gen_member) and run by the same code (device/cpu/fused.c), the
 * others by their functions. Sizes are those of a GPT-2 small or a Llama of 160 M at some thousand tokens, and out of
 * cache; arrays lie in huge pages, as a plan's arena does (exec/pages.c).
 *
 * Bytes are those that must move: operands read once and results written once. The bound of a kernel is measured in the
 * same run, in turns with it: a loop that reads as many arrays and writes as many, as many of them in place, by an OR
 * of what it reads, which leaves numbers of usual size in them. It uses ordinary stores, so a store to a line that is
 * not in cache reads the line first, for the bound as for the kernel; `of best` is the share of the highest bandwidth
 * of any such loop. Shares below 70 % are marked.
 * Kernels of exponentials and of dropout have a second bound, their arithmetic: what the exponentials of a term of a
 * sum and of a numerator (as exact as the type wants them), or Philox, take from registers alone, on all threads in the
 * same run; the last column is the share of that. `cpu` takes processors' time over the number of threads instead of
 * the clock (bench/kernels.c).
 */
#include "device/cpu/cpu.h"
#include "device/cpu/keep.h"
#include "device/cpu/rows.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { REPS = 9, ARRAYS = 10, MOST = 64, HUGE_PAGE = 2 << 20 };
static const int64_t ROOM = (int64_t)128 << 20; /* bytes of an array */

static const char *filter = "";
static int threads = 1;
static bool by_cpu;
static char *array[ARRAYS]; /* random numbers of size 1 */
static double best_rate;

static double clock_s(void) {
    struct timespec t;
    if (!by_cpu) return now_s();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / threads;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- the bound ------------------------------------------------------------------------------------- */

/* What a kernel reads and writes, in bytes; `arrays` of each, of which the first `in_place` are the same. */
typedef struct traffic {
    double bytes;
    int read, written, in_place;
} traffic;

static void stream(const traffic *m, int64_t n) {
    float *const *x = (float *const *)array;
    const int fresh = m->read - m->in_place; /* results that are no operands lie behind these */
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < n / ELEM_CHUNK; c++)
        for (int64_t i = c * ELEM_CHUNK; i < (c + 1) * ELEM_CHUNK; i += VL) {
            vi s = {0};
            for (int r = 0; r < m->read; r++) s |= (vi)vld(x[r] + i);
            for (int w = 0; w < m->written; w++) vst(x[w < m->in_place ? w : fresh + w] + i, (vf)s);
            if (!m->written && s[0] == 1) abort();
        }
}

/* ---- a kernel ---------------------------------------------------------------------------------------- */

enum { TERM = 1, NUMERATOR = 2, KEEP = 4 }; /* what an element takes */

typedef struct bench {
    const char *name;
    int takes;
    int64_t rows, cols;
    void (*run)(struct bench *b); /* NULL: generated */
    traffic m;
    dtype type;
    gen_kernel *k;
    gen_fn *code;
    tensor t[GEN_MAX_TENSORS];
    int next; /* array for the next big tensor */
    dev_call c;
} bench;

static bench all[MOST];
static int count;
static arena *memory;

static bench *add(const char *name, dtype t, int64_t rows, int64_t cols) {
    bench *b = &all[count++];
    ASSERT(count <= MOST);
    *b = (bench){.name = name, .rows = rows, .cols = cols, .type = t};
    return b;
}

/* Accounts for a tensor of the space, which is big or not worth counting as a stream. */
static double bytes_of(const tensor *t) {
    double n = (double)dtype_size(t->type);
    for (int d = 0; d < t->rank; d++)
        if (t->stride[d]) n *= (double)t->dim[d];
    return n;
}

static tensor shaped(bench *b, dtype type, gen_role role, bool still_rows, char *at) {
    tensor t = {.type = type, .rank = 2, .dim = {b->rows, b->cols}};
    t.stride[0] = role == GEN_ELEMENTS ? b->cols : role == GEN_ROW && !still_rows;
    t.stride[1] = role != GEN_ROW;
    bool big = role == GEN_ELEMENTS;
    const size_t small = (size_t)round_up(8 * (max64(b->rows, b->cols) + 64), 64); /* on whole lines, as in a plan */
    t.data = at ? at : big ? array[b->next++] : aligned_alloc(64, small);
    ASSERT(t.data && b->next <= ARRAYS);
    if (!at && !big) memset(t.data, 0, small);
    return t;
}

/* The statement of a new operand. */
static int operand(bench *b, dtype type, gen_role role) {
    if (!b->k) b->k = gen_new(memory);
    int i = b->k->in.n;
    b->t[i] = shaped(b, type, role, false, NULL);
    if (role == GEN_ELEMENTS) b->m.read++;
    b->m.bytes += bytes_of(&b->t[i]);
    gen_operand o = {.type = type, .step = role == GEN_ROW ? GEN_STILL : GEN_UNIT, .fixed = role == GEN_COLUMN};
    vec_push(memory, &b->k->in, o);
    return gen_load(b->k, i);
}

/* A result; place: the operand in whose place it lies, -1 none. Results come after all operands. */
static void result(bench *b, int value, dtype type, gen_role role, gen_store store, int place) {
    int i = b->k->in.n + b->k->out.n;
    b->t[i] = shaped(b, type, role, false, place >= 0 ? b->t[place].data : NULL);
    if (role == GEN_ELEMENTS) {
        b->m.written++;
        b->m.in_place += place >= 0;
    }
    b->m.bytes += bytes_of(&b->t[i]);
    gen_result r = {.type = type, .step = role == GEN_ROW ? GEN_STILL : GEN_UNIT, .store = store, .value = value};
    vec_push(memory, &b->k->out, r);
}

/* The values of an op of these statements. */
static const int *member(bench *b, ir_op op, const int *in, dtype type) {
    static int value[IR_MAX_OUT];
    static const ir_node plain = {0};
    dtype types[IR_MAX_OUT];
    for (int i = 0; i < IR_MAX_OUT; i++) types[i] = type;
    gen_member(b->k, op, &plain, 2, in, types, value);
    return value;
}

static void run_generated(bench *b) {
    sp_status s = device_cpu.table[OP_fused](&b->c);
    ASSERT(s == SP_OK);
}

static void finish(bench *b) {
    gen_finish(b->k);
    b->run = run_generated;
    b->c = (dev_call){.op = OP_fused, .kernel = b->k, .nin = b->k->in.n, .nout = b->k->out.n, .in = b->t};
    b->c.out = b->t + b->k->in.n;
    b->c.threads = threads;
    b->c.work = aligned_alloc(64, (size_t)round_up(device_cpu.workspace(&b->c) + 64, 64));
}

/* One op on elements only: `place` as in result(). */
static void simple(const char *name, ir_op op, dtype t, int64_t rows, int64_t cols, int nin, int nout,
                   const int *place) {
    bench *b = add(name, t, rows, cols);
    int in[4], out[4];
    for (int i = 0; i < nin; i++) in[i] = operand(b, t, GEN_ELEMENTS);
    memcpy(out, member(b, op, in, t), sizeof out);
    for (int i = 0; i < nout; i++) result(b, out[i], t, GEN_ELEMENTS, GEN_STORE, place[i]);
    finish(b);
}

enum { HEAD = 64, HEADS = 12, VOCAB = 32000 };
static int64_t *ids; /* labels and tokens */

/* ---- the kernels of a step --------------------------------------------------------------------------- */

static void norms(dtype t) {
    enum { ROWS = 16384, COLS = 768 };
    const gen_role E = GEN_ELEMENTS, R = GEN_ROW, C = GEN_COLUMN;
    int in[8], *v;
    bench *b = add("residual + rmsnorm", t, ROWS, COLS);
    in[0] = operand(b, t, E), in[1] = operand(b, t, E), in[2] = operand(b, DT_F32, C);
    int sum = gen_round(b->k, gen_op2(b->k, OP_add, in[0], in[1]), t);
    v = (int *)member(b, OP_rmsnorm, (int[]){sum, in[2]}, t);
    result(b, sum, t, E, GEN_STORE, 0), result(b, v[0], t, E, GEN_STORE, -1), result(b, v[1], DT_F32, R, GEN_STORE, -1);
    finish(b);
    b = add("rmsnorm gradient + residual", t, ROWS, COLS); /* x, dy, residual's cotangent -> their sum, dw */
    in[0] = operand(b, t, E), in[3] = operand(b, t, E), in[4] = operand(b, t, E);
    in[1] = operand(b, DT_F32, C), in[2] = operand(b, DT_F32, R);
    v = (int *)member(b, OP_rmsnorm_grad, in, t);
    int dw = v[1], dx = gen_round(b->k, gen_op2(b->k, OP_add, v[0], in[4]), t);
    result(b, dx, t, E, GEN_STORE, 2), result(b, dw, DT_F32, C, GEN_COLUMNS_ADD, -1);
    finish(b);
    b = add("bias + residual + layernorm", t, ROWS, COLS);
    in[0] = operand(b, t, E), in[1] = operand(b, t, E), in[3] = operand(b, t, C);
    in[4] = operand(b, DT_F32, C), in[5] = operand(b, DT_F32, C);
    sum = gen_round(b->k, gen_op2(b->k, OP_add, in[0], gen_op2(b->k, OP_add, in[1], in[3])), t);
    v = (int *)member(b, OP_layernorm, (int[]){sum, in[4], in[5]}, t);
    result(b, sum, t, E, GEN_STORE, 0), result(b, v[0], t, E, GEN_STORE, -1);
    result(b, v[1], DT_F32, R, GEN_STORE, -1), result(b, v[2], DT_F32, R, GEN_STORE, -1);
    finish(b);
    b = add("layernorm gradient + residual", t, ROWS, COLS);
    in[0] = operand(b, t, E), in[4] = operand(b, t, E), in[5] = operand(b, t, E);
    in[1] = operand(b, DT_F32, C), in[2] = operand(b, DT_F32, R), in[3] = operand(b, DT_F32, R);
    v = (int *)member(b, OP_layernorm_grad, in, t);
    int db = v[2];
    dw = v[1], dx = gen_round(b->k, gen_op2(b->k, OP_add, v[0], in[5]), t);
    result(b, dx, t, E, GEN_STORE, 2), result(b, dw, DT_F32, C, GEN_COLUMNS_ADD, -1);
    result(b, db, DT_F32, C, GEN_COLUMNS_ADD, -1);
    finish(b);
    b = add("column sums", t, ROWS, COLS);
    in[0] = operand(b, t, E);
    result(b, in[0], DT_F32, C, GEN_COLUMNS_ADD, -1);
    finish(b);
}

static void elements(dtype t) {
    enum { ROWS = 4096, COLS = 3072 };
    static const int fresh[] = {-1, -1}, dy[] = {1}, both[] = {0, 1};
    simple("gelu (tanh)", OP_gelu_tanh, t, ROWS, COLS, 1, 1, fresh);
    simple("gelu (tanh) gradient", OP_gelu_tanh_grad, t, ROWS, COLS, 2, 1, dy);
    simple("gelu (exact)", OP_gelu, t, ROWS, COLS, 1, 1, fresh);
    simple("gelu (exact) gradient", OP_gelu_grad, t, ROWS, COLS, 2, 1, dy);
    simple("silu", OP_silu, t, ROWS, COLS, 1, 1, fresh);
    simple("swiglu", OP_swiglu, t, ROWS, COLS, 2, 1, fresh);
    simple("swiglu gradient", OP_swiglu_grad, t, ROWS, COLS, 3, 2, both);
    simple("sum", OP_add, t, ROWS, COLS, 2, 1, both);
    simple("softmax", OP_softmax, t, ROWS, COLS, 1, 1, both);
    all[count - 1].takes = t == DT_BF16 ? NUMERATOR : TERM;
    simple("softmax gradient", OP_softmax_grad, t, ROWS, COLS, 2, 1, dy);
}

/* Rows of logits with labels: the loss, its gradient, both in one. */
static void losses(dtype t) {
    static const char *const name[] = {"cross-entropy", "cross-entropy gradient", "cross-entropy + gradient"};
    for (int what = 0; what < 3; what++) {
        bench *b = add(name[what], t, 512, VOCAB);
        int in[4] = {operand(b, t, GEN_ELEMENTS), operand(b, DT_I64, GEN_ROW)}, v[2] = {-1, -1};
        b->takes = t == DT_BF16 ? NUMERATOR : TERM; /* bf16: as near as numerators are */
        if (what == 1) in[2] = operand(b, DT_F32, GEN_ROW);
        in[3] = what ? operand(b, DT_F32, GEN_ROW) : 0;
        b->t[1].data = ids;
        if (what != 1) {
            memcpy(v, member(b, OP_xent, in, DT_F32), sizeof v);
            in[2] = v[1];
            result(b, v[0], DT_F32, GEN_ROW, GEN_STORE, -1), result(b, v[1], DT_F32, GEN_ROW, GEN_STORE, -1);
        }
        if (what) result(b, *member(b, OP_xent_grad, in, t), t, GEN_ELEMENTS, GEN_STORE, 0);
        finish(b);
    }
}

/* Rotary embedding: rows are heads, columns half of one. */
static void rope(dtype t) {
    enum { TOKENS = 16384, HALF = HEAD / 2 };
    bench *b = add("rope", t, TOKENS, HEADS * HEAD);
    b->m = (traffic){(2.0 * HEADS + 2) * TOKENS * HEAD * (double)dtype_size(t), 1, 1, 1};
    b->k = gen_new(memory);
    char *x = array[b->next++], *angles[2] = {array[b->next], array[b->next + 1]};
    const ir_node plain = {0};
    int in[2][3], y[2];
    for (int i = 0; i < 6; i++) {
        vec_push(memory, &b->k->in, ((gen_operand){.type = t, .step = GEN_UNIT}));
        in[i / 3][i % 3] = gen_load(b->k, i);
    }
    gen_halves_member(b->k, &plain, in, t, y);
    for (int h = 0; h < 2; h++)
        vec_push(memory, &b->k->out, ((gen_result){.type = t, .step = GEN_UNIT, .store = GEN_STORE, .value = y[h]}));
    for (int i = 0; i < 8; i++) {
        int h = i < 6 ? i / 3 : i - 6, which = i < 6 ? i % 3 : 0;
        b->t[i] = (tensor){.type = t, .rank = 3, .dim = {TOKENS, HEADS, HALF}, .stride = {HEAD, 0, 1}};
        if (!which) b->t[i].stride[0] = HEADS * HEAD, b->t[i].stride[1] = HEAD;
        b->t[i].data = (which ? angles[which - 1] : x) + h * HALF * dtype_size(t);
    }
    finish(b);
}

static void optimizer(void) {
    bench *b = add("adamw", DT_F32, 1, 8192 * 3072);
    b->k = gen_adamw(memory);
    static float number[GEN_ADAMW_NUMBERS];
    adamw_params p = {.lr = 1e-5, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_scale = 1, .step = 10};
    gen_adamw_numbers(&p, number);
    for (int i = 0; i < 7 + GEN_ADAMW_NUMBERS; i++) {
        static const int place[] = {0, 2, 3};
        int r = i - 4 - GEN_ADAMW_NUMBERS; /* which result */
        bool big = i < 4 || r >= 0;
        b->t[i] = (tensor){.type = DT_F32, .rank = 1, .dim = {b->cols}, .stride = {big}};
        b->t[i].data = i < 4 ? array[i] : r >= 0 ? array[place[r]] : (char *)(number + i - 4);
        if (big) b->m.bytes += bytes_of(&b->t[i]);
    }
    b->m.read = 4, b->m.written = 3, b->m.in_place = 3;
    finish(b);
}

static void casts(void) {
    for (int way = 0; way < 2; way++) {
        bench *b = add(way ? "cast bf16 to f32" : "cast f32 to bf16", way ? DT_BF16 : DT_F32, 8192, 3072);
        int x = operand(b, b->type, GEN_ELEMENTS);
        dtype to = way ? DT_F32 : DT_BF16;
        result(b, gen_round(b->k, x, to), to, GEN_ELEMENTS, GEN_STORE, -1);
        finish(b);
    }
}

/* ---- kernels by hand --------------------------------------------------------------------------------- */

static bench *by_hand(const char *name, dtype t, int64_t rows, int64_t cols, void (*run)(bench *), double bytes,
                      int read, int written, int in_place) {
    bench *b = add(name, t, rows, cols);
    b->run = run;
    b->m = (traffic){bytes, read, written, in_place};
    return b;
}

static tensor heads(const bench *b, int which, bool first) { /* (B,S,H,D), in memory (B,H,S,D) if `first` */
    int64_t S = b->rows, H = b->cols / HEAD;
    tensor t = {.data = array[which], .type = b->type, .rank = 4, .dim = {1, S, H, HEAD}, .stride = {S * H * HEAD}};
    t.stride[1] = first ? HEAD : H * HEAD;
    t.stride[2] = first ? S * HEAD : HEAD;
    t.stride[3] = 1;
    return t;
}
static void run_rope(bench *b) {
    tensor x = heads(b, 0, false), cs = {.data = array[1], .type = b->type, .rank = 2, .dim = {b->rows, HEAD}};
    cs.stride[0] = HEAD, cs.stride[1] = 1;
    kern_rope(&x, &cs, &cs, false, &x);
}
static void run_heads_first(bench *b) {
    tensor x = heads(b, 0, false), y = heads(b, 1, true);
    kern_copy(&y, &x);
}
static void run_transpose(bench *b) {
    tensor x = {.data = array[0], .type = b->type, .rank = 2, .dim = {b->rows, b->cols}, .stride = {b->cols, 1}}, y = x;
    y.data = array[1], y.stride[0] = 1, y.stride[1] = b->rows;
    kern_copy(&y, &x);
}
static void run_copy(bench *b) {
    tensor x = {.data = array[0], .type = b->type, .rank = 2, .dim = {b->rows, b->cols}, .stride = {b->cols, 1}}, y = x;
    y.data = array[1];
    kern_copy(&y, &x);
}
static float row_data[3][1 << 15];
static void run_embed(bench *b) {
    sp_status s = kern_embed_fwd(b->type, b->rows, b->cols, VOCAB, ids, array[0], array[1], b->cols);
    ASSERT(s == SP_OK);
}
static void run_embed_grad(bench *b) {
    kern_embed_bwd(b->type, b->rows, b->cols, ids, -1, array[1], b->cols, (float *)array[0]);
}
static void run_xent(bench *b) {
    sp_status s = kern_xent_fwd(b->type, b->rows, b->cols, array[0], b->cols, ids, -100, row_data[0], row_data[1]);
    ASSERT(s == SP_OK);
}
static void run_xent_grad(bench *b) {
    kern_xent_bwd(b->type, b->rows, b->cols, array[0], b->cols, ids, -100, row_data[1], row_data[0], 0, array[0],
                  b->cols);
}
static void run_adamw(bench *b) {
    adamw_params p = {.lr = 1e-5, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_scale = 1, .step = 10};
    kern_adamw(b->rows * b->cols, (float *)array[0], (float *)array[3], (float *)array[1], (float *)array[2], &p, NULL);
}
static double norm_sink;
static void run_norm(bench *b) { norm_sink += kern_sumsq(DT_F32, b->rows * b->cols, array[0]); }
static void run_dropout(bench *b) {
    static int64_t rng[3] = {1, 2, 0};
    tensor t[3] = {{.data = array[0], .type = b->type, .rank = 2, .dim = {b->rows, b->cols}, .stride = {b->cols, 1}},
                   {.data = rng, .type = DT_I64, .rank = 1, .dim = {3}, .stride = {1}}};
    t[2] = t[0];
    static ir_dim dims[2];
    dims[0] = b->rows, dims[1] = b->cols;
    ir_attr attr[] = {A_F("p", 0.1), A_D("dims", 2, dims)};
    ir_node n = {.op = OP_dropout, .nattr = 2, .attr = attr};
    dev_call c = {.op = OP_dropout, .node = &n, .nin = 2, .nout = 1, .in = t, .out = t + 2};
    sp_status s = device_cpu.table[OP_dropout](&c);
    ASSERT(s == SP_OK);
}

static void others(dtype t) {
    const double e = (double)dtype_size(t), rows = 16384, wide = 16384.0 * 768 * e, logits = 512.0 * VOCAB * e;
    by_hand("rope by hand", t, 16384, HEADS * HEAD, run_rope, 2 * wide + 2 * rows * HEAD * e, 1, 1, 1);
    by_hand("copy", t, 16384, HEADS * HEAD, run_copy, 2 * wide, 1, 1, 0);
    by_hand("permute, heads first", t, 16384, HEADS * HEAD, run_heads_first, 2 * wide, 1, 1, 0);
    by_hand("transpose", t, 16384, 768, run_transpose, 2 * wide, 1, 1, 0);
    by_hand("dropout", t, 16384, 768, run_dropout, 2 * wide, 1, 1, 1);
    all[count - 1].takes = KEEP;
    by_hand("embedding", t, 16384, 768, run_embed, 2 * wide, 1, 1, 0);
    by_hand("embedding gradient", t, 16384, 768, run_embed_grad, wide + 8 * rows * 768, 2, 1, 1);
    by_hand("cross-entropy by hand", t, 512, VOCAB, run_xent, logits, 1, 0, 0);
    all[count - 1].takes = TERM;
    by_hand("its gradient by hand", t, 512, VOCAB, run_xent_grad, 2 * logits, 1, 1, 1);
    all[count - 1].takes = NUMERATOR;
    if (t != DT_F32) return;
    by_hand("adamw by hand", t, 8192, 3072, run_adamw, 7.0 * 4 * 8192 * 3072, 4, 3, 3);
    by_hand("gradients' norm", t, 8192, 3072, run_norm, 4.0 * 8192 * 3072, 1, 0, 0);
}

/* ---- arithmetic ------------------------------------------------------------------------------------------ */

/* Seconds an element takes from registers alone, all threads together. */
static double arithmetic(int what, dtype t) {
    enum { ROUNDS = 40000, VECTORS = 4 };
    double best = 1e9;
    for (int r = 0; r < REPS; r++) {
        double begin = clock_s();
#pragma omp parallel
        {
            const keep_state k = keep_start(1, 2, 3, 0.1);
            vf s[VECTORS] = {{0}};
            uint64_t bits[KEEP_WORDS] = {0}, sum = 0;
            for (int i = 0; i < ROUNDS; i++) {
                if (what == KEEP) {
                    keep_words(&k, (uint64_t)i * KEEP_WORDS, KEEP_WORDS, bits, NULL);
                    sum += bits[0];
                    continue;
                }
                const vf x = vset(-1e-4f * (float)i);
                for (int u = 0; u < VECTORS; u++) {
                    const vf y = x - (float)u;
                    s[u] += what == TERM ? vexp2_term(y) : t == DT_BF16 ? vexp2_near(y) : vexp2_neg(y);
                }
            }
            if (vsum(s[0] + s[1] + s[2] + s[3]) == 1.25f || sum == 1) abort();
        }
        double time = clock_s() - begin;
        if (time < best) best = time;
    }
    return best / (ROUNDS * (what == KEEP ? 64.0 * KEEP_WORDS : VECTORS * VL) * threads);
}

/* ---- the table --------------------------------------------------------------------------------------- */

/* Array i as f32 and as bf16 numbers between a sixteenth and two, of either sign; by the team, as training would. */
static void fill(int i) {
    uint16_t *x = (uint16_t *)array[i];
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < ROOM / 2; j++) {
        uint64_t h = (uint64_t)j * 0x9E3779B97F4A7C15u + (uint64_t)i;
        h ^= h >> 29, h *= 0xBF58476D1CE4E5B9u, h ^= h >> 32;
        x[j] = (uint16_t)((h & 0x807f) | (0x3d80 + (h >> 16 & 0x7f) * 4));
    }
}

static void measure(bench *b) {
    double sample[REPS], bound[REPS];
    const int64_t n = (int64_t)1 << 24;
    const double bound_bytes = 4.0 * (double)n * (b->m.read + b->m.written);
    for (int i = 0; i < ARRAYS; i++) fill(i); /* halves of another kernel's f32 are any bf16, also subnormal ones */
    b->run(b);
    for (int r = 0; r < REPS; r++) {
        double begin = clock_s();
        stream(&b->m, n);
        bound[r] = clock_s() - begin;
        begin = clock_s();
        b->run(b);
        sample[r] = clock_s() - begin;
    }
    qsort(sample, REPS, sizeof *sample, by_value);
    qsort(bound, REPS, sizeof *bound, by_value);
    double rate = b->m.bytes / sample[REPS / 2], limit = bound_bytes / bound[REPS / 2];
    printf("%-30s %-5s %6d x %-6d %9.3f ms %6.1f GB/s  %3d %3d %3d %6.1f GB/s %5.0f %% %5.0f %%%s", b->name,
           dtype_name(b->type), (int)b->rows, (int)b->cols, 1e3 * sample[REPS / 2], 1e-9 * rate, b->m.read,
           b->m.written, b->m.in_place, 1e-9 * limit, 100 * rate / limit, 100 * rate / best_rate,
           rate < 0.7 * limit ? "  < 70 %" : "");
    double least = 0;
    for (int what = TERM; what <= KEEP; what *= 2)
        if (b->takes & what) least += (double)(b->rows * b->cols) * arithmetic(what, b->type);
    if (least > 0) printf("  arithmetic %.0f %%", 100 * least / sample[REPS / 2]);
    printf("\n");
    fflush(stdout);
}

static void prepare(void) {
    uint64_t seed = 1;
    memory = arena_new();
    ids = calloc(1 << 15, 8);
    ASSERT(ids);
    for (int i = 0; i < 1 << 15; i++) ids[i] = (int64_t)(rng_uniform(&seed) * VOCAB);
    for (int i = 0; i < ARRAYS; i++) {
        array[i] = aligned_alloc(HUGE_PAGE, (size_t)ROOM);
        if (array[i]) (void)madvise(array[i], (size_t)ROOM, MADV_HUGEPAGE);
        if (!array[i]) {
            fprintf(stderr, "bench_rows: no memory for %d arrays of %lld MiB\n", ARRAYS, (long long)ROOM >> 20);
            exit(1);
        }
        fill(i);
    }
    static const traffic mixes[] = {{0, 1, 0, 0}, {0, 1, 1, 1}, {0, 2, 1, 0}, {0, 4, 3, 3}};
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        for (int r = 0; r < REPS; r++) {
            double begin = clock_s();
            stream(&mixes[i], (int64_t)1 << 24);
            double rate = 4.0 * (1 << 24) * (mixes[i].read + mixes[i].written) / (clock_s() - begin);
            if (rate > best_rate) best_rate = rate;
        }
}

int main(int argc, char **argv) {
    if (argc > 1) threads = atoi(argv[1]);
    if (argc > 2) filter = argv[2];
    if (argc > 3) by_cpu = strcmp(argv[3], "cpu") == 0;
    if (threads < 1) {
        fprintf(stderr, "usage: bench_rows [threads] [filter] [wall|cpu]\n");
        return 2;
    }
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    prepare();
    for (dtype t = DT_F32; t <= DT_BF16; t += DT_BF16) {
        norms(t);
        elements(t);
        losses(t);
        rope(t);
        if (t == DT_F32) optimizer();
        others(t);
    }
    casts();
    gen_kernel *k[MOST];
    gen_fn *fn[MOST];
    int n = 0;
    for (int i = 0; i < count; i++)
        if (all[i].k) k[n++] = all[i].k;
    if (gen_library(k, n, fn) != SP_OK) {
        fprintf(stderr, "bench_rows: %s\n", err_text());
        return 1;
    }
    for (int i = 0, j = 0; i < count; i++)
        if (all[i].k) all[i].c.code = fn[j++];
    printf("threads %d: at best %.1f GB/s\n", threads, 1e-9 * best_rate);
    printf("%-30s %-5s %-15s %12s %11s  %3s %3s %3s %11s %7s %7s\n", "kernel", "type", "size", "time", "rate", "in",
           "out", "is", "bound", "of it", "of best");
    for (int i = 0; i < count; i++)
        if (strstr(all[i].name, filter)) measure(&all[i]);
    return norm_sink == 0.123;
}
