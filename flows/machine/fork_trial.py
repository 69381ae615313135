"""Tries whether stages can be forked on a GPU: forked processes must compute bit for bit what a
fresh one computes, one after the other and beside each other, and release the card."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from artifacts.errors import StageDied
from flows.machine.fork_verdict import remember
from flows.machine.launch import DirectLauncher, StageCall
from stages.process.device import device_holders, device_used_bytes
from stages.process.events import Warned
from stages.process.fork_client import ForkServer
from stages.process.fork_trial import ForkTrialJob
from stages.process.lock import hold_device
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener, StageProcess, wait_for_release


def try_forks(device: str, on_event: Listener) -> str:
    """Try forks on a GPU, and remember the result. Return why they cannot be used; empty if they
    can. Waits for the card. Raises PenstockError."""

    def wait_for(holder: str) -> None:
        on_event("forks", Warned(text=f"waiting for {device.upper()}, held by {holder}"))

    # The lock is held here, so the processes are started as workers, which take none.
    with (
        hold_device(device, wait_for) or contextlib.nullcontext(),
        TemporaryDirectory(prefix="penstock-forks-", ignore_cleanup_errors=True) as folder,
    ):
        why = _why_not(device, partial(_start, device, Path(folder), DirectLauncher(on_event)))
    remember(device, why)
    return why


def _why_not(device: str, start: Callable[..., StageProcess]) -> str:
    before = device_used_bytes(device)
    expected = start(None).wait()
    try:
        with ForkServer() as forks:
            outcomes = [start(forks).wait() for _ in range(2)]
            beside = [start(forks, beside=True) for _ in range(2)]
            outcomes += [process.wait() for process in beside]
            why = _difference(device, expected, outcomes)
    except StageDied as error:
        return error.message
    peak = max(outcome.peak_device_bytes for outcome in outcomes)
    return why or next(iter(wait_for_release(device, before, peak)[1]), "")


def _difference(device: str, expected: StageOutcome, outcomes: Sequence[StageOutcome]) -> str:
    """Return what is wrong with forked processes; empty if nothing is. Called while the fork server
    is there."""
    servers = {outcome.notes["parent"] for outcome in outcomes}
    if expected.notes["parent"] in servers or len(servers) > 1:
        return "memory is short, or importing a library has started a thread or used CUDA"
    if servers & device_holders(device).keys():
        return "the process that forks has a context on the card"
    if {outcome.notes["digest"] for outcome in outcomes} != {expected.notes["digest"]}:
        return "a forked process computes other bits than a fresh one"
    return next((warning for outcome in outcomes for warning in outcome.warnings), "")


def _start(
    device: str,
    folder: Path,
    launcher: DirectLauncher,
    forks: ForkServer | None,
    *,
    beside: bool = False,
) -> StageProcess:
    meeting = folder / "meeting"
    meeting.mkdir(exist_ok=True)
    job = ForkTrialJob(device=device, meeting=str(meeting) if beside else "")
    return launcher.start(
        StageCall(
            name="try_forks",
            job=job,
            device=device,
            log=folder / "forks.log",
            fork_server=forks,
            persistent=True,
        )
    )
