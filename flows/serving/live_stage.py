"""One process of a stage that stays, from its start to its end; knows no stage by name.

It is started and waited for on a thread of its own, because the kernel ties the child's life to
that. What it tells is heard on the event loop.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.errors import PenstockError, StageDied
from flows.job.launch import Launcher, Running, StageCall
from stages.process.events import Event
from stages.process.live import Telling
from stages.process.stage_process import Listener

LauncherMaker = Callable[[Listener], Launcher]


class LiveStage:
    """One process. `hear` is given each of its events, `ended` the error that it ended with, or
    None, once."""

    def __init__(
        self,
        make_launcher: LauncherMaker,
        call_over: Callable[[str], StageCall],
        pipe: Path,
        hear: Callable[[Event], None],
        ended: Callable[["LiveStage", PenstockError | None], None],
    ) -> None:
        """Begin to start it. `call_over` returns the call of the stage over that pipe."""
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._ended = ended
        self._telling = Telling(pipe)
        self._open = True
        self._killed = False
        self._running: Running | None = None
        launcher = make_launcher(lambda _, event: self._heard(event))
        self._thread = threading.Thread(
            target=self._life, args=(launcher, call_over, str(pipe)), daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int:
        """Return its process id; 0 before it has one."""
        return int(getattr(self._running, "pid", 0))

    def tell(self, line: Any) -> None:
        """Tell it what to do."""
        if self._open:
            self._telling.tell(line)

    def stop(self) -> None:
        """Let it end: what it was told it does, and then it gives back all it has."""
        if self._open:
            self._open = False
            self._telling.close()

    def kill(self) -> None:
        """End it at once."""
        self._killed = True
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _heard(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hear, event)

    def _life(self, launcher: Launcher, call_over: Callable[[str], StageCall], pipe: str) -> None:
        error: PenstockError | None = None
        try:
            self._running = launcher.start(call_over(pipe))
            if self._killed:
                self.kill()
            self._running.wait()
        except PenstockError as fault:
            error = fault
        except BaseException as fault:
            error = StageDied(f"a process could not be started: {fault}", hint="", return_code=None)
        self._running = None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over, error)

    def _over(self, error: PenstockError | None) -> None:
        self.stop()
        self._ended(self, error)
