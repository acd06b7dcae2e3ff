#!/bin/bash
# With the budget that another policy's plan takes at its own peak, ours is not slower by the same estimate, and fits. The other's
# peak and seconds are those of its own plan, made without a budget. More models: bench/plan-gap rules.
# usage: rules.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"
number() { sed -n "s/.*\"$1\": \([0-9.e+-]*\).*/\1/p" "$2"; }

compare() { # MODEL OPTION...
    for policy in all pytorch autosp layer; do
        for tiles in off loss auto; do
            "$autosp" plan "$@" --json --set save.policy=$policy --set tile.policy=$tiles >"$dir/theirs" 2>"$dir/stderr" ||
                complain "$*: $policy, tiles $tiles is refused"
            peak=$(number peak_bytes "$dir/theirs") theirs=$(number step_seconds_estimate "$dir/theirs")
            "$autosp" plan "$@" --json --memory "$peak" >"$dir/ours" 2>"$dir/stderr" ||
                complain "$*: ours does not fit the $peak bytes of $policy, tiles $tiles"
            taken=$(number peak_bytes "$dir/ours") ours=$(number step_seconds_estimate "$dir/ours")
            [ "${taken:-0}" -gt 0 ] && [ "$taken" -le "${peak:-0}" ] || complain "$*: peak $taken, budget $peak"
            awk -v o="$ours" -v t="$theirs" 'BEGIN { exit !(o > 0 && o <= t * (1 + 1e-9)) }' ||
                complain "$*: $ours s in the $peak bytes of $policy, tiles $tiles, which takes $theirs s"
        done
    done
}

compare "$2/examples/context-bench.pt2" --seq 8192 --ranks 1                   # the loss head's loop, the embedding
compare "$2/tests/fixtures/each-operator.pt2" --seq 2048 --ranks 1 --dtype bf16 # nearly all depends on parameters only
exit $failed
