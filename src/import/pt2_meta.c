/* pt2_meta.c - the "metadata" of nodes: cut out before the JSON parser sees it, read when a message wants it.
 *
 * Stack traces are most of the bytes of an exported program (70 to 90 percent), and none of its meaning. One scan
 * that only knows strings and braces drops them at memory speed; a source line is decoded when an error
 * names its node.
 */
#include "import/pt2_internal.h"

#include <ctype.h>
#include <stdlib.h>

/* The end of the string that starts at P with '"': behind its closing quote, or END. */
static const char *skip_string(const char *p, const char *end) {
    for (p++; p < end; p++) {
        if (*p == '\\')
            p++;
        else if (*p == '"')
            return p + 1;
    }
    return end;
}

/* The end of the object that starts at P with '{', or NULL when it has none. */
static const char *skip_object(const char *p, const char *end) {
    int64_t depth = 0;
    while (p < end) {
        if (*p == '"') {
            p = skip_string(p, end);
            continue;
        }
        if (*p == '{') depth++;
        if (*p == '}' && --depth == 0) return p + 1;
        p++;
    }
    return NULL;
}

static const char *spaces(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    return p;
}

/* True when the object at P is a value of a graph that happens to be called "metadata". */
static bool is_graph_value(const char *p, const char *end) {
    p = spaces(p + 1, end);
    return end - p > 8 && (!memcmp(p, "\"dtype\"", 7) || !memcmp(p, "\"as_", 4));
}

void pt2_cut_metadata(arena *a, const char *text, int64_t len, char *out, int64_t *out_len, pt2_cuts *cuts) {
    static const char key[] = "\"metadata\"";
    const char *p = text, *end = text + len, *kept = text;
    char *o = out;
    while (p < end) {
        if (*p != '"') {
            p++;
            continue;
        }
        const char *s = p;
        p = skip_string(p, end);
        if (p - s != sizeof key - 1 || memcmp(s, key, sizeof key - 1) != 0) continue;
        const char *v = spaces(p, end);
        if (v == end || *v != ':') continue;
        v = spaces(v + 1, end);
        if (v == end || *v != '{' || is_graph_value(v, end)) continue;
        const char *e = skip_object(v, end);
        /* The index needs up to ten characters in place of what is cut: the output never outgrows the input. */
        if (!e || e - v < 11) continue;
        memcpy(o, kept, (size_t)(v - kept));
        o += v - kept;
        char index[16];
        int n = snprintf(index, sizeof index, "%d", cuts->n);
        memcpy(o, index, (size_t)n);
        o += n;
        pt2_cut c = {v, e - v};
        vec_push(a, cuts, c);
        kept = p = e;
    }
    memcpy(o, kept, (size_t)(end - kept));
    o += end - kept;
    *o = 0;
    *out_len = o - out;
}

/* One frame of a Python traceback, 'File "PATH", line N, in FUNCTION': its parts, or false. */
typedef struct frame {
    const char *path, *func;
    int path_len, func_len;
    long line;
} frame;

static bool parse_frame(const char *s, frame *f) {
    f->path = s;
    const char *q = strchr(s, '"');
    if (!q || q - s > 4096) return false;
    f->path_len = (int)(q - s);
    if (strncmp(q, "\", line ", 8) != 0) return false;
    char *end;
    f->line = strtol(q + 8, &end, 10);
    f->func = "", f->func_len = 0;
    if (!strncmp(end, ", in ", 5)) {
        f->func = end + 5;
        while (isalnum((unsigned char)f->func[f->func_len]) || f->func[f->func_len] == '_') f->func_len++;
    }
    return true;
}

static bool inside_torch(const frame *f) {
    for (int i = 0; i + 7 <= f->path_len; i++)
        if (!memcmp(f->path + i, "/torch/", 7)) return true;
    return f->path_len >= 6 && !memcmp(f->path, "torch/", 6);
}

const char *pt2_source(arena *a, const pt2_node *n) {
    if (!n->meta) return "";
    json_t *o = json_loadb(n->meta, (size_t)n->meta_len, 0, NULL);
    const char *trace = json_string_value(json_object_get(o, "stack_trace"));
    frame best = {0}, f;
    bool found = false;
    for (const char *p = trace ? strstr(trace, "File \"") : NULL; p; p = strstr(p, "File \"")) {
        p += 6;
        /* Innermost is last; frames inside torch only count when there is nothing else. */
        if (parse_frame(p, &f) && (!found || !inside_torch(&f) || inside_torch(&best))) best = f, found = true;
    }
    const char *text = "";
    if (found) {
        int base = best.path_len;
        while (base > 0 && best.path[base - 1] != '/' && best.path[base - 1] != '\\') base--;
        text = arena_printf(a, "%.*s:%ld%s%.*s", best.path_len - base, best.path + base, best.line,
                            best.func_len ? ", in " : "", best.func_len, best.func);
    }
    json_decref(o);
    return text;
}

const pt2_arg *pt2_find_arg(const pt2_node *n, const char *name) {
    for (int i = 0; i < n->n_in; i++)
        if (!strcmp(n->in[i].name, name)) return &n->in[i].arg;
    return NULL;
}
