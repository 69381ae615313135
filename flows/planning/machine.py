"""Stores the measurements of `penstock doctor --measure`, and estimates from them a stage's time.

Later plans use the measurements of the machine that they run on. The module imports no model
library.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from artifacts.files import read_kept, write_json
from artifacts.json_shapes import read_record
from artifacts.keys import digest_of
from artifacts.paths import machine_cache
from flows.checkpoint.precision import no_bfloat16
from flows.machine.launch import Launcher, StageCall, run_with_restarts
from flows.machine.versions import cpu_has_bfloat16, machine_identity, now
from stages.memory.oom_retry import MeasureJob
from stages.process.memory import cores

FORMAT = 2
"""Format version, raised when the measurements change."""
SECONDS = 15.0
"""Time limit of the measurement without the start of its process; later measurements are skipped.
"""
BUSY = 0.8
"""Load per core above which the machine counts as busy with other work."""
MODEL_SHARE = 1.7
"""Start time of a stage that loads half a model, relative to importing the libraries. The stage
also imports model classes and loads processor and tokenizer (measured with two models)."""
ADVICE = "`penstock doctor --measure` takes less than 30 s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The measurements of one machine. Rates are per second."""

    device: str
    """UUID of the GPU, or `cpu`."""
    cpu: str
    """Model of the CPU."""
    cores: int
    """Number of cores that the process may use."""
    torch: str
    """Version of torch."""
    measured: str
    """Time of the measurement, in ISO 8601."""
    load: float
    """Load per core just before the measurement; above 1, the figures are too low."""
    python_seconds: float
    """Time to start a process with torch."""
    library_seconds: float = 0.0
    """Time of the further imports of a stage with a model; 0 (not measured) counts as
    `python_seconds`."""
    passes: Mapping[str, tuple[tuple[int, float], ...]]
    """Precision → (tokens that pass a layer at once, seconds per parameter)."""
    call_seconds: float
    """Overhead of calling a linear layer with next to no input."""
    prepare: float
    """Pixel values that the processor prepares."""
    quantize: Mapping[str, float] = field(default_factory=dict)
    """Precision → parameters quantized during loading."""
    disk_write: float
    """Bytes written and synced."""
    disk_read: float
    """Bytes read that are not in the page cache."""
    video_pixels: float = 0.0
    """H.264 pixels decoded by all cores; 0: not measured, as below."""
    picture_pixels: float = 0.0
    """JPEG pixels decoded by one core."""
    to_device: float = 0.0
    """Bytes copied from pinned memory; 0 for a CPU."""
    from_device: float = 0.0
    context_seconds: float = 0.0
    context_bytes: int = 0
    """Bytes that the GPU's driver takes per process."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Quantity that could not be measured → reason."""

    @property
    def start_seconds(self) -> float:
        """Return the start time of a stage with half a model, without reading the weights."""
        libraries = self.library_seconds or self.python_seconds
        return self.python_seconds + MODEL_SHARE * libraries + self.context_seconds

    def flops(self, precision: str) -> float:
        """Return the operations per second with many tokens per layer; 0: not measured."""
        found = self.passes.get(precision)
        return 2 * found[-1][0] / found[-1][1] if found else 0.0

    def parameters(self, precision: str) -> float:
        """Return the parameters per second of a decoding step of one chunk; 0: not measured."""
        found = self.passes.get(precision)
        return 1 / found[0][1] if found else 0.0


def find_machine(device: str) -> tuple[Machine | None, str]:
    """Return the measurement of this machine, with a doubt about it, such as a busy machine; None
    and the reason if there is none that is valid. `device`: `cpu` or `cuda:N`."""
    identity = machine_identity(device)
    machine = _read(_path(identity))
    if machine is None:
        others: list[Machine] = []
        with contextlib.suppress(OSError):  # a home that cannot be entered
            others += [m for path in sorted(_folder().glob("*.json")) if (m := _read(path))]
        if others:
            which = f"{others[-1].cpu}, {others[-1].device}"
            return None, f"only another machine was measured ({which})"
        return None, "this machine was not measured"
    if machine.torch != identity["torch"]:
        return None, f"it was measured with torch {machine.torch}, not torch {identity['torch']}"
    if machine.cores != identity["cores"]:
        return None, f"it was measured with {machine.cores} cores, not {identity['cores']} cores"
    return machine, "the machine was busy when it was measured" if machine.load > BUSY else ""


def measure(device: str, store: Path, launcher: Launcher) -> Machine:
    """Measure this machine in a separate process, and store the result. Raises PenstockError."""
    load = os.getloadavg()[0] / cores()
    call = StageCall(
        name="measure",
        job=MeasureJob(
            device=device, folder=str(store), seconds=SECONDS, companion=_companion(device)
        ),
        device=device,
        log=store / "logs" / "measure.log",
    )
    found: dict[str, Any] = run_with_restarts(launcher, call).notes["machine"]
    value = {**machine_identity(device), **found, "load": round(load, 2), "measured": now()}
    machine = read_record(Machine, value)
    write_json(_path(value), {"format": FORMAT, **value})
    return machine


def _companion(device: str) -> str:
    """Return the computing precision of quantized weights: 16 bit where the device supports it."""
    if device == "cpu":
        return "bf16" if cpu_has_bfloat16() else "fp32"
    return "fp16" if no_bfloat16(device) else "bf16"


def _folder() -> Path:
    return machine_cache() / "machines"


def _path(identity: Mapping[str, Any]) -> Path:
    return _folder() / f"{digest_of([identity['device'], identity['cpu']])[:16]}.json"


def _read(path: Path) -> Machine | None:
    value = read_kept(path, FORMAT)
    try:
        return None if value is None else read_record(Machine, value)
    except TypeError:
        return None  # edited by a user


PROCESS_SECONDS = 0.3
"""Seconds to start a process without torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One kind of forward pass of a half, with its number of runs."""

    precision: str
    """Precision of its weights: `fp32`, `bf16`, `fp16`, `int8`, `nf4`."""
    flops: float
    """Operations per run."""
    tokens: int
    """Tokens that pass the layers at once: the prompt in prefill, one per row in a decoding step.
    """
    calls: int = 0
    """Linear layers called per run."""
    moved_bytes: float = 0.0
    """Bytes of weights copied per run from host memory, or from disk on a CPU."""
    times: float = 1.0
    """Number of runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkEstimate:
    """The work of a stage. An empty one takes no time."""

    halves: int = 0
    """Number of processes that load half a model."""
    processes: int = 0
    """Number of other processes."""
    passes: tuple[Pass, ...] = field(default=())
    quantized: dict[str, float] = field(default_factory=dict)
    """Precision → parameters quantized to it during loading."""
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    device_bytes: float = 0.0
    """Bytes copied to a GPU."""
    prepared: float = 0.0
    """Pixel values that the processor prepares."""
    video_pixels: float = 0.0
    """Pixels decoded, used or not."""
    picture_pixels: float = 0.0


def seconds(machine: Machine, work_left: WorkEstimate) -> float | None:
    """Return the seconds; None if this machine lacks a needed measurement."""
    unknown = (
        any(p.precision not in machine.passes for p in work_left.passes)
        or any(precision not in machine.quantize for precision in work_left.quantized)
        or (work_left.video_pixels and not machine.video_pixels)
        or (work_left.picture_pixels and not machine.picture_pixels)
    )
    if unknown:
        return None
    return (
        work_left.halves * machine.start_seconds
        + work_left.processes * PROCESS_SECONDS
        + sum(pass_seconds(machine, each) * each.times for each in work_left.passes)
        + sum(count / machine.quantize[p] for p, count in work_left.quantized.items())
        + work_left.read_bytes / machine.disk_read
        + work_left.written_bytes / machine.disk_write
        + (work_left.device_bytes / machine.to_device if machine.to_device else 0.0)
        + work_left.prepared / machine.prepare
        + (work_left.video_pixels and work_left.video_pixels / machine.video_pixels)
        + (
            work_left.picture_pixels
            and work_left.picture_pixels / machine.picture_pixels / machine.cores
        )
    )


def pass_seconds(machine: Machine, run: Pass) -> float:
    """Return the seconds of one run: the longer of computing and call overhead, and copying, which
    a GPU does meanwhile."""
    computing = (
        run.flops
        / (2 * run.tokens)
        * seconds_per_parameter(machine.passes[run.precision], run.tokens)
    )
    here = max(computing, run.calls * machine.call_seconds)
    if machine.to_device:
        return max(here, run.moved_bytes / machine.to_device)
    return here + run.moved_bytes / machine.disk_read


def seconds_per_parameter(points: tuple[tuple[int, float], ...], tokens: int) -> float:
    """Return the seconds per parameter when this many tokens pass at once. Interpolates linearly
    between measured sizes; beyond them, time is proportional to tokens."""
    for (few, fast), (many, slow) in pairwise(points):
        if tokens <= many:
            return fast + (slow - fast) * max(0, tokens - few) / (many - few)
    return points[-1][1] * tokens / points[-1][0]
