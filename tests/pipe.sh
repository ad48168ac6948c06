#!/bin/sh
# pipe.sh PROGRAM: tests `easel pipe` as a script meets it: many lines, bad ones, cancels, back-pressure, a killed
# program, closed pipes, Ctrl-C.
# shellcheck disable=SC2317  # some functions are called by wait_for and at the end
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
pid=""
at_end() { [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null; }

# The tiny model on one thread, so that a line takes about a millisecond.
pipe() { $limit "$easel" pipe -m "$tiny" -t 1 "$@" >"$dir/out" 2>"$dir/err"; }
of_type() { grep -F "\"type\":\"$1\"" "$2"; }
count() { of_type "$1" "$2" | wc -l; }
done_ids() { of_type 'done' "$1" | sed 's/^{"id":"\{0,1\}\([^",]*\).*/\1/'; }
lines() {  # lines FIRST LAST: cheap requests with these ids
    awk -v a="$1" -v b="$2" 'BEGIN { for (i = a; i <= b; i++)
        printf "{\"id\":%d,\"prompt\":\"hi\",\"max_steps\":1,\"max_tokens\":4,\"seed\":%d}\n", i, i }'
}
stalled() {  # stalled PID: it has begun, and reads no more
    catches_int "$1" || return
    n_read=$(sed -n 's/^rchar: //p' "/proc/$1/io")
    sleep 0.5
    [ "$(sed -n 's/^rchar: //p' "/proc/$1/io")" = "$n_read" ]
}
rss() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$1/status"; }  # in KiB

# ---- Lines of every kind; the stream goes on after each

cat >"$dir/in" <<'END'
{"id":"first","prompt":"hi","max_steps":1,"max_tokens":4}
{bad
{"id":"role","messages":[{"role":"tool","content":"x"}]}
{"id":"none"}
{"id":"over","prompt":"hi","max_tokens":100000}
{"id":"step","prompt":"hi","max_steps":0}
{"id":"range","prompt_ids":[512]}
{"id":"key","prompt":"hi","max_steps":1,"max_token":4,"max_tokens":4}
{"cancel":"never"}

{"prompt":"hi","max_steps":1,"max_tokens":4}
{"id":"talk","messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"},{"role":"user","content":"v"}],"max_steps":1,"max_tokens":4}
{"id":"ids","prompt_ids":[5,6,7],"max_steps":1,"max_tokens":4}
END
printf '{"id":"utf8","prompt":"\377"}\n{"id":"last","prompt":"hi","max_steps":1,"max_tokens":4}' >>"$dir/in"
pipe <"$dir/in"
check "a bad line does not end the program" $? -eq 0
if [ "$(done_ids "$dir/out" | tr '\n' ' ')" = "first key 11 talk ids last " ]; then
    ok "good lines are answered in order, the last without a newline too"
else bad "good lines are answered in order" "$(done_ids "$dir/out" | tr '\n' ' ')"; fi
while IFS='|' read -r name text; do has "$name" "$text" "$dir/out"; done <<'END'
malformed JSON|{"id":null,"type":"error","line":2,"message":"the line is not valid JSON
an unknown role|{"id":"role","type":"error","line":3,"message":"messages[0].role is \"tool\", expected system, user or
no prompt|{"id":"none","type":"error","line":4,"message":"the line has 0 prompts, expected exactly one of
over the context|{"id":"over","type":"error","line":5,"message":
over the context tells the numbers|the context has 4096
a setting out of range|{"id":"step","type":"error","line":6,"message":"max steps is 0, expected 1 to 100000"}
a prompt id out of range|{"id":"range","type":"error","line":7,"message":"prompt id 512 is out of range
an unknown key|{"id":"key","type":"warning","line":8,"message":"unknown key max_token is ignored, did you mean max_tokens?"}
a cancel of nobody|{"id":null,"type":"warning","line":9,"message":"there is no id \"never\" to cancel"}
invalid UTF-8|{"id":null,"type":"error","line":14,"message":"the line is not valid UTF-8: byte 0xff at offset 23"}
END
check "nothing on stderr but warnings" "$(grep -cv '^easel: warning: ' "$dir/err")" -eq 0
if command -v python3 >/dev/null; then
    if python3 -c 'import json, sys; [json.loads(l) for l in sys.stdin.buffer]' <"$dir/out" 2>"$dir/python"
    then ok "every line out is JSON"; else bad "every line out is JSON" "$(tail -n 1 "$dir/python")"; fi
else
    skip "every line out is JSON" "needs python3"
fi

"$easel" generate -m "$tiny" -p hello -n 48 --seed 5 --print json 2>/dev/null | grep -o '"hash":"[0-9a-f]*"' >"$dir/hash"
echo '{"prompt":"hello","max_tokens":48,"seed":5}' | pipe
grep -o '"hash":"[0-9a-f]*"' "$dir/out" >"$dir/hash2"
same "the answer is the one of generate" "$dir/hash2" "$dir/hash"
echo '{"prompt":"hello","max_tokens":48,"seed":5}' | pipe --max-steps 2
has "flags are the lines' defaults" '"canvases":2,"steps":4' "$dir/out"
echo '{"prompt":"hello","max_tokens":48,"seed":5,"max_steps":3}' | pipe --max-steps 2
has "and a line's keys go first" '"canvases":2,"steps":6' "$dir/out"
pipe </dev/null
check "no line, no answer" "$?$(wc -l <"$dir/out")" = 00
pipe --max-steps 0 </dev/null
check "a wrong default is an error of the program" $? -eq 1
pipe --queue 0 </dev/null
check "a queue of nothing is refused" $? -eq 1
"$easel" pipe --schema >"$dir/out"
check "--schema" $? -eq 0
for key in prompt_ids messages ignore_eos self_cond_top_k cancel reused_tokens "with canvas: holes" warning; do
    has "the schema tells $key" "$key" "$dir/out"
done

error() {  # error NAME TEXT ARGUMENTS...: pipe says it on stderr, nothing on stdout, exit 1
    name=$1 text=$2
    shift 2
    $limit "$easel" pipe "$@" </dev/null >"$dir/out" 2>"$dir/err"
    result="$? $(wc -c <"$dir/out") $(wc -l <"$dir/err")"
    has "$name" "$text" "$dir/err"
    check "$name: exit 1 and one line" "$result" = "1 0 1"
}
error "a model that is not in the list" 'and no model has that name; the nearest names are q4_k_m and q5_k_m' -m q4_k_n
error "a model that is no GGUF file" 'Makefile: ' -m Makefile
error "an unknown flag" '--frobnicate' --frobnicate

# ---- Stop strings and frames

request='"prompt":"hello","max_tokens":24,"max_steps":2,"seed":3,"ignore_eos":true'
echo "{$request}" | pipe
cut -d '"' -f 10 "$dir/out" | tr -d '\\' >"$dir/text"
letter=$(tr -cd 'a-z' <"$dir/text" | cut -c 3)
echo "{$request,\"stop\":[\"not in it\",\"$letter\"]}" | pipe
has "a stop string ends the answer" '"finish_reason":"stop"' "$dir/out"
expected=$(sed "s/$letter.*//" "$dir/text")
if [ "$(cut -d '"' -f 10 "$dir/out" | tr -d '\\')" = "$expected" ]; then ok "the text is cut before it"
else bad "the text is cut before it" "$(cat "$dir/out")"; fi
echo "{$request,\"stop\":\"not in it\"}" | pipe
has "a stop string that does not come changes nothing" '"finish_reason":"length"' "$dir/out"
echo '{"prompt":"hello","max_tokens":48,"max_steps":3,"seed":3,"ignore_eos":true,"frames":true,"confidence":0}' | pipe
check "a frame a step" "$(count frame "$dir/out")" -eq 6
has "a frame has all its keys" '{"id":1,"type":"frame","canvas":1,"step":2,"text":"' "$dir/out"
check "the answer comes last" "$(tail -n 1 "$dir/out" | grep -c '"type":"done"')" -eq 1

# ---- Infill and the best of several, with the built-in model
printf '%s\n' '{"prompt":"What is 12 + 34?","canvas":"[[9]]","choices":{"1":["36","46"]},"log_probs":true}' \
    '{"prompt":"What is 12 + 34?","canvas":"[[9"}' '{"prompt":"Hello","best_of":2,"seed":3}' |
    "$easel" pipe --device cpu -t 1 >"$dir/out" 2>"$dir/err"
has "a hole is filled" '"text":"46","thought":""' "$dir/out"
has "and how surely" '"holes":[{"text":"46","confidence":0.9' "$dir/out"
has "log probabilities where they are asked for" '"log_probs":[-0.0' "$dir/out"
check "and only there" "$(grep -c '"log_probs"' "$dir/out")" -eq 1
has "a hole that is not closed" '{"id":2,"type":"error","line":2,"message":"the canvas has \"[[\" at offset 0' "$dir/out"
has "the best of two" '"tries":2' "$dir/out"

# ---- 10,000 lines, every 100th bad; and in another order

lines 1 10000 | awk 'NR % 100 == 0 { print "{\"id\":" NR ",\"prompt\":"; next } { print }' >"$dir/in"
began=$(date +%s)
pipe <"$dir/in"
check "10,000 lines" $? -eq 0
echo "10,000 lines took $(($(date +%s) - began)) s"
check "the bad ones are errors" "$(count error "$dir/out")" -eq 100
done_ids "$dir/out" >"$dir/ids"
awk 'BEGIN { for (i = 1; i <= 10000; i++) if (i % 100) print i }' >"$dir/expected"
same "the others are answered, each once, in order" "$dir/ids" "$dir/expected"
has "what neighbours share is encoded once" '"prompt_tokens":28,"reused_tokens":28' "$dir/out"

awk 'BEGIN { for (i = 1; i <= 400; i++)
    printf "{\"id\":%d,\"prompt\":\"%s\",\"max_steps\":1,\"max_tokens\":4}\n", i, i % 2 ? "tell me of one thing" : "and another" }' >"$dir/in"
reused() { sed 's/.*"reused_tokens":\([0-9]*\).*/\1/' "$dir/out" | awk '{ n += $1 } END { print n }'; }
pipe <"$dir/in"
in_order=$(reused)
pipe --unordered <"$dir/in"
check "--unordered reuses more" "$(reused)" -gt "$in_order"
done_ids "$dir/out" | sort -n >"$dir/ids"
seq 400 >"$dir/expected"
same "--unordered answers each once" "$dir/ids" "$dir/expected"

# ---- Lines that are too long. `&` would give the program an empty stdin, hence descriptor 5.

{ lines 1 1; head -c 100000000 /dev/zero | tr '\0' 'x'; echo; lines 3 3; sleep 2; } |
    { "$easel" pipe -m "$tiny" -t 1 <&5 >"$dir/out" 2>/dev/null & echo $! >"$dir/pid"; wait $!; echo $? >"$dir/status"; } 5<&0 &
job=$!
if wait_for n_lines "$dir/out" 3; then ok "a line of 100 MB: the stream goes on"
else bad "a line of 100 MB: the stream goes on" "$(wc -l <"$dir/out") lines out"; fi
if [ -r "/proc/$(cat "$dir/pid")/status" ]; then
    peak=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(cat "$dir/pid")/status")
    check "it is not kept (peak ${peak:-0} KiB)" "${peak:-999999}" -lt 80000
else
    skip "it is not kept" "there is no /proc here"
fi
wait $job
check "a line of 100 MB: exit 0" "$(cat "$dir/status")" -eq 0
has "a line of 100 MB is an error" '{"id":null,"type":"error","line":2,"message":"the line is longer than 16000000 bytes"}' "$dir/out"

# ---- A program that a test talks to: start, send, quit

start() {  # its stdin is file descriptor 3
    rm -f "$dir/fifo"
    mkfifo "$dir/fifo"
    "$easel" pipe -m "$tiny" -t 1 <"$dir/fifo" >"$dir/out" 2>"$dir/err" &
    pid=$!
    exec 3>"$dir/fifo"
}
quit() {  # its exit code to $status
    exec 3>&-
    wait $pid
    status=$?
    pid=""
}
# Takes far longer than any test waits, unless cancelled.
long() { echo "{\"id\":\"$1\",\"prompt\":\"hello\",\"max_tokens\":3840,\"ignore_eos\":true,\"confidence\":0,\"max_steps\":1000}"; }

start
# The empty lines are more than a pipe holds: once they are written, the others have been read.
{ long run; long wait; lines 1 1; long wait; head -c 200000 /dev/zero | tr '\0' '\n'; } >&3
echo '{"cancel":"wait"}' >&3
echo '{"cancel":"run"}' >&3
if wait_for n_lines "$dir/out" 4; then ok "cancels reach a running and a waiting request"
else bad "cancels reach a running and a waiting request" "$(wc -l <"$dir/out") lines out"; fi
has "the running one is cancelled" '{"id":"run","type":"done"' "$dir/out"
check "both say so" "$(grep -c '"finish_reason":"cancelled"' "$dir/out")" -eq 2
has "a duplicate id" '{"id":"wait","type":"error","line":4,"message":"id \"wait\" is waiting or running already' "$dir/out"
echo '{"cancel":"run"}' >&3
echo '{"id":"run","prompt":"hi","max_tokens":4,"max_steps":1}' >&3
if wait_for n_lines "$dir/out" 5; then ok "an answered id may come again, a done line is flushed at once"
else bad "an answered id may come again" "$(wc -l <"$dir/out") lines out"; fi
check "a late cancel is no warning" "$(count warning "$dir/out")" -eq 0
quit
check "the end of the input: exit 0" $status -eq 0

# ---- A reader that stalls: the program stops reading, its memory stays flat

if [ -r /proc/self/status ]; then
    mkfifo "$dir/stalled"
    # 200,000 lines of 250 bytes are 50 MB, and their answers more; far more than pipes and queue hold.
    awk 'BEGIN { pad = sprintf("%200s", ""); for (i = 1; i <= 200000; i++)
        printf "{\"id\":%d,\"prompt\":\"hi\",\"max_steps\":1,\"max_tokens\":4%s}\n", i, pad }' |
        { "$easel" pipe -m "$tiny" -t 1 <&5 >"$dir/stalled" 2>/dev/null & echo $! >"$dir/pid"; wait $!; echo $? >"$dir/status"; } 5<&0 &
    job=$!
    exec 4<"$dir/stalled"
    wait_for test -s "$dir/pid"
    wait_for stalled "$(cat "$dir/pid")"
    before=$(rss "$(cat "$dir/pid")")
    sleep 1
    after=$(rss "$(cat "$dir/pid")")
    check "a reader that stalls: memory is flat ($before, then $after KiB)" "$after" -le $((before + 200))
    head -n 3000 <&4 >/dev/null
    flat=$(rss "$(cat "$dir/pid")")
    check "and after 3,000 more answers ($flat KiB)" "$flat" -le $((before + 2000))
    exec 4<&-
    wait $job
    check "it goes away: exit 0" "$(cat "$dir/status")" -eq 0
else
    skip "a reader that stalls" "there is no /proc here"
fi

# ---- Killed, and started again with what is not answered

lines 1 2000 >"$dir/all"
{ head -n 1000 "$dir/all"; long hold; tail -n 1000 "$dir/all"; } >"$dir/in"  # it does not come to the end
"$easel" pipe -m "$tiny" -t 1 <"$dir/in" >"$dir/part1" 2>/dev/null &
pid=$!
wait_for n_lines "$dir/part1" 100
kill -KILL $pid
wait $pid 2>/dev/null
pid=""
check "killed on the way" "$(count 'done' "$dir/part1")" -lt 2000
# A line that was not finished is no answer.
sed -n '/}$/p' "$dir/part1" >"$dir/answers"
done_ids "$dir/answers" >"$dir/ids"
awk 'NR == FNR { answered[$1] = 1; next } !((FNR) in answered)' "$dir/ids" "$dir/all" >"$dir/rest"
pipe <"$dir/rest"
cat "$dir/out" >>"$dir/answers"
done_ids "$dir/answers" | sort -n >"$dir/ids"
seq 2000 >"$dir/expected"
same "no id is lost or doubled" "$dir/ids" "$dir/expected"

# ---- Under GNU parallel, as docs/scripts.md says it, with one killed on the way

if command -v parallel >/dev/null; then
    cat >"$dir/easel" <<END
#!/bin/sh
if mkdir "$dir/once" 2>/dev/null; then
    head -n 30 | "$easel" "\$@"
    kill -KILL \$\$
fi
exec "$easel" "\$@"
END
    chmod +x "$dir/easel"
    lines 1 400 >"$dir/in.jsonl"
    here=$PWD
    program=$(cd "$(dirname "$easel")" && pwd)/$(basename "$easel")
    sed -i "s|\"$easel\"|\"$program\"|" "$dir/easel"
    (cd "$dir" && split -l 100 in.jsonl part. && HOME=$dir parallel --will-cite -j 2 -k --retries 3 \
        "./easel pipe -t 1 -m $here/$tiny <{} 2>>err.parallel" ::: part.* >out.jsonl 2>"$dir/err")
    check "GNU parallel" $? -eq 0
    check "with an easel that is killed" -d "$dir/once"
    done_ids "$dir/out.jsonl" >"$dir/ids"
    seq 400 >"$dir/expected"
    same "every id once, in order" "$dir/ids" "$dir/expected"
else
    skip "GNU parallel" "needs parallel"
fi

# ---- Closed stdout, a full disk

: >"$dir/status"
lines 1 10000 | { $limit "$easel" pipe -m "$tiny" -t 1 2>"$dir/err"; echo $? >"$dir/status"; } | head -n 1 >/dev/null
check "pipe | head -n 1: exit 0" "$(cat "$dir/status")" -eq 0
check "and no message" "$(grep -cv '^easel: warning: ' "$dir/err")" -eq 0
# After an answer: with nothing to do, and with a request that would run for long.
for input in nothing long; do
    mkfifo "$dir/out_$input"
    for _ in 1 2 3 4 5; do
        rm -f "$dir/fifo"
        mkfifo "$dir/fifo"
        "$easel" pipe -m "$tiny" -t 1 <"$dir/fifo" >"$dir/out_$input" 2>/dev/null &
        pid=$!
        exec 3>"$dir/fifo" 4<"$dir/out_$input"
        { lines 1 1; [ $input = nothing ] || long 2; } >&3
        read -r _ <&4
        began=$(now_ms)
        exec 4<&-
        wait $pid
        status=$?
        took=$(($(now_ms) - began))
        pid=""
        exec 3>&-
        [ $took -le 2000 ] && break
    done
    check "stdout closed while stdin is open ($input): exit 0" $status -eq 0
    check "at once ($input, $took ms)" $took -le 2000
done
if [ -c /dev/full ]; then
    lines 1 3 | $limit "$easel" pipe -m "$tiny" -t 1 >/dev/full 2>"$dir/err"
    check "a full disk: exit 1" $? -eq 1
    has "a full disk is told" "easel: cannot write to stdout: No space left" "$dir/err"
else
    skip "a full disk" "there is no /dev/full here"
fi
pipe <"$dir"
check "a stdin that cannot be read: exit 1" $? -eq 1
has "and why" "easel: the input cannot be read: Is a directory" "$dir/err"

# ---- Ctrl-C

{ long run; lines 1 200; } >"$dir/in"
for _ in 1 2 3 4 5; do  # on a busy machine, one of them
    start
    cat "$dir/in" >&3  # in one piece, so that it is read in one
    wait_for stalled $pid
    interrupt $pid
    pid=""
    exec 3>&-
    [ $took -le 2000 ] && break
done
check "Ctrl-C exits with 130" $status -eq 130
check "Ctrl-C takes at most 2 seconds ($took ms)" $took -le 2000
check "all that was read is reported, the queue being full" "$(count 'done' "$dir/out")" -eq 201
check "as cancelled" "$(grep -c '"finish_reason":"cancelled"' "$dir/out")" -eq 201
start
lines 1 1 >&3
wait_for n_lines "$dir/out" 1
kill -INT $pid
wait $pid
check "Ctrl-C with nothing to do exits with 130" $? -eq 130
pid=""
exec 3>&-

# SIGTERM does the same; and both end a program whose stdout is blocked, at the first signal.
start
lines 1 1 >&3
wait_for n_lines "$dir/out" 1
kill -TERM $pid
wait $pid
check "SIGTERM exits with 143" $? -eq 143
pid=""
exec 3>&-
mkfifo "$dir/blocked"
for signal in INT:130 TERM:143; do
    expected=${signal#*:} signal=${signal%:*}
    for _ in 1 2 3 4 5; do
        rm -f "$dir/fifo"
        mkfifo "$dir/fifo"
        "$easel" pipe -m "$tiny" -t 1 <"$dir/fifo" >"$dir/blocked" 2>"$dir/err" &
        pid=$!
        exec 3>"$dir/fifo" 4<"$dir/blocked"
        lines 1 1000 >&3  # their answers are more than a pipe holds
        wait_for stalled $pid
        began=$(now_ms)
        kill -"$signal" $pid
        { sleep 20; kill -KILL $pid; } >/dev/null 2>&1 &
        killer=$!
        wait $pid
        status=$?
        took=$(($(now_ms) - began))
        kill $killer 2>/dev/null
        pid=""
        exec 3>&-
        cat <&4 >"$dir/out"
        exec 4<&-
        [ $took -le 2000 ] && break
    done
    check "$signal while stdout is blocked: exit $expected" $status -eq "$expected"
    check "at once ($signal, $took ms)" "$took" -le 2000
    sed -n '/}$/p' "$dir/out" >"$dir/answers"
    done_ids "$dir/answers" >"$dir/ids"
    has "it says what is not answered ($signal)" "easel: stopped while nobody read stdout; read but not answered: " "$dir/err"
    sed -n 's/^easel: stopped.*(ids \(.*\))$/\1/p' "$dir/err" | tr -d ' ' | tr ',' '\n' >>"$dir/ids"
    seq "$(wc -l <"$dir/ids")" >"$dir/expected"
    same "answered and reported are all that was read ($signal)" "$dir/ids" "$dir/expected"
done

# The reason is that of the call that failed.
(ulimit -n 4 && exec "$easel" pipe --device cpu) </dev/null >"$dir/out" 2>"$dir/err"
has "no file can be opened: why" "easel: cannot create a pipe: Too many open files" "$dir/err"

end
