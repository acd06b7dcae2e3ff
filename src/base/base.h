/* base.h - what every other folder stands on: errors, arenas, vectors, strings, clocks.
 *
 * Depends on nothing but libc. Functions here are thread-safe where they take no shared object.
 *
 * Error convention of the whole library: a function that can fail returns sp_status. On SP_FAIL the
 * calling thread's error text says what, where and what to do about it, in one line. Callers use TRY()
 * to pass a failure on, TRY_NOTE() to put the context they know in front of it. Nothing in the library
 * exits; only the command line's main does.
 */
#ifndef AUTOSP_BASE_H
#define AUTOSP_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define SP_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define SP_UNUSED __attribute__((unused))
#define SP_NODISCARD __attribute__((warn_unused_result))

/* ---- errors ------------------------------------------------------------------------------------ */

typedef enum sp_status { SP_OK = 0, SP_FAIL = 1 } sp_status;

/* Sets the calling thread's error text and returns SP_FAIL. A user's mistake: always checked. */
sp_status err_set(const char *fmt, ...) SP_PRINTF(1, 2);
/* Puts "context: " in front of the calling thread's error text; returns SP_FAIL. */
sp_status err_note(const char *fmt, ...) SP_PRINTF(1, 2);
#ifdef __clang_analyzer__ /* it looks at one file at a time and cannot see what these return */
#define err_set(...) (err_set(__VA_ARGS__), SP_FAIL)
#define err_note(...) (err_note(__VA_ARGS__), SP_FAIL)
#endif
/* The calling thread's error text; never NULL. Valid until the thread's next err_set or err_note. */
const char *err_text(void);
/* Prints a bug report of ours (file, line, condition) and aborts. */
void err_bug(const char *file, int line, const char *cond) __attribute__((noreturn));

/* FAIL("..."): the user's mistake, with op, shapes, rank and a hint as far as they are known. */
#define FAIL(...) return (err_set(__VA_ARGS__), SP_FAIL)
/* CHECK(cond, "..."): FAIL unless cond holds. */
#define CHECK(cond, ...)                                                                                               \
    do {                                                                                                               \
        if (!(cond)) return (err_set(__VA_ARGS__), SP_FAIL);                                                           \
    } while (0)
/* TRY(call): pass a failure on. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((call) != SP_OK) return SP_FAIL;                                                                           \
    } while (0)
/* TRY_NOTE(call, "while ..."): pass a failure on with context in front of its text. */
#define TRY_NOTE(call, ...)                                                                                            \
    do {                                                                                                               \
        if ((call) != SP_OK) return (err_note(__VA_ARGS__), SP_FAIL);                                                  \
    } while (0)
/* ASSERT(cond): a bug of ours when it fails; on in every build, so keep it out of inner loops. */
#define ASSERT(cond) ((cond) ? (void)0 : err_bug(__FILE__, __LINE__, #cond))

/* ---- arenas ------------------------------------------------------------------------------------ */

/* A bump allocator; everything in it is freed at once. One arena per compilation. Not thread-safe. */
typedef struct arena arena;

arena *arena_new(void);
void arena_free(arena *a); /* NULL is allowed */
/* Zeroed, 16-byte aligned memory owned by the arena. Aborts when the system has no memory: sizes that
 * come from a file or a user must be checked, or go through arena_try_alloc. */
void *arena_alloc(arena *a, size_t bytes) __attribute__((malloc, alloc_size(2), returns_nonnull));
/* Like arena_alloc, but NULL when the system has no memory. */
void *arena_try_alloc(arena *a, size_t bytes);
char *arena_strdup(arena *a, const char *s) __attribute__((returns_nonnull));
char *arena_printf(arena *a, const char *fmt, ...) SP_PRINTF(2, 3);
void *arena_memdup(arena *a, const void *p, size_t bytes) __attribute__((returns_nonnull));
/* Bytes handed out so far, for reports. */
size_t arena_used(const arena *a);

#define ARENA_NEW(a, T) ((T *)arena_alloc((a), sizeof(T)))
#define ARENA_ARRAY(a, T, n) ((T *)arena_alloc((a), sizeof(T) * (size_t)(n)))

/* ---- vectors ----------------------------------------------------------------------------------- */

/* VEC(T) v = {0}; vec_push(arena, &v, x). Grows inside an arena (the old storage stays until the arena
 * goes), or on the heap when the arena is NULL (then vec_free). */
#define VEC(T)                                                                                                         \
    struct {                                                                                                           \
        T *data;                                                                                                       \
        int n, cap;                                                                                                    \
    }
#define vec_push(ar, v, x)                                                                                             \
    do {                                                                                                               \
        if ((v)->n == (v)->cap) (v)->data = vec_grow((ar), (v)->data, &(v)->cap, (v)->n, sizeof *(v)->data);           \
        (v)->data[(v)->n++] = (x);                                                                                     \
    } while (0)
#define vec_free(v) (vec_release((v)->data), (v)->data = NULL, (v)->n = (v)->cap = 0)
void *vec_grow(arena *a, void *data, int *cap, int n, size_t elem) __attribute__((returns_nonnull));
void vec_release(void *data);

/* TMPDIR, else /tmp. */
const char *temp_folder(void);
/* A name for mkstemp and mkdtemp: "FOLDER/autosp-WHAT-" and the six places that they fill in. */
char *temp_name(arena *a, const char *folder, const char *what);

/* ---- a text buffer ----------------------------------------------------------------------------- */

/* Growable text on the heap: zero-initialise, append with buf_printf, release with buf_free. */
typedef struct buf {
    char *data; /* always NUL-terminated once something was appended; NULL before */
    size_t n, cap;
} buf;
void buf_printf(buf *b, const char *fmt, ...) SP_PRINTF(2, 3);
void buf_write(buf *b, const void *p, size_t n);
void buf_free(buf *b);

/* ---- string map -------------------------------------------------------------------------------- */

/* String -> int64 map with open addressing; keys are copied into the arena given at creation. */
typedef struct strmap strmap;
strmap *strmap_new(arena *a);
void strmap_put(strmap *m, const char *key, int64_t value);        /* replaces an older value */
bool strmap_get(const strmap *m, const char *key, int64_t *value); /* value may be NULL */
int strmap_count(const strmap *m);

/* ---- numbers, hashes, clocks ------------------------------------------------------------------- */

/* a*b and a+b for sizes from files: SP_FAIL without an error text of its own on overflow or a negative. */
bool mul_ok(int64_t a, int64_t b, int64_t *out);
bool add_ok(int64_t a, int64_t b, int64_t *out);
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
/* FNV-1a, 64 bits; start with HASH_INIT. */
#define HASH_INIT 0xcbf29ce484222325ULL
uint64_t hash_bytes(uint64_t h, const void *p, size_t n);
uint64_t hash_str(uint64_t h, const char *s);
/* Monotonic seconds. */
double now_s(void);
/* "1.5 GiB" into out (at least 24 bytes); returns out. */
char *human_bytes(int64_t bytes, char *out);
/* Parses "2GiB", "80GB", "1.5e9", "512MiB", "4096" into bytes; SP_FAIL names the valid forms. */
sp_status parse_bytes(const char *text, int64_t *bytes) SP_NODISCARD;

/* ---- element types ----------------------------------------------------------------------------- */

/* F16 is only ever read from or written to weight files; nothing computes in it. BOOL is one byte, 0 or 1. */
typedef enum dtype { DT_F32, DT_F64, DT_BF16, DT_F16, DT_I64, DT_I32, DT_BOOL, DT_COUNT } dtype;
int64_t dtype_size(dtype t);     /* bytes an element */
const char *dtype_name(dtype t); /* "f32", "f64", "bf16", "f16", "i64", "i32", "bool" */
bool dtype_parse(const char *name, dtype *t);
static inline bool dtype_is_float(dtype t) { return t <= DT_F16; }

/* ---- random numbers ---------------------------------------------------------------------------- */

/* SplitMix64: one 64-bit state, for test data and shuffles (dropout has its own counter-based one). */
uint64_t rng_next(uint64_t *state);
double rng_uniform(uint64_t *state); /* [0, 1) */
double rng_normal(uint64_t *state);

/* ---- logging ----------------------------------------------------------------------------------- */

/* One line to stderr, "autosp: " in front; never interleaved with another thread's line. */
void log_line(const char *fmt, ...) SP_PRINTF(1, 2);
void log_warn(const char *fmt, ...) SP_PRINTF(1, 2); /* "autosp: warning: " */

#endif
