/* checkpoint.c - writes and reads checkpoint folders; checkpoint.h has the layout.
 *
 * The order of a save: weights, state, companions, plan, state.json, each synced; then the folder, the rename, the
 * parent folder. A crash at any point leaves either a .tmp folder, which the next run removes, or a whole checkpoint.
 * A rank that fails goes on through the collective calls, with its writes left out, so that no other rank waits.
 */
#include "train/checkpoint.h"

#include "import/safetensors.h"
#include "train/folder.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FORMAT = 1 };
static const char *const kind_name[] = {"master", "exp_avg", "exp_avg_sq"};
enum { KINDS = 3 };

/* Files of transformers that describe a model or its tokenizer; no code, no weights. */
static const char *const companions[] = {"config.json",         "generation_config.json",
                                         "tokenizer.json",      "tokenizer_config.json",
                                         "tokenizer.model",     "special_tokens_map.json",
                                         "added_tokens.json",   "vocab.json",
                                         "vocab.txt",           "merges.txt",
                                         "spiece.model",        "sentencepiece.bpe.model",
                                         "chat_template.jinja", "adapter_config.json"};
enum { NCOMPANIONS = sizeof companions / sizeof *companions };

bool ckpt_is_companion(const char *name) {
    for (int i = 0; i < NCOMPANIONS; i++)
        if (strcmp(name, companions[i]) == 0) return true;
    return false;
}

/* ---- names ------------------------------------------------------------------------------------- */

/* The step of "checkpoint-STEP", or of "checkpoint-STEP.tmp" with tmp; -1 for any other name. */
static int64_t step_of(const char *name, bool tmp) {
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return -1;
    const char *digits = name + sizeof prefix - 1;
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > 18 || strcmp(digits + n, tmp ? ".tmp" : "") != 0) return -1;
    return strtoll(digits, NULL, 10);
}

typedef VEC(int64_t) steps;

static int newest_first(const void *x, const void *y) {
    const int64_t *a = x, *b = y;
    return (*a < *b) - (*a > *b);
}

typedef struct listing {
    steps found;
    bool tmp;
} listing;

static void list_one(void *ctx, const char *name) {
    listing *l = ctx;
    int64_t step = step_of(name, l->tmp);
    if (step >= 0) vec_push(NULL, &l->found, step);
}

/* The steps that OUT has folders of, newest first; free with vec_free. */
static sp_status list_steps(const char *out, bool tmp, listing *l) {
    *l = (listing){.tmp = tmp};
    TRY(folder_list(out, list_one, l));
    if (l->found.n) qsort(l->found.data, (size_t)l->found.n, sizeof *l->found.data, newest_first);
    return SP_OK;
}

/* ---- state.json -------------------------------------------------------------------------------- */

static sp_status write_run(const char *dir, const ckpt_run *r, dtype master) {
    json_t *o =
        json_pack("{s:i, s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "autosp_checkpoint", FORMAT, "step", (json_int_t)r->step,
                  "seq", (json_int_t)r->seq, "batch", (json_int_t)r->batch, "accum", (json_int_t)r->accum, "seed",
                  (json_int_t)r->seed, "shuffle", r->shuffle, "master", dtype_name(master));
    char *text = json_dumps(o, JSON_INDENT(1)), path[FOLDER_PATH];
    json_decref(o);
    CHECK(text, "out of memory");
    sp_status s = folder_path(path, "%s/autosp/state.json", dir);
    if (s == SP_OK) s = folder_write(path, text, strlen(text));
    free(text);
    return s;
}

/* SP_FAIL, with the reason, when the folder is not a complete checkpoint. */
static sp_status read_run(const char *dir, ckpt_run *r) {
    char path[FOLDER_PATH];
    TRY(folder_path(path, "%s/autosp/state.json", dir));
    json_error_t e;
    json_t *o = json_load_file(path, 0, &e);
    CHECK(o, "%s: %s", path, e.text);
    int format = 0, shuffle = 0;
    json_int_t step = 0, seq = 0, batch = 0, accum = 0, seed = 0;
    int bad = json_unpack(o, "{s:i, s:I, s:I, s:I, s:I, s:I, s:b}", "autosp_checkpoint", &format, "step", &step, "seq",
                          &seq, "batch", &batch, "accum", &accum, "seed", &seed, "shuffle", &shuffle);
    json_decref(o);
    CHECK(!bad && step >= 0, "%s is not a checkpoint's state", path);
    CHECK(format == FORMAT, "%s has format %d; this program reads %d", path, format, FORMAT);
    *r = (ckpt_run){.step = step, .seq = seq, .batch = batch, .accum = accum, .seed = seed, .shuffle = shuffle};
    return SP_OK;
}

/* ---- saving ------------------------------------------------------------------------------------ */

static int64_t elements(const ckpt_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->size[i];
    return n;
}

/* Keeps the first failure: a rank that failed only takes part from then on. */
typedef struct saver {
    const ckpt_state *s;
    bool writes; /* this is rank 0 */
    sp_status status;
    char *why;               /* the first error's text; heap */
    void *whole, *converted; /* rank 0: room for the largest tensor */
} saver;

static void note(saver *v, sp_status s) {
    if (s == SP_OK || v->status != SP_OK) return;
    v->status = SP_FAIL;
    v->why = strdup(err_text());
}

static bool writing(const saver *v) { return v->writes && v->status == SP_OK; }

/* Writes one safetensors file: the state, or the weights. which[h] = tensor * KINDS + kind of the writer's handle h. */
static void save_file(saver *v, const char *path, bool state) {
    const ckpt_state *s = v->s;
    st_writer *w = st_writer_new();
    char name[1024];
    VEC(int) which = {0};
    for (int i = 0; i < s->n; i++) {
        const ckpt_tensor *t = &s->tensors[i];
        for (int k = 0; k < (state ? KINDS : 1); k++) {
            if (state && t->frozen) continue;
            snprintf(name, sizeof name, "%s.%s", kind_name[k], t->name);
            st_writer_add(w, state ? name : t->stored, state ? s->master : t->stored_type, t->ndim, t->size);
            vec_push(NULL, &which, i * KINDS + k);
        }
    }
    st_writer_metadata(w, "format", "pt");
    bool begun = false;
    if (writing(v)) {
        begun = true;
        note(v, st_writer_begin(w, path));
    }
    for (int k = 0; k < which.n; k++) {
        int slot = st_writer_order(w, k), i = which.data[slot] / KINDS;
        const ckpt_tensor *t = &s->tensors[i];
        int64_t n = elements(t);
        note(v, s->get(s->ctx, i, (ckpt_kind)(which.data[slot] % KINDS), v->writes ? v->whole : NULL));
        if (!writing(v)) continue;
        const void *from = v->whole;
        dtype to = state ? s->master : t->stored_type;
        if (to != s->master) {
            st_convert(v->converted, to, v->whole, s->master, n);
            from = v->converted;
        }
        note(v, st_writer_write(w, slot, from, n * dtype_size(to)));
    }
    if (begun && v->status == SP_OK)
        note(v, st_writer_end(w));
    else
        st_writer_abandon(w);
    vec_free(&which);
}

/* config.json and the tokenizer's files: from the --weights folder, else from the archive. */
static sp_status save_companions(const ckpt_place *p, const char *dir) {
    char from[FOLDER_PATH], to[FOLDER_PATH];
    for (int i = 0; i < NCOMPANIONS; i++) {
        TRY(folder_path(to, "%s/%s", dir, companions[i]));
        bool done = false;
        if (p->copy_from) {
            struct stat st;
            int base = (int)strlen(p->copy_from);
            if (stat(p->copy_from, &st) == 0 && !S_ISDIR(st.st_mode)) { /* a file: its folder */
                const char *slash = strrchr(p->copy_from, '/');
                base = slash ? (int)(slash - p->copy_from) : 0;
            }
            TRY(folder_path(from, "%.*s%s%s", base, p->copy_from, base ? "/" : "", companions[i]));
            TRY(folder_copy(from, to, &done));
        }
        for (int k = 0; k < p->nfiles && !done; k++)
            if (strcmp(p->files[k].name, companions[i]) == 0)
                TRY(folder_write(to, p->files[k].data, (size_t)p->files[k].bytes));
    }
    return SP_OK;
}

/* Puts the finished folder under its name. One that is already there is incomplete, or a resume would have begun after
 * it: it is moved aside, never removed. */
static sp_status publish(const char *tmp, const char *final, const char *out) {
    char aside[FOLDER_PATH];
    TRY(folder_sync(tmp));
    if (rename(tmp, final) != 0) {
        CHECK(errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR, "cannot rename %s to %s: %s", tmp, final,
              strerror(errno));
        TRY(folder_path(aside, "%s.old", final));
        CHECK(rename(final, aside) == 0 && rename(tmp, final) == 0, "cannot rename %s to %s, which exists: %s", tmp,
              final, strerror(errno));
        log_warn("%s existed; it is now %s", final, aside);
    }
    return folder_sync(out);
}

/* Removes the oldest checkpoints past `keep`. Only complete ones of ours count and go. */
static sp_status prune(const ckpt_place *p) {
    listing l;
    char path[FOLDER_PATH];
    if (p->keep <= 0) return SP_OK;
    TRY(list_steps(p->out, false, &l));
    sp_status s = SP_OK;
    int64_t kept = 0;
    for (int i = 0; i < l.found.n && s == SP_OK; i++) {
        ckpt_run run;
        s = folder_path(path, "%s/checkpoint-%lld", p->out, (long long)l.found.data[i]);
        if (s == SP_OK && read_run(path, &run) == SP_OK && ++kept > p->keep) s = folder_remove(path);
    }
    vec_free(&l.found);
    return s;
}

/* What rank 0 does around the tensors, in three parts so that the collective calls stand between them. */
static sp_status make_folders(const char *tmp) {
    char path[FOLDER_PATH];
    TRY(folder_remove(tmp));
    TRY(folder_path(path, "%s/autosp", tmp));
    return folder_make(path);
}

static sp_status finish(const ckpt_place *p, const ckpt_state *s, const ckpt_run *run, const char *plan,
                        const char *tmp) {
    char path[FOLDER_PATH];
    TRY(save_companions(p, tmp));
    if (plan) {
        TRY(folder_path(path, "%s/autosp/plan.txt", tmp));
        TRY(folder_write(path, plan, strlen(plan)));
    }
    TRY(write_run(tmp, run, s->master));
    TRY(folder_path(path, "%s/autosp", tmp));
    TRY(folder_sync(path));
    TRY(folder_path(path, "%s/checkpoint-%lld", p->out, (long long)run->step));
    TRY(publish(tmp, path, p->out));
    return prune(p);
}

sp_status ckpt_save(const ckpt_place *p, const ckpt_state *s, const ckpt_run *run, const char *plan, comm *c) {
    saver v = {.s = s, .writes = comm_rank(c) == 0};
    char tmp[FOLDER_PATH], weights[FOLDER_PATH], state[FOLDER_PATH];
    TRY(folder_path(tmp, "%s/checkpoint-%lld.tmp", p->out, (long long)run->step));
    TRY(folder_path(weights, "%s/model.safetensors", tmp));
    TRY(folder_path(state, "%s/autosp/state.safetensors", tmp));
    if (v.writes) {
        int64_t largest = 1;
        for (int i = 0; i < s->n; i++) largest = max64(largest, elements(&s->tensors[i]));
        v.whole = malloc((size_t)(largest * dtype_size(s->master)));
        v.converted = malloc((size_t)(largest * 8));
        if (!v.whole || !v.converted) note(&v, err_set("out of memory for one whole tensor"));
        if (v.status == SP_OK) note(&v, make_folders(tmp));
    }
    save_file(&v, weights, false);
    save_file(&v, state, true);
    if (writing(&v)) note(&v, finish(p, s, run, plan, tmp));
    free(v.whole);
    free(v.converted);
    if (v.status != SP_OK) {
        if (v.writes && folder_remove(tmp) != SP_OK) log_warn("%s", err_text());
        err_set("checkpoint of step %lld not written: %s; checkpoints written before are as they were",
                (long long)run->step, v.why ? v.why : "out of memory");
        free(v.why);
    }
    int64_t failed = v.status != SP_OK, any = 0;
    if (comm_size(c) == 1) return v.status;
    char own[1024];
    snprintf(own, sizeof own, "%s", err_text());
    TRY(comm_all_reduce(c, &failed, &any, 1, DT_I64, COMM_MAX));
    if (!any) return SP_OK;
    CHECK(failed, "checkpoint of step %lld not written: another rank failed", (long long)run->step);
    FAIL("%s", own);
}

/* ---- starting and resuming --------------------------------------------------------------------- */

sp_status ckpt_prepare(const ckpt_place *p, bool resume) {
    char path[FOLDER_PATH];
    TRY(folder_make(p->out));
    TRY(folder_path(path, "%s/.autosp-write-test", p->out));
    TRY_NOTE(folder_write(path, "", 0), "--out %s is not writable", p->out);
    unlink(path);
    listing l;
    TRY(list_steps(p->out, true, &l));
    sp_status s = SP_OK;
    for (int i = 0; i < l.found.n && s == SP_OK; i++) {
        s = folder_path(path, "%s/checkpoint-%lld.tmp", p->out, (long long)l.found.data[i]);
        if (s == SP_OK) s = folder_remove(path);
    }
    vec_free(&l.found);
    TRY(s);
    if (resume) return SP_OK;
    TRY(list_steps(p->out, false, &l));
    int64_t newest = l.found.n ? l.found.data[0] : -1;
    vec_free(&l.found);
    CHECK(newest < 0, "--out %s already holds checkpoint-%lld; give --resume to go on from it, or another folder",
          p->out, (long long)newest);
    return SP_OK;
}

/* Is everything there that a resume reads? st_open holds a file's size against its header. */
static sp_status check_complete(const char *dir, ckpt_run *run) {
    char path[FOLDER_PATH];
    TRY(read_run(dir, run));
    TRY(folder_path(path, "%s/autosp/state.safetensors", dir));
    st_file *f = NULL;
    TRY(st_open(path, &f));
    st_close(f);
    return SP_OK;
}

sp_status ckpt_newest(const char *out, char **path, ckpt_run *run) {
    char dir[FOLDER_PATH];
    listing l;
    *path = NULL;
    TRY(list_steps(out, false, &l));
    sp_status s = SP_OK;
    for (int i = 0; i < l.found.n && !*path && s == SP_OK; i++) {
        s = folder_path(dir, "%s/checkpoint-%lld", out, (long long)l.found.data[i]);
        if (s != SP_OK) break;
        if (check_complete(dir, run) == SP_OK)
            *path = strdup(dir);
        else
            log_warn("%s is not complete and is passed over: %s", dir, err_text());
    }
    vec_free(&l.found);
    return s;
}

static sp_status load_one(const st_file *f, const char *dir, const ckpt_state *s, int i, ckpt_kind kind, void *room) {
    const ckpt_tensor *t = &s->tensors[i];
    char name[1024];
    snprintf(name, sizeof name, "%s.%s", kind_name[kind], t->name);
    const st_tensor *got = st_find(f, name);
    CHECK(got, "%s has no tensor %s; is it of another model?", dir, name);
    bool fits = got->known && dtype_is_float(got->type) && got->ndim == t->ndim;
    for (int d = 0; fits && d < t->ndim; d++) fits = got->size[d] == t->size[d];
    CHECK(fits, "%s: tensor %s has not the shape that the model's parameter has; is it of another model?", dir, name);
    st_convert(room, s->master, got->data, got->type, elements(t));
    return s->put(s->ctx, i, kind, room);
}

sp_status ckpt_load(const char *path, const ckpt_state *s) {
    char file[FOLDER_PATH];
    TRY(folder_path(file, "%s/autosp/state.safetensors", path));
    st_file *f = NULL;
    TRY(st_open(file, &f));
    int64_t largest = 1, expected = 0;
    for (int i = 0; i < s->n; i++) {
        largest = max64(largest, elements(&s->tensors[i]));
        expected += s->tensors[i].frozen ? 0 : KINDS;
    }
    sp_status status = SP_OK;
    if (st_count(f) != expected)
        status = err_set("%s holds %d tensors of state, the model has %lld; is it of another model?", path, st_count(f),
                         (long long)expected);
    void *room = status == SP_OK ? malloc((size_t)(largest * dtype_size(s->master))) : NULL;
    if (status == SP_OK && !room) status = err_set("out of memory for one whole tensor");
    for (int i = 0; i < s->n && status == SP_OK; i++)
        for (int k = 0; k < KINDS && status == SP_OK && !s->tensors[i].frozen; k++)
            status = load_one(f, path, s, i, (ckpt_kind)k, room);
    free(room);
    st_close(f);
    return status;
}
