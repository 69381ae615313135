"""The pictures of the pages: a page shows each, and none is older than what it shows."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.shown.commands import ROOT, pages
from tests.support.commands import completed

DOCS = ROOT / "docs"
KINDS = (".png", ".jpg", ".svg")
SHRUNK = 8
"""Pixels of a side that become one before two pictures are compared."""
DIFFERENT = 24
"""Levels of grey, of 256, by which a point of today's picture may differ."""
MOST = 0.03
"""Share of points that may differ more: times and names of folders do."""


def pictures() -> list[Path]:
    return sorted(path for path in DOCS.rglob("*") if path.suffix in KINDS)


def test_a_page_shows_every_picture() -> None:
    shown = set[Path]()
    for page in pages():
        links = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        shown |= {(page.parent / link).resolve() for link in links}
    assert sorted(shown) == pictures()


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the pages of today."""
    to = tmp_path_factory.mktemp("pictures")
    run("scripts.page_pictures", to)
    return to


def run(script: str, to: Path) -> None:
    words = [sys.executable, "-m", script, "--to", str(to)]
    done = completed(words)
    assert done.returncode == 0, done.stderr


def points(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """The points of a shrunk picture, in grey."""
    with Image.open(path) as picture:
        size = (picture.width // SHRUNK, picture.height // SHRUNK)
        return np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), dtype=np.int64)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", ["report.png", "review.png", "studio.png"])
def test_a_picture_shows_the_page_of_today(today: Path, name: str) -> None:
    before, now = points(DOCS / name), points(today / name)
    assert before.shape == now.shape
    assert (abs(before - now) > DIFFERENT).mean() <= MOST, "run make pictures"


@pytest.mark.slow
def test_the_gallery_shows_the_captions_of_today(tmp_path: Path) -> None:
    run("scripts.gallery", tmp_path)
    assert (tmp_path / "gallery.md").read_text() == (DOCS / "gallery.md").read_text()
