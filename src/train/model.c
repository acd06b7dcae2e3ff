/* model.c - opens models and reads their weights; model.h says from where. */
#include "train/model.h"

#include <errno.h>
#include <stdlib.h>

enum { TEXT_MAX = 64 << 20, COMPANION_MAX = 256 << 20 };

/* ---- what the graph says ----------------------------------------------------------------------- */

/* The input that v is a reshaped, cast or copied form of; NULL for anything else. */
static const char *input_behind(const ir_graph *g, ir_val v) {
    for (;;) {
        const ir_node *n = ir_def(g, v);
        if (n->op == OP_input) return ir_str(n, "name");
        if (n->op != OP_reshape && n->op != OP_cast && n->op != OP_copy && n->op != OP_permute && n->op != OP_slice)
            return NULL;
        v = n->in[0];
    }
}

static void lower_to(int64_t *limit, ir_dim d) {
    if (d > 0 && (*limit == 0 || d < *limit)) *limit = d;
}

/* Vocabulary, ignored label and inputs, from the ops that define them. A cross-entropy against constants says nothing
 * of the labels in the data. */
static void read_graph(train_model *m) {
    const ir_graph *g = m->forward;
    arena *scratch = arena_new();
    bool *given = ARENA_ARRAY(scratch, bool, g->values.n); /* by value: depends on an input */
    m->ignore = -100;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        bool is = n->op == OP_input;
        for (int k = 0; k < n->nin; k++) is |= given[n->in[k]];
        for (int k = 0; k < n->nout; k++) given[n->out[k]] = is;
        if (n->op == OP_embedding) {
            const char *input = input_behind(g, n->in[1]);
            if (input && strcmp(input, "input_ids") == 0) lower_to(&m->vocab, ir_typeof(g, n->in[0])->dim[0]);
        } else if (n->op == OP_xent && given[n->in[1]]) {
            const ir_type *logits = ir_typeof(g, n->in[0]);
            lower_to(&m->vocab, logits->dim[logits->rank - 1]);
            m->ignore = ir_int(n, "ignore", -100);
        } else if (n->op == OP_input) {
            const char *name = ir_str(n, "name");
            m->takes_positions |= strcmp(name, "position_ids") == 0;
            m->takes_documents |= strcmp(name, "document_ids") == 0;
            m->takes_prefixes |= strcmp(name, "prefix_lengths") == 0;
            const ir_type *t = ir_typeof(g, n->out[0]);
            if (strcmp(name, "input_ids") == 0 && t->rank == 2) { /* expressions are negative: not fixed */
                m->fixed_batch = max64(t->dim[0], 0);
                m->fixed_seq = max64(t->dim[1], 0);
            }
        }
    }
    arena_free(scratch);
}

/* ---- text graphs ------------------------------------------------------------------------------- */

static sp_status open_text(train_model *m) {
    FILE *f = fopen(m->path, "rb");
    CHECK(f, "cannot open %s: %s", m->path, strerror(errno));
    buf text = {0};
    char block[65536];
    size_t n;
    while ((n = fread(block, 1, sizeof block, f)) > 0 && text.n < TEXT_MAX) buf_write(&text, block, n);
    bool bad = ferror(f);
    fclose(f);
    sp_status s = SP_OK;
    if (bad)
        s = err_set("cannot read %s", m->path);
    else if (text.n >= TEXT_MAX)
        s = err_set("%s is larger than any graph", m->path);
    else
        s = ir_parse(m->a, text.data ? text.data : "", m->path, &m->forward);
    buf_free(&text);
    TRY(s);
    TRY(ir_verify(m->forward, m->path));
    m->labels_shifted = true;
    if (m->weights_path) TRY_NOTE(st_open(m->weights_path, &m->st), "--weights");
    return SP_OK;
}

static sp_status text_tensors(train_model *m) {
    const ir_graph *g = m->forward;
    m->tensors = ARENA_ARRAY(m->a, ckpt_tensor, g->nodes.n);
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op != OP_param) continue;
        const ir_type *t = ir_typeof(g, n->out[0]);
        if (!dtype_is_float(t->t)) continue;
        const char *name = ir_str(n, "name");
        m->tensors[m->ntensors++] = (ckpt_tensor){.name = name,
                                                  .stored = name,
                                                  .stored_type = t->t,
                                                  .ndim = t->rank,
                                                  .size = t->dim,
                                                  .frozen = !ir_int(n, "grad", 0)};
    }
    return SP_OK;
}

/* ---- archives ---------------------------------------------------------------------------------- */

static sp_status open_archive(train_model *m) {
    TRY(import_pt2(m->a, m->path, &m->forward, &m->import));
    m->labels_shifted = m->import.labels_shifted;
    return wt_open(m->import.program, m->weights_path, &m->weights);
}

/* A checkpoint's names: as they were found under --weights; of an archive's own, without the wrapper's prefix. */
static sp_status archive_tensors(train_model *m) {
    const pt2 *p = m->import.program;
    m->tensors = ARENA_ARRAY(m->a, ckpt_tensor, m->import.n_params);
    for (int i = 0; i < m->import.n_params; i++) {
        const import_param *ip = &m->import.params[i];
        const pt2_weight *w = &p->weights[ip->weight];
        ckpt_tensor *t = &m->tensors[m->ntensors];
        *t = (ckpt_tensor){.name = ip->name, .ndim = w->ndim, .size = w->size, .frozen = !(ip->trainable && ip->used)};
        wt_tensor found;
        if (wt_find(m->weights, ip->name, &found) == SP_OK) {
            t->stored = found.stored;
            t->stored_type = found.type;
        } else if (m->drawn && pt2_dtype(w->scalar_type, &t->stored_type)) {
            t->stored = ip->name;
        } else {
            return SP_FAIL; /* wt_find's message */
        }
        if (!dtype_is_float(t->stored_type)) continue;
        size_t n = strlen(p->weights_prefix);
        if (!m->weights_path && strncmp(t->stored, p->weights_prefix, n) == 0) t->stored += n;
        m->ntensors++;
    }
    return SP_OK;
}

static sp_status archive_files(train_model *m) {
    ziparc *z = m->import.program->zip;
    static const char folder[] = "extra/";
    m->files = ARENA_ARRAY(m->a, ckpt_file, ziparc_count(z));
    for (int i = 0; i < ziparc_count(z); i++) {
        const char *name = ziparc_name(z, i);
        if (strncmp(name, folder, sizeof folder - 1) != 0 || !ckpt_is_companion(name + sizeof folder - 1)) continue;
        char *data;
        int64_t bytes;
        TRY(ziparc_read(z, i, COMPANION_MAX, &data, &bytes));
        m->files[m->nfiles++] = (ckpt_file){name + sizeof folder - 1, arena_memdup(m->a, data, (size_t)bytes), bytes};
        free(data);
    }
    return SP_OK;
}

/* ---- opening ----------------------------------------------------------------------------------- */

static sp_status open_model(train_model *m) {
    size_t n = strlen(m->path);
    m->is_text = n >= 3 && strcmp(m->path + n - 3, ".ir") == 0;
    TRY(m->is_text ? open_text(m) : open_archive(m));
    read_graph(m);
    if (m->is_text) return text_tensors(m);
    TRY(archive_tensors(m));
    return archive_files(m);
}

sp_status train_model_open(const char *path, const char *weights, bool draw, uint64_t seed, train_model **out) {
    *out = NULL;
    arena *a = arena_new();
    train_model *m = ARENA_NEW(a, train_model);
    m->a = a;
    m->path = arena_strdup(a, path);
    m->weights_path = weights ? arena_strdup(a, weights) : NULL;
    m->drawn = draw;
    m->seed = seed;
    if (open_model(m) != SP_OK) {
        train_model_close(m);
        return SP_FAIL;
    }
    *out = m;
    return SP_OK;
}

void train_model_close(train_model *m) {
    if (!m) return;
    wt_close(m->weights);
    if (m->import.program) import_close(&m->import);
    st_close(m->st);
    arena_free(m->a);
}

/* ---- weights ----------------------------------------------------------------------------------- */

/* The parameter's size in the forward graph, where nothing of a parameter is symbolic. */
static const ir_type *param_type(const train_model *m, const char *name) {
    const ir_graph *g = m->forward;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_param && strcmp(ir_str(n, "name"), name) == 0) return ir_typeof(g, n->out[0]);
    }
    return NULL;
}

/* Matrices from a normal distribution of width 0.02, vectors (mostly scales of norms) around 1: a model as it is before
 * training, the same on every rank and for every P, as each tensor's numbers depend on its name and the seed only. */
static void draw(const train_model *m, const char *name, dtype to, int64_t count, void *dst) {
    const ir_type *t = param_type(m, name);
    double mean = t && t->rank >= 2 ? 0 : 1;
    uint64_t rng = hash_str(HASH_INIT ^ m->seed, name);
    for (int64_t i = 0; i < count; i++) {
        double v = mean + 0.02 * rng_normal(&rng);
        st_convert((char *)dst + i * dtype_size(to), to, &v, DT_F64, 1);
    }
}

static sp_status read_text(const train_model *m, const char *name, dtype to, int64_t count, void *dst) {
    if (!m->st) {
        draw(m, name, to, count, dst);
        return SP_OK;
    }
    const st_tensor *t = st_find(m->st, name);
    const ir_type *want = param_type(m, name);
    CHECK(t, "weight %s is not in %s", name, st_path(m->st));
    bool fits = t->known && want && t->ndim == want->rank;
    for (int i = 0; fits && i < t->ndim; i++) fits = t->size[i] == want->dim[i];
    CHECK(fits, "weight %s in %s has not the shape that %s gives it", name, st_path(m->st), m->path);
    ASSERT(t->bytes == count * dtype_size(t->type));
    st_convert(dst, to, t->data, t->type, count);
    return SP_OK;
}

sp_status train_model_read(const train_model *m, const char *name, dtype to, int64_t count, void *dst) {
    if (m->is_text) return read_text(m, name, to, count, dst);
    wt_tensor t;
    if (wt_find(m->weights, name, &t) != SP_OK) {
        if (!m->drawn) return SP_FAIL;
        draw(m, name, to, count, dst);
        return SP_OK;
    }
    CHECK(t.count == count, "weight %s has %lld elements, the graph has %lld", name, (long long)t.count,
          (long long)count);
    wt_read(&t, 0, count, to, dst);
    wt_release(&t); /* else a training process would hold its weights twice */
    return SP_OK;
}
