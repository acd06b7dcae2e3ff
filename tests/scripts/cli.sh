#!/bin/bash
# The command line as a shell sees it: exit statuses, where messages go, suggestions.
# usage: cli.sh AUTOSP SOURCE_DIR
set -u
autosp=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

# expect STATUS STREAM TEXT ARGS...: the exit status, and a text on stdout or stderr.
expect() {
    local status=$1 stream=$2 text=$3
    shift 3
    "$autosp" "$@" >"$dir/stdout" 2>"$dir/stderr" </dev/null
    local got=$?
    if [ $got -ne "$status" ] || ! grep -qF -- "$text" "$dir/$stream"; then
        echo "autosp $*: exit $got (want $status), want '$text' on $stream; got:"
        cat "$dir/stdout" "$dir/stderr"
        failed=1
    fi
}

expect 2 stderr "usage: autosp"
expect 0 stdout "usage: autosp" --help
expect 0 stdout "usage: autosp" help
expect 0 stdout "autosp 0." version
expect 0 stdout "autosp 0." --version
expect 2 stderr "takes no arguments" version now
expect 2 stderr "did you mean version?" versoin
expect 2 stderr "no command 'fly'" fly
for command in $("$autosp" --help | sed -n 's/^  autosp \([a-z]*\) .*/\1/p'); do
    expect 0 stdout "usage: autosp $command" "$command" --help
done
if [ -e /dev/full ] && "$autosp" version >/dev/full 2>"$dir/stderr"; then
    echo "a result that cannot be written must not end with 0"
    failed=1
fi
exit $failed
