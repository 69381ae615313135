"""Implements `penstock review`, which serves a run's captions for correction until it is
stopped.
"""

import argparse
from pathlib import Path


def review_command(given: argparse.Namespace) -> int:
    """Serve the review until it is stopped, and return 0. Raises UsageError, EnvironmentFault."""
    from flows.reviewing.server import review

    review(Path(given.out), given.port, given.order)
    return 0
