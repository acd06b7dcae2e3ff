/* err.c - the thread's error text, assertions and the log lines. */
#include "base/base.h"

#include <pthread.h>
#include <stdlib.h>

#undef err_set /* the analyzer's macros */
#undef err_note

enum { ERR_MAX = 4096 };
/* Like errno: each thread (a loop rank is a thread) has its own text. */
static _Thread_local char err_buffer[ERR_MAX];

sp_status err_set(const char *fmt, ...) {
    char text[ERR_MAX]; /* the arguments may point into err_buffer */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(err_buffer, text, sizeof text);
    return SP_FAIL;
}

sp_status err_note(const char *fmt, ...) {
    char text[ERR_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    size_t n = strlen(text), rest = strlen(err_buffer), room = sizeof text - 1 - n;
    if (room > 2) {
        memcpy(text + n, ": ", 2);
        n += 2;
        if (rest > room - 2) rest = room - 2; /* a text that long loses its end, never its context */
        memcpy(text + n, err_buffer, rest);
        text[n + rest] = 0;
    }
    memcpy(err_buffer, text, sizeof text);
    return SP_FAIL;
}

const char *err_text(void) { return err_buffer; }

void err_bug(const char *file, int line, const char *cond) {
    fprintf(stderr, "autosp: internal error at %s:%d: %s\nautosp: this is a bug in autosp; please report it\n", file,
            line, cond);
    abort();
}

static void log_v(const char *prefix, const char *fmt, va_list ap) {
    char text[ERR_MAX];
    vsnprintf(text, sizeof text, fmt, ap);
    fprintf(stderr, "%s%s\n", prefix, text); /* stdio locks the stream for one call */
}

void log_line(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    log_v("autosp: ", fmt, ap);
    va_end(ap);
}

void log_warn(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    log_v("autosp: warning: ", fmt, ap);
    va_end(ap);
}
