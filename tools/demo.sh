#!/bin/sh
# demo.sh EASEL: what `make demo` shows: the built-in model turning noise into answers.
set -eu
easel=$1
ask() {
    echo "> $*"
    "$easel" generate --show-steps -p "$@"
}
for prompt in 'What is 47 + 35?' 'Sort 52, 17, 31' 'Reverse "planet"' 'What is the capital of Norway?'; do
    ask "$prompt"
done
# Hotter than the model's own schedule, so that it takes more than two steps.
ask 'Make JSON: Ann is 31 years old and lives in Oslo.' --t-max 4 --max-steps 12
