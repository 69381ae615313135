"""Implements `penstock studio`, which serves one page from a folder to captions until it is
stopped."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from flows.core.options.commands import CaptionConfig
from flows.core.options.store import STORE_HELP
from flows.core.options.text import TRUST_FOLDER_HELP


def studio_command(given: argparse.Namespace) -> int:
    """Serve the studio until it is stopped, and return 0. Raises UsageError, EnvironmentFault."""
    require_extra("serve", "`penstock studio`")
    from flows.interfaces.studio.server import PageAddress, studio

    folder, out, *roots = map(required_path, (given.folder, given.out, *given.root))
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder", hint="Name a folder of media")
    address = PageAddress(given.port, given.behind)
    folders = (Path(folder), Path(out), roots)
    studio(*folders, given.store, address, config_of, trust=given.trust_folder)
    return 0


def config_of(words: Sequence[str]) -> CaptionConfig:
    """Return the configuration of a `caption` command. Raises UsageError."""
    from flows.commands.shared import arguments as options
    from flows.commands.shared.parser import parse

    try:
        return options.config_of(parse(words), CaptionConfig)
    except SystemExit as error:
        raise UsageError("the recorded command is no run", hint="Run it yourself") from error


BEHIND_HELP = "address of the proxy that passes the page on, as a notebook's"


def add_studio(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", default=".", help="folder of media [.]")
    add("--out", default="penstock-out", metavar="DIR", help="output folder [%(default)s]")
    add(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="another folder that the page may show; repeatable",
    )
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--behind", default="", metavar="URL", help=BEHIND_HELP)
    add("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)
    add("--port", type=int, default=8010, metavar="P", help="port; 0: any free port [%(default)s]")
