"""How much memory a run may take: what `--memory` says, or what the machine has free; looks at
machines, never at models."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.config import CaptionConfig
from flows.display import size
from stages.process.cgroup import host_free_bytes, host_total_bytes
from stages.process.memory import anonymous_bytes, device_free_bytes, device_holders

GPU_SHARE = 0.95
"""Of what a GPU has free: the rest is the driver's, and what others take meanwhile."""
HOST_SHARE = 0.8
"""Of what the host has free: the rest is the system's and the parent's."""
NAMED = 3
"""Other processes that a warning names."""
WORTH_NAMING = 64 << 20
"""Bytes from which on another process of the host is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What the stages of a run may take, in bytes."""

    device: str
    """`cpu` or `cuda:N`."""
    bytes: int
    """Of the device, a stage, above what its imports take; of a GPU with the driver's context."""
    given: bool
    """Whether `--memory` said so."""
    free_bytes: int
    """Of the device, when it was looked at."""
    total_bytes: int
    host_bytes: int
    """Of the host: free memory of the machine or of the cgroup, whichever is less."""
    others: dict[str, int] = field(default_factory=dict)
    """Other processes that hold memory of the device, the largest first: `process 4711 (python)` →
    bytes. Of the host, looked for only when something is wrong."""

    def of_stage(self, device: str) -> int:
        """What a stage's process on a device is kept to; 0: the stages of a GPU's run that compute
        on the host are not."""
        return self.bytes if device == self.device else 0

    @property
    def warning(self) -> str:
        """What a person should know of a budget that is larger than what is free; empty when it is
        not."""
        if self.bytes <= self.free_bytes or not self.given:
            return ""
        what = "the host" if self.device == "cpu" else f"the GPU {self.device}"
        held = ", ".join(f"{size(b)} by {who}" for who, b in list(self.others.items())[:NAMED])
        return (
            f"--memory allows {size(self.bytes)} and {what} has {size(self.free_bytes)} free"
            f"{f'; held: {held}' if held else ''}. What needs more than that may run out of memory"
        )


def budget_for(config: CaptionConfig, device: str) -> Budget:
    """What a stage may take of a device that is looked at now."""
    host = host_free_bytes()
    on_gpu = device.startswith("cuda")
    free, total = device_free_bytes(device) if on_gpu else (host, host_total_bytes())
    share = GPU_SHARE if on_gpu else HOST_SHARE
    given = config.memory is not None
    budget = Budget(
        device=device,
        bytes=config.memory if config.memory is not None else int(free * share),
        given=given,
        free_bytes=free,
        total_bytes=total,
        host_bytes=host,
        others=named(device_holders(device)) if on_gpu else {},
    )
    if budget.warning and not on_gpu:
        return replace(budget, others=named(host_holders()))
    return budget


def before_stage(budget: Budget, config: CaptionConfig, tell: Callable[[str], None]) -> Budget:
    """The budget of a run, looked at again before a stage of it starts: what others have taken
    since is told, and waited for not at all."""
    now = budget_for(config, budget.device)
    if not budget.given and now.free_bytes < budget.bytes:
        others = now.others or named(host_holders())
        held = ", ".join(f"{who} {size(b)}" for who, b in list(others.items())[:NAMED])
        tell(
            f"{size(now.free_bytes)} of memory are free, and {size(budget.bytes)} were when the "
            f"run began{f'; others hold: {held}' if held else ''}"
        )
    elif now.warning and now.warning != budget.warning:
        tell(now.warning)
    return now


def named(holders: dict[int, int], proc: Path = Path("/proc")) -> dict[str, int]:
    """`process 4711 (python)` → bytes, the largest first, of all but this process and what it
    started."""
    ours = os.getpid()
    largest = sorted(holders.items(), key=lambda item: -item[1])
    others = ((p, b) for p, b in largest if p != ours and parent_of(p, proc) != ours)
    return {f"process {p} ({process_name(p, proc)})": b for p, b in others}


def parent_of(pid: int, proc: Path = Path("/proc")) -> int:
    """Process id of who started a process; 0 when it is gone."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def process_name(pid: int, proc: Path = Path("/proc")) -> str:
    """What the kernel calls a process."""
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone, or of another user"


def host_holders(proc: Path = Path("/proc")) -> dict[int, int]:
    """Process id → anonymous memory, of those that have much of it."""
    found = {int(p.name): anonymous_bytes(p.name) for p in proc.iterdir() if p.name.isdigit()}
    return {pid: held for pid, held in found.items() if held >= WORTH_NAMING}
