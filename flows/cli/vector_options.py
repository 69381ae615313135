"""Declares the options of the commands that compute vectors."""

import argparse
from collections.abc import Collection

from flows.cli.derived import add_options
from flows.cli.options import add_quiet_options
from flows.options.headings import FILES, LABELS, MEMORY, MODEL, VECTORS
from flows.options.sift import SiftConfig
from flows.options.vectors import EmbedConfig, LabelConfig, VectorConfig


def add_embed(parser: argparse.ArgumentParser) -> None:
    add_vector_options(parser, EmbedConfig)


def add_label(parser: argparse.ArgumentParser) -> None:
    add_vector_options(parser, LabelConfig)


def add_sift(parser: argparse.ArgumentParser) -> None:
    add_vector_options(parser, SiftConfig)
    parser.add_argument("--marks", action="store_true", help="print the marks and their ranges")


def add_vector_options(
    parser: argparse.ArgumentParser, config: type[VectorConfig], *, without: Collection[str] = ()
) -> None:
    """Add the options of a command that computes vectors."""
    headings = [MODEL, VECTORS, MEMORY, FILES]
    if issubclass(config, LabelConfig):
        headings.insert(0, LABELS)
    if "model" in without:
        headings.remove(MODEL)
    add_options(parser, config, *headings, without=without)
    add_quiet_options(parser)
