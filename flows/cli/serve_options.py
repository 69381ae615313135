"""Declares the options of `penstock serve`."""

import argparse

from flows.cli.derived import add_options
from flows.serving.config import BATCHES, SERVED, ServeConfig


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    add_options(parser, ServeConfig, SERVED, BATCHES)
    parser.add_argument("--quiet", action="store_true", help="print errors only")
