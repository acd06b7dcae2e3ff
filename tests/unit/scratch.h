/* scratch.h - for tests that write files: a folder of their own under TMPDIR, as a cmocka group's set-up and tear-down,
 * and room for the path of a file in it. */
#ifndef AUTOSP_TEST_SCRATCH_H
#define AUTOSP_TEST_SCRATCH_H

#include "base/base.h"

#include <stdlib.h>

static char dir[200];
static char path[256];

static inline int make_dir(void **state) {
    (void)state;
    arena *a = arena_new();
    const char *made = mkdtemp(temp_name(a, temp_folder(), "test"));
    if (made) snprintf(dir, sizeof dir, "%s", made);
    arena_free(a);
    return made ? 0 : -1;
}

static inline int remove_dir(void **state) {
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* path becomes that of the file `name` in the folder. */
static inline const char *in_dir(const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

#endif
