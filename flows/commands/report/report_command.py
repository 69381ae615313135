"""Implements `penstock report`, which writes one HTML file about a run."""

import argparse
from pathlib import Path

from artifacts.disk.paths import required_path
from flows.commands.report.facts import write_report
from flows.commands.status.status_command import other_runs
from flows.core.console.lines import print_lines


def report_command(given: argparse.Namespace) -> int:
    """Write the report and print its path. Raises UsageError, EnvironmentFault."""
    out = Path(required_path(given.out))
    to = None if given.to is None else Path(required_path(given.to))
    print_lines(str(write_report(out, to)), *other_runs(out))
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument("--to", metavar="FILE", help="output file [OUT/report.html]")
