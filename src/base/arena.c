/* arena.c - the bump allocator, vectors that grow inside it, text buffers and the string map. */
#include "base/base.h"

#include <stdlib.h>

typedef struct chunk {
    struct chunk *next;
    size_t used, cap;
    _Alignas(16) unsigned char data[];
} chunk;

struct arena {
    chunk *head;
    size_t used;
};

/* Small at first: an arena for one node's rows is made a hundred thousand times in a large plan, and chunks are zeroed.
 */
enum { CHUNK_MIN = 1024, CHUNK_MAX = 4 * 1024 * 1024 };

static void *no_memory(const char *what) {
    fprintf(stderr, "autosp: out of memory (%s)\n", what);
    abort();
}

arena *arena_new(void) {
    arena *a = calloc(1, sizeof *a);
    return a ? a : no_memory("arena");
}

void arena_free(arena *a) {
    if (!a) return;
    for (chunk *c = a->head; c;) {
        chunk *next = c->next;
        free(c);
        c = next;
    }
    free(a);
}

void *arena_try_alloc(arena *a, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!a->head || a->head->cap - a->head->used < bytes) {
        size_t cap = a->head ? a->head->cap * 2 : CHUNK_MIN;
        if (cap > CHUNK_MAX) cap = CHUNK_MAX;
        if (cap < bytes) cap = bytes;
        chunk *c = calloc(1, sizeof *c + cap); /* zeroed once, handed out once */
        if (!c) return NULL;
        c->cap = cap;
        c->next = a->head;
        a->head = c;
    }
    void *p = a->head->data + a->head->used;
    a->head->used += bytes;
    a->used += bytes;
    return p;
}

void *arena_alloc(arena *a, size_t bytes) {
    void *p = arena_try_alloc(a, bytes);
    return p ? p : no_memory("compilation");
}

char *arena_strdup(arena *a, const char *s) { return arena_memdup(a, s, strlen(s) + 1); }

void *arena_memdup(arena *a, const void *p, size_t bytes) {
    void *q = arena_alloc(a, bytes);
    if (bytes) memcpy(q, p, bytes);
    return q;
}

char *arena_printf(arena *a, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    char *s = arena_alloc(a, (size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

const char *temp_folder(void) {
    const char *dir = getenv("TMPDIR");
    return dir && *dir ? dir : "/tmp";
}

char *temp_name(arena *a, const char *folder, const char *what) {
    return arena_printf(a, "%s/autosp-%s-XXXXXX", folder, what);
}

size_t arena_used(const arena *a) { return a->used; }

void *vec_grow(arena *a, void *data, int *cap, int n, size_t elem) {
    int want = *cap ? *cap * 2 : 8;
    void *p;
    if (a) {
        p = arena_alloc(a, (size_t)want * elem);
        if (n) memcpy(p, data, (size_t)n * elem);
    } else {
        p = realloc(data, (size_t)want * elem);
        if (!p) no_memory("vector");
    }
    *cap = want;
    return p;
}

void vec_release(void *data) { free(data); }

void buf_write(buf *b, const void *p, size_t n) {
    if (b->cap - b->n < n + 1) {
        size_t cap = b->cap ? b->cap * 2 : 256;
        while (cap - b->n < n + 1) cap *= 2;
        char *data = realloc(b->data, cap);
        if (!data) no_memory("text");
        b->data = data;
        b->cap = cap;
    }
    if (n) memcpy(b->data + b->n, p, n);
    b->n += n;
    b->data[b->n] = 0;
}

void buf_printf(buf *b, const char *fmt, ...) {
    char small[512];
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    if ((size_t)n < sizeof small) {
        buf_write(b, small, (size_t)n);
    } else {
        char *s = malloc((size_t)n + 1);
        if (!s) no_memory("text");
        vsnprintf(s, (size_t)n + 1, fmt, again);
        buf_write(b, s, (size_t)n);
        free(s);
    }
    va_end(again);
}

void buf_free(buf *b) {
    free(b->data);
    *b = (buf){0};
}

typedef struct slot {
    const char *key;
    int64_t value;
} slot;

struct strmap {
    arena *a;
    slot *slots;
    int n, cap; /* cap is a power of two */
};

strmap *strmap_new(arena *a) {
    strmap *m = ARENA_NEW(a, strmap);
    m->a = a;
    m->cap = 16;
    m->slots = ARENA_ARRAY(a, slot, m->cap);
    return m;
}

static slot *strmap_slot(const strmap *m, const char *key) {
    uint64_t h = hash_str(HASH_INIT, key);
    for (int i = (int)(h & (uint64_t)(m->cap - 1));; i = (i + 1) & (m->cap - 1))
        if (!m->slots[i].key || strcmp(m->slots[i].key, key) == 0) return &m->slots[i];
}

void strmap_put(strmap *m, const char *key, int64_t value) {
    if (2 * (m->n + 1) > m->cap) {
        slot *old = m->slots;
        int cap = m->cap;
        m->cap *= 2;
        m->slots = ARENA_ARRAY(m->a, slot, m->cap);
        for (int i = 0; i < cap; i++)
            if (old[i].key) *strmap_slot(m, old[i].key) = old[i];
    }
    slot *s = strmap_slot(m, key);
    if (!s->key) {
        s->key = arena_strdup(m->a, key);
        m->n++;
    }
    s->value = value;
}

bool strmap_get(const strmap *m, const char *key, int64_t *value) {
    const slot *s = strmap_slot(m, key);
    if (!s->key) return false;
    if (value) *value = s->value;
    return true;
}

int strmap_count(const strmap *m) { return m->n; }
