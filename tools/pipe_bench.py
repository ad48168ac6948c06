"""Times `easel pipe` beside the same answers made in one process through the library (tests/library/example.cpp).

    make install PREFIX=build/stage
    g++ -std=c++20 -O2 tests/library/example.cpp -Ibuild/stage/include -Lbuild/stage/lib -leasel -pthread -o build/example
    python3 tools/pipe_bench.py --easel build/easel --example build/example [-n 1000] [--rounds 5] [--json FILE]

Both run by turns on the demo model with one thread, each over n prompts, the start of the program included. What counts
is the ratio of medians; CPU seconds are told too, since other programs on the machine do not change them much. Standard
library only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import time


def timed(command, lines):
    """Wall and CPU seconds of one run over `lines`, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    run = subprocess.run(command, input=lines, capture_output=True, check=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, run.stdout


parser = argparse.ArgumentParser()
parser.add_argument("--easel", default="build/easel")
parser.add_argument("--example", default="build/example")
parser.add_argument("-n", type=int, default=1000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--json")
options = parser.parse_args()

prompts = [f"What is {i % 40 + 10} + {i * 7 % 39 + 11}?" for i in range(options.n)]
plain = "".join(p + "\n" for p in prompts).encode()
requests = "".join(json.dumps({"id": i, "prompt": p}) + "\n" for i, p in enumerate(prompts)).encode()
runs = {"pipe": [], "library": []}
for _ in range(options.rounds):
    wall, cpu, out = timed([options.easel, "pipe", "-t", "1", "--device", "cpu"], requests)
    runs["pipe"].append((wall, cpu))
    piped = [json.loads(line)["text"] for line in out.splitlines()]
    wall, cpu, out = timed([options.example, "", "1"], plain)
    runs["library"].append((wall, cpu))
    assert piped == out.decode().splitlines(), "the answers differ"
result = {"prompts": options.n, "rounds": options.rounds, "threads": 1, "load_average": round(os.getloadavg()[0], 1)}
for name, times in runs.items():
    wall, cpu = (statistics.median(t) for t in zip(*times))
    result[name] = {"answers_s": round(options.n / wall, 1), "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
result["throughput_ratio"] = round(result["pipe"]["answers_s"] / result["library"]["answers_s"], 3)
result["cpu_ratio"] = round(result["library"]["cpu_s"] / result["pipe"]["cpu_s"], 3)
print(json.dumps(result, indent=2))
if options.json:
    with open(options.json, "w") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
