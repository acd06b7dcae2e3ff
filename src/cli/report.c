/* report.c - the HTML page of a plan. Everything is static SVG with titles that a browser shows on hovering; names from
 * a model are escaped. The timeline is the step program, x being the instruction: time is not known, order is. */
#include "cli/report.h"

#include "train/folder.h"

#include <math.h>

enum { WIDTH = 960, HEIGHT = 300, COLUMNS = 480, MOST_BUFFERS = 2500, MOST_POINTS = 400 };

static void escaped(buf *b, const char *s) {
    for (; *s; s++) switch (*s) {
        case '<':
            buf_printf(b, "&lt;");
            break;
        case '>':
            buf_printf(b, "&gt;");
            break;
        case '&':
            buf_printf(b, "&amp;");
            break;
        case '"':
            buf_printf(b, "&quot;");
            break;
        default:
            buf_write(b, s, 1);
        }
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

static int part_of(const plan_buf *b, int turn) {
    static const int by_section[] = {[SEC_PARAM] = PART_PARAM, [SEC_GRAD] = PART_GRAD,   [SEC_MOMENT] = PART_STATE,
                                     [SEC_CONST] = PART_INPUT, [SEC_INPUT] = PART_INPUT, [SEC_HOST] = PARTS};
    if (b->section != SEC_WORK) return by_section[b->section];
    if (b->comm) return PART_COMM;
    return b->first < turn && b->last >= turn ? PART_SAVED : PART_WORKING;
}

static bool in_step(const plan_buf *b) { return b->section == SEC_WORK && b->program == PROG_STEP && b->first >= 0; }

/* alive[c][k]: bytes of part k alive at the fullest instruction of column c of the timeline. */
typedef struct timeline {
    int columns, instrs, turn;
    int64_t alive[COLUMNS][PARTS], peak;
} timeline;

static void fill_timeline(const plan *p, arena *a, timeline *t) {
    t->instrs = (int)max64(p->program[PROG_STEP].instrs.n, 1);
    t->columns = (int)min64(COLUMNS, t->instrs);
    t->turn = turn_of(p);
    int64_t(*delta)[PARTS] = arena_alloc(a, sizeof *delta * (size_t)(t->instrs + 1)), now[PARTS] = {0};
    for (int b = 0; b < p->bufs.n; b++) {
        const plan_buf *x = &p->bufs.data[b];
        int part = part_of(x, t->turn);
        if (x->section == SEC_HOST) continue; /* not in the arena */
        if (x->section != SEC_WORK) now[part] += x->bytes;
        if (!in_step(x)) continue;
        delta[x->first][part] += x->bytes;
        delta[x->last + 1][part] -= x->bytes;
    }
    for (int i = 0; i < t->instrs; i++) {
        int64_t sum = 0, best = 0, *column = t->alive[(int64_t)i * t->columns / t->instrs];
        for (int k = 0; k < PARTS; k++) {
            sum += now[k] += delta[i][k];
            best += column[k];
        }
        if (sum >= best) memcpy(column, now, sizeof now);
        t->peak = max64(t->peak, sum);
    }
}

static void draw_timeline(buf *b, const timeline *t, int64_t budget) {
    double top = (double)max64(t->peak, 1) * 1.05;
    char text[24];
    buf_printf(b,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"memory over "
               "the step\">",
               WIDTH, HEIGHT + 20);
    int64_t below[COLUMNS] = {0};
    for (int k = 0; k < PARTS; k++) {
        int64_t most = 0;
        buf_printf(b, "<polygon fill=\"%s\" points=\"", parts[k].colour);
        for (int side = 0; side < 2; side++) /* the lower edge from left to right, the upper edge back */
            for (int i = 0; i < 2 * t->columns; i++) {
                int e = side ? 2 * t->columns - 1 - i : i, c = e / 2;
                double x = (double)(c + e % 2) * WIDTH / t->columns;
                int64_t y = below[c] + (side ? t->alive[c][k] : 0);
                buf_printf(b, "%.1f,%.1f ", x, HEIGHT * (1 - (double)y / top));
            }
        for (int c = 0; c < t->columns; c++) {
            below[c] += t->alive[c][k];
            most = max64(most, t->alive[c][k]);
        }
        buf_printf(b, "\"><title>%s: at most %s</title></polygon>", parts[k].name, human_bytes(most, text));
    }
    double turn = (double)t->turn * WIDTH / t->instrs;
    buf_printf(b,
               "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"%d\" class=\"rule\"/><text x=\"%.1f\" y=\"%d\" "
               "text-anchor=\"end\">forward &#8592;</text><text x=\"%.1f\" y=\"%d\">&#8594; backward</text>",
               turn, turn, HEIGHT, turn - 4, HEIGHT + 15, turn + 4, HEIGHT + 15);
    if (budget && (double)budget < top) {
        double y = HEIGHT * (1 - (double)budget / top);
        buf_printf(b, "<line x1=\"0\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" class=\"budget\"/>", WIDTH, y, y);
    }
    buf_printf(b, "<text x=\"2\" y=\"%.1f\">%s</text></svg>\n<p class=\"legend\">",
               HEIGHT * (1 - (double)t->peak / top) - 3 + 10, human_bytes(t->peak, text));
    for (int k = PARTS - 1; k >= 0; k--)
        buf_printf(b, "<span><i style=\"background:%s\"></i>%s</span>", parts[k].colour, parts[k].name);
    buf_printf(b, "</p>\n");
}

/* The work area: one rectangle a buffer, x its lifetime, y its place. The smallest are left out when there are many. */
static void draw_places(buf *b, const plan *p, const timeline *t) {
    int64_t size = max64(p->memory.section[SEC_WORK], 1), base = p->memory.arena - p->memory.section[SEC_WORK],
            least = 0;
    int shown = MOST_BUFFERS + 1;
    for (; shown > MOST_BUFFERS; least = least ? least * 2 : size / 4096) {
        shown = 0;
        for (int i = 0; i < p->bufs.n; i++) shown += in_step(&p->bufs.data[i]) && p->bufs.data[i].bytes >= least;
        if (shown <= MOST_BUFFERS) break;
    }
    buf_printf(b,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"places of "
               "buffers\" class=\"places\">",
               WIDTH, HEIGHT);
    for (int i = 0; i < p->bufs.n; i++) {
        const plan_buf *x = &p->bufs.data[i];
        if (!in_step(x) || x->bytes < least) continue;
        const plan_instr *maker = &p->program[PROG_STEP].instrs.data[x->first];
        char text[24];
        double h = (double)x->bytes * HEIGHT / (double)size;
        buf_printf(
            b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.2f\" fill=\"%s\"><title>b%d: %s, %s, made by %s",
            (double)x->first * WIDTH / t->instrs, HEIGHT - (double)(x->offset - base) * HEIGHT / (double)size - h,
            (double)(x->last - x->first + 1) * WIDTH / t->instrs, h, parts[part_of(x, t->turn)].colour, i,
            parts[part_of(x, t->turn)].name, human_bytes(x->bytes, text), op_table[maker->op].name);
        if (maker->node && maker->node->src) {
            buf_printf(b, " at ");
            escaped(b, maker->node->src);
        }
        buf_printf(b, "; instructions %d to %d</title></rect>", x->first, x->last);
    }
    buf_printf(b, "</svg>\n");
    if (least) buf_printf(b, "<p>%d buffers; smaller ones are left out.</p>\n", shown);
}

/* ---- tables ------------------------------------------------------------------------------------ */

static void bytes_row(buf *b, const char *name, int64_t bytes) {
    char text[24];
    buf_printf(b, "<tr><td>%s</td><td class=\"n\">%s</td><td class=\"n\">%lld</td></tr>\n", name,
               human_bytes(bytes, text), (long long)bytes);
}

static void summary(buf *b, const plan *p, const report_facts *f) {
    const plan_memory *m = &p->memory;
    buf_printf(b, "<table><tr><th>on each rank</th><th></th><th>bytes</th></tr>\n");
    bytes_row(b, "parameters", m->section[SEC_PARAM]);
    bytes_row(b, "gradients", m->section[SEC_GRAD]);
    bytes_row(b, "optimizer", m->section[SEC_MOMENT]);
    bytes_row(b, "constants and inputs", m->section[SEC_CONST] + m->section[SEC_INPUT]);
    bytes_row(b, "activations, placed", m->section[SEC_WORK]);
    bytes_row(b, "&#160; least that any placement needs", m->live_bound);
    bytes_row(b, "<b>peak</b>", m->arena);
    if (f->budget) bytes_row(b, "budget", f->budget);
    if (m->section[SEC_HOST]) bytes_row(b, "host copies, beside the peak", m->section[SEC_HOST]);
    bytes_row(b, "saved by forward for backward", m->saved);
    bytes_row(b, "sent to other ranks in a step", f->comm_bytes);
    buf_printf(b, "</table>\n");
    if (!f->machine || !(f->step_seconds > 0)) return;
    buf_printf(b, "<p>Estimated on ");
    escaped(b, f->machine);
    buf_printf(b, ": %.4g s a step, of it %.1f %% recomputation and %.1f %% communication; %.4g tokens a second.</p>\n",
               f->step_seconds, 100 * f->again_seconds / f->step_seconds, 100 * f->comm_seconds / f->step_seconds,
               (double)(p->batch * p->seq_valid * f->accum) / f->step_seconds);
}

static void layers(buf *b, const save_report *s) {
    char kept[24], window[24], host[24];
    buf_printf(
        b,
        "<h2>What is kept, by layer</h2>\n<p>Policy %s. Equal classes are equal layers.</p>\n<table><tr>"
        "<th>segment</th><th>class</th><th>on the host</th><th>kept</th><th>values</th><th>most alive inside</th>"
        "<th>computed again</th><th>operators</th></tr>\n",
        s->policy ? s->policy : "");
    for (int i = 0; i < s->segments; i++) {
        const save_segment *g = &s->segment[i];
        buf_printf(b, "<tr><td>");
        escaped(b, g->name && *g->name ? g->name : "(no parameter)");
        buf_printf(b,
                   "</td><td class=\"n\">%d</td><td class=\"n\">%s</td><td class=\"n\">%s</td><td class=\"n\">%d</td>"
                   "<td class=\"n\">%s</td>"
                   "<td class=\"n\">%.1f %%</td><td class=\"n\">%d</td></tr>\n",
                   g->cls, human_bytes(g->host, host), human_bytes(g->kept, kept), g->kept_values,
                   human_bytes(g->window, window), g->forward > 0 ? 100 * g->again / g->forward : 0, g->again_ops);
    }
    buf_printf(b, "</table>\n");
}

/* Peak against time: each point a plan, by the model that chooses among them. */
static void draw_front(buf *b, const save_report *s) {
    const remat_points *f = s->front;
    if (!f || f->n < 2) return;
    double low = (double)f->data[0].peak, high = (double)f->data[f->n - 1].peak, most = 1e-30;
    for (int i = 0; i < f->n; i++) most = fmax(most, f->data[i].seconds);
    int step = f->n / MOST_POINTS + 1;
    char text[24];
    buf_printf(
        b,
        "<h2>Memory against time</h2>\n<p>Every plan on the front, by estimated peak of activations (to the right) "
        "and seconds computed again (up).</p>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-10 -10 %d "
        "%d\"><polyline class=\"front\" points=\"",
        WIDTH + 20, HEIGHT + 40);
    for (int i = 0; i < f->n; i += step)
        buf_printf(b, "%.1f,%.1f ", ((double)f->data[i].peak - low) / fmax(high - low, 1) * WIDTH,
                   HEIGHT * (1 - f->data[i].seconds / most));
    buf_printf(b, "\"/>");
    if (s->point >= 0 && s->point < f->n) {
        const remat_point *c = &f->data[s->point];
        buf_printf(
            b,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"6\" class=\"chosen\"><title>chosen: %s, %.4g s again</title></circle>",
            ((double)c->peak - low) / fmax(high - low, 1) * WIDTH, HEIGHT * (1 - c->seconds / most),
            human_bytes(c->peak, text), c->seconds);
    }
    buf_printf(b, "<text x=\"0\" y=\"%d\">%s</text>", HEIGHT + 18, human_bytes((int64_t)low, text));
    buf_printf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text></svg>\n", WIDTH, HEIGHT + 18,
               human_bytes((int64_t)high, text));
}

static void communication(buf *b, const plan *p) {
    static const ir_op ops[] = {OP_all_to_all, OP_all_gather, OP_reduce_scatter, OP_all_reduce};
    buf_printf(b,
               "<h2>Communication of a microbatch</h2>\n<table><tr><th>collective</th><th>forward</th><th>backward</th>"
               "<th>operands of a rank</th></tr>\n");
    for (int k = 0; k < 4; k++) {
        int count[2] = {0};
        int64_t bytes = 0;
        char text[24];
        for (int i = 0; i < p->program[PROG_STEP].instrs.n; i++) {
            const plan_instr *in = &p->program[PROG_STEP].instrs.data[i];
            if (in->op != ops[k]) continue;
            count[in->backward]++;
            bytes += tensor_numel(&in->in[0].t) * dtype_size(in->in[0].t.type);
        }
        if (count[0] + count[1])
            buf_printf(b, "<tr><td>%s</td><td class=\"n\">%d</td><td class=\"n\">%d</td><td class=\"n\">%s</td></tr>\n",
                       op_table[ops[k]].name, count[0], count[1], human_bytes(bytes, text));
    }
    buf_printf(b, "</table>\n");
}

static void page(buf *b, const plan *p, const report_facts *f) {
    arena *a = arena_new();
    timeline *t = ARENA_NEW(a, timeline);
    fill_timeline(p, a, t);
    buf_printf(b, "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\"><head><meta "
                  "charset=\"utf-8\"/><title>autosp plan: ");
    escaped(b, f->model);
    buf_printf(b,
               "</title><style>body{font:15px/1.4 system-ui,sans-serif;max-width:%dpx;margin:2em auto;padding:0 1em;"
               "color:#222}table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:left;"
               "border-bottom:1px solid #ddd}.n{text-align:right;font-variant-numeric:tabular-nums}svg{width:100%%;"
               "background:#fafafa;border:1px solid #ddd}svg text{font-size:12px;fill:#444}.rule{stroke:#444;"
               "stroke-dasharray:4 3}.budget{stroke:#c00;stroke-width:2}.places rect{stroke:#fff;stroke-width:.3}"
               ".front{fill:none;stroke:#4c72b0;stroke-width:2}.chosen{fill:#c44e52}.legend span{margin-right:1.2em}"
               ".legend i{display:inline-block;width:.9em;height:.9em;margin-right:.4em}</style></head><body>\n<h1>",
               WIDTH);
    escaped(b, f->model);
    buf_printf(b, "</h1>\n<p>%lld tokens a sequence, %lld a microbatch, %lld a step, %d rank%s.",
               (long long)p->seq_valid, (long long)p->batch, (long long)f->accum, f->ranks, f->ranks == 1 ? "" : "s");
    if (f->max_seq) buf_printf(b, " This is the longest sequence within the budget.");
    buf_printf(b, "</p>\n");
    summary(b, p, f);
    buf_printf(b, "<h2>Memory during a step</h2>\n<p>From the first to the last of %d instructions.</p>\n", t->instrs);
    draw_timeline(b, t, f->budget);
    buf_printf(
        b, "<h2>Where activations lie</h2>\n<p>Each rectangle is a buffer: its lifetime to the right, its place in the "
           "arena upwards.</p>\n");
    draw_places(b, p, t);
    if (f->save && f->save->segments) {
        layers(b, f->save);
        draw_front(b, f->save);
    }
    communication(b, p);
    buf_printf(b, "</body></html>\n");
    arena_free(a);
}

sp_status report_write(const char *path, const plan *p, const report_facts *f) {
    buf b = {0};
    page(&b, p, f);
    sp_status s = folder_write(path, b.data, b.n);
    buf_free(&b);
    return s;
}
