"""Says what a checkpoint's own Python code needs, and that it runs only if the user trusts it."""

import contextlib
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from artifacts.errors import MissingPackage, PenstockError, UsageError
from artifacts.packages import PACKAGES, install_command
from stages.models.hub.checkpoint import read_config
from stages.models.in_tree.registry import native_of
from stages.process.exit_diagnosis import out_of_memory


def asks_for_trust(error: Exception) -> bool:
    """Return whether loading failed because it would have run code from the checkpoint."""
    return any(phrase in str(error) for phrase in ("trust_remote_code", "custom code"))


def needs_trust(folder: Path) -> UsageError:
    hint = "Read it, and if you trust it add --trust-remote-code"
    if lack := _lack(folder):
        hint += f" after {lack[1]}"
    return UsageError(
        f"{folder} brings its own Python code, which would run on this machine"
        + (f" and {lack[0]}" if lack else ""),
        hint=hint,
    )


def _lack(folder: Path) -> tuple[str, str] | None:
    """Return which packages the Python code in a folder imports without a condition that this
    environment lacks, and the command that installs them; None: it lacks none."""
    from transformers.dynamic_module_utils import get_imports

    imported: set[str] = set()
    for path in folder.glob("*.py"):
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            imported |= {*get_imports(path)}
    imported -= {path.stem for path in folder.iterdir()}
    if not (names := sorted(name for name in imported if importlib.util.find_spec(name) is None)):
        return None
    install = install_command(packages=" ".join(PACKAGES.get(name, name) for name in names))
    return f"imports {', '.join(names)}, which this environment lacks", f"`{install}`"


@contextlib.contextmanager
def own_code(folder: Path, trusted: bool) -> Iterator[None]:
    """Turn an error of a checkpoint's own, trusted code into one line. Raises UsageError."""
    if not trusted or "auto_map" not in read_config(folder) or native_of(folder) is not None:
        yield
        return
    if lack := _lack(folder):
        raise MissingPackage(f"the Python code of {folder} {lack[0]}", hint=f"Run {lack[1]}")
    try:
        yield
    except Exception as error:
        if isinstance(error, PenstockError) or out_of_memory(error):
            raise
        raise UsageError(
            f"the Python code of {folder} fails with transformers {version('transformers')}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint="Choose a model of a family in docs/models.md, which needs no code of its own",
        ) from error
