#!/bin/sh
# fuzz.sh TARGET SECONDS: runs one libFuzzer target (build/fuzz/fuzz_NAME) for a while. It starts from the files of
# tests/fixtures/broken (for gguf) and of what it found in earlier runs (build/fuzz/NAME.corpus). Fails on a crash,
# a hang or too much memory, and then says which file shows it. Run from the project's root.
set -u
if [ $# -ne 2 ]; then
    echo "usage: sh tests/fuzz.sh build/fuzz/fuzz_NAME SECONDS" >&2
    exit 2
fi
target=$1
seconds=$2
name=${target##*/fuzz_}
work=${target%/*}
if [ ! -x "$target" ]; then
    echo "fuzz $name: $target is missing; make fuzz builds it (clang++ is needed)" >&2
    exit 2
fi
mkdir -p "$work/$name.corpus" "$work/$name.crashes"
seeds=""
case $name in
gguf) seeds=tests/fixtures/broken ;;
esac

log=$work/$name.log
# -rss_limit_mb and -malloc_limit_mb: a small file must not make the reader ask for much memory.
# shellcheck disable=SC2086
"$target" "$work/$name.corpus" $seeds -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -malloc_limit_mb=512 -max_len=8192 -print_final_stats=1 -artifact_prefix="$work/$name.crashes/" >"$log" 2>&1
status=$?
stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -n 1; }
covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
summary="$(stat number_of_executed_units) inputs in $seconds s, ${covered:-cov: ?}, $(stat peak_rss_mb) MB"
if [ $status -ne 0 ]; then
    grep -E '^SUMMARY|ERROR: ' "$log" | head -n 3 >&2
    shown=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    echo "fuzz $name: FAILED ($summary); shown by ${shown:-nothing}, see $log" >&2
    exit 1
fi
echo "fuzz $name: ok, $summary"
