#!/bin/bash
# Plans of 32 Llama-8B-shaped layers (131,072 tokens, 8 ranks) against the lower bound: at most 2 % above it between the least
# feasible budget and what keeps everything, 8 % at the least one itself. All rows: bench/plan-gap gap.
# usage: gap.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"
number() { sed -n "s/.*\"$1\": \([0-9.e+-]*\).*/\1/p" "$2"; }
what=("$2/examples/llama-3.1-8b.pt2" --seq 131072 --ranks 8 --machine "h100,mem=20000GB")

refused 1 "the least feasible budget is" plan "${what[@]}" --memory 1
least=$(sed -n 's/.*least feasible budget is [^(]*(\([0-9]*\) bytes).*/\1/p' "$dir/stderr")
"$autosp" plan "${what[@]}" --json --set save.policy=all --set tile.policy=off >"$dir/all" || complain "all is refused"
most=$(number peak_bytes "$dir/all")
before=
for share in 0 1 25 40 500; do # thousandths of the range, ascending
    budget=$((least + (most - least) * share / 1000))
    "$autosp" plan "${what[@]}" --json --memory "$budget" >"$dir/plan" || complain "$budget bytes are refused"
    gap=$(number lower_bound_gap "$dir/plan") peak=$(number peak_bytes "$dir/plan") step=$(number step_seconds_estimate "$dir/plan")
    [ "${peak:-0}" -gt 0 ] && [ "$peak" -le "$budget" ] || complain "$share/1000 of the range: peak $peak, budget $budget"
    awk -v g="$gap" -v most="$([ "$share" = 0 ] && echo 0.08 || echo 0.02)" 'BEGIN { exit !(g >= 0 && g <= most) }' ||
        complain "$share/1000 of the range: $gap above the bound"
    awk -v s="$step" -v b="${before:-$step}" 'BEGIN { exit !(s > 0 && s <= b) }' ||
        complain "$share/1000 of the range: $step s, $before s with less"
    before=$step
done
exit $failed
