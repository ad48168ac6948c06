#!/usr/bin/env python3
"""What the main loop of the kernels with tensor cores is made of, by disassembly: issue slots a weight.

    sass.py NVCC ARCH FLAGS...        (make sass)

A warp's turn of that loop multiplies a chunk of its row tiles, each 16 rows x 64 columns of weights, with up to
32, 64 or 128 rows of activations (cuda/weight_gemm.h). Counted is the longest way through a turn, loops inside
once: first the loads of a later chunk (cp.async; the longest way has every remainder and the scales, which come
with one chunk in four, or with each), then decoding and mma, by kind: where there is no ldmatrix, mma is wgmma.
A lane's share of a tile is 32 weights: `a weight` is decoding alone, without mma and ldmatrix. Needs nvdisasm: in
the CUDA Toolkit, or the PyPI package nvidia-cuda-nvdisasm.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

SOURCES = ("linear", "head")
KINDS = [  # of instructions, the first that fits
    ("mma", r"HG?MMA"), ("ldmatrix", r"LDSM"), ("load", r"LD"),
    ("half", r"H(ADD|MUL|FMA|MNMX)2|F2F|F2FP|I2F|F2I"), ("float", r"F(ADD|MUL|FMA|SEL|MNMX|SETP)|FFMA|MUFU"),
    ("other", r"")]
LANE_WEIGHTS = 32


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
    """{mangled name: [label or instruction text]} of nvdisasm's listing."""
    out, lines = {}, None
    for line in listing.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.([^,]+),", line)
        label = re.match(r"(\.L_x_\d+):", line)
        code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)
        if section:
            lines = out.setdefault(section.group(1), [])
        elif lines is not None and label:
            lines.append(label.group(1) + ":")
        elif lines is not None and code:
            lines.append(code.group(1))
    return out


def opcode(line):
    return re.sub(r"^@!?U?P\w+\s+", "", line).split()[0]


def main_loop(lines):
    """The innermost loop that has all the mma of the one with most."""
    place = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for i, line in enumerate(lines):
        jump = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
        if jump and place.get(jump.group(1), i) < i:
            body = lines[place[jump.group(1)]:i + 1]
            n_mma = sum(bool(re.search("HG?MMA", x)) for x in body)
            if n_mma:
                loops.append((-n_mma, len(body), body))
    return min(loops)[2] if loops else None


def longest_way(lines):
    """Instructions of the longest way from the first to the last line; jumps back are not taken."""
    place = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    best = [(0, None)] * (len(lines) + 1)  # by line: length from there, next line
    for i in range(len(lines) - 1, -1, -1):
        line = lines[i]
        if line.endswith(":"):
            best[i] = (best[i + 1][0], i + 1)
            continue
        ways = [i + 1]
        jump = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
        if jump:
            target = place.get(jump.group(1), -1)
            if not line.startswith("@"):
                ways = [target] if target > i else []
            elif target > i:
                ways.append(target)
        length, following = max(((best[w][0], w) for w in ways), default=(0, None))
        best[i] = (length + 1, following)
    way, i = [], 0
    while i is not None and i < len(lines):
        if not lines[i].endswith(":"):
            way.append(lines[i])
        i = best[i][1]
    return way


def count(way):
    kinds = Counter()
    for line in way:
        kinds[next(kind for kind, pattern in KINDS if re.match(pattern, opcode(line)))] += 1
    return kinds


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
    print(f"{'kernel, sm_' + arch:<38} {'tiles':>5} {'loading':>7} {'decode, mma':>11}: {'mma':>4} {'ldmatrix':>8} {'load':>5} "
          f"{'half':>5} {'float':>5} {'other':>5} {'a weight':>9}")
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            cubin = f"{folder}/{source}.cubin"
            subprocess.run([nvcc, *flags, f"-arch=sm_{arch}", "-cubin", "-o", cubin, f"cuda/{source}.cu"],
                           check=True)
            listing = subprocess.run([tool, "-c", cubin], check=True, capture_output=True, text=True).stdout
        for name, lines in functions(listing).items():
            loop = main_loop(lines)
            if not loop:
                continue
            cut = next(i for i, line in enumerate(loop) if opcode(line) == "LDGDEPBAR")
            way = longest_way(loop[cut + 1:])
            n = count(way)
            # A wgmma for each k16 step of a tile; or a fragment of activations serves all tiles, in two mma each.
            n_tile = n["mma"] // (2 * n["ldmatrix"] if n["ldmatrix"] else 4)
            print(f"{short_name(name):<38} {n_tile:>5} {len(longest_way(loop[:cut])):>7} {len(way):>11}: {n['mma']:>4} "
                  f"{n['ldmatrix']:>8} {n['load']:>5} {n['half']:>5} {n['float']:>5} {n['other']:>5} "
                  f"{(len(way) - n['mma'] - n['ldmatrix']) / LANE_WEIGHTS / n_tile:>9.2f}")


if __name__ == "__main__":
    main()
