"""Builds the page of `penstock serve`, and its content security policy."""

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Final

from flows.results.report.page import digest, part, server_policy, style_and_script

PACKAGE: Final = "flows.serving.page"
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
class Page:
    """The page and the script that it loads."""

    html: bytes = field(repr=False)
    policy: str
    """The header Content-Security-Policy that the page is to be sent with."""
    plotly: bytes | None = field(repr=False)
    """The script `/static/plotly.min.js`; None where plotly is not installed."""


def page_of() -> Page:
    """Return the page of this installation, with plots if plotly is installed."""
    plotly = _plotly()
    style, script = style_and_script(PACKAGE, SCRIPTS)
    integrity = digest(plotly) if plotly else ""
    styled = " ".join(found.decode() for found in set(STYLED.findall(plotly or b"")))
    html = Template(part("page.html", PACKAGE)).substitute(
        style=style, script=script, plotly=integrity, styled=styled
    )
    scripts = [digest(script), *filter(None, [integrity])]
    return Page(
        html=html.encode(),
        policy=server_policy(scripts, [digest(style), EMPTY], images="blob: data:", media="blob:"),
        plotly=plotly,
    )


def _plotly() -> bytes | None:
    """Return the script of the installed plotly, which is not imported: that takes a second."""
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        return None
    script = Path(found.origin).parent / "package_data" / PLOTLY
    return script.read_bytes() if script.is_file() else None
