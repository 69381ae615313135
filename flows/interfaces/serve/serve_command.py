"""Implements `penstock serve`, which runs until it is stopped."""

import argparse

from artifacts.packages import require_extra
from flows.commands.shared.arguments import config_from
from flows.commands.shared.options import add_options
from flows.core.console.display import Display
from flows.core.options.serving import ServeConfig


def serve_command(given: argparse.Namespace) -> int:
    """Run the server, and return its exit code. Raises PenstockError."""
    require_extra("serve", "`penstock serve`")
    from flows.interfaces.serve.server import serve

    serve(config_from(given, ServeConfig), Display(quiet=given.quiet))
    return 0


def add_serve(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.serving import BATCHES, SERVED, ServeConfig

    add_options(parser, ServeConfig, SERVED, BATCHES)
    parser.add_argument("--quiet", action="store_true", help="print errors only")
