"""Python API for models of the CLIP kind: vectors, labels and marks."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Unpack

from artifacts.schema import values_of
from artifacts.texts.labels import KINDS as LABEL_KINDS
from artifacts.texts.labels import Labelled, read_labels
from artifacts.texts.tables import GROUP_ROWS, table_of
from flows.commands.label.files import LINES, LabelsWritten
from flows.commands.label.run import label as run_label
from flows.commands.label.run import pipeline_of, requested_labels
from flows.commands.sift.result import Sifted
from flows.commands.sift.run import sift as run_sift
from flows.core.options.formats import ARRAY, ROWS
from flows.core.options.vectors import EmbedConfig, LabelConfig, SiftConfig
from flows.core.pipelines import EMBED
from flows.execution import run
from flows.outputs.vectors import VectorsWritten
from penstock.arguments import Progress, Sources, anchored, config_for, display_for
from penstock.background import FinishedRecords, check_start
from penstock.cells import FEW, shown_of
from penstock.keywords import EmbedOptions, LabelRunOptions, SiftRunOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pyarrow import Table


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedded:
    """The vector of one image, image tile or video frame."""

    media_path: str
    """Path relative to the folder given, or the file's name; POSIX."""
    source: str
    """The argument that brought the file in."""
    time: float | None
    """Seconds of the medium's own time; None for an image."""
    box: list[float] | None
    """Left, top, right and bottom of a tile in pixels; None for the whole image."""
    model: str
    """The model as it was given: a folder, a hub id or `demo`."""
    precision: str
    """What the vision half computed in, such as `bf16`."""
    key: str
    """Cache key of the stored vectors."""
    vector: "NDArray[np.float32]"
    """Shape (width,), float32."""


class Embeddings(FinishedRecords[Embedded, VectorsWritten]):
    """A running `embed` job, and an iterator over its vectors."""


class Labels(FinishedRecords[Labelled, LabelsWritten]):
    """A running `label` job, and an iterator over the lines of its `labels.jsonl`."""

    def _repr_html_(self) -> str:
        if self._result is not None:
            return shown_of(self._result.out, FEW)._repr_html_()
        return html.escape(repr(self))


def embed(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[EmbedOptions]
) -> Embeddings:
    """Start a run that computes vectors, as `penstock embed`. Raises PenstockError."""
    config = anchored(config_for(sources, options, EmbedConfig, EmbedOptions.__annotations__))
    check_start(config, EMBED, "embed")
    return Embeddings(
        config.out, display_for(progress), partial(run.embed, config), _embedded, _vector_table
    )


def label(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[LabelRunOptions]
) -> Labels:
    """Start a run that labels images and video frames, as `penstock label`. `labels` may be a list
    of texts, too. Raises PenstockError."""
    config = anchored(config_for(sources, options, LabelConfig, LabelRunOptions.__annotations__))
    check_start(config, pipeline_of(config), "label")
    requested_labels(config)  # reports now what cannot be read
    return Labels(
        config.out, display_for(progress), partial(run_label, config), _labelled, _label_table
    )


def sift(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[SiftRunOptions]
) -> Sifted:
    """Mark media, and list those that meet `keep`, as `penstock sift`. Return the result when it is
    done; every function takes its `kept_list` as sources. Raises PenstockError."""
    config = config_for(sources, options, SiftConfig, SiftRunOptions.__annotations__)
    config.check_sources()
    return run_sift(config, display_for(progress))


def _labelled(result: LabelsWritten) -> Iterator[Labelled]:
    return read_labels(result.out / LINES)


def _label_table(result: LabelsWritten) -> "Table":
    """Return the lines of a run as a pyarrow table, with the names of the given labels."""
    rows = ({**values_of(row), "given": row.given} for row in _labelled(result))
    return table_of(rows, {**LABEL_KINDS, "given": "texts"})


def _embedded(result: VectorsWritten) -> Iterator[Embedded]:
    """Yield the vectors of a run. Only one group of rows is in memory."""
    import numpy as np
    from pyarrow.parquet import ParquetFile

    vectors = np.load(result.out / ARRAY, mmap_mode="r")
    with ParquetFile(result.out / ROWS) as file:
        rows = (row for part in file.iter_batches(GROUP_ROWS) for row in part.to_pylist())
        for at, row in enumerate(rows):
            yield Embedded(**row, vector=np.array(vectors[at]))


def _vector_table(result: VectorsWritten) -> "Table":
    """Return the rows of a run with their vectors, as a pyarrow table."""
    import numpy as np
    import pyarrow as pa
    from pyarrow.parquet import read_table

    vectors = np.load(result.out / ARRAY)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), max(1, result.width))
    return read_table(result.out / ROWS).append_column("vector", column)
