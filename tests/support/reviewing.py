"""A review that runs in a process of its own, and what a person does in its page."""

import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import studio_page
from tests.support.browser import Browser
from tests.support.pipeline import PENSTOCK, ROOT

ENTER, WORDS = studio_page.ENTER, studio_page.WORDS
SAVED = "return document.querySelector('#saved').textContent"
ADDRESS = re.compile(r"review at (http://127\.0\.0\.1:(\d+)/[0-9a-f]{32}/run/[0-9a-f]{16}/)\n")


@dataclass
class Reviewing:
    """A review that is going on, on one port whatever becomes of its server."""

    out: Path
    port: int = 0
    address: str = ""
    order: str = "source"
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        command = [*PENSTOCK, "review", str(self.out), "--port", str(self.port)]
        command += ["--order", self.order]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = ADDRESS.fullmatch(line)
        assert found, line
        assert self.address in ("", found[1]), "the page that is open would not find it"
        self.address, self.port = found[1], int(found[2])

    def kill(self, how: int = signal.SIGKILL) -> str:
        """End it; what it said last."""
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(how)
        with self.process:
            return self.process.stdout.read()


def shown(browser: Browser, reviewing: Reviewing) -> None:
    studio_page.shown(browser, reviewing.address)
    assert browser.console() == []


def at(browser: Browser, number: int) -> None:
    """Go to a caption."""
    browser.run("document.querySelectorAll('.row')[arguments[0]].focus()", number)


def correct(browser: Browser, number: int, text: str) -> None:
    at(browser, number)
    browser.press("e")
    browser.run("document.activeElement.value = ''")
    browser.press(*text, ENTER)


def wait_saved(browser: Browser) -> None:
    browser.wait(f"{SAVED} === 'all saved'", seconds=60.0)


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('change'))",
        name,
        value,
    )
