"""The page of `penstock serve`, as a browser receives it."""

from flows.core.pages.document import Document, served_page

PACKAGE = "flows.interfaces.serve.page"
SHARED_SCRIPTS = ("base.js", "charts.js", "asking.js", "scene.js")
SCRIPTS = ("asking.js", "answers.js", "item.js", "queue.js", "search.js", "plots.js", "page.js")
"""Parts of the page's script, in their order, after those that it shares with other pages."""


def page_of() -> Document:
    return served_page(
        "Penstock",
        PACKAGE,
        SHARED_SCRIPTS,
        SCRIPTS,
        img_src="'self' blob: data:",
        media_src="'self' blob:",
    )
