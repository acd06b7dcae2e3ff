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

refuse unsupported-ops "aten.fft_rfft.default" "aten.linalg_qr.default" "aten.special_bessel_j0.default" "make_bad.py:36"
refuse two-outputs "2 values" "loss"
refuse vector-loss "rank 1" "loss"
refuse buffer-mutation "b_mean" "in place"
refuse cond "higher_order.cond" "torch.where" "make_bad.py:36"
refuse experts "aten.topk.default" "routed experts" "make_bad.py:36"
refuse loop "higher_order.while_loop" "fixed number of turns" "make_bad.py:36"
refuse selected "aten.masked_select.default" "depend on data" "make_bad.py:36"
refuse kernel "mine.fused_scale.default" "plain PyTorch code" "make_bad.py:36"
refuse triton-kernel "higher_order.triton_kernel_wrapper_mutation" "a Triton kernel" "PyTorch version" "make_bad.py:36"
refuse triton-op "mine.triton_scale.default" "custom or Triton kernel" "plain PyTorch code" "make_bad.py:36"
refuse writes-into "mine.fill_scaled.default" "custom or Triton kernel" "make_bad.py:36" # has no result, writes into a tensor
refuse out-argument "aten.mul.out" "make_bad.py:36"
refuse hidden-write "aten.mul_.Tensor" "in place" "make_bad.py:36"
refuse complex "aten.exp.default" "rotary embeddings" "make_bad.py:36"
refuse quantised "aten._weight_int8pack_mm.default" "float32 or bfloat16" "make_bad.py:36"
# A mask that is numbers is kept while it is small (check compares two ranks with one), refused when it is not.
LENGTH=9000 refuse data-mask "[1, 1, 9000, 9000] of bool" "77 MiB" "make_bad.py:36" "mask.bytes"
"$autosp" check "$models/data-mask.pt2" --ranks 3 --seq 50 >/dev/null || failed=1
LENGTH=129 refuse ../gpt2 "129 tokens" "positions has 128"
exit $failed
