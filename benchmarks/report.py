"""How long a report on many videos takes to write, and a browser to open, scroll and search it.

python benchmarks/report.py [--videos 300] [--captions 10] [--images 0]
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 3.0
"""What 300 videos with 3,000 captions may take to open."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--captions", type=int, default=10, help="of each video")
    parser.add_argument("--images", type=int, default=0)
    given = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("skipped: Chromium and its driver are not installed")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write(out, given.videos, given.captions, given.images)
        seconds = measure(out)
    slow = (given.videos, given.captions, given.images) == (300, 10, 0) and seconds > SECONDS
    return 1 if slow else 0


def write(out: Path, videos: int, captions: int, images: int) -> None:
    """What a run over so many files leaves; all videos are one file, and none of the images is
    there."""
    from tests.support.media import write_video
    from tests.support.reports import curve, media_file, said, started_ago, work, write_run

    (out / "clips").mkdir()
    clip = write_video(out / "clips" / "first.mp4", ticks=range(0, 900, 15))
    captioned = []
    for number in range(videos):
        path = out / "clips" / f"clip {number:06d}.mp4"
        path.hardlink_to(clip)
        file = media_file(path)
        texts = [f"In part {n} of clip {number} a dog runs over a lawn." for n in range(captions)]
        captioned.append((file, said(file, texts, 30 / captions)))
    for number in range(images):
        file = media_file(out / "clips" / f"picture {number:06d}.jpg")
        captioned.append((file, said(file, [f"Picture {number} of a dog that runs over a lawn."])))
    record = write_run(out, captioned)
    work(record, "encode", 1.0, 3600.0, curve(3600, 10**8, 10**9))
    work(record, "decode", 3601.0, 3600.0, curve(3600, 10**8, 10**9))
    started_ago(record, 7201.0)


def measure(out: Path) -> float:
    """Print what each step takes; returns the seconds of opening."""
    from flows.cli.main import main as penstock
    from tests.support.browser import browsing

    began = time.perf_counter()
    penstock(["report", str(out)])
    report = out / "report.html"
    told("written", began, f"{report.stat().st_size / 1e6:.1f} MB")
    with browsing(out / "profile") as browser:
        began = time.perf_counter()
        browser.open(report.as_uri())
        browser.wait("return document.documentElement.dataset.ready")
        count = "return document.querySelectorAll(arguments[0]).length"
        elements, videos = browser.run(count, "*"), browser.run(count, "video")
        opened = told("open", began, f"{elements} elements, {videos} players")
        began = time.perf_counter()
        browser.run("document.querySelector('#videos').scrollIntoView()")
        browser.wait("return document.querySelector('video')?.readyState >= 2")
        told("first video shown", began)
        began = time.perf_counter()
        browser.run("scrollTo(0, document.body.scrollHeight)")
        browser.wait("return document.querySelector('section:last-child .part:last-child > *')")
        told("end reached", began)
        began = time.perf_counter()
        browser.type("#search", "part 7 of clip 29")
        browser.wait("return document.querySelector('mark')")
        told("found", began)
    return opened


def told(what: str, began: float, more: str = "") -> float:
    seconds = time.perf_counter() - began
    print(f"{what:20s}{seconds:6.2f} s  {more}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
