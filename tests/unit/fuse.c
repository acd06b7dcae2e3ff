/* Fusion: which instructions become kernels (golden plans of tests/ir/fuse), generated code against the interpreter on
 * random kernels, and bits that do not depend on the grouping.
 *
 * With AUTOSP_BLESS=1 in the environment the golden plans are rewritten: read the difference. */
#include "device/ref/ref.h"
#include "exec/exec.h"
#include "plan/plan.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- golden plans ---------------------------------------------------------------------------------- */

static char *read_text(arena *a, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) return NULL;
    char *text = arena_alloc(a, 1 << 16);
    text[fread(text, 1, (1 << 16) - 1, f)] = 0;
    fclose(f);
    return text;
}

static int golden(const char *name) {
    arena *a = arena_new();
    char *path = arena_printf(a, AUTOSP_SOURCE_DIR "/tests/ir/fuse/%s.ir", name);
    char *want_path = arena_printf(a, AUTOSP_SOURCE_DIR "/tests/ir/fuse/%s.plan", name);
    char *want = read_text(a, want_path);
    exec_options eo = {.dev = &device_cpu, .threads = 1};
    plan_options po = {.fuse = true, .workspace = exec_workspace, .ctx = &eo};
    ir_graph *g;
    plan *p;
    buf text = {0};
    if (ir_parse(a, read_text(a, path), path, &g) != SP_OK || plan_build(g, &po, &p) != SP_OK) {
        print_error("%s: %s\n", path, err_text());
        return 1;
    }
    plan_print(p, &text);
    char *got = strstr(text.data, "program step"), *eval = strstr(text.data, "program eval");
    char *kernels = strstr(text.data, "kernel ");
    while (kernels && kernels[-1] != '\n') kernels = strstr(kernels + 1, "kernel ");
    buf shown = {0}; /* the step, and the kernels */
    buf_write(&shown, got, (size_t)(eval - got));
    buf_printf(&shown, "%s", kernels ? kernels : "");
    int bad = !want || strcmp(shown.data, want) != 0;
    const char *bless = getenv("AUTOSP_BLESS");
    if (bad && bless && strcmp(bless, "1") == 0) {
        FILE *f = fopen(want_path, "w");
        assert_non_null(f);
        fputs(shown.data, f);
        fclose(f);
    }
    if (bad) print_error("%s: got\n%s", name, shown.data);
    buf_free(&shown);
    buf_free(&text);
    arena_free(a);
    return bad;
}

static void plans(void **state) {
    (void)state;
    int bad = 0, seen = 0;
    DIR *d = opendir(AUTOSP_SOURCE_DIR "/tests/ir/fuse");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char name[256];
        size_t n = strlen(e->d_name);
        if (n < 4 || strcmp(e->d_name + n - 3, ".ir") != 0) continue;
        snprintf(name, sizeof name, "%.*s", (int)n - 3, e->d_name);
        bad += golden(name);
        seen++;
    }
    closedir(d);
    assert_int_equal(bad, 0);
    assert_true(seen >= 2);
}

/* ---- random kernels ---------------------------------------------------------------------------------- */

enum { KERNELS = 60, GUARD = 64 };

typedef struct sample {
    gen_kernel *k;
    int outer;
    int64_t dim[4];
    tensor in[8], out[8], again[8]; /* again: the interpreter's results */
    int64_t bytes[8];
} sample;

static int pick(uint64_t *seed, int n) { return (int)(rng_next(seed) % (uint64_t)n); }

/* Memory of a tensor with these strides, filled with numbers (around 0, of size 1). */
static void fill(tensor *t, uint64_t *seed, int64_t *bytes) {
    int64_t n = 1;
    for (int d = 0; d < t->rank; d++) n += (t->dim[d] - 1) * t->stride[d];
    *bytes = (n + GUARD) * dtype_size(t->type);
    t->data = malloc((size_t)*bytes);
    assert_non_null(t->data);
    for (int64_t i = 0; i < n + GUARD; i++) ref_set(t, i, rng_normal(seed));
}

/* Strides of a new tensor: contiguous, broadcast along rows or columns, or with gaps. */
static tensor shaped(const sample *s, dtype type, gen_step step, bool still_rows, uint64_t *seed) {
    tensor t = {.type = type, .rank = s->outer + 1};
    int64_t at = step == GEN_STRIDED ? 3 : 1;
    for (int d = s->outer; d >= 0; d--) {
        t.dim[d] = s->dim[d];
        bool still = d == s->outer ? step == GEN_STILL : still_rows;
        t.stride[d] = still ? 0 : at;
        if (!still) at = at * s->dim[d] + (d == s->outer ? pick(seed, 3) : 0);
    }
    return t;
}

static int random_value(gen_kernel *k, const int *value, int n, uint64_t *seed) {
    static const ir_op one[] = {OP_neg, OP_abs, OP_tanh, OP_erf, OP_sigmoid, OP_silu, OP_gelu, OP_gelu_tanh, OP_relu};
    static const ir_op two[] = {OP_add,   OP_sub, OP_max, OP_min, OP_silu_grad, OP_gelu_grad, OP_gelu_tanh_grad,
                                OP_swiglu};
    int x = value[pick(seed, n)], y = value[pick(seed, n)];
    switch (pick(seed, 9)) {
    case 6: { /* an element of each row, picked by the number of its column; and twice by looking for it */
        int column = gen_const(k, pick(seed, 40)), here = gen_op2(k, OP_eq, gen_index(k), column);
        int sum = gen_reduce(k, GEN_SUM, gen_op3(k, OP_select, here, x, gen_const(k, 0)));
        return gen_op2(k, OP_add, y, gen_op2(k, OP_sub, sum, gen_pick(k, x, column)));
    }
    case 8: { /* far from 0 too, where only the greatest must not be lost */
        int far = gen_op2(k, OP_mul, x, gen_const(k, pick(seed, 2) ? 100 : 1));
        int total = gen_op1(k, OP_log, gen_reduce(k, GEN_EXP_SUM, far));
        const int scale = pick(seed, 2) ? gen_const(k, 1) : total;
        if (pick(seed, 2)) return gen_op2(k, OP_add, y, gen_numerator(k, far, gen_reduce(k, GEN_MAX, far), scale));
        if (pick(seed, 2)) return gen_op2(k, OP_add, gen_op1(k, OP_tanh, total), y);
        return gen_op2(k, OP_sub, gen_op2(k, OP_div, gen_reduce(k, GEN_MAX, far), gen_const(k, 100)), total);
    }
    case 7:
        return gen_op1(k, OP_log, gen_op2(k, OP_add, gen_const(k, 0.25), gen_op1(k, OP_abs, x)));
    case 0:
    case 1:
        return gen_op1(k, one[pick(seed, 9)], x);
    case 2:
    case 3:
        return gen_op1(k, OP_tanh, gen_op2(k, two[pick(seed, 8)], x, y)); /* stays small */
    case 4:
        return gen_round(k, x, pick(seed, 2) ? DT_BF16 : DT_F32);
    default: { /* a norm's root, a softmax's sum; positive, so that nothing blows up */
        int e = gen_op1(k, OP_exp, gen_op1(k, OP_tanh, gen_op2(k, OP_sub, x, gen_reduce(k, GEN_MAX, x))));
        int mean = gen_op2(k, OP_div, gen_reduce(k, GEN_SUM, e), gen_cols(k));
        return pick(seed, 2) ? gen_op2(k, OP_mul, y, gen_op1(k, OP_rsqrt, gen_op2(k, OP_add, mean, gen_const(k, 0.5))))
                             : gen_op2(k, OP_div, e, gen_op1(k, OP_sqrt, mean));
    }
    }
}

static sample random_sample(arena *a, uint64_t *seed, bool bf16) {
    static const int64_t widths[] = {1, 2, 7, 16, 31, 33, 64, 100, 17000};
    sample s = {.k = gen_new(a), .outer = pick(seed, 4)};
    for (int d = 0; d < s.outer; d++) s.dim[d] = 1 + pick(seed, 5);
    s.dim[s.outer] = widths[pick(seed, s.outer > 1 ? 8 : 9)];
    int value[40], n = 0, nin = 1 + pick(seed, 4);
    for (int i = 0; i < nin; i++) {
        gen_step step = s.dim[s.outer] == 1 ? GEN_STILL : i == 0 ? GEN_UNIT : (gen_step)pick(seed, 3);
        dtype type = bf16 && pick(seed, 2) ? DT_BF16 : DT_F32;
        s.in[i] = shaped(&s, type, step, i > 0 && pick(seed, 4) == 0, seed);
        vec_push(a, &s.k->in, ((gen_operand){.type = type, .step = step}));
        value[n++] = gen_load(s.k, i);
    }
    for (int i = 0; i < 3 + pick(seed, 12); i++, n++) value[n] = random_value(s.k, value, n, seed);
    int results = 1 + pick(seed, 3);
    for (int i = 0; i < results; i++) {
        gen_result r = {.type = bf16 && pick(seed, 2) ? DT_BF16 : DT_F32,
                        .value = value[n - 1 - pick(seed, n < 4 ? n : 4)]};
        bool row = s.k->s.data[r.value].row, columns = pick(seed, 4) == 0;
        r.store = columns ? (pick(seed, 2) ? GEN_COLUMNS : GEN_COLUMNS_ADD) : pick(seed, 3) ? GEN_STORE : GEN_ADD;
        r.step = s.dim[s.outer] == 1        ? GEN_STILL
                 : row && !columns          ? GEN_STILL
                 : columns || pick(seed, 3) ? GEN_UNIT
                                            : GEN_STRIDED;
        if (columns) r.type = DT_F32;
        if (columns && s.dim[s.outer] == 1) r.step = GEN_UNIT;
        s.out[i] = shaped(&s, r.type, r.step, columns, seed);
        if (columns) s.out[i].stride[s.outer] = 1;
        vec_push(a, &s.k->out, r);
    }
    s.k->halves = pick(seed, 2); /* pairs of vectors behind the blocks, where nothing is reduced */
    gen_finish(s.k);
    return s;
}

static dev_call call_of(const sample *s, bool again) {
    return (dev_call){.op = OP_fused,
                      .kernel = s->k,
                      .nin = s->k->in.n,
                      .nout = s->k->out.n,
                      .in = (tensor *)s->in,
                      .out = (tensor *)(again ? s->again : s->out),
                      .threads = 2};
}

static double worst(const sample *s) {
    double bad = 0;
    for (int i = 0; i < s->k->out.n; i++) {
        const tensor *x = &s->out[i], *y = &s->again[i];
        double room = x->type == DT_BF16 ? 256 : 1;
        for (int64_t e = 0; e < s->bytes[i] / dtype_size(x->type);
             e++) { /* the gaps too: nothing may be written there */
            double d = fabs(ref_get(x, e) - ref_get(y, e)) / fmax(1, fabs(ref_get(y, e))) / room;
            if (!(d <= bad)) bad = d;
        }
    }
    return bad;
}

static void check_random(uint64_t seed, bool bf16, double bound) {
    arena *a = arena_new();
    sample *s = ARENA_ARRAY(a, sample, KERNELS);
    gen_kernel *k[KERNELS];
    gen_fn *fn[KERNELS];
    for (int i = 0; i < KERNELS; i++) {
        s[i] = random_sample(a, &seed, bf16);
        k[i] = s[i].k;
    }
    if (gen_library(k, KERNELS, fn) != SP_OK) fail_msg("%s", err_text());
    for (int i = 0; i < KERNELS; i++) {
        int64_t unused;
        for (int j = 0; j < k[i]->in.n; j++) fill(&s[i].in[j], &seed, &unused);
        for (int j = 0; j < k[i]->out.n; j++) {
            fill(&s[i].out[j], &seed, &s[i].bytes[j]);
            s[i].again[j] = s[i].out[j];
            s[i].again[j].data = malloc((size_t)s[i].bytes[j]);
            memcpy(s[i].again[j].data, s[i].out[j].data, (size_t)s[i].bytes[j]);
        }
        dev_call c = call_of(&s[i], false), d = call_of(&s[i], true);
        c.code = fn[i];
        assert_non_null(c.code);
        int64_t work = device_cpu.workspace(&c);
        c.work = aligned_alloc(64, (size_t)round_up(work + 64, 64));
        assert_int_equal(device_cpu.prepare(&c), SP_OK);
        assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
        device_cpu.release(&c);
        assert_int_equal(device_ref.prepare(&d), SP_OK);
        assert_int_equal(device_ref.table[OP_fused](&d), SP_OK);
        device_ref.release(&d);
        double w = worst(&s[i]);
        if (w > bound) {
            buf text = {0};
            gen_print(k[i], &text);
            print_error("%s", text.data);
            fail_msg("kernel %d: %g apart, bound %g", i, w, bound);
        }
        free(c.work);
        for (int j = 0; j < k[i]->in.n; j++) free(s[i].in[j].data);
        for (int j = 0; j < k[i]->out.n; j++) {
            free(s[i].out[j].data);
            free(s[i].again[j].data);
        }
    }
    arena_free(a);
}

/* Column sums of up to 5*5*5 rows and rows of 17000 numbers of size 1: 1e-5 is some hundred roundings. */
static void random_f32(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    check_random(1, false, 1e-4);
}

/* A value near the middle between two bf16 may round either way: one unit in 2^8, some of them in a row. */
static void random_bf16(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    check_random(2, true, 0.1);
}

/* ---- bits ------------------------------------------------------------------------------------------- */

enum { ROWS = 37, COLS = 100 };

/* ---- results that are rounded to bf16 at once ---------------------------------------------------------- */

static double normal_tail(double x) { return 0.5 * erfc(-x / sqrt(2)); }
static double tanh_gate(double x) { return 1 / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

/* What the op is at x, its other operand 1. */
static double exactly(ir_op op, double x) {
    double s = 1 / (1 + exp(-x)), g = tanh_gate(x);
    switch (op) {
    case OP_sigmoid:
        return s;
    case OP_silu:
    case OP_swiglu:
        return x * s;
    case OP_gelu:
        return x * normal_tail(x);
    case OP_gelu_tanh:
        return x * g;
    case OP_silu_grad:
        return s + x * s / (1 + exp(x));
    case OP_gelu_grad:
        return normal_tail(x) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
    default: /* gelu_tanh_grad */
        return g + x * g * (1 - g) * 2 * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
    }
}

/* Every bf16 between -2^16 and 2^16, against closed forms in f64: within 0.6 units of the result, which is rounded
 * (0.5), and, for slopes, which have zeros, 2e-4. Tails of the normal distribution below 1e-12 are not held. */
static void near_results(void **state) {
    (void)state;
    enum { N = 1 << 16 };
    static const ir_op op[] = {OP_sigmoid,   OP_silu,      OP_swiglu,    OP_gelu,
                               OP_gelu_tanh, OP_silu_grad, OP_gelu_grad, OP_gelu_tanh_grad};
    enum { OPS = sizeof op / sizeof *op };
    if (!gen_compiler()) skip();
    arena *a = arena_new();
    uint16_t *x = ARENA_ARRAY(a, uint16_t, N), *one = ARENA_ARRAY(a, uint16_t, N), *y = ARENA_ARRAY(a, uint16_t, N);
    int64_t n = 0;
    for (uint32_t h = 0; h < N; h++)
        if ((h & 0x7fff) < 0x4780) x[n++] = (uint16_t)h;
    for (int i = 0; i < n; i++) one[i] = 0x3f80;
    gen_kernel *k[OPS];
    gen_fn *fn[OPS];
    for (int i = 0; i < OPS; i++) {
        k[i] = gen_new(a);
        vec_push(a, &k[i]->in, ((gen_operand){.type = DT_BF16, .step = GEN_UNIT}));
        vec_push(a, &k[i]->in, ((gen_operand){.type = DT_BF16, .step = GEN_UNIT}));
        int in[] = {gen_load(k[i], 0), gen_load(k[i], 1)};
        int v = gen_round(k[i], gen_op_for(k[i], op[i], op_table[op[i]].nin, in, DT_BF16), DT_BF16);
        vec_push(a, &k[i]->out, ((gen_result){.type = DT_BF16, .step = GEN_UNIT, .store = GEN_STORE, .value = v}));
        gen_finish(k[i]);
    }
    if (gen_library(k, OPS, fn) != SP_OK) fail_msg("%s", err_text());
    for (int i = 0; i < OPS; i++) {
        tensor t[] = {{.data = x, .type = DT_BF16, .rank = 1, .dim = {n}, .stride = {1}}, {.data = one}, {.data = y}};
        t[1].type = t[2].type = DT_BF16, t[1].rank = t[2].rank = 1;
        t[1].dim[0] = t[2].dim[0] = n, t[1].stride[0] = t[2].stride[0] = 1;
        dev_call c = {.op = OP_fused, .kernel = k[i], .code = fn[i], .nin = 2, .nout = 1, .in = t, .out = t + 2};
        assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
        const bool slope = op[i] == OP_silu_grad || op[i] == OP_gelu_grad || op[i] == OP_gelu_tanh_grad;
        for (int64_t j = 0; j < n; j++) {
            double at = ref_get(&t[0], j), want = exactly(op[i], at), got = ref_get(&t[2], j);
            double unit = want == 0 ? 0 : ldexp(1, ilogb(want) - 7);
            if (!(fabs(got - want) <= 0.6 * unit + (slope ? 2e-4 : 1e-12)))
                fail_msg("%s(%.9g) is %.9g, not %.9g", op_table[op[i]].name, at, got, want);
        }
    }
    arena_free(a);
}

/* A sum and its layernorm, both results in the places of the sum's operands: the first pass stores the sum and later
 * ones read it, which they may because they load nothing else but weights. Against the interpreter. */
static void sums_are_kept(void **state) {
    (void)state;
    enum { WIDTH = 199, HEIGHT = 5 };
    static const ir_node plain = {0};
    if (!gen_compiler()) skip();
    for (int which = 0; which < 3; which++) { /* f32; bf16; with weights that differ from row to row */
        const dtype type = which == 1 ? DT_BF16 : DT_F32;
        const bool fixed = which < 2;
        arena *a = arena_new();
        gen_kernel *k = gen_new(a);
        uint64_t seed = 5;
        tensor t[2][8];
        sample s = {.k = k, .outer = 1, .dim = {HEIGHT, WIDTH}};
        for (int i = 0; i < 8; i++) {
            const bool weight = i == 2 || i == 3;
            int64_t bytes;
            t[0][i] = shaped(&s,
                             i < 4 && !weight   ? type
                             : i == 4 || i == 5 ? type
                                                : DT_F32,
                             i < 6 ? GEN_UNIT : GEN_STILL, weight && fixed, &seed);
            if (!weight) t[0][i].stride[0] = i < 6 ? WIDTH : 1;
            fill(&t[0][i], &seed, &bytes);
            t[1][i] = t[0][i];
            if (i == 4 || i == 5) t[0][i].data = t[0][i - 4].data; /* in place */
            if (i >= 6) fill(&t[1][i], &seed, &bytes);
            if (i < 4)
                vec_push(a, &k->in, ((gen_operand){.type = t[0][i].type, .step = GEN_UNIT, .fixed = weight && fixed}));
        }
        int in[3] = {gen_round(k, gen_op2(k, OP_add, gen_load(k, 0), gen_load(k, 1)), type), gen_load(k, 2),
                     gen_load(k, 3)};
        int v[IR_MAX_OUT];
        gen_member(k, OP_layernorm, &plain, 2, in, (dtype[]){type, DT_F32, DT_F32}, v);
        vec_push(a, &k->out, ((gen_result){.type = type, .step = GEN_UNIT, .store = GEN_STORE, .value = in[0]}));
        vec_push(a, &k->out, ((gen_result){.type = type, .step = GEN_UNIT, .store = GEN_STORE, .value = v[0]}));
        for (int i = 1; i < 3; i++)
            vec_push(a, &k->out, ((gen_result){.type = DT_F32, .step = GEN_STILL, .store = GEN_STORE, .value = v[i]}));
        gen_finish(k);
        assert_int_equal(gen_stored_first(k, 0), fixed);
        gen_fn *fn;
        if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
        for (int by = 1; by >= 0; by--) { /* the interpreter first: the code overwrites its operands */
            dev_call c = {.op = OP_fused, .kernel = k, .nin = 4, .nout = 4, .in = t[by], .out = t[by] + 4};
            if (!by) c.code = fn;
            const device *d = by ? &device_ref : &device_cpu;
            assert_int_equal(d->prepare(&c), SP_OK);
            assert_int_equal(d->table[OP_fused](&c), SP_OK);
            d->release(&c);
        }
        for (int i = 4; i < 8; i++)
            for (int64_t j = 0; j < (i < 6 ? WIDTH * HEIGHT : HEIGHT); j++) {
                double got = ref_get(&t[0][i], j), want = ref_get(&t[1][i], j);
                if (!(fabs(got - want) <= (type == DT_BF16 ? 0.01 : 1e-5) * fmax(1, fabs(want))))
                    fail_msg("%d: result %d at %d is %g, not %g", which, i - 4, (int)j, got, want);
            }
        for (int i = 0; i < 8; i++) {
            if (i != 4 && i != 5) free(t[0][i].data);
            if (i >= 4) free(t[1][i].data);
        }
        arena_free(a);
    }
}

/* A sum of bf16 that is kept, stored a second time by the last pass, and added to the row's own sum. */
static void sums_are_stored_twice(void **state) {
    (void)state;
    enum { WIDTH = 199, HEIGHT = 3, SIZE = WIDTH * HEIGHT };
    if (!gen_compiler()) skip();
    static uint16_t words[2][5][SIZE];
    arena *a = arena_new();
    gen_kernel *k = gen_new(a);
    tensor t[2][5];
    uint64_t seed = 6;
    for (int by = 0; by < 2; by++)
        for (int i = 0; i < 5; i++) {
            t[by][i] = (tensor){
                .data = words[by][i], .type = DT_BF16, .rank = 2, .dim = {HEIGHT, WIDTH}, .stride = {WIDTH, 1}};
            for (int j = 0; j < SIZE && i < 2 && !by; j++) ref_set(&t[0][i], j, rng_normal(&seed));
            if (i < 2) t[by][i].data = words[0][i];
        }
    for (int i = 0; i < 2; i++) vec_push(a, &k->in, ((gen_operand){.type = DT_BF16, .step = GEN_UNIT}));
    const int sum = gen_round(k, gen_op2(k, OP_add, gen_load(k, 0), gen_load(k, 1)), DT_BF16);
    const int both = gen_round(k, gen_op2(k, OP_add, sum, gen_reduce(k, GEN_SUM, sum)), DT_BF16);
    for (int i = 0; i < 3; i++)
        vec_push(a, &k->out, ((gen_result){.type = DT_BF16, .step = GEN_UNIT, .value = i < 2 ? sum : both}));
    gen_finish(k);
    assert_true(gen_stored_first(k, 0) != gen_stored_first(k, 1));
    gen_fn *fn;
    if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
    for (int by = 0; by < 2; by++) {
        dev_call c = {.op = OP_fused, .kernel = k, .nin = 2, .nout = 3, .in = t[by], .out = t[by] + 2};
        if (!by) c.code = fn;
        const device *d = by ? &device_ref : &device_cpu;
        assert_int_equal(d->prepare(&c), SP_OK);
        assert_int_equal(d->table[OP_fused](&c), SP_OK);
        d->release(&c);
    }
    assert_memory_equal(words[0][2], words[1][2], sizeof words[0][2]);
    assert_memory_equal(words[0][3], words[1][3], sizeof words[0][3]);
    for (int j = 0; j < SIZE; j++)
        assert_true(fabs(ref_get(&t[0][4], j) - ref_get(&t[1][4], j)) <= 0x1p-7 * fabs(ref_get(&t[1][4], j)));
    assert_true(ref_get(&t[0][2], 0) != 0);
    arena_free(a);
}

/* One kernel: operand 0 (and 1) of ROWS x COLS in, the values out. */
static gen_kernel *kernel_of(arena *a, int nin) {
    gen_kernel *k = gen_new(a);
    for (int i = 0; i < nin; i++) {
        vec_push(a, &k->in, ((gen_operand){.type = DT_F32, .step = GEN_UNIT}));
        (void)gen_load(k, i);
    }
    return k;
}

static void gives(arena *a, gen_kernel *k, int value, gen_step step) {
    vec_push(a, &k->out, ((gen_result){.type = DT_F32, .step = step, .store = GEN_STORE, .value = value}));
}

static void run_code(const gen_kernel *k, gen_fn *code, float *const *data) {
    tensor t[8];
    for (int i = 0; i < k->in.n + k->out.n; i++) {
        bool row = i >= k->in.n && k->out.data[i - k->in.n].step == GEN_STILL;
        t[i] =
            (tensor){.data = data[i], .type = DT_F32, .rank = 2, .dim = {ROWS, COLS}, .stride = {row ? 1 : COLS, !row}};
    }
    dev_call c = {
        .op = OP_fused, .kernel = k, .code = code, .nin = k->in.n, .nout = k->out.n, .in = t, .out = t + k->in.n};
    assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
}

/* sum -> root of the mean of squares -> scaled -> silu: in one kernel, and in three that hand on through memory. */
static void grouping_keeps_bits(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    static float x[ROWS * COLS], y[ROWS * COLS], sum[2][ROWS * COLS], root[2][ROWS], out[2][ROWS * COLS];
    uint64_t seed = 3;
    for (int i = 0; i < ROWS * COLS; i++) {
        x[i] = (float)rng_normal(&seed);
        y[i] = (float)rng_normal(&seed);
    }
    arena *a = arena_new();
    gen_kernel *k[4] = {kernel_of(a, 2), kernel_of(a, 2), kernel_of(a, 1), gen_new(a)};
    for (int i = 0; i < 4; i++) {
        int s = 0, r = 1;
        if (i < 2) s = gen_round(k[i], gen_op2(k[i], OP_add, 0, 1), DT_F32);
        if (i < 2) gives(a, k[i], s, GEN_UNIT);
        if (i == 0 || i == 2) {
            int squares = gen_reduce(k[i], GEN_SUM, gen_op2(k[i], OP_mul, s, s));
            r = gen_op1(k[i], OP_rsqrt, gen_op2(k[i], OP_div, squares, gen_cols(k[i])));
            gives(a, k[i], r, GEN_STILL);
        }
        if (i == 3) {
            vec_push(a, &k[i]->in, ((gen_operand){.type = DT_F32, .step = GEN_UNIT}));
            vec_push(a, &k[i]->in, ((gen_operand){.type = DT_F32, .step = GEN_STILL}));
            s = gen_load(k[i], 0);
            r = gen_load(k[i], 1);
        }
        if (i == 0 || i == 3) gives(a, k[i], gen_op1(k[i], OP_silu, gen_op2(k[i], OP_mul, s, r)), GEN_UNIT);
        gen_finish(k[i]);
    }
    gen_fn *fn[4];
    if (gen_library(k, 4, fn) != SP_OK) fail_msg("%s", err_text());
    run_code(k[0], fn[0], (float *[]){x, y, sum[0], root[0], out[0]});
    run_code(k[1], fn[1], (float *[]){x, y, sum[1]});
    run_code(k[2], fn[2], (float *[]){sum[1], root[1]});
    tensor t[3] = {{.data = sum[1], .type = DT_F32, .rank = 2, .dim = {ROWS, COLS}, .stride = {COLS, 1}},
                   {.data = root[1], .type = DT_F32, .rank = 2, .dim = {ROWS, COLS}, .stride = {1, 0}},
                   {.data = out[1], .type = DT_F32, .rank = 2, .dim = {ROWS, COLS}, .stride = {COLS, 1}}};
    dev_call c = {.op = OP_fused, .kernel = k[3], .code = fn[3], .nin = 2, .nout = 1, .in = t, .out = t + 2};
    assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
    assert_memory_equal(sum[0], sum[1], sizeof sum[0]);
    assert_memory_equal(root[0], root[1], sizeof root[0]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    assert_true(out[0][0] != 0);
    arena_free(a);
}

/* ---- cross-entropy and AdamW ------------------------------------------------------------------------ */

enum { TOKENS = 5, CLASSES = 1003, IGNORE = -7 };

/* Cross-entropy and its gradient in one kernel; the loss, lse and dlogits of labels. */
static sp_status run_xent(const gen_kernel *k, gen_fn *code, float *logits, int64_t *labels, float *scale, float *loss,
                          float *lse, float *grad) {
    tensor t[6] = {{.data = logits, .type = DT_F32, .stride = {CLASSES, 1}},
                   {.data = labels, .type = DT_I64, .stride = {1}},
                   {.data = scale, .type = DT_F32},
                   {.data = loss, .type = DT_F32, .stride = {1}},
                   {.data = lse, .type = DT_F32, .stride = {1}},
                   {.data = grad, .type = DT_F32, .stride = {CLASSES, 1}}};
    for (int i = 0; i < 6; i++) {
        t[i].rank = 2;
        t[i].dim[0] = TOKENS;
        t[i].dim[1] = CLASSES;
    }
    dev_call c = {.op = OP_fused, .kernel = k, .code = code, .nin = 3, .nout = 3, .in = t, .out = t + 3, .threads = 2};
    c.work = aligned_alloc(64, (size_t)round_up(device_cpu.workspace(&c) + 64, 64));
    sp_status s = device_cpu.table[OP_fused](&c);
    free(c.work);
    return s;
}

static void cross_entropy(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    static float logits[TOKENS * CLASSES], grad[TOKENS * CLASSES], loss[TOKENS], lse[TOKENS], scale = 0.5f;
    int64_t labels[TOKENS] = {0, CLASSES - 1, IGNORE, 517, 16};
    uint64_t seed = 4;
    for (int i = 0; i < TOKENS * CLASSES; i++) logits[i] = (float)(3 * rng_normal(&seed));
    for (int i = 0; i < CLASSES; i++) logits[4 * CLASSES + i] -= 1e4f; /* far from 0: shifted by the maximum */
    arena *a = arena_new();
    gen_kernel *k = gen_new(a);
    ir_attr ignore[] = {A_I("ignore", IGNORE)};
    const ir_node n = {.op = OP_xent, .attr = ignore, .nattr = 1};
    const dtype f32[4] = {DT_F32, DT_F32, DT_F32, DT_F32};
    vec_push(a, &k->in, ((gen_operand){.type = DT_F32, .step = GEN_UNIT}));
    vec_push(a, &k->in, ((gen_operand){.type = DT_I64, .step = GEN_STILL}));
    vec_push(a, &k->in, ((gen_operand){.type = DT_F32, .step = GEN_STILL}));
    int in[4] = {gen_load(k, 0), gen_load(k, 1)}, value[2], dx[1];
    gen_member(k, OP_xent, &n, 2, in, f32, value);
    in[2] = value[1];
    in[3] = gen_load(k, 2);
    gen_member(k, OP_xent_grad, &n, 2, in, f32, dx);
    gives(a, k, value[0], GEN_STILL);
    gives(a, k, value[1], GEN_STILL);
    gives(a, k, dx[0], GEN_UNIT);
    gen_finish(k);
    gen_fn *fn;
    if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
    assert_int_equal(run_xent(k, fn, logits, labels, &scale, loss, lse, grad), SP_OK);
    for (int r = 0; r < TOKENS; r++) {
        const float *x = logits + r * CLASSES;
        double top = -INFINITY, total = 0;
        for (int c = 0; c < CLASSES; c++) top = fmax(top, (double)x[c]);
        for (int c = 0; c < CLASSES; c++) total += exp((double)x[c] - top);
        bool ignored = labels[r] == IGNORE;
        double want = ignored ? 0 : top + log(total) - (double)x[labels[r]];
        assert_true(fabs((double)loss[r] - want) <= 1e-5);
        assert_true(fabs((double)lse[r] - top - log(total)) <= 1e-3 &&
                    (r == 4 || fabs(lse[r] - top - log(total)) < 1e-5));
        for (int c = 0; c < CLASSES; c++) {
            double g = ignored ? 0 : 0.5 * (exp((double)x[c] - top) / total - (c == labels[r]));
            assert_true(fabs((double)grad[r * CLASSES + c] - g) <= (c == labels[r] ? 2e-7 : 3e-6 * fabs(g)));
        }
    }
    for (int c = 0; c < CLASSES; c++) logits[2 * CLASSES + c] = c % 2 ? NAN : INFINITY; /* not looked at */
    assert_int_equal(run_xent(k, fn, logits, labels, &scale, loss, lse, grad), SP_OK);
    for (int c = 0; c < CLASSES; c++) assert_true(loss[2] == 0 && grad[2 * CLASSES + c] == 0);
    labels[3] = CLASSES;
    assert_int_equal(run_xent(k, fn, logits, labels, &scale, loss, lse, grad), SP_FAIL);
    assert_non_null(strstr(err_text(), "row 3 is 1003, but logits have 1003 classes"));
    arena_free(a);
}

/* The cross-entropy of a softmax's results, in one kernel: the label's element is a term that the sum kept, in
 * whichever block the label is, with the greatest of the row behind it. Against the closed form. */
static void cross_entropy_of_softmax(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    static float logits[TOKENS * CLASSES], loss[TOKENS];
    int64_t labels[TOKENS] = {63, CLASSES - 1, 970, 517, 16};
    uint64_t seed = 9;
    for (int i = 0; i < TOKENS * CLASSES; i++) logits[i] = (float)rng_normal(&seed);
    for (int r = 0; r < TOKENS; r++) {
        logits[r * CLASSES + labels[r]] = 8;
        logits[r * CLASSES + CLASSES - 20] = 9;
    }
    arena *a = arena_new();
    gen_kernel *k = gen_new(a);
    const ir_node plain = {0};
    const dtype f32[2] = {DT_F32, DT_F32};
    vec_push(a, &k->in, ((gen_operand){.type = DT_F32, .step = GEN_UNIT}));
    vec_push(a, &k->in, ((gen_operand){.type = DT_I64, .step = GEN_STILL}));
    int in[2] = {gen_load(k, 0), gen_load(k, 1)}, value[2];
    gen_member(k, OP_softmax, &plain, 2, in, f32, &in[0]);
    gen_member(k, OP_xent, &plain, 2, in, f32, value);
    gives(a, k, value[0], GEN_STILL);
    gen_finish(k);
    gen_fn *fn;
    if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
    tensor t[3] = {{.data = logits, .type = DT_F32, .stride = {CLASSES, 1}},
                   {.data = labels, .type = DT_I64, .stride = {1}},
                   {.data = loss, .type = DT_F32, .stride = {1}}};
    for (int i = 0; i < 3; i++) t[i].rank = 2, t[i].dim[0] = TOKENS, t[i].dim[1] = CLASSES;
    dev_call c = {.op = OP_fused, .kernel = k, .code = fn, .nin = 2, .nout = 1, .in = t, .out = t + 2, .threads = 2};
    c.work = aligned_alloc(64, (size_t)round_up(device_cpu.workspace(&c) + 64, 64));
    assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
    free(c.work);
    for (int r = 0; r < TOKENS; r++) {
        const float *x = logits + r * CLASSES;
        double total = 0, sum = 0;
        for (int j = 0; j < CLASSES; j++) total += exp((double)x[j]);
        for (int j = 0; j < CLASSES; j++) sum += exp(exp((double)x[j]) / total);
        const double want = log(sum) - exp((double)x[labels[r]]) / total;
        if (!(fabs((double)loss[r] - want) <= 2e-6)) fail_msg("row %d: %g, not %g", r, (double)loss[r], want);
    }
    arena_free(a);
}

/* The gradient alone, of bf16 logits: about 0 and about -90, an ignored row of what is no number, a row of -inf. Within
 * half a unit of bf16 of the closed form. */
static void cross_entropy_gradient_bf16(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    static uint16_t words[TOKENS * CLASSES], out[TOKENS * CLASSES];
    static double x[TOKENS * CLASSES];
    int64_t labels[TOKENS] = {0, CLASSES - 1, IGNORE, 517, 16};
    float scale = 0.5f, lse[TOKENS];
    uint64_t seed = 8;
    tensor logits = {.data = words, .type = DT_BF16, .rank = 2, .dim = {TOKENS, CLASSES}, .stride = {CLASSES, 1}};
    for (int i = 0; i < TOKENS * CLASSES; i++) {
        const int r = i / CLASSES;
        double value = 3 * rng_normal(&seed) - (r == 3 ? 90 : 0);
        if (r == 2) value = i % 2 ? (double)NAN : (double)INFINITY;
        ref_set(&logits, i, r == 4 ? -(double)INFINITY : value);
        x[i] = ref_get(&logits, i);
    }
    for (int r = 0; r < TOKENS; r++) {
        double total = 0;
        for (int c = 0; c < CLASSES; c++) total += exp(x[r * CLASSES + c]);
        lse[r] = (float)log(total);
    }
    arena *a = arena_new();
    gen_kernel *k = gen_new(a);
    ir_attr ignore[] = {A_I("ignore", IGNORE)};
    const ir_node n = {.op = OP_xent_grad, .attr = ignore, .nattr = 1};
    const dtype bf16 = DT_BF16;
    int in[4], dx;
    vec_push(a, &k->in, ((gen_operand){.type = DT_BF16, .step = GEN_UNIT}));
    vec_push(a, &k->in, ((gen_operand){.type = DT_I64, .step = GEN_STILL}));
    for (int i = 0; i < 2; i++) vec_push(a, &k->in, ((gen_operand){.type = DT_F32, .step = GEN_STILL}));
    for (int i = 0; i < 4; i++) in[i] = gen_load(k, i);
    gen_member(k, OP_xent_grad, &n, 2, in, &bf16, &dx);
    vec_push(a, &k->out, ((gen_result){.type = DT_BF16, .step = GEN_UNIT, .value = dx}));
    gen_finish(k);
    gen_fn *fn;
    if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
    tensor t[5] = {logits,
                   {.data = labels, .type = DT_I64, .stride = {1}},
                   {.data = lse, .type = DT_F32, .stride = {1}},
                   {.data = &scale, .type = DT_F32},
                   logits};
    for (int i = 1; i < 4; i++) t[i].rank = 2, t[i].dim[0] = TOKENS, t[i].dim[1] = CLASSES;
    t[4].data = out;
    dev_call c = {.op = OP_fused, .kernel = k, .code = fn, .nin = 4, .nout = 1, .in = t, .out = t + 4, .threads = 2};
    c.work = aligned_alloc(64, (size_t)round_up(device_cpu.workspace(&c) + 64, 64));
    assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
    for (int i = 0; i < TOKENS * CLASSES; i++) {
        const int r = i / CLASSES;
        const bool hit = i % CLASSES == labels[r];
        const double p = r == 2 || r == 4 ? 0 : exp(x[i] - (double)lse[r]);
        const double want = r == 2 ? 0 : 0.5 * (p - hit), got = ref_get(&t[4], i);
        if (!(fabs(got - want) <= (0x1p-8 + 1e-5) * fabs(want) + (hit ? 1e-6 : 0)))
            fail_msg("row %d, column %d: %g, not %g (lse %g)", r, i % CLASSES, got, want, (double)lse[r]);
    }
    free(c.work);
    arena_free(a);
}

/* Softmax of rows in which the greatest is met late and often (a rising row), is far, or is not there: of f32 in place,
 * of bf16 to f32. */
static void softmax_of(dtype type) {
    enum { KINDS = 6 };
    static float x[KINDS * CLASSES], y[KINDS * CLASSES];
    static uint16_t words[KINDS * CLASSES];
    uint64_t seed = 6;
    for (int i = 0; i < KINDS * CLASSES; i++) x[i] = (float)(3 * rng_normal(&seed));
    for (int c = 0; c < CLASSES; c++) {
        x[CLASSES + c] += 0.1f * (float)c;
        x[2 * CLASSES + c] = 40 - 1e-3f * (float)c * (float)c;
        x[3 * CLASSES + c] *= 1e34f;
        x[4 * CLASSES + c] = -INFINITY;
        if (c < 700) x[5 * CLASSES + c] = c < 100 ? -INFINITY : -2e38f;
    }
    tensor t = {.data = words, .type = type, .rank = 2, .dim = {KINDS, CLASSES}, .stride = {CLASSES, 1}}, to = t;
    for (int i = 0; i < KINDS * CLASSES && type == DT_BF16; i++) {
        ref_set(&t, i, (double)x[i]);
        x[i] = (float)ref_get(&t, i);
    }
    memcpy(y, x, sizeof y);
    to.data = y, to.type = DT_F32;
    if (type == DT_F32) t = to;
    arena *a = arena_new();
    gen_kernel *k = gen_new(a);
    const ir_node plain = {0};
    const dtype f32 = DT_F32;
    vec_push(a, &k->in, ((gen_operand){.type = type, .step = GEN_UNIT}));
    int in = gen_load(k, 0), value;
    gen_member(k, OP_softmax, &plain, 2, &in, &f32, &value);
    gives(a, k, value, GEN_UNIT);
    gen_finish(k);
    gen_fn *fn;
    if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
    dev_call c = {.op = OP_fused, .kernel = k, .code = fn, .nin = 1, .nout = 1, .in = &t, .out = &to, .threads = 2};
    c.work = aligned_alloc(64, (size_t)round_up(device_cpu.workspace(&c) + 64, 64));
    assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
    for (int r = 0; r < KINDS; r++) {
        const float *row = x + r * CLASSES;
        double top = -1e39, total = 0;
        for (int i = 0; i < CLASSES; i++) top = fmax(top, (double)row[i]);
        for (int i = 0; i < CLASSES; i++) total += exp((double)row[i] - top);
        for (int i = 0; i < CLASSES; i++) {
            const double below = top - (double)row[i], want = total > 0 ? exp(-below) / total : 0;
            assert_true(fabs((double)y[r * CLASSES + i] - want) <=
                        1e-37 + ((type == DT_BF16 ? 6e-6 : 6e-7) + 1.2e-7 * fmin(below, 100)) * want);
        }
    }
    free(c.work);
    arena_free(a);
}

static void softmax_rows(void **state) {
    (void)state;
    if (!gen_compiler()) skip();
    softmax_of(DT_F32);
    softmax_of(DT_BF16);
}

/* Three steps of 1000 parameters against the formulas in f64. */
static void adamw(void **state) {
    (void)state;
    enum { N = 1000 };
    if (!gen_compiler()) skip();
    static float x[4][N];
    static double p[N], m[N], v[N];
    uint64_t seed = 5;
    arena *a = arena_new();
    gen_kernel *k = gen_adamw(a);
    gen_fn *fn;
    if (gen_library(&k, 1, &fn) != SP_OK) fail_msg("%s", err_text());
    for (int i = 0; i < N; i++) p[i] = (double)(x[0][i] = (float)rng_normal(&seed));
    for (int step = 1; step <= 3; step++) {
        adamw_params o = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.5f, step};
        float number[GEN_ADAMW_NUMBERS];
        tensor t[16];
        gen_adamw_numbers(&o, number);
        for (int i = 0; i < N; i++) x[1][i] = (float)rng_normal(&seed);
        for (int i = 0; i < 16; i++) {
            static const int place[] = {0, 2, 3};
            bool big = i < 4 || i >= 13;
            float *at = i < 4 ? x[i] : i >= 13 ? x[place[i - 13]] : number + i - 4;
            t[i] = (tensor){.data = at, .type = DT_F32, .rank = 1, .dim = {N}, .stride = {big}};
        }
        dev_call c = {.op = OP_fused, .kernel = k, .code = fn, .nin = 13, .nout = 3, .in = t, .out = t + 13};
        assert_int_equal(device_cpu.table[OP_fused](&c), SP_OK);
        for (int i = 0; i < N; i++) {
            double g = 0.5 * (double)x[1][i];
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            p[i] *= 1 - 1e-3;
            p[i] -= 1e-2 * (m[i] / (1 - pow(0.9, step))) / (sqrt(v[i] / (1 - pow(0.95, step))) + 1e-8);
            assert_true(fabs((double)x[0][i] - p[i]) <= 1e-6);
            assert_true(fabs((double)x[3][i] - v[i]) <= 1e-6 * (1 + v[i]));
        }
    }
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_rows),
        cmocka_unit_test(cross_entropy),
        cmocka_unit_test(cross_entropy_gradient_bf16),
        cmocka_unit_test(cross_entropy_of_softmax),
        cmocka_unit_test(adamw),
        cmocka_unit_test(grouping_keeps_bits),
        cmocka_unit_test(near_results),
        cmocka_unit_test(sums_are_kept),
        cmocka_unit_test(sums_are_stored_twice),
        cmocka_unit_test(plans),
        cmocka_unit_test(random_f32),
        cmocka_unit_test(random_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
