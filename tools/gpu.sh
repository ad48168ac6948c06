#!/bin/sh
# gpu.sh [BENCH-FLAGS]: what to run first on a machine with a GPU: builds for it, tests the kernels and the loop, compares
# answers with the CPU's, times a denoise step of the real shapes, and prints a table. Figures go to bench/results.
set -u
cd "$(dirname "$0")/.." || exit 1
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1) || exit 1
echo "== $gpu, commit $(git describe --always --dirty 2>/dev/null)"
make -j"$(nproc)" ARCH=native build/easel || exit 1
make -j"$(nproc)" ARCH=native test-gpu || echo "FAIL test-gpu"
for prompt in 'What is 47 + 35?' 'Sort 52, 17, 31' 'Make JSON: Ann is 31 years old and lives in Oslo.'; do
    for flags in "cpu" "cuda --exact" "cuda" "cuda --host-loop"; do
        # shellcheck disable=SC2086
        printf '%-18s ' "$flags" && build/easel generate -p "$prompt" --device $flags 2>&1 | tail -n 1
    done
done
mkdir -p bench/results
name=$(echo "$gpu" | sed 's/,.*//; s/[^A-Za-z0-9]\{1,\}/-/g' | tr '[:upper:]' '[:lower:]')
build/easel bench step --json "bench/results/$name.json" "$@"
