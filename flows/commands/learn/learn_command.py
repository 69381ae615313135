"""Implements `penstock learn`: trains on corrected captions, captions again, and prints scores."""

import argparse
import shlex
import sys
from contextlib import chdir, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from artifacts.disk.paths import folder_named
from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_from
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_options, add_running_options
from flows.commands.tune import TUNE
from flows.core.console.display import READING, Display
from flows.core.console.lines import print_lines
from flows.core.options.training import LearnConfig, RecordedRun

if TYPE_CHECKING:
    from flows.commands.learn.result import Learned


def learn_command(given: argparse.Namespace) -> int:
    config = config_from(given, LearnConfig)
    journal = tuple(str(folder_named(path, "journal")) for path in config.journal)
    out = folder_named(config.out, "out")
    from flows.outputs.folder.trust import ROUNDS, SHOWN, command_in, is_trusted

    trust = config.trust_folder or is_trusted(out, uses=(*SHOWN, ROUNDS))
    config = replace(config, out=str(out), journal=journal, trust_folder=trust)
    display = Display(quiet=given.quiet, as_json=given.json)
    with closing(display):
        display.doing(READING)
        from flows.commands.learn.run import learn
        from flows.commands.shared.arguments import recorded_run

        command = command_in(out, trust=trust)
        with chdir(command.folder):  # the paths of the command are relative to it
            run = recorded_run(command)
            if given.dry_run:
                display.close()  # the plan shows its own line
                return _show(config, run, as_json=given.json)
            result = learn(config, run, display)
    if print_result(given, result, display):
        print_lines(*(f"note: {warning}" for warning in result.warnings), to=sys.stderr)
        print_lines(result.line(), *_next_steps(result, run))
    return result.exit_code


def _show(config: LearnConfig, run: RecordedRun, *, as_json: bool) -> int:
    """Print the examples of the next round and what its training needs."""
    from flows.commands.learn.run import preview
    from flows.commands.tune.run import refuse_untrainable_texts

    lines, tuning, examples = preview(config, run)
    if not as_json:
        print_lines(*lines)
    check = partial(refuse_untrainable_texts, examples)
    return 0 if tuning is None else show(tuning, TUNE, as_json=as_json, check=check)


def _next_steps(result: "Learned", run: RecordedRun) -> list[str]:
    """Return lines on what a user can do next."""
    out = shlex.quote(str(result.out))
    if result.round.accepted or not result.is_new:
        return [f"review them with `penstock review {out}`"]
    from flows.outputs.record.recorded_command import with_values

    words = run.command.words if run.command else ["caption", "SOURCES"]
    number = result.round.round
    values = {"--adapter": str(result.adapter), "--out": f"{result.out}-round-{number}"}
    return [
        "corrections made since the files were written are not in them: Write files in "
        f"`penstock review {out}` writes them",
        f"try the adapter with `penstock {shlex.join(with_values(words, values))}`",
    ]


def add_learn(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.trained_half import TRAINING
    from flows.core.options.training import LearnConfig

    groups = add_options(parser, LearnConfig, TRAINING)
    add_running_options(parser, groups, "print the required resources, then exit")
