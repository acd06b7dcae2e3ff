/* data.c - data files opened and turned into batches; data.h states what lands where.
 *
 * Requires: a little-endian machine (checked at build time). Keeps: a file's own numbers are compared with its
 * size before anything is read through them, and every token is checked when it is used, not by a scan of a file
 * that may be larger than memory.
 */
#include "train/data.h"

#include "import/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are little-endian and read in place");

/* A mapped array of unsigned tokens. */
typedef struct token_file {
    const unsigned char *at; /* the first token */
    int width;               /* bytes a token: 1, 2 or 4 */
    int64_t count;
} token_file;

/* The columns of a safetensors file, each (N, S); NULL when the file lacks it. */
typedef struct row_file {
    const st_tensor *input_ids, *labels, *position_ids, *document_ids;
    const st_tensor *prefix_lengths; /* (N) */
    int64_t count;                   /* N */
} row_file;

struct train_data {
    char *path;
    train_data_options opt;
    void *map;
    size_t map_bytes;
    token_file tokens;
    st_file *st; /* NULL: a token file */
    row_file rows;
};

/* ---- opening ----------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static sp_status map_file(train_data *d) {
    int fd = open(d->path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, "cannot open data file %s: %s", d->path, strerror(errno));
    struct stat st;
    sp_status s = SP_OK;
    if (fstat(fd, &st) != 0)
        s = err_set("cannot read data file %s: %s", d->path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        s = err_set("data file %s is not a regular file; give a .txt, .bin or .safetensors file", d->path);
    else if (st.st_size == 0)
        s = err_set("data file %s is empty", d->path);
    else {
        d->map_bytes = (size_t)st.st_size;
        d->map = mmap(NULL, d->map_bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (d->map == MAP_FAILED) {
            d->map = NULL;
            s = err_set("cannot map data file %s: %s", d->path, strerror(errno));
        }
    }
    close(fd); /* the mapping stays */
    return s;
}

/* Nothing but tokens, from the first byte to the last. */
static sp_status whole_file(train_data *d, int width) {
    CHECK(d->map_bytes % (size_t)width == 0,
          "data file %s has %zu bytes, which is no whole number of %d-byte tokens; is it truncated, or should "
          "--data-dtype say otherwise?",
          d->path, d->map_bytes, width);
    d->tokens = (token_file){d->map, width, (int64_t)(d->map_bytes / (size_t)width)};
    return SP_OK;
}

/* llm.c's header is 256 int32: magic, version, token count, zeros. Its writers: dev/data/data_common.py. */
static sp_status open_bin(train_data *d) {
    enum { HEADER = 1024 };
    static const struct {
        int32_t magic, version;
        int width;
    } known[] = {{20240520, 1, 2}, {20240801, 7, 4}};
    int32_t head[3] = {0};
    if (d->map_bytes >= sizeof head) memcpy(head, d->map, sizeof head);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (head[0] != known[i].magic) continue;
        CHECK(head[1] == known[i].version, "data file %s has llm.c's magic %d but version %d; only version %d is known",
              d->path, head[0], head[1], known[i].version);
        int width = known[i].width;
        CHECK(d->map_bytes >= HEADER && head[2] >= 0 && (d->map_bytes - HEADER) / (size_t)width >= (size_t)head[2],
              "data file %s is truncated: its header promises %d tokens of %d bytes after %d bytes of header, the file "
              "has %zu bytes",
              d->path, head[2], width, HEADER, d->map_bytes);
        d->tokens = (token_file){(const unsigned char *)d->map + HEADER, width, head[2]};
        return SP_OK;
    }
    return whole_file(d, d->opt.tokens_u32 ? 4 : 2);
}

static sp_status open_tokens(train_data *d) {
    TRY(map_file(d));
    if (ends_with(d->path, ".txt")) {
        CHECK(d->opt.vocab == 0 || d->opt.vocab >= 256,
              "data file %s is text, which trains on bytes and needs a vocabulary of at least 256; the model's is %lld",
              d->path, (long long)d->opt.vocab);
        TRY(whole_file(d, 1));
    } else {
        TRY(open_bin(d));
    }
    int64_t n = d->tokens.count, need = 0;
    CHECK(
        add_ok(d->opt.seq, 1, &need) && n >= need,
        "data file %s holds %lld tokens, less than one sequence: %lld tokens and the label after them; lower --seq or "
        "give a longer file",
        d->path, (long long)n, (long long)d->opt.seq);
    return SP_OK;
}

/* Finds column `name`; it must have the shape of input_ids. */
static sp_status find_column(const train_data *d, const char *name, const st_tensor **out) {
    const st_tensor *t = *out = st_find(d->st, name), *ids = d->rows.input_ids;
    if (!t) return SP_OK;
    CHECK(t->known && (t->type == DT_I64 || t->type == DT_I32), "data file %s: %s is %s; it must be I64 or I32",
          d->path, name, t->type_name);
    CHECK(t->ndim == 2, "data file %s: %s has %d dimensions; it must have two, rows and tokens", d->path, name,
          t->ndim);
    CHECK(!ids || (t->size[0] == ids->size[0] && t->size[1] == ids->size[1]),
          "data file %s: %s is (%lld, %lld) but input_ids is (%lld, %lld)", d->path, name, (long long)t->size[0],
          (long long)t->size[1], (long long)ids->size[0], (long long)ids->size[1]);
    return SP_OK;
}

static sp_status open_rows(train_data *d) {
    TRY_NOTE(st_open(d->path, &d->st), "data file %s", d->path);
    row_file *r = &d->rows;
    TRY(find_column(d, "input_ids", &r->input_ids));
    CHECK(r->input_ids, "data file %s holds no tensor input_ids", d->path);
    TRY(find_column(d, "labels", &r->labels));
    TRY(find_column(d, "position_ids", &r->position_ids));
    TRY(find_column(d, "document_ids", &r->document_ids));
    r->count = r->input_ids->size[0];
    const st_tensor *n = r->prefix_lengths = st_find(d->st, "prefix_lengths");
    CHECK(!n || (n->known && (n->type == DT_I64 || n->type == DT_I32) && n->ndim == 1 && n->size[0] == r->count),
          "data file %s: prefix_lengths must be I64 or I32 with a number for each row of input_ids", d->path);
    CHECK(r->count > 0, "data file %s holds no rows", d->path);
    CHECK(r->input_ids->size[1] == d->opt.seq,
          "data file %s holds rows of %lld tokens but a sequence is %lld tokens; give --seq %lld", d->path,
          (long long)r->input_ids->size[1], (long long)d->opt.seq, (long long)r->input_ids->size[1]);
    return SP_OK;
}

sp_status train_data_open(const char *path, const train_data_options *options, train_data **out) {
    *out = NULL;
    ASSERT(options->seq > 0 && options->batch > 0 && options->accum > 0);
    bool rows = ends_with(path, ".safetensors"), tokens = ends_with(path, ".txt") || ends_with(path, ".bin");
    CHECK(rows || tokens, "data file %s: the name must end in .txt (bytes), .bin (tokens) or .safetensors (rows)",
          path);
    train_data *d = calloc(1, sizeof *d);
    if (!d || !(d->path = strdup(path))) {
        free(d);
        FAIL("out of memory");
    }
    d->opt = *options;
    if ((rows ? open_rows(d) : open_tokens(d)) != SP_OK) {
        train_data_close(d);
        return SP_FAIL;
    }
    *out = d;
    return SP_OK;
}

void train_data_close(train_data *d) {
    if (!d) return;
    if (d->map) munmap(d->map, d->map_bytes);
    st_close(d->st);
    free(d->path);
    free(d);
}

int64_t train_data_length(const train_data *d) { return d->st ? d->rows.count : d->tokens.count; }
int64_t train_data_windows(const train_data *d) { return d->st ? d->rows.count : (d->tokens.count - 1) / d->opt.seq; }
int64_t train_data_eval_batches(const train_data *d) { return ceil_div(train_data_windows(d), d->opt.batch); }
bool train_data_has_documents(const train_data *d) { return d->opt.eos >= 0 || d->rows.document_ids; }
bool train_data_has_prefixes(const train_data *d) { return d->rows.prefix_lengths; }
bool train_data_has_positions(const train_data *d) { return d->rows.position_ids; }

/* ---- addressing -------------------------------------------------------------------------------- */

int64_t train_permute(int64_t index, int64_t n, uint64_t seed, int64_t epoch) {
    enum { ROUNDS = 6 };
    if (n <= 1) return 0;
    int half = 1; /* the domain is 4^half >= n, so fewer than four walks are expected */
    while (half < 31 && ((uint64_t)1 << (2 * half)) < (uint64_t)n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, key = seed;
    key = rng_next(&key) + (uint64_t)epoch;
    key = rng_next(&key);
    uint64_t x = (uint64_t)index;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t r = 0; r < ROUNDS; r++) {
            uint64_t f = key ^ (r << 58) ^ right;
            f = rng_next(&f) & mask;
            uint64_t next = left ^ f;
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

/* The global row number of (step, micro, row) modulo m, without overflow for any step count. */
static int64_t row_number_mod(const train_data *d, int64_t step, int64_t micro, int64_t row, int64_t m, int64_t *quot) {
    unsigned __int128 n = (unsigned __int128)step * (uint64_t)d->opt.accum + (uint64_t)micro;
    n = n * (uint64_t)d->opt.batch + (uint64_t)row;
    if (quot) *quot = (int64_t)(uint64_t)(n / (uint64_t)m);
    return (int64_t)(n % (uint64_t)m);
}

/* What a row of a step reads: the first token of its window, or its row of a safetensors file. */
static int64_t window_start(const train_data *d, int64_t step, int64_t micro, int64_t row) {
    int64_t s = d->st ? 1 : d->opt.seq; /* from one window to the next */
    if (d->opt.shuffle) {
        int64_t windows = train_data_windows(d), epoch;
        int64_t at = row_number_mod(d, step, micro, row, windows, &epoch);
        return train_permute(at, windows, d->opt.seed, epoch) * s;
    }
    int64_t wrap = d->st ? d->rows.count : d->tokens.count - s;
    int64_t number = row_number_mod(d, step, micro, row, wrap, NULL);
    return (int64_t)((unsigned __int128)number * (uint64_t)s % (uint64_t)wrap);
}

/* ---- filling ----------------------------------------------------------------------------------- */

static int64_t token_at(const token_file *f, int64_t i) {
    const unsigned char *p = f->at + i * f->width;
    if (f->width == 1) return *p;
    if (f->width == 2) {
        uint16_t v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static sp_status bad_token(const train_data *d, int64_t id, int64_t position) {
    FAIL("data file %s: token %lld at position %lld is outside the model's vocabulary of %lld (valid ids are 0 to "
         "%lld); was the file made with another tokenizer?",
         d->path, (long long)id, (long long)position, (long long)d->opt.vocab, (long long)d->opt.vocab - 1);
}

/* Fills row `row` of the batch from the window that starts at token `start`. */
static sp_status fill_tokens(const train_data *d, int64_t start, int64_t row, const train_batch *out) {
    const int64_t s = d->opt.seq, base = row * s, vocab = d->opt.vocab;
    int64_t document = 0;
    int64_t id = token_at(&d->tokens, start);
    if (out->prefix_lengths) out->prefix_lengths[row] = 0;
    for (int64_t t = 0; t <= s; t++) {
        bool used = t < s || d->opt.labels_shifted;
        if (vocab && used && id >= vocab) return bad_token(d, id, start + t);
        if (t == s) break;
        int64_t next = token_at(&d->tokens, start + t + 1); /* start + s is inside the file */
        if (out->input_ids) out->input_ids[base + t] = id;
        if (out->labels) out->labels[base + t] = d->opt.labels_shifted ? next : id;
        if (out->position_ids) out->position_ids[base + t] = t;
        if (out->document_ids) out->document_ids[base + t] = document;
        if (id == d->opt.eos) document++;
        id = next;
    }
    return SP_OK;
}

static int64_t column_at(const st_tensor *t, int64_t i) {
    if (t->type == DT_I64) {
        int64_t v;
        memcpy(&v, (const char *)t->data + i * (int64_t)sizeof v, sizeof v);
        return v;
    }
    int32_t v;
    memcpy(&v, (const char *)t->data + i * (int64_t)sizeof v, sizeof v);
    return v;
}

static sp_status bad_entry(const train_data *d, const char *name, int64_t value, int64_t row, int64_t at) {
    FAIL("data file %s: %s[%lld, %lld] is %lld, outside the model's vocabulary of %lld; was the file made with another "
         "tokenizer?",
         d->path, name, (long long)row, (long long)at, (long long)value, (long long)d->opt.vocab);
}

/* Fills row `row` of the batch from row `from` of a safetensors file. */
static sp_status fill_columns(const train_data *d, int64_t from, int64_t row, const train_batch *out) {
    const row_file *r = &d->rows;
    const int64_t s = d->opt.seq, base = row * s, src = from * s, vocab = d->opt.vocab ? d->opt.vocab : INT64_MAX;
    int64_t document = 0;
    if (out->prefix_lengths) out->prefix_lengths[row] = r->prefix_lengths ? column_at(r->prefix_lengths, from) : 0;
    for (int64_t t = 0; t < s; t++) {
        int64_t id = column_at(r->input_ids, src + t), label = id, position = t;
        if (id < 0 || id >= vocab) return bad_entry(d, "input_ids", id, from, t);
        if (r->labels)
            label = column_at(r->labels, src + t);
        else if (d->opt.labels_shifted)
            label = t + 1 < s ? column_at(r->input_ids, src + t + 1) : d->opt.ignore_index;
        /* Without a column of labels, the label is the next input: checked when it is one. */
        if (r->labels && label != d->opt.ignore_index && (label < 0 || label >= vocab))
            return bad_entry(d, "labels", label, from, t);
        if (r->position_ids) position = column_at(r->position_ids, src + t);
        CHECK(position >= 0, "data file %s: position_ids[%lld, %lld] is %lld; positions are not negative", d->path,
              (long long)from, (long long)t, (long long)position);
        if (out->input_ids) out->input_ids[base + t] = id;
        if (out->labels) out->labels[base + t] = label;
        if (out->position_ids) out->position_ids[base + t] = position;
        if (out->document_ids)
            out->document_ids[base + t] = r->document_ids ? column_at(r->document_ids, src + t) : document;
        if (id == d->opt.eos) document++;
    }
    return SP_OK;
}

/* `start` is what window_start gives. */
static sp_status fill_row(const train_data *d, int64_t start, int64_t row, const train_batch *out) {
    return d->st ? fill_columns(d, start, row, out) : fill_tokens(d, start, row, out);
}

sp_status train_data_fill(const train_data *d, int64_t step, int64_t micro, const train_batch *out) {
    ASSERT(step >= 0 && micro >= 0 && micro < d->opt.accum);
    for (int64_t i = 0; i < d->opt.batch; i++) TRY(fill_row(d, window_start(d, step, micro, i), i, out));
    return SP_OK;
}

sp_status train_data_fill_eval(const train_data *d, int64_t micro, const train_batch *out) {
    const int64_t windows = train_data_windows(d), s = d->opt.seq;
    for (int64_t i = 0; i < d->opt.batch; i++) {
        int64_t w = micro * d->opt.batch + i;
        TRY(fill_row(d, min64(w, windows - 1) * (d->st ? 1 : s), i, out));
        if (w >= windows && out->labels)
            for (int64_t t = 0; t < s; t++) out->labels[i * s + t] = d->opt.ignore_index;
    }
    return SP_OK;
}
