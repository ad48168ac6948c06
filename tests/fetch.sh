#!/bin/sh
# fetch.sh PROGRAM: tests `easel fetch` and -m NAME against an HTTP server on this machine (tests/http_server.py).
# shellcheck disable=SC2016  # backquotes are part of messages
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
demo=src/demo.gguf
for program in python3 curl sha256sum; do
    if ! command -v $program >/dev/null; then
        skip fetch "needs $program"
        end
    fi
done
server=
# shellcheck disable=SC2317  # called by checks.sh
at_end() { [ -z "$server" ] || kill "$server" 2>/dev/null; }

vars=
# shellcheck disable=SC2086
run() { $limit env $vars "$easel" "$@" </dev/null >"$dir/out" 2>"$dir/err"; }  # run ARGUMENTS...: its exit code
with() { vars=$1; shift; "$@"; vars=; }  # with NAME=VALUE COMMAND ARGUMENTS...: the program sees that variable
# error NAME TEXT ARGUMENTS...: exit 1, nothing on stdout, a last line on stderr that begins with easel: and has TEXT.
error() {
    name=$1 text=$2
    shift 2
    run "$@"
    status=$?
    last=$(tail -n 1 "$dir/err")
    if [ $status -ne 1 ]; then bad "$name" "exit $status, expected 1: $last"
    elif [ -s "$dir/out" ]; then bad "$name" "something on stdout"
    elif [ "$(grep -c '^easel: ' "$dir/err")" -ne 1 ]; then bad "$name" "not one line 'easel: ': $(cat "$dir/err")"
    else case $last in
        "easel: "*"$text"*) ok "$name" ;;
        *) bad "$name" "no '$text' in: $last" ;;
    esac; fi
}
requests() { grep -c " $1\$" "$dir/log"; }  # requests RANGE: how many had that Range header, or none (-)

# Nothing of the user's: proxies, settings of curl, folders.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY XDG_CACHE_HOME EASEL_MODELS EASEL_MODELS_TXT
export HOME="$dir/home" CURL_HOME="$dir/home"
mkdir "$HOME"
models=$HOME/.cache/easel

python3 tests/http_server.py src "$dir/port" >"$dir/log" 2>"$dir/log.err" &
server=$!
wait_for test -s "$dir/port"
if [ ! -s "$dir/port" ]; then
    bad "the server starts" "$(tail -n 1 "$dir/log.err")"
    end
fi
url=http://127.0.0.1:$(cat "$dir/port")
# Port 1 (tcpmux) is one that nothing listens on.
n=$(wc -c <$demo) sum=$(sha256sum $demo | cut -d ' ' -f 1) wrong=$(printf %064d 0)
cat >"$dir/list.txt" <<END
# The demo model, served well and badly.
demo $n $sum $url/ok/demo.gguf a note of words
moved $n $sum $url/moved/demo.gguf
unknown - - $url/ok/demo.gguf
cut $n $sum $url/cut/1000000/demo.gguf
cut_unknown - $sum $url/cut/1500000/demo.gguf
noranges $n $sum $url/noranges/demo.gguf
wrong $n $wrong $url/ok/demo.gguf
wrong_unknown - $wrong $url/ok/demo.gguf
short $n $sum $url/short/50000/demo.gguf
long 1000 - $url/ok/demo.gguf
slow $n $sum $url/slow/300000/demo.gguf
gone $n $sum $url/ok/absent.gguf
page - - $url/ok/trace.html
page_sized $n - $url/ok/trace.html
offline $n $sum http://127.0.0.1:1/demo.gguf
nohost $n $sum http://easel.invalid/demo.gguf
huge 9000000000000000000 - $url/ok/demo.gguf
END

# ---- The list

works "the built-in list" fetch
has "it has the recommended model" "q4_k_m    16.81 GB  not downloaded" "$dir/out"
has "it tells the folder" "models in $models" "$dir/out"
works "--list FILE" fetch --list "$dir/list.txt"
has "notes are shown" "not downloaded   a note of words" "$dir/out"
export EASEL_MODELS_TXT="$dir/list.txt"
works "EASEL_MODELS_TXT" fetch
has "sizes that are not known" "unknown                 ?  not downloaded" "$dir/out"
check "looking makes no folder" ! -e "$models"
echo "demo 12 abc $url/x" >"$dir/broken.txt"
error "a list with a wrong sha256" 'broken.txt line 1: the sha256 is "abc", expected 64' fetch --list "$dir/broken.txt"
error "no such list" "the list of models: $dir/none.txt: cannot be opened: No such file" fetch --list "$dir/none.txt"
error "a list that is a folder" "the list of models: $dir: cannot be read: Is a directory" fetch --list "$dir"

# ---- Names

error "a wrong name" 'there is no model "dmo"; the nearest name is demo' fetch dmo
error "a wrong name near several" 'there is no model "cut_unknow"; the nearest name' fetch cut_unknow
error "a name like none" 'there is no model "banana-split-ii"; `easel fetch` lists the names' fetch banana-split-ii
error "-m with a wrong name" "Demo: cannot open the model file: No such file, and no model has that name; the nearest" \
    generate -m Demo -p hi
error "-m before the fetch" "model demo is not downloaded yet: easel fetch demo (2.13 MB)" generate -m demo -p hi
error "the same, size not known" "model unknown is not downloaded yet: easel fetch unknown" info -m unknown
error "-m with a path is no name" "x/demo: cannot open the model file: No such file" info -m x/demo

# ---- Downloads that go well

works "a whole download" fetch demo
same "gives the file" "$models/demo.gguf" $demo
check "its path is all that is on stdout" "$(cat "$dir/out")" = "$models/demo.gguf"
check "no part is left" ! -e "$models/demo.gguf.part"
works "a second fetch" fetch demo
has "has nothing to do" "demo is already downloaded" "$dir/err"
works "--quiet" fetch --quiet moved
check "says nothing on stderr" ! -s "$dir/err"
same "a redirect is followed" "$models/moved.gguf" $demo
works "size and sha256 not known" fetch unknown
same "gives the file too" "$models/unknown.gguf" $demo
works "the list afterwards" fetch
has "shows what is here" "demo              2.13 MB  downloaded       a note" "$dir/out"

# ---- -m NAME

works "generate -m NAME" generate -t 1 -m demo -p "What is 47 + 35?"
cp "$dir/out" "$dir/answer"
run generate -t 1 -p "What is 47 + 35?"
same "answers as the demo model" "$dir/answer" "$dir/out"
echo "mine $n $sum $url/ok/demo.gguf" >"$dir/mine.txt"
works "fetch --list FILE NAME" fetch --quiet --list "$dir/mine.txt" mine
works "-m NAME without that list" generate -m mine -p "What is 47 + 35?"
same "is the same model" "$dir/out" "$dir/answer"
works "info NAME" info demo
has "is of the cached file" "$models/demo.gguf: GGUF version 3" "$dir/out"
echo 82 >"$dir/text"
"$easel" tokenize -m demo <"$dir/text" >"$dir/out" 2>"$dir/err"
check "tokenize -m NAME" -s "$dir/out"
works "convert NAME" convert demo "$dir/new.gguf" --type q8_0
program=$(cd "$(dirname "$easel")" && pwd)/$(basename "$easel")
mkdir "$dir/here"
cp $demo "$dir/here/wrong"
(cd "$dir/here" && "$program" info wrong) >"$dir/out" 2>"$dir/err"
has "a path that exists wins" "wrong: GGUF version 3" "$dir/out"

# ---- Broken connections

error "a cut connection" "the download stopped at 1000000 of $n bytes" fetch cut
has "says how to go on" '`easel fetch cut` continues from there' "$dir/err"
check "what has come is kept" "$(wc -c <"$models/cut.gguf.part")" -eq 1000000
check "and is not used" ! -e "$models/cut.gguf"
run fetch
has "the list tells it" "1.00 MB so far" "$dir/out"
error "-m does not take a part" "model cut is not downloaded yet" info cut
error "the second run goes on" "the download stopped at 2000000 of $n bytes" fetch cut
works "the third run ends it" fetch cut
check "with range requests" "$(requests bytes=1000000-) $(requests bytes=2000000-)" = "1 1"
same "the pieces are the file" "$models/cut.gguf" $demo
error "a cut connection, size not known" "the download stopped at 1500000 bytes" fetch cut_unknown
works "is gone on with too" fetch cut_unknown
same "and is the file" "$models/cut_unknown.gguf" $demo
mv "$models/demo.gguf" "$models/demo.gguf.part"
before=$(wc -l <"$dir/log")
works "a part that is whole" fetch demo
check "needs no request" "$(wc -l <"$dir/log")" -eq "$before"
mv "$models/unknown.gguf" "$models/unknown.gguf.part"
works "a part that is whole, size not known" fetch unknown
check "asks for what comes after it" "$(requests "bytes=$n-")" -eq 1
same "and keeps it" "$models/unknown.gguf" $demo

head -c 700000 $demo >"$models/noranges.gguf.part"
works "a server without ranges" fetch noranges
has "is asked from zero" "the server cannot resume a download; starting over" "$dir/err"
same "and gives the file" "$models/noranges.gguf" $demo

# ---- Files that are not the right ones

error "a wrong sha256" "deleted, as its sha256 is $sum, expected $wrong" fetch wrong
check "nothing of it is left" "$(ls "$models" | grep -c '^wrong')" -eq 0
cp $demo "$models/wrong.gguf.part"
error "a part of it all" "deleted, as its sha256" fetch wrong
has "is not kept either" "the earlier download has a wrong sha256; starting over" "$dir/err"
error "a wrong sha256, size not known" "deleted, as its sha256" fetch wrong_unknown
cp $demo "$models/wrong_unknown.gguf.part"
error "a part of it all, too" "deleted, as its sha256" fetch wrong_unknown
has "is not kept either, then" "the earlier download has a wrong sha256; starting over" "$dir/err"
check "no lock is left" "$(ls "$models" | grep -c 'lock$')" -eq 0
error "a page where a model should be" 'deleted, as it begins with "<!do", expected a GGUF file' fetch page
error "the same, of a known size" 'deleted, as it begins with "<!do", expected a GGUF file' fetch page_sized
check "is not kept" "$(ls "$models" | grep -c '^page')" -eq 0
head -c 5000 src/trace.html >"$models/moved.gguf.part" && rm "$models/moved.gguf"
works "a part that is a page" fetch moved
has "is not gone on with" "moved.gguf.part: not the beginning of a GGUF file; starting over" "$dir/err"
same "but fetched from zero" "$models/moved.gguf" $demo
cp $demo "$models/cut.gguf.part" && rm "$models/cut.gguf" && echo x | dd of="$models/cut.gguf.part" bs=1 seek=500 \
    conv=notrunc 2>/dev/null
error "a spoilt part" "the download stopped at 1000000" fetch cut
has "is thrown away" "starting over" "$dir/err"
error "a short file" "the server's file has 50000 bytes, expected $n: it is not" fetch short
error "is short the second time too" "the server's file has 50000 bytes, expected $n" fetch short
error "a long file" "the server sends more than the 1000 bytes expected" fetch long
check "is not begun" ! -e "$models/long.gguf.part"
cp $demo "$models/long.gguf.part"
error "a long part" "sends more than" fetch long
has "is thrown away too" "longer than the model; starting over" "$dir/err"
cp Makefile "$models/gone.gguf"
error "a present file of a wrong size" "expected $n; delete it to fetch it again" fetch gone
rm "$models/gone.gguf"

# ---- No file, no server, no network, no room

error "404" "/ok/absent.gguf: the server refuses the file: The requested URL returned error: 404" fetch gone
check "leaves no part" ! -e "$models/gone.gguf.part"
error "offline: nobody listens" "cannot connect to 127.0.0.1:1: is this machine online?" fetch offline
error "offline: no such host" "cannot find easel.invalid: is this machine online?" fetch nohost
error "a full disk" "free, 9000000.00 TB needed for huge" fetch huge
mkdir "$dir/empty"
with "PATH=$dir/empty" error "no curl" "downloading needs the program curl, which is not installed" fetch gone
mkdir "$dir/fake"
printf '#!/bin/sh\necho "$@" >"%s/words"\nexit 7\n' "$dir" >"$dir/fake/curl"
chmod +x "$dir/fake/curl"
echo "secure $n $sum https://127.0.0.1:1/demo.gguf" >"$dir/secure.txt"
with "PATH=$dir/fake:$PATH" error "https" "cannot connect to 127.0.0.1:1" fetch --list "$dir/secure.txt" secure
has "is not redirected to http" "--proto-redir =https" "$dir/words"
echo include >"$HOME/.curlrc"  # headers before the file
works "a .curlrc changes nothing" fetch --list "$dir/list.txt" unknown
check "nor the file" "$(wc -c <"$models/unknown.gguf")" = "$n"
rm "$HOME/.curlrc" "$models/unknown.gguf"
: >"$dir/file"
with "EASEL_MODELS=$dir/file/models" error "a folder below a file" "$dir/file/models: cannot be created: Not a directory" \
    fetch demo
with "EASEL_MODELS=$dir/file" error "a folder that is a file" "$dir/file" fetch demo
mkdir "$dir/sealed"
chmod a-w "$dir/sealed"
if mkdir "$dir/sealed/x" 2>/dev/null; then  # root may write there
    rmdir "$dir/sealed/x"
    as_other="setpriv --reuid 65534 --clear-groups"
else
    as_other=
fi
# shellcheck disable=SC2086
if $as_other true 2>/dev/null; then
    chmod a+rx "$dir"
    cp "$easel" "$dir/program"  # the other may not come to where it lies
    for models_in in "$dir/sealed" "$dir/sealed/below"; do
        $limit $as_other env "EASEL_MODELS=$models_in" "$dir/program" fetch demo </dev/null >"$dir/out" 2>"$dir/err"
        check "a folder that must not be written: exit 1" $? -eq 1
        has "and which" "easel: $models_in" "$dir/err"
        has "and why" "Permission denied; EASEL_MODELS=FOLDER sets another folder" "$dir/err"
    done
    : >"$dir/sealed.json"
    chmod 444 "$dir/sealed.json"
    echo "/save $dir/sealed.json" | $limit $as_other "$dir/program" chat >"$dir/out" 2>"$dir/err"
    has "a file that must not: why" "sealed.json: cannot be written: Permission denied" "$dir/err"
    rm "$dir/program"
else
    skip "a folder that must not be written" "this is root, and there is no setpriv"
fi
with HOME= error "no folder at all" "there is no folder for models: set EASEL_MODELS" fetch demo
rm -f "$models/gone.gguf.lock"
mkdir "$models/gone.gguf.lock"
error "a lock that cannot be written" "gone.gguf.lock: cannot be written: Is a directory" fetch gone
rmdir "$models/gone.gguf.lock"
with "EASEL_MODELS=$dir/new/models" works "EASEL_MODELS is made" fetch demo
same "and used" "$dir/new/models/demo.gguf" $demo
with "XDG_CACHE_HOME=$dir/cache" works "XDG_CACHE_HOME" fetch demo
same "is used" "$dir/cache/easel/demo.gguf" $demo

# ---- Two at once, progress, Ctrl-C

"$easel" fetch slow </dev/null >"$dir/slow.out" 2>"$dir/slow.err" &
pid=$!
wait_for test -s "$models/slow.gguf.part"
error "two at once" "slow is being fetched by another easel process" fetch slow
wait $pid
check "the first one ends well" $? -eq 0
same "and has the file" "$models/slow.gguf" $demo
lines=$(grep -c '^slow: .* of 2.13 MB, [0-9]* %, .*/s, [0-9]* s left$' "$dir/slow.err")
check "progress: a line every few seconds" "$lines" -ge 1

for _ in 1 2 3 4 5; do  # on a busy machine, one of them
    rm -f "$models/slow.gguf" "$models/slow.gguf.part"
    "$easel" fetch slow </dev/null >"$dir/out" 2>"$dir/err" &
    pid=$!
    wait_for test -s "$models/slow.gguf.part"
    interrupt $pid
    [ $took -le 2000 ] && break
done
check "Ctrl-C exits with 130" $status -eq 130
check "Ctrl-C takes at most 2 seconds ($took ms)" $took -le 2000
check "Ctrl-C keeps the part" -s "$models/slow.gguf.part"
has "Ctrl-C says how to go on" '`easel fetch slow` continues from there' "$dir/err"
part=$(wc -c <"$models/slow.gguf.part")
"$easel" fetch slow </dev/null >"$dir/out" 2>"$dir/err" &
pid=$!
more_than() { [ "$(wc -c <"$models/slow.gguf.part")" -gt "$1" ]; }
wait_for more_than "$part"
kill -TERM $pid
wait $pid
check "SIGTERM exits with 143" $? -eq 143
check "its curl has ended" -z "$(pgrep -f "continue-at $part")"
part=$(wc -c <"$models/slow.gguf.part")
works "and the next run does" fetch --quiet slow
check "from there" "$(requests "bytes=$part-")" -eq 1
same "to the whole file" "$models/slow.gguf" $demo

if command -v script >/dev/null && script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    rm "$models/slow.gguf"
    head -c 1500000 $demo >"$models/slow.gguf.part"
    TERM=xterm script -qec "'$easel' fetch slow" /dev/null </dev/null >"$dir/screen" 2>&1
    has "a terminal has a line that changes, on one row" "$(printf '\033[?7l\r\033[Kslow: ')" "$dir/screen"
    rm "$models/slow.gguf"
    TERM=dumb script -qec "'$easel' fetch slow" /dev/null </dev/null >"$dir/screen" 2>&1
    check "one that cannot has none" "$(grep -c "$(printf '\033')" "$dir/screen")" -eq 0
else
    skip "progress on a terminal" "needs util-linux's script"
fi

end
