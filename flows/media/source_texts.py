"""Distinguishes texts of media from lists of media if a command names both, as `clips/*` does."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flows.media.handwritten import FORM, text_paths
from flows.media.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def texts_among(
    sources: Sequence[str], *, recursive: bool, names: Iterable[str] = ()
) -> frozenset[str]:
    """Return the sources that are texts of media, if the command names the media or their folder
    too. Next to `a.mp4` these are `a.txt` and `a.mp4.txt`, and with `names` of prompts
    `a.short.txt`. An `@a.txt` is always a list."""
    texts = [source for source in sources if source.lower().endswith(f".{FORM}")]
    if not texts:
        return frozenset()
    paths = {os.path.abspath(os.path.expanduser(source)) for source in sources}
    media = {path for path in paths if _is_medium(path)}
    names = [*names]
    stems = _stems_of(media, names)
    stems_by_folder: dict[str, set[str]] = {}
    found = set()
    for source in texts:
        path = os.path.abspath(os.path.expanduser(source))
        folder, stem = os.path.dirname(path), path[: -len(FORM) - 1]
        if folder not in stems_by_folder and _is_named(folder, paths, recursive):
            stems_by_folder[folder] = _stems_in(folder, names)
        if stem in stems or stem in stems_by_folder.get(folder, ()):
            found.add(source)
    return frozenset(found)


def _is_medium(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in MEDIA_SUFFIXES and os.path.isfile(path)


def _is_named(folder: str, paths: set[str], recursive: bool) -> bool:
    """Return whether these paths include the media of a folder."""
    while folder not in paths:
        above = os.path.dirname(folder)
        if not recursive or above == folder:
            return False
        folder = above
    return True


def _stems_in(folder: str, names: Sequence[str]) -> set[str]:
    """Return the text paths of a folder's media, without suffix."""
    try:
        files = os.listdir(folder)
    except (OSError, ValueError):  # also for a name with a NUL
        return set()
    paths = (os.path.join(folder, file) for file in files)
    return _stems_of([path for path in paths if _is_medium(path)], names)


def _stems_of(media: Iterable[str], names: Sequence[str]) -> set[str]:
    """Return the possible text paths of these media, without their last suffix."""
    places = [each for path in media for n in ("", *names) for each in text_paths(Path(path), n)]
    return {str(place)[: -len(FORM) - 1] for place in places}
