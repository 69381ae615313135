"""Writes the HTML report of a run. Reads the run's files and changes none of them."""

from pathlib import Path

from artifacts.errors import UsageError
from artifacts.files import write_text
from artifacts.regular import odd_thing
from flows.results.foreign_files import refuse_replacing_page
from flows.results.report.facts import facts
from flows.results.report.page import page


def write_report(out: Path, to: Path | None = None) -> Path:
    """Write the report of the run in `out` to a file (None: `report.html` in that folder), and
    return its path. Raises UsageError, EnvironmentFault."""
    if to is not None and (odd := odd_thing(to)):  # a report would take its place
        raise UsageError(f"--to {to} is {odd}, not a file", hint="Name a file that may be replaced")
    path = out / "report.html" if to is None else to
    refuse_replacing_page(path)
    write_text(path, [page(facts(out, path.absolute().parent))])
    return path
