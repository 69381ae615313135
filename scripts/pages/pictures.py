"""Draws every picture of README and docs/. Run from a clone, with Chromium and its driver.

    python -m scripts.pages.pictures [pages] [gallery] [resume] [--to docs]

`pages` writes report.png, review.png and studio.png: the demo clips captioned in short chunks
within a budget, and the pages on that in a browser. Each page is also written in two widths and two
colour schemes into build/pictures, to be looked at.

`gallery` writes gallery.md and its pictures: fresh clips and pictures of the demo's world with what
`penstock` says of them, right or wrong; nothing in it is written by hand.

`resume` writes resume.svg: a run on a terminal that is killed, and the same command finishing it.

1. It makes clips of the demo's world and starts `penstock caption` on a terminal.
2. It kills the process with SIGKILL once a third of the clips is captioned, and starts the same
   command again.
3. It compares the two runs' counts with the store: it fails unless each caption was made exactly
   once.
4. It draws the terminal's screens, as a terminal emulator saw them, as an animated SVG. Long waits
   are shortened, and all is played faster; nothing else is changed.
"""

import argparse
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from html import escape
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any

import pyte
from PIL import Image

from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from penstock_demo import CLIPS as SAMPLES
from penstock_demo.clips import write_clips
from penstock_demo.dual.pictures import write_images
from penstock_demo.words import COLOURS, SHAPES
from scripts.pages.shown.commands import ROOT
from tests.support.browser import Browser, browsing
from tests.support.builders.common import PENSTOCK, cells, heads
from tests.support.serving import serving


def penstock(place: Path, *words: str) -> str:
    """Run a command with a store of its own; return what it prints."""
    return subprocess.run(
        [*PENSTOCK, *words],
        cwd=ROOT,
        env=environment(place),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def environment(place: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a command that may run in another folder than the clone."""
    own = {"PYTHONPATH": str(ROOT), "PENSTOCK_STORE": str(place / "store")}
    return {**os.environ, **own, **variables}


REPORT, REVIEW, STUDIO = (1240, 1240), (1120, 900), (1120, 1440)
"""Widths and heights of windows in pixels."""
LOOKS = [(wide, scheme) for wide in (1280, 400) for scheme in ("light", "dark")]
"""Widths in pixels and colour schemes in which each page is looked at."""
LOOKS_FOLDER = ROOT / "build" / "pictures"
HIGHEST = 4000
"""Height in pixels at which a picture of a page ends."""
TOP = "document.documentElement.style.scrollbarWidth = 'none'; scrollTo(0, 0)"
OPTIONS = ("--model=demo", "--chunk=1.5", "--fps=4", "--batch-size=16", "--memory=100MB")
STUDIO_COMMAND = ("studio", "videos", "--out", "captions", "--store", "store")
RENAME = """const [from, to] = arguments, fields = document.querySelectorAll("input[type=text]");
for (const wbr of document.querySelectorAll("wbr")) wbr.remove();
document.body.normalize();
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
for (const field of fields) field.value = field.value.replaceAll(from, to);"""
"""Shows a page with other paths than those of this machine."""


def draw_pages(place: Path, to: Path) -> None:
    """Write the pictures of the report, a review and a studio, and how all pages look."""
    out = place / "penstock-out"
    penstock(place, "caption", str(SAMPLES), *OPTIONS, "--out", str(out))
    penstock(place, "report", str(out))
    shutil.copytree(SAMPLES, place / "videos")
    with browsing(place / "profile", REPORT) as browser:
        browser.open((out / "report.html").as_uri())
        save(of_report(browser), to / "report.png")
    with browsing(place / "other-profile", REVIEW) as browser:
        save(of_review(browser, place, out), to / "review.png")
    with browsing(place / "third-profile", STUDIO) as browser:
        save(of_studio(browser, place), to / "studio.png")
    LOOKS_FOLDER.mkdir(parents=True, exist_ok=True)
    with browsing(place / "fourth-profile") as browser:
        for name, page in pages(place, out).items():
            save_looks(browser, name, page, LOOKS_FOLDER)


def pages(place: Path, out: Path) -> dict[str, AbstractContextManager[str]]:
    """Return name → what opens a page and yields its address. `out`: the folder of a run."""
    index, hits = str(place / "index"), place / "hits.html"
    penstock(place, "index", "build", str(place / "videos"), "--model=demo", "--out", index)
    penstock(place, "search", "a red star", "--index", index, "--html", str(hits))
    return {
        "report": nullcontext((out / "report.html").as_uri()),
        "review": served(place, "review", str(out)),
        "studio": served(place, *STUDIO_COMMAND),
        "search": nullcontext(hits.as_uri()),
        "serve": search_server(place, index),
    }


@contextlib.contextmanager
def search_server(place: Path, index: str) -> Iterator[str]:
    """Serve an index and captions. Yield the address once the models are loaded."""
    options = ("--index", index, "--caption-model", "demo")
    with serving(place, *options, command=[*PENSTOCK, "serve"]) as server:
        yield f"http://127.0.0.1:{server.port}"


@contextlib.contextmanager
def served(place: Path, *words: str) -> Iterator[str]:
    """Run a command that serves a page, in a folder and home of its own. Yield its address."""
    with subprocess.Popen(
        [*PENSTOCK, *words, "--port", "0"],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(place, XDG_STATE_HOME=f"{place}/home/.local/state"),
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.send_signal(signal.SIGTERM)


def save_looks(browser: Browser, name: str, page: AbstractContextManager[str], to: Path) -> None:
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


def of_report(browser: Browser) -> bytes:
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


def of_review(browser: Browser, place: Path, out: Path) -> bytes:
    """Return a review of a run with some edits in it."""
    with served(place, "review", str(out)) as address:
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


def of_studio(browser: Browser, place: Path) -> bytes:
    """Return a studio with a plan. Its paths are shown as if its folder was /data."""
    here = os.path.realpath(place)
    with served(place, *STUDIO_COMMAND) as address:
        browser.open(address)
        browser.wait("return document.querySelector('#sources button')")
        browser.run("document.querySelector('#model').value = 'demo'; page.start.tellModel()")
        browser.type("#memory", "1GiB")
        browser.run("document.querySelector('#plan').click()")
        browser.wait("return document.querySelector('#planned table')", seconds=60.0)
        for path, shown in ((f"{here}/home", "~"), (here, "/data")):
            browser.run(RENAME, path, shown)
        browser.run(f"document.activeElement.blur(); {TOP}")
        return browser.screenshot()


def save(picture: bytes, to: Path) -> None:
    """Write a picture in few colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(to, optimize=True)
    print(f"{to}: {to.stat().st_size:,} bytes")


CLIPS, CLIPS_SEED = 12, 1
"""How many are drawn, and the seed that says which."""
FRAMES = 4
HEIGHT = 96
GAP = 4
QUALITY = 82
PICTURES, SEED = 24, 5
SHOWN_PICTURES, FOUND = 6, 4
QUERIES = ("a red star", "something green")

HEAD = """# Gallery

This page shows what the program makes with the demo's models, in {precision} on a CPU, whether
correct or not. Each part begins with its commands. The models recognize moving shapes and nothing
else ([the demo's models](demo.md)). So this page does not show how well a real model sees.
`python -m scripts.pages.pictures gallery` writes the page with its images.
"""


def draw_gallery(place: Path, to: Path) -> None:
    """Write the gallery and its pictures."""
    (to / "gallery").mkdir(parents=True, exist_ok=True)
    precision, clips = clips_part(place, to)
    parts = [clips, labels_part(place, to), search_part(place, to)]
    page = "\n".join([HEAD.format(precision=precision), *parts])
    (to / "gallery.md").write_text(page, encoding="utf-8")
    size = sum(path.stat().st_size for path in (to / "gallery").iterdir())
    print(f"{to / 'gallery.md'}, pictures of {size:,} bytes")


def rows(text: str) -> Iterator[dict[str, Any]]:
    """The lines of a text of JSON lines."""
    yield from map(json.loads, text.splitlines())


def clips_part(place: Path, to: Path) -> tuple[str, str]:
    """Precision, and every clip beside its caption and the truth."""
    clips, out = place / "clips", place / "captions"
    truths = {truth.file: truth.caption for truth in write_clips(clips, CLIPS, CLIPS_SEED)}
    penstock(place, "caption", str(clips), "--model", "demo", "--out", str(out))
    lines = [
        "## Captions of clips\n",
        f"    python -m penstock_demo.clips clips --count {CLIPS} --seed {CLIPS_SEED}\n"
        "    penstock caption clips --model demo\n",
        f"{FRAMES} evenly spaced frames of each clip, its caption, and whether it is correct:\n",
    ]
    right, precision = 0, ""
    for row in rows((out / "captions.jsonl").read_text(encoding="utf-8")):
        name = f"{Path(row['media_path']).stem}.jpg"
        strip(clips / row["media_path"]).save(to / "gallery" / name, quality=QUALITY)
        truth = truths[row["media_path"]]
        exact = row["caption"] == truth
        right += exact
        precision = row["precision"]["language"]
        verdict = "exact" if exact else f"no: {truth}"
        lines.append(f"![{row['media_path']}](gallery/{name})\n\n{row['caption']} ({verdict})\n")
    lines.append(f"{right} of {len(truths)} captions are exactly the true text.\n")
    return precision, "\n".join(lines)


def strip(path: Path) -> Image.Image:
    """Frames of a clip side by side."""
    import av

    with av.open(str(path)) as container:
        arrays = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    places = [round(at * (len(arrays) - 1) / (FRAMES - 1)) for at in range(FRAMES)]
    small = [at_height(Image.fromarray(arrays[place])) for place in places]
    width = sum(one.width for one in small) + GAP * (FRAMES - 1)
    picture = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for one in small:
        picture.paste(one, (left, 0))
        left += one.width + GAP
    return picture


def at_height(picture: Image.Image) -> Image.Image:
    """A picture of the height that all have."""
    width = round(picture.width * HEIGHT / picture.height)
    return picture.convert("RGB").resize((width, HEIGHT), Image.Resampling.BICUBIC)


def labels_part(place: Path, to: Path) -> str:
    """A few pictures beside the labels that they were given."""
    truths = write_images(place / "pictures", "several", PICTURES, SEED)
    texts, out = place / "labels.txt", place / "labels"
    texts.write_text("".join(f"{c} {s}\n" for c in COLOURS for s in SHAPES), encoding="utf-8")
    options = ["--model", "demo", "--labels", str(texts), "--out", str(out)]
    penstock(place, "label", str(place / "pictures"), *options)
    written = (out / "labels.jsonl").read_text(encoding="utf-8")
    labels_of = {row["media_path"]: row["labels"] for row in rows(written)}
    made = f"pictures --kind several --count {PICTURES} --seed {SEED}"
    lines = [
        "## Labels of images\n",
        f"    python -m penstock_demo.dual.pictures {made}\n"
        "    penstock label pictures --model demo --labels labels.txt\n",
        f"`labels.txt` has the {len(COLOURS) * len(SHAPES)} pairs of colour and shape. "
        f"The first {SHOWN_PICTURES} images:\n",
        heads("image | labels | correct"),
    ]
    for truth in truths[:SHOWN_PICTURES]:
        labels = [one["label"] for one in labels_of[truth.file] if one["passed"]]
        same = sorted(labels) == sorted(set(truth.labels))
        verdict = "yes" if same else f"no: {', '.join(truth.labels)}"
        shown = keep(place / "pictures" / truth.file, to)
        lines.append(cells([shown, ", ".join(labels) or "none", verdict]))
    return "\n".join(lines) + "\n"


def keep(path: Path, to: Path) -> str:
    """Put a small copy beside the page; return its Markdown."""
    at_height(Image.open(path)).save(to / "gallery" / path.name, quality=QUALITY)
    return f"![{path.name}](gallery/{path.name})"


def search_part(place: Path, to: Path) -> str:
    """The best images for a few texts."""
    index, source = str(place / "photos"), str(place / "pictures")
    penstock(place, "index", "build", source, "--model", "demo", "--out", index, "--quiet")
    shown = "\n".join(f'    penstock search "{text}" --index photos' for text in QUERIES)
    lines = [
        "## Search by text\n",
        f"    penstock index build pictures --model demo --out photos\n{shown}\n",
        f"The best {FOUND} of the same {PICTURES} images:\n",
        heads("text | best images"),
    ]
    for text in QUERIES:
        hits = rows(
            penstock(place, "search", text, "--index", index, "--top", str(FOUND), "--json")
        )
        names = [row["media_path"] for row in hits if "media_path" in row]
        images = [keep(place / "pictures" / name, to) for name in names]
        lines.append(cells([text, " ".join(images)]))
    return "\n".join(lines) + "\n"


ROWS, COLUMNS = 14, 92
RUN_CLIPS, RUN_SEED = 400, 7
KILLED_AT = 0.33
COMMAND = "penstock caption clips --model demo --batch-size 8"
PROMPT = "$ "
FOLDER = b"~/films"
"""Shown in place of the temporary folder."""
WIDTH, LINE, MARGIN, SIZE = 8.4, 19, 14, 14
"""Pixels of a character and of a line, around the text, and of its letters."""
SHORTEST, LONGEST, REST = 0.2, 0.9, 5.0
"""Seconds of a screen: at least, at most, and of the last one."""
PLAYED = 15.0
"""Seconds of all screens before the last one, at most."""
CAPTIONED = re.compile(r"captioning \D*(\d+)/")
Screens = list[tuple[float, tuple[str, ...]]]
"""Seconds at which a screen began to be shown, and its lines."""


class Recording:
    """A terminal emulator, and the screens that it showed."""

    def __init__(self, folder: Path) -> None:
        """Show the name of `folder` as FOLDER."""
        self._folder = str(folder).encode()
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self.screens: Screens = []

    def show(self, written: bytes) -> None:
        """Show what a program wrote."""
        self._stream.feed(written.replace(self._folder, FOLDER))
        lines = tuple(line.rstrip() for line in self._screen.display)
        if not self.screens or self.screens[-1][1] != lines:
            self.screens.append((time.monotonic(), lines))

    @property
    def text(self) -> str:
        return "\n".join(self.screens[-1][1]) if self.screens else ""

    def type(self, line: str) -> None:
        """Show a command as if somebody typed it."""
        self.show(PROMPT.encode())
        for letter in line:
            time.sleep(0.02)
            self.show(letter.encode())
        self.show(b"\r\n")


def run_on_terminal(recording: Recording, place: Path, stop: Callable[[], bool]) -> int:
    """Run the command on a terminal; kill it once `stop` returns True. Return its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    words = [*PENSTOCK, *COMMAND.split()[1:]]
    env = environment(place, TERM="xterm", NO_COLOR="1", CUDA_VISIBLE_DEVICES="")
    with subprocess.Popen(
        words, cwd=place, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # nobody holds the other end any more
            while written := os.read(ours, 1 << 16):
                recording.show(written)
                if process.poll() is None and stop():
                    process.kill()
        os.close(ours)
    return process.wait()


def stored(place: Path) -> int:
    """Return the number of captions in the store."""
    store = open_store(str(place / "store"))
    names = {name.split("/")[2] for name in store.list("captions")}
    return sum(len(RecordSet(store, "captions", each).keys()) for each in names)


def made_by(place: Path) -> Mapping[str, int]:
    """Return how many captions the last run made, and how many it found."""
    record = json.loads((place / "penstock-out" / "run.json").read_text(encoding="utf-8"))
    (decode,) = (stage for stage in record["stages"] if stage["name"] == "decode")
    return {"made": decode["items"], "before": decode["before"]}


def record(place: Path) -> Recording:
    """Record the two runs. Raises SystemExit if a caption was made twice, or none was stored."""
    write_clips(place / "clips", RUN_CLIPS, RUN_SEED)
    recording = Recording(place)
    recording.type(COMMAND)

    def third() -> bool:
        counts = [int(count) for count in CAPTIONED.findall(recording.text)]
        return bool(counts) and max(counts) >= KILLED_AT * RUN_CLIPS

    run_on_terminal(recording, place, third)
    before = stored(place)
    recording.show(b"\r\nKilled\r\n")
    recording.type(COMMAND)
    code = run_on_terminal(recording, place, lambda: False)
    recording.show(b"\r\n")
    counts = made_by(place)
    print(
        f"{before} captions stored at the kill; the second run found {counts['before']} and made "
        f"{counts['made']} of {RUN_CLIPS}; exit code {code}"
    )
    if code or not before or counts != {"made": RUN_CLIPS - before, "before": before}:
        raise SystemExit("a caption was made twice, or the kill came too early: run it again")
    return recording


def svg(screens: Screens) -> str:
    """Return an animation of these screens. A line that stays is drawn once."""
    count = max(len("\n".join(lines).rstrip().split("\n")) for _, lines in screens)
    shown = [screens[0]]
    for screen in screens[1:]:
        if screen[0] - shown[-1][0] < SHORTEST:  # replaced before anybody can read it
            shown[-1] = (shown[-1][0], screen[1])
        else:
            shown.append(screen)
    spans = [min(b - a, LONGEST) for (a, _), (b, _) in pairwise(shown)]
    pace = min(1.0, PLAYED / sum(spans))
    times = [0.0, *accumulate([*(span * pace for span in spans), REST])]
    width, height = round(COLUMNS * WIDTH + 2 * MARGIN), count * LINE + 2 * MARGIN
    rules, texts = list[str](), list[str]()
    for row in range(count):
        of_row = [lines[row] for _, lines in shown]
        begin = 0
        for line, group in groupby(of_row):
            end = begin + len(list(group))
            if line:
                number = len(texts)
                rules.append(_rule(number, times[begin] / times[-1], times[end] / times[-1]))
                last = ' class="last"' if end == len(shown) else ""
                texts.append(
                    f'<text id="t{number}"{last} x="{MARGIN}" '
                    f'y="{MARGIN + (row + 0.75) * LINE:g}" '
                    f'textLength="{len(line) * WIDTH:g}">{escape(line)}</text>'
                )
            begin = end
    # Readers who prefer reduced motion see the last screen.
    style = (
        ":root{--back:#ffffff;--text:#1f2328;--edge:#d1d9e0}"
        "@media(prefers-color-scheme:dark){:root{--back:#0d1117;--text:#e6edf3;--edge:#3d444d}}"
        "rect{fill:var(--back);stroke:var(--edge)}"
        f"text{{fill:var(--text);font:{SIZE}px ui-monospace,Menlo,Consolas,monospace;"
        f"white-space:pre;visibility:hidden;animation:{times[-1]:.1f}s step-end infinite}}"
        f"{''.join(rules)}"
        "@media(prefers-reduced-motion:reduce){text{animation:none!important}"
        ".last{visibility:visible}}"
    )
    title = "penstock caption is killed; the same command finishes the run and makes nothing twice"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title><style>{style}</style>'
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>'
        f"{''.join(texts)}</svg>\n"
    )


def _rule(number: int, first: float, last: float) -> str:
    """Return the style of a text that is visible between two shares of the animation."""
    start = "" if first == 0 else "0%{visibility:hidden}"
    return (
        f"@keyframes k{number}{{{start}{first:.3%}{{visibility:visible}}"
        f"{last:.3%}{{visibility:hidden}}}}#t{number}{{animation-name:k{number}}}"
    )


def draw_resume(place: Path, to: Path) -> None:
    """Write the picture of a run that is killed."""
    (to / "resume.svg").write_text(svg(record(place).screens), encoding="utf-8")


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "pages": draw_pages,
    "gallery": draw_gallery,
    "resume": draw_resume,
}
"""Part → draws it, in a temporary folder, into another one."""


def main() -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [all]")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="folder [docs]")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"there is no {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), options.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
