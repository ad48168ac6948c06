#!/bin/sh
# demo.sh EASEL: what `make demo` shows: the built-in model turning noise into answers.
set -eu
easel=$1
for prompt in "What is 47 + 85?" "Sort these numbers: 52 7 31 18" "Reverse the word: planet" \
    "What is the capital of Norway?"; do
    echo "> $prompt"
    "$easel" generate --show-steps -p "$prompt"
done
