/* pages.c - the arena's address range, and the pages of what lives through a run.
 *
 * Memory that is touched first inside a kernel comes page by page, each by a fault: of GPT-2 small's first step they
 * took more than half. Parameters, gradients and moments are all touched in the first step anyway, so their pages are
 * asked for at once, by all threads, before weights are loaded. Activations are left to faults: what they touch is
 * what shows that the planned peak is the true one, and they are few, as their memory is used again and again.
 *
 * Both are hints: on a kernel that knows neither, or has no huge pages to give, pages come when they are touched.
 */
#include "exec/exec_impl.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 }; /* of x86-64, and of aarch64 with pages of 4 KiB; elsewhere just an alignment */

static void take_pages(const exec *e) {
    const plan_memory *m = &e->p->memory;
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t end = (m->section[SEC_PARAM] + m->section[SEC_GRAD] + m->section[SEC_MOMENT]) / page * page;
    if (e->o.pages == EXEC_PAGES_LATE || !end) return;
#ifdef MADV_HUGEPAGE
    /* Whole ones only, so that nothing beyond these sections is touched along with them. */
    if (e->o.pages == EXEC_PAGES_HUGE) (void)madvise(e->base, (size_t)(end / HUGE_PAGE * HUGE_PAGE), MADV_HUGEPAGE);
#endif
#ifdef MADV_POPULATE_WRITE
#pragma omp parallel for schedule(dynamic) num_threads(e->o.threads)
    for (int64_t at = 0; at < end; at += HUGE_PAGE)
        (void)madvise(e->base + at, (size_t)min64(HUGE_PAGE, end - at), MADV_POPULATE_WRITE);
#endif
}

sp_status exec_map_arena(exec *e) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    e->bytes = round_up(max64(e->p->memory.arena, 1), page);
    e->mapped = e->bytes + page + HUGE_PAGE;
    void *m = mmap(NULL, (size_t)e->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char text[24];
    CHECK(m != MAP_FAILED, "cannot map the plan's arena of %s: %s; lower --memory, --seq or --batch",
          human_bytes(e->bytes, text), strerror(errno));
    e->map = m;
    e->base = e->map + (HUGE_PAGE - (intptr_t)((uintptr_t)m % HUGE_PAGE)) % HUGE_PAGE;
    /* the page behind the arena may not be touched: what the kernel counts cannot be more than the plan by luck */
    CHECK(mprotect(e->base + e->bytes, (size_t)page, PROT_NONE) == 0, "cannot guard the arena: %s", strerror(errno));
    take_pages(e);
    return SP_OK;
}

void exec_unmap_arena(exec *e) {
    if (e->map) munmap(e->map, (size_t)e->mapped);
}
