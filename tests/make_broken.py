#!/usr/bin/env python3
"""make_broken.py: writes tests/fixtures/broken: small GGUF files, each with one flaw, and messages.txt, which has
for each the text that its error message must contain. They are checked by tests/test_gguf.cpp and tests/cli.sh, and
are the fuzzer's first inputs. Run from the project's root; standard library only; the output is always the same."""
import os
import struct

OUT = "tests/fixtures/broken"
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMAT = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def text(s):
    raw = s if isinstance(s, bytes) else s.encode()
    return u64(len(raw)) + raw


def value(kind, v):
    if kind == STRING:
        return u32(STRING) + text(v)
    return u32(kind) + struct.pack("<" + FORMAT[kind], v)


def array(kind, items, count=None):
    body = b"".join(text(i) if kind == STRING else struct.pack("<" + FORMAT[kind], i) for i in items)
    return u32(ARRAY) + u32(kind) + u64(len(items) if count is None else count) + body


class File:
    """Keys (name to encoded value) and tensors ([name, ne, type, data, offset or None]), all open to change."""

    def __init__(self):
        self.keys, self.tensors = [], []
        self.version, self.alignment, self.n_key, self.n_tensor = 3, 32, None, None

    def key(self, name, encoded):
        self.keys = [(k, v) for k, v in self.keys if k != name] + [(name, encoded)]

    def drop_key(self, name):
        self.keys = [(k, v) for k, v in self.keys if k != name]

    def tensor(self, name, ne, type=0, data=None, offset=None):
        n = 1
        for d in ne:
            n *= d
        if data is None:
            data = struct.pack("<%df" % n, *[(1 + i % 5) / 4 for i in range(n)])
        self.tensors.append([name, list(ne), type, data, offset])

    def find(self, name):
        return next(t for t in self.tensors if t[0] == name)

    def drop_tensor(self, name):
        self.tensors = [t for t in self.tensors if t[0] != name]

    def bytes(self):
        pad = lambda b: b + bytes(-len(b) % self.alignment)
        n_tensor = len(self.tensors) if self.n_tensor is None else self.n_tensor
        n_key = len(self.keys) if self.n_key is None else self.n_key
        head, data = b"GGUF" + u32(self.version) + u64(n_tensor) + u64(n_key), b""
        for name, encoded in self.keys:
            head += text(name) + encoded
        for name, ne, kind, raw, offset in self.tensors:
            head += text(name) + u32(len(ne)) + b"".join(u64(d) for d in ne) + u32(kind)
            head += u64(len(data) if offset is None else offset)
            data = pad(data + raw)
        return pad(head) + data


def model():
    """The smallest model that binds: one global layer, width 2, two experts; alignment 8 keeps it under 4 kB."""
    f = File()
    f.alignment = 8
    a = "diffusion-gemma."
    f.key("general.architecture", value(STRING, "diffusion-gemma"))
    f.key("general.alignment", value(U32, 8))
    for name, n in (("block_count", 1), ("context_length", 16), ("embedding_length", 2), ("feed_forward_length", 2),
                    ("expert_feed_forward_length", 2), ("expert_count", 2), ("expert_used_count", 1),
                    ("attention.head_count", 1), ("attention.head_count_kv", 1), ("attention.key_length", 2)):
        f.key(a + name, value(U32, n))
    f.key(a + "attention.sliding_window_pattern", array(BOOL, [0]))
    f.key(a + "attention.layer_norm_rms_epsilon", value(F32, 1e-6))
    f.key(a + "final_logit_softcapping", value(F32, 30))
    f.key(a + "rope.freq_base", value(F32, 1e6))
    f.key("diffusion.canvas_length", value(U32, 4))

    f.tensor("token_embd.weight", [2, 4])
    f.tensor("output_norm.weight", [2])
    f.tensor("self_cond_pre_norm.weight", [2])
    for name in ("gate", "up", "down"):
        f.tensor("self_cond_%s.weight" % name, [2, 2])
    for name in ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm_1",
                 "pre_ffw_norm_2", "post_ffw_norm_2", "post_ffw_norm"):
        f.tensor("blk.0.%s.weight" % name, [2])
    for name in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"):
        f.tensor("blk.0.%s.weight" % name, [2, 2])
    f.tensor("blk.0.ffn_gate_inp.scale", [2])
    f.tensor("blk.0.ffn_gate_up_exps.weight", [2, 4, 2])
    f.tensor("blk.0.ffn_down_exps.weight", [2, 2, 2])
    f.tensor("blk.0.ffn_down_exps.scale", [2])
    f.tensor("blk.0.layer_output_scale.weight", [1])
    return f


def small():
    """Not a model, but a whole file."""
    f = File()
    f.key("general.architecture", value(STRING, "diffusion-gemma"))
    f.key("some.strings", array(STRING, ["one", "two"]))
    f.tensor("t", [64])
    return f


def changed(base, change):
    f = base()
    change(f)
    return f.bytes()


def key_is(name, encoded):
    return changed(model, lambda f: f.key("diffusion-gemma." + name, encoded))


def tensor_is(name, ne, kind=0, data=None, offset=None):
    def change(f):
        f.drop_tensor(name)
        f.tensor(name, ne, kind, data, offset)
    return changed(model, change)


def small_tensor(ne, kind=0, offset=None):
    def change(f):
        f.find("t")[1:3] = [ne, kind]
        f.find("t")[4] = offset
    return changed(small, change)


def small_key(encoded):
    return changed(small, lambda f: f.key("k", encoded))


def twice(which):
    f = small()
    getattr(f, which).append(getattr(f, which)[0])
    return f.bytes()


def main():
    whole, nan = model().bytes(), struct.pack("<2f", 1, float("nan"))
    files = {
        # The container.
        "empty": (b"", "not a GGUF file: expected at least 24 bytes, found 0"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16806810336\n",
                    'expected the bytes "GGUF" at offset 0, found 0x73726576'),
        "version-1": (changed(small, lambda f: setattr(f, "version", 1)),
                      "GGUF version 1 at offset 4, expected 2 or 3"),
        "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 2) + bytes(64), "a big-endian file?"),
        "many-tensors": (changed(small, lambda f: setattr(f, "n_tensor", 1 << 60)),
                         "claims 1152921504606846976 tensors at offset 8, expected at most 1048576"),
        "many-keys": (changed(small, lambda f: setattr(f, "n_key", 1 << 32)),
                      "claims 4294967296 keys at offset 16, expected at most 65536"),
        "one-key-more": (changed(small, lambda f: setattr(f, "n_key", 3)), " at offset "),
        "long-key": (b"GGUF" + u32(3) + u64(0) + u64(1) + u64(1 << 62),
                     "the length of a key at offset 24 is 4611686018427387904"),
        "cut-in-keys": (whole[:300], "truncated: "),
        "cut-in-tensors": (whole[:1800], "truncated: "),
        "cut-in-data": (whole[:-8], "truncated: tensor blk.0.layer_output_scale.weight needs 4 bytes at offset "),
        "value-type": (small_key(u32(13) + bytes(8)), "key k has value type 13 at offset "),
        "array-of-arrays": (small_key(u32(ARRAY) + u32(ARRAY) + u64(1) + u32(U8) + u64(0)), "is an array of arrays"),
        "array-count": (small_key(array(U64, [1], 1 << 61)), "key k claims 2305843009213693952 items at offset "),
        "string-count": (small_key(array(STRING, ["a"], 1 << 60)),
                         "key k claims 1152921504606846976 strings at offset "),
        "key-twice": (twice("keys"), "key general.architecture appears twice"),
        "tensor-twice": (twice("tensors"), "tensor t appears twice"),
        "alignment": (changed(small, lambda f: f.key("general.alignment", value(U32, 24))),
                      "key general.alignment is 24, expected a power of two"),
        "dimensions": (small_tensor([1, 1, 1, 1, 1]), "has 5 dimensions, expected 1 to 4"),
        "no-values": (small_tensor([0]), "has dimension 0 of 0 values at offset "),
        "overflow": (small_tensor([1 << 32, 1 << 32]), "has dimension 1 of 4294967296 values at offset "),
        "tensor-type": (small_tensor([256], 16), "tensor t has type 16, which easel does not read"),
        "part-of-block": (small_tensor([48], 8), "rows of 48 values, expected a multiple of 32 for Q8_0"),
        "misaligned": (small_tensor([64], 0, 8), "tensor t is at offset 8, expected a multiple of 32"),
        "far-offset": (small_tensor([64], 0, (1 << 64) - 32), "truncated: tensor t needs 256 bytes at offset "),
        "control-name": (changed(small, lambda f: f.tensor("evil\n\x1b[2J", [4], 99)), "tensor evil\\x0a\\x1b[2J has"),
        # The model.
        "architecture": (changed(model, lambda f: f.key("general.architecture", value(STRING, "llama"))),
                         'architecture is "llama", easel reads "diffusion-gemma"'),
        "architecture-lines": (changed(model, lambda f: f.key("general.architecture", value(STRING, "a\nb" * 300))),
                               'easel reads "diffusion-gemma"'),
        "no-architecture": (changed(model, lambda f: f.drop_key("general.architecture")),
                            "key general.architecture is missing, expected a string"),
        "no-canvas": (changed(model, lambda f: f.drop_key("diffusion.canvas_length")),
                      "key diffusion.canvas_length is missing, expected an integer"),
        "key-type": (key_is("block_count", value(STRING, "1")),
                     "key diffusion-gemma.block_count is of type string, expected an integer"),
        "layers": (key_is("block_count", value(U32, 100000)), "is 100000, expected 1 to 4096"),
        "more-layers": (key_is("block_count", value(U32, 2)), "key diffusion-gemma."),
        "experts-used": (key_is("expert_used_count", value(U32, 3)), "is 3, expected 1 to 2"),
        "epsilon": (key_is("attention.layer_norm_rms_epsilon", value(F32, float("nan"))), "is nan, expected 0 to 1"),
        "heads-kv": (key_is("attention.head_count_kv", value(U32, 3)), "is 3 for layer 0, expected a divisor of the 1"),
        "odd-head": (key_is("attention.key_length", value(U32, 3)), "is 3, expected an even number"),
        "no-tensor": (changed(model, lambda f: f.drop_tensor("blk.0.ffn_up.weight")),
                      "tensor blk.0.ffn_up.weight is missing, expected shape [2, 2]"),
        "shape": (tensor_is("blk.0.attn_q.weight", [2, 4]), "tensor blk.0.attn_q.weight has shape [2, 4], expected [2, 2]"),
        "nan-norm": (tensor_is("output_norm.weight", [2], 0, nan),
                     "tensor output_norm.weight holds nan, expected finite numbers"),
    }
    os.makedirs(OUT, exist_ok=True)
    for name in os.listdir(OUT):
        os.remove(os.path.join(OUT, name))
    with open(os.path.join(OUT, "messages.txt"), "w") as messages:
        for name, (raw, expected) in files.items():
            assert len(raw) <= 4096, (name, len(raw))
            with open(os.path.join(OUT, name + ".gguf"), "wb") as out:
                out.write(raw)
            messages.write("%s.gguf\t%s\n" % (name, expected))
    print("%d files in %s; the whole model they come from has %d bytes" % (len(files), OUT, len(whole)))


if __name__ == "__main__":
    main()
