"""The page of `penstock serve`, as a browser receives it."""

from flows.pages.document import SHARED, Document, document, part, parts

PACKAGE = "flows.serving.page"
SHARED_SCRIPTS = ("base.js", "charts.js", "asking.js", "scene.js")
SCRIPTS = ("asking.js", "answers.js", "item.js", "queue.js", "search.js", "plots.js", "page.js")
"""Parts of the page's script, in their order, after those that it shares with other pages."""


def page_of() -> Document:
    """Return the page."""
    return document(
        "Penstock",
        part("page.html", PACKAGE),
        part("page.css", PACKAGE),
        parts(SHARED, SHARED_SCRIPTS) + "\n" + parts(PACKAGE, SCRIPTS),
        served=True,
        img_src="'self' blob: data:",
        media_src="'self' blob:",
    )
