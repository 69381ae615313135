"""Runs one worker process of a stage, from its start to its end.

A thread starts the process and waits for it, because the kernel ends the child together with that
thread. Events arrive on the event loop. The loop never blocks on the process: data that its pipe
does not accept yet is written later, and discarded once the process has ended.
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
from flows.machine.launch import Launcher, StageCall, StageHandle
from stages.process.events import Event
from stages.process.live import RequestPipe
from stages.process.stage_process import Listener

LauncherMaker = Callable[[Listener], Launcher]


class WorkerProcess:
    """One worker process. `hear` is called with each event; `ended` is called once, with the error
    that ended the process or None."""

    def __init__(
        self,
        make_launcher: LauncherMaker,
        call_over: Callable[[str], StageCall],
        pipe: Path,
        hear: Callable[[Any], None],
        ended: Callable[["WorkerProcess", PenstockError | None], None],
        read: Callable[[Event], Any] = lambda event: event,
    ) -> None:
        """Begin to start it. `call_over` returns the call of the stage over that pipe. `hear` is
        given what `read` makes of an event, on the thread that takes it: there files may be read.
        """
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._read = read
        self._ended = ended
        self._telling: RequestPipe | None = None
        """Its pipe, once a thread has made it."""
        self._early: list[Any] = []
        """Lines from before there was a pipe."""
        self._open = True
        self._killed = False
        self._running: StageHandle | None = None
        launcher = make_launcher(lambda _, event: self._heard(event))
        self._thread = threading.Thread(
            target=self._life, args=(launcher, call_over, pipe), daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int:
        """Return its process id; 0 before it has one."""
        return int(getattr(self._running, "pid", 0))

    def send(self, line: Any) -> None:
        """Tell it what to do."""
        if self._telling is not None and self._open:
            self._telling.send(line)
            self._write()
        elif self._open:
            self._early.append(line)

    def stop(self) -> None:
        """Let it end: what it was told it does, and then it gives back all it has."""
        self._open = False
        if self._telling is not None:
            self._write()

    def kill(self) -> None:
        """End it at once."""
        self._killed = True
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _heard(self, event: Event) -> None:
        found = self._read(event)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hear, found)

    def _life(self, launcher: Launcher, call_over: Callable[[str], StageCall], pipe: Path) -> None:
        error: PenstockError | None = None
        try:
            self._loop.call_soon_threadsafe(self._made, RequestPipe(pipe))
            self._running = launcher.start(call_over(str(pipe)))
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

    def _made(self, telling: RequestPipe) -> None:
        """Take the pipe, and tell what was to be told before there was one."""
        self._telling = telling
        for line in self._early:
            telling.send(line)
        self._early.clear()
        self._write()

    def _write(self) -> None:
        """Write what the pipe takes, the rest when it takes more, and then close it if no more is
        to come."""
        if self._telling is None:
            return
        if not self._telling.write():
            self._loop.add_writer(self._telling.descriptor, self._write)
            return
        self._loop.remove_writer(self._telling.descriptor)
        if not self._open:
            self._close()

    def _close(self) -> None:
        if self._telling is not None:
            self._loop.remove_writer(self._telling.descriptor)
            self._telling.close()
            self._telling = None

    def _over(self, error: PenstockError | None) -> None:
        self._open = False
        self._close()
        self._ended(self, error)
