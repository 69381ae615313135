"""Entry point of the command `penstock`. Until it has taken the current folder out of the search
path, it imports only what Python itself has imported by then, or holds in frozen form.
"""

import os
import sys

ENVIRONMENT = 5
"""Exit code of a fault of the environment."""


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        leave_current_folder()
    except FileNotFoundError:
        print("penstock: the current folder was deleted. Go to another one", file=sys.stderr)
        return ENVIRONMENT
    from penstock.checked_start import main as command

    return command()


def leave_current_folder() -> None:
    """Search the current folder, which may be a stranger's, for no more code: take it out of
    sys.path and PYTHONPATH, with other folders that depend on it. An absolute entry stays."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = list(filter(os.path.isabs, entries))
    gone = {"", *map(os.path.abspath, ["", *entries])}.difference(absolute)
    sys.path[:] = [folder for folder in sys.path if folder not in gone]
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(absolute)
    os.environ["PYTHONSAFEPATH"] = "1"  # as -P, for what libraries start
