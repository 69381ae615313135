"""A real Chromium without a window, driven by its own driver as the W3C's WebDriver has it; knows
no page."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",  # a page that still scrolls cannot be clicked
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The name that WebDriver gives to a reference to an element."""
RIGHT = "\ue014"
MOUSE = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One window."""

    def __init__(self, address: str, profile: Path, size: tuple[int, int]) -> None:
        options = {
            "binary": CHROMIUM,
            "args": [
                *ARGUMENTS,
                f"--user-data-dir={profile}",
                "--window-size={},{}".format(*size),
            ],
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._at = f"{address}/session"
        made = self._call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self._at += f"/{made['sessionId']}"

    def open(self, address: str) -> None:
        """Go there and wait until it is loaded."""
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function of this body returns, JSON."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, seconds: float = 20.0) -> Any:
        """What a function of this body returns once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < deadline, f"never came true: {script}"
            time.sleep(0.05)
        return found

    def click(self, selector: str, number: int = 0) -> None:
        """Click as a hand would: on what is there and not covered."""
        self._call("POST", f"/element/{self._find(selector, number)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def hover(self, selector: str, right: int, down: int) -> None:
        """Put the pointer so many pixels from an element's middle."""
        origin = {ELEMENT: self._find(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": right, "y": down, "origin": origin}
        self._call("POST", "/actions", {"actions": [{**MOUSE, "actions": [move]}]})

    def press(self, *keys: str) -> None:
        """Press and let go each key, where the focus is."""
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": steps}]
        self._call("POST", "/actions", {"actions": actions})

    def console(self) -> list[str]:
        """What the page wrote to the console or did wrong since the last call."""
        return [line["message"] for line in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def narrow(self, wide: int, high: int = 900) -> None:
        """Show pages as a screen of this size does, which a window may be too large for."""
        size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self._call("POST", "/goog/cdp/execute", command)

    def colour_scheme(self, scheme: str) -> None:
        """Show pages as for somebody who prefers this scheme, `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._call("POST", "/goog/cdp/execute", command)

    def close(self) -> None:
        self._call("DELETE", "")

    def _find(self, selector: str, number: int = 0) -> str:
        query = {"using": "css selector", "value": selector}
        found = self._call("POST", "/elements", query)
        return str(found[number][ELEMENT])

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._at + path, data, headers, method=method)
        try:
            with DIRECT.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                record = json.load(error)["value"]["message"].split("\n")[0]
            raise AssertionError(f"{method} {path}: {record}") from None


@contextlib.contextmanager
def browsing(profile: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[Browser]:
    """A browser with a profile of its own, closed at the end."""
    assert DRIVER is not None
    with (
        # The driver leaves folders where temporary files are.
        tempfile.TemporaryDirectory(prefix="penstock-browser-", ignore_cleanup_errors=True) as its,
        subprocess.Popen(
            [DRIVER, "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TMPDIR": its},
        ) as driver,
    ):
        try:
            assert driver.stdout is not None
            printed = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
            port = next(filter(None, printed))
            browser = Browser(f"http://127.0.0.1:{port[1]}", profile, size)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
