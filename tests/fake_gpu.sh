#!/bin/sh
# fake_gpu.sh UNIT [short]: the GPU tests without a GPU (make test-fake-gpu), the kernels from $EASEL_PTX; short:
# what the host does with streams, copies and graphs, by three seeds, and with a driver that refuses the loop's
# graph. The seed is $EASEL_FAKE_GPU_SEED, or 0. What is not done after 15 minutes, all tests after an hour, is a
# failure.
set -u
unit=$1 part=${2:-all}
seed=${EASEL_FAKE_GPU_SEED:-0}
if [ "$part" = short ]; then minutes=15; else minutes=60; fi
end=$(($(date +%s) + 60 * minutes))
# `timeout` is not in POSIX; in the foreground it stays in this process group, and Ctrl-C reaches the tests.
if timeout --foreground 1 true 2>/dev/null; then limit="timeout --foreground -k 10"; else limit=""; fi
child=
trap 'kill -TERM $child 2>/dev/null; wait; exit 143' INT TERM

failed=0
tests() {  # tests SEED REFUSED CASES: REFUSED is what the driver refuses of graphs, or nothing
    left=$((end - $(date +%s)))
    if [ $left -lt 1 ]; then left=1; fi
    export EASEL_FAKE_GPU_SEED="$1"
    if [ -n "$2" ]; then export EASEL_FAKE_GPU_REFUSES="$2"; else unset EASEL_FAKE_GPU_REFUSES; fi
    # shellcheck disable=SC2086
    ${limit:+$limit $left} "$unit" "$3" -d yes &
    child=$!
    wait $child
    status=$?
    what="\"$3\", seed $1${2:+, the driver refuses \"$2\"}"
    case $status in
        0) ;;
        124|137) echo "FAIL $what: not done $minutes minutes after the first test began"; exit 1 ;;
        *) echo "FAIL $what: exit $status"; failed=1 ;;
    esac
}

if [ "$part" = short ]; then
    tests "$seed" "" 'cudart:*,a graph loops*,cancelling*,memory: a backend*,memory: loading*'
    for more in 1 2; do tests $((seed + more)) "" 'cudart:*'; done
    for call in conditional instantiate launch overlap; do tests "$seed" $call 'cudart: an answer*'; done
else
    tests "$seed" "" '~[slow]'
fi
exit $failed
