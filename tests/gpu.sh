#!/bin/sh
# gpu.sh UNIT [plain|memcheck|racecheck...]: the kernel and loop tests on a GPU (make test-gpu, GPU_TESTS=plain): plain, then
# under compute-sanitizer's memcheck and racecheck. Prints SKIPPED and why where there is no GPU.
set -u
unit=$1
shift
if ! gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1); then
    echo "SKIPPED test-gpu: there is no NVIDIA GPU, or no driver (nvidia-smi: $(echo "$gpu" | head -n 1))"
    exit 0
fi
echo "test-gpu on $gpu"
status=0
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ $# -eq 0 ]; then set -- plain memcheck racecheck; fi
for part; do
    echo "-- $part"
    case $part in
    plain) "$unit" -d yes || { echo "FAIL kernel and loop tests"; status=1; } ;;
    memcheck | racecheck)
        if [ -z "$sanitizer" ]; then
            echo "SKIPPED $part: compute-sanitizer is not installed"
            continue
        fi
        # Not the tests whose kernels wait for the host, which under a tool may wait for them. Racecheck follows every access
        # to shared memory: whole answers take it too long.
        set -- '~[waits]'
        if [ "$part" = racecheck ]; then set -- '~[waits]' '~device:*' '~memory:*'; fi
        "$sanitizer" --tool "$part" --error-exitcode 1 "$unit" "$@" || { echo "FAIL $part"; status=1; }
        ;;
    *) echo "gpu.sh: there is no test \"$part\", expected plain, memcheck or racecheck"; status=1 ;;
    esac
done
exit $status
