"""The tag stage: runs the graph of a tagger over stored frames, and stores probabilities of tags.

How it works:

1. A thread reads the frames of a batch, one chunk at a time, and makes each a square of the graph's
   size. Nothing larger is held.
2. The squares pass the graph in a fixed number of rows, and copies of the last one fill up the last
   pass. So the bytes of a picture depend on no other.
3. Probabilities below FLOOR are dropped. The thresholds of tags are no part of this stage: others
   need no graph.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.claims import claims_at
from artifacts.records.packs import Record, RecordSet, read_made, record_sets_of
from artifacts.records.probabilities import Probabilities, probability_record
from artifacts.records.store import open_store
from stages.models.encoding import EncodeItem
from stages.models.graphs.sessions import ONNX, open_session, providers_for
from stages.models.prefetch import Prefetched, write_behind
from stages.process.events import EventReporter
from stages.process.host_memory import cores
from stages.process.job import JobFields, parse_job
from stages.tag import FLOOR, PictureInput, TagJob

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
SCALES = {"0..255": (1.0, 0.0), "0..1": (255.0, 0.0), "-1..1": (127.5, 1.0)}
"""Range → what pixels are divided by, and what is subtracted then."""
ROUNDING = 1e-3
"""How far a probability may lie outside of 0 to 1: that much is rounding in 16 bits."""
Squares = NDArray[np.uint8]
"""Shape (pictures, size, size, 3)."""
Read = list[tuple[str, Squares]]
"""The key of each chunk, and its frames."""


def square(picture: Image.Image, wanted: PictureInput) -> Image.Image:
    """Return an RGB picture as a square of the graph's size."""
    size, (width, height) = wanted.size, picture.size
    resampling, longer = FILTERS[wanted.resampling], max(picture.size)
    if wanted.padding == "before":
        picture = _padded(picture, longer, wanted)
    elif wanted.padding == "after":
        shape = [max(1, round(side * size / longer)) for side in (width, height)]
        return _padded(picture.resize((shape[0], shape[1]), resampling), size, wanted)
    # A picture of the right size is not filtered: bicubic would leave it as it is, too.
    return picture if picture.size == (size, size) else picture.resize((size, size), resampling)


def _padded(picture: Image.Image, side: int, wanted: PictureInput) -> Image.Image:
    if picture.size == (side, side):
        return picture
    padded = Image.new("RGB", (side, side), wanted.pad_colour)
    padded.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return padded


def graph_input(squares: Squares, wanted: PictureInput) -> NDArray[np.float32]:
    """Return squares as the numbers that the graph takes."""
    divisor, shift = SCALES[wanted.scale]
    mean, std = (np.asarray(of, np.float32) for of in (wanted.mean, wanted.std))
    numbers: NDArray[np.float32] = squares.astype(np.float32) / divisor - shift
    numbers = (numbers - mean) / std
    if wanted.order == "BGR":
        numbers = numbers[..., ::-1]
    if wanted.layout == "NCHW":
        numbers = numbers.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(numbers, np.float32)


class TagGraph:
    """A loaded graph."""

    def __init__(self, job: TagJob) -> None:
        """Load the graph. Raises PenstockError."""
        self._job = job
        providers = providers_for(ONNX, job.device, job.device_bytes, None)
        try:
            with job.files.compared():
                self._session = open_session(Path(job.graph), providers, cores())
        except EnvironmentFault as error:
            hint = "Download the graph again; `penstock doctor` says whether the GPU can be used"
            raise type(error)(error.message, hint=hint) from error
        (self._input,) = self._session.get_inputs()
        self._output = self._session.get_outputs()[job.taken.index].name
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32

    def probabilities(self, squares: Squares) -> Probabilities:
        """Return the probability of each tag, for each square. Raises UsageError if the graph does
        not give what its declaration says."""
        rows = self._job.rows
        passes = [squares[at : at + rows] for at in range(0, len(squares), rows)]
        return np.concatenate([self._of_pass(some) for some in passes])

    def _of_pass(self, squares: Squares) -> Probabilities:
        job, missing = self._job, self._job.rows - len(squares)
        full = np.concatenate([squares, np.repeat(squares[-1:], missing, axis=0)])
        taken = graph_input(full, job.picture).astype(self._dtype)
        (made,) = self._session.run([self._output], {self._input.name: taken})
        if made.shape != (job.rows, job.tags):
            raise UsageError(
                f"{job.declaration} lists {job.tags:,} tags, but {Path(job.graph).name} gives "
                f"{'x'.join(map(str, made.shape))} numbers for {job.rows} pictures",
                hint="Name the tag file of this graph, or another output",
            )
        probabilities: Probabilities = made[: len(squares)].astype(np.float32)
        if job.taken.activation == "sigmoid":
            with np.errstate(over="ignore"):
                probabilities = np.reciprocal(1 + np.exp(-probabilities))
            return probabilities
        numbers = probabilities[~np.isnan(probabilities)]
        low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise UsageError(
                f'{job.declaration} says activation = "none", but {Path(job.graph).name} gives '
                f"{low:.3g} to {high:.3g}, which are no probabilities",
                hint='Set activation = "sigmoid" if these are logits, or index to another output',
            )
        return probabilities.clip(0, 1)


class Tagging:
    """One job: its record sets, and its remaining batches."""

    def __init__(self, job: TagJob, report: EventReporter) -> None:
        self._job = job
        self._report = report
        self._store = open_store(job.store)
        self._frames = RecordSet(self._store, "frames", job.frames_namespace)
        self._records, self._failures = record_sets_of(
            self._store, ("tags", job.namespace), ("failures", job.namespace)
        )
        self._batches = [b for b in job.batches if any(m.key not in self._records for m in b)]
        report.total(len(self._missing(self._batches)))

    def run(self) -> None:
        """Tag all chunks that have neither probabilities nor a failure."""
        if not self._batches:
            return
        graph = TagGraph(self._job)
        self._report.note(ready=True)
        with (
            claims_at(self._store, self._records, self._failures) as self._claims,
            Prefetched(
                self._claims.claimed_batches([[b] for b in self._batches], self._missing),
                self._read,
                idle=self._report.idle,
            ) as ready,
            write_behind(self._publish, on_error=ready.close) as later,
        ):
            for read in ready:
                later([(key, graph.probabilities(squares)) for key, squares in read])

    def _missing(self, some: Sequence[Sequence[EncodeItem]]) -> list[str]:
        keys = [chunk.key for batch in some for chunk in batch]
        return [key for key in keys if key not in self._records and key not in self._failures]

    def _read(self, some: Sequence[Sequence[EncodeItem]]) -> Read:
        """Return the frames of the chunks without probabilities, as squares."""
        wanted, missing = self._job.picture, {*self._missing(some)}
        return [
            (chunk.key, np.stack([np.asarray(square(Image.fromarray(f), wanted)) for f in frames]))
            for chunk in chain.from_iterable(some)
            if chunk.key in missing
            for frames in [self._frames_of(chunk)]
        ]

    def _frames_of(self, chunk: EncodeItem) -> NDArray[np.uint8]:
        """Return the frames of a chunk [frames, height, width, 3]. Raises DamagedRecord if they are
        missing."""
        missing = "the frames {} are no longer in the store"
        hint = "Run the same command again: it reads them from the file again"
        record = read_made(self._frames, chunk.frames, missing, hint)
        shape = (-1, int(record.meta["height"]), int(record.meta["width"]), 3)
        return np.frombuffer(record.payload, np.uint8).reshape(shape)

    def _publish(self, made: list[list[tuple[str, Probabilities]]]) -> None:
        rows = dict(row for batch in made for row in batch)
        finite = {key: bool(np.isfinite(row).all()) for key, row in rows.items()}
        why = {
            "kind": "not-finite",
            "message": f"{Path(self._job.graph).name} gives NaN for this file",
            "hint": "Leave the file out, or try the graph in fp32",
        }
        refused = [key for key, is_finite in finite.items() if not is_finite]
        self._failures.publish([Record(key=key, meta=why) for key in refused])
        for key in refused:
            self._report.failure(media=key, **why)
        records = [probability_record(k, row, FLOOR) for k, row in rows.items() if finite[k]]
        if records:
            self._report.answered(*self._records.publish(records))
        self._claims.done(rows)


def run(fields: JobFields, report: EventReporter) -> None:
    """Publish the missing probabilities or failures of all chunks."""
    Tagging(parse_job(TagJob, fields), report).run()
