"""Says what a checkpoint's own Python code needs, and that it runs only if the user trusts it."""

import ast
import contextlib
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.disk.regular_files import read_bytes
from artifacts.errors import MissingPackage, PenstockError, UsageError
from artifacts.packages import PACKAGES, install_command
from stages.models.hub.checkpoint import read_config
from stages.models.in_tree.registry import native_of
from stages.process.exit_diagnosis import out_of_memory

SOURCE_BYTES = 32 << 20
"""Maximum bytes of a Python file that is read."""


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
    """Return which packages the Python code that loading runs imports without a condition and this
    environment lacks, and the command that installs them; None: it lacks none."""
    from transformers.dynamic_module_utils import get_imports

    imported: set[str] = set()
    files: set[Path] = set()
    paths = _named_files(folder)
    while paths:
        path = paths.pop()
        if path in files or folder not in path.parents:
            continue
        files.add(path)
        with contextlib.suppress(OSError, ValueError, SyntaxError, RecursionError):
            paths += _relative_imports(path)
            imported |= {*get_imports(path)}
    imported -= {path.stem for path in folder.iterdir()}
    if not (names := sorted(name for name in imported if importlib.util.find_spec(name) is None)):
        return None
    install = install_command(packages=" ".join(PACKAGES.get(name, name) for name in names))
    return f"imports {', '.join(names)}, which this environment lacks", f"`{install}`"


def _named_files(folder: Path) -> list[Path]:
    """Return the files that `auto_map` names in the configurations of a folder, and in those of
    its parts. A class with `--` in its name (`REPO--module.Class`) is in another repository."""
    parts: list[Any] = [read_config(folder, path.name) for path in folder.glob("*config.json")]
    values: list[Any] = []
    while parts:
        if isinstance(part := parts.pop(), dict):
            values.append(part.get("auto_map"))
            parts += part.values()
    names: set[str] = set()
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):  # a tokenizer's: the slow one and the fast one
            values += value
        elif isinstance(value, str) and "--" not in value:
            names.add(value.partition(".")[0])
    return [folder / f"{name}.py" for name in names]


def _relative_imports(path: Path) -> Iterator[Path]:
    """Yield the files that the relative imports of a file may mean: modules, packages and what is
    imported from them. Raises OSError, ValueError, SyntaxError and RecursionError."""
    for node in ast.walk(ast.parse(read_bytes(path, SOURCE_BYTES))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = node.module.split(".") if node.module else ()
        for package in path.parents[node.level - 1 : node.level]:  # none above the root
            for alias in node.names:
                stem = package.joinpath(*parts, alias.name)
                while stem != package:
                    yield from (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
                    stem = stem.parent


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
