# checks.sh: what the shell tests share; read by each of them. Counts into passed and failed.
passed=0 failed=0

ok() { passed=$((passed + 1)); echo "ok $1"; }
bad() { failed=$((failed + 1)); echo "FAIL $1: $2"; }
skip() { echo "SKIPPED $1: $2"; }
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
catches_int() { grep -q '^SigCgt:.*[2367abef]$' "/proc/$1/status"; }  # catches_int PID: Ctrl-C does not just end it
n_lines() { [ "$(wc -l <"$1")" -ge "$2" ]; }  # n_lines FILE N: it has N at least

# A command that hangs is a failure (124), not a stop. `timeout` is not in POSIX; in the
# foreground it stays in the tests' process group, and ends with them.
if timeout --foreground 1 true 2>/dev/null; then limit="timeout --foreground 120"; else limit=""; fi
