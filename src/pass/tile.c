/* tile.c - regions that work row by row run in tiles of the sequence, so that their large values never exist whole.
 *
 *   before  %5 = dot(%4, %w) : f32[1,64,99]               logits, as large as the sequence times the vocabulary
 *           %6, %7 = xent(%5, %l)
 *           %8 = xent_grad(%5, %l, %7, %d)
 *           %9 = dot(%8, %w); %10 = dot(%8, %4); accum(%10) {param="w"}
 *   after   %6, %9 = loop(%4, %w, %l, %d) {tiles=4} graph { the same nodes on a quarter of the rows }
 *
 * The pass runs twice. Before `save` it takes regions that hold forward and backward nodes at once: the loss head.
 * There the cotangent of each row's loss is a constant, so loss, gradient of the hidden state and gradient of the
 * weight come out of one loop in the forward, and no logits are kept or computed again. After `save` it takes the
 * others: the MLP in the forward, and in the backward together with what `save` decided to compute again there. Regions
 * are found by what ops do (tile_find.c), not by names; how many tiles, by bytes (tile_size.c).
 *
 * A loop stands where its last node stood, or before the first reader of its results; what it needs moves before it.
 * Sums over rows (weight gradients, summed losses) are taken tile by tile in a fixed order; everything else is
 * the same arithmetic on fewer rows.
 *
 * Requires: a joint graph (pass_diff). Keeps: outputs, tags; a loop's tag is 0 when it holds a forward node.
 */
#include "pass/tile_impl.h"

/* ---- order ------------------------------------------------------------------------------------- */

typedef struct scheduler {
    const tiler *t;
    tile_order *out;
    bool *node, *region; /* placed (or being placed) */
} scheduler;

static void place_value(scheduler *s, ir_val v);

static void place_region(scheduler *s, int index) {
    if (s->region[index]) return;
    s->region[index] = true;
    const tile_region *r = &s->t->regions.data[index];
    for (int i = 0; i < r->inputs.n; i++) place_value(s, r->inputs.data[i]);
    vec_push(s->t->a, s->out, -index - 1);
}

/* A node outside regions, or a view inside one that is read outside too. */
static void place_node(scheduler *s, int node) {
    if (s->node[node]) return;
    s->node[node] = true;
    const ir_node *n = &s->t->g->nodes.data[node];
    for (int k = 0; k < n->nin; k++) place_value(s, n->in[k]);
    vec_push(s->t->a, s->out, node);
}

static void place_value(scheduler *s, ir_val v) {
    const ir_graph *g = s->t->g;
    int node = g->values.data[v].node, region = s->t->region[node];
    if (region < 0 || (op_table[g->nodes.data[node].op].flags & F_VIEW))
        place_node(s, node);
    else
        place_region(s, region);
}

void tile_schedule(const tiler *t, tile_order *out) {
    const ir_graph *g = t->g;
    arena *tmp = arena_new();
    scheduler s = {.t = t, .out = out};
    s.node = ARENA_ARRAY(tmp, bool, g->nodes.n);
    s.region = ARENA_ARRAY(tmp, bool, t->regions.n + 1);
    for (int i = 0; i < g->nodes.n; i++) {
        int r = t->region[i];
        if (r < 0)
            place_node(&s, i);
        else if (t->regions.data[r].nodes.data[t->regions.data[r].nodes.n - 1] == i)
            place_region(&s, r);
    }
    arena_free(tmp);
}

/* ---- building ---------------------------------------------------------------------------------- */

/* A value as a region reads it: cut by the tiles, or whole. */
typedef struct operand {
    ir_val old, in; /* of the graph; of the region */
    axis_layout layout;
} operand;

typedef struct body {
    const tiler *t;
    const tile_region *r;
    ir_graph *region;
    int axis;
    ir_val *made; /* by old value: made in the region, -1 */
    VEC(operand) operands;
} body;

static bool same(axis_layout a, axis_layout b) {
    return a.kind == b.kind && (a.kind != LAYOUT_SHARD || (a.dim == b.dim && a.outer == b.outer));
}

/* Appends a copy of old node n; `tile` is the layout of result 0 on the tile axis where no operand says. */
static sp_status copy_into(body *b, const ir_node *n, const ir_val *in, axis_layout tile, ir_val *out) {
    const ir_graph *g = b->t->g;
    ir_graph *h = b->region;
    ir_type types[IR_MAX_OUT];
    ir_attr *attr = arena_memdup(g->a, n->attr, sizeof *attr * (size_t)n->nattr);
    for (int k = 0; k < n->nattr; k++) {
        if (attr[k].kind != ATTR_DIMS) continue;
        attr[k].dims = arena_memdup(g->a, attr[k].dims, sizeof *attr[k].dims * (size_t)attr[k].n);
        for (int d = 0; d < attr[k].n; d++) attr[k].dims[d] = dim_import(h, g, attr[k].dims[d]);
    }
    for (int k = 0; k < n->nout; k++) types[k] = *ir_typeof(g, n->out[k]);
    ir_layout hint = {0};
    if (n->nout) hint = *ir_layoutof(g, n->out[0]);
    hint.axis[b->axis] = tile;
    TRY(ir_emit_region(h, n->op, in, n->nin, attr, n->nattr, n->nout ? types : NULL, n->nout, &hint, NULL, out));
    ir_node *made = &h->nodes.data[h->nodes.n - 1];
    made->src = n->src;
    made->tag = n->tag;
    return SP_OK;
}

/* Outside value v as an input of the region (or, a literal, made in it). */
static sp_status region_input(body *b, ir_val v, axis_layout layout, ir_val *out) {
    const ir_graph *g = b->t->g;
    for (int i = 0; i < b->operands.n; i++)
        if (b->operands.data[i].old == v && same(b->operands.data[i].layout, layout)) {
            *out = b->operands.data[i].in;
            return SP_OK;
        }
    char name[16];
    snprintf(name, sizeof name, "x%d", b->operands.n);
    ir_layout hint = *ir_layoutof(g, v);
    hint.axis[b->axis] = layout;
    TRY(ir_emit(b->region, OP_input, NULL, 0, ATTRS(A_S("name", name)), ir_typeof(g, v), &hint, out));
    operand x = {v, *out, layout};
    vec_push(g->a, &b->operands, x);
    return SP_OK;
}

/* Inputs first, so that the text reads as a function; then the nodes in their order. */
static sp_status build_body(body *b) {
    const tiler *t = b->t;
    const ir_graph *g = t->g;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < b->r->nodes.n; i++) {
            const ir_node *n = &g->nodes.data[b->r->nodes.data[i]];
            ir_val in[64], out = -1;
            CHECK(n->nin <= 64, "tile: %d operands", n->nin);
            for (int k = 0; k < n->nin; k++) {
                ir_val v = n->in[k];
                bool inside = t->region[g->values.data[v].node] == t->region[b->r->nodes.data[i]];
                const ir_node *maker = ir_def(g, v);
                if (inside) {
                    in[k] = b->made[v];
                } else if (maker->op == OP_fill || maker->op == OP_const) {
                    if (pass) TRY(copy_into(b, maker, NULL, tile_demand(t, n, k), &in[k]));
                } else {
                    TRY(region_input(b, v, tile_demand(t, n, k), &in[k]));
                }
            }
            if (!pass) continue;
            TRY_NOTE(copy_into(b, n, in, n->nout ? t->seq[n->out[0]] : (axis_layout){0}, &out), "tiling %s",
                     op_table[n->op].name);
            for (int k = 0; k < n->nout; k++) b->made[n->out[k]] = out + k;
        }
    return SP_OK;
}

static sp_status emit_loop(const tiler *t, int index, ir_graph *h, ir_val *map) {
    const ir_graph *g = t->g;
    const tile_region *r = &t->regions.data[index];
    body b = {.t = t, .r = r, .region = ir_new(g->a, "tile"), .axis = g->mesh.naxes};
    CHECK(g->mesh.naxes < IR_MAX_AXES, "tile: a mesh of %d axes", g->mesh.naxes);
    b.region->mesh = g->mesh;
    b.region->mesh.axis[b.axis].name = "tile";
    b.region->mesh.axis[b.axis].size = (int)r->tiles;
    b.region->mesh.naxes++;
    b.region->broken_op = g->broken_op;
    b.made = ARENA_ARRAY(t->a, ir_val, g->values.n);
    memset(b.made, -1, sizeof *b.made * (size_t)g->values.n);
    TRY(build_body(&b));
    ir_type types[IR_MAX_OUT];
    for (int k = 0; k < r->outputs.n; k++) {
        ir_val v = r->outputs.data[k];
        types[k] = *ir_typeof(g, v);
        ir_set_output(b.region, arena_printf(g->a, "y%d", k), b.made[v]);
    }
    ir_val *in = ARENA_ARRAY(t->a, ir_val, b.operands.n), out = -1;
    for (int i = 0; i < b.operands.n; i++) in[i] = map[b.operands.data[i].old];
    TRY(ir_emit_region(h, OP_loop, in, b.operands.n, ATTRS(A_I("tiles", r->tiles)), r->outputs.n ? types : NULL,
                       r->outputs.n, NULL, b.region, &out));
    ir_node *made = &h->nodes.data[h->nodes.n - 1];
    made->tag = 1;
    for (int i = 0; i < r->nodes.n; i++)
        if (!g->nodes.data[r->nodes.data[i]].tag) made->tag = 0;
    made->src = g->nodes.data[r->nodes.data[0]].src;
    for (int k = 0; k < r->outputs.n; k++) map[r->outputs.data[k]] = out + k;
    return SP_OK;
}

/* What a forward node needs is forward: the cotangent of the loss, which the loss head reads. */
static void retag(ir_graph *h) {
    for (int i = h->nodes.n - 1; i >= 0; i--)
        for (int k = 0; !h->nodes.data[i].tag && k < h->nodes.data[i].nin; k++)
            ir_def(h, h->nodes.data[i].in[k])->tag = 0;
}

static sp_status rebuild(const tiler *t, ir_graph **out) {
    const ir_graph *g = t->g;
    tile_order order = {0};
    tile_schedule(t, &order);
    ir_graph *h = ir_new(g->a, g->name);
    h->mesh = g->mesh;
    h->broken_op = g->broken_op;
    h->seq = g->seq;
    h->seq_valid = g->seq_valid;
    ir_val *map = ARENA_ARRAY(t->a, ir_val, g->values.n);
    memset(map, -1, sizeof *map * (size_t)g->values.n);
    for (int i = 0; i < order.n; i++) {
        if (order.data[i] < 0)
            TRY(emit_loop(t, -order.data[i] - 1, h, map));
        else
            TRY(ir_copy_node(h, g, order.data[i], map));
    }
    for (int i = 0; i < g->outputs.n; i++) ir_set_output(h, g->outputs.data[i].name, map[g->outputs.data[i].value]);
    retag(h);
    *out = ir_dce(h);
    return SP_OK;
}

/* ---- the pass ---------------------------------------------------------------------------------- */

static bool off(const pass_options *o) { return o->tile_policy && strcmp(o->tile_policy, "off") == 0; }
static int64_t least_rows(const pass_options *o) { return o->tile_rows ? o->tile_rows : 256; }

/* The largest number of tiles: the largest divisor that leaves each enough rows. */
static int64_t most_tiles(int64_t rows, int64_t least) {
    for (int64_t n = rows / least; n > 1; n--)
        if (rows % n == 0) return n;
    return 1;
}

int64_t pass_tile_padding(const pass_options *o, int64_t rows) {
    int64_t least = least_rows(o), want = rows / least, unit = 1;
    if (off(o) || 2 * most_tiles(rows, least) > want) return rows;
    while (2 * unit <= want) unit *= 2;
    return round_up(rows, unit);
}

/* Is a node in the last 1/part of the forward or the first of the backward? turn: where the backward starts. */
static bool near_turn(const tiler *t, int node, int turn, int part) {
    int n = t->g->nodes.n;
    return node < turn ? node >= turn - turn / part : node < turn + (n - turn) / part;
}

/* Early layers run beside few kept values: there is room to run them whole, and those after them in large tiles. Takes
 * nodes out that are far from where the backward starts; the others' tiles are small only near it. */
static void only_late(tiler *t) {
    const ir_graph *g = t->g;
    int turn = 0, n = g->nodes.n;
    while (turn < n && !g->nodes.data[turn].tag) turn++;
    if (t->o->tile_fine > 1) {
        t->small_from = turn - turn / t->o->tile_fine;
        t->small_to = turn + (n - turn) / t->o->tile_fine;
    }
    for (int i = 0; i < n && t->o->tile_late > 1; i++)
        if (!near_turn(t, i, turn, t->o->tile_late)) t->fits[i] = false;
}

sp_status pass_tile(const ir_graph *g, const pass_options *o, bool loss, ir_graph **out) {
    *out = (ir_graph *)g;
    tiler t = {.g = g, .o = o, .rows = g->seq / (o->ranks > 1 ? o->ranks : 1), .min_rows = least_rows(o)};
    t.small_to = g->nodes.n;
    t.share = loss ? o->loss_share : o->tile_share;
    t.most = most_tiles(t.rows, t.min_rows);
    bool only_loss = o->tile_policy && strcmp(o->tile_policy, "loss") == 0;
    if (off(o) || t.most == 1 || (only_loss && !loss)) return SP_OK;
    t.a = arena_new();
    tile_analyse(&t);
    if (!loss) only_late(&t);
    tile_find(&t, loss);
    sp_status s = t.regions.n ? rebuild(&t, out) : SP_OK;
    arena_free(t.a);
    return s;
}
