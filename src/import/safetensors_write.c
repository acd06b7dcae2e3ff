/* safetensors_write.c - the writer. See safetensors.h.
 *
 * Everything about the file is known before its first byte, so the header is written once and data are streamed
 * behind it. Space is reserved up front: a full disk fails before a long save, not at its end.
 */
#include "import/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct slot {
    const char *name;
    dtype type;
    int ndim;
    int64_t size[ST_MAX_DIMS];
    int64_t bytes;
    int id;
} slot;

struct st_writer {
    arena *a;
    const char *path;
    int fd;
    VEC(slot) t;
    slot *order; /* sorted */
    strmap *names;
    bool twice, too_large;
    VEC(const char *) meta; /* key, value, key, value */
    int next;               /* index in order of the tensor that is being written */
    int64_t done;           /* bytes of it */
};

st_writer *st_writer_new(void) {
    arena *a = arena_new();
    st_writer *w = ARENA_NEW(a, st_writer);
    w->a = a, w->fd = -1, w->names = strmap_new(a);
    return w;
}

int st_writer_add(st_writer *w, const char *name, dtype type, int ndim, const int64_t *size) {
    ASSERT(ndim >= 0 && ndim <= ST_MAX_DIMS && w->fd < 0);
    slot s = {.name = arena_strdup(w->a, name), .type = type, .ndim = ndim, .id = w->t.n};
    s.bytes = dtype_size(type);
    for (int i = 0; i < ndim; i++) {
        s.size[i] = size[i];
        if (!mul_ok(s.bytes, size[i], &s.bytes)) w->too_large = true;
    }
    if (strmap_get(w->names, name, NULL)) w->twice = true;
    strmap_put(w->names, name, s.id);
    vec_push(w->a, &w->t, s);
    return s.id;
}

void st_writer_metadata(st_writer *w, const char *key, const char *value) {
    vec_push(w->a, &w->meta, arena_strdup(w->a, key));
    vec_push(w->a, &w->meta, arena_strdup(w->a, value));
}

static int by_width_then_name(const void *x, const void *y) {
    const slot *a = x, *b = y;
    int64_t wa = dtype_size(a->type), wb = dtype_size(b->type);
    return wa != wb ? (wa > wb ? -1 : 1) : strcmp(a->name, b->name);
}

static void sort_slots(st_writer *w) {
    w->order = ARENA_ARRAY(w->a, slot, w->t.n);
    if (!w->t.n) return;
    memcpy(w->order, w->t.data, sizeof(slot) * (size_t)w->t.n);
    qsort(w->order, (size_t)w->t.n, sizeof(slot), by_width_then_name);
}

static void json_text(buf *b, const char *s) {
    buf_write(b, "\"", 1);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_printf(b, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            buf_printf(b, "\\u%04x", *s);
        else
            buf_write(b, s, 1);
    }
    buf_write(b, "\"", 1);
}

static int64_t header(const st_writer *w, buf *b) {
    buf_printf(b, "{");
    if (w->meta.n) {
        buf_printf(b, "\"__metadata__\":{");
        for (int i = 0; i < w->meta.n; i += 2) {
            if (i) buf_printf(b, ",");
            json_text(b, w->meta.data[i]);
            buf_printf(b, ":");
            json_text(b, w->meta.data[i + 1]);
        }
        buf_printf(b, "}%s", w->t.n ? "," : "");
    }
    int64_t at = 0;
    for (int i = 0; i < w->t.n; i++) {
        const slot *s = &w->order[i];
        if (i) buf_printf(b, ",");
        json_text(b, s->name);
        buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[", st_type_name(s->type));
        for (int d = 0; d < s->ndim; d++) buf_printf(b, "%s%lld", d ? "," : "", (long long)s->size[d]);
        buf_printf(b, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + s->bytes));
        at += s->bytes;
    }
    buf_printf(b, "}");
    while (b->n % 8) buf_write(b, " ", 1);
    return at;
}

static sp_status write_all(st_writer *w, const void *data, int64_t bytes) {
    const char *p = data;
    while (bytes > 0) {
        ssize_t n = write(w->fd, p, (size_t)min64(bytes, 1 << 30));
        if (n < 0 && errno == EINTR) continue;
        CHECK(n > 0, "cannot write %s: %s", w->path, n < 0 ? strerror(errno) : "no progress");
        p += n, bytes -= n;
    }
    return SP_OK;
}

sp_status st_writer_begin(st_writer *w, const char *path) {
    ASSERT(w->fd < 0);
    CHECK(!w->twice, "%s: two tensors with one name", path);
    CHECK(!w->too_large, "%s: a tensor's size overflows", path);
    w->path = arena_strdup(w->a, path);
    sort_slots(w);
    buf b = {0};
    int64_t data = header(w, &b);
    w->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    sp_status s = w->fd >= 0 ? SP_OK : err_set("cannot create %s: %s", path, strerror(errno));
    if (s == SP_OK) {
        int64_t total = 8 + (int64_t)b.n + data;
        int e = posix_fallocate(w->fd, 0, total);
        if (e == ENOSPC || e == EFBIG || e == EDQUOT)
            s = err_set("cannot write %s: it needs %lld bytes: %s", path, (long long)total, strerror(e));
    }
    uint64_t n = b.n;
    if (s == SP_OK) s = write_all(w, &n, 8);
    if (s == SP_OK) s = write_all(w, b.data, (int64_t)b.n);
    buf_free(&b);
    return s;
}

int st_writer_count(const st_writer *w) { return w->t.n; }
int st_writer_order(st_writer *w, int k) {
    if (!w->order) sort_slots(w);
    return w->order[k].id;
}

sp_status st_writer_write(st_writer *w, int tensor, const void *data, int64_t bytes) {
    while (w->next < w->t.n && w->done == w->order[w->next].bytes) w->next++, w->done = 0;
    if (bytes == 0) return SP_OK;
    ASSERT(w->next < w->t.n && w->order[w->next].id == tensor && w->done + bytes <= w->order[w->next].bytes);
    TRY(write_all(w, data, bytes));
    w->done += bytes;
    return SP_OK;
}

/* Removes what was begun; only a regular file: the path may be a device. */
static void remove_file(const char *path) {
    struct stat st;
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode)) unlink(path);
}

sp_status st_writer_end(st_writer *w) {
    while (w->next < w->t.n && w->done == w->order[w->next].bytes) w->next++, w->done = 0;
    ASSERT(w->next == w->t.n);
    sp_status s = fsync(w->fd) == 0 ? SP_OK : err_set("cannot write %s: %s", w->path, strerror(errno));
    if (close(w->fd) != 0 && s == SP_OK) s = err_set("cannot write %s: %s", w->path, strerror(errno));
    w->fd = -1;
    if (s != SP_OK) remove_file(w->path);
    arena_free(w->a);
    return s;
}

void st_writer_abandon(st_writer *w) {
    if (!w) return;
    if (w->fd >= 0) {
        close(w->fd);
        remove_file(w->path);
    }
    arena_free(w->a);
}
