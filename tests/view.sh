#!/bin/sh
# view.sh PROGRAM: tests the live canvas on screens of several sizes, which tmux plays: what is seen meanwhile, and
# what is left.
# shellcheck disable=SC2317  # some functions are called by wait_for and at the end
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
# shellcheck source=tests/screen.sh
. tests/screen.sh

if ! has_tmux; then
    skip "the live canvas" "needs tmux"
    end
fi

# One canvas of 12 steps; fifteen that go past the answer's end, far more than 12 rows of 20 columns hold. On one thread:
# where others compute too, several wait for each other in every step.
json="generate --device cpu -t 1 -p 'Make JSON: Ann is 31 years old and lives in Oslo.'"
short="$json --t-max 4 --max-steps 12"
lasting="$json --max-steps 40 --confidence 0"  # all is accepted early, and stays so until the last step
endless="$json --t-max 4 --max-steps 10000 --confidence 0"  # for what is to be stopped
long="generate --device cpu -t 1 --ignore-eos -n 480 --stability 0 --confidence 9 -p 'Sort 52, 17, 31'"
for kind in short long; do
    eval "eval \"\$easel \$$kind\"" >"$dir/$kind" 2>/dev/null
done

# start FLAGS...: a shell script that runs the program on an empty screen, between lines that can be found again. Returns
# when it has begun: what an earlier one left is gone.
n_run=0
begun() { scrollback | grep -q "^BEGIN $n_run$"; }
start() {
    n_run=$((n_run + 1))
    echo "trap : INT; printf '\\033[H\\033[2J\\033[3J'; echo BEGIN $n_run; $*; echo \"END \$?\"" >"$dir/run.sh"
    keys "sh $dir/run.sh" Enter
    wait_for begun
}
# left NAME KIND: between BEGIN and the statistics, on the screen and above it, is the answer's text, once, and
# nothing else. Where lines were broken does not matter.
left() {
    wait_screen "$1: ends" "^END 0"
    scrollback | sed -n '/^BEGIN/,/^END/p' >"$dir/all"
    sed '1d; /^prompt [0-9]/,$d; /^END/d' "$dir/all" | tr -d ' \n' >"$dir/text"
    tr -d ' \n' <"$dir/$2" >"$dir/expected"
    same "$1: the answer is left, once, and nothing else" "$dir/text" "$dir/expected"
}

screen_start 80 24
for size in "80 24" "40 12" "20 10"; do
    # shellcheck disable=SC2086
    screen_size $size
    start "$easel $short --view-delay 150"
    wait_screen "$size: the steps are seen" "step [1-9]"
    left "$size" short
    start "$easel $long --view-delay 150"
    wait_screen "$size: a long answer" "step [1-9]"
    screen >"$dir/seen"
    check "$size: the status is below the rows that fit" "$(sed -n '$p' "$dir/seen" | grep -c '^canvas\|^step\|^$')" -eq 1
    left "$size, a long answer" long
done

# Smaller and larger in the middle, where lines above push the canvas down.
screen_size 80 24
start "seq 30; $easel $json --t-max 4 --max-steps 60 --confidence 0 --view-delay 100"
wait_screen "before the size changes" "step [2-9]"
for size in "40 12" "20 12" "80 24"; do
    step=$(step_seen)
    # shellcheck disable=SC2086
    screen_size $size
    # The next one may have been drawn before the size changed.
    if wait_for step_after $((step + 1)); then ok "a changed size, $size"
    else bad "a changed size, $size" "no step after $step on the screen: $(screen | tail -n 3)"; fi
done
wait_screen "a large one has its figures" "accepted [0-9]*/32 | entropy"
wait_screen "after the size has changed" "^END 0"
scrollback | sed -n '/^30$/,/^END/p' >"$dir/all"
sed '1d; /^prompt [0-9]/,$d' "$dir/all" | tr -d ' \n' >"$dir/text"
tr -d ' \n' <"$dir/short" >"$dir/expected"
same "the answer is left, once, and nothing else" "$dir/text" "$dir/expected"

# Colours: accepted ones bright; without colours dots for what is not accepted.
screen_colors() { tm capture-pane -p -e | grep -q "$(printf '\033')\[1m$1"; }
start "$easel $lasting --view-delay 100"
if wait_for screen_colors '{"name":"A'; then ok "accepted tokens are bright"; else bad "accepted tokens are bright" "$(tm capture-pane -p -e | head -n 3)"; fi
left "in colours" short
for way in "NO_COLOR=1 $easel $short" "$easel $short --color never"; do
    start "$way --view-delay 150"
    wait_screen "no colours: dots" '^····'
    check "no colours: no attributes" "$(tm capture-pane -p -e | grep -c "$(printf '\033')\[[1-9]")" -eq 0
    left "no colours" short
done

# Ctrl-C and other ends.
tty=$(tm display-message -p '#{pane_tty}')
stty -g <"$tty" >"$dir/modes0"
start "$easel $endless --view-delay 200"
wait_screen "a canvas to stop" "step [2-9]"
check "keys are not echoed meanwhile" "$(stty -a <"$tty" | grep -c -- ' -echo ')" -eq 1
keys C-c
wait_screen "Ctrl-C" "^END 130"
scrollback >"$dir/all"
check "Ctrl-C leaves no canvas" "$(grep -c '^canvas\|name' "$dir/all")" -eq 0
stty -g <"$tty" >"$dir/modes1"
same "and the terminal's modes as they were" "$dir/modes0" "$dir/modes1"
for signal in TERM:Terminated HUP:Hangup QUIT:Quit; do
    start "ulimit -c 0; echo \$\$ >$dir/pid; exec $easel $endless --view-delay 300"
    wait_screen "a canvas to kill" "step [2-9]"
    kill -"${signal%:*}" "$(cat "$dir/pid")"
    wait_screen "a program killed by SIG${signal%:*}" "^${signal#*:}"
    stty -g <"$tty" >"$dir/modes1"
    same "leaves the terminal's modes" "$dir/modes0" "$dir/modes1"
    check "and no canvas" "$(scrollback | grep -c '^canvas')" -eq 0
done
start "$easel $lasting --view-delay 100"
wait_screen "a canvas to type at" "step [2-9]"
keys Enter Enter 'echo typed' Enter
left "typed meanwhile" short
wait_screen "what was typed meanwhile is not lost" "typed"

# Where nothing may be redrawn.
start "TERM=dumb $easel $short --view on 2>$dir/err"
left "a dumb terminal" short
check "a dumb terminal gets plain text" "$(tr -cd '\033' <"$dir/err" | wc -c)" -eq 0
eval "$easel $short --view on" >"$dir/out" 2>"$dir/err"
same "--view on with the text in a file" "$dir/out" "$dir/short"
check "--view on draws on stderr, whatever it is" "$(grep -c 'step 1/12' "$dir/err")" -ge 1
eval "$easel $short" >"$dir/out" 2>"$dir/err"
check "no view in files" "$(tr -cd '\033' <"$dir/err" | wc -c)" -eq 0
eval "$easel $short --view off" >"$dir/out" 2>"$dir/err"
same "--view off" "$dir/out" "$dir/short"
eval "$easel $short --view on --show-steps" >"$dir/out" 2>"$dir/err"
check "--view on with --show-steps is refused" $? -eq 1
eval "$easel $short --view maybe" >"$dir/out" 2>"$dir/err"
check "--view takes auto, on and off" $? -eq 1

end
