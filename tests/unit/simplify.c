/* Simplify keeps the meaning: every case of tests/ir/simplify and random graphs of views, element-wise ops, reductions
 * and products give the same numbers before and after, node by node on the reference device in f64. And a large graph
 * does not take long. */
#include "device/device.h"
#include "pass/pass.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>

#include <setjmp.h>
#include <cmocka.h>

/* ---- a little interpreter ---- */

static tensor make(arena *a, const ir_type *t) {
    tensor x = {.type = t->t, .rank = t->rank};
    int64_t n = 1;
    for (int d = t->rank - 1; d >= 0; d--) {
        x.dim[d] = t->dim[d];
        x.stride[d] = n;
        n *= t->dim[d];
    }
    x.data = arena_alloc(a, (size_t)(n + 1) * 8);
    return x;
}

static void set(const tensor *t, int64_t i, double v) {
    if (t->type == DT_F64)
        ((double *)t->data)[i] = v;
    else if (t->type == DT_I64)
        ((int64_t *)t->data)[i] = (int64_t)v;
    else if (t->type == DT_BOOL)
        ((uint8_t *)t->data)[i] = v != 0;
    else
        fail_msg("unexpected element type %s", dtype_name(t->type));
}

/* The same numbers for the same name, whatever the graph. */
static void fill_leaf(const ir_node *n, const tensor *t) {
    const char *name = ir_str(n, "name");
    uint64_t seed = hash_str(HASH_INIT, name);
    for (int64_t i = 0, row = 0; i < tensor_numel(t); i++) {
        double v = rng_normal(&seed);
        uint64_t k = rng_next(&seed);
        if (t->rank && i % t->dim[t->rank - 1] == 0) row = 0;
        if (t->type == DT_I64) {
            v = (double)(k % 7);
            if (strcmp(name, "labels") == 0 && k % 3 == 0) v = -100;
            if (strcmp(name, "attention_mask") == 0) v = row == 0 || k % 3 != 0;
            if (strcmp(name, "document_ids") == 0) v = (double)(row / 3);
            if (strcmp(name, "position_ids") == 0) v = (double)(row % 3);
        }
        row++;
        set(t, i, v);
    }
}

static void run_node(arena *a, const ir_graph *g, const ir_node *n, tensor *values) {
    tensor in[16], out[IR_MAX_OUT];
    assert_true(n->nin <= 16);
    for (int i = 0; i < n->nin; i++) in[i] = values[n->in[i]];
    for (int k = 0; k < n->nout; k++) out[k] = values[n->out[k]] = make(a, ir_typeof(g, n->out[k]));
    dev_call c = {.op = n->op, .node = n, .nin = n->nin, .nout = n->nout, .in = in, .out = out, .threads = 1};
    const ir_dim *list;
    switch (n->op) {
    case OP_param:
    case OP_input:
        fill_leaf(n, &out[0]);
        return;
    case OP_fill:
        for (int64_t i = 0; i < tensor_numel(&out[0]); i++) set(&out[0], i, ir_float(n, "value", 0));
        return;
    case OP_const: {
        const ir_attr *data = ir_find_attr(n, "data");
        assert_int_equal(data->n, tensor_numel(&out[0]));
        for (int64_t i = 0; i < data->n; i++) set(&out[0], i, data->data[i]);
        return;
    }
    case OP_reshape: /* values are contiguous here */
        memcpy(out[0].data, in[0].data, (size_t)(tensor_numel(&out[0]) * dtype_size(out[0].type)));
        return;
    case OP_permute:
        ir_dims(n, "perm", &list);
        for (int d = 0; d < out[0].rank; d++) in[0].stride[d] = values[n->in[0]].stride[list[d]];
        break;
    case OP_expand:
        for (int d = 0; d < out[0].rank; d++)
            if (in[0].dim[d] != out[0].dim[d]) in[0].stride[d] = 0;
        break;
    case OP_slice: {
        int64_t dim = ir_int(n, "dim", 0);
        ir_dims(n, "range", &list);
        in[0].data = (char *)in[0].data + list[0] * in[0].stride[dim] * dtype_size(in[0].type);
        in[0].stride[dim] *= ir_int(n, "step", 1);
        break;
    }
    default:
        break;
    }
    for (int d = 0; (op_table[n->op].flags & F_VIEW) && d < out[0].rank; d++) in[0].dim[d] = out[0].dim[d];
    assert_non_null(device_ref.table[n->op]);
    c.work_bytes = device_ref.workspace(&c);
    c.work = arena_alloc(a, (size_t)c.work_bytes + 64);
    assert_int_equal(device_ref.prepare(&c), SP_OK);
    if (device_ref.table[n->op](&c) != SP_OK) fail_msg("%s: %s", op_table[n->op].name, err_text());
    device_ref.release(&c);
}

/* Binds, makes f64 and runs; the outputs' tensors. */
static void run(arena *a, const ir_graph *g, tensor *outputs) {
    pass_options o = {.batch = 2, .seq = 8, .ranks = 1, .compute = DT_F64};
    ir_graph *b = NULL;
    if (pass_bind(g, &o, &b) != SP_OK || pass_cast(b, &o, &b) != SP_OK || ir_verify(b, "cast") != SP_OK)
        fail_msg("%s", err_text());
    tensor *values = arena_alloc(a, sizeof *values * (size_t)(b->values.n + 1));
    for (int i = 0; i < b->nodes.n; i++) run_node(a, b, &b->nodes.data[i], values);
    for (int i = 0; i < b->outputs.n; i++) outputs[i] = values[b->outputs.data[i].value];
}

static void print_graph(const ir_graph *g) {
    buf b = {0};
    ir_print(g, &b);
    print_error("%s", b.data);
    buf_free(&b);
}

static void same_numbers(arena *a, const ir_graph *g, const char *name, double tolerance) {
    ir_graph *h = NULL;
    tensor want[8], got[8];
    if (pass_simplify(g, &h) != SP_OK || ir_verify(h, "simplify") != SP_OK) fail_msg("%s: %s", name, err_text());
    run(a, g, want);
    run(a, h, got);
    for (int i = 0; i < g->outputs.n; i++) {
        int64_t n = tensor_numel(&want[i]);
        assert_int_equal(n, tensor_numel(&got[i]));
        double worst = 0, size = 0;
        for (int64_t k = 0; k < n; k++) {
            double x = want[i].type == DT_F64 ? ((double *)want[i].data)[k] : (double)((int64_t *)want[i].data)[k];
            double y = got[i].type == DT_F64 ? ((double *)got[i].data)[k] : (double)((int64_t *)got[i].data)[k];
            if (!(fabs(x - y) <= worst)) worst = fabs(x - y); /* also when it is not a number */
            size = fmax(size, fabs(x));
        }
        if (!(worst <= tolerance * (size + 1e-3))) {
            print_graph(g);
            print_graph(h);
            fail_msg("%s: output %d differs by %g of %g", name, i, worst, size);
        }
    }
}

static void golden_cases_keep_their_numbers(void **state) {
    (void)state;
    DIR *d = opendir(AUTOSP_SOURCE_DIR "/tests/ir/simplify");
    int n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        if (len < 4 || strcmp(e->d_name + len - 3, ".ir") != 0 || strstr(e->d_name, ".out.ir")) continue;
        arena *a = arena_new();
        char *path = arena_printf(a, AUTOSP_SOURCE_DIR "/tests/ir/simplify/%s", e->d_name),
             *text = arena_alloc(a, 1 << 18);
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        size_t got = fread(text, 1, (1 << 18) - 1, f);
        assert_true(got > 0);
        fclose(f);
        ir_graph *g = NULL;
        if (ir_parse(a, text, path, &g) != SP_OK) fail_msg("%s", err_text());
        same_numbers(a, g, e->d_name, 1e-6); /* gelu's constants are matched within 2e-6 */
        arena_free(a);
        n++;
    }
    closedir(d);
    assert_true(n > 10);
}

/* ---- random graphs ---- */

static bool two_and_eight(void *ctx, const char *name, int64_t *v) {
    (void)ctx;
    *v = strcmp(name, "B") == 0 ? 2 : 8;
    return true;
}

/* Elements when B is 2 and S is 8. */
static int64_t numel(const ir_graph *g, const ir_type *t) {
    int64_t n = 1, v;
    for (int d = 0; d < t->rank; d++) {
        assert_int_equal(dim_eval(g, t->dim[d], two_and_eight, NULL, &v), SP_OK);
        n *= v;
    }
    return n;
}

static int pick(uint64_t *seed, int n) { return (int)(rng_next(seed) % (uint64_t)n); }

static ir_val random_view(ir_graph *g, uint64_t *seed, ir_val x) {
    ir_type t = *ir_typeof(g, x);
    switch (pick(seed, 5)) {
    case 0: { /* permute */
        int perm[IR_MAX_RANK];
        for (int i = 0; i < t.rank; i++) perm[i] = i;
        for (int i = t.rank - 1; i > 0; i--) {
            int k = pick(seed, i + 1), s = perm[i];
            perm[i] = perm[k];
            perm[k] = s;
        }
        return ir_permute(g, x, perm);
    }
    case 1: /* merge two, split one, or add a dimension of 1 */
        if (t.rank >= 2) {
            int d = pick(seed, t.rank - 1);
            t.dim[d] = dim_mul(g, t.dim[d], t.dim[d + 1]);
            for (int i = d + 1; i < t.rank - 1; i++) t.dim[i] = t.dim[i + 1];
            return ir_reshape(g, x, t.rank - 1, t.dim);
        }
        return x;
    case 2: {
        int d = t.rank ? pick(seed, t.rank) : 0;
        if (t.rank == 0 || t.rank > 5 || t.dim[d] < 0) return x;
        ir_dim f = t.dim[d] % 2 == 0 ? 2 : t.dim[d] % 3 == 0 ? 3 : 1;
        for (int i = t.rank; i > d + 1; i--) t.dim[i] = t.dim[i - 1];
        t.dim[d + 1] = f;
        t.dim[d] /= f;
        return ir_reshape(g, x, t.rank + 1, t.dim);
    }
    case 3: /* expand */
        for (int d = 0; d < t.rank; d++)
            if (t.dim[d] == 1 && numel(g, &t) < 500) {
                t.dim[d] = 2 + pick(seed, 2);
                return ir_expand(g, x, t.rank, t.dim);
            }
        return x;
    default: { /* slice */
        int d = t.rank ? pick(seed, t.rank) : 0;
        if (t.rank == 0 || t.dim[d] == 1 || t.dim[d] == 0) return x;
        if (t.dim[d] < 0)
            return pick(seed, 2) ? ir_slice(g, x, d, 1, t.dim[d], 1) : ir_slice(g, x, d, 0, dim_sub(g, t.dim[d], 1), 1);
        int lo = pick(seed, (int)t.dim[d]), hi = lo + 1 + pick(seed, (int)t.dim[d] - lo);
        return ir_slice(g, x, d, lo, hi, 1);
    }
    }
}

static ir_val random_node(ir_graph *g, uint64_t *seed, const ir_val *pool, int n) {
    ir_val x = pool[pick(seed, n)], y;
    const ir_type t = *ir_typeof(g, x);
    static const ir_op unary[] = {OP_neg, OP_tanh, OP_abs, OP_silu}, binary[] = {OP_add, OP_sub, OP_mul, OP_max};
    ir_dim d = t.rank ? pick(seed, t.rank) : 0;
    switch (pick(seed, 12)) {
    case 0:
        return ir_op1(g, unary[pick(seed, 4)], x, NO_ATTRS);
    case 1:
    case 2: { /* with a value of the same shape, if there is one */
        for (int tries = 0; tries < 20; tries++) {
            y = pool[pick(seed, n)];
            if (ir_type_equal(ir_typeof(g, y), &t)) break;
            y = x;
        }
        return ir_op2(g, binary[pick(seed, 4)], x, y, NO_ATTRS);
    }
    case 3: { /* with a broadcast vector or number */
        ir_type v = {.t = DT_F64, .rank = 1, .dim = {t.rank ? t.dim[t.rank - 1] : 1}};
        if (t.rank == 0) return x;
        y = pick(seed, 2) ? ir_scalar(g, DT_F64, 0.5)
                          : ir_op0(g, OP_input, &v, ATTRS(A_S("name", pick(seed, 2) ? "v" : "w")));
        return ir_op2(g, binary[pick(seed, 4)], x, ir_expand(g, y, t.rank, t.dim), NO_ATTRS);
    }
    case 4:
        return t.rank ? ir_op1(g, pick(seed, 2) ? OP_sum : OP_rmax, x, ATTRS(A_D("dims", 1, &d))) : x;
    case 5:
        return t.rank ? ir_op1(g, pick(seed, 2) ? OP_softmax : OP_cumsum, x, ATTRS(A_I("dim", d))) : x;
    case 6: { /* rows times a matrix */
        if (t.rank == 0) return x;
        ir_type w = {.t = DT_F64, .rank = 2, .dim = {3, t.dim[t.rank - 1]}};
        return ir_linear(g, x, ir_op0(g, OP_input, &w, ATTRS(A_S("name", "m"))));
    }
    case 7: { /* products over one dimension, with the others batches or free */
        if (t.rank < 2 || t.rank > 4) return x;
        y = ir_op1(g, OP_tanh, x, NO_ATTRS);
        ir_dim c = pick(seed, t.rank), b = (c + 1) % t.rank;
        return ir_op2(g, OP_dot, x, y, ATTRS(A_D("lc", 1, &c), A_D("rc", 1, &c), A_D("lb", 1, &b), A_D("rb", 1, &b)));
    }
    case 8: {
        if (t.rank == 0) return x;
        ir_val in[2] = {x, ir_op1(g, OP_neg, x, NO_ATTRS)}, out = -1;
        if (ir_emit(g, OP_concat, in, 2, ATTRS(A_I("dim", d)), NULL, NULL, &out) != SP_OK) fail();
        return out;
    }
    default:
        return random_view(g, seed, x);
    }
}

static void random_graphs_keep_their_numbers(void **state) {
    (void)state;
    for (uint64_t s = 1; s <= 2000; s++) { /* sizes known, and sizes in B and S */
        arena *a = arena_new();
        ir_graph *g = ir_new(a, "random");
        uint64_t seed = s;
        ir_dim B = s % 2 ? 2 : dim_symbol(g, "B"), S = s % 2 ? 3 : dim_symbol(g, "S");
        ir_type t = {.t = DT_F64, .rank = 3, .dim = {B, S, 4}};
        ir_val pool[64];
        int n = 0;
        pool[n++] = ir_op0(g, OP_input, &t, ATTRS(A_S("name", "x")));
        t = (ir_type){.t = DT_F64, .rank = 4, .dim = {B, 1, S, 6}};
        pool[n++] = ir_op0(g, OP_input, &t, ATTRS(A_S("name", "y")));
        while (n < 24) {
            ir_val v = random_node(g, &seed, n > 6 && pick(&seed, 2) ? pool + n - 4 : pool,
                                   n > 6 && pick(&seed, 2) ? 4
                                   : n > 4                 ? 4
                                                           : n);
            if (ir_typeof(g, v)->rank > 6 || numel(g, ir_typeof(g, v)) > 3000 || numel(g, ir_typeof(g, v)) < 1)
                continue;
            pool[n++] = v;
        }
        ir_set_output(g, "y", pool[n - 1]);
        ir_set_output(g, "z", pool[n - 2]);
        ir_set_output(g, "w", pool[n - 5]);
        same_numbers(a, g, "a random graph", 1e-11);
        arena_free(a);
    }
}

/* 400 layers of norm, product, flattened rows and residual: what takes quadratic time would show. */
static void deep_graphs_are_quick(void **state) {
    (void)state;
    arena *a = arena_new();
    ir_graph *g = ir_new(a, "deep"), *h;
    ir_dim B = dim_symbol(g, "B"), S = dim_symbol(g, "S"), flat[2] = {dim_mul(g, B, S), 32}, whole[3] = {B, S, 32};
    ir_type t = {.t = DT_F32, .rank = 3, .dim = {B, S, 32}}, w = {.t = DT_F32, .rank = 2, .dim = {32, 32}};
    ir_val x = ir_op0(g, OP_input, &t, ATTRS(A_S("name", "x")));
    for (int i = 0; i < 400; i++) {
        char name[16];
        snprintf(name, sizeof name, "w%d", i);
        ir_val m = ir_op0(g, OP_param, &w, ATTRS(A_S("name", name), A_I("grad", 1)));
        int last = 2;
        ir_val s = ir_sum(g, ir_op2(g, OP_mul, x, x, NO_ATTRS), 1, &last);
        s = ir_op2(g, OP_div, s, ir_fill_like(g, s, 32), NO_ATTRS);
        s = ir_op1(g, OP_rsqrt, ir_op2(g, OP_add, s, ir_fill_like(g, s, 1e-5), NO_ATTRS), NO_ATTRS);
        s = ir_reshape(g, s, 3, (ir_dim[]){B, S, 1});
        ir_val y = ir_op2(g, OP_mul, x, ir_expand(g, s, 3, whole), NO_ATTRS);
        y = ir_linear(g, ir_reshape(g, y, 2, flat), m);
        x = ir_op2(g, OP_add, x, ir_reshape(g, y, 3, whole), NO_ATTRS);
    }
    ir_set_output(g, "y", x);
    double start = now_s();
    assert_int_equal(pass_simplify(g, &h), SP_OK);
    assert_true(now_s() - start < 10); /* milliseconds; the bound is for sanitizers on a busy machine */
    int rows = 0;
    for (int i = 0; i < h->nodes.n; i++) {
        rows += h->nodes.data[i].op == OP_rmsnorm;
        assert_true(ir_typeof(h, h->nodes.data[i].out[0])->dim[0] != flat[0]);
    }
    assert_int_equal(rows, 400);
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_cases_keep_their_numbers),
                                       cmocka_unit_test(random_graphs_keep_their_numbers),
                                       cmocka_unit_test(deep_graphs_are_quick)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
