#!/bin/bash
# Runs of equal ranks and threads end in the same bits: the weights after four steps of f32 and bf16, on one and two ranks of
# two threads each, and one rank of three.
set -eu
autosp=$1 src=$2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for model in llama gpt2; do
    for dtype in f32 bf16; do
        for team in "1 2" "2 2" "1 3"; do
            read -r ranks threads <<<"$team"
            for run in a b; do
                "$autosp" train "$src/tests/fixtures/$model.pt2" --data "$src/examples/tiny-text/train.txt" --seq 128 --batch 2 \
                    --steps 4 --lr 1e-2 --dtype $dtype --ranks "$ranks" --threads "$threads" --out "$out/$run" \
                    >/dev/null 2>"$out/log"
                find "$out/$run/checkpoint-4" -name '*.safetensors' -exec sha256sum {} + | sed 's/ .*\// /' | sort >"$out/$run.sums"
                rm -rf "${out:?}/$run"
            done
            [ -s "$out/a.sums" ]
            cmp "$out/a.sums" "$out/b.sums" || { echo "$model $dtype: $ranks ranks of $threads threads differ"; exit 1; }
        done
    done
done
