"""Writes docs/report.png, docs/review.png and docs/studio.png: the demo clips captioned in short
chunks within a budget, and the pages on that in a browser. Each page is also written in two widths
and two colour schemes, to be looked at. Run from a clone, with Chromium and its driver.

    python scripts/page_pictures.py [--to docs] [--looks build/pictures]
"""

import argparse
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from tests.support.browser import Browser

REPORT, REVIEW, STUDIO = (1240, 1240), (1120, 900), (1120, 1440)
LOOKS = [(wide, scheme) for wide in (1280, 400) for scheme in ("light", "dark")]
"""Widths in pixels and colour schemes in which each page is looked at."""
HIGHEST = 4000
"""Height in pixels at which a picture of a page ends."""
TOP = "document.documentElement.style.scrollbarWidth = 'none'; scrollTo(0, 0)"
OPTIONS = ("--model=demo", "--chunk=1.5", "--fps=4", "--batch-size=16", "--memory=100MB")
PENSTOCK = [sys.executable, "-m", "flows.cli.main"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
RENAME = """const [from, to] = arguments, fields = document.querySelectorAll("input[type=text]");
for (const wbr of document.querySelectorAll("wbr")) wbr.remove();
document.body.normalize();
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
for (const field of fields) field.value = field.value.replaceAll(from, to);"""
"""Shows a page with other paths than those of this machine."""


def main() -> int:
    """Write the pictures."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--to", type=Path, default=ROOT / "docs")
    given.add_argument("--looks", type=Path, default=ROOT / "build" / "pictures")
    options = given.parse_args()
    to: Path = options.to
    from tests.support.browser import browsing

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "penstock-out"
        where = ["--out", str(out), "--store", f"{folder}/store"]
        clips = str(ROOT / "penstock_demo" / "samples")
        run("caption", clips, *OPTIONS, *where)
        run("report", str(out))
        with browsing(Path(folder) / "profile", REPORT) as browser:
            browser.open((out / "report.html").as_uri())
            save(of_report(browser), to / "report.png")
        with browsing(Path(folder) / "other-profile", REVIEW) as browser:
            save(of_review(browser, out), to / "review.png")
        with browsing(Path(folder) / "third-profile", STUDIO) as browser:
            save(of_studio(browser, Path(folder)), to / "studio.png")
        options.looks.mkdir(parents=True, exist_ok=True)
        with browsing(Path(folder) / "fourth-profile") as browser:
            for name, page in pages(Path(folder), out).items():
                save_looks(browser, name, page, options.looks)
    return 0


def pages(folder: Path, out: Path) -> dict[str, AbstractContextManager[str]]:
    """Return name → what opens a page and yields its address. `out`: the folder of a run."""
    clips, index, found = str(folder / "videos"), str(folder / "index"), folder / "found.html"
    run("index", "build", clips, "--model=demo", "--out", index, "--store", f"{folder}/store")
    run("search", "a red star", "--index", index, "--html", str(found))
    studio = ("studio", "videos", "--out", "captions", "--store", "store")
    state = f"{folder}/home/.local/state"
    return {
        "report": nullcontext((out / "report.html").as_uri()),
        "review": served("review", str(out), cwd=ROOT),
        "studio": served(*studio, cwd=folder, XDG_STATE_HOME=state),
        "search": nullcontext(found.as_uri()),
        "serve": ready(served("serve", "--index", index, "--caption-model=demo", cwd=ROOT)),
    }


def save_looks(browser: "Browser", name: str, page: AbstractContextManager[str], to: Path) -> None:
    """Write pictures of a page in each width and colour scheme."""
    with page as address:
        for wide, scheme in LOOKS:
            browser.colour_scheme(scheme)
            browser.narrow(wide)
            browser.open(address)
            time.sleep(3)  # until thumbnails are there
            height = browser.run("return document.documentElement.scrollHeight")
            browser.narrow(wide, min(height, HIGHEST))
            time.sleep(1)
            save(browser.screenshot(), to / f"{name}-{wide}-{scheme}.png")


@contextlib.contextmanager
def ready(page: AbstractContextManager[str]) -> Iterator[str]:
    """Yield the address of a server once it has loaded its models."""
    with page as address:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/readyz").close()
                break
            time.sleep(1)
        yield address


def run(*words: str) -> None:
    """Run a command of the program."""
    subprocess.run([*PENSTOCK, *words], cwd=ROOT, check=True, env=ENVIRONMENT)


@contextlib.contextmanager
def served(*words: str, cwd: Path, **environment: str) -> Iterator[str]:
    """Run a command that serves a page, whose address it is."""
    with subprocess.Popen(
        [*PENSTOCK, *words, "--port", "0"],
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.send_signal(signal.SIGTERM)


def of_report(browser: "Browser") -> bytes:
    """Return the head of a report that is open."""
    browser.run("document.querySelector('details').open = false")
    browser.run(
        "const view = document.getElementById('view'); view.value = 'list';"
        "view.dispatchEvent(new Event('change'))"
    )
    browser.wait("return document.querySelectorAll('.captions button').length > 3")
    browser.click(".captions button", 2)
    browser.wait("return document.querySelector('video').readyState >= 2")
    browser.run(TOP)
    seen = "[...document.querySelectorAll('video')].slice(0, 2)"
    browser.wait(f"return {seen}.every(video => video.readyState === 4 && !video.seeking)")
    time.sleep(1)  # until their spinners are gone
    return browser.screenshot()


def of_review(browser: "Browser", out: Path) -> bytes:
    """Return a review of a run with some edits in it."""
    with served("review", str(out), cwd=ROOT) as address:
        browser.open(address)
        browser.wait("return document.documentElement.dataset.ready")
        browser.run(
            "const view = document.getElementById('view'); view.value = 'grid';"
            "view.dispatchEvent(new Event('change'));"
            "document.querySelector('.row').focus()"
        )
        browser.press(*"aaraj")
        browser.press("e")
        browser.press(*" And it is seen from above.", "\ue007")
        browser.wait("return document.querySelector('#saved').textContent === 'all saved'")
        browser.wait("return [...document.images].slice(0, 8).every(image => image.naturalWidth)")
        browser.run(f"document.activeElement.blur(); {TOP}")
        return browser.screenshot()


def of_studio(browser: "Browser", folder: Path) -> bytes:
    """Return a studio with a plan. Its paths are shown as if its folder was /data."""
    shutil.copytree(ROOT / "penstock_demo" / "samples", folder / "videos")
    words = ("studio", "videos", "--out", "captions", "--store", "store")
    here, home = os.path.realpath(folder), os.path.join(os.path.realpath(folder), "home")
    with served(*words, cwd=folder, XDG_STATE_HOME=f"{home}/.local/state") as address:
        browser.open(address)
        browser.wait("return document.querySelector('#sources button')")
        browser.run("document.querySelector('#model').value = 'demo'; page.start.tellModel()")
        browser.type("#memory", "1GiB")
        browser.run("document.querySelector('#plan').click()")
        browser.wait("return document.querySelector('#planned table')", seconds=60.0)
        for path, shown in ((home, "~"), (here, "/data")):
            browser.run(RENAME, path, shown)
        browser.run(f"document.activeElement.blur(); {TOP}")
        return browser.screenshot()


def save(picture: bytes, to: Path) -> None:
    """Write a picture in few colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(to, optimize=True)
    print(f"{to}: {to.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
