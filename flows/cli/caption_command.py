"""Runs `penstock caption`, with Prefect or without, and says how it ended."""

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict

from artifacts.errors import PenstockError
from flows.cli.last_words import UNFORESEEN, report_failures
from flows.cli.options import config_of
from flows.cli.plan_command import show
from flows.console.display import Display, printable
from flows.console.terminal import forget_terminal
from flows.job.config import CaptionConfig
from flows.results.run_result import RunResult


def caption_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    config = config_of(given)
    display = Display(quiet=given.quiet, as_json=given.json)
    if given.dry_run:
        return show(config, as_json=given.json)
    if given.prefect or os.environ.get("PREFECT_API_URL"):
        result = with_prefect(config, display)
    else:
        from flows.running.run import caption

        result = caption(config, display)
    forget_terminal()  # one may work on after it was closed
    if given.json:
        for failure in result.failures:
            print(json.dumps({"event": "failed", **asdict(failure)}))
        print(json.dumps({"event": "end", **result.to_json()}))
    else:
        report(result, display, quiet=given.quiet)
    return result.exit_code


def with_prefect(config: CaptionConfig, display: Display) -> RunResult:
    """Run the flow inside this command. Its process then ends soon whatever Prefect's threads
    want."""
    from flows.deployments.caption import run_with_prefect
    from flows.deployments.patience import leave_within

    try:
        result = run_with_prefect(config, display)
    except PenstockError as error:
        leave_within(error.exit_code)
        raise
    except Exception:
        leave_within(UNFORESEEN)
        raise
    leave_within(result.exit_code)
    return result


def report(result: RunResult, display: Display, *, quiet: bool) -> None:
    """Print the last words: what failed and was not told, what to read, where captions are."""
    report_failures(result.failures, display, result.out)
    if quiet:
        return
    for warning in result.warnings:
        print(printable(f"note: {warning}"), file=sys.stderr)
    print(f"{result.line()}; see them with `penstock report {shlex.quote(str(result.out))}`")
