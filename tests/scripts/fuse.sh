#!/bin/bash
# Generated kernels: their source is shown, they are compiled once into a cache that survives races, broken files and
# hostile folders, and without a compiler training goes on with the ordinary kernels. The losses are those of the
# ordinary kernels to 6 digits.
set -u
autosp=${1:?usage: fuse.sh PROGRAM SOURCE_DIR} source=${2:?}
model=$source/tests/fixtures/llama.pt2
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
command -v cc gcc clang >/dev/null || exit 77
bad=0
complain() { echo "fuse.sh: $*"; bad=1; }
head -c 4000 "$source/README.md" >"$work/text.txt"

# train NAME [OPTION...]: three steps; messages in NAME.log, the losses in NAME.loss
train() {
    local name=$1; shift
    "$autosp" train "$model" --data "$work/text.txt" --seq 64 --steps 3 --threads 1 --metrics "$work/$name.json" "$@" \
        >"$work/$name.log" 2>&1 || complain "$name: $(tail -1 "$work/$name.log")"
    grep -o '"loss": *[0-9.]*' "$work/$name.json" >"$work/$name.loss" 2>/dev/null
}
# same A B: losses of A and B agree
same() {
    paste <(tr -dc '0-9.\n' <"$work/$1.loss") <(tr -dc '0-9.\n' <"$work/$2.loss") |
        awk 'NF != 2 || ($1 - $2) > 1e-5 || ($2 - $1) > 1e-5 { bad = 1 } END { exit bad || NR != 3 }' ||
        complain "losses of $1 and $2 differ"
}
objects() { find "$work/cache/autosp" -name '*.so' | wc -l; }

"$autosp" dump "$model" --seq 64 --set fuse.policy=on --kernels >"$work/kernels.c" || complain "dump --kernels failed"
grep -q '^void k_' "$work/kernels.c" || complain "dump --kernels shows no kernel"
cc -std=gnu11 -w -fsyntax-only "$work/kernels.c" || complain "the shown source does not compile by itself"

train plain --set fuse.policy=off
export XDG_CACHE_HOME=$work/cache
train first --set fuse.policy=on
same plain first
[ "$(objects)" = 1 ] || complain "$(objects) objects in the cache"
[ -z "$(find "$work/cache/autosp" -name '*build-*')" ] || complain "the compiler's folder was left behind"
stamp=$(stat -c %i "$work"/cache/autosp/*.so)
train again --set fuse.policy=on
cmp -s "$work/first.loss" "$work/again.loss" || complain "two runs differ"
[ "$stamp" = "$(stat -c %i "$work"/cache/autosp/*.so)" ] || complain "compiled again in spite of the cache"

for cut in 0 100 5000; do # cut off, and a byte changed
    object=$(echo "$work"/cache/autosp/*.so)
    truncate -s "$cut" "$object"
    train "cut$cut" --set fuse.policy=on
    same plain "cut$cut"
done
printf x | dd of="$object" bs=1 seek=2000 conv=notrunc 2>/dev/null
train changed --set fuse.policy=on
same plain changed
[ "$(objects)" = 1 ] || complain "$(objects) objects after repairs"

# the cache has a bound: what was used last stays
object=$(echo "$work"/cache/autosp/*.so)
for i in $(seq 300); do echo "$i" >"$work/cache/autosp/old$i.so"; done
touch -d '2 days ago' "$work"/cache/autosp/old*.so "$object"
mkdir "$work/cache/autosp/.build-dead" && touch -d '2 days ago' "$work/cache/autosp/.build-dead"
train used --set fuse.policy=on # loads the object: its time is now
"$autosp" train "$source/tests/fixtures/gpt2.pt2" --data "$work/text.txt" --seq 64 --steps 1 --threads 1 --set fuse.policy=on \
    >/dev/null 2>&1 || complain "the training that adds an object failed"
[ "$(objects)" = 256 ] || complain "$(objects) objects in a cache of at most 256"
[ -e "$object" ] || complain "the object that was used last was removed"
[ ! -e "$work/cache/autosp/.build-dead" ] || complain "the folder of a compiler that crashed stays"
for i in 1 2 3; do truncate -s 30M "$work/cache/autosp/old-large$i.so"; touch -d "$i hours ago" "$work/cache/autosp/old-large$i.so"; done
"$autosp" train "$source/tests/fixtures/qwen2.pt2" --data "$work/text.txt" --seq 64 --steps 1 --threads 1 --set fuse.policy=on \
    >/dev/null 2>&1 || complain "the training that adds another object failed"
[ "$(du -bc "$work"/cache/autosp/*.so | tail -1 | cut -f1)" -le $((64 << 20)) ] || complain "the cache passed 64 MiB"

rm -r "$work/cache/autosp" # a race
train one --set fuse.policy=on & train two --set fuse.policy=on & wait
same plain one
same plain two

chmod 777 "$work/cache/autosp" # others may write there
train hostile --set fuse.policy=on
same plain hostile
grep -q 'is not used for compiled kernels' "$work/hostile.log" || complain "a folder that others can write was trusted"
chmod 700 "$work/cache/autosp"

export XDG_CACHE_HOME=/dev/null/none # cannot be made
train nowhere --set fuse.policy=on
same plain nowhere
export XDG_CACHE_HOME=$work/cache

PATH=$work/empty train nocc --set fuse.policy=on # the functions' own tools come from the shell's hash or are not needed
CC=/bin/false train failing --set fuse.policy=on
CC='/bin/false; touch '"$work"'/injected' train quoted --set fuse.policy=on
for name in nocc failing quoted; do
    grep -q 'going on without fused kernels' "$work/$name.log" || complain "$name: no warning"
done
[ ! -e "$work/injected" ] || complain "CC went through a shell"
exit $bad
