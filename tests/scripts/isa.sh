#!/bin/bash
# A program that was built for wider vectors than the processor has says so, instead of dying of an illegal instruction.
# The older processor is qemu's.
set -u
autosp=$1 model=$2/tests/fixtures/llama.pt2
command -v qemu-x86_64 >/dev/null || { echo "qemu-user is not installed: skipped"; exit 77; }
grep -q '^AUTOSP_SANITIZE:STRING=.' "$(dirname "$autosp")/CMakeCache.txt" && exit 77 # qemu cannot map their shadow memory
grep -qw avx2 /proc/cpuinfo && grep -q '^AUTOSP_NATIVE:BOOL=ON' "$(dirname "$autosp")/CMakeCache.txt" ||
    { echo "not built for AVX2: skipped"; exit 77; }
message=$(qemu-x86_64 -cpu Nehalem "$autosp" plan "$model" --seq 16 2>&1)
status=$?
[ $status = 1 ] && grep -q 'built for a processor with avx2.*AUTOSP_NATIVE=OFF' <<<"$message" && exit 0
echo "exit $status: $message"
exit 1
