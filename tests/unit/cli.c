/* Tests of src/cli/options: every form of value, what is refused and how, defaults, suggestions. */
#include "cli/cli.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

/* Parses a command line given as one text; words are separated by single spaces. */
static cli_parsed parse(cli_command command, const char *line, cli_options *o) {
    static char words[1024];
    char *argv[64] = {(char *)(uintptr_t) "autosp"};
    int argc = 1;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok(words, " "); w; w = strtok(NULL, " ")) argv[argc++] = w;
    return cli_parse(command, argc, argv, o);
}

static void refused(cli_command command, const char *line, const char *why) {
    cli_options o;
    if (parse(command, line, &o) != CLI_USAGE) fail_msg("accepted: %s", line);
    if (!strstr(err_text(), why)) fail_msg("'%s' gave '%s', not '%s'", line, err_text(), why);
}

static void defaults(void **state) {
    (void)state;
    cli_options o;
    assert_int_equal(parse(CLI_TRAIN, "m.pt2 --data d.txt", &o), CLI_OK);
    assert_string_equal(o.model, "m.pt2");
    assert_string_equal(o.data, "d.txt");
    assert_string_equal(o.device, "cpu");
    assert_int_equal(o.compute, DT_F32);
    assert_int_equal(o.batch, 1);
    assert_int_equal(o.accum, 1);
    assert_int_equal(o.ranks, 0);
    assert_int_equal(o.mesh_seq, 0);
    assert_int_equal(o.eos, -1);
    assert_int_equal(o.memory, 0);
    assert_int_equal(o.schedule.decay, TRAIN_COSINE);
    assert_int_equal(o.schedule.steps, o.steps);
    assert_true(o.adamw.beta1 == 0.9 && o.adamw.eps == 1e-8 && o.adamw.clip == 1);
    assert_string_equal(o.exchange, "auto");
    assert_string_equal(o.save_policy, "budget");
    assert_false(o.shuffle || o.resume || o.json || o.adamw.decay_all);
    assert_null(o.out);
}

static void every_form(void **state) {
    (void)state;
    cli_options o;
    assert_int_equal(
        parse(CLI_TRAIN,
              "--seq 4096 --batch=3 m.pt2 --data d.bin --data-dtype u32 --eos 0 --shuffle --mesh seq=4,dp=2 "
              "--memory 2GiB --host-memory 1.5e9 --dtype f64 --device ref --lr 1e-3 --min-lr 1e-4 "
              "--schedule linear --warmup 10 --steps 0 --clip 0 --decay-all --out o --keep 2 --resume "
              "--set shard.exchange=2x4 --set save.policy=all --set save.policy=layer",
              &o),
        CLI_OK);
    assert_int_equal(o.seq, 4096);
    assert_int_equal(o.batch, 3);
    assert_string_equal(o.data_dtype, "u32");
    assert_int_equal(o.eos, 0);
    assert_true(o.shuffle && o.resume && o.adamw.decay_all);
    assert_int_equal(o.mesh_dp, 2);
    assert_int_equal(o.mesh_seq, 4);
    assert_int_equal(o.memory, 2147483648LL);
    assert_int_equal(o.host_memory, 1500000000LL);
    assert_int_equal(o.compute, DT_F64);
    assert_true(o.schedule.lr == 1e-3 && o.schedule.min_lr == 1e-4);
    assert_int_equal(o.schedule.decay, TRAIN_LINEAR);
    assert_int_equal(o.schedule.warmup, 10);
    assert_int_equal(o.steps, 0);
    assert_true(o.adamw.clip == 0);
    assert_int_equal(o.keep, 2);
    assert_string_equal(o.exchange, "2x4");
    assert_string_equal(o.save_policy, "layer"); /* the last one counts */

    assert_int_equal(parse(CLI_TRAIN, "m --data d --mesh dp=3", &o), CLI_OK);
    assert_int_equal(o.mesh_dp, 3);
    assert_int_equal(o.mesh_seq, 1);
    assert_int_equal(parse(CLI_PLAN, "m --set tile.bytes=2MiB --set tile.rows=64", &o), CLI_OK);
    assert_string_equal(o.tile_bytes, "2MiB");
    assert_string_equal(o.tile_rows, "64");
    assert_int_equal(parse(CLI_PLAN, "m --set tile.bytes=much", &o), CLI_USAGE);
    assert_int_equal(parse(CLI_PLAN, "m --set tile.rows=0", &o), CLI_USAGE);
    assert_int_equal(parse(CLI_PLAN, "m --seq max --json", &o), CLI_OK);
    assert_true(o.seq_max && o.json);
    assert_int_equal(parse(CLI_CHECK, "m --tolerance 1e-3 --seed 9", &o), CLI_OK);
    assert_true(o.tolerance == 1e-3 && o.seed == 9);
    assert_int_equal(parse(CLI_DUMP, "m --after shard --ranks 2", &o), CLI_OK);
    assert_string_equal(o.after, "shard");
    assert_int_equal(parse(CLI_DUMP, "--help", &o), CLI_HELP);
    assert_int_equal(parse(CLI_TRAIN, "m -h", &o), CLI_HELP);
}

static void bad_values_are_refused(void **state) {
    (void)state;
    refused(CLI_TRAIN, "", "no model given");
    refused(CLI_TRAIN, "m.pt2", "--data FILE");
    refused(CLI_PLAN, "a.pt2 b.pt2", "'b.pt2' is too much");
    refused(CLI_PLAN, "m --seq", "--seq needs a value");
    refused(CLI_PLAN, "m --seq 12x", "'12x'");
    refused(CLI_PLAN, "m --seq 0", "from 1 to");
    refused(CLI_PLAN, "m --seq 99999999999999999999", "whole number");
    refused(CLI_TRAIN, "m --data d --seq max", "'max'");
    refused(CLI_PLAN, "m --ranks -3", "from 1 to 65536");
    refused(CLI_PLAN, "m --ranks 2.5", "'2.5'");
    refused(CLI_PLAN, "m --zero 4", "from 0 to 3");
    refused(CLI_PLAN, "m --memory lots", "2GiB");
    refused(CLI_PLAN, "m --memory 0", "above 0");
    refused(CLI_PLAN, "m --memory -1", "2GiB");
    refused(CLI_PLAN, "m --device gpu", "cpu|ref|cuda");
    refused(CLI_PLAN, "m --dtype f16", "f32|bf16|f64");
    refused(CLI_PLAN, "m --dtype f32|bf16", "takes");
    refused(CLI_PLAN, "m --mesh 2x2", "dp=D,seq=P");
    refused(CLI_PLAN, "m --mesh dp=2,dp=2", "dp=D,seq=P");
    refused(CLI_PLAN, "m --mesh dp=0", "dp=D,seq=P");
    refused(CLI_PLAN, "m --mesh seq=2,", "dp=D,seq=P");
    refused(CLI_PLAN, "m --mesh seq=2 --ranks 2", "not both");
    refused(CLI_TRAIN, "m --data d --lr fast", "'fast'");
    refused(CLI_TRAIN, "m --data d --lr nan", "takes a number");
    refused(CLI_TRAIN, "m --data d --lr -1", "from 0");
    refused(CLI_TRAIN, "m --data d --beta1 1", "below 1");
    refused(CLI_TRAIN, "m --data d --eps 0", "above 0");
    refused(CLI_TRAIN, "m --data d --lr 1e-4 --min-lr 1e-3", "above --lr");
    refused(CLI_TRAIN, "m --data d --schedule step", "cosine|linear|constant");
    refused(CLI_TRAIN, "m --data d --eval-every 5", "--eval FILE");
    refused(CLI_TRAIN, "m --data d --resume", "--resume needs --out");
    refused(CLI_TRAIN, "m --data d --keep 3", "--keep needs --out");
    refused(CLI_TRAIN, "m --data d --shuffle=yes", "--shuffle takes no value");
}

static void names_are_suggested(void **state) {
    (void)state;
    refused(CLI_TRAIN, "m --data d --step-s 3", "did you mean --steps?");
    refused(CLI_TRAIN, "m --data d --wieght-decay=3", "did you mean --weight-decay?");
    refused(CLI_PLAN, "m --frobnicate", "unknown option --frobnicate");
    refused(CLI_PLAN, "m -x", "unknown option -x");
    refused(CLI_PLAN, "m --lr 1", "--lr is not an option of this command");
    refused(CLI_PLAN, "m --set save.polcy=all", "did you mean save.policy?");
    refused(CLI_PLAN, "m --set optimizer.name=sgd", "there are shard.exchange");
    refused(CLI_PLAN, "m --set save.policy=some", "all|pytorch|autosp|layer|budget|least");
    refused(CLI_PLAN, "m --set save.policy", "PASS.OPTION=VALUE");
    refused(CLI_PLAN, "m --set save.policy=", "PASS.OPTION=VALUE");
    refused(CLI_PLAN, "m --set shard.exchange=UxR", "'UxR'");
    refused(CLI_PLAN, "m --set shard.exchange=0x2", "'0x2'");
    static const char *const names[] = {"train", "plan", "check"};
    assert_string_equal(cli_suggest("trian", names, 3), "train");
    assert_string_equal(cli_suggest("chek", names, 3), "check");
    assert_null(cli_suggest("xylophone", names, 3));
    assert_null(cli_suggest("", names, 3));
}

static void help_lists_the_commands_options(void **state) {
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    cli_print_help(CLI_PLAN, f);
    fclose(f);
    assert_non_null(strstr(text, "--seq N"));
    assert_non_null(strstr(text, "--memory BYTES"));
    assert_non_null(strstr(text, "save.policy=all|pytorch|autosp|layer|budget|least"));
    assert_null(strstr(text, "--lr"));
    assert_null(strstr(text, "Optimizer")); /* no heading without options */
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(defaults), cmocka_unit_test(every_form),
                                       cmocka_unit_test(bad_values_are_refused), cmocka_unit_test(names_are_suggested),
                                       cmocka_unit_test(help_lists_the_commands_options)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
