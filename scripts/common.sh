# common.sh - what the scripts share; sourced, never run. Leaves the shell in the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
jobs=$(nproc)

# Open MPI refuses root unless told so twice; a container's only user is root.
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

say() { printf '== %s\n' "$*"; }

# build PRESET: configures and builds; quiet unless something is wrong.
build() {
    local log
    log=$(mktemp) || return 1
    say "building (preset $1, $jobs jobs)"
    if ! { cmake --preset "$1" && cmake --build --preset "$1" -j "$jobs"; } >"$log" 2>&1; then
        tail -n 60 "$log"
        say "the build failed; its last lines are above"
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# run_ctest PRESET BUILD_DIR [CTEST_OPTION...]: runs every test, or those that the options choose, and sets passed,
# failed and skipped. The build must exist.
run_ctest() {
    local junit=$2/junit.xml suite
    passed=0 failed=0 skipped=0
    rm -f "$junit"
    say "testing (preset $1)"
    # Two at a time at most: many tests run several ranks as threads of one process.
    ctest --preset "$1" -j "$((jobs < 2 ? 1 : 2))" --timeout 600 --output-junit junit.xml "${@:3}"
    suite=$(sed -n '/<testsuite /,/>/p' "$junit" 2>/dev/null | tr '\n' ' ')
    field() { sed -n "s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" <<<"$suite"; }
    local tests failures disabled
    tests=$(field tests) failures=$(field failures) disabled=$(field disabled) skipped=$(field skipped)
    if [ -z "$tests" ] || [ "$tests" = 0 ]; then
        say "ctest ran nothing"
        failed=1 skipped=0
        return
    fi
    failed=$failures
    skipped=$((skipped + disabled))
    passed=$((tests - failed - skipped))
}

# closing PASSED FAILED SKIPPED: the one line that ends a test run.
closing() {
    printf '%d passed, %d failed' "$1" "$2"
    if [ "$3" != 0 ]; then printf ', %d skipped' "$3"; fi
    printf '\n'
}
