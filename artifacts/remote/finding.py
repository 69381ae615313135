"""Lists the objects at an address, and downloads them.

A download is one response, and resumes where an earlier one ended. The file grows in order, so its
length is the resume offset.
"""

import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from io import BufferedRandom
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import obstore
from obstore.exceptions import BaseError, NotSupportedError

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import is_hidden
from artifacts.disk.stamps import FileChanged
from artifacts.errors import EnvironmentFault, Unanswered
from artifacts.records.stores.bucket_client import (
    BEYOND,
    HINT,
    INNER_TRIES,
    Answer,
    Bucket,
    InvalidName,
    Listed,
    all_listed,
    allows_http,
    check_variables,
    client_of,
    is_odd,
    listed,
    variables,
    with_retries,
)
from artifacts.records.stores.copies import SPARE_BYTES
from artifacts.remote.addresses import ONCE, RemoteFile, is_web, unsigned
from artifacts.remote.ahead import OnProgress

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore


WEB_WAITS = (0.4, 1.6)
"""Seconds before a server of the web is asked again; in a long list many may be gone for ever."""
WEB_TRIES = 2
WEB_HINT = (
    "See that the address opens elsewhere and the network is up; the same command then goes on"
)
ANSWER_SECONDS = 86400.0
"""Longest that a whole file may take; the server must go on sending all the while."""
CLIENTS = 64
"""Servers whose connections are kept."""
PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
"""Path of an address of the web that is the same however it is spelt."""


def remote_file_at(address: str) -> RemoteFile:
    """Return what lies at an address. Raises FileNotFoundError, UsageError, EnvironmentFault."""
    client, name = _client(address)

    def ask() -> "obstore.ObjectMeta":
        try:
            # Not a HEAD, which a signed address does not let through.
            return obstore.get(client, name, options={"range": (0, 1)}).meta
        except NotSupportedError:
            return obstore.get(client, name).meta
        except BaseError as error:
            if not any(words in str(error) for words in BEYOND):
                raise
            return obstore.head(client, name)  # it is empty

    return _remote_file(address, listed(_with_retries(address, ask)))


def remote_files_below(address: str, recursive: bool) -> Iterator[tuple[str, RemoteFile | None]]:
    """Yield what lies in a folder of a bucket, with its name from there on, in the order of a
    folder on disk; None for what has a name that cannot be asked for, and for a folder that cannot
    be listed because of such a name, which ends with a slash. Hidden names are left out. Raises
    UsageError, EnvironmentFault."""
    folder = Bucket(address)
    for listing in sorted(_listed(folder, recursive), key=lambda file: _walked(file.name)):
        if is_odd(listing.name):
            yield listing.name, None
        elif not any(map(is_hidden, listing.name.split("/"))):
            yield listing.name, _remote_file(f"{folder.url}/{listing.name}", listing)


def _listed(folder: Bucket, recursive: bool) -> list[Listed]:
    """Return the objects below a folder, or in it. Raises EnvironmentFault."""
    with suppress(InvalidName):
        return [*(folder.below("") if recursive else folder.inside("")[1])]
    if folder.url.startswith("s3:"):
        with suppress(BaseError, ElementTree.ParseError, KeyError, ValueError):
            return [*all_listed(folder.url, recursive)]
    return [*_by_folder(folder, recursive)]


def _by_folder(folder: Bucket, recursive: bool) -> Iterator[Listed]:
    """List one folder after another, so that an odd name costs its own folder alone: obstore gives
    no listing with such a name, and none that it does not read itself but of S3."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        try:
            folders, objects = folder.inside(place)
        except InvalidName:
            yield Listed(name=f"{place}/", size=0, modified=0.0, version="")
            continue
        yield from objects
        waiting += folders if recursive else ()


def _walked(name: str) -> list[tuple[bool, str]]:
    """Return what sorts names as a walk does that sees a folder's files before its folders."""
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]


def remote_files_matching(pattern: str) -> Iterator[tuple[str, RemoteFile | None]]:
    """Yield what in a bucket a pattern names, with the file's own name, by name from the pattern's
    folder on; `**` stands for any folders. Raises UsageError, EnvironmentFault."""
    scheme, _, place = pattern.partition("://")
    parts = place.split("/")
    first = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    wanted = parts[max(1, first) :]  # no bucket's name is a pattern
    folder = f"{scheme}://{'/'.join(parts[: max(1, first)])}"
    inside = remote_files_below(folder, recursive=len(wanted) > 1 or "**" in wanted)
    for name, remote in sorted(inside, key=itemgetter(0)):
        if name.endswith("/") or _fits(name.split("/"), wanted):
            yield (remote.name if remote else name), remote


def _same(remote: RemoteFile, listing: Listed) -> None:
    """Raise FileChanged unless this is what was found."""
    version = _version(listing)
    if listing.size != remote.size or (version and version != remote.version):
        raise FileChanged(remote.place)


def _remote_file(address: str, listing: Listed) -> RemoteFile:
    return RemoteFile(
        address=address, size=listing.size, version=_version(listing) or f"{ONCE}{uuid.uuid4().hex}"
    )


def _version(listing: Listed) -> str:
    """Return what tells this content from others; empty where the server tells nothing."""
    dated = listing.version != f"{listing.size} {listing.modified}" or listing.modified != 0.0
    return listing.version.strip('"') if dated else ""


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a path fits a pattern, of which `**` stands for any folders."""
    fits = [False] * len(parts) + [True]  # what follows from each part on
    for word in reversed(pattern):
        if word == "**":
            fits = [any(fits[at:]) for at in range(len(fits))]
        else:
            fits = [fits[at + 1] and fnmatchcase(part, word) for at, part in enumerate(parts)]
            fits.append(False)
    return fits[0]


def _with_retries(address: str, ask: Callable[[], Answer]) -> Answer:
    web = is_web(address)
    waits, hint = (WEB_WAITS, WEB_HINT) if web else (None, HINT)
    return with_retries(unsigned(address), ask, may_lack=True, waits=waits, hint=hint)


@lru_cache(CLIENTS)
def _client_at(root: str, _variables: tuple[tuple[str, str], ...] = ()) -> "ObjectStore":
    """Return what asks a server; another one where the variables say something else."""
    if is_web(root):
        plain = root.lower().startswith("http:")
        return client_of(root, plain=plain, tries=WEB_TRIES, seconds=ANSWER_SECONDS)
    check_variables()
    return client_of(root, plain=allows_http(), tries=INNER_TRIES, seconds=ANSWER_SECONDS)


def _client(address: str) -> tuple["ObjectStore", str]:
    """Return who is asked, and by what name."""
    scheme, _, place = address.partition("://")
    bucket, _, name = place.partition("/")
    if is_web(address):
        if PLAIN_PATH.fullmatch(f"/{name}"):
            return _client_at(f"{scheme}://{bucket}"), name
        return _client_at(address), ""
    if "@" in bucket:
        Bucket(address)  # which refuses it
    return _client_at(f"{scheme}://{bucket}", variables()), name


STREAMED_BYTES = 1 << 20
"""Bytes of an object that are held in memory."""


def fetch(remote: RemoteFile, file: BufferedRandom, on_progress: OnProgress) -> None:
    """Download the missing part of an object into a file with its beginning. `on_progress` gets the
    number of new bytes, and may raise. Raises FileChanged, FileNotFoundError and
    EnvironmentFault."""
    there = file.seek(0, os.SEEK_END)
    if there > remote.size:
        file.truncate(there := 0)
    folder = Path(file.name).parent
    _check_room(remote, there, folder)
    on_progress(there)
    for block in _blocks(remote, there):
        with disk_faults(folder):
            file.write(block)
        on_progress(len(block))
    with disk_faults(folder):
        file.flush()
        os.fsync(file.fileno())


def _blocks(remote: RemoteFile, offset: int) -> Iterator[bytes]:
    """Yield the bytes from `offset` on, in order. If a response ends early, request the rest."""
    client, name = _client(remote.address)
    skipped = 0
    """Bytes before `offset` that a server without ranges sends again."""

    def ask() -> Iterator[bytes]:
        nonlocal skipped
        try:
            span: GetOptions = {"range": {"offset": offset}} if offset else {}
            got, skipped = obstore.get(client, name, options=span), 0
        except NotSupportedError:
            got, skipped = obstore.get(client, name), offset
        except BaseError as error:
            if any(words in str(error) for words in BEYOND):
                raise FileChanged(remote.place) from None
            raise
        _same(remote, listed(got.meta))
        blocks = map(bytes, got.stream(min_chunk_size=STREAMED_BYTES))
        return chain([next(blocks, b"")], blocks)  # a broken first one is requested again

    while offset < remote.size:
        begin = offset
        with suppress(BaseError):
            for block in _with_retries(remote.address, ask):
                new, skipped = block[skipped:], max(0, skipped - len(block))
                offset += len(new)
                yield new
        if offset == begin:
            raise Unanswered(
                f"{remote.place} gave {offset:,} of {remote.size:,} bytes",
                hint="The same command requests the rest",
            )


def check_size(remote: RemoteFile, folder: Path) -> None:
    """Raise Unanswered for an object larger than the whole disk, which is not a real file."""
    if remote.size > (total := shutil.disk_usage(folder).total):
        raise Unanswered(
            f"{remote.place} says that it has {remote.size:,} bytes, and the disk of {folder} has "
            f"{total:,}",
            hint="See that this is the file that you mean",
        )


def _check_room(remote: RemoteFile, there: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < remote.size - there + SPARE_BYTES:
        raise EnvironmentFault(
            f"{folder} has no room for {remote.place}: {remote.size / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free",
            hint="Make room, or set PENSTOCK_NEARBY to a folder on a larger disk",
        )
