#!/usr/bin/env python3
"""One picture of what `easel bench --json` measured: a bar a part, its floor drawn over it.

    plot_bench.py FILE.json [FILE.json ...] -o PICTURE.svg

A GPU's file gives the parts of a denoise step; a CPU's, or one without a step, its passes. A floor is the
time that the bytes or the products alone take at the speed measured in the same run. Needs nothing but Python.
"""
import argparse
import json
import sys
from html import escape
from pathlib import Path

WIDTH, LABEL, NUMBER, ROW, BAR = 860, 190, 150, 22, 14
INK, GREY, FLOOR, TIME = "#222222", "#777777", "#1b6ca8", "#a9cbe3"


class BadFile(Exception):
    pass


def panels(record):
    """[(title, [(name, ms, floor ms)])] of one file."""
    out = []
    gpu, cpu = record.get("gpu", {}), record.get("cpu", {})
    if "step" in gpu:
        step = gpu["step"]
        loop = step.get("graph", step["host_loop"])
        rows = [(p["name"], p["ms"], p["floor_ms"]) for p in step["parts"]]
        title = (f"{gpu['device']}, {gpu['model']}: a denoise step of {step['canvas']} tokens after "
                 f"{step['prefix']}, {loop['ms']:.2f} ms inside an answer")
        out.append((title, rows))
    elif "prefill" in gpu:
        rows = [(f"{p['tokens']} tokens", p["ms"], p["floor_ms"]) for p in gpu["prefill"]]
        out.append((f"{gpu['device']}, {gpu['model']}: prompts", rows))
    if "models" in cpu and not out:
        for name, model in cpu["models"].items():
            passes = [(kind, p) for kind, p in model.items() if kind != "prefill"]
            passes += [("prefill", p) for p in model.get("prefill", [])]
            rows = [(f"{kind} {p['tokens']}", p["ms"], p["floor_ms"]) for kind, p in passes]
            out.append((f"{cpu['device']}, {cpu['threads']} threads, {name}", rows))
    if not out:
        raise BadFile("holds no step, no prompts and no passes of a CPU")
    return out


def text(x, y, what, anchor="start", colour=INK, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}">'
            f'{escape(what)}</text>')


def bar(x, y, width, height, colour):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" fill="{colour}"/>'


def draw(all_panels):
    marks, y = [], 16
    for title, rows in all_panels:
        marks.append(text(10, y + 8, title, weight="bold"))
        y += 22
        longest = max(max(ms, floor) for _, ms, floor in rows) or 1
        scale = (WIDTH - LABEL - NUMBER) / longest
        total = ("sum", sum(r[1] for r in rows), sum(r[2] for r in rows))
        for name, ms, floor in rows:
            marks.append(text(LABEL - 8, y + 11, name, "end"))
            marks.append(bar(LABEL, y, ms * scale, BAR, TIME))
            marks.append(bar(LABEL, y + 4, floor * scale, BAR - 8, FLOOR))
            marks.append(text(LABEL + max(ms, floor) * scale + 6, y + 11, f"{ms:.3f}, floor {floor:.3f}",
                              colour=GREY))
            y += ROW
        if len(rows) > 1:
            marks.append(text(LABEL - 8, y + 11, "sum", "end", weight="bold"))
            marks.append(text(LABEL, y + 11, f"{total[1]:.3f} ms, floors {total[2]:.3f} ms"))
            y += ROW
        y += 14
    marks += [bar(LABEL, y - 8, 24, BAR, TIME), text(LABEL + 30, y + 3, "measured, ms"),
              bar(LABEL + 140, y - 4, 24, BAR - 8, FLOOR),
              text(LABEL + 170, y + 3, "floor: bytes or products at the speed measured in the same run")]
    height = y + 18
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>\n' + "\n".join(marks) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    drawn = []
    for path in args.files:
        try:
            drawn += panels(json.loads(path.read_text()))
        except (OSError, ValueError, BadFile) as e:
            sys.exit(f"plot_bench: {path}: {e}")
        except (KeyError, TypeError) as e:
            sys.exit(f"plot_bench: {path}: not what easel bench writes ({e} is missing or of another kind)")
    args.output.write_text(draw(drawn))


if __name__ == "__main__":
    main()
