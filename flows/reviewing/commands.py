"""Runs the fixed commands that a review starts: the run's own caption command, and learning."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from flows.console.lines import is_terminal, print_lines, printable
from flows.results.recorded_command import COMMAND, is_own_command, repeated
from flows.results.run_record import RUN_RECORD

LONGEST_SHOWN = 2000
"""Largest number of characters of a command that is shown for confirmation."""
KEPT = 400
"""Characters of the command's last output line that are shown."""
LONGEST_LINE = 1 << 20
"""Largest number of bytes of an output line."""


class PageCommand:
    """A command that the page may start, and its result."""

    def __init__(
        self,
        words: Sequence[str],
        folder: str,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Take the words of a command; none: it cannot run. It runs in `folder` and within
        `around`."""
        self.words = list(words)
        self._folder = folder
        self._around = around
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._last_line, self._failed = "", False

    def to_json(self) -> dict[str, Any]:
        """Return whether it can run, is running and has failed, and its last output line."""
        return {
            "can": bool(self.words),
            "runs": self._task is not None and not self._task.done(),
            "failed": self._failed,
            "said": self._last_line,
        }

    @property
    def line(self) -> str:
        """Return the command as typed in a shell."""
        there = "" if self._folder == os.getcwd() else f"cd {shlex.quote(self._folder)} && "
        return f"{there}penstock {shlex.join(self.words)}"

    def start(self) -> None:
        """Start the command unless it is running."""
        if self.words and not self.to_json()["runs"]:
            self._last_line, self._failed = "", False
            self._task = asyncio.create_task(self._run())

    async def end(self, *, interrupt: bool = False) -> None:
        """Wait until the command ends, or interrupt it as Ctrl-C does."""
        if self._task is None:
            return
        if interrupt and self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)
        await self._task

    async def _run(self) -> None:
        with self._around():
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "flows.cli.main", *self.words),
                    cwd=self._folder,
                    env={**os.environ, "NO_COLOR": "1"},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    limit=LONGEST_LINE,
                )
                assert process.stdout is not None
                async for line in process.stdout:
                    if text := line.decode(errors="replace").strip():
                        self._last_line = text[:KEPT]
                await process.wait()
            except OSError as error:
                self._last_line, self._failed = f"{self._folder}: {error.strerror or error}", True
                return
            # Files that failed before fail again; all others are written.
            self._failed = process.returncode not in (0, 1)


def rewriting_of(command: Mapping[str, Any] | None, *, by_rule: bool = True) -> PageCommand:
    """Return the command of a folder's last run, to run it again. A command recorded before
    `--as-published` had a default rule continues as stock."""
    if not command:
        return PageCommand((), "")
    return PageCommand(repeated(command["words"], by_rule=by_rule), command["folder"])


def learning_of(
    command: Mapping[str, Any] | None, out: Path, around: Callable[[], AbstractContextManager[None]]
) -> PageCommand:
    """Return `penstock learn` of a folder. It can run if this user ran the recorded command on this
    machine, because it repeats that command. Raises UsageError, EnvironmentFault."""
    can = command is not None and command["words"][:1] == [COMMAND] and is_own_command(command)
    return PageCommand(["learn", str(out.absolute())] if can else (), os.getcwd(), around)


def confirmed(command: Mapping[str, Any] | None, out: Path) -> Mapping[str, Any] | None:
    """Return the command of a run's record if it may run: this user ran it on this machine, or
    confirms it at the terminal. Raises UsageError, EnvironmentFault."""
    if not command or command["words"][:1] != [COMMAND] or is_own_command(command):
        return command if command and command["words"][:1] == [COMMAND] else None
    line = rewriting_of(command).line
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
