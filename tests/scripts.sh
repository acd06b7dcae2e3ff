# scripts.sh - what the tests of the command line share; tests/scripts/*.sh source it with their own two arguments: the
# program and the source folder. Gives autosp, source, model, text, a folder `dir` that goes at the end, and `failed`.
autosp=$1
source=$2
model=$source/tests/fixtures/llama.pt2
text=$source/examples/tiny-text/train.txt
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failed=0

# complain TEXT...: one failure, with what the last command said on stderr.
complain() {
    echo "$*"
    [ -s "$dir/stderr" ] && cat "$dir/stderr"
    failed=1
}

# refused STATUS TEXT ARGS...: the program ends with that status and says that text on stderr.
refused() {
    local status=$1 want=$2 got
    shift 2
    timeout 120 "$autosp" "$@" >"$dir/stdout" 2>"$dir/stderr" </dev/null
    got=$?
    if [ $got -ne "$status" ] || ! grep -qF -- "$want" "$dir/stderr"; then
        complain "autosp $*: exit $got (want $status), want '$want'; got:"
    fi
}

# field FILE STEP NAME: the value in the metrics line of a step.
field() { sed -n "s/^{\"step\": $2, .*\"$3\": \([^,}]*\).*/\1/p" "$1"; }
