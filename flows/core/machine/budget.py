"""Determines the memory budget of a run, and tests whether the GPU can compute.

The budget is `--memory`, or the free memory.

The test runs in a separate process, before any work begins. The store keeps its verdict. A driver
may list a GPU that torch cannot use: the GPU is too old, or this build of torch has no kernels for
it. Without the test, the first stage that computes would fail, after frames were decoded and
weights were downloaded.
"""

import builtins
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from artifacts.disk.locks import try_hold
from artifacts.errors import CannotFit, EnvironmentFault, StageDied
from artifacts.records.store import Store
from flows.core.console.lines import gib
from flows.core.machine.launch import (
    DirectLauncher,
    Launcher,
    StageCall,
    StageHandle,
    run_with_restarts,
)
from flows.core.options.commands import RunOptions
from stages.process.checks import DEVICE, Verdicts
from stages.process.child_environment import ALLOCATOR, ALLOCATOR_OLD, NOT_EXPANDABLE
from stages.process.device import (
    USE_CPU_HINT,
    device_capability,
    device_free_bytes,
    device_holders,
    device_model,
    device_uuid,
    driver_version,
    lock_path,
)
from stages.process.device_limit import CONTEXT_BYTES, ProbeJob
from stages.process.exit_diagnosis import device_advice
from stages.process.host_memory import host_free_bytes, host_total_bytes
from stages.process.memory import anonymous_bytes

PROBE_FAILED = "the probe stage failed: "
"""Start of the error of a failed test."""
NOT_OF_GPU = (OSError, ImportError, AttributeError, TypeError, NameError)
"""Errors that no GPU causes: torch raises RuntimeError for those of CUDA."""
LIKELY_CONTEXT_BYTES = range(200 << 20, 1536 << 20)
"""What a driver takes for a process. Outside of it, another program freed or took memory during the
test."""


def check_device(device: str, store: Store, *, force: bool = False) -> None:
    """Raise EnvironmentFault if a GPU cannot compute. The test runs only without a verdict, or with
    `force`."""
    if device == "cpu":
        return
    verdicts, about = Verdicts(store, device), _about(device)
    if force:
        verdicts.drop(DEVICE, about)
    if (known := verdicts.outcome(DEVICE, about)) is not None:
        _apply(known)
    elif not is_in_use(device):
        _apply(probe := try_device(device))
        if probe:
            text = f"{device_model(device) or device} computes"
            with contextlib.suppress(EnvironmentFault):  # without a verdict, the next run tests it
                verdicts.keep(DEVICE, about, probe, text)


def context_bytes(device: str, store: Store) -> int:
    """Return the bytes that a GPU's driver takes for a process: as the test found, else an
    assumption."""
    if device == "cpu":
        return CONTEXT_BYTES
    probe = Verdicts(store, device).outcome(DEVICE, _about(device)) or {}
    probed = int(probe.get("context_bytes", 0))
    return probed if probed in LIKELY_CONTEXT_BYTES else CONTEXT_BYTES


def device_memory(device: str) -> tuple[int, int]:
    """Return (free, total) bytes of a GPU, from the driver or, if it has none, from torch. Raises
    EnvironmentFault for a GPU that cannot compute."""
    free, total = device_free_bytes(device)
    if total or device_uuid(device) == device:  # known, or no such GPU
        return free, total
    probe = try_device(device)
    return int(probe.get("free_bytes", 0)), int(probe.get("total_bytes", 0))


def try_device(device: str) -> dict[str, Any]:
    """Run a small computation on a GPU, and return what torch reports about it. Return an empty
    dictionary if even that runs out of memory. Raises EnvironmentFault if it fails."""
    try:
        return {**_run_probe(device), "expandable": True}
    except StageDied as error:
        _refuse_other_causes(error)
        if device_advice(error.message) and "driver error" not in error.message:
            raise _unusable(device, error) from error
        first = error
    except CannotFit:
        return {}
    if {ALLOCATOR, ALLOCATOR_OLD} & os.environ.keys():
        raise _unusable(device, first) from first
    # Some drivers do not support the allocator's expandable segments, which are on by default.
    os.environ[ALLOCATOR] = NOT_EXPANDABLE
    try:
        return {**_run_probe(device), "expandable": False}
    except StageDied as error:
        del os.environ[ALLOCATOR]
        raise _unusable(device, error) from first
    except CannotFit:
        return {}


def _refuse_other_causes(error: StageDied) -> None:
    """Raise EnvironmentFault if a test of the GPU failed by something else than the GPU: a file, a
    pipe or an import."""
    message = error.message.removeprefix(PROBE_FAILED)
    kind = getattr(builtins, message.partition(":")[0], None)
    if isinstance(kind, type) and issubclass(kind, NOT_OF_GPU):
        raise EnvironmentFault(
            f"the GPU could not be tested: {message.rstrip('.')}",
            hint="Run `penstock doctor`, which names missing packages; if none is, check the disk "
            f"and install Penstock again; {USE_CPU_HINT}",
        ) from error


def _run_probe(device: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="penstock-probe-") as folder:
        call = StageCall(
            name="probe", job=ProbeJob(device=device), device=device, log=Path(folder, "probe.log")
        )
        probe: dict[str, Any] = run_with_restarts(DirectLauncher(lambda *_: None), call).notes[
            "gpu"
        ]
        return probe


def _unusable(device: str, error: StageDied) -> EnvironmentFault:
    major, minor = device_capability(device)
    which = f"{device_model(device) or device}, compute capability {major}.{minor}"
    message = error.message.removeprefix(PROBE_FAILED).rstrip(".")
    return EnvironmentFault(
        f"the GPU ({which}, driver {driver_version(device)}) cannot be used: {message}",
        hint=device_advice(message) or f"See `nvidia-smi`; {USE_CPU_HINT}",
    )


def _apply(probe: Mapping[str, Any]) -> None:
    """Make the stages started from now on avoid the feature that failed."""
    if not probe.get("expandable", True):
        os.environ.setdefault(ALLOCATOR, NOT_EXPANDABLE)


def is_in_use(device: str) -> bool:
    """Return whether a process computes on the GPU now, which shows that it works."""
    held = try_hold(lock_path(device))
    if held is None:
        return True
    held.close()
    return False


def _about(device: str) -> dict[str, str]:
    return {"gpu": device_uuid(device), "kernel": os.uname().release}


GPU_SHARE = 0.95
"""Share of a GPU's free memory to use. The rest is for the driver and other processes."""
HOST_SHARE = 0.8
"""Share of the host's free memory to use. The rest is for the system and the parent process."""
MAX_NAMED = 3
"""Number of other processes that a warning names."""
PROC = Path("/proc")
MIN_NAMED_BYTES = 64 << 20
"""Smallest memory, in bytes, at which another process of the host is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The memory that the stages of a run may use, in bytes."""

    device: str
    """`cpu` or `cuda:N`."""
    bytes: int
    """Bytes of the device for one stage, above its imports; on a GPU, including the driver's
    context."""
    given: bool
    """Whether `--memory` set it."""
    free_bytes: int
    """Free bytes of the device when measured."""
    total_bytes: int
    host_bytes: int
    """Free bytes of the host: of the machine or of the cgroup, whichever is less."""
    others: dict[str, int] = field(default_factory=dict)
    """Other processes that hold memory of the device, largest first: `process 4711 (python)` →
    bytes. For the host, they are searched only if memory is short."""

    def of_stage(self, device: str) -> int:
        """Return the memory limit of a stage's process on a device, in bytes. Return 0, no limit,
        for CPU stages of a GPU run."""
        return self.bytes if device == self.device else 0

    @property
    def warning(self) -> str:
        """Return a warning if the budget is larger than the free memory, else an empty string."""
        if self.bytes <= self.free_bytes or not self.given:
            return ""
        what = "the host" if self.device == "cpu" else f"the GPU {self.device}"
        return (
            f"--memory allows {gib(self.bytes)}, but only {gib(self.free_bytes)} of {what} are free"
            f"{held_by(self.others)}; a stage that needs more may run out of memory"
        )


def budget_for(config: RunOptions, device: str) -> Budget:
    """Measure a device, and return the memory budget of its stages."""
    host = host_free_bytes()
    on_gpu = device.startswith("cuda")
    free, total = device_memory(device) if on_gpu else (host, host_total_bytes())
    share = GPU_SHARE if on_gpu else HOST_SHARE
    budget = Budget(
        device=device,
        bytes=config.memory if config.memory is not None else int(free * share),
        given=config.memory is not None,
        free_bytes=free,
        total_bytes=total,
        host_bytes=host,
        others=name_holders(device_holders(device)) if on_gpu else {},
    )
    if budget.warning and not on_gpu:
        return replace(budget, others=name_holders(host_holders()))
    return budget


def budget_on(config: RunOptions, devices: Sequence[str]) -> Budget:
    """Return the memory budget of stages that run on each of these devices, which are equal: the
    largest. What others use of one of them now may be free when its process starts."""
    budgets = [budget_for(config, device) for device in devices]
    return replace(max(budgets, key=lambda budget: budget.bytes), device=devices[0])


class WithinBudget:
    """A launcher that measures free memory again before it starts a stage. It reports memory that
    other processes have taken since the run began, and does not wait for it."""

    def __init__(
        self,
        launcher: Launcher,
        budget: Budget,
        config: RunOptions,
        warn: Callable[[str], None],
        measure: Callable[[RunOptions, str], Budget] = budget_for,
    ) -> None:
        self._launcher = launcher
        self._budget = budget
        self._config = config
        self._warn = warn
        self._measure = measure
        self._last_warning = budget.warning

    def start(self, call: StageCall) -> StageHandle:
        """Start a stage within the memory that is free now."""
        # Beside others it has a share of the device, so their memory is no surprise.
        if call.budget and call.device == self._budget.device and not call.beside:
            call = replace(call, budget=max(1, self._current().bytes))  # 0 is no limit
        return self._launcher.start(call)

    def _current(self) -> Budget:
        before, now = self._budget, self._measure(self._config, self._budget.device)
        if before.given:
            if now.warning and not self._last_warning:
                self._warn(now.warning)
            self._last_warning = now.warning
            return before
        own = own_bytes() if now.device == "cpu" and now.free_bytes < before.bytes else 0
        if now.free_bytes + own >= before.bytes:
            self._last_warning = ""
            return before
        if not self._last_warning:
            others = now.others or name_holders(host_holders())
            self._last_warning = (
                f"{gib(now.free_bytes)} of memory are free, down from {gib(before.free_bytes)} at "
                f"the start of the run{held_by(others)}; continuing with less"
            )
            self._warn(self._last_warning)
        return now


def held_by(others: Mapping[str, int]) -> str:
    """Return a clause that names other processes and their memory, to append to a message."""
    holders = ", ".join(f"{name} has {gib(held)}" for name, held in [*others.items()][:MAX_NAMED])
    return f": {holders}" if holders else ""


def own_bytes() -> int:
    """Return the bytes of anonymous memory of this process's children."""
    own_pid = os.getpid()
    started = (p.name for p in PROC.iterdir() if p.name.isdigit())
    return sum(anonymous_bytes(p) for p in started if parent_of(int(p)) == own_pid)


def name_holders(holders: dict[int, int]) -> dict[str, int]:
    """Return `process 4711 (python)` → bytes, largest first. This process and its children are left
    out."""
    own_pid = os.getpid()
    largest = sorted(holders.items(), key=lambda item: -item[1])
    others = ((p, b) for p, b in largest if p != own_pid and parent_of(p) != own_pid)
    return {f"process {p} ({process_name(p)})": b for p, b in others}


def parent_of(pid: int) -> int:
    """Return the process id of a process's parent; 0 if the process is gone."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def process_name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone, or of another user"


def host_holders() -> dict[int, int]:
    """Return process id → bytes of anonymous memory, for processes that have much of it."""
    anonymous = {int(p.name): anonymous_bytes(p.name) for p in PROC.iterdir() if p.name.isdigit()}
    return {pid: held for pid, held in anonymous.items() if held >= MIN_NAMED_BYTES}
