/* progress.c - the display of a running training. Written with snprintf and write(2): a step allocates nothing. */
#include "train/progress.h"

#include <math.h>
#include <sys/ioctl.h>
#include <unistd.h>

train_progress train_progress_start(int fd, int64_t first, int64_t steps) {
    return (train_progress){
        .fd = fd, .terminal = isatty(fd) == 1, .first = first, .steps = steps, .started = now_s(), .shown = -1};
}

/* "1:02:03" or "2:03" into out (at least 24 bytes). */
static void format_time(double s, char *out) {
    long long t = s < 0 ? 0 : s > 1e9 ? 1000000000 : (long long)(s + 0.5);
    if (t >= 3600)
        snprintf(out, 24, "%lld:%02lld:%02lld", t / 3600, t / 60 % 60, t % 60);
    else
        snprintf(out, 24, "%lld:%02lld", t / 60, t % 60);
}

/* "1.23M" into out (at least 16 bytes). */
static void format_rate(double v, char *out) {
    static const char unit[] = " kMGT";
    int u = 0;
    while (v >= 1000 && u < 4) {
        v /= 1000;
        u++;
    }
    snprintf(out, 16, v < 10 ? "%.2f%.*s" : v < 100 ? "%.1f%.*s" : "%.0f%.*s", v, u > 0, &unit[u]);
}

int train_progress_format(const train_progress *p, const train_step_record *r, double now, int width, char *out,
                          size_t cap) {
    char rate[16], eta[24], eval[48] = "", text[200];
    format_rate(r->tokens_per_s, rate);
    /* The mean over this run, not the last step, so that the estimate is steady. */
    int64_t done = r->step - p->first;
    format_time(done > 0 ? (now - p->started) / (double)done * (double)(p->steps - r->step) : 0, eta);
    if (r->has_eval) snprintf(eval, sizeof eval, "  eval %.4f", r->eval_loss);
    int n = snprintf(text, sizeof text, "step %lld/%lld  loss %.4f%s  lr %.2e  |g| %.3g  %s tok/s  eta %s",
                     (long long)r->step, (long long)p->steps, r->loss, eval, r->lr, r->grad_norm, rate, eta);
    if (width == 0) return snprintf(out, cap, "%s", text);
    int room = width - 1 - n - 3, used = 0; /* the bar takes what the text leaves, 40 columns at most */
    if (room > 40) room = 40;
    if (room >= 8) {
        int full = p->steps > 0 ? (int)((double)room * (double)r->step / (double)p->steps) : room;
        char bar[48];
        for (int i = 0; i < room; i++) bar[i] = i < full ? '#' : '.';
        used = snprintf(out, cap, "[%.*s] ", room, bar);
    }
    int left = width - 1 - used; /* a line as wide as the terminal would wrap */
    return used + snprintf(out + used, cap - (size_t)used, "%.*s", left > 0 ? left : 0, text);
}

static void put(int fd, const char *s, int n) {
    while (n > 0) {
        ssize_t w = write(fd, s, (size_t)n);
        if (w <= 0) return; /* a closed terminal must not end the training */
        s += w;
        n -= (int)w;
    }
}

void train_progress_step(train_progress *p, const train_step_record *r) {
    char line[400];
    double now = now_s();
    if (p->terminal) {
        struct winsize size;
        int width = ioctl(p->fd, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20 ? size.ws_col : 80;
        if (width > 300) width = 300;
        memcpy(line, "\r\033[K", 4); /* to the line's start, clear it; NOLINT: no string */
        int n = 4 + train_progress_format(p, r, now, width, line + 4, sizeof line - 4);
        put(p->fd, line, n);
        p->open_line = true;
        if (r->step == p->steps || r->has_eval) train_progress_break(p);
        return;
    }
    if (r->step != p->first + 1 && r->step != p->steps && !r->has_eval && now - p->shown < 1) return;
    p->shown = now;
    int n = train_progress_format(p, r, now, 0, line, sizeof line - 1);
    line[n++] = '\n';
    put(p->fd, line, n);
}

void train_progress_break(train_progress *p) {
    if (p->open_line) put(p->fd, "\n", 1);
    p->open_line = false;
}
