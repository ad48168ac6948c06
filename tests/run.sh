#!/bin/sh
# run.sh [TARGET...]: builds the program and runs every test; each extra make target (format-check, asan) counts as one.
# The last line is the total: N passed, N failed, N skipped.
set -u
build=${BUILD:-build}
jobs=$(nproc 2>/dev/null || echo 2)
passed=0 failed=0 skipped=0
mkdir -p "$build"

pass() { passed=$((passed + ${2:-1})); echo "ok $1"; }
fail() { failed=$((failed + ${2:-1})); echo "FAIL $1"; }
skip() { skipped=$((skipped + 1)); echo "SKIPPED $1"; }

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

# Without a GPU, code for one cannot run: the tests use a program for the CPU. `make cuda-build` checks that nvcc
# takes everything.
easel=$build/easel cpu_only=
if ! nvidia-smi -L >/dev/null 2>&1; then
    easel=$build/test/easel cpu_only=NVCC=
fi
if ! ${MAKE:-make} -j"$jobs" EASEL="$easel" $cpu_only "$easel" "$build/unit"; then
    fail "the build"
    finish
fi

# One of the tests leaves figures as a GPU's there, for bench.sh.
export EASEL_BENCH_JSON="$build/bench.json"
# Catch2 counts test cases; its closing line is one of two forms.
"$build/unit" >"$build/unit.log" 2>&1
status=$?
tail -n 40 "$build/unit.log"
n=$(sed -n 's/.* in \([0-9]*\) test cases*)$/\1/p; s/^test cases:.*| *\([0-9]*\) passed.*/\1/p' "$build/unit.log" | tail -n 1)
bad=$(sed -n 's/^test cases:.*| *\([0-9]*\) failed.*/\1/p' "$build/unit.log" | tail -n 1)
if [ "$status" -eq 0 ]; then
    pass "unit tests" "${n:-0}"
else
    passed=$((passed + ${n:-0}))
    fail "unit tests (exit $status)" "${bad:-1}"
fi

# script NAME: tests/NAME.sh drives the program and closes with "NAME: N passed, N failed".
script() {
    sh "tests/$1.sh" "$easel" >"$build/$1.log" 2>&1
    status=$?
    grep -v '^ok ' "$build/$1.log"
    n=$(sed -n "s/^$1: \([0-9]*\) passed.*/\1/p" "$build/$1.log")
    bad=$(sed -n "s/^$1: .* \([0-9]*\) failed.*/\1/p" "$build/$1.log")
    pass "$1.sh" "${n:-0}"
    skipped=$((skipped + $(grep -c '^SKIPPED' "$build/$1.log")))
    if [ "$status" -ne 0 ]; then fail "$1.sh" "${bad:-1}"; fi
}
script cli
script fetch
script pipe
script memory
script trace
script install
script spark
script chat
script view
script bench

for target in "$@"; do
    if ${MAKE:-make} -j"$jobs" "$target" >"$build/$target.log" 2>&1; then
        if grep -q '^SKIPPED' "$build/$target.log"; then skip "$(grep '^SKIPPED' "$build/$target.log" | cut -c9-)"
        else pass "$target"; fi
    else
        tail -n 40 "$build/$target.log"
        fail "$target"
    fi
done
finish
