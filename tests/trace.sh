#!/bin/sh
# trace.sh PROGRAM: tests `generate --trace` and `easel trace`: the file, the page in a browser, the figure, broken
# files, full disks.
# shellcheck disable=SC2012 # names of our own
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh

# ---- generate --trace

sort="generate --device cpu -t 1 --t-max 1.6 --seed 1 -p"  # hot at first, so that the demo model takes several steps
# shellcheck disable=SC2086
{
    run $sort "Sort 40, 50, 46, 55"
    cp "$dir/out" "$dir/answer"
    sed 's/.*hash //' "$dir/err" >"$dir/hash"
    works "generate --trace" $sort "Sort 40, 50, 46, 55" --trace "$dir/demo.jsonl"
    same "the answer is as without it" "$dir/out" "$dir/answer"
    sed 's/.*hash //' "$dir/err" >"$dir/hash2"
    same "and its hash" "$dir/hash2" "$dir/hash"
    steps=$(sed -n 's/.* \([0-9]*\) steps, .*/\1/p' "$dir/err")
    check "a line a step, one before and one after" "$(wc -l <"$dir/demo.jsonl")" -eq $((steps + 2))
    works "generate --trace again" $sort "Sort 40, 50, 46, 55" --trace "$dir/again.jsonl"
    same "gives the same bytes" "$dir/again.jsonl" "$dir/demo.jsonl"
    has "the trace has the hash" "\"hash\":\"$(cat "$dir/hash")\"" "$dir/demo.jsonl"
}
works "a trace of several canvases" generate --device cpu -t 1 -m $tiny -p hello -n 72 --seed 1 --ignore-eos --trace "$dir/canvases.jsonl"
works "a trace of infill" generate --device cpu -t 1 -p "What is 12 + 34?" --canvas '12 + 34 = [[2]]; [[36|46|47]]' --choices '1=3|4' --max-steps 4 --trace "$dir/infill.jsonl"
# shellcheck disable=SC2086
works "a trace with stop strings" $sort "Sort 40, 50, 46, 55" --stop ' 50' --stop "
" --trace "$dir/stop.jsonl"
error "no folder for the trace" "easel: $dir/none/x: cannot be written: No such file" generate -p "Hello" --trace "$dir/none/x"
error "a folder as the trace" "easel: $dir: cannot be written: Is a directory" generate -p "Hello" --trace "$dir"
error "a prompt that is none" "easel: the prompt is empty" generate -p "" --trace "$dir/empty.jsonl"
error "a setting that is none" "easel: t-min is nan" generate -p Hello --t-min nan --trace "$dir/empty.jsonl"
error "an answer that does not fit" "easel: 18 prompt tokens and 313 canvases" generate -p Hello -n 10000 --trace "$dir/empty.jsonl"
error "a hole that is none" "easel: the canvas has the hole [[0]]" generate -p Hello --canvas "[[0]]" --trace "$dir/empty.jsonl"
check "leaves no trace" ! -e "$dir/empty.jsonl"

"$easel" generate -t 1 -m $tiny -p hello -n 3840 --ignore-eos --confidence 0 --trace "$dir/stopped.jsonl" </dev/null >"$dir/out" 2>"$dir/err" &
pid=$!
wait_for test -s "$dir/stopped.jsonl"
kill -INT $pid
wait $pid
check "Ctrl-C exits with 130" $? -eq 130
has "and ends the trace" '{"finish":"cancelled"' "$dir/stopped.jsonl"

# ---- The page and the figure

for which in demo canvases infill stop; do
    works "a page of $which" trace "$dir/$which.jsonl" -o "$dir/$which.html"
    check "says nothing" ! -s "$dir/out" -a ! -s "$dir/err"
done
works "a page to stdout" trace "$dir/demo.jsonl"
same "is the same" "$dir/out" "$dir/demo.html"
if grep -qE '(src|href)="?(https?:)?//|url\(|@import' "$dir/demo.html"; then bad "the page is self-contained" "$(grep -E '//' "$dir/demo.html" | head -n 1)"
else ok "the page is self-contained"; fi
works "a figure" trace "$dir/demo.jsonl" --svg -o "$dir/demo.svg"
works "a figure to stdout" trace --svg "$dir/demo.jsonl"
same "is the same" "$dir/out" "$dir/demo.svg"
works "a figure of several canvases" trace "$dir/canvases.jsonl" --svg -o "$dir/canvases.svg"
check "has a panel each" "$(grep -c 'position in canvas' "$dir/canvases.svg")" -eq 3
if grep -qE '<(image|script|style|foreignObject)|href|url\(' "$dir/canvases.svg"; then bad "the figure is plain" "found $(grep -oE '<(image|script|style)|href' "$dir/canvases.svg")"
else ok "the figure is plain"; fi

# ---- Files that are cut or no traces

size=$(wc -c <"$dir/demo.jsonl")
for part in 1 2 5 7 9; do
    n=$((size * part / 10))
    head -c $n "$dir/demo.jsonl" >"$dir/cut.jsonl"
    works "the first $n bytes of a trace" trace "$dir/cut.jsonl" -o "$dir/cut.html"
    whole=$(($(wc -l <"$dir/cut.jsonl") - 1))
    has "say so" "easel: $dir/cut.jsonl: the trace is cut short, $whole whole step" "$dir/err"
    works "and give a figure" trace "$dir/cut.jsonl" --svg
done
: >"$dir/x"
error "an empty file" "easel: $dir/x: is empty, expected a trace" trace "$dir/x"
head -n 1 "$dir/demo.jsonl" >"$dir/x"
error "a first line alone" "easel: $dir/x: has no whole step" trace "$dir/x"
head -c 100 "$dir/demo.jsonl" >"$dir/x"
error "half a first line" "easel: $dir/x: is not a trace" trace "$dir/x"
error "a model" "easel: $tiny: is not a trace" trace $tiny
error "a page" "easel: $dir/demo.html: is not a trace" trace "$dir/demo.html"
error "a folder" "easel: $dir: cannot be read: Is a directory" trace "$dir"
error "no file" "easel: $dir/none: cannot be opened: No such file" trace "$dir/none"
sed 's/^{"easel_trace":1,/{"easel_trace":2,/' "$dir/demo.jsonl" >"$dir/x"
error "a trace of the future" "easel: $dir/x: is a trace of version 2, this program reads 1" trace "$dir/x"
sed '3s/"argmax":\[[0-9]*,/"argmax":[/' "$dir/demo.jsonl" >"$dir/x"
error "a step that lacks a token" "easel: $dir/x line 3: key argmax has 31 items, expected 32" trace "$dir/x"
sed '3s/.*/\{/' "$dir/demo.jsonl" >"$dir/x"
error "a broken line in the middle" "easel: $dir/x line 3: is not a JSON object" trace "$dir/x"
cp "$dir/demo.jsonl" "$dir/x"
error "the trace as the output" "easel: $dir/x: is the trace itself" trace "$dir/x" -o "$dir/x"
same "is left alone" "$dir/x" "$dir/demo.jsonl"
error "no folder for the page" "easel: $dir/none/x: cannot be written: No such file" trace "$dir/demo.jsonl" -o "$dir/none/x"
run trace "$dir/demo.jsonl"
cp "$dir/out" "$dir/page"
$limit "$easel" trace - -o - <"$dir/demo.jsonl" >"$dir/out"
same "trace - -o - is a file's page" "$dir/out" "$dir/page"
error "no trace named" "easel: file is required" trace

if [ -c /dev/full ]; then
    # shellcheck disable=SC2086
    run $sort "Sort 40, 50, 46, 55" --trace /dev/full
    check "a trace to a full disk: exit 1" $? -eq 1
    same "the answer is there" "$dir/out" "$dir/answer"
    check "statistics, then one error" "$(grep -c 'hash' "$dir/err") $(wc -l <"$dir/err")" = "1 2"
    check "which says what happened" "$(tail -n 1 "$dir/err")" = "easel: /dev/full: the trace cannot be written: No space left on device"
    error "a page to a full disk" "easel: /dev/full: cannot be written: No space left" trace "$dir/demo.jsonl" -o /dev/full
    $limit "$easel" trace "$dir/demo.jsonl" >/dev/full 2>"$dir/err"
    check "a page to a full stdout: exit 1" $? -eq 1
    has "and one line" "easel: cannot write to stdout: No space left" "$dir/err"
else
    skip "full disk" "there is no /dev/full here"
fi
# shellcheck disable=SC2086
(ulimit -f 1 && exec "$easel" $sort "Sort 40, 50, 46, 55" --trace "$dir/limited") </dev/null >"$dir/out" 2>"$dir/err"
check "a trace that may not grow: exit 1" $? -eq 1
check "the answer is there" -s "$dir/out"
has "and why the trace is not" "easel: $dir/limited: the trace cannot be written: File too large" "$dir/err"

# ---- What people see

if ! command -v python3 >/dev/null; then
    skip "the page in a browser" "needs python3"
else
    python3 tests/make_traces.py "$dir"
    for which in hostile wide; do
        works "a page of $which tokens" trace "$dir/$which.jsonl" -o "$dir/$which.html"
        works "a figure of $which tokens" trace "$dir/$which.jsonl" --svg -o "$dir/$which.svg"
    done
    for which in demo canvases hostile wide; do
        if python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$dir/$which.svg" 2>"$dir/err"
        then ok "the figure of $which is XML"; else bad "the figure of $which is XML" "$(tail -n 1 "$dir/err")"; fi
    done
    if ! python3 -c 'import sys; sys.path.insert(0, "tests"); import browser; sys.exit(not browser.find_browser())' 2>/dev/null; then
        skip "the page in a browser" "needs Chromium and python3 3.10"
    else
        # Without a limit over all: each wait in it has its own.
        python3 tests/trace_page.py "$dir" >"$dir/browser" 2>"$dir/err"
        status=$?
        grep -E '^(ok|FAIL) ' "$dir/browser"
        passed=$((passed + $(grep -c '^ok ' "$dir/browser")))
        failed=$((failed + $(grep -c '^FAIL ' "$dir/browser")))
        check "the browser's tests come to their end: $(tail -n 1 "$dir/err")" $status -eq 0
        # To look at: the page as the tests saw it.
        [ ! -f "$dir/page.png" ] || cp "$dir/page.png" "$(dirname "$easel")/trace.png"
    fi
fi

end
