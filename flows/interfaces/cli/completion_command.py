"""Implements `penstock completion`: prints the completion script of a shell.

A shell evaluates it at its start, so the script is kept, and made anew when a file of the program
has changed. What is kept is believed only if this user alone can write it.
"""

import argparse
import contextlib
import hashlib
import os
import stat
import sys
from glob import glob
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("artifacts", "flows", "stages")
"""Packages whose files decide the options."""


def completion_command(given: argparse.Namespace) -> int:
    """Print the script of a shell, and return 0."""
    from artifacts.disk.paths import machine_cache

    cached, head = machine_cache() / f"completion.{given.shell}", f"# {_state()}\n"
    script = _read(cached)
    if not script.startswith(head):
        import shtab

        from flows.commands.shared.parser import parser

        script = head + shtab.complete(parser(), given.shell)
        _keep(cached, script)
    print(script.removeprefix(head))
    return 0


def _state() -> str:
    """Return a digest of names, sizes and times of the program's files, and of this Python."""
    paths = [path for name in PACKAGES for path in glob(f"{ROOT}/{name}/**/*.py", recursive=True)]
    statuses = [(path, os.stat(path)) for path in sorted(paths)]
    about = [(path, status.st_size, status.st_mtime_ns) for path, status in statuses]
    return hashlib.sha256(repr([sys.version, about]).encode()).hexdigest()


def _read(path: Path) -> str:
    """Return what is kept; empty if there is nothing, or if others may have written it."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file,
    ):
        about = os.fstat(file.fileno())
        if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == 0o600:
            return file.read().decode()
    return ""


def _keep(path: Path, script: str) -> None:
    """Keep a script for the next call, if this user has a cache that can be written."""
    from artifacts.disk.files import write_text
    from artifacts.errors import PenstockError

    with contextlib.suppress(OSError, PenstockError):
        write_text(path, [script])
        path.chmod(0o600)


SHELLS = ("bash", "zsh", "tcsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help='eval "$(penstock completion bash)"'
    )
