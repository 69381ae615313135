"""Stores the measurements of `penstock doctor --measure` for later plans. Imports no model
library.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.user_folders import user_cache
from flows.checkpoint.precision import no_bfloat16
from flows.machine.cpu import cpu_has_bfloat16
from flows.machine.launch import Launcher, StageCall, run_with_restarts
from flows.machine.versions import machine_identity, now
from stages.process.cgroup import cores

FORMAT = 2
"""Number that rises when what is measured changes."""
SECONDS = 9.0
"""Seconds that measuring may take beside the start of its process; what is left then is left
out."""
BUSY = 0.8
"""Processes a core that were waiting to run, above which others were at work."""
MODEL_SHARE = 1.7
"""Times that a stage with half a model takes what the libraries alone take: it imports its classes
and loads processor and tokenizer besides, with two models tried."""
ADVICE = "`penstock doctor --measure` takes less than 15 s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The measurements of one machine. Rates are per second."""

    device: str
    """Uuid of the GPU; `cpu`."""
    cpu: str
    """Model of the CPU."""
    cores: int
    """Cores that the process could use."""
    torch: str
    """Version of torch."""
    measured: str
    """Time of measuring, in ISO 8601."""
    load: float
    """Processes a core that were waiting to run just before: above 1 the figures are too low."""
    python_seconds: float
    """Start of a process that computes, with torch."""
    library_seconds: float = 0.0
    """Seconds of what such a stage imports besides; where there was no time to see, as much
    again."""
    passes: Mapping[str, tuple[tuple[int, float], ...]]
    """Precision → (tokens that go through a layer at once, seconds a parameter)."""
    call_seconds: float
    """Seconds of a linear layer with what stands around it, when there is nothing to compute."""
    prepare: float
    """Numbers of pixel input made of frames."""
    quantize: Mapping[str, float] = field(default_factory=dict)
    """Precision → parameters made of weights while they are loaded."""
    disk_write: float
    """Bytes, until they are safe."""
    disk_read: float
    """Bytes that the kernel does not remember."""
    video_pixels: float = 0.0
    """Pixels decoded of H.264 by all cores; 0: not measured, as below."""
    picture_pixels: float = 0.0
    """Pixels decoded of JPEG by one core."""
    to_device: float = 0.0
    """Bytes copied from pinned memory; 0 for a CPU."""
    from_device: float = 0.0
    context_seconds: float = 0.0
    context_bytes: int = 0
    """Bytes that the driver of a GPU takes for a process."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Thing that could not be measured → why."""

    @property
    def start_seconds(self) -> float:
        """Return the seconds that a stage takes to start before it reads the weights. It is a stage
        that runs half a model."""
        libraries = self.library_seconds or self.python_seconds
        return self.python_seconds + MODEL_SHARE * libraries + self.context_seconds

    def flops(self, precision: str) -> float:
        """Return the rate achieved where many tokens go through a layer at once; 0: not
        measured."""
        found = self.passes.get(precision)
        return 2 * found[-1][0] / found[-1][1] if found else 0.0

    def parameters(self, precision: str) -> float:
        """Return the parameters that a step of one chunk goes through; 0: not measured."""
        found = self.passes.get(precision)
        return 1 / found[0][1] if found else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineLookup:
    """A measurement, or the reason why there is none."""

    machine: Machine | None
    why: str = ""
    """One sentence on what stands against it; also where there is one, of a busy machine."""


def find_machine(device: str) -> MachineLookup:
    """Return the measurement of this machine, if it still holds; `device` is `cpu` or `cuda:N`."""
    here = machine_identity(device)
    kept = _kept(_path(here))
    if kept is None:
        others = [m for path in sorted(_folder().glob("*.json")) if (m := _kept(path))]
        if others:
            which = f"{others[-1].cpu}, {others[-1].device}"
            return MachineLookup(machine=None, why=f"only another machine was measured ({which})")
        return MachineLookup(machine=None, why="this machine was not measured")
    if kept.torch != here["torch"]:
        return MachineLookup(
            machine=None,
            why=f"it was measured with torch {kept.torch}, and this is torch {here['torch']}",
        )
    if kept.cores != here["cores"]:
        return MachineLookup(
            machine=None,
            why=f"it was measured with {kept.cores} cores, and this process has {here['cores']}",
        )
    busy = "others were at work when it was measured" if kept.load > BUSY else ""
    return MachineLookup(machine=kept, why=busy)


def measure(device: str, store: Path, launcher: Launcher) -> Machine:
    """Measure this machine in a process of its own, and keep it. Raises PenstockError."""
    load = os.getloadavg()[0] / cores()
    call = StageCall(
        name="measure",
        arguments={
            "device": device,
            "folder": str(store),
            "seconds": SECONDS,
            "companion": _companion(device),
        },
        device=device,
        log=store / "logs" / "measure.log",
    )
    found: dict[str, Any] = run_with_restarts(launcher, call).notes["machine"]
    value = {**machine_identity(device), **found, "load": round(load, 2), "measured": now()}
    machine = _machine(value)
    write_json(_path(value), {"format": FORMAT, **value})
    return machine


def _companion(device: str) -> str:
    """Return the precision that quantized weights compute in. It is 16 bit, as most checkpoints
    are, where that is no detour."""
    if device == "cpu":
        return "bf16" if cpu_has_bfloat16() else "fp32"
    return "fp16" if no_bfloat16(device) else "bf16"


def _folder() -> Path:
    return user_cache() / "machines"


def _path(here: Mapping[str, Any]) -> Path:
    return _folder() / f"{digest_of([here['device'], here['cpu']])[:16]}.json"


def _kept(path: Path) -> Machine | None:
    value = read_kept(path, FORMAT)
    try:
        return None if value is None else _machine(value)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # changed by somebody


def _machine(value: Mapping[str, Any]) -> Machine:
    passes = {
        name: tuple((int(tokens), float(seconds)) for tokens, seconds in points)
        for name, points in value["passes"].items()
    }
    return Machine(**{**value, "passes": passes})
