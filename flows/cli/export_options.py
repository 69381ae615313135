"""Declares the options of `penstock export`."""

import argparse

from flows.cli.derived import add_options, group_of
from flows.options.export_config import JUDGEMENT, ExportConfig


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    groups = add_options(parser, ExportConfig, JUDGEMENT)
    add = group_of(parser, groups, "running").add_argument
    add("--dry-run", action="store_true", help="print what would be written, then exit")
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")
