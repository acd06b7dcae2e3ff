/* cmd_check.c - `autosp check`: are the loss and every gradient of P ranks those of one? */
#include "cli/commands.h"
#include "train/check.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

/* The number contract's bounds for f32 and f64. bf16 rounds each value to 8 bits, and ranks sum in another order. */
static double tolerance(const cli_options *o) {
    if (o->tolerance > 0) return o->tolerance;
    return o->compute == DT_F64 ? 1e-11 : o->compute == DT_F32 ? 1e-5 : 2e-2;
}

/* JSON has no infinity. */
static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

static sp_status print_json(const check_result *r, int ranks, int64_t seq) {
    json_t *o = json_pack("{s:i, s:I, s:o, s:o, s:o, s:s, s:i}", "ranks", ranks, "seq", (json_int_t)seq, "loss",
                          number(r->loss), "loss_rel", number(r->loss_rel), "worst_grad_rel",
                          number(r->rows[0].relative), "worst_grad_name", r->rows[0].name, "parameters", r->n);
    CHECK(o, "out of memory");
    json_dumpf(o, stdout, JSON_REAL_PRECISION(17));
    putchar('\n');
    json_decref(o);
    return SP_OK;
}

static void print_table(const check_result *r, int ranks, int64_t seq, double limit) {
    printf("%d ranks against 1, %lld tokens a sequence\n\n", ranks, (long long)seq);
    printf("%-56s %12s %12s\n", "", "on 1 rank", "relative");
    printf("%-56s %12.8g %12.2e\n", "loss", r->loss_one, r->loss_rel);
    for (int i = 0; i < r->n; i++)
        printf("%-56s %12.5g %12.2e%s\n", r->rows[i].name, r->rows[i].norm, r->rows[i].relative,
               r->rows[i].relative <= limit ? "" : "  above");
    printf("\nworst %.2e, tolerance %.0e\n", fmax(r->loss_rel, r->rows[0].relative), limit);
}

static sp_status report(const cli_options *o, const check_result *r, int ranks, int64_t seq) {
    double limit = tolerance(o);
    if (o->json)
        TRY(print_json(r, ranks, seq));
    else
        print_table(r, ranks, seq, limit);
    CHECK(r->loss_rel <= limit && r->rows[0].relative <= limit,
          "the numbers of %d ranks are not those of one: loss off by %.2e, gradient of %s by %.2e, tolerance %.0e",
          ranks, r->loss_rel, r->rows[0].name, r->rows[0].relative, limit);
    return SP_OK;
}

static sp_status run(const cli_options *o, const train_world *w) {
    train_model *m;
    TRY(train_model_open(o->model, o->weights, true, (uint64_t)o->seed, &m));
    train_setup setup = cli_setup(o, w->size, w->threads);
    setup.agree = w->mpi;
    check_result r = {0};
    pass_options used;
    sp_status s = train_options(m, &setup, &used);
    if (s == SP_OK) s = check_run(m, &setup, w, (uint64_t)o->seed, &r);
    if (s == SP_OK && w->rank == 0) s = report(o, &r, w->size, used.seq);
    free(r.rows);
    train_model_close(m);
    return s;
}

sp_status cmd_check(const cli_options *o) {
    TRY(cli_supported(o));
    train_world w;
    TRY(train_world_open(cli_ranks(o), o->threads, &w));
    sp_status s = run(o, &w);
    return train_world_close(&w, s);
}
