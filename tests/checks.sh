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

# A command that hangs is a failure (124), not a stop. `timeout` is not in POSIX.
if command -v timeout >/dev/null; then limit="timeout 120"; else limit=""; fi
