"""Runs the command of a run once more, which writes its outputs with what people corrected; knows
none of them."""

import asyncio
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.console.lines import is_terminal, printable, tell
from flows.results.recorded_command import is_own_command
from flows.results.run_record import RUN_RECORD

LEFT_OUT = ("--prefect", "--retry-failed", "--json", "--quiet", "--trust-remote-code")
"""Options that would do more than write files, or say it to nobody, or let code run that somebody
else wrote: that is asked of a person each time."""
COMMAND = "caption"
LONGEST_SHOWN = 2000
"""Characters of a command that a person can be asked about."""
KEPT = 400
"""Characters of the command's last words that are shown."""


def confirmed(command: Mapping[str, Any] | None, out: Path) -> Mapping[str, Any] | None:
    """Return the command of a run's record, if it may run: because this user ran it here, or says
    so now, at the terminal. Raises UsageError, EnvironmentFault."""
    if not command or command["words"][:1] != [COMMAND] or is_own_command(command):
        return command if command and command["words"][:1] == [COMMAND] else None
    line = Rewriting(command).line
    shown = printable(line)
    can_ask = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if not can_ask or len(line) > LONGEST_SHOWN:  # of a longer one, `shown` lacks the middle
        tell(
            f"note: Write files is off: {out / RUN_RECORD} was not written by a command of this "
            f"user on this machine. To write files, run it yourself: `{shown[:LONGEST_SHOWN]}`",
            to=sys.stderr,
        )
        return None
    tell(f"{out / RUN_RECORD} was not written by a command of this user on this machine.")
    tell("Write files in the browser would run this:", f"  {shown}")
    try:
        return command if input("May it? [y/N] ").strip().lower() in ("y", "yes") else None
    except EOFError:
        return None


class Rewriting:
    """The command of a folder's last run, and how running it again went."""

    def __init__(self, command: Mapping[str, Any] | None, *, by_rule: bool = True) -> None:
        """Take what `run.json` says of the command; None where it was not told. One that was
        recorded before models could be run as published by rule continues as stock."""
        self.words = again(command["words"], by_rule=by_rule) if command else []
        self._folder = command["folder"] if command else ""
        self._task: asyncio.Task[None] | None = None
        self._said, self._failed = "", False

    def told(self) -> dict[str, Any]:
        """Return whether it can be run, runs, failed, and its last words."""
        return {
            "can": bool(self.words),
            "runs": self._task is not None and not self._task.done(),
            "failed": self._failed,
            "said": self._said,
        }

    @property
    def line(self) -> str:
        """Return the command as a person types it."""
        there = "" if self._folder == os.getcwd() else f"cd {shlex.quote(self._folder)} && "
        return f"{there}penstock {shlex.join(self.words)}"

    def start(self) -> None:
        """Run it, unless it runs."""
        if self.words and not self.told()["runs"]:
            self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Wait for it."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "flows.cli.main", *self.words),
                cwd=self._folder,
                env={**os.environ, "NO_COLOR": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
        except OSError as error:
            self._said, self._failed = f"{self._folder}: {error.strerror or error}", True
            return
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        self._said = lines[-1][:KEPT] if lines else ""
        # Files that failed before fail again: all others are written.
        self._failed = process.returncode not in (0, 1)


def again(words: Sequence[str], *, by_rule: bool = True) -> list[str]:
    """Return the words of a command that runs it once more; where the way of its model was not
    left to a rule, as stock unless it says otherwise."""
    kept = [word for word in words if word not in LEFT_OUT]
    if by_rule or any(word in ("--as-published", "--as-stock") for word in kept):
        return kept
    return [*kept, "--as-stock"]
