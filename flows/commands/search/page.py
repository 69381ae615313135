"""Writes hits as one HTML page with thumbnails. It runs no script.

The command imports it only for `--html`, because thumbnails need more modules than a search.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from artifacts.remote.addresses import is_address
from flows.commands.search.query import Hit, when
from flows.core.pages.document import document, part
from flows.outputs.thumbnails import data_address

PACKAGE = "flows.commands.search"


def page_of(query: str, index: str, hits: Sequence[Hit]) -> str:
    """Return a page of these hits. All text from users is escaped."""
    figures = "\n".join(map(_figure, hits)) or "<p>Nothing was found.</p>"
    body = Template(part("page.html", PACKAGE)).substitute(
        query=_safe(query), index=_safe(index), figures=figures
    )
    title = f"Penstock search: {_safe(query)}"
    return document(title, body, "", img_src="data:").html


def _figure(hit: Hit) -> str:
    shown = '<span class="gone quiet">not readable</span>'
    if data := data_address(hit.path, hit.at):
        shown = f'<img src="{data}" alt="" loading="lazy">'
    copies = f", {hit.copies} copies" if hit.copies else ""
    caption = f"<br>{_safe(hit.caption)}" if hit.caption else ""
    address = hit.path if is_address(hit.path) else Path(hit.path).as_uri()
    if hit.time is not None:  # browsers begin to play there
        start, end = hit.time
        address += f"#t={start:.2f}" + (f",{end:.2f}" if end > start else "")
    sure = "" if hit.p is None else f"p {hit.p:.2f}, "
    return (
        f'<figure><a class="frame" href="{_safe(address)}">{shown}</a>\n'
        f"<figcaption>{hit.rank}. {_safe(hit.media_path)}{_safe(when(hit))} "
        f'<span class="quiet">{sure}{hit.score:.3f}{copies}</span>{caption}</figcaption></figure>'
    )


def _safe(text: str) -> str:
    return escape(text.encode("utf-8", errors="replace").decode(), quote=True)
