"""Asks at the terminal whether a command that another user recorded may be repeated."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.console.lines import is_terminal, print_lines, printable
from flows.results.recorded_command import COMMAND, is_own_command, repeated
from flows.results.run_record import RUN_RECORD

LONGEST_SHOWN = 2000
"""Largest number of characters of a command that is shown for confirmation."""


def confirmed(command: Mapping[str, Any] | None, out: Path) -> Mapping[str, Any] | None:
    """Return the command of a run's record if it may run: this user ran it on this machine, or
    confirms it at the terminal. Raises UsageError, EnvironmentFault."""
    if not command or command["words"][:1] != [COMMAND] or is_own_command(command):
        return command if command and command["words"][:1] == [COMMAND] else None
    there = "" if command["folder"] == os.getcwd() else f"cd {shlex.quote(command['folder'])} && "
    line = f"{there}penstock {shlex.join(repeated(command['words']))}"
    shown = printable(line)
    can_ask = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if not can_ask or len(line) > LONGEST_SHOWN:  # `shown` would lack the middle of a longer one
        print_lines(
            f"note: Write files is off: {out / RUN_RECORD} was not written by a command of this "
            f"user on this machine. To write files, run it yourself: `{shown[:LONGEST_SHOWN]}`",
            to=sys.stderr,
        )
        return None
    print_lines(f"{out / RUN_RECORD} was not written by a command of this user on this machine.")
    print_lines("Write files in the browser would run this:", f"  {shown}")
    try:
        return command if input("May it? [y/N] ").strip().lower() in ("y", "yes") else None
    except EOFError:
        return None
