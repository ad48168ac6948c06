#!/usr/bin/env python3
"""transformers in float32 on the CPU beside `easel bench cpu`, at the shapes of its synthetic mid-size model.

    transformers_cpu.py [--threads N] [--repeat N] [--prefix N] [--easel PATH] [--json FILE]

Rows: `encode`, the prompt's causal pass; `forward`, one self-conditioned denoise pass to logits; `step`, that
and the sampler (softmax, draw, entropy, accept, renoise), which is what easel's `denoise` times. transformers
runs with sdpa attention and the fastest of its experts implementations, found here. Both use random weights;
medians of --repeat passes.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import transformers
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.initialization import no_init_weights
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig, EntropyBoundSamplerConfig)

# mid_config() of src/synthetic.cpp. The vision tower is never run.
TEXT = dict(vocab_size=32000, hidden_size=1024, intermediate_size=1536, num_hidden_layers=12,
            layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(12)],
            num_attention_heads=8, num_key_value_heads=4, num_global_key_value_heads=2, head_dim=128,
            global_head_dim=256, sliding_window=1024, num_experts=24, top_k_experts=4,
            moe_intermediate_size=512)
VISION = dict(model_type="gemma4_vision", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
              num_attention_heads=2, num_key_value_heads=2, head_dim=4, patch_size=2,
              position_embedding_size=4)
EXPERTS = ("eager", "grouped_mm")  # batched_mm copies 6 GB of weights a layer


@torch.no_grad()
def build(text=TEXT, canvas=256, device="cpu", dtype=torch.float32):
    """transformers' own class with random weights; what it computes is of no interest, only how long it takes."""
    config = DiffusionGemmaConfig(canvas_length=canvas, text_config=text, vision_config=VISION, dtype=dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with no_init_weights(), torch.device(device):
        model = DiffusionGemmaForBlockDiffusion(config).eval()
    torch.set_default_dtype(before)
    model.tie_weights()
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    for name, w in model.named_parameters():
        if w.dim() == 1:
            w.fill_(0.3 if ".q_norm" in name or ".k_norm" in name else 1.0)  # scores as if trained
        else:
            w.copy_(noise.repeat(-(-w.numel() // len(noise)))[:w.numel()].view(w.shape) * w.shape[-1] ** -0.5)
    model.set_attn_implementation("sdpa")
    return model


def now():
    """Seconds, once a GPU is done with what it has been given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run, repeat):
    """Milliseconds, median, after one run that does not count."""
    times = []
    for _ in range(repeat + 1):
        start = now()
        run()
        times.append((now() - start) * 1e3)
    return median(times[1:])


@torch.no_grad()
def time_encode(model, prompt, repeat):
    config = model.config.text_config
    return timed(lambda: model.model.encoder(input_ids=prompt, cache=DynamicCache(config=config)), repeat)


@torch.no_grad()
def time_forward(model, prompt, repeat):
    cache = DynamicCache(config=model.config.text_config)
    model.model.encoder(input_ids=prompt, cache=cache)
    canvas = torch.randint(model.config.text_config.vocab_size, (1, model.config.canvas_length),
                           generator=torch.Generator().manual_seed(2)).to(prompt.device)
    signal = model(decoder_input_ids=canvas, cache=cache).logits / 0.8
    run = lambda: model(decoder_input_ids=canvas, cache=cache, self_conditioning_logits=signal)  # noqa: E731
    return timed(run, repeat)


def time_step(model, prompt, repeat):
    """Steps of one canvas as generate() runs them; the first, without self-conditioning, is left out."""
    marks = []

    class Clock:  # a streamer: called with the prompt, after each step, and with the canvas
        put_draft = staticmethod(lambda value: marks.append(now()))
        put = staticmethod(lambda value: None)
        end = staticmethod(lambda: None)

    model.generate(prompt, streamer=Clock, generation_config=DiffusionGemmaGenerationConfig(
        max_new_tokens=model.config.canvas_length, max_denoising_steps=repeat + 1,
        sampler_config=EntropyBoundSamplerConfig(0.1),
        confidence_threshold=1e-9))
    return median((b - a) * 1e3 for a, b in zip(marks, marks[1:]))


def fastest_experts(model, prompt):
    """Sets the fastest of the experts' implementations and returns its name."""
    forward = {}
    for experts in EXPERTS:
        model.set_experts_implementation(experts)
        forward[experts] = time_forward(model, prompt, 1)
    best = min(forward, key=forward.get)
    model.set_experts_implementation(best)
    return best


def bench(path, *flags):
    """The figures of `easel bench FLAGS`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([path, "bench", *flags, "--json", file.name], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def run_easel(path, threads, prefix, repeat, shape="mid"):
    """{"encode": ms, "step": ms} of a made-up model, from `easel bench cpu`."""
    models = bench(path, "cpu", "--synthetic", shape, "--threads", str(threads), "--prefix", str(prefix),
                   "--repeat", str(repeat))["cpu"]["models"]
    name, = [name for name in models if not name.endswith(" int8")]
    return name, {"encode": models[name]["encode"]["ms"], "step": models[name]["denoise"]["ms"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prefix", type=int, default=256)
    parser.add_argument("--easel", type=Path, default=Path(__file__).parents[2] / "build/easel")
    parser.add_argument("--json", type=Path, help="also write the times here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()

    model = build()
    prompt = torch.randint(TEXT["vocab_size"], (1, args.prefix), generator=torch.Generator().manual_seed(3))
    best = fastest_experts(model, prompt)
    peer = {"encode": time_encode(model, prompt, args.repeat),
            "forward": time_forward(model, prompt, args.repeat),
            "step": time_step(model, prompt, args.repeat)}

    ours = {}
    print(f"{args.threads} threads, prefix {args.prefix}, canvas 256; torch {torch.__version__}, "
          f"transformers {transformers.__version__} float32, sdpa, experts {best}")
    if args.easel.exists():
        name, ours = run_easel(args.easel, args.threads, args.prefix, args.repeat)
        print(f"easel: {name}")
    else:
        print(f"easel: SKIPPED, no {args.easel}", file=sys.stderr)
    print(f"{'pass':<8} {'transformers ms':>16} {'easel ms':>10} {'ratio':>7}")
    for row, ms in peer.items():
        mine = f"{ours[row]:10.0f} {ms / ours[row]:6.2f}x" if row in ours else f"{'-':>10} {'-':>7}"
        print(f"{row:<8} {ms:16.0f} {mine}")
    if args.json:
        record = dict(threads=args.threads, prefix=args.prefix, experts=best, transformers_ms=peer,
                      easel_ms=ours)
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
