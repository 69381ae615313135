"""Computes digests of values, of items and of file contents, and caches those of file contents.

The cache is an append-only JSON-lines file that several processes write to. Each line ends with a
checksum. A lost or damaged line counts as never written, because the file is only a cache. Lines
are short enough to be appended in one write.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import RealPaths
from artifacts.disk.regular_files import open_regular
from artifacts.disk.stamps import FileChanged, ModelFileStamp, Stamp, model_stamp_of, stamp_of

log = logging.getLogger(__name__)

Opener = Callable[[Path, int, int], int]
"""Opens a file by path, flags and mode."""
LARGEST = 1 << 29
"""Bytes that are read, from the end: two million lines, in three seconds."""
LONGEST_LINE = 1 << 16
"""Largest size of a line in bytes. JSON writes each of the 4,096 bytes of a path as up to six."""
_lock = threading.Lock()
_warned: set[Path] = set()


def read_lines(path: Path) -> Iterator[list[Any]]:
    """Yield the intact lines; skip all others."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        file.seek(max(0, stamp_of(file.fileno()).size - LARGEST))
        while line := file.readline(LONGEST_LINE):
            text, _, check = line.rpartition(b', "')
            if check != f'{_check(text)}"]\n'.encode():
                continue  # torn by a crash, flipped by a disk, or from a version without checksums
            with contextlib.suppress(ValueError, RecursionError):
                yield json.loads(text + b"]")


def append_line(path: Path, values: list[Json], opener: Opener = os.open) -> None:
    """Append these values. Raises OSError."""
    text = json.dumps(values)[:-1]
    # Start a new line, since a torn or damaged one may precede it.
    line = f'\n{text}, "{_check(text.encode())}"]\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    file = opener(path, flags, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def warn_of_cache(folder: Path) -> None:
    """Warn, once for a folder in a process, that a cache or a claim in it cannot be written."""
    with _lock:
        is_new = folder not in _warned
        _warned.add(folder)
    if is_new:
        log.warning("%s: what saves work there cannot be written; its owner may allow it", folder)


def _check(text: bytes) -> str:
    """Return a checksum that detects every burst error of up to 32 bits."""
    return f"{zlib.crc32(text):08x}"


DIGESTS = "digests.jsonl"
"""File of the digests, beside the objects of a store."""
LOOKUP_GROUP = 256
"""Files whose digests are looked up per thread task."""


def item_key(namespace: str, media_digest: str, chunk_index: int, *more: Json) -> str:
    """Return the cache key of one stage's output for one chunk. `more` is other input that affects
    it, such as the prompt."""
    return digest_of([namespace, media_digest, chunk_index, *more])


def content_key(digest: str, kind: str) -> str:
    """Return the identity of a medium: its content, and whether it is read as video or image."""
    return digest if kind == "video" else digest_of([digest, kind])


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in 64 hex digits. Raises OSError."""
    with open_regular(path) as file:
        if not stamp_of(file.fileno()).size:  # reading a file of /proc may never end
            return hashlib.sha256().hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


class Content(NamedTuple):
    """The content digest of a file, with the file's stamp."""

    digest: str
    """SHA-256, 64 hex digits."""
    stamp: Stamp | None
    """Stamp of the file that was read; with another stamp the content may differ. None for a copy
    of a remote file, whose path is bound to one content."""


class ModelContent(NamedTuple):
    """The content digest of a model file, with the file's stamp."""

    digest: str
    """SHA-256, 64 hex digits."""
    stamp: ModelFileStamp


class ContentDigests:
    """Content digests of files, cached by file stamp in one JSON-lines file. A lost line costs one
    more read of its file. Lines of model files use another stamp than those of media."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._real = RealPaths()
        self._known: dict[str, Content] = {}
        self._models: dict[str, ModelContent] = {}
        for line in read_lines(memory):
            with contextlib.suppress(ValueError, TypeError):
                name, stamp, digest = line
                if len(stamp) == len(Stamp._fields):
                    self._known[name] = Content(digest, Stamp(*stamp))
                else:
                    self._models[name] = ModelContent(digest, ModelFileStamp(*stamp))

    def of(self, path: Path) -> str:
        """Return the digest of a file. Raises OSError, including FileChanged."""
        return self.content(path).digest

    def content(self, path: Path, *, again: bool = False) -> Content:
        """Return the digest of a file with its stamp. With `again` the file is read even if its
        stamp is the same. Raises OSError, including FileChanged."""
        name = self._real.of(path)
        known = self._remembered(name)
        if known is not None and not again:
            return known
        stamp = stamp_of(name)
        digest = name_in_hub_cache(Path(name)) or hash_file(Path(name))
        if stamp_of(name) != stamp:
            raise FileChanged(path)
        self._known[name] = Content(digest, stamp)
        if self._known[name] != known:
            self._remember(name, stamp, digest)
        return self._known[name]

    def _remember(self, *line: Json) -> None:
        try:
            append_line(self._memory, [*line])
        except OSError:  # a lost line is computed again
            warn_of_cache(self._memory.parent)

    def of_model(self, path: Path) -> ModelContent:
        """Return the digest of a model file with its stamp. Raises OSError, including
        FileChanged."""
        known = self.known_of_model(path)
        if known is not None:
            return known
        name = self._real.of(path)
        stamp, digest = model_stamp_of(name), hash_file(Path(name))
        if (now := model_stamp_of(name)).is_touched(stamp):
            stamp, digest = now, hash_file(Path(name))
        if model_stamp_of(name) != stamp:
            raise FileChanged(path)
        self._models[name] = ModelContent(digest, stamp)
        self._remember(name, stamp, digest)
        return self._models[name]

    def known_of_model(self, path: Path) -> ModelContent | None:
        """Return the same without reading the file, from the cache or from its name in the hub's
        cache. Return None if it must be read."""
        name = self._real.of(path)
        try:
            stamp = model_stamp_of(name)
        except OSError:
            return None
        if named := name_in_hub_cache(Path(name)):
            return ModelContent(named, stamp)
        known = self._models.get(name)
        return known if known is not None and known.stamp == stamp else None

    def of_many(
        self, paths: Sequence[Path], workers: int, *, again: bool = False
    ) -> list[Content | OSError]:
        """Return the content of each file, or the error from reading it. Hashing runs on `workers`
        threads. `again` is as in `content`."""

        def remembered(group: Sequence[Path]) -> list[Content | None]:
            return [None if again else self._remembered(self._real.of(path)) for path in group]

        def one(path: Path) -> Content | OSError:
            try:
                return self.content(path, again=again)
            except OSError as error:
                return error

        groups = [paths[at : at + LOOKUP_GROUP] for at in range(0, len(paths), LOOKUP_GROUP)]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            known = list(chain.from_iterable(pool.map(remembered, groups)))
            unknown = (p for p, content in zip(paths, known, strict=True) if content is None)
            hashed = pool.map(one, unknown)
            return [next(hashed) if content is None else content for content in known]

    def _remembered(self, name: str) -> Content | None:
        """Return the cached content of a file that has not changed since."""
        known = self._known.get(name)
        with contextlib.suppress(OSError):
            if known is not None and known.stamp == stamp_of(name):
                return known
        return None


def name_in_hub_cache(path: Path) -> str | None:
    """Return the SHA-256 that the hub's cache names a large file by. This avoids reading, for
    example, 28 GB."""
    name = path.name
    if path.parent.name == "blobs" and len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    return None
