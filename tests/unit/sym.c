/* Tests of src/import/sym.c: sympy's text form of sizes. Expected values are worked out by hand. */
#include "import/sym.h"

#include <setjmp.h>
#include <cmocka.h>

static bool values(void *ctx, const char *name, int64_t *v) {
    (void)ctx;
    if (!strcmp(name, "s77"))
        *v = 128;
    else if (!strcmp(name, "u0"))
        *v = -7;
    else
        return false;
    return true;
}

static sp_status eval(const char *text, int64_t *out) {
    arena *a = arena_new();
    const sym_expr *e;
    sp_status s = sym_parse(a, text, &e);
    if (s == SP_OK) s = sym_eval(e, values, NULL, out);
    arena_free(a);
    return s;
}

static void expressions_evaluate(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t want;
    } cases[] = {
        {"Integer(4)", 4},
        {"-3", -3},
        {"Integer(-3)", -3},
        {"s77", 128},
        {"Symbol('s77', integer=True, positive=True)", 128},
        {"Symbol('s77',positive=True)", 128},
        {"Add(Mul(Integer(2), Symbol('s77', integer=True)), Integer(-1))", 255},
        {"Mul(Integer(-1), Symbol(\"u0\"))", 7},
        {"Pow(Symbol('s77', integer=True), Integer(2))", 16384},
        {"FloorDiv(Symbol('u0'), Integer(2))", -4},
        {"CeilDiv(Symbol('u0'), Integer(2))", -3},
        {"CeilDiv(Integer(9), Integer(4))", 3},
        {"Mod(Symbol('u0'), Integer(4))", 1},
        {"PythonMod(Symbol('u0'), Integer(-4))", -3},
        {"Mod(Integer(5), Integer(-9223372036854775808))", 5 + INT64_MIN},
        {"CeilDiv(Integer(-9223372036854775808), Integer(3))", -3074457345618258602},
        {"Max(Integer(1), Symbol('s77'), Integer(3))", 128},
        {"Min(Integer(1), Symbol('u0'))", -7},
        {"Mul(Rational(1, 2), Symbol('s77'))", 64},
        {"Mul(Rational(3, 4), Symbol('s77'))", 96},
        {"Add(1, 2, 3, 4)", 10},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t v = 0;
        if (eval(cases[i].text, &v) != SP_OK || v != cases[i].want)
            fail_msg("%s = %lld, not %lld (%s)", cases[i].text, (long long)v, (long long)cases[i].want, err_text());
    }
}

static void bad_text_is_refused(void **state) {
    (void)state;
    static const char *const cases[] = {
        "",
        "(",
        "Add(",
        "Add(1",
        "Add(1,",
        "Add(1 2)",
        "Symbol()",
        "Symbol('x",
        "Integer(x)",
        "Integer(1, 2)",
        "1 2",
        "Mod(1)",
        "Max()",
        "99999999999999999999",
        "__import__('os').system('true')",
        "Symbol('s77') + 1",
        "'text'",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t v;
        if (eval(cases[i], &v) == SP_OK) fail_msg("\"%s\" was accepted", cases[i]);
    }
    buf deep = {0};
    for (int i = 0; i < 100000; i++) buf_printf(&deep, "Add(");
    int64_t v;
    assert_int_equal(eval(deep.data, &v), SP_FAIL);
    assert_non_null(strstr(err_text(), "deep"));
    buf_free(&deep);
}

static void bad_values_are_refused(void **state) {
    (void)state;
    static const char *const cases[] = {
        "Symbol('s1')",
        "Mod(Integer(1), Integer(0))",
        "FloorDiv(Integer(1), Integer(0))",
        "Mul(Integer(4611686018427387904), Integer(2))",
        "Add(Integer(9223372036854775807), Integer(1))",
        "Pow(Integer(2), Integer(63))",
        "Pow(Integer(2), Integer(-1))",
        "Where(Integer(1), Integer(2), Integer(3))",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t v;
        if (eval(cases[i], &v) == SP_OK) fail_msg("\"%s\" has a value", cases[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expressions_evaluate),
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(bad_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
