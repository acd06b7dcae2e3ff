/* commands.h - the commands, one file each (cmd_NAME.c), and what they share (common.c). A failed one leaves its reason
 * in err_text().
 */
#ifndef AUTOSP_CLI_COMMANDS_H
#define AUTOSP_CLI_COMMANDS_H

#include "cli/cli.h"
#include "train/compile.h"
#include "train/world.h"

sp_status cmd_train(const cli_options *o) SP_NODISCARD;
sp_status cmd_plan(const cli_options *o) SP_NODISCARD;
sp_status cmd_check(const cli_options *o) SP_NODISCARD;
sp_status cmd_dump(const cli_options *o) SP_NODISCARD;
sp_status cmd_version(const cli_options *o) SP_NODISCARD;

/* ---- common.c ---------------------------------------------------------------------------------- */

/* Refuses, by name, what the options can say but this version cannot do. */
sp_status cli_supported(const cli_options *o) SP_NODISCARD;

/* The ranks that --ranks or --mesh asks for; 0: not said. */
int64_t cli_ranks(const cli_options *o);

/* What to compile, for `ranks` ranks with `threads` threads each. */
train_setup cli_setup(const cli_options *o, int ranks, int threads);

#endif
