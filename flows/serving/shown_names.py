"""Display names of models, indexes and files, which hide their paths from clients."""

import re
from pathlib import Path

LOCAL = ("/", ".", "~")
"""How the places of models begin that are no names of a hub."""
PATH = re.compile(r"(?<![\w:/.])/(?!v1/|static/)(?:[^\s/'\",;:()]+/)+([^\s/'\",;:()]+)")
"""An absolute path in a text, but for those of this server."""


def shown_name(place: str) -> str:
    """Return the name of a model or an index: of a folder the last one of its path."""
    return Path(place).expanduser().resolve().name if place.startswith(LOCAL) else place


def without_paths(text: str) -> str:
    """Return a text with the names of files and folders in place of their absolute paths."""
    return PATH.sub(r"\1", text)
