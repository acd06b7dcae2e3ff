/* cmd_version.c - `autosp version`: the version and what this build was made with. */
#include "cli/commands.h"

sp_status cmd_version(const cli_options *o) {
    (void)o;
    static const char *const parts[] = {
#ifdef AUTOSP_HAVE_MPI
        "MPI",
#endif
#ifdef _OPENMP
        "OpenMP",
#endif
#ifdef AUTOSP_HAVE_ONEDNN
        "oneDNN",
#endif
        NULL};
    printf("autosp %s (", AUTOSP_VERSION);
    for (int i = 0; parts[i]; i++) printf("%s%s", i ? ", " : "", parts[i]);
    printf("%s)\n", parts[0] ? "" : "plain C");
    return SP_OK;
}
