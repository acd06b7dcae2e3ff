#!/bin/bash
# Every C file is as .clang-format has it. Skipped where clang-format is missing or another major version.
set -u
version=$(clang-format --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p')
[ "$version" = 14 ] || { echo "clang-format 14 is not installed (found: ${version:-none}): skipped"; exit 77; }
"${2:?usage: format.sh PROGRAM SOURCE_DIR}/scripts/format" check || { echo "run scripts/format"; exit 1; }
