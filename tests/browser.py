"""browser.py: drives Chromium over its debugging pipe, for tests of pages and for screenshots. Needs python3 and
Chromium, nothing else.

    python3 tests/browser.py URL PICTURE.png [WIDTH [dark]]    a screenshot of the whole page
"""
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time


def find_browser():
    """The path of a Chromium, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    return None


class Browser:
    """One page. `problems` collects console errors, warnings, exceptions, and each request that is not for the page."""

    def __init__(self):
        self.problems, self.n_sent, self.buffer, self.answers = [], 0, b"", {}
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.out = os.pipe()
        self.into, from_browser = os.pipe()

        def pipes():  # the browser reads commands from descriptor 3 and writes answers to 4
            for fd, place in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
                os.dup2(fd, place)

        # The sandbox needs rights that root in a container does not have; the pages are our own.
        self.process = subprocess.Popen(
            [find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--no-first-run", "--disable-extensions", "--disable-background-networking",
             f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.session = None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(domain + ".enable")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()

    def read(self, seconds):
        """The next message, or None when the time is over."""
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.into], [], [], max(0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(self.into, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self.buffer += chunk
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def take(self, message):
        if "id" in message:
            self.answers[message["id"]] = message
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith("data:") and params.get("type") != "Document":
                    self.problems.append("a request for " + url)

    def send(self, method, **params):
        """One command; its result. Error after 60 seconds, or when the browser refuses it."""
        self.n_sent += 1
        message = {"id": self.n_sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while self.n_sent not in self.answers:
            if (m := self.read(end - time.monotonic())) is None:
                raise RuntimeError(f"no answer to {method} within 60 s")
            self.take(m)
        answer = self.answers.pop(self.n_sent)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def pump(self, seconds):
        """Lets the page run and collects what it reports."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if (m := self.read(left)) is not None:
                self.take(m)

    def wait(self, expression, seconds=20):
        """Until the expression is true; False when the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.eval(expression):
                return True
            self.pump(0.05)
        return False

    def open(self, url, width=1000, height=800, dark=False, scale=1):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.send("Page.navigate", url="about:blank")  # a change of the hash alone would not load the page again
        self.send("Page.navigate", url=url)
        if not self.wait("location.href !== 'about:blank' && document.readyState === 'complete'"):
            raise RuntimeError(f"{url}: not loaded within 20 s")

    def eval(self, expression):
        """A JavaScript expression's value."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def key(self, name):
        """Presses and releases a key as a user would: ArrowLeft, Home, a space."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, " ": 32}[name]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code="Space" if name == " " else name,
                      windowsVirtualKeyCode=code, **({"text": " "} if name == " " and kind == "keyDown" else {}))

    def click(self, x, y):
        for kind, buttons in (("mousePressed", 1), ("mouseReleased", 0)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def click_on(self, selector, across=0.5, down=0.5):
        """Clicks into the element, at these fractions of its size."""
        x, y, w, h = self.eval(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
                               " const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()")
        self.click(x + w * across, y + h * down)

    def screenshot(self, path):
        """Of the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True,
                            clip={"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1})
        with open(path, "wb") as f:
            f.write(base64.b64decode(picture["data"]))


if __name__ == "__main__":
    url, picture = sys.argv[1:3]
    with Browser() as browser:
        browser.open(url, width=int(sys.argv[3]) if len(sys.argv) > 3 else 1000, dark="dark" in sys.argv[4:])
        browser.pump(0.3)
        browser.screenshot(picture)
        for problem in browser.problems:
            print(problem, file=sys.stderr)
        sys.exit(1 if browser.problems else 0)
