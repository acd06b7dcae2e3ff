/* commands.h - the commands, one file each (cmd_NAME.c). A failed one leaves its reason in err_text(). */
#ifndef AUTOSP_CLI_COMMANDS_H
#define AUTOSP_CLI_COMMANDS_H

#include "cli/cli.h"

sp_status cmd_version(const cli_options *o) SP_NODISCARD;

#endif
