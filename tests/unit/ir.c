/* Tests of src/ir: symbolic dimensions, text round trips, what the verifier and the reader refuse. */
#include "ir/ir.h"

#include <setjmp.h>
#include <cmocka.h>

static void dims_are_canonical(void **state) {
    (void)state;
    arena *a = arena_new();
    ir_graph *g = ir_new(a, "d");
    ir_dim B = dim_symbol(g, "B"), S = dim_symbol(g, "S");
    assert_true(dim_sub(g, dim_add(g, S, 1), 1) == S);
    assert_true(dim_mul(g, B, S) == dim_mul(g, S, B));
    assert_true(dim_mul(g, dim_mul(g, 2, B), S) == dim_mul(g, dim_mul(g, S, B), 2));
    assert_true(dim_floordiv(g, dim_mul(g, B, S), S) == B);
    assert_true(dim_floordiv(g, dim_mul(g, S, 64), 64) == S);
    assert_true(dim_sub(g, dim_mul(g, S, 2), S) == S);
    assert_true(dim_sub(g, S, S) == 0);
    assert_true(dim_max(g, dim_add(g, S, 1), S) == dim_add(g, S, 1));
    ir_dim first = dim_min(g, S, 2), rest = dim_max(g, dim_sub(g, S, 2), 0); /* x[:, 2:] and x[:, :-2] */
    assert_true(dim_sub(g, S, first) == rest);
    assert_true(dim_add(g, dim_mul(g, first, dim_const(g, -1)), S) == rest);
    assert_true(dim_sub(g, first, S) != rest);
    assert_true(dim_add(g, first, rest) == S && dim_add(g, rest, first) == S);
    assert_true(dim_add(g, dim_min(g, S, 3), rest) != S);
    int64_t v;
    assert_true(dim_value(g, dim_mod(g, dim_const(g, -7), 3), &v));
    assert_int_equal(v, 2);
    arena_free(a);
}

static const char block[] =
    "graph \"block\" mesh(seq=2) seq(7/8) {\n"
    "  %0 = param {name=\"w\", grad=1} : f32[16,16]\n"
    "  %1 = input {name=\"input_ids\", seq=1} : i64[2,8]\n"
    "  %2 = shard(%1) {axis=\"seq\", dim=1} : i64[2,8]@seq=S1\n"
    "  %3 = param {name=\"e\", grad=1} : f32[32,16]\n"
    "  %4 = enter(%3) {axis=\"seq\"} : f32[32,16]\n"
    "  %5 = embedding(%4, %2) : f32[2,8,16]@seq=S1\n"
    "  %6 = dot(%5, %0) {lc=[2], rc=[1], lb=[], rb=[]} : f32[2,8,16]@seq=S1\n"
    "  %7 = reshape(%6) : f32[16,16]@seq=S0/2\n"
    "  %8 = reshape(%7) : f32[2,8,4,4]@seq=S1\n"
    "  %9 = all_to_all(%8) {axis=\"seq\", from=1, to=2} : f32[2,8,4,4]@seq=S2\n"
    "  %10, %11 = attention(%9, %9, %9) {scale=0.5, causal=1} : f32[2,8,4,4]@seq=S2, f32[2,4,8]@seq=S1\n"
    "  %12 = sum(%10) {dims=[0,1,2,3]} : f32[]@seq=P\n"
    "  %13 = all_reduce(%12) {axis=\"seq\"} : f32[]\n"
    "  return loss=%13\n"
    "}\n";

static void text_round_trips(void **state) {
    (void)state;
    arena *a = arena_new();
    ir_graph *g = NULL;
    if (ir_parse(a, block, "block.ir", &g) != SP_OK) fail_msg("%s", err_text());
    assert_int_equal(ir_verify(g, "parsing"), SP_OK);
    buf b = {0};
    ir_print(g, &b);
    assert_string_equal(b.data, block);
    buf_free(&b);
    ir_graph *d = ir_dce(g);
    ir_print(d, &b);
    assert_string_equal(b.data, block);
    buf_free(&b);
    arena_free(a);
}

static void refused(const char *text, const char *why) {
    arena *a = arena_new();
    ir_graph *g;
    assert_int_equal(ir_parse(a, text, "t", &g), SP_FAIL);
    if (!strstr(err_text(), why)) fail_msg("'%s' does not mention '%s'", err_text(), why);
    arena_free(a);
}

static void reader_refuses(void **state) {
    (void)state;
#define G(body) "graph \"g\" mesh(seq=2) {\n" body "}\n"
    refused(G("  %0 = nosuch : f32[2]\n  return\n"), "no op 'nosuch'");
    refused(G("  %0 = fill {value=1.0} : f32[2]\n  %1 = add(%0, %2) : f32[2]\n  return\n"), "before it is defined");
    refused(G("  %0 = fill {value=1.0} : f32[2]\n  %0 = fill {value=1.0} : f32[2]\n  return\n"), "twice");
    refused(G("  %0 = fill {value=1.0} : f32[2]\n  %1 = fill {value=1.0} : f32[3]\n  %2 = add(%0, %1) : f32[2]\n  "
              "return\n"),
            "different types");
    refused(G("  %0 = fill {value=1.0} : f32[3]@seq=S0\n  return\n"), "divides");
    refused(G("  %0 = permute : f32[3]\n  return\n"), "perm");
    refused(G("  %0 = take : f32[3]\n  return\n"), "take");
    refused(G("  %0 = concat {dim=0} : f32[3]\n  return\n"), "concat");
    refused(G("  %0 = attention {scale=1.0} : f32[3]\n  return\n"), "attention");
    /* partial + replicated, and a non-linear use of a partial sum */
    refused(G("  %0 = fill {value=1.0} : f32[4]@seq=S0\n  %1 = sum(%0) {dims=[0]} : f32[]@seq=P\n"
              "  %2 = fill {value=1.0} : f32[]\n  %3 = add(%1, %2) : f32[]@seq=P\n  return\n"),
            "beside a replicated");
    refused(G("  %0 = fill {value=1.0} : f32[4]@seq=S0\n  %1 = sum(%0) {dims=[0]} : f32[]@seq=P\n"
              "  %2 = exp(%1) : f32[]@seq=P\n  return\n"),
            "only linear");
    /* softmax over the cut dimension */
    refused(G("  %0 = fill {value=1.0} : f32[4,4]@seq=S1\n  %1 = softmax(%0) {dim=1} : f32[4,4]@seq=S1\n  return\n"),
            "must be whole");
    refused("graph \"g\" {", "return");
    refused("", "graph");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(dims_are_canonical), cmocka_unit_test(text_round_trips),
                                       cmocka_unit_test(reader_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
