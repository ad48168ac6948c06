"""trace_page.py DIR: shows the pages DIR/NAME.html that `easel trace` made of DIR/NAME.jsonl to a browser, uses them as a
reader would, and compares what they show with the trace. Prints "ok NAME" or "FAIL NAME: why". Called by tests/trace.sh."""
import json
import pathlib
import sys

from browser import Browser

directory = pathlib.Path(sys.argv[1])


def check(name, found, expected=True):
    print(f"ok {name}" if found == expected else f"FAIL {name}: {found!r}, expected {expected!r}"[:600], flush=True)


class Trace:
    """The file, read again here, and what the page should show of it."""

    def __init__(self, name):
        lines = [json.loads(line) for line in (directory / f"{name}.jsonl").read_bytes().split(b"\n")[:-1]]
        self.header, self.steps = lines[0], [line for line in lines if "step" in line]
        self.end = lines[-1] if "finish" in lines[-1] else None
        self.pieces = {int(i): p for line in lines for i, p in line.get("pieces", {}).items()}

    def shown(self, i):
        piece = self.pieces[i]
        if isinstance(piece, dict):
            return piece.get("control") or " ".join(f"{b:02X}" for b in piece["bytes"])
        return signs(piece)

    def text(self, ids):
        """Up to the first that ends an answer; characters may be spread over tokens."""
        pieces = [self.pieces[i] for i in ids[:next((n for n, i in enumerate(ids) if i in self.header["end_ids"]), len(ids))]]
        return b"".join(bytes(p.get("bytes", [])) if isinstance(p, dict) else p.encode() for p in pieces).decode(errors="replace")

    def settings(self):
        """The rows: a name and what stands beside it."""
        h = self.header
        rows = [["canvas", [signs(h["canvas_text"])]]] if "canvas_text" in h else []
        rows += [[f"choices of hole {hole}", [signs(text) for text in texts]] for hole, texts in h.get("choices", {}).items()]
        rows += [["stop", [signs(text) for text in h["stop"]]]] if "stop" in h else []
        return rows + [["sampler", [f"{name} {json.dumps(value)}" for name, value in h["sampler"].items()]]]

    def boxes(self, step, key="tokens"):
        return [[self.shown(i), bool(a)] for i, a in zip(step[key], step["accepted"])]


def signs(text):
    if text == " ":
        return "␣"
    return "".join({"\n": "↵", "\t": "⇥", "\r": "␍"}.get(c, "\ufffd" if ord(c) < 32 or 127 <= ord(c) < 160 or ord(c) in
                   (0x2028, 0x2029) else c) for c in text)


BOXES = "[...document.querySelectorAll('.token')].map(e => [e.textContent, e.classList.contains('accepted')])"


SETTINGS = """[...document.querySelectorAll('#settings dt')].map(e =>
    [e.textContent, [...e.nextElementSibling.children].map(value => value.textContent)])"""
TEXT = "document.getElementById('text').textContent"


def where(browser):
    return browser.eval("document.getElementById('where').textContent")


def opened(browser, name, fragment="", **size):
    browser.problems.clear()
    browser.open((directory / f"{name}.html").as_uri() + fragment, **size)
    return Trace(name)


def no_problems(browser, name):
    browser.pump(0.3)
    check(f"{name}: nothing in the console, no request", browser.problems, [])


def demo(browser):
    trace = opened(browser, "demo")
    n = len(trace.steps)
    wrong = []
    for i, step in enumerate(trace.steps):
        if browser.eval(BOXES) != trace.boxes(step) or not where(browser).startswith(f"step {i + 1} of {n}"):
            wrong.append(i)
        browser.key("ArrowRight")
    check("demo: each step's tokens and acceptance, by the right arrow", wrong, [])
    check("demo: the last step stays", where(browser).startswith(f"step {n} of {n}"))
    check("demo: the prompt", browser.eval("document.getElementById('prompt').textContent"), trace.header["prompt"])
    check("demo: the answer", browser.eval("document.getElementById('answer').textContent"), trace.end["text"])
    browser.key("ArrowLeft")
    check("demo: the left arrow", browser.eval(BOXES), trace.boxes(trace.steps[-2]))
    browser.key("Home")
    check("demo: Home", browser.eval(BOXES), trace.boxes(trace.steps[0]))
    step = trace.steps[0]
    check("demo: the step in numbers", where(browser),
          f"step 1 of {n}temperature {step['temperature']:.2f}mean entropy {step['mean_entropy']:.2f} nats"
          f"accepted {sum(step['accepted'])} of 32settled {settled(trace, 0)} of 32")
    check("demo: the canvas as text", browser.eval(TEXT), trace.text(step["tokens"]))
    browser.click_on("#show-argmax")
    check("demo: the best guess", browser.eval(BOXES), trace.boxes(step, "argmax"))
    check("demo: as text", browser.eval(TEXT), trace.text(step["argmax"]))
    browser.key("End")
    check("demo: at the end it is the answer", browser.eval(TEXT), trace.end["text"])
    browser.key("Home")
    check("demo: the settings", browser.eval(SETTINGS), trace.settings())
    browser.click_on("#show-tokens")
    colours = browser.eval("[...document.querySelectorAll('.token')].map(e => e.style.background)")
    least, most = (f(range(32), key=lambda p: step["entropy"][p]) for f in (min, max))
    check("demo: colours differ with entropy", colours[least] != colours[most])

    browser.key("End")
    for _ in range(3):
        browser.key("ArrowLeft")
    browser.key(" ")
    check("demo: space plays", browser.wait(f"document.getElementById('where').textContent.startsWith('step {n} of')"))
    check("demo: and stops at the end", browser.eval("document.getElementById('play').textContent"), "Play")
    browser.click_on("#play")
    check("demo: the button plays from the start", browser.wait("document.getElementById('where').textContent.startsWith('step 2 of')"))
    browser.click_on("#play")
    before = where(browser)
    browser.pump(1)
    check("demo: and pauses", where(browser), before)
    browser.click_on("#seek", across=0.995)
    check("demo: the slider", where(browser).startswith(f"step {n} of"))

    rows = browser.eval("(cells.height * (cells.n - 0.5) + 16) / document.getElementById('map').clientHeight")
    browser.key("Home")
    browser.click_on("#map", across=0.5, down=0.02)
    check("demo: the map's heading is no row", where(browser).startswith("step 1 of"))
    browser.click_on("#map", across=0.5, down=rows)
    check("demo: the map's last row", where(browser).startswith(f"step {n} of"))
    check("demo: and its position", browser.eval("document.getElementById('readout').textContent.startsWith('Position 1')"))
    browser.click_on("#accepted", across=0.125)
    check("demo: the first bar", where(browser).startswith("step 1 of"))
    browser.pump(0.5)
    check("demo: the address has the step", browser.eval("location.hash"), "#canvas=1&step=1")
    browser.eval("location.hash = '#step=3'")
    browser.pump(0.3)
    check("demo: a changed address goes there", browser.eval(BOXES), trace.boxes(trace.steps[2]))
    no_problems(browser, "demo")

    trace = opened(browser, "demo", "#step=2")
    check("demo: an address with a step", browser.eval(BOXES), trace.boxes(trace.steps[1]))
    opened(browser, "demo", "#step=999&canvas=x")
    check("demo: an address with none", where(browser).startswith("step 1 of"))
    browser.screenshot(directory / "page.png")
    check("demo: a picture of it", (directory / "page.png").stat().st_size > 20000)
    no_problems(browser, "demo, addresses")


def settled(trace, i):
    end = trace.steps[-1]["argmax"]
    return sum(all(s["argmax"][p] == end[p] for s in trace.steps[i:]) for p in range(len(end)))


def canvases(browser):
    trace = opened(browser, "canvases", "#canvas=2&step=3")
    groups = [[s for s in trace.steps if s["canvas"] == c] for c in range(3)]
    check("canvases: an address with a canvas", browser.eval(BOXES), trace.boxes(groups[1][2]))
    check("canvases: its number", where(browser).startswith(f"canvas 2 of 3step 3 of {len(groups[1])}"))
    check("canvases: the text before it", browser.eval("document.getElementById('past').textContent"), trace.text(groups[0][-1]["argmax"]))
    browser.key("ArrowDown")
    check("canvases: the down arrow", browser.eval(BOXES), trace.boxes(groups[2][0]))
    browser.key("ArrowUp")
    browser.key("ArrowUp")
    check("canvases: the up arrow", browser.eval(BOXES), trace.boxes(groups[0][0]))
    browser.click_on("#canvases button:nth-child(2)")
    check("canvases: a canvas' button", browser.eval(BOXES), trace.boxes(groups[1][0]))
    browser.key("End")
    check("canvases: End", browser.eval(BOXES), trace.boxes(groups[2][-1]))
    no_problems(browser, "canvases")


def requests(browser):
    """What was asked for stands among the settings."""
    for name in ("infill", "stop"):
        trace = opened(browser, name)
        check(f"{name}: the settings", browser.eval(SETTINGS), trace.settings())
        no_problems(browser, name)
    opened(browser, "infill")
    check("infill: its rows", browser.eval(SETTINGS)[:2], [["canvas", ["12 + 34 = [[2]]; [[36|46|47]]"]], ["choices of hole 1", ["3", "4"]]])
    opened(browser, "stop")
    check("stop: its row", browser.eval(SETTINGS)[0], ["stop", [" 50", "↵"]])


def hostile(browser):
    trace = opened(browser, "hostile")
    check("hostile: tokens are text", browser.eval(BOXES), trace.boxes(trace.steps[0]))
    check("hostile: the prompt is text", browser.eval("document.getElementById('prompt').textContent"), trace.header["prompt"])
    check("hostile: settings are text", browser.eval(SETTINGS), trace.settings())
    check("hostile: no markup came in", browser.eval("document.querySelectorAll('img, b.hostile, script').length"), 2)
    check("hostile: no script ran", browser.eval("typeof hostile"), "undefined")
    browser.key("ArrowRight")
    check("hostile: the next step", browser.eval(BOXES), trace.boxes(trace.steps[1]))
    no_problems(browser, "hostile")


def sizes(browser):
    backgrounds = []
    for dark in (False, True):
        for name in ("demo", "canvases", "hostile", "wide"):
            opened(browser, name, "#step=2", width=390, height=800, dark=dark)
            check(f"phone, {'dark' if dark else 'light'}: {name} has no sideways scrolling",
                  browser.eval("document.documentElement.scrollWidth") <= 390)
            no_problems(browser, f"phone, {name}")
        backgrounds.append(browser.eval("getComputedStyle(document.body).backgroundColor"))
    check("dark and light differ", backgrounds[0] != backgrounds[1])


def cut(browser):
    trace = opened(browser, "cut")
    check("cut: says so", browser.eval("document.getElementById('note').textContent").startswith("The trace file is cut"))
    browser.key("End")
    check("cut: its last step", browser.eval(BOXES), trace.boxes(trace.steps[-1]))
    no_problems(browser, "cut")


with Browser() as b:
    for test in (demo, canvases, requests, hostile, sizes, cut):
        test(b)
