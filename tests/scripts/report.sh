#!/bin/bash
# report.sh AUTOSP SOURCE: the page that `plan --report` writes. It needs nothing but itself, is well-formed, and its
# numbers are those of `plan --json`; its timeline reaches the peak and no further, loops and host copies included, and nothing
# is drawn outside of its frame. Where Chromium is installed, the browser's own tree of the page holds the same.
set -u
autosp=$1 source=$2
dir=$(mktemp -d) failed=0
trap 'rm -rf "$dir"' EXIT
complain() {
    echo "report: $case: $*" >&2
    failed=1
}
value() { grep -oE "\"$1\": [0-9]+" "$dir/json" | head -n 1 | grep -oE '[0-9]+$'; }

# check MODEL OPTION...: the page and the numbers of one plan.
check() {
    local model=$1 page=$dir/page.html
    shift
    "$autosp" plan "$source/examples/$model.pt2" "$@" --report "$page" >"$dir/table" 2>"$dir/stderr" ||
        { complain "exit $?: $(cat "$dir/stderr")"; return; }
    "$autosp" plan "$source/examples/$model.pt2" "$@" --json >"$dir/json" || complain "plan --json: exit $?"
    # Self-contained: the only address in it is the name of SVG's and XHTML's namespaces.
    grep -oE 'https?://[^"]*' "$page" | grep -v '^http://www\.w3\.org/' && complain "the page names an address"
    grep -qiE '<script|<link|<iframe|<img|src=|href=|url\(|@import' "$page" && complain "the page needs more than itself"
    grep -qE '[^a-z](nan|inf)[^a-z]' "$page" && complain "the page has numbers that are none"
    for name in "memory over the step" "places of buffers" "kept by segment" "computed again by segment"; do
        grep -q "aria-label=\"$name\"" "$page" || complain "no picture: $name"
    done
    # The numbers of the table are those of --json.
    local name
    for name in peak_bytes saved_bytes comm_bytes_per_rank parameters gradients optimizer working; do
        grep -qF "<td class=\"n\">$(value $name)</td>" "$page" || complain "no $name, $(value $name), on the page"
    done
    # The timeline's top is what is alive at most, the parts beside the activations and their live size, in which every
    # buffer's size is a multiple of 256.
    local alive=$(($(value live_lower_bound_bytes))) top=$(grep -oE 'data-peak="[0-9]+"' "$page" | grep -oE '[0-9]+')
    [ "$top" -le "$alive" ] && [ "$top" -gt $((alive - 4096)) ] || complain "the timeline reaches $top, the plan has $alive bytes alive"
    # Rows of the communication add up.
    local sum=0 n
    for n in $(grep -E '^<tr><td>(all_|reduce_)' "$page" | grep -oE '[0-9]+</td><td class="n">[0-9.e+-]+ s<' | grep -oE '^[0-9]+'); do
        sum=$((sum + n))
    done
    [ "$sum" = "$(value comm_bytes_per_rank)" ] || complain "rows of communication add up to $sum"
    if command -v python3 >/dev/null; then
        python3 - "$page" <<'PYTHON' || complain "the page's pictures"
import re, sys
import xml.etree.ElementTree as tree

root = tree.parse(sys.argv[1]).getroot()  # fails on anything that is not well-formed
svg = "{http://www.w3.org/2000/svg}"
pictures = list(root.iter(svg + "svg"))
assert len(pictures) >= 4, len(pictures)
for p in pictures:
    g = p.find(svg + "g")
    frame = g.find(svg + "rect")
    width, height = float(frame.get("width")), float(frame.get("height"))
    label = p.get("aria-label")
    assert len([t for t in g.iter(svg + "text") if t.get("class") is None]) == 2, label + ": an axis has no label"
    for x in g.iter(svg + "rect"):
        left, top = float(x.get("x", 0)), float(x.get("y", 0))
        right, bottom = left + float(x.get("width")), top + float(x.get("height"))
        assert left > -1 and top > -1 and right < width + 1 and bottom < height + 1, (label, x.attrib)
    for x in [*g.iter(svg + "polygon"), *g.iter(svg + "polyline")]:
        for pair in x.get("points").split():
            a, b = map(float, pair.split(","))
            assert -1 < a < width + 1 and -1 < b < height + 1, (label, pair)
    for t in g.iter(svg + "text"):  # ticks stand outside of the frame, labels behind them
        if t.get("class") == "tick":
            assert float(t.get("x")) < 0 or float(t.get("y")) > height, (label, t.attrib, t.text)
    ticks = [(float(t.get("x")), float(t.get("y")), t.text) for t in g.iter(svg + "text") if t.get("class") == "tick"]
    below = sorted(t for t in ticks if t[0] >= 0)
    for a, b in zip(below, below[1:]):
        assert b[0] - a[0] > 4 * (len(a[2]) + len(b[2])), (label, "ticks meet", a, b)
PYTHON
    fi
    local browser
    for browser in chromium chromium-browser google-chrome; do
        command -v $browser >/dev/null || continue
        timeout 120 $browser --headless --no-sandbox --disable-gpu --dump-dom "file://$page" >"$dir/dom" 2>/dev/null || break
        [ "$(grep -o '<polygon' "$dir/dom" | wc -l)" = 7 ] || complain "the browser finds no seven parts of the timeline"
        grep -qF ">$(value peak_bytes)</td>" "$dir/dom" || complain "the browser does not show the peak"
        break
    done
}

case="a small plan"
check demo --seq 512 --ranks 2
case="a budget, with a front"
check demo --seq 512 --ranks 2 --memory 16MiB
grep -q 'aria-label="memory against time"' "$dir/page.html" || complain "no front"
grep -q "<title>chosen: " "$dir/page.html" || complain "the front has no chosen point"
case="tiles and host copies"
check context-bench --ranks 2 --seq 60000 --memory 796110592 --host-memory 1GiB
grep -q "moved to the host and back" "$dir/page.html" || complain "no host copies"
case="32 layers and 131072 tokens on a described machine"
check llama-3.1-8b --machine h100x8,mem=200GB --memory 150GB --dtype bf16 --seq 131072
exit $failed
