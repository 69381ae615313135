"""Python API for Ray clusters: commands whose files are divided among all GPUs of a cluster.

    penstock.ray.caption(sources, address="auto", files=50, **options) -> RunResult
    penstock.ray.embed(...), penstock.ray.label(...)

    dataset.map_batches(penstock.ray.Encode, fn_constructor_kwargs=options, …)
           .map_batches(penstock.ray.Write, fn_constructor_kwargs=options, …)

Options are those of `penstock.caption`, `embed` and `label`. Each call returns when the outputs are
written; the same call continues after any death. The extra `penstock[ray]` brings Ray.

`Encode` and `Write` are actor classes for Ray Data. Rows carry paths, and features go through the
store: whatever is stored is not made again, and another prompt needs `Write` alone.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

from flows.commands.cache.rebuild import RebuildOptions
from flows.commands.cache.rebuild import rebuild as run_rebuild
from flows.commands.caption.run import caption as run_caption
from flows.commands.label.files import LabelsWritten
from flows.core.console.display import Display
from flows.core.job.partitions import FILES
from flows.core.job.prepare import Job, NothingToDo
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.vectors import EmbedConfig, LabelConfig
from flows.interfaces.ray.partition import LoadedHalf
from flows.interfaces.ray.run import run_on_cluster
from flows.outputs.captions import captions_of
from flows.outputs.record.record_writer import RecordWriter, remember
from flows.outputs.record.recorded_command import words_of
from flows.outputs.run_result import RunResult
from flows.outputs.vectors import VectorsWritten
from penstock.arguments import Sources, config_for, config_with
from penstock.keywords import CaptionOptions, EmbedOptions, LabelRunOptions

__all__ = ["Encode", "Write", "caption", "embed", "label"]
COLUMN = "path"


class RayOptions(TypedDict, total=False):
    """How a run is divided."""

    address: str
    """HOST:PORT of the cluster; default: `auto`, the one of this machine or of the Ray job."""
    files: int
    """Largest number of files of a partition."""
    progress: bool
    """Whether the run is shown as by the command."""


class RayCaptionOptions(CaptionOptions, RayOptions, total=False):
    """The options of `caption` on a cluster."""


class RayEmbedOptions(EmbedOptions, RayOptions, total=False):
    """The options of `embed` on a cluster."""


class RayLabelOptions(LabelRunOptions, RayOptions, total=False):
    """The options of `label` on a cluster."""


def caption(sources: Sources, **options: Unpack[RayCaptionOptions]) -> RunResult:
    """Caption on a cluster, as `penstock caption --ray`. Raises PenstockError."""
    result: RunResult = _run("caption", CaptionConfig, CaptionOptions, sources, options)
    return result


def embed(sources: Sources, **options: Unpack[RayEmbedOptions]) -> VectorsWritten:
    """Compute vectors on a cluster, as `penstock embed --ray`. Raises PenstockError."""
    result: VectorsWritten = _run("embed", EmbedConfig, EmbedOptions, sources, options)
    return result


def label(sources: Sources, **options: Unpack[RayLabelOptions]) -> LabelsWritten:
    """Label on a cluster, as `penstock label --ray`. Raises PenstockError."""
    result: LabelsWritten = _run("label", LabelConfig, LabelRunOptions, sources, options)
    return result


def _run(command: str, kind: Any, known: Any, sources: Sources, options: Any) -> Any:
    own = {name: options.pop(name) for name in RayOptions.__annotations__ if name in options}
    address, files = own.get("address", "auto"), own.get("files", FILES)
    config = config_for(sources, options, kind, known.__annotations__)
    display = Display(quiet=not own.get("progress"))
    begun = partial(remember, words_of(config)) if isinstance(config, CaptionConfig) else None
    return run_on_cluster(command, config, display, address, files=files, on_begin=begun)


class Actor:
    """An actor of Ray Data, whose batches have the paths of media in the column `path`. From batch
    to batch it keeps its half loaded, unless that is offloaded or runs in llama.cpp."""

    KIND: type[CaptionConfig | RebuildConfig]
    """The configuration that the options become."""
    STAGES: tuple[str, ...]
    """Stages whose half stays loaded."""

    def __init__(self, **options: Unpack[CaptionOptions]) -> None:
        """Take the options of `penstock.caption`, without `out`. Raises UsageError."""
        known = CaptionOptions.__annotations__
        self._config: Any = config_with(self.KIND, options, known, sources=())
        self._launcher = LoadedHalf(*self.STAGES)

    def _config_of(self, batch: Mapping[str, Any], **more: Any) -> Any:
        paths = (os.path.abspath(os.path.expanduser(str(path))) for path in batch[COLUMN])
        return replace(self._config, sources=tuple(paths), **more)

    def _on_begin(self, job: Job, writer: RecordWriter) -> None:
        """Plan later batches with the memory that was free before the half was loaded."""
        self._config = replace(self._config, memory=job.budget.bytes)
        self._job = job


class Encode(Actor):
    """Encodes the media of a batch of rows, which pass unchanged."""

    KIND, STAGES = RebuildConfig, ("encode", "hear", "embed")

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Encode what of the batch is not stored. Raises PenstockError, but for media that cannot
        be read: `Write` names these."""
        config, display = self._config_of(batch), Display(quiet=True)
        with suppress(NothingToDo):
            run_rebuild(config, RebuildOptions(), display, self._launcher, self._on_begin)
        return batch


class Write(Actor):
    """Captions the media of a batch of rows, and returns a row per caption, with the columns of
    COLUMNS; `features` is the key of the stored features. Of a medium that cannot be captioned, the
    row has only its path and the error."""

    KIND, STAGES = CaptionConfig, ("decode",)
    COLUMNS = ("path", "start", "end", "caption", "features", "error")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str | float | None]]:
        """Return the captions of the batch. Raises PenstockError."""
        with tempfile.TemporaryDirectory(prefix="penstock-") as out:
            config, display = self._config_of(batch, out=out), Display(quiet=True)
            try:
                result = run_caption(config, display, self._launcher, self._on_begin)
                failures, rows = result.failures, [*_rows_of(self._job)]
            except NothingToDo as error:
                failures, rows = list(error.failures), []
        rows += [(f.source, None, None, None, None, f.message) for f in failures]
        return {name: [row[at] for row in rows] for at, name in enumerate(self.COLUMNS)}


def _rows_of(job: Job) -> Iterator[tuple[str | float | None, ...]]:
    for job_file in job.files:
        for row in captions_of(job, job_file):
            yield (str(job_file.file.path), row.start, row.end, row.caption, row.features, None)
