"""Python API for models of the CLIP kind: vectors, labels, an index to search in, and marks."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

from artifacts.disk.paths import folder_named
from artifacts.schema import values_of
from artifacts.texts.labels import KINDS as LABEL_KINDS
from artifacts.texts.labels import Labelled, read_labels
from artifacts.texts.tables import GROUP_ROWS, table_of
from flows.commands.label.files import LINES, LabelsWritten
from flows.commands.label.run import label as run_label
from flows.commands.label.run import requested_labels
from flows.commands.search.build import IndexWritten, fill_index
from flows.commands.search.query import Hit, search_index
from flows.commands.sift.marks import Sifted
from flows.commands.sift.run import sift as run_sift
from flows.core.console.display import Display
from flows.core.options.vectors import (
    INDEX,
    EmbedConfig,
    IndexConfig,
    LabelConfig,
    SearchPlace,
    SearchQuery,
    SiftConfig,
)
from flows.core.pipelines import EMBED, LABEL
from flows.execution import run
from flows.outputs.file_names import ARRAY, ROWS
from flows.outputs.vectors import VectorsWritten
from penstock.arguments import (
    Progress,
    Sources,
    anchored,
    config_for,
    config_with,
    display_for,
    path_of,
)
from penstock.background import FinishedRecords, check_start
from penstock.cells import FEW, Shown, ShownCaption, shown_of
from penstock.keywords import (
    EmbedOptions,
    LabelRunOptions,
    SearchOptions,
    SiftRunOptions,
    VectorOptions,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    precision: str
    key: str
    """Cache key of the stored vectors."""
    vector: "NDArray[Any]"
    """Shape (width,), float32."""


class Embeddings(FinishedRecords[Embedded, VectorsWritten]):
    """A running `embed` job, and an iterator over its vectors."""


class Labels(FinishedRecords[Labelled, LabelsWritten]):
    """A running `label` job, and an iterator over the lines of its `labels.jsonl`."""

    def _repr_html_(self) -> str:
        if self._result is not None:
            return shown_of(self._result.out, FEW)._repr_html_()
        return html.escape(repr(self))


class Hits(list[Hit]):
    """The results of a search, best first."""

    def _shown(self) -> Shown:
        rows = []
        for hit in self:
            start, end = hit.time or (0.0, 0.0)
            place = hit.media_path, start, end, "", f"{hit.score:.3f}", hit.path
            rows.append(ShownCaption(*place, at=hit.at))
        return Shown(captions=tuple(rows), total=len(rows), noun="hit")

    def __repr__(self) -> str:
        return repr(self._shown())

    def _repr_html_(self) -> str:
        return self._shown()._repr_html_()

    def table(self) -> Any:
        """Return the hits as a pyarrow table."""
        kinds = {
            "rank": "count",
            "score": "number",
            "media_path": "text",
            "path": "text",
            "time": "numbers",
            "at": "number",
            "box": "numbers",
            "key": "text",
            "copies": "count",
            "copy_paths": "texts",
        }
        return table_of((hit.to_json() for hit in self), kinds)


def embed(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[EmbedOptions]
) -> Embeddings:
    """Start a run that computes vectors, as `penstock embed`. Raises PenstockError."""
    config = anchored(config_for(sources, options, EmbedConfig, EmbedOptions.__annotations__))
    check_start(config, EMBED, "embed")
    return Embeddings(
        config.out,
        display_for(progress),
        partial(run.embed, config),
        _embedded,
        _vector_table,
    )


def label(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[LabelRunOptions]
) -> Labels:
    """Start a run that labels images and video frames, as `penstock label`. `labels` may be a list
    of texts, too. Raises PenstockError."""
    config = anchored(config_for(sources, options, LabelConfig, LabelRunOptions.__annotations__))
    check_start(config, LABEL, "label")
    requested_labels(config)  # reports now what cannot be read
    return Labels(
        config.out,
        display_for(progress),
        partial(run_label, config),
        _labelled,
        _label_table,
    )


def index(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[VectorOptions]
) -> IndexWritten:
    """Embed what is new of the sources and add it to an index, as `penstock index build`. Return
    what was added when it is done. Raises PenstockError."""
    config = config_for(sources, options, IndexConfig, VectorOptions.__annotations__)
    config.check_sources()
    return fill_index(config, display_for(progress))


def sift(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[SiftRunOptions]
) -> Sifted:
    """Mark media, and list those that meet `keep`, as `penstock sift`. Return the result when it is
    done; every function takes its `kept_list` as sources. Raises PenstockError."""
    config = config_for(sources, options, SiftConfig, SiftRunOptions.__annotations__)
    config.check_sources()
    return run_sift(config, display_for(progress))


def search(
    what: str | PathLike[str], index: str | PathLike[str] = INDEX, **options: Unpack[SearchOptions]
) -> Hits:
    """Return what an index holds that is like a text or an image file, as `penstock search`. Raises
    PenstockError."""
    build = partial(config_with, options=options, known=SearchOptions.__annotations__)
    query, place = build(SearchQuery, what=path_of("what", what)), build(SearchPlace)
    folder = folder_named(path_of("index", index), "index")
    return Hits(search_index(folder, query, place, Display(quiet=True)))


def _labelled(result: LabelsWritten) -> Iterator[Labelled]:
    return read_labels(result.out / LINES)


def _label_table(result: LabelsWritten) -> Any:
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


def _vector_table(result: VectorsWritten) -> Any:
    """Return the rows of a run with their vectors, as a pyarrow table."""
    import numpy as np
    import pyarrow as pa
    from pyarrow.parquet import read_table

    vectors = np.load(result.out / ARRAY)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), max(1, result.width))
    return read_table(result.out / ROWS).append_column("vector", column)
