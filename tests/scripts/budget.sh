#!/bin/bash
# --memory and --machine: what is refused and what the refusal says, that its advice holds, that less memory is never
# faster nor more memory slower, and that planned bytes are the touched ones under every policy.
# usage: budget.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"
says() { grep -qE -- "$1" "$dir/stderr" || complain "no '$1' in"; }
number() { sed -n "s/.*\"$1\": \([0-9.e+-]*\).*/\1/p" "$2"; }

# ---- what is no budget: the valid forms are named
train="train $model --data $text --seq 64 --steps 1 --threads 1"
forms="write it as 2GiB, 80GB, 512MiB, 1.5e9 or 4096"
for command in "plan $model --seq 64" "$train"; do
    for value in 0 0GiB lots 0.5 2XB "" 1e400 -1GiB; do
        # shellcheck disable=SC2086
        refused 2 "$forms" $command --memory "$value"
        # shellcheck disable=SC2086
        refused 2 "$forms" $command --memory 1GiB --host-memory "$value"
    done
done
# shellcheck disable=SC2086
refused 1 "more than the" $train --memory 1000TB
says "of this machine; --memory is what one rank may use"
refused 1 "more than the 74.51 GiB of one device of --machine h100" plan "$model" --seq 64 --machine h100 --memory 81GB
says "h100,mem="

# ---- machines
refused 1 "unknown key 'mme'; the keys are flops.f32" plan "$model" --seq 64 --machine h100,mme=80GB
refused 1 "unknown name 'h1000'; the names are a100-40" plan "$model" --seq 64 --machine h1000
says "valid forms: NAME or NAMExCOUNT, KEY=VALUE,..., or both"
refused 1 "needs at least flops.TYPE, mem_bw and mem" plan "$model" --seq 64 --machine mem=80GB
refused 1 "'much' is not a size in bytes; $forms" plan "$model" --seq 64 --machine h100,mem=much
refused 1 "not a positive number" plan "$model" --seq 64 --machine h100,net=-1
refused 1 "not a whole number from 1" plan "$model" --seq 64 --machine h100,count=0

# ---- too small for the model at any length: no length is proposed
for command in "plan $model --seq 64" "$train"; do
    # shellcheck disable=SC2086
    refused 1 "all but the activations is needed at any length: no sequence fits" $command --memory 500KiB
    says "the least feasible budget is .* \([0-9]+ bytes\), of it parameters .*, gradients .*, optimizer .*, activations"
    grep -q "longest" "$dir/stderr" && complain "a length is proposed"
done

# ---- too small for this length: buffers with their place in the model, and a length that then does fit
for policy in budget layer pytorch; do
    for command in "plan $model" "train $model --data $text --steps 1 --threads 1"; do
        # shellcheck disable=SC2086
        refused 1 "is too small" $command --seq 1500 --ranks 2 --memory 1MiB --set save.policy=$policy
        says "alive at its peak:"
        says "^  [0-9.]+ [KM]iB f32\[1,.*\] .* (with|behind) m\.model\.[a-z0-9_.]+"
        says "kept for the backward"
        says "^  [0-9.]+ [KM]iB in [0-9]+ smaller ones"
        # biggest first
        grep -E "^  [0-9.]+ [KM]iB (f32|workspace|working)" "$dir/stderr" |
            awk '{ b = $1 * ($2 == "MiB" ? 1024 : 1); if (NR > 1 && b > last) exit 1; last = b } END { if (NR < 3) exit 1 }' ||
            complain "buffers are not by size"
        longest=$(sed -n 's/.*the longest sequence that fits 1.00 MiB: --seq \([0-9]*\);.*/\1/p' "$dir/stderr")
        [ "${longest:-0}" -gt 0 ] && [ "${longest:-0}" -lt 1500 ] || complain "no length that fits"
        "$autosp" plan "$model" --seq "${longest:-1}" --ranks 2 --memory 1MiB --set save.policy=$policy >/dev/null 2>"$dir/stderr" ||
            complain "--seq $longest was said to fit under $policy"
        [ $policy = layer ] || # its bytes fall where tiles begin
            refused 1 "is too small" plan "$model" --seq $((longest * 21 / 20)) --ranks 2 --memory 1MiB --set save.policy=$policy
    done
done
# the least feasible budget that is named is one
refused 1 "is too small" plan "$model" --seq 1500 --ranks 2 --memory 1MiB
least=$(sed -n 's/.*least feasible budget is [^(]*(\([0-9]*\) bytes).*/\1/p' "$dir/stderr")
"$autosp" plan "$model" --seq 1500 --ranks 2 --memory "$least" --json >"$dir/least" 2>"$dir/stderr" ||
    complain "the least budget of $least is refused"
refused 1 "is too small" plan "$model" --seq 1500 --ranks 2 --memory $((least - 1))
"$autosp" plan "$model" --seq 1500 --ranks 2 --set save.policy=least --json >"$dir/leanest" 2>"$dir/stderr" || complain "it failed"
[ "$(number peak_bytes "$dir/leanest")" = "$least" ] || complain "save.policy=least takes another peak than $least"
# a plan for as many threads is the training's: what it says is least is enough
refused 1 "is too small" plan "$model" --seq 1500 --threads 2 --memory 1MiB
enough=$(sed -n 's/.*least feasible budget is [^(]*(\([0-9]*\) bytes).*/\1/p' "$dir/stderr")
"$autosp" train "$model" --data "$text" --seq 1500 --threads 2 --steps 0 --memory "$enough" 2>"$dir/stderr" ||
    complain "plan --threads 2 said that $enough is enough"
refused 1 "is too small" train "$model" --data "$text" --seq 1500 --threads 2 --steps 0 --memory $((enough - 1))
# --seq max: fits, is near the length that a refusal names, and two percent more does not fit
for set in save.policy=budget save.policy=layer save.policy=pytorch; do
    "$autosp" plan "$model" --seq max --ranks 2 --memory 1MiB --set $set --json >"$dir/max" 2>"$dir/stderr" || complain "it failed"
    max=$(number max_seq "$dir/max")
    [ "$(number peak_bytes "$dir/max")" -le 1048576 ] || complain "--seq max under $set: more than the budget"
    [ $set = save.policy=layer ] ||
        refused 1 "is too small" plan "$model" --seq $((max * 51 / 50)) --ranks 2 --memory 1MiB --set $set
done
refused 1 "no sequence length fits: --memory 500.00 KiB is too small" plan "$model" --seq max --memory 500KiB
refused 1 "no sequence length fits: --memory 560.00 KiB is too small" plan "$model" --seq max --memory 560KiB

# ---- at once: refusing a budget and naming the longest length takes about eight times the work of one plan of full
# recomputation (and took more than thirty times when each length that was tried got its fastest plan). Not held against a
# sanitizer's build, which slows allocations and arithmetic by different factors.
big=$2/examples/llama-3.1-8b.pt2
cpu() {
    local TIMEFORMAT=%U
    { time "$autosp" plan "$big" --machine h100x8,mem=160e9 "$@" >/dev/null 2>"$dir/stderr"; } 2>&1
}
one=$(cpu --seq 131072 --set save.policy=layer)
refusal=$(cpu --seq 1000000)
says "the longest sequence that fits 149.01 GiB: --seq [0-9]+"
grep -q '^AUTOSP_SANITIZE:STRING=.' "$(dirname "$autosp")/CMakeCache.txt" || awk "BEGIN { exit !($refusal <= 20 * $one) }" ||
    complain "a refusal takes $refusal s, one plan $one s"

# ---- monotone: twelve budgets up to what keeps everything
"$autosp" plan "$model" --seq 1500 --ranks 2 --set save.policy=all --set tile.policy=off --json >"$dir/all"
all=$(number peak_bytes "$dir/all")
last=
for i in $(seq 0 12); do
    budget=$((least + (all - least) * i / 12))
    "$autosp" plan "$model" --seq 1500 --ranks 2 --memory $budget --json >"$dir/plan" 2>"$dir/stderr" ||
        complain "$budget"
    peak=$(number peak_bytes "$dir/plan") seconds=$(number step_seconds_estimate "$dir/plan")
    [ "$peak" -le "$budget" ] || complain "a peak of $peak for a budget of $budget"
    [ -z "$last" ] || awk "BEGIN { exit !($seconds <= $last * (1 + 1e-9)) }" || complain "$budget bytes: $seconds s after $last s"
    last=$seconds
done

# ---- host memory: more of it never slows a step and never raises the device's peak above the budget; what is feasible
# without it takes no more with it
last=
for host in 0 64KiB 93000 97000 118000 128KiB 135000 147455 144KiB 163839 170001 192KiB 217000 256KiB 333333 500001 1MiB 8MiB; do
    # shellcheck disable=SC2046
    "$autosp" plan "$model" --seq 1500 --ranks 2 --memory "$least" $([ $host = 0 ] || echo --host-memory $host) --json \
        >"$dir/plan" 2>"$dir/stderr" || complain "--host-memory $host"
    seconds=$(number step_seconds_estimate "$dir/plan") peak=$(number peak_bytes "$dir/plan")
    [ "$peak" -le "$least" ] || complain "--host-memory $host: a peak of $peak for $least"
    [ -z "$last" ] || awk "BEGIN { exit !($seconds <= $last * (1 + 1e-9)) }" || complain "--host-memory $host: $seconds s after $last s"
    last=$seconds
    echo "$seconds" >"$dir/host.$host"
done
# between two rungs of the ladder (eight in a power of two; 147455 and 163839 are a byte below one), the plan of the lower
cmp -s "$dir/host.128KiB" "$dir/host.147455" && cmp -s "$dir/host.144KiB" "$dir/host.163839" ||
    complain "a host budget between two rungs has a plan of its own"

# ---- truth: what was planned is what the kernel counts as touched, and the numbers of training are the same for every
# policy and budget at one tiling.
size="--seq 512 --ranks 2 --set tile.policy=off"
train="train $model --data $text $size --steps 2 --threads 1 --seed 3"
for policy in all layer pytorch autosp; do
    # shellcheck disable=SC2086
    "$autosp" $train --set save.policy=$policy --metrics "$dir/$policy.jsonl" 2>"$dir/stderr" || complain "it failed"
done
# shellcheck disable=SC2086
refused 1 "is too small" plan "$model" $size --memory 1KiB
least=$(sed -n 's/.*least feasible budget is [^(]*(\([0-9]*\) bytes).*/\1/p' "$dir/stderr")
all=$(field "$dir/all.jsonl" 2 planned_peak_bytes)
runs="all layer pytorch autosp"
for i in 0 1 2 3 4; do
    budget=$((least + (all - least) * i / 4))
    # shellcheck disable=SC2086
    "$autosp" $train --memory $budget --metrics "$dir/budget$i.jsonl" 2>"$dir/stderr" || complain "it failed"
    [ "$(field "$dir/budget$i.jsonl" 2 planned_peak_bytes)" -le $budget ] || complain "budget $budget: planned above it"
    runs="$runs budget$i"
done
# shellcheck disable=SC2086
refused 1 "is too small" plan "$model" $size --memory 1KiB --host-memory 4MiB
least=$(sed -n 's/.*least feasible budget is [^(]*(\([0-9]*\) bytes).*/\1/p' "$dir/stderr")
# shellcheck disable=SC2086
"$autosp" $train --memory "$least" --host-memory 4MiB --metrics "$dir/host.jsonl" 2>"$dir/stderr" || complain "it failed"
[ "$(field "$dir/host.jsonl" 2 planned_host_bytes)" -gt 0 ] || complain "nothing moves to the host"
# What is computed from parameters only is made in each segment that reads it, and never moves.
refused 1 "is too small" plan "$2/tests/fixtures/operators.pt2" --seq 512 --ranks 2 --memory 1KiB --host-memory 64MiB \
    --set tile.policy=off
[ "$(field "$dir/host.jsonl" 2 planned_host_bytes)" = "$(field "$dir/host.jsonl" 2 measured_host_bytes)" ] || complain "host bytes differ"
for run in $runs host; do
    planned=$(field "$dir/$run.jsonl" 2 planned_peak_bytes) measured=$(field "$dir/$run.jsonl" 2 measured_peak_bytes)
    [ -n "$planned" ] && [ "$planned" = "$measured" ] || complain "$run: $planned planned, $measured measured"
    for name in loss grad_norm; do
        [ "$(field "$dir/$run.jsonl" 2 $name)" = "$(field "$dir/all.jsonl" 2 $name)" ] || complain "$run: another $name than all"
    done
done
exit $failed
