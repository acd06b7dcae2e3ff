/* fuzz.h - what the fuzz targets share: an input as a file with a path, and archives with a valid directory.
 *
 * A target returns 0 always; it fails by crashing, by a sanitizer's report, or by an ASSERT on a property (what was
 * read can be printed and read again). An error that the reader returns is the expected outcome.
 */
#ifndef AUTOSP_FUZZ_H
#define AUTOSP_FUZZ_H

#include "base/base.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writes the input to a file in memory and returns its path, valid until the next call. */
static inline const char *fuzz_file(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    if (fd >= 0) close(fd); /* a new one each time: the reader may still map the old one */
    fd = memfd_create("fuzz", 0);
    ASSERT(fd >= 0);
    for (size_t at = 0; at < size;) {
        ssize_t n = write(fd, data + at, size - at);
        ASSERT(n > 0);
        at += (size_t)n;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return path;
}

/* ---- ZIP archives of stored entries, with checksums that are right ------------------------------------ */

typedef struct fuzz_zip {
    buf file, directory;
    int entries;
} fuzz_zip;

static inline uint32_t fuzz_crc32(const void *data, size_t n) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            table[i] = i;
            for (int k = 0; k < 8; k++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
        }
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) crc = crc >> 8 ^ table[(crc ^ p[i]) & 255];
    return ~crc;
}

static inline void fuzz_zip_add(fuzz_zip *z, const char *name, const void *data, size_t n) {
    struct __attribute__((packed)) {
        uint16_t version, flags, method, time, date;
        uint32_t crc, packed, size;
        uint16_t name_len, extra_len;
    } h = {20, 0, 0, 0, 33, fuzz_crc32(data, n), (uint32_t)n, (uint32_t)n, (uint16_t)strlen(name), 0};
    struct __attribute__((packed)) {
        uint16_t comment_len, disk, internal;
        uint32_t external, offset;
    } tail = {0, 0, 0, 0, (uint32_t)z->file.n};
    buf_write(&z->file, "PK\3\4", 4);
    buf_write(&z->file, &h, sizeof h);
    buf_write(&z->file, name, strlen(name));
    buf_write(&z->file, data, n);
    buf_write(&z->directory, "PK\1\2\24\0", 6);
    buf_write(&z->directory, &h, sizeof h);
    buf_write(&z->directory, &tail, sizeof tail);
    buf_write(&z->directory, name, strlen(name));
    z->entries++;
}

/* Ends the archive, writes it to a file in memory, frees it and returns the path. */
static inline const char *fuzz_zip_end(fuzz_zip *z) {
    struct __attribute__((packed)) {
        uint16_t disk, start, here, all;
        uint32_t size, offset;
        uint16_t comment_len;
    } end = {0, 0, (uint16_t)z->entries, (uint16_t)z->entries, (uint32_t)z->directory.n, (uint32_t)z->file.n, 0};
    buf_write(&z->file, z->directory.data, z->directory.n);
    buf_write(&z->file, "PK\5\6", 4);
    buf_write(&z->file, &end, sizeof end);
    const char *path = fuzz_file((const uint8_t *)z->file.data, z->file.n);
    buf_free(&z->file);
    buf_free(&z->directory);
    return path;
}

#endif
