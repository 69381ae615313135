"""Keeps the list of what transformers exports.

Each process that imports transformers reads it twice from 2,800 files, which takes half a second.
It is kept in the user's cache, beside what tells that those files are still the same.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from artifacts.errors import PenstockError, UsageError
from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.user_folders import user_cache

LISTED = ("transformers", "models")
"""The folder whose list is kept: all models."""
FORMAT = 1

Structure = dict[frozenset[str], dict[str, set[str]]]
"""Packages that are needed → module → names that it has where they are there."""


def keeping(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Return the specification of `transformers.utils.import_utils`, whose list is kept once that
    is imported."""
    if spec is None or spec.loader is None or (source := spec.origin) is None:
        return spec
    execute = spec.loader.exec_module

    def executed(module: ModuleType) -> None:
        execute(module)
        name = "define_import_structure"
        setattr(module, name, kept(getattr(module, name), source))

    spec.loader.exec_module = executed  # type: ignore[method-assign]
    return spec


def kept(define: Callable[..., Structure], source: str) -> Callable[..., Structure]:
    """Return transformers' own function, of that source file, which looks into the files of models
    only where any of them is not as it was before."""
    known: list[Any] = []

    def defined(path: Any, prefix: str | None = None) -> Structure:
        folder = Path(path)
        folder = folder.parent if folder.is_file() else folder
        if folder.parts[-2:] != LISTED:
            return define(path, prefix)
        if not known:
            files = [*_files(folder), *_state(source)]
            known.extend(_structure(folder, digest_of(sorted(files)), lambda: define(path)))
        before = f"{prefix}." if prefix else ""
        return {
            frozenset(needed): {before + module: set(names) for module, names in modules.items()}
            for needed, modules in known
        }

    return defined


def _structure(folder: Path, state: str, define: Callable[[], Structure]) -> list[Any]:
    """Return the list as it was kept of files in that state, else as it is made now, which is
    kept."""
    name = f"{digest_of(str(folder))[:16]}.json"
    with contextlib.suppress(UsageError):  # a user without a home
        found = read_kept(user_cache() / "imports" / name, FORMAT) or {}
        made = found.get("structure")
        if found.get("state") == state and found.get("digest") == digest_of(made):
            return list(made or ())
    made = [
        [sorted(needed), {module: sorted(names) for module, names in modules.items()}]
        for needed, modules in define().items()
    ]
    with contextlib.suppress(PenstockError):  # a disk that is full
        found = {"format": FORMAT, "state": state, "digest": digest_of(made), "structure": made}
        write_json(user_cache() / "imports" / name, found)
    return made


def _files(folder: Path | str) -> Iterator[list[str | int]]:
    """Yield each file that is looked into, with its time and size."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and entry.name != "__pycache__":
                yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                yield from _state(entry.path)


def _state(path: str) -> Iterator[list[str | int]]:
    state = os.stat(path)
    yield [path, state.st_mtime_ns, state.st_size]
