#!/usr/bin/env python3
"""ansi_to_svg.py WIDTH HEIGHT FILE...: pictures of a terminal (tmux capture-pane -e), 0.1 s each, to one animated SVG on
stdout. Pictures that are the same become one. A viewer that does not animate shows the last one."""
import html
import re
import sys

CELL, LINE, SIZE, EDGE = 8.4, 19, 14, 12
COLORS = {31: "#f7768e", 32: "#9ece6a", 33: "#e0af68", 34: "#7aa2f7", 35: "#bb9af7", 36: "#7dcfff"}


def runs(row):
    """(column, text, class) of the parts of a row that look the same; ASCII is one column a character."""
    column, bold, dim, color = 0, False, False, None
    for part in re.split(r"(\x1b\[[0-9;]*m)", row.rstrip("\n")):
        if part.startswith("\x1b"):
            for code in (int(c or 0) for c in part[2:-1].split(";")):
                if code == 0:
                    bold, dim, color = False, False, None
                elif code == 1:
                    bold = True
                elif code == 2:
                    dim = True
                elif code == 22:
                    bold = dim = False
                elif code == 39:
                    color = None
                elif code in COLORS:
                    color = code
        elif part:
            name = " ".join(filter(None, ["b" if bold else "", "d" if dim else "", f"c{color}" if color else ""]))
            if part.strip():
                yield column, part.rstrip(), name
            column += len(part)


def draw(picture):
    out = []
    for y, row in enumerate(picture):
        for column, text, name in runs(row):
            blanks = len(text) - len(text.lstrip())
            attribute = f' class="{name}"' if name else ""
            out.append(f'<text x="{EDGE + (column + blanks) * CELL:.1f}" y="{EDGE + 14 + y * LINE}"{attribute} '
                       f'textLength="{len(text.strip()) * CELL:.1f}">{html.escape(text.strip(), quote=False)}</text>')
    return "".join(out)


def main():
    width, height = int(sys.argv[1]), int(sys.argv[2])
    pictures = []  # [text, tenths of a second]
    for name in sys.argv[3:]:
        with open(name, encoding="utf-8") as f:
            rows = f.read().split("\n")[:height]
        if pictures and pictures[-1][0] == rows:
            pictures[-1][1] += 1
        else:
            pictures.append([rows, 1])
    pictures[-1][1] += 20
    total = sum(n for _, n in pictures)
    w, h = 2 * EDGE + width * CELL, 2 * EDGE + height * LINE
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h}" width="{w:.0f}" height="{h}">')
    print(f"<style>text{{font:{SIZE}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#a9b1d6;"
          "white-space:pre}.b{font-weight:bold;fill:#fff}.d{fill:#737aa2}"
          + "".join(f".c{n}{{fill:{c}}}" for n, c in COLORS.items()))
    print(f".f{{visibility:hidden;animation:{total / 10}s step-end infinite}}.l{{visibility:visible}}")
    at = 0
    for i, (_, n) in enumerate(pictures):
        a, b = 100 * at / total, 100 * (at + n) / total
        start = "" if i == 0 else "0%{visibility:hidden}"
        end = "" if i == len(pictures) - 1 else f"{b:.2f}%{{visibility:hidden}}"
        print(f"@keyframes k{i}{{{start}{a:.2f}%{{visibility:visible}}{end}}}#k{i}{{animation-name:k{i}}}")
        at += n
    print(f'</style><rect width="100%" height="100%" rx="8" fill="#1a1b26"/>')
    for i, (rows, _) in enumerate(pictures):
        last = " l" if i == len(pictures) - 1 else ""
        print(f'<g id="k{i}" class="f{last}">{draw(rows)}</g>')
    print("</svg>")


main()
