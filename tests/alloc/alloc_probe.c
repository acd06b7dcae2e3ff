/* alloc_probe.c - a program with known allocations, to test alloc_count.c: "alloc_probe METRICS_FILE". */
#include "train/metrics.h"

#include <jansson.h>
#include <stdlib.h>
#include <sys/mman.h>

static void use(void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

static void spend(size_t n) {
    void *p = malloc(n);
    use(p);
    free(p);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    train_metrics *m;
    if (train_metrics_open(argv[1], -1, &m) != SP_OK) return 1;
    train_step_record r = {0};
    for (r.step = 1; r.step <= 4; r.step++) {
        if (r.step == 1) spend(5000); /* start-up: not counted */
        if (r.step == 2) {
            spend(1000);
            char *s = strdup("a libc function that allocates for us"); /* 38 bytes, ours */
            use(s);
            free(s);
            json_t *o = json_string("a library that allocates for itself");
            use(o);
            json_decref(o);
        }
        if (r.step == 4) {
            void *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            use(p);
            munmap(p, 8192);
        }
        if (train_metrics_write(m, &r) != SP_OK) return 1;
    }
    spend(7000); /* after the last step: not counted */
    train_metrics_close(m);
    return 0;
}
