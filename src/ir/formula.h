/* formula.h - conditions on pairs (query, key) that attention evaluates per tile: and / or of comparisons of one
 * integer that belongs to the query with one that belongs to the key.
 *
 * Text, in reverse Polish notation:   0>= 1== | 2!= &
 * N>=, N==, N!= compare side vectors pair N, its query vector on the left; & and | join the two results before them.
 * The key is visible where the whole is true. A prefix of length n and causal after it is  q >= k  or  n - 1 >= k.
 */
#ifndef AUTOSP_IR_FORMULA_H
#define AUTOSP_IR_FORMULA_H

#include "base/base.h"

enum { ATTENTION_SIDES = 24 }; /* most side operands of an attention */
enum { FORMULA_MAX = 31, FORMULA_PAIRS = 8, FORMULA_DEPTH = 8 };

typedef enum formula_op { FORMULA_GE, FORMULA_EQ, FORMULA_NE, FORMULA_AND, FORMULA_OR } formula_op;

typedef struct ir_formula {
    int n;                   /* 0: no condition */
    uint8_t op[FORMULA_MAX]; /* formula_op */
    uint8_t pair[FORMULA_MAX];
} ir_formula;

/* Reads `text` (NULL: no condition), which may use pairs 0 .. pairs-1. SP_FAIL says what is wrong with it. */
sp_status ir_formula_parse(const char *text, int pairs, ir_formula *out) SP_NODISCARD;

static inline bool formula_compare(uint8_t op, int64_t q, int64_t k) {
    return op == FORMULA_GE ? q >= k : op == FORMULA_EQ ? q == k : q != k;
}

/* Its value for query numbers q[pair] and key numbers k[pair]. */
bool ir_formula_at(const ir_formula *f, const int64_t *q, const int64_t *k);

/* The same for whole ranges of numbers, the least and greatest of each: 1 true for all, 0 for none, -1 not known. */
int ir_formula_range(const ir_formula *f, const int64_t *q_min, const int64_t *q_max, const int64_t *k_min,
                     const int64_t *k_max);

#endif
