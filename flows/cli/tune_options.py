"""Declares the options of `penstock tune`."""

import argparse

from flows.cli.derived import Groups, add_options, group_of
from flows.cli.tune_command import add_retired_options
from flows.options.headings import MODEL
from flows.options.learn import LearnConfig
from flows.options.tune import RUNNING, TRAINING, TuneConfig


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tune`."""
    groups = add_options(parser, TuneConfig, MODEL, TRAINING)
    add_retired_options(parser)
    _add_running(parser, groups)


def add_learn_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `learn`."""
    _add_running(parser, add_options(parser, LearnConfig, TRAINING))


def _add_running(parser: argparse.ArgumentParser, groups: Groups) -> None:
    add = group_of(parser, groups, RUNNING).add_argument
    add("--dry-run", action="store_true", help="print the required resources, then exit")
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")
