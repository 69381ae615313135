"""Looks at a page as a person would, by script: texts that overlap, that are faint, and what makes
it wider than its window. It knows no page."""

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
LEAST_CONTRAST = 4.5
"""Of text, by WCAG's level AA."""


def overlapping(browser: Browser) -> Any:
    """Pairs of texts of which one lies on the other."""
    return browser.run(SCRIPT + "return overlapping()")


def faint(browser: Browser) -> Any:
    """Texts that stand out too little from what is behind them, and their contrast."""
    found = browser.run(SCRIPT + "return faint(arguments[0])", LEAST_CONTRAST)
    assert found["count"] > 20, "hardly anything to read"
    return found["faint"]


def too_wide(browser: Browser) -> Any:
    """What makes the page scroll sideways."""
    return browser.run(SCRIPT + "return tooWide()")


def overflowing(browser: Browser, may_scroll: str) -> Any:
    """What does not fit its own box, except elements of the selector `may_scroll`."""
    return browser.run(SCRIPT + "return overflowing(arguments[0])", may_scroll)


def unnamed(browser: Browser) -> Any:
    """What a screen reader has no name for."""
    return browser.run(SCRIPT + "return unnamed()")


def cut_in_buttons(browser: Browser) -> Any:
    """Texts of buttons that are cut off, or wrapped within a word."""
    return browser.run(SCRIPT + "return cutInButtons()")


LOOKS = [(wide, theme) for wide in (1280, 900, 400) for theme in ("light", "dark")]
"""Widths of a window in pixels, and colour schemes, in which every page can be read."""


def unreadable(browser: Browser, wide: int, theme: str) -> list[Any]:
    """What cannot be read in a window of this width, as high as the page."""
    browser.run("document.documentElement.dataset.theme = arguments[0]; scrollTo(0, 0)", theme)
    browser.narrow(wide)
    browser.narrow(wide, browser.run("return document.documentElement.scrollHeight"))
    checks = (too_wide, overlapping, faint, unnamed, cut_in_buttons)
    found = [(check.__name__, wide, theme, wrong) for check in checks if (wrong := check(browser))]
    browser.narrow(1280)
    return found


def asked_elsewhere(browser: Browser) -> Any:
    """Addresses of other servers that the page loaded something from."""
    return browser.run(SCRIPT + "return askedElsewhere()")


AXE = "axe-core@4.10.2"
SERIOUS = ("serious", "critical")


def axe_script(folder: Path) -> str:
    """The script of axe-core, from npm; skips the test where npm does not answer."""
    try:
        subprocess.run(
            ["npm", "pack", AXE], cwd=folder, check=True, capture_output=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        pytest.skip(f"npm does not give {AXE}")
    with tarfile.open(next(folder.glob("axe-core-*.tgz"))) as packed:
        file = packed.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


def serious(browser: Browser, script: str) -> Any:
    """What axe-core finds of serious and critical faults: its rule and the elements."""
    return browser.run(
        script
        + ";const impacts = arguments[0]; return axe.run(document).then(found => found.violations"
        ".filter(one => impacts.includes(one.impact))"
        ".map(one => [one.id, one.nodes.map(node => node.html.slice(0, 200))]))",
        SERIOUS,
    )
