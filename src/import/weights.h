/* weights.h - from a parameter's name to its bytes, wherever they are.
 *
 * Parameters come from the archive, or, when the user names a safetensors file or folder, from there (never a
 * mixture: a parameter that is missing there is an error). Buffers and constants come from the archive; a persistent
 * buffer without bytes in it comes from the safetensors too.
 */
#ifndef AUTOSP_IMPORT_WEIGHTS_H
#define AUTOSP_IMPORT_WEIGHTS_H

#include "import/pt2.h"
#include "import/safetensors.h"

typedef struct wt_source wt_source;

/* P stays the caller's and must outlive the source. PATH is --weights, or NULL. */
sp_status wt_open(const pt2 *p, const char *path, wt_source **out) SP_NODISCARD;
void wt_close(wt_source *s); /* NULL is allowed; P stays open */

/* A tensor inside a mapping: valid until wt_close and pt2_close, readable by all threads. */
typedef struct wt_tensor {
    const char *fqn;    /* the name in the exported model */
    const char *stored; /* the name it was found under */
    const char *file;
    dtype type;
    int ndim;
    const int64_t *size;
    int64_t stride[ST_MAX_DIMS]; /* in elements */
    bool contiguous;
    int64_t count;       /* elements */
    const uint8_t *data; /* any alignment */
} wt_tensor;

/* Finds the tensor that the exported model calls FQN. Tried in the safetensors: FQN; FQN without the archive's
 * weights_prefix; that without its first component and with the file's usual first component (a base model's
 * checkpoint, or a base model itself); then the same for every name it is tied to. Fails, naming the parameter, when
 * it is missing or has another shape or element type than the exported model. Thread-safe. */
sp_status wt_find(wt_source *s, const char *fqn, wt_tensor *out) SP_NODISCARD;

/* Converts elements BEGIN to BEGIN + N (in row-major order) of T to type TO at DST. */
void wt_read(const wt_tensor *t, int64_t begin, int64_t n, dtype to, void *dst);

/* The process no longer needs T's pages: what was read of them stops counting as its memory. Reading T again is allowed
 * and takes them from the file. */
void wt_release(const wt_tensor *t);

#endif
