/* safetensors.c - the reader. See safetensors.h.
 *
 * Each shard is mapped; its header is parsed with jansson after its length has been checked against the file.
 * Tensors are sorted by offset and must tile the data exactly, which excludes overlaps, holes and ranges past the end
 * in one pass.
 */
#include "import/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_HEADER 100000000LL
#define MAX_INDEX_BYTES (256LL << 20)

typedef struct shard {
    const char *path;
    const uint8_t *map;
    int64_t len;
} shard;

struct st_file {
    arena *a;
    const char *path;
    VEC(shard) shards;
    VEC(st_tensor *) t;
    strmap *index; /* name -> index in t */
    strmap *meta;  /* key -> index in meta_value */
    VEC(const char *) meta_value;
};

static const struct {
    const char *name;
    int bits;
    bool known;
    dtype type;
} types[] = {
    {"F32", 32, true, DT_F32},    {"F64", 64, true, DT_F64},    {"BF16", 16, true, DT_BF16}, {"F16", 16, true, DT_F16},
    {"I64", 64, true, DT_I64},    {"I32", 32, true, DT_I32},    {"BOOL", 8, true, DT_BOOL},  {"U8", 8, false, 0},
    {"I8", 8, false, 0},          {"I16", 16, false, 0},        {"U16", 16, false, 0},       {"U32", 32, false, 0},
    {"U64", 64, false, 0},        {"F8_E4M3", 8, false, 0},     {"F8_E5M2", 8, false, 0},    {"F8_E8M0", 8, false, 0},
    {"F8_E4M3FNUZ", 8, false, 0}, {"F8_E5M2FNUZ", 8, false, 0}, {"C64", 64, false, 0},       {"F4", 4, false, 0},
    {"F6_E2M3", 6, false, 0},     {"F6_E3M2", 6, false, 0},
};

const char *st_type_name(dtype t) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].known && types[i].type == t) return types[i].name;
    return "?";
}

#define DAMAGED(s, what) FAIL("%s: damaged safetensors file (%s); copy it again", (s)->path, what)

static sp_status map_file(st_file *f, const char *path, shard *s) {
    s->path = arena_strdup(f->a, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    bool ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= 8;
    s->len = ok ? st.st_size : 0;
    void *m = ok ? mmap(NULL, (size_t)s->len, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    close(fd);
    if (!ok) DAMAGED(s, "shorter than its header");
    CHECK(m != MAP_FAILED, "cannot map %s", path);
    s->map = m;
    return SP_OK;
}

/* ---- one shard ---------------------------------------------------------------------------------------- */

static sp_status read_tensor(st_file *f, const shard *s, const char *name, const json_t *o, int64_t begin_of_data,
                             st_tensor **out, int64_t *begin) {
    const json_t *shape = json_object_get(o, "shape"), *offs = json_object_get(o, "data_offsets");
    const char *type = json_string_value(json_object_get(o, "dtype"));
    if (!type || !json_is_array(shape) || !json_is_array(offs) || json_array_size(offs) != 2)
        DAMAGED(s, "a tensor without dtype, shape or data_offsets");
    st_tensor *t = ARENA_NEW(f->a, st_tensor);
    t->name = arena_strdup(f->a, name);
    int bits = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(type, types[i].name)) {
            bits = types[i].bits, t->known = types[i].known, t->type = types[i].type, t->type_name = types[i].name;
        }
    CHECK(bits, "%s: tensor %s has the unknown type %.20s", s->path, name, type);
    CHECK(json_array_size(shape) <= ST_MAX_DIMS, "%s: tensor %s has more than %d dimensions", s->path, name,
          ST_MAX_DIMS);
    t->ndim = (int)json_array_size(shape);
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        t->size[i] = json_integer_value(d);
        if (!json_is_integer(d) || t->size[i] < 0 || !mul_ok(n, t->size[i], &n)) DAMAGED(s, "an impossible shape");
    }
    if (!mul_ok(n, bits, &n) || n % 8) DAMAGED(s, "a tensor that is no whole number of bytes");
    const json_t *b = json_array_get(offs, 0), *e = json_array_get(offs, 1);
    int64_t lo = json_integer_value(b), hi = json_integer_value(e), room = s->len - begin_of_data;
    if (!json_is_integer(b) || !json_is_integer(e) || lo < 0 || hi < lo || hi > room)
        DAMAGED(s, "a tensor lies outside the file: truncated?");
    CHECK(hi - lo == n / 8, "%s: tensor %s has %lld bytes but its shape and type need %lld; copy the file again",
          s->path, name, (long long)(hi - lo), (long long)(n / 8));
    t->bytes = hi - lo;
    t->data = t->bytes ? s->map + begin_of_data + lo : NULL;
    *begin = lo;
    *out = t;
    return SP_OK;
}

typedef struct placed {
    st_tensor *t;
    int64_t begin;
} placed;

static int by_begin(const void *x, const void *y) {
    const placed *a = x, *b = y;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->t->bytes != b->t->bytes) return a->t->bytes < b->t->bytes ? -1 : 1;
    return strcmp(a->t->name, b->t->name);
}

static sp_status read_entries(st_file *f, const shard *s, json_t *root, int64_t begin) {
    VEC(placed) list = {0};
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v) {
        if (!strcmp(key, "__metadata__")) {
            const char *k;
            json_t *m;
            json_object_foreach(v, k, m) {
                if (!json_is_string(m)) DAMAGED(s, "metadata that is not text");
                strmap_put(f->meta, k, f->meta_value.n);
                vec_push(f->a, &f->meta_value, arena_strdup(f->a, json_string_value(m)));
            }
            continue;
        }
        placed p = {0};
        TRY(read_tensor(f, s, key, v, begin, &p.t, &p.begin));
        vec_push(f->a, &list, p);
    }
    if (list.n) qsort(list.data, (size_t)list.n, sizeof *list.data, by_begin);
    int64_t at = 0;
    for (int i = 0; i < list.n; i++) {
        const st_tensor *t = list.data[i].t;
        if (list.data[i].begin != at) DAMAGED(s, "tensors overlap or leave a hole");
        at += t->bytes;
        CHECK(!strmap_get(f->index, t->name, NULL), "%s: tensor %s appears twice", s->path, t->name);
        strmap_put(f->index, t->name, f->t.n);
        vec_push(f->a, &f->t, list.data[i].t);
    }
    if (at != s->len - begin) DAMAGED(s, "bytes after the last tensor");
    return SP_OK;
}

static sp_status read_shard(st_file *f, const char *path) {
    shard s = {0};
    TRY(map_file(f, path, &s));
    vec_push(f->a, &f->shards, s);
    uint64_t n;
    memcpy(&n, s.map, 8);
    if (n > MAX_HEADER || n > (uint64_t)s.len - 8 || n < 2) DAMAGED(&s, "its header is longer than the file");
    if (s.map[8] != '{') DAMAGED(&s, "no header");
    json_error_t err;
    json_t *root = json_loadb((const char *)s.map + 8, (size_t)n, JSON_REJECT_DUPLICATES, &err);
    CHECK(root, "%s: damaged safetensors file (%s); copy it again", path, err.text);
    sp_status status = json_is_object(root) ? read_entries(f, &s, root, 8 + (int64_t)n)
                                            : err_set("%s: damaged safetensors file", path);
    json_decref(root);
    return status;
}

/* ---- files and folders -------------------------------------------------------------------------------- */

/* Every shard that an index names, relative to the index's folder. */
static sp_status read_index(st_file *f, const char *path) {
    struct stat st;
    CHECK(stat(path, &st) == 0, "cannot open %s: %s", path, strerror(errno));
    CHECK(st.st_size <= MAX_INDEX_BYTES, "%s: %lld bytes are too many for an index", path, (long long)st.st_size);
    json_error_t err;
    json_t *root = json_load_file(path, 0, &err);
    CHECK(root, "%s: not a safetensors index (%s)", path, err.text);
    json_t *map = json_object_get(root, "weight_map"), *v;
    const char *slash = strrchr(path, '/');
    int dir = slash ? (int)(slash - path) + 1 : 0;
    strmap *seen = strmap_new(f->a);
    sp_status s = json_is_object(map) ? SP_OK : err_set("%s: an index without weight_map", path);
    const char *key;
    json_object_foreach(map, key, v) {
        const char *file = json_string_value(v);
        if (s != SP_OK) break;
        if (!file || !*file || strchr(file, '/') || !strcmp(file, "..")) {
            s = err_set("%s: weight %s is in the file \"%.80s\", which is not a plain file name", path, key,
                        file ? file : "");
        } else if (!strmap_get(seen, file, NULL)) {
            strmap_put(seen, file, 1);
            s = read_shard(f, arena_printf(f->a, "%.*s%s", dir, path, file));
            if (s != SP_OK) err_note("shard of %s", path);
        }
    }
    json_object_foreach(map, key, v) {
        if (s == SP_OK && !strmap_get(f->index, key, NULL))
            s = err_set("%s: weight %s is not in %s, where the index says it is", path, key, json_string_value(v));
    }
    json_decref(root);
    return s;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static sp_status open_folder(st_file *f, const char *path) {
    const char *index = arena_printf(f->a, "%s/model.safetensors.index.json", path);
    const char *file = arena_printf(f->a, "%s/model.safetensors", path);
    if (access(index, F_OK) == 0) return read_index(f, index);
    if (access(file, F_OK) == 0) return read_shard(f, file);
    DIR *d = opendir(path);
    CHECK(d, "cannot read %s: %s", path, strerror(errno));
    int n = 0;
    for (struct dirent *e; (e = readdir(d));)
        if (ends_with(e->d_name, ".safetensors")) {
            file = arena_printf(f->a, "%s/%s", path, e->d_name);
            n++;
        }
    closedir(d);
    CHECK(n > 0, "%s: no .safetensors file in this folder", path);
    CHECK(n == 1, "%s: %d .safetensors files and no model.safetensors.index.json; name one of them", path, n);
    return read_shard(f, file);
}

sp_status st_open(const char *path, st_file **out) {
    arena *a = arena_new();
    st_file *f = ARENA_NEW(a, st_file);
    f->a = a, f->path = arena_strdup(a, path);
    f->index = strmap_new(a), f->meta = strmap_new(a);
    *out = NULL;
    struct stat st;
    sp_status s;
    if (stat(path, &st) != 0)
        s = err_set("cannot open %s: %s", path, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        s = open_folder(f, path);
    else if (ends_with(path, ".index.json"))
        s = read_index(f, path);
    else
        s = read_shard(f, path);
    if (s != SP_OK) {
        st_close(f);
        return SP_FAIL;
    }
    *out = f;
    return SP_OK;
}

void st_close(st_file *f) {
    if (!f) return;
    for (int i = 0; i < f->shards.n; i++)
        munmap((void *)(uintptr_t)f->shards.data[i].map, (size_t)f->shards.data[i].len);
    arena_free(f->a);
}

const char *st_path(const st_file *f) { return f->path; }
int st_count(const st_file *f) { return f->t.n; }
const st_tensor *st_at(const st_file *f, int i) { return f->t.data[i]; }

const st_tensor *st_find(const st_file *f, const char *name) {
    int64_t i;
    return strmap_get(f->index, name, &i) ? f->t.data[i] : NULL;
}

const char *st_metadata(const st_file *f, const char *key) {
    int64_t i;
    return strmap_get(f->meta, key, &i) ? f->meta_value.data[i] : NULL;
}
