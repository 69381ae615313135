"""Implements `penstock tune`: trains an adapter on captions, and prints the result."""

import argparse
import shlex
from contextlib import closing

from artifacts.errors import UsageError
from flows.cli.derived import config_from
from flows.cli.plan_command import show
from flows.console.display import READING, Display
from flows.console.lines import json_line, print_lines
from flows.options.tune import TuneConfig
from flows.pipelines import TUNE

RETIRED = {"--full": "store_true", "--zero": "store", "--fsdp": "store_true", "--gpus": "store"}
"""Options of full fine-tuning and of several GPUs → argparse actions. They go with 0.2."""


def add_retired_options(parser: argparse.ArgumentParser) -> None:
    """Accept the retired options without listing them in the help, so that they can be refused."""
    for option, action in RETIRED.items():
        parser.add_argument(option, action=action, help=argparse.SUPPRESS)


def refuse_more_than_adapters(given: argparse.Namespace) -> None:
    """Raise UsageError for retired options."""
    found = [option for option in RETIRED if getattr(given, option[2:])]
    if found:
        method = "full" if given.full else "qlora" if given.precision == "nf4" else "lora"
        raise UsageError(
            f"{', '.join(found)}: only adapters are trained here, on one device",
            hint=f"Leave it out, or see `penstock plan --model {given.model} --train {method}` "
            "and train elsewhere",
        )


def tune_command(given: argparse.Namespace) -> int:
    """Run the command, and return its exit code. Raises PenstockError."""
    refuse_more_than_adapters(given)
    config = config_from(given, TuneConfig)
    if given.dry_run:
        from flows.running.tune import resolve_run

        return show(resolve_run(config)[1], TUNE, as_json=given.json)
    with closing(Display(quiet=given.quiet, as_json=given.json)) as display:
        display.doing(READING)
        from flows.running.tune import tune

        result = tune(config, display)
    if given.json:
        print(json_line({"event": "result", **result.to_json()}))
    elif not given.quiet:
        used = ["caption", "SOURCES", "--model", config.model, "--adapter", str(result.out)]
        used += ["--store", config.store] if config.store else []
        hint = "" if config.validate_only else f"; use it with `penstock {shlex.join(used)}`"
        print_lines(f"{result.line()}{hint}")
    return result.exit_code
