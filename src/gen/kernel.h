/* kernel.h - the kernel language: what a fused instruction computes, element by element and row by row.
 *
 * A kernel runs over a space of rows and columns. Its statements are SSA: each has one value, either an element's (one
 * for each row and column) or a row's (one for each row). Reductions run along a row; they split a kernel into passes
 * over the row, which stays in cache. Every statement is a pure function of loads and reductions, so a pass computes
 * what it needs again instead of keeping it: results depend on the statements alone, never on what else is in the
 * kernel.
 *
 *   rmsnorm of a sum            %0 = load 0            pass 0    level 0
 *                               %1 = load 1
 *                               %2 = add %0 %1
 *                               %3 = mul %2 %2
 *                               %4 = sum %3                      level 1, a row's value
 *                               ...
 *                               %8 = rsqrt %7
 *                               %9 = mul %2 %8         pass 1
 *                               store 0 %2; store 1 %9
 *
 * A result may lie in an operand's place, so elements are stored after the last load of the same column: in the last
 * pass, but for those that wait for no reduction where later passes load nothing else that could lie there. These are
 * stored in the first pass, and later ones read them (`kept`). Sums over rows (`column sums`: gradients of biases and
 * of norms' weights) are results too.
 *
 * Plans hold kernels (plan/fuse.c makes them); `ref` interprets them (device/ref/fused.c); for `cpu` they are printed
 * in C and compiled (source.c, dialect_c.c, library.c). docs/fusion.md follows one from ops to C.
 */
#ifndef AUTOSP_GEN_KERNEL_H
#define AUTOSP_GEN_KERNEL_H

#include "device/adamw.h"
#include "device/tensor.h"
#include "gen/args.h"
#include "ir/ir.h"

typedef enum gen_kind {
    GEN_LOAD,  /* arg[0]: which operand */
    GEN_CONST, /* value */
    GEN_COLS,  /* the length of a row */
    GEN_INDEX, /* the column's number, from 0: exact below 2^24 */
    GEN_OP,    /* op of arg[0..]: a row of expr.def; `type` bf16: its EXPR_NEAR */
    GEN_ROUND, /* arg[0] as `type` would hold it: where ops end, what memory would do to it */
    GEN_SUM,   /* of arg[0] along the row */
    GEN_MAX,
    GEN_EXP_SUM,   /* of e^(arg[0] - its greatest) along the row, with that greatest in the same pass; `type` bf16: of
                      arg[0] that are */
    GEN_NUMERATOR, /* e^(arg[0] - arg[1]) arg[3], arg[1] the greatest: the terms of the GEN_EXP_SUM arg[2] of the same,
                      which its pass keeps for later ones, times a row's value */
    GEN_PICK,      /* arg[0] in the column whose number is arg[1], a row's value; 0 where there is none */
    GEN_KINDS
} gen_kind;

static inline bool gen_is_reduction(gen_kind k) { return k == GEN_SUM || k == GEN_MAX || k == GEN_EXP_SUM; }

typedef struct gen_stmt {
    gen_kind kind;
    ir_op op;
    int nargs, arg[4];
    dtype type;
    double value;
    bool row;  /* one value a row */
    int level; /* how many reductions it waits for */
    int kept;  /* later passes read it from result kept - 1, which the first pass stored; 0: from its arguments */
} gen_stmt;

/* How an operand or result moves along a row. */
typedef enum gen_step { GEN_UNIT, GEN_STILL, GEN_STRIDED } gen_step;

typedef enum gen_store {
    GEN_STORE,   /* elements, or a row's value (GEN_STILL) */
    GEN_ADD,     /* the same, added to what is there */
    GEN_COLUMNS, /* a column sum */
    GEN_COLUMNS_ADD
} gen_store;

/* Integers (i64) are rows' values and become numbers: exact below 2^24. Labels are columns' numbers, or `ignore`: the
 * device checks them before the kernel runs. */
typedef struct gen_operand {
    dtype type;
    gen_step step;
    bool fixed; /* the same in every row: no result lies in its place */
    bool labels;
    int64_t ignore;
} gen_operand;

typedef struct gen_result {
    dtype type;
    gen_step step;
    gen_store store;
    int value; /* statement */
} gen_result;

/* What a compiled kernel does: rows [r0, r1), columns [c0, c1) (all of them when `whole_rows`). */
typedef void gen_fn(const gen_args *a, int64_t r0, int64_t r1, int64_t c0, int64_t c1);

typedef struct gen_kernel {
    arena *a;
    VEC(gen_stmt) s;
    VEC(gen_operand) in;
    VEC(gen_result) out;
    int levels;       /* reductions one after the other: passes - 1 */
    int columns;      /* how many results are column sums */
    bool labels;      /* an operand is labels, to be checked */
    int terms;        /* how many sums of exponentials keep their terms, in scratch: gen_terms_floats each */
    bool whole_rows;  /* a row may not be cut: it is reduced */
    bool halves;      /* its columns are those of half a row (gen_halves): few */
    uint64_t hash;    /* of its text: equal kernels are compiled once */
    const char *name; /* the ops in it, for people: add+rmsnorm */
} gen_kernel;

gen_kernel *gen_new(arena *a);
/* Statements; equal ones are made once. */
int gen_load(gen_kernel *k, int operand);
int gen_const(gen_kernel *k, double v);
int gen_cols(gen_kernel *k);
int gen_index(gen_kernel *k);
int gen_round(gen_kernel *k, int x, dtype t);
int gen_reduce(gen_kernel *k, gen_kind kind, int x);
int gen_pick(gen_kernel *k, int x, int column);
/* e^(x - top) scale beside the sum of these exponentials; top: the greatest x, or more where all are -inf; scale: a
 * row's value. Relative error 3e-7; 3e-6 where x is bf16, whose own is 2e-3 of x. */
int gen_numerator(gen_kernel *k, int x, int top, int scale);
int gen_op1(gen_kernel *k, ir_op op, int x);
int gen_op2(gen_kernel *k, ir_op op, int x, int y);
int gen_op3(gen_kernel *k, ir_op op, int x, int y, int z);
/* An op of n arguments whose result is rounded to t at once, which bf16 may make cheaper (EXPR_NEAR). What it computes
 * depends on op and t alone, not on the kernel. */
int gen_op_for(gen_kernel *k, ir_op op, int n, const int *arg, dtype t);
/* Levels, passes and the hash, once all results are there; statements that no result needs go. */
void gen_finish(gen_kernel *k);
/* needed[i]: pass p (0 .. levels) computes, or reads again, statement i for each column. */
void gen_pass_needs(const gen_kernel *k, int pass, bool *needed);
/* Is result i stored by the first pass? Else by the last. */
bool gen_stored_first(const gen_kernel *k, int i);
/* Does pass p (0 .. levels) store elements of result i? Does it walk the columns at all: to store or to reduce? */
bool gen_stored_in(const gen_kernel *k, int i, int pass);
bool gen_walks(const gen_kernel *k, int pass);
/* The same for the one column of a GEN_PICK. */
void gen_pick_needs(const gen_kernel *k, int pick, bool *needed);
void gen_print(const gen_kernel *k, buf *out);

/* Are the terms of this sum of exponentials kept? Which of those is it: from 0, or -1. */
int gen_terms(const gen_kernel *k, int exp_sum);

/* Has this op an expression (expr.def)? */
bool gen_has_expr(ir_op op);
/* The text of its EXPR_NEAR, NULL where it has none. */
const char *gen_near(ir_op op);

/* member.c: what instructions compute, as statements. */

/* How an operand (i < nin) or result (i - nin) lies in the space: along rows and columns; one value a row; one a
 * column, which for a result is a sum over the rows; angles (B or 1, S, D) of a space (B, S, H, D). */
typedef enum gen_role { GEN_ELEMENTS, GEN_ROW, GEN_COLUMN, GEN_ANGLES } gen_role;
gen_role gen_role_of(ir_op op, const ir_node *n, int rank, int i);
/* Are there statements for this op, with these attributes and types? Tensors: operands, then results. */
bool gen_can(ir_op op, const ir_node *n, int nin, int nout, const tensor *const *t);
/* Does it reduce, so that rows must be its last dimension? */
bool gen_reduces(ir_op op);
/* Does it combine the two halves of rows? Its kernel runs over columns of half a row: every operand and result is two
 * windows, and every statement is made for both. */
bool gen_halves(ir_op op);
/* Appends them: in[i] is the statement of operand i; value[k] receives that of result k, of type type[k]. */
void gen_member(gen_kernel *k, ir_op op, const ir_node *n, int rank, const int *in, const dtype *type, int *value);
/* The same for an op of gen_halves: in[h][i] and value[h] of half h. */
void gen_halves_member(gen_kernel *k, const ir_node *n, int in[2][3], dtype type, int *value);
/* Has it the same bits from its ordinary kernel? Then it need not be a kernel of its own. */
bool gen_exact(ir_op op);

/* optimizer.c: one AdamW step (torch.optim.AdamW) on f32: operands p, g, m, v, and GEN_ADAMW_NUMBERS numbers that
 * gen_adamw_numbers computes; results p, m, v, each in its operand's place. */
enum { GEN_ADAMW_NUMBERS = 9 };
gen_kernel *gen_adamw(arena *a);
void gen_adamw_numbers(const adamw_params *p, float *number);

/* source.c: the kernels as one file of C; for `autosp dump --kernels` and the compiler. */
void gen_source(gen_kernel *const *k, int n, buf *out);

/* library.c: the compiled kernels of a plan, by a cache of shared objects. */

/* Is there a C compiler? */
bool gen_compiler(void);
/* Is all of it in types that generated code knows, f32 and bf16? */
bool gen_compilable(const gen_kernel *k);
/* Finds or compiles the kernels; fn[i] is kernel i's, NULL where it is not compilable. Loaded libraries stay for the
 * life of the process; equal plans and all ranks of a process share them. Thread-safe. SP_FAIL says what failed: no
 * compiler, its first message, a cache that cannot be trusted. */
sp_status gen_library(gen_kernel *const *k, int n, gen_fn **fn) SP_NODISCARD;

#endif
