"""How long the page of a studio takes to open, scroll and search a run over many pictures, and what
its server takes, as a ratio to a small run.

python -m benchmarks.studio [--items 50000] [--small 1000]
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.browser import Browser, browsing
from tests.support.reports import media_file, said, write_run
from tests.support.studios import OpenStudio

LIMITS = {"first paint": 1.5, "scroll": 0.1, "search": 0.1}
"""Seconds."""
MIB = 300
"""Memory of the server."""
SHADES = 50
PAINTED = "return performance.getEntriesByName('captions shown')[0]?.startTime / 1000"
TIMED = """const began = performance.now();
{do};
document.body.getBoundingClientRect();
return (performance.now() - began) / 1000;"""
SCROLL = "scrollTo(0, document.body.scrollHeight * arguments[0])"
SEARCH = "document.querySelector('#search').value = `lawn ${arguments[0].toFixed(1)}`; page.show()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--small", type=int, default=1_000)
    given = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("skipped: Chromium and its driver are not installed")
        return 0
    small, large = measured(given.small), measured(given.items)
    for name, value in large.items():
        ratio = value / small[name] if small[name] else 0.0
        unit = "MiB" if name.startswith("server") else "s"
        print(f"{name}: {value:.3g} {unit}, {ratio:.2f} x of {given.small:,} items", flush=True)
    slow = [name for name, most in LIMITS.items() if large[name] > most]
    slow += [name for name, value in large.items() if name.startswith("server") and value > MIB]
    print("over its limit: " + ", ".join(slow) if slow else "all within the limits")
    return 1 if slow else 0


def measured(items: int) -> dict[str, float]:
    """Return what each step takes with so many pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, items)
        studio = OpenStudio(root / "media", root / "out", root / "store").start()
        try:
            with browsing(root / "profile") as browser:
                found = look(browser, studio)
            return {**found, "server": memory(studio)}
        finally:
            studio.end()


def write(root: Path, items: int) -> None:
    """Write a run over pictures of a few shades."""
    import numpy as np
    from PIL import Image

    media = root / "media"
    media.mkdir(parents=True)
    for number in range(SHADES):
        shade = np.full((480, 640, 3), number * 5, np.uint8)
        Image.fromarray(shade).save(media / f"{number}.png")
    captioned = []
    for number in range(items):
        path = media / f"picture {number:06d}.png"
        path.hardlink_to(media / f"{number % SHADES}.png")
        file = media_file(path)
        texts = [
            f"Picture {number} of a dog, which runs over a lawn, {number % 97 / 10:.1f} m far."
        ]
        captioned.append((file, said(file, texts)))
    write_run(root / "out", captioned)


def look(browser: Browser, studio: OpenStudio) -> dict[str, float]:
    """Open the page, with the server new and then warm; scroll it and search it."""
    address = f"{studio.address}run/{studio.get('start')['own']}/"
    found: dict[str, float] = {}
    for name in ("open at once", "first paint"):
        browser.open("about:blank")
        browser.open(address)
        found[name] = float(browser.wait(PAINTED, seconds=120.0))
    pictures = "return [...document.images].filter(i => i.naturalWidth).length > 3"
    began = time.monotonic()
    browser.wait(pictures)
    found["first thumbnails"] = time.monotonic() - began
    found["scroll"] = worst(lambda at: browser.run(TIMED.replace("{do}", SCROLL), at))
    time.sleep(3)  # thumbnails are kept now
    browser.open("about:blank")
    browser.open(address)
    browser.wait(PAINTED, seconds=120.0)
    began = time.monotonic()
    browser.wait(pictures)
    found["kept thumbnails"] = time.monotonic() - began
    found["search"] = worst(lambda at: browser.run(TIMED.replace("{do}", SEARCH), at))
    assert browser.console() == []
    return found


def worst(run: Callable[[float], Any]) -> float:
    """Return the longest of ten."""
    found = []
    for number in range(10):
        found.append(float(run(number / 10)))
        time.sleep(0.3)
    return max(found)


def memory(studio: OpenStudio) -> float:
    """Return the peak of the server's memory in MiB."""
    assert studio.process is not None
    status = Path(f"/proc/{studio.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
