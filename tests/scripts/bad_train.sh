#!/bin/bash
# What a user can get wrong with train, plan, check and dump: exit 1, one line that says what, and nothing damaged.
# usage: bad_train.sh AUTOSP SOURCE_DIR
set -u
autosp=$1
fixtures=$2/tests/fixtures
model=$fixtures/llama.pt2
text=$2/examples/tiny-text/eval.txt
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
failed=0

# refused TEXT ARGS...: exit 1, no crash, and one line on stderr with the text.
refused() {
    local want=$1
    shift
    timeout 60 "$autosp" "$@" >"$dir/stdout" 2>"$dir/stderr" </dev/null
    local got=$? lines
    lines=$(grep -c "^autosp: $1:" "$dir/stderr")
    if [ $got -ne 1 ] || [ "$lines" -ne 1 ] || ! grep -qF -- "$want" "$dir/stderr"; then
        echo "autosp $*: exit $got (want 1), $lines messages (want 1) with '$want'; got:"
        cat "$dir/stderr"
        failed=1
    fi
}
train() { refused "$1" train "$model" --data "$text" --seq 64 --steps 2 --threads 1 "${@:2}"; }

# ---- models
refused "No such file" train "$dir/none.pt2" --data "$text" --seq 64
head -c 20000 "$model" >"$dir/cut.pt2"
refused "cut.pt2" train "$dir/cut.pt2" --data "$text" --seq 64
echo "graph \"x\" {" >"$dir/cut.ir"
refused "cut.ir" plan "$dir/cut.ir" --seq 64
refused "give their file or folder with --weights" train "$2/examples/llama-3.2-1b.pt2" --data "$text" --seq 64
refused "No such file" train "$model" --data "$text" --seq 64 --weights "$dir/nowhere"
refused "is not in" train "$model" --data "$text" --seq 64 --weights "$fixtures/gpt2.safetensors"
refused "the model takes any sequence length; give --seq N" plan "$model"

# ---- ranks, devices, what is not there yet
refused "at most one rank a token" check "$model" --seq 4 --ranks 5
refused "'cuda'" check "$model" --seq 16 --device cuda
refused "--dtype f64 needs --device ref" check "$model" --seq 16 --dtype f64
refused "dp=2" plan "$model" --seq 16 --mesh dp=2,seq=2
refused "no pass 'shrad'; did you mean shard?" dump "$model" --seq 16 --after shrad

# ---- budgets
refused "is too small: the least feasible budget" train "$model" --data "$text" --seq 64 --memory 100KiB
refused "is too small: the least feasible budget" plan "$model" --seq 64 --memory 100KiB
refused "no sequence length fits" plan "$model" --seq max --memory 100KiB
refused "--seq max needs --memory" plan "$model" --seq max

# ---- data
refused "No such file" train "$model" --data "$dir/none.txt" --seq 64
refused "less than one sequence" train "$model" --data "$text" --seq 30000
printf '\001\001%.0s' $(seq 200) >"$dir/big.bin" # token 257
refused "token 257 at position 0 is outside the model's vocabulary of 256" train "$model" --data "$dir/big.bin" --seq 64
cp "$text" "$dir/text.md"
refused ".safetensors (rows)" train "$model" --data "$dir/text.md" --seq 64
train "the model takes no document_ids" --eos 10

# ---- numbers: a learning rate that destroys the model. What was saved stays.
refused "the loss is" train "$model" --data "$text" --seq 64 --steps 50 --lr 1e6 --clip 0 --save-every 1 --threads 1 \
    --out "$dir/nan"
for folder in "$dir"/nan/checkpoint-*; do
    [ -s "$folder/autosp/state.json" ] || { echo "a damaged checkpoint after a NaN: $(ls "$dir/nan")"; failed=1; }
done
ls "$dir"/nan/*.tmp >/dev/null 2>&1 && { echo "a half-written checkpoint is left"; failed=1; }

# ---- places to write
echo >"$dir/file"
train "a file has that name" --out "$dir/file"
train "/proc" --out /proc/autosp
train "cannot write metrics file" --metrics "$dir/nowhere/m.jsonl"
train "nowhere/g.safetensors" --grads "$dir/nowhere/g.safetensors"
if [ -e /dev/full ]; then train "No space left" --metrics /dev/full; fi
"$autosp" train "$model" --data "$text" --seq 64 --steps 2 --threads 1 --out "$dir/full" 2>"$dir/stderr" ||
    { cat "$dir/stderr"; failed=1; }
train "already holds checkpoint-2; give --resume" --out "$dir/full"
sum=$(cat "$dir"/full/checkpoint-2/*.safetensors "$dir"/full/checkpoint-2/autosp/* | cksum)
(
    ulimit -f 64 # blocks of 1 KiB: each file of the next checkpoint is larger
    refused "checkpoint of step 4 not written" train "$model" --data "$text" --seq 64 --steps 4 --threads 1 \
        --out "$dir/full" --resume --keep 1
    exit $failed
) || failed=1
[ "$(ls -A "$dir/full")" = checkpoint-2 ] || { echo "a full disk left $(ls -A "$dir/full")"; failed=1; }
[ "$(cat "$dir"/full/checkpoint-2/*.safetensors "$dir"/full/checkpoint-2/autosp/* | cksum)" = "$sum" ] ||
    { echo "a full disk changed checkpoint-2"; failed=1; }

# ---- a checkpoint of another model
"$autosp" train "$fixtures/gpt2.pt2" --data "$text" --seq 32 --steps 1 --threads 1 --out "$dir/other" 2>"$dir/stderr" ||
    { cat "$dir/stderr"; failed=1; }
refused "is it of another model?" train "$model" --data "$text" --seq 64 --steps 3 --out "$dir/other" --resume
exit $failed
