"""Runs the jobs of a server, one at a time and in turns with its halves.

How it works:

1. A job begins when no request has come for a while. The halves leave the device, and the job has
   it alone: `penstock caption` runs in a process that ends with the server.
2. A half with requests gets the device once the job has made something in its turn: the command is
   interrupted, and goes on later where it ended.
"""

import asyncio
import logging
import os
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from artifacts.disk.faults import disk_faults
from artifacts.disk.locks import try_hold
from artifacts.disk.regular_files import last_line
from artifacts.errors import EnvironmentFault, Interrupted, PenstockError
from flows.interfaces.serve.device_scheduler import DeviceScheduler
from flows.interfaces.serve.jobs import OUT, QUEUED, RUNNING, UNFINISHED, JobFolder, ServedJob
from flows.interfaces.serve.refusals import shown_name, without_paths
from flows.outputs.record.run_read import load_record

log = logging.getLogger(__name__)

MOST_DEATHS = 3
"""Times that the process of a job may be killed from outside until the job fails."""
QUIET_SECONDS = 3.0
"""Time without requests after which a job begins."""
PATIENCE_SECONDS = 60.0
"""Time after which a job begins although requests keep coming."""
TURN_SECONDS = 20.0
"""Time that a job keeps the device while a half waits for it, if it has made something."""
LONGEST_TURN_SECONDS = 300.0
STOP_SECONDS = 60.0
"""Time in which an interrupted command must end, or it is killed."""
LEAVE_SECONDS = 10.0
"""The same when the server ends."""
POLL_SECONDS = 0.25
CLAIM_SECONDS = 2.0
"""Time between two looks whether the server that has the jobs has ended."""
FAULT_SECONDS = 10.0
"""Time until a job goes on whose state could not be noted, as on a full disk."""
NOT_KEPT = ("frames", "sound")
"""Stages whose results an interrupted run makes again."""
LOG = "log"
PROGRAM = """
import sys
from stages.process.child import die_with
die_with(int(sys.argv.pop(1)))
from flows.interfaces.cli.main import main
sys.exit(main())
"""
"""`penstock`, in a process that ends with its parent, whose id is the first argument."""


class JobRunner:
    """Runs the jobs of a folder. To the scheduler it is a half that needs the whole device."""

    name = "jobs"
    idle = False

    def __init__(
        self,
        folder: JobFolder,
        model: str,
        scheduler: DeviceScheduler,
        peak_bytes: int,
        quiet_seconds: Callable[[], float],
    ) -> None:
        """`quiet_seconds` returns the time since the last request."""
        self.peak_bytes = peak_bytes
        self._folder, self._model, self._scheduler = folder, model, scheduler
        self._quiet_seconds = quiet_seconds

    async def run(self) -> None:
        """Run the jobs, oldest first, until cancelled. While another server has them, wait for its
        end."""
        while not await asyncio.to_thread(self._folder.claim):
            await asyncio.sleep(CLAIM_SECONDS)
        while True:
            try:
                await self._next()
            except EnvironmentFault as error:
                log.warning("the jobs wait: %s", error)
                await asyncio.sleep(FAULT_SECONDS)

    async def _next(self) -> None:
        """Give the oldest job a turn, or wait for one. Raises EnvironmentFault."""
        self._folder.changed.clear()
        job = next((job for job in self._folder.jobs if job.state in UNFINISHED), None)
        if job is None:
            await self._folder.changed.wait()
            return
        if job.is_cancelling:  # between two of its turns
            return await self._folder.end(job, "cancelled")
        await self._wait_for_quiet()
        await self._scheduler.enter(self)
        try:
            if job.state in (QUEUED, RUNNING):
                await self._run(job)
        finally:
            self._scheduler.release(self)

    def leave(self) -> None:
        """Do nothing: `_is_over` ends a turn."""

    async def _wait_for_quiet(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while self._quiet_seconds() < QUIET_SECONDS and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)

    async def _run(self, job: ServedJob) -> None:
        """Run the command of a job until it ends, or until its turn does."""
        why = self._folder.why_not(job)
        if job.model != self._model:
            why = f"this server no longer serves {shown_name(job.model)}, the job's model: post "
            why += f"the job again for {shown_name(self._model)}"
        if why:
            return await self._folder.end(job, "failed", why)
        job.state = RUNNING
        await self._folder.save(job)
        child, began, interrupted = await self._start(job), time.monotonic(), 0.0
        try:
            while child.returncode is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), POLL_SECONDS)
                now = time.monotonic()
                if interrupted and now - interrupted > STOP_SECONDS:
                    child.kill()
                elif not interrupted and await self._is_over(job, child, began):
                    interrupted = now
                    child.terminate()  # a server of a script ignores SIGINT, and so would its child
        finally:
            await _ended(child)
        if job.is_cancelling:
            await self._folder.end(job, "cancelled")
        elif not interrupted or not child.returncode:
            await self._note(job, child.returncode)

    async def _start(self, job: ServedJob) -> Process:
        out = self._folder.place(job) / OUT
        with disk_faults(out):
            out.mkdir(exist_ok=True)
            while (lock := try_hold(out / ".lock")) is None:  # by the command of a killed server
                await asyncio.sleep(POLL_SECONDS)
            lock.close()
            printed = open(self._folder.place(job) / LOG, "wb")  # noqa: SIM115
        with printed:
            words = self._folder.words(job)
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", PROGRAM, str(os.getpid()), *words),
                env={**os.environ, "NO_COLOR": "1", "PREFECT_API_URL": ""},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printed,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )

    async def _is_over(self, job: ServedJob, child: Process, began: float) -> bool:
        """Return whether the command has to stop: its job is cancelled, or a half waits."""
        if job.is_cancelling:
            return True
        seconds = time.monotonic() - began
        if not self._scheduler.must_yield() or seconds < TURN_SECONDS:
            return False
        has_made = await asyncio.to_thread(_has_made, self._folder.place(job) / OUT, child.pid)
        return has_made or seconds > LONGEST_TURN_SECONDS

    async def _note(self, job: ServedJob, code: int | None) -> None:
        """Note how the command of a job ended. One that was killed from outside runs again."""
        printed = await asyncio.to_thread(last_line, self._folder.place(job) / LOG)
        line = without_paths(printed.removeprefix("error: "))
        if code == 0 or (code == 1 and await self._folder.rows(job, "captions", 0, 1)):
            return await self._folder.end(job, "completed", line if code else "")
        if code is None or code < 0 or code == Interrupted.exit_code:
            job.deaths += 1
            line = line or "its process was killed, by a user or for lack of memory"
            if job.deaths < MOST_DEATHS:
                return await self._folder.save(job)
        line = line or f"the command ended with code {code}"
        rows = await asyncio.to_thread(_written, self._folder.place(job) / OUT)
        await self._folder.end(job, "failed", f"{line}; rows made before: {rows}" if rows else line)


async def _ended(child: Process) -> None:
    """Let a command that still runs end, because the server does."""
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), LEAVE_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()


def _has_made(out: Path, pid: int) -> bool:
    """Return whether this process has made something that a later run need not make again."""
    try:
        run = load_record(out)
    except PenstockError:
        return False
    made = [stage.items + stage.running for stage in run.stages if stage.name not in NOT_KEPT]
    return run.pid == pid and any(made)


def _written(out: Path) -> int:
    """Return the number of rows that a run wrote."""
    try:
        return load_record(out).captions
    except PenstockError:
        return 0
