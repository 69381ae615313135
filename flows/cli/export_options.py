"""Declares the options of `penstock export`. Runs nothing."""

import argparse

from flows.cli.derived import add_options, place_of
from flows.options.export_config import JUDGEMENT, ExportConfig


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    places = add_options(parser, ExportConfig, JUDGEMENT)
    add = place_of(parser, places, "running").add_argument
    add("--dry-run", action="store_true", help="say what would be written, write nothing")
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")
