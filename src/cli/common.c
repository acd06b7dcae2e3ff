/* common.c - what several commands do with the options. */
#include "cli/commands.h"

#include <stdlib.h>

sp_status cli_supported(const cli_options *o) {
    CHECK(o->mesh_dp <= 1, "data-parallel meshes (dp=%lld) are not supported yet; use --ranks or --mesh seq=P",
          (long long)o->mesh_dp);
    CHECK(o->zero == 0, "--zero %lld is not supported yet: parameters and optimizer state are whole on every rank",
          (long long)o->zero);
    CHECK(strcmp(o->device, "cuda") != 0, "this build has no device 'cuda'; use --device cpu");
    return SP_OK;
}

int64_t cli_ranks(const cli_options *o) { return o->mesh_seq ? o->mesh_seq : o->ranks; }

static exec_pages pages_of(const cli_options *o) {
    if (o->command != CLI_TRAIN || strcmp(o->pages, "late") == 0) return EXEC_PAGES_LATE;
    return strcmp(o->pages, "huge") == 0 ? EXEC_PAGES_HUGE : EXEC_PAGES_SMALL;
}

train_setup cli_setup(const cli_options *o, int ranks, int threads) {
    int64_t tile_bytes = 0, mask_bytes = 0;
    if (o->mask_bytes && parse_bytes(o->mask_bytes, &mask_bytes) != SP_OK) ASSERT(!"options.c checks it");
    if (o->tile_bytes && parse_bytes(o->tile_bytes, &tile_bytes) != SP_OK) ASSERT(!"options.c checks it");
    return (train_setup){.seq = o->seq,
                         .accum = o->accum,
                         .batch = o->batch,
                         .ranks = ranks,
                         .compute = o->compute,
                         .device = o->device,
                         .threads = threads,
                         .exchange = o->exchange,
                         .save_policy = o->save_policy,
                         .tile_policy = o->tile_policy,
                         .mask_bytes = mask_bytes,
                         .fuse_policy = o->fuse_policy,
                         .run = o->command == CLI_TRAIN || o->command == CLI_CHECK,
                         .tile_bytes = tile_bytes,
                         .tile_rows = o->tile_rows ? strtoll(o->tile_rows, NULL, 10) : 0,
                         .break_rule = o->break_rule,
                         .machine = o->machine,
                         .memory = o->memory,
                         .host_memory = o->host_memory,
                         .host_dir = o->out,
                         .optimizer = o->command != CLI_CHECK,
                         .pages = pages_of(o)};
}
