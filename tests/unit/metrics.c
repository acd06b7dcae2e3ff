/* Tests of src/train/metrics, progress and measure: lines read back by jansson, displays, pages touched. */
#include "train/metrics.h"
#include "train/measure.h"
#include "train/progress.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static train_step_record record(int64_t step) {
    return (train_step_record){.step = step,
                               .loss = 1.0 / 3 + (double)step,
                               .tokens = 4096,
                               .tokens_per_s = 12345.678,
                               .step_s = 0.33,
                               .lr = 3e-4,
                               .grad_norm = 0.1,
                               .planned_peak_bytes = 123456789012,
                               .measured_peak_bytes = 123456789011,
                               .planned_host_bytes = 123456789010,
                               .measured_host_bytes = 123456789009};
}

static void line_reads_back(void **state) {
    (void)state;
    char line[1024];
    train_step_record r = record(7);
    train_metrics_format(&r, line, sizeof line);
    json_t *o = json_loads(line, 0, NULL);
    assert_non_null(o);
    assert_int_equal(json_object_size(o), 11);
    assert_int_equal(json_integer_value(json_object_get(o, "step")), 7);
    assert_true(json_real_value(json_object_get(o, "loss")) == r.loss); /* every bit */
    assert_int_equal(json_integer_value(json_object_get(o, "tokens")), 4096);
    assert_true(fabs(json_real_value(json_object_get(o, "tokens_per_s")) - 12345.678) < 0.1);
    assert_true(json_real_value(json_object_get(o, "lr")) == 3e-4);
    assert_true(json_real_value(json_object_get(o, "grad_norm")) == 0.1);
    assert_int_equal(json_integer_value(json_object_get(o, "planned_peak_bytes")), 123456789012);
    assert_int_equal(json_integer_value(json_object_get(o, "measured_peak_bytes")), 123456789011);
    assert_int_equal(json_integer_value(json_object_get(o, "planned_host_bytes")), 123456789010);
    assert_int_equal(json_integer_value(json_object_get(o, "measured_host_bytes")), 123456789009);
    assert_null(json_object_get(o, "eval_loss"));
    json_decref(o);
    r.has_eval = true;
    r.eval_loss = 2.5;
    train_metrics_format(&r, line, sizeof line);
    o = json_loads(line, 0, NULL);
    assert_true(json_real_value(json_object_get(o, "eval_loss")) == 2.5);
    json_decref(o);
}

static int steps_of(const char *path, int64_t *out) {
    FILE *f = fopen(path, "r");
    char line[1024];
    int n = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *o = json_loads(line, 0, NULL);
        assert_non_null(o);
        out[n++] = json_integer_value(json_object_get(o, "step"));
        json_decref(o);
    }
    fclose(f);
    return n;
}

static void resume_cuts_lost_steps(void **state) {
    (void)state;
    char path[] = "/tmp/autosp-metrics-XXXXXX";
    close(mkstemp(path));
    train_metrics *m;
    int64_t got[16];
    assert_int_equal(train_metrics_open(path, -1, &m), SP_OK);
    for (int s = 1; s <= 6; s++) {
        train_step_record r = record(s);
        assert_int_equal(train_metrics_write(m, &r), SP_OK);
    }
    train_metrics_close(m);
    FILE *f = fopen(path, "a");
    fputs("{\"step\": 7, \"lo", f); /* a killed run's half line */
    fclose(f);
    assert_int_equal(train_metrics_open(path, 4, &m), SP_OK);
    for (int s = 5; s <= 6; s++) {
        train_step_record r = record(s);
        assert_int_equal(train_metrics_write(m, &r), SP_OK);
    }
    train_metrics_close(m);
    assert_int_equal(steps_of(path, got), 6);
    for (int i = 0; i < 6; i++) assert_int_equal(got[i], i + 1);
    assert_int_equal(train_metrics_open(path, -1, &m), SP_OK); /* appends, cuts nothing */
    train_metrics_close(m);
    assert_int_equal(steps_of(path, got), 6);
    unlink(path);
    assert_int_equal(train_metrics_open("/nonexistent/m.jsonl", -1, &m), SP_FAIL);
    assert_non_null(strstr(err_text(), "/nonexistent/m.jsonl"));
}

static void full_disk_is_reported(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) skip();
    train_metrics *m;
    assert_int_equal(train_metrics_open("/dev/full", -1, &m), SP_OK);
    train_step_record r = record(1);
    assert_int_equal(train_metrics_write(m, &r), SP_FAIL);
    assert_non_null(strstr(err_text(), "No space left"));
    train_metrics_close(m);
}

static void display_fits_its_line(void **state) {
    (void)state;
    train_progress p = train_progress_start(1, 0, 200);
    train_step_record r = record(50);
    char line[400];
    train_progress_format(&p, &r, p.started + 50, 0, line, sizeof line);
    assert_non_null(strstr(line, "step 50/200"));
    assert_non_null(strstr(line, "loss 50.3333"));
    assert_non_null(strstr(line, "12.3k tok/s"));
    assert_non_null(strstr(line, "eta 2:30")); /* 50 s for 50 steps, 150 to go */
    for (int width = 20; width <= 300; width++) {
        int n = train_progress_format(&p, &r, p.started + 50, width, line, sizeof line);
        assert_int_equal(n, (int)strlen(line));
        assert_true(n < width);
    }
    train_progress_format(&p, &r, p.started + 50, 140, line, sizeof line);
    assert_int_equal(strspn(line + 1, "#"), 10); /* a quarter of 40 columns */
    assert_int_equal(strspn(line + 11, "."), 30);
}

static void plain_lines_elsewhere(void **state) {
    (void)state;
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    train_progress p = train_progress_start(fd[1], 0, 100);
    assert_false(p.terminal);
    for (int s = 1; s <= 100; s++) {
        train_step_record r = record(s);
        r.has_eval = s == 40;
        train_progress_step(&p, &r);
    }
    train_progress_break(&p);
    close(fd[1]);
    char text[4096];
    ssize_t n = read(fd[0], text, sizeof text - 1);
    close(fd[0]);
    assert_true(n > 0);
    text[n] = 0;
    assert_null(strchr(text, '\r'));
    assert_null(strchr(text, 27));
    assert_non_null(strstr(text, "step 1/100"));
    assert_non_null(strstr(text, "step 40/100"));
    assert_non_null(strstr(text, "eval 0.0000"));
    assert_non_null(strstr(text, "step 100/100"));
    int lines = 0;
    for (char *c = text; *c; c++) lines += *c == '\n';
    assert_in_range(lines, 3, 5); /* the loop takes no second */
}

static void pages_are_counted_when_touched(void **state) {
    (void)state;
    int64_t page = sysconf(_SC_PAGESIZE), got = -1;
    int64_t bytes = 1000 * page;
    unsigned char *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    madvise(p, (size_t)bytes, MADV_NOHUGEPAGE); /* one touch, one page */
    assert_int_equal(measure_touched(p, bytes, &got), SP_OK);
    assert_int_equal(got, 0);
    p[0] = 1;
    p[600 * page + 17] = 1;
    p[601 * page] = 1;
    assert_int_equal(measure_touched(p, bytes, &got), SP_OK);
    assert_int_equal(got, 3 * page);
    /* Ends inside a page count with their part. */
    assert_int_equal(measure_touched(p + 100, 600 * page, &got), SP_OK);
    assert_int_equal(got, page - 100 + 100);
    assert_int_equal(measure_touched(p + 601 * page + 5, 10, &got), SP_OK);
    assert_int_equal(got, 10);
    memset(p, 1, (size_t)bytes);
    assert_int_equal(measure_touched(p + 3, bytes - 3, &got), SP_OK);
    assert_int_equal(got, bytes - 3);
    munmap(p, (size_t)bytes);
    assert_int_equal(measure_touched(p, 0, &got), SP_OK);
    assert_int_equal(got, 0);
}

static void process_peak_grows(void **state) {
    (void)state;
    int64_t before = measure_process_peak(), bytes = 64 << 20;
    assert_true(before > 0 && measure_process_now() <= before);
    unsigned char *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 1, (size_t)bytes);
    munmap(p, (size_t)bytes);
    assert_true(measure_process_peak() >= before + bytes / 2);
    assert_true(measure_process_peak() - measure_process_now() >= bytes / 2); /* a high-water mark stays */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(line_reads_back),       cmocka_unit_test(resume_cuts_lost_steps),
        cmocka_unit_test(full_disk_is_reported), cmocka_unit_test(display_fits_its_line),
        cmocka_unit_test(plain_lines_elsewhere), cmocka_unit_test(pages_are_counted_when_touched),
        cmocka_unit_test(process_peak_grows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
