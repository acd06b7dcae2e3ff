/* weights.c - see weights.h. */
#include "import/mapped.h"
#include "import/weights.h"

#include <stdlib.h>

struct wt_source {
    arena *a;
    const pt2 *p;
    st_file *st;      /* NULL without --weights */
    const char *base; /* the first component that most names in the file share, "" when there is none */
};

/* The most frequent first component of the file's names: "model" or "transformer". */
static const char *usual_component(arena *a, const st_file *f) {
    strmap *count = strmap_new(a);
    const char *best = "";
    int64_t most = 0;
    for (int i = 0; i < st_count(f); i++) {
        const char *name = st_at(f, i)->name, *dot = strchr(name, '.');
        if (!dot) continue;
        const char *c = arena_printf(a, "%.*s", (int)(dot - name), name);
        int64_t n = 0;
        strmap_get(count, c, &n);
        strmap_put(count, c, ++n);
        if (n > most) most = n, best = c;
    }
    return best;
}

sp_status wt_open(const pt2 *p, const char *path, wt_source **out) {
    *out = NULL;
    arena *a = arena_new();
    wt_source *s = ARENA_NEW(a, wt_source);
    s->a = a, s->p = p, s->base = "";
    if (path) {
        if (st_open(path, &s->st) != SP_OK) {
            arena_free(a);
            return (err_note("--weights"), SP_FAIL);
        }
        s->base = usual_component(a, s->st);
    }
    *out = s;
    return SP_OK;
}

void wt_close(wt_source *s) {
    if (!s) return;
    st_close(s->st);
    arena_free(s->a);
}

/* ---- finding ------------------------------------------------------------------------------------------- */

/* NAME in the file, or the tensor that save_model kept in its place. */
static const st_tensor *lookup(const wt_source *s, const char *name) {
    const st_tensor *t = st_find(s->st, name);
    if (t) return t;
    const char *kept = st_metadata(s->st, name);
    return kept ? st_find(s->st, kept) : NULL;
}

static const st_tensor *by_name(const wt_source *s, const char *fqn) {
    const st_tensor *t = lookup(s, fqn);
    if (t) return t;
    size_t n = strlen(s->p->weights_prefix);
    const char *bare = n && !strncmp(fqn, s->p->weights_prefix, n) ? fqn + n : fqn;
    if ((t = lookup(s, bare))) return t;
    const char *dot = strchr(bare, '.');
    if (dot && (t = lookup(s, dot + 1))) return t;
    char longer[1024];
    int len = snprintf(longer, sizeof longer, "%s.%s", s->base, bare);
    return *s->base && len < (int)sizeof longer ? lookup(s, longer) : NULL;
}

static const char *tied_root(const pt2 *p, const char *fqn) {
    for (int i = 0; i < p->n_tied; i++)
        if (!strcmp(p->tied_from[i], fqn)) return p->tied_to[i];
    return fqn;
}

/* FQN, or any other name of the same parameter. */
static const st_tensor *by_any_name(const wt_source *s, const pt2_weight *w) {
    const pt2 *p = s->p;
    const st_tensor *t = by_name(s, w->fqn);
    for (int i = 0; !t && i < p->n_weights; i++) {
        const pt2_weight *o = &p->weights[i];
        if (o == w) continue;
        bool same = (o->tied == w->tied && !w->absent) || !strcmp(tied_root(p, o->fqn), tied_root(p, w->fqn));
        if (same) t = by_name(s, o->fqn);
    }
    return t;
}

static void shape_text(char *out, size_t cap, int ndim, const int64_t *size) {
    size_t n = (size_t)snprintf(out, cap, "(");
    for (int i = 0; i < ndim && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%lld", i ? ", " : "", (long long)size[i]);
    if (n < cap) snprintf(out + n, cap - n, ")");
}

static sp_status from_safetensors(const wt_source *s, const pt2_weight *w, const st_tensor *t, wt_tensor *out) {
    char want[256], have[256];
    shape_text(want, sizeof want, w->ndim, w->size);
    shape_text(have, sizeof have, t->ndim, t->size);
    bool same = t->ndim == w->ndim;
    for (int i = 0; same && i < w->ndim; i++) same = t->size[i] == w->size[i];
    CHECK(same, "weight %s has the shape %s in %s but %s in the exported model", t->name, have, st_path(s->st), want);
    CHECK(t->known && t->type == out->type,
          "weight %s is %s in %s but %s in the exported model; export the model with that type, or convert the file",
          t->name, t->type_name, st_path(s->st), st_type_name(out->type));
    int64_t run = 1;
    for (int i = t->ndim - 1; i >= 0; i--) out->stride[i] = run, run *= t->size[i];
    out->stored = t->name, out->file = st_path(s->st);
    out->size = t->size, out->data = t->data;
    return SP_OK;
}

static sp_status from_archive(const wt_source *s, const pt2_weight *w, wt_tensor *out) {
    const void *data;
    int64_t bytes;
    TRY(ziparc_view(s->p->zip, w->entry, &data, &bytes));
    out->stored = w->fqn, out->file = s->p->path;
    out->size = w->size;
    for (int i = 0; i < w->ndim; i++) out->stride[i] = w->stride[i];
    out->data = (const uint8_t *)data + w->offset * dtype_size(out->type);
    return SP_OK;
}

sp_status wt_find(wt_source *s, const char *fqn, wt_tensor *out) {
    int64_t i;
    *out = (wt_tensor){.fqn = fqn};
    CHECK(strmap_get(s->p->weight_index, fqn, &i), "%s: the archive does not describe a weight %s; export it again",
          s->p->path, fqn);
    const pt2_weight *w = &s->p->weights[i];
    CHECK(pt2_dtype(w->scalar_type, &out->type), "%s: weight %s has the element type %s, which is not supported",
          s->p->path, fqn, pt2_dtype_name(w->scalar_type));
    CHECK(w->ndim <= ST_MAX_DIMS, "%s: weight %s has more than %d dimensions", s->p->path, fqn, ST_MAX_DIMS);
    out->ndim = w->ndim;
    const st_tensor *t = s->st && (w->is_param || w->absent) ? by_any_name(s, w) : NULL;
    if (t) {
        TRY(from_safetensors(s, w, t, out));
    } else {
        CHECK(!s->st || !w->is_param, "weight %s is not in %s", fqn, st_path(s->st));
        CHECK(!w->absent,
              "%s was exported without weights: it has none for %s; give their file or folder with --weights",
              s->p->path, fqn);
        TRY(from_archive(s, w, out));
    }
    out->count = 1, out->contiguous = true;
    for (int d = out->ndim - 1; d >= 0; d--) {
        if (out->size[d] != 1 && out->stride[d] != out->count) out->contiguous = false;
        out->count *= out->size[d];
    }
    return SP_OK;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

void wt_read(const wt_tensor *t, int64_t begin, int64_t n, dtype to, void *dst) {
    ASSERT(begin >= 0 && n >= 0 && begin <= t->count && n <= t->count - begin);
    const int64_t in = dtype_size(t->type), step = dtype_size(to);
    if (t->contiguous || n == 0) {
        st_convert(dst, to, t->data + begin * in, t->type, n);
        return;
    }
    /* Strided: runs along the last dimension, its elements one by one unless they are adjacent. */
    const int last = t->ndim - 1;
    uint8_t *d = dst;
    for (int64_t i = begin; i < begin + n;) {
        int64_t rest = i, at = 0;
        for (int k = last; k >= 0; k--) at += rest % t->size[k] * t->stride[k], rest /= t->size[k];
        int64_t run = min64(t->size[last] - i % t->size[last], begin + n - i);
        if (t->stride[last] == 1) {
            st_convert(d, to, t->data + at * in, t->type, run);
        } else {
            for (int64_t k = 0; k < run; k++)
                st_convert(d + k * step, to, t->data + (at + k * t->stride[last]) * in, t->type, 1);
        }
        d += run * step, i += run;
    }
}

void wt_release(const wt_tensor *t) {
    if (t->contiguous && t->count > 0)
        mapped_let_go(t->data, t->count * dtype_size(t->type)); /* both sources map theirs */
}
