"""Builds the page of `penstock serve`, and its content security policy."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from flows.results.report.page import digest, part

SCRIPTS: Final = (
    "asking.js",
    "token.js",
    "boxes.js",
    "bars.js",
    "clip.js",
    "captions.js",
    "item.js",
    "queue.js",
    "viewer.js",
    "search.js",
    "stats.js",
    "plots.js",
    "page.js",
)
"""Parts of one program, in their order, after the part that every page has."""
PLOTLY: Final = "plotly.min.js"
EMPTY: Final = digest("")
"""Plotly makes an empty style element, and fills it by calls that no policy forbids."""
STYLED: Final = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')
"""Of a style element that plotly makes for maps unless one of that name is there, which the policy
would refuse with an error in the console; the page has one, and draws no maps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticFile:
    """The response for one name under `/static/`."""

    content: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The page and its static files."""

    html: bytes = field(repr=False)
    policy: str
    """The header Content-Security-Policy that the page is to be sent with."""
    files: Mapping[str, StaticFile]
    """By name under `/static/`. Empty where plotly is not installed."""


def page_of() -> Page:
    """Return the page of this installation, with plots if plotly is installed."""
    plotly = _plotly()
    style = part("base.css") + _read("page.css")
    script = "\n".join(["'use strict';", part("base.js"), *map(_read, SCRIPTS)])
    integrity = digest(plotly) if plotly else ""
    styled = " ".join(found.decode() for found in set(STYLED.findall(plotly or b"")))
    html = Template(_read("page.html")).substitute(
        style=style, script=script, plotly=integrity, styled=styled
    )
    scripts = [digest(script), *filter(None, [integrity])]
    return Page(
        html=html.encode(),
        policy=_policy(scripts, [digest(style), EMPTY]),
        files={PLOTLY: StaticFile(content=plotly, media_type="text/javascript")} if plotly else {},
    )


def _policy(scripts: list[str], styles: list[str]) -> str:
    """Return what the page may do: run these, and talk to the server that it came from."""
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(f"'{one}'" for one in scripts),
        "style-src": " ".join(f"'{one}'" for one in styles),
        "connect-src": "'self'",
        "img-src": "'self' blob: data:",
        "media-src": "'self' blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {allowed}" for name, allowed in rules.items())


def _plotly() -> bytes | None:
    """Return the script of the installed plotly, which is not imported: that takes a second."""
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        return None
    script = Path(found.origin).parent / "package_data" / PLOTLY
    return script.read_bytes() if script.is_file() else None


def _read(name: str) -> str:
    return files("flows.serving.page").joinpath(name).read_text(encoding="utf-8")
