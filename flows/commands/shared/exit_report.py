"""Prints the end of a command: the result of its run, or its error in one line."""

import argparse
import errno
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from artifacts.disk.faults import fault_of
from artifacts.disk.files import encoded
from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import user_cache
from artifacts.errors import PenstockError, UsageError, redacted
from artifacts.packages import missing_package
from artifacts.texts.captions import Failure
from flows.core.console.display import Display, failed_line
from flows.core.console.lines import print_lines

CRASHED = 5
"""Exit code of an unexpected error. 1 would mean that some items failed."""
NAMED_FAILURES = 20
"""Number of failures printed on the terminal. `failures.jsonl` has all."""
SHOWN = 300
"""Characters of an error message that are printed."""


def print_error(text: str) -> None:
    print_lines(f"penstock: {text}", to=sys.stderr)


def print_failed(failure: Failure) -> None:
    print_lines(failed_line(failure.media_path, failure.message, failure.hint), to=sys.stderr)


class CommandEnd(Protocol):
    """The end of a run, as its command prints it."""

    @property
    def out(self) -> Path: ...
    @property
    def failures(self) -> list[Failure]: ...
    @property
    def exit_code(self) -> int: ...
    def to_json(self) -> dict[str, Json]: ...


def print_result(given: argparse.Namespace, result: CommandEnd, display: Display) -> bool:
    """Print the result: every failure as JSON, or the failures not printed yet as text. Return
    whether the command should print more for a person."""
    if given.json:
        for failure in result.failures:
            print(json.dumps({"event": "failed", **asdict(failure)}))
        print(encoded({"event": "end", **result.to_json()}, ensure_ascii=True))
        return False
    unprinted = [f for f in result.failures if not display.has_failed(f.media_path)]
    for failure in unprinted[:NAMED_FAILURES]:
        print_failed(failure)
    if (rest := len(unprinted) - NAMED_FAILURES) > 0:
        print_lines(f"… and {rest} more in {result.out / 'failures.jsonl'}", to=sys.stderr)
    return not given.quiet


def exit_code_of(error: BaseException) -> int:
    """Print the error in one line, and return the exit code."""
    if isinstance(error, PenstockError):
        print_error(str(error))
        return error.exit_code
    # Python raises RuntimeError from an interrupt that comes while a class is made.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        print_error("interrupted; finished items are kept")
        return 4
    if isinstance(error, OSError) and (
        error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        fault = fault_of(error, Path(str(error.filename or "the store or the output folder")))
        print_error(str(fault))
        return fault.exit_code
    assert isinstance(error, Exception)
    if missing := missing_package(error, "this command"):
        print_error(str(missing))
        return missing.exit_code
    return report_crash(error)


def report_crash(error: BaseException) -> int:
    """Print an unexpected error, write its traceback to a file, and return the exit code."""
    message = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]
    try:
        place = f"its traceback is in {_write_traceback(error)}; report it with that file"
    except Exception:  # print the error even if nothing can be written
        place = "its traceback could not be written; report the error with the command"
    print_error(f"unexpected error: {redacted(message)}; {place}")
    return CRASHED


def _write_traceback(error: BaseException) -> Path:
    """Write the traceback to a file and return its path. Raises OSError if no folder is
    writable."""
    trace = redacted("".join(traceback.format_exception(error)))
    head = f"penstock {version('penstock')}, Python {platform.python_version()}\n"
    name = time.strftime("%Y%m%d-%H%M%S-") + f"{os.getpid()}.txt"
    for place in (user_cache, lambda: Path(tempfile.gettempdir(), "penstock")):
        try:
            folder = place() / "errors"
            path = folder / name
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(head + trace)
        except (OSError, UsageError):
            continue
        return path
    raise OSError("no writable folder")
