"""Implements `penstock serve`, which runs until it is stopped."""

import argparse

from artifacts.packages import require_extra
from flows.cli.options import config_from
from flows.console.display import Display
from flows.serving.config import ServeConfig


def serve_command(given: argparse.Namespace) -> int:
    """Run the server, and return its exit code. Raises PenstockError."""
    require_extra("serve", "`penstock serve`")
    from flows.serving.server import serve

    serve(config_from(given, ServeConfig), Display(quiet=given.quiet))
    return 0
