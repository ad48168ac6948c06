# shellcheck shell=sh disable=SC2154  # $dir is of checks.sh
# screen.sh: a terminal that tests type into and look at: tmux. Read by chat.sh and view.sh after checks.sh.

has_tmux() { command -v tmux >/dev/null && LC_ALL=C.UTF-8 tmux -V >/dev/null 2>&1; }
tm() { LC_ALL=C.UTF-8 tmux -u -S "$dir/tmux" -f /dev/null "$@"; }  # a server of its own

# screen_start WIDTH HEIGHT: a shell with the prompt "$ " in the project's root.
screen_start() {
    tm new-session -d -x "$1" -y "$2" "env PS1='$ ' ENV= LC_ALL=C.UTF-8 sh"
    tm set-option -g history-limit 10000
    screen_on=1
}
screen_on=""
at_end() { if [ -n "$screen_on" ]; then tm kill-server 2>/dev/null; fi; }
export_screen() { keys "export $1='$2'" Enter; }
screen_size() { tm resize-window -x "$1" -y "$2"; }

# keys TEXT-OR-KEY-NAME...: typed one after the other.
keys() { for key; do tm send-keys "$key"; done; }
screen() { tm capture-pane -p; }                # what is seen
scrollback() { tm capture-pane -p -S - -E -; }  # and all above it
screen_has() { screen | grep -q -e "$1"; }

step_seen() { screen | sed -n 's/.*step \([0-9]*\).*/\1/p' | tail -n 1; }
step_after() { [ "$(step_seen)" -gt "$1" ]; }
wait_screen() {  # wait_screen NAME PATTERN: a check that a line comes to match it
    if wait_for screen_has "$2"; then ok "$1"
    else bad "$1" "no line matches '$2' on the screen: $(screen | sed '/^$/d' | tail -n 8)"; fi
}

# An empty prompt is the last line. Keys that come while a program handles Ctrl-C are lost.
at_prompt() { [ "$(screen | sed '/^$/d' | tail -n 1)" = ">" ]; }
interrupt() {  # interrupt TEXT: types it, then Ctrl-C, and waits for the next prompt
    keys "$1"
    wait_for screen_has "$1"
    keys C-c
    wait_for at_prompt
}

# fresh COMMAND: typed on a screen that has lost what an earlier chat left there, so that nothing is read of that one.
no_greeting() { ! screen_has "Ctrl-D ends"; }
fresh() {
    keys clear Enter
    wait_for no_greeting
    keys "$1" Enter
}
