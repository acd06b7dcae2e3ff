/* data.h - training data: which tokens every row of every microbatch of every step holds.
 *
 * The data of a step is a pure function of (file, options, step): nothing is remembered between calls, so a
 * resumed run reads what an unbroken one would have, and every rank, whatever the mesh, sees the same global
 * batch. Files are mapped, never copied; token files may be far larger than memory.
 *
 *   .txt          bytes are tokens (vocabulary >= 256)
 *   .bin          llm.c's token files by their header (magic 20240520 version 1: uint16; magic 20240801
 *                 version 7: uint32), else headerless little-endian uint16, or uint32 when asked for
 *   .safetensors  input_ids and optionally labels, position_ids, document_ids, each (N, S), and prefix_lengths (N), I64
 *                 or I32
 *
 * Addressing. With A microbatches a step, B rows a microbatch and S tokens a row, row i of microbatch a in
 * step k (all from 0) has the number n = (k*A + a)*B + i. In a token file of N tokens it starts at token
 * (n*S) mod (N - S), so that its S inputs and the label after them always lie inside the file. In a
 * safetensors file it is row n mod N.
 *
 * Shuffling. A token file is cut into W = floor((N-1)/S) windows, window w starting at token w*S; a
 * safetensors file has W = N rows. Row number n reads window p(n mod W), where p is a permutation of 0..W-1
 * that depends on the seed and on the epoch n / W. So every epoch visits every window once, in a new order.
 *
 * Labels. "shifted" models are given labels[t] = the token after input_ids[t]; "same" models shift inside the
 * graph and are given labels[t] = input_ids[t]. A safetensors file's own labels are passed on as they are; without
 * them the last label of a shifted row is ignored, as the token after it is not in the file.
 *
 * Positions are 0..S-1 unless the file has its own. Document ids count, from 0 in each row, the --eos tokens
 * before a token (an eos belongs to the document that it ends); without --eos all are 0.
 */
#ifndef AUTOSP_TRAIN_DATA_H
#define AUTOSP_TRAIN_DATA_H

#include "base/base.h"

typedef struct train_data train_data;

typedef struct train_data_options {
    int64_t seq;          /* S, tokens a row */
    int64_t batch;        /* B, rows a microbatch over all data-parallel ranks */
    int64_t accum;        /* A, microbatches a step */
    int64_t vocab;        /* ids must be in [0, vocab); 0 when unknown: nothing is checked */
    int64_t eos;          /* the token that ends a document; -1: none */
    int64_t ignore_index; /* the label that the loss leaves out, -100 as a rule */
    uint64_t seed;        /* of the shuffle */
    bool shuffle;
    bool labels_shifted; /* the model takes shifted labels */
    bool tokens_u32;     /* a headerless .bin holds uint32 */
} train_data_options;

/* The global rows of one microbatch, each array (B, S) row-major; a NULL one is not filled. The caller's memory. */
typedef struct train_batch {
    int64_t *input_ids, *labels, *position_ids, *document_ids;
    int64_t *prefix_lengths; /* (B): how many tokens of a row come before what it is to continue */
} train_batch;

/* Opens and maps a data file; the format follows from the name's end. SP_FAIL when it is unreadable, malformed
 * or shorter than one sequence. Not collective: each rank opens the file. Free with train_data_close. */
sp_status train_data_open(const char *path, const train_data_options *options, train_data **out) SP_NODISCARD;
void train_data_close(train_data *d); /* NULL is allowed */

/* Fills microbatch `micro` of step `step`, both from 0. SP_FAIL names the file, the position and the vocabulary
 * when a token is outside the vocabulary. Allocates nothing. */
sp_status train_data_fill(const train_data *d, int64_t step, int64_t micro, const train_batch *out) SP_NODISCARD;

/* Evaluation visits each window once, in file order, whatever the options say of shuffling. Microbatch `micro`
 * holds windows micro*B .. micro*B+B-1; rows past the last window repeat it with every label ignored, so a
 * token-weighted mean over train_data_eval_batches() microbatches is the mean over the file. */
int64_t train_data_eval_batches(const train_data *d);
sp_status train_data_fill_eval(const train_data *d, int64_t micro, const train_batch *out) SP_NODISCARD;

/* Tokens (.txt, .bin) or rows (.safetensors) in the file, and windows an epoch, for messages. */
int64_t train_data_length(const train_data *d);
int64_t train_data_windows(const train_data *d);

/* True when the file itself holds document ids or --eos derives them. */
bool train_data_has_documents(const train_data *d);
/* True when the file holds prefix lengths. */
bool train_data_has_prefixes(const train_data *d);
/* True when the file itself holds position ids. */
bool train_data_has_positions(const train_data *d);

/* Position `index` of a pseudo-random permutation of 0..n-1 (n >= 1), the one of (seed, epoch). A Feistel
 * network over the next power of four, walked until it lands inside (Black and Rogaway 2002, "Ciphers with
 * arbitrary finite domains"): random access in constant memory, so a resume needs no stored order. */
int64_t train_permute(int64_t index, int64_t n, uint64_t seed, int64_t epoch);

#endif
