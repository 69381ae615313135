"""The manifest of an index: its files, the model and settings of its vectors, and its measured
search quality.

`index.json` is the only list of files. A file that it does not name does not belong to the index: a
writer ended before publishing it, or readers of an earlier generation still have it open. The
manifest is replaced as a whole, so a reader sees one generation or the next.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.faults import disk_faults, read_fault
from artifacts.disk.files import write_json
from artifacts.disk.json_records import read_record
from artifacts.disk.paths import sync_folder
from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.keys import hash_file

FORMAT = 2
BOOK = "index.json"
RUN = "run"
"""Folder of an index for the record, failures and logs of the last run."""
SUFFIXES = {
    "embeddings": "f16",
    "rows": "parquet",
    "identities": "u64",
    "bits": "u8",
    "deleted": "i64",
    "texts": "f32",
}
"""Sort of a file of an index → suffix of its name."""
SHARD_FILES = ("embeddings", "rows", "identities", "bits")
"""The files of one shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Everything that determines the vectors of an index. Vectors of two makers cannot be
    compared."""

    model: str
    """Name as the user gave it."""
    revision: str | None
    half: str
    """Digest of the half of the checkpoint that made them."""
    recipe: str
    """Digest of how it computes, and of how what it sees is read."""
    precision: str
    width: int
    """Numbers of a vector."""
    text_half: str
    """Digest of the half that reads texts, with its tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexFile:
    """One file of an index as the manifest lists it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexShard:
    """A group of rows with their vectors. It never changes, except that its bits may be
    recomputed."""

    rows: int
    files: Mapping[str, IndexFile]
    """One of each of SHARD_FILES."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchMethod:
    """The result of comparing the two-step search with the exact search."""

    queries: int
    recall: float
    """Share of the ten nearest that the method finds."""
    candidates: int
    """Rows that are compared exactly after the first pass; 0: all are, there is no first pass."""
    centre: str = "pictures"
    """Mean from which the bits of such a query are taken: of `pictures` or of `texts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One version of an index."""

    maker: Maker
    made_by: str
    """Program and version that began it."""
    generation: int = 0
    files_made: int = 0
    """Number that the next file bears: no name is used twice."""
    shards: tuple[IndexShard, ...] = ()
    deleted: IndexFile | None = None
    """Rows that were removed and are still in shards."""
    deleted_rows: int = 0
    texts: IndexFile | None = None
    """Vectors of some texts, by which it is measured how texts find."""
    means: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """`pictures`, and `texts` once some were seen → their mean vector. Bits are taken from it."""
    measured: Mapping[str, SearchMethod] = field(default_factory=dict)
    """`pictures`, `texts` → how well queries of that sort find."""
    measured_rows: int = 0
    """Rows that were there when it was measured."""

    @property
    def rows(self) -> int:
        """Return the number of rows in shards, removed ones among them."""
        return sum(shard.rows for shard in self.shards)

    @property
    def live_rows(self) -> int:
        return self.rows - self.deleted_rows

    def files(self) -> Iterator[IndexFile]:
        """Yield every file of this generation."""
        for shard in self.shards:
            yield from shard.files.values()
        yield from filter(None, (self.deleted, self.texts))


def file_name(sort: str, number: int) -> str:
    """Return the name of a file of an index."""
    return f"{sort}-{number:05d}.{SUFFIXES[sort]}"


def is_of_index(name: str) -> bool:
    """Return whether a writer of indexes gave a file its name."""
    stem, _, suffix = name.rpartition(".")
    sort, _, number = stem.rpartition("-")
    return SUFFIXES.get(sort) == suffix and number.isdigit()


def described(path: Path) -> IndexFile:
    """Return a written file as the manifest has it. Raises EnvironmentFault."""
    try:
        return IndexFile(name=path.name, bytes=path.stat().st_size, sha256=hash_file(path))
    except OSError as error:
        raise read_fault(error, path) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a generation the one that readers see, once its files are on the disk. Raises
    EnvironmentFault."""
    value = asdict(manifest)
    with disk_faults(folder):
        sync_folder(folder)  # names of files before the manifest that names them
        write_json(folder / BOOK, {"format": FORMAT, **value, "digest": digest_of(value)})
        sync_folder(folder)


def has_manifest(folder: Path) -> bool:
    """Return whether there is an index in a folder, of whatever version."""
    return (folder / BOOK).exists()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an index. Raises UsageError where there is none, or one of another
    version, and EnvironmentFault for a damaged one."""
    path = folder / BOOK
    try:
        with open_regular(path) as file:
            value = json.loads(file.read())
        form = value.pop("format")
    except (FileNotFoundError, NotADirectoryError) as error:
        names = [path.name for path in folder.glob("[!.]*")]
        is_taken = folder.is_file() or not all(name == RUN or is_of_index(name) for name in names)
        out = f"{folder}-index" if is_taken else folder
        raise UsageError(
            f"there is no index in {folder}",
            hint=f"Make one: penstock index build SOURCES --model M --out {out}",
        ) from error
    except OSError as error:
        raise read_fault(error, folder) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged_manifest(path) from error
    if type(form) is not int:
        raise damaged_manifest(path)
    if form != FORMAT:
        raise UsageError(
            f"{folder} is an index of version {form}, and this program knows {FORMAT}",
            hint="Build it anew in another folder: what the store has is not made again",
        )
    digest = value.pop("digest", "")
    if digest != digest_of(value):
        raise damaged_manifest(path)
    try:
        manifest = read_record(Manifest, value)
    except TypeError as error:
        raise UsageError(
            f"{path} has other fields than this program knows",
            hint="Use the version of Penstock that wrote it, or build the index in another folder",
        ) from error
    if not all(is_of_index(file.name) for file in manifest.files()):
        raise damaged_manifest(path)
    return manifest


def damaged_manifest(path: Path) -> EnvironmentFault:
    """Return the error of an `index.json` that is not as it was written."""
    return EnvironmentFault(
        f"{path} is damaged",
        hint="Move the folder away and build the index anew: what the store has is not made again",
    )
