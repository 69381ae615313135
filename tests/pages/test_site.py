"""The site of the pages in a real browser: every page on a wide and a narrow screen, light and
dark, its search and its copy buttons. A broken link fails its build."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.support.commands import completed
from tests.support.looks import asked_elsewhere, faint, overflowing, unnamed

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MAY_SCROLL = {1280: "pre", 400: "pre, .table-wrapper"}
"""What may be wider than the column of text on a screen of so many pixels."""

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def build(clone: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does."""
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--builder", "html"]
    words = [sys.executable, "-m", "sphinx", *options, "--conf-dir", "docs", ".", "site"]
    return completed(words, cwd=clone)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, beside links to the rest of the repository, and the site."""
    to = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name == "docs":
            shutil.copytree(path, to / "docs")
        elif path.name in PAGES:
            shutil.copy(path, to)
        elif path.name != "site":
            (to / path.name).symlink_to(path)
    built = build(to)
    assert built.returncode == 0, built.stderr
    return to


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A handler without a log."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(clone: Path) -> Iterator[str]:
    """The address of the site on a server of this machine."""
    handler = functools.partial(Quiet, directory=str(clone / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def faults(browser: Browser, wide: int) -> list[Any]:
    """What is wrong with the page that is open."""
    found = [browser.console(), asked_elsewhere(browser), overflowing(browser, MAY_SCROLL[wide])]
    blank = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    found += [faint(browser), unnamed(browser), browser.run(blank)]
    return [each for each in found if each]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("wide", MAY_SCROLL)
def test_every_page_fits_and_is_readable(
    browser: Browser, site: str, clone: Path, wide: int, scheme: str
) -> None:
    browser.narrow(wide)
    browser.colour_scheme(scheme)
    names = sorted(path.relative_to(clone / "site") for path in (clone / "site").rglob("*.html"))
    assert len(names) > 50
    for name in names:
        browser.open(f"{site}/{name}")
        assert faults(browser, wide) == [], name


LINKS = {
    "[here](nowhere.md)": "nowhere.md",
    "[here](usage.md#no-such-heading)": "no-such-heading",
    "[here](#no-heading-here)": "no-heading-here",
    "[here](../scripts/nowhere.py)": "nowhere.py",
    "![here](nowhere.png)": "nowhere.png",
}
"""Links that lead nowhere, and what the build says of each."""


def test_a_broken_link_fails(clone: Path) -> None:
    with (clone / "docs" / "shots.md").open("a", encoding="utf-8") as page:
        page.write("\n" + "\n\n".join(LINKS))
    built = build(clone)
    assert built.returncode == 1
    assert [name for name in LINKS.values() if name not in built.stderr] == []
