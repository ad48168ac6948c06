#!/bin/sh
# deps.sh DIR: makes sure that the C++ headers easel is built with can be found, without root.
# Uses what the system has; else fetches the distribution's own packages (Debian, Ubuntu) and unpacks them under DIR.
# Leaves DIR/ready, DIR/catch.libs with the flags that link Catch2 (empty for version 2), and DIR/edit.flags and
# DIR/edit.libs, which compile and link libedit: `easel chat` does without it where it cannot be had (both are empty).
set -eu
dir=$1
cxx=${CXX:-g++}  # a command and its arguments: "ccache g++"
mkdir -p "$dir"

have() {  # have HEADER...
    # shellcheck disable=SC2086
    for h; do echo "#include <$h>"; done |
        $cxx -std=c++20 -DFMT_HEADER_ONLY -isystem "$dir/usr/include" -x c++ -fsyntax-only - 2>/dev/null
}

# edits: whether a program that uses libedit links; how is left in edit.libs. Packages under DIR are linked statically:
# the program then needs nothing when it runs.
edits() {
    static=""
    for lib in edit bsd md tinfo; do
        static="$static $(find "$dir/usr/lib" -name "lib$lib.a" 2>/dev/null | head -n 1)"
    done
    for libs in "-ledit" "-ledit -lncurses" "$static"; do
        echo "$libs" >"$dir/edit.libs"
        # shellcheck disable=SC2086
        if printf '#include <stdio.h>\n#include <histedit.h>\nint main() { return !el_init("", stdin, stdout, stderr); }\n' |
            $cxx -isystem "$dir/usr/include" -x c++ - -x none $libs -o "$dir/edit.test" 2>/dev/null; then
            rm "$dir/edit.test"
            echo "-DEASEL_EDIT" >"$dir/edit.flags"
            return
        fi
    done
    : >"$dir/edit.libs"
    : >"$dir/edit.flags"
    return 1
}

# look: the packages whose headers are not found, to $missing.
look() {
    missing=""
    have CLI/CLI.hpp || missing="$missing libcli11-dev"
    have fmt/format.h || missing="$missing libfmt-dev"
    have catch2/catch.hpp || have catch2/catch_all.hpp || missing="$missing catch2"
    have nlohmann/json.hpp || missing="$missing nlohmann-json3-dev"
}
look

editor=""
edits || editor="libedit-dev libbsd-dev libmd-dev libncurses-dev"

fetch() {  # fetch PACKAGE...: unpacks them under DIR
    apt="$PWD/$dir/apt"
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    in_dir() {
        apt-get -o "Dir::State=$apt/state" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$apt/cache" \
            -o Debug::NoLocking=1 -qq "$@"
    }
    in_dir update >"$apt/log" 2>&1 || return 1
    # Of Catch2 version 3, Debian's package catch2 only requires the one that has the files.
    case " $* " in
        *" catch2 "*) (cd "$apt" && in_dir download libcatch2-dev) >/dev/null 2>&1 || : ;;
    esac
    (cd "$apt" && in_dir download "$@") >>"$apt/log" 2>&1 || return 1
    for package in "$apt"/*.deb; do dpkg-deb -x "$package" "$dir"; done
    rm -rf "$apt"
}

if [ -n "$missing$editor" ] && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    echo "fetching $missing $editor into $dir"
    # shellcheck disable=SC2086
    if ! fetch $missing $editor && [ -n "$missing" ] && { [ -z "$editor" ] || ! fetch $missing; }; then
        cat "$apt/log" >&2
        echo "Could not fetch$missing. With root, 'apt-get install$missing' does the same." >&2
        exit 1
    fi
    rm -rf "$apt"
    look
    if [ -n "$missing" ]; then
        echo "The packages fetched into $dir do not have the headers of:$missing. 'apt-get install$missing' may do." >&2
        exit 1
    fi
elif [ -n "$missing" ]; then
    echo "easel needs the headers of CLI11, fmt, Catch2 and nlohmann-json." >&2
    echo "Missing here:$missing (Debian's names). Please install them with your system's package manager," >&2
    echo "for example: dnf install cli11-devel fmt-devel catch-devel json-devel" >&2
    echo "         or: brew install cli11 fmt catch2 nlohmann-json" >&2
    exit 1
fi
edits || echo "without libedit (package libedit-dev): easel chat reads lines without editing and history"

if have catch2/catch.hpp; then
    : >"$dir/catch.libs"
else
    lib=$(find "$dir/usr/lib" -name 'libCatch2.a' 2>/dev/null | head -n 1)
    echo "${lib:+-L${lib%/*} }-lCatch2" >"$dir/catch.libs"
fi
touch "$dir/ready"
