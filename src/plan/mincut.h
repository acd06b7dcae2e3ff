/* mincut.h - maximum flow and minimum cut on integer capacities: Dinic's algorithm.
 *
 * Graphs here have some hundred to some ten thousand nodes and a few edges each, a shape on which Dinic takes well
 * under a millisecond. Nothing here knows the IR.
 */
#ifndef AUTOSP_PLAN_MINCUT_H
#define AUTOSP_PLAN_MINCUT_H

#include "base/base.h"

/* The capacity of an edge that no cut may cross. Finite capacities must add up to less. */
#define PLAN_INF ((int64_t)1 << 60)

typedef struct plan_flow plan_flow;

/* An empty network of `nodes` nodes, 0 <= number < nodes, owned by the arena. */
plan_flow *plan_flow_new(arena *a, int nodes);

/* Adds the edge from -> to and returns its number (from 0, in order). 0 <= cap <= PLAN_INF. */
int plan_flow_edge(plan_flow *f, int from, int to, int64_t cap);

/* Gives an edge another capacity for the next plan_flow_solve. */
void plan_flow_set(plan_flow *f, int edge, int64_t cap);

/* Finds a maximum flow from s to t, from scratch. False when the cut is infinite, that is when a path of infinite edges
 * leads from s to t (then plan_flow_path has it); else *value is the flow, which is also the least cut's capacity.
 * O(nodes^2 edges) at worst; practically linear here. Deterministic. */
bool plan_flow_solve(plan_flow *f, int s, int t, int64_t *value);

/* After a finite solve: is v on the source's side of the minimum cut? Of all minimum cuts, the one with the smallest
 * source side. */
bool plan_flow_source_side(const plan_flow *f, int v);

/* After a finite solve: the same for the minimum cut with the largest source side. */
bool plan_flow_source_side_max(const plan_flow *f, int v);

/* After an infinite solve: the nodes of one infinite path, s first, t last; returns their count. Owned by f. */
int plan_flow_path(const plan_flow *f, const int **nodes);

#endif
