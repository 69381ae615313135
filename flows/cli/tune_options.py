"""Declares the options of `penstock tune`. Runs nothing."""

import argparse

from flows.cli.derived import add_options, place_of
from flows.cli.tune_command import add_retired_options
from flows.options.headings import MODEL
from flows.options.tune import RUNNING, TRAINING, TuneConfig


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tune`."""
    places = add_options(parser, TuneConfig, MODEL, TRAINING)
    add_retired_options(parser)
    add = place_of(parser, places, RUNNING).add_argument
    add("--dry-run", action="store_true", help="say what it would take; start nothing")
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")
