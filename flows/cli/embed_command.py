"""Runs `penstock embed`, and says how it ended."""

import argparse
import json
from dataclasses import asdict

from flows.cli.last_words import report_failures
from flows.cli.options import config_of
from flows.cli.plan_command import show
from flows.console.display import Display
from flows.console.terminal import forget_terminal
from flows.pipelines import EMBED


def embed_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    config = config_of(given)
    display = Display(quiet=given.quiet, as_json=given.json)
    if given.dry_run:
        return show(config, EMBED, as_json=given.json)
    from flows.running.run import embed

    result = embed(config, display)
    forget_terminal()  # one may work on after it was closed
    if given.json:
        for failure in result.failures:
            print(json.dumps({"event": "failed", **asdict(failure)}))
        print(json.dumps({"event": "end", **result.to_json()}))
        return result.exit_code
    report_failures(result.failures, display, result.out)
    if not given.quiet:
        print(result.line())
    return result.exit_code
