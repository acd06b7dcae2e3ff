/* machine.c - machines by name and by description.
 *
 * Peaks are the vendors' dense figures (NVIDIA A100, H100, H200, B200, GH200 and AMD MI250, MI300X data sheets); what
 * is stored is the peak times the share in the next column. The shares are round numbers near what public reports of
 * large matrix products (60 to 70 % of the peak), streaming kernels (80 to 85 %) and all-to-all over NVLink (75 to 80
 * %) show. The cpu row is one rank of a small shared host.
 */
#include "cost/cost.h"

#include <math.h>
#include <stdlib.h>

typedef struct row {
    const char *name;
    double bf16, f32, f64, gemm_share; /* peak operations per second; sustained share */
    double mem_bw, mem_share;
    double mem; /* bytes */
    double link, net, link_share;
    double host_bw, host; /* host bytes: share of one device */
    double launch, latency;
    int node;
} row;

static const row rows[] = {
    /* name      bf16     f32      f64      share  mem_bw    share mem     link    net    share host_bw host   launch
       latency node */
    {"a100-40", 312e12, 156e12, 19.5e12, 0.65, 1.555e12, 0.85, 40e9, 300e9, 25e9, 0.75, 22e9, 125e9, 4e-6, 8e-6, 8},
    {"a100-80", 312e12, 156e12, 19.5e12, 0.65, 2.039e12, 0.85, 80e9, 300e9, 25e9, 0.75, 22e9, 250e9, 4e-6, 8e-6, 8},
    {"h100", 989e12, 494e12, 67e12, 0.60, 3.35e12, 0.82, 80e9, 450e9, 50e9, 0.78, 45e9, 250e9, 3e-6, 8e-6, 8},
    {"h200", 989e12, 494e12, 67e12, 0.60, 4.8e12, 0.82, 141e9, 450e9, 50e9, 0.78, 45e9, 250e9, 3e-6, 8e-6, 8},
    {"gh200", 989e12, 494e12, 67e12, 0.60, 4.0e12, 0.82, 96e9, 450e9, 50e9, 0.78, 350e9, 480e9, 3e-6, 8e-6, 4},
    {"b200", 2250e12, 1100e12, 37e12, 0.60, 8.0e12, 0.80, 180e9, 900e9, 50e9, 0.78, 45e9, 250e9, 3e-6, 8e-6, 8},
    {"mi250", 191e12, 47.9e12, 47.9e12, 0.50, 1.6e12, 0.75, 64e9, 100e9, 25e9, 0.70, 22e9, 125e9, 6e-6, 1e-5, 8},
    {"mi300x", 1307e12, 163e12, 163e12, 0.50, 5.3e12, 0.75, 192e9, 448e9, 50e9, 0.70, 45e9, 250e9, 6e-6, 1e-5, 8},
    {"cpu", 60e9, 60e9, 30e9, 1.0, 8e9, 1.0, 16e9, 4e9, 1e9, 1.0, 1e9, 16e9, 2e-6, 2e-5, 64},
};
enum { ROWS = sizeof rows / sizeof *rows };

const char *cost_machine_names(void) { return "a100-40 a100-80 h100 h200 gh200 b200 mi250 mi300x cpu"; }

static void fill(cost_machine *m, const row *r) {
    for (int t = 0; t < DT_COUNT; t++) m->flops[t] = r->f32 * r->gemm_share;
    m->flops[DT_BF16] = m->flops[DT_F16] = r->bf16 * r->gemm_share;
    m->flops[DT_F64] = r->f64 * r->gemm_share;
    m->attention = 0.8;
    m->mem_bw = r->mem_bw * r->mem_share;
    m->mem_bytes = (int64_t)r->mem;
    m->launch = r->launch;
    m->link_bw = r->link * r->link_share;
    m->net_bw = r->net * r->link_share;
    m->latency = r->latency;
    m->host_bw = r->host_bw;
    m->host_bytes = (int64_t)r->host;
    m->node_size = r->node;
}

#define FORMS "valid forms: NAME or NAMExCOUNT, KEY=VALUE,..., or both (\"h100x8,net=25e9\")"
#define KEYS "flops.f32 flops.f64 flops.bf16 attention mem_bw mem launch link net latency host_bw host node count"

static sp_status positive(const char *key, const char *text, double *v) {
    char *end;
    *v = strtod(text, &end);
    CHECK(end != text && !*end && isfinite(*v) && *v > 0, "%s=%s is not a positive number", key, text);
    return SP_OK;
}

static sp_status bytes_of(const char *key, const char *text, int64_t *v) {
    TRY_NOTE(parse_bytes(text, v), "%s", key);
    CHECK(*v > 0, "%s=%s is not a positive size", key, text);
    return SP_OK;
}

static sp_status whole(const char *key, const char *text, int *v) {
    char *end;
    long x = strtol(text, &end, 10);
    CHECK(end != text && !*end && x >= 1 && x <= 1 << 20, "%s=%s is not a whole number from 1", key, text);
    *v = (int)x;
    return SP_OK;
}

static sp_status set(cost_machine *m, const char *key, const char *v) {
    if (strncmp(key, "flops.", 6) == 0) {
        dtype t;
        CHECK(dtype_parse(key + 6, &t) && dtype_is_float(t),
              "unknown element type in '%s'; use flops.f32, "
              "flops.f64 or flops.bf16",
              key);
        TRY(positive(key, v, &m->flops[t]));
        if (t == DT_BF16) m->flops[DT_F16] = m->flops[t];
        return SP_OK;
    }
    if (strcmp(key, "attention") == 0) return positive(key, v, &m->attention);
    if (strcmp(key, "mem_bw") == 0) return positive(key, v, &m->mem_bw);
    if (strcmp(key, "mem") == 0) return bytes_of(key, v, &m->mem_bytes);
    if (strcmp(key, "launch") == 0) return positive(key, v, &m->launch);
    if (strcmp(key, "link") == 0) return positive(key, v, &m->link_bw);
    if (strcmp(key, "net") == 0) return positive(key, v, &m->net_bw);
    if (strcmp(key, "latency") == 0) return positive(key, v, &m->latency);
    if (strcmp(key, "host_bw") == 0) return positive(key, v, &m->host_bw);
    if (strcmp(key, "host") == 0) return bytes_of(key, v, &m->host_bytes);
    if (strcmp(key, "node") == 0) return whole(key, v, &m->node_size);
    if (strcmp(key, "count") == 0) return whole(key, v, &m->count);
    FAIL("unknown key '%s'; the keys are " KEYS, key);
}

/* NAME or NAMExCOUNT. */
static sp_status named(cost_machine *m, const char *word) {
    size_t n = strlen(word);
    const char *x = strrchr(word, 'x');
    for (int i = 0; i < ROWS; i++) {
        size_t len = strlen(rows[i].name);
        if (strncmp(word, rows[i].name, len) != 0) continue;
        if (len != n && !(x == word + len && x[1])) continue;
        fill(m, &rows[i]);
        if (len != n) TRY(whole("count", x + 1, &m->count));
        return SP_OK;
    }
    FAIL("unknown name '%s'; the names are %s; " FORMS, word, cost_machine_names());
}

sp_status cost_machine_parse(arena *a, const char *text, cost_machine *out) {
    cost_machine m = {.node_size = 8, .attention = 0.8, .launch = 4e-6, .latency = 1e-5};
    char *copy = arena_strdup(a, text), *rest = copy;
    bool first = true, base = false;
    CHECK(*text, "it is empty; " FORMS);
    while (rest) {
        char *word = rest, *comma = strchr(rest, ',');
        rest = comma ? comma + 1 : NULL;
        if (comma) *comma = 0;
        char *eq = strchr(word, '=');
        if (!eq) {
            CHECK(first, "'%s' has no value; " FORMS, word);
            TRY(named(&m, word));
            base = true;
        } else {
            *eq = 0;
            TRY(set(&m, word, eq + 1));
        }
        first = false;
    }
    if (!base) {
        double any = 0;
        for (int t = 0; t < DT_COUNT; t++) any = m.flops[t] > 0 ? m.flops[t] : any;
        CHECK(any > 0 && m.mem_bw > 0 && m.mem_bytes > 0,
              "a description without a name needs at least flops.TYPE, mem_bw and mem; " FORMS);
        for (int t = 0; t < DT_COUNT; t++)
            if (m.flops[t] <= 0) m.flops[t] = any;
        if (m.link_bw <= 0) m.link_bw = m.mem_bw / 10;
        if (m.net_bw <= 0) m.net_bw = m.link_bw / 10;
        if (m.host_bw <= 0) m.host_bw = m.mem_bw / 100;
    }
    m.name = arena_strdup(a, text);
    *out = m;
    return SP_OK;
}
