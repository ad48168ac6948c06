"""Trains the demo model: a tiny DiffusionGemma (the transformers class itself) on prompts that demo_prompts.py
makes up.

    python tools/train_demo.py --out DIR [--start MODEL.gguf]

DIR becomes an ordinary Hugging Face folder (config, weights, tokenizer, chat template), rewritten whenever the
score on unseen prompts is as good as ever. DIR.state holds what a restart continues from, and the log. The objective
is that of block diffusion with uniform noise: encode the prefix causally, put noise on the canvas, predict every
clean token of it. --start begins with the weights of an earlier demo model (needs the gguf package).

src/demo.gguf has had 2500 steps on single prompts (two CPU cores, 75 minutes), then, by --start and --lr 0.01, 1300 as they are
drawn now.
"""

import argparse
import json
import math
import os
import random
import shutil
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache

import demo_prompts

CANVAS = 32
WINDOW = 32
GLOBAL_HEAD_DIM, GLOBAL_KV_HEADS = 64, 1
LAYER_TYPES = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
T_MIN, T_MAX, STEPS, ENTROPY_BOUND, CONFIDENCE = 0.4, 0.8, 48, 0.1, 0.005  # as the 26B checkpoint generates

# How often each kind is drawn: what is harder to learn comes more often.
MIXTURE = {"add": 28, "sort": 24, "reverse": 6, "upper": 3, "length": 4, "json": 9, "count": 7, "capital": 7,
           "chat": 5, "other": 7}
MAX_TURNS = 5  # before the one that is answered; half of the examples have some

# -----------------------------------------------------------------------------------------------------------
# Tokenizer: the scheme of Gemma 4 in small

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|think|>", "<|turn>", "<turn|>",
           "<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"]
USER_DEFINED = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>",
                '<|"|>']

# Words of the prompt templates that become one token. A merge list is a chain of pairs from left to right, so a
# word that follows a space starts with the space and never touches the letters of a quoted word or of a name.
CHAINS = (["\n\n", "\n\n\n"]
          + ["▁" + w for w in """is and the of to from in are these numbers order capital city word backwards
             letters upper case many long lives years old up can you do am small demo model add sort count reverse
             capitalize words name capitals make help welcome your""".split()]
          + ["What", "Which", "Write"]
          + ['{"name":"', '","age":', ',"city":"', '"}', '▁"', "▁+", "▁-", "▁="])
# "user", "model" and "thought" stand at the start of a line; their first pair is the rarest that they contain.
SPELLED = [["us", "use", "user"], ["od", "mod", "mode", "model"],
           ["gh", "ght", "ught", "ought", "hought", "thought"]]


def merges():
    """The ordered merge list as pairs of strings; rank = place in the list."""
    pairs = []

    def put(pair):
        if pair not in pairs:
            pairs.append(pair)

    for text in CHAINS:
        for i in range(1, len(text)):
            put((text[:i], text[i]))
    for steps in SPELLED:
        previous = steps[0][0]
        for step in steps:
            put((previous, step[len(previous):]) if step.startswith(previous) else
                (step[: len(step) - len(previous)], previous))
            previous = step
    put((",", "▁"))
    return pairs


def build_tokenizer():
    """BPE over characters with byte fallback; ids: control, user-defined, newlines, bytes, characters, merged."""
    characters = ["\n", "▁"] + [chr(c) for c in range(33, 127)]
    tokens = CONTROL + USER_DEFINED + characters[:1] + [f"<0x{b:02X}>" for b in range(256)] + characters[1:]
    pairs = merges()
    tokens += [a + b for a, b in pairs]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^\n]+|[\n]+"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                           decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in USER_DEFINED])
    assert tokenizer.get_vocab_size() == len(vocab)
    return tokenizer


CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set ns = namespace(first=0) -%}
{%- if enable_thinking or (messages and messages[0]['role'] in ['system', 'developer']) -%}
{{- '<|turn>system\\n' -}}
{%- if enable_thinking -%}{{- '<|think|>\\n' -}}{%- endif -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
{{- messages[0]['content'] | trim -}}{%- set ns.first = 1 -%}
{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in messages[ns.first:] -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|turn>model\\n' + (message['content'].split('<channel|>')[-1] | trim) + '<turn|>\\n' -}}
{%- else -%}
{{- '<|turn>' + message['role'] + '\\n' + (message['content'] | trim) + '<turn|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|turn>model\\n' -}}
{%- if not enable_thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}
{%- endif -%}
"""


def render(prompt, earlier=(), system="", think=False):
    """A user turn in the chat format, behind a system message and earlier (prompt, answer) turns."""
    first = ("<|think|>\n" if think else "") + system
    turns = f"<|turn>system\n{first}<turn|>\n" if first else ""
    turns += "".join(f"<|turn>user\n{p}<turn|>\n<|turn>model\n{a}<turn|>\n" for p, a in earlier)
    thought = "" if think else "<|channel>thought\n<channel|>"
    return f"<bos>{turns}<|turn>user\n{prompt}<turn|>\n<|turn>model\n{thought}"


def render_answer(kind, answer, think):
    """What the model is to write."""
    return f"<|channel>thought\n{demo_prompts.THOUGHTS[kind]}\n<channel|>{answer}" if think else answer


# -----------------------------------------------------------------------------------------------------------
# Model

def build_model(n_vocab, ids):
    """A fresh model; `ids` maps token text to id."""
    text = dict(
        vocab_size=n_vocab, hidden_size=128, intermediate_size=256, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, global_head_dim=GLOBAL_HEAD_DIM,
        num_global_key_value_heads=GLOBAL_KV_HEADS, sliding_window=WINDOW, layer_types=LAYER_TYPES,
        num_experts=8, top_k_experts=2, moe_intermediate_size=64, max_position_embeddings=4096,
        final_logit_softcapping=30.0, use_bidirectional_attention="vision",
        hidden_activation="gelu_pytorch_tanh",
        pad_token_id=ids["<pad>"], bos_token_id=ids["<bos>"],
        eos_token_id=[ids["<eos>"], ids["<turn|>"], ids["<|tool_response>"]])
    # The class always has a vision tower; this one is as small as it gets and never used.
    vision = dict(model_type="gemma4_vision", hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                  num_attention_heads=1, num_key_value_heads=1, head_dim=32, patch_size=4,
                  pooling_kernel_size=1, position_embedding_size=16, default_output_length=16)
    config = DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=CANVAS, boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"], image_token_id=ids["<|image|>"], attn_implementation="sdpa")
    model = DiffusionGemmaForBlockDiffusion(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2 and "vision" not in name:
                p.normal_(0, p.shape[-1] ** -0.5)
            elif name.endswith(("q_norm.weight", "k_norm.weight")) and "vision" not in name:
                p.fill_(p.shape[0] ** -0.25)  # scores of unit variance: they are not scaled by the head size
        model.model.decoder.embed_tokens.weight[ids["<pad>"]].zero_()
    return model


# GGUF names of a layer's tensors, and of those outside, by the class's own.
IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight", "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight", "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale", "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight", "router.per_expert_scale": "ffn_down_exps.scale"}
OUTSIDE = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}


def gguf_name(name):
    """The GGUF name of a parameter of the class."""
    name = name.removeprefix("model.encoder.language_model.").removeprefix("model.decoder.")
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        return f"blk.{number}.{IN_LAYER[rest]}"
    return OUTSIDE.get(name) or name.replace("self_conditioning.", "self_cond_").replace("_proj", "")


def load_gguf(model, path):
    """Copies the weights of a demo model that `easel convert` wrote into the model."""
    from gguf import GGUFReader, dequantize
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "vision" not in name:
                t = tensors[gguf_name(name)]
                p.copy_(torch.tensor(dequantize(t.data, t.tensor_type)).view_as(p))


def masks(n_prefix, width):
    """Attention masks of the joint pass, True = sees. n_prefix [batch] -> {layer type: [batch, 1, T, T]}."""
    T = width + CANVAS
    q, k = torch.arange(T)[:, None], torch.arange(T)[None, :]
    n = n_prefix[:, None, None]
    in_prefix = (k < n) & (k < width)
    causal = (q < width) & (k <= q)
    full = causal | ((q >= width) & (in_prefix | (k >= width)))
    near = in_prefix & (k >= n - (WINDOW - 1))
    sliding = (causal & (q - k < WINDOW)) | ((q >= width) & (near | (k >= width)))
    return {"full_attention": full[:, None], "sliding_attention": sliding[:, None]}


def joint_logits(model, prefix, n_prefix, canvas, soft_logits=None, soft_mask=None):
    """Encoder and decoder in one pass: both use the same weights, so prefix rows (causal, embeddings as they are)
    and canvas rows (see all, embeddings normed with self-conditioning) go through the layers side by side. Equal to
    model(input_ids, decoder_input_ids); check_joint() compares them.

    prefix [batch, width] padded on the right, n_prefix [batch], canvas [batch, CANVAS], soft_logits
    [batch, CANVAS, n_vocab], soft_mask [batch]; returns softcapped logits [batch, CANVAS, n_vocab].
    """
    decoder, width = model.model.decoder, prefix.shape[1]
    embedded = decoder.embed_tokens(canvas)
    soft = torch.zeros_like(embedded)
    if soft_logits is not None:
        soft = soft_logits.softmax(-1) @ decoder.embed_tokens.weight * decoder.embed_tokens.embed_scale
        soft = soft * soft_mask[:, None, None]
    x = torch.cat([decoder.embed_tokens(prefix), decoder.self_conditioning(embedded, soft)], 1)
    position = torch.cat([torch.arange(width).expand(len(prefix), -1),
                          n_prefix[:, None] + torch.arange(CANVAS)], 1)
    types = model.config.text_config.layer_types
    rope = {t: decoder.rotary_emb(x, position, t) for t in set(types)}
    mask = masks(n_prefix, width)
    for layer, t in zip(decoder.layers, types):
        x = layer(x, position_embeddings=rope[t], attention_mask=mask[t], position_ids=position, cache=None)
    z = model.lm_head(decoder.norm(x[:, width:]))
    return 30.0 * torch.tanh(z / 30.0)


def check_joint(model):
    """Stops unless the joint pass gives the logits of the class itself: first and later steps, short and long
    prefix."""
    generator = torch.Generator().manual_seed(1)
    n_vocab = model.config.text_config.vocab_size
    for width in (5, 50):
        prefix, canvas = (torch.randint(n_vocab, (2, n), generator=generator) for n in (width, CANVAS))
        soft = torch.randn(2, CANVAS, n_vocab, generator=generator)
        n_prefix, yes = torch.full((2,), width), torch.ones(2)
        with torch.no_grad():
            for kwargs, ours in (({}, (None, None)), ({"self_conditioning_logits": soft}, (soft, yes))):
                cache = DynamicCache(config=model.config.text_config)
                right = model(input_ids=prefix, decoder_input_ids=canvas, cache=cache, **kwargs).logits
                error = (joint_logits(model, prefix, n_prefix, canvas, *ours) - right).abs().max().item()
                if not error < 1e-3:
                    raise SystemExit(f"joint pass differs from the class by {error} at prefix {width}")


# -----------------------------------------------------------------------------------------------------------
# Sampler: the entropy-bound loop of DiffusionGemma, for a batch of canvases

def entropy_bound(z, generator=None):
    """One acceptance: z [batch, CANVAS, n_vocab], logits over temperature -> next canvas, argmax, mean entropy."""
    logp = z.log_softmax(-1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(entropy.shape)
    ordered, order = entropy.sort(dim=-1, stable=True)
    accept_ordered = ordered.cumsum(-1) - ordered <= ENTROPY_BOUND
    accept = torch.zeros_like(accept_ordered).scatter(-1, order, accept_ordered)
    noise = torch.randint(z.shape[-1], entropy.shape, generator=generator)
    return torch.where(accept, drawn, noise), z.argmax(-1), entropy.mean(-1)


@torch.no_grad()
def denoise(model, prefixes, generator):
    """Denoises one canvas behind each prefix (lists of ids); returns canvases (lists of ids) and steps taken."""
    n_prefix = torch.tensor([len(p) for p in prefixes])
    padded = torch.zeros(len(prefixes), int(n_prefix.max()), dtype=torch.long)
    for i, p in enumerate(prefixes):
        padded[i, : len(p)] = torch.tensor(p)
    n_vocab = model.config.text_config.vocab_size
    canvas = torch.randint(n_vocab, (len(prefixes), CANVAS), generator=generator)
    result, steps = [None] * len(prefixes), [0] * len(prefixes)
    alive, z, last = torch.arange(len(prefixes)), None, None
    for step in range(STEPS):
        t = T_MIN + (T_MAX - T_MIN) * (STEPS - step) / STEPS
        soft = (z, torch.ones(len(alive))) if z is not None else ()
        z = joint_logits(model, padded[alive], n_prefix[alive], canvas, *soft) / t
        canvas, argmax, entropy = entropy_bound(z, generator)
        done = torch.zeros(len(alive), dtype=torch.bool)
        if last is not None:
            done = (argmax == last).all(-1) & (entropy < CONFIDENCE)
        if step == STEPS - 1:
            done[:] = True
        for row in done.nonzero()[:, 0].tolist():
            result[alive[row]], steps[alive[row]] = argmax[row].tolist(), step + 1
        keep = ~done
        alive, canvas, z, last = alive[keep], canvas[keep], z[keep], argmax[keep]
        if len(alive) == 0:
            break
    return result, steps


def generate(model, prefixes, end_ids, generator, max_canvases=4, batch=128):
    """Answers as id lists without the end token; returns [(ids, ended, steps per canvas)]."""
    answers = [([], False, []) for _ in prefixes]
    waiting = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i]))
    for _ in range(max_canvases):
        again = []
        for start in range(0, len(waiting), batch):
            group = waiting[start:start + batch]
            canvases, steps = denoise(model, [prefixes[i] + answers[i][0] for i in group], generator)
            for i, canvas, n in zip(group, canvases, steps):
                end = next((j for j, token in enumerate(canvas) if token in end_ids), None)
                answers[i] = (answers[i][0] + canvas[:end], end is not None, answers[i][2] + [n])
                if end is None:
                    again.append(i)
        waiting = again
    return answers


def evaluate(model, tokenizer, n, seed):
    """Right answers on n unseen prompts of every kind, {kind: (share right, mean steps per canvas)}: every other one
    after earlier turns, every third with a system message, every fifth with a thought; the processes share the work and
    all get the result."""
    rng = random.Random(seed)
    end_ids = {tokenizer.token_to_id(t) for t in ("<eos>", "<turn|>", "<|tool_response>")}
    asked = []
    for kind in demo_prompts.KINDS:
        for i, (prompt, answer) in enumerate(demo_prompts.test_set(kind, n, seed)):
            earlier = demo_prompts.earlier_turns(rng, rng.randint(1, MAX_TURNS) if i % 2 else 0, test=True)
            system, think = demo_prompts.system_text(rng) if i % 3 == 2 else "", i % 5 == 4
            asked.append((kind, render(prompt, earlier, system, think), render_answer(kind, answer, think)))
    asked = asked[dist.get_rank()::dist.get_world_size()]
    prefixes = [tokenizer.encode(prefix, add_special_tokens=False).ids for _, prefix, _ in asked]
    answers = generate(model, prefixes, end_ids, torch.Generator().manual_seed(seed))
    mine = [(kind, ended and tokenizer.decode(ids, skip_special_tokens=False) == answer,
             sum(taken) / len(taken)) for (kind, _, answer), (ids, ended, taken) in zip(asked, answers)]
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    result = {}
    for kind in demo_prompts.KINDS:
        rows = [row for part in parts for row in part if row[0] == kind]
        result[kind] = tuple(sum(row[i] for row in rows) / len(rows) for i in (1, 2))
    return result


# -----------------------------------------------------------------------------------------------------------
# Training

class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by five Newton-Schulz steps (Jordan et al. 2024); for the last two
    dimensions of each parameter, so a stack of experts is a batch of matrices. Each process works out its share of
    the updates; their sum over the processes is everybody's update."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        group, = self.param_groups
        by_shape, updates = defaultdict(list), [torch.zeros_like(p) for p in group["params"]]
        for i, p in enumerate(group["params"]):
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            m = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
            if i % dist.get_world_size() == dist.get_rank():
                by_shape[p.shape[-2:]].append((updates[i], p.grad.lerp(m, group["momentum"])))
        for shape, items in by_shape.items():
            x = torch.cat([u.reshape(-1, *shape) for _, u in items])
            x = x.mT if shape[0] > shape[1] else x
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = (x.mT if shape[0] > shape[1] else x) * max(1, shape[0] / shape[1]) ** 0.5
            for (out, u), part in zip(items, x.split([u.numel() // (shape[0] * shape[1]) for _, u in items])):
                out.copy_(part.reshape(out.shape))
        all_reduce(updates)
        for p, update in zip(group["params"], updates):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def all_reduce(tensors):
    """Sums each tensor over the processes, in one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors])):
        t.copy_(part.view_as(t))


def make_example(tokenizer, rng, kinds, weights):
    """One training pair (prefix ids, clean canvas ids). Answers longer than a canvas give one of their canvases,
    with the earlier ones at the end of the prefix."""
    kind = rng.choices(kinds, weights)[0]
    prompt, answer = demo_prompts.sample(kind, rng)
    earlier = demo_prompts.earlier_turns(rng, max(0, rng.randint(1 - MAX_TURNS, MAX_TURNS)))
    system = demo_prompts.system_text(rng) if rng.random() < 0.2 else ""
    think = rng.random() < 0.1
    prefix = tokenizer.encode(render(prompt, earlier, system, think), add_special_tokens=False).ids
    ids = tokenizer.encode(render_answer(kind, answer, think) + "<turn|>", add_special_tokens=False).ids
    start = CANVAS * rng.randrange(math.ceil(len(ids) / CANVAS))
    clean = ids[start:start + CANVAS]
    return prefix + ids[:start], clean + [0] * (CANVAS - len(clean))


def noised(clean, n_vocab):
    """Replaces each token with probability r by a uniformly random one; r is 1 (pure noise, the first step of the
    sampler) for 40 % of the rows and uniform in [0, 1] for the others."""
    r = torch.rand(len(clean), 1)
    r = torch.where(torch.rand(len(clean), 1) < 0.4, torch.ones(()), r)
    return torch.where(torch.rand(clean.shape) < r, torch.randint(n_vocab, clean.shape), clean)


def batch_loss(model, prefixes, clean):
    """Cross-entropy of the clean canvases. Half of the rows get self-conditioning from a first pass without
    gradient; half of those also get the canvas that the sampler would make of that pass."""
    n_prefix = torch.tensor([len(p) for p in prefixes])
    padded = torch.zeros(len(prefixes), int(n_prefix.max()), dtype=torch.long)
    for i, p in enumerate(prefixes):
        padded[i, : len(p)] = torch.tensor(p)
    clean = torch.tensor(clean)
    n_vocab = model.config.text_config.vocab_size
    canvas = noised(clean, n_vocab)
    chosen = torch.randperm(len(clean))[: len(clean) // 2]
    with torch.no_grad():
        t = T_MIN + (T_MAX - T_MIN) * torch.rand(len(chosen), 1, 1)
        z = joint_logits(model, padded[chosen], n_prefix[chosen], canvas[chosen]) / t
        sampled = torch.rand(len(chosen), 1) < 0.5
        canvas[chosen] = torch.where(sampled, entropy_bound(z)[0], canvas[chosen])
        soft = torch.zeros(*clean.shape, n_vocab)
        soft[chosen] = z
        mask = torch.zeros(len(clean)).scatter(0, chosen, 1.0)
    logits = joint_logits(model, padded, n_prefix, canvas, soft, mask)
    return F.cross_entropy(logits.flatten(0, 1), clean.flatten())


def learning_rate(step, steps):
    """Factor: warm-up over 100 steps, 1, from half way 0.4, and linear to zero over the last 40 %."""
    return min((step + 1) / 100, 1.0 if step < steps / 2 else min(0.4, (steps - step) / steps))


def save_folder(model, tokenizer, out):
    """Writes the Hugging Face folder beside `out` and swaps it in."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        DiffusionGemmaGenerationConfig, EntropyBoundSamplerConfig)
    new, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    text = model.config.text_config
    model.generation_config = DiffusionGemmaGenerationConfig(
        max_new_tokens=4 * CANVAS, max_denoising_steps=STEPS, t_min=T_MIN, t_max=T_MAX, stability_threshold=1,
        confidence_threshold=CONFIDENCE, pad_token_id=text.pad_token_id, bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=ENTROPY_BOUND))
    model.save_pretrained(new)
    # Transformers writes the global layers' shape as per_layer_config only; other readers look for these keys.
    config = json.loads((new / "config.json").read_text())
    config["text_config"] |= dict(global_head_dim=GLOBAL_HEAD_DIM, num_global_key_value_heads=GLOBAL_KV_HEADS)
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        mask_token="<mask>", clean_up_tokenization_spaces=False)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(new)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def train(rank, args):
    """One process of the training; all keep the same weights, rank 0 writes the files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.rendezvous}", rank=rank,
                            world_size=args.processes)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    n_vocab = tokenizer.get_vocab_size()
    model, ema = (build_model(n_vocab, tokenizer.get_vocab()) for _ in range(2))
    if args.start:
        load_gguf(model, args.start)
    ema.load_state_dict(model.state_dict())
    check_joint(model)
    model.train()

    named = [(n, p) for n, p in model.named_parameters() if "vision" not in n]
    matrices = [p for n, p in named if p.ndim >= 2 and "embed_tokens" not in n and "router" not in n]
    others = [p for n, p in named if not any(p is m for m in matrices)]
    optimizers = [Muon(matrices, lr=args.lr, weight_decay=0.1),
                  torch.optim.AdamW(others, lr=0.15 * args.lr, betas=(0.9, 0.98), weight_decay=0.0)]
    base = [o.param_groups[0]["lr"] for o in optimizers]
    pairs = list(zip(ema.parameters(), model.parameters()))

    state_dir = args.out.with_name(args.out.name + ".state")
    state_file, step, best, spent = state_dir / "state.pt", 0, -1.0, 0.0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        step, best, spent = state["step"], state["best"], state["spent"]
    log = open(state_dir / "log.txt" if rank == 0 else os.devnull, "a", buffering=1)
    kinds, weights = list(MIXTURE), list(MIXTURE.values())
    begin, losses = time.time() - spent, []
    while step < args.steps:
        rng = random.Random(f"{args.seed} {step}")
        torch.manual_seed((args.seed * 1_000_003 + step) * args.processes + rank)
        for optimizer, lr in zip(optimizers, base):
            optimizer.param_groups[0]["lr"] = lr * learning_rate(step, args.steps)
            optimizer.zero_grad()
        examples = sorted((make_example(tokenizer, rng, kinds, weights) for _ in range(args.batch)),
                          key=lambda e: len(e[0]))[rank::args.processes]
        part = math.ceil(len(examples) / args.micro)
        total = torch.zeros(1)
        for start in range(0, len(examples), part):
            prefixes, clean = zip(*examples[start:start + part])
            loss = batch_loss(model, prefixes, clean) * (len(clean) / args.batch)
            loss.backward()
            total += loss.detach()
        all_reduce([p.grad for _, p in named] + [total])
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(0.998, 1 - 1 / (step / 5 + 1))
        with torch.no_grad():
            torch._foreach_lerp_([slow for slow, _ in pairs], [p for _, p in pairs], 1 - decay)
        step += 1
        losses.append(total.item())
        if step % 25 == 0:
            log.write(f"step {step} loss {sum(losses) / len(losses):.4f} seconds {time.time() - begin:.0f}\n")
            losses = []
        if step % args.eval_every == 0 or step == args.steps:
            scores = evaluate(ema, tokenizer, args.eval_prompts, seed=step)
            score = sum(right for right, _ in scores.values()) / len(scores)
            log.write(f"step {step} score {score:.4f} " + " ".join(
                f"{k} {100 * right:.0f}%/{n:.1f}" for k, (right, n) in scores.items()) + "\n")
            if rank == 0 and score >= best:
                save_folder(ema, tokenizer, args.out)
            best = max(best, score)
        if rank == 0 and (step % 100 == 0 or step == args.steps):
            torch.save(dict(model=model.state_dict(), ema=ema.state_dict(), step=step, best=best,
                            optimizers=[o.state_dict() for o in optimizers], spent=time.time() - begin),
                       state_file.with_suffix(".new"))
            os.replace(state_file.with_suffix(".new"), state_file)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--start", type=Path, help="a GGUF file of an earlier demo model, whose weights to begin with")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro", type=int, default=2, help="parts of a batch, by length")
    parser.add_argument("--lr", type=float, default=0.02, help="of Muon; AdamW gets 0.15 of it")
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--eval-prompts", type=int, default=12, help="per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each; they share every batch")
    args = parser.parse_args()
    state_dir = args.out.with_name(args.out.name + ".state")
    state_dir.mkdir(parents=True, exist_ok=True)
    args.rendezvous = (state_dir / f"rendezvous.{os.getpid()}").absolute()
    torch.multiprocessing.spawn(train, (args,), nprocs=args.processes)
    args.rendezvous.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
