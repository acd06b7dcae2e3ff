/* Tests of src/train/data: the addressing formula by brute force, each format, each refusal. */
#include "train/data.h"

#include "import/safetensors.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *put(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(in_dir(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    return path;
}

static train_data_options options(int64_t seq, int64_t batch, int64_t accum) {
    return (train_data_options){
        .seq = seq, .batch = batch, .accum = accum, .eos = -1, .ignore_index = -100, .labels_shifted = true};
}

static void refused(const char *file, const train_data_options *o, const char *why) {
    train_data *d = NULL;
    assert_int_equal(train_data_open(file, o, &d), SP_FAIL);
    assert_null(d);
    if (!strstr(err_text(), why)) fail_msg("'%s' is not in: %s", why, err_text());
    assert_non_null(strstr(err_text(), file)); /* every message names the file */
}

/* The contract's formula, written down a second time: start = (((k*A+a)*B+i)*S) mod (N-S). */
static void windows_follow_the_formula(void **state) {
    (void)state;
    uint16_t tokens[997];
    uint64_t rng = 7;
    for (int i = 0; i < 997; i++) tokens[i] = (uint16_t)(rng_next(&rng) % 500);
    for (int n = 5; n <= 997; n += 31)
        for (int s = 1; s < n && s < 40; s += 6)
            for (int b = 1; b <= 3; b += 2)
                for (int shifted = 0; shifted < 2; shifted++) {
                    int accum = 1 + (n + s) % 3;
                    train_data_options o = options(s, b, accum);
                    o.labels_shifted = shifted;
                    o.vocab = 500;
                    train_data *d;
                    assert_int_equal(train_data_open(put("t.bin", tokens, (size_t)n * 2), &o, &d), SP_OK);
                    assert_int_equal(train_data_length(d), n);
                    int64_t ids[120], labels[120], pos[120], doc[120];
                    train_batch out = {ids, labels, pos, doc, NULL};
                    for (int k = 0; k < 40; k++)
                        for (int a = 0; a < accum; a++) {
                            assert_int_equal(train_data_fill(d, k, a, &out), SP_OK);
                            for (int i = 0; i < b; i++) {
                                int start = (((k * accum + a) * b + i) * s) % (n - s);
                                assert_true(start + s < n); /* no window crosses the end */
                                for (int t = 0; t < s; t++) {
                                    assert_int_equal(ids[i * s + t], tokens[start + t]);
                                    assert_int_equal(labels[i * s + t], tokens[start + t + shifted]);
                                    assert_int_equal(pos[i * s + t], t);
                                    assert_int_equal(doc[i * s + t], 0);
                                }
                            }
                        }
                    train_data_close(d);
                }
}

static void far_steps_do_not_overflow(void **state) {
    (void)state;
    uint16_t tokens[100];
    for (int i = 0; i < 100; i++) tokens[i] = (uint16_t)i;
    train_data_options o = options(7, 1000003, 1009);
    o.vocab = 100;
    train_data *d;
    assert_int_equal(train_data_open(put("t.bin", tokens, sizeof tokens), &o, &d), SP_OK);
    int64_t *ids = malloc(7 * 1000003 * sizeof *ids);
    train_batch out = {.input_ids = ids};
    int64_t step = (int64_t)1 << 40;
    assert_int_equal(train_data_fill(d, step, 1008, &out), SP_OK);
    /* By small steps modulo 93: (2^40 * 1009 + 1008) * 1000003 * 7 mod 93. */
    int64_t m = 1;
    for (int i = 0; i < 40; i++) m = m * 2 % 93;
    m = (m * (1009 % 93) + 1008 % 93) % 93 * (1000003 % 93) % 93 * 7 % 93;
    assert_int_equal(ids[0], m);
    free(ids);
    train_data_close(d);
}

static void shuffle_visits_every_window_once(void **state) {
    (void)state;
    uint16_t tokens[703];
    for (int i = 0; i < 703; i++) tokens[i] = (uint16_t)i;
    train_data_options o = options(7, 2, 5);
    o.shuffle = true;
    o.seed = 3;
    train_data *d;
    assert_int_equal(train_data_open(put("t.bin", tokens, sizeof tokens), &o, &d), SP_OK);
    assert_int_equal(train_data_windows(d), 100); /* (703-1)/7 */
    int64_t ids[14], first[2][100];
    train_batch out = {.input_ids = ids};
    for (int epoch = 0; epoch < 2; epoch++) {
        bool seen[100] = {false};
        for (int k = 0; k < 10; k++)
            for (int a = 0; a < 5; a++) {
                assert_int_equal(train_data_fill(d, epoch * 10 + k, a, &out), SP_OK);
                for (int i = 0; i < 2; i++) {
                    assert_int_equal(ids[i * 7] % 7, 0);
                    int64_t w = ids[i * 7] / 7;
                    assert_false(seen[w]);
                    seen[w] = true;
                    first[epoch][(k * 5 + a) * 2 + i] = w;
                }
            }
    }
    int same = 0, fixed = 0;
    for (int i = 0; i < 100; i++) {
        same += first[0][i] == first[1][i];
        fixed += first[0][i] == i;
    }
    assert_true(same < 12 && fixed < 12); /* both are Poisson(1) for random orders: P(>= 12) < 1e-9 */
    train_data_close(d);
}

static void permutation_is_one(void **state) {
    (void)state;
    for (int64_t n = 1; n < 300; n++) {
        char seen[300] = {0};
        for (int64_t i = 0; i < n; i++) {
            int64_t p = train_permute(i, n, 42, 5);
            assert_in_range(p, 0, n - 1);
            assert_false(seen[p]);
            seen[p] = 1;
        }
    }
    int64_t big = ((int64_t)1 << 40) + 12345;
    assert_in_range(train_permute(big - 1, big, 1, 0), 0, big - 1);
}

static void text_is_bytes(void **state) {
    (void)state;
    train_data_options o = options(4, 1, 1);
    o.vocab = 256;
    train_data *d;
    assert_int_equal(train_data_open(put("t.txt", "h\xc3\xa9llo w", 8), &o, &d), SP_OK);
    int64_t ids[4], labels[4];
    assert_int_equal(train_data_fill(d, 0, 0, &(train_batch){.input_ids = ids, .labels = labels}), SP_OK);
    assert_int_equal(ids[1], 0xc3);
    assert_int_equal(labels[3], 'l');
    train_data_close(d);
    o.vocab = 255;
    refused(put("t.txt", "hello world", 11), &o, "at least 256");
}

static size_t llmc_file(unsigned char *out, int magic, int version, int claimed, int held, int width) {
    memset(out, 0, 1024);
    int32_t head[3] = {magic, version, claimed};
    memcpy(out, head, sizeof head);
    for (int i = 0; i < held; i++) {
        uint32_t v = width == 4 ? 70000u + (uint32_t)i : 60000u + (uint32_t)i;
        memcpy(out + 1024 + i * width, &v, (size_t)width);
    }
    return 1024 + (size_t)held * (size_t)width;
}

static void llmc_headers(void **state) {
    (void)state;
    unsigned char bytes[2048];
    int64_t ids[4], labels[4];
    train_batch out = {.input_ids = ids, .labels = labels};
    train_data_options o = options(4, 1, 1);
    train_data *d;
    for (int width = 2; width <= 4; width += 2) {
        size_t n = width == 2 ? llmc_file(bytes, 20240520, 1, 20, 20, 2) : llmc_file(bytes, 20240801, 7, 20, 20, 4);
        assert_int_equal(train_data_open(put("h.bin", bytes, n), &o, &d), SP_OK);
        assert_int_equal(train_data_length(d), 20);
        assert_int_equal(train_data_fill(d, 1, 0, &out), SP_OK);
        assert_int_equal(ids[0], width == 2 ? 60004 : 70004);
        assert_int_equal(labels[3], width == 2 ? 60008 : 70008);
        train_data_close(d);
    }
    refused(put("h.bin", bytes, llmc_file(bytes, 20240520, 2, 20, 20, 2)), &o, "version 2");
    refused(put("h.bin", bytes, llmc_file(bytes, 20240520, 1, 21, 20, 2)), &o, "truncated");
    refused(put("h.bin", bytes, llmc_file(bytes, 20240520, 1, -1, 20, 2)), &o, "truncated");
    refused(put("h.bin", bytes, llmc_file(bytes, 20240801, 7, 2000000000, 20, 4)), &o, "truncated");
    refused(put("h.bin", bytes, 600), &o, "truncated");
    refused(put("h.bin", bytes, llmc_file(bytes, 20240801, 7, 3, 20, 4)), &o, "holds 3 tokens");
}

static void headerless_uint32(void **state) {
    (void)state;
    uint32_t tokens[6] = {1, 2, 100000, 4, 5, 6};
    train_data_options o = options(2, 1, 1);
    o.tokens_u32 = true;
    train_data *d;
    assert_int_equal(train_data_open(put("u.bin", tokens, sizeof tokens), &o, &d), SP_OK);
    int64_t ids[2];
    assert_int_equal(train_data_fill(d, 1, 0, &(train_batch){.input_ids = ids}), SP_OK);
    assert_int_equal(ids[0], 100000);
    train_data_close(d);
    refused(put("u.bin", tokens, 23), &o, "--data-dtype");
}

static void eos_separates_documents(void **state) {
    (void)state;
    uint16_t tokens[9] = {5, 6, 0, 7, 0, 0, 8, 9, 1};
    train_data_options o = options(8, 1, 1);
    o.eos = 0;
    train_data *d;
    assert_int_equal(train_data_open(put("e.bin", tokens, sizeof tokens), &o, &d), SP_OK);
    assert_true(train_data_has_documents(d));
    int64_t doc[8];
    assert_int_equal(train_data_fill(d, 0, 0, &(train_batch){.document_ids = doc}), SP_OK);
    static const int64_t want[8] = {0, 0, 0, 1, 1, 2, 3, 3};
    assert_memory_equal(doc, want, sizeof want);
    train_data_close(d);
}

static void bad_tokens_are_named(void **state) {
    (void)state;
    uint16_t tokens[40] = {0};
    tokens[13] = 512;
    train_data_options o = options(4, 1, 1);
    o.vocab = 512;
    const char *file = put("v.bin", tokens, sizeof tokens);
    train_data *d;
    int64_t ids[4];
    train_batch out = {.input_ids = ids};
    assert_int_equal(train_data_open(file, &o, &d), SP_OK);
    assert_int_equal(train_data_fill(d, 0, 0, &out), SP_OK);
    assert_int_equal(train_data_fill(d, 3, 0, &out), SP_FAIL);
    assert_non_null(strstr(err_text(), "token 512 at position 13"));
    assert_non_null(strstr(err_text(), "vocabulary of 512"));
    assert_non_null(strstr(err_text(), file));
    train_data_close(d);
    /* As a label only: position 13 follows the window 9..12. */
    o.seq = 1;
    assert_int_equal(train_data_open(file, &o, &d), SP_OK);
    assert_int_equal(train_data_fill(d, 11, 0, &out), SP_OK);
    assert_int_equal(train_data_fill(d, 12, 0, &out), SP_FAIL);
    train_data_close(d);
    o.labels_shifted = false;
    assert_int_equal(train_data_open(file, &o, &d), SP_OK);
    assert_int_equal(train_data_fill(d, 12, 0, &out), SP_OK);
    assert_int_equal(train_data_fill(d, 13, 0, &out), SP_FAIL);
    train_data_close(d);
}

static void evaluation_covers_the_file(void **state) {
    (void)state;
    uint16_t tokens[51];
    for (int i = 0; i < 51; i++) tokens[i] = (uint16_t)i;
    train_data_options o = options(10, 2, 3);
    o.shuffle = true; /* has no say here */
    train_data *d;
    assert_int_equal(train_data_open(put("v.bin", tokens, sizeof tokens), &o, &d), SP_OK);
    assert_int_equal(train_data_eval_batches(d), 3); /* five windows, two a batch */
    int valid[51] = {0};
    int64_t ids[20], labels[20];
    for (int m = 0; m < 3; m++) {
        assert_int_equal(train_data_fill_eval(d, m, &(train_batch){.input_ids = ids, .labels = labels}), SP_OK);
        for (int t = 0; t < 20; t++)
            if (labels[t] != -100) valid[labels[t]]++;
    }
    for (int i = 0; i < 51; i++) assert_int_equal(valid[i], i > 0); /* each label once */
    train_data_close(d);
}

typedef struct column {
    const char *name;
    dtype type;
    int64_t rows, cols;
    const void *data;
} column;

static const char *put_rows(const column *c, int n) {
    snprintf(path, sizeof path, "%s/r.safetensors", dir);
    st_writer *w = st_writer_new();
    for (int i = 0; i < n; i++)
        st_writer_add(w, c[i].name, c[i].type, c[i].cols ? 2 : 1, (int64_t[]){c[i].rows, c[i].cols});
    assert_int_equal(st_writer_begin(w, path), SP_OK);
    for (int k = 0; k < n; k++) {
        const column *o = &c[st_writer_order(w, k)];
        int64_t bytes = o->rows * max64(o->cols, 1) * dtype_size(o->type);
        assert_int_equal(st_writer_write(w, st_writer_order(w, k), o->data, bytes), SP_OK);
    }
    assert_int_equal(st_writer_end(w), SP_OK);
    return path;
}

static void rows_of_a_safetensors_file(void **state) {
    (void)state;
    int64_t in[5][3];
    int32_t other[5][3];
    for (int i = 0; i < 15; i++) {
        in[i / 3][i % 3] = i;
        other[i / 3][i % 3] = i % 4 ? 14 - i : -100;
    }
    const column all[] = {{"input_ids", DT_I64, 5, 3, in}, {"labels", DT_I32, 5, 3, other}};
    train_data_options o = options(3, 2, 2);
    o.vocab = 15;
    train_data *d;
    int64_t ids[6], labels[6], pos[6], doc[6], prefix[2];
    train_batch out = {ids, labels, pos, doc, prefix};
    for (int columns = 1; columns <= 2; columns++)
        for (int shifted = 0; shifted < 2; shifted++) {
            o.labels_shifted = shifted;
            assert_int_equal(train_data_open(put_rows(all, columns), &o, &d), SP_OK);
            assert_int_equal(train_data_length(d), 5);
            for (int k = 0; k < 8; k++)
                for (int a = 0; a < 2; a++) {
                    assert_int_equal(train_data_fill(d, k, a, &out), SP_OK);
                    for (int i = 0; i < 2; i++)
                        for (int t = 0; t < 3; t++) {
                            int row = ((k * 2 + a) * 2 + i) % 5;
                            int64_t label = in[row][t];
                            if (shifted) label = t < 2 ? in[row][t + 1] : -100;
                            if (columns == 2) label = other[row][t];
                            assert_int_equal(ids[i * 3 + t], in[row][t]);
                            assert_int_equal(labels[i * 3 + t], label);
                            assert_int_equal(pos[i * 3 + t], t);
                            assert_int_equal(doc[i * 3 + t], 0);
                        }
                }
            assert_int_equal(train_data_eval_batches(d), 3);
            assert_int_equal(train_data_fill_eval(d, 2, &out), SP_OK);
            assert_int_equal(ids[0], 12);
            for (int t = 3; t < 6; t++) assert_int_equal(labels[t], -100);
            train_data_close(d);
        }
    /* Positions and documents from the file. */
    for (int i = 0; i < 15; i++) other[i / 3][i % 3] = 100 + i;
    const column packed[] = {
        {"input_ids", DT_I64, 5, 3, in}, {"position_ids", DT_I32, 5, 3, other}, {"document_ids", DT_I64, 5, 3, in}};
    assert_int_equal(train_data_open(put_rows(packed, 3), &o, &d), SP_OK);
    assert_true(train_data_has_documents(d) && train_data_has_positions(d));
    assert_int_equal(train_data_fill(d, 0, 0, &out), SP_OK);
    assert_int_equal(pos[4], 104);
    assert_int_equal(doc[4], 4);
    assert_int_equal(prefix[1], 0);
    train_data_close(d);
    /* A prefix length for each row; of another number of rows, none. */
    column prefixes[] = {{"input_ids", DT_I64, 5, 3, in}, {"prefix_lengths", DT_I32, 5, 0, other}};
    assert_int_equal(train_data_open(put_rows(prefixes, 2), &o, &d), SP_OK);
    assert_true(train_data_has_prefixes(d));
    assert_int_equal(train_data_fill(d, 0, 1, &out), SP_OK);
    assert_int_equal(prefix[0], 102);
    assert_int_equal(prefix[1], 103);
    train_data_close(d);
    prefixes[1].rows = 4;
    assert_int_equal(train_data_open(put_rows(prefixes, 2), &o, &d), SP_FAIL);
    assert_non_null(strstr(err_text(), "a number for each row"));
    /* Shuffled: each row once an epoch. */
    o.shuffle = true;
    o.batch = o.accum = 1;
    assert_int_equal(train_data_open(put_rows(all, 1), &o, &d), SP_OK);
    int seen = 0;
    for (int k = 10; k < 15; k++) {
        assert_int_equal(train_data_fill(d, k, 0, &out), SP_OK);
        seen |= 1 << ids[0] / 3;
    }
    assert_int_equal(seen, 31);
    train_data_close(d);
}

static void bad_rows_are_refused(void **state) {
    (void)state;
    int64_t in[2][3] = {{0, 1, 2}, {3, 9, 5}}, labels[2][3] = {{0, 1, 2}, {3, -7, 5}};
    float real[2][3] = {{0}};
    train_data_options o = options(3, 1, 1);
    o.vocab = 9;
    const column c[] = {{"input_ids", DT_I64, 2, 3, in}};
    train_data *d;
    int64_t ids[3];
    train_batch out = {.input_ids = ids};
    assert_int_equal(train_data_open(put_rows(c, 1), &o, &d), SP_OK);
    assert_int_equal(train_data_fill(d, 0, 0, &out), SP_OK);
    assert_int_equal(train_data_fill(d, 1, 0, &out), SP_FAIL);
    assert_non_null(strstr(err_text(), "input_ids[1, 1] is 9"));
    assert_non_null(strstr(err_text(), "vocabulary of 9"));
    train_data_close(d);
    o.vocab = 10;
    const column l[] = {{"input_ids", DT_I64, 2, 3, in}, {"labels", DT_I64, 2, 3, labels}};
    assert_int_equal(train_data_open(put_rows(l, 2), &o, &d), SP_OK);
    assert_int_equal(train_data_fill(d, 1, 0, &out), SP_FAIL);
    assert_non_null(strstr(err_text(), "labels[1, 1] is -7"));
    train_data_close(d);
    const column none[] = {{"labels", DT_I64, 2, 3, labels}}, floats[] = {{"input_ids", DT_F32, 2, 3, real}},
                 uneven[] = {{"input_ids", DT_I64, 2, 3, in}, {"labels", DT_I64, 3, 2, labels}},
                 empty[] = {{"input_ids", DT_I64, 0, 3, in}};
    refused(put_rows(none, 1), &o, "no tensor input_ids");
    refused(put_rows(floats, 1), &o, "F32; it must be I64 or I32");
    refused(put_rows(uneven, 2), &o, "labels is (3, 2)");
    refused(put_rows(empty, 1), &o, "no rows");
    o.seq = 4;
    refused(put_rows(c, 1), &o, "give --seq 3");
    refused(put("broken.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{", 9), &o, "broken.safetensors");
}

static void bad_files_are_refused(void **state) {
    (void)state;
    train_data_options o = options(8, 1, 1);
    refused(put("s.txt", "eight ch", 8), &o, "holds 8 tokens, less than one sequence");
    refused(put("empty.txt", "", 0), &o, "empty");
    refused(put("x.parquet", "PAR1", 4), &o, ".safetensors");
    refused("/nonexistent/a.txt", &o, "No such file");
    char name[256];
    snprintf(name, sizeof name, "%s/d.txt", dir);
    assert_int_equal(mkdir(name, 0777), 0);
    refused(name, &o, "not a regular file");
    rmdir(name);
    o.seq = INT64_MAX;
    refused(put("t.txt", "hello world", 11), &o, "less than one sequence");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_follow_the_formula),
        cmocka_unit_test(far_steps_do_not_overflow),
        cmocka_unit_test(shuffle_visits_every_window_once),
        cmocka_unit_test(permutation_is_one),
        cmocka_unit_test(text_is_bytes),
        cmocka_unit_test(llmc_headers),
        cmocka_unit_test(headerless_uint32),
        cmocka_unit_test(eos_separates_documents),
        cmocka_unit_test(bad_tokens_are_named),
        cmocka_unit_test(evaluation_covers_the_file),
        cmocka_unit_test(rows_of_a_safetensors_file),
        cmocka_unit_test(bad_rows_are_refused),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
