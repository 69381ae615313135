"""Follows every page: runs each command that README and docs/ show, on a terminal of 80 columns,
with the demo's models in the place of those of the hub; what cannot be run here is parsed.

    python -m scripts.prove.follow_docs [--parse] [--page docs/usage.md | --in-turn] [--verbose]
"""

import argparse
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from scripts.pages.shown.commands import ROOT, Shown, commands, inline, pages
from scripts.pages.shown.meanings import (
    AGAIN,
    CPUS,
    GPUS,
    ON_RAY,
    ONCE,
    SHARED,
    before,
    expected_code,
    is_ours,
    is_stopped,
    reason_not_run,
    takes_default_port,
    typed,
    typed_code,
    weight,
)
from scripts.pages.shown.media import environment, furnish
from scripts.pages.shown.parsing import wrong, wrong_inline
from scripts.prove.rotation import in_turn
from scripts.run.ray_nodes import ray_nodes
from scripts.run.warm import warm_process

ROWS, COLUMNS = 24, 80
ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")
WORK_BEGINS = re.compile(r"cutting frames|encoding|captioning|watching every|http://127\.")
"""What is waited for before Ctrl-C is pressed."""
TOO_LATE = 124
"""Exit code of a command that did not end in time, as of `timeout`."""
COMMAND_SECONDS = 300.0
PARTS_OF_PAGES = 4
CHANGE_HOURS = 3
"""What was committed so long before the last commit counts as changed with it."""
CODE = ".shown.py"
CLEARS = "penstock cache clear"
DEFAULT_PORT = threading.Lock()
"""Held while a command listens on the default port: pages are followed beside one another."""
STATE = "set -a; [ ! -f .state ] || . ./.state\n{}\ncode=$?; export -p >.state; exit $code"
"""What one line sets, the next one of the page has, as in one shell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a command did."""

    code: int
    text: str
    """All that it wrote to the terminal."""
    seconds: float


def run_on_terminal(
    script: str, folder: Path, env: Mapping[str, str], *, seconds: float, stopped: bool = False
) -> Outcome:
    """Run a line of bash; with `stopped`, Ctrl-C is pressed as soon as it works."""
    began = time.monotonic()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        # Who was started in the background hears no Ctrl-C, and its children neither.
        ["env", "--default-signal=INT", "bash", "-c", script],
        cwd=folder,
        env=dict(env),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    read: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, read))
    reader.start()
    late = False
    while process.poll() is None and not late:
        time.sleep(0.02)
        if stopped and WORK_BEGINS.search(_text(read)):
            stopped = False
            os.killpg(process.pid, signal.SIGINT)
        late = time.monotonic() - began > seconds
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    reader.join()
    os.close(ours)
    return Outcome(
        code=TOO_LATE if late else code, text=_text(read), seconds=time.monotonic() - began
    )


def _read(ours: int, read: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # nobody holds the other end any more
        while piece := os.read(ours, 1 << 16):
            read.append(piece)


def _text(read: list[bytes]) -> str:
    return b"".join(read).decode("utf-8", "replace")


def faults(text: str, *, of_words: bool = True) -> list[str]:
    """What nobody should be shown: a traceback, and words that end in the next line."""
    found = ["a traceback"] if "Traceback (most recent call last)" in text else []
    for line in () if not of_words else re.split(r"[\r\n]+", ESCAPE.sub("", text)):
        if broken := broken_word(line.rstrip()):
            found.append(f"broken at column {COLUMNS}: {broken}")
    return found


def broken_word(line: str) -> str:
    """The first word that a terminal breaks; empty where there is none. One that has a line for
    itself, or would fit into none, as a path may not, has to be."""
    for place in range(COLUMNS, len(line), COLUMNS):
        if line[place - 1].isspace() or line[place].isspace():
            continue
        begin = max(line.rfind(" ", 0, place) + 1, 0)
        end = line.find(" ", place)
        word = line[begin : end if end >= 0 else len(line)]
        if len(word) <= COLUMNS and line[:begin].strip():
            return word
    return ""


@dataclass(kw_only=True, slots=True)
class Followed:
    """What came of the commands of a page."""

    ran: list[tuple[Shown, float]] = field(default_factory=list)
    """With the seconds that each took."""
    parsed: list[tuple[Shown, str]] = field(default_factory=list)
    """With the reason why it was not run."""
    wrong: list[str] = field(default_factory=list)


def read(page: Path) -> Followed:
    """Parse every command of a page."""
    found = Followed()
    for shown in commands(page):
        if message := wrong(shown):
            found.wrong.append(f"{shown}\n    {message}")
        if why := reason_not_run(shown):
            found.parsed.append((shown, why))
    for shown in inline(page):
        if message := wrong_inline(shown):
            found.wrong.append(f"{shown}\n    {message}")
        found.parsed.append((shown, "stands in a sentence"))
    return found


def follow(
    page: Path,
    found: Followed,
    place: Path,
    verbose: bool,
    seen: set[Shown],
    extra: Mapping[str, str],
) -> None:
    """Run in order what can be run of a page and was not `seen`, and add it to what was found."""
    found.parsed += [(one, AGAIN) for one in commands(page) if one in seen]
    shown = [one for one in commands(page) if not reason_not_run(one) and one not in seen]
    if not shown:
        return
    shown = before(page.relative_to(ROOT).as_posix()) + shown
    folder = place / page.relative_to(ROOT).as_posix().replace("/", "-").removesuffix(".md")
    folder.mkdir()
    furnish(folder)
    # A store is cleared only while no job runs on it, so such a page has a store of its own.
    clears = any(CLEARS in one.text for one in shown)
    env = {**environment(folder, (folder if clears else place) / "store"), **extra}
    Path(env["HOME"]).mkdir()
    with contextlib.ExitStack() as stack:
        more = stack.enter_context(ray_cluster()) if shown[0].page in ON_RAY else {}
        run_shown(shown, found, folder, {**env, **more}, verbose)


@contextlib.contextmanager
def ray_cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster with simulated GPUs. Yields the environment of commands that use it."""
    with ray_nodes() as nodes:
        nodes.start(gpus=GPUS, cpus=CPUS)
        yield {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}


def run_shown(
    shown: list[Shown], found: Followed, folder: Path, env: Mapping[str, str], verbose: bool
) -> None:
    """Run commands of a page in order in its folder, and add them to what was found."""
    for one in shown:
        command, code = (f"python {CODE}" if one.code else typed(one.text)), typed_code(one.code)
        command, code = (text.replace(SHARED, f"{folder}{SHARED}") for text in (command, code))
        (folder / CODE).write_text(code, encoding="utf-8")
        with DEFAULT_PORT if takes_default_port(one) else contextlib.nullcontext():
            outcome = run_on_terminal(
                STATE.format(command),
                folder,
                env,
                seconds=COMMAND_SECONDS,
                stopped=is_stopped(one),
            )
        found.ran.append((one, outcome.seconds))
        if message := judged(one, outcome):
            found.wrong.append(f"{one}\n    {message}")
        if message or verbose:
            print(f"$ {command}\n{outcome.text}", flush=True)
        print(f"{'FAILED' if message else 'ok':6s} {outcome.seconds:5.1f} s  {one}", flush=True)


def seen_before(expected: list[Path]) -> set[Shown]:
    """Commands that an earlier page shows, too, where once is enough."""
    shown = [one for page in expected for one in commands(page) if one.text in ONCE]
    return {one for at, one in enumerate(shown) if one.text in [early.text for early in shown[:at]]}


def judged(shown: Shown, outcome: Outcome) -> str:
    """What is wrong with what a command did; empty where all is as the page says."""
    message = faults(outcome.text, of_words=is_ours(shown))
    if outcome.code != expected_code(shown):
        message.append(f"exit code {outcome.code}, the page says {expected_code(shown)}")
    return "; ".join(message)


def follow_all(expected: list[Path], workers: int, verbose: bool) -> list[Followed]:
    """Follow pages beside one another, each in a folder of its own, most with one store."""
    with tempfile.TemporaryDirectory(prefix="penstock-docs-") as name:
        place, seen = Path(name).resolve(), seen_before(expected)
        # The long ones first, so that nobody waits for one at the end. All are parsed before the
        # threads begin: parsing catches what the parser prints, for all of the process.
        longest = sorted(expected, key=lambda page: -sum(map(weight, commands(page))))
        found = [read(page) for page in longest]
        with (
            warm_process(place, **environment(place, place / "store")) as extra,
            ThreadPoolExecutor(workers) as pool,
        ):
            following = pool.map(
                lambda p, f: follow(p, f, place, verbose, seen, extra), longest, found
            )
            list(following)
        return found


def pages_in_turn(expected: list[Path]) -> list[Path]:
    """Return README, what commits of the last hours changed, and a part of the others."""
    named = subprocess.run(
        ["git", "log", "-1", "--format=%cI"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    since = (
        datetime.fromisoformat(named.stdout.strip()) - timedelta(hours=CHANGE_HOURS)
    ).isoformat()
    changed = subprocess.run(
        ["git", "log", f"--since={since}", "--format=", "--name-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    always = [page for page in expected if str(page.relative_to(ROOT)) in ("README.md", *changed)]
    others = [page for page in expected if page not in always]
    return always + in_turn(others, PARTS_OF_PAGES)


def tell(found: list[Followed], seconds: float) -> None:
    """Say how many commands were run, how many were not and why, and what is wrong."""
    reasons = Counter(why for one in found for _, why in one.parsed)
    ran = sum(len(one.ran) for one in found)
    print(f"{ran} commands run in {seconds:.0f} s, {reasons.total()} only parsed:")
    for why, count in reasons.most_common():
        print(f"  {count:4d}  {why}")
    for message in (message for one in found for message in one.wrong):
        print(f"WRONG: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """0 when every command does what its page says."""
    given = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    given.add_argument("--parse", action="store_true", help="run nothing")
    given.add_argument("--page", action="append", metavar="PATH", help="only this one; repeatable")
    given.add_argument(
        "--in-turn",
        action="store_true",
        help="only README, the pages that the last hours changed, and a quarter of the others",
    )
    given.add_argument("--workers", type=int, default=2, metavar="N", help="pages at once [2]")
    given.add_argument("--verbose", action="store_true", help="show what every command writes")
    request = given.parse_args(arguments)
    expected = [ROOT / name for name in request.page] if request.page else pages()
    if request.in_turn:
        expected = pages_in_turn(expected)
    began = time.monotonic()
    if request.parse:
        found = [read(page) for page in expected]
    else:
        found = follow_all(expected, request.workers, request.verbose)
    tell(found, time.monotonic() - began)
    return 1 if any(one.wrong for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
