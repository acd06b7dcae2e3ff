/* library.c - generated source to machine code: the system's C compiler, a cache of shared objects, dlopen.
 *
 * The cache is ${XDG_CACHE_HOME:-~/.cache}/autosp/HASH.so, where the hash is of the source, the compiler (path, size,
 * time), the flags and the processor. A file gets there by rename, so that processes may race: each sees a whole file
 * or none. Behind the object's bytes stand a mark and a hash of them: what a full disk or a crash cut off is compiled
 * again, not loaded. A cache that others can write is not used, because what is in it would be run; then, and when no
 * cache can be made, the object lives in a folder of its own under TMPDIR until it is loaded. Loading an object sets
 * its time; whoever adds one removes those that were not used for longest, beyond MOST_FILES or MOST_BYTES. A process
 * whose object is removed while it looks finds no file, and makes it again.
 *
 * The compiler is $CC or the first of cc, gcc and clang on PATH, run without a shell. Loaded objects stay: ranks of a
 * process and later plans share them.
 */
#include "gen/kernel.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATH_ROOM = 4096, MAX_WORDS = 32, MARK = 16, MOST_FILES = 256, MOST_BYTES = 64 << 20, STALE = 24 * 3600 };
static const char mark[] = "autosp1"; /* 8 bytes, then the hash */

/* ---- the compiler --------------------------------------------------------------------------------- */

/* The program's path as execvp would find it. */
static bool on_path(const char *name, char *out) {
    if (strchr(name, '/')) return snprintf(out, PATH_ROOM, "%s", name) < PATH_ROOM && access(out, X_OK) == 0;
    const char *dirs = getenv("PATH");
    for (const char *d = dirs ? dirs : ""; *d;) {
        size_t n = strcspn(d, ":");
        struct stat st;
        if (n && snprintf(out, PATH_ROOM, "%.*s/%s", (int)n, d, name) < PATH_ROOM && access(out, X_OK) == 0 &&
            stat(out, &st) == 0 && S_ISREG(st.st_mode))
            return true;
        d += n + (d[n] == ':');
    }
    return false;
}

/* $CC's words (a launcher may stand in front), or one of the usual names; words[0] is a path. How many; 0: none. */
static int find_compiler(arena *a, char **words) {
    static const char *const usual[] = {"cc", "gcc", "clang"};
    char path[PATH_ROOM];
    const char *cc = getenv("CC");
    if (cc && *cc) {
        int n = 0;
        char *rest = NULL;
        for (char *w = strtok_r(arena_strdup(a, cc), " \t", &rest); w && n < MAX_WORDS / 2;
             w = strtok_r(NULL, " \t", &rest))
            words[n++] = w;
        if (!n || !on_path(words[0], path)) return 0;
        words[0] = arena_strdup(a, path);
        return n;
    }
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (on_path(usual[i], path)) {
            words[0] = arena_strdup(a, path);
            return 1;
        }
    return 0;
}

bool gen_compiler(void) {
    arena *a = arena_new();
    char *words[MAX_WORDS];
    int n = find_compiler(a, words);
    arena_free(a);
    return n > 0;
}

static const char *const flags[] = {
    "-shared",          "-fPIC", "-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-w", "-fschedule-insns",
    "-fsched-pressure", /* blocks' chains side by side; clang does so anyway and ignores these */
#ifdef AUTOSP_NATIVE
    "-march=native",
#endif
};
enum { NFLAGS = sizeof flags / sizeof *flags };

extern char **environ;

/* Compiles `source` to `object`; the compiler's first words of complaint go to the error text. */
static sp_status compile(arena *a, const char *source, const char *object, const char *log) {
    char *argv[MAX_WORDS + NFLAGS + 8];
    int n = find_compiler(a, argv), status = 0;
    CHECK(n, "there is no C compiler ($CC, cc, gcc, clang)");
    for (int i = 0; i < NFLAGS; i++) argv[n++] = (char *)flags[i];
    argv[n++] = (char *)"-o";
    argv[n++] = (char *)object;
    argv[n++] = (char *)source;
    argv[n++] = (char *)"-lm";
    argv[n] = NULL;
    posix_spawn_file_actions_t files;
    CHECK(posix_spawn_file_actions_init(&files) == 0, "no memory for starting the compiler");
    int e = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    if (!e) e = posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    if (!e) e = posix_spawn_file_actions_addopen(&files, 2, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t pid = -1;
    if (!e) e = posix_spawn(&pid, argv[0], &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    CHECK(!e, "cannot run the C compiler %s: %s", argv[0], strerror(e));
    while (waitpid(pid, &status, 0) < 0) CHECK(errno == EINTR, "waiting for the C compiler: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return SP_OK;
    char line[256] = "";
    FILE *f = fopen(log, "r");
    if (f) {
        if (!fgets(line, sizeof line, f)) line[0] = 0;
        fclose(f);
    }
    line[strcspn(line, "\n")] = 0;
    FAIL("the C compiler %s failed%s%s", argv[0], *line ? ": " : "", line);
}

/* ---- what the object's name depends on ---------------------------------------------------------------- */

/* What -march=native looks at. */
static uint64_t hash_processor(uint64_t h) {
    char line[8192];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f) && line[0] != '\n')
        if (strncmp(line, "model name", 10) == 0 || strncmp(line, "flags", 5) == 0 || strncmp(line, "Features", 8) == 0)
            h = hash_str(h, line);
    if (f) fclose(f);
    return h;
}

static uint64_t hash_of(arena *a, const buf *source) {
    char *words[MAX_WORDS];
    int n = find_compiler(a, words);
    uint64_t h = hash_bytes(HASH_INIT, source->data, source->n);
    for (int i = 0; i < n; i++) h = hash_str(h, words[i]);
    for (int i = 0; i < NFLAGS; i++) h = hash_str(h, flags[i]);
    struct stat st;
    if (n && stat(words[0], &st) == 0) { /* an updated compiler is another one */
        int64_t about[2] = {st.st_size, st.st_mtime};
        h = hash_bytes(h, about, sizeof about);
    }
    return hash_processor(h);
}

/* ---- the cache ---------------------------------------------------------------------------------------- */

/* A folder of ours that nobody else can write? Made if it is not there. */
static bool usable(const char *dir) {
    struct stat st;
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) return false;
    if (lstat(dir, &st) != 0 || !S_ISDIR(st.st_mode)) return false;
    if (st.st_uid != geteuid() || (st.st_mode & 022)) {
        static bool told;
        if (!told) log_warn("%s is not used for compiled kernels: others may write there", dir);
        told = true;
        return false;
    }
    return access(dir, W_OK | X_OK) == 0;
}

static bool cache_dir(char *out) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char base[PATH_ROOM - 16];
    if (xdg && *xdg == '/')
        snprintf(base, sizeof base, "%s", xdg);
    else if (home && *home == '/')
        snprintf(base, sizeof base, "%s/.cache", home);
    else
        return false;
    if (mkdir(base, 0700) != 0 && errno != EEXIST) return false;
    snprintf(out, PATH_ROOM, "%s/autosp", base);
    return usable(out);
}

static bool write_file(const char *path, const void *data, size_t n, bool append) {
    int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | (append ? O_APPEND : O_TRUNC), 0600);
    bool ok = fd >= 0;
    for (size_t at = 0; ok && at < n;) {
        ssize_t w = write(fd, (const char *)data + at, n - at);
        if (w < 0 && errno == EINTR) continue;
        ok = w > 0;
        at += ok ? (size_t)w : 0;
    }
    if (fd >= 0 && close(fd) != 0) ok = false;
    return ok;
}

/* The hash of a file's bytes but for the last `less`; what those are goes to tail. */
static bool hash_file(const char *path, int64_t less, char *tail, uint64_t *h) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return false;
    bool ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 022) &&
              st.st_size > less && st.st_size < (1 << 28);
    char *data = ok ? malloc((size_t)st.st_size) : NULL;
    ok = data && read(fd, data, (size_t)st.st_size) == st.st_size;
    if (ok) {
        *h = hash_bytes(HASH_INIT, data, (size_t)(st.st_size - less));
        if (tail) memcpy(tail, data + st.st_size - less, (size_t)less);
    }
    free(data);
    close(fd);
    return ok;
}

static bool seal(const char *path) {
    char tail[MARK];
    uint64_t h;
    if (chmod(path, 0700) != 0 || !hash_file(path, 0, NULL, &h)) return false;
    memcpy(tail, mark, 8);
    memcpy(tail + 8, &h, 8);
    return write_file(path, tail, MARK, true);
}

static bool whole(const char *path) {
    char tail[MARK];
    uint64_t h;
    return hash_file(path, MARK, tail, &h) && memcmp(tail, mark, 8) == 0 && memcmp(tail + 8, &h, 8) == 0;
}

static void *load(const char *path) { return whole(path) ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL; }

/* Compiles in `dir` and moves the object to `path` there. */
static sp_status build(arena *a, const buf *source, const char *dir, const char *path) {
    char *work = temp_name(a, dir, "build");
    CHECK(mkdtemp(work), "cannot make a folder in %s: %s", dir, strerror(errno));
    char *c = arena_printf(a, "%s/kernels.c", work), *so = arena_printf(a, "%s/kernels.so", work);
    char *log = arena_printf(a, "%s/log", work);
    sp_status s = SP_OK;
    if (!write_file(c, source->data, source->n, false)) s = err_set("cannot write %s: %s", c, strerror(errno));
    if (s == SP_OK) s = compile(a, c, so, log);
    if (s == SP_OK && (!seal(so) || rename(so, path) != 0)) s = err_set("cannot write %s: %s", path, strerror(errno));
    unlink(c);
    unlink(so);
    unlink(log);
    rmdir(work);
    return s;
}

/* ---- the cache's bound -------------------------------------------------------------------------------- */

typedef struct object {
    char *path;
    int64_t bytes;
    struct timespec used;
} object;

static int by_use(const void *x, const void *y) { /* latest first */
    const struct timespec *a = &((const object *)x)->used, *b = &((const object *)y)->used;
    if (a->tv_sec != b->tv_sec) return a->tv_sec < b->tv_sec ? 1 : -1;
    return (a->tv_nsec < b->tv_nsec) - (a->tv_nsec > b->tv_nsec);
}

/* A compiler's folder that a crash left behind. */
static void remove_work(arena *a, const char *dir) {
    static const char *const file[] = {"kernels.c", "kernels.so", "log"};
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) unlink(arena_printf(a, "%s/%s", dir, file[i]));
    rmdir(dir);
}

/* Keeps what was used last. Failures are no matter: the next one tries again. */
static void prune(arena *a, const char *dir) {
    VEC(object) all = {0};
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        object o = {.path = arena_printf(a, "%s/%s", dir, e->d_name)};
        struct stat st;
        size_t n = strlen(e->d_name);
        if (lstat(o.path, &st) != 0) continue;
        if (S_ISDIR(st.st_mode) && strstr(e->d_name, "build-") && st.st_mtime < time(NULL) - STALE)
            remove_work(a, o.path);
        if (!S_ISREG(st.st_mode) || n < 3 || strcmp(e->d_name + n - 3, ".so") != 0) continue;
        o.bytes = st.st_size;
        o.used = st.st_mtim;
        vec_push(a, &all, o);
    }
    if (d) closedir(d);
    if (all.n) qsort(all.data, (size_t)all.n, sizeof *all.data, by_use);
    int64_t bytes = 0;
    for (int i = 0; i < all.n; i++) {
        bytes += all.data[i].bytes;
        if (i >= MOST_FILES || (i > 0 && bytes > MOST_BYTES)) unlink(all.data[i].path);
    }
}

/* An object of the cache, with the time of its use. */
static void *load_cached(const char *path) {
    void *handle = load(path);
    if (handle) utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW);
    return handle;
}

static sp_status obtain(arena *a, const buf *source, uint64_t hash, void **handle) {
    char dir[PATH_ROOM];
    bool cached = cache_dir(dir);
    if (cached) {
        char *path = arena_printf(a, "%s/%016llx.so", dir, (unsigned long long)hash);
        *handle = load_cached(path);
        if (*handle) return SP_OK;
        TRY(build(a, source, dir, path));
        *handle = load(path);
        prune(a, dir);
        CHECK(*handle, "compiled kernels do not load: %s", whole(path) ? dlerror() : "the file is broken");
        return SP_OK;
    }
    char *own = temp_name(a, temp_folder(), "kernels");
    CHECK(mkdtemp(own), "cannot make a folder for compiled kernels in %s: %s", temp_folder(), strerror(errno));
    char *path = arena_printf(a, "%s/kernels.so", own);
    sp_status s = build(a, source, own, path);
    if (s == SP_OK) {
        *handle = load(path);
        if (!*handle) s = err_set("compiled kernels do not load: %s", dlerror());
    }
    unlink(path);
    rmdir(own);
    return s;
}

/* ---- loaded objects --------------------------------------------------------------------------------- */

typedef struct loaded {
    uint64_t hash;
    void *handle;
    struct loaded *next;
} loaded;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static loaded *objects;

static sp_status find_object(arena *a, const buf *source, void **handle) {
    uint64_t hash = hash_of(a, source);
    for (loaded *o = objects; o; o = o->next)
        if (o->hash == hash) {
            *handle = o->handle;
            return SP_OK;
        }
    TRY(obtain(a, source, hash, handle));
    loaded *o = malloc(sizeof *o);
    CHECK(o, "no memory for compiled kernels");
    *o = (loaded){hash, *handle, objects};
    objects = o;
    return SP_OK;
}

sp_status gen_library(gen_kernel *const *all, int count, gen_fn **out) {
    arena *a = arena_new();
    buf source = {0};
    void *handle = NULL;
    gen_kernel **k = ARENA_ARRAY(a, gen_kernel *, count + 1);
    gen_fn **fn = ARENA_ARRAY(a, gen_fn *, count + 1);
    int n = 0;
    for (int i = 0; i < count; i++)
        if (gen_compilable(all[i])) k[n++] = all[i];
    gen_source(k, n, &source);
    pthread_mutex_lock(&lock);
    sp_status s = n ? find_object(a, &source, &handle) : SP_OK;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < n && s == SP_OK; i++) {
        char name[32];
        snprintf(name, sizeof name, "k_%016llx", (unsigned long long)k[i]->hash);
        *(void **)&fn[i] = dlsym(handle, name);
        if (!fn[i]) s = err_set("compiled kernels lack %s", name);
    }
    for (int i = 0, j = 0; i < count; i++) out[i] = j < n && all[i] == k[j] && s == SP_OK ? fn[j++] : NULL;
    buf_free(&source);
    arena_free(a);
    return s;
}
