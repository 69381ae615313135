"""Implements `penstock tune`: trains an adapter on captions, and prints the result."""

import argparse
import shlex
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_from
from flows.commands.shared.options import add_options, add_running_options
from flows.commands.tune import TUNE
from flows.core.console.display import READING, Display
from flows.core.console.lines import json_line, print_lines
from flows.core.options.formats import MODEL
from flows.core.options.training import TuneConfig


def tune_command(given: argparse.Namespace) -> int:
    config = config_from(given, TuneConfig)
    if given.dry_run:
        from flows.commands.tune.run import refuse_untrainable, resolve_run

        examples, run = resolve_run(config, partial(print_lines, to=sys.stderr))
        check = partial(refuse_untrainable, config, examples, Path(run.out).parent)
        return show(run, TUNE, as_json=given.json, check=check)
    with closing(Display(quiet=given.quiet, as_json=given.json)) as display:
        display.doing(READING)
        from flows.commands.tune.run import tune

        result = tune(config, display)
    if given.json:
        print(json_line({"event": "result", **result.to_json()}))
    elif not given.quiet:
        used = ["caption", "SOURCES", "--model", config.model, "--adapter", str(result.out)]
        used += ["--store", config.store] if config.store else []
        hint = "" if config.validate_only else f"; use it with `penstock {shlex.join(used)}`"
        print_lines(f"{result.line()}{hint}")
    return result.exit_code


def add_tune(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.trained_half import TRAINING
    from flows.core.options.training import TuneConfig

    groups = add_options(parser, TuneConfig, MODEL, TRAINING)
    add_running_options(parser, groups, "print the required resources, then exit")
