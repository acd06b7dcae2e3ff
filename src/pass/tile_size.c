/* tile_size.c - what a region takes in memory, whole and in tiles, and into how many tiles it is cut.
 *
 * The working set is a simulation of lifetimes in the region's order, with element-wise results in their operand's
 * place as the planner does; the planner's own arena is what counts in the end, this only ranks choices. Tiles are as
 * few as keep the working set small beside what crosses the region's border: below an eighth of it more tiles gain
 * nothing, and every tile reads the weights and the weight gradients once more.
 */
#include "pass/tile_impl.h"

static int64_t part(const tiler *t, ir_val v, int64_t tiles) {
    return t->seq[v].kind == LAYOUT_SHARD ? ceil_div(t->bytes[v], tiles) : t->bytes[v];
}

static bool listed(const ir_val *list, int n, ir_val v) {
    for (int i = 0; i < n; i++)
        if (list[i] == v) return true;
    return false;
}

int64_t tile_working_set(const tiler *t, const tile_region *r, int64_t tiles) {
    const ir_graph *g = t->g;
    int nv = 0, n = r->nodes.n;
    for (int i = 0; i < n; i++) nv += g->nodes.data[r->nodes.data[i]].nout;
    arena *tmp = arena_new();
    int64_t *size = ARENA_ARRAY(tmp, int64_t, nv + 1), now = 0, top = 0;
    ir_val *value = ARENA_ARRAY(tmp, ir_val, nv + 1);
    int *last = ARENA_ARRAY(tmp, int, nv + 1), made = 0; /* last reader, as an index into nodes */
    for (int i = 0; i < n; i++) {
        const ir_node *m = &g->nodes.data[r->nodes.data[i]];
        for (int k = 0; k < m->nin; k++)
            for (int j = 0; j < made; j++)
                if (value[j] == t->root[m->in[k]]) last[j] = i;
        for (int k = 0; k < m->nout; k++) {
            ir_val v = m->out[k];
            bool out = listed(r->outputs.data, r->outputs.n, v), sum = t->seq[v].kind == LAYOUT_PARTIAL;
            if (!t->bytes[v] || (sum && (m->op == OP_dot || m->op == OP_embedding_grad))) continue; /* adds in place */
            if (out && tiles > 1) continue;
            value[made] = v;
            size[made] = part(t, v, tiles);
            last[made++] = out ? n : i;
        }
    }
    for (int i = 0, j = 0; i < n; i++) {
        const ir_node *m = &g->nodes.data[r->nodes.data[i]];
        int64_t before = now, freed = 0;
        for (; j < made && g->values.data[value[j]].node == r->nodes.data[i]; j++) now += size[j];
        for (int k = 0; k < j; k++)
            if (last[k] == i) freed += size[k];
        bool in_place = (op_table[m->op].flags & F_ELT) || m->op == OP_xent_grad;
        top = max64(top, in_place ? max64(before, now - min64(freed, now - before)) : now);
        now -= freed;
    }
    arena_free(tmp);
    return top;
}

bool tile_choose(const tiler *t, tile_region *r) {
    int64_t whole = tile_working_set(t, r, 1), outside = r->boundary, in = outside;
    for (int i = 0; i < r->outputs.n; i++) in -= t->bytes[r->outputs.data[i]];
    whole += in; /* outputs are in the working set of the whole */
    bool small = r->nodes.data[r->nodes.n - 1] >= t->small_from && r->nodes.data[0] < t->small_to;
    int share = !small ? 1 : t->share ? t->share : 8;
    int64_t bound = t->o->tile_bytes ? t->o->tile_bytes : max64(outside / share, 1 << 20), set = 0;
    for (r->tiles = 2; r->tiles <= t->most; r->tiles++) {
        if (t->rows % r->tiles || t->rows / r->tiles < t->min_rows) continue;
        set = tile_working_set(t, r, r->tiles);
        if (set <= bound) break;
    }
    if (r->tiles > t->most) set = tile_working_set(t, r, r->tiles = t->most);
    return t->o->tile_bytes ? outside + set < whole : outside + set <= whole - whole / 8;
}
