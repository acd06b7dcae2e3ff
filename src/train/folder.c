/* folder.c - see folder.h. Every message names the path and the system's reason. */
#include "train/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

sp_status folder_path(char *out, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out, FOLDER_PATH, fmt, ap);
    va_end(ap);
    CHECK(n >= 0 && n < FOLDER_PATH, "path too long: %.200s...", out);
    return SP_OK;
}

sp_status folder_make(const char *path) {
    char part[FOLDER_PATH];
    TRY(folder_path(part, "%s", path));
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/') continue;
        char was = *p;
        *p = 0;
        struct stat st;
        if (mkdir(part, 0777) != 0 && (errno != EEXIST || stat(part, &st) != 0 || !S_ISDIR(st.st_mode)))
            FAIL("cannot create folder %s: %s", part, errno == EEXIST ? "a file has that name" : strerror(errno));
        *p = was;
        if (!was) return SP_OK;
    }
}

sp_status folder_list(const char *path, void (*each)(void *ctx, const char *name), void *ctx) {
    DIR *d = opendir(path);
    if (!d && errno == ENOENT) return SP_OK;
    CHECK(d, "cannot read folder %s: %s", path, strerror(errno));
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) each(ctx, e->d_name);
    closedir(d);
    return SP_OK;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

sp_status folder_remove(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0 && errno == ENOENT) return SP_OK;
    CHECK(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0, "cannot remove %s: %s", path, strerror(errno));
    return SP_OK;
}

sp_status folder_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* EINVAL: a file system that cannot sync folders orders their names itself. */
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    if (!ok) err_set("cannot sync folder %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    return ok ? SP_OK : SP_FAIL;
}

static bool write_all(int fd, const char *p, size_t n) {
    while (n > 0) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
}

/* Syncs and closes what was written to `path`; `ok`: all of it could be. */
static sp_status finish(int fd, const char *path, bool ok) {
    if (ok) ok = fsync(fd) == 0 || errno == EINVAL;
    if (!ok) err_set("cannot write %s: %s", path, strerror(errno));
    if (close(fd) != 0 && ok) {
        err_set("cannot write %s: %s", path, strerror(errno));
        ok = false;
    }
    return ok ? SP_OK : SP_FAIL;
}

sp_status folder_write(const char *path, const void *data, size_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    CHECK(fd >= 0, "cannot create %s: %s", path, strerror(errno));
    return finish(fd, path, write_all(fd, data, bytes));
}

sp_status folder_copy(const char *from, const char *to, bool *found) {
    char block[65536];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    *found = in >= 0;
    if (in < 0 && errno == ENOENT) return SP_OK;
    CHECK(in >= 0, "cannot read %s: %s", from, strerror(errno));
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (out < 0) {
        close(in);
        FAIL("cannot create %s: %s", to, strerror(errno));
    }
    ssize_t n;
    bool ok = true;
    while (ok && (n = read(in, block, sizeof block)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        ok = n > 0 && write_all(out, block, (size_t)n);
    }
    close(in);
    return finish(out, to, ok);
}
