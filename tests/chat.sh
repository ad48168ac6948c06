#!/bin/sh
# chat.sh PROGRAM: tests `easel chat`: through pipes, and with a keyboard and a screen, which tmux plays.
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
# shellcheck source=tests/screen.sh
. tests/screen.sh
export XDG_STATE_HOME="$dir/state"

# On one thread: where others compute too, several wait for each other in every step.
cpu="--device cpu -t 1"
# shellcheck disable=SC2086
chat() { $limit "$easel" chat $cpu "$@" >"$dir/out" 2>"$dir/err"; }
reused() { sed -n 's/^reused \([0-9]*\) of.*/\1/p' "$dir/err"; }  # a number an answer

# ---- Through pipes: answers on stdout and nothing else

printf 'What is 47 + 35?\n\n/clear\nReverse "planet"\n' | chat
check "a turn a line" "$?$(tr '\n' ' ' <"$dir/out")" = "082 tenalp "
check "no history of a pipe" ! -e "$dir/state"
printf 'What is 47 + 35?\r\n/clear\r\nReverse "planet"' | chat
check "lines of Windows, the last one unfinished" "$?$(tr '\n' ' ' <"$dir/out")" = "082 tenalp "
printf '\357\273\277What is 47 + 35?\n/clear\nReverse "planet"\n' | chat
check "a byte-order mark" "$?$(tr '\n' ' ' <"$dir/out")" = "082 tenalp "
printf '\357\273\277/clear\n' | chat
check "a byte-order mark before a command" $? -eq 0
chat </dev/null
check "no line, no answer" "$?$(wc -c <"$dir/out")" = 00
"$easel" generate --device cpu -t 1 -p "$(printf 'Sort 52,\n17, 31')" --seed 3 >"$dir/expected" 2>/dev/null
printf 'Sort 52,\\\n17, 31\n' | chat --seed 3
same "a line that ends in a backslash goes on" "$dir/out" "$dir/expected"
printf '"""Sort 52,\n17, 31"""\n' | chat --seed 3
same "three quotes, on the lines of the text" "$dir/out" "$dir/expected"
printf '"""\nSort 52,\n17, 31\n"""\n' | chat --seed 3
same "three quotes, on lines of their own" "$dir/out" "$dir/expected"
printf '"""\n/quit\n"""\n' | chat -n 1
has "a quoted text is no command" "reused" "$dir/err"
printf '"""\nhi\n' | chat
check "quotes that never end" "$?$(wc -c <"$dir/out")" = 10
has "quotes that never end are told" "before the closing \"\"\"" "$dir/err"

printf 'What is 47 + 35?\nWhat is 12 + 30?\nWhat is 5 + 6?\n/stats\n' | chat
# Everything up to the model's turn is found in the cache again; the demo model's turn has some 20 tokens.
# shellcheck disable=SC2046  # a number each
set -- $(reused)
check "each turn reuses more" "${1:-9}" -eq 0 -a "${2:-0}" -ge 10 -a "${3:-0}" -ge "$((${2:-0} + 15))"
has "/stats adds up" "so far: reused $((${2:-0} + ${3:-0})) of" "$dir/err"
has "/stats tells the context" "3 turns, " "$dir/err"

# What the model answers is the conversation's, as in a pipe line with all its messages.
printf 'hello\nmore\n' | chat -m "$tiny" -n 8 -s brief
first=$(head -n 1 "$dir/out")
cp "$dir/out" "$dir/two"
printf '/system brief\nhello\n/save %s/c.json\nmore\n' "$dir" | chat -m "$tiny" -n 8
same "/system is --system" "$dir/out" "$dir/two"
has "/save writes the roles" '"role": "assistant"' "$dir/c.json"
printf '/load %s/c.json\nmore\n' "$dir" | chat -m "$tiny" -n 8
tail -n +2 "$dir/two" >"$dir/second"
same "/load goes on where /save was" "$dir/out" "$dir/second"
chmod 600 "$dir/c.json"
printf '/load %s/c.json\n/save %s/c.json\n' "$dir" "$dir" | chat -m "$tiny"
check "a file that is its owner's alone stays so" "$(stat -c %a "$dir/c.json")" = 600
check "no part is left of a /save" ! -e "$dir/c.json.part"
printf 'hello\n/clear\nhello\n' | chat -m "$tiny" -n 8 -s brief
check "/clear begins anew" "$(tail -n 1 "$dir/out")" = "$first"
printf 'hello\nmore\n/drop\nhello\n/drop 2\nhello\n' | chat -m "$tiny" -n 8 -s brief
check "/drop forgets the oldest turns" "$(tail -n 1 "$dir/out")" = "$first"
if command -v python3 >/dev/null; then
    python3 tests/make_thinking.py "$dir/thinking.gguf"
    echo "Count to 6." | chat -m "$dir/thinking.gguf"
    check "an answer with a thought" $? -eq 0
    has "its control characters are marks" "$(printf 'thought: \357\277\275]0;x\357\277\275 \357\277\275')" "$dir/err"
    check "and none are left" "$(LC_ALL=C tr -cd '\033\233\007' <"$dir/err" | wc -c)" -eq 0
else
    skip "a thought's control characters" "needs python3"
fi
printf 'hello\nmore\n/drop\n/stats\n' | chat -m "$tiny" -n 8
has "/stats after /drop has no old context" "1 turn; seed 0" "$dir/err"
printf 'hello\n/system brief\n/stats\n' | chat -m "$tiny" -n 8
has "/stats after /system neither" "1 turn; seed 0" "$dir/err"
printf 'hello\n/seed 7\n/clear\nhello\n' | chat -m "$tiny" -n 8
"$easel" generate --device cpu -t 1 -m "$tiny" -n 8 -p hello --seed 7 2>/dev/null >"$dir/expected"
tail -n 1 "$dir/out" >"$dir/second"
same "/seed" "$dir/second" "$dir/expected"
printf '/think on\nhello\n' | chat -m "$tiny" -n 8
"$easel" generate --device cpu -t 1 -m "$tiny" -n 8 -p hello --think 2>/dev/null >"$dir/expected"
same "/think on" "$dir/out" "$dir/expected"

# A message, one that is as long as what sliding layers keep, and the first again.
text() { awk -v n="$1" 'BEGIN { for (i = 0; i < n; i++) printf "%c", 97 + i * 7 % 26; print "" }'; }
{ text 400; text 3400; echo /clear; text 400; } | chat -m "$tiny" -n 8
has "what is encoded again is told" "tokens of the prompt are encoded again" "$dir/err"

# Each of these is one line on stderr, and the conversation goes on.
echo '{"messages": [{"role": "tool", "content": ""}]}' >"$dir/role.json"
echo '{"messages": [{"role": "user", "content": "x"}]}' >"$dir/open.json"
echo '{"messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": "x"}]}' >"$dir/turns.json"
echo '[' >"$dir/bad.json"
while IFS='|' read -r name line text; do
    printf '%s\nReverse "planet"\n' "$line" | sed "s|DIR|$dir|" | chat
    status=$?
    if [ $status -ne 1 ]; then bad "$name" "exit $status, expected 1"
    elif [ "$(cat "$dir/out")" != tenalp ]; then bad "$name" "the next line is answered with: $(cat "$dir/out")"
    elif [ "$(grep -c '^easel: ' "$dir/err")" -ne 1 ]; then bad "$name" "stderr: $(cat "$dir/err")"
    else has "$name" "$text" "$dir/err"; fi
done <<'END'
an unknown command|/sav x|there is no command /sav, the nearest is /save
a command of capitals|/QUIT|the nearest is /quit
/think what|/think maybe|expected on or off
/seed what|/seed -1|/seed got "-1", expected 0 to 18446744073709551615
/seed past 64 bits|/seed 18446744073709551616|expected 0 to
/drop without a turn|/drop 1|there are no turns
/clear takes nothing|/clear all|takes no argument
/save without a name|/save|expected a file name
/save to no folder|/save DIR/none/x|/none/x: cannot be written: No such file
/save to a full disk|/save /dev/full|/dev/full: cannot be written: No space left on device
/load without a name|/load|expected a file name
/load of nothing|/load DIR/none|/none: cannot be opened: No such file
/load of a folder|/load DIR|cannot be read: Is a directory
/load of what has no end|/load /dev/zero|/dev/zero: is longer than 64000000 bytes
/load of no JSON|/load DIR/bad.json|is not valid JSON, expected what /save writes
/load of a strange role|/load DIR/role.json|message 1 has the role "tool", expected user or assistant
/load out of turn|/load DIR/turns.json|message 2 is the assistant's, expected user and assistant in turn
/load of half a turn|/load DIR/open.json|the last message is the user's
END
if [ -c /dev/full ]; then ok "the full disk is still a device"; else bad "the full disk" "/save replaced /dev/full"; fi
printf 'caf\351\nReverse "planet"\n' | chat
check "a line that is not UTF-8" "$?$(cat "$dir/out")" = 1tenalp
# A disk that is full for a part of the text: what was there before stays.
printf 'old' >"$dir/old.json"
for _ in 1 2 3; do printf '%0200d\n' 1; done >"$dir/in"
printf '/save %s/old.json\n' "$dir" >>"$dir/in"
(ulimit -f 1; trap '' XFSZ; "$easel" chat --device cpu -t 1 -m "$tiny" -n 8 <"$dir/in" 2>&1 >/dev/null) | cat >"$dir/err"
has "a full disk is told" "old.json: cannot be written: File too large" "$dir/err"
check "and the old file is as it was" "$(cat "$dir/old.json")" = old

# The context: 64 tokens have room for a few turns of the demo model, whose canvas has 32.
printf 'Hello\nHello\nHello\nHello\n/drop 9\n/clear\nHello\n' | chat -c 96
has "a full context is told" "the context of 96 tokens is full: the prompt would have " "$dir/err"
has "with the way out" "/drop forgets the oldest turn, /clear all of them" "$dir/err"
has "and answers go on after /clear" "a new conversation" "$dir/err"
check "the last one is answered" "$(sed '1,/a new conversation/d' "$dir/err" | grep -c '^reused')" -eq 1
printf '%0300d\n' 1 | chat -c 96
has "one message that is too long" "the context has 96: shorten the prompt" "$dir/err"
chat -c 96 -n 2048 <<'END'
What is 47 + 35?
END
check "an answer gets what room there is" "$(cat "$dir/out")" = 82

chat --think --max-steps 0 </dev/null
check "a wrong flag is an error" $? -eq 1
chat </
check "stdin that cannot be read" "$?$(cat "$dir/err")" = "1easel: stdin cannot be read: Is a directory"
printf 'hello\nhello\n' | { $limit "$easel" chat --device cpu -t 1 2>/dev/null; echo $? >"$dir/status"; } | true
check "a reader that goes away is no error" "$(cat "$dir/status")" -eq 0
mkfifo "$dir/fifo"
"$easel" chat --device cpu -t 1 -m "$tiny" -n 3840 --confidence 0 <"$dir/fifo" >"$dir/out" 2>"$dir/err" &
pid=$!
{ echo hello; wait_for catches_int $pid; sleep 0.5; kill -INT $pid; } >"$dir/fifo"
wait $pid
check "Ctrl-C ends a chat through pipes with 130" $? -eq 130

# ---- With a keyboard

if ! has_tmux; then
    skip "a chat in a terminal" "needs tmux"
    end
fi

# Steps that take time, so that there is something to see and to stop.
slow="--t-max 4 --max-steps 12 --view-delay"
screen_start 80 24
export_screen XDG_STATE_HOME "$XDG_STATE_HOME"
keys "$easel chat $cpu $slow 150; echo exit \$?" Enter
wait_screen "a chat greets" "Ctrl-D ends"
keys 'What is 47 + 3' BSpace '35?' Enter
wait_screen "the canvas is seen" "canvas 1 | step"
wait_screen "an answer" "^82$"
wait_screen "with its figures" "^reused 0 of 23"
check "and no canvas" "$(screen | grep -c 'canvas 1')" -eq 0
if grep -q -- -DEASEL_EDIT build/deps/edit.flags 2>/dev/null; then
    wait_for at_prompt
    keys Up
    wait_screen "arrow-up is the line before" "^> What is 47 + 35?$"
    keys Home Right Right Right Right Right Delete Delete are End Enter
    wait_screen "the edited line" "^> What are 47 + 35?$"
    wait_screen "is answered" "^reused [1-9][0-9]* of"
    wait_for at_prompt
    keys C-r; keys planet; keys C-c
    wait_screen "Ctrl-C leaves a line" '\^C'
    wait_for at_prompt
    interrupt 'half a line'
    keys C-d
    wait_screen "Ctrl-D ends" "^exit 0"
    check "the history is a file" "$(sed -n 2p "$dir/state/easel/history")" = "What are 47 + 35?"
    check "that is the user's alone" "$(ls -l "$dir/state/easel/history" | cut -c 1-10)" = "-rw-------"
    fresh "$easel chat $cpu; echo exit \$?"
    wait_screen "again" "Ctrl-D ends"
    keys Up Up
    wait_screen "the history outlives the program" "^> What is 47 + 35?$"
    keys C-c
    wait_for at_prompt
    keys C-d
    wait_screen "Ctrl-C and Ctrl-D" "^exit 0"
    fresh "$easel chat $cpu --no-history; echo exit \$?"
    wait_screen "once more" "Ctrl-D ends"
    keys 'not kept' Enter
    wait_screen "not kept" "^reused"
    keys /quit Enter
    wait_screen "/quit ends" "^exit 0"
    check "--no-history keeps nothing" "$(grep -c 'not kept' "$dir/state/easel/history")" -eq 0
    # A window that changes while a line is typed, which breaks it or makes it whole.
    fresh "$easel chat $cpu --no-history; echo exit \$?"
    wait_screen "a chat in a window" "Ctrl-D ends"
    wait_for at_prompt
    keys Count Space to Tab 8, Space and Space some Space more Space words
    typed=words
    shows_typed() { scrollback | tr -d ' \n' | grep -q "$typed"; }
    for size in "20 24" "80 24" "80 12" "30 24" "80 24"; do
        # shellcheck disable=SC2086
        screen_size $size
        typed=${typed}x
        keys x
        wait_for shows_typed
        check "$size: the line is there once" "$(scrollback | grep -c '> Count')" -eq 1
    done
    keys Enter
    wait_screen "it is answered" "^reused"
    wait_for at_prompt
    keys "/save $dir/tab.json" Enter
    wait_screen "it is saved" "^2 messages written"
    has "a tab is kept" 'to\t8, and' "$dir/tab.json"
    keys C-d
    wait_screen "the window's chat ends" "^exit 0"
    # As many lines as make it cut them.
    for _ in $(seq 2100); do echo x; done >"$dir/state/easel/history"
    fresh "$easel chat $cpu; echo exit \$?"
    wait_screen "a long history" "Ctrl-D ends"
    keys C-d
    wait_screen "is read" "^exit 0"
    check "is cut" "$(wc -l <"$dir/state/easel/history")" -le 1001
else
    skip "line editing" "the program was built without libedit"
    keys C-d
fi

# Ctrl-C stops an answer, not the chat.
fresh "$easel chat $cpu $slow 400; echo exit \$?"
wait_screen "a chat to stop" "Ctrl-D ends"
keys 'What is 47 + 35?' Enter
wait_screen "a canvas to stop" "canvas 1 | step [2-9]"
keys C-c
wait_screen "Ctrl-C stops the answer" "stopped: the question is forgotten"
check "and clears the screen" "$(screen | grep -c 'canvas 1')" -eq 0
wait_for at_prompt
keys "/save $dir/empty.json" Enter
wait_screen "the stopped question is forgotten" "^0 messages written"
keys 'Reverse "planet"' Enter
wait_screen "the next one is answered" "^tenalp$"
keys /quit Enter
wait_screen "the chat ended well" "^exit 0"
# Of several canvases, those that were finished are kept.
fresh "$easel chat $cpu -m $tiny -n 3840 --confidence 0 --max-steps 3 --view-delay 100; echo exit \$?"
wait_screen "a long answer" "Ctrl-D ends"
keys hello Enter
wait_screen "is on its way" "canvas \([2-9]\|[1-9][0-9]*[0-9]\) | "
keys C-c
wait_screen "what was finished is kept" "what is above is kept"
wait_for at_prompt
keys "/save $dir/kept.json" Enter
wait_screen "in the conversation" "^2 messages written"
keys /quit Enter
wait_screen "the long one ended well" "^exit 0"

# The plain way of a terminal that cannot move its cursor.
fresh "TERM=dumb $easel chat $cpu; echo exit \$?"
wait_screen "a dumb terminal" "Ctrl-D ends"
keys 'Reverse "planet"' Enter
wait_screen "has answers" "^tenalp$"
wait_for at_prompt
interrupt 'half a li'
keys /clear Enter 'Reverse "garden"' Enter
wait_screen "Ctrl-C leaves its line" "^nedrag$"
keys C-d
wait_screen "Ctrl-D ends it" "^exit 0"

end
