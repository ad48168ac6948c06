#!/bin/sh
# ptxas.sh NVCC ARCH FLAGS...: one line a kernel of cuda/*.cu: registers, bytes of spill stores and loads, stack, name.
# Fails if a kernel spills more than 16 bytes.
set -eu
nvcc=$1 arch=$2
shift 2
log=$(mktemp)
trap 'rm -f "$log" "$log.o"' EXIT
printf '%-6s %4s %6s %6s %6s  %s\n' arch regs stores loads stack kernel
for source in cuda/*.cu; do
    "$nvcc" "$@" -arch="sm_$arch" -Xptxas -v -c "$source" -o "$log.o" 2>&1
done | c++filt | awk -v arch="$arch" '
    /Compiling entry function/ { name = $0; sub(/.*entry function ./, "", name); sub(/. for .sm_.*/, "", name) }
    /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); regs = substr($0, RSTART + 5, RLENGTH - 5)
        gsub(/\(easel::Type\)/, "", name)  # the numbers of quant.h
        gsub(/easel::\(anonymous namespace\)::|easel::|void /, "", name); sub(/\(.*/, "", name)
        printf "%-6s %4d %6d %6d %6d  %s\n", arch, regs, stores, loads, stack, name
        if (stores > 16 || loads > 16) bad = bad "\n  " name
    }
    END { if (bad) { print "kernels that spill more than 16 bytes:" bad; exit 1 } }'
