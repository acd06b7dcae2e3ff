/* progress.h - what a person sees of a running training: a bar on a terminal, plain lines elsewhere. */
#ifndef AUTOSP_TRAIN_PROGRESS_H
#define AUTOSP_TRAIN_PROGRESS_H

#include "train/metrics.h"

typedef struct train_progress {
    int fd;        /* where it is shown, stderr as a rule */
    bool terminal; /* fd is a terminal */
    int64_t first, steps;
    double started, shown; /* now_s() at the start, at the last line shown */
    bool open_line;        /* the bar's line is not ended yet */
} train_progress;

/* Starts the display of steps first+1 .. steps on descriptor fd. Rank 0 only. */
train_progress train_progress_start(int fd, int64_t first, int64_t steps);

/* Shows a finished step. On a terminal it redraws one line; elsewhere it prints the first, the last and every
 * evaluated step, and between them at most a line a second. Allocates nothing; write errors are ignored. */
void train_progress_step(train_progress *p, const train_step_record *r);

/* Ends the bar's line, so that a message can follow. Also before any message in between. */
void train_progress_break(train_progress *p);

/* The text of one display line without line ends, into out (cap >= 160); `width` columns, or 0 for a plain line.
 * For tests and the display. Returns its length. */
int train_progress_format(const train_progress *p, const train_step_record *r, double now, int width, char *out,
                          size_t cap);

#endif
