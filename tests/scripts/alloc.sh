#!/bin/bash
# From step 2 on autosp allocates nothing, and the process's high-water mark is the plan's arena.
# usage: alloc.sh AUTOSP SOURCE_DIR, with ALLOC_COUNT and RSS_PROBE in the environment (tests/alloc/)
set -u
[ -n "${ALLOC_COUNT:-}" ] || { echo "built without the allocation counter (sanitizers): skipped"; exit 77; }
autosp=$1
text=$2/examples/tiny-text/train.txt
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

for options in "--ranks 1 --device cpu" "--ranks 2 --device cpu --shuffle" "--ranks 3 --device ref --seq 65"; do
    # shellcheck disable=SC2086
    LD_PRELOAD=$ALLOC_COUNT ALLOC_COUNT_OUT=$dir/out "$autosp" train "$2/tests/fixtures/llama.pt2" --data "$text" \
        --seq 64 --batch 2 --accum 2 --steps 6 --threads 2 --metrics "$dir/m.jsonl" $options 2>"$dir/stderr" ||
        { cat "$dir/stderr"; exit 1; }
    if ! grep -qF '"from": 1, "to": 6, "ours": {"count": 0, "bytes": 0}' "$dir/out"; then
        echo "allocations in steps 2 to 6 with $options (addresses for addr2line):"
        cat "$dir/out"
        failed=1
    fi
done

# High-water mark above that of a run without steps, which takes no memory ahead: within 2 % + 16 MiB of the arena.
rss() {
    pages=huge
    [ "$1" = 0 ] && pages=late
    rm -f "$dir/m.jsonl"
    "$RSS_PROBE" "$dir/rss" "$autosp" train "$2/examples/demo.pt2" --data "$text" --seq 2048 --steps "$1" --threads 2 \
        --metrics "$dir/m.jsonl" --set exec.pages=$pages 2>"$dir/stderr" || { cat "$dir/stderr"; exit 1; }
    cat "$dir/rss"
}
rss 0 "$2" >/dev/null # the first run may compile kernels, and the compiler's memory would be measured
idle=$(rss 0 "$2") busy=$(rss 2 "$2")
arena=$(sed -n 's/.*"planned_peak_bytes": \([0-9]*\).*/\1/p' "$dir/m.jsonl" | tail -1)
awk -v above=$(((busy - idle) * 1024)) -v arena="$arena" 'BEGIN {
    off = above - arena
    if (off < 0) off = -off
    if (arena < 32 * 1048576 || off > 0.02 * arena + 16 * 1048576) {
        printf "high-water mark %d above an idle run, arena %d\n", above, arena
        exit 1
    }
}' || failed=1
exit $failed
