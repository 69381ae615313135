"""Imports what the program and its tests import, so that Python keeps the bytecode of that. It is
for environments that forbid Python to write bytecode, where each process would compile it again.

    python scripts/run/compile_imports.py
"""

import ast
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo", "tests", "scripts")


def imported_names() -> set[tuple[str, str]]:
    """Return the modules of others that the program imports, each with a name that it takes from
    there, or an empty one."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    found = {name for file in files for name in _names_in(file)}
    own = (*PACKAGES, *sys.stdlib_module_names)
    return {(module, name) for module, name in found if module.partition(".")[0] not in own}


def _names_in(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


@contextlib.contextmanager
def _home_at(folder: str) -> Iterator[None]:
    """Let libraries write there what they write into a home when they are imported: ONNX Runtime an
    id of the machine and a database of events, Prefect a folder."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ.update(HOME=folder, ORT_DISABLE_TELEMETRY="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Import all of it; what cannot be imported here is left to whoever needs it."""
    sys.dont_write_bytecode = False
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as home, _home_at(home):
        for module, name in sorted(imported_names()):
            with contextlib.suppress(Exception):
                getattr(import_module(module), name or "__name__")  # some are imported when named


if __name__ == "__main__":
    main()
