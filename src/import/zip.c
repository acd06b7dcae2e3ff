/* zip.c - see zip.h.
 *
 * The directory is walked twice: by libzip (which checks it and will inflate entries) and by this file (which
 * only takes each entry's local header offset, ZIP64 included). Both must agree on the number, names and
 * sizes of the entries; a file on which two readers disagree is refused.
 *
 * The formats are those of PKWARE's APPNOTE.TXT 6.3.9, sections 4.3.7 (local header), 4.3.12 (central
 * header), 4.3.14 to 4.3.16 (end records) and 4.5.3 (ZIP64 extra field).
 */
#include "import/mapped.h"
#include "import/zip.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zip.h>

/* Deflate cannot expand by more than this (RFC 1951: 258 bytes from 2 bits). */
#define MAX_DEFLATE_RATIO 1032

typedef struct entry {
    const char *name;   /* below the root */
    int64_t size, comp; /* bytes inflated, bytes in the file */
    int64_t data;       /* offset of the data in the file */
    uint32_t crc;
    bool stored, verified;
} entry;

struct ziparc {
    arena *a;
    zip_t *z;
    const char *path, *root;
    const uint8_t *map;
    int64_t len;
    entry *e;
    int n;
    strmap *index;
    pthread_mutex_t lock; /* guards libzip and entry.verified */
};

static uint32_t u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }
static uint64_t u64(const uint8_t *p) { return u32(p) | (uint64_t)u32(p + 4) << 32; }

/* ---- CRC-32, eight bytes a step (the "slicing" method of Kounavis and Berry, 2005) -------------- */

static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void crc_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            crc_table[t][i] = crc_table[0][crc_table[t - 1][i] & 255] ^ (crc_table[t - 1][i] >> 8);
}

static uint32_t crc32_of(const uint8_t *p, int64_t n) {
    pthread_once(&crc_once, crc_init);
    uint32_t c = 0xFFFFFFFFu;
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t lo = u32(p) ^ c, hi = u32(p + 4);
        c = crc_table[7][lo & 255] ^ crc_table[6][lo >> 8 & 255] ^ crc_table[5][lo >> 16 & 255] ^
            crc_table[4][lo >> 24] ^ crc_table[3][hi & 255] ^ crc_table[2][hi >> 8 & 255] ^
            crc_table[1][hi >> 16 & 255] ^ crc_table[0][hi >> 24];
    }
    for (; n > 0; n--, p++) c = crc_table[0][(c ^ *p) & 255] ^ (c >> 8);
    return ~c;
}

/* ---- the central directory ---------------------------------------------------------------------- */

#define BROKEN(z, what) FAIL("%s: damaged archive (%s); export or copy it again", (z)->path, what)

/* Finds the central directory: its offset and length in the file, and the number of entries. */
static sp_status find_directory(const ziparc *z, int64_t *off, int64_t *len, int64_t *count) {
    const int64_t n = z->len;
    int64_t at = -1;
    for (int64_t i = n - 22; i >= 0 && i >= n - 22 - 65535; i--)
        if (u32(z->map + i) == 0x06054b50) {
            at = i;
            break;
        }
    if (at < 0) BROKEN(z, "no end record: the file is cut off or not a .pt2");
    const uint8_t *p = z->map + at;
    uint64_t c = u16(p + 10), l = u32(p + 12), o = u32(p + 16);
    if (at >= 20 && u32(p - 20) == 0x07064b50) {
        uint64_t e = u64(p - 20 + 8);
        if (e > (uint64_t)at || (uint64_t)at - e < 56 || u32(z->map + e) != 0x06064b50)
            BROKEN(z, "bad ZIP64 end record");
        const uint8_t *q = z->map + e;
        c = u64(q + 32), l = u64(q + 40), o = u64(q + 48);
    }
    if (o > (uint64_t)n || l > (uint64_t)n - o || c > l / 46) BROKEN(z, "the directory lies outside the file");
    *off = (int64_t)o, *len = (int64_t)l, *count = (int64_t)c;
    return SP_OK;
}

/* The ZIP64 values of a central header, in the order the format gives them. */
static bool zip64_extra(const uint8_t *x, int64_t n, uint64_t *size, uint64_t *comp, uint64_t *lho) {
    for (; n >= 4;) {
        int64_t id = u16(x), len = u16(x + 2);
        if (len > n - 4) return false;
        if (id == 1) {
            const uint8_t *v = x + 4;
            uint64_t *want[3] = {size, comp, lho};
            for (int i = 0; i < 3; i++) {
                if (*want[i] != 0xFFFFFFFFu) continue;
                if (len < 8) return false;
                *want[i] = u64(v);
                v += 8, len -= 8;
            }
            return true;
        }
        x += 4 + len, n -= 4 + len;
    }
    return *size != 0xFFFFFFFFu && *comp != 0xFFFFFFFFu && *lho != 0xFFFFFFFFu;
}

/* Fills entry I's data offset from the central header at *P, and moves *P on. */
static sp_status read_central(ziparc *z, int i, int64_t *p, int64_t end) {
    zip_stat_t st;
    if (zip_stat_index(z->z, (zip_uint64_t)i, 0, &st) != 0) BROKEN(z, zip_strerror(z->z));
    const zip_uint64_t need = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_CRC;
    if ((st.valid & need) != need) BROKEN(z, "an entry without name or size");
    if (end - *p < 46 || u32(z->map + *p) != 0x02014b50) BROKEN(z, "bad directory entry");
    const uint8_t *h = z->map + *p;
    int64_t nlen = u16(h + 28), xlen = u16(h + 30), clen = u16(h + 32);
    if (end - *p - 46 < nlen + xlen + clen) BROKEN(z, "a directory entry leaves the directory");
    uint64_t comp = u32(h + 20), size = u32(h + 24), lho = u32(h + 42);
    if (!zip64_extra(h + 46 + nlen, xlen, &size, &comp, &lho)) BROKEN(z, "bad ZIP64 extra field");
    const int64_t at = *p;
    *p += 46 + nlen + xlen + clen;
    if (size != st.size || comp != st.comp_size) BROKEN(z, "contradictory entry sizes");
    if (u16(h + 8) & 1) FAIL("%s: entry %s is encrypted", z->path, st.name);

    if (z->len < 30 || lho > (uint64_t)z->len - 30 || u32(z->map + lho) != 0x04034b50)
        BROKEN(z, "an entry's header lies outside the file");
    const uint8_t *l = z->map + lho;
    uint64_t data = lho + 30 + u16(l + 26) + u16(l + 28);
    if (data > (uint64_t)z->len || comp > (uint64_t)z->len - data) BROKEN(z, "an entry is longer than the file");
    if (u16(l + 26) != nlen || memcmp(l + 30, h + 46, (size_t)nlen) != 0) BROKEN(z, "an entry with two names");
    if (memchr(z->map + at + 46, 0, (size_t)nlen)) BROKEN(z, "an entry name with a NUL");

    entry *e = &z->e[i];
    e->size = (int64_t)size, e->comp = (int64_t)comp, e->data = (int64_t)data;
    e->crc = st.crc, e->stored = st.comp_method == ZIP_CM_STORE;
    if (e->stored && size != comp) BROKEN(z, "a stored entry with two sizes");
    if (!e->stored && size > (comp + 1) * MAX_DEFLATE_RATIO) BROKEN(z, "an entry claims an impossible size");

    /* Some producers on Windows write '\'. */
    char *name = arena_strdup(z->a, st.name);
    for (char *c = name; *c; c++)
        if (*c == '\\') *c = '/';
    char *slash = strchr(name, '/');
    if (slash && i == 0) {
        char *root = arena_strdup(z->a, name);
        root[slash - name] = 0;
        z->root = root;
    }
    size_t rl = strlen(z->root);
    e->name = rl && strncmp(name, z->root, rl) == 0 && name[rl] == '/' ? name + rl + 1 : name;
    if (strmap_get(z->index, e->name, NULL)) FAIL("%s: damaged archive (two entries named %s)", z->path, e->name);
    strmap_put(z->index, e->name, i);
    return SP_OK;
}

static sp_status open_into(ziparc *z) {
    int fd = open(z->path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, "cannot open %s: %s", z->path, strerror(errno));
    struct stat st;
    bool ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (ok && st.st_size > 0) {
        z->len = st.st_size;
        void *m = mmap(NULL, (size_t)z->len, PROT_READ, MAP_PRIVATE, fd, 0);
        z->map = m == MAP_FAILED ? NULL : m;
    }
    close(fd);
    CHECK(ok, "%s is not a regular file", z->path);
    CHECK(z->len >= 22, "%s is not a .pt2 archive: only %lld bytes", z->path, (long long)z->len);
    CHECK(z->map, "cannot map %s: %s", z->path, strerror(errno));

    int64_t off, len, count;
    TRY(find_directory(z, &off, &len, &count));
    CHECK(count > 0 && count <= INT32_MAX, "%s: an archive without entries", z->path);

    zip_error_t err;
    zip_error_init(&err);
    zip_source_t *src = zip_source_buffer_create(z->map, (zip_uint64_t)z->len, 0, &err);
    if (src) z->z = zip_open_from_source(src, ZIP_RDONLY, &err);
    if (!z->z) {
        err_set("%s: damaged archive (%s); export or copy it again", z->path, zip_error_strerror(&err));
        if (src) zip_source_free(src);
        zip_error_fini(&err);
        return SP_FAIL;
    }
    zip_error_fini(&err);
    if (zip_get_num_entries(z->z, 0) != count) BROKEN(z, "contradictory number of entries");
    z->e = arena_try_alloc(z->a, sizeof(entry) * (size_t)count);
    CHECK(z->e, "%s: out of memory for %lld entries", z->path, (long long)count);
    z->n = (int)count;
    int64_t p = off;
    for (int i = 0; i < z->n; i++) TRY(read_central(z, i, &p, off + len));
    return SP_OK;
}

sp_status ziparc_open(const char *path, ziparc **out) {
    arena *a = arena_new();
    ziparc *z = ARENA_NEW(a, ziparc);
    z->a = a, z->path = arena_strdup(a, path), z->root = "";
    z->index = strmap_new(a);
    pthread_mutex_init(&z->lock, NULL);
    *out = NULL;
    if (open_into(z) != SP_OK) {
        ziparc_close(z);
        return SP_FAIL;
    }
    *out = z;
    return SP_OK;
}

void ziparc_close(ziparc *z) {
    if (!z) return;
    if (z->z) zip_discard(z->z);
    if (z->map) munmap((void *)(uintptr_t)z->map, (size_t)z->len);
    pthread_mutex_destroy(&z->lock);
    arena_free(z->a);
}

const char *ziparc_path(const ziparc *z) { return z->path; }
const char *ziparc_root(const ziparc *z) { return z->root; }
int ziparc_count(const ziparc *z) { return z->n; }
const char *ziparc_name(const ziparc *z, int i) { return z->e[i].name; }
int64_t ziparc_size(const ziparc *z, int i) { return z->e[i].size; }

int ziparc_find(const ziparc *z, const char *name) {
    int64_t i;
    return strmap_get(z->index, name, &i) ? (int)i : -1;
}

sp_status ziparc_view(ziparc *z, int i, const void **data, int64_t *size) {
    ASSERT(i >= 0 && i < z->n);
    entry *e = &z->e[i];
    CHECK(e->stored, "%s: entry %s is compressed; weights must be stored as torch.export.save writes them", z->path,
          e->name);
    pthread_mutex_lock(&z->lock);
    bool known = e->verified;
    pthread_mutex_unlock(&z->lock);
    if (!known) {
        CHECK(crc32_of(z->map + e->data, e->size) == e->crc,
              "%s: damaged archive (entry %s does not match its checksum); export or copy it again", z->path, e->name);
        mapped_let_go(z->map + e->data, e->size); /* read to be checked only */
        pthread_mutex_lock(&z->lock);
        e->verified = true;
        pthread_mutex_unlock(&z->lock);
    }
    *data = z->map + e->data, *size = e->size;
    return SP_OK;
}

sp_status ziparc_read(ziparc *z, int i, int64_t cap, char **data, int64_t *size) {
    ASSERT(i >= 0 && i < z->n);
    const entry *e = &z->e[i];
    CHECK(e->size <= cap, "%s: entry %s has %lld bytes, more than the %lld this program reads", z->path, e->name,
          (long long)e->size, (long long)cap);
    char *d = malloc((size_t)e->size + 1);
    CHECK(d, "%s: out of memory for the %lld bytes of %s", z->path, (long long)e->size, e->name);
    if (e->stored) {
        const void *v;
        int64_t n;
        if (ziparc_view(z, i, &v, &n) != SP_OK) {
            free(d);
            return SP_FAIL;
        }
        memcpy(d, v, (size_t)n);
    } else {
        pthread_mutex_lock(&z->lock);
        zip_file_t *f = zip_fopen_index(z->z, (zip_uint64_t)i, 0);
        int64_t got = f ? zip_fread(f, d, (zip_uint64_t)e->size) : -1;
        /* libzip compares the CRC when it meets the end of the data: read on until it does. */
        char more;
        bool ok = got == e->size && zip_fread(f, &more, 1) == 0;
        if (f) zip_fclose(f);
        pthread_mutex_unlock(&z->lock);
        if (!ok) {
            free(d);
            FAIL("%s: damaged archive (cannot read entry %s); export or copy it again", z->path, e->name);
        }
    }
    d[e->size] = 0;
    *data = d, *size = e->size;
    return SP_OK;
}
