#!/bin/sh
# gpu.sh UNIT: the kernel and loop tests on a GPU (make test-gpu): once plain, then under compute-sanitizer's memcheck
# and racecheck. Prints SKIPPED and why where there is no GPU.
set -u
unit=$1
if ! gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1); then
    echo "SKIPPED test-gpu: there is no NVIDIA GPU, or no driver (nvidia-smi: $(echo "$gpu" | head -n 1))"
    exit 0
fi
echo "test-gpu on $gpu"
status=0
"$unit" -d yes || { echo "FAIL kernel and loop tests"; status=1; }
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -z "$sanitizer" ]; then
    echo "SKIPPED memcheck and racecheck: compute-sanitizer is not installed"
    exit $status
fi
# Racecheck follows every access to shared memory: whole answers take it too long.
"$sanitizer" --tool memcheck --error-exitcode 1 "$unit" || { echo "FAIL memcheck"; status=1; }
"$sanitizer" --tool racecheck --error-exitcode 1 "$unit" '~device:*' '~memory:*' || { echo "FAIL racecheck"; status=1; }
exit $status
