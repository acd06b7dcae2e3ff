/* kernel.c - builds kernels of the kernel language: statements, levels, passes, text.
 *
 * Equal statements are made once, so a value that two members of a group compute, or an operand that two of them load,
 * costs once. Requires: arguments are earlier statements. Keeps: the order in which results were added.
 */
#include "gen/kernel.h"

static const char *const kind_name[GEN_KINDS] = {"load", "const", "cols",       "index",     "",    "round",
                                                 "sum",  "max",   "sum of exp", "numerator", "pick"};

gen_kernel *gen_new(arena *a) {
    gen_kernel *k = ARENA_NEW(a, gen_kernel);
    k->a = a;
    return k;
}

static bool same(const gen_stmt *a, const gen_stmt *b) {
    bool equal = a->kind == b->kind && a->op == b->op && a->nargs == b->nargs && a->type == b->type &&
                 memcmp(&a->value, &b->value, sizeof a->value) == 0;
    for (int i = 0; i < 4 && equal; i++) equal = a->arg[i] == b->arg[i];
    return equal;
}

static int add(gen_kernel *k, gen_stmt s) {
    for (int i = 0; i < k->s.n; i++)
        if (same(&k->s.data[i], &s)) return i;
    s.row =
        s.kind == GEN_LOAD ? k->in.data[s.arg[0]].step == GEN_STILL : s.kind != GEN_INDEX && s.kind != GEN_NUMERATOR;
    for (int i = 0; s.kind != GEN_LOAD && i < s.nargs; i++) {
        const gen_stmt *x = &k->s.data[s.arg[i]];
        s.row &= x->row;
        if (x->level > s.level) s.level = x->level;
    }
    if (gen_is_reduction(s.kind)) s.level++;
    s.row |= gen_is_reduction(s.kind) || s.kind == GEN_PICK;
    vec_push(k->a, &k->s, s);
    return k->s.n - 1;
}

int gen_load(gen_kernel *k, int operand) {
    return add(k, (gen_stmt){.kind = GEN_LOAD, .nargs = 1, .arg = {operand}, .type = k->in.data[operand].type});
}
int gen_const(gen_kernel *k, double v) { return add(k, (gen_stmt){.kind = GEN_CONST, .value = v}); }
int gen_cols(gen_kernel *k) { return add(k, (gen_stmt){.kind = GEN_COLS}); }
int gen_index(gen_kernel *k) { return add(k, (gen_stmt){.kind = GEN_INDEX}); }
int gen_op1(gen_kernel *k, ir_op op, int x) {
    return add(k, (gen_stmt){.kind = GEN_OP, .op = op, .nargs = 1, .arg = {x}});
}
int gen_op2(gen_kernel *k, ir_op op, int x, int y) {
    return add(k, (gen_stmt){.kind = GEN_OP, .op = op, .nargs = 2, .arg = {x, y}});
}
int gen_op3(gen_kernel *k, ir_op op, int x, int y, int z) {
    return add(k, (gen_stmt){.kind = GEN_OP, .op = op, .nargs = 3, .arg = {x, y, z}});
}

const char *gen_near(ir_op op) {
    switch (op) {
#define EXPR(name, text)
#define EXPR_NEAR(name, text)                                                                                          \
    case OP_##name:                                                                                                    \
        return text;
#include "gen/expr.def"
#undef EXPR
    default:
        return NULL;
    }
}
int gen_op_for(gen_kernel *k, ir_op op, int n, const int *arg, dtype t) {
    gen_stmt s = {.kind = GEN_OP, .op = op, .nargs = n};
    memcpy(s.arg, arg, sizeof *arg * (size_t)n);
    if (t == DT_BF16 && gen_near(op)) s.type = t;
    return add(k, s);
}

int gen_round(gen_kernel *k, int x, dtype t) {
    const gen_stmt *s = &k->s.data[x];
    if ((s->kind == GEN_LOAD || s->kind == GEN_ROUND) && s->type == t) return x;
    return add(k, (gen_stmt){.kind = GEN_ROUND, .nargs = 1, .arg = {x}, .type = t});
}

/* Has the statement a value of this type, whatever op made it? */
static bool holds(const gen_stmt *s, dtype t) { return (s->kind == GEN_LOAD || s->kind == GEN_ROUND) && s->type == t; }

int gen_reduce(gen_kernel *k, gen_kind kind, int x) {
    gen_stmt s = {.kind = kind, .nargs = 1, .arg = {x}};
    if (kind == GEN_EXP_SUM && holds(&k->s.data[x], DT_BF16)) s.type = DT_BF16;
    return add(k, s);
}

int gen_numerator(gen_kernel *k, int x, int top, int scale) {
    ASSERT(k->s.data[scale].row);
    if (k->s.data[x].row) /* a row of one column */
        return gen_op2(k, OP_mul, gen_op1(k, OP_exp, gen_op2(k, OP_sub, x, top)), scale);
    return add(k, (gen_stmt){.kind = GEN_NUMERATOR, .nargs = 4, .arg = {x, top, gen_reduce(k, GEN_EXP_SUM, x), scale}});
}

int gen_pick(gen_kernel *k, int x, int column) {
    return add(k, (gen_stmt){.kind = GEN_PICK, .nargs = 2, .arg = {x, column}});
}

/* Drops statements that no result needs and numbers the rest anew. */
static void sweep(gen_kernel *k) {
    int *to = ARENA_ARRAY(k->a, int, k->s.n + 1), n = 0;
    for (int i = 0; i < k->out.n; i++) to[k->out.data[i].value] = 1;
    for (int i = k->s.n - 1; i >= 0; i--)
        for (int j = 0; to[i] && k->s.data[i].kind != GEN_LOAD && j < k->s.data[i].nargs; j++)
            to[k->s.data[i].arg[j]] = 1;
    for (int i = 0; i < k->s.n; i++) {
        if (!to[i]) continue;
        gen_stmt s = k->s.data[i];
        for (int j = 0; s.kind != GEN_LOAD && j < s.nargs; j++) s.arg[j] = to[s.arg[j]];
        to[i] = n;
        k->s.data[n++] = s;
    }
    k->s.n = n;
    for (int i = 0; i < k->out.n; i++) k->out.data[i].value = to[k->out.data[i].value];
}

/* Has memory the statement's very bits, once it is stored as this type? */
static bool same_bits(const gen_stmt *s, dtype t) {
    return s->kind == GEN_LOAD || s->kind == GEN_ROUND ? s->type == t : t == DT_F32;
}

/* Chooses the results that the first pass stores: all that could be, if later passes then load only what is the same in
 * every row. */
static void keep_first(gen_kernel *k) {
    bool *needed = ARENA_ARRAY(k->a, bool, k->s.n + 1), any = false, safe = k->levels > 0;
    for (int i = 0; i < k->s.n; i++) safe &= k->s.data[i].kind != GEN_PICK;
    for (int i = 0; safe && i < k->out.n; i++) {
        const gen_result *r = &k->out.data[i];
        gen_stmt *s = &k->s.data[r->value];
        if (r->store != GEN_STORE || r->step != GEN_UNIT || s->level > 0 || s->row || !same_bits(s, r->type)) continue;
        s->kept = i + 1;
        any = true;
    }
    for (int p = 1; any && safe && p <= k->levels; p++) {
        gen_pass_needs(k, p, needed);
        for (int i = 0; i < k->s.n; i++) {
            const gen_stmt *s = &k->s.data[i];
            safe &= !needed[i] || s->kept || s->kind != GEN_LOAD || k->in.data[s->arg[0]].fixed;
        }
    }
    for (int i = 0; !safe && i < k->s.n; i++) k->s.data[i].kept = 0;
}

int gen_terms(const gen_kernel *k, int exp_sum) {
    int before = 0;
    for (int i = 0; i < exp_sum; i++) before += k->s.data[i].kind == GEN_EXP_SUM;
    for (int i = exp_sum; i < k->s.n; i++)
        if (k->s.data[i].kind == GEN_NUMERATOR && k->s.data[i].arg[2] == exp_sum) return before;
    return -1;
}

bool gen_stored_first(const gen_kernel *k, int i) { return k->s.data[k->out.data[i].value].kept == i + 1; }

bool gen_stored_in(const gen_kernel *k, int i, int pass) {
    return k->out.data[i].step != GEN_STILL && pass == (gen_stored_first(k, i) ? 0 : k->levels);
}

bool gen_walks(const gen_kernel *k, int pass) {
    for (int i = 0; i < k->s.n; i++)
        if (gen_is_reduction(k->s.data[i].kind) && k->s.data[i].level == pass + 1) return true;
    for (int i = 0; i < k->out.n; i++)
        if (gen_stored_in(k, i, pass)) return true;
    return false;
}

void gen_finish(gen_kernel *k) {
    sweep(k);
    for (int i = 0; i < k->s.n; i++)
        if (k->s.data[i].level > k->levels) k->levels = k->s.data[i].level;
    keep_first(k);
    for (int i = 0; i < k->out.n; i++) k->columns += k->out.data[i].store >= GEN_COLUMNS;
    for (int i = 0; i < k->in.n; i++) k->labels |= k->in.data[i].labels;
    for (int i = 0; i < k->s.n; i++)
        if (k->s.data[i].kind == GEN_EXP_SUM) k->terms = (int)max64(k->terms, gen_terms(k, i) + 1);
    k->whole_rows = k->levels > 0 || k->columns > 0;
    for (int i = 0; i < k->s.n; i++) k->whole_rows |= k->s.data[i].kind == GEN_PICK;
    buf text = {0};
    gen_print(k, &text);
    k->hash = hash_bytes(HASH_INIT, text.data, text.n);
    buf_free(&text);
}

/* Adds the elements that needed ones are made of; rows' values are not elements. */
static void elements_behind(const gen_kernel *k, int pass, bool *needed) {
    for (int i = k->s.n - 1; i >= 0; i--) {
        const gen_stmt *s = &k->s.data[i];
        if (s->row) needed[i] = false;
        if ((s->kept && pass > 0) || s->kind == GEN_NUMERATOR) continue;
        for (int j = 0; needed[i] && s->kind != GEN_LOAD && j < s->nargs; j++) needed[s->arg[j]] = true;
    }
}

void gen_pass_needs(const gen_kernel *k, int pass, bool *needed) {
    memset(needed, 0, sizeof *needed * (size_t)k->s.n);
    for (int i = 0; i < k->out.n; i++)
        if (pass == (gen_stored_first(k, i) ? 0 : k->levels)) needed[k->out.data[i].value] = true;
    for (int i = 0; i < k->s.n; i++)
        if (gen_is_reduction(k->s.data[i].kind) && k->s.data[i].level == pass + 1) needed[k->s.data[i].arg[0]] = true;
    elements_behind(k, pass, needed);
}

void gen_pick_needs(const gen_kernel *k, int pick, bool *needed) {
    memset(needed, 0, sizeof *needed * (size_t)k->s.n);
    needed[k->s.data[pick].arg[0]] = true;
    elements_behind(k, 0, needed);
}

void gen_print(const gen_kernel *k, buf *out) {
    static const char *const step[] = {"", " still", " strided"};
    static const char *const store[] = {"store", "add", "columns", "columns+"};
    if (k->halves) buf_printf(out, "  halves\n");
    for (int i = 0; i < k->s.n; i++) {
        const gen_stmt *s = &k->s.data[i];
        buf_printf(out, "  %%%d = %s", i, s->kind == GEN_OP ? op_table[s->op].name : kind_name[s->kind]);
        if (s->kind == GEN_LOAD) {
            const gen_operand *x = &k->in.data[s->arg[0]];
            buf_printf(out, " %d %s%s%s", s->arg[0], dtype_name(x->type), step[x->step], x->fixed ? " fixed" : "");
            if (x->labels) buf_printf(out, " labels, or %lld", (long long)x->ignore);
        }
        if (s->kind == GEN_ROUND || (s->kind != GEN_LOAD && s->type == DT_BF16))
            buf_printf(out, " %s", dtype_name(s->type));
        if (s->kind == GEN_CONST) buf_printf(out, " %.17g", s->value);
        for (int j = 0; s->kind != GEN_LOAD && j < s->nargs; j++) buf_printf(out, " %%%d", s->arg[j]);
        buf_printf(out, "\n");
    }
    for (int i = 0; i < k->out.n; i++) {
        const gen_result *r = &k->out.data[i];
        buf_printf(out, "  %s %d %s%s %%%d\n", store[r->store], i, dtype_name(r->type), step[r->step], r->value);
    }
}

bool gen_has_expr(ir_op op) {
    switch (op) {
#define EXPR(name, text) case OP_##name:
#include "gen/expr.def"
#undef EXPR
        return true;
    default:
        return false;
    }
}

bool gen_compilable(const gen_kernel *k) {
    for (int i = 0; i < k->in.n; i++)
        if (k->in.data[i].type == DT_F64) return false;
    for (int i = 0; i < k->out.n; i++)
        if (k->out.data[i].type == DT_F64) return false;
    return true;
}
