/* Tests of src/base: sizes as people write them, the map, the vectors, the error text. */
#include "base/base.h"

#include <setjmp.h>
#include <cmocka.h>

static void bytes_parse(void **state) {
    (void)state;
    int64_t b = 0;
    assert_int_equal(parse_bytes("2GiB", &b), SP_OK);
    assert_int_equal(b, 2147483648LL);
    assert_int_equal(parse_bytes("80GB", &b), SP_OK);
    assert_int_equal(b, 80000000000LL);
    assert_int_equal(parse_bytes("1.5e9", &b), SP_OK);
    assert_int_equal(b, 1500000000LL);
    assert_int_equal(parse_bytes("much", &b), SP_FAIL);
    assert_non_null(strstr(err_text(), "2GiB"));
    assert_int_equal(parse_bytes("-1", &b), SP_FAIL);
    assert_int_equal(parse_bytes("nan", &b), SP_FAIL);
    assert_int_equal(parse_bytes("1e30", &b), SP_FAIL);
}

static void map_holds_many(void **state) {
    (void)state;
    arena *a = arena_new();
    strmap *m = strmap_new(a);
    for (int i = 0; i < 1000; i++) strmap_put(m, arena_printf(a, "key%d", i), i);
    strmap_put(m, "key7", 70);
    int64_t v = 0;
    assert_true(strmap_get(m, "key7", &v));
    assert_int_equal(v, 70);
    assert_true(strmap_get(m, "key999", &v));
    assert_int_equal(v, 999);
    assert_false(strmap_get(m, "key1000", &v));
    assert_int_equal(strmap_count(m), 1000);
    arena_free(a);
}

static void vectors_grow(void **state) {
    (void)state;
    arena *a = arena_new();
    VEC(int) v = {0}, w = {0};
    for (int i = 0; i < 100; i++) {
        vec_push(a, &v, i);
        vec_push(NULL, &w, 2 * i);
    }
    assert_int_equal(v.data[99], 99);
    assert_int_equal(w.data[99], 198);
    vec_free(&w);
    arena_free(a);
}

static sp_status fails(void) { FAIL("token %d", 7); }
static sp_status notes(void) {
    TRY_NOTE(fails(), "in %s", "data.txt");
    return SP_OK;
}

static void errors_carry_context(void **state) {
    (void)state;
    assert_int_equal(notes(), SP_FAIL);
    assert_string_equal(err_text(), "in data.txt: token 7");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bytes_parse), cmocka_unit_test(map_holds_many),
                                       cmocka_unit_test(vectors_grow), cmocka_unit_test(errors_carry_context)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
