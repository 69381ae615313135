"""Finds the media files of a command: files, folders, globs, lists and addresses. Opens no media
file."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from artifacts.captions import Failure
from artifacts.disk_names import one_name
from artifacts.errors import Unanswered, UsageError
from artifacts.files import SERVER_FOLDERS
from artifacts.paths import RealPaths
from artifacts.regular_files import odd_thing
from artifacts.remote.addresses import (
    FarFile,
    is_address,
    is_object,
    is_web,
    name_in,
    names_folder,
    unsigned,
)
from artifacts.remote.ahead import map_prefetched
from artifacts.remote.media_cache import UNREACHABLE, copy_path
from flows.media.folders import LEADS_NOWHERE, files_in
from flows.media.handwritten import FORM, text_paths
from flows.media.media_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    MediaFile,
    Selection,
    kind_of,
    source_failure,
    writable,
)
from flows.media.source_lists import LIST_SUFFIXES, BadLine, Line, lines_of

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
        folder, stem = os.path.dirname(path), one_name(path)[: -len(FORM) - 1]
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
    return {one_name(place)[: -len(FORM) - 1] for place in places}


AT_ONCE = 32
"""Number of addresses looked up at the same time."""
MISSING = "nothing was found at this address"
WEB_HINT = "Check the address; what was there may have moved"
BUCKET_HINT = "Check the name, or add --recursive"
BAD_ADDRESS = "this is no valid address"
BAD_ADDRESS_HINT = "Check the scheme, host and port, and remove characters that no address may hold"
BAD_NAME = "an object with this name cannot be requested"
BAD_NAME_HINT = "Rename it: no empty part between slashes, no . or .. and no control character"
UNLISTABLE = "this folder cannot be listed (an object in it has an unusable name)"
LIST_HINT = "Copy the list to this machine, and give @LIST: its lines may be addresses"

LookedUp = FarFile | FileNotFoundError | Unanswered | UsageError
"""The file at an address, or why it cannot be read."""


class FarSources:
    """The objects that addresses refer to. Each address is looked up once. If it `asks` no server,
    every address counts as one medium."""

    def __init__(self, *, asks: bool = True) -> None:
        self._found: dict[str, LookedUp] = {}
        self._asks = asks

    def look_up(self, addresses: Iterable[str]) -> None:
        """Look up many addresses at once. Raises UsageError, and EnvironmentFault if a bucket
        cannot be read."""
        if not self._asks:
            return
        new = list(dict.fromkeys(each for each in addresses if each not in self._found))
        self._found |= zip(new, map_prefetched(_look_up, new, min(AT_ONCE, len(new))), strict=True)

    def expand(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        """Yield the objects of an address: an object, those in a folder of a bucket, or those that
        match a pattern there. Raises UsageError and EnvironmentFault."""
        if not self._asks:
            yield MediaFile(path=Path(), media_path=address, source=source, kind=kind_of(address))
            return
        if PurePosixPath(name_in(address)).suffix.lower() in LIST_SUFFIXES:
            message = "a list must be on this machine"
            yield source_failure(source, unsigned(address), "list", message, LIST_HINT)
            return
        if not names_folder(address):
            self.look_up([address])
            found = self._found[address]
            if isinstance(found, FarFile):
                yield _remote_media_file(found, found.name, source)
                return
            if isinstance(found, Unanswered | UsageError):
                kind = UNREACHABLE if isinstance(found, Unanswered) else "bad-address"
                why = found.message.removeprefix(f"{unsigned(address)} ")
                yield source_failure(source, unsigned(address), kind, why, found.hint)
                return
        yield from self._inside(address, source, selection)

    def _inside(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        from artifacts.remote.finding import far_files_below, far_files_matching

        entries: Iterable[tuple[str, FarFile | None]] = ()
        if not is_web(address) and glob.has_magic(address):
            entries = far_files_matching(address)
        elif not is_web(address):
            entries = far_files_below(address, selection.recursive)
        count, names = 0, []
        for name, far in entries:
            if far is None and name.endswith("/"):
                count += 1
                folder = "" if glob.has_magic(address) else f"{unsigned(address).rstrip('/')}/"
                place = folder + name.lstrip("/") or unsigned(address)
                yield source_failure(source, place, "bad-name", UNLISTABLE, BAD_NAME_HINT)
            elif selection.takes(name):
                count += 1
                if far is None:
                    yield source_failure(source, name, "bad-name", BAD_NAME, BAD_NAME_HINT)
                else:
                    yield _remote_media_file(far, name, source)
            else:
                names.append(name)
        if not count:
            hint = WEB_HINT if is_web(address) else BUCKET_HINT
            message = selection.not_taken(names) or MISSING
            yield source_failure(source, unsigned(address), "missing", message, hint)


def _look_up(address: str) -> LookedUp:
    """Return the file at an address, or why it cannot be read. Raises EnvironmentFault if a bucket
    cannot be read, because the whole run depends on it."""
    from artifacts.remote.finding import far_file_at

    try:
        return far_file_at(address)
    except FileNotFoundError as error:
        return error
    except (UsageError, ValueError) as error:
        if isinstance(error, UsageError) and not is_web(address):
            raise
        return UsageError(BAD_ADDRESS, hint=BAD_ADDRESS_HINT)
    except Unanswered as error:
        if not is_web(address):
            raise
        return error


def _remote_media_file(far: FarFile, name: str, source: str) -> MediaFile:
    return MediaFile(
        path=copy_path(far),
        media_path=writable(name),
        source=writable(unsigned(source)),
        kind=kind_of(far.name),
        far=far,
    )


MAX_PATTERN_LENGTH = 4096
"""Longest pattern in characters, equal to the longest path in bytes. Parsing a pattern of 100,000
brackets takes minutes."""
UNREADABLE = "Check that you may read it and that its disk is there"
NOT_A_FILE = "Name a file or a folder; save the output of a FIFO or a device to a file first"


def find_media(
    sources: Sequence[str],
    selection: Selection,
    limit: int | None = None,
    prompt_for: Callable[[str], str] | None = None,
    names: Iterable[str] = (),
) -> tuple[list[MediaFile], list[Failure]]:
    """Return the files that the sources name, in order and each once per prompt, and the sources
    that were not found. `prompt_for` returns the prompt of a media kind, for files whose line has
    none. A text next to its medium is no list, also with one of these prompt `names`."""
    found: list[MediaFile] = []
    failures: list[Failure] = []
    seen: set[tuple[str | None, ...]] = set()
    real = RealPaths()
    far = FarSources()
    far.look_up(filter(is_object, sources))
    texts = texts_among(sources, recursive=selection.recursive, names=names)
    for source in sources:
        if source in texts:
            continue
        for result in _expand(source, source, selection, far):
            if isinstance(result, Failure):
                failures.append(result)
                continue
            prompt = result.prompt or (prompt_for(result.kind) if prompt_for else None)
            prompt_fields = [text for pair in result.prompts.items() for text in pair]
            identity = (real.of(result.path), result.media_path, prompt, *prompt_fields)
            if identity not in seen:
                seen.add(identity)
                found.append(result)
    return found[:limit], failures


def why_no_media(sources: Sequence[str], selection: Selection) -> list[Failure]:
    """Return why no source names a medium; empty if one does. It stops at the first medium, and
    counts addresses without asking for them."""
    failures: list[Failure] = []
    far = FarSources(asks=False)
    for source in sources:
        for result in _expand(source, source, selection, far):
            if isinstance(result, MediaFile):
                return []
            failures.append(result)
    return failures


def _expand(
    text: str, source: str, selection: Selection, far: FarSources
) -> Iterator[MediaFile | Failure]:
    if is_address(text):
        yield from far.expand(text, source, selection)
        return
    path = Path(os.path.expanduser(text))
    # os.path and not Path: a name that is too long, or in a forbidden folder, counts as missing.
    if text.startswith("@") and not os.path.exists(path):
        listed = Path(text[1:])
        if odd_kind := odd_thing(listed):
            yield _not_a_file(source, str(listed), odd_kind)
        else:
            yield from _listed(listed, source, selection, far)
    elif os.path.isfile(path) and path.suffix.lower() in LIST_SUFFIXES:
        yield from _listed(path, source, selection, far)
    else:
        yield from _named(text, source, selection)


def _named(text: str, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    """Yield the files of a name that is no list."""
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        yield from _folder(path, source, selection)
    elif os.path.exists(path):
        yield _media_file(path, path.name, source)
    elif glob.has_magic(text) and "\0" not in text and len(text) < MAX_PATTERN_LENGTH:
        matches = sorted(glob.glob(os.path.expanduser(text), recursive=True))
        # A pattern means the folders of a file server only if it names them.
        unnamed = SERVER_FOLDERS.difference(Path(text).parts)
        files = [Path(m) for m in matches if not os.path.isdir(m) and selection.takes(m)]
        files = [file for file in files if unnamed.isdisjoint(file.parts)]
        if not files:
            message = selection.not_taken(matches) or "no media file matches"
            yield source_failure(source, text, "no-match", message, "Check the pattern")
        for file in files:
            yield _media_file(file, file.name, source)
    else:
        hint = "Check the name; a folder given earlier may have moved"
        yield source_failure(source, text, "missing", "no such file or folder", hint)


def _media_file(path: Path, name: str, source: str) -> MediaFile | Failure:
    """Return an existing file. Anything else is never opened."""
    if odd_kind := odd_thing(path):
        return _not_a_file(source, name, odd_kind)
    return MediaFile(
        path=Path(os.path.abspath(path)),
        media_path=writable(name),
        source=writable(source),
        kind=kind_of(path.name),
    )


def _not_a_file(source: str, name: str, odd_kind: str) -> Failure:
    return source_failure(source, name, "not-a-file", f"this is {odd_kind}, not a file", NOT_A_FILE)


def _folder(folder: Path, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    count, names = 0, []
    unread: list[OSError] = []
    for name in files_in(folder, selection.recursive, unread.append):
        if selection.takes(name):
            count += 1
            yield _media_file(folder / name, name, source)
        else:
            names.append(name)
    if not selection.recursive:  # `left_out_note` names the links
        unread = [error for error in unread if error.strerror != LEADS_NOWHERE]
    for error in unread:
        message = f"the folder cannot be read ({error.strerror})"
        yield source_failure(source, str(error.filename), "unreadable", message, UNREADABLE)
    if not count and not unread:
        hint = "Check the folder, or add --recursive" if not selection.recursive else "Check it"
        message = selection.not_taken(names) or "no media file in this folder"
        yield source_failure(source, str(folder), "no-media", message, hint)


def _listed(
    path: Path, source: str, selection: Selection, far: FarSources
) -> Iterator[MediaFile | Failure]:
    """Yield the files that the lines of a list name, relative to the list's folder."""
    lines = list(lines_of(path))
    far.look_up(line.name for line in lines if isinstance(line, Line) and is_object(line.name))
    for line in lines:
        if isinstance(line, BadLine):
            yield source_failure(source, line.name, "list", line.message, line.hint)
            continue
        by_name = far.expand if is_address(line.name) else _named
        for result in by_name(line.name, source, selection):
            if isinstance(result, MediaFile):
                result = replace(result, prompt=line.prompt, prompts=line.prompts)
                # The name of one file, and not of the others in a folder.
                if writable(result.place).endswith(f"/{line.media_path}"):
                    named = line.source or source
                    result = replace(result, media_path=line.media_path, source=named)
            yield result
