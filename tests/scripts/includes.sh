#!/bin/bash
# Includes go one way (docs/architecture.md). The table says what each folder of src/ may include.
set -u
src=${2:?usage: includes.sh PROGRAM SOURCE_DIR}/src

declare -A may=(
    [base]="base"
    [ir]="base ir"
    [import]="base ir import"
    [comm]="base comm"
    [gen]="base ir device gen"        # of device only tensor.h, what a kernel will see
    [device]="base ir comm gen device"
    [cost]="base ir cost"
    [plan]="base ir cost gen device plan" # of device only tensor.h
    [pass]="base ir cost plan pass"
    [exec]="base ir plan comm device exec"
    [train]="base ir import cost plan pass comm device exec train"
    [api]="base ir import cost plan pass comm device exec train api"
    [cli]="base ir import cost plan pass comm device exec train cli"
)
bad=0
complain() { echo "$*"; bad=1; }

for dir in "$src"/*/; do
    folder=$(basename "$dir")
    [ -n "${may[$folder]:-}" ] || { complain "src/$folder: a new folder; say in $0 what it may include"; continue; }
    while IFS=: read -r file line text; do
        header=$(sed 's/.*"\(.*\)".*/\1/' <<<"$text")
        where=${file#"$src"/}:$line
        case $header in
        gen_text.h) ;; # made by CMake
        autosp.h) [ "$folder" = api ] || complain "$where: src/$folder must not include the public autosp.h" ;;
        */*) case " ${may[$folder]} " in
            *" ${header%%/*} "*) [ -f "$src/$header" ] || complain "$where: there is no src/$header" ;;
            *) complain "$where: src/$folder must not include \"$header\" (it may include: ${may[$folder]})" ;;
            esac ;;
        *) complain "$where: write \"$header\" relative to src/" ;;
        esac
    done < <(grep -rnE --include='*.[ch]' --include='*.def' '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$dir")
done
exit $bad
