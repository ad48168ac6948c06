"""make_thinking.py FILE: writes a model that answers "Count to 6." with a thought, "\\x1b]0;x\\x07 \\u009b", which would be
commands to a terminal: the demo model with other texts for "1", "2" and "3". Called by tests/cli.sh and tests/chat.sh."""
import pathlib
import struct
import sys

NAMES = {298: b"<think>", 299: b"\x1b]0;x\x07 \xc2\x9b", 300: b"</think>"}

data = pathlib.Path("src/demo.gguf").read_bytes()
key = b"tokenizer.ggml.tokens"
begin = at = data.index(key) + len(key) + 16  # after the array's types and count
texts = []
for i in range(struct.unpack_from("<Q", data, begin - 8)[0]):
    (n,) = struct.unpack_from("<Q", data, at)
    texts.append(NAMES.get(i, data[at + 8 : at + 8 + n]))
    at += 8 + n
# "5" gets longer, so that the tensors stay aligned.
texts[302] += b"x" * (-(begin - at + sum(8 + len(t) for t in texts)) % 32)
pathlib.Path(sys.argv[1]).write_bytes(data[:begin] + b"".join(struct.pack("<Q", len(t)) + t for t in texts) + data[at:])
