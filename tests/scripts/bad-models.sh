#!/bin/bash
# Models that cannot be trained as they were exported (tests/fixtures/make_bad.py) end with status 1 and one message that says
# what it is, and where in the user's Python it came from when there is a line to name.
set -u
autosp=$1 models=$2/tests/fixtures/bad
failed=0

# refuse NAME TEXT...: the message must hold each TEXT. LENGTH is the sequence's.
refuse() {
    local name=$1 message status text
    shift
    message=$("$autosp" check "$models/$name.pt2" --ranks 1 --seq "${LENGTH:-8}" 2>&1 >/dev/null)
    status=$?
    if [ $status != 1 ]; then
        echo "$name: exit status $status, not 1: $message"
        failed=1
    fi
    if [ "$(printf '%s\n' "$message" | wc -l)" != 1 ]; then
        echo "$name: not one message: $message"
        failed=1
    fi
    for text in "$@"; do
        case $message in
        *"$text"*) ;;
        *)
            echo "$name: the message lacks '$text': $message"
            failed=1
            ;;
        esac
    done
}

refuse dropout "dropout" "0.1" "make_bad.py:36"
refuse unsupported-ops "aten.fft_rfft.default" "aten.linalg_qr.default" "aten.special_bessel_j0.default" "make_bad.py:36"
refuse two-outputs "2 values" "loss"
refuse vector-loss "rank 1" "loss"
refuse buffer-mutation "b_mean" "in place"
refuse cond "higher_order.cond"
refuse experts "aten.topk.default" "make_bad.py:36"
LENGTH=129 refuse ../gpt2 "129 tokens" "positions has 128"
exit $failed
