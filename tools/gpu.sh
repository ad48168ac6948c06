#!/bin/sh
# gpu.sh [STAGE...]: what to run first on a machine with a GPU. All stages in this order, or those that are named:
#   build      the program and its tests, for this GPU alone; always made
#   test       the kernel and loop tests
#   same       answers compared with the CPU's, and of every way to launch them
#   step       NAME-step.json: a step and its floors
#   all        NAME.json, NAME.svg: `easel bench all`: a step and its floors, kernels, prompts, loading; and its picture
#   without    a step by a program without what only this architecture has: NAME-mma-sync.json on compute capability 9.0
#              (make WGMMA=0), NAME-float-sums.json on 8.6, 8.9 and 12.0 (make HALF_SUMS=0); its tests where test failed
#   skew       NAME-skew.json: a step whose tokens prefer some experts
#   prefix     NAME-32k.json: a step after a prompt of 32768 tokens
#   offload    steps with the experts of 9 layers in the host's memory, whole answers as graphs and launched by the host
#   peer       NAME-peer.json: transformers' own class at the same shapes; $PYTHON (default: python3) must have torch with
#              CUDA and transformers (tools/requirements.txt)
#   sanitize   the tests under compute-sanitizer, which takes longest
# Files go to $RESULTS (default: bench/results), named after the GPU; of several, the first by PCI bus. No stage takes longer
# than $LIMIT seconds (default: 600). Prints "FAIL WHAT" for whatever went wrong, and then exits with 1.
set -u
export CUDA_DEVICE_ORDER=PCI_BUS_ID
cd "$(dirname "$0")/.." || exit 1
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)
if [ -z "$gpu" ]; then
    echo "FAIL there is no NVIDIA GPU, or no driver"
    exit 1
fi
stages=${*:-test same step all without skew prefix offload peer sanitize}
limit=${LIMIT:-600}
results=${RESULTS:-bench/results}
mkdir -p "$results" || exit 1
name=$results/$(echo "$gpu" | sed 's/,.*//; s/[^A-Za-z0-9]\{1,\}/-/g; s/-$//' | tr '[:upper:]' '[:lower:]')
easel=build/easel
status=0
fail() {
    echo "FAIL $1"
    status=1
}
# limited COMMAND...: it must end within $limit seconds.
limited() {
    timeout -k 10 "$limit" "$@"
    code=$?
    if [ $code -ge 124 ]; then echo "it took longer than $limit s, or was killed (exit status $code)"; fi
    return $code
}
# bench SUFFIX FLAGS...: `easel bench FLAGS`, its figures in $name$suffix.json.
bench() {
    suffix=$1
    shift
    limited $easel bench "$@" --json "$name$suffix.json" || fail "bench $* ($suffix)"
}
# same FLAGS FLAGS: both answer $prompt, with the same ids.
same() {
    first=
    for flags; do
        # shellcheck disable=SC2086
        line=$(limited build/easel generate -p "$prompt" --device $flags 2>&1 >/dev/null)
        printf '%-18s %s\n' "$flags" "$line"
        hash=$(echo "$line" | sed -n 's/.* | hash \([0-9a-f]*\)$/\1/p')
        if [ -z "$hash" ] || [ "${first:=$hash}" != "$hash" ]; then fail "$1 and $2 answer alike: $prompt"; fi
        case $line in *"cannot be created"*) fail "the graph of an answer ($flags)" ;; esac
    done
}
make_it() {
    make -j"$(nproc)" ARCH=native "$@"
}

echo "== $gpu, commit $(git describe --always --dirty 2>/dev/null)"
if ! make_it build/easel; then
    fail "the build"
    exit 1
fi
# A first answer, within two minutes. If there is none: which of what no test without a GPU has shown is to blame, launches
# that overlap, the graph of a whole answer or the tensor cores?
longest=$limit
if [ "$limit" -gt 120 ]; then limit=120; fi
answers() {
    limited build/easel generate -p "What is 47 + 35?" --device cuda "$@"
}
if ! answers; then
    for flags in --in-order --host-loop "--host-loop --in-order" --exact; do
        # shellcheck disable=SC2086
        if answers $flags; then echo "with $flags there is an answer"; else echo "with $flags there is none"; fi
    done
    fail "an answer by this program on this GPU: nothing else is tried"
    exit 1
fi
limit=$longest
# What there is only on this architecture, and where a program is built without it.
case $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) in
9.0) own=WGMMA without=mma-sync ;;
8.6 | 8.9 | 12.*) own=HALF_SUMS without=float-sums ;;
*) own='' without='' ;;
esac
for stage in $stages; do
    echo "== $stage, $(date +%T)"
    case $stage in
    build) ;;
    test)
        make_it unit-gpu || fail "the tests' build"
        limited make -s ARCH=native GPU_TESTS=plain test-gpu || fail test-gpu
        ;;
    same)
        for prompt in 'What is 47 + 35?' 'Sort 52, 17, 31' 'Make JSON: Ann is 31 years old and lives in Oslo.'; do
            same cpu "cuda --exact"
            same cuda "cuda --host-loop"
            same cuda "cuda --in-order"
        done
        ;;
    step)
        bench -step step
        if grep -q overlap_refused "$name-step.json"; then fail "launches that overlap, in a graph"; fi
        ;;
    all)
        bench "" all
        python3 tools/plot_bench.py "$name.json" -o "$name.svg" || fail plot_bench.py
        ;;
    without)
        if [ -z "$own" ]; then continue; fi
        make_it $own=0 BUILD="build/$without" "build/$without/easel" || fail "the build with $own=0"
        easel=build/$without/easel
        bench "-$without" step
        easel=build/easel
        if [ $status -ne 0 ] && make_it $own=0 BUILD="build/$without" unit-gpu; then
            limited make -s ARCH=native $own=0 BUILD="build/$without" GPU_TESTS=plain test-gpu || fail "test-gpu with $own=0"
        fi
        ;;
    skew) bench -skew step --router-skew 1 ;;
    prefix) bench -32k step --prefix 32768 ;;
    offload) bench -offload step --expert-offload 9 ;;
    peer)
        python=${PYTHON:-python3}
        if "$python" -c 'import torch
from transformers import DiffusionGemmaForBlockDiffusion
assert torch.cuda.is_available()' 2>/dev/null; then
            limited "$python" tools/peers/transformers_step.py --json "$name-peer.json" || fail transformers_step.py
        else
            echo "SKIPPED transformers_step.py: $python has no torch with CUDA and transformers with DiffusionGemma"
        fi
        ;;
    sanitize)
        make_it unit-gpu || fail "the tests' build"
        for tool in memcheck racecheck; do
            limited make -s ARCH=native GPU_TESTS=$tool test-gpu || fail "test-gpu under $tool"
        done
        ;;
    *) fail "there is no stage \"$stage\", see the head of tools/gpu.sh" ;;
    esac
done
exit $status
