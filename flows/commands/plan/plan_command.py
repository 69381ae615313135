"""Implements `penstock plan` and `--dry-run`: whether a run fits, and what uses its memory."""

import argparse
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from artifacts.disk.files import encoded
from flows.commands.plan.training.options import add_train_options, refuse_without_train
from flows.commands.shared.arguments import config_of
from flows.commands.shared.options import add_caption_options
from flows.core.console.display import READING, Display
from flows.core.console.lines import print_lines
from flows.core.options.commands import CaptionConfig, RunOptions
from flows.core.options.questions import AskConfig
from flows.core.pipelines import CAPTION, Pipeline, purposes

if TYPE_CHECKING:
    from flows.core.job.prepare import Job
    from flows.core.plan.plan import Plan

ANY_QUESTION = {"any": "Is it there?"}
"""The question of a plan of answers that names none."""


def plan_command(given: argparse.Namespace) -> int:
    """Print the plan of a run. The exit code says whether it fits. Raises PenstockError."""
    if given.train is not None:
        from flows.commands.plan.training.train_plan import train_plan

        return train_plan(given)
    refuse_without_train(given)
    pipelines = purposes()[given.purpose] if given.purpose else chain(*purposes().values())
    captions = config_of(given, CaptionConfig, sources=False)
    config: RunOptions = captions
    if given.purpose == "ask":
        if not captions.questions:
            captions = replace(captions, question=ANY_QUESTION)
        config = AskConfig.before(captions)
    if given.purpose == "serve":
        from flows.core.options.serving import LiveCaptionConfig

        config = LiveCaptionConfig(
            **{field.name: getattr(config, field.name) for field in fields(config)}
        )
    return show(
        config, *pipelines, as_json=given.json, explain=given.explain, table=given.what_fits
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
        from flows.commands.sift.left_out import left_out_before
        from flows.core.machine.launch import DirectLauncher
        from flows.core.plan.plan import plan_of
        from flows.core.plan.view import explain_lines, figures, plan_lines
        from flows.core.plan.what_fits import what_fits_lines
        from flows.outputs.existing import lost_notes

        if dry_run:
            from flows.outputs.folder.owners import refuse_taking

            refuse_taking(config, dry_run)
        launcher, pipelines = DirectLauncher(display.on_event), pipelines or (CAPTION,)
        left_out, note = left_out_before(config)
        plan = plan_of(config, launcher, display.print_line, *pipelines, left_out=left_out)
        before = [note] if note else []
        if plan.job is not None:
            before += lost_notes(plan.job)
        if check is not None:
            from flows.core.job.prepare import prepare_without_media

            check(plan.job or prepare_without_media(config, launcher, *pipelines))
        answers = None
        if CAPTION in pipelines and isinstance(config, CaptionConfig) and config.questions:
            questions, stages = AskConfig.before(config), purposes()["ask"]
            answers = plan_of(questions, launcher, display.print_line, *stages, left_out=left_out)
    if as_json:
        report = {**figures(plan), **_table(plan)}
        report["notes"] = [*before, *report["notes"]]
        report |= {} if answers is None else {"answers": figures(answers)}
        print(encoded(report, indent=1, ensure_ascii=True))
    else:
        lines = [*before, *plan_lines(plan)]
        lines += what_fits_lines(plan.request) if table else []
        lines += explain_lines(plan) if explain else []
        lines = lines if answers is None else [*plan_lines(answers), "", *lines]
        print_lines(*lines)
    refusals = (one.refusal for one in (answers, plan) if one is not None)
    return next((refusal.exit_code for refusal in refusals if refusal is not None), 0)


def _table(plan: "Plan") -> dict[str, Any]:
    """Return the largest batch per memory size, on this device and on a GPU; None: nothing fits."""
    from flows.core.plan.what_fits import what_fits

    return {
        name: {
            row: {f"{cell.gib}GiB": cell.batches if cell.fits else None for cell in cells}
            for row, cells in what_fits(plan.request, device).items()
        }
        for name, device in (("what_fits", plan.request.device), ("what_fits_gpu", "cuda:0"))
    }


def add_plan(parser: argparse.ArgumentParser) -> None:
    add_caption_options(parser)
    add_train_options(parser)
    add = parser.add_argument
    add(
        "--for",
        dest="purpose",
        choices=purposes(),
        help="purpose of the model [its first possible one]",
    )
    add("--what-fits", action="store_true", help="table of batch sizes by memory and precision")
    add("--explain", action="store_true", help="print the calculation of each number")
    add("--json", action="store_true", help="print the whole plan as JSON")
