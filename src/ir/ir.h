/* ir.h - the typed SSA tensor graph: types, layouts, nodes, and how they are built, checked and printed.
 *
 * A graph is a list of nodes in execution order; a node's operands are values made by earlier nodes. Shapes are
 * global; before `bind` a dimension may be a symbolic expression. Once a mesh is set, every value also has a
 * layout: how each mesh axis divides it. Nothing is mutated behind a pass's back: passes build a new graph
 * (ir_copy_node) or edit and then run the verifier.
 */
#ifndef AUTOSP_IR_H
#define AUTOSP_IR_H

#include "base/base.h"

enum { IR_MAX_RANK = 8, IR_MAX_OUT = 16, IR_MAX_AXES = 4 };

/* ---- dimensions -------------------------------------------------------------------------------- */

/* >= 0: an extent. < 0: expression number -(d+1) of the graph (hash-consed: equal expressions are equal numbers). */
typedef int64_t ir_dim;

typedef enum dim_kind { DIM_CONST, DIM_SYMBOL, DIM_ADD, DIM_MUL, DIM_FLOORDIV, DIM_MOD, DIM_MAX, DIM_MIN } dim_kind;

typedef struct dim_expr {
    dim_kind kind;
    ir_dim a, b;      /* operands of the binary kinds */
    int64_t value;    /* DIM_CONST: always negative (non-negative constants are plain numbers) */
    const char *name; /* DIM_SYMBOL */
} dim_expr;

/* ---- types and layouts ------------------------------------------------------------------------- */

typedef struct ir_type {
    dtype t;
    int rank;
    ir_dim dim[IR_MAX_RANK];
} ir_type;

typedef enum layout_kind { LAYOUT_REPL = 0, LAYOUT_SHARD = 1, LAYOUT_PARTIAL = 2 } layout_kind;

/* How one mesh axis divides a value. Sharded: dimension `dim` is outer x n x inner, of which n (the sequence in a
 * flattened B*S, with outer = B) is cut into equal parts; outer == 1 is the plain case. Extents are multiples of
 * the axis (bind pads). Partial: the value is the sum over the axis of what the ranks hold. */
typedef struct axis_layout {
    uint8_t kind;
    uint8_t dim;
    int64_t outer;
} axis_layout;

typedef struct ir_layout {
    axis_layout axis[IR_MAX_AXES];
} ir_layout;

typedef struct ir_mesh {
    int naxes;
    struct {
        const char *name; /* "seq", "dp" */
        int size;
    } axis[IR_MAX_AXES];
} ir_mesh;

/* ---- ops --------------------------------------------------------------------------------------- */

enum { F_ELT = 1, F_VIEW = 2, F_LEAF = 4, F_COLL = 8, F_EFFECT = 16, F_LIN0 = 32, F_LIN1 = 64, F_LINALL = 128 };

typedef enum ir_op {
#define OP(name, nin, nout, flags, shape, rule, grad, kern) OP_##name,
#include "ir/ops.def"
#undef OP
    OP_COUNT
} ir_op;

typedef struct op_info {
    const char *name;
    int nin, nout, flags;
} op_info;
extern const op_info op_table[OP_COUNT];
bool op_parse(const char *name, ir_op *op);

/* ---- attributes -------------------------------------------------------------------------------- */

typedef enum attr_kind { ATTR_INT, ATTR_FLOAT, ATTR_DIMS, ATTR_STR, ATTR_DATA } attr_kind;

typedef struct ir_attr {
    const char *key;
    attr_kind kind;
    int64_t i;     /* ATTR_INT */
    double f;      /* ATTR_FLOAT */
    const char *s; /* ATTR_STR */
    int n;         /* ATTR_DIMS, ATTR_DATA: how many */
    ir_dim *dims;  /* ATTR_DIMS */
    double *data;  /* ATTR_DATA */
} ir_attr;

/* Attribute literals for the builder: ATTRS(A_I("dim", 1), A_F("eps", 1e-5)). */
#define A_I(k, v) ((ir_attr){.key = (k), .kind = ATTR_INT, .i = (v)})
#define A_F(k, v) ((ir_attr){.key = (k), .kind = ATTR_FLOAT, .f = (v)})
#define A_S(k, v) ((ir_attr){.key = (k), .kind = ATTR_STR, .s = (v)})
#define A_D(k, count, v) ((ir_attr){.key = (k), .kind = ATTR_DIMS, .n = (count), .dims = (v)})
#define A_DATA(k, count, v) ((ir_attr){.key = (k), .kind = ATTR_DATA, .n = (count), .data = (v)})
#define ATTRS(...) ((ir_attr[]){__VA_ARGS__}), (int)(sizeof((ir_attr[]){__VA_ARGS__}) / sizeof(ir_attr))
#define NO_ATTRS NULL, 0

/* ---- the graph --------------------------------------------------------------------------------- */

typedef int32_t ir_val; /* index into graph->values; -1: none */
typedef struct ir_graph ir_graph;

typedef struct ir_node {
    ir_op op;
    int nin, nout, nattr;
    ir_val *in;
    ir_val *out;
    ir_attr *attr;
    ir_graph *region; /* loop's body, attention's mask; NULL elsewhere */
    const char *src;  /* where the user's Python made it, or NULL; for messages */
    int tag;          /* free for passes: layer number, phase; 0 after building, kept by copies */
} ir_node;

typedef struct ir_value {
    int node;  /* index of its node */
    int index; /* which result */
    ir_type type;
    ir_layout layout;
    const char *name; /* printed as a comment; may be NULL */
} ir_value;

typedef struct ir_output {
    const char *name;
    ir_val value;
} ir_output;

struct ir_graph {
    arena *a; /* owns everything below; not owned by the graph */
    const char *name;
    ir_mesh mesh; /* naxes == 0: not sharded (yet) */
    VEC(ir_node) nodes;
    VEC(ir_value) values;
    VEC(ir_output) outputs;
    VEC(dim_expr) exprs;
    int broken_op;         /* tests only: 1 + an op whose partial sums are passed off as replicated; 0: none */
    ir_dim seq, seq_valid; /* bound extents: S padded to the mesh, and the user's S; 0 before bind */
};

ir_graph *ir_new(arena *a, const char *name);

/* ---- dimensions: builders fold constants and keep a canonical order ----------------------------- */

ir_dim dim_const(ir_graph *g, int64_t v); /* any sign */
ir_dim dim_symbol(ir_graph *g, const char *name);
ir_dim dim_add(ir_graph *g, ir_dim a, ir_dim b);
ir_dim dim_sub(ir_graph *g, ir_dim a, ir_dim b);
ir_dim dim_mul(ir_graph *g, ir_dim a, ir_dim b);
ir_dim dim_floordiv(ir_graph *g, ir_dim a, ir_dim b);
ir_dim dim_mod(ir_graph *g, ir_dim a, ir_dim b);
ir_dim dim_max(ir_graph *g, ir_dim a, ir_dim b);
ir_dim dim_min(ir_graph *g, ir_dim a, ir_dim b);
/* True when d is a number (of any sign); its value in *v. */
bool dim_value(const ir_graph *g, ir_dim d, int64_t *v);
/* Evaluates with symbols given by lookup; SP_FAIL names an unknown symbol, overflow or division by zero. */
sp_status dim_eval(const ir_graph *g, ir_dim d, bool (*lookup)(void *ctx, const char *name, int64_t *v), void *ctx,
                   int64_t *out);
/* Is symbol `name` in d? */
bool dim_mentions(const ir_graph *g, ir_dim d, const char *name);
void dim_print(const ir_graph *g, ir_dim d, buf *out);
/* Copies an expression from another graph. */
ir_dim dim_import(ir_graph *g, const ir_graph *from, ir_dim d);

/* ---- building ---------------------------------------------------------------------------------- */

/* Appends a node. Result types and layouts are inferred from the op's row; ops whose shape column is `given` take
 * `type` (others ignore it; NULL). `hint` gives the layout of result dimensions that no operand has (leaves,
 * expanded dimensions; NULL: replicated). attrs are copied. Fails with op, operand types and reason. The first
 * result is *out; the others follow it (*out + 1, ...). */
sp_status ir_emit(ir_graph *g, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr, const ir_type *type,
                  const ir_layout *hint, ir_val *out) SP_NODISCARD;

/* ir_emit for the ops that carry a nested graph (loop's body, attention's mask) or a number of results of their own;
 * `type` is an array of nout types for loop. */
sp_status ir_emit_region(ir_graph *g, ir_op op, const ir_val *in, int nin, const ir_attr *attr, int nattr,
                         const ir_type *type, int nout, const ir_layout *hint, ir_graph *region,
                         ir_val *out) SP_NODISCARD;

/* The same for code that knows that its operands fit: a failure is our bug (ASSERT). Returns the first result. */
ir_val ir_op0(ir_graph *g, ir_op op, const ir_type *type, const ir_attr *attr, int nattr);
ir_val ir_op1(ir_graph *g, ir_op op, ir_val x, const ir_attr *attr, int nattr);
ir_val ir_op2(ir_graph *g, ir_op op, ir_val x, ir_val y, const ir_attr *attr, int nattr);
ir_val ir_op3(ir_graph *g, ir_op op, ir_val x, ir_val y, ir_val z, const ir_attr *attr, int nattr);
ir_val ir_cast(ir_graph *g, ir_val x, dtype t);                        /* x itself when it has that type */
ir_val ir_reshape(ir_graph *g, ir_val x, int rank, const ir_dim *dim); /* x itself when nothing changes */
ir_val ir_permute(ir_graph *g, ir_val x, const int *perm);             /* x itself for the identity */
ir_val ir_expand(ir_graph *g, ir_val x, int rank, const ir_dim *dim);  /* numpy broadcasting: new leading dims */
ir_val ir_slice(ir_graph *g, ir_val x, int dim, ir_dim start, ir_dim stop, int64_t step);
ir_val ir_scalar(ir_graph *g, dtype t, double v);     /* rank-0 fill */
ir_val ir_fill_like(ir_graph *g, ir_val x, double v); /* expanded to x's shape, type and layout */
ir_val ir_sum(ir_graph *g, ir_val x, int ndims, const int *dims);
/* Matrix product as torch.matmul of rank >= 2 operands with equal batch dimensions. */
ir_val ir_matmul(ir_graph *g, ir_val x, ir_val y);
/* x (..., K) times w (N, K): (..., N). */
ir_val ir_linear(ir_graph *g, ir_val x, ir_val w);
void ir_set_output(ir_graph *g, const char *name, ir_val v);

/* Appends a copy of `from`'s node n with operands mapped by map[] (old value -> new value) and records its results
 * in map. Types are inferred again; layouts too unless the new graph has no mesh. Regions are shared. */
sp_status ir_copy_node(ir_graph *g, const ir_graph *from, int n, ir_val *map) SP_NODISCARD;

/* ---- looking ----------------------------------------------------------------------------------- */

static inline ir_node *ir_def(const ir_graph *g, ir_val v) { return &g->nodes.data[g->values.data[v].node]; }
static inline ir_op ir_opof(const ir_graph *g, ir_val v) { return ir_def(g, v)->op; }
static inline const ir_type *ir_typeof(const ir_graph *g, ir_val v) { return &g->values.data[v].type; }
static inline ir_layout *ir_layoutof(const ir_graph *g, ir_val v) { return &g->values.data[v].layout; }
const ir_attr *ir_find_attr(const ir_node *n, const char *key); /* NULL when absent */
int64_t ir_int(const ir_node *n, const char *key, int64_t absent);
double ir_float(const ir_node *n, const char *key, double absent);
const char *ir_str(const ir_node *n, const char *key);               /* NULL when absent */
int ir_dims(const ir_node *n, const char *key, const ir_dim **dims); /* how many; 0 when absent */
void ir_set_attr(ir_graph *g, ir_node *n, ir_attr attr);             /* adds or replaces; copies */
ir_val ir_find_output(const ir_graph *g, const char *name);          /* -1 when absent */
bool ir_type_equal(const ir_type *a, const ir_type *b);
/* uses[v] = how many operands and outputs are v; array of g->values.n in `a`. */
int *ir_use_counts(const ir_graph *g, arena *a);
/* Elements and bytes of a bound type; whole (global) and on one rank. */
int64_t ir_numel(const ir_type *t);
int64_t ir_bytes(const ir_type *t);
ir_type ir_local_type(const ir_graph *g, ir_val v);
int64_t ir_local_bytes(const ir_graph *g, ir_val v);

/* ---- layouts (rule.c) -------------------------------------------------------------------------- */

enum { RULE_MAX_FACTORS = 24 };
typedef enum factor_kind {
    FACTOR_PASS, /* may be sharded: it appears in the results, or nothing crosses it */
    FACTOR_SUM,  /* may be sharded: results without it are partial sums */
    FACTOR_WHOLE /* must be whole on every rank */
} factor_kind;

/* An op's einsum-like rule: in[i][d] and out[i][d] name the factor of dimension d, -1 for none (broadcast). */
typedef struct ir_rule {
    int nfactor;
    uint8_t kind[RULE_MAX_FACTORS];
    int8_t (*in)[IR_MAX_RANK];  /* nin rows */
    int8_t (*out)[IR_MAX_RANK]; /* nout rows */
} ir_rule;

/* The rule of a node; false for ops that change layouts themselves (reshape, collectives, leaves). Rows are
 * allocated in `a`. */
bool ir_rule_of(const ir_graph *g, const ir_node *n, arena *a, ir_rule *r);
/* Result layouts from operand layouts; SP_FAIL says which operand conflicts. Used by ir_emit and the verifier. */
sp_status ir_infer_layout(const ir_graph *g, const ir_node *n, const ir_layout *hint, ir_layout *out);
/* Maps a sharded dimension through a reshape; false when the reshape splits the sharded factor. */
bool ir_reshape_layout(const ir_type *from, const ir_type *to, axis_layout in, int size, axis_layout *out);
bool ir_layout_equal(const ir_graph *g, const ir_layout *a, const ir_layout *b);
axis_layout layout_shard(int dim, int64_t outer);
int ir_axis(const ir_graph *g, const char *name); /* -1 when the mesh has no such axis */

/* The mesh axis of a loop's region that says how tiles divide a value; -1 in graphs that are no region. */
static inline int ir_tile_axis(const ir_graph *g) { return ir_axis(g, "tile"); }

/* ---- checking and text ------------------------------------------------------------------------- */

/* Are the attributes that `op` requires there, of the right kind, and in range for nin operands? (For text and other
 * sources outside the compiler.) */
sp_status ir_check_attrs(ir_op op, int nin, const ir_attr *attr, int nattr) SP_NODISCARD;
/* Every invariant of the graph: order, types, attributes, layouts, unused partials. `after` names the pass. */
sp_status ir_verify(const ir_graph *g, const char *after) SP_NODISCARD;
/* Prints as text that ir_parse reads back to an equal graph (docs/ir.md). */
void ir_print(const ir_graph *g, buf *out);
sp_status ir_parse(arena *a, const char *text, const char *file, ir_graph **out) SP_NODISCARD;
/* Prints one type and its layout: f32[2,64,128]@seq=S1. */
void ir_print_type(const ir_graph *g, const ir_type *t, const ir_layout *l, buf *out);
/* Does the node, or a node of its region, have an effect? */
bool ir_has_effect(const ir_node *n);
/* Removes nodes that no output, effect or other live node needs. Returns a new graph. */
ir_graph *ir_dce(const ir_graph *g);

#endif
