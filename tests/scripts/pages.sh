#!/bin/bash
# However parameters, gradients and moments get their memory, what is touched is what was planned, in every step, and the
# losses are the same to the bit. usage: pages.sh AUTOSP SOURCE_DIR
set -u
autosp=$1
text=$2/examples/tiny-text/train.txt
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

for ranks in 1 2; do
    for pages in late small huge; do
        "$autosp" train "$2/examples/demo.pt2" --data "$text" --seq 128 --steps 2 --ranks $ranks --threads 1 \
            --metrics "$dir/$pages.jsonl" --set exec.pages=$pages >"$dir/out" 2>&1 || { cat "$dir/out"; exit 1; }
        planned=$(sed -n 's/.*"planned_peak_bytes": \([0-9]*\).*/\1/p' "$dir/$pages.jsonl" | sort -u)
        measured=$(sed -n 's/.*"measured_peak_bytes": \([0-9]*\).*/\1/p' "$dir/$pages.jsonl" | sort -u)
        [ -n "$planned" ] && [ "$planned" = "$measured" ] || {
            echo "$ranks ranks, exec.pages=$pages: planned $planned, measured $measured"
            failed=1
        }
        sed -n 's/.*"loss": \([^,]*\),.*/\1/p' "$dir/$pages.jsonl" >"$dir/$pages.losses"
        [ -s "$dir/$pages.losses" ] && cmp "$dir/late.losses" "$dir/$pages.losses" || failed=1
    done
    rm "$dir"/*.jsonl
done
exit $failed
