/* dialect_c.c - kernels in C with GCC's vector extension, which gcc and clang compile.
 *
 * A value is a vector of columns (vf of device/cpu/vec.h, whose text stands in front of the kernels: one source of all
 * polynomials). Columns go in blocks of four vectors: the long chains of an exponential then run side by side, where
 * the processor's window holds too little of one after the other; and neighbours are read and written as pairs (bf16).
 * Half a head of 64 is two vectors of 16, so kernels on half rows take pairs too.
 * A kernel with several passes fetches rows ahead; of f32 only beside terms that are kept: elsewhere the processor's
 * own fetching is early enough and this came in its way. Where there are two passes each fetches a half of the row
 * after the next, so that memory is busy in both; else the first fetches the next row.
 *
 * Sums along a row are taken lane by lane, for each vector of a block apart, and then over vectors and lanes in a fixed
 * order, so they depend on the row and on the width of vectors alone. A kernel has no threads: it is called with its
 * share of rows or columns.
 */
#include "gen/dialect.h"
#include "gen_text.h" /* made by CMake: gen_text_args, gen_text_vec */

enum { BLOCK = 4 };

static const char functions[] =
    "#define k_number vset\n"
    "#define k_fma vfma\n"
    "#define k_exp vexp\n"
    "#define k_log vlog\n"
    "#define k_tanh vtanh\n"
    "#define k_erf verf\n"
    "#define k_sigmoid vsigmoid\n"
    "#define k_gelu vgelu\n"
    "#define k_gelu_slope vgelu_slope\n"
    "#define k_sigmoid_near vsigmoid_near\n"
    "#define k_sqrt vsqrt\n"
    "INLINE vf k_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }\n"
    "INLINE vf k_max(vf x, vf y) { return vselect((x > y) | (x != x), x, y); }\n"
    "INLINE vf k_min(vf x, vf y) { return vselect((x < y) | (x != x), x, y); }\n"
    "INLINE vf k_relu(vf x) { return vselect((x > 0.f) | (x != x), x, vset(0)); }\n"
    "INLINE vf k_equal(vf x, vf y) { return vselect(x == y, vset(1), vset(0)); }\n"
    "INLINE vf k_choose(vf c, vf x, vf y) {\n"
    "#ifdef __AVX512F__\n" /* between numbers and 0 a product with a mask, if c is the row's */
    "    return (vf)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)c, (__m512)vset(0), _CMP_NEQ_UQ), (__m512)y, "
    "(__m512)x);\n"
    "#else\n"
    "    return vselect(c != 0.f, x, y);\n"
    "#endif\n"
    "}\n"
    "INLINE vf k_index(int64_t c) { return __builtin_convertvector(viota() + (int32_t)c, vf); }\n"
    "/* Is v the number of one of n columns from c on? Of few it is. */\n"
    "INLINE bool k_among(vf v, int64_t c, int64_t n) {\n"
    "    return __builtin_expect((uint64_t)((int64_t)v[0] - c) < (uint64_t)n, 0);\n"
    "}\n"
    "INLINE vf k_here(vf v, int64_t c, vf x, vf y) { return vselect(k_index(c) == v, x, y); }\n"
    "INLINE vf k_silu_slope(vf x) {\n"
    "    vf s = vsigmoid(x);\n"
    "    return s * vfma(x, 1.f - s, vset(1.f));\n"
    "}\n"
    "INLINE vf k_gelu_tanh_slope(vf x) {\n"
    "    vf s = vsigmoid(1.59576912160573072f * vfma(0.044715f * x * x, x, x));\n"
    "    vf d = x * 1.59576912160573072f * vfma(vset(0.134145f), x * x, vset(1.f));\n"
    "    return vfma(s * (1.f - s), d, s);\n"
    "}\n"
    "INLINE vf k_gelu_tanh_near(vf x) { /* the exponent's base is 2 */\n"
    "    return x * vrcp_near(1.f + vexp2_rough(x * vfma(x * x, vset(-0.10294324f), vset(-2.3022082f))));\n"
    "}\n"
    "INLINE vf k_gelu_tanh_slope_near(vf x) {\n"
    "    vf z = x * x, s;\n"
    "    vf t = vsigmoid_slope_near(x * vfma(z, vset(-0.10294324f), vset(-2.3022082f)), &s);\n"
    "    return vfma(t, x * vfma(z, vset(0.21406445f), vset(1.59576912f)), s);\n"
    "}\n"
    "INLINE vf k_silu_slope_near(vf x) {\n"
    "    vf s, t = vsigmoid_slope_near(x * -1.44269504088896340736f, &s);\n"
    "    return vfma(t, x, s);\n"
    "}\n"
    "/* max(x, 0) - |x| Phi(-|x|): relative accuracy in both tails. Behind 16 the second term is 0. */\n"
    "INLINE vf k_gelu_near(vf x) {\n"
    "    vf y = vmin(vset(16.f), k_abs(x));\n"
    "    vf e = vexp2_rough(y * y * -0.72134752044448170f);\n"
    "    return vfma(-y * e, vtail_near(y), vmax(vset(0), x));\n"
    "}\n"
    "/* Phi(x) + x phi(x), from its value w at -|x|: 1 - w at |x|. */\n"
    "INLINE vf k_gelu_slope_near(vf x) {\n"
    "    vf y = k_abs(x), e = vexp2_rough(x * x * -0.72134752044448170f);\n"
    "    vf w = e * vfma(y, vset(-0.39894228040143268f), vtail_near(y));\n"
    "    return vselect((vi)x < 0, w, 1.f - w);\n"
    "}\n"
    "/* What blocks were taken relative to lies in front of what the vectors behind them were. */\n"
    "INLINE int64_t k_kept(int64_t c, int64_t c1) {\n"
    "    const int64_t blocks = c1 / (4 * VL);\n"
    "    return c < blocks * 4 * VL ? c / (4 * VL) : blocks + c % (4 * VL) / VL;\n"
    "}\n"
    "/* Fetches a piece of the next row, if that is another one. */\n"
    "INLINE void k_ahead(const void *row, int64_t apart, int64_t from, int64_t bytes) {\n"
    "    if (apart == 0) return;\n"
    "#pragma GCC unroll 8\n"
    "    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)row + apart + from + i);\n"
    "}\n"
    "/* Lanes behind the end of a row, made neutral. */\n"
    "INLINE vf k_keep(vf x, int64_t left, float rest) {\n"
    "    return left >= VL ? x : vselect(viota() < (int32_t)left, x, vset(rest));\n"
    "}\n"
    "INLINE vf k_gather(bool bf, const void *p, int64_t step, int64_t c, int64_t left) {\n"
    "    float t[VL] = {0};\n"
    "    for (int64_t i = 0; i < VL && i < left; i++) t[i] = sget(bf, p, (c + i) * step);\n"
    "    return vld(t);\n"
    "}\n"
    "INLINE void k_scatter(bool bf, void *p, int64_t step, int64_t c, int64_t left, vf x) {\n"
    "    for (int64_t i = 0; i < VL && i < left; i++) sput(bf, p, (c + i) * step, x[i]);\n"
    "}\n"
    "/* Rows are walked in runs along their innermost dimension: the indices of row r, how many rows its run still "
    "has,\n"
    " * where tensor i starts in it and how far its rows are apart in bytes, and the indices behind the run. */\n"
    "INLINE void k_indices(const gen_args *a, int64_t r, int64_t *at) {\n"
    "    for (int d = a->outer - 1; d > 0; d--) {\n"
    "        at[d] = r % a->dim[d];\n"
    "        r /= a->dim[d];\n"
    "    }\n"
    "    at[0] = r;\n"
    "}\n"
    "INLINE int64_t k_run(const gen_args *a, const int64_t *at, int64_t rows) {\n"
    "    int64_t n = a->outer > 1 ? a->dim[a->outer - 1] - at[a->outer - 1] : rows;\n"
    "    return n < rows ? n : rows;\n"
    "}\n"
    "INLINE char *k_start(const gen_args *a, int i, const int64_t *at, int64_t size) {\n"
    "    int64_t sum = 0;\n"
    "    for (int d = 0; d < a->outer; d++) sum += at[d] * a->stride[i][d];\n"
    "    return a->data[i] + sum * size;\n"
    "}\n"
    "INLINE int64_t k_apart(const gen_args *a, int i, int64_t size) {\n"
    "    return a->outer > 0 ? a->stride[i][a->outer - 1] * size : 0;\n"
    "}\n"
    "INLINE void k_behind(const gen_args *a, int64_t *at) {\n"
    "    for (int d = a->outer - 2; d >= 0; d--) {\n"
    "        at[d + 1] = 0;\n"
    "        if (++at[d] < a->dim[d] || d == 0) break;\n"
    "    }\n"
    "}\n";

static void prelude(buf *out) {
    buf_printf(out, "/* Generated by autosp. Kernels on rows r0 .. r1 - 1 and columns c0 .. c1 - 1 of their space. */\n"
                    "#include <stdbool.h>\n#include <stdint.h>\n#include <string.h>\n#define VEC_ALONE\n");
    buf_write(out, gen_text_args, sizeof gen_text_args - 1);
    buf_write(out, gen_text_vec, sizeof gen_text_vec - 1);
    buf_write(out, functions, sizeof functions - 1);
}

static const char *is_bf16(dtype t) { return t == DT_BF16 ? "true" : "false"; }

static void rows(int i, const char *which, int window, dtype t, const char *what, buf *out) {
    if (strcmp(what, "start") == 0)
        buf_printf(out,
                   "        char *p%d = k_start(a, %d, at, %d);\n        const int64_t q%d = k_apart(a, %d, %d);\n",
                   window, window, (int)dtype_size(t), window, window, (int)dtype_size(t));
    else if (strcmp(what, "name") == 0)
        buf_printf(out, "        %svoid *const %s%d = p%d;\n", *which == 'x' ? "const " : "", which, i, window);
    else
        buf_printf(out, ", p%d += q%d", window, window);
}

/* Writes what the rows of all windows need: where they start, their names in a row, or the step to the next row. */
static void windows(const gen_kernel *k, const char *what, buf *out) {
    for (int i = 0; i < k->in.n; i++) rows(i, "x", i, k->in.data[i].type, what, out);
    for (int i = 0; i < k->out.n; i++)
        if (k->out.data[i].store < GEN_COLUMNS) rows(i, "y", k->in.n + i, k->out.data[i].type, what, out);
}

static void open(const gen_kernel *k, buf *out) {
    buf_printf(out,
               "void k_%016llx(const gen_args *a, int64_t r0, int64_t r1, int64_t c0, int64_t c1);\n"
               "void k_%016llx(const gen_args *a, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {\n"
               "    int64_t at[GEN_MAX_OUTER] = {0};\n"
               "    k_indices(a, r0, at);\n"
               "    for (int64_t r = r0, end; r < r1; k_behind(a, at)) {\n"
               "        end = r + k_run(a, at, r1 - r);\n",
               (unsigned long long)k->hash, (unsigned long long)k->hash);
    windows(k, "start", out);
    buf_printf(out, "        for (; r < end; r++");
    windows(k, "step", out);
    buf_printf(out, ") {\n");
    windows(k, "name", out);
    for (int i = 0, sum = 0; i < k->out.n; i++)
        if (k->out.data[i].store >= GEN_COLUMNS)
            buf_printf(out, "        float *const y%d = a->columns + %d * a->columns_stride;\n", i, sum++);
    for (int i = 0; i < k->s.n; i++)
        if (k->s.data[i].kind == GEN_EXP_SUM && gen_terms(k, i) >= 0)
            buf_printf(out,
                       "        float *const e%d = a->terms + %d * gen_terms_floats(c1), *const f%d = e%d + "
                       "gen_terms_room(c1);\n",
                       i, gen_terms(k, i), i, i);
    buf_printf(out, "        int64_t c;\n");
}

static void close(const gen_kernel *k, buf *out) {
    (void)k;
    buf_printf(out, "        }\n    }\n}\n");
}

static void open_columns(const gen_kernel *k, int pass, int block, buf *out) {
    if (block == 0) {
        buf_printf(out, "        for (; c < c1; c += VL) {\n            const int64_t left = c1 - c;\n");
        return;
    }
    if (block == BLOCK) buf_printf(out, "        c = c0;\n");
    buf_printf(out, "        for (; c + %d * VL <= c1; c += %d * VL) {\n", block, block);
    if (block != BLOCK) return;
    const bool shared = k->levels == 1 && gen_walks(k, 1) && !k->terms; /* by both passes, else by the first alone */
    if (k->levels == 0 || (pass > 0 && !shared)) return;
    for (int i = 0; i < k->in.n; i++) {
        const gen_operand *x = &k->in.data[i];
        const int size = (int)dtype_size(x->type);
        if (x->step != GEN_UNIT || x->fixed || (x->type != DT_BF16 && !k->terms)) continue;
        if (shared)
            buf_printf(out, "            k_ahead(x%d, 2 * q%d, %d * (%s + c), %d * VL);\n", i, i, size / 2,
                       pass ? "c1" : "c0", size * BLOCK / 2);
        else
            buf_printf(out, "            k_ahead(x%d, q%d, %d * c, %d * VL);\n", i, i, size, size * BLOCK);
    }
}
static void close_columns(buf *out) { buf_printf(out, "        }\n"); }

/* The column of a vector, and how many of its lanes there are. */
static const char *column(int u) {
    static const char *const text[BLOCK + 1] = {"c, left", "c, VL", "c + VL, VL", "c + 2 * VL, VL", "c + 3 * VL, VL"};
    return text[u + 1];
}
static const char *first(int u) {
    static const char *const text[BLOCK + 1] = {"c", "c", "c + VL", "c + 2 * VL", "c + 3 * VL"};
    return text[u + 1];
}
static const char *lanes(int u) { return u == GEN_ALONE ? "left" : "VL"; }

static void name(const gen_kernel *k, int i, int u, buf *out) {
    buf_printf(out, "        %sconst vf ", k->s.data[i].row ? "" : "    ");
    gen_name(k, i, u, out);
    buf_printf(out, " = ");
}
/* Two neighbours, which the call that follows makes. */
static void names(const gen_kernel *k, int i, int u, buf *out) {
    ASSERT(!k->s.data[i].row && u % 2 == 0);
    buf_printf(out, "            vf v%d_%d, v%d_%d;\n            ", i, u, i, u + 1);
}

static void load(const gen_kernel *k, int i, int u, buf *out) {
    const int x = k->s.data[i].arg[0];
    const gen_operand *in = &k->in.data[x];
    const char *bf = is_bf16(in->type);
    const bool pair = u != GEN_ALONE && in->step == GEN_UNIT;
    if (pair && u % 2 == 0) {
        names(k, i, u, out);
        buf_printf(out, "vget2(%s, x%d, %s, &v%d_%d, &v%d_%d);\n", bf, x, first(u), i, u, i, u + 1);
    }
    if (pair) return;
    name(k, i, u, out);
    if (in->type == DT_I64)
        buf_printf(out, "vset((float)*(const int64_t *)x%d);\n", x);
    else if (in->step == GEN_STILL)
        buf_printf(out, "vset(sget(%s, x%d, 0));\n", bf, x);
    else if (in->step == GEN_UNIT)
        buf_printf(out, "get_part(%s, x%d, c, left, 0);\n", bf, x);
    else
        buf_printf(out, "k_gather(%s, x%d, a->step[%d], %s);\n", bf, x, x, column(u));
}

static void reload(const gen_kernel *k, int i, int u, buf *out) {
    const int y = k->s.data[i].kept - 1;
    const char *bf = is_bf16(k->out.data[y].type);
    if (u == GEN_ALONE) {
        name(k, i, u, out);
        buf_printf(out, "get_part(%s, y%d, c, left, 0);\n", bf, y);
    } else if (u % 2 == 0) {
        names(k, i, u, out);
        buf_printf(out, "vget2(%s, y%d, %s, &v%d_%d, &v%d_%d);\n", bf, y, first(u), i, u, i, u + 1);
    }
}

static void round_to(const gen_kernel *k, int i, int u, buf *out) {
    const gen_stmt *s = &k->s.data[i];
    const int x = s->arg[0];
    if (s->type == DT_BF16 && u != GEN_ALONE && !k->s.data[x].row) {
        if (u % 2) return;
        names(k, i, u, out);
        buf_printf(out, "vbf16_2(v%d_%d, v%d_%d, &v%d_%d, &v%d_%d);\n", x, u, x, u + 1, i, u, i, u + 1);
        return;
    }
    name(k, i, u, out);
    buf_printf(out, s->type == DT_BF16 ? "vbf16(" : "(");
    gen_name(k, x, u, out);
    buf_printf(out, ");\n");
}

static void index_of(const gen_kernel *k, int i, int u, buf *out) {
    name(k, i, u, out);
    buf_printf(out, "k_index(%s);\n", first(u));
}

static void value(const gen_kernel *k, int i, int u, const char *text, buf *out) {
    name(k, i, u, out);
    buf_printf(out, "%s;\n", text);
}

static void here(const gen_kernel *k, int i, int u, buf *out) {
    const int *arg = k->s.data[i].arg, column = k->s.data[arg[0]].arg[1];
    const int from = u == GEN_ALONE ? u : 0, to = u == GEN_ALONE ? u + 1 : BLOCK;
    if (u != GEN_ALONE && u != BLOCK - 1) return; /* one test a block */
    for (int j = from; j < to; j++) {
        buf_printf(out, "            vf ");
        gen_name(k, i, j, out);
        buf_printf(out, " = ");
        gen_name(k, arg[2], j, out);
        buf_printf(out, ";\n");
    }
    buf_printf(out, "            if (k_among(v%d, c, %d * VL)) {\n", column, to - from);
    for (int j = from; j < to; j++) {
        buf_printf(out, "                ");
        gen_name(k, i, j, out);
        buf_printf(out, " = k_here(v%d, %s, ", column, first(j));
        gen_name(k, arg[1], j, out);
        buf_printf(out, ", ");
        gen_name(k, arg[2], j, out);
        buf_printf(out, ");\n");
    }
    buf_printf(out, "            }\n");
}

/* The sum of exponentials of the same elements, which has their maximum; -1: none. */
static int exp_sum_of(const gen_kernel *k, int i) {
    for (int j = 0; j < k->s.n && k->s.data[i].kind == GEN_MAX; j++)
        if (k->s.data[j].kind == GEN_EXP_SUM && k->s.data[j].arg[0] == k->s.data[i].arg[0]) return j;
    return -1;
}

/* Where it lies what the terms of this block, or of a vector alone, were taken relative to. A vector alone may be one
 * of a block: of the element that is picked. */
static const char *kept_from(int u) { return u == GEN_ALONE ? "k_kept(c, c1)" : "c / (4 * VL)"; }

static void exp_sum(const gen_kernel *k, int i, int u, buf *out) {
    const int x = k->s.data[i].arg[0], n = u == GEN_ALONE ? 1 : BLOCK;
    const bool keeps = gen_terms(k, i) >= 0;
    if (u != GEN_ALONE && u != BLOCK - 1) return;
    buf_printf(out, "            s%d = vexp_sum_%s(s%d, (vf[]){", i, keeps ? "keep" : "add", i);
    if (u == GEN_ALONE) buf_printf(out, "k_keep(v%d, left, -INFINITY)", x);
    for (int j = 0; j < BLOCK && u != GEN_ALONE; j++) {
        buf_printf(out, j ? ", " : "");
        gen_name(k, x, j, out);
    }
    buf_printf(out, "}, %d, %s", n, is_bf16(k->s.data[i].type));
    if (keeps) buf_printf(out, ", e%d + c, f%d + %s", i, i, kept_from(u));
    buf_printf(out, ");\n");
}

static void numerator(const gen_kernel *k, int i, int u, buf *out) {
    const int s = k->s.data[i].arg[2];
    if (u <= 0) {
        buf_printf(out, "            k%d = vexp_scale_next(k%d, s%d, f%d[%s]);\n", s, s, s, s, kept_from(u));
        buf_printf(out, "            const vf n%d = k%d.factor * v%d;\n", i, s, k->s.data[i].arg[3]);
    }
    name(k, i, u, out);
    buf_printf(out, "vld(e%d + %s) * n%d;\n", s, first(u), i);
}

static bool is_sum(const gen_kernel *k, int i) { return k->s.data[i].kind == GEN_SUM; }

static void reduce_open(const gen_kernel *k, int i, buf *out) {
    if (exp_sum_of(k, i) >= 0) return;
    if (k->s.data[i].kind == GEN_EXP_SUM) {
        buf_printf(out, "        vexp_sum s%d = vexp_sum_start();\n", i);
        return;
    }
    const char *start = is_sum(k, i) ? "0" : "-INFINITY";
    buf_printf(out, "        vf s%d = vset(%s)", i, start);
    for (int u = 0; u < BLOCK; u++) buf_printf(out, ", s%d_%d = s%d", i, u, i);
    buf_printf(out, ";\n");
}

static void reduce(const gen_kernel *k, int i, int u, buf *out) {
    if (exp_sum_of(k, i) >= 0) return;
    if (k->s.data[i].kind == GEN_EXP_SUM) {
        exp_sum(k, i, u, out);
        return;
    }
    buf s = {0}, v = {0};
    buf_printf(&s, u == GEN_ALONE ? "s%d" : "s%d_%d", i, u);
    gen_name(k, k->s.data[i].arg[0], u, &v);
    if (is_sum(k, i))
        buf_printf(out, "            %s += k_keep(%s, %s, 0);\n", s.data, v.data, lanes(u));
    else
        buf_printf(out, "            %s = vmax(%s, k_keep(%s, %s, -INFINITY));\n", s.data, s.data, v.data, lanes(u));
    buf_free(&s);
    buf_free(&v);
}

static void reduce_close(const gen_kernel *k, int i, buf *out) {
    const int with = exp_sum_of(k, i);
    if (with >= 0) {
        buf_printf(out, "        const vf v%d = s%d.top;\n", i, with);
        return;
    }
    if (k->s.data[i].kind == GEN_EXP_SUM) {
        buf_printf(out, "        const vf v%d = vset(vexp_sum_end(s%d));\n", i, i);
        if (gen_terms(k, i) >= 0)
            buf_printf(out, "        vexp_scale k%d = vexp_scale_of(s%d, vexp_sum_from(s%d));\n", i, i, i);
        return;
    }
    if (is_sum(k, i))
        buf_printf(out, "        const vf v%d = vset(vsum((s%d_0 + s%d_1) + (s%d_2 + s%d_3) + s%d));\n", i, i, i, i, i,
                   i);
    else
        buf_printf(out,
                   "        const vf v%d = vset(vmaxlane(vmax(vmax(vmax(s%d_0, s%d_1), vmax(s%d_2, s%d_3)), s%d)));\n",
                   i, i, i, i, i, i);
}

static void pick_open(const gen_kernel *k, int i, buf *out) {
    int at = k->s.data[i].arg[1];
    buf_printf(out,
               "        vf v%d = vset(0);\n"
               "        if (v%d[0] >= 0 && v%d[0] < (float)a->cols) {\n"
               "            const int64_t hit = (int64_t)v%d[0], c = hit / VL * VL, left = a->cols - c;\n",
               i, at, at, at);
}

static void pick_close(const gen_kernel *k, int i, buf *out) {
    buf_printf(out, "            v%d = vset(v%d[hit - c]);\n        }\n", i, k->s.data[i].arg[0]);
}

/* The value that result i stores: what it was before it was rounded to the type that the store rounds it to anyway. Of
 * what another result keeps for later passes there is only the rounded one. */
static int unrounded(const gen_kernel *k, int i) {
    const gen_result *r = &k->out.data[i];
    const gen_stmt *s = &k->s.data[r->value];
    const bool there = !s->kept || gen_stored_first(k, i);
    return there && r->store == GEN_STORE && s->kind == GEN_ROUND && s->type == r->type ? s->arg[0] : r->value;
}

static void store_pair(const gen_kernel *k, int i, int x, int u, buf *out) {
    const char *bf = is_bf16(k->out.data[i].type);
    buf a = {0}, b = {0};
    gen_name(k, x, u, &a);
    gen_name(k, x, u + 1, &b);
    if (k->out.data[i].store == GEN_ADD) {
        buf_printf(out, "            vf o%d_%d, o%d_%d;\n", i, u, i, u + 1);
        buf_printf(out, "            vget2(%s, y%d, %s, &o%d_%d, &o%d_%d);\n", bf, i, first(u), i, u, i, u + 1);
        buf_printf(out, "            vput2(%s, y%d, %s, o%d_%d + %s, o%d_%d + %s);\n", bf, i, first(u), i, u, a.data, i,
                   u + 1, b.data);
    } else {
        buf_printf(out, "            vput2(%s, y%d, %s, %s, %s);\n", bf, i, first(u), a.data, b.data);
    }
    buf_free(&a);
    buf_free(&b);
}

static void store(const gen_kernel *k, int i, int u, buf *out) {
    const gen_result *r = &k->out.data[i];
    const int x = unrounded(k, i), t = k->in.n + i;
    const char *bf = is_bf16(r->type);
    const bool adds = r->store == GEN_ADD;
    buf v = {0};
    gen_name(k, x, u, &v);
    if (r->store >= GEN_COLUMNS) { /* padded to whole vectors */
        buf_printf(out, "            vst(y%d + %s, vld(y%d + %s) + %s);\n", i, first(u), i, first(u), v.data);
    } else if (r->step == GEN_STILL) {
        buf_printf(out, "        sput(%s, y%d, 0, ", bf, i);
        if (adds) buf_printf(out, "sget(%s, y%d, 0) + ", bf, i);
        buf_printf(out, "%s[0]);\n", v.data);
    } else if (r->step == GEN_UNIT && u != GEN_ALONE) {
        if (u % 2 == 0) store_pair(k, i, x, u, out);
    } else if (r->step == GEN_UNIT) {
        buf_printf(out, "            put_part(%s, y%d, c, left, ", bf, i);
        if (adds) buf_printf(out, "get_part(%s, y%d, c, left, 0) + ", bf, i);
        buf_printf(out, "%s);\n", v.data);
    } else {
        buf_printf(out, "            k_scatter(%s, y%d, a->step[%d], %s, ", bf, i, t, column(u));
        if (adds) buf_printf(out, "k_gather(%s, y%d, a->step[%d], %s) + ", bf, i, t, column(u));
        buf_printf(out, "%s);\n", v.data);
    }
    buf_free(&v);
}

const gen_dialect gen_dialect_c = {.prelude = prelude,
                                   .open = open,
                                   .close = close,
                                   .block = BLOCK,
                                   .open_columns = open_columns,
                                   .close_columns = close_columns,
                                   .load = load,
                                   .reload = reload,
                                   .round = round_to,
                                   .index = index_of,
                                   .value = value,
                                   .here = here,
                                   .numerator = numerator,
                                   .reduce_open = reduce_open,
                                   .reduce = reduce,
                                   .reduce_close = reduce_close,
                                   .pick_open = pick_open,
                                   .pick_close = pick_close,
                                   .store = store};
