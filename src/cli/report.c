/* report.c - the HTML page of a plan: tables, and the pictures of report_draw.c. One file, no script, nothing from
 * elsewhere; names from a model are escaped. */
#include "cli/report_impl.h"

#include "train/folder.h"

#include <stdlib.h>

void report_text(buf *b, const char *s) {
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
    bytes_row(b, "&#160; alive at their peak: saved", m->peak_saved);
    bytes_row(b, "&#160; alive at their peak: working", m->peak_working);
    bytes_row(b, "&#160; alive at their peak: communication", m->peak_comm);
    bytes_row(b, "&#160; least that any placement needs", m->live_bound);
    bytes_row(b, "<b>peak</b>", m->arena);
    if (f->budget) bytes_row(b, "budget", f->budget);
    if (m->section[SEC_HOST]) bytes_row(b, "host copies, beside the peak", m->section[SEC_HOST]);
    bytes_row(b, "saved by forward for backward", m->saved);
    bytes_row(b, "sent to other ranks in a step", f->comm_bytes);
    buf_printf(b, "</table>\n");
    if (!f->machine || !(f->step_seconds > 0)) return;
    buf_printf(b, "<p>Estimated on ");
    report_text(b, f->machine);
    buf_printf(b, ": %.4g s a step, of it %.1f %% recomputation and %.1f %% communication; %.4g tokens a second.</p>\n",
               f->step_seconds, 100 * f->again_seconds / f->step_seconds, 100 * f->comm_seconds / f->step_seconds,
               (double)(p->batch * p->seq_valid * f->accum) / f->step_seconds);
}

/* A segment by the name of its first parameter, up to the last number in it: "m.model.layers.7". */
static void segment_name(buf *b, const char *name) {
    size_t n = name ? strlen(name) : 0, end = 0;
    for (size_t i = 0, start = 0; i <= n && n; i++) {
        if (i < n && name[i] != '.') continue;
        if (i > start && strspn(name + start, "0123456789") >= i - start) end = i;
        start = i + 1;
    }
    char *copy = n ? strdup(name) : NULL;
    if (copy && end) copy[end] = 0;
    report_text(b, copy ? copy : "(no parameter)");
    free(copy);
}

static bool same_choice(const save_segment *x, const save_segment *y) {
    return x->cls == y->cls && x->kept == y->kept && x->host == y->host && x->window == y->window &&
           x->kept_values == y->kept_values && x->again_ops == y->again_ops;
}

/* One row for each run of equal segments under equal plans. */
static void layers(buf *b, const save_report *s) {
    char kept[24], window[24], host[24];
    buf_printf(b, "<h2>What is kept, by layer</h2>\n<p>Policy %s; %d segments of %d kinds.</p>\n",
               s->policy ? s->policy : "", s->segments, s->classes);
    report_bars(b, s);
    buf_printf(b, "<table><tr><th>segments</th><th>first</th><th class=\"n\">kind</th><th class=\"n\">kept, "
                  "each</th><th class=\"n\">values</th><th class=\"n\">on the host</th><th class=\"n\">most alive "
                  "inside</th><th class=\"n\">computed again</th><th class=\"n\">operators</th></tr>\n");
    for (int i = 0, end; i < s->segments; i = end) {
        const save_segment *g = &s->segment[i];
        for (end = i + 1; end < s->segments && same_choice(g, &s->segment[end]); end++) {
        }
        buf_printf(b, "<tr><td>%d", i);
        if (end - i > 1) buf_printf(b, " to %d", end - 1);
        buf_printf(b, "</td><td>");
        segment_name(b, g->name);
        buf_printf(b,
                   "</td><td class=\"n\">%d</td><td class=\"n\">%s</td><td class=\"n\">%d</td><td class=\"n\">%s</td>"
                   "<td class=\"n\">%s</td><td class=\"n\">%.1f %%</td><td class=\"n\">%d</td></tr>\n",
                   g->cls, human_bytes(g->kept, kept), g->kept_values, human_bytes(g->host, host),
                   human_bytes(g->window, window), g->forward > 0 ? 100 * g->again / g->forward : 0, g->again_ops);
    }
    buf_printf(b, "</table>\n");
}

static void communication(buf *b, const report_facts *f) {
    char text[24];
    buf_printf(b, "<h2>Communication of a step</h2>\n");
    if (!f->comm_bytes) {
        buf_printf(b, "<p>None.</p>\n");
        return;
    }
    buf_printf(b, "<table><tr><th>collective</th><th class=\"n\">in the forward</th><th class=\"n\">in the "
                  "backward</th><th class=\"n\">sent by a rank</th><th class=\"n\">bytes</th><th class=\"n\">estimated "
                  "time</th></tr>\n");
    for (int k = 0; k < f->ncomm; k++) {
        const report_comm *c = &f->comm[k];
        if (!(c->forward + c->backward)) continue;
        buf_printf(b,
                   "<tr><td>%s</td><td class=\"n\">%lld</td><td class=\"n\">%lld</td><td class=\"n\">%s</td><td "
                   "class=\"n\">%lld</td><td class=\"n\">%.4g s</td></tr>\n",
                   c->name, (long long)c->forward, (long long)c->backward, human_bytes(c->bytes, text),
                   (long long)c->bytes, c->seconds);
    }
    buf_printf(b, "</table>\n");
}

static const char *const style =
    "body{font:15px/1.45 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;max-width:960px;margin:2em auto;"
    "padding:0 1em;color:#222;background:#fff}h1{font-size:1.5em;overflow-wrap:anywhere}h2{font-size:1.15em;"
    "margin-top:1.8em}table{border-collapse:collapse;font-size:14px}td,th{padding:2px 14px 2px 0;text-align:left;"
    "border-bottom:1px solid #ddd;vertical-align:bottom}td{white-space:nowrap}.n{text-align:right;"
    "font-variant-numeric:tabular-nums}svg{width:100%;display:block}svg text{font-size:12px;fill:#333}"
    "svg .tick{font-size:11px;fill:#555}.plot{fill:#fafafa;stroke:#bbb}.grid{stroke:#e4e4e4}.mark{stroke:#999}"
    ".turn{stroke:#333;stroke-dasharray:4 3}.budget{stroke:#d00000;stroke-width:1.5}.places g rect:not(.plot){"
    "stroke:#fff;stroke-width:.3}.front{fill:none;stroke:#4c72b0;stroke-width:2}.legend{font-size:13px;margin:.2em 0 "
    ".9em "
    "76px}.legend span{display:inline-block;margin-right:1.3em}.legend i{display:inline-block;width:.9em;height:.9em;"
    "margin-right:.4em;vertical-align:-.1em}.legend .dashed{background:none;border-left:2px dashed #333;width:2px;"
    "margin-left:.3em}";

static void page(buf *b, const plan *p, const report_facts *f) {
    buf_printf(b, "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\"><head><meta "
                  "charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width\"/><title>autosp plan: ");
    report_text(b, f->model);
    buf_printf(b, "</title><style>%s</style></head><body>\n<h1>", style);
    report_text(b, f->model);
    buf_printf(b, "</h1>\n<p>%lld tokens a sequence, %lld a microbatch, %lld a step, %d rank%s.",
               (long long)p->seq_valid, (long long)p->batch, (long long)f->accum, f->ranks, f->ranks == 1 ? "" : "s");
    if (f->max_seq) buf_printf(b, " This is the longest sequence within the budget.");
    buf_printf(b, "</p>\n");
    summary(b, p, f);
    report_timeline(b, p, f->budget);
    if (f->save && f->save->segments) {
        layers(b, f->save);
        report_front(b, f->save);
    }
    communication(b, f);
    buf_printf(b, "</body></html>\n");
}

sp_status report_write(const char *path, const plan *p, const report_facts *f) {
    buf b = {0};
    page(&b, p, f);
    sp_status s = folder_write(path, b.data, b.n);
    buf_free(&b);
    return s;
}
