"""Estimates the time of a stage's work on a machine with measurements."""

from dataclasses import dataclass, field
from itertools import pairwise

from flows.planning.machine import Machine

PROCESS_SECONDS = 0.3
"""Seconds to start a process without torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One kind of forward pass of a half, and how often it runs."""

    precision: str
    """Precision of its weights: `fp32`, `bf16`, `fp16`, `int8`, `nf4`."""
    flops: float
    """Operations of one time."""
    tokens: int
    """Tokens that go through its layers at once: a prompt's in reading, one a row in a step."""
    calls: int = 0
    """Linear layers that are called."""
    moved_bytes: float = 0.0
    """Weights that come from host memory, or of a CPU from disk, each time."""
    times: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkEstimate:
    """The work of a stage. An empty one takes no time."""

    halves: int = 0
    """Processes that load half a model."""
    processes: int = 0
    """Other processes."""
    passes: tuple[Pass, ...] = field(default=())
    quantized: dict[str, float] = field(default_factory=dict)
    """Precision → parameters that become it while they are loaded."""
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    device_bytes: float = 0.0
    """Bytes copied to a GPU."""
    prepared: float = 0.0
    """Numbers of pixel input that the processor makes."""
    video_pixels: float = 0.0
    """Pixels decoded, whether they are kept or not."""
    picture_pixels: float = 0.0


def seconds(machine: Machine, work_left: WorkEstimate) -> float | None:
    """Return the seconds; None where it needs what could not be measured on this machine."""
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
    """Return the seconds of one time. They are what its multiplications take at so many tokens, and
    no less than its calls do."""
    computing = (
        run.flops / (2 * run.tokens) * a_parameter(machine.passes[run.precision], run.tokens)
    )
    moving = run.moved_bytes / (machine.to_device or machine.disk_read)
    return moving + max(computing, run.calls * machine.call_seconds)


def a_parameter(points: tuple[tuple[int, float], ...], tokens: int) -> float:
    """Return seconds a parameter when so many tokens go through it at once. Between the sizes
    measured they lie on a straight line, beyond them they are as many times longer as there are
    more."""
    for (few, fast), (many, slow) in pairwise(points):
        if tokens <= many:
            return fast + (slow - fast) * max(0, tokens - few) / (many - few)
    return points[-1][1] * tokens / points[-1][0]
