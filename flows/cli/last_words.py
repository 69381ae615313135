"""Prints the end of a command: the result of its run, or its error in one line."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from artifacts.captions import Failure
from artifacts.errors import UsageError, redacted
from artifacts.user_folders import user_cache
from flows.console.display import Display, failed_line
from flows.console.lines import print_lines
from flows.console.terminal import forget_terminal, outliving_the_terminal

UNFORESEEN = 5
"""Exit code of what nobody foresaw: 1 would mean that some items failed."""
NAMED_FAILURES = 20
"""Number of failures told on the terminal; all of them are in `failures.jsonl`."""
SHOWN = 300
"""Characters of an error that its line shows."""


def print_error(text: str) -> None:
    """Print one line, even where nobody reads it any more."""
    with outliving_the_terminal():
        print_lines(f"penstock: {text}", to=sys.stderr)


def say_failed(failure: Failure) -> None:
    """Print one line of a file that failed."""
    print_lines(failed_line(failure.media_path, failure.message, failure.hint), to=sys.stderr)


class CommandEnd(Protocol):
    """The end of a run, as its command prints it."""

    @property
    def out(self) -> Path: ...
    @property
    def failures(self) -> list[Failure]: ...
    @property
    def exit_code(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


def print_result(given: argparse.Namespace, ended: CommandEnd, display: Display) -> bool:
    """Tell a program every failure and the outcome, or a person what failed and was not told yet.
    Return whether a person is there who wants to be told more."""
    forget_terminal()  # one may work on after it was closed
    if given.json:
        for failure in ended.failures:
            print(json.dumps({"event": "failed", **asdict(failure)}))
        print(json.dumps({"event": "end", **ended.to_json()}))
        return False
    report_failures(ended.failures, display, ended.out)
    return not given.quiet


def report_failures(failures: Sequence[Failure], display: Display, out: Path) -> None:
    """Print what failed and was not told yet, up to a number."""
    untold = [failure for failure in failures if not display.has_failed(failure.media_path)]
    for failure in untold[:NAMED_FAILURES]:
        say_failed(failure)
    rest = len(untold) - NAMED_FAILURES
    if rest > 0:
        print_lines(f"… and {rest} more in {out / 'failures.jsonl'}", to=sys.stderr)


def report_crash(error: BaseException) -> int:
    """Say what an error was that no code provides for; returns the exit code. Its traceback is kept
    for whoever mends it."""
    words = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]
    try:
        kept = f"its traceback is in {_keep(error)}; report it with that file"
    except Exception:  # this is the last line, whatever else goes wrong
        kept = "its traceback could not be written anywhere; report it with the command"
    print_error(f"an unforeseen error: {redacted(words)}; {kept}")
    return UNFORESEEN


def _keep(error: BaseException) -> Path:
    """Write the traceback to a file and return its path. Raises OSError where none can be."""
    said = redacted("".join(traceback.format_exception(error)))
    head = f"penstock {version('penstock')}, Python {platform.python_version()}\n"
    name = time.strftime("%Y%m%d-%H%M%S-") + f"{os.getpid()}.txt"
    for place in (user_cache, lambda: Path(tempfile.gettempdir(), "penstock")):
        try:
            folder = place() / "errors"
            path = folder / name
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(head + said)
        except (OSError, UsageError):
            continue
        return path
    raise OSError("no folder for it")
