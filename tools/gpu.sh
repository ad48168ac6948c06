#!/bin/sh
# gpu.sh [BENCH-FLAGS]: what to run first on a machine with a GPU: builds for it, tests the kernels and the loop, compares
# answers with the CPU's, and measures all that the README and bench/results want. It leaves there, named after the GPU:
#   NAME.json, NAME.svg    `easel bench all`: a step and its floors, kernels, prompts, loading; and its picture
#   NAME-skew.json         a step whose tokens prefer some experts
#   NAME-32k.json          a step after a prompt of 32768 tokens
#   NAME-mma-sync.json     on compute capability 9.0: a step by a program without wgmma (make WGMMA=0)
#   NAME-float-sums.json   on 8.6, 8.9 and 12.0: one by a program whose products add in float32 alone (make HALF_SUMS=0)
#   NAME-peer.json         transformers' own class at the same shapes; $PYTHON (default: python3) must have torch with CUDA,
#                          transformers (tools/requirements.txt)
# Prints "FAIL NAME" for whatever went wrong, and then exits with 1.
set -u
cd "$(dirname "$0")/.." || exit 1
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)
if [ -z "$gpu" ]; then
    echo "FAIL there is no NVIDIA GPU, or no driver"
    exit 1
fi
status=0
fail() {
    echo "FAIL $1"
    status=1
}
# same FLAGS FLAGS: both answer $prompt, with the same ids.
same() {
    first=
    for flags; do
        # shellcheck disable=SC2086
        line=$(build/easel generate -p "$prompt" --device $flags 2>&1 >/dev/null | tail -n 1)
        printf '%-18s %s\n' "$flags" "$line"
        hash=$(echo "$line" | sed -n 's/.* | hash \([0-9a-f]*\)$/\1/p')
        if [ -z "$hash" ] || [ "${first:=$hash}" != "$hash" ]; then fail "$1 and $2 answer alike: $prompt"; fi
    done
}
echo "== $gpu, commit $(git describe --always --dirty 2>/dev/null)"
make -j"$(nproc)" ARCH=native build/easel || { fail "the build"; exit 1; }
# What there is only on this architecture, and where a program is built without it.
case $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) in
9.0) own=WGMMA without=mma-sync ;;
8.6 | 8.9 | 12.*) own=HALF_SUMS without=float-sums ;;
*) own= ;;
esac
make_without() {
    make -j"$(nproc)" ARCH=native $own=0 BUILD="build/$without" "$@"
}
if ! make -j"$(nproc)" ARCH=native test-gpu; then
    fail test-gpu
    if [ -n "$own" ]; then make_without test-gpu && echo "with $own=0, test-gpu passes"; fi
fi
for prompt in 'What is 47 + 35?' 'Sort 52, 17, 31' 'Make JSON: Ann is 31 years old and lives in Oslo.'; do
    same cpu "cuda --exact"
    same cuda "cuda --host-loop"
    same cuda "cuda --in-order"
done
mkdir -p bench/results
name=bench/results/$(echo "$gpu" | sed 's/,.*//; s/[^A-Za-z0-9]\{1,\}/-/g; s/-$//' | tr '[:upper:]' '[:lower:]')
if build/easel bench all --json "$name.json" "$@" && python3 tools/plot_bench.py "$name.json" -o "$name.svg"; then
    echo "wrote $name.json, $name.svg"
    if grep -q overlap_refused "$name.json"; then fail "launches that overlap, in a graph"; fi
else
    fail "bench all"
fi
build/easel bench step --router-skew 1 --json "$name-skew.json" || fail "bench step --router-skew 1"
build/easel bench step --prefix 32768 --json "$name-32k.json" || fail "bench step --prefix 32768"
if [ -n "$own" ] && make_without "build/$without/easel"; then
    "build/$without/easel" bench step --json "$name-$without.json" || fail "bench step with $own=0"
fi
build/easel bench load || fail "bench load"
python=${PYTHON:-python3}
if "$python" -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
    "$python" tools/peers/transformers_step.py --json "$name-peer.json" || fail transformers_step.py
else
    echo "SKIPPED transformers_step.py: $python has no torch with CUDA and transformers"
fi
exit $status
