#!/bin/sh
# cli.sh PROGRAM: tests the program as a user meets it: each command, each error a user can cause, Ctrl-C and pipes.
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
fixtures=tests/fixtures
tab=$(printf '\t')

stdin=/dev/null
# run ARGUMENTS...: its exit code. Unless they say otherwise, on the CPU, which is exact, and on one thread: where others
# compute too, several wait for each other in every step.
run() {
    case "${1:-} $*" in
        *--device*) ;;
        generate*|logits*) set -- "$@" --device cpu ;;
    esac
    case "${1:-} $*" in
        *" -t "*) ;;
        generate*|logits*) set -- "$@" -t 1 ;;
    esac
    $limit "$easel" "$@" <"$stdin" >"$dir/out" 2>"$dir/err"
}

generate() { run generate -m "$tiny" "$@"; }

json_ids() { sed -n "s/.*\"$1\": \[\([^]]*\)\].*/\1/p" "$2" | tr -d ','; }  # json_ids NAME FILE, of a flat array
json_number() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" "$2"; }
# The golden files begin with the flat arrays; the steps' arrays have other names.
golden() { sed 's/"steps".*//' "$fixtures/$1.json" >"$dir/head.json"; json_ids "$2" "$dir/head.json"; }
golden tiny prompt >"$dir/prompt"
golden tiny canvas >"$dir/canvas"
tr ' ' '\n' <"$dir/canvas" | sed '/^$/d' | sed '1!G;h;$!d' >"$dir/reversed"

# ---- Files that are no models

error "no such file" "nope.gguf: cannot open the model file: No such file" generate -m nope.gguf -p hi
error "a folder" "found a folder; a Hugging Face folder is converted by" generate -m tests -p hi
error "not GGUF" "expected the bytes \"GGUF\" at offset 0" generate -m Makefile -p hi
error "not GGUF, info" "expected the bytes \"GGUF\" at offset 0" info Makefile
error "not GGUF, tokenize" "expected the bytes \"GGUF\" at offset 0" tokenize -m Makefile
for n in 0 10 100 10000 100000 2000000; do
    head -c $n "$tiny" >"$dir/cut.gguf"
    if [ $n -lt 24 ]; then text="expected at least 24 bytes, found $n"; else text="truncated: "; fi
    error "cut after $n bytes" "$dir/cut.gguf: " generate -m "$dir/cut.gguf" -p hi
    error "cut after $n bytes, why" "$text" info "$dir/cut.gguf"
done
while IFS=$tab read -r file text; do
    error "broken/$file" "$text" generate -m "$fixtures/broken/$file" -p hi
done <"$fixtures/broken/messages.txt"
error "another architecture" 'architecture is "llama", easel reads "diffusion-gemma"' \
    generate -m $fixtures/broken/architecture.gguf -p hi
error "a missing tensor" "tensor blk.0.ffn_up.weight is missing, expected shape [2, 2]" \
    generate -m $fixtures/broken/no-tensor.gguf -p hi
error "a model without a tokenizer's file" "tokenizer.ggml" tokenize -m $fixtures/broken/no-tensor.gguf

# ---- The command line

error "no command" "expected a command, one of generate, chat" # nothing else
error "unknown command" "no command \"frobnicate\", expected one of generate, chat, pipe" frobnicate
error "a misspelt command" "no command \"genrate\" (the nearest is generate), expected one of" genrate
error "a flag before the command" 'expected a command before -m, one of generate, chat, pipe' -m "$tiny" generate -p hi
error "an unknown flag instead of one" 'expected a command before --frobnicate' --frobnicate
error "a flag with a value" "greedy" generate -m "$tiny" -p hi --greedy=3
works "help of a command" help generate
has "is the command's" "usage: easel generate" "$dir/out"
works "version" version
has "is --version" "built by" "$dir/out"
error "a flag that is spelt wrong" "there is no flag --sede, the nearest is --seed (see easel generate --help)" generate --sede=3
error "a prompt without -p" "\"Hello\" was not expected: a prompt is given with -p TEXT" generate Hello
error "two prompts" "--prompt is given more than once" generate -p a -p b
error "a flag without its value" "--model needs a value (see easel tokenize --help)" tokenize -m
error "octal" '--tokens: "010" is not a whole number' generate -p hi -n 010
error "hexadecimal" '--tokens: "0x10" is not a whole number' generate -p hi -n 0x10
error "- for a file that is written" "--trace: expected the name of a file, which - is not" generate -p hi --trace -
error "a model's name for logits" "is the model itself" logits -m "$tiny" --canvas-ids "$dir/canvas" -o "$tiny"
error "an input's name for logits" "is an input" logits -m "$tiny" --canvas-ids "$dir/canvas" -o "$dir/canvas"
error "an input's name for a trace" "is an input" generate -m "$tiny" --prompt-ids "$dir/canvas" --trace "$dir/canvas"
error "steps that are no whole number" '--max-steps: "2.0" is not a whole number' generate -m "$tiny" -p hi --max-steps 2.0
error "nor one of 32 bits" '--top-k: "99999999999" is not a whole number' generate -m "$tiny" -p hi --top-k 99999999999
error "a temperature that is no number" '--t-max: "hot" is not a number' generate -m "$tiny" -p hi --t-max hot
error "arguments that nobody takes: the first" "there is no flag --load (see easel chat --help)" chat --load file
# A variable that is not set is not to mean the built-in model, or a file without a name.
error "an empty model" "--model: the name is empty, expected that of a GGUF file" generate -m "" -p hi
error "an empty model, info" "--model: the name is empty" info ""
error "an empty name of a trace" "--trace: the name is empty, expected that of a file" generate -m "$tiny" -p hi --trace ""
error "an empty name of a target" "target: the name is empty" convert "$tiny" "" --type f16
error "an empty name to fetch" "name: the name is empty" fetch ""
ln -s loop "$dir/loop"
error "a link to itself" "loop: cannot open the model file: Too many levels" info "$dir/loop"
(cd "$dir" && ln -s here here && $limit "$OLDPWD/$easel" info here >/dev/null 2>err)
has "without a path too" "here: cannot open the model file: Too many levels" "$dir/err"
error "bench: a folder for the figures" "$dir: cannot be written: Is a directory" bench cpu --json "$dir"
error "bench: the model's name for the figures" "is the model itself" bench cpu -m "$tiny" --json "$tiny"
error "an empty prompt" "the prompt is empty" generate -m "$tiny" -p ""
run info $fixtures/broken/architecture.gguf
check "info shows the keys of another architecture" "$?" -eq 1
check "info shows its name" "$(grep -c 'general.architecture = "llama"' "$dir/out")" -eq 1
error "unknown flag" "--frobnicate" generate -m "$tiny" -p hi --frobnicate
error "unknown flag, info" "--frobnicate" info --frobnicate
error "flag without its value" "--seed" generate -m "$tiny" -p hi --seed
error "not a number" "--seed" generate -m "$tiny" -p hi --seed abc
error "seed below 0" "seed" generate -m "$tiny" -p hi --seed -1
error "seed past 64 bits" "seed" generate -m "$tiny" -p hi --seed 18446744073709551616
error "unknown arithmetic" '"int4" is none of float, int8' generate -m "$tiny" -p hi --cpu-math int4
error "no threads" "--threads" generate -m "$tiny" -p hi -t 0
error "many threads" '--threads: "5000" is not a whole number from 1 to 4096 (' generate -m "$tiny" -p hi -t 5000
error "an empty number of threads" '--threads: "" is not a whole number from 1 to 4096 (' generate -m "$tiny" -p hi -t ""
error "an empty seed" '--seed: "" is not a whole number from 0 to 1844674407370955' generate -m "$tiny" -p hi --seed ""
error "no tokens" "--tokens" generate -m "$tiny" -p hi -n 0
error "tokens below 0" "--tokens" generate -m "$tiny" -p hi -n -5
error "no context" "context" generate -m "$tiny" -p hi -c 0
error "unknown device" "device is gpu, expected auto, cpu, cuda or cuda:N" generate -m "$tiny" -p hi --device gpu
error "device without a number" "device is cuda:, expected" generate -m "$tiny" -p hi --device cuda:
error "device that is not there" "there is no device cuda:99: " generate -m "$tiny" -p hi --device cuda:99
if nvidia-smi -L >/dev/null 2>&1; then
    skip "a GPU asked for where there is none" "there is one"
else
    error "a GPU asked for where there is none" "there is no device cuda: " generate -m "$tiny" -p hi --device cuda
    works "auto without a GPU is the CPU" generate -m "$tiny" -p hi -n 24 --max-steps 2 --device auto
fi
# Flags for the other kind of device: before a model is loaded.
while IFS='~' read -r device flags text; do
    # shellcheck disable=SC2086
    error "$flags on $device" "device is $device, expected $text" generate -m nope.gguf -p hi --device "$device" $flags
done <<'END'
cpu~--exact~cuda, cuda:N or auto for --exact
cpu~--host-loop~cuda, cuda:N or auto for --host-loop
cpu~--in-order --expert-offload 2~cuda, cuda:N or auto for --expert-offload, --in-order
cuda~--cpu-math int8~cpu or auto for --cpu-math int8
cuda:1~--cpu-math int8 --exact~cpu or auto for --cpu-math int8
END
for command in chat pipe "logits --canvas-ids $dir/canvas -o $dir/x"; do
    # shellcheck disable=SC2086
    error "so in ${command%% *}" "for --exact" $command -m nope.gguf --device cpu --exact
done
error "so in info" "device is cpu, expected cuda or all for --expert-offload" info nope.gguf --device cpu --expert-offload 2
error "what suits the device" "nope.gguf: cannot open" generate -m nope.gguf -p hi --device cuda --cpu-math float --exact
if ! nvidia-smi -L >/dev/null 2>&1; then
    works "where auto comes to the other kind" generate -p "What is 2 + 2?" -n 16 --device auto --exact --in-order
    check "a note tells, on one line" "$(grep -c 'the CPU is used: .*; ignored on a CPU: --exact, --in-order$' "$dir/err")" -eq 1
    check "and nothing else does" "$(wc -l <"$dir/err")" -eq 2
    works "auto, and what suits the CPU" generate -p "What is 2 + 2?" -n 16 --device auto --cpu-math int8
    check "needs no note" "$(wc -l <"$dir/err")" -eq 1
fi
error "context below 0" "context" generate -m "$tiny" -p hi -c -1
error "context of more than the model's" "context is 5000, expected 1 to 4096" generate -m "$tiny" -p hi -c 5000
error "wrong --print" '--print: "xml" is none of text, ids, json (' generate -m "$tiny" -p hi --print xml
error "an empty --print" '--print: "" is none of text, ids, json (' generate -m "$tiny" -p hi --print ""
error "wrong --prev-temperature" '--prev-temperature: "0" is not a number from 0.001 to 1000 (' \
    logits -m "$tiny" --canvas-ids "$dir/canvas" --prev-temperature 0 -o "$dir/x"
error "logits without a canvas" "--canvas-ids is required" logits -m "$tiny" -o "$dir/x"
error "logits without an output" "--output is required" logits -m "$tiny" --canvas-ids "$dir/canvas"
error "convert without a target" "target is required" convert "$tiny" --type f16

# Each sampler setting: flag, value, what the message says.
while read -r flag value text; do
    error "$flag $value" "$text" generate -m "$tiny" -p hi "$flag" "$value"
done <<'END'
--max-steps 0 max steps is 0, expected 1 to 100000
--max-steps 100001 max steps is 100001, expected 1 to 100000
--max-steps 99999999999 --max-steps
--max-steps 1.5 --max-steps
--t-min 0 t-min is 0, expected 0.001 to 100
--t-min 101 t-min is 101, expected 0.001 to 100
--t-min nan t-min is nan, expected 0.001 to 100
--t-min cold --t-min
--t-max 0.1 t-max is 0.1, expected t-min (0.4) to 100
--t-max inf t-max is inf, expected t-min (0.4) to 100
--entropy-bound -1 entropy bound is -1, expected 0 or more
--entropy-bound nan entropy bound is nan, expected 0 or more
--stability -1 stability is -1, expected 0 or more
--confidence -0.5 confidence is -0.5, expected 0 or more
--top-k -1 top-k is -1, expected 0 (all) or more
--top-k-start 5 top-k-start is 5 and top-k-end 0, expected both or neither
--top-k-end -1 top-k-start is 0 and top-k-end -1, expected both or neither
--self-cond-top-k -1 self-cond-top-k is -1, expected 0 (all) or more
--self-cond-drop 1 self-cond-drop is 1, expected 0 or more and less than 1
--self-cond-drop -inf self-cond-drop is -inf, expected 0 or more and less than 1
--self-cond-drop -0.5 self-cond-drop is -0.5, expected 0 or more and less than 1
END

# Infill: canvas, choices, what the message says. The built-in model has a canvas of 32.
while IFS='~' read -r canvas choices text; do
    error "--canvas $canvas $choices" "$text" generate -p hi --canvas "$canvas" ${choices:+--choices "$choices"}
done <<'END'
Dear [[8~~the canvas has "[[" at offset 5 without "]]" after it
[[0]]~~the canvas has the hole [[0]], expected [[N]] with a number of tokens from 1, [[TEXT|TEXT]] or [[*]]
[[33]]~~the canvas text has 33 tokens, 33 of them in holes; a canvas of this model has 32
[[30]]four~~tokens, 30 of them in holes; a canvas of this model has 32
[[7|10]]~~the choices of hole 1 differ in length: "7" has 1 tokens, "10" 2; expected the same number
[[1]]~2=a|b~there are choices for hole 2, the canvas has holes 1 to 1
[[1]]~a|b~choices are "a|b", expected HOLE=TEXT|TEXT with the hole's number
[[1]]~1=~there are no choices for hole 1, expected one or more
[[*]].~~the canvas continues after the hole [[*]], expected it at the end
END
error "--canvas with -n" "--canvas cannot be combined with -n" generate -p hi --canvas '[[1]]' -n 5
error "--choices without --canvas" "no canvas with holes" generate -p hi --choices '1=a|b'
error "--canvas with --think" "cannot be combined with thinking" generate -p hi --think --canvas '[[1]]'
error "--best-of 0" "--best-of" generate -p hi --best-of 0
error "--retry-empty -1" "--retry-empty" generate -p hi --retry-empty -1

infill='{"name":"[[4]]","age":[[2]],"city":"[[4]]"}'
works "infill" generate -p 'Make JSON: Rosa is 42 years old and lives in Oslo.' --canvas "$infill"
check "it fills the holes" "$(cat "$dir/out")" = '{"name":"Rosa","age":42,"city":"Oslo"}'
works "infill with choices" generate -p 'What is 12 + 34?' --canvas '[[1]]' --choices '1=36|46|47' --print json
has "it takes the right one" '"text":"46"' "$dir/out"
has "and says how sure it is" '"confidence":0.9' "$dir/out"
has "--print json has a log probability a token" '"log_probs":[-0.0' "$dir/out"
works "the beginning of an answer" generate -p 'Count to 6.' --canvas '1 2 3[[*]]'
check "is gone on from" "$(cat "$dir/out")" = "1 2 3 4 5 6"
works "--best-of" generate -p 'What is 12 + 34?' --best-of 3 --print json
has "makes as many answers" '"tries":3' "$dir/out"
works "--retry-empty" generate -p 'What is 12 + 34?' --retry-empty 3 --print json
has "makes one where it is not empty" '"tries":1' "$dir/out"

works "--stop" generate -p 'Count to 6.' --stop 9 --stop 5 --best-of 2 --print json
has "ends the text before it" '"text":"1 2 3 4 "' "$dir/out"
has "ends no tries" '"tries":2' "$dir/out"
error "an empty --stop" "a stop string is empty" generate -p hi --stop ""

works "--help" --help
has "--help names the commands" "generate" "$dir/out"
check "--help is not an error" ! -s "$dir/err"
works "generate --help" generate --help
works "info --help" info --help
has "tells what memory is meant" "16G: GPU memory" "$dir/out"
works "logits --help" logits --help
has "tells its own context" "(default: prompt and canvas)" "$dir/out"
works "--version" --version
check "--version has its commit, devices and compiler" "$(grep -c '^easel [0-9].* (commit \|^runs on: CPU\|^built by: ' "$dir/out")" -eq 3

# ---- Prompts

error "no prompt" "0 prompts given, expected one of" generate -m "$tiny"
error "no prompt, told before a model is loaded" "0 prompts given" generate -m nope.gguf
error "a prompt's file that is missing, too" "none.txt: cannot be opened" generate -m nope.gguf -f none.txt
error "two prompts" "2 prompts given, expected one of" generate -m "$tiny" -p hi -f Makefile
error "three prompts" "3 prompts given, expected one of" \
    generate -m "$tiny" -p hi -f Makefile --prompt-ids "$dir/prompt"
error "empty prompt" "prompt" generate -m "$tiny" -p ""
error "prompt of blanks" "the prompt is empty" generate -m "$tiny" -p "  $tab "
error "empty prompt on stdin" "the prompt is empty" generate -m "$tiny" -p -
: >"$dir/empty"
error "empty prompt file" "the prompt is empty" generate -m "$tiny" -f "$dir/empty"
error "empty raw prompt" "the prompt is empty" generate -m "$tiny" --raw -f "$dir/empty"
error "no prompt file" "$dir/none: cannot be opened: No such file" generate -m "$tiny" -f "$dir/none"
error "a folder as prompt file" "cannot be read: Is a directory" generate -m "$tiny" -f "$dir"
printf 'ab\377c' >"$dir/latin"
error "invalid UTF-8" "not valid UTF-8: byte 0xff at offset 2" generate -m "$tiny" -f "$dir/latin"
error "invalid UTF-8, raw" "not valid UTF-8: byte 0xff at offset 2" generate -m "$tiny" --raw -f "$dir/latin"
printf 'ab\303' >"$dir/half"
error "half a character" "not valid UTF-8: byte 0xc3 at offset 2" generate -m "$tiny" -f "$dir/half"
printf 'x\355\240\200' >"$dir/surrogate"
error "a surrogate" "not valid UTF-8: byte 0xed at offset 1" generate -m "$tiny" -f "$dir/surrogate"
error "prompt and canvas over -c" "40 prompt tokens and 1 canvas of 24 tokens need 64 tokens, the context has 63" \
    generate -m "$tiny" --prompt-ids "$dir/prompt" -c 63 -n 24
works "prompt and canvas that fill -c" generate -m "$tiny" --prompt-ids "$dir/prompt" -c 64 -n 24 --max-steps 1
error "answer over the context" "the context has 4096" generate -m "$tiny" -p hi -n 1000000000
error "--raw with a system prompt" "--raw cannot be combined with" generate -m "$tiny" -p hi --raw -s be
error "--prompt-ids with --think" "--prompt-ids cannot be combined with" \
    generate -m "$tiny" --prompt-ids "$dir/prompt" --think

# ---- Files of ids

echo "1 2 three" >"$dir/word"
echo "1 512" >"$dir/range"
echo "1 99999999999" >"$dir/huge"
echo "1 -1" >"$dir/negative"
echo "1 2 3" >"$dir/short"
sed 's/[0-9]* *$/512/' "$dir/canvas" >"$dir/canvas512"
logits="logits -m $tiny -o $dir/x"
error "ids that are none" '"three" at offset 4 is not a token id' generate -m "$tiny" --prompt-ids "$dir/word"
error "an id of many digits" "is not a token id" generate -m "$tiny" --prompt-ids "$dir/huge"
error "an id below 0" '"-1" at offset 2 is not a token id' generate -m "$tiny" --prompt-ids "$dir/negative"
error "an id out of range" "id 512 is out of range, expected 0 to 511" \
    generate -m "$tiny" --prompt-ids "$dir/range"
error "no ids" "holds no token ids, expected at least one" generate -m "$tiny" --prompt-ids "$dir/empty"
error "no file of ids" "cannot be opened: No such file" generate -m "$tiny" --prompt-ids "$dir/none"
# shellcheck disable=SC2086
{
    error "a short canvas" "holds 3 ids, expected 24 (the canvas)" $logits --canvas-ids "$dir/short"
    error "a canvas of 40" "holds 40 ids, expected 24 (the canvas)" $logits --canvas-ids "$dir/prompt"
    error "a canvas id out of range" "id 512 is out of range" $logits --canvas-ids "$dir/canvas512"
    error "canvas ids that are none" "is not a token id" $logits --canvas-ids "$dir/word"
    error "a logits prompt id out of range" "id 512 is out of range" \
        $logits --canvas-ids "$dir/canvas" --prompt-ids "$dir/range"
    error "logits over -c" "the context has 50" \
        $logits --canvas-ids "$dir/canvas" --prompt-ids "$dir/prompt" -c 50
    error "prev-logits of a wrong size" "bytes, expected 49152 (float32 [24, 512])" \
        $logits --canvas-ids "$dir/canvas" --prev-logits "$dir/canvas"
    error "no prev-logits" "cannot be opened: No such file" \
        $logits --canvas-ids "$dir/canvas" --prev-logits "$dir/none"
    head -c 49152 /dev/zero | tr '\0' '\377' >"$dir/nan.f32"  # 0xffffffff is a NaN
    error "prev-logits with NaN" "expected finite numbers" \
        $logits --canvas-ids "$dir/canvas" --prev-logits "$dir/nan.f32"
}
check "no output of a failed logits" ! -e "$dir/x"

# ---- Golden answers through the program

for name in tiny tiny.cut1 tiny.cut2; do
    golden $name prompt >"$dir/ids"
    golden $name tokens | tr -s ' \n' ' ' | sed 's/ $//' >"$dir/expected"
    seed=$(json_number seed "$dir/head.json")
    # The first golden was made without ends of an answer, the others stop at one.
    if [ $name = tiny ]; then flags=--ignore-eos; else flags=""; fi
    # shellcheck disable=SC2086
    works "$name" generate -m "$tiny" --prompt-ids "$dir/ids" --seed "$seed" -n 72 $flags --print ids
    tr -s ' \n' ' ' <"$dir/out" | sed 's/ $//' >"$dir/found"
    same "$name gives the golden tokens" "$dir/found" "$dir/expected"
done

# Relative distance of two files of float32 is under 1e-6 (float32 rounding; see tests/test_reference.cpp).
close_to() {  # close_to NAME FILE FILE
    for f in "$2" "$3"; do od -A n -v -t f4 "$f" | tr -s ' ' '\n' | sed '/^$/d' >"$f.txt.$$" || return; done
    paste "$2.txt.$$" "$3.txt.$$" >"$dir/pairs"
    rm -f "$2.txt.$$" "$3.txt.$$"
    distance=$(awk 'NF != 2 { print "different lengths"; exit }
        { d += ($1 - $2) ^ 2; n += $2 ^ 2 } END { if (NF == 2) printf "%g\n", sqrt(d / n) }' "$dir/pairs")
    if awk "BEGIN { exit !(\"$distance\" + 0 == \"$distance\" && \"$distance\" + 0 < 1e-6) }"; then ok "$1"
    else bad "$1" "relative distance $distance, expected under 1e-6"; fi
}
cp $fixtures/tiny.logits0.f32 $fixtures/tiny.logits1.f32 "$dir"
works "logits" logits -m "$tiny" --prompt-ids "$dir/prompt" --canvas-ids "$dir/canvas" -o "$dir/l0.f32"
close_to "logits are the golden ones" "$dir/l0.f32" "$dir/tiny.logits0.f32"
works "logits after a step" logits -m "$tiny" --prompt-ids "$dir/prompt" --canvas-ids "$dir/reversed" \
    --prev-logits "$dir/l0.f32" --prev-temperature 0.8 -o "$dir/l1.f32"
close_to "logits after a step are the golden ones" "$dir/l1.f32" "$dir/tiny.logits1.f32"
check "logits say nothing on stdout" ! -s "$dir/out"

# ---- generate: sources of the prompt, forms of the answer, repeatability

generate -p "hello" -n 24 --seed 5
cp "$dir/out" "$dir/answer"
check "the answer goes to stdout" -s "$dir/out"
if grep -q 'steps a canvas' "$dir/out"; then bad "statistics only on stderr" "found on stdout"
else ok "statistics only on stderr"; fi
check "one line of statistics" "$(grep -c '^prompt [0-9]* tokens.* steps.*hash [0-9a-f]\{16\}$' "$dir/err")" -eq 1
check "nothing else on stderr but warnings" "$(grep -cv '^easel: warning: ' "$dir/err")" -eq 1
grep -o 'hash .*' "$dir/err" >"$dir/hash"
generate -p "hello" -n 24 --seed 5
same "the same seed gives the same bytes" "$dir/out" "$dir/answer"
grep -o 'hash .*' "$dir/err" >"$dir/hash2"
same "and the same hash" "$dir/hash2" "$dir/hash"
generate -p "hello" -n 24 --seed 6 --print ids
cp "$dir/out" "$dir/ids6"
generate -p "hello" -n 24 --seed 5 --print ids
if cmp -s "$dir/out" "$dir/ids6"; then bad "another seed gives another answer" "the same"
else ok "another seed gives another answer"; fi

mark='\357\273\277'  # the byte-order mark that some editors begin a file with
for text in "${mark}hello" hello; do
    printf %b "$text" >"$dir/hello"
    generate -f "$dir/hello" -n 24 --seed 5
    same "-f FILE with $text" "$dir/out" "$dir/answer"
    stdin=$dir/hello
    generate -p - -n 24 --seed 5
    stdin=/dev/null
    same "-p - reads $text" "$dir/out" "$dir/answer"
done
{ printf %b "$mark"; cat "$dir/prompt"; } >"$dir/marked"
works "ids with a byte-order mark" generate -m "$tiny" --prompt-ids "$dir/marked" -n 24 --max-steps 1

for threads in 1 2 3; do
    generate --prompt-ids "$dir/prompt" -n 48 --seed 9 --ignore-eos --print ids -t $threads
    cp "$dir/out" "$dir/threads$threads"
done
same "1 and 2 threads give the same answer" "$dir/threads1" "$dir/threads2"
same "1 and 3 threads give the same answer" "$dir/threads1" "$dir/threads3"
check "--print ids prints -n of them" "$(wc -w <"$dir/threads1")" -eq 48
generate --prompt-ids "$dir/prompt" -n 30 --seed 9 --ignore-eos --print ids
check "-n cuts inside a canvas" "$(wc -w <"$dir/out")" -eq 30
cut -d ' ' -f 1-30 "$dir/threads1" >"$dir/first30"
same "and keeps what comes before" "$dir/out" "$dir/first30"

stdin="$dir/prompt"
generate --prompt-ids - -n 30 --seed 9 --ignore-eos --print ids
same "--prompt-ids - reads stdin" "$dir/out" "$dir/first30"
stdin=/dev/null
generate --prompt-ids "$dir/prompt" -n 30 --seed 9 --ignore-eos --print ids --quiet
check "--quiet tells no figures" "$(grep -c hash "$dir/err")" -eq 0
same "and gives the same answer" "$dir/out" "$dir/first30"
run logits -m "$tiny" --canvas-ids "$dir/canvas" -o "$dir/logits"
run logits -m "$tiny" --canvas-ids "$dir/canvas" -o -
same "logits -o - are those of a file" "$dir/out" "$dir/logits"
run generate -p "Count to 12." --stop 5 --print json
has "the text that ended the answer" '"finish_reason":"stop","stop":"5"' "$dir/out"
run generate -p "What is 47 + 35?" --best-of 3
has "which of several answers it is" "of 3 answers |" "$dir/err"
generate --prompt-ids "$dir/prompt" -n 48 --seed 9 --ignore-eos --print json
check "--print json is one line" "$(wc -l <"$dir/out")" -eq 1
for part in '"text":' '"ids":[' '"finish_reason":"length"' '"seed":9' '"prompt_tokens":40' '"canvases":2' \
    '"hash":"'; do
    has "json has $part" "$part" "$dir/out"
done
if command -v python3 >/dev/null; then
    if python3 -c 'import json, sys; json.loads(sys.stdin.buffer.read())' <"$dir/out" 2>/dev/null
    then ok "the json is valid"; else bad "the json is valid" "python3 cannot read it"; fi
else
    skip "the json is valid" "needs python3"
fi
works "greedy with every approximation" generate -m "$tiny" -p hi -n 24 --greedy --top-k-start 40 --top-k-end 5 \
    --top-k-tail-correction --self-cond-top-k 50 --max-steps 3
works "the largest seed" generate -m "$tiny" -p hi -n 24 --max-steps 1 --seed 18446744073709551615
generate -p hello -n 24 --seed 5 --show-steps
same "--show-steps leaves the answer as it is" "$dir/out" "$dir/answer"
steps=$(sed -n 's/.* \([0-9]*\) steps, .*/\1/p' "$dir/err")
check "--show-steps shows every step on stderr" "$(grep -c '^step ' "$dir/err")" -eq "${steps:-1000}"
check "--show-steps keeps control bytes of the draws away" "$(generate -p hi --show-steps --t-min 100 --t-max 100 \
    --entropy-bound 1e9 --max-steps 4; LC_ALL=C tr -cd '\000-\011\013-\037\177' <"$dir/err" | wc -c)" -eq 0
works "a system prompt and a thought" generate -m "$tiny" -p hi -s "be brief" --think -n 24 --max-steps 3
works "the built-in model" generate -p "What is 2 + 2?" -n 16
cp "$dir/out" "$dir/demo"
works "the built-in model in int8" generate -p "What is 2 + 2?" -n 16 --cpu-math int8
same "int8 gives the demo model's answer" "$dir/out" "$dir/demo"

# ---- tokenize

printf 'hello  world\n\303\251\342\202\254 \360\237\216\250 <turn|> \377x' >"$dir/text"
stdin=$dir/text
works "tokenize" tokenize -m "$tiny"
cp "$dir/out" "$dir/tokens"
check "tokenize prints ids on one line" "$(wc -l <"$dir/out")" -eq 1
stdin=$dir/tokens
works "tokenize --decode" tokenize -m "$tiny" --decode
same "decode gives the text back" "$dir/out" "$dir/text"
stdin=$dir/text
works "tokenize --special" tokenize -m "$tiny" --special
cp "$dir/out" "$dir/special"
if cmp -s "$dir/special" "$dir/tokens"; then bad "--special finds control tokens" "the same ids"
else ok "--special finds control tokens"; fi
stdin=$dir/special
works "tokenize --decode --special" tokenize -m "$tiny" --decode --special
same "and shows them" "$dir/out" "$dir/text"
stdin=$dir/empty
works "tokenize nothing" tokenize -m "$tiny"
check "gives an empty line" "$(wc -w <"$dir/out")" -eq 0
stdin=$dir/range
error "decode an id out of range" "512" tokenize -m "$tiny" --decode
stdin=$dir/word
error "decode what is no id" '"three" at offset 4 is not a token id' tokenize -m "$tiny" --decode
stdin=/dev/null

# ---- info

works "info" info "$tiny"
for text in "GGUF version 3" "46 keys" 'general.architecture = "diffusion-gemma"' "diffusion-gemma.block_count = 6" \
    "attention.head_count_kv = [2, 2, 2, 2, 2, 1] 6 x i32" "tokenizer.ggml.tokens = 512 strings" "F32" \
    "6 layers (1 global), width 64, 8 experts of 32 (2 used)" "memory at a context of 4096 tokens" "CPU" "GPU"; do
    has "info tells $text" "$text" "$dir/out"
done
works "info -m FILE -c N" info -m "$tiny" -c 100
has "info at another context" "memory at a context of 100 tokens" "$dir/out"
error "info at a larger context than the model's" "is 5000, expected 1 to 4096" info -m "$tiny" -c 5000
works "info of the built-in model" info
works "info of every block type" info $fixtures/mixed.gguf
has "info counts types" "Q4_K" "$dir/out"

# A file whose names and values would write to the terminal: to its title, and with U+009B, which begins a command too.
{
    number() { printf "\\$(printf %03o "$1")\\0\\0\\0\\0\\0\\0\\0"; }
    printf 'GGUF\3\0\0\0'
    number 1; number 2
    number 20; printf 'general.architecture\10\0\0\0'; number 15; printf diffusion-gemma
    number 14; printf 'evil\033]0;pwned\007\10\0\0\0'; number 6; printf 'a\177b\302\233c'
    number 8; printf 'x.\033[2J\302\233\1\0\0\0'; number 1; printf '\0\0\0\0'; number 0
    head -c 39 /dev/zero
} >"$dir/evil.gguf"
controls() { LC_ALL=C sed 's/\xc2\x9b/\x1b/g' "$1" | LC_ALL=C tr -cd '\000-\011\013-\037\177' | wc -c; }
run info "$dir/evil.gguf"
has "info shows control characters of keys and values" 'evil\x1b]0;pwned\x07 = "a\x7fb\xc2\x9bc"' "$dir/out"
check "and none are left" "$(controls "$dir/out")" -eq 0
error "nor in an error's text" 'x\xc2\x9b.gguf: cannot open' info "$(printf 'x\302\233.gguf')"
if command -v python3 >/dev/null; then
    python3 tests/make_thinking.py "$dir/thinking.gguf"
    works "an answer with a thought" generate -m "$dir/thinking.gguf" -p "Count to 6." --device cpu
    has "the thought's control characters are marks" "$(printf 'thought: \357\277\275]0;x\357\277\275 \357\277\275')" "$dir/err"
    check "and none are left" "$(controls "$dir/err")" -eq 0
else
    skip "a thought's control characters" "needs python3"
fi

# ---- convert

error "convert: unknown type" "q9_z" convert "$tiny" "$dir/new.gguf" --type q9_z
error "convert: no source" "none" convert "$dir/none" "$dir/new.gguf" --type f16
error "convert: a source that is no model" "Makefile" convert Makefile "$dir/new.gguf" --type f16
error "convert: a folder without a model" "$dir" convert "$dir" "$dir/new.gguf" --type f16
error "convert: a cut source" "truncated" convert "$dir/cut.gguf" "$dir/new.gguf" --type f16
error "convert: no folder for the target" "No such file" convert "$tiny" "$dir/none/new.gguf" --type f16
check "convert leaves no file behind" -z "$(ls "$dir" | grep 'new\.gguf')"
works "convert" convert "$tiny" "$dir/new.gguf" --type bf16
check "convert leaves only the target" "$(ls "$dir" | grep -c 'new\.gguf')" -eq 1
works "info of what was converted" info "$dir/new.gguf"
has "it has the new type" "BF16" "$dir/out"
works "generate from it" generate -m "$dir/new.gguf" -p hi -n 24 --max-steps 2
if command -v script >/dev/null && script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    TERM=xterm script -qec "$easel convert $dir/evil.gguf $dir/evil2.gguf --type f16" /dev/null </dev/null >"$dir/screen" 2>&1
    has "convert's progress shows control characters of a tensor's name" 'x.\x1b[2J\xc2\x9b' "$dir/screen"
else
    skip "convert's progress" "needs util-linux's script"
fi
# One matrix of 2^30 zeros as F16, which take no room on the disk: the second or more that it takes is cut short.
{
    printf 'GGUF\3\0\0\0'
    number 1; number 1
    number 20; printf 'general.architecture\10\0\0\0'; number 15; printf diffusion-gemma
    number 8; printf 'x.weight\2\0\0\0\0\1\0\0\0\0\0\0\0\0\100\0\0\0\0\0\1\0\0\0'; number 0
} >"$dir/large.gguf"
truncate -s 2147484000 "$dir/large.gguf"
for signal in 1 2 15; do  # SIGHUP, SIGINT, SIGTERM
    # Under nohup, SIGHUP is ignored, and convert leaves it so.
    env --default-signal=HUP "$easel" convert "$dir/large.gguf" "$dir/stopped.gguf" --type q4_k_m \
        </dev/null >"$dir/out" 2>"$dir/err" &
    pid=$!
    wait_for test -s "$dir/stopped.gguf.part"
    kill -$signal $pid
    wait $pid
    check "convert, stopped by signal $signal, exits with 128 and that" $? -eq $((128 + signal))
    check "and leaves no file" -z "$(ls "$dir" | grep stopped)"
done
works "convert back to f32" convert "$tiny" "$dir/f32.gguf" --type f32
run generate -m "$dir/f32.gguf" -p hello -n 24 --seed 5
same "f32 of f32 is the same model" "$dir/out" "$dir/answer"

# ---- Output that cannot be written

if [ -c /dev/full ]; then
    full() {  # full NAME ARGUMENTS...: exit 1 and one line, apart from warnings, when stdout is full
        name=$1
        shift
        $limit "$easel" "$@" <"$stdin" >/dev/full 2>"$dir/err"
        status=$?
        if [ $status -ne 1 ]; then bad "$name" "exit $status, expected 1"
        elif ! grep -q '^easel: cannot write to stdout: No space left' "$dir/err"; then
            bad "$name" "$(tail -n 1 "$dir/err")"
        elif [ "$(wc -l <"$dir/err")" -ne 1 ]; then bad "$name" "$(wc -l <"$dir/err") lines on stderr"
        else ok "$name"; fi
    }
    full "generate to a full disk" generate -m "$tiny" -p hi -n 24 --max-steps 2
    full "info to a full disk" info "$tiny"
    stdin=$dir/hello
    full "tokenize to a full disk" tokenize -m "$tiny"
    stdin=/dev/null
    full "--version to a full disk" --version
    full "bench to a full disk" bench prefill --device cpu -t 1 --synthetic toy --prefix 8 --repeat 1
    # The answer is what counts: nothing of what goes with it to stderr ends it.
    "$easel" generate -m "$tiny" -t 1 -p hi -n 24 --max-steps 2 --show-steps >"$dir/out" 2>/dev/full
    check "stderr on a full disk: exit 0" $? -eq 0
    check "and the answer" -s "$dir/out"
    error "logits to a full disk" "/dev/full: cannot be written: No space left" \
        logits -m "$tiny" --canvas-ids "$dir/canvas" -o /dev/full
else
    skip "full disk" "there is no /dev/full here"
fi
mkfifo "$dir/pipe"
error "convert into a pipe" "$dir/pipe: is not a regular file" convert "$tiny" "$dir/pipe" --type f16
check "which is there still" -p "$dir/pipe"

# Descriptors that are closed: the next file that the program opens is not to be taken for them.
for command in "generate -p -" tokenize pipe chat; do
    # shellcheck disable=SC2086
    $limit "$easel" $command -m "$tiny" <&- >"$dir/out" 2>"$dir/err"
    check "$command without a stdin: exit 1" $? -eq 1
    has "and why" "cannot be read: Bad file descriptor" "$dir/err"
    # shellcheck disable=SC2086
    echo '{"prompt":"hi","max_steps":1,"max_tokens":4}' | $limit "$easel" $command -m "$tiny" >&- 2>"$dir/err"
    check "$command without a stdout: exit 1" $? -eq 1
    has "and why" "cannot write to stdout: Bad file descriptor" "$dir/err"
done
"$easel" generate -m "$tiny" -t 1 -p hi -n 24 --seed 5 >"$dir/expected" 2>/dev/null
"$easel" generate -m "$tiny" -t 1 -p hi -n 24 --seed 5 >"$dir/out" 2>&-
check "without a stderr: exit 0" $? -eq 0
same "and the answer" "$dir/out" "$dir/expected"

error "logits into no folder" "cannot be written: No such file" \
    logits -m "$tiny" --canvas-ids "$dir/canvas" -o "$dir/none/x"

# A reader that has gone before anything is written: no error, no message.
closed() {  # closed NAME ARGUMENTS...
    name=$1
    shift
    mkfifo "$dir/fifo"
    : <"$dir/fifo" &  # opens the pipe for reading and goes
    { $limit "$easel" "$@" <"$stdin" 2>"$dir/err"; echo $? >"$dir/status"; } >"$dir/fifo"
    wait $!
    rm -f "$dir/fifo"
    status=$(cat "$dir/status")
    if [ "$status" -ne 0 ]; then bad "$name" "exit $status, expected 0"
    elif grep -qi 'pipe\|cannot' "$dir/err"; then bad "$name" "$(tail -n 1 "$dir/err")"
    else ok "$name"; fi
}
closed "generate into a closed pipe" generate -m "$tiny" -p hi -n 24
closed "info into a closed pipe" info "$tiny"
{ $limit "$easel" generate -m "$tiny" -p hello -n 24 --seed 5 2>/dev/null; echo $? >"$dir/status"; } | head -c 1 >/dev/null
check "generate | head -c 1" "$(cat "$dir/status")" -eq 0

# ---- Ctrl-C: the step in flight ends, exit 130. 160 canvases of 48 steps take far longer than this waits; on a busy
# machine, one of five times.

long="generate -t 1 -m $tiny -p hello -n 3840 --ignore-eos --confidence 0"
for _ in 1 2 3 4 5; do
    # shellcheck disable=SC2086
    "$easel" $long --show-steps </dev/null >"$dir/out" 2>"$dir/err" &
    pid=$!
    wait_for grep -q '^step' "$dir/err"
    interrupt $pid
    [ $took -le 2000 ] && break
done
check "Ctrl-C exits with 130" $status -eq 130
check "Ctrl-C takes at most 2 seconds ($took ms)" $took -le 2000
has "Ctrl-C still prints statistics" "cancelled" "$dir/err"
check "Ctrl-C is no error" "$(grep -c '^easel: [^w]' "$dir/err")" -eq 0

# The same from a terminal's keyboard, whose modes must be as before. `script` makes a terminal (util-linux).
if command -v script >/dev/null && script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    cat >"$dir/terminal.sh" <<END
trap : INT
export TERM=xterm
stty -g >$dir/modes0
$easel $long
echo \$? >$dir/status
stty -g >$dir/modes1
END
    rm -f "$dir/status"
    : >"$dir/screen"
    # shellcheck disable=SC2094  # it waits for what is written there
    { wait_for grep -q 'canvas 1 | step' "$dir/screen"; printf '\003'; wait_for test -s "$dir/modes1"; } |
        script -qefc "sh $dir/terminal.sh" /dev/null >"$dir/screen" 2>&1
    check "Ctrl-C from a terminal exits with 130" "$(cat "$dir/status" 2>/dev/null || echo none)" = 130
    same "the terminal's modes are as before" "$dir/modes0" "$dir/modes1"
    has "the canvas is shown on a terminal" "canvas 1 | step" "$dir/screen"
else
    skip "Ctrl-C from a terminal" "needs util-linux's script"
fi

end
