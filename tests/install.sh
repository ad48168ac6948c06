#!/bin/sh
# install.sh PROGRAM: tests what others get: `make install` into a temporary tree, a program built against the
# installed library, --help of every command, completion, the manual page, `make uninstall`.
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
[ -z "$limit" ] || limit="timeout --foreground 600"

# The tree is made of what the tested program was built with.
if "$easel" --version | grep -q '^runs on: CPU;'; then cpu_only=NVCC=; else cpu_only=; fi
install() {  # install TARGET: into $dir/stage/opt/easel
    # shellcheck disable=SC2086
    $limit ${MAKE:-make} BUILD="${BUILD:-build}" EASEL="$easel" $cpu_only DESTDIR="$dir/stage" PREFIX=/opt/easel "$1" \
        >"$dir/log" 2>&1
}
root=$dir/stage/opt/easel
install install
check "make install ($(tail -n 1 "$dir/log"))" $? -eq 0
check "the program answers from there" "$("$root/bin/easel" generate -p "What is 47 + 35?" 2>/dev/null)" = 82
for file in lib/libeasel.a include/easel/easel.h share/man/man1/easel.1 share/zsh/site-functions/_easel \
    share/bash-completion/completions/easel share/fish/vendor_completions.d/easel.fish; do
    check "it has $file" -s "$root/$file"
done

# ---- The library: one program, easel.h and what the pkg-config file says, no other header of the project or its build

flags=$(sed -n 's/^Cflags: //p; s/^Libs: //p' "$root/lib/pkgconfig/easel.pc" | sed "s|\${prefix}|$root|g" | tr '\n' ' ')
cp tests/library/example.cpp "$dir"
# shellcheck disable=SC2086
(cd "$dir" && ${CXX:-g++} -std=c++20 -Wall -Wextra -Werror -O1 example.cpp $flags -o example) >"$dir/log" 2>&1
check "the example builds against it ($(head -n 1 "$dir/log"))" $? -eq 0
printf 'What is 47 + 35?\n\nReverse the word lemon.\n' | "$dir/example" >"$dir/out" 2>"$dir/err"
check "and runs" $? -eq 0
has "and answers" "82" "$dir/out"
check "a line each" "$(wc -l <"$dir/out")" -eq 3
check "or what is wrong with a line" "$(sed -n 2p "$dir/out")" = "error: the prompt is empty, expected some text"
"$dir/example" Makefile </dev/null >"$dir/out" 2>"$dir/err"
check "an error can be caught" $? -eq 1
has "and says what is wrong" 'example: Makefile: not a GGUF file' "$dir/err"
if command -v pkg-config >/dev/null; then
    PKG_CONFIG_PATH=$root/lib/pkgconfig pkg-config --cflags --libs easel >"$dir/out" 2>&1
    check "pkg-config reads easel.pc" $? -eq 0
    has "and gives the flags" "-I/opt/easel/include" "$dir/out"
else
    skip "pkg-config reads easel.pc" "needs pkg-config"
fi

# ---- --help: every command on a screen, with an example

export PATH="$root/bin:$PATH"
commands=$(easel nope 2>&1 | sed 's/.*expected one of //; s/,//g')
check "the commands are known" "$(echo "$commands" | wc -w)" -ge 10
for command in "" $commands; do
    # shellcheck disable=SC2086
    easel $command --help >"$dir/help"
    check "easel $command --help fits a screen" "$(wc -l <"$dir/help")" -le 40
    check "of 80 columns ($command)" "$(awk 'length > n { n = length } END { print n }' "$dir/help")" -le 80
    check "with an example ($command)" "$(tail -n 2 "$dir/help" | grep -c "easel ${command:-generate}")" -ge 1
done

# ---- Completion, in the shells themselves

if command -v bash >/dev/null; then
    cat >"$dir/complete.bash" <<'END'
source "$1/share/bash-completion/completions/easel"
complete -p easel
try() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _easel 2>/dev/null  # compopt minds that nobody is completing
    echo "$* ->" "${COMPREPLY[@]}" ""
}
try easel g
try easel generate --pri
try easel generate --print ""
try easel generate -m q4
try easel info src/de
try easel pipe --un
try easel completion f
try easel convert --type q8
try easel generate --device c
try easel fetch q4
try easel fetch src/de
touch "$1/a blank"
try easel info "$1/a" >/dev/null
echo "a name with a blank: ${#COMPREPLY[@]}"
rm "$1/a blank"
END
    bash "$dir/complete.bash" "$root" >"$dir/out" 2>"$dir/err"
    check "bash takes the completion ($(head -n 1 "$dir/err"))" ! -s "$dir/err"
    while read -r line; do has "bash: $line" "$line" "$dir/out"; done <<'END'
complete -F _easel easel
easel g -> generate
easel generate --pri -> --print
easel generate --print  -> text ids json
easel generate -m q4 -> q4_k_m
easel info src/de -> src/demo.cpp src/demo.gguf
easel pipe --un -> --unordered
easel completion f -> fish
easel convert --type q8 -> q8_0
easel generate --device c -> cpu cuda cuda:N
easel fetch q4 -> q4_k_m
easel fetch src/de ->
a name with a blank: 1
END
    # Each flag that a command's --help shows is one that is completed.
    for command in $commands; do
        easel "$command" --help | grep -o -e '^  \(-[a-z], \)\?--[a-z-]*' | grep -o -e '--[a-z-]*' >"$dir/flags"
        n=0
        while read -r flag; do
            grep -qe "^        words=.*[\" ]${flag}[ \"]" "$root/share/bash-completion/completions/easel" || n=$((n + 1))
        done <"$dir/flags"
        check "bash knows every flag of $command" $n -eq 0
    done
else
    skip "completion in bash" "needs bash"
fi
if command -v zsh >/dev/null; then
    zsh -fc 'fpath=($1 $fpath); autoload -Uz compinit; compinit -u -D; [[ $_comps[easel] == _easel ]] && autoload +X _easel' \
        zsh "$root/share/zsh/site-functions" >"$dir/out" 2>&1
    check "zsh takes the completion ($(head -n 1 "$dir/out"))" $? -eq 0
    check "without a word" ! -s "$dir/out"
else
    skip "completion in zsh" "needs zsh"
fi
if command -v fish >/dev/null; then
    HOME=$dir fish -c "source $root/share/fish/vendor_completions.d/easel.fish
        complete -C 'easel ge'; complete -C 'easel generate --pri'; complete -C 'easel generate --print '
        complete -C 'easel generate -m q4'" 2>"$dir/err" | cut -f 1 | tr '\n' ' ' >"$dir/out"
    check "fish takes the completion" "$(cat "$dir/out")" = "generate --print ids json text q4_k_m "
else
    skip "completion in fish" "needs fish"
fi

# ---- The manual page

if command -v man >/dev/null && command -v groff >/dev/null; then
    MANWIDTH=80 man --warnings -E UTF-8 -l "$root/share/man/man1/easel.1" >"$dir/out" 2>"$dir/err"
    check "man shows the page" $? -eq 0
    check "without warnings ($(head -n 1 "$dir/err"))" ! -s "$dir/err"
    sed 's/.\x08//g' "$dir/out" >"$dir/page"
    for text in "easel generate" "--entropy-bound X" "EXIT STATUS" "EASEL_MODELS_TXT" "(default: text)"; do
        has "the page tells $text" "$text" "$dir/page"
    done
    check "a group of options stands in one place" "$(grep -c '^ *Display:$' "$dir/page")" -eq 2  # generate, chat
    check "the page does not point to itself" "$(grep -c 'man easel' "$dir/page")" -eq 0
else
    skip "man shows the page" "needs man and groff"
fi

# ---- Objects are compiled anew when flags change, and only then: a tree by compilers that write nothing

cat >"$dir/cxx" <<'END'
#!/bin/sh
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then : >"$2"; fi
    shift
done
END
cp "$dir/cxx" "$dir/cxx2"
nvcc_of() {  # nvcc_of VERSION
    { sed 1q "$dir/cxx"; echo "if [ \"\$1\" = --version ]; then echo 'Cuda compilation tools, release $1, V$1.1'; fi"; sed 1d "$dir/cxx"; } >"$dir/nvcc"
}
nvcc_of 12.4
chmod +x "$dir/cxx" "$dir/cxx2" "$dir/nvcc"
mk() { ${MAKE:-make} BUILD="$dir/b" EASEL="$dir/b/easel" CXX="$dir/cxx" NVCC="$dir/nvcc" ARCH=90a "$@" 2>"$dir/err"; }
goals="$dir/b/easel $dir/b/unit $dir/b/obj/cuda/90a/unit-gpu"
# compiled NAME N SETTING...: `make` with that setting would compile so many of: a source file, a test, a kernel, a file of
# cuda/ for CUDA, the kernel for the simulator, a test for a GPU, one with kernels.
compiled() {
    name=$1 n=$2
    shift 2
    # shellcheck disable=SC2086
    mk -n "$@" $goals >"$dir/log"
    check "$name" "$(grep -c -e ' -c src/gguf.cpp ' -e ' -c tests/test_gguf.cpp ' -e ' -c cuda/norm.cu ' \
        -e ' -c cuda/backend.cpp -o [^ ]*/cuda/' -e ' -c tests/test_norm.cpp -o [^ ]*/gpu/' \
        -e ' -c tests/test_ptx.cpp -o [^ ]*/gpu/' "$dir/log")" -eq "$n"
}
compiled "a new tree: all is compiled" 7
# shellcheck disable=SC2086
mk $goals >"$dir/log"
check "a build by compilers that write nothing ($(head -n 1 "$dir/err"))" $? -eq 0
compiled "the same flags: nothing" 0
for setting in MARCH=other OPT=-O9 SAN=-fsanitize=other CXX="$dir/cxx2"; do
    compiled "$setting: what that compiler makes" 5 "$setting"
done
compiled "NVCC_FLAGS=-O9: what nvcc makes, and what goes with it" 4 NVCC_FLAGS=-O9
# shellcheck disable=SC2086
mk MARCH=other $goals >"$dir/log"
compiled "after a build with other flags, the same: nothing" 0 MARCH=other
compiled "and the first ones again" 5

nvcc_of 11.8
mk clean >"$dir/log"
# shellcheck disable=SC2086
mk $goals >"$dir/log"
check "an nvcc that is too old" $? -ne 0
has "is told" "$dir/nvcc is nvcc 11.8, expected 12.4 or later; make NVCC= builds for the CPU alone" "$dir/err"
mk NVCC= "$dir/b/easel" >"$dir/log"
check "and without it there is a program" $? -eq 0

# ---- CXX may be several words, "ccache g++" say; what is fetched already serves again

mkdir "$dir/deps"
ln -s "$PWD/build/deps/usr" "$dir/deps/usr"
${MAKE:-make} NVCC= DEPS="$dir/deps" CXX="env ${CXX:-g++}" deps >"$dir/log" 2>&1
check "make CXX=\"env g++\" finds the headers ($(head -n 1 "$dir/log"))" -e "$dir/deps/ready"
${MAKE:-make} NVCC= CXX="env g++" -n test >"$dir/log" 2>&1
has "and hands the words on to the tests" "CXX='env g++' sh" "$dir/log"

# ---- make uninstall; nothing of it where a folder's name would fall apart

echo mine >"$dir/a"
for target in install uninstall; do
    # shellcheck disable=SC2086
    $limit ${MAKE:-make} BUILD="${BUILD:-build}" EASEL="$easel" $cpu_only PREFIX="$dir/a b" $target >"$dir/log" 2>&1
    check "make $target into a folder with a blank" $? -eq 2
    has "says so ($target)" "expected a folder without blanks in its name" "$dir/log"
    check "and does nothing ($target)" "$(cat "$dir/a")" = mine
done
install uninstall
check "make uninstall" $? -eq 0
check "leaves nothing" -z "$(find "$root" -mindepth 1)"
install uninstall
check "make uninstall again ($(tail -n 1 "$dir/log"))" $? -eq 0

end
