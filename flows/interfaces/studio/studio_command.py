"""Implements `penstock studio`, which serves one page from a folder to captions until it is
stopped."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from flows.core.options.commands import CaptionConfig


def studio_command(given: argparse.Namespace) -> int:
    """Serve the studio until it is stopped, and return 0. Raises UsageError, EnvironmentFault."""
    require_extra("serve", "`penstock studio`")
    from flows.interfaces.studio.server import studio

    folder, out, *roots = map(required_path, (given.folder, given.out, *given.root))
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder", hint="Name a folder of media")
    studio(
        *(Path(folder), Path(out), roots, given.store, given.port, config_of),
        trust=given.trust_folder,
        behind=given.behind,
    )
    return 0


def config_of(words: Sequence[str]) -> CaptionConfig:
    """Return the configuration of a `caption` command. Raises UsageError."""
    from flows.commands.shared import arguments as options
    from flows.commands.shared.parser import parse

    try:
        return options.config_of(parse(words), CaptionConfig)
    except SystemExit as error:
        raise UsageError("the recorded command is no run", hint="Run it yourself") from error
