"""Runs `penstock tune`: trains an adapter on captions, and says how it ended."""

import argparse
from contextlib import closing

from flows.cli.derived import config_from
from flows.cli.plan_command import show
from flows.cli.tune_refusal import refuse_more_than_adapters
from flows.console.display import READING, Display
from flows.console.lines import json_line, tell
from flows.options.tune import TuneConfig
from flows.pipelines import TUNE


def tune_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    refuse_more_than_adapters(given)
    config = config_from(given, TuneConfig)
    if given.dry_run:
        from flows.running.tune import asked_of

        return show(asked_of(config)[1], TUNE, as_json=given.json)
    with closing(Display(quiet=given.quiet, as_json=given.json)) as display:
        display.doing(READING)
        from flows.running.tune import tune

        result = tune(config, display)
    if given.json:
        print(json_line({"event": "result", **result.to_json()}))
    elif not given.quiet:
        tell(result.line())
    return result.exit_code
