/* host.c - memory for host copies on devices whose own memory is the host's: a file, mapped.
 *
 * Why a file: on the cpu device the arena is host memory already, so that moving values to more of it would gain
 * nothing; pages of a file can leave memory while the values wait. The file is removed from its folder as soon as it is
 * open, so that nothing is left behind however the process ends. All its blocks are taken before the first step: writes
 * through a mapping report a full disk by a signal only, and late.
 */
#include "exec/exec_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Takes the file's blocks. A limit on the size of files would end the process by SIGXFSZ: asked for before. */
static sp_status reserve(int fd, int64_t bytes, const char *folder) {
    char text[24];
    struct rlimit l;
    int err = 0;
    if (getrlimit(RLIMIT_FSIZE, &l) == 0 && l.rlim_cur != RLIM_INFINITY && l.rlim_cur < (rlim_t)bytes) err = EFBIG;
    while (!err && (err = posix_fallocate(fd, 0, (off_t)bytes)) == EINTR) err = 0;
    CHECK(!err,
          "--host-memory: no room for %s (%lld bytes) of host copies in the folder %s: %s; lower --host-memory, or set "
          "TMPDIR (with --out: --out) to a folder with more room",
          human_bytes(bytes, text), (long long)bytes, folder, strerror(err));
    return SP_OK;
}

sp_status exec_map_host(exec *e) {
    int64_t page = sysconf(_SC_PAGESIZE), bytes = e->p->memory.section[SEC_HOST];
    if (!bytes) return SP_OK;
    const char *folder = e->o.host_dir && *e->o.host_dir ? e->o.host_dir : temp_folder();
    char *path = temp_name(e->a, folder, "host");
    int fd = mkostemp(path, O_CLOEXEC);
    CHECK(fd >= 0, "--host-memory: cannot make a file in the folder %s for %lld bytes of host copies: %s", folder,
          (long long)bytes, strerror(errno));
    unlink(path);
    bytes = round_up(bytes, page);
    sp_status s = reserve(fd, bytes, folder);
    if (s == SP_OK) {
        void *m = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (m == MAP_FAILED) {
            s = err_set("--host-memory: cannot map %lld bytes: %s", (long long)bytes, strerror(errno));
        } else {
            e->host = m;
            e->host_bytes = bytes;
            madvise(m, (size_t)bytes, MADV_RANDOM); /* pages come when they are used: what is touched can be counted */
        }
    }
    close(fd);
    return s;
}
