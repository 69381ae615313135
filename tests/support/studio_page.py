"""The page of a studio in a browser: what it shows, and how it looks."""

from tests.support.browser import Browser
from tests.support.looks import LOOKS, asked_elsewhere, unreadable

ENTER, ESCAPE, TAB, SHIFT, SPACE = "\ue007", "\ue00c", "\ue004", "\ue008", " "
READY = "return document.documentElement.dataset.ready"
SAVED = "return document.querySelector('#saved').textContent === 'all saved'"
WORDS = "return [...document.querySelectorAll('.row .words')].map(e => e.textContent)"
COUNTS = "return document.querySelector('#counts').textContent"
LONG = 120.0


def shown(browser: Browser, address: str) -> None:
    browser.open("about:blank")
    browser.console()  # what the page before said of a server that is gone
    browser.open(address)
    browser.wait(READY)


def every_look(browser: Browser) -> None:
    """See that all can be read in every window."""
    assert [wrong for look in LOOKS for wrong in unreadable(browser, *look)] == []
    assert asked_elsewhere(browser) == []
    console = browser.console()
    assert console == [], console
