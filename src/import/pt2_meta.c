/* pt2_meta.c - the "metadata" of nodes: cut out before the JSON parser sees it, read when a message wants it.
 *
 * Stack traces are most of the bytes of an exported program (70 to 90 percent), and none of its meaning. One scan
 * that only knows strings and braces drops them at memory speed; a source line is decoded when an error
 * names its node.
 */
#include "import/pt2_internal.h"

#include <ctype.h>

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

/* One frame of a Python traceback, 'File "PATH", line N, in FUNCTION'. */
typedef struct frame {
    const char *path, *func;
    int path_len, func_len;
    long line;
} frame;

/* The frame whose path starts at S, in JSON text where a quote is \" ; false when it is none. */
static bool parse_frame(const char *s, const char *end, frame *f) {
    static const char after[] = "\\\", line ", in[] = ", in ";
    const char *q = memmem(s, (size_t)(end - s), after, sizeof after - 1);
    if (!q || q - s > 4096) return false;
    *f = (frame){.path = s, .path_len = (int)(q - s), .func = ""};
    q += sizeof after - 1;
    for (; q < end && isdigit((unsigned char)*q) && f->line < 100000000; q++) f->line = f->line * 10 + (*q - '0');
    if (end - q > (int)sizeof in && !memcmp(q, in, sizeof in - 1)) {
        f->func = q += sizeof in - 1;
        while (q < end && (isalnum((unsigned char)*q) || *q == '_')) q++;
        f->func_len = (int)(q - f->func);
    }
    return true;
}

static bool inside_torch(const frame *f) {
    return memmem(f->path, (size_t)f->path_len, "/torch/", 7) || (f->path_len >= 6 && !memcmp(f->path, "torch/", 6)) ||
           f->path[0] == '<'; /* generated code */
}

/* Read from the raw text: unescaping every node's traces would cost more than the rest of the import. */
const char *pt2_source(arena *a, const pt2_node *n) {
    static const char key[] = "\"stack_trace\"", file[] = "File \\\"";
    if (!n->meta) return "";
    const char *end = n->meta + n->meta_len;
    const char *p = memmem(n->meta, (size_t)n->meta_len, key, sizeof key - 1);
    if (!p) return "";
    p = memchr(p + sizeof key - 1, '"', (size_t)(end - p) - (sizeof key - 1));
    if (!p) return "";
    end = skip_string(p, end);
    frame best = {0}, f;
    bool found = false;
    while ((p = memmem(p, (size_t)(end - p), file, sizeof file - 1))) {
        p += sizeof file - 1;
        /* Innermost is last; frames inside torch only count when there is nothing else. */
        if (parse_frame(p, end, &f) && (!found || !inside_torch(&f) || inside_torch(&best))) best = f, found = true;
    }
    if (!found) return "";
    int base = best.path_len;
    while (base > 0 && best.path[base - 1] != '/' && best.path[base - 1] != '\\') base--;
    return arena_printf(a, "%.*s:%ld%s%.*s", best.path_len - base, best.path + base, best.line,
                        best.func_len ? ", in " : "", best.func_len, best.func);
}

const pt2_arg *pt2_find_arg(const pt2_node *n, const char *name) {
    for (int i = 0; i < n->n_in; i++)
        if (!strcmp(n->in[i].name, name)) return &n->in[i].arg;
    return NULL;
}
