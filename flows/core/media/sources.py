"""Finds the media files of a command: files, folders, globs, lists and addresses.

A list file holds paths of media and their prompts; parsing one searches no folder. For a folder,
the module lists its media files and the files in it that are not read. It opens no media file.
"""

import contextlib
import errno
import glob
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.disk.files import OURS, SERVER_FOLDERS, is_hidden
from artifacts.disk.names import one_name, path_on_disk
from artifacts.disk.paths import RealPaths
from artifacts.disk.regular_files import odd_thing, read_bytes, user_text
from artifacts.errors import Unanswered, UsageError
from artifacts.packages import require_extra
from artifacts.remote.addresses import (
    RemoteFile,
    is_address,
    is_object,
    is_web,
    name_in,
    names_folder,
    unsigned,
)
from artifacts.remote.ahead import map_prefetched
from artifacts.remote.media_cache import UNREACHABLE, copy_path
from artifacts.texts.captions import Failure
from artifacts.texts.tables import read_csv
from artifacts.wording import counted
from flows.core.media.generated_files import FORM, text_paths
from flows.core.media.media_file import (
    HEIC_SUFFIXES,
    MEDIA_SUFFIXES,
    MediaFile,
    Selection,
    kind_of,
    source_failure,
    writable,
)
from flows.core.options.text import check_prompts

LIST_BYTES = 1 << 28
"""Largest list in bytes; about a million lines."""
ENTRY_HINT = 'Write {"path": "clip.mp4"}, or {"path": "clip.mp4", "prompt": "What …?"}'
FILES_ONLY = "Name media files and folders only"
PROMPTS_COLUMN = "column `prompts` not read; name it `prompt`, or write prompts in a .jsonl list"
LIST_FORM_HINT = "A list holds one path per line, or is JSON or a .csv with a column `path`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The path and the prompt of one line."""

    name: str
    """Path relative to the list's folder, or an address."""
    prompt: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name → prompt, if the line has several."""
    media_path: str = ""
    """Its name in the outputs; empty: not stated."""
    source: str = ""
    """The argument that named it in an earlier run; empty: not stated."""


def _lines_of(path: Path, source: str) -> Iterator[Line | Failure]:
    """Yield one source per line of a `.txt`, per object of a `.jsonl` or `.json`, or per row of a
    `.csv` or `.tsv`: its `path`, with its `prompt` if given. A list inside a list is an error,
    since it might be the same list."""
    entries_in = STRUCTURED.get(path.suffix.lower(), _text_lines)
    try:
        entries = [*entries_in(user_text(read_bytes(path, LIST_BYTES), path))]
    except (OSError, ValueError, RecursionError, UsageError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}"
        message = f"the list cannot be read: {reason}"
        yield source_failure(source, str(path), "list", message, LIST_FORM_HINT)
        return
    for place, value in entries:
        if isinstance(value, UsageError):
            yield source_failure(source, str(path), "list", value.message, value.hint)
            continue
        try:
            parsed = _entry(value) if entries_in is not _text_lines else Line(name=value)
        except ValueError as error:
            message = f"{place} of the list {error}"
            yield source_failure(source, str(path), "list", message, ENTRY_HINT)
            continue
        entry = parsed.name
        if is_address(entry):
            yield parsed
            continue
        named = path.parent / entry
        if named.suffix.lower() in LIST_SUFFIXES or (
            entry.startswith("@") and not os.path.lexists(named)
        ):
            message = f"{place} names another list"
            yield source_failure(source, entry, "list", message, FILES_ONLY)
            continue
        yield replace(parsed, name=str(named))


def _text_lines(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the place of each entry in a list, and the entry."""
    # splitlines would also split at unusual line separators inside a name or a prompt.
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield f"line {number}", entry


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _text_lines(text):
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError):
            yield place, None


def _json_array(text: str) -> Iterator[tuple[str, Any]]:
    parsed = json.loads(text)
    for number, value in enumerate(parsed if isinstance(parsed, list) else [parsed], 1):
        yield f"entry {number}", {"path": value} if isinstance(value, str) else value


def _table_rows(text: str) -> Iterator[tuple[str, Any]]:
    refused: list[UsageError] = []
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    names, rows = read_csv(text, "the list", delimiter, refused)
    if "path" not in [name.strip().lower() for name in names]:
        raise ValueError("its first line names no column `path`")
    for line, row in rows:
        filled = {name.strip().lower(): cell for name, cell in row.items() if cell.strip()}
        yield f"line {line}", {**filled, "prompts": None}
    yield from (("", error) for error in refused)


STRUCTURED = {".jsonl": _json_lines, ".json": _json_array, ".csv": _table_rows, ".tsv": _table_rows}
"""Suffix of a list → function that yields its entries."""
LIST_SUFFIXES = frozenset((".txt", *STRUCTURED))


def _entry(value: object) -> Line:
    """Parse the fields of a line. Raises ValueError with the cause."""
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(path, str) or not path:
        raise ValueError("names no path")
    prompt = value.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise ValueError("has a prompt that is empty or no text")
    prompts = value.get("prompts") or {}
    if not isinstance(prompts, dict) or (prompts and prompt is not None):
        raise ValueError("has prompts that are no object, or both prompt and prompts")
    try:
        check_prompts(prompts)
        names = {n: value[n] for n in ("media_path", "source") if isinstance(value.get(n), str)}
        os.fsencode(path), "".join([prompt or "", *prompts.values(), *names.values()]).encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair") from error
    except UsageError as error:
        raise ValueError(f"is invalid ({error.message})") from error
    return Line(name=path, prompt=prompt, prompts=prompts, **names)


LEADS_NOWHERE = "the link leads nowhere: its disk may be away"

SUBFOLDERS = 1000
"""Most folders below a source that are looked into for a note."""


def files_in(folder: Path, recursive: bool, unread: Callable[[OSError], None]) -> Iterator[str]:
    """Yield file names in order, relative to the folder. `unread` is called for each folder that
    cannot be read, and each link that leads nowhere."""
    for relative, entries in islice(_folders(folder, unread), None if recursive else 1):
        yield from (os.path.join(relative, name) for name in _file_names(entries))


def _has_prompts(source: str) -> bool:
    """Return whether a source is a table with a column `prompts`: its cells are no objects."""
    path = Path(os.path.expanduser(source.removeprefix("@")))
    with contextlib.suppress(OSError, ValueError):
        if STRUCTURED.get(path.suffix.lower()) is _table_rows:
            header = user_text(read_bytes(path, LIST_BYTES), path).partition("\n")[0]
            return "prompts" in [column.strip() for column in re.split('[,;\t"]', header.lower())]
    return False


def left_out_note(sources: Sequence[str], selection: Selection) -> str:
    """Return a note on folders, and on media of folders, in the sources that are not read, or an
    empty text."""
    unread: list[str] = []
    lost: list[OSError] = []
    names: list[str] = []
    of_servers: set[str] = set()
    for source in sources:
        root = Path(os.path.expanduser(source))
        below = _folders(root, lost.append) if os.path.isdir(root) else iter(())
        for relative, entries in islice(below, 1 + SUBFOLDERS):
            of_servers |= {e.name for e in entries if e.name in SERVER_FOLDERS and is_folder(e)}
            if selection.recursive or not relative:
                names += _file_names(entries)
            elif any(map(selection.takes, _file_names(entries))):
                unread.append(os.path.join(source, relative, ""))
    columns = [f"{writable(place)}: {PROMPTS_COLUMN}" for place in sources if _has_prompts(place)]
    not_taken = [*columns, *filter(None, [selection.not_taken(names)])]
    if selection.recursive:
        listed = ", ".join(sorted(of_servers))
        note = f"not read: folders that servers and systems make for themselves ({listed})"
        return "; ".join([*[note] * bool(listed), *not_taken])
    first = "".join(map(writable, unread[:1])) + ", …" * (len(unread) > 1)
    note = f"{counted(len(unread), 'subfolder')} with media not read ({first}); add --recursive"
    away = [f"{writable(e.filename)}: {LEADS_NOWHERE}" for e in lost if e.strerror == LEADS_NOWHERE]
    return "; ".join([*[note] * bool(unread), *away[:1], *not_taken])


def _file_names(entries: Iterable["os.DirEntry[str]"]) -> Iterator[str]:
    return (e.name for e in entries if not is_hidden(e.name) and not is_folder(e))


def _folders(
    folder: Path, unread: Callable[[OSError], None]
) -> Iterator[tuple[str, list["os.DirEntry[str]"]]]:
    """Yield the folder and those below it that are not hidden, in order, each with all that it
    holds. A folder that a link leads back to is entered once."""
    entered = set()
    folders_left = [""]
    while folders_left:  # not os.walk, which recurses for each subfolder
        relative = folders_left.pop()
        place = os.path.join(folder, relative)
        try:
            stat = os.stat(place)
            if (stat.st_dev, stat.st_ino) in entered:
                continue
            entered.add((stat.st_dev, stat.st_ino))
            with os.scandir(place) as entries:
                members = sorted(entries, key=attrgetter("name"))
        except OSError as error:
            unread(error)
            continue
        if relative and any(entry.name == OURS for entry in members):
            continue  # output of a run: clips, and links to its media
        for link in (e for e in members if e.is_symlink() and not os.path.exists(e.path)):
            is_medium = os.path.splitext(link.name)[1].lower() in MEDIA_SUFFIXES
            if not is_medium and not is_hidden(link.name):
                unread(FileNotFoundError(errno.ENOENT, LEADS_NOWHERE, link.path))
        yield relative, members
        folders = [e.name for e in reversed(members) if not is_hidden(e.name) and is_folder(e)]
        folders_left += (os.path.join(relative, name) for name in folders)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder, or a link to one that can be read."""
    try:
        return entry.is_dir()
    except OSError:  # for example a link to itself
        return False


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
    of_media = set()
    for source in texts:
        path = os.path.abspath(os.path.expanduser(source))
        folder, stem = os.path.dirname(path), one_name(path)[: -len(FORM) - 1]
        if folder not in stems_by_folder and _is_named(folder, paths, recursive):
            stems_by_folder[folder] = _stems_in(folder, names)
        if stem in stems or stem in stems_by_folder.get(folder, ()):
            of_media.add(source)
    return frozenset(of_media)


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
    places = [place for path in media for n in ("", *names) for place in text_paths(Path(path), n)]
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

LookedUp = RemoteFile | FileNotFoundError | Unanswered | UsageError
"""The file at an address, or why it cannot be read."""


class RemoteSources:
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
        new = list(dict.fromkeys(address for address in addresses if address not in self._found))
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
            answer = self._found[address]
            if isinstance(answer, RemoteFile):
                yield _remote_media_file(answer, answer.name, source)
                return
            if isinstance(answer, Unanswered | UsageError):
                kind = UNREACHABLE if isinstance(answer, Unanswered) else "bad-address"
                why = answer.message.removeprefix(f"{unsigned(address)} ")
                yield source_failure(source, unsigned(address), kind, why, answer.hint)
                return
        yield from self._inside(address, source, selection)

    def _inside(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        require_extra("bucket", unsigned(address))
        from artifacts.remote.finding import remote_files_below, remote_files_matching

        entries: Iterable[tuple[str, RemoteFile | None]] = ()
        if not is_web(address) and glob.has_magic(address):
            entries = remote_files_matching(address)
        elif not is_web(address):
            entries = remote_files_below(address, selection.recursive)
        count, names = 0, []
        for name, remote in entries:
            if remote is None and name.endswith("/"):
                count += 1
                folder = "" if glob.has_magic(address) else f"{unsigned(address).rstrip('/')}/"
                place = folder + name.lstrip("/") or unsigned(address)
                yield source_failure(source, place, "bad-name", UNLISTABLE, BAD_NAME_HINT)
            elif selection.takes(name):
                count += 1
                if remote is None:
                    yield source_failure(source, name, "bad-name", BAD_NAME, BAD_NAME_HINT)
                else:
                    yield _remote_media_file(remote, name, source)
            else:
                names.append(name)
        if not count:
            hint = WEB_HINT if is_web(address) else BUCKET_HINT
            message = selection.not_taken(names) or MISSING
            yield source_failure(source, unsigned(address), "missing", message, hint)


def _look_up(address: str) -> LookedUp:
    """Return the file at an address, or why it cannot be read. Raises EnvironmentFault if a bucket
    cannot be read, because the whole run depends on it."""
    require_extra("bucket", unsigned(address))
    from artifacts.remote.finding import remote_file_at

    try:
        return remote_file_at(address)
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


def _remote_media_file(remote: RemoteFile, name: str, source: str) -> MediaFile:
    return MediaFile(
        path=copy_path(remote),
        media_path=writable(name),
        source=writable(unsigned(source)),
        kind=kind_of(remote.name),
        remote=remote,
    )


NAMED_PROMPT = re.compile(r"[a-z]\w*=\S", re.ASCII)
"""What looks like a further prompt, which only an option takes."""
PROMPT_HINT = "If it is a prompt, write --prompts before it, too"
MAX_PATTERN_LENGTH = 4096
"""Longest pattern in characters, equal to the longest path in bytes. Parsing a pattern of 100,000
brackets takes minutes."""
CHECK_NAME = "Check the name; a folder given earlier may have moved"
UNREADABLE = "Check that you may read it and that its disk is there"
OTHER_FORM = (
    "It looks the same, but its accents are stored in another form (as a Mac does): copy that name"
)
NOT_A_FILE = "Name a file or a folder; save the output of a FIFO or a device to a file first"


def find_media(
    sources: Sequence[str],
    selection: Selection,
    limit: int | None = None,
    prompt_for: Callable[[str], str] | None = None,
    names: Iterable[str] = (),
) -> tuple[list[MediaFile], list[Failure]]:
    """Return the files that the sources name, in order and each once per prompt, and the sources
    that were not found. `limit`: at most so many files, spread evenly over all. `prompt_for`
    returns the prompt of a media kind, for files whose line has none. A text next to its medium is
    no list, also with one of these prompt `names`. Raises MissingPackage for a file in HEIC that
    cannot be read."""
    media: list[MediaFile] = []
    failures: list[Failure] = []
    seen: set[tuple[str | None, ...]] = set()
    real = RealPaths()
    remote = RemoteSources()
    remote.look_up(filter(is_object, sources))
    texts = texts_among(sources, recursive=selection.recursive, names=names)
    for source in sources:
        if source in texts:
            continue
        for result in _expand(source, source, selection, remote):
            if isinstance(result, Failure):
                failures.append(result)
                continue
            prompt = result.prompt or (prompt_for(result.kind) if prompt_for else None)
            prompt_fields = [text for pair in result.prompts.items() for text in pair]
            asked = (prompt, *prompt_fields)
            # By its path, which overlapping sources share, and by its name behind links of folders.
            same = {(str(result.path), *asked), (real.of(result.path), result.media_path, *asked)}
            if seen.isdisjoint(same):
                media.append(result)
            seen |= same
    if limit and limit < len(media):  # not the first ones, which may all be of one folder
        media = [media[at * len(media) // limit] for at in range(limit)]
    heic = (file.media_path for file in media if file.path.suffix.lower() in HEIC_SUFFIXES)
    if name := next(heic, ""):
        require_extra("heif", name)
    return media, failures


def why_no_media(sources: Sequence[str], selection: Selection) -> list[Failure]:
    """Return why no source names a medium; empty if one does. It stops at the first medium, and
    counts addresses without asking for them."""
    failures: list[Failure] = []
    remote = RemoteSources(asks=False)
    for source in sources:
        for result in _expand(source, source, selection, remote):
            if isinstance(result, MediaFile):
                return []
            failures.append(result)
    return failures


def _expand(
    text: str, source: str, selection: Selection, remote: RemoteSources
) -> Iterator[MediaFile | Failure]:
    if is_address(text):
        yield from remote.expand(text, source, selection)
        return
    path = Path(os.path.expanduser(text))
    # os.path and not Path: a name that is too long, or in a forbidden folder, counts as missing.
    if text.startswith("@") and not os.path.exists(path):
        listed = Path(text[1:])
        if odd_kind := odd_thing(listed):
            yield _not_a_file(source, str(listed), odd_kind)
        else:
            yield from _listed(listed, source, selection, remote)
    elif os.path.isfile(path) and path.suffix.lower() in LIST_SUFFIXES:
        yield from _listed(path, source, selection, remote)
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
            hint = PROMPT_HINT if NAMED_PROMPT.match(text) else "Check the pattern"
            yield source_failure(source, text, "no-match", message, hint)
        for file in files:
            yield _media_file(file, file.name, source)
    else:
        message, hint = "no such file or folder", CHECK_NAME
        if NAMED_PROMPT.match(text):
            hint = PROMPT_HINT
        elif os.path.islink(path):
            message = f"a link to {writable(os.readlink(path))}, which is not there"
        elif meant := path_on_disk(str(path)):
            hint = f"Did you mean {shlex.quote(writable(meant))}? {OTHER_FORM}"
        yield source_failure(source, text, "missing", message, hint)


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
    path: Path, source: str, selection: Selection, remote: RemoteSources
) -> Iterator[MediaFile | Failure]:
    """Yield the files that the lines of a list name, relative to the list's folder."""
    lines = list(_lines_of(path, source))
    remote.look_up(line.name for line in lines if isinstance(line, Line) and is_object(line.name))
    for line in lines:
        if isinstance(line, Failure):
            yield line
            continue
        by_name = remote.expand if is_address(line.name) else _named
        for result in by_name(line.name, source, selection):
            if isinstance(result, MediaFile):
                result = replace(result, prompt=line.prompt, prompts=line.prompts)
                # The name of one file, and not of the others in a folder.
                if writable(result.place).endswith(f"/{line.media_path}"):
                    named = line.source or source
                    result = replace(result, media_path=line.media_path, source=named)
            yield result
