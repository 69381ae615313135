"""Builds one HTML file that contains everything but the media and makes no network requests."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = (
    "base.js",
    "chart.js",
    "plot.js",
    "windowed.js",
    "choosing.js",
    "labels.js",
    "parity.js",
    "training.js",
    "media.js",
    "page.js",
)
"""Scripts of the page, in order."""


def page(
    data: Any,
    scripts: Sequence[str] = SCRIPTS,
    own_style: str = "page.css",
    *,
    thumbnails: bool = False,
) -> str:
    """Return the report as HTML. All user content is in `data`, which the page's script shows as
    text and never as markup. `thumbnails`: some of it are `data:` addresses of images."""
    images = "data: " if thumbnails else ""
    style = part("base.css") + part(own_style)
    script = "\n".join(["'use strict';", *map(part, scripts)])
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src '{digest(style)}'; script-src '{digest(script)}'; "
        f"img-src file: {images}'self'; media-src file: 'self'"
    )
    return Template(part("page.html")).substitute(
        policy=policy, style=style, script=script, data=as_json(data)
    )


def as_json(data: Any) -> str:
    """Return JSON for a script element: nothing in it ends the element or begins a comment.

    Source: HTML, section 4.12.1.3, restrictions for contents of script elements.
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def part(name: str, package: str = "flows.results.report") -> str:
    """Return the content of a file of a package, such as `base.css` or `base.js` of this one."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def style_and_script(package: str, scripts: Iterable[str]) -> tuple[str, str]:
    """Return the style and the script of a server's page: those of every page, and the files of
    its package."""
    own = partial(part, package=package)
    script = "\n".join(["'use strict';", part("base.js"), *map(own, scripts)])
    return part("base.css") + own("page.css"), script


def server_policy(
    scripts: Iterable[str], styles: Iterable[str], *, images: str = "", media: str = ""
) -> str:
    """Return the Content-Security-Policy of a server's page: it runs the scripts and styles of
    these digests, asks its own server alone, and shows media from there, or from these further
    places."""
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(f"'{one}'" for one in scripts),
        "style-src": " ".join(f"'{one}'" for one in styles),
        "connect-src": "'self'",
        "img-src": f"'self' {images}".strip(),
        "media-src": f"'self' {media}".strip(),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {allowed}" for name, allowed in rules.items())


def digest(content: str | bytes) -> str:
    """Return the hash of a content for Content-Security-Policy and `integrity`."""
    encoded = content.encode() if isinstance(content, str) else content
    return "sha256-" + base64.b64encode(hashlib.sha256(encoded).digest()).decode()
