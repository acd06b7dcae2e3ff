/* dot.c - dot on the cpu device: dimension numbers folded into (batch, m, n, k) with strides for kern_gemm. */
#include "device/cpu/cpu.h"

#include <stdlib.h>

typedef struct fold {
    int64_t extent, stride;
} fold;

/* Folds the listed dimensions of t into one; false when their strides do not allow it. */
static bool fold_dims(const tensor *t, const int *list, int n, fold *f) {
    *f = (fold){1, 1};
    for (int i = n - 1; i >= 0; i--) {
        if (t->dim[list[i]] == 1) continue;
        if (f->extent == 1)
            f->stride = t->stride[list[i]];
        else if (t->stride[list[i]] != f->stride * f->extent)
            return false;
        f->extent *= t->dim[list[i]];
    }
    return true;
}

static bool listed(const ir_dim *list, int n, int d) {
    for (int i = 0; i < n; i++)
        if (list[i] == d) return true;
    return false;
}

/* One of the two strides must be 1: where an extent is 1 its stride means nothing. */
static bool unit(fold *rows, fold *cols) {
    if (rows->stride == 1 || cols->stride == 1) return rows->stride > 0 && cols->stride > 0;
    if (rows->extent == 1)
        rows->stride = 1;
    else if (cols->extent == 1)
        cols->stride = 1;
    return rows->stride == 1 || cols->stride == 1;
}

static bool describe(const dev_call *c, kern_gemm_desc *g) {
    const tensor *x = &c->in[0], *y = &c->in[1], *z = &c->out[0];
    const ir_dim *lc, *rc, *lb, *rb;
    int nc = ir_dims(c->node, "lc", &lc), nb = ir_dims(c->node, "lb", &lb);
    ir_dims(c->node, "rc", &rc);
    ir_dims(c->node, "rb", &rb);
    bool types = x->type == y->type && (z->type == x->type || z->type == DT_F32);
    if (!cpu_fast_type(x->type) || !types || nb > KERN_GEMM_BATCH) return false;
    *g = (kern_gemm_desc){
        .ab = x->type, .c = z->type, .nbatch = nb, .alpha = 1, .beta = c->accumulate ? 1 : 0, .threads = c->threads};
    for (int i = 0; i < nb; i++) {
        g->batch[i] = x->dim[lb[i]];
        g->a_bs[i] = x->stride[lb[i]];
        g->b_bs[i] = y->stride[rb[i]];
        g->c_bs[i] = z->stride[i];
    }
    int xc[IR_MAX_RANK], yc[IR_MAX_RANK], xf[IR_MAX_RANK], yf[IR_MAX_RANK], zm[IR_MAX_RANK], zn[IR_MAX_RANK];
    int m = 0, n = 0;
    for (int i = 0; i < nc; i++) {
        xc[i] = (int)lc[i];
        yc[i] = (int)rc[i];
    }
    for (int d = 0; d < x->rank; d++)
        if (!listed(lc, nc, d) && !listed(lb, nb, d)) {
            zm[m] = nb + m;
            xf[m++] = d;
        }
    for (int d = 0; d < y->rank; d++)
        if (!listed(rc, nc, d) && !listed(rb, nb, d)) {
            zn[n] = nb + m + n;
            yf[n++] = d;
        }
    fold am, ak, bk, bn, cm, cn;
    if (!fold_dims(x, xf, m, &am) || !fold_dims(x, xc, nc, &ak) || !fold_dims(y, yc, nc, &bk) ||
        !fold_dims(y, yf, n, &bn) || !fold_dims(z, zm, m, &cm) || !fold_dims(z, zn, n, &cn))
        return false;
    if (!unit(&am, &ak) || !unit(&bk, &bn) || !unit(&cm, &cn)) return false;
    g->m = am.extent;
    g->n = bn.extent;
    g->k = ak.extent;
    g->a_rs = am.stride, g->a_cs = ak.stride;
    g->b_rs = bk.stride, g->b_cs = bn.stride;
    g->c_rs = cm.stride, g->c_cs = cn.stride;
    return true;
}

/* A call's products: where the first microbatch stores and later ones add, both. */
typedef struct products {
    kern_gemm *add_or_set, *set;
} products;

static void free_products(products *p) {
    if (!p) return;
    kern_gemm_free(p->add_or_set);
    kern_gemm_free(p->set);
    free(p);
}

static sp_status prepare(const dev_call *c, kern_gemm_desc d, products **out) {
    products *p = *out = calloc(1, sizeof *p);
    CHECK(p, "out of memory for a matrix product's handle");
    sp_status s = kern_gemm_prepare(&d, &p->add_or_set);
    d.beta = 0;
    if (s == SP_OK && c->first) s = kern_gemm_prepare(&d, &p->set);
    if (s != SP_OK) {
        free_products(p);
        *out = NULL;
    }
    return s;
}

static int64_t workspace(const products *p) {
    int64_t add = (int64_t)kern_gemm_ws(p->add_or_set), set = p->set ? (int64_t)kern_gemm_ws(p->set) : 0;
    return max64(add, set);
}

int64_t cpu_dot_workspace(const dev_call *c) {
    kern_gemm_desc d;
    products *p;
    if (!describe(c, &d) || prepare(c, d, &p) != SP_OK) return 0;
    int64_t bytes = workspace(p);
    free_products(p);
    return bytes;
}

sp_status cpu_dot_prepare(dev_call *c) {
    kern_gemm_desc d;
    if (!describe(c, &d)) return SP_OK; /* the reference kernel takes any strides and types */
    products *p;
    TRY(prepare(c, d, &p));
    c->state = p;
    ASSERT(workspace(p) <= c->work_bytes);
    return SP_OK;
}

void cpu_dot_release(dev_call *c) { free_products(c->state); }

sp_status cpu_dot(dev_call *c) {
    if (!c->state) return ref_dot(c);
    const products *p = c->state;
    kern_gemm *g = c->first && !c->accumulate ? p->set : p->add_or_set;
    return kern_gemm_run(g, c->in[0].data, c->in[1].data, c->out[0].data, NULL, c->work);
}
