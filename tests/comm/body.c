/* body.c - see body.h. The oracle: every rank can compute every other rank's data (value), so it works out alone what
 * it must receive. */
#include "body.h"

#include <math.h>
#include <stdlib.h>

/* ---- data -------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t seed, int rank, int64_t i) {
    uint64_t s = seed * 1000003u + (uint64_t)rank * 7919u + (uint64_t)i * 104729u;
    return rng_next(&s);
}

/* Numbers of many magnitudes and both signs: an f32 sum in another order would have other bits. */
static double value(uint64_t seed, int rank, int64_t i) {
    uint64_t h = mix(seed, rank, i);
    double v = (double)(int64_t)(h >> 12) * 0x1p-52 * (h & 1 ? 1 : -1);
    return ldexp(v, (int)(h >> 4 & 15) - 8);
}

/* bf16 by definition: the nearest of the two neighbours, by comparing distances; not the bit trick under test. */
static float bf16_value(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t bf16_nearest(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t lo = (uint16_t)(u >> 16), hi = (uint16_t)(lo + 1); /* towards zero, away from it */
    double a = fabs((double)f - bf16_value(lo)), b = fabs((double)bf16_value(hi) - f);
    return a < b || (a == b && lo % 2 == 0) ? lo : hi;
}

static void store(void *p, int64_t i, dtype t, uint64_t seed, int rank, int64_t index) {
    switch (t) {
    case DT_F32:
        ((float *)p)[i] = (float)value(seed, rank, index);
        break;
    case DT_F64:
        ((double *)p)[i] = value(seed, rank, index);
        break;
    case DT_BF16:
        ((uint16_t *)p)[i] = bf16_nearest((float)value(seed, rank, index));
        break;
    default:
        ((int64_t *)p)[i] = (int64_t)mix(seed, rank, index);
        break; /* sums wrap */
    }
}

/* The reduction of element `index` over ranks 0..size-1, in that order, into p[0]. */
static void expect(void *p, dtype t, comm_reduce op, uint64_t seed, int size, int64_t index) {
    union {
        double f64;
        float f32;
        uint16_t bf16;
        int64_t i64;
    } x, sum = {.i64 = 0};
    volatile float f = 0; /* volatile: rounded to f32 at every step */
    for (int r = 0; r < size; r++) {
        bool first = r == 0, max = op == COMM_MAX;
        store(&x, 0, t, seed, r, index);
        if (t == DT_F64) {
            sum.f64 = first ? x.f64 : max ? fmax(sum.f64, x.f64) : sum.f64 + x.f64;
        } else if (t == DT_I64) {
            int64_t wrapped = (int64_t)((uint64_t)sum.i64 + (uint64_t)x.i64);
            sum.i64 = first ? x.i64 : max ? max64(sum.i64, x.i64) : wrapped;
        } else {
            float y = t == DT_F32 ? x.f32 : bf16_value(x.bf16);
            f = first ? y : max ? fmaxf(f, y) : f + y;
        }
    }
    if (t == DT_F32) sum.f32 = f;
    if (t == DT_BF16) sum.bf16 = bf16_nearest(f);
    memcpy(p, &sum, (size_t)dtype_size(t));
}

static unsigned char byte_of(uint64_t seed, int from, int to, int64_t i) {
    return (unsigned char)(mix(seed + (uint64_t)to * 31, from, i) >> 20);
}

/* ---- checks ------------------------------------------------------------------------------------ */

enum { GUARD = 64 }; /* bytes behind a buffer that must stay as they are */

static void *guarded(int64_t bytes) {
    unsigned char *p = aligned_alloc(64, (size_t)round_up(bytes + GUARD, 64));
    ASSERT(p);
    memset(p, 0xa5, (size_t)(bytes + GUARD));
    return p;
}

static sp_status check_guard(const comm *c, const void *p, int64_t bytes, const char *what) {
    for (int i = 0; i < GUARD; i++)
        CHECK(((const unsigned char *)p)[bytes + i] == 0xa5, "rank %d: %s wrote past its %lld bytes", c->rank, what,
              (long long)bytes);
    return SP_OK;
}

static sp_status reductions(comm *c, dtype t, comm_reduce op, int64_t count, bool in_place) {
    uint64_t seed = (uint64_t)count * 10 + (uint64_t)t;
    int64_t elem = dtype_size(t), n = count * elem;
    char *send = guarded(n), *recv = in_place ? send : guarded(n), want[8];
    sp_status ok = SP_OK;
    for (int64_t i = 0; i < count; i++) store(send, i, t, seed, c->rank, i);
    ok = comm_all_reduce(c, send, recv, count, t, op);
    for (int64_t i = 0; ok == SP_OK && i < count; i++) {
        expect(want, t, op, seed, c->size, i);
        if (memcmp(recv + i * elem, want, (size_t)elem) != 0)
            ok = err_set("rank %d: all_reduce of %lld %s (%d): element %lld is wrong", c->rank, (long long)count,
                         dtype_name(t), op, (long long)i);
    }
    if (ok == SP_OK) ok = check_guard(c, recv, n, "all_reduce");
    if (!in_place) free(recv);
    free(send);
    return ok;
}

static sp_status scattered(comm *c, dtype t, int64_t count, bool in_place) {
    uint64_t seed = (uint64_t)count * 12 + (uint64_t)t;
    int64_t elem = dtype_size(t), total = count * c->size;
    char *send = guarded(total * elem), *out = guarded(count * elem), want[8];
    char *recv = in_place ? send + c->rank * count * elem : out;
    for (int64_t i = 0; i < total; i++) store(send, i, t, seed, c->rank, i);
    sp_status ok = comm_reduce_scatter(c, send, recv, count, t);
    for (int64_t i = 0; ok == SP_OK && i < count; i++) {
        expect(want, t, COMM_SUM, seed, c->size, c->rank * count + i);
        if (memcmp(recv + i * elem, want, (size_t)elem) != 0)
            ok = err_set("rank %d: reduce_scatter of %lld %s: element %lld is wrong", c->rank, (long long)count,
                         dtype_name(t), (long long)i);
    }
    if (ok == SP_OK) ok = check_guard(c, out, count * elem, "reduce_scatter");
    free(send), free(out);
    return ok;
}

/* Checks block i of recv, sent by rank i to rank `to`. */
static sp_status check_block(const comm *c, const char *what, const unsigned char *block, uint64_t seed, int from,
                             int to, int64_t bytes) {
    for (int64_t k = 0; k < bytes; k++)
        CHECK(block[k] == byte_of(seed, from, to, k), "rank %d: %s of %lld bytes: byte %lld from rank %d is wrong",
              c->rank, what, (long long)bytes, (long long)k, from);
    return SP_OK;
}

static sp_status moves(comm *c, int64_t bytes) {
    uint64_t seed = (uint64_t)bytes + 5;
    int P = c->size, r = c->rank;
    int64_t all = bytes * P;
    unsigned char *send = guarded(all), *recv = guarded(all);
    sp_status ok = SP_OK;
    /* all_to_all: a byte depends on sender and receiver */
    for (int j = 0; j < P; j++)
        for (int64_t k = 0; k < bytes; k++) send[j * bytes + k] = byte_of(seed, r, j, k);
    ok = comm_all_to_all(c, send, recv, bytes);
    for (int i = 0; ok == SP_OK && i < P; i++) ok = check_block(c, "all_to_all", recv + i * bytes, seed, i, r, bytes);
    /* all_gather, then in place: "to" is a constant */
    for (int in_place = 0; ok == SP_OK && in_place < 2; in_place++) {
        memset(recv, 0, (size_t)all);
        unsigned char *own = in_place ? recv + r * bytes : send;
        for (int64_t k = 0; k < bytes; k++) own[k] = byte_of(seed, r, 1000 + in_place, k);
        ok = comm_all_gather(c, own, recv, bytes);
        for (int i = 0; ok == SP_OK && i < P; i++)
            ok = check_block(c, "all_gather", recv + i * bytes, seed, i, 1000 + in_place, bytes);
    }
    for (int root = 0; ok == SP_OK && root < P; root++) {
        for (int64_t k = 0; k < bytes; k++) recv[k] = root == r ? byte_of(seed, r, 2000, k) : 0;
        ok = comm_broadcast(c, recv, bytes, root);
        if (ok == SP_OK) ok = check_block(c, "broadcast", recv, seed, root, 2000, bytes);
    }
    /* send_recv: every ring step, 0 (to itself) included, then a line without ends joined */
    for (int step = 0; ok == SP_OK && step <= P; step++) {
        bool line = step == P;
        int dst = line ? (r + 1 < P ? r + 1 : -1) : (r + step) % P, src = line ? r - 1 : (r - step + P) % P;
        for (int64_t k = 0; k < bytes; k++) send[k] = byte_of(seed, r, 3000 + step, k);
        memset(recv, 0, (size_t)all);
        ok = comm_send_recv(c, send, dst, recv, src, bytes);
        if (ok == SP_OK && src >= 0) ok = check_block(c, "send_recv", recv, seed, src, 3000 + step, bytes);
        for (int64_t k = 0; ok == SP_OK && src < 0 && k < bytes; k++)
            if (recv[k] != 0) ok = err_set("rank %d: send_recv without a source wrote", r);
    }
    if (ok == SP_OK) ok = check_guard(c, recv, all, "a move");
    free(send), free(recv);
    return ok;
}

static sp_status nan_max(comm *c) {
    float x[4] = {(float)c->rank, c->rank == c->size - 1 ? NAN : 1.f, c->rank == 0 ? NAN : 5.f, -1.f};
    TRY(comm_all_reduce(c, x, x, 4, DT_F32, COMM_MAX));
    CHECK(x[0] == (float)(c->size - 1) && isnan(x[1]) && isnan(x[2]) && x[3] == -1.f,
          "rank %d: max of NaN: %g %g %g %g", c->rank, x[0], x[1], x[2], x[3]);
    return SP_OK;
}

sp_status body_collectives(comm *c, void *unused) {
    (void)unused;
    static const dtype types[] = {DT_F32, DT_F64, DT_BF16, DT_I64};
    static const int64_t counts[] = {0, 1, 2, 3, 7, 17, 1000, 4099, 20011};
    TRY(comm_reserve(c, 1 << 20));
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
        for (int t = 0; t < 4; t++) {
            int64_t count = counts[n];
            TRY(reductions(c, types[t], COMM_SUM, count, false));
            TRY(reductions(c, types[t], COMM_SUM, count, true));
            TRY(reductions(c, types[t], COMM_MAX, count, n % 2));
            TRY(scattered(c, types[t], min64(count, 4099), n % 2));
        }
        TRY(moves(c, min64(counts[n], 4099)));
        TRY(comm_barrier(c));
    }
    if (c->size <= 4) { /* larger than what mpi stages at once, by more than one piece and not a whole number of them */
        TRY(reductions(c, DT_F32, COMM_SUM, 300007, true));
        TRY(reductions(c, DT_BF16, COMM_MAX, 600011, false));
        TRY(scattered(c, DT_F64, 70001, false));
    }
    return nan_max(c);
}

sp_status body_split(comm *c, void *unused) {
    (void)unused;
    int P = c->size, r = c->rank, members[64] = {0};
    comm *half, *none, *quarter;
    /* Odd and even ranks, in reverse order. */
    TRY(comm_split(c, r % 2, -r, &half));
    int n = r % 2 ? P / 2 : (P + 1) / 2;
    CHECK(half && half->size == n && half->rank == n - 1 - r / 2, "rank %d: rank %d of %d in its half", r, half->rank,
          half->size);
    TRY(comm_all_gather(half, &r, members, (int64_t)sizeof r));
    for (int i = 0; i < n; i++)
        CHECK(members[i] == 2 * (n - 1 - i) + r % 2, "rank %d: member %d is rank %d", r, i, members[i]);
    /* Only rank 0 of the halves go on; the others have no group. */
    TRY(comm_split(c, half->rank == 0 ? 7 : -1, 0, &none));
    CHECK((none != NULL) == (half->rank == 0), "rank %d: a negative color must give no group", r);
    if (none) CHECK(none->size == (P > 1 ? 2 : 1), "%d leaders", none->size);
    /* A group of a group, while other groups are at work. Equal keys: the order of the parent. */
    TRY(comm_split(half, half->rank / 2, 0, &quarter));
    CHECK(quarter->rank == half->rank % 2, "rank %d: rank %d in its quarter", r, quarter->rank);
    for (int round = 0; round < 20; round++) {
        int64_t one = 1, at_half, at_quarter, all;
        TRY(comm_all_reduce(half, &one, &at_half, 1, DT_I64, COMM_SUM));
        TRY(comm_all_reduce(quarter, &one, &at_quarter, 1, DT_I64, COMM_SUM));
        TRY(comm_all_reduce(c, &one, &all, 1, DT_I64, COMM_SUM));
        CHECK(at_half == n && at_quarter == quarter->size && all == P, "rank %d: sums of one: %lld %lld %lld", r,
              (long long)at_half, (long long)at_quarter, (long long)all);
    }
    comm_free(quarter);
    comm_free(none);
    comm_free(half);
    return comm_barrier(c);
}

sp_status body_stats(comm *c, void *unused) {
    (void)unused;
    int P = c->size, r = c->rank;
    char *a = calloc((size_t)P, 64), *b = calloc((size_t)P, 64);
    ASSERT(a && b);
    int64_t sum = 0;
    comm_stats_reset(c);
    sp_status ok = SP_OK;
    for (int i = 0; i < 3 && ok == SP_OK; i++) ok = comm_all_to_all(c, a, b, 40);
    if (ok == SP_OK) ok = comm_all_gather(c, a, b, 24);
    if (ok == SP_OK) ok = comm_all_reduce(c, a, b, 7, DT_F32, COMM_SUM);
    if (ok == SP_OK) ok = comm_reduce_scatter(c, a, b, 5, DT_F64);
    if (ok == SP_OK) ok = comm_broadcast(c, a, 33, P - 1);
    if (ok == SP_OK) ok = comm_send_recv(c, a, (r + 1) % P, b, (r - 1 + P) % P, 50);
    if (ok == SP_OK) ok = comm_send_recv(c, a, r, b, r, 50); /* nothing leaves the rank */
    if (ok == SP_OK) ok = comm_barrier(c);
    const comm_counter *s = comm_stats(c);
    sum = s[COMM_ALL_REDUCE].bytes;
    comm_counter want[COMM_OP_COUNT] = {
        [COMM_ALL_TO_ALL] = {3, 3 * 40 * (P - 1)},
        [COMM_ALL_GATHER] = {1, 24 * (P - 1)},
        [COMM_ALL_REDUCE] = {1, sum}, /* depends on the rank; see below */
        [COMM_REDUCE_SCATTER] = {1, 40 * (P - 1)},
        [COMM_BROADCAST] = {1, r == P - 1 ? 33 * (P - 1) : 0},
        [COMM_SEND_RECV] = {2, P > 1 ? 50 : 0},
        [COMM_BARRIER] = {1, 0},
    };
    for (int i = 0; ok == SP_OK && i < COMM_OP_COUNT; i++)
        if (s[i].calls != want[i].calls || s[i].bytes != want[i].bytes)
            ok = err_set("rank %d: %s counted %lld calls, %lld bytes", r, comm_op_name((comm_op)i),
                         (long long)s[i].calls, (long long)s[i].bytes);
    if (ok == SP_OK) ok = comm_all_reduce(c, &sum, &sum, 1, DT_I64, COMM_SUM);
    if (ok == SP_OK && sum != 2 * (P - 1) * 7 * 4)
        ok = err_set("all ranks together counted %lld bytes for one all_reduce", (long long)sum);
    free(a), free(b);
    return ok;
}

sp_status body_hash(comm *c, void *hash) {
    static const int64_t counts[] = {1, 5, 300, 1027, 4096, 131071, 300007};
    uint64_t h = HASH_INIT, all[64] = {0};
    for (int t = 0; t < 2; t++)
        for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
            dtype type = t ? DT_BF16 : DT_F32;
            size_t bytes = (size_t)(counts[n] * dtype_size(type));
            void *x = malloc(bytes);
            ASSERT(x);
            for (int64_t i = 0; i < counts[n]; i++) store(x, i, type, 99, c->rank, i);
            sp_status ok = comm_all_reduce(c, x, x, counts[n], type, COMM_SUM);
            h = hash_bytes(h, x, bytes);
            free(x);
            TRY(ok);
        }
    TRY(comm_all_gather(c, &h, all, 8));
    for (int i = 0; i < c->size; i++)
        CHECK(all[i] == h, "rank %d: all_reduce gave other bits than on rank %d", c->rank, i);
    if (c->rank == 0) *(uint64_t *)hash = h;
    return SP_OK;
}
