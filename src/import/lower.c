/* lower.c - the driver of the import: walks the exported graph node by node and hands each to its table row.
 *
 * Kept true on the way: every size is recomputed from the inputs' sizes (B and S) and compared with what the file
 * declares; every name of the exported graph stands for exactly one value at a time.
 *
 * In-place operators (`add_`) become their functional form; the names that denote the changed tensor get the new value.
 * A view of it that is read later is made again from the new value; a tensor of which it is itself a view, read later,
 * is refused, because the change would have to be written through.
 *
 * Regions (no_grad, disabled autocast) are inlined; what is computed without gradient mode passes through stop_grad.
 */
#include "import/lower.h"

#include "import/weights.h"

/* docs/ir.md: larger buffers stay parameters without gradient */
#define MAX_CONST 65536
/* Sizes of real models have a few terms, and there are some dozens of them. Beyond this a file means harm: expressions
 * share parts, so a short program can write one that nobody can walk. */
#define MAX_SIZE_TERMS 4096
#define MAX_SIZES 16384

/* ---- rows -------------------------------------------------------------------------------------------------- */

static void add_rows(lower *L, const lo_row *table) {
    for (; table->target; table++) {
        strmap_put(L->rows, table->target, L->row_list.n);
        vec_push(L->a, &L->row_list, table);
    }
}

const lo_row *lo_find_row(lower *L, const char *target, bool *inplace) {
    int64_t i;
    *inplace = false;
    if (!strncmp(target, "torch.ops.", 10)) target += 10;
    if (strmap_get(L->rows, target, &i)) return L->row_list.data[i];
    char name[128];
    if (!strncmp(target, "aten.__i", 8) && strlen(target) < sizeof name) { /* __iand__ of __and__ */
        snprintf(name, sizeof name, "aten.__%s", target + 8);
        *inplace = strmap_get(L->rows, name, &i);
        return *inplace ? L->row_list.data[i] : NULL;
    }
    const char *dot = strrchr(target, '.');
    int n = dot ? (int)(dot - target) : 0;
    if (n < 2 || target[n - 1] != '_' || strlen(target) >= sizeof name) return NULL;
    snprintf(name, sizeof name, "%.*s%s", n - 1, target, dot);
    *inplace = true;
    return strmap_get(L->rows, name, &i) ? L->row_list.data[i] : NULL;
}

bool lo_is_region(const char *target) {
    return !strcmp(target, "torch.ops.higher_order.wrap_with_set_grad_enabled") ||
           !strcmp(target, "torch.ops.higher_order.wrap_with_autocast");
}

/* ---- names and results --------------------------------------------------------------------------------------- */

static int find_index(lower *L, const char *name) {
    int64_t i;
    return strmap_get(L->scope->names, name, &i) ? (int)i : -1;
}

const lo_value *lo_find(lower *L, const char *name) {
    int i = find_index(L, name);
    return i < 0 ? NULL : &L->scope->vals.data[i];
}

void lo_bind(lower *L, const char *name, lo_value value) {
    int i = find_index(L, name);
    value.name = name;
    if (i >= 0) {
        L->scope->vals.data[i] = value;
        return;
    }
    strmap_put(L->scope->names, name, L->scope->vals.n);
    vec_push(L->a, &L->scope->vals, value);
}

/* The operand whose memory a view shares: the first tensor argument. */
static int viewed(lower *L) {
    for (int i = 0; i < L->n->n_in; i++)
        if (L->n->in[i].arg.kind == PT2_TENSOR) return find_index(L, L->n->in[i].arg.name);
    return -1;
}

/* The computed type must be the declared one: a wrong promotion or size is an error here and not a wrong number later.
 */
static ir_val agree(lower *L, const char *name, ir_val v) {
    int64_t i;
    if (v < 0 || L->failed || !strmap_get(L->scope->pg->meta_index, name, &i)) return v;
    const pt2_meta *m = &L->scope->pg->metas[i];
    const ir_type t = *lo_type(L, v);
    if ((m->scalar_type == PT2_COMPLEX64 || m->scalar_type == PT2_COMPLEX128) != (L->part != LO_WHOLE)) {
        lo_fail(L, "complex numbers are supported as rotary embeddings need them: views, products and view_as_real");
        return -1;
    }
    dtype want = lo_scalar_type(L, m->scalar_type);
    bool same = m->ndim == t.rank;
    for (int d = 0; same && d < t.rank; d++) {
        int64_t size;
        if (m->size[d]->op == SYM_INT && dim_value(L->g, t.dim[d], &size)) same = size == m->size[d]->value;
    }
    if (dtype_is_float(want) != dtype_is_float(t.t) || (want == DT_BOOL) != (t.t == DT_BOOL)) same = false;
    if (!same && !L->failed) {
        buf b = {0};
        ir_print_type(L->g, &t, NULL, &b);
        lo_fail(L, "it gives %s, which is not what the file declares for %s", b.data, name);
        buf_free(&b);
        return -1;
    }
    return L->row->flags & ROW_TYPE ? v : lo_cast(L, v, want);
}

static void return_named(lower *L, const char *name, ir_val v) {
    v = agree(L, name, v);
    if (L->no_grad) v = lo_stop_grad(L, v);
    if (v < 0 || L->failed) return;
    if (L->part == LO_IMAGINARY) { /* the real part has bound the name */
        int real = find_index(L, name);
        if (real < 0) return lo_fail(L, "a complex result without a real part");
        L->scope->vals.data[real].im = v;
        return;
    }
    lo_value value = {
        .kind = LO_TENSOR, .v = v, .im = v, .complex = L->part == LO_REAL, .maker = L->scope->at, .base = -1};
    int base = L->row->flags & (ROW_VIEW | ROW_MAYBE) ? viewed(L) : -1;
    value.store = base >= 0 ? L->scope->vals.data[base].store : L->stores++;
    if (L->row->flags & ROW_VIEW) value.base = base;
    lo_bind(L, name, value);
}

void lo_return(lower *L, int i, ir_val v) {
    if (L->failed) return;
    if (v < 0) return lo_fail(L, "it has no result");
    if (i >= L->n->n_out || L->n->out[i].kind != PT2_TENSOR) {
        if (i == 0) lo_fail(L, "its result is not a tensor");
        return;
    }
    return_named(L, L->n->out[i].name, v);
}

void lo_return_list(lower *L, int n, const ir_val *v) {
    if (L->failed) return;
    const pt2_node *node = L->n;
    bool list = node->n_out == 1 && node->out[0].kind == PT2_TENSORS;
    if ((list ? node->out[0].n : node->n_out) != n)
        return lo_fail(L, "it gives %d tensors, not as many as declared", n);
    for (int i = 0; i < n; i++) {
        const char *name = list ? node->out[0].names[i] : node->out[i].kind == PT2_TENSOR ? node->out[i].name : NULL;
        if (name) return_named(L, name, v[i]);
    }
}

void lo_return_size(lower *L, ir_dim d) {
    if (L->failed) return;
    if (L->n->n_out != 1 || L->n->out[0].kind != PT2_SYM_INT) return; /* a constant: nobody reads it by name */
    lo_bind(L, L->n->out[0].name, (lo_value){.kind = LO_SIZE, .d = d, .maker = L->scope->at, .base = -1});
}

/* ---- in place ---------------------------------------------------------------------------------------------------- */

static bool read_later(lower *L, const char *name) {
    int64_t last;
    return strmap_get(L->scope->last_use, name, &last) && last > L->scope->at;
}

static void run_row(lower *L, int node) {
    const pt2_node *n = L->n;
    const lo_row *row = L->row;
    int at = L->scope->at;
    bool inplace;
    L->n = &L->scope->pg->nodes[node];
    L->row = lo_find_row(L, L->n->target, &inplace);
    L->scope->at = node;
    if (L->row && !inplace && lo_is_complex(L))
        lo_complex(L, false);
    else if (L->row && !inplace)
        L->row->fn(L, L->row);
    else
        lo_fail(L, "a view of it cannot be made again");
    L->n = n, L->row = row, L->scope->at = at;
}

/* After the functional form of an in-place node has run: every name of the changed tensor gets its new value. */
static void rename_changed(lower *L) {
    if (L->failed) return;
    lo_scope *s = L->scope;
    const char *self_name = L->n->n_in && L->n->in[0].arg.kind == PT2_TENSOR ? L->n->in[0].arg.name : "";
    int self = find_index(L, self_name);
    int result = L->n->n_out == 1 && L->n->out[0].kind == PT2_TENSOR ? find_index(L, L->n->out[0].name) : -1;
    if (self < 0 || result < 0) return lo_fail(L, "an in-place operator without a target");
    const lo_value old = s->vals.data[self];
    for (int i = 0; old.maker < 0 && s->pg == L->p->graph && i < L->p->n_in; i++)
        if (!strcmp(L->p->in[i].value, self_name))
            return lo_fail(L, "it changes %s (%s) in place; training needs a model whose forward pass changes no state",
                           L->p->in[i].fqn ? L->p->in[i].fqn : "the input", self_name);
    if (old.maker < 0) return lo_fail(L, "it changes %s, which is made outside of this region, in place", self_name);
    const ir_type t = *lo_type(L, old.v);
    ir_val v = lo_expand(L, lo_cast(L, s->vals.data[result].v, t.t), t.rank, t.dim);
    for (int i = 0; i < s->vals.n; i++) {
        lo_value *w = &s->vals.data[i];
        w->redone = i == self || i == result || (w->kind == LO_TENSOR && w->store == old.store && w->v == old.v);
        if (w->redone) w->v = v, w->store = old.store;
    }
    /* Views come after what they are views of, so one pass in order reaches them all. */
    for (int i = 0; i < s->vals.n && !L->failed; i++) {
        const lo_value w = s->vals.data[i];
        if (w.redone || w.kind != LO_TENSOR || w.store != old.store || w.maker < 0) continue;
        if (w.base >= 0 && s->vals.data[w.base].redone) {
            run_row(L, w.maker);
            for (int k = 0; k < s->vals.n; k++)
                if (s->vals.data[k].maker == w.maker && s->vals.data[k].base == w.base) s->vals.data[k].redone = true;
        } else if (read_later(L, w.name)) {
            lo_fail(L, "it changes %s in place while %s, which may share its memory, is read later", self_name, w.name);
        }
    }
}

/* ---- graphs --------------------------------------------------------------------------------------------------------
 */

static void note_uses(lower *L, lo_scope *s) {
    const pt2_graph *pg = s->pg;
    s->last_use = strmap_new(L->a);
    for (int i = 0; i <= pg->n_nodes; i++) {
        int n = i < pg->n_nodes ? pg->nodes[i].n_in : pg->n_out;
        if (i < pg->n_nodes && !s->live[i]) continue;
        for (int k = 0; k < n; k++) {
            const pt2_arg *a = i < pg->n_nodes ? &pg->nodes[i].in[k].arg : &pg->out[k];
            if (a->kind == PT2_TENSOR) strmap_put(s->last_use, a->name, i);
            for (int j = 0; a->kind == PT2_TENSORS && j < a->n; j++)
                if (a->names[j]) strmap_put(s->last_use, a->names[j], i);
        }
    }
}

static lo_scope *open_scope(lower *L, const pt2_graph *pg) {
    lo_scope *s = ARENA_NEW(L->a, lo_scope);
    s->pg = pg, s->names = strmap_new(L->a), s->live = lo_live_nodes(L->a, pg);
    note_uses(L, s);
    return s;
}

static sp_status run_nodes(lower *L);

/* Inlines the graph of a higher-order node: its inputs are the arguments behind it. */
static sp_status run_region(lower *L) {
    const pt2_node *n = L->n;
    int g = 0;
    bool flag = false, autocast = strstr(n->target, "autocast") != NULL;
    for (; g < n->n_in && n->in[g].arg.kind != PT2_GRAPH; g++)
        if (n->in[g].arg.kind == PT2_BOOL && (!autocast || g == 2 || !strcmp(n->in[g].name, "enabled")))
            flag = n->in[g].arg.i;
    CHECK(g < n->n_in, "a region without a graph");
    CHECK(!autocast || !flag, "an active autocast region; export the model in one element type, without autocast");
    const pt2_graph *pg = n->in[g].arg.graph;
    CHECK(pg->n_in == n->n_in - g - 1 && pg->n_out == n->n_out, "a region with other inputs or outputs than its node");

    lo_scope *inner = open_scope(L, pg), *outer = L->scope;
    for (int i = 0; i < pg->n_in; i++) {
        const pt2_arg *from = &n->in[g + 1 + i].arg, *to = &pg->in[i];
        lo_value v = {.kind = LO_TENSOR, .base = -1};
        if (to->kind == PT2_TENSOR && from->kind == PT2_TENSOR) {
            const lo_value *o = lo_find(L, from->name);
            CHECK(o && o->kind == LO_TENSOR, "it reads the value %s, which nothing has made", from->name);
            v = *o;
        } else if (to->kind == PT2_SYM_INT) {
            v.kind = LO_SIZE;
            v.d = lo_size(L, from);
        } else {
            continue; /* a constant: the region's nodes hold it themselves */
        }
        v.maker = v.base = -1;
        L->scope = inner;
        lo_bind(L, to->name, v);
        L->scope = outer;
    }
    if (L->failed) return SP_FAIL;
    bool no_grad = L->no_grad;
    if (!autocast) L->no_grad = !flag;
    L->scope = inner;
    sp_status s = run_nodes(L);
    L->scope = outer;
    L->no_grad = no_grad;
    L->n = n;
    TRY(s);
    for (int i = 0; i < n->n_out; i++) {
        const pt2_arg *from = &pg->out[i], *to = &n->out[i];
        int64_t k;
        if (from->kind != to->kind || (to->kind != PT2_TENSOR && to->kind != PT2_SYM_INT)) continue;
        CHECK(strmap_get(inner->names, from->name, &k), "it returns %s, which nothing has made", from->name);
        lo_value v = inner->vals.data[k];
        v.maker = outer->at, v.base = -1;
        lo_bind(L, to->name, v);
    }
    return SP_OK;
}

static sp_status run_node(lower *L, int i) {
    L->scope->at = i;
    L->n = &L->scope->pg->nodes[i];
    if (lo_is_region(L->n->target)) return run_region(L);
    bool inplace;
    L->row = lo_find_row(L, L->n->target, &inplace);
    ASSERT(L->row); /* lo_check_operators */
    if (lo_is_complex(L))
        lo_complex(L, inplace);
    else
        L->row->fn(L, L->row);
    if (inplace) rename_changed(L);
    return L->failed ? SP_FAIL : SP_OK;
}

/* Refuses size expressions that have grown out of hand; called after each node. */
static sp_status check_expressions(lower *L) {
    CHECK(L->g->exprs.n <= MAX_SIZES, "the model has more than %d different sizes", MAX_SIZES);
    while (L->expr_size.n < L->g->exprs.n) {
        const dim_expr *e = &L->g->exprs.data[L->expr_size.n];
        int n = 1;
        bool leaf = e->kind == DIM_CONST || e->kind == DIM_SYMBOL;
        if (!leaf && e->a < 0) n += L->expr_size.data[-e->a - 1];
        if (!leaf && e->b < 0) n += L->expr_size.data[-e->b - 1];
        CHECK(n <= MAX_SIZE_TERMS, "a size of the model has more than %d terms", MAX_SIZE_TERMS);
        vec_push(L->a, &L->expr_size, n);
    }
    return SP_OK;
}

static sp_status run_nodes(lower *L) {
    const pt2_graph *pg = L->scope->pg;
    for (int i = 0; i < pg->n_nodes; i++) {
        if (!L->scope->live[i]) continue;
        int node = L->g->nodes.n, value = L->g->values.n;
        const pt2_node *n = &pg->nodes[i];
        const char *src = pt2_source(L->a, n);
        if (run_node(L, i) != SP_OK || check_expressions(L) != SP_OK) {
            err_note("%s (node %d%s%s)", strncmp(n->target, "torch.ops.", 10) ? n->target : n->target + 10, i,
                     *src ? ", " : "", src);
            return SP_FAIL;
        }
        for (; node < L->g->nodes.n; node++)
            if (!L->g->nodes.data[node].src && *src) L->g->nodes.data[node].src = src;
        const lo_value *v = n->n_out == 1 && n->out[0].kind == PT2_TENSOR ? lo_find(L, n->out[0].name) : NULL;
        if (v && v->v >= value) L->g->values.data[v->v].name = arena_strdup(L->a, v->name);
    }
    return SP_OK;
}

/* ---- inputs
 * ---------------------------------------------------------------------------------------------------------- */

static const pt2_meta *meta_of(lower *L, const char *name) {
    int64_t i;
    return strmap_get(L->p->graph->meta_index, name, &i) ? &L->p->graph->metas[i] : NULL;
}

/* The symbol behind a size expression stands for D, or for a part of it: `2*s` for a length that must be even. */
static sp_status learn_symbol(lower *L, const char *input, const sym_expr *e, ir_dim d) {
    if (e->op == SYM_INT) return SP_OK;
    if (e->op == SYM_MUL && e->n == 2 && e->arg[0]->op == SYM_INT && e->arg[0]->value > 0) {
        d = dim_floordiv(L->g, d, dim_const(L->g, e->arg[0]->value));
        e = e->arg[1];
    }
    CHECK(e->op == SYM_SYMBOL,
          "%s: input %s has a size that is no plain symbol; export with plain batch and sequence dimensions",
          L->p->path, input);
    for (int i = 0; i < L->symbols.n; i++)
        if (!strcmp(L->symbols.data[i].name, e->name)) return SP_OK;
    lo_symbol s = {e->name, d};
    vec_push(L->a, &L->symbols, s);
    return SP_OK;
}

/* B and S, from input_ids: symbols where the export left them open. */
static sp_status find_sizes(lower *L, import_info *info) {
    const pt2_meta *m = meta_of(L, "input_ids");
    CHECK(m && m->ndim == 2,
          "%s: the model has no input input_ids of shape (batch, sequence); export a module whose forward takes "
          "input_ids and labels (tools/export.py does)",
          L->p->path);
    ir_dim *dim[2] = {&L->batch, &L->seq};
    int64_t *fixed[2] = {&info->batch, &info->seq};
    for (int i = 0; i < 2; i++) {
        if (m->size[i]->op == SYM_INT) {
            *fixed[i] = m->size[i]->value;
            CHECK(*fixed[i] > 0 && *fixed[i] < (int64_t)1 << 40, "%s: input_ids of impossible size", L->p->path);
            *dim[i] = dim_const(L->g, *fixed[i]);
        } else {
            *dim[i] = dim_symbol(L->g, i ? "S" : "B");
        }
    }
    info->seq_min = info->seq ? info->seq : 1, info->seq_max = info->seq ? info->seq : INT64_MAX;
    for (int i = 0; i < L->p->n_ranges && m->size[1]->op == SYM_SYMBOL; i++)
        if (!strcmp(L->p->ranges[i].symbol, m->size[1]->name)) {
            info->seq_min = max64(1, L->p->ranges[i].lo);
            info->seq_max = L->p->ranges[i].hi;
        }
    return SP_OK;
}

static sp_status user_input(lower *L, const char *name, import_info *info) {
    static const char *const known[] = {"input_ids", "labels", "position_ids", "document_ids", "prefix_lengths"};
    bool ok = false, rows = !strcmp(name, "prefix_lengths"); /* one number a row */
    for (int i = 0; i < 5; i++) ok |= !strcmp(name, known[i]);
    CHECK(ok,
          "%s: the model takes an input %s; training gives input_ids, labels, position_ids, document_ids and "
          "prefix_lengths",
          L->p->path, name);
    const pt2_meta *m = meta_of(L, name);
    dtype t;
    CHECK(m && m->ndim == (rows ? 1 : 2) && pt2_dtype(m->scalar_type, &t) && t == DT_I64,
          "%s: input %s must be int64 of shape (batch%s)", L->p->path, name, rows ? "" : ", sequence");
    TRY(learn_symbol(L, name, m->size[0], L->batch));
    if (!rows) TRY(learn_symbol(L, name, m->size[1], L->seq));
    ir_type type = {.t = DT_I64, .rank = m->ndim, .dim = {L->batch, L->seq}};
    for (int i = 0; i < m->ndim; i++)
        if (m->size[i]->op == SYM_INT && m->size[i]->value == 1) type.dim[i] = 1;
    CHECK(rows || type.dim[1] == L->seq, "%s: input %s has another length than input_ids", L->p->path, name);
    const ir_attr attr[] = {A_S("name", name), A_I("seq", 1)};
    ir_val v = lo_emit(L, OP_input, NULL, 0, attr, rows ? 1 : 2, &type);
    if (v < 0) return SP_FAIL;
    L->g->values.data[v].name = arena_strdup(L->a, name);
    lo_bind(L, name, (lo_value){.kind = LO_TENSOR, .v = v, .store = L->stores++, .maker = -1, .base = -1});
    if (!strcmp(name, "input_ids")) L->ids = v;
    if (!strcmp(name, "labels")) L->labels = v;
    if (!strcmp(name, "position_ids")) info->position_ids = true;
    if (!strcmp(name, "document_ids")) info->document_ids = true;
    return SP_OK;
}

/* ---- parameters and constants
 * -------------------------------------------------------------------------------------------- */

/* The first name of the parameter that weight I is a name of. */
static int canonical(const pt2 *p, int i) {
    i = p->weights[i].tied;
    for (int k = 0; k < p->n_tied; k++) {
        int64_t to;
        if (!strcmp(p->tied_from[k], p->weights[i].fqn) && strmap_get(p->weight_index, p->tied_to[k], &to)) {
            const pt2_weight *a = &p->weights[i], *b = &p->weights[to];
            bool same = a->ndim == b->ndim && a->scalar_type == b->scalar_type;
            for (int d = 0; same && d < a->ndim; d++) same = a->size[d] == b->size[d];
            if (same) return p->weights[to].tied;
        }
    }
    return i;
}

static sp_status weight_type(lower *L, const pt2_weight *w, ir_type *t) {
    CHECK(w->ndim <= IR_MAX_RANK, "%s: %s has %d dimensions; at most %d are supported", L->p->path, w->fqn, w->ndim,
          IR_MAX_RANK);
    *t = (ir_type){.rank = w->ndim};
    for (int i = 0; i < w->ndim; i++) t->dim[i] = w->size[i];
    t->t = lo_scalar_type(L, w->scalar_type);
    return L->failed ? (err_note("%s: weight %s", L->p->path, w->fqn), SP_FAIL) : SP_OK;
}

static ir_val emit_param(lower *L, const char *name, const ir_type *t, bool grad) {
    ir_val v = lo_emit(L, OP_param, NULL, 0, ATTRS(A_S("name", name), A_I("grad", grad)), t);
    if (v >= 0) L->needs_grad.data[v] = grad;
    return v;
}

static sp_status parameter(lower *L, const pt2_in_spec *in, strmap *seen, import_info *info) {
    int64_t i;
    const pt2 *p = L->p;
    CHECK(strmap_get(p->weight_index, in->fqn, &i),
          "%s: the archive does not describe the parameter %s; export it again", p->path, in->fqn);
    int c = canonical(p, (int)i);
    const pt2_weight *w = &p->weights[c];
    int64_t at;
    if (!strmap_get(seen, w->fqn, &at)) {
        ir_type t;
        TRY(weight_type(L, w, &t));
        CHECK(!w->complex, "%s: parameter %s is complex; only real parameters can be trained", p->path, w->fqn);
        CHECK(dtype_is_float(t.t), "%s: parameter %s is %s; only floating-point parameters can be trained", p->path,
              w->fqn, pt2_dtype_name(w->scalar_type));
        ir_val v = emit_param(L, w->fqn, &t, w->requires_grad);
        if (v < 0) return SP_FAIL;
        at = v;
        strmap_put(seen, w->fqn, v);
        info->params[info->n_params++] = (import_param){.name = w->fqn, .weight = c, .trainable = w->requires_grad};
    }
    lo_bind(L, in->value,
            (lo_value){.kind = LO_TENSOR, .v = (ir_val)at, .store = L->stores++, .maker = -1, .base = -1});
    return SP_OK;
}

static sp_status buffer(lower *L, const pt2_in_spec *in, wt_source *source) {
    int64_t i;
    const pt2 *p = L->p;
    if (!strmap_get(L->scope->last_use, in->value, NULL)) return SP_OK; /* nobody reads it */
    CHECK(strmap_get(p->weight_index, in->fqn, &i), "%s: the archive does not hold the buffer %s; export it again",
          p->path, in->fqn);
    const pt2_weight *w = &p->weights[i];
    ir_type t;
    TRY(weight_type(L, w, &t));
    int64_t n = 1;
    for (int d = 0; d < w->ndim; d++) n *= w->size[d]; /* does not overflow: pt2_weights.c */
    ir_val v;
    if (w->absent || n > MAX_CONST) {
        v = emit_param(L, w->fqn, &t, false);
    } else {
        wt_tensor x;
        TRY(wt_find(source, w->fqn, &x));
        double *data = ARENA_ARRAY(L->a, double, n + 1);
        wt_read(&x, 0, n, DT_F64, data);
        if (n == 1)
            v = lo_fill(L, t.t, data[0], t.rank, t.dim);
        else
            v = lo_emit(L, OP_const, NULL, 0, ATTRS(A_DATA("data", (int)n, data)), &t);
    }
    if (v < 0) return SP_FAIL;
    if (!L->g->values.data[v].name) L->g->values.data[v].name = arena_strdup(L->a, w->fqn);
    lo_value value = {.kind = LO_TENSOR, .v = v, .store = L->stores++, .maker = -1, .base = -1};
    if (w->complex)
        lo_complex_bind(L, in->value, v, value);
    else
        lo_bind(L, in->value, value);
    return L->failed ? SP_FAIL : SP_OK;
}

/* Does a node need the elements of this input, not its sizes alone? */
static bool is_read(lower *L, const char *input) {
    const pt2_graph *pg = L->scope->pg;
    for (int i = 0; i < pg->n_nodes; i++) {
        bool inplace;
        const lo_row *row = lo_find_row(L, pg->nodes[i].target, &inplace);
        if (!L->scope->live[i] || (row && row->flags & ROW_SIZE)) continue;
        for (int k = 0; k < pg->nodes[i].n_in; k++) {
            const pt2_arg *a = &pg->nodes[i].in[k].arg;
            if (a->kind == PT2_TENSOR && !strcmp(a->name, input)) return true;
            for (int j = 0; a->kind == PT2_TENSORS && j < a->n; j++)
                if (a->names[j] && !strcmp(a->names[j], input)) return true;
        }
    }
    return false;
}

static sp_status bind_inputs(lower *L, import_info *info) {
    const pt2 *p = L->p;
    strmap *seen = strmap_new(L->a);
    info->params = ARENA_ARRAY(L->a, import_param, p->n_in);
    wt_source *source;
    TRY(wt_open(p, NULL, &source));
    sp_status s = SP_OK;
    for (int i = 0; i < p->n_in && s == SP_OK; i++) {
        const pt2_in_spec *in = &p->in[i];
        if (in->kind == PT2_IN_PARAM) s = parameter(L, in, seen, info);
        if (in->kind == PT2_IN_BUFFER || in->kind == PT2_IN_CONSTANT) s = buffer(L, in, source);
        if (in->kind == PT2_IN_USER) s = user_input(L, in->value, info);
    }
    wt_close(source);
    L->one_input = L->ids >= 0 && L->labels >= 0 && is_read(L, "input_ids") != is_read(L, "labels");
    return s;
}

/* ---- the loss
 * --------------------------------------------------------------------------------------------------------------- */

/* The result as one quotient whose denominator no gradient reaches (docs/ir.md, "The loss"). */
static sp_status finish(lower *L) {
    const pt2_arg *out = &L->p->graph->out[L->p->loss_output];
    const lo_value *v = out->kind == PT2_TENSOR ? lo_find(L, out->name) : NULL;
    CHECK(v && v->kind == LO_TENSOR, "%s: the model does not return a tensor", L->p->path);
    ir_val loss = v->v;
    const ir_type t = *lo_type(L, loss);
    CHECK(t.rank == 0 && dtype_is_float(t.t),
          "%s: the model returns a tensor of rank %d, not its loss; export a module that returns only the loss "
          "(tools/export.py does)",
          L->p->path, t.rank);
    CHECK(lo_needs_grad(L, loss), "%s: the loss depends on no trainable parameter", L->p->path);
    ir_val root = loss;
    while (ir_opof(L->g, root) == OP_cast || ir_opof(L->g, root) == OP_reshape) root = ir_def(L->g, root)->in[0];
    const ir_node *n = ir_def(L->g, root);
    if (n->op == OP_div && lo_type(L, root)->rank == 0 && !lo_needs_grad(L, n->in[1]))
        loss = root;
    else
        loss = lo_op2(L, OP_div, loss, lo_number(L, t.t, 1), NO_ATTRS);
    if (loss < 0) return SP_FAIL;
    ir_set_output(L->g, "loss", loss);
    return SP_OK;
}

static void mark_used(const ir_graph *g, import_info *info) {
    for (int i = 0; i < g->nodes.n; i++)
        for (int k = 0; g->nodes.data[i].op == OP_param && k < info->n_params; k++)
            if (!strcmp(ir_str(&g->nodes.data[i], "name"), info->params[k].name)) info->params[k].used = true;
}

static sp_status lower_program(arena *a, const pt2 *p, ir_graph **out, import_info *info) {
    lower L = {.a = a, .p = p, .g = ir_new(a, ziparc_root(p->zip)), .rows = strmap_new(a), .ids = -1, .labels = -1};
    add_rows(&L, lower_views);
    add_rows(&L, lower_math);
    add_rows(&L, lower_nn);
    add_rows(&L, lower_index);
    add_rows(&L, lower_compose);
    add_rows(&L, lower_complex);
    TRY(lo_check_operators(&L));
    L.scope = open_scope(&L, p->graph);
    TRY(find_sizes(&L, info));
    TRY(bind_inputs(&L, info));
    TRY_NOTE(run_nodes(&L), "%s", p->path);
    TRY(finish(&L));
    info->labels_shifted = p->labels ? !strcmp(p->labels, "shifted") : !L.shift_seen;
    *out = ir_dce(L.g);
    mark_used(*out, info);
    return ir_verify(*out, "import");
}

sp_status import_pt2(arena *a, const char *path, ir_graph **out, import_info *info) {
    *info = (import_info){0};
    TRY(pt2_open(path, &info->program));
    if (lower_program(a, info->program, out, info) == SP_OK) return SP_OK;
    import_close(info);
    return SP_FAIL;
}

void import_close(import_info *info) {
    pt2_close(info->program);
    info->program = NULL;
}
