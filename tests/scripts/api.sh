#!/bin/bash
# The installed library: header, pkg-config file and archive suffice to build examples/train.c, and it computes the same
# losses as `autosp train`, on one rank and on three.
set -eu
program=$1 source=$2
build=$(dirname "$program")
command -v pkg-config cmake cc >/dev/null || exit 77
grep -q '^AUTOSP_SANITIZE:STRING=.' "$build/CMakeCache.txt" && exit 77 # a sanitized archive links only with its flags
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

cmake --install "$build" --prefix "$tmp/prefix" >/dev/null
export PKG_CONFIG_PATH=$tmp/prefix/lib/pkgconfig:$(echo "$tmp"/prefix/lib/*/pkgconfig)
sed -i "s|^prefix=.*|prefix=$tmp/prefix|" "$tmp"/prefix/lib/pkgconfig/autosp.pc 2>/dev/null ||
    sed -i "s|^prefix=.*|prefix=$tmp/prefix|" "$tmp"/prefix/lib/*/pkgconfig/autosp.pc
cc -std=c11 -Wall -Wextra -Werror "$source/examples/train.c" $(pkg-config --cflags --libs --static autosp) -o "$tmp/train"

model=$source/examples/demo.pt2
head -c 4096 "$source/README.md" >"$tmp/text.txt"
for ranks in 1 3; do
    "$tmp/train" "$model" "$tmp/text.txt" 40 $ranks 3 >"$tmp/api"
    "$program" train "$model" --data "$tmp/text.txt" --seq 40 --ranks $ranks --steps 3 --lr 1e-3 --schedule constant \
        --beta2 0.95 --weight-decay 0.1 --clip 1 --metrics "$tmp/cli.$ranks" >/dev/null 2>&1
    python3 - "$tmp/api" "$tmp/cli.$ranks" <<'PY'
import json, re, sys
api = [float(x) for x in re.findall(r"loss ([0-9.]+)", open(sys.argv[1]).read())]
cli = [json.loads(l)["loss"] for l in open(sys.argv[2])]
assert len(api) == len(cli) == 3 and max(abs(a - c) for a, c in zip(api, cli)) < 2e-6, (api, cli)
PY
done
"$tmp/train" "$model" "$tmp/text.txt" 0 1 1 2>"$tmp/err" && exit 1
grep -q 'give --seq N' "$tmp/err"
