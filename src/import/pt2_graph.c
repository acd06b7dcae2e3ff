/* pt2_graph.c - decodes the graphs of a program: arguments, nodes and value types. See pt2.h. */
#include "import/pt2_internal.h"

#include <math.h>

/* Regions nest two or three deep in practice (autocast inside no_grad). */
#define MAX_GRAPH_DEPTH 16

sp_status pt2_bad(const pt2_reader *r, const char *what) {
    FAIL("%s: %s is malformed (%s); export the model again", r->path, r->entry, what);
}

static const char *const type_names[] = {"an object", "an array", "text",  "an integer",
                                         "a number",  "true",     "false", "null"};

sp_status pt2_get(const pt2_reader *r, const json_t *o, const char *key, json_type type, json_t **out) {
    json_t *v = json_object_get(o, key);
    if (!v || json_typeof(v) != type) {
        FAIL("%s: %s is malformed (\"%s\" is %s, expected %s); export the model again", r->path, r->entry, key,
             v ? type_names[json_typeof(v)] : "missing", type_names[type]);
    }
    *out = v;
    return SP_OK;
}

sp_status pt2_get_str(const pt2_reader *r, const json_t *o, const char *key, const char **out) {
    json_t *v;
    TRY(pt2_get(r, o, key, JSON_STRING, &v));
    *out = arena_strdup(r->a, json_string_value(v));
    return SP_OK;
}

sp_status pt2_get_int(const pt2_reader *r, const json_t *o, const char *key, int64_t *out) {
    json_t *v;
    TRY(pt2_get(r, o, key, JSON_INTEGER, &v));
    *out = json_integer_value(v);
    return SP_OK;
}

/* The one key of a union object, and its value. */
static sp_status read_union(const pt2_reader *r, const json_t *o, const char **tag, json_t **value) {
    void *it = json_is_object(o) && json_object_size(o) == 1 ? json_object_iter((json_t *)(uintptr_t)o) : NULL;
    if (!it) PT2_BAD(r, "a union without exactly one member");
    *tag = json_object_iter_key(it);
    *value = json_object_iter_value(it);
    return SP_OK;
}

sp_status pt2_read_size(pt2_reader *r, const json_t *o, const sym_expr **out) {
    const char *tag;
    json_t *v;
    TRY(read_union(r, o, &tag, &v));
    if (!strcmp(tag, "as_int") && json_is_integer(v)) {
        *out = sym_int(r->a, json_integer_value(v));
        return SP_OK;
    }
    if (strcmp(tag, "as_expr") != 0) PT2_BAD(r, "a size that is neither integer nor expression");
    json_t *s;
    TRY(pt2_get(r, v, "expr_str", JSON_STRING, &s));
    /* The same few expressions are the sizes of most values: each is parsed once. */
    const char *text = json_string_value(s);
    int64_t known;
    if (strmap_get(r->exprs, text, &known)) {
        *out = r->expr.data[known];
        return SP_OK;
    }
    TRY_NOTE(sym_parse(r->a, text, out), "%s: %s", r->path, r->entry);
    strmap_put(r->exprs, text, r->expr.n);
    vec_push(r->a, &r->expr, *out);
    return SP_OK;
}

/* ---- arguments ------------------------------------------------------------------------------------ */

/* JSON has no infinities: they come as text. */
static bool number(const json_t *v, double *out) {
    if (json_is_number(v)) {
        *out = json_number_value(v);
        return true;
    }
    const char *s = json_string_value(v);
    if (!s) return false;
    if (!strcmp(s, "Infinity"))
        *out = INFINITY;
    else if (!strcmp(s, "-Infinity"))
        *out = -INFINITY;
    else if (!strcmp(s, "NaN"))
        *out = NAN;
    else
        return false;
    return true;
}

static sp_status tensor_name(pt2_reader *r, const json_t *v, const char **out) {
    return pt2_get_str(r, v, "name", out);
}

/* A SymIntArgument, {as_name} or {as_int}. */
static sp_status sym_arg(pt2_reader *r, const json_t *o, pt2_sym_arg *out) {
    const char *tag;
    json_t *v;
    TRY(read_union(r, o, &tag, &v));
    if (!strcmp(tag, "as_int") && json_is_integer(v))
        out->value = json_integer_value(v);
    else if (!strcmp(tag, "as_name") && json_is_string(v))
        out->name = arena_strdup(r->a, json_string_value(v));
    else
        PT2_BAD(r, "a symbolic integer that is neither name nor number");
    return SP_OK;
}

/* {as_tensor: {name}} or {as_none: true}. */
static sp_status optional_tensor(pt2_reader *r, const json_t *o, const char **out) {
    const char *tag;
    json_t *v;
    TRY(read_union(r, o, &tag, &v));
    *out = NULL;
    return !strcmp(tag, "as_tensor") ? tensor_name(r, v, out) : SP_OK;
}

typedef enum list_kind { LIST_TENSORS, LIST_OPTIONAL, LIST_INTS, LIST_SYMS, LIST_FLOATS } list_kind;

static sp_status read_list(pt2_reader *r, list_kind kind, const json_t *v, pt2_arg *out) {
    if (!json_is_array(v)) PT2_BAD(r, "a list argument that is not an array");
    int n = (int)json_array_size(v);
    const char **names = ARENA_ARRAY(r->a, const char *, n);
    pt2_sym_arg *syms = ARENA_ARRAY(r->a, pt2_sym_arg, n);
    double *floats = ARENA_ARRAY(r->a, double, n);
    for (int i = 0; i < n; i++) {
        const json_t *e = json_array_get(v, (size_t)i);
        switch (kind) {
        case LIST_TENSORS:
            TRY(tensor_name(r, e, &names[i]));
            break;
        case LIST_OPTIONAL:
            TRY(optional_tensor(r, e, &names[i]));
            break;
        case LIST_SYMS:
            TRY(sym_arg(r, e, &syms[i]));
            break;
        case LIST_INTS:
            if (!json_is_integer(e)) PT2_BAD(r, "a list of integers with something else");
            syms[i].value = json_integer_value(e);
            break;
        case LIST_FLOATS:
            if (!number(e, &floats[i])) PT2_BAD(r, "a list of numbers with something else");
            break;
        }
    }
    out->n = n, out->names = names, out->syms = syms, out->floats = floats;
    return SP_OK;
}

static sp_status read_subgraph(pt2_reader *r, const json_t *v, pt2_arg *out) {
    json_t *g;
    TRY(pt2_get_str(r, v, "name", &out->name));
    TRY(pt2_get(r, v, "graph", JSON_OBJECT, &g));
    if (r->depth >= MAX_GRAPH_DEPTH) PT2_BAD(r, "graphs nested too deeply");
    r->depth++;
    TRY(pt2_read_graph(r, g, &out->graph));
    r->depth--;
    return SP_OK;
}

sp_status pt2_read_arg(pt2_reader *r, const json_t *o, pt2_arg *out) {
    const char *tag;
    json_t *v;
    TRY(read_union(r, o, &tag, &v));
    *out = (pt2_arg){0};
    static const struct {
        const char *tag;
        pt2_kind kind;
        list_kind list;
    } lists[] = {
        {"as_tensors", PT2_TENSORS, LIST_TENSORS}, {"as_optional_tensors", PT2_TENSORS, LIST_OPTIONAL},
        {"as_ints", PT2_INTS, LIST_INTS},          {"as_sym_ints", PT2_SYM_INTS, LIST_SYMS},
        {"as_floats", PT2_FLOATS, LIST_FLOATS},
    };
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (!strcmp(tag, lists[i].tag)) {
            out->kind = lists[i].kind;
            return read_list(r, lists[i].list, v, out);
        }
    if (!strcmp(tag, "as_tensor")) {
        out->kind = PT2_TENSOR;
        return tensor_name(r, v, &out->name);
    }
    if (!strcmp(tag, "as_optional_tensor")) {
        TRY(optional_tensor(r, v, &out->name));
        out->kind = out->name ? PT2_TENSOR : PT2_NONE;
        return SP_OK;
    }
    if (!strcmp(tag, "as_graph")) {
        out->kind = PT2_GRAPH;
        return read_subgraph(r, v, out);
    }
    if (!strcmp(tag, "as_sym_int")) {
        pt2_sym_arg s = {0};
        TRY(sym_arg(r, v, &s));
        out->kind = s.name ? PT2_SYM_INT : PT2_INT;
        out->name = s.name, out->i = s.value;
        return SP_OK;
    }
    if (!strcmp(tag, "as_none")) return SP_OK;
    if (!strcmp(tag, "as_int") && json_is_integer(v)) {
        out->kind = PT2_INT, out->i = json_integer_value(v);
    } else if (!strcmp(tag, "as_float") && number(v, &out->f)) {
        out->kind = PT2_FLOAT;
    } else if (!strcmp(tag, "as_bool") && json_is_boolean(v)) {
        out->kind = PT2_BOOL, out->i = json_is_true(v);
    } else if (!strcmp(tag, "as_string") && json_is_string(v)) {
        out->kind = PT2_STRING, out->name = arena_strdup(r->a, json_string_value(v));
    } else if (!strcmp(tag, "as_scalar_type") && json_is_integer(v)) {
        out->kind = PT2_DTYPE, out->i = json_integer_value(v);
    } else if (!strcmp(tag, "as_device") || !strcmp(tag, "as_layout") || !strcmp(tag, "as_memory_format")) {
        out->kind = PT2_IGNORED;
    } else {
        out->kind = PT2_OTHER, out->name = arena_strdup(r->a, tag);
    }
    return SP_OK;
}

/* ---- graphs --------------------------------------------------------------------------------------- */

static sp_status read_args(pt2_reader *r, const json_t *list, const pt2_arg **out, int *n) {
    *n = (int)json_array_size(list);
    pt2_arg *a = ARENA_ARRAY(r->a, pt2_arg, *n);
    for (int i = 0; i < *n; i++) TRY(pt2_read_arg(r, json_array_get(list, (size_t)i), &a[i]));
    *out = a;
    return SP_OK;
}

static sp_status read_node(pt2_reader *r, const json_t *o, pt2_node *n) {
    json_t *in, *out;
    TRY(pt2_get_str(r, o, "target", &n->target));
    TRY(pt2_get(r, o, "inputs", JSON_ARRAY, &in));
    TRY(pt2_get(r, o, "outputs", JSON_ARRAY, &out));
    n->n_in = (int)json_array_size(in);
    pt2_input *inputs = ARENA_ARRAY(r->a, pt2_input, n->n_in);
    for (int i = 0; i < n->n_in; i++) {
        const json_t *e = json_array_get(in, (size_t)i);
        json_t *arg;
        TRY(pt2_get_str(r, e, "name", &inputs[i].name));
        TRY(pt2_get(r, e, "arg", JSON_OBJECT, &arg));
        TRY_NOTE(pt2_read_arg(r, arg, &inputs[i].arg), "argument %s of %s", inputs[i].name, n->target);
    }
    n->in = inputs;
    TRY(read_args(r, out, &n->out, &n->n_out));
    const json_t *meta = json_object_get(o, "metadata");
    int64_t cut = json_is_integer(meta) ? json_integer_value(meta) : -1;
    if (cut >= 0 && cut < r->cuts.n) n->meta = r->cuts.data[cut].text, n->meta_len = r->cuts.data[cut].len;
    return SP_OK;
}

static sp_status read_metas(pt2_reader *r, json_t *o, pt2_graph *g) {
    g->n_metas = (int)json_object_size(o);
    g->meta_index = strmap_new(r->a);
    pt2_meta *metas = ARENA_ARRAY(r->a, pt2_meta, g->n_metas);
    const char *key;
    json_t *v, *sizes;
    int i = 0;
    json_object_foreach(o, key, v) {
        pt2_meta *m = &metas[i];
        int64_t t;
        TRY_NOTE(pt2_get_int(r, v, "dtype", &t), "value %s", key);
        TRY_NOTE(pt2_get(r, v, "sizes", JSON_ARRAY, &sizes), "value %s", key);
        m->name = arena_strdup(r->a, key);
        m->scalar_type = t >= 0 && t < 256 ? (int)t : 0;
        m->ndim = (int)json_array_size(sizes);
        m->size = ARENA_ARRAY(r->a, const sym_expr *, m->ndim);
        for (int d = 0; d < m->ndim; d++) TRY(pt2_read_size(r, json_array_get(sizes, (size_t)d), &m->size[d]));
        strmap_put(g->meta_index, key, i++);
    }
    g->metas = metas;
    return SP_OK;
}

static sp_status read_syms(pt2_reader *r, json_t *o, pt2_graph *g) {
    g->n_syms = (int)json_object_size(o);
    g->sym_index = strmap_new(r->a);
    pt2_sym_value *syms = ARENA_ARRAY(r->a, pt2_sym_value, g->n_syms);
    const char *key;
    json_t *v;
    int i = 0;
    json_object_foreach(o, key, v) {
        syms[i].name = arena_strdup(r->a, key);
        TRY(pt2_read_size(r, v, &syms[i].expr));
        strmap_put(g->sym_index, key, i++);
    }
    g->syms = syms;
    return SP_OK;
}

sp_status pt2_read_graph(pt2_reader *r, const json_t *o, const pt2_graph **out) {
    pt2_graph *g = ARENA_NEW(r->a, pt2_graph);
    json_t *in, *outs, *nodes, *metas, *syms;
    TRY(pt2_get(r, o, "inputs", JSON_ARRAY, &in));
    TRY(pt2_get(r, o, "outputs", JSON_ARRAY, &outs));
    TRY(pt2_get(r, o, "nodes", JSON_ARRAY, &nodes));
    TRY(pt2_get(r, o, "tensor_values", JSON_OBJECT, &metas));
    TRY(pt2_get(r, o, "sym_int_values", JSON_OBJECT, &syms));
    TRY(read_args(r, in, &g->in, &g->n_in));
    TRY(read_args(r, outs, &g->out, &g->n_out));
    g->n_nodes = (int)json_array_size(nodes);
    pt2_node *list = ARENA_ARRAY(r->a, pt2_node, g->n_nodes);
    for (int i = 0; i < g->n_nodes; i++)
        TRY_NOTE(read_node(r, json_array_get(nodes, (size_t)i), &list[i]), "node %d", i);
    g->nodes = list;
    TRY(read_metas(r, metas, g));
    TRY(read_syms(r, syms, g));
    *out = g;
    return SP_OK;
}
