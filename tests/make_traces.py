"""make_traces.py DIR: writes traces that no model here gives: DIR/hostile.jsonl, whose tokens and prompt would be markup if a
page let them, and DIR/wide.jsonl, a canvas of 256 with long tokens and every byte. Called by tests/trace.sh."""
import json
import pathlib
import sys

HOSTILE = ["</script>", "<script>hostile = 1</script>", "&", "&amp;lt;", "<!--", "-->", "]]>", "<img src=x onerror='hostile = 1'>",
           '"', "'", "\\", "\n", "\t", "\0", "\u2028", "\u202e", "\ufeff", "<b class=hostile>", "${1}", "@TRACE@", "a" * 200, "漢字",
           "🎨", "", " "]


def write(path, prompt, pieces, n_step):
    ids = list(pieces)
    hostile = [text for text in pieces.values() if isinstance(text, str) and text]
    header = {"easel_trace": 1, "model": prompt, "device": "CPU", "canvas": len(ids), "vocabulary": 262144, "seed": 2**64 - 1,
              "sampler": {"max_steps": 48, "confidence": 0.005, "greedy": False}, "end_ids": [], "prompt": prompt, "prompt_ids": [],
              "pieces": {}, "canvas_text": prompt, "choices": {"1": hostile[:20], "12": hostile}, "stop": hostile}
    lines = [header]
    for step in range(n_step):
        turned = ids[step:] + ids[:step]
        lines.append({"canvas": 0, "step": step, "temperature": 0.8, "mean_entropy": 0.5, "last": step + 1 == n_step, "tokens": turned,
                      "argmax": ids, "entropy": [i % 13 for i in range(len(ids))], "accepted": [i % 3 % 2 for i in range(len(ids))],
                      "pieces": {} if step else pieces})
    lines.append({"finish": "length", "text": prompt, "thought": prompt, "ids": ids, "steps": [n_step], "hash": "0" * 16})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


folder = pathlib.Path(sys.argv[1])
pieces = dict(enumerate(HOSTILE))
pieces |= {1000: {"bytes": [0xC3]}, 1001: {"bytes": [0xE2, 0x82]}, 1002: {"control": "<turn|></script>"}, 262143: "last"}
write(folder / "hostile.jsonl", "</script><script>hostile = 1</script><!-- &lt;", pieces, 3)
wide = {i: {"bytes": [i]} for i in range(128, 256)} | {1000 + i: "word " * (i % 40) for i in range(128)}
write(folder / "wide.jsonl", "unbroken" * 60, wide, 48)
