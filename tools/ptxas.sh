#!/bin/sh
# ptxas.sh NVCC ARCH FLAGS...: one line a kernel of cuda/*.cu: registers, bytes of spill stores and loads, stack, static
# shared memory; for the large ones as launcher and shapes of the 26B-A4B model have it (launches.cpp): dynamic shared
# memory, threads, and by arithmetic how many blocks and warps an SM holds at once, and what stops more. Fails if a kernel
# spills more than 16 bytes.
set -eu
nvcc=$1 arch=$2
shift 2
log=$(mktemp)
launches=$(mktemp)
trap 'rm -f "$log" "$log.o" "$launches"' EXIT
case $arch in 90* | 100*) block_kib=227 ;; *) block_kib=99 ;; esac
sh tools/launches.sh $block_kib >"$launches"
printf '%-5s %4s %6s %6s %6s %6s %7s %7s %6s %5s %-9s %s\n' \
    arch regs stores loads stack static dynamic threads blocks warps limit kernel
for source in cuda/*.cu; do
    "$nvcc" "$@" -arch="sm_$arch" -Xptxas -v -c "$source" -o "$log.o" 2>&1
done | c++filt | awk -v arch="$arch" '
    BEGIN {  # of an SM: KiB of shared memory, threads, blocks (CUDA Programming Guide, compute capabilities)
        chip = arch + 0
        kib = chip == 80 ? 164 : chip == 90 || chip == 100 ? 228 : 100
        max_threads = chip == 86 || chip == 89 || chip == 120 ? 1536 : 2048
        max_blocks = chip == 86 ? 16 : chip == 89 || chip == 120 ? 24 : 32
    }
    function least(limit, n) { if (n < blocks) { blocks = n; limited_by = limit } }
    NR == FNR { dynamic[$1, $2] = $4; threads[$1, $2] = $3; next }
    /Compiling entry function/ { name = $0; sub(/.*entry function ./, "", name); sub(/. for .sm_.*/, "", name) }
    /wgmma.mma_async instructions are serialized/ { serial = serial "\n  " $0 }
    /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); regs = substr($0, RSTART + 5, RLENGTH - 5)
        static = 0
        if (match($0, /[0-9]+ bytes smem/)) static = substr($0, RSTART, RLENGTH) + 0
        gsub(/\(easel::Type\)/, "", name)  # the numbers of quant.h
        gsub(/easel::\(anonymous namespace\)::|easel::|void /, "", name); sub(/\(.*/, "", name)
        base = name; sub(/<.*/, "", base)
        key = name; if (!sub(/^[^<]*</, "", key)) key = 0
        split(key, args, /[,>] */); key = args[1]
        if (base == "attention_kernel") key = args[1] "," args[2]  # its head and whether joint
        if (base == "linear_kernel") key = args[1] "," args[3]  # its type and tiles of rows
        printf "%-5s %4d %6d %6d %6d %6d ", arch, regs, stores, loads, stack, static
        if ((base, key) in threads && name !~ /float>$/ || name ~ /F16, float>$/) {
            n = threads[base, key]; bytes = dynamic[base, key]
            a_warp = int((regs * 32 + 255) / 256) * 256
            blocks = max_blocks; limited_by = "blocks"
            least("threads", int(max_threads / n))
            least("registers", int(4 * int(16384 / a_warp) / (n / 32)))
            least("shared", int(kib * 1024 / (bytes + static + 1024)))
            printf "%7d %7d %6d %5d %-9s %s\n", bytes, n, blocks, blocks * n / 32, limited_by, name
        } else printf "%7s %7s %6s %5s %-9s %s\n", "", "", "", "", "", name
        if (stores > 16 || loads > 16) bad = bad "\n  " name
    }
    END {
        if (bad) print "kernels that spill more than 16 bytes:" bad
        if (serial) print "wgmma that waits:" serial
        if (bad serial) exit 1
    }' "$launches" -
