"""Builds the page of `penstock review`, and its content security policy."""

from importlib.resources import files
from string import Template

from flows.results.report.page import digest, part

SHARED = ("base.js",)
"""Scripts that every page has."""
SCRIPTS = ("saving.js", "choosing.js", "rows.js", "cards.js", "replacing.js", "keys.js", "page.js")
"""Parts of one program, in their order."""


def review_page() -> tuple[bytes, str]:
    """Return the page, and the header Content-Security-Policy that it is to be sent with."""
    style = part("base.css") + _read("page.css")
    script = "\n".join(["'use strict';", *map(part, SHARED), *map(_read, SCRIPTS)])
    html = Template(_read("page.html")).substitute(style=style, script=script)
    policy = {
        "default-src": "'none'",
        "script-src": f"'{digest(script)}'",
        "style-src": f"'{digest(style)}'",
        "connect-src": "'self'",
        "img-src": "'self'",
        "media-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html.encode(), "; ".join(f"{name} {allowed}" for name, allowed in policy.items())


def _read(name: str) -> str:
    return files("flows.reviewing.page").joinpath(name).read_text(encoding="utf-8")
