"""What the page offers to choose from: models on this machine, adapters and prompts."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.files import write_text
from artifacts.regular_files import read_bytes, user_text
from artifacts.user_folders import user_state
from flows.options.model import DEMO_MODEL
from flows.options.text import IMAGE_PROMPT
from flows.studio.roots import Refused, Roots, is_shown
from stages.models.hub.hub_errors import cache_folder

DEEPEST = 2
"""Folders below a root in which models and adapters are looked for."""
LOOKED_AT = 5000
"""Largest number of folders that are looked at."""
NAME = re.compile(r"[\w][\w -]{0,59}")
LONGEST = 1 << 16
PRESETS = {
    "describe": IMAGE_PROMPT,
    "one sentence": "Describe this in one sentence.",
    "tags": "List what is seen here as short tags, separated by commas.",
}
"""Prompts that are written as files when there are none."""


def models_in(roots: Roots) -> dict[str, list[str]]:
    """Return the models and the adapters on this machine that the page may name."""
    cached = cache_folder().glob("models--*/snapshots/*/config.json")
    ids = (found.parents[2].name.removeprefix("models--").replace("--", "/") for found in cached)
    models = [DEMO_MODEL, *sorted(ids)]
    adapters = []
    for folder in _folders(roots):
        if os.path.isfile(folder / "adapter_config.json"):
            adapters.append(str(folder))
        elif os.path.isfile(folder / "config.json"):
            models.append(str(folder))
    return {"models": models, "adapters": adapters}


def _folders(roots: Roots) -> Iterator[Path]:
    level, count = list(roots.folders), 0
    for _ in range(DEEPEST):
        following: list[Path] = []
        for folder in level:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                continue
            for path in (folder / name for name in names if not name.startswith(".")):
                count += 1
                if count > LOOKED_AT:
                    return
                if is_shown(path) and os.path.isdir(path) and not path.is_symlink():
                    yield path
                    following.append(path)
        level = following


def presets() -> list[dict[str, Any]]:
    """Return the prompts that this user keeps as files. Raises UsageError, EnvironmentFault."""
    folder = preset_folder()
    if not folder.is_dir():
        for name, text in PRESETS.items():
            write_text(folder / f"{name}.txt", [text + "\n"])
    found = []
    for path in sorted(folder.glob("*.txt")):
        if NAME.fullmatch(path.stem) and path.is_file() and path.stat().st_size <= LONGEST:
            with contextlib.suppress(OSError):  # it is UTF-16, or no text
                text = user_text(read_bytes(path, LONGEST), path).strip()
                found.append({"name": path.stem, "text": text})
    return found


def keep_preset(name: Any, text: Any) -> None:
    """Write a prompt into its file. Raises Refused, EnvironmentFault."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise Refused("invalid name of a prompt", hint="Use letters, digits and spaces")
    if not (isinstance(text, str) and text.strip() and len(text) < LONGEST):
        raise UsageError("the prompt is empty or too long", hint="Write a text")
    write_text(preset_folder() / f"{name}.txt", [text.strip() + "\n"])


def preset_folder() -> Path:
    """Return the folder with the user's prompts."""
    return user_state() / "prompts"
