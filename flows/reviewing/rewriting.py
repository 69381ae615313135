"""Runs the command of a run once more, which writes its outputs with what people corrected; knows
none of them."""

import asyncio
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

LEFT_OUT = ("--prefect", "--retry-failed", "--json", "--quiet")
"""Options that would do more than write files, or say it to nobody."""
KEPT = 400
"""Characters of the command's last words that are shown."""


class Rewriting:
    """The command of a folder's last run, and how running it again went."""

    def __init__(self, command: Mapping[str, Any] | None) -> None:
        """Take what `run.json` says of the command; None where it was not told."""
        self.words = again(command["words"]) if command else []
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


def again(words: Sequence[str]) -> list[str]:
    """Return the words of a command that runs it once more."""
    return [word for word in words if word not in LEFT_OUT]
