/* Tests of the cost model (src/cost/cost.h): counts by hand, machine strings good and bad. */
#include "cost/cost.h"

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

static void close_to(double x, double want) {
    if (fabs(x - want) > 1e-9 * fabs(want)) fail_msg("%.12g, want %.12g", x, want);
}

static void machines_parse(void **state) {
    (void)state;
    arena *a = arena_new();
    cost_machine m;
    assert_int_equal(cost_machine_parse(a, "h100x8", &m), SP_OK);
    assert_int_equal(m.count, 8);
    assert_true(m.mem_bytes == 80000000000LL);
    assert_int_equal(cost_machine_parse(a, "a100-80x64", &m), SP_OK);
    assert_int_equal(m.count, 64);
    assert_int_equal(m.node_size, 8);
    assert_int_equal(cost_machine_parse(a, "mi300x", &m), SP_OK); /* the x is part of the name */
    assert_int_equal(m.count, 0);
    assert_int_equal(cost_machine_parse(a, "mi300xx4", &m), SP_OK);
    assert_int_equal(m.count, 4);
    assert_int_equal(cost_machine_parse(a, "h100x16,net=25e9,mem=64GiB", &m), SP_OK);
    close_to(m.net_bw, 25e9);
    assert_true(m.mem_bytes == 64LL << 30);
    assert_int_equal(cost_machine_parse(a, "flops.bf16=4e14,mem_bw=2e12,mem=80GB,link=3e11,node=4,count=12", &m),
                     SP_OK);
    close_to(m.flops[DT_BF16], 4e14);
    close_to(m.flops[DT_F32], 4e14);
    close_to(m.link_bw, 3e11);
    assert_int_equal(m.node_size, 4);
    arena_free(a);
}

/* Every name of the list, alone and with a count, is a complete machine. */
static void all_names_are_machines(void **state) {
    (void)state;
    arena *a = arena_new();
    char *names = arena_strdup(a, cost_machine_names());
    int n = 0;
    for (char *name = strtok(names, " "); name; name = strtok(NULL, " "), n++) {
        char text[64];
        cost_machine m;
        for (int count = 0; count <= 8; count += 8) {
            snprintf(text, sizeof text, count ? "%s%s%d" : "%s", name, "x", count);
            if (cost_machine_parse(a, text, &m) != SP_OK) fail_msg("%s: %s", text, err_text());
            assert_int_equal(m.count, count);
            assert_string_equal(m.name, text);
            for (int t = 0; t < DT_COUNT; t++) assert_true(m.flops[t] > 0);
            assert_true(m.mem_bytes > 0 && m.host_bytes > 0 && m.node_size > 0);
            assert_true(m.mem_bw > 0 && m.link_bw > 0 && m.net_bw > 0 && m.host_bw > 0);
            assert_true(m.launch > 0 && m.latency > 0 && m.attention > 0 && m.attention <= 1);
            assert_true(m.flops[DT_BF16] >= m.flops[DT_F32] && m.mem_bw > m.link_bw && m.link_bw >= m.net_bw);
        }
    }
    assert_int_equal(n, 9);
    arena_free(a);
}

/* Each key sets its own field and no other. */
static void keys_set_their_fields(void **state) {
    (void)state;
    arena *a = arena_new();
    cost_machine m;
    const char *text =
        "h100x8,flops.f32=1e12,flops.f64=2e12,flops.bf16=3e12,attention=0.5,mem_bw=4e12,mem=5GB,launch=6e-6,"
        "link=7e9,net=8e9,latency=9e-6,host_bw=1e10,host=11GB,node=12,count=13";
    assert_int_equal(cost_machine_parse(a, text, &m), SP_OK);
    close_to(m.flops[DT_F32], 1e12);
    close_to(m.flops[DT_F64], 2e12);
    close_to(m.flops[DT_BF16], 3e12);
    close_to(m.attention, 0.5);
    close_to(m.mem_bw, 4e12);
    assert_true(m.mem_bytes == 5000000000LL);
    close_to(m.launch, 6e-6);
    close_to(m.link_bw, 7e9);
    close_to(m.net_bw, 8e9);
    close_to(m.latency, 9e-6);
    close_to(m.host_bw, 1e10);
    assert_true(m.host_bytes == 11000000000LL);
    assert_int_equal(m.node_size, 12);
    assert_int_equal(m.count, 13);
    arena_free(a);
}

static void bad_machines_are_named(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"", "empty"},
        {"h1000", "unknown name 'h1000'"},
        {"h100x", "unknown name"},
        {"h100x0", "count"},
        {"h100x8,speed=3", "unknown key 'speed'"},
        {"h100,mem", "has no value"},
        {"h100,mem=-3", "mem"},
        {"h100,net=fast", "net=fast"},
        {"h100,launch=nan", "launch=nan"},
        {"flops.i64=3", "element type"},
        {"flops.bf16=1e12,mem=3GB", "mem_bw"},
    };
    arena *a = arena_new();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cost_machine m;
        assert_int_equal(cost_machine_parse(a, bad[i][0], &m), SP_FAIL);
        if (!strstr(err_text(), bad[i][1])) fail_msg("'%s' gives '%s'", bad[i][0], err_text());
    }
    arena_free(a);
}

static const char *const text =
    "graph \"g\" mesh(seq=4) seq(32/32) {\n"
    "  %0 = input {name=\"x\", seq=1} : bf16[2,32,64]\n"
    "  %1 = param {name=\"w\", grad=1} : bf16[96,64]\n"
    "  %2 = shard(%0) {axis=\"seq\", dim=1} : bf16[2,32,64]@seq=S1\n"
    "  %3 = enter(%1) {axis=\"seq\"} : bf16[96,64]\n"
    "  %4 = dot(%2, %3) {lc=[2], rc=[1], lb=[], rb=[]} : bf16[2,32,96]@seq=S1\n"
    "  %5 = reshape(%4) : bf16[2,32,12,8]@seq=S1\n"
    "  %6 = all_to_all(%5) {axis=\"seq\", from=1, to=2} : bf16[2,32,12,8]@seq=S2\n"
    "  %7, %8 = attention(%6, %6, %6) {scale=0.5, causal=1} : bf16[2,32,12,8]@seq=S2, f32[2,12,32]@seq=S1\n"
    "  %9 = all_gather(%7) {axis=\"seq\", dim=2} : bf16[2,32,12,8]\n"
    "  return y=%9\n"
    "}\n";

static void counts_by_hand(void **state) {
    (void)state;
    arena *a = arena_new();
    ir_graph *g;
    if (ir_parse(a, text, "test", &g) != SP_OK) fail_msg("%s", err_text());
    cost_machine m;
    assert_int_equal(
        cost_machine_parse(a, "flops.bf16=1e9,mem_bw=1e6,mem=1GB,link=1e5,net=1e4,latency=1e-3,launch=1e-2", &m),
        SP_OK);
    m.attention = 0.5;
    cost_work w[10];
    for (int i = 0; i < g->nodes.n; i++) w[i] = cost_node(&m, g, &g->nodes.data[i]);
    for (int i = 0; i < 4; i++) assert_true(w[i].seconds == 0); /* leaves and views */
    /* dot: 2 x 8 local rows, 96 columns, 64 deep */
    close_to(w[4].flops, 2.0 * 16 * 96 * 64);
    close_to(w[4].bytes, 2.0 * (16 * 64 + 96 * 64 + 16 * 96));
    close_to(w[4].seconds, 1e-2 + w[4].bytes / 1e6); /* memory-bound here */
    /* all_to_all: 2 x 8 x 96 local elements, three quarters leave */
    assert_true(w[6].comm);
    close_to(w[6].sent, 2.0 * 16 * 96 * 3 / 4);
    close_to(w[6].seconds, 1e-2 + w[6].sent / 1e5 + 3e-3);
    /* attention: 3 of 12 heads, 32 queries x 32 keys, half visible, two products */
    close_to(w[7].flops, 2 * 2.0 * 2 * 32 * 3 * 8 * 32 / 2);
    close_to(w[8].sent, 2.0 * 2 * 32 * 96 * 3 / 4);
    /* two nodes of two: one third of what leaves stays inside */
    m.node_size = 2;
    close_to(cost_collective(&m, OP_all_to_all, 4000, 4), 1000 / 1e5 + 2000 / 1e4 + 3e-3);
    close_to(cost_collective(&m, OP_all_reduce, 4000, 4), 2 * (1000 / 1e5 + 2000 / 1e4 + 3e-3));
    assert_true(cost_collective(&m, OP_all_reduce, 4000, 1) == 0);
    arena_free(a);
}

/* A gradient's product adds into the gradient's buffer: beside its arithmetic the buffer is read as well. What no
 * product makes is read, and the buffer read and written. */
static void accumulation_inside_a_product(void **state) {
    (void)state;
    static const char *const grads = "graph \"g\" {\n"
                                     "  %0 = input {name=\"x\"} : f32[32,64]\n"
                                     "  %1 = input {name=\"d\"} : f32[32,96]\n"
                                     "  %2 = param {name=\"w\", grad=1} : f32[96,64]\n"
                                     "  %3 = param {name=\"u\", grad=1} : f32[96,64]\n"
                                     "  %4 = param {name=\"b\", grad=1} : f32[96]\n"
                                     "  %5 = dot(%0, %1) {lc=[0], rc=[0], lb=[], rb=[]} : f32[64,96]\n"
                                     "  %6 = permute(%5) {perm=[1,0]} : f32[96,64]\n"
                                     "  accum(%6) {param=\"w\"}\n"
                                     "  %7 = dot(%1, %0) {lc=[0], rc=[0], lb=[], rb=[]} : f32[96,64]\n"
                                     "  accum(%7) {param=\"u\"}\n"
                                     "  %8 = sum(%1) {dims=[0]} : f32[96]\n"
                                     "  accum(%8) {param=\"b\"}\n"
                                     "  return y=%5\n"
                                     "}\n";
    arena *a = arena_new();
    ir_graph *g;
    if (ir_parse(a, grads, "test", &g) != SP_OK) fail_msg("%s", err_text());
    double operands = 4 * (32 * 64 + 32 * 96), result = 4 * 96 * 64, flops = 2.0 * 32 * 64 * 96;
    for (int bound = 0; bound < 3; bound++) {
        cost_machine m;
        assert_int_equal(cost_machine_parse(a, "flops.f32=1e9,mem_bw=1e6,mem=1GB,launch=1e-2", &m), SP_OK);
        double product, add;
        if (bound == 0) { /* by memory: the second pass over the buffer is to be seen whole */
            product = (operands + result) / 1e6;
            add = result / 1e6;
        } else if (bound == 1) { /* by arithmetic, however much is read */
            m.flops[DT_F32] = 1e5;
            product = flops / 1e5;
            add = 0;
        } else { /* by arithmetic alone, by memory with the buffer: part of it */
            m.flops[DT_F32] = flops / ((operands + 1.5 * result) / 1e6);
            product = (operands + 1.5 * result) / 1e6;
            add = 0.5 * result / 1e6;
        }
        for (int i = 0; i < g->nodes.n; i++) {
            const ir_node *n = &g->nodes.data[i];
            double s = cost_node(&m, g, n).seconds;
            if (n->op == OP_dot) close_to(s, 1e-2 + product);
            if (n->op != OP_accum) continue;
            bool in_place = strcmp(ir_str(n, "param"), "b") != 0;
            if (in_place)
                close_to(s + 1, add + 1);
            else
                close_to(s, 1e-2 + 3 * 4 * 96 / 1e6);
        }
    }
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(machines_parse),        cmocka_unit_test(all_names_are_machines),
        cmocka_unit_test(keys_set_their_fields), cmocka_unit_test(bad_machines_are_named),
        cmocka_unit_test(counts_by_hand),        cmocka_unit_test(accumulation_inside_a_product),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
