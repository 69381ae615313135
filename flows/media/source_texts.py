"""Tells media texts from media lists where a command names both, as `clips/*` does."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flows.media.handwritten import FORM, text_paths
from flows.media.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def texts_among(
    sources: Sequence[str], *, recursive: bool, names: Iterable[str] = ()
) -> frozenset[str]:
    """Return the sources that are the texts of media which the same command names, by themselves or
    by their folder: `a.txt` and `a.mp4.txt` beside `a.mp4`, and with `names` of prompts
    `a.short.txt`. An `@a.txt` is always a list."""
    texts = [source for source in sources if source.lower().endswith(f".{FORM}")]
    if not texts:
        return frozenset()
    paths = {os.path.abspath(os.path.expanduser(source)) for source in sources}
    media = {path for path in paths if _is_medium(path)}
    names = [*names]
    stems = _stems_of(media, names)
    looked_into: dict[str, set[str]] = {}
    found = set()
    for source in texts:
        path = os.path.abspath(os.path.expanduser(source))
        folder, stem = os.path.dirname(path), path[: -len(FORM) - 1]
        if folder not in looked_into and _is_named(folder, paths, recursive):
            looked_into[folder] = _stems_in(folder, names)
        if stem in stems or stem in looked_into.get(folder, ()):
            found.add(source)
    return frozenset(found)


def _is_medium(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in MEDIA_SUFFIXES and os.path.isfile(path)


def _is_named(folder: str, paths: set[str], recursive: bool) -> bool:
    """Return whether the media of a folder are meant by these paths."""
    while folder not in paths:
        above = os.path.dirname(folder)
        if not recursive or above == folder:
            return False
        folder = above
    return True


def _stems_in(folder: str, names: Sequence[str]) -> set[str]:
    """Return the stems of texts of a folder's media."""
    try:
        files = os.listdir(folder)
    except (OSError, ValueError):  # a name with a NUL, too
        return set()
    paths = (os.path.join(folder, file) for file in files)
    return _stems_of([path for path in paths if _is_medium(path)], names)


def _stems_of(media: Iterable[str], names: Sequence[str]) -> set[str]:
    """Return the paths that texts of these media may have, but for their last suffix."""
    places = [each for path in media for n in ("", *names) for each in text_paths(Path(path), n)]
    return {str(place)[: -len(FORM) - 1] for place in places}
