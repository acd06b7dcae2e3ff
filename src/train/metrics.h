/* metrics.h - one JSON object a step, appended to a file (JSON Lines). */
#ifndef AUTOSP_TRAIN_METRICS_H
#define AUTOSP_TRAIN_METRICS_H

#include "base/base.h"

typedef struct train_metrics train_metrics;

/* Everything that is known of a finished step; also what the progress display shows. */
typedef struct train_step_record {
    int64_t step;   /* from 1: the number of steps done */
    double loss;    /* mean over the step's valid labels */
    int64_t tokens; /* input tokens of the step, all rows of all microbatches */
    double tokens_per_s, step_s;
    double lr, grad_norm;                            /* the norm before clipping */
    int64_t planned_peak_bytes, measured_peak_bytes; /* per rank, the largest */
    int64_t planned_host_bytes, measured_host_bytes; /* host copies, the same */
    bool has_eval;
    double eval_loss; /* written as "eval_loss" on the steps that evaluate */
} train_step_record;

/* Opens FILE for appending; with `resume_step` >= 0 lines of steps past it (an earlier run's, lost with it) are cut
 * off first, so that a file never holds a step twice. Rank 0 only. Free with train_metrics_close. */
sp_status train_metrics_open(const char *path, int64_t resume_step, train_metrics **out) SP_NODISCARD;

/* Appends the record with one write(2), so a reader never sees half a line. Allocates nothing. */
sp_status train_metrics_write(train_metrics *m, const train_step_record *r) SP_NODISCARD;
void train_metrics_close(train_metrics *m); /* NULL is allowed */

/* The line itself, without the newline, into out; for tests and for the writer. Returns its length. */
int train_metrics_format(const train_step_record *r, char *out, size_t cap);

#endif
