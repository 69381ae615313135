"""Implements `penstock report`, which writes one HTML file about a run. It reads the run's files
and changes none of them.
"""

import argparse
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.files import write_text
from artifacts.regular import odd_thing
from flows.console.lines import print_lines
from flows.results.foreign_files import refuse_replacing_page
from flows.results.report.facts import facts
from flows.results.report.page import page


def report_command(given: argparse.Namespace) -> int:
    """Write the report and say where. Raises UsageError, EnvironmentFault."""
    out = Path(given.out)
    to = Path(given.to) if given.to else out / "report.html"
    if given.to and (odd := odd_thing(to)):  # a report would take its place
        raise UsageError(f"--to {to} is {odd}, not a file", hint="Name a file that may be replaced")
    refuse_replacing_page(to)
    write_text(to, [page(facts(out, to.absolute().parent))])
    print_lines(str(to))
    return 0
