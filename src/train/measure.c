/* measure.c - touched pages and the process's high-water mark, from /proc. */
#include "train/measure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The bytes of page `page` (its address) that lie inside [from, to). */
static int64_t inside(uintptr_t page, uintptr_t size, uintptr_t from, uintptr_t to) {
    uintptr_t a = page > from ? page : from, b = page + size < to ? page + size : to;
    return b > a ? (int64_t)(b - a) : 0;
}

enum { BATCH = 512 };

/* Linux Documentation/admin-guide/mm/pagemap.rst: 64 bits a page; bit 63 present, bit 62 swapped. */
static bool by_pagemap(uintptr_t from, uintptr_t to, uintptr_t size, int64_t *touched) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    uint64_t entry[BATCH];
    bool ok = true;
    for (uintptr_t page = from / size; ok && page * size < to;) {
        uintptr_t want = (to - page * size + size - 1) / size;
        if (want > BATCH) want = BATCH;
        ssize_t n = pread(fd, entry, want * sizeof *entry, (off_t)(page * sizeof *entry));
        ok = n > 0 && n % (ssize_t)sizeof *entry == 0;
        for (ssize_t i = 0; ok && i < n / (ssize_t)sizeof *entry; i++, page++)
            if (entry[i] >> 62) *touched += inside(page * size, size, from, to);
    }
    close(fd);
    return ok;
}

static bool by_mincore(uintptr_t from, uintptr_t to, uintptr_t size, int64_t *touched) {
    unsigned char resident[BATCH];
    for (uintptr_t page = from / size * size; page < to;) {
        uintptr_t want = (to - page + size - 1) / size;
        if (want > BATCH) want = BATCH;
        if (mincore((void *)page, want * size, resident) != 0) return false;
        for (uintptr_t i = 0; i < want; i++, page += size)
            if (resident[i] & 1) *touched += inside(page, size, from, to);
    }
    return true;
}

sp_status measure_touched(const void *base, int64_t bytes, int64_t *touched) {
    *touched = 0;
    if (bytes <= 0) return SP_OK;
    uintptr_t from = (uintptr_t)base, to = from + (uintptr_t)bytes, size = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (by_pagemap(from, to, size, touched)) return SP_OK;
    *touched = 0;
    CHECK(by_mincore(from, to, size, touched),
          "cannot measure touched memory: neither /proc/self/pagemap nor mincore "
          "answers: %s",
          strerror(errno));
    return SP_OK;
}

/* A "Name:   123 kB" line of /proc/self/status, in bytes. */
static int64_t status_kb(const char *name) {
    char text[8192];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    const char *at = strstr(text, name);
    return at ? strtoll(at + strlen(name), NULL, 10) * 1024 : 0;
}

int64_t measure_process_peak(void) { return status_kb("\nVmHWM:"); }
int64_t measure_process_now(void) { return status_kb("\nVmRSS:"); }

int64_t measure_machine_memory(void) {
    int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    char text[64] = {0};
    int fd = open("/sys/fs/cgroup/memory.max", O_RDONLY | O_CLOEXEC); /* "max" without a limit */
    if (fd < 0) return bytes;
    if (read(fd, text, sizeof text - 1) > 0 && strtoll(text, NULL, 10) > 0)
        bytes = min64(bytes, strtoll(text, NULL, 10));
    close(fd);
    return bytes;
}
