"""Display names of models, indexes and files, which hide their paths from clients."""

import re
from pathlib import Path

from flows.serving.temp_store import PREFIX

LOCAL = ("/", ".", "~")
"""Prefixes of a model's folder, in contrast to hub ids."""
PATH = re.compile(r"(?<![\w:/.])/(?!v1/|static/)(?:[^\s/'\",;:()]+/)+([^\s/'\",;:()]+)")
"""An absolute path in a text, except the routes of this server."""
UPLOAD = re.compile(rf"(?:/[^\s/]+)*/{PREFIX}[^\s/]+/\d+\.\w+")
"""The path of what a request sent: no client has such a file."""


def shown_name(place: str) -> str:
    """Return the display name of a model or an index: of a folder, its last part."""
    return Path(place).expanduser().resolve().name if place.startswith(LOCAL) else place


def without_paths(text: str) -> str:
    """Return a text with absolute paths cut to their last part, and without those of uploads."""
    return PATH.sub(r"\1", UPLOAD.sub("the file", text))
