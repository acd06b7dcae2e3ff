/* cost.h - what an operator costs on a machine that may be only a description: seconds, operations, bytes moved.
 *
 * An operator takes a launch overhead plus the longer of its arithmetic and its memory traffic (roofline); a collective
 * takes what its formula says of the links it crosses. The numbers rank choices (save or recompute, which exchange) and
 * estimate a step; they are not a promise of time. Everything is deterministic, so that ranks agree.
 */
#ifndef AUTOSP_COST_COST_H
#define AUTOSP_COST_COST_H

#include "ir/ir.h"

/* One rank's device and its links. Rates are what well-written kernels sustain, not peaks: the table in machine.c has
 * both and its sources. */
typedef struct cost_machine {
    const char *name;
    int count;              /* devices in the whole machine; 0: not said */
    int node_size;          /* devices that the fast link joins */
    double flops[DT_COUNT]; /* per second, by element type of a product's operands */
    double attention;       /* share of that which attention sustains */
    double mem_bw;          /* bytes per second to device memory */
    int64_t mem_bytes;      /* of one device */
    double launch;          /* seconds before an operator starts */
    double link_bw;         /* bytes per second and direction of one device to the others in its node */
    double net_bw;          /* the same to other nodes */
    double latency;         /* seconds for one message */
    double host_bw;         /* bytes per second and direction to host memory, all devices of a node at once */
    int64_t host_bytes;     /* host memory of one device's share */
} cost_machine;

/* Parses a machine: NAME or NAMExCOUNT with a name of cost_machine_names ("h100x8", "a100-80x64"), or a list of
 * key=value
 * ("flops.bf16=4e14,mem_bw=2e12,mem=80GB,link=3e11"), or a name and changes to it ("h100x16,net=25e9"). Keys: flops.f32
 * flops.f64 flops.bf16 attention mem_bw mem launch link net latency host_bw host node count. A list that starts without
 * a name must have mem_bw, mem and a flops.TYPE; links default to memory speed / 10. Fails naming the unknown part and
 * the valid forms. The name is allocated in `a`. */
sp_status cost_machine_parse(arena *a, const char *text, cost_machine *out) SP_NODISCARD;
/* "cpu h100 ..." for messages. */
const char *cost_machine_names(void);

/* What one node does on one rank; local shapes, tiles of loops counted. */
typedef struct cost_work {
    double flops;   /* of products and attention: what the tensor units do */
    double bytes;   /* read and written */
    double sent;    /* bytes that this rank sends in a collective */
    double seconds; /* on the machine: launch, then the longest of the above */
    bool comm;      /* a collective */
} cost_work;

/* The cost of node n of a bound graph. Leaves, views and accumulations that happen inside a product cost nothing. */
cost_work cost_node(const cost_machine *m, const ir_graph *g, const ir_node *n);

/* Seconds of a collective op over `ranks` ranks, each holding `bytes` (all_gather: of its result; others: of its
 * operand). */
double cost_collective(const cost_machine *m, ir_op op, int64_t bytes, int ranks);

/* Sums over a graph's nodes: forward (tag 0), backward (tag 1), recomputation (tag 2), and of all these collectives. */
typedef struct cost_step {
    double forward, backward, again, comm; /* seconds; comm is contained in the others */
    double sent;                           /* bytes sent by this rank */
    double flops;
} cost_step;
cost_step cost_graph(const cost_machine *m, const ir_graph *g);

#endif
