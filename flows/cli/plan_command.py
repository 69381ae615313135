"""Runs `penstock plan` and `--dry-run`: whether a run fits, and where its memory goes."""

import argparse
import json
from itertools import chain
from typing import Any

from flows.cli.options import config_of
from flows.cli.train_plan import refuse_without_train, train_plan
from flows.console.display import Display
from flows.console.lines import tell
from flows.job.config import CaptionConfig
from flows.job.launch import DirectLauncher
from flows.pipelines import CAPTION, PURPOSES, Pipeline
from flows.planning.plan import Plan, figures, plan_of
from flows.planning.plan_view import explain_lines, plan_lines, what_fits_lines
from flows.planning.what_fits import what_fits


def plan_command(given: argparse.Namespace) -> int:
    """Print what a run would take; the exit code says whether it fits. Raises PenstockError."""
    if given.train is not None:
        return train_plan(given)
    refuse_without_train(given)
    pipelines = PURPOSES[given.purpose] if given.purpose else chain(*PURPOSES.values())
    return show(
        config_of(given, sources=False),
        *pipelines,
        as_json=given.json,
        explain=given.explain,
        table=given.what_fits,
    )


def show(
    config: CaptionConfig,
    *pipelines: Pipeline,
    as_json: bool = False,
    explain: bool = False,
    table: bool = False,
) -> int:
    """Print the plan of a command, by the first of `pipelines` that its model is for (none: it
    captions); the exit code says whether it fits."""
    display = Display(quiet=as_json)
    plan = plan_of(config, DirectLauncher(display.listen), display.say, *(pipelines or (CAPTION,)))
    if as_json:
        print(json.dumps({**figures(plan), **_table(plan)}, indent=1))
    else:
        lines = plan_lines(plan)
        lines += what_fits_lines(plan) if table else []
        lines += explain_lines(plan) if explain else []
        tell(*lines)
    return 0 if plan.refusal is None else plan.refusal.exit_code


def _table(plan: Plan) -> dict[str, Any]:
    """Return what fits in how much of this device, and of a GPU; None: nothing."""
    return {
        name: {
            row: {f"{cell.gib}GiB": cell.batches if cell.fits else None for cell in cells}
            for row, cells in what_fits(plan.question, device).items()
        }
        for name, device in (("what_fits", plan.question.device), ("what_fits_gpu", "cuda:0"))
    }
