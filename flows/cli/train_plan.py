"""Implements `penstock plan --train`: estimates the resources for fine-tuning a model.

Implements `penstock plan` and `--dry-run`: whether a run fits, and what uses its memory.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, get_args

from artifacts.errors import CannotFit, UsageError
from artifacts.plurals import counted
from flows.checkpoint.models import find_checkpoint
from flows.cli.command_options import refuse_without_train
from flows.cli.options import config_of
from flows.console.display import READING, Display
from flows.console.lines import print_lines
from flows.console.units import gib, parse_size
from flows.options.commands import CaptionConfig, RunOptions
from flows.pipelines import CAPTION, PURPOSES, Pipeline
from flows.planning.architecture import Architecture, read_architecture
from flows.planning.training.estimate import RANK, changes, train_estimate
from flows.planning.training.terms import OPTIMIZERS, Method, TrainEstimate, Training

if TYPE_CHECKING:
    from flows.job.prepare import Job
    from flows.planning.plan import Plan

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
        print(json.dumps({**fields, "fits": fits if given.memory else None}, indent=1))
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
    found = [
        f"{options} (then {gib(takes.peak_bytes)})"
        for options, takes in changes(architecture, training, limit)
    ]
    yield f"does not fit into {gib(limit)}"
    yield f"instead     {', or '.join(found) if found else 'choose a smaller model'}"


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
                f"unknown --{option} {value}",
                hint=f"Choose from {', '.join(map(str, choices))}",
            )
    if {given.precision, given.vision_precision, given.language_precision} - {"native", None}:
        raise UsageError(
            "--precision and --train exclude each other: the method sets the precision",
            hint="Leave it out; --train qlora keeps the frozen weights in nf4",
        )
    for option in ("gpus", "max_length", "frames", "batch_size"):
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
        gpus=given.gpus,
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
    lines = [
        f"fine-tuning {name}: {gib(estimate.peak_bytes)} of {many}, {MOMENTS[estimate.moment]}",
        f"  {recomputed} --checkpointing {gib(without)}",
        f"trained     {estimate.trained / 1e6:,.1f} M of "
        f"{(estimate.trained + estimate.frozen) / 1e6:,.1f} M numbers{_how(training)}",
        f"a step      {training.batch} x {training.length:,} tokens per GPU, "
        f"{counted(training.frames, 'image')} each; gradient accumulation takes no more memory",
        "memory, GiB",
    ]
    lines += [
        f"  {term.part:12s}{term.bytes / (1 << 30):>8.2f}  {term.why}{_when(term.moment, estimate)}"
        for term in estimate.terms
    ]
    lines.append(f"  {'peak':12s}{estimate.peak_bytes / (1 << 30):>8.2f}")
    lines += [f"note        {note}" for note in estimate.notes]
    return lines


def _how(training: Training) -> str:
    if training.method == "full":
        return ": all of the language half; the vision encoder and the connector are frozen"
    return f": LoRA of rank {RANK} on each linear layer of the language half"


def _when(moment: str, estimate: TrainEstimate) -> str:
    return "" if moment in ("always", estimate.moment) else " (not in the sum: at another time)"


def explain_lines(estimate: TrainEstimate) -> Iterator[str]:
    """Yield the source of each formula."""
    yield "sources"
    for source in sorted({term.source for term in estimate.terms if term.source}):
        parts = sorted({term.part for term in estimate.terms if term.source == source})
        yield f"  {', '.join(parts)}: {source}"


def train_json(name: str, training: Training, estimate: TrainEstimate) -> dict[str, Any]:
    """Return the estimate as JSON."""
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


def plan_command(given: argparse.Namespace) -> int:
    """Print the plan of a run. The exit code says whether it fits. Raises PenstockError."""
    if given.train is not None:
        return train_plan(given)
    refuse_without_train(given)
    pipelines = PURPOSES[given.purpose] if given.purpose else chain(*PURPOSES.values())
    config = config_of(given, CaptionConfig, sources=False)
    if given.purpose == "serve":
        from flows.serving.config import LiveCaptionConfig

        config = LiveCaptionConfig(**vars(config))
    return show(
        config,
        *pipelines,
        as_json=given.json,
        explain=given.explain,
        table=given.what_fits,
    )


def show(
    config: RunOptions,
    *pipelines: Pipeline,
    as_json: bool = False,
    explain: bool = False,
    table: bool = False,
    dry_run: str = "",
    check: Callable[["Job"], None] | None = None,
) -> int:
    """Print the plan of a command. Its pipeline is the first of `pipelines` that suits the model;
    without any, it captions. With `dry_run`, the name of the command, it is refused as the command
    refuses it, and by `check` for its job. The exit code says whether the run fits."""
    display = Display(quiet=as_json)
    with closing(display):
        display.doing(READING)
        from flows.machine.launch import DirectLauncher
        from flows.planning.plan import figures, plan_of
        from flows.planning.plan_view import explain_lines, plan_lines, what_fits_lines

        if dry_run:
            from flows.results.owners import refuse_taking

            refuse_taking(config, dry_run)
        launcher, pipelines = DirectLauncher(display.on_event), pipelines or (CAPTION,)
        plan = plan_of(config, launcher, display.print_line, *pipelines)
        if check is not None:
            from flows.job.prepare import prepare_without_media

            check(plan.job or prepare_without_media(config, launcher, *pipelines))
    if as_json:
        print(json.dumps({**figures(plan), **_table(plan)}, indent=1))
    else:
        lines = plan_lines(plan)
        lines += what_fits_lines(plan) if table else []
        lines += explain_lines(plan) if explain else []
        print_lines(*lines)
    return 0 if plan.refusal is None else plan.refusal.exit_code


def _table(plan: "Plan") -> dict[str, Any]:
    """Return the largest batch per memory size, on this device and on a GPU; None: nothing fits."""
    from flows.planning.plan_view import what_fits

    return {
        name: {
            row: {f"{cell.gib}GiB": cell.batches if cell.fits else None for cell in cells}
            for row, cells in what_fits(plan.request, device).items()
        }
        for name, device in (("what_fits", plan.request.device), ("what_fits_gpu", "cuda:0"))
    }
