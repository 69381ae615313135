"""Output folders as other people hand them on, and as this user made them."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from artifacts.records.keys import hash_file
from flows.outputs.marker import MARKER, Marker, inputs_in, write_marker


@contextmanager
def another_user(home: Path) -> Iterator[None]:
    """Have another user's secret until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        yield


def own_folder(out: Path, command: Mapping[str, Any] | None = None, store: str = "") -> None:
    """Mark a folder as this user's commands do."""
    write_marker(out, _marker(out, command, store))


def _marker(out: Path, command: Mapping[str, Any] | None, store: str) -> Marker:
    words, folder = (command["words"], command["folder"]) if command else ((), "")
    paths = (out / name for name in ("media.jsonl", "captions.jsonl"))
    digests = tuple(hash_file(path) for path in paths if path.exists())
    return Marker(
        command="caption",
        words=tuple(words),
        folder=str(folder),
        store=store,
        outputs=tuple(sorted(os.listdir(out))),
        inputs=tuple(inputs_in(out, words, str(folder)).values()),
        digests=digests,
    )


def strangers_folder(out: Path, words: list[str], folder: str, store: str = "") -> None:
    """Mark a folder as another user does. He cannot write the notes of a store of this user, which
    he may name."""
    marker = _marker(out, {"words": words, "folder": folder}, store)
    (out / MARKER).write_text(json.dumps(asdict(marker)))


def snapshot(*folders: Path) -> dict[str, Any]:
    """Return what lies in folders: path → content, or where a link leads."""
    found: dict[str, Any] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = path.read_bytes()
    return found
