/* report_draw.c - the pictures of a plan's page: static SVG, with titles that a browser shows on hovering.
 *
 * All pictures share one frame: a plot of W x H at (LEFT, TOP) with ticks at round numbers, units and labels outside of
 * it. Text never lies inside the plot, where it could meet a line: what a colour or a line means stands in a legend
 * below. In the first two pictures x is the instruction of the step program: their order is known, their time is not.
 */
#include "cli/report_impl.h"

#include <math.h>

enum { LEFT = 76, TOP = 12, W = 868, BOTTOM = 48, COLUMNS = 434, MOST_BUFFERS = 4000, MOST_POINTS = 400 };
#define FULL_WIDTH (LEFT + W + 16)

static const char *const violet = "#8172b2", *const orange = "#dd8452", *const blue = "#4c72b0", *const red = "#c44e52";

/* ---- the frame --------------------------------------------------------------------------------- */

/* One axis: values 0 or low to high on `length` pixels. */
typedef struct scale {
    double low, high, length;
    double unit; /* values are shown divided by it */
    const char *suffix;
} scale;

static double at(const scale *s, double v) { return (v - s->low) / (s->high - s->low) * s->length; }

/* A scale of bytes: its unit is the largest that leaves numbers from 1. */
static scale bytes_scale(double low, double high, double length) {
    static const char *const names[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int k = 0;
    double unit = 1;
    for (; k < 4 && high / unit >= 1024; k++) unit *= 1024;
    return (scale){low, high, length, unit, names[k]};
}

static scale count_scale(double high, double length) { return (scale){0, fmax(high, 1), length, 1, ""}; }

/* 1, 2 or 5 times a power of ten: the distance of about `most` ticks. */
static double tick_step(const scale *s, int most) {
    double raw = (s->high - s->low) / s->unit / most, ten = pow(10, floor(log10(raw)));
    double m = raw / ten;
    return (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10) * ten;
}

/* Opens a picture `height` high and draws its frame. */
static void open_plot(buf *b, const char *what, const char *attributes, int height, const scale *x, const char *x_label,
                      const scale *y, const char *y_label) {
    buf_printf(b,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\"%s>\n"
               "<g transform=\"translate(%d %d)\"><rect class=\"plot\" width=\"%d\" height=\"%d\"/>",
               FULL_WIDTH, TOP + height + BOTTOM, what, attributes, LEFT, TOP, W, height);
    double step = tick_step(y, 5);
    for (double v = ceil(y->low / y->unit / step) * step; v * y->unit <= y->high * (1 + 1e-9); v += step) {
        double py = height - at(y, v * y->unit);
        buf_printf(b,
                   "<line class=\"grid\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"tick\" x=\"-6\" y=\"%.1f\" "
                   "text-anchor=\"end\">%.6g</text>",
                   W, py, py, py + 4, fabs(v) < step / 2 ? 0 : v);
    }
    step = tick_step(x, 8);
    if (!*x->suffix && step < 1) step = 1; /* counts */
    for (double v = ceil(x->low / x->unit / step) * step; v * x->unit <= x->high * (1 + 1e-9); v += step) {
        double px = at(x, v * x->unit);
        buf_printf(b,
                   "<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/><text class=\"tick\" x=\"%.1f\" "
                   "y=\"%d\" text-anchor=\"middle\">%.6g</text>",
                   px, px, height, height + 5, px, height + 18, fabs(v) < step / 2 ? 0 : v);
    }
    const char *xs = x->suffix, *ys = y->suffix;
    buf_printf(b,
               "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s%s%s</text><text transform=\"translate(-58 %d) "
               "rotate(-90)\" text-anchor=\"middle\">%s%s%s</text>\n",
               W / 2, height + 38, x_label, *xs ? ", " : "", xs, height / 2, y_label, *ys ? ", " : "", ys);
}

static void close_plot(buf *b) { buf_printf(b, "</g></svg>\n"); }

static void legend(buf *b, const char *colour, const char *name) {
    buf_printf(b, "<span><i style=\"background:%s\"></i>%s</span>", colour, name);
}

/* ---- memory over the step ---------------------------------------------------------------------- */

/* The parts of the timeline, bottom to top. */
enum { PART_PARAM, PART_GRAD, PART_STATE, PART_INPUT, PART_SAVED, PART_WORKING, PART_COMM, PARTS };
static const struct {
    const char *name, *colour;
} parts[PARTS] = {{"parameters", "#4c72b0"},   {"gradients", "#64b5cd"},          {"optimizer", "#8172b2"},
                  {"inputs", "#937860"},       {"saved for backward", "#dd8452"}, {"working", "#55a868"},
                  {"communication", "#c44e52"}};

/* The first backward instruction of the step; the number of instructions when there is none. */
static int turn_of(const plan *p) {
    const plan_program *pr = &p->program[PROG_STEP];
    for (int i = 0; i < pr->instrs.n; i++)
        if (pr->instrs.data[i].backward) return i;
    return pr->instrs.n;
}

/* Of an activation. */
static int part_of(const plan_buf *b, int turn) {
    if (b->comm) return PART_COMM;
    return b->first < turn && b->last >= turn ? PART_SAVED : PART_WORKING;
}

/* Buffers of a loop's body lie in the loop's workspace, which is a buffer of the step. */
static bool in_step(const plan_buf *b) {
    return b->section == SEC_WORK && b->program == PROG_STEP && b->first >= 0 && b->loop < 0;
}

/* alive[c][k]: bytes of part k alive at the fullest instruction of column c of the timeline. */
typedef struct timeline {
    int columns, instrs, turn, peak_at;
    int64_t alive[COLUMNS][PARTS], peak;
} timeline;

static void fill_timeline(const plan *p, arena *a, timeline *t) {
    t->instrs = (int)max64(p->program[PROG_STEP].instrs.n, 1);
    t->columns = (int)min64(COLUMNS, t->instrs);
    t->turn = turn_of(p);
    int64_t(*delta)[PARTS] = arena_alloc(a, sizeof *delta * (size_t)(t->instrs + 1)), now[PARTS] = {0};
    const int64_t *section = p->memory.section; /* with what alignment adds */
    now[PART_PARAM] = section[SEC_PARAM];
    now[PART_GRAD] = section[SEC_GRAD];
    now[PART_STATE] = section[SEC_MOMENT];
    now[PART_INPUT] = section[SEC_CONST] + section[SEC_INPUT];
    for (int b = 0; b < p->bufs.n; b++) {
        const plan_buf *x = &p->bufs.data[b];
        if (!in_step(x)) continue;
        delta[x->first][part_of(x, t->turn)] += x->bytes;
        delta[x->last + 1][part_of(x, t->turn)] -= x->bytes;
    }
    for (int i = 0; i < t->instrs; i++) {
        int64_t sum = 0, best = 0, *column = t->alive[(int64_t)i * t->columns / t->instrs];
        for (int k = 0; k < PARTS; k++) {
            sum += now[k] += delta[i][k];
            best += column[k];
        }
        if (sum >= best) memcpy(column, now, sizeof now);
        if (sum > t->peak) t->peak_at = i;
        t->peak = max64(t->peak, sum);
    }
}

static void draw_timeline(buf *b, const timeline *t, int64_t budget) {
    enum { H = 300 };
    char text[24], attributes[64];
    bool line = budget > 0 && budget < 2 * t->peak; /* a budget far above would flatten the rest */
    double most = (double)max64(line ? max64(budget, t->peak) : t->peak, 1);
    scale x = count_scale(t->instrs, W), y = bytes_scale(0, most * 1.04, H);
    buf_printf(b, "<h2>Memory during a step</h2>\n<p>What is alive at each of %d instructions, at most %s", t->instrs,
               human_bytes(t->peak, text));
    buf_printf(b, " (instruction %d).", t->peak_at);
    if (budget) buf_printf(b, " The budget is %s.", human_bytes(budget, text));
    buf_printf(b, "</p>\n");
    snprintf(attributes, sizeof attributes, " data-peak=\"%lld\"", (long long)t->peak);
    open_plot(b, "memory over the step", attributes, H, &x, "instruction", &y, "alive");
    int64_t below[COLUMNS] = {0};
    for (int k = 0; k < PARTS; k++) {
        int64_t largest = 0;
        buf_printf(b, "<polygon fill=\"%s\" points=\"", parts[k].colour);
        for (int side = 0; side < 2; side++) /* the lower edge from left to right, the upper edge back */
            for (int i = 0; i < 2 * t->columns; i++) {
                int e = side ? 2 * t->columns - 1 - i : i, c = e / 2;
                int64_t v = below[c] + (side ? t->alive[c][k] : 0);
                buf_printf(b, "%.1f,%.1f ", (double)(c + e % 2) * W / t->columns, H - at(&y, (double)v));
            }
        for (int c = 0; c < t->columns; c++) {
            below[c] += t->alive[c][k];
            largest = max64(largest, t->alive[c][k]);
        }
        buf_printf(b, "\"><title>%s: at most %s</title></polygon>", parts[k].name, human_bytes(largest, text));
    }
    double turn = at(&x, t->turn);
    buf_printf(b, "<line class=\"turn\" x1=\"%.1f\" x2=\"%.1f\" y2=\"%d\"/>", turn, turn, H);
    if (line) {
        double py = H - at(&y, (double)budget);
        buf_printf(b, "<line class=\"budget\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", W, py, py);
    }
    close_plot(b);
    buf_printf(b, "<p class=\"legend\">");
    for (int k = PARTS - 1; k >= 0; k--) legend(b, parts[k].colour, parts[k].name);
    buf_printf(b, "<span><i class=\"dashed\"></i>the backward begins</span>");
    if (line) legend(b, "#d00000;height:2px;vertical-align:middle", "budget");
    buf_printf(b, "</p>\n");
}

/* The work area: one rectangle a buffer, x its lifetime, y its place. The smallest are left out when there are many. */
static void draw_places(buf *b, const plan *p, const timeline *t) {
    enum { H = 260 };
    int64_t size = max64(p->memory.section[SEC_WORK], 1), base = p->memory.arena - p->memory.section[SEC_WORK];
    int64_t least = 0;
    int shown = 0, all = 0;
    char text[24];
    for (;; least += least ? least / 8 + 1 : size / 4096 + 1) {
        shown = 0;
        for (int i = 0; i < p->bufs.n; i++) shown += in_step(&p->bufs.data[i]) && p->bufs.data[i].bytes >= least;
        if (!least) all = shown;
        if (shown <= MOST_BUFFERS) break;
    }
    scale x = count_scale(t->instrs, W), y = bytes_scale(0, (double)size, H);
    buf_printf(b, "<h2>Where activations lie</h2>\n<p>Each rectangle is a buffer: when it lives and where in the arena "
                  "of activations.");
    if (least) buf_printf(b, " %d of %d are shown, those of %s and more.", shown, all, human_bytes(least, text));
    buf_printf(b, "</p>\n");
    open_plot(b, "places of buffers", " class=\"places\"", H, &x, "instruction", &y, "offset");
    for (int i = 0; i < p->bufs.n; i++) {
        const plan_buf *q = &p->bufs.data[i];
        if (!in_step(q) || q->bytes < least) continue;
        const plan_instr *maker = &p->program[PROG_STEP].instrs.data[q->first];
        double h = at(&y, (double)q->bytes);
        buf_printf(b,
                   "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.2f\" fill=\"%s\"><title>b%d: %s, %s, made by "
                   "%s",
                   at(&x, q->first), H - at(&y, (double)(q->offset - base)) - h, at(&x, q->last - q->first + 1), h,
                   parts[part_of(q, t->turn)].colour, i, parts[part_of(q, t->turn)].name, human_bytes(q->bytes, text),
                   op_table[maker->op].name);
        if (maker->node && maker->node->src) {
            buf_printf(b, " at ");
            report_text(b, maker->node->src);
        }
        buf_printf(b, "; instructions %d to %d</title></rect>", q->first, q->last);
    }
    close_plot(b);
}

void report_timeline(buf *b, const plan *p, int64_t budget) {
    arena *a = arena_new();
    timeline *t = ARENA_NEW(a, timeline);
    fill_timeline(p, a, t);
    draw_timeline(b, t, budget);
    draw_places(b, p, t);
    arena_free(a);
}

/* ---- choices ----------------------------------------------------------------------------------- */

static void bar(buf *b, double x, double y, double w, double h, const char *colour) {
    if (h > 0)
        buf_printf(b, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>", x, y, w, h, colour);
}

void report_bars(buf *b, const save_report *s) {
    enum { H = 150, AGAIN = 80 };
    int64_t most = 1;
    bool host = false;
    for (int i = 0; i < s->segments; i++) {
        most = max64(most, s->segment[i].kept + s->segment[i].host);
        host |= s->segment[i].host > 0;
    }
    scale x = {-0.5, s->segments - 0.5, W, 1, ""}, y = bytes_scale(0, (double)most * 1.04, H);
    double width = W / (double)s->segments, gap = width > 4 ? 1 : 0;
    open_plot(b, "kept by segment", "", H, &x, "segment, in the order of the forward", &y, "kept");
    for (int i = 0; i < s->segments; i++) {
        const save_segment *g = &s->segment[i];
        double kept = at(&y, (double)g->kept), away = at(&y, (double)g->host), left = i * width;
        bar(b, left, H - kept, width - gap, kept, orange);
        bar(b, left, H - kept - away, width - gap, away, violet);
    }
    close_plot(b);
    scale share = {0, 104, AGAIN, 1, "%"};
    open_plot(b, "computed again by segment", "", AGAIN, &x, "segment, in the order of the forward", &share, "again");
    for (int i = 0; i < s->segments; i++) {
        const save_segment *g = &s->segment[i];
        double again = g->forward > 0 ? at(&share, fmin(100 * g->again / g->forward, 104)) : 0;
        bar(b, i * width, AGAIN - again, width - gap, again, blue);
    }
    close_plot(b);
    buf_printf(b, "<p class=\"legend\">");
    legend(b, orange, "kept on the device");
    if (host) legend(b, violet, "moved to the host and back");
    legend(b, blue, "computed again, of the segment's forward");
    buf_printf(b, "</p>\n");
}

void report_front(buf *b, const save_report *s) {
    enum { H = 260 };
    const remat_points *f = s->front;
    if (!f || f->n < 2) return;
    double low = (double)f->data[0].peak, high = (double)f->data[f->n - 1].peak, most = 0;
    for (int i = 0; i < f->n; i++) most = fmax(most, f->data[i].seconds);
    if (!(high > low) || !(most > 0)) return;
    double edge = (high - low) / 50;
    scale x = bytes_scale(fmax(0, low - edge), high + edge, W), y = {0, most * 1.06, H, 1, "s"};
    if (most < 0.1) y.unit = 1e-3, y.suffix = "ms";
    char text[24];
    buf_printf(b,
               "<h2>Memory against time</h2>\n<p>Every plan on the front: the estimated peak of activations, and what "
               "a microbatch computes again for it.");
    const remat_point *c = s->point >= 0 && s->point < f->n ? &f->data[s->point] : NULL;
    if (c) buf_printf(b, " The chosen one: %s, %.4g s.", human_bytes(c->peak, text), c->seconds);
    buf_printf(b, "</p>\n");
    open_plot(b, "memory against time", "", H, &x, "estimated peak of activations", &y, "computed again");
    int step = f->n / MOST_POINTS + 1;
    buf_printf(b, "<polyline class=\"front\" points=\"");
    for (int i = 0; i < f->n; i += i + step < f->n || i == f->n - 1 ? step : f->n - 1 - i) /* the last one too */
        buf_printf(b, "%.1f,%.1f ", at(&x, (double)f->data[i].peak), H - at(&y, f->data[i].seconds));
    buf_printf(b, "\"/>");
    if (c)
        buf_printf(b,
                   "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"6\" fill=\"%s\"><title>chosen: %s, %.4g s computed "
                   "again</title></circle>",
                   at(&x, (double)c->peak), H - at(&y, c->seconds), red, human_bytes(c->peak, text), c->seconds);
    close_plot(b);
    buf_printf(b, "<p class=\"legend\">");
    legend(b, blue, "a plan of the front");
    if (c) legend(b, red, "the chosen plan");
    buf_printf(b, "</p>\n");
}
