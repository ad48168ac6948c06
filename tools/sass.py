#!/usr/bin/env python3
"""What the main loop of the kernels with tensor cores is made of, by disassembly: issue slots a turn.

    sass.py NVCC ARCH FLAGS...        (make sass)

A turn multiplies 16 rows x 64 columns of weights, a row tile's chunk, with up to 16 rows of activations, or, where
mma is wgmma, up to 128 (cuda/weight_gemm.h). Counted is the longest way through the loop, which may be unrolled, a
turn on average: loading later chunks (cp.async), then decoding and mma by kind. "integer" ones go one in two clocks,
others one a clock. `a weight` is decoding alone, without mma and ldmatrix, of a lane's 32 weights.

`clocks` is a model, not a measurement: the clocks of a scheduler a turn, if its warps (two of each block of an SM)
run that loop and never wait for memory. Instructions are issued in order, one a clock, by the stall counts and
scoreboards that are encoded in them, and each pipe takes its time. None for wgmma, which runs beside the warps.

Needs nvdisasm: in the CUDA Toolkit, or the PyPI package nvidia-cuda-nvdisasm.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, namedtuple
from pathlib import Path

SOURCES = ("linear", "head")
KINDS = [  # of instructions, the first that fits
    ("mma", r"HG?MMA"), ("ldmatrix", r"LDSM"), ("load", r"LD"),
    ("half", r"H(ADD|MUL|FMA|MNMX)2|F2F|F2FP|I2F|F2I"), ("float", r"F(ADD|MUL|FMA|SEL|MNMX|SETP)|FFMA|MUFU"),
    ("integer", r"LOP3|SHF|PRMT|ISETP|IADD3|SEL|LEA|IMNMX|PLOP3|VIADD|VIMNMX"), ("other", r"")]
KIND = dict(KINDS)
LANE_WEIGHTS = 32

# The model: what an instruction takes of its pipe, clocks of one of an SM's four schedulers; loads and stores of
# shared memory share one unit of 128 bytes a clock. mma.sync has 62 % of the tensor cores' rate.
PIPES = [(r"HMMA", "tensor", 6.4), (r"LDSM.*\.4", "shared", 16), (r"LDS\.128|LDGSTS.*128", "shared", 16),
         (r"LDS\.64", "shared", 8), (r"LDSM|LDS|LDGSTS", "shared", 4), (KIND["integer"], "integer", 2),
         (KIND["half"], "half", 2), (r"IMAD", "multiply", 2)]
LATENCY = [(r"LDSM", 33), (r"LDS", 30), (r"", 22)]  # until what is loaded is there
READ_LATENCY = 14  # until a load has read its registers

Code = namedtuple("Code", "text stall sets reads waits")  # scoreboards: set by the result, by reading, waited for


def find_nvdisasm(nvcc):
    beside = Path(nvcc).resolve().parent / "nvdisasm"
    if beside.exists():
        return beside
    if shutil.which("nvdisasm"):
        return shutil.which("nvdisasm")
    try:
        import nvidia
        for folder in nvidia.__path__:
            for path in Path(folder).glob("**/bin/nvdisasm"):
                return path
    except ImportError:
        pass
    return None


def functions(listing):
    """{mangled name: [label or Code]} of nvdisasm's listing with encodings."""
    out, lines, text = {}, None, None
    for line in listing.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.([^,]+),", line)
        label = re.match(r"(\.L_x_\d+):", line)
        code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)
        upper = re.match(r"\s*/\* 0x([0-9a-f]+) \*/", line)
        if section:
            lines = out.setdefault(section.group(1), [])
        elif lines is not None and label:
            lines.append(label.group(1))
        elif code:
            text = code.group(1)
        elif upper and text:
            bits = int(upper.group(1), 16) >> 41
            lines.append(Code(text, max(bits & 15, 1), bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63))
            text = None
    return out


def opcode(code):
    return re.sub(r"^@!?U?P\w+\s+", "", code.text).split()[0]


def find(table, code, otherwise):
    if code.text.startswith("@!PT"):  # never runs
        return otherwise
    return next((row[1:] for row in table if re.match(row[0], opcode(code))), otherwise)


def is_mma(code):
    return re.match("HG?MMA", opcode(code)) is not None


def target(code):
    jump = re.search(r"BRA.*\((\.L_x_\d+)\)", code.text)
    return jump.group(1) if jump else None


def main_loop(lines):
    """The innermost loop that has all the mma of the one with most."""
    place = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    loops = []
    for i, line in enumerate(lines):
        start = place.get(target(line), i) if isinstance(line, Code) else i
        if start < i:
            n_mma = sum(isinstance(x, Code) and is_mma(x) for x in lines[start:i])
            if n_mma:
                loops.append((-n_mma, i - start, lines[start:i + 1]))
    return min(loops)[2] if loops else None


def longest_way(lines):
    """Instructions of the longest way from the first to the last line, but for rows of activations past the first
    16: what is jumped over right behind an mma. Jumps back are not taken."""
    place = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    best = [(0, None)] * (len(lines) + 1)  # by line: length from there, next line
    for i in range(len(lines) - 1, -1, -1):
        line = lines[i]
        if isinstance(line, str):
            best[i] = (best[i + 1][0], i + 1)
            continue
        to = place.get(target(line), -1)
        ways = [i + 1]
        if to > i:
            more_rows = any(isinstance(x, Code) and is_mma(x) for x in lines[max(i - 3, 0):i])
            ways = [to] if more_rows or not line.text.startswith("@") else [i + 1, to]
        length, following = max(((best[w][0], w) for w in ways), default=(0, None))
        best[i] = (length + 1, following)
    way, i = [], 0
    while i is not None and i < len(lines):
        if isinstance(lines[i], Code):
            way.append(lines[i])
        i = best[i][1]
    return way


def split(way):
    """Loading, then decoding and mma, of all chunks."""
    parts, now = ([], []), 0
    for code in way:
        parts[now].append(code)
        if opcode(code) == "LDGDEPBAR":
            now = 1
        elif opcode(code).startswith("DEPBAR"):
            parts[now].pop()
            now = 0
            parts[now].append(code)
    return parts


def count(way):
    return Counter(next(kind for kind, pattern in KINDS if re.match(pattern, opcode(code))) for code in way)


def model_clocks(way, n_warp, n_block, n_turn=40):
    """Clocks of a scheduler for one way of one of its warps, see above."""
    class Warp:
        at, ready, turn = 0, 0, 0

    warps = [Warp() for _ in range(n_warp)]
    for w in warps:
        w.boards = [0.0] * 6
    free, arrived, clock, last = Counter(), {}, 0, 0
    while any(w.turn < n_turn for w in warps):
        for i in (*range(last, n_warp), *range(last)):  # the same one as long as it can
            w = warps[i]
            if w.turn == n_turn or w.ready > clock:
                continue
            code = way[w.at]
            pipe, takes = find(PIPES, code, ("", 0))
            if free[pipe] > clock or any(code.waits >> b & 1 and t > clock for b, t in enumerate(w.boards)):
                continue
            if opcode(code).startswith("BAR.SYNC"):
                here = arrived.setdefault((i * n_block // n_warp, w.turn, w.at), set())
                here.add(i)
                if len(here) < n_warp // n_block:
                    continue
            free[pipe] = clock + takes if pipe else 0
            if code.sets < 6:
                w.boards[code.sets] = max(w.boards[code.sets], clock + takes + find(LATENCY, code, (0,))[0])
            if code.reads < 6:
                w.boards[code.reads] = max(w.boards[code.reads], clock + READ_LATENCY)
            w.ready, w.at, last = clock + code.stall, w.at + 1, i
            if w.at == len(way):
                w.at, w.turn = 0, w.turn + 1
            break
        clock += 1
    return clock / n_turn / n_warp


def short_name(name):
    text = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout
    text = re.sub(r"\(easel::Type\)|easel::\(anonymous namespace\)::|easel::|void ", "", text)
    return text.split("(")[0].strip()


def main():
    nvcc, arch, flags = sys.argv[1], sys.argv[2], sys.argv[3:]
    tool = find_nvdisasm(nvcc)
    if not nvcc or not tool:
        print("SKIPPED sass: there is no " + ("nvdisasm" if nvcc else "nvcc"))
        return
    print(f"{'a turn, sm_' + arch:<38} {'all':>5} {'loading':>7} {'mma':>5} {'ldmatrix':>8} {'load':>5} {'half':>5} "
          f"{'integer':>7} {'other':>5} {'a weight':>8} {'clocks':>6}")
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            cubin = f"{folder}/{source}.cubin"
            subprocess.run([nvcc, *flags, f"-arch=sm_{arch}", "-cubin", "-o", cubin, f"cuda/{source}.cu"],
                           check=True)
            listing = subprocess.run([tool, "-c", "-hex", cubin], check=True, capture_output=True, text=True).stdout
        for name, lines in functions(listing).items():
            loop = main_loop(lines)
            if not loop:
                continue
            way = longest_way(loop)
            loading, decoding = split(way)
            n = count(decoding)
            # A wgmma for each k16 step of a tile; or a fragment of activations serves two tiles, in two mma each.
            n_turn = n["mma"] / 4 if n["ldmatrix"] == 0 else n["mma"] / 8
            n_block = 2 if n["ldmatrix"] else 1
            clocks = f"{model_clocks(way, 2 * n_block, n_block) / n_turn:6.0f}" if n["ldmatrix"] else "     -"
            other = n["float"] + n["other"]
            print(f"{short_name(name):<38} {len(way) / n_turn:5.0f} {len(loading) / n_turn:7.0f} "
                  f"{n['mma'] / n_turn:5.0f} {n['ldmatrix'] / n_turn:8.0f} {n['load'] / n_turn:5.1f} "
                  f"{n['half'] / n_turn:5.0f} {n['integer'] / n_turn:7.0f} {other / n_turn:5.0f} "
                  f"{(len(decoding) - n['mma'] - n['ldmatrix']) / LANE_WEIGHTS / n_turn:8.2f} {clocks}")


if __name__ == "__main__":
    main()
