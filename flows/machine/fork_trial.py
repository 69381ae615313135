"""Tries whether stages can be forked on a GPU: forked processes must compute bit for bit what a
fresh one computes, one after the other and beside each other, and release the card."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from artifacts.errors import StageDied
from flows.machine.fork_verdict import ForkVerdict, remember
from flows.machine.launch import DirectLauncher, StageCall
from stages.process.device import device_holders, device_used_bytes
from stages.process.events import Warned
from stages.process.fork_client import ForkServer
from stages.process.fork_trial import ForkTrialJob
from stages.process.lock import hold_device
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener, StageProcess, wait_for_release


def try_forks(device: str, on_event: Listener) -> ForkVerdict:
    """Try forks on a GPU, and remember the result. Waits for the card. Raises PenstockError."""
    name = device.upper()
    lock = hold_device(
        device,
        lambda held: on_event("forks", Warned(text=f"waiting for {name}, held by {held}")),
    )
    try:
        with TemporaryDirectory(prefix="penstock-forks-", ignore_cleanup_errors=True) as folder:
            verdict = _Trial(device, Path(folder), on_event).verdict()
    finally:
        if lock is not None:
            lock.close()
    remember(device, verdict)
    return verdict


class _Trial:
    """One trial. The caller holds the card's lock, so its processes are started as workers, which
    take none."""

    def __init__(self, device: str, folder: Path, on_event: Listener) -> None:
        self._device, self._folder = device, folder
        self._launcher = DirectLauncher(on_event)

    def verdict(self) -> ForkVerdict:
        before = device_used_bytes(self._device)
        expected = self._start(None).wait()
        try:
            with ForkServer() as forks:
                outcomes = [self._start(forks).wait() for _ in range(2)]
                beside = [self._start(forks, beside=True) for _ in range(2)]
                outcomes += [process.wait() for process in beside]
                why = self._compare(expected, outcomes)
        except StageDied as error:
            return ForkVerdict(holds=False, why=error.message)
        peak = max(outcome.peak_device_bytes for outcome in outcomes)
        warnings = wait_for_release(self._device, before, peak)[1]
        why = why or next(iter(warnings), "")
        return ForkVerdict(holds=not why, why=why)

    def _compare(self, expected: StageOutcome, outcomes: Sequence[StageOutcome]) -> str:
        """Return what is wrong with forked processes; empty if nothing is. Called while the fork
        server is there."""
        servers = {outcome.notes["parent"] for outcome in outcomes}
        if expected.notes["parent"] in servers or len(servers) > 1:
            return "memory is short, or importing a library has started a thread or used CUDA"
        if servers & device_holders(self._device).keys():
            return "the process that forks has a context on the card"
        if {outcome.notes["digest"] for outcome in outcomes} != {expected.notes["digest"]}:
            return "a forked process computes other bits than a fresh one"
        return next((warning for outcome in outcomes for warning in outcome.warnings), "")

    def _start(self, forks: ForkServer | None, *, beside: bool = False) -> StageProcess:
        meeting = self._folder / "meeting"
        meeting.mkdir(exist_ok=True)
        job = ForkTrialJob(
            device=self._device,
            libraries=forks is not None,
            meeting=str(meeting) if beside else "",
        )
        return self._launcher.start(
            StageCall(
                name="try_forks",
                job=job,
                device=self._device,
                log=self._folder / "forks.log",
                fork_server=forks,
                persistent=True,
            )
        )
