"""Tells Sphinx how the site is made of the Markdown pages.

The clone is the source, so that a link that works on a forge works in the site, too. Broken links
and anchors are warnings of Sphinx, which `make docs` takes for errors.
"""

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent

NAVIGATION = {
    "Begin": [
        "docs/tutorial",
        "docs/lora",
        "docs/notebooks",
        "docs/gallery",
        "docs/compare",
        "docs/remove",
    ],
    "Recipes": [
        "docs/recipes/README",
        "docs/recipes/captioners",
        "docs/recipes/trainers",
        "docs/recipes/pipelines",
        "docs/recipes/datasets",
        "docs/recipes/clusters",
    ],
    "Captions": [
        "docs/usage",
        "docs/frames",
        "docs/prompts",
        "docs/folders",
        "docs/formats",
        "docs/clips",
        "docs/check",
        "docs/questions",
        "docs/limits",
        "docs/studio",
        "docs/report",
        "docs/review",
        "docs/learn",
        "docs/shots",
        "docs/sound",
        "docs/tune",
        "docs/training",
    ],
    "Labels, vectors, search": [
        "docs/labels",
        "docs/taggers",
        "docs/embed",
        "docs/search",
        "docs/sift",
    ],
    "Models": [
        "docs/models",
        "docs/endpoints",
        "docs/precision",
        "docs/export",
        "docs/graphs",
        "docs/gguf",
        "docs/natives",
        "docs/published",
    ],
    "This machine": [
        "docs/memory",
        "docs/out-of-memory",
        "docs/cards",
        "docs/machine",
        "docs/gpu",
        "docs/cache",
    ],
    "For months": [
        "docs/serve",
        "docs/deploy/serve",
        "docs/prefect",
        "docs/many",
        "docs/scale",
        "docs/far",
        "docs/deploy/README",
    ],
    "Python": ["docs/python", "docs/reference", "docs/api"],
    "How it works": [
        "docs/glossary",
        "docs/architecture",
        "docs/engines",
        "docs/demo",
        "docs/performance",
    ],
    "The project": ["README", "CONTRIBUTING", "CHANGELOG", "docs/log"],
}
"""Every page of the site, in the order of its menu; a new page is a word here."""

project = "Penstock"
version = release = installed("penstock")
copyright = "the authors of Penstock, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
pages = {"docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in pages]
myst_heading_anchors = 4
highlight_language = "none"
"""Of indented blocks, which hold commands, tables and output alike."""

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"

copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
"""In blocks of commands and output, copy the commands alone."""

html_theme = "furo"
html_title = "Penstock"
html_copy_source = html_use_index = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_favicon = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%23055d99'/%3E"
    "%3Cpath d='M2 4h4l4 8h4' stroke='white' stroke-width='2.5' fill='none'/%3E%3C/svg%3E"
)

BEGINNING = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url=docs/index.html">
<link rel="icon" href="data:,">
<title>Penstock</title>
<a href="docs/index.html">Penstock</a>
"""
ELSEWHERE = re.compile(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*\"")
"""What a browser would fetch from another machine by itself."""


def add_navigation(_: "Sphinx", name: str, text: list[str]) -> None:
    """Put the menu into the first page, which on a forge is better without."""
    if name == root_doc:
        for title, names in NAVIGATION.items():
            lines = "\n".join(f"/{name}" for name in names)
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"


def finish(app: "Sphinx", error: Exception | None) -> None:
    """Lead from the site's own address to the first page. Raises ExtensionError where a page needs
    another machine."""
    from sphinx.errors import ExtensionError

    if error:
        return
    (Path(app.outdir) / "index.html").write_text(BEGINNING, encoding="utf-8")
    for page in Path(app.outdir).rglob("*.html"):
        if found := ELSEWHERE.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page} needs another machine: {found[0]}")


def setup(app: "Sphinx") -> None:
    """Called by Sphinx."""
    app.connect("env-get-outdated", lambda *_: [root_doc])  # its menu is not in its text
    app.connect("source-read", add_navigation)
    app.connect("build-finished", finish)
