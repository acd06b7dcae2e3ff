/* main.c - finds the command and turns its outcome into an exit status: 0 done, 1 failed, 2 not understood. */
#include "cli/commands.h"

#include <signal.h>
#include <stdlib.h>

static const struct {
    const char *name;
    cli_command id; /* 0: takes no options */
    sp_status (*run)(const cli_options *o);
    const char *usage, *what;
} commands[] = {
    {"train", CLI_TRAIN, cmd_train, " MODEL --data FILE [OPTION...]", "train a model"},
    {"plan", CLI_PLAN, cmd_plan, " MODEL [OPTION...]", "say what a step would need, without running it"},
    {"check", CLI_CHECK, cmd_check, " MODEL [OPTION...]", "compare P ranks' loss and gradients with those of one"},
    {"dump", CLI_DUMP, cmd_dump, " MODEL [--after PASS] [OPTION...]", "print the graph after a pass, or the plan"},
    {"version", 0, cmd_version, "", "print the version and what this build contains"},
};
enum { NCOMMANDS = sizeof commands / sizeof *commands };

static void usage(FILE *to) {
    fprintf(to, "usage: autosp COMMAND [OPTION...]\n\n"
                "autosp trains exported PyTorch language models on contexts that one device cannot hold.\n\n");
    for (int i = 0; i < NCOMMANDS; i++) fprintf(to, "  autosp %-8s %s\n", commands[i].name, commands[i].what);
    fprintf(to, "\n'autosp COMMAND --help' lists a command's options.\n");
}

static int run(int c, int argc, char **argv) {
    cli_options o = {0};
    cli_parsed parsed = CLI_OK;
    if (commands[c].id)
        parsed = cli_parse(commands[c].id, argc, argv, &o);
    else if (argc > 1)
        parsed = strcmp(argv[1], "--help") == 0 ? CLI_HELP : CLI_USAGE;
    if (parsed == CLI_HELP) {
        printf("usage: autosp %s%s\n\n%s\n", commands[c].name, commands[c].usage, commands[c].what);
        if (commands[c].id) cli_print_help(commands[c].id, stdout);
        return 0;
    }
    if (parsed == CLI_USAGE) {
        if (commands[c].id)
            log_line("%s: %s", commands[c].name, err_text());
        else
            log_line("%s takes no arguments", commands[c].name);
        fprintf(stderr, "try 'autosp %s --help'\n", commands[c].name);
        return 2;
    }
    if (commands[c].run(&o) != SP_OK) {
        log_line("%s: %s", commands[c].name, err_text());
        return 1;
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        log_line("%s: cannot write the result to standard output", commands[c].name);
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    signal(SIGXFSZ, SIG_IGN); /* a file past the size limit is an error of write(2), with a message, not a death */
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    const char *name = strcmp(argv[1], "--version") == 0 ? "version" : argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        usage(stdout);
        return 0;
    }
    const char *names[NCOMMANDS];
    for (int i = 0; i < NCOMMANDS; i++) {
        names[i] = commands[i].name;
        if (strcmp(name, names[i]) == 0) return run(i, argc - 1, argv + 1);
    }
    const char *near = cli_suggest(name, names, NCOMMANDS);
    if (near)
        log_line("no command '%s'; did you mean %s?", name, near);
    else
        log_line("no command '%s'", name);
    usage(stderr);
    return 2;
}
