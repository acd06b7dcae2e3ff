/* pt2_internal.h - shared by the files that decode an archive's JSON; nobody else includes it. */
#ifndef AUTOSP_IMPORT_PT2_INTERNAL_H
#define AUTOSP_IMPORT_PT2_INTERNAL_H

#include "import/pt2.h"

#include <jansson.h>

/* Where metadata values were cut out of the text, by the number left in their place. */
typedef struct pt2_cut {
    const char *text;
    int64_t len;
} pt2_cut;
typedef VEC(pt2_cut) pt2_cuts;

/* Copies TEXT (LEN bytes) to OUT (LEN + 1 bytes) without the values of "metadata" keys, which are most of a
 * program's bytes; each is replaced by its index in CUTS, whose entries point into TEXT. *OUT_LEN is the length of the
 * result. Text that is not JSON stays not JSON. */
void pt2_cut_metadata(arena *a, const char *text, int64_t len, char *out, int64_t *out_len, pt2_cuts *cuts);

/* Decoding state: where we are, for messages. */
typedef struct pt2_reader {
    arena *a;
    const char *path, *entry;
    pt2_cuts cuts;
    strmap *exprs; /* text of a size expression -> index in expr */
    VEC(const sym_expr *) expr;
    int depth; /* of nested graphs */
} pt2_reader;

/* JSON getters that name file, entry and key when the type is not the expected one. */
sp_status pt2_bad(const pt2_reader *r, const char *what);
#define PT2_BAD(r, what) return (pt2_bad(r, what), SP_FAIL)
sp_status pt2_get(const pt2_reader *r, const json_t *o, const char *key, json_type type, json_t **out) SP_NODISCARD;
sp_status pt2_get_str(const pt2_reader *r, const json_t *o, const char *key, const char **out) SP_NODISCARD;
sp_status pt2_get_int(const pt2_reader *r, const json_t *o, const char *key, int64_t *out) SP_NODISCARD;

/* A SymInt {as_int} or {as_expr}. */
sp_status pt2_read_size(pt2_reader *r, const json_t *o, const sym_expr **out) SP_NODISCARD;
sp_status pt2_read_arg(pt2_reader *r, const json_t *o, pt2_arg *out) SP_NODISCARD;
sp_status pt2_read_graph(pt2_reader *r, const json_t *o, const pt2_graph **out) SP_NODISCARD;

/* The weights and constants of model NAME, into P. */
sp_status pt2_read_weights(pt2 *p, pt2_reader *r, const char *name) SP_NODISCARD;

/* Parses entry I of the archive, at most CAP bytes. */
sp_status pt2_read_json(pt2 *p, pt2_reader *r, int i, int64_t cap, json_t **out) SP_NODISCARD;

#endif
