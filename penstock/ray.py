"""Python API for Ray clusters: commands whose files are divided among all GPUs of a cluster.

    penstock.ray.caption(sources, address="auto", files=50, **options) -> ManyResult
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
from typing import Any, Unpack

from flows.console.display import Display
from flows.job.partitions import FILES
from flows.job.prepare import Job, NothingToDo
from flows.many.partition import SharedForks
from flows.many.run import ManyResult, run_on_cluster
from flows.options.commands import CaptionConfig, RebuildConfig, RunOptions
from flows.options.vectors import EmbedConfig, LabelConfig
from flows.results.captions import captions_of
from flows.running.sift_first import caption as run_caption
from flows.upkeep.rebuild import RebuildOptions
from flows.upkeep.rebuild import rebuild as run_rebuild
from penstock.arguments import Sources, config_for, config_with
from penstock.keywords import CaptionOptions, EmbedOptions, LabelRunOptions

__all__ = ["Encode", "ManyResult", "Write", "caption", "embed", "label"]
COLUMN = "path"
"""Column of the media's paths."""


def caption(
    sources: Sources,
    *,
    address: str = "auto",
    files: int = FILES,
    task_gpus: int | None = None,
    progress: bool = False,
    **options: Unpack[CaptionOptions],
) -> ManyResult:
    """Caption on the Ray cluster at `address`, as `penstock caption --ray`, in partitions of at
    most `files` files. Each task takes `task_gpus` GPUs; None: one if the cluster has any. Raises
    PenstockError."""
    config = config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__)
    return _run("caption", config, address, files, task_gpus, progress)


def embed(
    sources: Sources,
    *,
    address: str = "auto",
    files: int = FILES,
    task_gpus: int | None = None,
    progress: bool = False,
    **options: Unpack[EmbedOptions],
) -> ManyResult:
    """Compute vectors on a Ray cluster, as `penstock embed --ray`; parameters and errors are those
    of `caption`."""
    config = config_for(sources, options, EmbedConfig, EmbedOptions.__annotations__)
    return _run("embed", config, address, files, task_gpus, progress)


def label(
    sources: Sources,
    *,
    address: str = "auto",
    files: int = FILES,
    task_gpus: int | None = None,
    progress: bool = False,
    **options: Unpack[LabelRunOptions],
) -> ManyResult:
    """Label on a Ray cluster, as `penstock label --ray`; parameters and errors are those of
    `caption`."""
    config = config_for(sources, options, LabelConfig, LabelRunOptions.__annotations__)
    return _run("label", config, address, files, task_gpus, progress)


def _run(command: str, config: RunOptions, address: str, *rest: Any) -> ManyResult:
    files, gpus, progress = rest
    display = Display(quiet=not progress)
    return run_on_cluster(command, config, display, address, files=files, gpus=gpus)


class Encode:
    """Encodes the media of a batch of rows, whose column `path` names them. Rows pass unchanged."""

    def __init__(self, **options: Unpack[CaptionOptions]) -> None:
        """Take the options of `penstock.caption`; those that decide no features have no effect.
        Raises UsageError."""
        known = CaptionOptions.__annotations__
        self._config = config_with(RebuildConfig, options, known, sources=())

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Encode what of the batch is not stored. Raises PenstockError, but for media that cannot
        be read: `Write` names these."""
        config = replace(self._config, sources=_paths(batch))
        with suppress(NothingToDo):
            run_rebuild(config, RebuildOptions(), Display(quiet=True), SharedForks)
        return batch


class Write:
    """Captions the media of a batch of rows, and returns a row per caption, with the columns of
    COLUMNS; `features` is the key of the stored features. Of a medium that cannot be captioned, the
    row has only its path and the error."""

    COLUMNS = ("path", "start", "end", "caption", "features", "error")

    def __init__(self, **options: Unpack[CaptionOptions]) -> None:
        """Take the options of `penstock.caption`, without `out`. Raises UsageError."""
        known = CaptionOptions.__annotations__
        self._config = config_with(CaptionConfig, options, known, sources=())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the captions of the batch. Raises PenstockError."""
        jobs: list[Job] = []
        with tempfile.TemporaryDirectory(prefix="penstock-") as out:
            config = replace(self._config, sources=_paths(batch), out=out)
            try:
                display = Display(quiet=True)
                failures = run_caption(
                    config, display, SharedForks, lambda job, _: jobs.append(job)
                ).failures
                rows = [*_rows_of(jobs[-1])]
            except NothingToDo as error:
                failures, rows = list(error.failures), []
        rows += [(f.source, None, None, None, None, f.message) for f in failures]
        return {name: [row[at] for row in rows] for at, name in enumerate(self.COLUMNS)}


def _paths(batch: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(os.path.abspath(os.path.expanduser(str(path))) for path in batch[COLUMN])


def _rows_of(job: Job) -> Iterator[tuple[Any, ...]]:
    for each in job.files:
        for row in captions_of(job, each):
            yield (str(each.file.path), row.start, row.end, row.caption, row.features, None)
