/* safetensors.h - reads and writes safetensors files, the checkpoint format of Hugging Face.
 *
 *     u64 N (little endian) | N bytes of JSON | the tensors' bytes, row-major, without gaps
 *
 * Format and limits: https://github.com/huggingface/safetensors, README "Format". The reader refuses what the reference
 * reader refuses: headers past 100 MB, holes and overlaps, ranges that do not match shape and type.
 */
#ifndef AUTOSP_IMPORT_SAFETENSORS_H
#define AUTOSP_IMPORT_SAFETENSORS_H

#include "base/base.h"

enum { ST_MAX_DIMS = 16 };

typedef struct st_tensor {
    const char *name;
    const char *type_name; /* "BF16" */
    bool known;            /* the library has an element type for it; when not, dtype means nothing */
    dtype type;
    int ndim;
    int64_t size[ST_MAX_DIMS];
    const void *data; /* in the mapping; not aligned. NULL when bytes is 0 */
    int64_t bytes;
} st_tensor;

typedef struct st_file st_file;

/* Opens a .safetensors file, a *.safetensors.index.json, or a folder (its model.safetensors.index.json, else its
 * model.safetensors, else its only .safetensors). Data are mapped, not read. */
sp_status st_open(const char *path, st_file **out) SP_NODISCARD;
void st_close(st_file *f); /* NULL is allowed */
const char *st_path(const st_file *f);

/* Tensors in the order of their bytes; over all shards. */
int st_count(const st_file *f);
const st_tensor *st_at(const st_file *f, int i);
const st_tensor *st_find(const st_file *f, const char *name); /* NULL when there is none */
/* A value of __metadata__, or NULL. save_model notes tied tensors there as dropped -> kept. */
const char *st_metadata(const st_file *f, const char *key);

/* ---- writing ---------------------------------------------------------------------------------------- */

/* A file is declared first (names, types, shapes), then filled in one pass in the order of st_writer_order. */
typedef struct st_writer st_writer;

st_writer *st_writer_new(void);
/* Declares a tensor; returns its handle, from 0 up. */
int st_writer_add(st_writer *w, const char *name, dtype type, int ndim, const int64_t *size);
void st_writer_metadata(st_writer *w, const char *key, const char *value);
/* Creates PATH and writes the header. Fails on two tensors of one name, an unwritable folder and a full disk; space
 * for the whole file is reserved here where the file system can. */
sp_status st_writer_begin(st_writer *w, const char *path) SP_NODISCARD;
int st_writer_count(const st_writer *w);
/* The K-th tensor that must be written (widest element types first, then by name, as the reference writer does). Known
 * once all tensors are declared, before st_writer_begin too. */
int st_writer_order(st_writer *w, int k);
/* Appends BYTES bytes of the tensor that is next in order; a tensor may come in pieces. */
sp_status st_writer_write(st_writer *w, int tensor, const void *data, int64_t bytes) SP_NODISCARD;
/* Syncs and closes; every declared byte must have been written. The writer is freed whatever happens. On failure the
 * file is removed. */
sp_status st_writer_end(st_writer *w) SP_NODISCARD;
/* Gives up: removes the file (when begun) and frees the writer. NULL is allowed. */
void st_writer_abandon(st_writer *w);

/* ---- element types ------------------------------------------------------------------------------------ */

const char *st_type_name(dtype t);
/* Converts N elements, FROM at SRC (any alignment) to TO at DST. Between floating types values round to nearest even;
 * to and from integers they truncate. DST and SRC do not overlap. */
void st_convert(void *dst, dtype to, const void *src, dtype from, int64_t n);

#endif
