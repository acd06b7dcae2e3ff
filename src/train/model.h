/* model.h - the model that a command works on: its forward graph, what its inputs are, and where its weights are.
 *
 * MODEL is an exported .pt2, with its weights inside or in safetensors under --weights, or a graph as text (.ir),
 * whose weights come from --weights by the parameters' names or are drawn from the seed.
 */
#ifndef AUTOSP_TRAIN_MODEL_H
#define AUTOSP_TRAIN_MODEL_H

#include "import/import.h"
#include "import/weights.h"
#include "ir/ir.h"
#include "train/checkpoint.h"

typedef struct train_model {
    arena *a; /* owns the forward graph and what stands here; a compilation takes an arena of its own */
    const char *path;
    ir_graph *forward;        /* sizes over B and S */
    bool is_text;             /* .ir */
    import_info import;       /* of a .pt2 */
    wt_source *weights;       /* of a .pt2 */
    st_file *st;              /* of an .ir with --weights */
    const char *weights_path; /* --weights or NULL */
    bool drawn;               /* weights that are nowhere are drawn from seed */
    uint64_t seed;

    int64_t vocab;  /* ids must be below: the rows of the embedding and the classes of the loss; 0: not known */
    int64_t ignore; /* the label that is left out */
    bool labels_shifted;
    bool takes_positions, takes_documents, takes_prefixes;
    int64_t fixed_seq, fixed_batch; /* when the export fixed them; else 0 */

    int ntensors; /* what a checkpoint holds: the graph's parameters, then those that the graph does not use */
    ckpt_tensor *tensors;
    int nfiles; /* configuration and tokenizer files in the archive */
    ckpt_file *files;
} train_model;

/* Opens MODEL. `draw`: weights that the archive lacks are drawn from the seed instead of being an error. Not
 * collective: each process opens the files. The model is read-only afterwards and shared by threads. */
sp_status train_model_open(const char *path, const char *weights, bool draw, uint64_t seed,
                           train_model **out) SP_NODISCARD;
void train_model_close(train_model *m); /* NULL is allowed */

/* The whole tensor of the parameter or large constant that a graph calls `name`, row-major, converted to `to`, in dst
 * (`count` elements, which must be its size). Thread-safe. */
sp_status train_model_read(const train_model *m, const char *name, dtype to, int64_t count, void *dst) SP_NODISCARD;

#endif
