/* options.c - the table of options, and the parser, checks and help that come from it.
 *
 * getopt_long splits the command line; each value is then parsed by its row's form into the field at the row's
 * offset. Defaults are texts in the table and go through the same parser, so help and behaviour cannot differ.
 */
#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

/* ---- the table --------------------------------------------------------------------------------- */

typedef enum form { TEXT, FLAG, COUNT, REAL, BYTES, CHOICE, SEQ, MESH, DTYPE, DECAY, SETTING } form;

typedef struct row {
    const char *name;
    form form;
    size_t at;         /* offset in cli_options */
    int commands;      /* bits of cli_command */
    const char *value; /* how help writes the value; for CHOICE the choices */
    const char *def;   /* NULL: zeros */
    double min, max;   /* of COUNT and REAL; inclusive */
    const char *help;
} row;

enum { ALL = CLI_TRAIN | CLI_PLAN | CLI_CHECK | CLI_DUMP, T = CLI_TRAIN, P = CLI_PLAN, C = CLI_CHECK, D = CLI_DUMP };

#define AT(field) offsetof(cli_options, field)
#define MANY 9e15 /* counts that a double holds exactly; nobody needs more */
#define BELOW_1 0.99999999999999989
#define TINY 1e-300

/* A row without a form's field is a heading. */
static const row rows[] = {
    {.help = "Size of a step"},
    {"seq", SEQ, AT(seq), ALL, "N", NULL, 1, MANY, "tokens in a sequence, or for plan max (default: as exported)"},
    {"batch", COUNT, AT(batch), ALL, "N", "1", 1, 1e6, "sequences in a microbatch, over all data-parallel ranks"},
    {"accum", COUNT, AT(accum), T | P | D, "N", "1", 1, 1e6, "microbatches in a step"},

    {.help = "Who computes"},
    {"ranks", COUNT, AT(ranks), ALL, "P", NULL, 1, 65536,
     "ranks, as threads of this process (default: 1, or mpirun's)"},
    {"mesh", MESH, AT(mesh_dp), ALL, "dp=D,seq=P", NULL, 0, 0, "ranks by axis, instead of --ranks"},
    {"zero", COUNT, AT(zero), T | P | D, "0-3", "0", 0, 3, "what data-parallel ranks share out (ZeRO's stages)"},
    {"device", CHOICE, AT(device), ALL, "cpu|ref|cuda", "cpu", 0, 0, "ref is plain C, the oracle"},
    {"dtype", DTYPE, AT(compute), ALL, "f32|bf16|f64", "f32", 0, 0, "of the computation; f64 on ref only"},
    {"threads", COUNT, AT(threads), T | P | C, "N", NULL, 1, 4096,
     "threads a rank (default: the cores, shared out evenly; plan: 1)"},
    {"memory", BYTES, AT(memory), T | P | D, "BYTES", NULL, 0, 0, "most memory a rank may use, parameters included"},
    {"host-memory", BYTES, AT(host_memory), T | P | D, "BYTES", NULL, 0, 0, "host memory a rank may move values to"},

    {.help = "Data and weights"},
    {"data", TEXT, AT(data), T, "FILE", NULL, 0, 0, ".txt (bytes), .bin (tokens) or .safetensors (rows); needed"},
    {"data-dtype", CHOICE, AT(data_dtype), T, "u16|u32", "u16", 0, 0, "of a .bin without a header"},
    {"eos", COUNT, AT(eos), T, "ID", "-1", -1, 4294967295.,
     "the token that ends a document: documents do not see each other"},
    {"shuffle", FLAG, AT(shuffle), T, NULL, NULL, 0, 0, "windows in a new order each epoch"},
    {"eval", TEXT, AT(eval), T, "FILE", NULL, 0, 0, "data to evaluate on, once through"},
    {"eval-every", COUNT, AT(eval_every), T, "N", NULL, 1, MANY,
     "steps between evaluations (default: at the end only)"},
    {"weights", TEXT, AT(weights), T | C, "DIR|FILE", NULL, 0, 0,
     "safetensors to start from, for a model without weights"},

    {.help = "Optimizer (AdamW)"},
    {"steps", COUNT, AT(steps), T, "N", "100", 0, MANY, "steps in all, those before a resume included"},
    {"lr", REAL, AT(schedule.lr), T, "X", "3e-4", 0, 1e6, "largest learning rate"},
    {"min-lr", REAL, AT(schedule.min_lr), T, "X", "0", 0, 1e6, "learning rate at the end of the schedule"},
    {"warmup", COUNT, AT(schedule.warmup), T, "N", "0", 0, MANY, "steps of linear warm-up"},
    {"schedule", DECAY, AT(schedule.decay), T, "cosine|linear|constant", "cosine", 0, 0, "after the warm-up"},
    {"beta1", REAL, AT(adamw.beta1), T, "X", "0.9", 0, BELOW_1, "decay of the first moment"},
    {"beta2", REAL, AT(adamw.beta2), T, "X", "0.95", 0, BELOW_1, "decay of the second moment"},
    {"eps", REAL, AT(adamw.eps), T, "X", "1e-8", TINY, 1, "added to the root of the second moment"},
    {"weight-decay", REAL, AT(adamw.weight_decay), T, "X", "0.1", 0, 1e6, "of tensors of rank 2 and more"},
    {"decay-all", FLAG, AT(adamw.decay_all), T, NULL, NULL, 0, 0, "decay every tensor"},
    {"clip", REAL, AT(adamw.clip), T, "X", "1", 0, 1e30, "largest global gradient norm; 0: no clipping"},
    {"seed", COUNT, AT(seed), T | C, "N", "0", 0, MANY, "of the shuffle, of check's tokens, of dropout"},

    {.help = "Results"},
    {"out", TEXT, AT(out), T, "DIR", NULL, 0, 0, "checkpoints go to DIR/checkpoint-STEP"},
    {"save-every", COUNT, AT(save_every), T, "N", NULL, 1, MANY,
     "steps between checkpoints (default: at the end only)"},
    {"keep", COUNT, AT(keep), T, "N", NULL, 1, MANY, "newest checkpoints to keep (default: all)"},
    {"resume", FLAG, AT(resume), T, NULL, NULL, 0, 0, "go on from the newest checkpoint in --out"},
    {"profile", TEXT, AT(profile), T, "FILE", NULL, 0, 0,
     "trace of the last step for Chrome or Perfetto; prints a table"},
    {"metrics", TEXT, AT(metrics), T, "FILE", NULL, 0, 0, "append one JSON object a step"},
    {"grads", TEXT, AT(grads), T, "FILE", NULL, 0, 0, "write the first step's gradients as safetensors"},
    {"json", FLAG, AT(json), P | C, NULL, NULL, 0, 0, "one JSON object instead of a table"},
    {"report", TEXT, AT(report), P, "FILE", NULL, 0, 0, "write the plan as a self-contained HTML page"},

    {.help = "Looking inside"},
    {"tolerance", REAL, AT(tolerance), C, "X", NULL, TINY, 1e6,
     "most that a gradient may differ (default: 1e-5; f64: 1e-11)"},
    {"machine", TEXT, AT(machine), P, "NAME", NULL, 0, 0, "plan for a described machine: h100x8, a100-80x64, ..."},
    {"after", TEXT, AT(after), D, "PASS", NULL, 0, 0, "print the graph after this pass (default: the last)"},
    {"kernels", FLAG, AT(kernels), D, NULL, NULL, 0, 0, "print the generated kernels' source instead"},
    {"set", SETTING, 0, ALL, "PASS.OPTION=VALUE", NULL, 0, 0, "an option of one pass"},
};
enum { NROWS = sizeof rows / sizeof *rows };

/* The options of passes, for --set. */
static const struct {
    const char *key, *values, *def;
    size_t at;
    const char *help;
} settings[] = {
    {"shard.exchange", "auto|a2a|gather|ring|UxR", "auto", AT(exchange), "how queries meet keys across ranks"},
    {"mask.bytes", "BYTES", NULL, AT(mask_bytes), "most that an attention mask kept as data may take; 64 MiB"},
    {"save.policy", "all|pytorch|autosp|layer|budget|least", "budget", AT(save_policy), "what the backward pass keeps"},
    {"tile.policy", "auto|loss|off", "auto", AT(tile_policy), "loops over the sequence for the loss and the MLP"},
    {"tile.bytes", "BYTES", NULL, AT(tile_bytes), "most that a tile takes; larger values are tiled"},
    {"tile.rows", "N", NULL, AT(tile_rows), "fewest rows of a rank in a tile; 256 by itself"},
    {"fuse.policy", "auto|on|off", "auto", AT(fuse_policy), "element-wise and row operations as generated kernels"},
    {"exec.pages", "late|small|huge", "huge", AT(pages), "memory of parameters and moments: as touched, or at once"},
    {"shard.break", "OP", NULL, AT(break_rule), "break an op's layout rule, to see that check finds it"},
};
enum { NSETTINGS = sizeof settings / sizeof *settings };

/* ---- did you mean ------------------------------------------------------------------------------ */

static int edits(const char *a, const char *b) {
    enum { LONGEST = 64 };
    int n = (int)strlen(a), m = (int)strlen(b), d[3][LONGEST + 1];
    if (n > LONGEST || m > LONGEST) return LONGEST;
    for (int j = 0; j <= m; j++) d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = d[i % 3], *last = d[(i + 2) % 3], *before = d[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return d[n % 3][m];
}

const char *cli_suggest(const char *wrong, const char *const *names, int n) {
    const char *best = NULL;
    int limit = (int)strlen(wrong) / 3, least = limit < 1 ? 1 : limit;
    for (int i = 0; i < n; i++) {
        int e = edits(wrong, names[i]);
        if (e <= least && (!best || e < least)) {
            best = names[i];
            least = e;
        }
    }
    return best;
}

/* ---- values ------------------------------------------------------------------------------------ */

/* Is `text` one of "a|b|c"? The place of the choice, or -1. */
static int choice_index(const char *choices, const char *text) {
    size_t n = strlen(text);
    int i = 0;
    for (const char *c = choices;; c++, i++) {
        size_t m = strcspn(c, "|");
        if (m == n && memcmp(c, text, n) == 0) return i;
        c += m;
        if (!*c) return -1;
    }
}

static sp_status parse_count(const row *r, const char *text, int64_t *out) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    CHECK(end != text && !*end && !errno, "--%s takes a whole number, not '%s'", r->name, text);
    CHECK((double)v >= r->min && (double)v <= r->max, "--%s must be from %.0f to %.0f, not %s", r->name, r->min, r->max,
          text);
    *out = v;
    return SP_OK;
}

static sp_status parse_real(const row *r, const char *text, double *out) {
    char *end;
    double v = strtod(text, &end);
    CHECK(end != text && !*end && isfinite(v), "--%s takes a number, not '%s'", r->name, text);
    CHECK(r->max != BELOW_1 || (v >= 0 && v < 1), "--%s must be at least 0 and below 1, not %s", r->name, text);
    CHECK(r->min != TINY || v > 0, "--%s must be above 0, not %s", r->name, text);
    CHECK(v >= r->min && v <= r->max, "--%s must be from %g to %g, not %s", r->name, r->min, r->max, text);
    *out = v;
    return SP_OK;
}

/* "dp=2,seq=4", either axis may be left out. */
static sp_status parse_mesh(const char *text, int64_t *dp, int64_t *seq) {
    *dp = *seq = 0;
    for (const char *s = text;;) {
        int64_t *axis = strncmp(s, "dp=", 3) == 0 ? dp : strncmp(s, "seq=", 4) == 0 ? seq : NULL;
        char *end = NULL;
        if (axis && *axis == 0) *axis = strtoll(strchr(s, '=') + 1, &end, 10);
        CHECK(end && *axis >= 1 && *axis <= 65536 && (*end == ',' || !*end),
              "--mesh takes the ranks of each axis as dp=D,seq=P, not '%s'", text);
        if (!*end) break;
        s = end + 1;
    }
    if (!*dp) *dp = 1;
    if (!*seq) *seq = 1;
    return SP_OK;
}

static bool is_mesh_of_two(const char *text) { /* UxR */
    char *end;
    if (*text < '1' || *text > '9' || strtol(text, &end, 10) > INT_MAX || *end != 'x') return false;
    text = end + 1;
    return *text >= '1' && *text <= '9' && strtol(text, &end, 10) <= INT_MAX && !*end;
}

static sp_status parse_setting(const char *text, cli_options *o) {
    const char *eq = strchr(text, '=');
    CHECK(eq && eq > text && eq[1], "--set takes PASS.OPTION=VALUE, not '%s'", text);
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)min64(eq - text, 63), text);
    const char *names[NSETTINGS];
    for (int i = 0; i < NSETTINGS; i++) {
        names[i] = settings[i].key;
        if (strcmp(key, names[i]) != 0) continue;
        bool free = strcmp(settings[i].values, "OP") == 0, wild = strcmp(eq + 1, "UxR") == 0;
        int64_t number;
        if (strcmp(settings[i].values, "BYTES") == 0) {
            TRY_NOTE(parse_bytes(eq + 1, &number), "--set %s", names[i]);
            free = true;
        } else if (strcmp(settings[i].values, "N") == 0) {
            char *end;
            number = strtoll(eq + 1, &end, 10);
            CHECK(end != eq + 1 && !*end && number >= 1 && number <= INT32_MAX, "--set %s takes a number, not '%s'",
                  names[i], eq + 1);
            free = true;
        }
        bool known = free || (!wild && choice_index(settings[i].values, eq + 1) >= 0);
        if (!known && strstr(settings[i].values, "UxR")) known = is_mesh_of_two(eq + 1);
        CHECK(known, "--set %s takes %s, not '%s'", names[i], settings[i].values, eq + 1);
        memcpy((char *)o + settings[i].at, &(const char *){eq + 1}, sizeof(const char *));
        return SP_OK;
    }
    const char *near = cli_suggest(key, names, NSETTINGS);
    CHECK(!near, "--set knows no '%s'; did you mean %s?", key, near);
    buf all = {0};
    for (int i = 0; i < NSETTINGS; i++) buf_printf(&all, "%s%s", i ? ", " : "", names[i]);
    err_set("--set knows no '%s'; there are %s", key, all.data);
    buf_free(&all);
    return SP_FAIL;
}

static sp_status parse_value(const row *r, const char *text, cli_options *o) {
    void *field = (char *)o + r->at;
    switch (r->form) {
    case TEXT:
        CHECK(*text, "--%s takes %s, not an empty text", r->name, r->value);
        *(const char **)field = text;
        return SP_OK;
    case FLAG:
        *(bool *)field = true;
        return SP_OK;
    case COUNT:
        return parse_count(r, text, field);
    case REAL:
        return parse_real(r, text, field);
    case BYTES:
        TRY_NOTE(parse_bytes(text, field), "--%s", r->name);
        CHECK(*(int64_t *)field > 0, "--%s must be above 0; write it as 2GiB, 80GB, 512MiB, 1.5e9 or 4096", r->name);
        return SP_OK;
    case CHOICE:
        CHECK(choice_index(r->value, text) >= 0, "--%s takes %s, not '%s'", r->name, r->value, text);
        *(const char **)field = text;
        return SP_OK;
    case SEQ:
        o->seq_max = o->command == CLI_PLAN && strcmp(text, "max") == 0;
        return o->seq_max ? SP_OK : parse_count(r, text, field);
    case MESH:
        return parse_mesh(text, &o->mesh_dp, &o->mesh_seq);
    case DTYPE:
        CHECK(choice_index(r->value, text) >= 0 && dtype_parse(text, field), "--%s takes %s, not '%s'", r->name,
              r->value, text);
        return SP_OK;
    case DECAY:
        CHECK(train_decay_parse(text, field), "--%s takes %s, not '%s'", r->name, r->value, text);
        return SP_OK;
    case SETTING:
        return parse_setting(text, o);
    }
    return SP_OK;
}

/* ---- the command line -------------------------------------------------------------------------- */

static sp_status check_together(const cli_options *o) {
    CHECK(!(o->ranks && o->mesh_seq), "give --ranks or --mesh, not both");
    if (o->command != CLI_TRAIN) return SP_OK;
    CHECK(o->data, "train needs --data FILE");
    CHECK(o->eval || !o->eval_every, "--eval-every needs --eval FILE");
    CHECK(o->out || !(o->resume || o->save_every || o->keep), "%s needs --out DIR",
          o->resume       ? "--resume"
          : o->save_every ? "--save-every"
                          : "--keep");
    CHECK(o->schedule.min_lr <= o->schedule.lr, "--min-lr %g is above --lr %g", o->schedule.min_lr, o->schedule.lr);
    return SP_OK;
}

/* getopt_long reports an unknown long option by its argv element. */
static sp_status unknown_option(cli_command command, const char *arg) {
    const char *names[NROWS + 1];
    int n = 0;
    char key[64];
    for (int i = 0; i < NROWS; i++)
        if (rows[i].name && (rows[i].commands & command)) names[n++] = rows[i].name;
    names[n++] = "help";
    const char *name = arg + strspn(arg, "-");
    snprintf(key, sizeof key, "%.*s", (int)min64((int64_t)strcspn(name, "="), 63), name);
    for (int i = 0; i < NROWS; i++)
        CHECK(!rows[i].name || strcmp(rows[i].name, key) != 0 || (rows[i].commands & command),
              "--%s is not an option of this command", key);
    const char *near = cli_suggest(key, names, n);
    CHECK(!near, "unknown option %s; did you mean --%s?", arg, near);
    FAIL("unknown option %s", arg);
}

static sp_status parse_all(cli_command command, int argc, char **argv, cli_options *o, bool *help) {
    enum { HELP = 1000, FIRST = 2000 };
    struct option list[NROWS + 2] = {{"help", no_argument, NULL, HELP}};
    int n = 1;
    for (int i = 0; i < NROWS; i++)
        if (rows[i].name && (rows[i].commands & command))
            list[n++] =
                (struct option){rows[i].name, rows[i].form == FLAG ? no_argument : required_argument, NULL, FIRST + i};
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    for (;;) {
        int c = getopt_long(argc, argv, ":h", list, NULL);
        if (c == -1) break;
        if (c == HELP || c == 'h') {
            *help = true;
            return SP_OK;
        }
        if (c == ':') FAIL("%s needs a value", argv[optind - 1]);
        if (c == '?') {
            if (optopt >= FIRST) FAIL("--%s takes no value", rows[optopt - FIRST].name);
            CHECK(!optopt, "unknown option -%c; options are written --name", optopt);
            return unknown_option(command, argv[optind - 1]);
        }
        TRY(parse_value(&rows[c - FIRST], optarg, o));
    }
    CHECK(optind < argc, "no model given; it is a .pt2 file that tools/export.py wrote, or a textual .ir");
    o->model = argv[optind++];
    CHECK(optind == argc, "one model at a time: '%s' is too much", argv[optind]);
    return SP_OK;
}

cli_parsed cli_parse(cli_command command, int argc, char **argv, cli_options *out) {
    *out = (cli_options){.command = command};
    for (int i = 0; i < NROWS; i++)
        if (rows[i].def) ASSERT(parse_value(&rows[i], rows[i].def, out) == SP_OK);
    for (int i = 0; i < NSETTINGS; i++) memcpy((char *)out + settings[i].at, &settings[i].def, sizeof(const char *));
    bool help = false;
    if (parse_all(command, argc, argv, out, &help) != SP_OK) return CLI_USAGE;
    if (help) return CLI_HELP;
    if (check_together(out) != SP_OK) return CLI_USAGE;
    out->schedule.steps = out->steps;
    return CLI_OK;
}

/* ---- help -------------------------------------------------------------------------------------- */

void cli_print_help(cli_command command, FILE *to) {
    const char *heading = NULL;
    for (int i = 0; i < NROWS; i++) {
        const row *r = &rows[i];
        if (!r->name) {
            heading = r->help;
            continue;
        }
        if (!(r->commands & command)) continue;
        if (heading) fprintf(to, "\n%s:\n", heading);
        heading = NULL;
        char left[64];
        snprintf(left, sizeof left, "--%s %s", r->name, r->value ? r->value : "");
        fprintf(to, "  %-*s %s", 27, left, r->help);
        bool shown = r->def && strcmp(r->def, "-1") != 0;
        fprintf(to, shown ? " (default: %s)\n" : "\n", r->def);
    }
    fprintf(to, "\nFor --set:\n");
    for (int i = 0; i < NSETTINGS; i++)
        fprintf(to, "  %s=%s\n  %-27s %s (default: %s)\n", settings[i].key, settings[i].values, "", settings[i].help,
                settings[i].def ? settings[i].def : "none");
    fprintf(to, "\nBYTES are written 2GiB, 80GB, 512MiB, 1.5e9 or 4096.\n");
}
