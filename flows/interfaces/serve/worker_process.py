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
from flows.core.machine.launch import Launcher, StageCall, StageHandle
from stages.process.events import Event
from stages.process.requests import End, Message, RequestPipe
from stages.process.stage_process import Listener

LauncherMaker = Callable[[Listener], Launcher]


class WorkerProcess:
    """One worker process. `on_event` is called with each event. `ended` is called once, with the
    error that ended the process or None."""

    def __init__(
        self,
        make_launcher: LauncherMaker,
        call_over: Callable[[str], StageCall],
        pipe: Path,
        on_event: Callable[[Any], None],
        ended: Callable[["WorkerProcess", PenstockError | None], None],
        read: Callable[[Event], Any] = lambda event: event,
    ) -> None:
        """Start the process on a thread. `call_over` returns the stage call for a pipe. `on_event`
        gets the result of `read(event)`, which runs on the receiving thread and may read files.
        """
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._read = read
        self._ended = ended
        self._pipe: RequestPipe | None = None
        """Its request pipe, once a thread has made it."""
        self._unsent: list[Message] = []
        """Messages sent before the pipe existed."""
        self._open = True
        self._killed = False
        self._running: StageHandle | None = None
        launcher = make_launcher(lambda _, event: self._receive(event))
        self._thread = threading.Thread(
            target=self._run, args=(launcher, call_over, pipe), daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int:
        """Return the process id; 0 before the start."""
        return int(getattr(self._running, "pid", 0))

    def send(self, message: Message) -> None:
        """Send a message to the process, unless it was sent the end."""
        if self._pipe is not None and self._open:
            self._pipe.send(message)
            self._write()
        elif self._open:
            self._unsent.append(message)

    def stop(self) -> None:
        """Let the process end after its requests."""
        self.send(End())
        self._open = False

    def kill(self) -> None:
        self._killed = True
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _receive(self, event: Event) -> None:
        result = self._read(event)
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._on_event, result)

    def _run(self, launcher: Launcher, call_over: Callable[[str], StageCall], pipe: Path) -> None:
        error: PenstockError | None = None
        try:
            self._loop.call_soon_threadsafe(self._connect, RequestPipe(pipe))
            self._running = launcher.start(call_over(str(pipe)))
            if self._killed:
                self.kill()
            self._running.wait()
        except PenstockError as fault:
            error = fault
        except BaseException as fault:
            error = StageDied(f"process failed to start: {fault}", hint="", return_code=None)
        self._running = None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, error)

    def _connect(self, pipe: RequestPipe) -> None:
        """Take the pipe, and send the messages that waited for it."""
        self._pipe = pipe
        for message in self._unsent:
            pipe.send(message)
        self._unsent.clear()
        self._write()

    def _write(self) -> None:
        """Write what the pipe accepts, and the rest when it accepts more."""
        if self._pipe is None:
            return
        if self._pipe.write():
            self._loop.remove_writer(self._pipe.descriptor)
        else:
            self._loop.add_writer(self._pipe.descriptor, self._write)

    def _finish(self, error: PenstockError | None) -> None:
        self._open = False
        if self._pipe is not None:
            self._loop.remove_writer(self._pipe.descriptor)
            self._pipe.close()
            self._pipe = None
        self._ended(self, error)
