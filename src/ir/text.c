/* text.c - the graph as text, and back. print(parse(t)) is stable, and every dump is a valid test input.
 *
 *   graph "block" mesh(seq=2) seq(9/10) {
 *     %0 = param {name="w", grad=1} : f32[64,64]
 *     %1 = input {name="input_ids", seq=1} : i64[B,S]
 *     %2, %3 = rmsnorm(%5, %0) {eps=1e-05} : f32[2,64,64]@seq=S1, f32[2,64]@seq=S1
 *     return loss=%9
 *   }
 *
 * The grammar is in docs/ir.md. The reader trusts nothing: it is fuzzed.
 */
#include "ir/ir.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>

/* ---- printing ---- */

void ir_print_type(const ir_graph *g, const ir_type *t, const ir_layout *l, buf *out) {
    buf_printf(out, "%s[", dtype_name(t->t));
    for (int i = 0; i < t->rank; i++) {
        if (i) buf_printf(out, ",");
        dim_print(g, t->dim[i], out);
    }
    buf_printf(out, "]");
    for (int a = 0; l && a < g->mesh.naxes; a++) {
        const axis_layout *x = &l->axis[a];
        if (x->kind == LAYOUT_REPL) continue;
        buf_printf(out, "@%s=", g->mesh.axis[a].name);
        if (x->kind == LAYOUT_PARTIAL)
            buf_printf(out, "P");
        else if (x->outer == 1)
            buf_printf(out, "S%d", x->dim);
        else
            buf_printf(out, "S%d/%lld", x->dim, (long long)x->outer);
    }
}

static void print_string(const char *s, buf *out) {
    buf_printf(out, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (c < 32 || c == 127)
            buf_printf(out, "\\x%02x", c);
        else
            buf_write(out, s, 1);
    }
    buf_printf(out, "\"");
}

/* Always with a point, an exponent or a letter, so that a float never reads as an int; shortest that round-trips. */
static void print_float(double f, buf *out) {
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, f);
        if (strtod(text, NULL) == f) break;
    }
    buf_printf(out, "%s%s", text, strpbrk(text, ".einf") ? "" : ".0");
}

static void print_graph(const ir_graph *g, int indent, buf *out);

static void print_attr(const ir_graph *g, const ir_attr *a, buf *out) {
    buf_printf(out, "%s=", a->key);
    switch (a->kind) {
    case ATTR_INT:
        buf_printf(out, "%lld", (long long)a->i);
        break;
    case ATTR_FLOAT:
        print_float(a->f, out);
        break;
    case ATTR_STR:
        print_string(a->s, out);
        break;
    case ATTR_DIMS:
        buf_printf(out, "[");
        for (int i = 0; i < a->n; i++) {
            if (i) buf_printf(out, ",");
            dim_print(g, a->dims[i], out);
        }
        buf_printf(out, "]");
        break;
    case ATTR_DATA:
        buf_printf(out, "<");
        for (int i = 0; i < a->n; i++) {
            if (i) buf_printf(out, " ");
            print_float(a->data[i], out);
        }
        buf_printf(out, ">");
        break;
    }
}

static void print_node(const ir_graph *g, const ir_node *n, int indent, buf *out) {
    buf_printf(out, "%*s", indent, "");
    for (int i = 0; i < n->nout; i++) buf_printf(out, "%s%%%d", i ? ", " : "", n->out[i]);
    buf_printf(out, "%s%s", n->nout ? " = " : "", op_table[n->op].name);
    if (n->nin) {
        buf_printf(out, "(");
        for (int i = 0; i < n->nin; i++) buf_printf(out, "%s%%%d", i ? ", " : "", n->in[i]);
        buf_printf(out, ")");
    }
    if (n->nattr) {
        buf_printf(out, " {");
        for (int i = 0; i < n->nattr; i++) {
            if (i) buf_printf(out, ", ");
            print_attr(g, &n->attr[i], out);
        }
        buf_printf(out, "}");
    }
    if (n->region) {
        buf_printf(out, " ");
        print_graph(n->region, indent, out);
    }
    for (int i = 0; i < n->nout; i++) {
        buf_printf(out, i ? ", " : " : ");
        ir_print_type(g, ir_typeof(g, n->out[i]), ir_layoutof(g, n->out[i]), out);
    }
    if (n->nout && g->values.data[n->out[0]].name) buf_printf(out, "  # %s", g->values.data[n->out[0]].name);
    buf_printf(out, "\n");
}

static void print_graph(const ir_graph *g, int indent, buf *out) {
    buf_printf(out, "graph ");
    print_string(g->name, out);
    if (g->mesh.naxes) {
        buf_printf(out, " mesh(");
        for (int a = 0; a < g->mesh.naxes; a++)
            buf_printf(out, "%s%s=%d", a ? "," : "", g->mesh.axis[a].name, g->mesh.axis[a].size);
        buf_printf(out, ")");
    }
    if (g->seq) buf_printf(out, " seq(%lld/%lld)", (long long)g->seq_valid, (long long)g->seq);
    buf_printf(out, " {\n");
    for (int i = 0; i < g->nodes.n; i++) print_node(g, &g->nodes.data[i], indent + 2, out);
    buf_printf(out, "%*sreturn", indent + 2, "");
    for (int i = 0; i < g->outputs.n; i++)
        buf_printf(out, "%s %s=%%%d", i ? "," : "", g->outputs.data[i].name, g->outputs.data[i].value);
    buf_printf(out, "\n%*s}", indent, "");
}

void ir_print(const ir_graph *g, buf *out) {
    print_graph(g, 0, out);
    buf_printf(out, "\n");
}

/* ---- parsing ---- */

enum { MAX_DEPTH = 40, MAX_NAME = 4096 };

typedef struct parser {
    arena *a;
    const char *p, *file;
    int line, depth;
} parser;

static sp_status bad(const parser *ps, const char *what) {
    char near[24];
    snprintf(near, sizeof near, "%s", ps->p);
    for (char *c = near; *c; c++)
        if (*c == '\n' || (unsigned char)*c < 32) *c = ' ';
    return err_set("%s:%d: expected %s, found '%s'", ps->file, ps->line, what, near);
}

static void space(parser *ps) {
    for (;; ps->p++) {
        if (*ps->p == '#')
            while (*ps->p && *ps->p != '\n') ps->p++;
        if (*ps->p == '\n') ps->line++;
        if (!*ps->p || !isspace((unsigned char)*ps->p)) return;
    }
}

static bool eat(parser *ps, const char *token) {
    space(ps);
    size_t n = strlen(token);
    if (strncmp(ps->p, token, n) != 0) return false;
    ps->p += n;
    return true;
}

static sp_status need(parser *ps, const char *token) { return eat(ps, token) ? SP_OK : bad(ps, token); }

static sp_status parse_name(parser *ps, char *out, size_t size) {
    space(ps);
    size_t n = 0;
    while (isalnum((unsigned char)ps->p[n]) || ps->p[n] == '_' || ps->p[n] == '.') n++;
    if (!n || n >= size) return bad(ps, "a name");
    memcpy(out, ps->p, n);
    out[n] = 0;
    ps->p += n;
    return SP_OK;
}

static sp_status parse_int(parser *ps, int64_t *v) {
    space(ps);
    char *end;
    errno = 0;
    *v = strtoll(ps->p, &end, 10);
    if (end == ps->p || errno) return bad(ps, "an integer");
    ps->p = end;
    return SP_OK;
}

static sp_status parse_string(parser *ps, const char **out) {
    TRY(need(ps, "\""));
    buf b = {0};
    buf_write(&b, "", 0);
    for (; *ps->p && *ps->p != '"' && *ps->p != '\n'; ps->p++) {
        char c = *ps->p;
        if (c == '\\') {
            c = *++ps->p;
            if (c == 'x') {
                char hex[3] = {0};
                for (int i = 0; i < 2 && isxdigit((unsigned char)ps->p[1]); i++) hex[i] = *++ps->p;
                c = (char)strtol(hex, NULL, 16);
                if (!c) c = '?';
            } else if (!c) {
                break;
            }
        }
        buf_write(&b, &c, 1);
    }
    *out = arena_strdup(ps->a, b.data);
    buf_free(&b);
    return need(ps, "\"");
}

static sp_status parse_dim(parser *ps, ir_graph *g, ir_dim *d) {
    space(ps);
    if (*ps->p == '-' || isdigit((unsigned char)*ps->p)) {
        int64_t v;
        TRY(parse_int(ps, &v));
        *d = dim_const(g, v);
        return SP_OK;
    }
    char name[64];
    TRY(parse_name(ps, name, sizeof name));
    if (*ps->p != '(') {
        *d = dim_symbol(g, name);
        return SP_OK;
    }
    if (++ps->depth > MAX_DEPTH) return bad(ps, "a size expression less deep");
    ps->p++;
    ir_dim a = 0, b = 0;
    TRY(parse_dim(ps, g, &a));
    TRY(need(ps, ","));
    TRY(parse_dim(ps, g, &b));
    TRY(need(ps, ")"));
    ps->depth--;
    static const struct {
        const char *name;
        ir_dim (*make)(ir_graph *, ir_dim, ir_dim);
    } fn[] = {{"add", dim_add}, {"mul", dim_mul}, {"div", dim_floordiv},
              {"mod", dim_mod}, {"max", dim_max}, {"min", dim_min}};
    for (size_t i = 0; i < sizeof fn / sizeof *fn; i++)
        if (strcmp(name, fn[i].name) == 0) {
            int64_t x, y;
            if (dim_value(g, a, &x) && dim_value(g, b, &y) && i < 2) {
                int64_t z;
                if (i ? __builtin_mul_overflow(x, y, &z) : __builtin_add_overflow(x, y, &z))
                    return bad(ps, "a size within 64 bits");
            }
            *d = fn[i].make(g, a, b);
            return SP_OK;
        }
    return bad(ps, "add, mul, div, mod, max or min");
}

static sp_status parse_type(parser *ps, ir_graph *g, ir_type *t, ir_layout *l) {
    char name[16];
    TRY(parse_name(ps, name, sizeof name));
    *t = (ir_type){0};
    *l = (ir_layout){0};
    if (!dtype_parse(name, &t->t)) return bad(ps, "an element type (f32, f64, bf16, i64, bool)");
    TRY(need(ps, "["));
    while (!eat(ps, "]")) {
        if (t->rank == IR_MAX_RANK) return bad(ps, "at most 8 dimensions");
        if (t->rank) TRY(need(ps, ","));
        ir_dim d = 0;
        int64_t v;
        TRY(parse_dim(ps, g, &d));
        if (dim_value(g, d, &v) && (v < 0 || v > (1LL << 40))) return bad(ps, "an extent");
        t->dim[t->rank++] = d;
    }
    while (eat(ps, "@")) {
        TRY(parse_name(ps, name, sizeof name));
        int axis = ir_axis(g, name);
        if (axis < 0) return bad(ps, "an axis of the mesh");
        TRY(need(ps, "="));
        axis_layout *x = &l->axis[axis];
        if (eat(ps, "P")) {
            x->kind = LAYOUT_PARTIAL;
            continue;
        }
        TRY(need(ps, "S"));
        int64_t dim, outer = 1;
        TRY(parse_int(ps, &dim));
        if (eat(ps, "/")) TRY(parse_int(ps, &outer));
        if (dim < 0 || dim >= t->rank || outer < 1) return bad(ps, "a dimension of the value");
        int64_t extent, step;
        if (!dim_value(g, t->dim[dim], &extent) || !mul_ok(outer, g->mesh.axis[axis].size, &step) || extent % step)
            return bad(ps, "a dimension that the axis divides");
        *x = layout_shard((int)dim, outer);
    }
    return SP_OK;
}

static sp_status parse_attr(parser *ps, ir_graph *g, ir_attr *a) {
    char key[64];
    TRY(parse_name(ps, key, sizeof key));
    *a = (ir_attr){.key = arena_strdup(ps->a, key)};
    TRY(need(ps, "="));
    space(ps);
    if (*ps->p == '"') {
        a->kind = ATTR_STR;
        return parse_string(ps, &a->s);
    }
    if (eat(ps, "[")) {
        VEC(ir_dim) v = {0};
        a->kind = ATTR_DIMS;
        while (!eat(ps, "]")) {
            ir_dim d = 0;
            if (v.n) TRY(need(ps, ","));
            TRY(parse_dim(ps, g, &d));
            vec_push(ps->a, &v, d);
        }
        a->dims = v.data;
        a->n = v.n;
        return SP_OK;
    }
    if (eat(ps, "<")) {
        VEC(double) v = {0};
        a->kind = ATTR_DATA;
        while (!eat(ps, ">")) {
            char *end;
            space(ps);
            double f = strtod(ps->p, &end);
            if (end == ps->p) return bad(ps, "a number or '>'");
            ps->p = end;
            vec_push(ps->a, &v, f);
        }
        a->data = v.data;
        a->n = v.n;
        return SP_OK;
    }
    size_t n = strcspn(ps->p, " ,}\n\r\t");
    char text[64];
    if (n == 0 || n >= sizeof text) return bad(ps, "a number");
    memcpy(text, ps->p, n);
    text[n] = 0;
    if (!strpbrk(text, ".enaif")) {
        a->kind = ATTR_INT;
        return parse_int(ps, &a->i);
    }
    char *end;
    a->kind = ATTR_FLOAT;
    a->f = strtod(text, &end);
    if (*end) return bad(ps, "a number");
    ps->p += n;
    return SP_OK;
}

typedef struct value_map {
    VEC(int64_t) id; /* the number in the text */
    VEC(ir_val) value;
    strmap *find;
} value_map;

static sp_status parse_ref(parser *ps, const value_map *m, ir_val *v) {
    int64_t id, found;
    char key[24];
    TRY(need(ps, "%"));
    TRY(parse_int(ps, &id));
    snprintf(key, sizeof key, "%lld", (long long)id);
    if (!strmap_get(m->find, key, &found))
        return err_set("%s:%d: %%%lld is used before it is defined", ps->file, ps->line, (long long)id);
    *v = (ir_val)found;
    return SP_OK;
}

static sp_status parse_graph(parser *ps, ir_graph **out);

static sp_status parse_node(parser *ps, ir_graph *g, value_map *m) {
    int64_t ids[IR_MAX_OUT];
    int nout = 0, line;
    char name[64];
    space(ps);
    line = ps->line;
    if (*ps->p == '%') {
        do {
            if (nout == IR_MAX_OUT) return bad(ps, "fewer results");
            TRY(need(ps, "%"));
            TRY(parse_int(ps, &ids[nout++]));
        } while (eat(ps, ","));
        TRY(need(ps, "="));
    }
    TRY(parse_name(ps, name, sizeof name));
    ir_op op;
    if (!op_parse(name, &op)) return err_set("%s:%d: there is no op '%s'", ps->file, line, name);
    VEC(ir_val) in = {0};
    if (eat(ps, "(")) {
        while (!eat(ps, ")")) {
            ir_val v = -1;
            if (in.n) TRY(need(ps, ","));
            TRY(parse_ref(ps, m, &v));
            vec_push(ps->a, &in, v);
        }
    }
    VEC(ir_attr) attrs = {0};
    if (eat(ps, "{")) {
        while (!eat(ps, "}")) {
            ir_attr at;
            if (attrs.n) TRY(need(ps, ","));
            TRY(parse_attr(ps, g, &at));
            vec_push(ps->a, &attrs, at);
        }
    }
    ir_graph *region = NULL;
    space(ps);
    if (strncmp(ps->p, "graph", 5) == 0) {
        if (++ps->depth > MAX_DEPTH) return bad(ps, "fewer nested graphs");
        TRY(parse_graph(ps, &region));
        ps->depth--;
    }
    if ((op == OP_loop || region) && (!region || (op != OP_loop && op != OP_attention && op != OP_attention_grad)))
        return err_set("%s:%d: %s %s a nested graph", ps->file, line, name, region ? "takes no" : "needs");
    ir_type types[IR_MAX_OUT];
    ir_layout layouts[IR_MAX_OUT];
    if (nout) TRY(need(ps, ":"));
    for (int i = 0; i < nout; i++) {
        if (i) TRY(need(ps, ","));
        TRY(parse_type(ps, g, &types[i], &layouts[i]));
    }
    int want = op_table[op].nout;
    if (want >= 0 && nout != want) return err_set("%s:%d: %s has %d results, not %d", ps->file, line, name, want, nout);
    ir_val v = -1;
    TRY_NOTE(ir_check_attrs(op, in.n, attrs.data, attrs.n), "%s:%d", ps->file, line);
    TRY_NOTE(ir_emit_region(g, op, in.data, in.n, attrs.data, attrs.n, nout ? types : NULL, nout, nout ? layouts : NULL,
                            region, &v),
             "%s:%d", ps->file, line);
    for (int i = 0; i < nout; i++) {
        const ir_type *t = ir_typeof(g, v + i);
        if (!ir_type_equal(t, &types[i]) || !ir_layout_equal(g, ir_layoutof(g, v + i), &layouts[i])) {
            buf b = {0};
            ir_print_type(g, t, ir_layoutof(g, v + i), &b);
            err_set("%s:%d: result %d of %s is %s, not as written", ps->file, line, i, name, b.data);
            buf_free(&b);
            return SP_FAIL;
        }
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)ids[i]);
        if (strmap_get(m->find, key, NULL))
            return err_set("%s:%d: %%%lld is defined twice", ps->file, line, (long long)ids[i]);
        strmap_put(m->find, key, v + i);
    }
    return SP_OK;
}

static sp_status parse_graph(parser *ps, ir_graph **out) {
    const char *name;
    TRY(need(ps, "graph"));
    TRY(parse_string(ps, &name));
    ir_graph *g = ir_new(ps->a, name);
    if (eat(ps, "mesh")) {
        TRY(need(ps, "("));
        do {
            char axis[16];
            int64_t size;
            if (g->mesh.naxes == IR_MAX_AXES) return bad(ps, "at most 3 mesh axes");
            TRY(parse_name(ps, axis, sizeof axis));
            TRY(need(ps, "="));
            TRY(parse_int(ps, &size));
            if (size < 1 || size > 1 << 20) return bad(ps, "an axis size of 1 to 2^20");
            g->mesh.axis[g->mesh.naxes].name = arena_strdup(ps->a, axis);
            g->mesh.axis[g->mesh.naxes++].size = (int)size;
        } while (eat(ps, ","));
        TRY(need(ps, ")"));
    }
    if (eat(ps, "seq")) {
        TRY(need(ps, "("));
        TRY(parse_int(ps, &g->seq_valid));
        TRY(need(ps, "/"));
        TRY(parse_int(ps, &g->seq));
        TRY(need(ps, ")"));
        if (g->seq_valid < 1 || g->seq < g->seq_valid) return bad(ps, "seq(valid/padded)");
    }
    TRY(need(ps, "{"));
    value_map m = {.find = strmap_new(ps->a)};
    while (!eat(ps, "return")) {
        space(ps);
        if (!*ps->p || *ps->p == '}') return bad(ps, "return");
        TRY(parse_node(ps, g, &m));
    }
    while (!eat(ps, "}")) {
        char o[MAX_NAME];
        ir_val v = -1;
        if (g->outputs.n) TRY(need(ps, ","));
        TRY(parse_name(ps, o, sizeof o));
        TRY(need(ps, "="));
        TRY(parse_ref(ps, &m, &v));
        ir_set_output(g, o, v);
    }
    *out = g;
    return SP_OK;
}

sp_status ir_parse(arena *a, const char *text, const char *file, ir_graph **out) {
    parser ps = {.a = a, .p = text, .file = file, .line = 1};
    TRY(parse_graph(&ps, out));
    space(&ps);
    return *ps.p ? bad(&ps, "the end of the file") : SP_OK;
}
