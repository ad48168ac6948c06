#!/bin/sh
# bench.sh EASEL: `easel bench` on a CPU, its file of figures, and the picture of one. $EASEL_BENCH_JSON, if set, is a
# file as a GPU's: the unit tests make it, on the simulator.
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
root=$(pwd)
case $easel in /*) ;; *) easel=$root/$easel ;; esac

error() {  # error NAME TEXT ARGUMENTS...: exit 1 and one line with TEXT
    case=$1 text=$2
    shift 2
    $limit "$easel" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    check "$case: exit 1" $? -eq 1
    check "$case: one line" "$(wc -l <"$dir/err")" -eq 1
    has "$case: says why" "$text" "$dir/err"
}

# ---- without a GPU

if nvidia-smi -L >/dev/null 2>&1; then
    skip "bench without a GPU" "there is one"
else
    for what in step kernels load; do error "bench $what" "there is no device cuda" bench $what; done
fi
error "bench on what is no device" "device is foo, expected auto, cpu, cuda or cuda:N" bench prefill --device foo
error "a prefix that the model has no room for" "the prefix and a canvas need " bench cpu --synthetic toy --prefix 1000000
error "bench cpu on a GPU" "bench cpu measures the CPU, --device is cuda:0" bench cpu --device cuda:0
error "experts left in the host's memory, on a CPU" "--expert-offload is for a GPU: the device is cpu" \
    bench prefill --device cpu --expert-offload 1
error "bench kernels on a CPU" "needs a GPU, --device is cpu" bench kernels --device cpu
error "bench of another shape" 'no synthetic model "big", expected toy, mid or 26b-a4b' bench cpu --synthetic big
error "bench of two models" "both -m and --synthetic" bench cpu -m x --synthetic toy
error "a router's skew for a file" "--router-skew is for random weights" bench cpu -m x --router-skew 1
for what in cpu all; do
    error "$what after --json" "\"$what\" is something to measure, expected easel bench $what --json, or --json ./$what for" \
        bench --json $what
done
error "prefill after --json, with a bench" '"prefill" is something to measure' bench cpu --json=prefill
error "a prompt past the context" "the prompt needs 5000 tokens, the model's context has 4096" \
    bench prefill --device cpu --synthetic toy --prefix 5000 --json "$dir/kept.json"
check "leaves no figures" ! -e "$dir/kept.json"
echo old >"$dir/kept.json"
error "a prompt past the context, again" "the prompt needs" \
    bench prefill --device cpu --synthetic toy --prefix 5000 --json "$dir/kept.json"
check "leaves older figures as they are" "$(cat "$dir"/kept.json*)" = old
ln -s kept.json "$dir/link.json"
works "figures of a small run" \
    bench prefill --device cpu -t 1 --synthetic toy --prefix 8 --repeat 1 --json "$dir/link.json"
check "replace them, through a link too" -L "$dir/link.json"
has "by the new ones" '"prefill": [' "$dir/kept.json"
check "no part is left of them" ! -e "$dir/kept.json.part"

# ---- on a CPU

(cd "$dir" && $limit "$easel" bench all --device cpu -t 1 --synthetic toy:q8_0 --router-skew 1.5 --prefix 64 --repeat 1 \
    --json >out 2>err)
check "bench all on a CPU: exit 0" $? -eq 0
for text in "float32 peak" "encode" "denoise" "prefill"; do has "bench all prints $text" "$text" "$dir/out"; done
file=$(ls "$dir"/bench/results/*.json)
# No product is faster than the multiply-adds it is made of. Where others use the cores, a second look may be needed.
figure() { sed -n "s/^ *\"$1\": \([0-9]*\).*/\1/p" "$from"; }
from=$file
for _ in 1 2 3 4 5 6; do
    peak=$(figure fma_peak_gflops) product=$(figure gemm_peak_gflops)
    [ "$product" -le "$peak" ] && break
    from=$dir/again.json
    $limit "$easel" bench prefill --device cpu --synthetic toy --prefix 8 --repeat 1 --json "$from" >"$dir/out.again"
done
check "a product is not faster than the peak" "$product" -le "$peak"
check "the file is named after the device" -s "$file"
has "the file has the skew" '"router_skew": 1.5' "$file"
has "the file has the prompt" '"prefill": [' "$file"
error "figures into no folder" "cannot be written" \
    bench prefill --device cpu -t 1 --synthetic toy --prefix 8 --repeat 1 --json "$dir/none/x.json"

# ---- the picture

if ! command -v python3 >/dev/null; then
    skip "the picture" "needs python3"
else
    picture() {  # picture NAME FILE TEXT...: an SVG whose texts are these and more
        case=$1 from=$2
        shift 2
        python3 tools/plot_bench.py "$from" -o "$dir/x.svg" 2>"$dir/err"
        check "$case: exit 0" $? -eq 0
        if python3 -c 'import sys, xml.dom.minidom as x; x.parse(sys.argv[1])' "$dir/x.svg" 2>"$dir/err"
        then ok "$case: well-formed"; else bad "$case: well-formed" "$(tail -n 1 "$dir/err")"; fi
        for text in "$@"; do has "$case: shows $text" ">$text<" "$dir/x.svg"; done
    }
    picture "a CPU's picture" "$file" "encode 64" "denoise 32" "prefill 64" "sum"
    if [ -n "${EASEL_BENCH_JSON:-}" ]; then
        picture "a GPU's picture" "$EASEL_BENCH_JSON" "soft embedding" "q, k, v" "attention" "experts gate, up" \
            "experts down" "lm head" "accept" "sum"
    else
        skip "a GPU's picture" "no \$EASEL_BENCH_JSON"
    fi
    echo '{"gpu": {"step": {"parts": [{}]}}}' >"$dir/bad.json"
    python3 tools/plot_bench.py "$dir/bad.json" -o "$dir/y.svg" 2>"$dir/err"
    check "a file of something else: exit 1" $? -eq 1
    has "a file of something else: says so" "bad.json: not what easel bench writes" "$dir/err"
fi

# ---- instructions of a loop and clocks of the model, of a disassembly made up for the purpose

if command -v python3 >/dev/null; then
    cat >"$dir/sass.py" <<'END'
import sys
sys.path.insert(0, "tools")
import sass


def listing(lines):  # "text" or (text, stall, board it sets, boards it waits for)
    out = ['\t.section\t.text.kernel,"ax",@progbits']
    for line in lines:
        text, stall, sets, waits = line if isinstance(line, tuple) else (line, 1, 7, 0)
        if text.startswith("."):
            out.append(text + ":")
        else:
            out.append(f"        /*0000*/                   {text} ;    /* 0x0000000000017a02 */")
            out.append(f"    /* 0x{(stall | sets << 5 | 7 << 8 | waits << 11) << 41:016x} */")
    return sass.functions("\n".join(out))["kernel"]


loop = sass.main_loop(listing([
    "MOV R1, c[0x0][0x28]", ".L_x_1", "DEPBAR.LE SB0, 0x3", "BAR.SYNC.DEFER_BLOCKING 0x0", "@P0 BRA `(.L_x_2)",
    "LDGSTS.E.BYPASS.128 [R25], desc[UR10][R20.64]", ".L_x_2", "LDGDEPBAR", "@P1 BRA `(.L_x_3)", "HADD2 R1, R2, R3",
    "FMUL R1, R2, R3", "BRA `(.L_x_4)", ".L_x_3", "SHF.R.U32.HI R1, RZ, 0x8, R3", ".L_x_4",
    "HMMA.16816.F32 R48, R60.reuse, R64, R48", "@P2 BRA `(.L_x_5)", "IMAD R1, R2, R3, R4", ".L_x_5", "@!P0 BRA `(.L_x_1)",
    "EXIT"]))
loading, decoding = sass.split(sass.longest_way(loop))
print(len(loading), len(decoding), sorted(sass.count(decoding).items()))
# Two warps, four integer instructions of two clocks; one warp that waits for what it has loaded; one for a barrier.
for name, n_warp, lines in (("integer", 2, ["LOP3.LUT R1, R2, R3"] * 4),
                            ("load", 1, [("LDS R1, [R2]", 1, 0, 0), ("FADD R3, R1, R1", 5, 7, 1)]),
                            ("stall", 1, [("BAR.SYNC.DEFER_BLOCKING 0x0", 6, 7, 0), "@!PT LDS RZ, [RZ]"])):
    print(name, round(sass.model_clocks(listing(lines), n_warp, 1)))
END
    python3 "$dir/sass.py" >"$dir/out" 2>"$dir/err"
    has "instructions of a loop" "5 7 [('float', 1), ('half', 1), ('mma', 1), ('other', 4)]" "$dir/out"
    has "integer instructions take two clocks" "integer 8" "$dir/out"
    has "what waits for a load takes the load's time" "load 39" "$dir/out"
    has "a stall count counts, what never runs takes a clock" "stall 7" "$dir/out"
fi

# ---- tools/gpu.sh, with stand-ins for nvidia-smi, make and the program

mkdir -p "$dir/gpu/tools" "$dir/gpu/build" "$dir/stand-ins"
cp tools/gpu.sh "$dir/gpu/tools"
cat >"$dir/stand-ins/nvidia-smi" <<'END'
#!/bin/sh
case "$*" in *compute_cap*) echo "$CAPABILITY" ;; *) echo "NVIDIA Stand-in 1, 580.65" ;; esac
END
cat >"$dir/stand-ins/make" <<'END'
#!/bin/sh
echo "made $*"
for word; do case $word in BUILD=*) mkdir -p "${word#BUILD=}" && cp build/easel "${word#BUILD=}" ;; esac; done
END
cat >"$dir/gpu/build/easel" <<'END'
#!/bin/sh
echo "ran $0 $*"
hash=1234
case "$*" in *"$WRONG"*) hash=56 ;; esac
case $1 in
generate) if [ -n "$HANGS" ]; then sleep 60; else echo "prompt 1 token | hash $hash" >&2; fi ;;
bench) while [ $# -gt 0 ]; do if [ "$1" = --json ]; then echo '{}' >"$2"; fi; shift; done ;;
esac
END
chmod +x "$dir/stand-ins/nvidia-smi" "$dir/stand-ins/make" "$dir/gpu/build/easel"
gpu_script() {  # gpu_script CAPABILITY WRONG LIMIT STAGE...: WRONG: flags that give another answer; LIMIT: the program hangs
    capability=$1 wrong=${2:-nothing} hangs=$3
    shift 3
    (cd "$dir/gpu" && env "CAPABILITY=$capability" "WRONG=$wrong" "HANGS=$hangs" "PATH=$dir/stand-ins:$PATH" \
        "RESULTS=$dir/gpu/results" "LIMIT=${hangs:-20}" sh tools/gpu.sh "$@" >"$dir/out" 2>&1)
}
if timeout 1 true 2>/dev/null; then
    gpu_script 9.0 "" "" test same step without skew prefix offload sanitize
    check "gpu.sh passes where all is well" $? -eq 0
    for text in "made -s ARCH=native GPU_TESTS=plain test-gpu" "WGMMA=0 BUILD=build/mma-sync" \
        "ran build/mma-sync/easel bench step" "--router-skew 1" "--prefix 32768" "--expert-offload 9" "GPU_TESTS=racecheck"; do
        has "gpu.sh: $text" "$text" "$dir/out"
    done
    for suffix in step mma-sync skew 32k offload; do
        check "gpu.sh writes the $suffix" -s "$dir/gpu/results/nvidia-stand-in-1-$suffix.json"
    done
    gpu_script 8.9 "--host-loop" "" same without
    check "gpu.sh fails where answers differ" $? -eq 1
    has "and says which" "FAIL cuda and cuda --host-loop answer alike" "$dir/out"
    has "a GeForce card's other program" "HALF_SUMS=0 BUILD=build/float-sums" "$dir/out"
    gpu_script 9.0 "" 1 step
    check "gpu.sh ends where nothing answers" $? -eq 1
    has "and says so" "FAIL an answer by this program on this GPU" "$dir/out"
    has "and what it has tried" "with --host-loop --in-order there is none" "$dir/out"
    check "and measures nothing" "$(grep -c bench "$dir/out")" -eq 0
    gpu_script 9.0 "" "" stp
    has "a stage that is none" 'FAIL there is no stage "stp"' "$dir/out"
else
    skip "tools/gpu.sh" "needs timeout"
fi

end
