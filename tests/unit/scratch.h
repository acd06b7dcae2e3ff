/* one_file.h - for tests that write one file again and again: `path` in a folder of its own, as a cmocka group's set-up
 * and tear-down. */
#ifndef AUTOSP_TEST_ONE_FILE_H
#define AUTOSP_TEST_ONE_FILE_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[] = "/tmp/autosp-test-XXXXXX";
static char path[256];

static int make_dir(void **state) {
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/m.pt2", dir);
    return 0;
}

static int remove_dir(void **state) {
    (void)state;
    unlink(path);
    return rmdir(dir);
}

#endif
