#!/usr/bin/env python3
"""Expected results from transformers' DiffusionGemma classes, for the tests of easel.

    golden.py make [-o DIR] [NAME ...]   write MODELS as Hugging Face folders, and what comes out of them
    golden.py check STEM ...             load STEM.gguf; compare with STEM.json and STEM.logits*.f32

The arithmetic is transformers' own with every float32 in it replaced by float64 (see `exact`), rounded to
float32 when stored. The random draws of the generation loop are replaced by SPEC section 8.
tests/fixtures/hf/README.md describes the files. Needs transformers >= 5.24.
"""
import argparse
import contextlib
import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig, EntropyBoundSampler, EntropyBoundSamplerConfig)

LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
SAMPLER = dict(max_denoising_steps=48, t_min=0.4, t_max=0.8, entropy_bound=0.1,
               stability_threshold=1, confidence_threshold=0.005)

# The README of the fixtures says what each model has that the others do not. `seed` draws weights, prompt and
# canvas; `size` is described in fill(); `runs` are generations, name suffix: (seed, canvases).
MODELS = {
    "hf_small": dict(
        seed=1, size=(4.0, 0.15), n_prompt=53, canvas=24, runs={"": (10, 3), ".cut": (6, 3)},
        text=dict(vocab_size=512, hidden_size=32, intermediate_size=48, layer_types=LAYERS + LAYERS[-1:],
                  num_attention_heads=4, num_key_value_heads=2, num_global_key_value_heads=1,
                  head_dim=16, global_head_dim=32, sliding_window=16,
                  num_experts=6, top_k_experts=2, moe_intermediate_size=24)),
    "hf_two": dict(
        seed=2, size=(3.5, 0.25), n_prompt=21, canvas=32, runs={"": (9, 2), ".cut": (22, 2)}, published=True,
        sampler=dict(max_denoising_steps=20, t_min=0.3, t_max=0.9, entropy_bound=0.25,
                     stability_threshold=2, confidence_threshold=0.01),
        text=dict(vocab_size=384, hidden_size=64, intermediate_size=96, layer_types=LAYERS,
                  num_attention_heads=8, num_key_value_heads=4, num_global_key_value_heads=2,
                  head_dim=16, global_head_dim=32, sliding_window=64,
                  num_experts=9, top_k_experts=4, moe_intermediate_size=16)),
    "hf_long": dict(
        seed=3, size=(3.5, 0.25), n_prompt=45, canvas=12, runs={"": (28, 4), ".cut": (9, 4)}, committed=True,
        text=dict(vocab_size=384, hidden_size=48, intermediate_size=32, layer_types=LAYERS,
                  num_attention_heads=4, num_key_value_heads=4, num_global_key_value_heads=1,
                  head_dim=16, global_head_dim=16, sliding_window=8,
                  num_experts=5, top_k_experts=1, moe_intermediate_size=16)),
}
# Every checkpoint has a vision tower; a text converter must drop it.
VISION = dict(model_type="gemma4_vision", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
              num_attention_heads=2, num_key_value_heads=2, head_dim=4, patch_size=2,
              position_embedding_size=4, standardize=True)
# How near to a tie a stored generation may come (see ContractSampler.note). A float32 evaluation is off by
# about 2e-6 in an entropy and 1e-7 in a router probability.
MIN_MARGIN = dict(draw=5e-5, accept=5e-5, order=5e-5, argmax=5e-5, confidence=5e-5, router=5e-6)
EOG_TEXTS = ("<turn|>", "<|tool_response>")


@contextlib.contextmanager
def exact():
    """Within it, code naming float32 gets float64. The classes cast to it in norms, softmax, rotation."""
    default = torch.get_default_dtype()
    with mock.patch.object(torch, "float32", torch.float64), \
            mock.patch.object(torch, "float", torch.float64), \
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


# ---- random draws (SPEC section 8) ----

INIT, DRAW, RENOISE = 0, 1, 2


def philox(counter, seed):
    """First output word of Philox4x32-10 for counters [n, 4] (position, step, canvas, stream)."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [x.astype(np.uint64) for x in np.asarray(counter).T]
    k = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [b >> half ^ c[1] ^ k[0], b & low, a >> half ^ c[3] ^ k[1], a & low]
        k = [k[0] + np.uint64(0x9E3779B9) & low, k[1] + np.uint64(0xBB67AE85) & low]
    return c[0]


assert philox(np.zeros((1, 4)), 0)[0] == 0x6627E8D5  # known answer


class ContractSampler(EntropyBoundSampler):
    """transformers' sampler with the contract's draws. Records each step, and how near to a tie it came."""

    def __init__(self, seed, settings, **kwargs):
        super().__init__(config=settings.sampler_config, max_denoising_steps=settings.max_denoising_steps,
                         **kwargs)
        self.confidence_threshold = settings.confidence_threshold
        self.seed, self.canvas, self.step, self.stream = seed, -1, 0, INIT
        self.steps, self.margins = [], {}

    def words(self, stream):
        n = self.canvas_length
        rows = [np.arange(n), np.full(n, self.step), np.full(n, self.canvas), np.full(n, stream)]
        return philox(np.stack(rows, 1), self.seed)

    def initialize_canvas(self, batch_size, device):
        """Uniform ids. The loop calls this for a new canvas, renoise_canvas for fresh ids."""
        if self.stream == INIT:
            self.canvas, self.step = self.canvas + 1, 0
        ids = self.words(self.stream) * np.uint64(self.vocab_size) >> np.uint64(32)
        return torch.from_numpy(ids.astype(np.int64))[None]

    def multinomial(self, probs, num_samples):
        """Stands in for torch.multinomial: probs [canvas, vocab] to ids [canvas, 1]."""
        u = torch.from_numpy((self.words(DRAW) >> np.uint64(8)).astype(np.float64) * 2.0 ** -24)
        gap = probs.double().cumsum(-1) - u[:, None]
        self.draw_gap = gap.abs().amin(-1)
        above = gap > 0
        return torch.where(above.any(-1), above.to(torch.uint8).argmax(-1), self.vocab_size - 1)[:, None]

    def accept_canvas(self, current_canvas, denoiser_canvas, logits, cur_step):
        out = super().accept_canvas(current_canvas, denoiser_canvas, logits, cur_step)
        entropy = torch.distributions.Categorical(logits=logits).entropy()[0]
        accepted, argmax = self.accepted_token_mask[0], logits[0].argmax(-1).tolist()
        n_accepted = int(accepted.sum())
        stable = self.step > 0 and argmax == self.steps[-1]["argmax"]
        self.steps.append(dict(canvas=self.canvas, step=self.step, accepted=n_accepted,
                               mean_entropy=round(float(entropy.mean()), 9), argmax=argmax))

        ordered, top = entropy.sort().values, logits[0].topk(2).values
        self.note("draw", self.draw_gap[accepted].min())
        self.note("accept", (ordered.cumsum(0) - ordered - self.entropy_bound).abs().min())
        if n_accepted < len(ordered):
            self.note("order", ordered[n_accepted] - ordered[n_accepted - 1])
        self.note("argmax", (top[:, 0] - top[:, 1]).min())
        if stable:  # only then does the mean decide
            self.note("confidence", (entropy.mean() - self.confidence_threshold).abs())
        return out

    def renoise_canvas(self, accepted_canvas, cur_step):
        self.stream = RENOISE
        out = super().renoise_canvas(accepted_canvas, cur_step)
        self.stream, self.step = INIT, self.step + 1
        return out

    def note(self, what, gap):
        """The smallest gap so far: u to the nearest cumulative probability (accepted positions), entropy sums
        to the bound, last accepted entropy to the next, best logit to the second, mean entropy to its
        threshold, last expert's probability to the next."""
        self.margins[what] = min(self.margins.get(what, 1.0), float(gap))


# ---- running the model ----

def new_model(config):
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # the other ones have no float64
    return model


@torch.no_grad()
def encode(model, cache, ids):
    """Causal pass over `ids`, appended to the cache."""
    start = cache.get_seq_length()
    positions = torch.arange(start, start + len(ids))[None]
    model.model.encoder(input_ids=torch.tensor([ids]), cache=cache, position_ids=positions)


@torch.no_grad()
def denoise(model, cache, canvas, previous=None):
    """Softcapped logits [canvas, vocab] of one pass, self-conditioned on logits `previous` / 0.8."""
    signal = None if previous is None else previous[None] / 0.8
    ids = torch.tensor([canvas])
    return model(decoder_input_ids=ids, cache=cache, self_conditioning_logits=signal).logits[0]


def passes(model, prompt, canvas, committed=None):
    """The logits that belong to a NAME.json, in order."""
    cache = DynamicCache(config=model.config.get_text_config())
    encode(model, cache, prompt)
    out = [denoise(model, cache, canvas)]
    out.append(denoise(model, cache, canvas[::-1], out[0]))
    if committed:
        encode(model, cache, committed)
        out.append(denoise(model, cache, canvas))
    return out


def generate(model, prompt, seed, n_canvases):
    """transformers' loop, the contract's draws: ids before the first end-of-generation id, steps, margins."""
    sampler = None

    def make_sampler(settings):
        nonlocal sampler
        sampler = ContractSampler(seed, settings, canvas_length=model.config.canvas_length,
                                  vocab_size=model.config.text_config.vocab_size)
        return sampler

    def router_gap(module, args, output):
        top = output[0].topk(module.config.top_k_experts + 1).values
        sampler.note("router", (top[:, -2] - top[:, -1]).min())

    def multinomial(probs, num_samples):
        return sampler.multinomial(probs, num_samples)

    routers = [m for m in model.modules() if type(m).__name__.endswith("TextRouter")]
    hooks = [m.register_forward_hook(router_gap) for m in routers]
    n_new = n_canvases * model.config.canvas_length
    with mock.patch.object(model, "_prepare_sampler", make_sampler), \
            mock.patch.object(torch, "multinomial", multinomial):
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=n_new).sequences[0, len(prompt):].tolist()
    for hook in hooks:
        hook.remove()
    ends = model.generation_config.eos_token_id
    return list(itertools.takewhile(lambda i: i not in ends, ids)), sampler.steps, sampler.margins


def generation_config(sampler, ends):
    settings = dict(sampler)
    bound = EntropyBoundSamplerConfig(settings.pop("entropy_bound"))
    return DiffusionGemmaGenerationConfig(max_new_tokens=256, sampler_config=bound, bos_token_id=2,
                                          pad_token_id=0, eos_token_id=ends, **settings)


def distance(a, b):
    """Relative Frobenius distance."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def decisions(steps):
    return [(s["canvas"], s["step"], s["accepted"], s["argmax"]) for s in steps]


def describe(margins):
    return "nearest ties: " + ", ".join(f"{what} {gap:.1e}" for what, gap in margins.items())


# ---- make: Hugging Face folders and their goldens ----

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|tool_call>",
            "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>", "<|channel>",
            "<channel|>", "<|turn>", "<turn|>", "<|image>", "<|audio>", "<|image|>", "<|audio|>",
            "<image|>", "<audio|>", "<|video|>"]
VISIBLE = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>",
           '<|"|>']  # tokens even in untrusted text (SPEC section 5.2)
LETTERS = "\n\u2581abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-ADEHILMNOSTW\u00e9\u00fc"
CORPUS = """the model reads the prompt once and then paints the canvas step by step until nothing changes
every token of the canvas can see every other token and all of the prompt
a layer sends each token to a few of its experts and adds what they say
the user turn ends and the model turn starts and the answer is in the last canvas
what is the thought behind this and where is the end of the line"""
TEXTS = ["", " ", "  ", "\n", "\n\n", "\n\n\n\n\n", "the canvas", " the canvas",
         "The end.\nThe  answer: 42!\n\n", "a\tb", "step by step\r\n",
         "\u00fcber caf\u00e9 \u4e2d\U0001F999.", "\u2581", "<|turn", "<0x41>", "<bos><|turn>system",
         "<|turn>user\nwhat is this?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
         "<|channel>thought<channel|>the end<eos>",
         '<|tool_call>call:f{a:<|"|>the<|"|>}<tool_call|><|tool_response>']
CHAT_TEMPLATE = """{{ bos_token }}{% for m in messages -%}
<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% if not enable_thinking %}<|channel>thought
<channel|>{% endif %}{% endif %}"""


def make_tokenizer(n_vocab, recognised=SPECIALS):
    """A tokenizer of the Gemma 4 kind: specials, 256 byte tokens, letters, merges learnt from CORPUS (greedy,
    ties by spelling). Text that spells one of `recognised` becomes that token."""
    vocab = SPECIALS + [f"<0x{b:02X}>" for b in range(256)] + list(LETTERS)
    merges = [("\n", "\n")]
    words = [list(line) for line in CORPUS.replace(" ", "\u2581").split("\n")]
    while len(vocab) + len(merges) < n_vocab:
        made = {a + b for a, b in merges}
        pairs = Counter(p for word in words for p in itertools.pairwise(word) if "".join(p) not in made)
        a, b = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append((a, b))
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i:i + 2] = [a + b]
                i += 1
    vocab += [a + b for a, b in merges]
    assert len(set(vocab)) == len(vocab) == n_vocab
    ids = {text: i for i, text in enumerate(vocab)}
    t = tokenizers.Tokenizer(BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", 2)])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in recognised])
    return t


def tokenize(n_vocab):
    """TEXTS with their ids: control strings read as plain text, and read as tokens."""
    plain, special = make_tokenizer(n_vocab, VISIBLE), make_tokenizer(n_vocab)
    return [dict(text=text, ids=plain.encode(text, add_special_tokens=False).ids,
                 ids_special=special.encode(text, add_special_tokens=False).ids) for text in TEXTS]


@torch.no_grad()
def fill(model, rng, embed, update):
    """Random weights that leave no term of the forward pass negligible: uneven norms and scales, unequal
    layer scalars of the two modes, a decided router. `embed`, the size of the embedding, makes logits sharp;
    `update`, the size of what a layer adds to the residual stream, makes the model hard to settle."""
    def uniform(low, high, shape):
        return torch.rand(shape, generator=rng) * (high - low) + low

    # Tied weights come once. The layer scalars are buffers, one set a mode.
    for name, w in itertools.chain(model.named_parameters(), model.named_buffers()):
        if name.endswith(("inv_freq", "embed_scale")):
            continue
        if name.endswith("layer_scalar"):
            w.copy_(uniform(0.8, 1.0, w.shape))
        elif w.dim() == 1:
            size = 0.5 if ".q_norm" in name or ".k_norm" in name else update if ".post_" in name else 1.0
            w.copy_(uniform(0.5, 1.5, w.shape) * size)
        else:
            fan_in = w.shape[-1]
            gain = embed if "embed_tokens" in name else fan_in ** 0.5 if "router" in name \
                else 1.5 if "self_conditioning.down" in name else 1.0
            w.copy_(torch.randn(w.shape, generator=rng) * gain * fan_in ** -0.5)


def write_folder(path, spec):
    """The Hugging Face folder of one model."""
    text, ends = spec["text"], [1] + [SPECIALS.index(t) for t in EOG_TEXTS]
    model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(
        canvas_length=spec["canvas"], eos_token_id=ends[:2], vision_config=VISION,
        boi_token_id=SPECIALS.index("<|image>"), eoi_token_id=SPECIALS.index("<image|>"),
        image_token_id=SPECIALS.index("<|image|>"),
        text_config=dict(text, num_hidden_layers=len(text["layer_types"]), max_position_embeddings=1024,
                         use_bidirectional_attention="vision")))
    fill(model, torch.Generator().manual_seed(spec["seed"]), *spec["size"])
    model.generation_config = generation_config(spec.get("sampler", SAMPLER), ends)
    shutil.rmtree(path, ignore_errors=True)
    if spec.get("published"):  # as the public checkpoint was written: bfloat16, shards, older config names
        model.bfloat16().save_pretrained(path, max_shard_size="300KB")
        config = json.loads((path / "config.json").read_text())
        del config["text_config"]["per_layer_config"]
        config["text_config"].update(final_logit_softcapping=30.0, global_head_dim=text["global_head_dim"],
                                     num_global_key_value_heads=text["num_global_key_value_heads"])
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    else:
        model.save_pretrained(path)
    make_tokenizer(text["vocab_size"]).save(str(path / "tokenizer.json"), pretty=False)
    names = {"tokenizer_class": "GemmaTokenizer"}
    names |= {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    (path / "tokenizer_config.json").write_text(json.dumps(names) + "\n")
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for file in path.iterdir():
        file.chmod(0o644)


def make(out, name):
    spec = MODELS[name]
    n_vocab = spec["text"]["vocab_size"]
    write_folder(out / name, spec)
    (out / f"{name}.tokenize.json").write_text(json.dumps(tokenize(n_vocab), indent=0) + "\n")

    stock = DiffusionGemmaForBlockDiffusion.from_pretrained(out / name, dtype=torch.float32,
                                                            attn_implementation="eager")
    with exact():
        model = new_model(stock.config)
        model.load_state_dict(stock.state_dict())
        model.generation_config = stock.generation_config

    rng = np.random.default_rng(spec["seed"])
    prompt = [2] + rng.integers(len(SPECIALS), n_vocab, spec["n_prompt"] - 1).tolist()
    canvas, committed = (rng.integers(0, n_vocab, spec["canvas"]).tolist() for _ in range(2))
    inputs = dict(prompt=prompt, canvas=canvas) | (dict(committed=committed) if spec.get("committed") else {})
    with exact():
        logits = passes(model, **inputs)
    for i, (want, got) in enumerate(zip(logits, passes(stock, **inputs))):
        want.numpy().astype("<f4").tofile(out / f"{name}.logits{i}.f32")
        print(f"{name}.logits{i}: std {want.std():.2f}, max {want.abs().max():.1f}, "
              f"float32 transformers within {distance(got, want):.1e}")

    for suffix, (seed, n_canvases) in spec["runs"].items():
        with exact():
            tokens, steps, margins = generate(model, prompt, seed, n_canvases)
        tokens32, steps32, _ = generate(stock, prompt, seed, n_canvases)
        n_steps = list(Counter(s["canvas"] for s in steps).values())
        print(f"{name}{suffix}: {len(tokens)} tokens, steps {n_steps}, {describe(margins)}")
        near = {what for what, gap in margins.items() if gap < MIN_MARGIN[what]}
        if near or tokens != tokens32 or decisions(steps) != decisions(steps32):
            sys.exit(f"{name}{suffix}: rounding could flip a decision; choose another seed")
        record = dict(dict(prompt=prompt) if suffix else inputs, seed=seed, n_canvases=n_canvases,
                      tokens=tokens, steps=steps)
        (out / f"{name}{suffix}.json").write_text(json.dumps(record) + "\n")


# ---- check: an existing GGUF golden ----

# The tensor names of SPEC section 4.3 and the names in model.decoder.
GLOBAL_NAMES = dict(line.split() for line in """\
    token_embd embed_tokens
    output_norm norm
    self_cond_pre_norm self_conditioning.pre_norm
    self_cond_gate self_conditioning.gate_proj
    self_cond_up self_conditioning.up_proj
    self_cond_down self_conditioning.down_proj
""".splitlines())
LAYER_NAMES = dict(line.split() for line in """\
    attn_norm.weight input_layernorm.weight
    post_attention_norm.weight post_attention_layernorm.weight
    ffn_norm.weight pre_feedforward_layernorm.weight
    pre_ffw_norm_2.weight pre_feedforward_layernorm_2.weight
    post_ffw_norm.weight post_feedforward_layernorm.weight
    post_ffw_norm_1.weight post_feedforward_layernorm_1.weight
    post_ffw_norm_2.weight post_feedforward_layernorm_2.weight
    attn_q.weight self_attn.q_proj.weight
    attn_k.weight self_attn.k_proj.weight
    attn_v.weight self_attn.v_proj.weight
    attn_output.weight self_attn.o_proj.weight
    attn_q_norm.weight self_attn.q_norm.weight
    attn_k_norm.weight self_attn.k_norm.weight
    ffn_gate.weight mlp.gate_proj.weight
    ffn_up.weight mlp.up_proj.weight
    ffn_down.weight mlp.down_proj.weight
    ffn_gate_inp.weight router.proj.weight
    ffn_gate_inp.scale router.scale
    ffn_down_exps.scale router.per_expert_scale
    ffn_gate_up_exps.weight experts.gate_up_proj
    ffn_down_exps.weight experts.down_proj
    layer_output_scale.weight layer_scalar
""".splitlines())


def load_gguf(path):
    """A model with the weights (dequantised), shape, sampler settings of a GGUF file. Call within exact()."""
    import gguf
    reader = gguf.GGUFReader(path)
    key = {name.removeprefix("diffusion-gemma."): field.contents() for name, field in reader.fields.items()}
    texts, kv = key["tokenizer.ggml.tokens"], key["attention.head_count_kv"]
    sliding = key["attention.sliding_window_pattern"]
    text = dict(
        vocab_size=len(texts), hidden_size=key["embedding_length"],
        intermediate_size=key["feed_forward_length"],
        num_hidden_layers=len(sliding), num_attention_heads=key["attention.head_count"],
        layer_types=["sliding_attention" if s else "full_attention" for s in sliding],
        num_key_value_heads=kv[sliding.index(True)], num_global_key_value_heads=kv[sliding.index(False)],
        head_dim=key["attention.key_length_swa"], global_head_dim=key["attention.key_length"],
        sliding_window=key["attention.sliding_window"], num_experts=key["expert_count"],
        top_k_experts=key["expert_used_count"], moe_intermediate_size=key["expert_feed_forward_length"])
    model = new_model(DiffusionGemmaConfig(canvas_length=key["diffusion.canvas_length"], vision_config=VISION,
                                           text_config=text))

    state = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64))
        scope, _, rest = tensor.name.partition(".")
        if scope == "blk":
            layer, _, rest = rest.partition(".")
            if rest == "enc_layer_output_scale.weight":
                state[f"model.encoder.language_model.layers.{layer}.layer_scalar"] = value
            else:
                state[f"model.decoder.layers.{layer}.{LAYER_NAMES[rest]}"] = value
        elif scope != "rope_freqs":
            state[f"model.decoder.{GLOBAL_NAMES[scope]}.{rest}"] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = ("model.encoder.", "lm_head.")  # share the decoder's storage; the vision tower is unused
    assert not unexpected and all(name.startswith(tied) for name in missing), (missing, unexpected)

    ends = [key["tokenizer.ggml.eos_token_id"]] + [i for i, text in enumerate(texts) if text in EOG_TEXTS]
    stored = {name: "diffusion.eb_" + name.replace("max_denoising_steps", "max_steps") for name in SAMPLER}
    # Rounding turns the file's float32 back into the decimal that was meant.
    model.generation_config = generation_config(
        {name: round(key.get(stored[name], default), 7) for name, default in SAMPLER.items()}, ends)
    return model


def check(stem):
    model = load_gguf(f"{stem}.gguf")
    want = json.loads(Path(f"{stem}.json").read_text())
    for i, logits in enumerate(passes(model, want["prompt"], want["canvas"], want.get("committed"))):
        stored = np.fromfile(f"{stem}.logits{i}.f32", "<f4").reshape(logits.shape)
        print(f"{stem}.logits{i}: relative distance {distance(stored, logits):.2e}")
    for path in [Path(f"{stem}.json"), *sorted(Path(stem).parent.glob(f"{Path(stem).name}.cut*.json"))]:
        want = json.loads(path.read_text())
        if "seed" in want:
            tokens, steps, margins = generate(model, want["prompt"], want["seed"], want["n_canvases"])
            same = tokens == want["tokens"] and decisions(steps) == decisions(want["steps"])
            off = max(abs(s["mean_entropy"] - t["mean_entropy"]) for s, t in zip(steps, want["steps"]))
            print(f"{path}: {'same' if same else 'DIFFERENT'} tokens and steps, "
                  f"mean entropies within {off:.1e}; {describe(margins)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("make")
    p.add_argument("-o", "--out", type=Path, default=Path(__file__).parent.parent / "tests/fixtures/hf")
    p.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    p = commands.add_parser("check")
    p.add_argument("stems", nargs="+", metavar="STEM")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same sums on every machine
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.command == "make":
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.names or MODELS:
            make(args.out, name)
    else:
        with exact():
            for stem in args.stems:
                check(stem)


if __name__ == "__main__":
    main()
