"""Estimates the time of a stage's work on a machine with measurements."""

from dataclasses import dataclass, field
from itertools import pairwise

from flows.planning.machine import Machine

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
