/* schedule.c - learning rates and clipping; the formulas stand in schedule.h. */
#include "train/schedule.h"

#include <math.h>

bool train_decay_parse(const char *name, train_decay *out) {
    static const char *const names[] = {"cosine", "linear", "constant"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (train_decay)i;
            return true;
        }
    return false;
}

double train_lr(const train_schedule *s, int64_t step) {
    if (step < s->warmup) return s->lr * (double)(step + 1) / (double)s->warmup;
    if (s->decay == TRAIN_CONSTANT) return s->lr;
    int64_t span = s->steps - s->warmup;
    double t = span > 0 ? fmin(1, (double)(step - s->warmup) / (double)span) : 1;
    double share = s->decay == TRAIN_COSINE ? 0.5 * (1 + cos(3.14159265358979323846 * t)) : 1 - t;
    return s->min_lr + (s->lr - s->min_lr) * share;
}

double train_clip_factor(double clip, double norm) { return clip > 0 ? fmin(1, clip / (norm + 1e-6)) : 1; }
