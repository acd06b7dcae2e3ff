#!/bin/bash
# autosp check, plan and dump on exported models: P ranks against one, JSON fields, dumps that read back.
# usage: check.sh AUTOSP SOURCE_DIR
set -u
. "$2/tests/scripts.sh"
fixtures=$source/tests/fixtures

# Lengths that the ranks do not divide, ignored labels, a shard that is all padding (9 tokens on 8 ranks), batch 3.
for run in "llama 2 64 1" "llama 3 65 3" "llama 8 9 1" "gpt2 4 30 1" "qwen2 3 31 2"; do
    read -r model ranks seq batch <<<"$run"
    for how in "--device cpu" "--device ref --dtype f64"; do
        # shellcheck disable=SC2086
        "$autosp" check "$fixtures/$model.pt2" --seq "$seq" --ranks "$ranks" --batch "$batch" --threads 1 --json $how \
            >"$dir/out" 2>"$dir/stderr" || complain "check $run $how: exit $?: $(cat "$dir/out")"
        for name in '"ranks": '"$ranks" '"seq": '"$seq" '"loss": ' '"loss_rel": ' '"worst_grad_rel": ' \
            '"worst_grad_name": "' '"parameters": '; do
            grep -qF "$name" "$dir/out" || complain "check --json without $name: $(cat "$dir/out")"
        done
    done
done
# The table has the worst first, and a tolerance that nothing meets ends with 1.
"$autosp" check "$fixtures/llama.pt2" --seq 64 --ranks 2 --tolerance 1e-30 >"$dir/out" 2>"$dir/stderr"
[ $? = 1 ] || complain "a tolerance of 1e-30 is met"
grep -q "above" "$dir/out" || complain "the table does not mark what is above the tolerance"

# A layout rule that is wrong on purpose is found: the norms' gradients lose the other ranks' rows.
"$autosp" check "$fixtures/llama.pt2" --seq 64 --ranks 2 --set shard.break=rmsnorm_grad >"$dir/out" 2>"$dir/stderr"
[ $? = 1 ] || complain "a broken layout rule passes the check"
grep -q "norm.weight .* above" "$dir/out" || complain "the broken rule is not seen in a norm's gradient"

# plan --json has the fields that benchmarks read; more ranks need less.
peaks=()
for ranks in 1 4; do
    "$autosp" plan "$fixtures/llama.pt2" --seq 512 --ranks $ranks --json >"$dir/out" 2>"$dir/stderr" || complain "plan: exit $?"
    for name in seq ranks mesh peak_bytes budget_bytes live_lower_bound_bytes arena_bytes saved_bytes recompute_fraction \
        lower_bound_gap comm_bytes_per_rank step_seconds_estimate max_seq; do
        grep -qF "\"$name\": " "$dir/out" || complain "plan --json without $name"
    done
    peaks+=("$(sed -n 's/.*"peak_bytes": \([0-9]*\).*/\1/p' "$dir/out")")
done
[ "${peaks[1]}" -lt "${peaks[0]}" ] || complain "4 ranks need ${peaks[1]}, one needs ${peaks[0]}"
# --seq max fits the budget, and half a percent more would not.
"$autosp" plan "$fixtures/llama.pt2" --seq max --memory 4MiB --json >"$dir/out" 2>"$dir/stderr" || complain "plan --seq max: exit $?"
longest=$(sed -n 's/.*"max_seq": \([0-9]*\).*/\1/p' "$dir/out")
"$autosp" plan "$fixtures/llama.pt2" --seq "$longest" --memory 4MiB >/dev/null 2>"$dir/stderr" || complain "$longest does not fit"
"$autosp" plan "$fixtures/llama.pt2" --seq $((longest + longest / 100 + 64)) --memory 4MiB >/dev/null 2>&1 && complain "more than $longest fits"

# A described machine gives ranks and budget; the estimate is about it.
"$autosp" plan "$2/examples/llama-3.2-1b.pt2" --machine h100x8 --seq 65536 --json >"$dir/out" 2>"$dir/stderr" ||
    complain "plan --machine: exit $?"
grep -q '"ranks": 8' "$dir/out" && grep -q '"budget_bytes": 80000000000' "$dir/out" || complain "h100x8 gives $(cat "$dir/out")"
"$autosp" plan "$fixtures/llama.pt2" --machine h100y --seq 64 >"$dir/out" 2>"$dir/stderr" && complain "a machine h100y is accepted"
grep -q -- "--machine: .*h100" "$dir/stderr" || complain "no word on machines"

# Every dump reads back to itself.
for pass in import bind shard diff; do
    "$autosp" dump "$fixtures/llama.pt2" --seq 16 --ranks 2 --after $pass >"$dir/$pass.ir" 2>"$dir/stderr" || complain "dump $pass"
    "$autosp" dump "$dir/$pass.ir" --after import >"$dir/again.ir" 2>"$dir/stderr" || complain "dump of the dump after $pass"
    sed -i 's/ *#.*//' "$dir/$pass.ir" "$dir/again.ir" # names are comments and are not read back
    cmp "$dir/$pass.ir" "$dir/again.ir" || complain "the dump after $pass reads back as another graph"
done
"$autosp" dump "$fixtures/llama.pt2" --seq 16 --ranks 2 --after plan | grep -q "program step" || complain "no plan"
exit $failed
