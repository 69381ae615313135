"""Runs one stage on several GPUs at once: one process per GPU over the same batches.

How it works:

1. The call of such a stage has a copy for each further device. All processes get the same batches,
   and divide them among themselves by claims (artifacts/records/claims.py). So records do not
   depend on the number of GPUs. On a file system without byte locks each copy has batches of its
   own.
2. Until each process has made something, none claims more than its share. A file says that this
   limit holds; it is deleted when all others work, have ended, or wait for a GPU that another job
   uses.
3. A process that ends well has seen that no batch is left. Processes that have made nothing by then
   are stopped, such as one that still waits for its GPU. Those with batches of their own go on.
4. If a process fails while others succeed, its GPU is left out for the rest of the run. A killed
   process proves nothing about its GPU, which stays in use.
5. If all fail, the error is raised as that of a single process: the stage is restarted, or runs
   with less memory, on all GPUs.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.errors import CannotFit, EnvironmentFault, Killed, PenstockError, StageDied
from artifacts.records.claims import Share, can_claim
from artifacts.records.store import Store
from flows.core.machine.budget import is_in_use
from flows.core.machine.launch import Launcher, StageCall, StageHandle
from stages.process.events import WAITS_FOR_DEVICE, StageOutcome

POLL_SECONDS = 0.1
"""Interval at which processes are looked at."""
FAULTS = (CannotFit, StageDied, Killed)
"""What may happen on one GPU alone, the most telling first."""


class FanOutLauncher:
    """A launcher that starts a call and its copies, each within the budget of its device."""

    def __init__(
        self, plain: Launcher, budgeted: Mapping[str, Launcher], warn: Callable[[str], None]
    ) -> None:
        """`budgeted`: a launcher for each device, which measures the device's free memory. `plain`
        does not: memory of a GPU that another job uses will be free once that job has ended."""
        self._plain = plain
        self._budgeted = budgeted
        self._warn = warn
        self._left_out: set[str] = set()

    def start(self, call: StageCall) -> StageHandle:
        """Start a stage. A call for a GPU that was left out runs on another one."""
        if call.copies:
            copies = [replace(copy, title=f"{copy.name} {copy.device}") for copy in call.copies]
            call = replace(call, title=f"{call.name} {call.device}", copies=tuple(copies))
        calls = [c for c in (call, *call.copies) if c.device not in self._left_out]
        if not calls:
            calls = [on_device(call, next(d for d in self._budgeted if d not in self._left_out))]
        if not call.copies:
            return self._start(calls[0])
        share = Path(call.share_file) if call.share_file else None
        if share is not None:
            with contextlib.suppress(OSError):  # without the file, there is no limit
                share.parent.mkdir(parents=True, exist_ok=True)
                share.touch()
        running: dict[str, StageHandle] = {}
        try:
            for stage_call in calls:
                running[stage_call.device] = self._start(stage_call)
        except BaseException:
            stop_all(running.values())
            raise
        return StageOnGpus(running, share, self._leave_out)

    def _start(self, call: StageCall) -> StageHandle:
        call = replace(call, copies=(), share_file="")
        launcher = self._budgeted.get(call.device)
        if launcher is None or _is_held(call.device):
            launcher = self._plain
        return launcher.start(call)

    def _leave_out(self, stage: str, device: str, error: PenstockError) -> None:
        self._left_out.add(device)
        self._warn(f"{stage}: {device} is left out from now on: {error.message}")


def on_device(call: StageCall, device: str) -> StageCall:
    """Return a call for another device of the same kind."""
    if call.device == "cpu" or device == call.device:
        return call
    name = f"{call.name}-{device.replace(':', '-')}.log"
    half = replace(call.job.half, device=device)  # type: ignore[attr-defined]
    job = replace(call.job, half=half)
    return replace(call, device=device, job=job, log=call.log.with_name(name), copies=())


def shared_by(call: StageCall, devices: Sequence[str], store: Store) -> StageCall:
    """Return the call with its batches shared by processes on these devices. The first one is its
    own. Raises EnvironmentFault."""
    job: Any = call.job
    batches = job.batches
    if not can_claim(store):
        devices = devices[: len(batches)]
        parts = [replace(job, batches=batches[at :: len(devices)]) for at in range(len(devices))]
        calls = [on_device(replace(call, job=p), d) for p, d in zip(parts, devices, strict=True)]
        return replace(calls[0], copies=tuple(calls[1:]))
    file = str(call.log.with_suffix(".share"))
    share = Share(file=file, items=-(-sum(map(len, batches)) // len(devices)))
    call = replace(call, job=replace(job, share=share), share_file=file)
    return replace(call, copies=tuple(on_device(call, device) for device in devices[1:]))


def _is_held(device: str) -> bool:
    """Return whether another process has the lock of a device."""
    with contextlib.suppress(OSError, EnvironmentFault):  # the stage reports the same
        return is_in_use(device)
    return False


def stop_all(processes: Iterable[StageHandle]) -> None:
    """Stop processes at the same time."""
    stopping = list(processes)
    with ThreadPoolExecutor(max_workers=max(1, len(stopping))) as pool:
        for done in [pool.submit(process.stop) for process in stopping]:
            done.result()


class StageOnGpus:
    """The processes of one stage as one. It succeeds if any of them does, because that one has then
    seen that nothing is left."""

    def __init__(
        self,
        running: Mapping[str, StageHandle],
        share: Path | None,
        leave_out: Callable[[str, str, PenstockError], None],
    ) -> None:
        """`running`: the process on each device. `share`: the file that limits their claims.
        `leave_out` is called with a stage, a device and the error that ended only its process."""
        self._all = dict(running)
        self._left = dict(running)
        """Those that have not ended."""
        self._share = share
        self._by_claims = share is not None
        self._leave_out = leave_out
        self._faults: dict[str, PenstockError] = {}
        self._succeeded = False

    @property
    def outcome(self) -> StageOutcome:
        return joined({device: process.outcome for device, process in self._all.items()})

    def wait(self) -> StageOutcome:
        while not self.wait_for_exit(POLL_SECONDS):
            pass
        if not self._succeeded:
            raise min(
                self._faults.values(),
                key=lambda error: next(n for n, of in enumerate(FAULTS) if isinstance(error, of)),
            )
        for device, error in self._faults.items():
            if not isinstance(error, Killed):
                self._leave_out(self.outcome.name, device, error)
        self._faults.clear()
        return self.outcome

    def wait_for_exit(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._left:
            for device in [*self._left]:
                process = self._left.get(device)  # the end of another may have stopped it
                if process is not None and process.wait_for_exit(0):
                    self._end(device)
            if self._share is not None and self._all_work():
                self._lift_limit()
            pause = min(POLL_SECONDS, deadline - time.monotonic())
            if pause <= 0:
                break
            if self._left:
                next(iter(self._left.values())).wait_for_exit(pause)
        return not self._left

    def stop(self) -> None:
        stop_all(self._left.values())
        self._lift_limit()

    def _end(self, device: str) -> None:
        """Take the result of a process that has ended. Raises an error that is not of its GPU."""
        self._lift_limit()  # what restarts a process within `wait` would wait for it
        process = self._left.pop(device)
        try:
            process.wait()
        except FAULTS as error:
            self._faults[device] = error
            return
        except BaseException:
            stop_all(self._left.values())
            self._left.clear()
            raise
        self._succeeded = True
        idle = {d: other for d, other in self._left.items() if self._is_idle(other.outcome)}
        stop_all(idle.values())
        self._left = {d: other for d, other in self._left.items() if d not in idle}

    def _is_idle(self, outcome: StageOutcome) -> bool:
        """Return whether a process can be stopped once another has ended well. What was sent to a
        process that waits for its GPU is made afterwards."""
        is_left = self._by_claims and not _has_begun(outcome)
        return is_left or bool(outcome.notes.get(WAITS_FOR_DEVICE))

    def _all_work(self) -> bool:
        outcomes = [process.outcome for process in self._left.values()]
        return all(
            _has_begun(outcome) or outcome.notes.get(WAITS_FOR_DEVICE) for outcome in outcomes
        )

    def _lift_limit(self) -> None:
        if self._share is not None:
            self._share.unlink(missing_ok=True)
            self._share = None


def _has_begun(outcome: StageOutcome) -> bool:
    return bool(outcome.items or outcome.failures or outcome.too_large)


def joined(parts: Mapping[str, StageOutcome]) -> StageOutcome:
    """Return the outcomes of a stage's processes as one, by device: sums of what they made, and
    maxima of what they took."""
    every = list(parts.values())
    first = every[0]
    notes = {name: value for outcome in every for name, value in outcome.notes.items()}
    notes.pop(WAITS_FOR_DEVICE, None)
    return StageOutcome(
        name=first.name,
        items=sum(outcome.items for outcome in every),
        tokens=sum(outcome.tokens for outcome in every),
        seconds=max(outcome.seconds for outcome in every),
        cpu_seconds=sum(outcome.cpu_seconds for outcome in every),
        peak_host_bytes=max(outcome.peak_host_bytes for outcome in every),
        peak_device_bytes=max(outcome.peak_device_bytes for outcome in every),
        baseline_before_bytes=first.baseline_before_bytes,
        baseline_after_bytes=first.baseline_after_bytes,
        timeline=first.timeline,
        notes=notes,
        warnings=[text for outcome in every for text in outcome.warnings],
        failures=[failure for part in every for failure in part.failures],
        error=next((outcome.error for outcome in every if outcome.error), None),
        too_large=[chunk for part in every for chunk in part.too_large],
        answered=set().union(*(outcome.answered for outcome in every)),
        open_media=set().union(*(outcome.open_media for outcome in every)),
        devices=dict(parts),
    )
