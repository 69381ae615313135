"""Builds one HTML file of search hits with thumbnails. Loads no model, and the page runs no
script."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from artifacts.remote.addresses import is_address
from flows.results.report.page import digest
from flows.results.thumbnails import data_address
from flows.search.query import Hit

STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 1240px; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
a.shown { display: grid; aspect-ratio: 4 / 3; border-radius: 8px; overflow: hidden;
  background: light-dark(#eceeec, #262b30); }
img { width: 100%; height: 100%; object-fit: contain; min-height: 0; }
.none { margin: auto; opacity: .7; }
figcaption { margin-top: .3rem; font-size: .9rem; overflow-wrap: anywhere; }
.quiet { opacity: .7; }
"""


def page_of(query: str, index: str, hits: Sequence[Hit]) -> str:
    """Return a page of these hits. All text from users is escaped."""
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src '{digest(STYLE)}'; img-src data:"
    )
    figures = "\n".join(map(_figure, hits)) or "<p>Nothing was found.</p>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>Penstock search: {_safe(query)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{_safe(query)} <span class="quiet">in {_safe(index)}</span></h1>\n'
        f"<main>\n{figures}\n</main>\n</body>\n</html>\n"
    )


def _figure(hit: Hit) -> str:
    shown = '<span class="none">not readable</span>'
    if data := data_address(hit.path, hit.at):
        shown = f'<img src="{data}" alt="" loading="lazy">'
    copies = f", {hit.copies} copies" if hit.copies else ""
    address = hit.path if is_address(hit.path) else Path(hit.path).as_uri()
    return (
        f'<figure><a class="shown" href="{_safe(address)}">{shown}</a>\n'
        f"<figcaption>{hit.rank}. {_safe(hit.media_path)}{_safe(when(hit))} "
        f'<span class="quiet">{hit.score:.3f}{copies}</span></figcaption></figure>'
    )


def when(hit: Hit) -> str:
    """Return the time of a hit in a video, for display; empty for an image."""
    if hit.time is None:
        return ""
    start, end = hit.time
    return f" at {start:.1f} s" if start == end else f" from {start:.1f} to {end:.1f} s"


def _safe(text: str) -> str:
    return escape(text.encode("utf-8", errors="replace").decode(), quote=True)
