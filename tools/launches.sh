#!/bin/sh
# launches.sh [KIB]: what launches.cpp prints, of every kernel file that has large launches: a line each. KIB: of shared
# memory that a block may have. For ptxas.sh; and to see that it compiles.
set -eu
program=$(mktemp)
trap 'rm -f "$program"' EXIT
for source in linear head embed attention moe sample; do
    name=$(echo "$source" | tr '[:lower:]' '[:upper:]')
    ${CXX:-g++} -std=c++20 -w -O0 -Iinclude -Icuda -isystem build/deps/usr/include -DFMT_HEADER_ONLY \
        "-DSOURCE=\"$source.cu\"" "-D$name" "-DSHARED_KIB=${1:-227}" tools/launches.cpp -o "$program"
    "$program"
done
