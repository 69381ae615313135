"""Builds the pages: each is one HTML document with its style and its script inside, and a content
security policy that lets nothing else run."""

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any, Final

SHARED: Final = "flows.core.pages"
ICON: Final = '<link rel="icon" href="data:,">'
"""Browsers request no other icon then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A page, and the header Content-Security-Policy that a server sends with it."""

    html: str = field(repr=False)
    policy: str


def document(
    title: str, body: str, style: str, script: str = "", *, served: bool = False, **allowed: str
) -> Document:
    """Return a page. `title` and `body` are HTML. `allowed`: what it loads beside its own style and
    script, as `img_src="data:"`. A page that is not `served` holds its policy itself."""
    style = part("base.css") + style
    script = f"'use strict';\n{script}" if script else ""
    rules = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "style-src": f"'{digest(style)}'",
        **({"script-src": f"'{digest(script)}'"} if script else {}),
        **({"connect-src": "'self'", "frame-ancestors": "'none'"} if served else {}),
        **{name.replace("_", "-"): value for name, value in allowed.items()},
    }
    policy = "; ".join(f"{name} {value}" for name, value in rules.items())
    html = Template(part("document.html")).substitute(
        title=title,
        head=ICON if served else f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        style=style,
        body=body,
        script=f"<script>{script}</script>" if script else "",
    )
    return Document(html=html, policy=policy)


def served_page(
    title: str, package: str, shared: Iterable[str], scripts: Iterable[str], **allowed: str
) -> Document:
    """Return the page of a server: `page.html` and `page.css` of a package, the `shared` scripts of
    this one, and then the package's own `scripts`. `allowed`: as of `document`."""
    return document(
        title,
        part("page.html", package),
        part("page.css", package),
        parts(SHARED, shared) + "\n" + parts(package, scripts),
        served=True,
        **allowed,
    )


def as_json(data: Any) -> str:
    """Return JSON for a script element: nothing in it ends the element or begins a comment.

    Source: HTML, section 4.12.1.3, restrictions for contents of script elements.
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def part(name: str, package: str = SHARED) -> str:
    """Return the content of a file of a package, such as `base.css` of this one."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def parts(package: str, names: Iterable[str]) -> str:
    """Return the contents of files of a package, one after the other."""
    return "\n".join(part(name, package) for name in names)


def digest(content: str | bytes) -> str:
    """Return the hash of a content for Content-Security-Policy and `integrity`."""
    encoded = content.encode() if isinstance(content, str) else content
    return "sha256-" + base64.b64encode(hashlib.sha256(encoded).digest()).decode()
