/* optimizer.c - AdamW (Loshchilov and Hutter 2019) as a kernel, in PyTorch's order of operations.
 *
 * One kernel serves all parameters: what differs by step, parameter and run are numbers, operands without a stride.
 */
#include "gen/kernel.h"

#include <math.h>

enum { P, G, M, V, DECAY, BETA1, BETA2, REST1, REST2, STEP, ROOT, EPS, SCALE };

gen_kernel *gen_adamw(arena *a) {
    gen_kernel *k = gen_new(a);
    int x[SCALE + 1];
    for (int i = P; i <= SCALE; i++) {
        vec_push(a, &k->in, ((gen_operand){.type = DT_F32, .step = i <= V ? GEN_UNIT : GEN_STILL}));
        x[i] = gen_load(k, i);
    }
    int g = gen_op2(k, OP_mul, x[G], x[SCALE]);
    int m = gen_op2(k, OP_add, gen_op2(k, OP_mul, x[M], x[BETA1]), gen_op2(k, OP_mul, g, x[REST1]));
    int square = gen_op2(k, OP_mul, gen_op2(k, OP_mul, g, g), x[REST2]);
    int v = gen_op2(k, OP_add, gen_op2(k, OP_mul, x[V], x[BETA2]), square);
    int root = gen_op2(k, OP_add, gen_op2(k, OP_mul, gen_op1(k, OP_sqrt, v), x[ROOT]), x[EPS]);
    int step = gen_op2(k, OP_mul, x[STEP], gen_op2(k, OP_div, m, root));
    const int value[] = {gen_op2(k, OP_sub, gen_op2(k, OP_mul, x[P], x[DECAY]), step), m, v};
    for (int i = 0; i < 3; i++)
        vec_push(a, &k->out, ((gen_result){.type = DT_F32, .step = GEN_UNIT, .store = GEN_STORE, .value = value[i]}));
    gen_finish(k);
    k->name = "adamw";
    return k;
}

void gen_adamw_numbers(const adamw_params *p, float *number) {
    const double fix1 = 1 - pow(p->beta1, (double)p->step), fix2 = 1 - pow(p->beta2, (double)p->step);
    const double all[GEN_ADAMW_NUMBERS] = {
        [DECAY - DECAY] = 1 - p->lr * p->weight_decay,
        [BETA1 - DECAY] = p->beta1,
        [BETA2 - DECAY] = p->beta2,
        [REST1 - DECAY] = 1 - p->beta1,
        [REST2 - DECAY] = 1 - p->beta2,
        [STEP - DECAY] = p->lr / fix1,
        [ROOT - DECAY] = 1 / sqrt(fix2),
        [EPS - DECAY] = p->eps,
        [SCALE - DECAY] = (double)p->grad_scale,
    };
    for (int i = 0; i < GEN_ADAMW_NUMBERS; i++) number[i] = (float)all[i];
}
