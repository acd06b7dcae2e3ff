#!/bin/bash
# --host-memory: what a user can get wrong, a full disk before the first step, and a training that moves values.
# usage: offload.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"

# ---- what is not understood
refused 2 "--host-memory must be above 0" plan "$model" --seq 64 --memory 1GiB --host-memory 0
refused 2 "--host-memory" plan "$model" --seq 64 --memory 1GiB --host-memory lots
refused 2 "--host-memory" plan "$model" --seq 64 --memory 1GiB --host-memory -1GiB
refused 1 "--host-memory needs --memory BYTES" plan "$model" --seq 64 --host-memory 1GiB
refused 1 "'pytorch' moves nothing to the host" plan "$model" --seq 64 --memory 1GiB --host-memory 1GiB --set save.policy=pytorch

# ---- a budget that only host copies make feasible: from three layers on, the first's input is not kept and the last moves none
model=$2/examples/demo.pt2
size="--seq 1024 --ranks 2 --set tile.policy=off"
least() { sed -n 's/.*least feasible budget is [^(]*(\([0-9]*\) bytes).*/\1/p' "$dir/stderr"; }
# shellcheck disable=SC2086
refused 1 "is too small" plan "$model" $size --memory 1KiB
without=$(least)
# shellcheck disable=SC2086
refused 1 "is too small" plan "$model" $size --memory 1KiB --host-memory 8MiB
with=$(least)
[ "${with:-0}" -gt 0 ] && [ "$with" -lt "${without:-0}" ] || complain "least budgets: $with with the host, $without without"
train="train $model --data $text $size --steps 2 --threads 1 --seed 3"
# shellcheck disable=SC2086
"$autosp" $train --metrics "$dir/all.jsonl" 2>"$dir/stderr" || complain "it failed"
mkdir "$dir/tmp"
# shellcheck disable=SC2086
TMPDIR=$dir/tmp "$autosp" $train --memory "$with" --host-memory 8MiB --metrics "$dir/host.jsonl" 2>"$dir/stderr" ||
    complain "it failed"
for name in loss grad_norm; do
    for step in 1 2; do
        a=$(field "$dir/all.jsonl" $step $name) b=$(field "$dir/host.jsonl" $step $name)
        [ -n "$a" ] && [ "$a" = "$b" ] || complain "step $step: $name is $a without host copies, $b with"
    done
done
planned=$(field "$dir/host.jsonl" 2 planned_host_bytes) measured=$(field "$dir/host.jsonl" 2 measured_host_bytes)
[ "${planned:-0}" -gt 0 ] && [ "$planned" = "$measured" ] || complain "host copies: $planned planned, $measured measured"
[ "$(field "$dir/all.jsonl" 2 planned_host_bytes)" = 0 ] || complain "host copies without --host-memory"
peak=$(field "$dir/host.jsonl" 2 measured_peak_bytes)
[ "${peak:-0}" -le "$with" ] || complain "the peak of $peak is above the budget of $with"
[ -z "$(ls -A "$dir/tmp")" ] || complain "left in TMPDIR: $(ls "$dir/tmp")"
# shellcheck disable=SC2086
json=$("$autosp" plan "$model" $size --memory "$with" --host-memory 8MiB --json)
case $json in *"\"host_bytes\": $planned,"*) ;; *) complain "plan --json says $json, training $planned" ;; esac

# ---- no room: before the first step, naming folder and bytes
train="$train --memory $with --host-memory 8MiB --metrics $dir/none.jsonl"
nothing() { [ ! -s "$dir/none.jsonl" ] || complain "$1: a step was made: $(cat "$dir/none.jsonl")"; }
mkdir "$dir/full"
(
    ulimit -f 8 # blocks of 1 KiB
    # shellcheck disable=SC2086
    TMPDIR=$dir/full refused 1 "($planned bytes) of host copies in the folder $dir/full" $train
    exit $failed
) || failed=1
nothing "a limit on files"
[ -z "$(ls -A "$dir/full")" ] || complain "left in a full folder: $(ls "$dir/full")"
# shellcheck disable=SC2086
TMPDIR=$dir/nowhere refused 1 "cannot make a file in the folder $dir/nowhere" $train
nothing "no folder"
mkdir "$dir/small"
# A full disk: a small file system, mounted where only this command sees it (root may).
small='mount -t tmpfs -o size="$1" none "$2" && TMPDIR=$2 && export TMPDIR && shift 2 && exec "$@"'
if unshare -m bash -c "$small" small 1m "$dir/small" true 2>/dev/null; then
    for room in 8k $((planned / 1024 - 8))k; do # nothing fits; all but the end fits
        # shellcheck disable=SC2086
        timeout 60 unshare -m bash -c "$small" small $room "$dir/small" "$autosp" $train >"$dir/stdout" 2>"$dir/stderr" </dev/null
        got=$?
        [ $got -eq 1 ] && grep -qF "in the folder $dir/small: No space left on device" "$dir/stderr" ||
            complain "a disk of $room: exit $got"
        nothing "a full disk of $room"
    done
    # shellcheck disable=SC2086
    unshare -m bash -c "$small" small $((planned / 512 + 64))k "$dir/small" "$autosp" $train 2>"$dir/stderr" ||
        complain "a disk with room enough"
    [ -s "$dir/none.jsonl" ] || complain "a disk with room enough: no step was made"
else
    echo "not root: the test on a full disk is left out"
fi
exit $failed
