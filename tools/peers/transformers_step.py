#!/usr/bin/env python3
"""transformers in bfloat16 on a GPU beside `easel bench step`, at the shapes of the 26B-A4B model.

    transformers_step.py [--prefix N] [--repeat N] [--easel PATH] [--json FILE] [--toy] [--device cpu]

transformers' own DiffusionGemma class with random weights (50 GB), sdpa, the fastest of its experts
implementations, canvas 256 after a prefix. Rows: `forward`, one self-conditioned denoise pass to logits; `step`,
that and the sampler. easel's step has its sampler in it and its weights in Q4_K_M types: both rows are divided by
it. --toy: small shapes, on a CPU too, to try this script.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
import transformers

from transformers_cpu import bench, build, fastest_experts, run_easel, time_forward, time_step

# real_config() and toy_config() of src/synthetic.cpp.
REAL = dict(vocab_size=262144, hidden_size=2816, intermediate_size=2112, num_hidden_layers=30,
            layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(30)],
            num_attention_heads=16, num_key_value_heads=8, num_global_key_value_heads=2, head_dim=256,
            global_head_dim=512, sliding_window=1024, num_experts=128, top_k_experts=8, moe_intermediate_size=704)
TOY = dict(vocab_size=400, hidden_size=256, intermediate_size=256, num_hidden_layers=2,
           layer_types=["sliding_attention", "full_attention"], num_attention_heads=4, num_key_value_heads=2,
           num_global_key_value_heads=1, head_dim=64, global_head_dim=128, sliding_window=64, num_experts=16,
           top_k_experts=2, moe_intermediate_size=256)


def easel_step(args):
    """Name and milliseconds of easel's step, the whole answer one graph where there is a GPU."""
    if args.device == "cpu":
        name, ms = run_easel(args.easel, torch.get_num_threads(), args.prefix, args.repeat,
                             "toy" if args.toy else "26b-a4b")
        return name, ms["step"]
    shape = "toy" if args.toy else "26b-a4b"
    gpu = bench(args.easel, "step", "--synthetic", shape, "--prefix", str(args.prefix), "--repeat",
                str(args.repeat))["gpu"]
    return gpu["model"], gpu["step"].get("graph", gpu["step"]["host_loop"])["ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prefix", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="small shapes")
    parser.add_argument("--easel", type=Path, default=Path(__file__).parents[2] / "build/easel")
    parser.add_argument("--json", type=Path, help="also write the times here")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("transformers_step: torch sees no GPU (--toy --device cpu tries the script without one)")
    transformers.logging.set_verbosity_error()

    text, canvas = (TOY, 32) if args.toy else (REAL, 256)
    model = build(text, canvas, args.device, torch.bfloat16)
    prompt = torch.randint(text["vocab_size"], (1, args.prefix), generator=torch.Generator().manual_seed(3))
    prompt = prompt.to(args.device)
    experts = fastest_experts(model, prompt)
    peer = {"forward": time_forward(model, prompt, args.repeat), "step": time_step(model, prompt, args.repeat)}
    del model  # its memory is easel's now
    if args.device == "cuda":
        torch.cuda.empty_cache()

    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{device}, prefix {args.prefix}, canvas {canvas}; torch {torch.__version__}, "
          f"transformers {transformers.__version__} bfloat16, sdpa, experts {experts}")
    ms = None
    if args.easel.exists():
        name, ms = easel_step(args)
        print(f"easel: {name}, a step {ms:.3f} ms")
    else:
        print(f"easel: SKIPPED, no {args.easel}", file=sys.stderr)
    for row, peer_ms in peer.items():
        ratio = f", {peer_ms / ms:.2f} times easel's step" if ms else ""
        print(f"transformers {row:<8} {peer_ms:9.3f} ms{ratio}")
    if args.json:
        args.json.write_text(json.dumps(dict(device=device, prefix=args.prefix, experts=experts,
                                             transformers_ms=peer, easel_ms=ms), indent=2) + "\n")


if __name__ == "__main__":
    main()
