#!/bin/bash
# The instructions of AMX are in amx.c's object and nowhere else in the library, as only what that file guards may meet them.
# usage: amx.sh AUTOSP SOURCE_DIR
set -u
build=$(dirname "$1")
command -v objdump >/dev/null || { echo "objdump is not installed: skipped"; exit 77; }
[ -f "$build/libautosp.a" ] || { echo "the library is not beside the program: skipped"; exit 77; }
found=$(objdump -d --no-show-raw-insn "$build/libautosp.a" | awk '
    /file format/ { object = $1 }
    /[[:space:]](ldtilecfg|sttilecfg|tile[a-z0-9]+|tdp[a-z0-9]+)([[:space:]]|$)/ || /%tmm[0-7]/ { n[object]++ }
    END { for (o in n) print o, n[o] }')
echo "${found:-none}"
others=$(grep -v '^amx\.c\.o:* ' <<<"$found")
[ -z "$others" ] || { echo "tile instructions outside of amx.c"; exit 1; }
# Not empty either, where the kernels' flags and the assembler allow it.
if grep -q '^AUTOSP_HAVE_AMX:INTERNAL=1' "$build/CMakeCache.txt" && grep -q '^AUTOSP_NATIVE:BOOL=ON' "$build/CMakeCache.txt" &&
    grep -qw avx512_bf16 /proc/cpuinfo; then
    grep -q '^amx\.c\.o' <<<"$found" || { echo "there are none in amx.c"; exit 1; }
fi
exit 0
