"""Runs `penstock label`, and says how it ended."""

import argparse
import shlex
from contextlib import closing

from artifacts.errors import UsageError
from flows.cli.last_words import tell_end
from flows.cli.options import config_of
from flows.cli.plan_command import show
from flows.console.display import READING, Display
from flows.console.lines import tell
from flows.job.label_config import check_label_formats
from flows.job.labels import label_set
from flows.pipelines import LABEL


def label_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    config = config_of(given)
    check_label_formats(config.format)
    labels = label_set(given.labels, given.templates)
    display = Display(quiet=given.quiet, as_json=given.json)
    with closing(display):
        if not given.dry_run:
            display.doing(READING)
        from flows.results.labels.examples import examples_of
        from flows.running.label import LabelAsked, label

        asked = LabelAsked(
            labels=labels,
            examples=examples_of(given.examples, labels.names),
            threshold=threshold_of(given.threshold),
            top=given.top,
        )
        if given.dry_run:
            return show(config, LABEL, as_json=given.json)
        result = label(config, asked, display)
    if tell_end(given, result, display):
        told = f"penstock report {shlex.quote(str(result.out))}"
        tell(*result.notes(), f"{result.line()}; see them with `{told}`")
    return result.exit_code


def threshold_of(told: str) -> float | None:
    """Return the threshold that the option means; None: by the rule. Raises UsageError."""
    if told == "auto":
        return None
    try:
        return float(told)
    except ValueError as error:
        raise UsageError(f"--threshold {told} is no number", hint="Give auto, or 0.25") from error
