/* loop.c - P ranks as threads of one process.
 *
 * A collective is: post the buffers' addresses, the opening barrier, copy or reduce straight from the others'
 * buffers, the closing barrier (after which the others may reuse theirs). Every rank writes its own results, except
 * that all_reduce gives each rank a share of the elements, which it reduces and writes into everybody's recv.
 *
 * Failures. A job (one comm_loop_run) fails once, for the first reason; that "kills" the opening barrier of all its
 * groups. The invariants that make this safe:
 *  - An opening barrier opens for all members or for none: arrival count, generation and the dead bit are one
 *    atomic word, changed by compare-and-swap.
 *  - Between opening and closing a rank only copies, so it always reaches the closing barrier, and that one is never
 *    killed: no rank returns to its caller, who may free the buffers, while another copies from them.
 *  - After opening every rank compares the calls of all members; each comes to the same verdict.
 *  - A rank counts as blocked from its arrival at an opening barrier until that opens. All ranks of the job blocked
 *    is a deadlock (of calls on different groups), seen by the last rank to block.
 * A body's return is itself a call on the world, COMM_RETURNED, so that a rank which leaves early is a mismatch.
 *
 * Waiting is a futex sleep, after a few polls (SPIN, YIELD).
 */
#include "comm/backend.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The words of barriers: | generation | arrived: 11 bits | dead: 1 bit |. */
enum { DEAD = 1u, ARRIVED_ONE = 2u, GENERATION_ONE = 1u << 12 };
static unsigned arrived(unsigned word) { return (word & (GENERATION_ONE - 1)) / ARRIVED_ONE; }
static unsigned generation(unsigned word) { return word / GENERATION_ONE; }
/* The word after the last arrival: next generation, nobody arrived, alive. */
static unsigned opened(unsigned word) { return (generation(word) + 1) * GENERATION_ONE; }

enum {
    REASON_MAX = 1024,
    /* Polls before a wait sleeps. Pauses first (about 1 us), if every rank has a core; then offers of the core to
     * whoever can use it, which is what lets more ranks than cores go on, at a third of the cost of sleeping. */
    SPIN = 50,
    YIELD = 20,
};

typedef struct loop_group loop_group;
typedef struct loop_job loop_job;

typedef struct loop_comm {
    comm base;
    loop_group *group;
} loop_comm;

/* What a rank posts for the others to read between opening and closing; one cache line pair each. */
typedef struct loop_slot {
    _Alignas(128) comm_call call;
    const void *send;
    void *recv;
    int dst, src;     /* send_recv */
    int color, key;   /* split */
    loop_group *made; /* split: by the first rank of a color, for the color */
} loop_slot;

struct loop_group {
    loop_job *job;
    loop_group *next, **link; /* the job's list */
    int size;
    int refs;          /* members that did not comm_free yet; under the job's lock */
    loop_comm *member; /* [size] */
    loop_slot *slot;   /* [size] */
    int *world;        /* [size] a member's rank in the job */
    _Alignas(128) atomic_uint open;
    _Alignas(128) atomic_uint close;
};

struct loop_job {
    int size;
    bool spin;
    atomic_int blocked;      /* ranks inside an opening barrier that did not open yet */
    const loop_slot **where; /* [size] the slot a rank posted last; read by others only when all are blocked */
    pthread_mutex_t lock;    /* of the rest */
    loop_group *groups, *world;
    bool failed;
    int failed_rank; /* -1: no rank in particular */
    char reason[REASON_MAX];
};

/* ---- sleeping ---------------------------------------------------------------------------------- */

static void wake(atomic_uint *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0); }

static void pause_core(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns the word once its generation is no longer `from`, or the dead bit is set. */
static unsigned wait_change(const loop_job *job, atomic_uint *word, unsigned from) {
    for (int i = job->spin ? 0 : SPIN;; i++) {
        unsigned v = atomic_load_explicit(word, memory_order_acquire);
        if (generation(v) != from || v & DEAD) return v;
        if (i < SPIN)
            pause_core();
        else if (i < SPIN + YIELD)
            sched_yield();
        else /* returns at once when the word changed since, be it by one more arrival */
            syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0);
    }
}

/* ---- failing ----------------------------------------------------------------------------------- */

static void job_fail(loop_job *job, int rank, const char *reason) {
    pthread_mutex_lock(&job->lock);
    if (!job->failed) {
        job->failed = true;
        job->failed_rank = rank;
        snprintf(job->reason, sizeof job->reason, "%s", reason);
        for (loop_group *g = job->groups; g; g = g->next) {
            atomic_fetch_or(&g->open, DEAD);
            wake(&g->open);
        }
    }
    pthread_mutex_unlock(&job->lock);
}

/* Sets the job's failure as the calling thread's error. */
static sp_status job_dead(loop_job *job) {
    pthread_mutex_lock(&job->lock);
    if (job->failed_rank >= 0)
        err_set("rank %d failed: %s", job->failed_rank, job->reason);
    else
        err_set("%s", job->reason);
    pthread_mutex_unlock(&job->lock);
    return SP_FAIL;
}

static void fail_deadlock(loop_job *job) {
    char text[REASON_MAX], call[COMM_CALL_TEXT];
    int n = snprintf(text, sizeof text, "the ranks wait for each other:");
    for (int r = 0; r < job->size && n < REASON_MAX; r++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s rank %d %s", r ? "," : "", r,
                      comm_call_text(&job->where[r]->call, call));
    job_fail(job, -1, text);
}

/* ---- the two barriers -------------------------------------------------------------------------- */

static sp_status group_open(loop_group *g) {
    loop_job *job = g->job;
    unsigned v = atomic_load_explicit(&g->open, memory_order_acquire);
    for (;;) {
        if (v & DEAD) return job_dead(job);
        if ((int)arrived(v) + 1 == g->size) {
            /* Nobody else arrives any more: take the members off the blocked ones before they can run on. */
            atomic_fetch_sub(&job->blocked, g->size - 1);
            if (!atomic_compare_exchange_strong(&g->open, &v, opened(v))) continue; /* killed meanwhile */
            if (g->size > 1) wake(&g->open);
            return SP_OK;
        }
        if (atomic_compare_exchange_weak(&g->open, &v, v + ARRIVED_ONE)) break;
    }
    if (atomic_fetch_add(&job->blocked, 1) + 1 == job->size) fail_deadlock(job);
    unsigned from = generation(v);
    v = wait_change(job, &g->open, from);
    return generation(v) != from ? SP_OK : job_dead(job); /* opened first, then killed, counts as opened */
}

static void group_close(loop_group *g) {
    unsigned v = atomic_fetch_add(&g->close, ARRIVED_ONE);
    if ((int)arrived(v) + 1 == g->size) {
        atomic_store_explicit(&g->close, opened(v), memory_order_release);
        if (g->size > 1) wake(&g->close);
    } else {
        wait_change(g->job, &g->close, generation(v));
    }
}

/* send_recv: whom rank i receives from must send to i. */
static sp_status check_partners(const loop_group *g) {
    for (int i = 0; i < g->size; i++) {
        int dst = g->slot[i].dst, src = g->slot[i].src;
        if (dst >= 0 && g->slot[dst].src != i)
            FAIL("send_recv: rank %d sends to rank %d, which does not receive from it", g->world[i], g->world[dst]);
        if (src >= 0 && g->slot[src].dst != i)
            FAIL("send_recv: rank %d receives from rank %d, which does not send to it", g->world[i], g->world[src]);
    }
    return SP_OK;
}

/* Posts the call, waits for all members, compares. On SP_OK the slots stay valid until group_close. */
static sp_status begin(comm *c, const loop_slot *post) {
    loop_group *g = ((loop_comm *)c)->group;
    g->slot[c->rank] = *post;
    g->job->where[g->world[c->rank]] = &g->slot[c->rank];
    TRY(group_open(g));
    sp_status ok = SP_OK;
    for (int i = 1; i < g->size && ok == SP_OK; i++)
        if (!comm_call_equal(&g->slot[i].call, &g->slot[0].call))
            ok = comm_call_mismatch(g->world[i], &g->slot[i].call, g->world[0], &g->slot[0].call);
    if (ok == SP_OK && post->call.op == COMM_SEND_RECV) ok = check_partners(g);
    if (ok != SP_OK) {
        group_close(g); /* the others still read the slots */
        job_fail(g->job, -1, err_text());
    }
    return ok;
}

static sp_status end(comm *c) {
    group_close(((loop_comm *)c)->group);
    return SP_OK;
}

static const loop_slot *slots(const comm *c) { return ((const loop_comm *)c)->group->slot; }

/* ---- the collectives --------------------------------------------------------------------------- */

static const char *at(const void *p, int64_t offset) { return (const char *)p + offset; }

static void copy(void *to, const void *from, int64_t bytes) {
    if (to != from && bytes > 0) memcpy(to, from, (size_t)bytes);
}

static sp_status loop_all_reduce(comm *c, const void *send, void *recv, int64_t count, dtype t, comm_reduce op) {
    TRY(begin(c, &(loop_slot){.call = comm_call_reduce(COMM_ALL_REDUCE, count, t, op), .send = send, .recv = recv}));
    const loop_slot *s = slots(c);
    const void *in[COMM_LOOP_MAX];
    for (int i = 0; i < c->size; i++) in[i] = s[i].send;
    /* Only this rank reads or writes its share of anybody's buffers, and a block is read from all before it is
     * written to any: hence send == recv is fine. */
    int64_t elem = dtype_size(t), end_at = comm_share(count, c->rank + 1, c->size);
    _Alignas(64) char block[16384];
    int64_t step = (int64_t)sizeof block / elem;
    for (int64_t i = comm_share(count, c->rank, c->size); i < end_at; i += step) {
        int64_t n = min64(step, end_at - i);
        comm_reduce_range(block, in, c->size, i, n, t, op);
        for (int j = 0; j < c->size; j++) memcpy((char *)s[j].recv + i * elem, block, (size_t)(n * elem));
    }
    return end(c);
}

static sp_status loop_all_to_all(comm *c, const void *send, void *recv, int64_t bytes) {
    TRY(begin(c, &(loop_slot){.call = comm_call_move(COMM_ALL_TO_ALL, bytes, 0), .send = send}));
    for (int k = 0; k < c->size; k++) { /* starts at the own block: the ranks read from different ones */
        int i = (c->rank + k) % c->size;
        copy((char *)recv + i * bytes, at(slots(c)[i].send, c->rank * bytes), bytes);
    }
    return end(c);
}

static sp_status loop_all_gather(comm *c, const void *send, void *recv, int64_t bytes) {
    TRY(begin(c, &(loop_slot){.call = comm_call_move(COMM_ALL_GATHER, bytes, 0), .send = send}));
    for (int k = 0; k < c->size; k++) {
        int i = (c->rank + k) % c->size;
        copy((char *)recv + i * bytes, slots(c)[i].send, bytes);
    }
    return end(c);
}

static sp_status loop_reduce_scatter(comm *c, const void *send, void *recv, int64_t count, dtype t) {
    TRY(begin(c, &(loop_slot){.call = comm_call_reduce(COMM_REDUCE_SCATTER, count, t, COMM_SUM), .send = send}));
    const void *in[COMM_LOOP_MAX];
    for (int i = 0; i < c->size; i++) in[i] = slots(c)[i].send;
    comm_reduce_range(recv, in, c->size, c->rank * count, count, t, COMM_SUM);
    return end(c);
}

static sp_status loop_broadcast(comm *c, void *data, int64_t bytes, int root) {
    TRY(begin(c, &(loop_slot){.call = comm_call_move(COMM_BROADCAST, bytes, root), .send = data}));
    copy(data, slots(c)[root].send, bytes);
    return end(c);
}

static sp_status loop_send_recv(comm *c, const void *send, int dst, void *recv, int src, int64_t bytes) {
    TRY(begin(c, &(loop_slot){.call = comm_call_move(COMM_SEND_RECV, bytes, 0), .send = send, .dst = dst, .src = src}));
    if (src >= 0) copy(recv, slots(c)[src].send, bytes);
    return end(c);
}

static sp_status loop_barrier(comm *c) {
    TRY(begin(c, &(loop_slot){.call = comm_call_move(COMM_BARRIER, 0, 0)}));
    return end(c);
}

/* ---- groups ------------------------------------------------------------------------------------ */

/* A group of `size` ranks, in the job's list, dead when the job is; NULL when there is no memory. */
static loop_group *group_new(loop_job *job, int size) {
    loop_group *g = aligned_alloc(128, sizeof *g);
    size_t n = (size_t)size;
    loop_slot *slot = aligned_alloc(128, n * sizeof *slot);
    loop_comm *member = calloc(n, sizeof *member);
    int *world = calloc(n, sizeof *world);
    if (!g || !slot || !member || !world) {
        free(g), free(slot), free(member), free(world);
        return NULL;
    }
    *g = (loop_group){.job = job, .size = size, .refs = size, .slot = slot, .member = member, .world = world};
    memset(slot, 0, n * sizeof *slot);
    pthread_mutex_lock(&job->lock);
    atomic_init(&g->open, job->failed ? DEAD : 0u);
    atomic_init(&g->close, 0u);
    g->next = job->groups;
    g->link = &job->groups;
    if (g->next) g->next->link = &g->next;
    job->groups = g;
    pthread_mutex_unlock(&job->lock);
    return g;
}

/* With the job's lock held, or after its threads ended. */
static void group_free(loop_group *g) {
    *g->link = g->next;
    if (g->next) g->next->link = g->link;
    free(g->slot), free(g->member), free(g->world), free(g);
}

static const comm_ops loop_ops;

static void member_init(loop_group *g, int rank, int world) {
    g->world[rank] = world;
    g->member[rank] = (loop_comm){.base = {.ops = &loop_ops, .rank = rank, .size = g->size}, .group = g};
}

/* Does member i come before member j in their new group? */
static bool before(const loop_slot *s, int i, int j) { return s[i].key != s[j].key ? s[i].key < s[j].key : i < j; }

/* The place of member i of c among those of its color; *size: how many these are. O(P): nothing to allocate. */
static int place(const comm *c, int i, int *size) {
    const loop_slot *s = slots(c);
    int at_place = 0;
    *size = 0;
    for (int j = 0; j < c->size; j++) {
        if (s[j].color != s[i].color) continue;
        ++*size;
        if (before(s, j, i)) at_place++;
    }
    return at_place;
}

static sp_status loop_split(comm *c, int color, int key, comm **out) {
    loop_group *parent = ((loop_comm *)c)->group;
    TRY(begin(c, &(loop_slot){.call = comm_call_move(COMM_SPLIT, 0, 0), .color = color, .key = key}));
    int size, rank = place(c, c->rank, &size), first = c->rank;
    for (int j = 0; j < c->size; j++)
        if (slots(c)[j].color == color && before(slots(c), j, first)) first = j;
    if (color >= 0 && first == c->rank) {
        loop_group *g = group_new(parent->job, size);
        for (int j = 0, n; g && j < c->size; j++)
            if (slots(c)[j].color == color) member_init(g, place(c, j, &n), parent->world[j]);
        parent->slot[c->rank].made = g;
    }
    group_close(parent); /* all groups are made */
    loop_group *g = color >= 0 ? slots(c)[first].made : NULL;
    group_close(parent); /* all groups are picked up */
    CHECK(color < 0 || g, "rank %d: no memory for a communicator of %d ranks", parent->world[c->rank], size);
    *out = g ? &g->member[rank].base : NULL;
    return SP_OK;
}

static void loop_abort(comm *c, const char *reason) {
    loop_group *g = ((loop_comm *)c)->group;
    job_fail(g->job, g->world[c->rank], reason);
}

static void loop_free(comm *c) {
    loop_group *g = ((loop_comm *)c)->group;
    loop_job *job = g->job;
    pthread_mutex_lock(&job->lock);
    if (g != job->world && --g->refs == 0) group_free(g); /* the world goes with the job */
    pthread_mutex_unlock(&job->lock);
}

static const comm_ops loop_ops = {
    .name = "loop",
    .all_reduce = loop_all_reduce,
    .all_to_all = loop_all_to_all,
    .all_gather = loop_all_gather,
    .reduce_scatter = loop_reduce_scatter,
    .broadcast = loop_broadcast,
    .send_recv = loop_send_recv,
    .barrier = loop_barrier,
    .split = loop_split,
    .abort = loop_abort,
    .free = loop_free,
};

/* ---- running ----------------------------------------------------------------------------------- */

typedef struct loop_thread {
    pthread_t id;
    comm *c;
    sp_status (*body)(comm *c, void *arg);
    void *arg;
} loop_thread;

static void *thread_main(void *p) {
    loop_thread *t = p;
    if (t->body(t->c, t->arg) != SP_OK) {
        loop_abort(t->c, *err_text() ? err_text() : "no reason given");
        return NULL;
    }
    /* Whoever still waits for this rank hears of it; a failure is the job's and is reported by comm_loop_run. */
    sp_status left = begin(t->c, &(loop_slot){.call = {.op = COMM_RETURNED, .type = -1}});
    if (left == SP_OK) end(t->c);
    return NULL;
}

sp_status comm_loop_run(int ranks, sp_status (*body)(comm *c, void *arg), void *arg) {
    CHECK(ranks >= 1 && ranks <= COMM_LOOP_MAX, "%d ranks in one process: the number must be 1 to %d", ranks,
          COMM_LOOP_MAX);
    loop_job job = {.size = ranks, .spin = sysconf(_SC_NPROCESSORS_ONLN) >= ranks, .lock = PTHREAD_MUTEX_INITIALIZER};
    loop_thread *thread = calloc((size_t)ranks, sizeof *thread);
    job.where = calloc((size_t)ranks, sizeof *job.where);
    loop_group *world = thread && job.where ? group_new(&job, ranks) : NULL;
    if (!world) {
        free(thread), free(job.where);
        FAIL("no memory for %d ranks", ranks);
    }
    job.world = world;
    int started = 0;
    for (int r = 0; r < ranks; r++) member_init(world, r, r);
    for (; started < ranks; started++) {
        thread[started] = (loop_thread){.c = &world->member[started].base, .body = body, .arg = arg};
        int rc = pthread_create(&thread[started].id, NULL, thread_main, &thread[started]);
        if (rc != 0) {
            char reason[REASON_MAX];
            snprintf(reason, sizeof reason, "cannot start a thread: %s", strerror(rc));
            job_fail(&job, started, reason);
            break;
        }
    }
    for (int r = 0; r < started; r++) pthread_join(thread[r].id, NULL);
    if (job.failed && job.failed_rank >= 0)
        err_set("rank %d: %s", job.failed_rank, job.reason);
    else if (job.failed)
        err_set("%s", job.reason);
    while (job.groups) group_free(job.groups); /* a failed body may have left some; NOLINT: each unlinks itself */
    pthread_mutex_destroy(&job.lock);
    free(thread), free(job.where);
    return job.failed ? SP_FAIL : SP_OK;
}
