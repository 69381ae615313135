"""Writes the vectors of a run, one row per image or frame. Runs no model.

`embeddings.npy` holds them as one array; `embeddings.parquet` names the source of each row. Both
are written when a run ends, even if it fails, and contain the rows that exist by then.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts.disk.json_shapes import Json
from artifacts.schema import MediaIndex
from artifacts.texts.captions import write_jsonl
from artifacts.texts.tables import write_parquet
from artifacts.wording import counted
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Task
from flows.core.media.media_file import MediaFile
from flows.core.options.formats import ARRAY, MEDIA, ROWS
from flows.outputs.marker import write_proved
from flows.outputs.run_result import RunEnd
from flows.outputs.write import failures_of, media_line, warned_files

if TYPE_CHECKING:  # numpy, which captions need not
    from artifacts.records.vectors import Vectors

KINDS = {
    "media_path": "text",
    "source": "text",
    "time": "number",
    "box": "numbers",
    "model": "text",
    "precision": "text",
    "key": "text",
}
"""Column of the table → type."""
FileTask = tuple[MediaFile, Task]


@dataclass(kw_only=True, slots=True)
class VectorsWritten(RunEnd):
    """The result of a run that computed vectors."""

    vectors: int = 0
    """Number of vectors written: of images, tiles and video frames."""
    width: int = 0
    """Numbers per vector."""

    @property
    def made(self) -> int:
        """Return the number of vectors."""
        return self.vectors

    def to_json(self) -> dict[str, Json]:
        return self.outcome({"vectors": self.vectors, "width": self.width})

    def row(self) -> dict[str, Json]:
        return {"files": self.files, "vectors": self.vectors, "folder": str(self.out)}

    def line(self) -> str:
        line = f"{counted(self.vectors, 'vector')} of {counted(self.width, 'number')}"
        return f"{line} in {self.out / ARRAY}{self.failed_suffix()}"

    __repr__ = line


def vector_paths(job: Job) -> dict[str, str]:
    names = {"embeddings": ARRAY, "rows": ROWS, "failures": "failures.jsonl", "logs": "logs"}
    return {name: str(job.out / file) for name, file in names.items()}


def write_vectors(job: Job) -> VectorsWritten:
    """Write all stored vectors, in source order. Raises EnvironmentFault."""
    from artifacts.records.vectors import vectors_in, write_npy

    tasks = list(vector_tasks(job))
    embeddings = job.ledger["embeddings"]
    metas = [embeddings.meta(task["embeddings"]) for _, task in tasks]
    written = VectorsWritten(
        out=job.out,
        files=job.requested,
        vectors=sum(meta["vectors"] for meta in metas),
        width=next((meta["width"] for meta in metas), job.model.profile.feature_width),
        failures=failures_of(job),
        warned=warned_files(job),
        chunks=Counter(file for file, _ in tasks),
    )
    parts: Iterator[Vectors] = (
        vectors_in(embeddings.read(task["embeddings"])) for _, task in tasks
    )
    write_npy(job.out / ARRAY, (written.vectors, written.width), parts)
    write_parquet(job.out / ROWS, _rows(job, tasks), KINDS)
    write_jsonl(job.out / "failures.jsonl", written.failures)
    rows = Counter[MediaFile]()
    for (file, _), meta in zip(tasks, metas, strict=True):
        rows[file] += meta["vectors"]
    lines = (media_line(f.file, rows[f.file], f.medium) for f in job.files)
    write_proved(job.out, {MEDIA: lines}, job.store.url)
    return written


def vector_tasks(job: Job) -> Iterator[FileTask]:
    """Yield each file with each of its chunks that has stored vectors, in source order."""
    for job_file in job.files:
        yield from file_tasks(job, job_file)


def file_tasks(job: Job, job_file: JobFile) -> Iterator[FileTask]:
    """Yield one file with each of its chunks that has stored vectors, or what else the job's last
    stage over media makes."""
    records = job.ledger[kind := job.pipeline[-1].writes]
    for task in job.ledger.tasks([job_file.medium]):
        if task[kind] in records:
            yield job_file.file, task


def frames_of(job: Job, task: Task) -> list[tuple[float | None, list[float] | None]]:
    """Return for each vector of a chunk its time in the video, in seconds, and its box in the
    image; None for not applicable."""
    if task.medium.kind == "image":
        return [(None, box) for box in shown_boxes(task, index_of(job, task).width)]
    return [(time, None) for time in task.chunk.times]


def _rows(job: Job, made: list[FileTask]) -> Iterator[dict[str, Json]]:
    for file, task in made:
        for time, box in frames_of(job, task):
            yield {
                "media_path": file.media_path,
                "source": file.source,
                "time": time,
                "box": box,
                "model": job.model.name,
                "precision": task.variant.precision["vision"],
                "key": task["embeddings"],
            }


def index_of(job: Job, task: Task) -> MediaIndex:
    """Return the index of the medium of a stored chunk."""
    index = job.ledger.media_index(task.medium)
    assert index is not None
    return index


def shown_boxes(task: Task, width: int) -> list[list[float] | None]:
    """Return the box of each vector of an image as (left, top, right, bottom), in pixels of the
    displayed image of that width. None: the whole image."""
    # Very large images are decoded at half their sides.
    scale = width / max(1, task.chunk.width)
    return [
        None if box.level == 0 else [round(side * scale) for side in box[1:]] for box in task.boxes
    ]
