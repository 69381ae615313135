"""Fills an index with the vectors of a job, and measures it.

Images go through the stages of `penstock embed`, and the stored vectors are appended. A lost index
can therefore be rebuilt without a model.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.files import refuse_foreign
from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit, EnvironmentFault, UsageError
from artifacts.index.gone_files import GoneFiles
from artifacts.index.manifest import RUN, has_manifest, is_of_index, read_manifest
from artifacts.index.shard import MEDIUM, ROW, IndexRow, identities_of, medium_of
from artifacts.index.snapshot import of_all, paths_of
from artifacts.index.upkeep import is_due, measure, note_texts
from artifacts.index.writing import (
    LOCK,
    Added,
    IndexWriter,
    merge_small,
    refuse_other,
    within,
    writing,
)
from artifacts.packages import require_extra
from artifacts.records.vectors import vectors_in
from artifacts.texts.captions import write_jsonl
from artifacts.wording import counted, first_of
from flows.commands.search.query import REFERENCE_TEXTS, maker_of, read_texts
from flows.core.console.display import Display
from flows.core.job.away import AWAY, mounts_in
from flows.core.job.prepare import Job, out_folder
from flows.core.machine.launch import DirectLauncher
from flows.core.machine.versions import versions
from flows.core.media.media_file import source_failure
from flows.core.options.vectors import VectorConfig
from flows.execution.run import LauncherMaker, VectorOutputs, make_vectors
from flows.execution.run_observer import OnBegin
from flows.outputs.vectors import FileTask, VectorsWritten, frames_of, vector_tasks
from flows.outputs.write import failures_of, warned_files
from stages.decode.engines import AUTO

CHUNKS_PER_READ = 256
"""Number of chunks whose vectors are read at once."""


@dataclass(kw_only=True, slots=True)
class IndexWritten(VectorsWritten):
    """The result of a run that filled an index."""

    folder: Path
    """The folder of the index."""
    added: int = 0
    """Number of rows that are new."""
    replaced: int = 0
    """Number of removed rows, of earlier contents of the files or of other options."""
    remade: int = 0
    """Number of those among them whose files are as they were: only the options differ."""
    vanished: tuple[str, ...] = field(default=())
    """Files with rows in the index that no longer exist."""

    def to_json(self) -> dict[str, Json]:
        fields: dict[str, Json] = {"index": str(self.folder), "added": self.added}
        fields |= {"replaced": self.replaced, "vanished": list(self.vanished)}
        return {**super(IndexWritten, self).to_json(), **fields}

    def row(self) -> dict[str, Json]:
        fields = {"files": self.files, "rows": self.vectors, "new": self.added}
        return {**fields, "gone": len(self.vanished), "folder": str(self.folder)}

    def line(self) -> str:
        line = f"{counted(self.vectors, 'row')} in {self.folder}, {self.added:,} of them new"
        if changed := self.replaced - self.remade:
            line += f"; {changed:,} of files that changed were removed"
        if self.remade:
            line += f"; {self.remade:,} made with other options were removed"
        if count := len(self.failures) - len(self.away):
            line += f"; {count} of {counted(self.files, 'file')} failed"
        if self.away:
            line += f"; away: {first_of(self.away)}"
        return line

    __repr__ = line


def fill_index(
    config: VectorConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
    *,
    look_for_vanished: bool = True,
) -> IndexWritten:
    """Append the vectors of the configuration's media to the index `out`, which is created if
    needed. `on_begin` is as in `caption`. Raises PenstockError; finished work stays."""
    folder = out_folder(config)
    require_extra("search", "an index")
    for option, choices in (("precision", "native, fp16, int8"), ("vision_backend", "torch, onnx")):
        if getattr(config, option) == AUTO:
            raise UsageError(
                f"--{option.replace('_', '-')} auto: not supported by an index (all its vectors "
                "need the same settings)",
                hint=f"Choose one: {choices}",
            )
    if not has_manifest(folder):
        named = (path.name for path in folder.glob("*") if is_of_index(path.name))
        refuse_foreign(folder, (RUN, LOCK, *named), ())
    outputs = VectorOutputs(
        partial(_places, folder),
        partial(_append, folder, look_for_vanished),
        another=f"give another {'--out' if look_for_vanished else '--index'}",
    )
    request = replace(config, out=str(folder / RUN))
    written = make_vectors(request, display, outputs, make_launcher, on_begin)
    if has_manifest(folder):
        _measure(config, folder, display)
    return written


def _places(folder: Path, job: Job) -> dict[str, str]:
    """Return the output paths. Raises UsageError if the folder holds vectors of another model,
    before any are computed."""
    if has_manifest(folder):
        there = read_manifest(folder).maker
        refuse_other(folder, there, maker_of(job, there.width))
    names = {"failures": "failures.jsonl", "logs": "logs"}
    return {"index": str(folder), **{name: str(job.out / file) for name, file in names.items()}}


def _append(folder: Path, look_for_vanished: bool, job: Job) -> IndexWritten:
    made = list(vector_tasks(job))
    written = IndexWritten(
        out=job.out,
        folder=folder,
        files=job.requested,
        failures=failures_of(job),
        warned=warned_files(job),
    )
    if made:
        kept = job.ledger["embeddings"]
        written.width = int(kept.meta(made[0][1]["embeddings"])["width"])
        maker = maker_of(job, written.width)
        with writing(folder, maker, f"penstock {versions().get('penstock', '')}") as writer:
            known, rows = writer.known(), np.empty(0, np.uint64)
            missing: list[FileTask] = []
            lengths: list[int] = []
            for group in _groups(made):
                identities = [identities_of(_rows_of(job, one))[ROW] for one in group]
                rows = np.concatenate([rows, *identities])
                lengths += map(len, identities)
                missing += [
                    one
                    for one, numbers in zip(group, identities, strict=True)
                    if not all(within(numbers, known))
                ]
            written.added = writer.add(_vectors(job, missing))
            written.replaced, written.remade = _remove_replaced(writer, job, made, rows)
            merge_small(writer)
            there = np.split(within(rows, writer.known()), np.cumsum(lengths)[:-1])
            written.chunks = Counter(
                file for (file, _), rows_there in zip(made, there, strict=True) if all(rows_there)
            )
    if has_manifest(folder):
        written.vectors = read_manifest(folder).live_rows
        if look_for_vanished:
            gone = GoneFiles(mounts_in(job.out))
            written.vanished = _vanished(folder, job, gone)
            written.failures += [
                source_failure(
                    "",
                    absence.folder,
                    AWAY,
                    f"{absence.reason}: rows of {counted(count, 'file')} kept",
                    hint,
                )
                for absence, count, hint in gone.kept(folder)
            ]
    write_jsonl(job.out / "failures.jsonl", written.failures)
    return written


def _groups(made: Sequence[FileTask]) -> Iterator[list[FileTask]]:
    left = iter(made)
    while group := list(islice(left, CHUNKS_PER_READ)):
        yield group


def _rows_of(job: Job, one: FileTask) -> list[IndexRow]:
    file, task = one
    frames = frames_of(job, task)
    levels = task.levels if task.is_cut else [0] * len(frames)
    return [
        IndexRow(
            key=task["embeddings"],
            path=file.place,
            media_path=file.media_path,
            digest=task.medium.digest,
            time=time,
            box=None if box is None else (box[0], box[1], box[2], box[3]),
            level=level,
        )
        for (time, box), level in zip(frames, levels, strict=True)
    ]


def _vectors(job: Job, made: Sequence[FileTask]) -> Iterator[Added]:
    kept = job.ledger["embeddings"]
    for group in _groups(made):
        parts = kept.read_several([task["embeddings"] for _, task in group])
        rows = [row for one in group for row in _rows_of(job, one)]
        yield rows, np.concatenate(list(map(vectors_in, parts)))


def _remove_replaced(
    writer: IndexWriter, job: Job, made: Sequence[FileTask], rows: NDArray[np.uint64]
) -> tuple[int, int]:
    """Remove rows of earlier contents or settings of a file, if all chunks of that file have
    vectors. Return their number, and that of those whose content is the same."""
    chunks: dict[str, int] = {}
    for file, _ in made:
        chunks[file.place] = chunks.get(file.place, 0) + 1
    whole = {
        medium_of(job_file.file.place)
        for job_file in job.files
        if chunks.get(job_file.file.place, 0) >= len(job.ledger.tasks([job_file.medium])) > 0
    }
    snapshot = writer.snapshot()
    of_these = np.isin(of_all(snapshot, MEDIUM), np.array(sorted(whole), np.uint64))
    old = of_these & ~np.isin(of_all(snapshot, ROW), rows) & snapshot.live()
    contents = {(job_file.file.place, job_file.medium.digest) for job_file in job.files}
    removed = np.flatnonzero(old)
    remade = sum((row.path, row.digest) in contents for row in snapshot.read(removed))
    return writer.remove(removed), remade


def _vanished(folder: Path, job: Job, gone: GoneFiles) -> tuple[str, ...]:
    """Return the files of the index that are not among those of the job and were deleted."""
    named = {job_file.file.place for job_file in job.files}
    return tuple(path for path in paths_of(folder) if path not in named and gone.has(path))


def _measure(config: VectorConfig, folder: Path, display: Display) -> None:
    """Measure an index that has grown, with texts if a text half is available."""
    manifest = read_manifest(folder)
    needs_texts = manifest.texts is None and manifest.live_rows > 0
    if not (is_due(manifest) or needs_texts):
        return
    vectors = None
    if needs_texts:
        try:
            vectors = read_texts(config, REFERENCE_TEXTS, display, folder, manifest.maker)
        except (UsageError, CannotFit, EnvironmentFault) as error:
            # The images are in the index, and image queries work.
            display.print_line(
                f"text searches will be exact, because they cannot be measured: {error}"
            )
    display.print_line(f"measuring searches over {counted(manifest.live_rows, 'row')} …")
    with writing(folder) as writer:
        if vectors is not None and writer.manifest.maker == manifest.maker:
            note_texts(writer, vectors)
        measure(writer)
