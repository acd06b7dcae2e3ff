/* pt2.h - the contents of a .pt2 archive as plain C structs, before any lowering.
 *
 * One-to-one with torch's export schema, major 8 (torch/_export/serde/schema.py), less what training does not
 * need: devices, layouts and strides of graph values, module call graphs, example inputs. Unknown object
 * keys are ignored and unknown argument kinds only matter when an operator uses them, so newer minors load.
 */
#ifndef AUTOSP_IMPORT_PT2_H
#define AUTOSP_IMPORT_PT2_H

#include "import/sym.h"
#include "import/zip.h"

/* ---- graphs -------------------------------------------------------------------------------------- */

typedef enum pt2_kind {
    PT2_NONE,
    PT2_TENSOR,   /* name */
    PT2_TENSORS,  /* names; an entry of an optional list may be NULL */
    PT2_INT,      /* i */
    PT2_INTS,     /* syms */
    PT2_SYM_INT,  /* name of a sym_int value */
    PT2_SYM_INTS, /* syms */
    PT2_FLOAT,    /* f */
    PT2_FLOATS,   /* floats */
    PT2_BOOL,     /* i: 0 or 1 */
    PT2_STRING,   /* name */
    PT2_DTYPE,    /* i: ScalarType of the schema, see pt2_dtype */
    PT2_IGNORED,  /* a device, layout or memory format */
    PT2_GRAPH,    /* graph, name */
    PT2_OTHER     /* a kind this program has no use for; name is its tag */
} pt2_kind;

typedef struct pt2_sym_arg { /* an element of a SymInt[] argument */
    const char *name;        /* a sym_int value, or NULL for the constant */
    int64_t value;
} pt2_sym_arg;

typedef struct pt2_graph pt2_graph;

typedef struct pt2_arg {
    pt2_kind kind;
    int n; /* length of a list */
    const char *name;
    int64_t i;
    double f;
    const char **names;
    const pt2_sym_arg *syms;
    const double *floats;
    const pt2_graph *graph;
} pt2_arg;

typedef struct pt2_input { /* an argument of a node; absent ones have ATen's default */
    const char *name;      /* "self", "dim", ...; "" for a higher-order operator's */
    pt2_arg arg;
} pt2_input;

typedef struct pt2_node {
    const char *target; /* "torch.ops.aten.add.Tensor" */
    int n_in, n_out;
    const pt2_input *in;
    const pt2_arg *out;
    const char *meta; /* the node's metadata as JSON text, inside the archive's mapping; NULL when it has none */
    int64_t meta_len;
} pt2_node;

typedef struct pt2_meta { /* type of a graph value */
    const char *name;
    int scalar_type; /* of the schema */
    int ndim;
    const sym_expr **size;
} pt2_meta;

typedef struct pt2_sym_value {
    const char *name;
    const sym_expr *expr; /* NULL when the file gives none */
} pt2_sym_value;

struct pt2_graph {
    int n_in, n_out, n_nodes, n_metas, n_syms;
    const pt2_arg *in, *out;
    const pt2_node *nodes; /* in an order in which they can run */
    const pt2_meta *metas;
    const pt2_sym_value *syms;
    strmap *meta_index, *sym_index; /* name -> index; names are unique within one graph only */
};

/* ---- the program ---------------------------------------------------------------------------------- */

typedef enum pt2_in_kind { PT2_IN_USER, PT2_IN_PARAM, PT2_IN_BUFFER, PT2_IN_CONSTANT, PT2_IN_SCALAR } pt2_in_kind;

typedef struct pt2_in_spec { /* what graph input i is */
    pt2_in_kind kind;
    const char *value; /* name in the graph */
    const char *fqn;   /* of a parameter, buffer or constant: "model.embed_tokens.weight" */
} pt2_in_spec;

typedef struct pt2_range {
    const char *symbol;
    int64_t lo, hi; /* INT64_MAX when unbounded */
} pt2_range;

enum { PT2_COMPLEX64 = 10, PT2_COMPLEX128 = 11 }; /* of the schema's element types; the others: pt2_dtype */

/* A stored tensor: parameters and persistent buffers, then constants and other buffers. */
typedef struct pt2_weight {
    const char *fqn;
    int scalar_type;
    bool requires_grad, is_param;
    bool complex; /* pairs: described here as real numbers with a last dimension of 2 */
    int ndim;
    const int64_t *size, *stride; /* in elements */
    int64_t offset;               /* in elements */
    int entry;                    /* in the archive */
    bool absent;                  /* the archive holds no bytes for it */
    int tied;                     /* index of the first weight with the same storage and shape; its own when alone */
} pt2_weight;

typedef struct pt2 {
    arena *a;
    ziparc *zip;
    char *text; /* model.json on the heap, when it was compressed */
    const char *path;
    int major, minor;
    const char *torch_version;
    const pt2_graph *graph;
    int n_in, n_ranges, n_weights;
    const pt2_in_spec *in; /* one for each graph input, in its order */
    const pt2_range *ranges;
    const pt2_weight *weights;
    strmap *weight_index; /* FQN -> index */
    int loss_output;      /* which graph output is the loss */
    /* extra/autosp.json, as tools/export.py writes it */
    const char *labels;         /* "shifted", "same", or NULL */
    const char *weights_prefix; /* never NULL */
    int n_tied;                 /* pairs (dropped, kept) of FQNs that are one parameter */
    const char **tied_from, **tied_to;
} pt2;

/* Reads the archive at PATH. On failure the error names the file, the part of it and what to do. */
sp_status pt2_open(const char *path, pt2 **out) SP_NODISCARD;
void pt2_close(pt2 *p); /* NULL is allowed */

/* The library's element type for a ScalarType of the schema; false for one that it does not have. */
bool pt2_dtype(int scalar_type, dtype *out);
const char *pt2_dtype_name(int scalar_type);

/* "modeling_llama.py:391, in forward": the innermost frame of user code that made node N, or "" when the
 * archive does not say. In arena A. */
const char *pt2_source(arena *a, const pt2_node *n);

/* Argument NAME of N, or NULL when it was not passed. */
const pt2_arg *pt2_find_arg(const pt2_node *n, const char *name);

#endif
