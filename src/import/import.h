/* import.h - from an exported PyTorch program to a graph of core ops.
 *
 *     pt2_open (zip, JSON) -> lower (ATen -> core ops, one table row per ATen operator) -> ir_verify
 */
#ifndef AUTOSP_IMPORT_H
#define AUTOSP_IMPORT_H

#include "import/pt2.h"
#include "ir/ir.h"

typedef struct import_param { /* one parameter, under however many names */
    const char *name;         /* the first of its exported names: the name of its param node and of its gradient */
    int weight;               /* index in program->weights */
    bool trainable;           /* requires_grad at export */
    bool used;                /* it is in the graph; one that is not gets no gradient and is saved as it was loaded */
} import_param;

typedef struct import_info {
    pt2 *program;        /* open: the bytes of the weights are found through it (import/weights.h) */
    bool labels_shifted; /* the loader must pass the next tokens as labels; else the graph shifts by itself */
    int n_params;
    import_param *params;
    int64_t batch, seq;              /* when the export fixed them; 0: any */
    int64_t seq_min, seq_max;        /* what the export says about the symbolic length; seq_max INT64_MAX: unbounded */
    bool position_ids, document_ids; /* the model takes these inputs */
} import_info;

/* Reads PATH into a forward graph in arena A: one output `loss`, sizes over the symbols B and S (docs/ir.md). On
 * success INFO is filled and info->program must be released with import_close after the graph's last use of it. On
 * failure the error names every unsupported operator at once, with counts and source lines. Not collective. */
sp_status import_pt2(arena *a, const char *path, ir_graph **out, import_info *info) SP_NODISCARD;
void import_close(import_info *info);

#endif
