#!/bin/sh
# demo.sh EASEL: what `make demo` shows: the built-in model turning noise into answers.
set -eu
easel=$1
for prompt in 'What is 47 + 35?' 'Sort 52, 17, 31' 'Reverse "planet"' 'What is the capital of Norway?' \
    'Make JSON: Ann is 31 years old and lives in Oslo.'; do
    echo "> $prompt"
    "$easel" generate --show-steps -p "$prompt"
done
