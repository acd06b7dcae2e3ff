/* metrics.c - the JSON Lines writer of --metrics.
 *
 * The line is printed into a fixed buffer instead of being built by jansson: the fields are numbers only, so
 * there is nothing to escape, and a step may not allocate. jansson reads the lines back where a file is resumed.
 * Numbers are printed with 17 digits: a resumed run can be compared bit for bit by its metrics.
 */
#include "train/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

struct train_metrics {
    int fd;
    char *path;
};

int train_metrics_format(const train_step_record *r, char *out, size_t cap) {
    int n =
        snprintf(out, cap,
                 "{\"step\": %lld, \"loss\": %.17g, \"tokens\": %lld, \"tokens_per_s\": %.6g, \"step_s\": %.6g, "
                 "\"lr\": %.17g, \"grad_norm\": %.17g, \"planned_peak_bytes\": %lld, \"measured_peak_bytes\": %lld, "
                 "\"planned_host_bytes\": %lld, \"measured_host_bytes\": %lld",
                 (long long)r->step, r->loss, (long long)r->tokens, r->tokens_per_s, r->step_s, r->lr, r->grad_norm,
                 (long long)r->planned_peak_bytes, (long long)r->measured_peak_bytes, (long long)r->planned_host_bytes,
                 (long long)r->measured_host_bytes);
    ASSERT(n > 0 && (size_t)n < cap);
    int more = r->has_eval ? snprintf(out + n, cap - (size_t)n, ", \"eval_loss\": %.17g}", r->eval_loss)
                           : snprintf(out + n, cap - (size_t)n, "}");
    ASSERT(more > 0 && (size_t)(n + more) < cap);
    return n + more;
}

/* The offset after the last whole line whose step is at most `last`. */
static off_t keep_until(FILE *f, int64_t last) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    off_t keep = 0;
    while ((n = getline(&line, &cap, f)) > 0 && line[n - 1] == '\n') {
        json_t *o = json_loadb(line, (size_t)n, 0, NULL);
        json_t *step = json_object_get(o, "step");
        bool past = json_is_integer(step) && json_integer_value(step) > last;
        json_decref(o);
        if (past) break; /* steps ascend: everything after it is past too */
        keep += n;
    }
    free(line);
    return keep;
}

sp_status train_metrics_open(const char *path, int64_t resume_step, train_metrics **out) {
    *out = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    CHECK(fd >= 0, "cannot write metrics file %s: %s", path, strerror(errno));
    FILE *f = resume_step >= 0 ? fopen(path, "r") : NULL;
    if (f) {
        off_t keep = keep_until(f, resume_step);
        fclose(f);
        if (ftruncate(fd, keep) != 0 && errno != EINVAL) { /* EINVAL: a pipe or device, nothing to cut */
            close(fd);
            FAIL("cannot cut metrics file %s back to step %lld: %s", path, (long long)resume_step, strerror(errno));
        }
    }
    train_metrics *m = calloc(1, sizeof *m);
    if (!m || !(m->path = strdup(path))) {
        free(m);
        close(fd);
        FAIL("out of memory");
    }
    m->fd = fd;
    *out = m;
    return SP_OK;
}

sp_status train_metrics_write(train_metrics *m, const train_step_record *r) {
    char line[1024];
    int n = train_metrics_format(r, line, sizeof line - 1);
    line[n++] = '\n';
    ssize_t wrote;
    do wrote = write(m->fd, line, (size_t)n);
    while (wrote < 0 && errno == EINTR);
    CHECK(wrote == n, "cannot write metrics file %s: %s", m->path, wrote < 0 ? strerror(errno) : "the disk is full");
    return SP_OK;
}

void train_metrics_close(train_metrics *m) {
    if (!m) return;
    close(m->fd);
    free(m->path);
    free(m);
}
