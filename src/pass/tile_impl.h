/* tile_impl.h - private to src/pass/tile*.c: what may be tiled, and the regions found so far. */
#ifndef AUTOSP_PASS_TILE_IMPL_H
#define AUTOSP_PASS_TILE_IMPL_H

#include "pass/pass.h"

/* A set of nodes that becomes one loop. */
typedef struct tile_region {
    VEC(int) nodes;     /* ascending */
    VEC(ir_val) inputs; /* made outside, read inside; without literals */
    VEC(ir_val) outputs;
    int64_t boundary; /* local bytes of the inputs and outputs that tiles cut */
    int64_t tiles;
} tile_region;

typedef struct tiler {
    const ir_graph *g;
    const pass_options *o;
    arena *a;
    int64_t rows, min_rows;   /* of one rank; the fewest in a tile */
    int share;                /* pass_options: loss_share or tile_share */
    int small_from, small_to; /* nodes whose region's tiles are as small as `share` says; others': 1 */
    int64_t most;             /* the largest number of tiles: divides rows */
    axis_layout *seq;       /* by value: where its sequence dimension is (LAYOUT_SHARD); LAYOUT_PARTIAL: a sum over it;
                             * LAYOUT_REPL: neither */
    ir_val *root;           /* by value: whose storage it shows */
    int64_t *bytes;         /* by value: local; 0 for views and leaves */
    bool *fits;             /* by node: may be in a region */
    int *first_user, *user; /* by value: users are user[first_user[v] .. first_user[v+1]) */
    bool *returned;         /* by value: an output of the graph */
    int *region;            /* by node: index into regions, -1 */
    int *pos;               /* by node: place in the order in which things run, regions as one */
    VEC(tile_region) regions;
    int *mark, stamp;   /* by node: visited in this search */
    int *member, count; /* by node: in the set being grown iff member[i] == count */
} tiler;

/* tile_find.c: fills in seq, root, bytes, fits and users; then finds regions (loss: those that hold forward and
 * backward nodes; else the others). */
void tile_analyse(tiler *t);
void tile_find(tiler *t, bool loss);
/* The layout on the tile axis in which node n of a region reads operand i. */
axis_layout tile_demand(const tiler *t, const ir_node *n, int i);

/* tile_size.c: most bytes alive at once when the nodes run in order on all rows (tiles == 1) or on a tile's, without
 * what lies outside: inputs, and (tiles > 1) outputs. */
int64_t tile_working_set(const tiler *t, const tile_region *r, int64_t tiles);
/* Chooses r->tiles; false when tiling would not lower the region's bytes by enough. */
bool tile_choose(const tiler *t, tile_region *r);

/* tile.c: the order of everything with regions as one: item >= 0 a node, < 0 region -(item+1). */
typedef VEC(int) tile_order;
void tile_schedule(const tiler *t, tile_order *out);

#endif
