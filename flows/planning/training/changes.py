"""Finds what would make fine-tuning fit that does not, by the same arithmetic."""

from collections.abc import Iterator
from dataclasses import replace

from flows.planning.architecture import Architecture
from flows.planning.training.estimate import train_estimate
from flows.planning.training.terms import Method, TrainEstimate, Training

LEAST_LENGTH = 256
"""Least tokens of a sample that is still worth training on."""
MOST_GPUS = 64
NAMED = 3
LIGHTER: dict[Method, tuple[Method, ...]] = {
    "full": ("lora", "qlora"),
    "lora": ("qlora",),
    "qlora": (),
}


def changes(
    architecture: Architecture, training: Training, limit: int
) -> list[tuple[str, TrainEstimate]]:
    """Return options, gentlest first, with what is then taken; the first of each kind that fits."""
    found: list[tuple[str, TrainEstimate]] = []
    kinds = set()
    for kind, options, other in _tried(training):
        if kind not in kinds:
            takes = train_estimate(architecture, other)
            if takes.peak_bytes <= limit:
                kinds.add(kind)
                found.append((options, takes))
    return found[:NAMED]


def _tried(training: Training) -> Iterator[tuple[str, str, Training]]:
    """Yield kind, options, and what they mean. Layers are computed again in all but the first."""
    again = "" if training.checkpointing else " --checkpointing"
    least = replace(training, checkpointing=True)
    if again:
        yield "again", again.strip(), least
    if training.batch > 1:
        yield "batch", f"--batch-size 1{again}", replace(least, batch=1)
    gpus = 2
    while gpus <= MOST_GPUS and training.method != "qlora":
        if gpus > training.gpus or training.zero < 3:
            more = replace(least, zero=3, gpus=max(gpus, training.gpus))
            yield "gpus", f"--zero 3 --gpus {more.gpus}{again}", more
        gpus *= 2
    for method in LIGHTER[training.method]:
        other = replace(least, method=method, optimizer="mixed")
        yield "method", f"--train {method}{again}", other
    length = training.length // 2
    while length >= LEAST_LENGTH:
        yield "length", f"--max-length {length}{again}", replace(least, length=length)
        length //= 2
