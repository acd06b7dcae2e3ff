#!/bin/bash
# --profile: the table names kernels with their rates and shares of the machine's limits; the trace is JSON of the Chrome trace
# format (every event complete: name, phase X, start and duration in microseconds, not negative and inside the step).
set -eu
autosp=$1 src=$2
command -v python3 >/dev/null || exit 77
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
if "$autosp" train "$src/tests/fixtures/llama.pt2" --data "$src/examples/tiny-text/train.txt" --seq 64 --steps 2 --threads 1 \
    --profile "$out/none/trace.json" >"$out/table" 2>"$out/log" || grep -q '^step ' "$out/log" ||
    ! grep -q -- "--profile: cannot write $out/none/trace.json: No such file" "$out/log"; then
    echo "a trace that cannot be written is not said before the first step:" && cat "$out/log" && exit 1
fi
for dtype in f32 bf16; do
    "$autosp" train "$src/tests/fixtures/llama.pt2" --data "$src/examples/tiny-text/train.txt" --seq 64 --steps 2 --threads 2 \
        --dtype $dtype --profile "$out/trace.json" >"$out/table" 2>"$out/log"
    grep -q '^kernel .*ms .*GFLOP/s .*GB/s .*limit' "$out/table"
    grep -q '^limits on 2 threads' "$out/table"
    # A product by its sizes: the head of the model's loss is 64 rows (or a tile of them), 256 words, 32 channels.
    grep -qE "^dot $dtype [0-9]+x256x32 nt " "$out/table"
    grep -qE "^dot $dtype 256x32x[0-9]+ tn\+? " "$out/table"
    python3 - "$out/trace.json" <<'PYTHON'
import json, sys
events = json.load(open(sys.argv[1]))["traceEvents"]
assert len(events) > 20, len(events)
end = 0
for e in events:
    assert e["ph"] == "X" and e["name"] and e["dur"] >= 0 and e["ts"] >= end - 1, (e, end)
    assert isinstance(e["pid"], int) and isinstance(e["tid"], int)
    end = e["ts"] + e["dur"]
assert {"dot", "attention", "attention_grad"} <= {e["name"] for e in events}
PYTHON
done
