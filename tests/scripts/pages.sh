#!/bin/bash
# However parameters, gradients and moments get their memory, what is touched is what was planned, in every step, and the
# losses are the same to the bit. Nor does any plan count a workspace that nobody touches (`bench/plan-gap truth` runs many
# more). usage: pages.sh AUTOSP SOURCE_DIR
set -u
autosp=$1
text=$2/examples/tiny-text/train.txt
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

# is_touched FILE LABEL: are planned and measured bytes in these metrics one number?
is_touched() {
    local planned measured
    planned=$(sed -n 's/.*"planned_peak_bytes": \([0-9]*\).*/\1/p' "$1" | sort -u)
    measured=$(sed -n 's/.*"measured_peak_bytes": \([0-9]*\).*/\1/p' "$1" | sort -u)
    [ -n "$planned" ] && [ "$planned" = "$measured" ] && return
    echo "$2: planned $planned, measured $measured"
    failed=1
}

for ranks in 1 2; do
    for pages in late small huge; do
        "$autosp" train "$2/examples/demo.pt2" --data "$text" --seq 128 --steps 2 --ranks $ranks --threads 1 \
            --metrics "$dir/$pages.jsonl" --set exec.pages=$pages >"$dir/out" 2>&1 || { cat "$dir/out"; exit 1; }
        is_touched "$dir/$pages.jsonl" "$ranks ranks, exec.pages=$pages"
        sed -n 's/.*"loss": \([^,]*\),.*/\1/p' "$dir/$pages.jsonl" >"$dir/$pages.losses"
        [ -s "$dir/$pages.losses" ] && cmp "$dir/late.losses" "$dir/$pages.losses" || failed=1
    done
    rm "$dir"/*.jsonl
done

# What counted too much once: room to add to gradients that are only stored, for both halves of an exchange that packs one,
# for scores that a window hides, for more rows than a product of our own has. With two microbatches gradients are added to.
head -c 40000 /dev/zero | tr '\0' '\3' >"$dir/tokens.txt"
while read -r model options; do
    # shellcheck disable=SC2086 # options are words
    "$autosp" train "$2/tests/fixtures/$model.pt2" --data "$dir/tokens.txt" --seq 2048 --ranks 2 --steps 2 --threads 1 \
        --metrics "$dir/metrics" $options >"$dir/out" 2>&1 || { cat "$dir/out"; exit 1; }
    is_touched "$dir/metrics" "$model $options"
    rm "$dir/metrics"
done <<'END'
llama --set save.policy=all --set tile.policy=off
llama --set save.policy=all --set tile.policy=off --accum 2
llama --set save.policy=layer --dtype bf16
gpt-neox --set save.policy=layer
gemma2 --set save.policy=autosp --set tile.policy=auto
operators --set save.policy=layer --set tile.policy=off
END
exit $failed
