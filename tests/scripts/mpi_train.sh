#!/bin/bash
# Processes under mpirun train as threads do: the same metrics and checkpoints; check passes; failures end the job.
# usage: mpi_train.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"
text=$source/examples/tiny-text/eval.txt
"$autosp" version | grep -q MPI || { echo "built without MPI: skipped"; exit 77; }
"$2/scripts/mpirun" -n 1 true 2>/dev/null || { echo "mpirun does not start a process here: skipped"; exit 77; }
export ASAN_OPTIONS=detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS} # Open MPI keeps memory of its own until the end
mpi() { timeout 120 "$source/scripts/mpirun" -n "$1" "$autosp" "${@:2}"; }
numbers() { sed 's/"tokens_per_s".*"lr"/"lr"/; s/, "planned.*//' "$1"; } # without clocks

options="--seq 65 --batch 2 --accum 2 --steps 4 --threads 1 --save-every 2"
# shellcheck disable=SC2086
"$autosp" train "$model" --data "$text" $options --ranks 2 --out "$dir/loop" --metrics "$dir/loop.jsonl" 2>"$dir/stderr" ||
    complain "2 threads: exit $?"
# shellcheck disable=SC2086
mpi 2 train "$model" --data "$text" $options --out "$dir/mpi" --metrics "$dir/mpi.jsonl" 2>"$dir/stderr" ||
    complain "2 processes: exit $?"
[ "$(numbers "$dir/loop.jsonl")" = "$(numbers "$dir/mpi.jsonl")" ] || complain "threads and processes differ:
$(numbers "$dir/loop.jsonl")
$(numbers "$dir/mpi.jsonl")"
for file in model.safetensors autosp/state.safetensors; do
    cmp "$dir/loop/checkpoint-4/$file" "$dir/mpi/checkpoint-4/$file" || complain "$file differs"
done
grep -c "step 4/4" "$dir/stderr" | grep -qx 1 || complain "the last step is not told once"

for dtype in f32 f64; do # two processes too, and the reference device in f64
    device=cpu
    [ $dtype = f64 ] && device=ref
    mpi 2 check "$model" --seq 29 --batch 1 --threads 1 --dtype $dtype --device $device >"$dir/out" 2>"$dir/stderr" ||
        complain "check on 2 in $dtype: exit $?"
done
mpi 4 check "$model" --seq 30 --batch 3 --threads 1 --json >"$dir/out" 2>"$dir/stderr" || complain "check on 4: exit $?"
grep -qF '"ranks": 4' "$dir/out" && [ "$(wc -l <"$dir/out")" = 1 ] || complain "check on 4 prints $(cat "$dir/out")"

# A compiler that fails, or is missing, for one process: one line, and all train without generated kernels, as one plan.
if command -v cc gcc clang >/dev/null; then
    for lacking in /bin/false /nowhere/cc; do
        # shellcheck disable=SC2016
        timeout 120 "$source/scripts/mpirun" -n 2 sh -c '[ "$OMPI_COMM_WORLD_RANK" = 0 ] || export CC=$1; shift; exec "$@"' \
            sh $lacking "$autosp" train "$model" --data "$text" --seq 64 --steps 1 --threads 1 >"$dir/out" 2>"$dir/stderr" ||
            complain "with CC=$lacking on rank 1: exit $?: $(cat "$dir/stderr")"
        [ "$(grep -c 'rank 1: .*all ranks are going on without fused kernels' "$dir/stderr")" = 1 ] ||
            complain "with CC=$lacking on rank 1: $(cat "$dir/stderr")"
    done
fi

# Dropout of attention's weights: the same masks in four threads and in four processes, and as on one rank.
attention=$source/tests/ir/attention.ir
for i in $(seq 0 1999); do printf '\\x%02x\\x00' $((i * i % 61 % 13)); done | xargs -0 printf >"$dir/tokens.bin"
dropped() { "$@" --data "$dir/tokens.bin" --seq 21 --batch 2 --accum 2 --steps 4 --threads 1 --metrics "$dir/$metrics" 2>"$dir/stderr"; }
metrics=threads.jsonl dropped "$autosp" train "$attention" --ranks 4 || complain "dropout in 4 threads: exit $?"
metrics=processes.jsonl dropped mpi 4 train "$attention" || complain "dropout in 4 processes: exit $?"
[ "$(numbers "$dir/threads.jsonl")" = "$(numbers "$dir/processes.jsonl")" ] || complain "with dropout threads and processes differ:
$(numbers "$dir/threads.jsonl")
$(numbers "$dir/processes.jsonl")"
sed 's/drop_p=0.25/drop_p=0.5/' "$attention" >"$dir/half.ir"
metrics=half.jsonl dropped "$autosp" train "$dir/half.ir" --ranks 4 || complain "more dropout: exit $?"
[ "$(numbers "$dir/threads.jsonl")" = "$(numbers "$dir/half.jsonl")" ] && complain "dropout of attention's weights does nothing"
for n in 2 4; do
    mpi $n check "$attention" --seq 21 --threads 1 >"$dir/out" 2>"$dir/stderr" || complain "dropout against one rank, $n: exit $?"
done

# A mistake ends all processes with one message.
mpi 2 train "$model" --data "$dir/none.txt" --seq 64 >"$dir/out" 2>"$dir/stderr" && complain "a missing file is accepted"
grep -q "none.txt" "$dir/stderr" || complain "the missing file is not named"
mpi 2 train "$model" --data "$text" --seq 64 --ranks 3 >"$dir/out" 2>"$dir/stderr" && complain "--ranks 3 of 2 is accepted"
grep -q "leave --ranks out" "$dir/stderr" || complain "--ranks 3 of 2 processes is not explained"

# A rank that is killed ends the job: not with 0, not with a hang, and what was saved stays whole.
# shellcheck disable=SC2086
mpi 2 train "$model" --data "$text" ${options/--steps 4/--steps 1000000} --out "$dir/killed" --keep 2 \
    --metrics "$dir/killed.jsonl" >"$dir/out" 2>"$dir/stderr" &
job=$!
for _ in $(seq 300); do
    [ "$(wc -l 2>/dev/null <"$dir/killed.jsonl")" -ge 4 ] 2>/dev/null && break
    sleep 0.1
done
rank=
for process in /proc/[0-9]*; do # a process that runs autosp with this test's folder
    [ "$(readlink "$process/exe" 2>/dev/null)" = "$(readlink -f "$autosp")" ] || continue
    grep -qF "$dir/killed" "$process/cmdline" 2>/dev/null && rank=${process#/proc/}
done
if [ -n "$rank" ]; then kill -KILL "$rank"; else complain "no rank is found"; fi
wait $job && complain "a job whose rank was killed ends with 0"
for folder in "$dir"/killed/checkpoint-*; do
    case $folder in *.tmp) continue ;; esac
    [ -s "$folder/autosp/state.json" ] || complain "half a checkpoint: $folder"
done
# shellcheck disable=SC2086
"$autosp" train "$model" --data "$text" ${options/--steps 4/--steps 1} --ranks 2 --out "$dir/killed" --resume 2>"$dir/stderr" ||
    complain "no resume after a killed rank: exit $?"
grep -q "going on from $dir/killed/checkpoint-" "$dir/stderr" || complain "the resume finds no checkpoint"
exit $failed
