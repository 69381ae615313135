"""Implements `penstock plan --train`: estimates the resources for fine-tuning a model."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

from artifacts.disk.files import encoded
from artifacts.errors import CannotFit, UsageError
from artifacts.option_texts import parse_size
from artifacts.wording import counted
from flows.commands.plan.training.architecture import Architecture, read_architecture
from flows.commands.plan.training.estimate import RANK, changes, train_estimate
from flows.commands.plan.training.terms import OPTIMIZERS, Method, TrainEstimate, Training
from flows.core.checkpoint.models import find_checkpoint
from flows.core.console.display import Display
from flows.core.console.lines import gib, print_lines
from flows.core.machine.gpus import gpu_count
from flows.core.options.commands import CaptionConfig

MOMENTS = {
    "backward": "reached at the start of the backward pass",
    "step": "reached in the optimizer step",
    "vision": "reached while the frozen vision encoder runs",
}


def train_plan(given: argparse.Namespace) -> int:
    """Print the memory per GPU for fine-tuning. Raises PenstockError."""
    training = training_of(given)
    config = CaptionConfig(sources=(), model=given.model, revision=given.revision)
    checkpoint = find_checkpoint(config, Display(quiet=given.json).print_line)
    architecture = read_architecture(checkpoint)
    estimate = train_estimate(architecture, training)
    limit = parse_size(given.memory, "--memory") if given.memory else estimate.peak_bytes
    fits = estimate.peak_bytes <= limit
    code = 0 if fits else CannotFit.exit_code
    if given.json:
        fields = train_json(checkpoint.name, training, estimate)
        print(
            encoded({**fields, "fits": fits if given.memory else None}, indent=1, ensure_ascii=True)
        )
        return code
    lines = train_lines(checkpoint.name, architecture, training, estimate)
    if given.memory:
        lines = [*_verdict(architecture, training, limit, fits=fits), *lines]
    if given.explain:
        lines = [*lines, *explain_lines(estimate)]
    print_lines(*lines)
    return code


def _verdict(
    architecture: Architecture, training: Training, limit: int, *, fits: bool
) -> Iterator[str]:
    if fits:
        yield f"fits into {gib(limit)}"
        return
    fitting = [
        f"{options} (then {gib(takes.peak_bytes)})"
        for options, takes in changes(architecture, training, limit)
    ]
    yield f"does not fit into {gib(limit)}"
    yield f"instead     {', or '.join(fitting) if fitting else 'choose a smaller model'}"


def training_of(given: argparse.Namespace) -> Training:
    """Return the training settings from parsed options. Raises UsageError."""
    known: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("train", given.train, get_args(Method)),
        ("zero", given.zero, (0, 1, 2, 3)),
        ("optimizer", given.optimizer, tuple(OPTIMIZERS)),
    )
    for option, value, choices in known:
        if value not in choices:
            raise UsageError(
                f"unknown --{option} {value}", hint=f"Choose from {', '.join(map(str, choices))}"
            )
    if {given.precision, given.vision_precision, given.language_precision} - {"native", None}:
        raise UsageError(
            "--precision and --train exclude each other: the method sets the precision",
            hint="Leave it out; --train qlora keeps the frozen weights in nf4",
        )
    for option in ("max_length", "frames", "batch_size"):
        if (count := getattr(given, option)) is not None and count <= 0:
            raise UsageError(
                f"invalid --{option.replace('_', '-')} {count}", hint="Give a number above 0"
            )
    if given.train != "full" and given.optimizer != "mixed":
        raise UsageError(
            f"--optimizer {given.optimizer} does not apply to --train {given.train}, which trains "
            "adapters in 32 bit",
            hint="Leave it out, or give --train full",
        )
    return Training(
        method=given.train,
        checkpointing=given.checkpointing,
        zero=given.zero,
        gpus=gpu_count(given.gpus),
        batch=given.batch_size or 1,
        length=given.max_length,
        frames=given.frames or 1,
        optimizer=given.optimizer,
    )


def train_lines(
    name: str, architecture: Architecture, training: Training, estimate: TrainEstimate
) -> list[str]:
    """Return the estimate as text: the sum first, then its terms."""
    many = f"each of {training.gpus} GPUs" if training.gpus > 1 else "1 GPU"
    other = Training(**{**asdict(training), "checkpointing": not training.checkpointing})
    without = train_estimate(architecture, other).peak_bytes
    recomputed = "with" if other.checkpointing else "without"
    how = f"LoRA of rank {RANK} on each linear layer of the language half"
    if training.method == "full":
        how = "all of the language half; the vision encoder and the connector are frozen"
    lines = [
        f"fine-tuning {name}: {gib(estimate.peak_bytes)} of {many}, {MOMENTS[estimate.moment]}",
        f"  {recomputed} --checkpointing {gib(without)}",
        f"trained     {estimate.trained / 1e6:,.1f} M of "
        f"{(estimate.trained + estimate.frozen) / 1e6:,.1f} M numbers: {how}",
        f"a step      {training.batch} x {training.length:,} tokens per GPU, "
        f"{counted(training.frames, 'image')} each; gradient accumulation takes no more memory",
        "memory, GiB",
    ]
    for term in estimate.terms:
        is_in_sum = term.moment in ("always", estimate.moment)
        when = "" if is_in_sum else " (not in the sum: at another time)"
        lines.append(f"  {term.part:12s}{term.bytes / (1 << 30):>8.2f}  {term.why}{when}")
    lines.append(f"  {'peak':12s}{estimate.peak_bytes / (1 << 30):>8.2f}")
    lines += [f"note        {note}" for note in estimate.notes]
    return lines


def explain_lines(estimate: TrainEstimate) -> Iterator[str]:
    yield "sources"
    for source in sorted({term.source for term in estimate.terms if term.source}):
        parts = sorted({term.part for term in estimate.terms if term.source == source})
        yield f"  {', '.join(parts)}: {source}"


def train_json(name: str, training: Training, estimate: TrainEstimate) -> dict[str, Any]:
    return {
        "model": name,
        "training": asdict(training),
        "peak_bytes": estimate.peak_bytes,
        "moment": estimate.moment,
        "trained_parameters": estimate.trained,
        "frozen_parameters": estimate.frozen,
        "terms": [asdict(term) for term in estimate.terms],
        "notes": list(estimate.notes),
    }
