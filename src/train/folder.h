/* folder.h - files and folders as a checkpoint needs them: made, listed, synced, copied, removed, with messages. */
#ifndef AUTOSP_TRAIN_FOLDER_H
#define AUTOSP_TRAIN_FOLDER_H

#include "base/base.h"

enum { FOLDER_PATH = 4096 };

/* Prints a path into out (FOLDER_PATH bytes); SP_FAIL when it is too long. */
sp_status folder_path(char *out, const char *fmt, ...) SP_PRINTF(2, 3) SP_NODISCARD;

/* mkdir -p. */
sp_status folder_make(const char *path) SP_NODISCARD;

/* Calls each(ctx, name) for every entry but "." and "..", in no order. A folder that does not exist has none. */
sp_status folder_list(const char *path, void (*each)(void *ctx, const char *name), void *ctx) SP_NODISCARD;

/* Removes a folder with all that is in it, following no links; nothing there is no error. */
sp_status folder_remove(const char *path) SP_NODISCARD;

/* Makes the names in a folder durable (fsync of the folder). */
sp_status folder_sync(const char *path) SP_NODISCARD;

/* Creates or replaces a file and syncs it. */
sp_status folder_write(const char *path, const void *data, size_t bytes) SP_NODISCARD;

/* Copies a file and syncs the copy; *found is false, without an error, when there is no file `from`. */
sp_status folder_copy(const char *from, const char *to, bool *found) SP_NODISCARD;

#endif
