#!/bin/bash
# mpi.sh PROGRAM SOURCE_DIR: runs tests/comm/mpi.c with 2 and 4 ranks. Exit 77 (skipped) without an MPI launcher.
program=$1 mpirun=$2/scripts/mpirun
command -v "${MPIEXEC:-mpirun}" >/dev/null || { echo "skipped: no ${MPIEXEC:-mpirun} on this machine"; exit 77; }
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
fail() { echo "FAILED: $*"; cat "$out"; exit 1; }

for p in 2 4; do
    timeout 60 "$mpirun" -n $p "$program" body >"$out" 2>&1 || fail "body on $p ranks"
    grep -qx ok "$out" || fail "body on $p ranks printed no ok"
    # The same numbers as loop, to the last bit.
    loop=$("$program" hash $p) || fail "hash on $p loop ranks"
    timeout 60 "$mpirun" -n $p "$program" hash >"$out" 2>&1 || fail "hash on $p ranks"
    grep -qx "$loop" "$out" || fail "all_reduce on $p ranks: loop has $loop"
done
# Messages in many pieces, as past INT_MAX, and every call compared between ranks.
AUTOSP_MPI_PIECE=1000 AUTOSP_COMM_CHECK=1 timeout 60 "$mpirun" -n 3 "$program" body >"$out" 2>&1 || fail "pieces"

# A job that loses a rank ends, soon, with a failure and a reason.
ends() { # ends MODE PATTERN
    start=$(date +%s)
    timeout 30 "$mpirun" -n 4 "$program" "$1" >"$out" 2>&1
    rc=$?
    [ $rc -ne 0 ] || fail "$1: exit status 0"
    [ $rc -ne 124 ] || fail "$1: hung"
    [ $(($(date +%s) - start)) -lt 15 ] || fail "$1: took too long to end"
    grep -Eq "$2" "$out" || fail "$1: no '$2'"
}
ends abort 'rank 1 failed: disk 7 is full'
ends kill 'rank 1 .*signal 9|Killed \(signal 9\)'
ends truncate 'rank [123] failed: after an earlier failure: rank [123] called broadcast of 10 bytes from rank 0: MPI failed: .*trunc'
export AUTOSP_COMM_CHECK=1
different='the ranks of one communicator made different calls: rank 1 called all_gather of 8 bytes, rank 0'
ends mismatch "$different"
for r in 0 1 2 3; do
    grep -q "rank $r heard: $different" "$out" || fail "mismatch: rank $r was not told"
done
echo ok
