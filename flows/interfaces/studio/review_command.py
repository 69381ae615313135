"""Implements `penstock review`, which serves a run's captions for correction until it is
stopped.
"""

import argparse
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.packages import require_extra


def review_command(given: argparse.Namespace) -> int:
    """Serve the review until it is stopped, and return 0. Raises UsageError, EnvironmentFault."""
    require_extra("serve", "`penstock review`")
    from flows.interfaces.studio.server import review
    from flows.interfaces.studio.studio_command import config_of

    review(
        *(Path(required_path(given.out)), given.port, given.order, config_of),
        trust=given.trust_folder,
        behind=given.behind,
    )
    return 0
