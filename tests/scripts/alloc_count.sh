#!/bin/bash
# The allocation counter counts what it says (tests/alloc/): known allocations of a probe, charged to the right side.
# usage: alloc_count.sh AUTOSP SOURCE_DIR, with ALLOC_COUNT and ALLOC_PROBE in the environment
set -u
[ -n "${ALLOC_COUNT:-}" ] || { echo "built without the allocation counter (sanitizers): skipped"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
LD_PRELOAD=$ALLOC_COUNT ALLOC_COUNT_OUT=$dir/out "$ALLOC_PROBE" "$dir/metrics" || exit 1
# In steps 2 to 4: malloc 1000, strdup 38, mmap 8192; jansson's string and its copy elsewhere.
want='"from": 1, "to": 4, "ours": {"count": 3, "bytes": 9230}'
grep -qF "$want" "$dir/out" && grep -qE '"libjansson[^"]*": \{"count": [1-9]' "$dir/out" && exit 0
echo "want $want and some for libjansson; got:"
cat "$dir/out"
exit 1
