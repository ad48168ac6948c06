#!/bin/sh
# launches.sh: what launches.cpp prints, of every kernel file that has large launches: a line each. For ptxas.sh; and to see
# that it compiles.
set -eu
program=$(mktemp)
trap 'rm -f "$program"' EXIT
for source in linear head embed attention moe sample; do
    name=$(echo "$source" | tr '[:lower:]' '[:upper:]')
    ${CXX:-g++} -std=c++20 -w -O0 -Iinclude -Icuda -isystem build/deps/usr/include -DFMT_HEADER_ONLY \
        "-DSOURCE=\"$source.cu\"" "-D$name" tools/launches.cpp -o "$program"
    "$program"
done
