/* Tests of src/train/checkpoint: what is on disk after a save, resumes, kills, full disks, foreign folders. */
#include "train/checkpoint.h"

#include "import/safetensors.h"
#include "train/folder.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a model of three tensors, one of them frozen, whose numbers say what they are --------------- */

static const int64_t size_w[] = {4, 3}, size_b[] = {5};
static const ckpt_tensor tensors[] = {{"m.w", "w", DT_BF16, 2, size_w, false},
                                      {"m.b", "b", DT_F32, 1, size_b, false},
                                      {"m.fixed", "fixed", DT_F16, 2, size_w, true}};
enum { N = 3, MOST = 12 };
static const int64_t count[N] = {12, 5, 12};

typedef struct model {
    float value[N][3][MOST];
    int gets, fail_at; /* the get that fails, from 1; 0: none */
    int rank;
} model;

static void fill(model *m, float base) {
    memset(m, 0, sizeof *m);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 3; k++)
            for (int j = 0; j < MOST; j++) m->value[i][k][j] = base + 0.37f * (float)(100 * i + 20 * k + j);
}

static sp_status get(void *ctx, int tensor, ckpt_kind kind, void *dst) {
    model *m = ctx;
    assert_true((dst != NULL) == (m->rank == 0));
    assert_true(!tensors[tensor].frozen || kind == CKPT_MASTER);
    CHECK(++m->gets != m->fail_at, "get broke");
    if (dst) memcpy(dst, m->value[tensor][kind], (size_t)count[tensor] * sizeof(float));
    return SP_OK;
}

static sp_status put(void *ctx, int tensor, ckpt_kind kind, const void *src) {
    model *m = ctx;
    assert_false(tensors[tensor].frozen);
    memcpy(m->value[tensor][kind], src, (size_t)count[tensor] * sizeof(float));
    return SP_OK;
}

static ckpt_state state_of(model *m) { return (ckpt_state){N, tensors, DT_F32, get, put, m}; }

static char top[] = "/tmp/autosp-ckpt-XXXXXX", out[64], path[FOLDER_PATH];

static const char *in(const char *fmt, int step) {
    snprintf(path, sizeof path, fmt, out, step);
    return path;
}
static bool there(const char *fmt, int step) { return access(in(fmt, step), F_OK) == 0; }

static sp_status save(model *m, int64_t step, int64_t keep) {
    ckpt_place p = {.out = out, .keep = keep};
    ckpt_run run = {.step = step, .seq = 64, .batch = 2, .accum = 3, .seed = 9, .shuffle = true};
    ckpt_state s = state_of(m);
    comm *c = comm_self();
    sp_status st = ckpt_save(&p, &s, &run, "the plan\n", c);
    comm_free(c);
    return st;
}

static int fresh(void **state) {
    (void)state;
    snprintf(out, sizeof out, "%s/out", top);
    return folder_remove(out) == SP_OK && ckpt_prepare(&(ckpt_place){.out = out}, false) == SP_OK ? 0 : -1;
}

/* ---- tests ------------------------------------------------------------------------------------- */

static void a_save_comes_back_bit_for_bit(void **state) {
    (void)state;
    model m, back;
    fill(&m, 1.1f);
    assert_int_equal(save(&m, 20, 0), SP_OK);
    assert_true(there("%s/checkpoint-%d/autosp/plan.txt", 20));
    assert_false(there("%s/checkpoint-%d.tmp", 20));
    char *newest;
    ckpt_run run;
    assert_int_equal(ckpt_newest(out, &newest, &run), SP_OK);
    assert_string_equal(newest, in("%s/checkpoint-%d", 20));
    assert_true(run.step == 20 && run.seq == 64 && run.batch == 2 && run.accum == 3 && run.seed == 9 && run.shuffle);
    fill(&back, -5);
    ckpt_state s = state_of(&back);
    assert_int_equal(ckpt_load(newest, &s), SP_OK);
    free(newest);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 3; k++)
            for (int j = 0; j < count[i]; j++) {
                float want = tensors[i].frozen ? -5 + 0.37f * (float)(100 * i + 20 * k + j) : m.value[i][k][j];
                assert_memory_equal(&back.value[i][k][j], &want, sizeof want);
            }
}

static void weights_keep_names_and_types(void **state) {
    (void)state;
    model m;
    fill(&m, 1.1f);
    assert_int_equal(save(&m, 1, 0), SP_OK);
    st_file *f;
    assert_int_equal(st_open(in("%s/checkpoint-%d/model.safetensors", 1), &f), SP_OK);
    assert_int_equal(st_count(f), N);
    assert_string_equal(st_metadata(f, "format"), "pt"); /* transformers refuses a file without it */
    for (int i = 0; i < N; i++) {
        const st_tensor *t = st_find(f, tensors[i].stored);
        assert_non_null(t);
        assert_int_equal(t->type, tensors[i].stored_type);
        assert_int_equal(t->ndim, tensors[i].ndim);
        float got[MOST];
        st_convert(got, DT_F32, t->data, t->type, count[i]);
        /* Rounding to nearest: half a unit in the last place of 8, 24 and 11 bits. */
        float unit = t->type == DT_BF16 ? 0x1p-8f : t->type == DT_F16 ? 0x1p-11f : 0;
        for (int j = 0; j < count[i]; j++) {
            float want = m.value[i][0][j], off = got[j] > want ? got[j] - want : want - got[j];
            assert_true(off <= unit * want);
        }
    }
    st_close(f);
}

static void companions_come_from_weights_then_archive(void **state) {
    (void)state;
    char from[128], file[160];
    snprintf(from, sizeof from, "%s/hf", top);
    assert_int_equal(folder_make(from), SP_OK);
    snprintf(file, sizeof file, "%s/config.json", from);
    assert_int_equal(folder_write(file, "folder", 6), SP_OK);
    snprintf(file, sizeof file, "%s/pytorch_model.bin", from);
    assert_int_equal(folder_write(file, "weights", 7), SP_OK);
    const ckpt_file files[] = {{"config.json", "archive", 7}, {"vocab.json", "words", 5}, {"../evil", "x", 1}};
    ckpt_place p = {.out = out, .copy_from = from, .nfiles = 3, .files = files};
    ckpt_run run = {.step = 3};
    model m;
    fill(&m, 0);
    ckpt_state s = state_of(&m);
    comm *c = comm_self();
    assert_int_equal(ckpt_save(&p, &s, &run, NULL, c), SP_OK);
    snprintf(file, sizeof file, "%s/model.safetensors", from); /* a file stands for its folder */
    assert_int_equal(folder_write(file, "x", 1), SP_OK);
    p.copy_from = file;
    run.step = 4;
    assert_int_equal(ckpt_save(&p, &s, &run, NULL, c), SP_OK);
    comm_free(c);
    for (int step = 3; step <= 4; step++) {
        char text[16] = "";
        FILE *f = fopen(in("%s/checkpoint-%d/config.json", step), "r");
        assert_non_null(f);
        assert_non_null(fgets(text, sizeof text, f));
        fclose(f);
        assert_string_equal(text, "folder");
        assert_true(there("%s/checkpoint-%d/vocab.json", step));
        assert_false(there("%s/checkpoint-%d/pytorch_model.bin", step));
        assert_false(there("%s/checkpoint-%d/autosp/plan.txt", step));
    }
    assert_false(there("%s/evil", 0));
}

static void keep_removes_only_the_oldest_of_ours(void **state) {
    (void)state;
    model m;
    fill(&m, 0);
    assert_int_equal(folder_make(in("%s/checkpoint-%d", 1)), SP_OK); /* somebody else's */
    assert_int_equal(folder_make(in("%s/checkpoint-best", 0)), SP_OK);
    for (int step = 2; step <= 11; step += 3) assert_int_equal(save(&m, step, 2), SP_OK);
    assert_true(there("%s/checkpoint-%d", 1) && there("%s/checkpoint-best", 0));
    assert_false(there("%s/checkpoint-%d", 2) || there("%s/checkpoint-%d", 5));
    assert_true(there("%s/checkpoint-%d", 8) && there("%s/checkpoint-%d", 11));
}

static void leftovers_of_a_kill_are_ignored_and_removed(void **state) {
    (void)state;
    model m;
    fill(&m, 0);
    assert_int_equal(save(&m, 5, 0), SP_OK);
    assert_int_equal(folder_make(in("%s/checkpoint-%d.tmp/autosp", 10)), SP_OK);
    char *newest;
    ckpt_run run;
    assert_int_equal(ckpt_newest(out, &newest, &run), SP_OK);
    assert_int_equal(run.step, 5);
    free(newest);
    ckpt_place p = {.out = out};
    assert_int_equal(ckpt_prepare(&p, true), SP_OK);
    assert_false(there("%s/checkpoint-%d.tmp", 10));
    assert_true(there("%s/checkpoint-%d", 5));
    assert_int_equal(ckpt_prepare(&p, false), SP_FAIL); /* not over what is there */
    assert_non_null(strstr(err_text(), "--resume"));
}

static void an_incomplete_checkpoint_is_passed_over(void **state) {
    (void)state;
    model m;
    fill(&m, 0);
    for (int step = 5; step <= 20; step += 5) assert_int_equal(save(&m, step, 0), SP_OK);
    assert_int_equal(truncate(in("%s/checkpoint-%d/autosp/state.safetensors", 20), 300), 0);
    assert_int_equal(unlink(in("%s/checkpoint-%d/autosp/state.safetensors", 15)), 0);
    assert_int_equal(truncate(in("%s/checkpoint-%d/autosp/state.json", 10), 12), 0);
    char *newest;
    ckpt_run run;
    assert_int_equal(ckpt_newest(out, &newest, &run), SP_OK);
    assert_int_equal(run.step, 5);
    free(newest);
    /* A resumed run gets to step 10 again: the broken folder is moved aside. */
    assert_int_equal(save(&m, 10, 0), SP_OK);
    assert_int_equal(ckpt_newest(out, &newest, &run), SP_OK);
    assert_int_equal(run.step, 10);
    free(newest);
    assert_true(there("%s/checkpoint-%d.old", 10));
}

static void another_models_checkpoint_is_refused(void **state) {
    (void)state;
    model m;
    fill(&m, 0);
    assert_int_equal(save(&m, 5, 0), SP_OK);
    ckpt_tensor other[N];
    ckpt_state s = state_of(&m);
    s.tensors = other;
    in("%s/checkpoint-%d", 5);
    memcpy(other, tensors, sizeof other);
    other[1].name = "m.bias";
    assert_int_equal(ckpt_load(path, &s), SP_FAIL);
    assert_non_null(strstr(err_text(), "no tensor master.m.bias"));
    memcpy(other, tensors, sizeof other);
    other[0].size = (int64_t[]){3, 4};
    assert_int_equal(ckpt_load(path, &s), SP_FAIL);
    assert_non_null(strstr(err_text(), "master.m.w has not the shape"));
    memcpy(other, tensors, sizeof other);
    other[2].frozen = false;
    assert_int_equal(ckpt_load(path, &s), SP_FAIL);
    assert_non_null(strstr(err_text(), "6 tensors"));
}

/* A save in a child with a file-size limit: the disk is full after `limit` bytes of one file. */
static void a_full_disk_leaves_what_was_there(void **state) {
    (void)state;
    model m;
    fill(&m, 0);
    assert_int_equal(save(&m, 5, 0), SP_OK);
    struct stat largest;
    assert_int_equal(stat(in("%s/checkpoint-%d/autosp/state.safetensors", 5), &largest), 0);
    for (int limit = 0; limit < largest.st_size; limit += 50) {
        pid_t pid = fork();
        if (pid == 0) {
            signal(SIGXFSZ, SIG_IGN);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)limit, (rlim_t)limit});
            bool named = save(&m, 6, 1) == SP_FAIL && strstr(err_text(), "checkpoint of step 6 not written") &&
                         strstr(err_text(), "File too large");
            _exit(named ? 0 : 1);
        }
        int status = -1;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (status != 0) fail_msg("limit %d", limit);
        assert_true(there("%s/checkpoint-%d", 5)); /* also not pruned by keep 1 */
        assert_false(there("%s/checkpoint-%d", 6) || there("%s/checkpoint-%d.tmp", 6));
    }
}

static void failures_of_the_tensors_end_the_save(void **state) {
    (void)state;
    model m;
    for (int at = 1; at <= 9; at++) { /* 3 weights and 6 of state */
        fill(&m, 0);
        m.fail_at = at;
        assert_int_equal(save(&m, 7, 0), SP_FAIL);
        assert_non_null(strstr(err_text(), "get broke"));
        assert_int_equal(m.gets, 9); /* still took part in every call */
        assert_false(there("%s/checkpoint-%d", 7) || there("%s/checkpoint-%d.tmp", 7));
    }
}

static sp_status rank_saves(comm *c, void *arg) {
    model m;
    fill(&m, 2);
    m.rank = comm_rank(c);
    m.fail_at = m.rank == *(int *)arg ? 4 : 0;
    ckpt_state s = state_of(&m);
    return ckpt_save(&(ckpt_place){.out = out}, &s, &(ckpt_run){.step = 8}, NULL, c);
}

static void ranks_save_together_and_fail_together(void **state) {
    (void)state;
    int failing = -1;
    assert_int_equal(comm_loop_run(3, rank_saves, &failing), SP_OK);
    assert_true(there("%s/checkpoint-%d/autosp/state.json", 8));
    assert_int_equal(folder_remove(in("%s/checkpoint-%d", 8)), SP_OK);
    failing = 0;
    assert_int_equal(comm_loop_run(3, rank_saves, &failing), SP_FAIL);
    assert_false(there("%s/checkpoint-%d", 8) || there("%s/checkpoint-%d.tmp", 8));
}

static void unwritable_places_are_named(void **state) {
    (void)state;
    char file[128];
    snprintf(file, sizeof file, "%s/plain", top);
    assert_int_equal(folder_write(file, "x", 1), SP_OK);
    ckpt_place p = {.out = file};
    assert_int_equal(ckpt_prepare(&p, false), SP_FAIL);
    assert_non_null(strstr(err_text(), file));
    strcat(file, "/below");
    assert_int_equal(ckpt_prepare(&p, false), SP_FAIL);
    p.out = "/proc/autosp";
    assert_int_equal(ckpt_prepare(&p, false), SP_FAIL);
    assert_non_null(strstr(err_text(), "/proc/autosp"));
    char *newest;
    ckpt_run run;
    assert_int_equal(ckpt_newest("/nonexistent", &newest, &run), SP_OK);
    assert_null(newest);
}

static int setup(void **state) {
    (void)state;
    return mkdtemp(top) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    return folder_remove(top) == SP_OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_save_comes_back_bit_for_bit, fresh),
        cmocka_unit_test_setup(weights_keep_names_and_types, fresh),
        cmocka_unit_test_setup(companions_come_from_weights_then_archive, fresh),
        cmocka_unit_test_setup(keep_removes_only_the_oldest_of_ours, fresh),
        cmocka_unit_test_setup(leftovers_of_a_kill_are_ignored_and_removed, fresh),
        cmocka_unit_test_setup(an_incomplete_checkpoint_is_passed_over, fresh),
        cmocka_unit_test_setup(another_models_checkpoint_is_refused, fresh),
        cmocka_unit_test_setup(a_full_disk_leaves_what_was_there, fresh),
        cmocka_unit_test_setup(failures_of_the_tensors_end_the_save, fresh),
        cmocka_unit_test_setup(ranks_save_together_and_fail_together, fresh),
        cmocka_unit_test_setup(unwritable_places_are_named, fresh),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
