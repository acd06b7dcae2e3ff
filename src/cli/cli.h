/* cli.h - the command line: options as one struct, and the commands.
 *
 * Everything that a user can ask for is a row of the table in options.c: name, form, default, help, and the
 * commands that know it. Parsing, checking, --help and the default values all come from that row.
 * Messages go to stderr, results to stdout. Exit status: 0 done, 1 failed, 2 not understood.
 */
#ifndef AUTOSP_CLI_H
#define AUTOSP_CLI_H

#include "base/base.h"
#include "train/schedule.h"

/* Bits, so that a row can name all commands that know it. */
typedef enum cli_command { CLI_TRAIN = 1, CLI_PLAN = 2, CLI_CHECK = 4, CLI_DUMP = 8 } cli_command;

typedef struct cli_options {
    cli_command command;
    const char *model; /* a .pt2 or a textual .ir */

    /* size of a step */
    int64_t seq;  /* tokens a row; 0: the length that the model was exported with */
    bool seq_max; /* plan --seq max */
    int64_t batch, accum;

    /* who computes */
    int64_t ranks;               /* 0: not given, so one, or the world of mpirun */
    int64_t mesh_dp, mesh_seq;   /* 0: no --mesh */
    int64_t zero, threads;       /* threads 0: the cores shared out evenly */
    const char *device;          /* "cpu", "ref", "cuda" */
    dtype compute;               /* --dtype */
    int64_t memory, host_memory; /* bytes a rank; 0: no budget */

    /* data and weights */
    const char *data, *eval, *weights;
    const char *data_dtype; /* "u16", "u32": of a headerless .bin */
    int64_t eos;            /* -1: none */
    int64_t eval_every;     /* steps; 0: at the end only */
    bool shuffle;

    /* optimizer */
    int64_t steps;
    train_schedule schedule; /* complete: with steps */
    train_adamw adamw;
    int64_t seed;

    /* results */
    const char *out, *metrics, *grads, *profile;
    int64_t save_every, keep; /* 0: at the end only; 0: all */
    bool resume;

    /* looking inside */
    double tolerance; /* check; 0: that of the number contract for the element type */
    bool json, kernels;
    const char *machine, *report, *after;
    const char *exchange, *save_policy, *tile_policy; /* --set shard.exchange, save.policy, tile.policy */
    const char *mask_bytes;                           /* --set mask.bytes: a checked number; NULL: not given */
    const char *tile_bytes, *tile_rows; /* --set tile.bytes, tile.rows: checked numbers; NULL: not given */
    const char *fuse_policy;            /* --set fuse.policy */
    const char *pages;                  /* --set exec.pages */
    const char *break_rule;             /* --set shard.break; NULL: none */
} cli_options;

typedef enum cli_parsed { CLI_OK, CLI_HELP, CLI_USAGE } cli_parsed;

/* Parses argv[1..argc-1], argv[0] being the command's name as the user wrote it. Strings point into argv. CLI_HELP:
 * --help was given. CLI_USAGE: the error text says which option is wrong, and what would be right. Not thread-safe
 * (getopt). */
cli_parsed cli_parse(cli_command command, int argc, char **argv, cli_options *out);

/* The help of one command's options, by purpose. */
void cli_print_help(cli_command command, FILE *to);

/* The name among names[0..n-1] that is nearest to `wrong` when it is near enough to be meant, else NULL: the
 * Damerau-Levenshtein distance (neighbours may be swapped) is at most a third of the length, or 1. */
const char *cli_suggest(const char *wrong, const char *const *names, int n);

#endif
