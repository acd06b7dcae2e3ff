/* step.c - see step.h. */
#include "train/step.h"

/* The labels that count, over all microbatches; the same on every rank, as labels are whole everywhere. */
static sp_status count_labels(exec *e, const step_source *from, int64_t step, double *count) {
    *count = 0;
    for (int64_t a = 0; a < from->n; a++) {
        double n = 0;
        TRY(from->set(from->ctx, e, a));
        TRY(exec_count(e, &n));
        *count += n;
    }
    CHECK(*count > 0, "step %lld has no valid label: all are ignored; is the data right?", (long long)step + 1);
    return SP_OK;
}

sp_status step_gradients(exec *e, const step_source *from, int64_t seed, int64_t step, double *loss, double *count) {
    double sum = 0;
    TRY(count_labels(e, from, step, count));
    exec_zero_grads(e);
    for (int64_t a = 0; a < from->n; a++) {
        double part = 0;
        if (from->n > 1) TRY(from->set(from->ctx, e, a)); /* a single one is still set from the counting */
        exec_set_rng(e, seed, step * from->n + a, false);
        TRY(exec_step(e, 1 / *count, &part));
        sum += part;
    }
    TRY(exec_reduce_sum(e, &sum));
    TRY(exec_reduce_grads(e));
    *loss = sum / *count;
    return SP_OK;
}

sp_status step_eval(exec *e, const step_source *from, double *loss) {
    double count = 0, sum = 0;
    for (int64_t a = 0; a < from->n; a++) {
        double n = 0, part = 0;
        TRY(from->set(from->ctx, e, a));
        TRY(exec_count(e, &n));
        if (n == 0) continue; /* the same on every rank */
        exec_set_rng(e, 0, 0, true);
        TRY(exec_eval(e, &part));
        count += n;
        sum += part;
    }
    TRY(exec_reduce_sum(e, &sum));
    CHECK(count > 0, "the evaluation data has no valid label");
    *loss = sum / count;
    return SP_OK;
}

void step_update(exec *e, const train_adamw *how, double lr, double norm, int64_t step) {
    exec_adamw_options o = {.lr = lr,
                            .beta1 = how->beta1,
                            .beta2 = how->beta2,
                            .eps = how->eps,
                            .weight_decay = how->weight_decay,
                            .decay_all = how->decay_all,
                            .grad_scale = train_clip_factor(how->clip, norm),
                            .step = step + 1};
    exec_adamw(e, &o);
}
