/* cost.c - operators on a machine: counts from local shapes, then roofline or the collective's formula.
 *
 * Collectives over P ranks of which n share a node, each rank holding b bytes (USP and DeepSpeed-Ulysses count the
 * same): all_to_all                b (P-1)/P sent by each rank; of it b (n-1)/P inside the node, b (P-n)/P outside
 *   all_gather, reduce_scatter  the same with b the whole (gathered) size
 *   all_reduce                twice that (reduce-scatter, then all-gather)
 * plus one latency a message. Inside and outside run one after the other: a careful lower speed.
 *
 * Copies to and from the host run beside everything else: of their seconds only those count that the forward (the
 * backward) does not hide.
 */
#include "cost/cost.h"

static double bytes_of(const ir_graph *g, const ir_val *v, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)ir_local_bytes(g, v[i]);
    return sum;
}

static double numel_of(const ir_graph *g, ir_val v) {
    ir_type t = ir_local_type(g, v);
    return (double)ir_numel(&t);
}

/* Share of the (query, key) pairs that a mask leaves: triangles and bands, by their areas. */
static double visible(const ir_node *n, double keys) {
    double share = ir_int(n, "causal", 0) ? 0.5 : 1.0;
    double window = (double)ir_int(n, "window", 0), ahead = (double)ir_int(n, "window_ahead", 0);
    if (window > 0 && keys > 0) {
        double band = (window + (ir_int(n, "causal", 0) ? 0 : ahead > 0 ? ahead : keys)) / keys;
        if (band < share) share = band;
    }
    return share;
}

/* Multiply-adds, two operations each: scores and weighted values; the backward has five products for two. */
static double attention_flops(const ir_graph *g, const ir_node *n, double products) {
    ir_type q = ir_local_type(g, n->in[0]), k = ir_local_type(g, n->in[1]);
    double keys = (double)k.dim[1];
    return products * 2 * (double)ir_numel(&q) * keys * visible(n, keys);
}

double cost_collective(const cost_machine *m, ir_op op, int64_t bytes, int ranks) {
    if (ranks <= 1) return 0;
    int inside = ranks < m->node_size ? ranks : m->node_size;
    double b = (double)bytes / ranks, rounds = op == OP_all_reduce ? 2 : 1;
    double t = b * (inside - 1) / m->link_bw + b * (ranks - inside) / m->net_bw;
    return rounds * (t + m->latency * (ranks - 1 < 16 ? ranks - 1 : 16)); /* larger groups overlap their messages */
}

static cost_work sum_region(const cost_machine *m, const ir_node *loop);

/* The product, or the embedding's gradient, that adds straight into the gradient's buffer in place of accum node n
 * (plan/build.c: gradients that accumulate in place); NULL: n moves its operand itself. */
static const ir_node *adds_in_place(const ir_graph *g, const ir_node *n) {
    const ir_node *by = ir_def(g, n->in[0]);
    bool moved = by->op == OP_permute;
    while (by->op == OP_permute) by = ir_def(g, by->in[0]);
    dtype t = ir_typeof(g, n->in[0])->t;
    bool adds = by->op == OP_dot || (by->op == OP_embedding_grad && !moved);
    return adds && (t == DT_F32 || t == DT_F64) ? by : NULL;
}

cost_work cost_node(const cost_machine *m, const ir_graph *g, const ir_node *n) {
    cost_work w = {0};
    int flags = op_table[n->op].flags;
    if (flags & F_VIEW) return w;
    if (flags & F_LEAF && n->op != OP_iota) return w;
    if (n->op == OP_loop) return sum_region(m, n);
    w.bytes = bytes_of(g, n->in, n->nin) + bytes_of(g, n->out, n->nout);
    if (flags & F_COLL) {
        int axis = ir_axis(g, ir_str(n, "axis"));
        int ranks = axis >= 0 ? g->mesh.axis[axis].size : 1;
        int64_t b = ir_local_bytes(g, n->op == OP_all_gather ? n->out[0] : n->in[0]);
        w.comm = true;
        w.sent = (double)b * (ranks - 1) / ranks * (n->op == OP_all_reduce ? 2 : 1);
        double move = w.bytes / m->mem_bw, link = cost_collective(m, n->op, b, ranks);
        w.seconds = m->launch + (move > link ? move : link);
        return w;
    }
    if (n->op == OP_offload || n->op == OP_fetch) {
        w.seconds = m->launch + bytes_of(g, n->in, 1) / m->host_bw;
        return w;
    }
    double rate = m->flops[DT_F32];
    switch (n->op) {
    case OP_dot: {
        const ir_dim *lc;
        int nc = ir_dims(n, "lc", &lc);
        ir_type l = ir_local_type(g, n->in[0]);
        w.flops = 2 * numel_of(g, n->out[0]);
        for (int i = 0; i < nc; i++) w.flops *= (double)l.dim[lc[i]];
        rate = m->flops[l.t];
        break;
    }
    case OP_attention:
    case OP_attention_grad:
        w.flops = attention_flops(g, n, n->op == OP_attention ? 2 : 5);
        rate = m->flops[ir_typeof(g, n->in[0])->t] * m->attention;
        break;
    case OP_embedding: /* reads the rows it takes, not the table */
        w.bytes = 2 * bytes_of(g, n->out, n->nout) + bytes_of(g, n->in + 1, 1);
        break;
    case OP_accum: {
        const ir_node *by = adds_in_place(g, n);
        if (by) { /* what it adds to the product: the buffer is read too, beside the arithmetic */
            cost_work x = cost_node(m, g, by);
            double product = x.seconds - m->launch;
            w.bytes = by->op == OP_dot ? bytes_of(g, n->in, 1) : 0;
            double both = (x.bytes + w.bytes) / m->mem_bw;
            if (w.bytes > 0 && both > product) w.seconds = both - product;
            return w;
        }
        w.bytes = 3 * bytes_of(g, n->in, n->nin);
        break;
    }
    case OP_embedding_grad:
        w.bytes = 3 * bytes_of(g, n->in, n->nin);
        break;
    default:
        break;
    }
    double compute = w.flops / rate, move = w.bytes / m->mem_bw;
    w.seconds = m->launch + (compute > move ? compute : move);
    return w;
}

/* A loop runs its region once for each tile; shapes in the region are one tile's. */
static cost_work sum_region(const cost_machine *m, const ir_node *loop) {
    cost_work w = {0};
    double tiles = (double)ir_int(loop, "tiles", 1);
    const ir_graph *r = loop->region;
    for (int i = 0; r && i < r->nodes.n; i++) {
        cost_work x = cost_node(m, r, &r->nodes.data[i]);
        w.flops += tiles * x.flops;
        w.bytes += tiles * x.bytes;
        w.sent += tiles * x.sent;
        w.seconds += tiles * x.seconds;
        w.comm |= x.comm;
    }
    return w;
}

/* Adds the nodes of g, which run `times`; a region's nodes have their own tags. */
static void add_graph(const cost_machine *m, const ir_graph *g, double times, cost_step *s) {
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_loop) {
            add_graph(m, n->region, times * (double)ir_int(n, "tiles", 1), s);
            continue;
        }
        if (n->op == OP_offload || n->op == OP_fetch) continue; /* add_host */
        cost_work w = cost_node(m, g, n);
        *(n->tag == 0 ? &s->forward : n->tag == 1 ? &s->backward : &s->again) += times * w.seconds;
        if (w.comm) s->comm += times * w.seconds;
        s->sent += times * w.sent;
        s->flops += times * w.flops;
    }
}

/* Adds of the copies to and from the host what the rest of the step does not hide. */
static void add_host(const cost_machine *m, const ir_graph *g, cost_step *s) {
    double out = 0, back = 0, behind = s->backward + s->again;
    for (int i = 0; i < g->nodes.n; i++) {
        const ir_node *n = &g->nodes.data[i];
        if (n->op == OP_offload) out += cost_node(m, g, n).seconds;
        if (n->op == OP_fetch) back += cost_node(m, g, n).seconds;
    }
    if (out > s->forward) s->forward = out;
    if (back > behind) s->backward += back - behind;
}

cost_step cost_graph(const cost_machine *m, const ir_graph *g) {
    cost_step s = {0};
    add_graph(m, g, 1, &s);
    add_host(m, g, &s);
    return s;
}
