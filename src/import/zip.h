/* zip.h - read-only access to the ZIP container of a .pt2 archive.
 *
 * libzip opens, checks and inflates; what it does not tell is where the bytes of a stored entry lie in the
 * file, so that they can be mapped instead of copied. That offset is computed here from the central
 * directory and the local header. A .pt2 stores its weights uncompressed and 64-byte aligned.
 *
 * All functions expect hostile files: no size read from the archive is used for an allocation before it has
 * been compared with the size of the file.
 */
#ifndef AUTOSP_IMPORT_ZIP_H
#define AUTOSP_IMPORT_ZIP_H

#include "base/base.h"

typedef struct ziparc ziparc;

/* Opens PATH, maps it and lists its entries. Fails with one message on a file that is missing, truncated,
 * not a ZIP, or whose directory contradicts itself. The archive stays valid when PATH is later replaced. */
sp_status ziparc_open(const char *path, ziparc **out) SP_NODISCARD;
void ziparc_close(ziparc *z); /* NULL is allowed */

const char *ziparc_path(const ziparc *z);
/* The first path component that all entries share ("model" of "model/models/model.json"). */
const char *ziparc_root(const ziparc *z);
int ziparc_count(const ziparc *z);
/* Entry I's name below the root, '/' as separator. */
const char *ziparc_name(const ziparc *z, int i);
int64_t ziparc_size(const ziparc *z, int i);
/* The index of the entry NAME (below the root), or -1. */
int ziparc_find(const ziparc *z, const char *name);

/* Reads entry I, stored or deflated, into *DATA on the heap (the caller frees it) with a NUL after it, and
 * verifies its CRC. Fails when the entry is larger than CAP bytes. */
sp_status ziparc_read(ziparc *z, int i, int64_t cap, char **data, int64_t *size) SP_NODISCARD;

/* The bytes of stored entry I inside the mapping: valid until ziparc_close, shared by all threads. Fails when the
 * entry is compressed or leaves the file. The CRC is verified on the first call for each entry. */
sp_status ziparc_view(ziparc *z, int i, const void **data, int64_t *size) SP_NODISCARD;

#endif
