/* train.c - a training program of your own over the C API: bytes of a file as tokens, AdamW at one rate.
 *
 *     cc train.c $(pkg-config --cflags --libs --static autosp) -o train
 *     ./train MODEL.pt2 TEXT SEQ RANKS STEPS
 */
#include <autosp.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct job {
    const unsigned char *text;
    long length, steps;
    int64_t seq;
} job;

/* Runs on every rank; all of them give the same tokens. */
static int train(autosp_rank *rank, void *arg) {
    const job *j = arg;
    int64_t *ids = malloc(2 * sizeof *ids * (size_t)j->seq), *labels = ids + j->seq;
    const autosp_adamw adamw = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    int status = ids ? 0 : 1;
    for (long step = 0; step < j->steps && status == 0; step++) {
        for (int64_t i = 0; i < j->seq; i++) { /* this model shifts inside: labels are the same tokens */
            ids[i] = j->text[(step * j->seq + i) % j->length];
            labels[i] = ids[i];
        }
        autosp_batch batch = {.input_ids = ids, .labels = labels};
        autosp_result r;
        status = autosp_step(rank, step, &batch, 1, &adamw, &r);
        if (status == 0 && autosp_rank_index(rank) == 0)
            printf("step %ld: loss %.6f, gradient norm %.4f\n", step + 1, r.loss, r.grad_norm);
    }
    free(ids);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: train MODEL.pt2 TEXT SEQ RANKS STEPS\n");
        return 2;
    }
    static unsigned char text[1 << 20];
    FILE *f = fopen(argv[2], "rb");
    job j = {text, f ? (long)fread(text, 1, sizeof text, f) : 0, atol(argv[5]), atol(argv[3])};
    if (f) fclose(f);
    if (j.length == 0) {
        fprintf(stderr, "train: %s cannot be read\n", argv[2]);
        return 1;
    }
    autosp_world *world = NULL;
    autosp_model *model = NULL;
    autosp_plan *plan = NULL;
    autosp_options options = {.seq = j.seq};
    int status = autosp_world_open(atoi(argv[4]), 0, &world) || autosp_model_open(argv[1], NULL, &model) ||
                 autosp_compile(model, world, &options, &plan);
    if (status == 0) {
        autosp_info info = autosp_plan_info(plan);
        if (autosp_world_rank(world) == 0)
            printf("%d ranks, %lld bytes each\n", info.ranks, (long long)info.peak_bytes);
        status = autosp_run(world, model, plan, train, &j);
    }
    if (status) fprintf(stderr, "train: %s\n", autosp_error());
    autosp_plan_free(plan);
    autosp_model_close(model);
    return autosp_world_close(world, status);
}
