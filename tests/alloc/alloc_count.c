/* alloc_count.c - a test's library for LD_PRELOAD: counts the bytes that a training allocates in its steady steps.
 *
 * It stands in front of malloc, calloc, realloc, memalign and their kin, and mmap and mremap. Which steps are counted
 * it reads off the program's own metrics file: it watches write(2) for lines that begin with {"step": N. Counting
 * starts after the line of step ALLOC_COUNT_FROM (default 1) and what is reported is the state at the last such line,
 * so neither start-up nor a final checkpoint is in it. The program itself knows nothing of this.
 *
 * Each allocation is charged to the first frame of its call stack that is not libc, the loader or this library: the
 * program ("ours": all of autosp is linked into it; also kernels that it generated and loaded), or the shared library
 * that asked. So strdup and qsort are charged to their caller, and a thread pool's memory to the thread pool.
 *
 * At exit it writes to the file ALLOC_COUNT_OUT one JSON object:
 *   {"from": 1, "to": 20, "ours": {"count": 0, "bytes": 0}, "libraries": {"libdnnl.so.2": {...}},
 *    "sites": ["0x12ab"]}
 * where sites are addresses in the program, for addr2line, of the first of our allocations. glibc on Linux only.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* glibc's own entry points: no dlsym, which itself allocates. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

enum { MAX_OWNERS = 64, MAX_SITES = 32, MAX_FRAMES = 32 };

typedef struct owner {
    char name[64];
    long long count, bytes;
} owner;

typedef struct totals {
    owner owners[MAX_OWNERS]; /* [0] is ours */
    int n, nsites;
    uintptr_t site[MAX_SITES];
} totals;

static totals now = {.n = 1}, at_line;
static long long from = 1, first_line = -1, last_line = -1;
static volatile bool counting;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread bool inside __attribute__((tls_model("initial-exec")));
static uintptr_t program_base;
static char program[4096];

__attribute__((constructor)) static void start(void) {
    inside = true;
    void *frames[2];
    backtrace(frames, 2); /* loads the unwinder now, not inside a step */
    const char *text = getenv("ALLOC_COUNT_FROM");
    if (text) from = atoll(text);
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n > 0) program[n] = 0;
    unsetenv("LD_PRELOAD"); /* programs that it starts are not counted */
    inside = false;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_runtime(const char *name) { /* libc, the loader, this library */
    return strncmp(name, "libc.so", 7) == 0 || strncmp(name, "ld-linux", 8) == 0 || strstr(name, "alloc_count") ||
           strncmp(name, "libpthread", 10) == 0;
}

static void charge(size_t bytes) {
    void *frame[MAX_FRAMES];
    int depth = backtrace(frame, MAX_FRAMES), at = -1;
    const char *name = "libc.so";
    uintptr_t site = 0;
    for (int i = 0; i < depth; i++) {
        Dl_info info;
        struct link_map *map = NULL;
        if (!dladdr1(frame[i], &info, (void **)&map, RTLD_DL_LINKMAP) || !info.dli_fname) continue;
        bool is_program = map && !map->l_name[0]; /* the loader leaves the main program's name empty */
        name = base_name(info.dli_fname);
        if (!is_program && is_runtime(name)) continue;
        if (is_program) program_base = (uintptr_t)map->l_addr;
        if (is_program || strstr(info.dli_fname, "autosp")) {
            at = 0;
            site = (uintptr_t)frame[i] - (uintptr_t)map->l_addr;
        }
        break;
    }
    pthread_mutex_lock(&lock);
    if (at < 0) {
        for (at = 1; at < now.n && strcmp(now.owners[at].name, name) != 0; at++) {
        }
        if (at == now.n && now.n < MAX_OWNERS)
            snprintf(now.owners[now.n++].name, sizeof now.owners[0].name, "%s", name);
        if (at == MAX_OWNERS) at = MAX_OWNERS - 1;
    } else {
        bool known = false;
        for (int i = 0; i < now.nsites; i++) known |= now.site[i] == site;
        if (!known && now.nsites < MAX_SITES) now.site[now.nsites++] = site;
    }
    now.owners[at].count++;
    now.owners[at].bytes += (long long)bytes;
    pthread_mutex_unlock(&lock);
}

static void count(size_t bytes) {
    if (!counting || inside) return;
    int saved = errno;
    inside = true;
    charge(bytes);
    inside = false;
    errno = saved;
}

/* ---- what is stood in front of ----------------------------------------------------------------- */

void *malloc(size_t n) {
    count(n);
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
    count(n * size);
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n) {
    count(n);
    return __libc_realloc(p, n);
}

void *reallocarray(void *p, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    count(bytes);
    return __libc_realloc(p, bytes);
}

void *memalign(size_t align, size_t n) {
    count(n);
    return __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n) {
    count(n);
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n) {
    count(n);
    void *p = __libc_memalign(align, n);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}

void *valloc(size_t n) {
    count(n);
    return __libc_memalign((size_t)sysconf(_SC_PAGESIZE), n);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    count(n);
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    count(n);
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

void *mremap(void *old, size_t old_n, size_t n, int flags, ...) {
    __builtin_va_list ap;
    __builtin_va_start(ap, flags);
    void *at = flags & MREMAP_FIXED ? __builtin_va_arg(ap, void *) : NULL;
    __builtin_va_end(ap);
    if (n > old_n) count(n - old_n);
    return (void *)syscall(SYS_mremap, old, old_n, n, flags, at);
}

ssize_t write(int fd, const void *data, size_t n) {
    static const char mark[] = "{\"step\": ";
    ssize_t done = syscall(SYS_write, fd, data, n);
    if (n > sizeof mark && memcmp(data, mark, sizeof mark - 1) == 0) {
        long long step = 0;
        for (const char *p = (const char *)data + sizeof mark - 1; *p >= '0' && *p <= '9'; p++)
            step = step * 10 + *p - '0';
        pthread_mutex_lock(&lock);
        if (counting) {
            last_line = step;
            at_line = now;
        } else if (step >= from) {
            first_line = step;
            counting = true;
        }
        pthread_mutex_unlock(&lock);
    }
    return done;
}

__attribute__((destructor)) static void report(void) {
    counting = false;
    const char *path = getenv("ALLOC_COUNT_OUT");
    FILE *f = path ? fopen(path, "w") : NULL;
    if (!f) return;
    fprintf(f, "{\"from\": %lld, \"to\": %lld, \"ours\": {\"count\": %lld, \"bytes\": %lld}, \"libraries\": {",
            first_line, last_line, at_line.owners[0].count, at_line.owners[0].bytes);
    for (int i = 1; i < at_line.n; i++)
        fprintf(f, "%s\"%s\": {\"count\": %lld, \"bytes\": %lld}", i > 1 ? ", " : "", at_line.owners[i].name,
                at_line.owners[i].count, at_line.owners[i].bytes);
    fprintf(f, "}, \"sites\": [");
    for (int i = 0; i < at_line.nsites; i++) fprintf(f, "%s\"0x%lx\"", i ? ", " : "", (unsigned long)at_line.site[i]);
    fprintf(f, "], \"program\": \"%s\"}\n", program);
    fclose(f);
}
