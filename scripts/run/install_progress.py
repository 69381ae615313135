"""Runs an installer in the place of its own output: one bar on a terminal, a line every 8 seconds
elsewhere. All that it printed is shown where it fails.

    python scripts/run/install_progress.py SITE_PACKAGES COMMAND...

It understands what uv and pip print without a terminal, and runs before anything is installed.
"""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

DRAW_SECONDS, LINE_SECONDS = 0.2, 8.0
BAR = 24
"""Characters of the bar."""
NAMED = 2
"""Packages that are named while they are downloaded."""
BEGINS = re.compile(r"\s*Downloading (\S+) \(([\d.]+) ?([kKMG])i?B\)")
ENDS = re.compile(r"\s*Downloaded (\S+)")
RESOLVED = re.compile(r"Resolved (\d+) packages?")
MEGABYTES = {"K": 0.001, "M": 1.0, "G": 1000.0}


class Progress:
    """What an installer's lines tell."""

    def __init__(self, site_packages: Path) -> None:
        self._site_packages = site_packages
        self._began = time.monotonic()
        self._packages = 0
        """Packages that it will have installed at the end; 0 as long as it did not say."""
        self._sizes: dict[str, float] = {}
        """Downloaded package, or one that is being downloaded → megabytes."""
        self._downloading: list[str] = []
        self.lines: list[str] = []
        """All that it printed."""

    def read(self, line: str) -> None:
        """Take a line of the installer."""
        self.lines.append(line)
        if begun := BEGINS.match(line):
            name = begun[1].rpartition("/")[2]
            self._sizes[name] = float(begun[2]) * MEGABYTES[begun[3].replace("K", "k")]
            # pip takes one at a time, names files, and does not say when it has one.
            self._downloading = [
                *([] if "-" in name and ".whl" in name else self._downloading),
                name,
            ]
        elif ended := ENDS.match(line):
            self._downloading = [name for name in self._downloading if name != ended[1]]
        elif resolved := RESOLVED.match(line):
            self._packages = int(resolved[1])
        elif line.startswith(("Prepared ", "Installing ")):
            self._downloading = []

    def ended(self) -> str:
        """Return what was done, for the last line."""
        what = f"{self._packages} packages" if self._packages else "done"
        return f"{what} in {time.monotonic() - self._began:.0f} s"

    def text(self) -> tuple[float, str]:
        """Return the share that is done, and what is done now."""
        seconds = f"{time.monotonic() - self._began:.0f} s"
        if self._downloading:
            total = sum(self._sizes.values())
            left = sum(self._sizes[name] for name in self._downloading)
            more = len(self._downloading) - NAMED
            names = ", ".join(self._downloading[:NAMED]) + (f" and {more} more" if more > 0 else "")
            amount = f"{(total - left) / 1000:.1f} of {total / 1000:.1f} GB"
            return (total - left) / max(total, 1.0), f"{seconds}, {amount}, downloading {names}"
        installed = sum(1 for _ in self._site_packages.glob("*.dist-info"))
        if self._packages:
            share = min(1.0, installed / self._packages)
            return share, f"{seconds}, {installed} of {self._packages} packages"
        return 0.0, f"{seconds} so far"


def show(progress: Progress, ended: threading.Event) -> None:
    """Draw or print the progress until the installer has ended."""
    if not sys.stdout.isatty():
        while not ended.wait(LINE_SECONDS):
            print(f"penstock: {progress.text()[1]}", flush=True)
        return
    while not ended.wait(DRAW_SECONDS):
        share, text = progress.text()
        done = round(share * BAR)
        line = f"[{'#' * done}{'-' * (BAR - done)}] {text}"
        print(
            f"\r{line[: os.get_terminal_size(sys.stdout.fileno()).columns - 1]}\x1b[K",
            end="",
            flush=True,
        )
    print("\r\x1b[K", end="", flush=True)


def main(site_packages: str, *command: str) -> int:
    """Run the installer; returns its exit code."""
    progress, ended = Progress(Path(site_packages)), threading.Event()
    thread = threading.Thread(target=show, args=(progress, ended))
    thread.start()
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as installer:
            assert installer.stdout
            for line in installer.stdout:
                progress.read(line)
    except KeyboardInterrupt:  # the installer got it, too
        return 130
    finally:
        ended.set()
        thread.join()
    if installer.returncode:
        print("".join(progress.lines), end="", file=sys.stderr)
    else:
        print(f"penstock: {progress.ended()}")
    return installer.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
