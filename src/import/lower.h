/* lower.h - shared by the files that lower ATen operators (lower*.c); nobody else includes it.
 *
 * Errors are sticky: a helper that fails sets L->failed and returns -1 (or a harmless type), and helpers given a -1 do
 * nothing. A lowering function is then straight-line code; the driver looks at L->failed once per node. Nothing here
 * may assert on what a file says: every node goes through ir_emit, which checks.
 */
#ifndef AUTOSP_IMPORT_LOWER_H
#define AUTOSP_IMPORT_LOWER_H

#include "import/import.h"

typedef enum lo_kind { LO_UNSET, LO_TENSOR, LO_SIZE } lo_kind;

typedef struct lo_value { /* what a name of the exported graph stands for */
    const char *name;
    lo_kind kind;
    ir_val v;  /* LO_TENSOR */
    ir_val im; /* LO_TENSOR that is complex: v is its real part, this the other */
    bool complex;
    ir_dim d;    /* LO_SIZE */
    int store;   /* LO_TENSOR: values that may share memory have equal numbers */
    int maker;   /* index of the node of this scope that made it; -1: an input */
    int base;    /* index of the value that it certainly is a view of; -1 */
    bool redone; /* during an in-place operation: it has its new value */
} lo_value;

typedef enum lo_part { LO_WHOLE, LO_REAL, LO_IMAGINARY } lo_part;

typedef struct lo_scope { /* one graph: names are unique within it */
    const pt2_graph *pg;
    strmap *names; /* -> index in vals */
    VEC(lo_value) vals;
    strmap *last_use; /* name -> index of the last node that reads it; n_nodes for the graph's outputs */
    bool *live;       /* nodes that the outputs need */
    int at;           /* the node being lowered */
} lo_scope;

typedef struct lower lower;
typedef struct lo_row lo_row;
typedef void lower_fn(lower *L, const lo_row *row);

enum {
    ROW_VIEW = 1,  /* the result shares memory with `self` */
    ROW_MAYBE = 2, /* the result may share memory with `self` */
    ROW_SIZE = 4,  /* works on sizes, not on tensors */
    ROW_TYPE = 8   /* the result may have a wider type than the file declares: losses stay f32 */
};
struct lo_row {
    const char *target; /* "aten.add.Tensor" */
    lower_fn *fn;
    int arg; /* for functions that serve several rows: an ir_op or a variant */
    int flags;
};

typedef struct lo_symbol {
    const char *name;
    ir_dim d;
} lo_symbol;

struct lower {
    arena *a;
    const pt2 *p;
    ir_graph *g;
    lo_scope *scope;
    const pt2_node *n; /* being lowered */
    const lo_row *row;
    bool failed, no_grad;
    lo_part part; /* of complex operands and results: the one being lowered */
    strmap *rows; /* target -> index in row_list */
    VEC(const lo_row *) row_list;
    VEC(lo_symbol) symbols;
    ir_dim batch, seq;    /* dimensions 0 and 1 of input_ids */
    VEC(bool) needs_grad; /* by value: depends on a trainable parameter */
    int stores;           /* next store number */
    VEC(int) expr_size;   /* by expression of the graph: terms when written out */
    bool shift_seen;      /* a loss whose labels come through a shift */
    ir_val ids, labels;   /* the inputs of these names; -1: none */
    bool one_input;       /* only one of them is read: the export was given one tensor for both */
};

extern const lo_row lower_views[], lower_math[], lower_nn[], lower_index[], lower_compose[],
    lower_complex[]; /* each ends with a NULL target */

/* ---- failure ------------------------------------------------------------------------------------------ */

/* Marks L as failed with this text, unless it already is. */
void lo_fail(lower *L, const char *fmt, ...) SP_PRINTF(2, 3);

/* ---- arguments of L->n ---------------------------------------------------------------------------------- */

/* An argument that was passed and is not None; else NULL. */
const pt2_arg *lo_arg(lower *L, const char *name);
ir_val lo_tensor(lower *L, const char *name);          /* fails when absent */
ir_val lo_optional_tensor(lower *L, const char *name); /* -1 when absent: test before use */
/* A list of tensors; None entries are -1. Returns how many. */
int lo_tensors(lower *L, const char *name, int max, ir_val *out);
int64_t lo_int(lower *L, const char *name, int64_t absent);
double lo_float(lower *L, const char *name, double absent);
bool lo_bool(lower *L, const char *name, bool absent);
const char *lo_string(lower *L, const char *name, const char *absent);
bool lo_dtype(lower *L, const char *name, dtype *out);          /* false when absent */
ir_dim lo_size(lower *L, const pt2_arg *arg);                   /* an int or a symbolic int */
int lo_sizes(lower *L, const char *name, int max, ir_dim *out); /* -1 entries come as the dimension of -1 */
int lo_ints(lower *L, const char *name, int max, int64_t *out); /* constants only */
ir_dim lo_list_size(lower *L, const pt2_arg *arg, int i);
/* The element type for a ScalarType of the file: narrow integers compute in i64. Fails on what cannot be computed in.
 */
dtype lo_scalar_type(lower *L, int scalar_type);
/* Dimension I (which may count from the end) of a tensor of rank RANK. */
int lo_axis(lower *L, int64_t i, int rank);
/* Size D of result I as the file declares it; false when it does not or uses unknown symbols. */
bool lo_declared_size(lower *L, int result, int d, ir_dim *out);

/* ---- emitting --------------------------------------------------------------------------------------------- */

const ir_type *lo_type(lower *L, ir_val v); /* a harmless type for -1 */
ir_val lo_emit(lower *L, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *type);
ir_val lo_op1(lower *L, ir_op op, ir_val x, const ir_attr *attr, int nattr);
ir_val lo_op2(lower *L, ir_op op, ir_val x, ir_val y, const ir_attr *attr, int nattr);
ir_val lo_cast(lower *L, ir_val x, dtype t);
ir_val lo_reshape(lower *L, ir_val x, int rank, const ir_dim *dim);
ir_val lo_permute(lower *L, ir_val x, const int *perm);
ir_val lo_swap(lower *L, ir_val x, int i, int j);
ir_val lo_expand(lower *L, ir_val x, int rank, const ir_dim *dim); /* broadcasting; adds leading dimensions */
ir_val lo_slice(lower *L, ir_val x, int dim, ir_dim start, ir_dim stop, int64_t step);
ir_val lo_sum(lower *L, ir_val x, int n, const int *dims, bool keepdim);
ir_val lo_rmax(lower *L, ir_val x, int n, const int *dims, bool keepdim);
ir_val lo_number(lower *L, dtype t, double v);     /* rank 0 */
ir_val lo_size_value(lower *L, dtype t, ir_dim d); /* a size as a rank-0 tensor */
ir_val lo_fill(lower *L, dtype t, double v, int rank, const ir_dim *dim);
ir_val lo_stop_grad(lower *L, ir_val x); /* x itself when no gradient reaches it */
/* x op v for a number v of x's type. */
ir_val lo_with_number(lower *L, ir_op op, ir_val x, double v);
bool lo_needs_grad(lower *L, ir_val v);

/* V read from INPUT (L->ids or L->labels) where it is a view of the other of the two; else V. torch.export sees one
 * tensor object that is given as both as one input, so a program with L->one_input reads its ids by the name of the
 * labels or the other way; by what a value is used for it is told which of the two was meant. */
ir_val lo_from_input(lower *L, ir_val v, ir_val input);
bool lo_depends_on(lower *L, ir_val v, ir_val input);

/* Element-wise with broadcasting, operands of one type. */
ir_val lo_binary(lower *L, ir_op op, ir_val x, ir_val y);
ir_val lo_select(lower *L, ir_val c, ir_val x, ir_val y);

/* ---- operands with PyTorch's promotion ----------------------------------------------------------------------- */

typedef struct lo_operand { /* a tensor or a number */
    ir_val v;               /* -1: a number */
    double num;
    ir_dim size;  /* a symbolic number; 0 otherwise */
    int category; /* 0 bool, 1 integer, 2 float */
} lo_operand;

lo_operand lo_get_operand(lower *L, const char *name);
/* The type that PyTorch computes in: tensors with dimensions decide, rank-0 tensors and numbers only raise the
 * category. */
dtype lo_result_type(lower *L, const lo_operand *o, int n);
ir_val lo_as_tensor(lower *L, const lo_operand *o, dtype t); /* numbers become rank-0 tensors */

/* ---- the driver (lower.c) --------------------------------------------------------------------------------------- */

/* Gives NAME of the current scope a value. */
void lo_bind(lower *L, const char *name, lo_value value);
const lo_value *lo_find(lower *L, const char *name); /* NULL when unbound */
/* The row for a target; *INPLACE when it is the in-place form of the row's operator. NULL when unsupported. */
const lo_row *lo_find_row(lower *L, const char *target, bool *inplace);
/* Is it a higher-order operator that is inlined? */
bool lo_is_region(const char *target);
/* Which nodes of PG its outputs need, in arena A. */
bool *lo_live_nodes(arena *a, const pt2_graph *pg);
/* Lists every unsupported operator of the program, and active dropout, in one failure (lower_check.c). */
sp_status lo_check_operators(lower *L) SP_NODISCARD;

/* ---- complex tensors (lower_complex.c) ----------------------------------------------------------------------- */

bool lo_is_complex(lower *L);            /* has L->n a complex operand? */
void lo_complex(lower *L, bool inplace); /* lowers such a node by L->row */
/* Gives NAME the complex value whose pairs lie along the last dimension of PAIRS. */
void lo_complex_bind(lower *L, const char *name, ir_val pairs, lo_value value);

/* ---- results --------------------------------------------------------------------------------------------------- */

void lo_return(lower *L, int i, ir_val v);             /* result I of L->n; unused ones may be left out */
void lo_return_list(lower *L, int n, const ir_val *v); /* the result is a list of tensors */
void lo_return_size(lower *L, ir_dim d);

#endif
