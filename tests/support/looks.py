"""Looks at a page as a person would, by script: texts that overlap, that are faint, and what makes
it wider than its window. It knows no page."""

from pathlib import Path
from typing import Any

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


def unnamed(browser: Browser) -> Any:
    """What a screen reader has no name for."""
    return browser.run(SCRIPT + "return unnamed()")


def asked_elsewhere(browser: Browser) -> Any:
    """Addresses of other servers that the page loaded something from."""
    return browser.run(SCRIPT + "return askedElsewhere()")
