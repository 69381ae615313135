"""Lists the objects at an address, reads them in ranges, and downloads them.

A download takes ranges in parallel, and resumes where an earlier attempt ended. The file grows in
order, so its length is the resume offset. A partial file from before the last boot is not trusted:
after a power cut its end may hold zeros that were never written.
"""

import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from io import BufferedRandom
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import obstore
from obstore.exceptions import BaseError, NotSupportedError

from artifacts.errors import EnvironmentFault, Unanswered
from artifacts.files import is_hidden
from artifacts.remote.addresses import ONCE, RemoteFile, is_web, unsigned
from artifacts.remote.ahead import OnProgress, map_prefetched
from artifacts.stamps import FileChanged
from artifacts.stores.bucket_client import (
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
    reason,
    variables,
    with_retries,
)
from artifacts.stores.copies import SPARE_BYTES
from artifacts.stores.folder import disk_faults
from artifacts.stores.local import boot_suffix

if TYPE_CHECKING:
    from obstore.store import ObjectStore


WEB_WAITS = (0.4, 1.6)
"""Seconds before a server of the web is asked again; in a long list many may be gone for ever."""
WEB_TRIES = 2
WEB_HINT = (
    "See that the address opens elsewhere and the network is up; the same command then goes on"
)
WEB_SECONDS = 86400.0
"""Longest that an answer may take of a server that gives no parts; it must go on all the while."""
STREAMED_BYTES = 1 << 20
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
    for each in sorted(_listed(folder, recursive), key=lambda each: _walked(each.name)):
        if is_odd(each.name):
            yield each.name, None
        elif not any(map(is_hidden, each.name.split("/"))):
            yield each.name, _remote_file(f"{folder.url}/{each.name}", each)


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


def part_of(remote: RemoteFile, offset: int, length: int) -> bytes | None:
    """Return that many bytes of what was found, from `offset`; None where the server gives no
    parts. Raises FileChanged where something else lies there now, FileNotFoundError and
    EnvironmentFault."""
    client, name = _client(remote.address)

    def ask() -> tuple[bytes, Listed] | None:
        try:
            got = obstore.get(client, name, options={"range": (offset, offset + length)})
        except NotSupportedError:
            return None
        except BaseError as error:
            if any(words in str(error) for words in BEYOND):
                raise FileChanged(remote.place) from None
            raise
        return bytes(got.bytes()), listed(got.meta)

    answer = _with_retries(remote.address, ask)
    if answer is None:
        return None
    body, found = answer
    _same(remote, found)
    return body


def whole(remote: RemoteFile) -> Iterator[bytes]:
    """Yield all bytes of what was found, in order. Raises what `part_of` raises."""
    client, name = _client(remote.address)
    got = _with_retries(remote.address, lambda: obstore.get(client, name))
    _same(remote, listed(got.meta))
    try:
        yield from map(bytes, got.stream(min_chunk_size=STREAMED_BYTES))
    except BaseError as error:
        raise Unanswered(
            f"{remote.place} ended in the middle ({reason(error)})", hint=WEB_HINT
        ) from None


def _same(remote: RemoteFile, found: Listed) -> None:
    """Raise FileChanged unless this is what was found."""
    version = _version(found)
    if found.size != remote.size or (version and version != remote.version):
        raise FileChanged(remote.place)


def _remote_file(address: str, found: Listed) -> RemoteFile:
    return RemoteFile(
        address=address,
        size=found.size,
        version=_version(found) or f"{ONCE}{uuid.uuid4().hex}",
    )


def _version(found: Listed) -> str:
    """Return what tells this content from others; empty where the server tells nothing."""
    dated = found.version != f"{found.size} {found.modified}" or found.modified != 0.0
    return found.version.strip('"') if dated else ""


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
        return client_of(root, plain=plain, tries=WEB_TRIES, seconds=WEB_SECONDS)
    check_variables()
    return client_of(root, plain=allows_http(), tries=INNER_TRIES)


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


RANGE_BYTES = 4 << 20
"""Bytes per range request."""
RANGES_AT_ONCE = 4
"""Concurrent ranges of one object; each is held in memory."""


def part_name() -> str:
    """Return the name of an unfinished file."""
    return f"{boot_suffix()[1:9]}.part"


def fetch(remote: RemoteFile, file: BufferedRandom, on_progress: OnProgress) -> str:
    """Download the missing part of an object into a file with its beginning, and return the SHA-256
    of the whole. `on_progress` gets the number of new bytes, and may raise. Raises FileChanged,
    FileNotFoundError and EnvironmentFault."""
    there = os.fstat(file.fileno()).st_size
    if there > remote.size:
        file.truncate(there := 0)
    folder = Path(file.name).parent
    _check_room(remote, there, folder)
    file.seek(0)
    hashed = hashlib.file_digest(file, "sha256") if there else hashlib.sha256()
    on_progress(there)
    for block in _blocks(remote, there):
        with disk_faults(folder):
            file.write(block)
        hashed.update(block)
        on_progress(len(block))
    with disk_faults(folder):
        file.flush()
        os.fsync(file.fileno())
    if (size := os.fstat(file.fileno()).st_size) != remote.size:
        file.truncate(0)
        raise _cut(remote, size)
    return hashed.hexdigest()


def _cut(remote: RemoteFile, size: int) -> Unanswered:
    return Unanswered(
        f"{remote.place} gave {size:,} of {remote.size:,} bytes", hint="The same command asks again"
    )


def _blocks(remote: RemoteFile, offset: int) -> Iterator[bytes]:
    """Yield the bytes from `offset` on, in order."""
    if offset == remote.size:
        return
    first = part_of(remote, offset, min(RANGE_BYTES, remote.size - offset))
    if first is None:  # the server does not support ranges
        for block in whole(remote):
            yield block[offset:]
            offset = max(0, offset - len(block))
        return
    yield first
    if len(first) != (size := min(RANGE_BYTES, remote.size - offset)):
        raise _cut(remote, offset + len(first))
    starts = range(offset + size, remote.size, RANGE_BYTES)
    threads = min(RANGES_AT_ONCE, len(starts))
    yield from map_prefetched(partial(_range, remote), starts, threads, held=threads)


def _range(remote: RemoteFile, offset: int) -> bytes:
    size = min(RANGE_BYTES, remote.size - offset)
    found = part_of(remote, offset, size) or b""
    if len(found) != size:
        raise _cut(remote, offset + len(found))
    return found


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
