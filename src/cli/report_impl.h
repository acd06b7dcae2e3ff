/* report_impl.h - private to src/cli/report*.c. */
#ifndef AUTOSP_CLI_REPORT_IMPL_H
#define AUTOSP_CLI_REPORT_IMPL_H

#include "cli/report.h"

/* Appends text with the characters that HTML reserves as entities. */
void report_text(buf *b, const char *s);

/* Bytes alive of each part over the step program, and where each buffer lies. */
void report_timeline(buf *b, const plan *p, int64_t budget);
/* Bars of what each segment keeps and of what it computes again. */
void report_bars(buf *b, const save_report *s);
/* Peak against time: each point a plan of the front. */
void report_front(buf *b, const save_report *s);

#endif
