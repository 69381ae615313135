"""Divides the files of a run into partitions that separate machines can process.

The division depends only on the files, and not on the number of workers. In 16 bit a chunk's output
depends on its batch, and batches are formed from a run's files. A partition is a list file in the
run's folder, named by the digest of its contents, so that a restarted run finds the same
partitions.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.files import write_text
from artifacts.remote.addresses import signed
from artifacts.texts.captions import Failure
from flows.core.job.prepare import media_of, out_folder
from flows.core.job.young_files import files_by_age
from flows.core.media.media_file import MediaFile
from flows.core.options.commands import RunOptions

PORTIONS = "portions"
"""Folder of the lists, inside the run's folder."""
FILES = 50
"""Files per partition. At ten seconds per file this is minutes of work, so starting a run costs
little. Partitions are still small enough that no worker waits long for the last one."""
BYTES = 8 << 30
"""Largest size of a partition's media in bytes, however few they are."""
DIGITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A list of sources that one run processes."""

    name: str
    """Digest of its lines."""
    path: Path
    files: int
    bytes: int
    """Size of its media."""


def partitions_of(
    config: RunOptions, max_files: int = FILES
) -> tuple[list[Partition], list[Failure]]:
    """Write the lists of a run's files, at most `max_files` files each. Return them, and the
    sources that were not found. Reads only names and sizes. Raises EnvironmentFault."""
    files, failures = media_of(config)
    by_age = files_by_age(files, config.min_age, config.out)
    if not by_age.resting and (nothing_yet := by_age.nothing_yet(failures)):
        raise nothing_yet
    folder = out_folder(config) / PORTIONS
    sized = [(file, _size(file)) for file in by_age.resting]
    return [_write(folder, part) for part in cut(sized, max_files)], failures


def cut(
    sized: Iterable[tuple[MediaFile, int]], max_files: int, limit: int = BYTES
) -> Iterator[list[tuple[MediaFile, int]]]:
    """Yield groups of consecutive files with their sizes, limited in number and total size."""
    part: list[tuple[MediaFile, int]] = []
    for file, size in sized:
        if part and (len(part) == max_files or sum(s for _, s in part) + size > limit):
            yield part
            part = []
        part.append((file, size))
    if part:
        yield part


def _write(folder: Path, part: Sequence[tuple[MediaFile, int]]) -> Partition:
    lines = [json.dumps(_line(file, _address(file))) + "\n" for file, _ in part]
    # The name ignores signatures, so that newly signed addresses give the same name.
    name = digest_of([json.dumps(_line(file, file.place)) + "\n" for file, _ in part])[:DIGITS]
    path = folder / f"{name}.jsonl"
    has_signatures = any(signed(_address(file)) for file, _ in part)
    if has_signatures or not path.exists():
        write_text(path, lines)
    if has_signatures:
        path.chmod(0o600)
    return Partition(name=name, path=path, files=len(part), bytes=sum(size for _, size in part))


def _address(file: MediaFile) -> str:
    return file.remote.address if file.remote else str(file.path)


def _line(file: MediaFile, path: str) -> dict[str, object]:
    prompts = {"prompt": file.prompt, "prompts": dict(file.prompts)}
    return {"path": path, **{name: value for name, value in prompts.items() if value}}


def _size(file: MediaFile) -> int:
    if file.remote is not None:
        return file.remote.size
    try:
        return file.path.stat().st_size
    except OSError:  # the run of the partition reports the error
        return 0
