#!/bin/bash
# A stock PEFT LoRA export (tests/fixtures/peft-lora.pt2): only what the adapter trains has gradients and optimizer state.
# Adapters of rank 4 on q, k, v, o of two layers (32 to 32, 16, 16, 32) and a head of 256 x 32 trained whole.
set -u
autosp=$1 source=$2
trained=$((2 * 4 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32) + 256 * 32))
parts=$("$autosp" plan "$source/tests/fixtures/peft-lora.pt2" --seq 32 --json | grep -o '"parts".*')
for want in "\"gradients\": $((4 * trained))," "\"optimizer\": $((8 * trained)),"; do
    case $parts in
    *"$want"*) ;;
    *)
        echo "the plan lacks '$want': $parts"
        exit 1
        ;;
    esac
done
