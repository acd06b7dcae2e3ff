/* source.c - kernels as source text: the walk over passes and statements, the same for every dialect.
 *
 * A row's statements (one value a row) stand before the pass of their level; then come the columns, with what this pass
 * needs of them and its reductions, written for a block of vectors and for one; stores come behind all loads, with the
 * last pass or the first.
 */
#include "gen/dialect.h"

#include <ctype.h>

static const char *expression(const gen_stmt *s) {
    if (s->type == DT_BF16) return gen_near(s->op);
    switch (s->op) {
#define EXPR(name, text)                                                                                               \
    case OP_##name:                                                                                                    \
        return text;
#include "gen/expr.def"
#undef EXPR
    default:
        ASSERT(!"an op with an expression");
        return "";
    }
}

void gen_name(const gen_kernel *k, int i, int u, buf *out) {
    buf_printf(out, "v%d", i);
    if (u >= 0 && !k->s.data[i].row) buf_printf(out, "_%d", u);
}

/* An expression with x, y, z replaced by the arguments' variables. */
static void substitute(const gen_kernel *k, const char *text, const int *arg, int u, buf *out) {
    bool word = false; /* inside an identifier or a number */
    for (const char *c = text; *c; c++) {
        bool letter = isalnum((unsigned char)*c) || *c == '_';
        bool alone = !word && !isalnum((unsigned char)c[1]) && c[1] != '_';
        if (*c >= 'x' && *c <= 'z' && alone)
            gen_name(k, arg[*c - 'x'], u, out);
        else
            buf_write(out, c, 1);
        word = letter || (word && *c == '.');
    }
}

/* Is it 1 in the column whose number is a row's value, 0 in others? */
static bool is_here(const gen_kernel *k, int i) {
    const gen_stmt *s = &k->s.data[i];
    return s->kind == GEN_OP && s->op == OP_eq && k->s.data[s->arg[0]].kind == GEN_INDEX && k->s.data[s->arg[1]].row;
}

static void statement(const gen_dialect *d, const gen_kernel *k, int i, int u, buf *out) {
    const gen_stmt *s = &k->s.data[i];
    buf text = {0};
    switch (s->kind) {
    case GEN_LOAD:
        d->load(k, i, u, out);
        return;
    case GEN_ROUND:
        d->round(k, i, u, out);
        return;
    case GEN_INDEX:
        d->index(k, i, u, out);
        return;
    case GEN_OP:
        if (s->op == OP_select && is_here(k, s->arg[0])) {
            d->here(k, i, u, out);
            return;
        }
        substitute(k, expression(s), s->arg, u, &text);
        break;
    case GEN_CONST:
        buf_printf(&text, "k_number(%af)", (double)(float)s->value);
        break;
    case GEN_COLS:
        buf_printf(&text, "k_number((float)a->cols)");
        break;
    case GEN_NUMERATOR:
        d->numerator(k, i, u, out);
        return;
    case GEN_SUM:
    case GEN_MAX:
    case GEN_EXP_SUM:
    case GEN_PICK:
    case GEN_KINDS:
        ASSERT(!"not a statement of its own");
    }
    d->value(k, i, u, text.data, out);
    buf_free(&text);
}

static bool reduces(const gen_stmt *s, int level) { return gen_is_reduction(s->kind) && s->level == level; }

static void pick(const gen_dialect *d, const gen_kernel *k, int i, bool *needed, buf *out) {
    gen_pick_needs(k, i, needed);
    d->pick_open(k, i, out);
    for (int j = 0; j < i; j++)
        if (needed[j]) statement(d, k, j, GEN_ALONE, out);
    d->pick_close(k, i, out);
}

/* The columns of a pass, a block of vectors at a time or (0) what is left of the row. */
static void columns_of(const gen_dialect *d, const gen_kernel *k, int p, int block, const bool *needed, buf *out) {
    const int from = block ? 0 : GEN_ALONE, to = block ? block : GEN_ALONE + 1;
    d->open_columns(k, p, block, out);
    for (int i = 0; i < k->s.n; i++)
        for (int u = from; u < to && needed[i]; u++)
            if (p > 0 && k->s.data[i].kept)
                d->reload(k, i, u, out);
            else
                statement(d, k, i, u, out);
    for (int i = 0; i < k->s.n; i++)
        for (int u = from; u < to && reduces(&k->s.data[i], p + 1); u++) d->reduce(k, i, u, out);
    for (int i = 0; i < k->out.n; i++)
        for (int u = from; u < to && gen_stored_in(k, i, p); u++) d->store(k, i, u, out);
    d->close_columns(out);
}

static void pass(const gen_dialect *d, const gen_kernel *k, int p, bool *needed, buf *out) {
    for (int i = 0; i < k->s.n; i++) {
        const gen_stmt *s = &k->s.data[i];
        if (s->kind == GEN_PICK && s->level == p)
            pick(d, k, i, needed, out);
        else if (s->row && s->level == p && !gen_is_reduction(s->kind))
            statement(d, k, i, GEN_ALONE, out);
    }
    if (!gen_walks(k, p)) return;
    for (int i = 0; i < k->s.n; i++)
        if (reduces(&k->s.data[i], p + 1)) d->reduce_open(k, i, out);
    gen_pass_needs(k, p, needed);
    if (d->block) columns_of(d, k, p, d->block, needed, out);
    if (d->block > 2 && k->halves && k->levels == 0) columns_of(d, k, p, 2, needed, out);
    columns_of(d, k, p, 0, needed, out);
    for (int i = 0; i < k->s.n; i++)
        if (reduces(&k->s.data[i], p + 1)) d->reduce_close(k, i, out);
}

void gen_source_in(const gen_dialect *d, gen_kernel *const *k, int n, buf *out) {
    d->prelude(out);
    for (int i = 0; i < n; i++) {
        arena *a = arena_new();
        bool *needed = ARENA_ARRAY(a, bool, k[i]->s.n + 1);
        buf_printf(out, "\n/*\n");
        gen_print(k[i], out);
        buf_printf(out, "*/\n");
        d->open(k[i], out);
        for (int p = 0; p <= k[i]->levels; p++) pass(d, k[i], p, needed, out);
        for (int r = 0; r < k[i]->out.n; r++)
            if (k[i]->out.data[r].step == GEN_STILL) d->store(k[i], r, GEN_ALONE, out);
        d->close(k[i], out);
        arena_free(a);
    }
}

void gen_source(gen_kernel *const *k, int n, buf *out) { gen_source_in(&gen_dialect_c, k, n, out); }
