"""The page of a studio in a browser: what it shows, and how it looks."""

from tests.support.browser import Browser
from tests.support.looks import asked_elsewhere, faint, overlapping, too_wide, unnamed

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


def looks(browser: Browser, width: int, theme: str) -> None:
    """See that all can be read, in a window of this width."""
    browser.narrow(width)
    browser.run("document.documentElement.dataset.theme = arguments[0]; scrollTo(0, 0)", theme)
    for wrong in (too_wide, overlapping, faint, unnamed, asked_elsewhere):
        assert wrong(browser) == [], (wrong.__name__, width, theme)
    browser.narrow(1280)


def every_look(browser: Browser) -> None:
    for width, theme in ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")):
        looks(browser, width, theme)
    assert browser.console() == []
