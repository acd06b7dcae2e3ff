/* formula.c - see formula.h. A stack machine of at most FORMULA_DEPTH truth values; a formula that parses never runs
 * out of it. Ranges are compared as intervals (three-valued logic), which is exact for one comparison and careful
 * beyond. */
#include "ir/formula.h"

#include <stdlib.h>

sp_status ir_formula_parse(const char *text, int pairs, ir_formula *out) {
    int depth = 0;
    *out = (ir_formula){0};
    for (const char *c = text ? text : ""; *c;) {
        if (*c == ' ') {
            c++;
            continue;
        }
        CHECK(out->n < FORMULA_MAX, "formula \"%s\" has more than %d words", text, FORMULA_MAX);
        int at = out->n++;
        if (*c == '&' || *c == '|') {
            CHECK(depth >= 2, "formula \"%s\": %c joins two conditions, %d are there", text, *c, depth);
            out->op[at] = *c++ == '&' ? FORMULA_AND : FORMULA_OR;
            depth--;
        } else {
            char *end;
            long pair = *c >= '0' && *c <= '9' ? strtol(c, &end, 10) : -1;
            CHECK(pair >= 0 && pair < pairs && pair < FORMULA_PAIRS, "formula \"%s\" names a pair that is not there",
                  text);
            bool ge = strncmp(end, ">=", 2) == 0, eq = strncmp(end, "==", 2) == 0, ne = strncmp(end, "!=", 2) == 0;
            CHECK(ge || eq || ne, "formula \"%s\": a comparison is >=, == or !=", text);
            CHECK(depth < FORMULA_DEPTH, "formula \"%s\" nests deeper than %d", text, FORMULA_DEPTH);
            out->op[at] = ge ? FORMULA_GE : eq ? FORMULA_EQ : FORMULA_NE;
            out->pair[at] = (uint8_t)pair;
            c = end + 2;
            depth++;
        }
        CHECK(*c == ' ' || !*c, "formula \"%s\": words are separated by spaces", text);
    }
    CHECK(depth == 1 || (depth == 0 && !text), "formula \"%s\" leaves %d results", text, depth);
    return SP_OK;
}

bool ir_formula_at(const ir_formula *f, const int64_t *q, const int64_t *k) {
    bool s[FORMULA_DEPTH + 1] = {true};
    int n = 0;
    for (int i = 0; i < f->n; i++) {
        if (f->op[i] < FORMULA_AND) {
            s[n++] = formula_compare(f->op[i], q[f->pair[i]], k[f->pair[i]]);
            continue;
        }
        n--;
        s[n - 1] = f->op[i] == FORMULA_AND ? s[n - 1] && s[n] : s[n - 1] || s[n];
    }
    return s[0];
}

static int compare_ranges(uint8_t op, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
    if (op == FORMULA_GE) return q0 >= k1 ? 1 : q1 < k0 ? 0 : -1;
    bool apart = q1 < k0 || q0 > k1, same = q0 == q1 && k0 == k1 && q0 == k0;
    if (!apart && !same) return -1;
    return apart == (op == FORMULA_NE);
}

int ir_formula_range(const ir_formula *f, const int64_t *q_min, const int64_t *q_max, const int64_t *k_min,
                     const int64_t *k_max) {
    int s[FORMULA_DEPTH + 1] = {1}, n = 0;
    for (int i = 0; i < f->n; i++) {
        int p = f->pair[i];
        if (f->op[i] < FORMULA_AND) {
            s[n++] = compare_ranges(f->op[i], q_min[p], q_max[p], k_min[p], k_max[p]);
            continue;
        }
        int a = s[n - 2], b = s[n - 1], stops = f->op[i] == FORMULA_OR; /* the value that decides alone */
        n--;
        s[n - 1] = a == stops || b == stops ? stops : a < 0 || b < 0 ? -1 : !stops;
    }
    return s[0];
}
