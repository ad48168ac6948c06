"""Scores the demo model through the easel program, on prompts of the test split of demo_prompts.py.

    python tools/demo_eval.py --easel build/easel [-m MODEL.gguf] [-n 40] [--seeds 1,2,3] [--jobs 2]

Runs `easel generate ... --print json` once a prompt and seed and prints a table of right answers per kind. Exit status 1
when a kind is below 95 % (closed sets of facts and chat lines: below 100 %). Standard library only.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import demo_prompts

PASS_OPEN, PASS_CLOSED = 0.95, 1.0


def ask(command, prompt, answer, seed, timeout):
    """One generation: dict with right, stopped (ended by its own end token), steps, canvases, got."""
    argv = command + ["-p", prompt, "--seed", str(seed), "--print", "json"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: exit {run.returncode}: {run.stderr.strip()}")
    reply = json.loads(run.stdout)
    stopped = reply["finish_reason"] == "stop"
    return {"right": stopped and reply["text"] == answer, "stopped": stopped, "steps": reply["steps"],
            "canvases": reply["canvases"], "got": reply["text"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--easel", default="build/easel", help="the program")
    parser.add_argument("-m", "--model", help="model file; without it the program's default model")
    parser.add_argument("-n", type=int, default=40, help="prompts per kind")
    parser.add_argument("--kinds", default=",".join(demo_prompts.KINDS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one generation")
    parser.add_argument("--show", type=int, default=3, help="wrong answers to print per kind")
    parser.add_argument("extra", nargs="*", help="more arguments for easel, after --")
    args = parser.parse_args()
    command = [args.easel, "generate"] + (["-m", args.model] if args.model else []) + args.extra
    seeds = [int(seed) for seed in args.seeds.split(",")]
    kinds = args.kinds.split(",")
    work = [(kind, prompt, answer, seed) for kind in kinds
            for prompt, answer in demo_prompts.test_set(kind, args.n) for seed in seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        replies = list(pool.map(lambda w: ask(command, *w[1:], args.timeout), work))

    by_kind, wrong = defaultdict(list), defaultdict(list)
    for (kind, prompt, answer, seed), reply in zip(work, replies):
        by_kind[kind].append(reply)
        if not reply["right"]:
            wrong[kind].append(f"  seed {seed}: {prompt!r} -> {reply['got']!r}, right is {answer!r}")
    failed = False
    print(f"{'kind':10} {'prompts':>7} {'right %':>8} {'steps/canvas':>12} {'ended %':>8}")
    for kind in kinds:
        replies = by_kind[kind]
        n = len(replies)
        right = sum(r["right"] for r in replies) / n
        steps = sum(r["steps"] for r in replies) / sum(r["canvases"] for r in replies)
        ended = sum(r["stopped"] for r in replies) / n
        enough = right >= (PASS_CLOSED if kind in demo_prompts.CLOSED else PASS_OPEN)
        failed |= not enough
        print(f"{kind:10} {n // len(seeds):7} {100 * right:8.1f} {steps:12.2f} {100 * ended:8.1f}"
              f"{'' if enough else '  below the bar'}")
        print(*wrong[kind][: args.show], sep="\n", end="\n" if wrong[kind] and args.show else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
