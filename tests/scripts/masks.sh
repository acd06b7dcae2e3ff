#!/bin/bash
# Masks that are descriptions take no memory of the order of queries times keys: tests/ir/attention.ir has a prefix that all
# see, causal attention written out and dropout of weights; at 131072 tokens one S x S value would be 16 GiB.
set -u
autosp=$1 source=$2
peak=$("$autosp" plan "$source/tests/ir/attention.ir" --seq 131072 --ranks 8 --json | sed 's/.*"peak_bytes": \([0-9]*\).*/\1/')
if ! [ "$peak" -lt 104857600 ]; then
    echo "the peak is $peak bytes a rank, not below 100 MiB"
    exit 1
fi
# A model of which a mask is data plans at that length only where it is allowed to.
if "$autosp" plan "$source/tests/fixtures/bad/data-mask.pt2" --seq 131072 --batch 1 >/dev/null 2>&1; then
    echo "a mask of 16 GiB was accepted"
    exit 1
fi
"$autosp" plan "$source/tests/fixtures/bad/data-mask.pt2" --seq 16384 --batch 1 --set mask.bytes=1GiB >/dev/null || exit 1
