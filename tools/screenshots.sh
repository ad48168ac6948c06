#!/bin/sh
# screenshots.sh [EASEL]: makes docs/trace.png, the picture of a trace in docs/using.md, from an answer of the demo model, and
# the same on a phone, in the dark, and as a figure, under build/screenshots. Needs Chromium and python3.
set -eu
easel=${1:-build/easel}
out=build/screenshots
mkdir -p "$out" docs
page=file://$(cd "$out" && pwd)/trace.html
# Hot at first, so that the demo model, which knows this well, takes its time.
"$easel" generate --device cpu -p "Sort 40, 50, 46, 55" --t-max 1.6 --seed 1 --trace "$out/trace.jsonl"
"$easel" trace "$out/trace.jsonl" -o "$out/trace.html"
"$easel" trace "$out/trace.jsonl" --svg -o "$out/trace.svg"
python3 tests/browser.py "$page#step=14" docs/trace.png 1000
python3 tests/browser.py "$page#step=14" "$out/dark.png" 1000 dark
python3 tests/browser.py "$page#step=14" "$out/phone.png" 390 dark
python3 tests/browser.py "file://$(cd "$out" && pwd)/trace.svg" "$out/figure.png" 760
ls -l docs/trace.png "$out"/*.png
