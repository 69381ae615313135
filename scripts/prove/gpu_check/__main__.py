"""Checks on a GPU all that only a GPU can show, and writes what it found into docs/gpu.md.

    python -m scripts.prove.gpu_check [--model PATH_OR_ID [--source FILE]] [--out FOLDER]
                                      [--only WORD]
    python -m scripts.prove.gpu_check --first [--out FOLDER]

`--first` makes the checks of `first.py` in at most nine minutes, and prints lines of JSON.

Exit status: 0 all as expected, 1 something differs or failed, 2 no GPU, or nowhere to write.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from artifacts.errors import PenstockError
from scripts.prove.gpu_check.child import CHECKS, LOOK, expected_of, made, rows_of
from scripts.prove.gpu_check.driver import stand_in
from scripts.prove.gpu_check.first import FILE, LIMIT_SECONDS, first_rows
from scripts.prove.gpu_check.model import SHAPES
from scripts.prove.gpu_check.rows import (
    DEMO,
    HEADS,
    PAGE,
    SAMPLES,
    TINY,
    Result,
    Row,
    Setting,
    exit_status,
    pictures,
    put,
    summary,
    terminal_lines,
    write,
)
from stages.process.device import device_name

MINUTES = {True: 20.0, False: 40.0}
"""Whether it is the demo model's alone → how long all checks may take together."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    if why := refusal(given):
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # folders are deleted then, too
    try:
        result = checked(given)
    except KeyboardInterrupt:
        print("\ngpu-check: stopped; nothing is written", file=sys.stderr)
        return 1
    written = "nothing is written of a part" if partial(given) else ""
    written = written or f"written: {', '.join(map(str, write(result, given.out)))}"
    # The lines of --first are read by programs.
    print(f"\n{summary(result.rows)}; {written}", file=sys.stderr if given.first else sys.stdout)
    return exit_status(result.rows)


def partial(given: argparse.Namespace) -> bool:
    """Whether this is a part of the checks, which is not to replace the whole in the page."""
    return bool(given.only or given.first) and given.out is None


def checked(given: argparse.Namespace) -> Result:
    """All rows, each told on the terminal as soon as it is known."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penstock-gpu-check-") as folder:
        setting = Setting(
            folder=Path(folder),
            model=given.model,
            source=given.source.resolve(),
            size=given.size or (TINY if stand_in() else ""),
        )
        rows = list(first_lines(given, setting) if given.first else table(given, setting))
    return Result(
        card=rows[0].found,
        date=datetime.now(UTC).date().isoformat(),
        models=tuple(dict.fromkeys((DEMO, given.model))),
        rows=tuple(rows),
        seconds=time.monotonic() - started,
    )


def table(given: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """All rows, each printed as lines of a table."""
    minutes = given.minutes or MINUTES[given.model == DEMO]
    for cells in (HEADS, tuple("-" * len(head) for head in HEADS)):
        print("\n".join(terminal_lines(cells)))
    for found in every_row(setting, tuple(given.only), time.monotonic() + 60 * minutes):
        print("\n".join(terminal_lines(found.cells)), flush=True)
        yield found


def first_lines(given: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """The rows of `--first`, each printed as a line of JSON, and written to the folder, too."""
    with contextlib.ExitStack() as stack:
        places = [sys.stdout]
        if given.out is not None:
            places.append(stack.enter_context((given.out / FILE).open("w", encoding="utf-8")))

        def tell(line: dict[str, Any]) -> None:
            for place in places:
                print(json.dumps(line), file=place, flush=True)

        seconds = 60 * given.minutes if given.minutes else LIMIT_SECONDS
        yield from first_rows(setting, tell, seconds=seconds)


def refusal(given: argparse.Namespace) -> str:
    """Why nothing can be checked, or what is found could not be kept; empty where it can."""
    if given.only and not expected_of(tuple(given.only)) and given.only != [LOOK.name]:
        names = ", ".join(dict.fromkeys(check.name for check in CHECKS))
        return f"no check is named {' or '.join(given.only)}; the checks are: {names}"
    try:
        if device_name() == "cpu":
            return "the driver shows no GPU, so there is nothing to check"
    except PenstockError as error:
        return str(error)
    if given.out is None and stand_in() and not partial(given):
        return "a stand-in for a GPU is not to be written of in docs/gpu.md; give --out FOLDER"
    try:
        if given.out is None:
            put(PAGE.read_text(encoding="utf-8"), "")
        else:
            given.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def every_row(setting: Setting, only: tuple[str, ...], deadline: float) -> Iterator[Row]:
    """The card, then what each check finds, as long as there is time."""
    first, *rest = rows_of([LOOK], setting, deadline)
    yield first
    if first.verdict != "ok":
        return
    lacking = {name for each in rest for name in each.found.split(",")}
    if "av" in lacking:
        setting = replace(setting, samples=pictures(setting.folder / "pictures"))
    for _, checks in groupby(expected_of(only), lambda each: each.process or each.name):
        yield from made(list(checks), setting, lacking, deadline)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add(
        "--model",
        default=DEMO,
        metavar="PATH_OR_ID",
        help="check it beside the demo's [random weights]",
    )
    add("--source", type=Path, default=SAMPLES, help="what that captions [demo/samples]")
    add("--out", type=Path, metavar="FOLDER", help="write gpu.md and gpu.json there instead")
    add("--size", choices=SHAPES, help="of the random model [the largest that fits]")
    add("--first", action="store_true", help="what is known least, in nine minutes, as JSON")
    add("--only", action="append", default=[], metavar="WORD", help="only checks named so")
    add("--minutes", type=float, help="how long all may take [20; 40 with a model; 9 with --first]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
