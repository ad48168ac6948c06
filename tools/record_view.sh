#!/bin/sh
# record_view.sh EASEL [FILE]: records `easel chat` at work in a terminal (tmux plays it) and writes an animated SVG,
# docs/view.svg. A high first temperature and a pause after each step make the demo model, which is done after two
# steps otherwise, show what a large one does.
set -eu
easel=${1:?usage: sh tools/record_view.sh build/easel [docs/view.svg]}
out=${2:-docs/view.svg}
dir=$(mktemp -d)
tm() { LC_ALL=C.UTF-8 tmux -u -S "$dir/tmux" -f /dev/null "$@"; }
trap 'tm kill-server 2>/dev/null; rm -rf "$dir"' EXIT
tm new-session -d -x 76 -y 8 "$easel chat --no-history --device cpu --view-delay 250 --t-max 4 --max-steps 12"

n=0
look() {  # look SECONDS: a picture ten times a second
    for _ in $(seq $(($1 * 10))); do
        n=$((n + 1))
        tm capture-pane -p -e >"$dir/$(printf %04d $n)"
        sleep 0.1
    done
}
say() { tm send-keys -l "$1"; look 1; tm send-keys Enter; look 4; }
sleep 1
tm send-keys -l /clear
tm send-keys Enter
tm send-keys C-l
sleep 1
say 'Make JSON: Ann is 31 years old and lives in Oslo.'
say 'Sort 52, 17, 31, 88'
python3 tools/ansi_to_svg.py 76 8 "$dir"/[0-9]* >"$out"
ls -l "$out"
