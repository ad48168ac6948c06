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

# ---- Two lanes of tests beside each other: most of the scripts wait more than they compute

# lane NAME...: the unit tests or tests/NAME.sh, one after the other; the output to NAME.log, then the exit code to
# NAME.status. Each is a process group, where there is setsid: what it has begun ends with it.
group=$(command -v setsid)
lane() {
    test=
    trap 'kill -TERM "${group:+-}$test" 2>/dev/null; wait; exit' TERM
    for name; do
        if [ "$name" = unit ]; then set -- "$build/unit"; else set -- sh "tests/$name.sh" "$easel"; fi
        $group "$@" >"$build/$name.log" 2>&1 &
        test=$!
        wait $test
        echo $? >"$build/$name.status"
    done
}
await() {  # await NAME: until that test is over; its exit code to $status
    until [ -s "$build/$1.status" ]; do sleep 0.2; done
    status=$(cat "$build/$1.status")
}
# Catch2 counts test cases; its closing line is one of two forms.
report_unit() {
    await unit
    tail -n 40 "$build/unit.log"
    n=$(sed -n 's/.* in \([0-9]*\) test cases*)$/\1/p; s/^test cases:.*| *\([0-9]*\) passed.*/\1/p' "$build/unit.log" | tail -n 1)
    bad=$(sed -n 's/^test cases:.*| *\([0-9]*\) failed.*/\1/p' "$build/unit.log" | tail -n 1)
    if [ "$status" -eq 0 ]; then
        pass "unit tests" "${n:-0}"
    else
        passed=$((passed + ${n:-0}))
        fail "unit tests (exit $status)" "${bad:-1}"
    fi
}
# report NAME: tests/NAME.sh drives the program and closes with "NAME: N passed, N failed".
report() {
    await "$1"
    grep -v '^ok ' "$build/$1.log"
    n=$(sed -n "s/^$1: \([0-9]*\) passed.*/\1/p" "$build/$1.log")
    bad=$(sed -n "s/^$1: .* \([0-9]*\) failed.*/\1/p" "$build/$1.log")
    pass "$1.sh" "${n:-0}"
    skipped=$((skipped + $(grep -c '^SKIPPED' "$build/$1.log")))
    if [ "$status" -ne 0 ]; then fail "$1.sh" "${bad:-1}"; fi
}

# One of the unit tests leaves figures as a GPU's there, for bench.sh.
export EASEL_BENCH_JSON="$build/bench.json"
one="unit bench" other="chat view cli fetch pipe memory trace install spark" lanes=
for name in $one $other; do rm -f "$build/$name.status"; done
trap 'kill -TERM $lanes 2>/dev/null; wait; exit 130' INT TERM
# shellcheck disable=SC2086
{
    lane $one &
    lanes=$!
    lane $other &
    lanes="$lanes $!"
}
report_unit
for name in bench $other; do report "$name"; done
wait
trap - INT TERM

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
