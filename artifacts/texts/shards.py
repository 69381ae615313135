"""Writes WebDataset shards: numbered tar files of samples, whose files share a key.

A sample of a data set is a caption, its key, and the media bytes that belong to it. `index.json`
lists the contents of each shard.

A shard whose contents would stay the same is left alone. New shards are written in a folder of
their own and renamed when all are complete. If a run is stopped before that, the next one takes the
clips of the shards that it finished.
"""

import contextlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from artifacts.digests import digest_of
from artifacts.disk.faults import disk_faults
from artifacts.disk.files import HALF, encoded, replace_file, whole_file, write_json
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import BYTES
from artifacts.disk.regular_files import open_regular, read_text, refuse_links
from artifacts.disk.stamps import Stamp, stamp_of
from artifacts.errors import EnvironmentFault
from artifacts.texts.captions import Caption, fields_of_row

OWN_MEMBERS = ("txt", "json")
SLUG_LETTERS = 40
"""Number of characters of a medium's name in a key."""
OUTPUT_VERSION = 3
"""Raised when samples are written differently for the same captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """The media bytes of a sample."""

    path: Path
    suffix: str
    start: float = 0.0
    """Seconds of the media file at which the chunk starts."""
    stamp: Stamp | None = None
    """Stamp that the file must still have; None: any."""
    clip: str = ""
    """Key of the clip that these are; empty: a file of its own."""
    at: int = 0
    """Place of the bytes in the file."""
    size: int | None = None
    """Number of bytes; None: all of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One chunk of a medium, as written into a shard."""

    key: str
    row: Caption
    """The caption of the chunk."""
    content: str
    """Content digest of its medium."""
    made: str = ""
    """How its media are made: mode and version."""
    chunk: int = 0
    """Index of the chunk in its medium."""
    others: tuple[Caption, ...] = ()
    """Captions of other prompts for the chunk."""

    @property
    def rows(self) -> tuple[Caption, ...]:
        """Return all captions of the chunk."""
        return (self.row, *self.others)

    def digest(self) -> str:
        rows = [fields_of_row(row) for row in self.rows]
        return digest_of([OUTPUT_VERSION, self.key, *rows, self.content, self.made])

    @property
    def clip(self) -> str:
        """Return the key of its clip, which all prompts of the chunk share."""
        row = self.row
        digits = clip_id(self.made, self.content, row.start, row.end)
        return _named(row.media_path, digits, self.chunk)


Samples = Iterator[tuple[Sample, Media | None]]


def clip_id(made: str, content: str, start: float, end: float) -> str:
    """Return the digits of a clip's key, which depend on what it shows and how it is made."""
    return _digits([made, content, start, end])


def sample_key(media_path: str, content: str, prompt: str, copy: int, chunk: int) -> str:
    """Return a key of characters that no tool treats as a folder or suffix. It is the same in every
    run. `copy` numbers samples that are equal otherwise."""
    return _named(media_path, _digits([media_path, content, prompt, copy]), chunk)


def _digits(identity: Sequence[object]) -> str:
    return digest_of(identity)[:12]


def _named(media_path: str, digits: str, chunk: int) -> str:
    slug = re.sub("[^A-Za-z0-9_-]+", "_", PurePosixPath(media_path).stem)[:SLUG_LETTERS].strip("_")
    return f"{slug or 'media'}-{digits}-{chunk:05d}"


def media_suffix(name: str) -> str:
    """Return the suffix under which readers find the bytes of a file."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    plain = re.fullmatch("[a-z0-9]{1,8}", suffix) and suffix not in OWN_MEMBERS
    return suffix if plain else "bin"


SHARD_BYTES = 1_000_000_000
"""Size in bytes at which a shard is full; a single sample may be larger."""
SHARD_SAMPLES = 10_000
"""Number of samples at which a shard is full."""
DATASET = "webdataset"
"""The format, and its folder in `OUT`."""
INDEX = "index.json"
UNFINISHED, LEFT = f"{HALF}new", f"{HALF}left"
"""Folders of the new shards, and of those that stopped runs finished."""
NUMBERED = "[0-9]" * 6 + ".tar"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One shard as the index lists it."""

    name: str
    samples: int
    without_media: int
    """Samples whose media were not available."""
    bytes: int
    digest: str
    """Digest of its samples."""
    full: bool
    """Whether another sample did not fit."""


def kept_shards(folder: Path, digests: Sequence[str]) -> list[Shard]:
    """Return the first shards that would be written again with the same content."""
    kept: list[Shard] = []
    at = 0
    for number, shard in enumerate(read_index(folder)):
        beyond = at + shard.samples
        is_whole = shard.full or beyond == len(digests)
        same = shard.digest == digest_of(list(digests[at:beyond]))
        if not (is_whole and same and shard.name == _name(number) and _is_there(folder, shard)):
            break
        kept.append(shard)
        at = beyond
    return kept


def read_index(folder: Path) -> list[Shard]:
    """Read the index of a folder; empty if it is missing or unreadable."""
    try:
        index = json.loads(read_text(folder / INDEX, BYTES))
        return read_record(list[Shard], index["shards"])
    except (OSError, ValueError, TypeError, KeyError):
        return []


def clips_in(folder: Path) -> dict[str, Media]:
    """Return the key of each clip in the shards of a folder, and in those that stopped runs left →
    its bytes there. Raises EnvironmentFault."""
    clips: dict[str, Media] = {}
    paths = (folder / shard.name for shard in read_index(folder) if _is_there(folder, shard))
    for path in (*paths, *_left(folder)):
        members: dict[str, tarfile.TarInfo] = {}
        with (
            contextlib.suppress(OSError, ValueError, tarfile.TarError, LookupError, TypeError),
            open_regular(path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if suffix != "json":
                    members.setdefault(key, member)  # the media come first
                    continue
                file.seek(member.offset_data)
                line = json.loads(file.read(member.size))
                if clip := line.get("clip"):
                    media = members[key]
                    clips[str(clip)] = Media(
                        path=path,
                        suffix=media_suffix(media.name),
                        start=float(line["media_start"]),
                        clip=str(clip),
                        at=media.offset_data,
                        size=media.size,
                    )
    return clips


def _left(folder: Path) -> list[Path]:
    """Return the shards that stopped runs finished. They lie aside until `write_shards` has written
    all. Raises EnvironmentFault."""
    unfinished, left = folder / UNFINISHED, folder / LEFT
    refuse_links(left)
    refuse_links(unfinished)
    with disk_faults(left):
        for path in unfinished.glob(NUMBERED):
            left.mkdir(exist_ok=True)
            path.replace(left / path.name)
    return sorted(left.glob(NUMBERED))


def write_shards(folder: Path, kept: Sequence[Shard], samples: Samples) -> list[Shard]:
    """Write the samples after the kept shards, and return all shards. A sample's media are read
    before the next sample is taken. If it raises EnvironmentFault, the old shards stay, and those
    that it finished wait for the next run."""
    unfinished = folder / UNFINISHED
    shards = list(kept)
    refuse_links(folder)
    with disk_faults(folder):
        shutil.rmtree(unfinished, ignore_errors=True)  # from a killed run
        unfinished.mkdir(parents=True)
    pending = next(samples, None)
    while pending is not None:
        name = _name(len(shards))
        with whole_file(unfinished / name) as file:
            shard, pending = _fill(file, name, pending, samples)
        shards.append(shard)
    with disk_faults(folder):
        _place(folder, unfinished, shards, len(kept))
    for finished in (unfinished, folder / LEFT):
        shutil.rmtree(finished, ignore_errors=True)
    return shards


def _place(folder: Path, unfinished: Path, shards: Sequence[Shard], kept: int) -> None:
    """Rename new shards into place. Until all are, the index lists only those that were kept."""
    write_json(folder / INDEX, {"shards": [asdict(shard) for shard in shards[:kept]]})
    for shard in shards[kept:]:
        replace_file(unfinished / shard.name, folder / shard.name)
    names = {shard.name for shard in shards}
    for path in folder.glob(NUMBERED):
        if path.name not in names:
            path.unlink()
    write_json(folder / INDEX, {"shards": [asdict(shard) for shard in shards]})


def _fill(
    file: IO[bytes], name: str, first: tuple[Sample, Media | None], rest: Samples
) -> tuple[Shard, tuple[Sample, Media | None] | None]:
    """Fill one shard. Return it, and the sample that did not fit."""
    digests: list[str] = []
    bare = 0
    pending: tuple[Sample, Media | None] | None = first
    # GNU headers equal POSIX ones for short names, and support sizes beyond 8 GB.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        while pending is not None:
            sample, media = pending
            size = _size(media) if media is not None else 0
            if digests and (len(digests) >= SHARD_SAMPLES or tar.offset + size > SHARD_BYTES):
                break
            bare += not _add(tar, file, sample, media, size)
            digests.append(sample.digest())
            pending = next(rest, None)
    return Shard(
        name=name,
        samples=len(digests),
        without_media=bare,
        bytes=file.tell(),
        digest=digest_of(digests),
        full=pending is not None,
    ), pending


def _add(
    tar: tarfile.TarFile, file: IO[bytes], sample: Sample, media: Media | None, size: int
) -> bool:
    """Add a sample. Return whether its media were added."""
    has = media is not None and _add_media(tar, file, sample.key, media, size)
    line = {**fields_of_row(sample.row), "media_start": media.start if media and has else None}
    if has and media is not None and media.clip:
        line["clip"] = media.clip
    if sample.others:
        line["captions"] = {row.name: fields_of_row(row) for row in sample.rows}
    texts = {f"{row.name}.txt" if row.name else "txt": row.caption for row in sample.rows}
    texts["json"] = encoded(line)
    for suffix, text in texts.items():
        data = text.encode("utf-8", errors="replace")
        tar.addfile(_tar_entry(f"{sample.key}.{suffix}", len(data)), BytesIO(data))
    return has


def _add_media(tar: tarfile.TarFile, file: IO[bytes], key: str, media: Media, size: int) -> bool:
    """Add a file's bytes, and return whether they were added. A file that changed since it was
    captioned is not added."""
    at = tar.offset
    with _reading(media.path) as source:

        def same() -> bool:
            return media.stamp is None or stamp_of(source.fileno()) == media.stamp

        if same():
            source.seek(media.at)
            try:
                tar.addfile(_tar_entry(f"{key}.{media.suffix}", size), source)
            except OSError:
                if same():
                    raise  # such as a full disk
            if same():
                return True
    file.seek(at)
    file.truncate()
    tar.offset = at
    return False


def _tar_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # without time and owner, so that equal samples are equal bytes
    entry.size = size
    return entry


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
        except OSError as error:
            raise EnvironmentFault(
                f"{path} cannot be read any more ({error.strerror})",
                hint="Check its disk; the same command then continues",
            ) from error
        yield file


def _size(media: Media) -> int:
    if media.size is not None:
        return media.size
    with _reading(media.path) as file:
        return file.seek(0, 2)


def _name(number: int) -> str:
    return f"{number:06d}.tar"


def _is_there(folder: Path, shard: Shard) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes
