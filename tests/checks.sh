# shellcheck shell=sh disable=SC2034  # variables for the tests
# checks.sh: what the shell tests share; each reads it first, in the project's root. Takes the program from the test's
# argument to $easel, makes a folder $dir that goes at the test's end, however that comes, and counts into passed and
# failed. Each check prints "ok NAME", "FAIL NAME: why" or "SKIPPED NAME: why"; the last line is "TEST: N passed, N failed".
test=${0##*/}
test=${test%.sh}
easel=${1:?usage: sh tests/$test.sh build/easel}
tiny=tests/fixtures/tiny.gguf
passed=0 failed=0

ok() { passed=$((passed + 1)); echo "ok $1"; }
bad() { failed=$((failed + 1)); echo "FAIL $1: $2"; }
skip() { echo "SKIPPED $1: $2"; }
end() {  # the last line, and the test's exit code
    echo "$test: $passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}
if [ ! -x "$easel" ]; then
    bad "$test" "no program $easel"
    end
fi
dir=$(mktemp -d) || exit 1
at_end() { :; }  # for tests that have more to clear up
trap 'at_end; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

check() {  # check NAME TEST-ARGUMENTS...
    name=$1
    shift
    if [ "$@" ]; then ok "$name"; else bad "$name" "expected $*"; fi
}
same() {  # same NAME FILE FILE
    if cmp -s "$2" "$3"; then ok "$1"; else bad "$1" "$(cmp "$2" "$3" 2>&1 | head -n 1)"; fi
}
has() {  # has NAME TEXT FILE
    if grep -qF -e "$2" "$3"; then ok "$1"; else bad "$1" "no '$2' in: $(head -c 300 "$3")"; fi
}
wait_for() {  # wait_for COMMAND...: until it is true, a minute at most
    for _ in $(seq 1200); do
        if "$@" 2>/dev/null; then return 0; fi
        sleep 0.05
    done
    return 1
}
now_ms() { echo $(($(date +%s%N) / 1000000)); }
interrupt() {  # interrupt PID: Ctrl-C; its exit code to $status, the milliseconds that it took to $took
    began=$(now_ms)
    kill -INT "$1"
    wait "$1"
    status=$?
    took=$(($(now_ms) - began))
}
catches_int() { grep -q '^SigCgt:.*[2367abef]$' "/proc/$1/status"; }  # catches_int PID: Ctrl-C does not just end it
n_lines() { [ "$(wc -l <"$1")" -ge "$2" ]; }  # n_lines FILE N: it has N at least

# A command that hangs is a failure (124), not a stop. `timeout` is not in POSIX; in the
# foreground it stays in the tests' process group, and ends with them.
if timeout --foreground 1 true 2>/dev/null; then limit="timeout --foreground 120"; else limit=""; fi
run() { $limit "$easel" "$@" </dev/null >"$dir/out" 2>"$dir/err"; }  # run ARGUMENTS...: its exit code
works() {  # works NAME ARGUMENTS...: exit 0
    name=$1
    shift
    run "$@"
    status=$?
    if [ $status -eq 0 ]; then ok "$name"; else bad "$name" "exit $status: $(tail -n 1 "$dir/err")"; fi
}
error() {  # error NAME TEXT ARGUMENTS...: exit 1, nothing on stdout, one line on stderr that contains TEXT
    name=$1 text=$2
    shift 2
    run "$@"
    status=$?
    lines=$(wc -l <"$dir/err")
    if [ $status -ne 1 ]; then bad "$name" "exit $status, expected 1"
    elif [ -s "$dir/out" ]; then bad "$name" "something on stdout"
    elif [ "$lines" -ne 1 ]; then bad "$name" "$lines lines on stderr, expected 1"
    elif ! grep -q '^easel: ' "$dir/err"; then bad "$name" "stderr does not begin with 'easel: '"
    elif ! grep -qF -e "$text" "$dir/err"; then bad "$name" "no '$text' in: $(cat "$dir/err")"
    else ok "$name"; fi
}
