#!/bin/bash
# Training as a user sees it: metrics, gradients, checkpoints, a resume bit for bit, SIGTERM, the peak.
# usage: train.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"
must() { "$@" 2>"$dir/stderr" || { echo "failed: $*"; cat "$dir/stderr"; exit 1; }; }

common="--seq 64 --batch 2 --accum 2 --lr 1e-2 --warmup 2 --threads 1 --shuffle --seed 5"

# An unbroken run of 12 steps on two ranks, with a checkpoint every 4.
# shellcheck disable=SC2086
must "$autosp" train "$model" --data "$text" $common --ranks 2 --steps 12 --out "$dir/a" --save-every 4 \
    --metrics "$dir/a.jsonl" --grads "$dir/g.safetensors"
[ "$(wc -l <"$dir/a.jsonl")" = 12 ] || complain "12 steps, but $(wc -l <"$dir/a.jsonl") lines of metrics"
for name in step loss tokens tokens_per_s step_s lr grad_norm planned_peak_bytes measured_peak_bytes; do
    [ "$(grep -c "\"$name\": [0-9.e+-]*[,}]" "$dir/a.jsonl")" = 12 ] || complain "metrics without $name"
done
[ "$(field "$dir/a.jsonl" 1 tokens)" = 256 ] || complain "2 x 2 x 64 tokens a step, not $(field "$dir/a.jsonl" 1 tokens)"
first=$(field "$dir/a.jsonl" 1 loss) last=$(field "$dir/a.jsonl" 12 loss)
awk "BEGIN { exit !($last < $first - 1 && $first > 5 && $first < 6.5) }" || complain "the loss goes from $first to $last"
[ -s "$dir/g.safetensors" ] || complain "no gradients written"
for step in 4 8 12; do
    for file in model.safetensors config.json autosp/state.safetensors autosp/state.json autosp/plan.txt; do
        [ -s "$dir/a/checkpoint-$step/$file" ] || complain "checkpoint-$step lacks $file"
    done
done

# The same again from its checkpoint of step 8: the last one equals the unbroken run's, byte by byte.
mkdir "$dir/b"
cp -r "$dir/a/checkpoint-8" "$dir/b"
head -10 "$dir/a.jsonl" >"$dir/b.jsonl" # two steps that the checkpoint does not have
# shellcheck disable=SC2086
must "$autosp" train "$model" --data "$text" $common --ranks 2 --steps 12 --out "$dir/b" --resume --metrics "$dir/b.jsonl"
for file in model.safetensors autosp/state.safetensors; do
    cmp "$dir/a/checkpoint-12/$file" "$dir/b/checkpoint-12/$file" || complain "resumed: $file differs"
done
[ "$(wc -l <"$dir/b.jsonl")" = 12 ] || complain "resumed: $(wc -l <"$dir/b.jsonl") lines of metrics"
for name in loss lr grad_norm; do
    [ "$(for s in $(seq 12); do field "$dir/a.jsonl" "$s" $name; done)" = \
        "$(for s in $(seq 12); do field "$dir/b.jsonl" "$s" $name; done)" ] || complain "resumed: another $name"
done

# A checkpoint of two ranks goes on with three; --keep 1 leaves one.
# shellcheck disable=SC2086
must "$autosp" train "$model" --data "$text" $common --ranks 3 --steps 14 --out "$dir/b" --resume --keep 1 \
    --metrics "$dir/c.jsonl"
[ "$(ls "$dir/b")" = checkpoint-14 ] || complain "--keep 1 left $(ls "$dir/b")"
# A run that is done does nothing.
# shellcheck disable=SC2086
must "$autosp" train "$model" --data "$text" $common --steps 14 --out "$dir/b" --resume
grep -q "all steps are done" "$dir/stderr" || complain "a finished run does not say so"

# SIGTERM: a checkpoint after the running step, exit 0, and the rest by --resume.
# shellcheck disable=SC2086
"$autosp" train "$model" --data "$text" $common --ranks 2 --steps 100000 --out "$dir/t" --metrics "$dir/t.jsonl" \
    2>"$dir/stderr" &
pid=$!
for _ in $(seq 100); do
    [ -s "$dir/t.jsonl" ] && break
    sleep 0.1
done
kill -TERM $pid
wait $pid || complain "SIGTERM: exit $?"
steps=$(wc -l <"$dir/t.jsonl")
[ -s "$dir/t/checkpoint-$steps/autosp/state.json" ] || complain "SIGTERM after step $steps left $(ls "$dir/t")"
grep -q "stopped by SIGTERM" "$dir/stderr" || complain "SIGTERM is not told"

# The peak is what was planned, where kernels' workspaces are used to their end.
# shellcheck disable=SC2086
must "$autosp" train "$model" --data "$text" --seq 256 --ranks 2 --threads 1 --steps 2 --metrics "$dir/m.jsonl"
planned=$(field "$dir/m.jsonl" 2 planned_peak_bytes) measured=$(field "$dir/m.jsonl" 2 measured_peak_bytes)
[ -n "$planned" ] && [ "$planned" = "$measured" ] || complain "planned peak $planned, measured $measured"
exit $failed
