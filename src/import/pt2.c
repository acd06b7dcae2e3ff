/* pt2.c - opens a .pt2 archive and decodes its program. See pt2.h.
 *
 * Order: recognise the container (and name the ones that look like it), cut the metadata out of the program's
 * JSON, let jansson parse the rest, decode graph and signature, then the lists of stored tensors.
 */
#include "import/pt2_internal.h"

#include <stdlib.h>

/* An 8-billion-parameter model of 32 layers has about 10 MB of program; jansson needs some 20 times what it parses. */
#define MAX_PROGRAM_BYTES ((int64_t)1 << 30)
#define MAX_PARSED_BYTES ((int64_t)256 << 20)
#define MAX_SMALL_BYTES ((int64_t)16 << 20)

static sp_status parse_text(const pt2_reader *r, const char *text, int64_t len, json_t **out) {
    json_error_t err;
    *out = json_loadb(text, (size_t)len, 0, &err);
    CHECK(*out, "%s: %s is not valid JSON (%s at byte %d); export or copy it again", r->path, r->entry, err.text,
          err.position);
    if (!json_is_object(*out)) {
        json_decref(*out);
        PT2_BAD(r, "not a JSON object");
    }
    return SP_OK;
}

sp_status pt2_read_json(pt2 *p, pt2_reader *r, int i, int64_t cap, json_t **out) {
    char *text;
    int64_t n;
    TRY(ziparc_read(p->zip, i, cap, &text, &n));
    sp_status s = parse_text(r, text, n, out);
    free(text);
    return s;
}

/* ---- which archive is it? -------------------------------------------------------------------------- */

/* The whole of a small text entry, without the newline at its end; NULL when there is none. */
static sp_status small_text(pt2 *p, const char *name, const char **out) {
    *out = NULL;
    int i = ziparc_find(p->zip, name);
    if (i < 0) return SP_OK;
    char *t;
    int64_t n;
    TRY(ziparc_read(p->zip, i, 4096, &t, &n));
    while (n > 0 && (t[n - 1] == '\n' || t[n - 1] == '\r')) t[--n] = 0;
    *out = arena_strdup(p->a, t);
    free(t);
    return SP_OK;
}

/* The name of the one model in the archive: "model" of models/model.json. */
static sp_status find_model(pt2 *p, const char **name, int *entry) {
    bool aoti = false;
    int n = 0;
    buf all = {0};
    for (int i = 0; i < ziparc_count(p->zip); i++) {
        const char *e = ziparc_name(p->zip, i);
        size_t len = strlen(e);
        if (!strncmp(e, "data/aotinductor/", 17)) aoti = true;
        if (len <= 12 || strncmp(e, "models/", 7) != 0 || strcmp(e + len - 5, ".json") != 0) continue;
        *name = arena_printf(p->a, "%.*s", (int)(len - 12), e + 7);
        *entry = i;
        buf_printf(&all, "%s%s", n++ ? ", " : "", *name);
    }
    *name = n ? arena_strdup(p->a, *name) : "";
    const char *list = all.data ? arena_strdup(p->a, all.data) : "";
    buf_free(&all);
    if (n == 1) return SP_OK;
    CHECK(n == 0, "%s holds %d models (%s); export one model with torch.export.save", p->path, n, list);
    CHECK(!aoti,
          "%s is a compiled AOTInductor package, which has no graph to train; save the exported program with "
          "torch.export.save instead",
          p->path);
    CHECK(ziparc_find(p->zip, "serialized_exported_program.json") < 0,
          "%s was written by torch 2.8 or older; re-export with torch >= 2.9", p->path);
    CHECK(ziparc_find(p->zip, "data.pkl") < 0,
          "%s is a torch.save checkpoint, not an exported model; use torch.export.save", p->path);
    FAIL("%s is a ZIP archive without models/*.json: not an exported model", p->path);
}

static sp_status recognise(pt2 *p, const char **name, int *entry) {
    TRY(find_model(p, name, entry));
    CHECK(ziparc_find(p->zip, "data/weights/model.pt") < 0 && ziparc_find(p->zip, "data/constants/model.pt") < 0,
          "%s was written by torch 2.8; re-export with torch >= 2.9", p->path);
    const char *text;
    TRY(small_text(p, "archive_format", &text));
    CHECK(!text || !strcmp(text, "pt2"), "%s: archive format \"%.40s\", expected \"pt2\"", p->path, text);
    TRY(small_text(p, "archive_version", &text));
    CHECK(!text || !strcmp(text, "0"), "%s: archive version \"%.40s\", expected \"0\": this program is too old for it",
          p->path, text);
    TRY(small_text(p, "byteorder", &text));
    CHECK(!text || !strcmp(text, "little"), "%s: weights in %.40s-endian order; export on a little-endian machine",
          p->path, text);
    return SP_OK;
}

/* ---- program ---------------------------------------------------------------------------------------- */

static sp_status read_in_spec(const pt2_reader *r, const json_t *o, pt2_in_spec *s) {
    static const struct {
        const char *tag, *fqn;
        pt2_in_kind kind;
    } kinds[] = {
        {"parameter", "parameter_name", PT2_IN_PARAM},
        {"buffer", "buffer_name", PT2_IN_BUFFER},
        {"tensor_constant", "tensor_constant_name", PT2_IN_CONSTANT},
    };
    json_t *v, *arg;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (!(v = json_object_get(o, kinds[i].tag))) continue;
        s->kind = kinds[i].kind;
        TRY(pt2_get(r, v, "arg", JSON_OBJECT, &arg));
        TRY(pt2_get_str(r, arg, "name", &s->value));
        return pt2_get_str(r, v, kinds[i].fqn, &s->fqn);
    }
    if ((v = json_object_get(o, "user_input"))) {
        TRY(pt2_get(r, v, "arg", JSON_OBJECT, &arg));
        json_t *t = json_object_get(arg, "as_tensor");
        s->kind = t ? PT2_IN_USER : PT2_IN_SCALAR;
        s->value = "";
        return t ? pt2_get_str(r, t, "name", &s->value) : SP_OK;
    }
    if ((v = json_object_get(o, "constant_input"))) {
        s->kind = PT2_IN_SCALAR;
        return pt2_get_str(r, v, "name", &s->value);
    }
    void *it = json_object_iter((json_t *)(uintptr_t)o);
    FAIL("%s: the model has an input of kind %s, which cannot be trained here", r->path,
         it ? json_object_iter_key(it) : "(none)");
}

/* The outputs must be one loss and nothing that changes state. */
static sp_status read_out_specs(pt2 *p, const pt2_reader *r, const json_t *list) {
    int n = (int)json_array_size(list), losses = 0;
    for (int i = 0; i < n; i++) {
        const json_t *o = json_array_get(list, (size_t)i), *v;
        if ((v = json_object_get(o, "buffer_mutation"))) {
            const char *name = json_string_value(json_object_get(v, "buffer_name"));
            FAIL("%s: the model changes its buffer %s in forward; training needs a model without mutable state",
                 r->path, name ? name : "?");
        }
        bool loss = json_object_get(o, "loss_output") != NULL, user = json_object_get(o, "user_output") != NULL;
        CHECK(loss || user,
              "%s: the model was exported with its backward pass or with side effects; export the forward pass only",
              r->path);
        if (losses++ == 0) p->loss_output = i;
    }
    CHECK(losses == 1,
          "%s: the model returns %d values; export a module that returns only the loss (tools/export.py does)", r->path,
          losses);
    return SP_OK;
}

static sp_status read_signature(pt2 *p, const pt2_reader *r, const json_t *o) {
    json_t *in, *out;
    TRY(pt2_get(r, o, "input_specs", JSON_ARRAY, &in));
    TRY(pt2_get(r, o, "output_specs", JSON_ARRAY, &out));
    p->n_in = (int)json_array_size(in);
    if (p->n_in != p->graph->n_in || (int)json_array_size(out) != p->graph->n_out)
        PT2_BAD(r, "signature and graph differ in length");
    pt2_in_spec *specs = ARENA_ARRAY(r->a, pt2_in_spec, p->n_in);
    for (int i = 0; i < p->n_in; i++) TRY(read_in_spec(r, json_array_get(in, (size_t)i), &specs[i]));
    p->in = specs;
    return read_out_specs(p, r, out);
}

static sp_status read_ranges(pt2 *p, const pt2_reader *r, json_t *o) {
    if (!json_is_object(o)) return SP_OK;
    p->n_ranges = (int)json_object_size(o);
    pt2_range *list = ARENA_ARRAY(r->a, pt2_range, p->n_ranges);
    const char *key;
    json_t *v;
    int i = 0;
    json_object_foreach(o, key, v) {
        const json_t *lo = json_object_get(v, "min_val"), *hi = json_object_get(v, "max_val");
        list[i].symbol = arena_strdup(r->a, key);
        list[i].lo = json_is_integer(lo) ? json_integer_value(lo) : 0;
        list[i++].hi = json_is_integer(hi) ? json_integer_value(hi) : INT64_MAX;
    }
    p->ranges = list;
    return SP_OK;
}

static sp_status read_program(pt2 *p, pt2_reader *r, const json_t *root) {
    json_t *version, *module, *graph, *signature;
    int64_t major, minor;
    TRY(pt2_get(r, root, "schema_version", JSON_OBJECT, &version));
    TRY(pt2_get_int(r, version, "major", &major));
    TRY(pt2_get_int(r, version, "minor", &minor));
    CHECK(major == 8,
          "%s: export schema %lld.%lld; this program reads schema 8, which torch 2.9 to 2.15 write. Re-export with one "
          "of them",
          r->path, (long long)major, (long long)minor);
    p->major = (int)major, p->minor = (int)minor;
    const char *torch = json_string_value(json_object_get(root, "torch_version"));
    p->torch_version = arena_strdup(r->a, torch ? torch : "unknown");
    TRY(pt2_get(r, root, "graph_module", JSON_OBJECT, &module));
    TRY(pt2_get(r, module, "graph", JSON_OBJECT, &graph));
    TRY(pt2_get(r, module, "signature", JSON_OBJECT, &signature));
    TRY(pt2_read_graph(r, graph, &p->graph));
    TRY(read_signature(p, r, signature));
    return read_ranges(p, r, json_object_get(root, "range_constraints"));
}

/* The program's text without metadata: *TEXT on the heap. The cut parts stay valid as long as P. */
static sp_status load_program(pt2 *p, pt2_reader *r, int entry, char **text, int64_t *len) {
    const void *view = NULL;
    int64_t n = ziparc_size(p->zip, entry);
    CHECK(n <= MAX_PROGRAM_BYTES, "%s: %s has %lld bytes; a program that large is not plausible", r->path, r->entry,
          (long long)n);
    if (ziparc_view(p->zip, entry, &view, &n) != SP_OK) {
        TRY(ziparc_read(p->zip, entry, MAX_PROGRAM_BYTES, &p->text, &n));
        view = p->text;
    }
    *text = malloc((size_t)n + 1);
    CHECK(*text, "%s: out of memory for the %lld bytes of %s", r->path, (long long)n, r->entry);
    pt2_cut_metadata(r->a, view, n, *text, len, &r->cuts);
    if (*len > MAX_PARSED_BYTES) {
        free(*text);
        FAIL("%s: %s describes a program of %lld bytes; that is not plausible", r->path, r->entry, (long long)*len);
    }
    return SP_OK;
}

/* extra/autosp.json: {"labels": "shifted"|"same", "weights_prefix": "m.", "tied": {"dropped": "kept"}}. */
static sp_status read_extra(pt2 *p, pt2_reader *r) {
    p->weights_prefix = "";
    int i = ziparc_find(p->zip, "extra/autosp.json");
    if (i < 0) return SP_OK;
    r->entry = "extra/autosp.json";
    json_t *o;
    TRY(pt2_read_json(p, r, i, MAX_SMALL_BYTES, &o));
    const char *labels = json_string_value(json_object_get(o, "labels"));
    const char *prefix = json_string_value(json_object_get(o, "weights_prefix"));
    p->labels = labels ? arena_strdup(r->a, labels) : NULL;
    if (prefix) p->weights_prefix = arena_strdup(r->a, prefix);
    json_t *tied = json_object_get(o, "tied"), *v;
    p->tied_from = ARENA_ARRAY(r->a, const char *, json_object_size(tied));
    p->tied_to = ARENA_ARRAY(r->a, const char *, json_object_size(tied));
    const char *key;
    json_object_foreach(tied, key, v) {
        if (!json_is_string(v)) continue;
        p->tied_from[p->n_tied] = arena_strdup(r->a, key);
        p->tied_to[p->n_tied++] = arena_strdup(r->a, json_string_value(v));
    }
    json_decref(o);
    CHECK(!p->labels || !strcmp(p->labels, "shifted") || !strcmp(p->labels, "same"),
          "%s: extra/autosp.json says labels are \"%.40s\"; expected \"shifted\" or \"same\"", p->path, p->labels);
    return SP_OK;
}

static sp_status open_into(pt2 *p) {
    pt2_reader r = {.a = p->a, .path = p->path, .exprs = strmap_new(p->a)};
    const char *name;
    int entry = -1;
    TRY(ziparc_open(p->path, &p->zip));
    TRY(recognise(p, &name, &entry));
    r.entry = ziparc_name(p->zip, entry);
    char *text;
    int64_t len;
    json_t *root;
    TRY(load_program(p, &r, entry, &text, &len));
    sp_status s = parse_text(&r, text, len, &root);
    free(text);
    TRY(s);
    s = read_program(p, &r, root);
    json_decref(root);
    TRY(s);
    TRY(pt2_read_weights(p, &r, name));
    return read_extra(p, &r);
}

sp_status pt2_open(const char *path, pt2 **out) {
    arena *a = arena_new();
    pt2 *p = ARENA_NEW(a, pt2);
    p->a = a, p->path = arena_strdup(a, path);
    *out = NULL;
    if (open_into(p) != SP_OK) {
        pt2_close(p);
        return SP_FAIL;
    }
    *out = p;
    return SP_OK;
}

void pt2_close(pt2 *p) {
    if (!p) return;
    ziparc_close(p->zip);
    free(p->text);
    arena_free(p->a);
}
