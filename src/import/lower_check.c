/* lower_check.c - which nodes matter, and which of them cannot be lowered: found before anything is built, so that one
 * message names every operator that is missing. */
#include "import/lower.h"

/* ---- liveness --------------------------------------------------------------------------------------------- */

/* May this operator change a tensor that it is given? ATen says so in the name: add_.Tensor (but not __and__),
 * __iand__, mul.out. Of operators from elsewhere and of higher-order ones nothing is known: a Triton kernel has no
 * result and fills a tensor. PyTorch's checks of sizes and values are no work. */
static bool may_write(const char *target) {
    if (strncmp(target, "torch.ops.", 10) != 0) return false; /* arithmetic of sizes */
    const char *name = target + 10, *end = strrchr(target, '.');
    if (strncmp(name, "aten.", 5) != 0) return strncmp(name, "profiler.", 9) != 0;
    name += 5;
    if (!strncmp(name, "__i", 3) && strncmp(name, "__index", 7) != 0) return true;
    if (end && !strncmp(end, ".out", 4)) return true;
    return end && end - target >= 2 && end[-1] == '_' && end[-2] != '_';
}

/* Of a region its nodes decide. */
static bool node_may_write(const pt2_node *n) {
    if (!lo_is_region(n->target)) return may_write(n->target);
    for (int k = 0; k < n->n_in; k++) {
        const pt2_graph *pg = n->in[k].arg.kind == PT2_GRAPH ? n->in[k].arg.graph : NULL;
        for (int i = 0; pg && i < pg->n_nodes; i++)
            if (node_may_write(&pg->nodes[i])) return true;
    }
    return false;
}

static void need(strmap *needed, const char *name) {
    if (name) strmap_put(needed, name, 1);
}

static void need_arg(strmap *needed, const pt2_arg *a) {
    if (a->kind == PT2_TENSOR || a->kind == PT2_SYM_INT) need(needed, a->name);
    for (int i = 0; a->kind == PT2_TENSORS && i < a->n; i++) need(needed, a->names[i]);
    for (int i = 0; (a->kind == PT2_INTS || a->kind == PT2_SYM_INTS) && i < a->n; i++) need(needed, a->syms[i].name);
}

static bool is_needed(const strmap *needed, const pt2_arg *a) {
    if (a->kind == PT2_TENSOR || a->kind == PT2_SYM_INT) return strmap_get(needed, a->name, NULL);
    for (int i = 0; a->kind == PT2_TENSORS && i < a->n; i++)
        if (a->names[i] && strmap_get(needed, a->names[i], NULL)) return true;
    return false;
}

bool *lo_live_nodes(arena *a, const pt2_graph *pg) {
    bool *live = ARENA_ARRAY(a, bool, pg->n_nodes);
    strmap *needed = strmap_new(a);
    for (int i = 0; i < pg->n_out; i++) need_arg(needed, &pg->out[i]);
    for (int i = pg->n_nodes - 1; i >= 0; i--) {
        const pt2_node *n = &pg->nodes[i];
        live[i] = node_may_write(n);
        for (int k = 0; k < n->n_out; k++) live[i] |= is_needed(needed, &n->out[k]);
        for (int k = 0; live[i] && k < n->n_in; k++) need_arg(needed, &n->in[k].arg);
    }
    return live;
}

/* ---- the report -------------------------------------------------------------------------------------------- */

typedef struct problem {
    const char *what, *where;
    int count;
} problem;

typedef struct report {
    lower *L;
    strmap *seen;
    VEC(problem) list;
} report;

static void complain(report *r, const pt2_node *n, const char *what) {
    int64_t i;
    if (strmap_get(r->seen, what, &i)) {
        r->list.data[i].count++;
        return;
    }
    strmap_put(r->seen, what, r->list.n);
    problem p = {what, pt2_source(r->L->a, n), 1};
    vec_push(r->L->a, &r->list, p);
}

/* What to change, by parts of the operator's name; the first that fits. */
static const struct {
    const char *part, *advice;
} advices[] = {
    {"higher_order.cond", "control flow that depends on data: compute both sides and choose with torch.where"},
    {"higher_order.while_loop", "a loop that depends on data: give it a fixed number of turns"},
    {"higher_order.flex_attention", "use torch.nn.functional.scaled_dot_product_attention with a mask computed from "
                                    "positions; transformers: attn_implementation=\"sdpa\""},
    {"triton_kernel", "a Triton kernel: use the operator's PyTorch version instead"},
    {"checkpoint", "export without gradient checkpointing"},
    {"higher_order.", "export the forward pass as plain PyTorch operators"},
    {"int8pack", "quantised weights are not trained: load the model in float32 or bfloat16"},
    {"int4pack", "quantised weights are not trained: load the model in float32 or bfloat16"},
    {"quantize", "quantised weights are not trained: load the model in float32 or bfloat16"},
    {"bitsandbytes", "quantised weights are not trained: load the model in float32 or bfloat16"},
    {"torchao", "quantised weights are not trained: load the model in float32 or bfloat16"},
    {"aten._scaled_mm", "quantised weights are not trained: load the model in float32 or bfloat16"},
    {"aten._grouped_mm", "routed experts are not supported: export a dense model"},
    {"aten.topk", "routed experts are not supported: export a dense model"},
    {"aten.sort", "routing by sorted scores is not supported: export a dense model"},
    {"aten.argsort", "routing by sorted scores is not supported: export a dense model"},
    {"aten.bincount", "routed experts are not supported: export a dense model"},
    {"aten.nonzero", "shapes that depend on data: multiply by a mask or use torch.where"},
    {"aten.masked_select", "shapes that depend on data: multiply by a mask or use torch.where"},
    {"aten.unique", "shapes that depend on data: multiply by a mask or use torch.where"},
    {"aten.item", "a number read from data: keep it a tensor"},
    {"aten._local_scalar_dense", "a number read from data: keep it a tensor"},
    {"aten.batch_norm", "statistics over the batch; use LayerNorm or RMSNorm"},
    {"aten._native_batch_norm", "statistics over the batch; use LayerNorm or RMSNorm"},
    {"aten.rand", "random numbers; of dropout they are supported"},
    {"aten.bernoulli", "random numbers; of dropout they are supported"},
    {"aten.conv", "convolutions are not supported"},
};

static const char *with_advice(arena *a, const char *name) {
    for (size_t i = 0; i < sizeof advices / sizeof *advices; i++)
        if (strstr(name, advices[i].part)) return arena_printf(a, "%s (%s)", name, advices[i].advice);
    if (strncmp(name, "aten.", 5) != 0 && strstr(name, "."))
        return arena_printf(a,
                            "%s (not one of PyTorch's operators, but a custom or Triton kernel: "
                            "use the plain PyTorch code of it)",
                            name);
    return name;
}

static void check_graph(report *r, const pt2_graph *pg) {
    arena *scratch = arena_new();
    const bool *live = lo_live_nodes(scratch, pg);
    for (int i = 0; i < pg->n_nodes; i++) {
        const pt2_node *n = &pg->nodes[i];
        bool inplace;
        if (!live[i]) continue;
        if (lo_is_region(n->target)) {
            for (int k = 0; k < n->n_in; k++)
                if (n->in[k].arg.kind == PT2_GRAPH) check_graph(r, n->in[k].arg.graph);
        } else if (!lo_find_row(r->L, n->target, &inplace)) {
            const char *name = strncmp(n->target, "torch.ops.", 10) ? n->target : n->target + 10;
            complain(r, n, with_advice(r->L->a, name));
        }
    }
    arena_free(scratch);
}

sp_status lo_check_operators(lower *L) {
    report r = {.L = L, .seen = strmap_new(L->a)};
    check_graph(&r, L->p->graph);
    if (r.list.n == 0) return SP_OK;
    buf b = {0};
    for (int i = 0; i < r.list.n; i++) {
        const problem *p = &r.list.data[i];
        buf_printf(&b, "%s%s (%d time%s%s%s)", i ? "; " : "", p->what, p->count, p->count > 1 ? "s" : "",
                   !*p->where     ? ""
                   : p->count > 1 ? ", first at "
                                  : ", at ",
                   p->where);
    }
    err_set("%s: this model uses operators that are not supported: %s", L->p->path, b.data);
    buf_free(&b);
    return SP_FAIL;
}
