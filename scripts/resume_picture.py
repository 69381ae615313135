"""Writes docs/resume.svg: a run on a terminal that is killed, and the same command finishing it.

    python -m scripts.resume_picture [--to docs/resume.svg]

1. The script makes clips of the test model's world and starts `penstock caption` on a terminal.
2. It kills the process with SIGKILL once a third of the clips is captioned, and starts the same
   command again.
3. It compares the two runs' counts with the store: the script fails unless each caption was made
   exactly once.
4. It draws the terminal's screens, as a terminal emulator saw them, as an animated SVG. Long waits
   are shortened, and all is played faster; nothing else is changed.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping
from html import escape
from itertools import accumulate, groupby, pairwise
from pathlib import Path

import pyte

from penstock_demo.clips import write_clips

ROOT = Path(__file__).resolve().parent.parent
ROWS, COLUMNS = 14, 92
CLIPS, SEED = 400, 7
KILLED_AT = 0.33
COMMAND = "penstock caption clips --model demo --batch-size 8"
PROMPT = "$ "
FOLDER = b"~/films"
"""Shown in place of the temporary folder."""
WIDTH, HEIGHT, MARGIN, SIZE = 8.4, 19, 14, 14
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


def run(recording: Recording, folder: Path, stop: Callable[[], bool]) -> int:
    """Run the command on a terminal; kill it once `stop` returns True. Return its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    words = [sys.executable, "-m", "flows.cli.main", *COMMAND.split()[1:]]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PENSTOCK_STORE": str(folder / "store")}
    env |= {"TERM": "xterm", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        words, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # nobody holds the other end any more
            while written := os.read(ours, 1 << 16):
                recording.show(written)
                if process.poll() is None and stop():
                    process.kill()
        os.close(ours)
    return process.wait()


def stored(folder: Path) -> int:
    """Return the number of captions in the store."""
    from artifacts.packs import RecordSet
    from artifacts.store import open_store

    store = open_store(str(folder / "store"))
    names = {name.split("/")[2] for name in store.list("captions")}
    return sum(len(RecordSet(store, "captions", each).keys()) for each in names)


def made_by(folder: Path) -> Mapping[str, int]:
    """Return how many captions the last run made, and how many it found."""
    record = json.loads((folder / "penstock-out" / "run.json").read_text(encoding="utf-8"))
    (decode,) = (stage for stage in record["stages"] if stage["name"] == "decode")
    return {"made": decode["items"], "before": decode["before"]}


def record(folder: Path) -> Recording:
    """Record the two runs. Raises SystemExit if a caption was made twice, or none was stored."""
    write_clips(folder / "clips", CLIPS, SEED)
    recording = Recording(folder)
    recording.type(COMMAND)

    def third() -> bool:
        counts = [int(found) for found in CAPTIONED.findall(recording.text)]
        return bool(counts) and max(counts) >= KILLED_AT * CLIPS

    run(recording, folder, third)
    before = stored(folder)
    recording.show(b"\r\nKilled\r\n")
    recording.type(COMMAND)
    code = run(recording, folder, lambda: False)
    recording.show(b"\r\n")
    found = made_by(folder)
    print(
        f"{before} captions stored at the kill; the second run found {found['before']} and made "
        f"{found['made']} of {CLIPS}; exit code {code}"
    )
    if code or not before or found != {"made": CLIPS - before, "before": before}:
        raise SystemExit("a caption was made twice, or the kill came too early: run it again")
    return recording


def svg(screens: Screens) -> str:
    """Return an animation of these screens. A line that stays is drawn once."""
    rows = max(len("\n".join(lines).rstrip().split("\n")) for _, lines in screens)
    shown = [screens[0]]
    for screen in screens[1:]:
        if screen[0] - shown[-1][0] < SHORTEST:  # replaced before anybody can read it
            shown[-1] = (shown[-1][0], screen[1])
        else:
            shown.append(screen)
    spans = [min(b - a, LONGEST) for (a, _), (b, _) in pairwise(shown)]
    pace = min(1.0, PLAYED / sum(spans))
    times = [0.0, *accumulate([*(span * pace for span in spans), REST])]
    width, height = round(COLUMNS * WIDTH + 2 * MARGIN), rows * HEIGHT + 2 * MARGIN
    rules, texts = list[str](), list[str]()
    for row in range(rows):
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
                    f'y="{MARGIN + (row + 0.75) * HEIGHT:g}" '
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


def main() -> int:
    """Write the picture."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--to", type=Path, default=ROOT / "docs" / "resume.svg")
    to = given.parse_args().to
    with tempfile.TemporaryDirectory() as folder:
        recording = record(Path(folder))
    to.write_text(svg(recording.screens), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
