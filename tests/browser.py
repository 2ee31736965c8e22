"""A headless browser for tests: chromedriver's WebDriver protocol in plain Python."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars"]
KEYS = {"Enter": "\ue007", "Shift": "\ue008", "Escape": "\ue00c", "Left": "\ue012",
        "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"     # the protocol's name for a reference


def missing():
    """What is not installed, or an empty string."""
    programs = [n for n in ("chromedriver", "chromium") if not shutil.which(n)]
    return " and ".join(programs) and f"{' and '.join(programs)} not installed"


class Browser:
    """One session; each method is one command of the protocol, on the current window."""

    def __init__(self, port, flags):
        self.address = f"http://127.0.0.1:{port}/session"
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, *flags]}
        new = self._send("POST", "", {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options}}})
        self.address += f"/{new['sessionId']}"

    def _send(self, method, path, body=None):
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with DIRECT.open(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, address):
        self._send("POST", "/url", {"url": address})

    def reload(self):
        self._send("POST", "/refresh")

    def run(self, script, *arguments):
        """The value that JavaScript returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, script, seconds=30):
        """The first true value of a JavaScript expression."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):       # the page may be loading
                if value := self.run(f"return {script}"):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {script}\n{self.text()[:500]}")

    def press(self, *keys):
        """Type keys one after the other; "Shift+3" holds the first."""
        actions = []
        for key in keys:
            chord = [KEYS.get(part, part) for part in key.split("+")]
            actions += [{"type": "keyDown", "value": c} for c in chord]
            actions += [{"type": "keyUp", "value": c} for c in reversed(chord)]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "k",
                                                     "actions": actions}]})

    def click(self, css):
        """A real click in the middle of the first element that matches, scrolled into view."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'nearest'})", css)
        found = self._send("POST", "/element", {"using": "css selector", "value": css})
        self._send("POST", f"/element/{found[ELEMENT]}/click")

    def text(self, css="body"):
        """The text that a reader sees in an element."""
        return self.run("return document.querySelector(arguments[0]).innerText", css)

    def tab(self):
        """Open a new tab and return a function that brings it to the front."""
        handle = self._send("POST", "/window/new", {"type": "tab"})["handle"]
        return lambda: self._send("POST", "/window", {"handle": handle})

    def close_tab(self):
        """Close the current tab; another must be brought to the front next."""
        self._send("DELETE", "/window")

    def here(self):
        """A function that brings the current tab to the front."""
        handle = self._send("GET", "/window")
        return lambda: self._send("POST", "/window", {"handle": handle})

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def chrome(self, command, **parameters):
        """A command of Chromium's own protocol, such as the size of a phone's screen."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def quit(self):
        self._send("DELETE", "")


@contextlib.contextmanager
def browser(*flags):
    """A `Browser` with a new, empty profile; it and its driver end with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True)
        try:
            lines = map(re.compile(r"successfully on port (\d+)").search, driver.stdout)
            port = next(found[1] for found in lines if found)
            session = Browser(port, [f"--user-data-dir={profile}", *flags])
            try:
                yield session
            finally:
                session.quit()
        finally:
            driver.terminate()
            driver.wait()
            driver.stdout.close()
