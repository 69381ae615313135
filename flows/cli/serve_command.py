"""Implements `penstock serve`, which runs until it is stopped."""

import argparse
import signal
import threading

from flows.cli.derived import config_from
from flows.console.display import Display
from flows.serving.config import ServeConfig


def serve_command(given: argparse.Namespace) -> int:
    """Run the server, and return its exit code. Raises PenstockError."""
    # The first process of a container gets no signal that has no handler.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    from flows.serving.server import serve

    serve(config_from(given, ServeConfig), Display(quiet=given.quiet))
    return 0
