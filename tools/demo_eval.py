"""Scores the demo model through the easel program, on prompts of the test split of demo_prompts.py.

    python tools/demo_eval.py --easel build/easel [-m MODEL.gguf] [-n 40] [--seeds 1,2,3] [--turns 0,1,3] [-s SYSTEM]

Asks one `easel pipe` every prompt with every seed, after so many earlier turns with right answers, and prints a table of right
answers per kind. Exit status 1 when a kind is below 95 % (closed sets of facts and chat lines: below 100 %). Standard library
only.
"""

import argparse
import json
import random
import subprocess
import sys
from collections import defaultdict

import demo_prompts

PASS_OPEN, PASS_CLOSED = 0.95, 1.0


def request(prompt, earlier, seed, args):
    """A line for `easel pipe`: earlier (prompt, answer) turns, then the prompt."""
    said = [text for turn in earlier for text in turn] + [prompt]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    if args.system:
        messages.insert(0, {"role": "system", "content": args.system})
    return json.dumps({"seed": seed, "think": args.think, "messages": messages}) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--easel", default="build/easel", help="the program")
    parser.add_argument("-m", "--model", help="model file; without it the program's default model")
    parser.add_argument("-n", type=int, default=40, help="prompts per kind")
    parser.add_argument("--kinds", default=",".join(demo_prompts.KINDS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--turns", default="0", help="how many turns come before; several: a table for each")
    parser.add_argument("-s", "--system", default="", help="a system message before all of it")
    parser.add_argument("--think", action="store_true", help="let the model think first")
    parser.add_argument("--show", type=int, default=3, help="wrong answers to print per kind")
    parser.add_argument("extra", nargs="*", help="more arguments for easel, after --")
    args = parser.parse_args()
    command = [args.easel, "pipe"] + (["-m", args.model] if args.model else []) + args.extra
    kinds, seeds = args.kinds.split(","), [int(seed) for seed in args.seeds.split(",")]

    failed, rng = False, random.Random(0)
    for turns in map(int, args.turns.split(",")):
        work = [(kind, prompt, answer, seed) for kind in kinds
                for prompt, answer in demo_prompts.test_set(kind, args.n) for seed in seeds]
        lines = [request(prompt, demo_prompts.earlier_turns(rng, turns, test=True), seed, args)
                 for _, prompt, _, seed in work]
        run = subprocess.run(command, input="".join(lines), capture_output=True, text=True)
        if run.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit {run.returncode}: {run.stderr.strip()}")
        by_kind, wrong = defaultdict(list), defaultdict(list)
        for (kind, prompt, answer, seed), line in zip(work, run.stdout.splitlines(), strict=True):
            reply = json.loads(line)
            ended = reply["finish_reason"] == "stop"
            right = ended and reply["text"] == answer
            by_kind[kind].append((right, ended, reply["steps"], reply["canvases"]))
            if not right:
                wrong[kind].append(f"  seed {seed}: {prompt!r} -> {reply['text']!r}, right is {answer!r}")
        print(f"after {turns} turns")
        print(f"{'kind':10} {'prompts':>7} {'right %':>8} {'steps/canvas':>12} {'ended %':>8}")
        for kind in kinds:
            right, ended, steps, canvases = map(sum, zip(*by_kind[kind]))
            n = len(by_kind[kind])
            enough = right / n >= (PASS_CLOSED if kind in demo_prompts.CLOSED else PASS_OPEN)
            failed |= not enough
            print(f"{kind:10} {n // len(seeds):7} {100 * right / n:8.1f} {steps / canvases:12.2f} {100 * ended / n:8.1f}"
                  f"{'' if enough else '  below the bar'}")
            print(*wrong[kind][: args.show], sep="\n", end="\n" if wrong[kind] and args.show else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
