"""`penstock report`: one HTML file about a run, for people; reads what the run wrote and changes
none of it."""

import argparse
from pathlib import Path

from artifacts.files import write_text
from flows.display import printable
from flows.report.facts import facts
from flows.report.page import page


def report_command(given: argparse.Namespace) -> int:
    """Write the report and say where. Raises UsageError, EnvironmentFault."""
    out = Path(given.out)
    to = Path(given.to) if given.to else out / "report.html"
    write_text(to, [page(facts(out, to.absolute().parent))])
    print(printable(str(to)))
    return 0
