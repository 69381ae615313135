"""Implements `penstock serve`, which runs until it is stopped."""

import argparse

from flows.cli.options import config_from
from flows.console.display import Display
from flows.serving.config import ServeConfig


def serve_command(given: argparse.Namespace) -> int:
    """Run the server, and return its exit code. Raises PenstockError."""
    from flows.serving.server import serve

    serve(config_from(given, ServeConfig), Display(quiet=given.quiet))
    return 0
