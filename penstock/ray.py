"""Python API for Ray clusters: commands whose files are divided among all GPUs of a cluster.

    penstock.ray.caption(sources, address="auto", files=50, **options) -> ManyResult
    penstock.ray.embed(...), penstock.ray.label(...)

Options are those of `penstock.caption`, `embed` and `label`. Each call returns when the outputs are
written; the same call continues after any death. The extra `penstock[ray]` brings Ray.
"""

from typing import Any, Unpack

from flows.console.display import Display
from flows.job.partitions import FILES
from flows.many.run import ManyResult, run_on_cluster
from flows.options.commands import CaptionConfig, RunOptions
from flows.options.vectors import EmbedConfig, LabelConfig
from penstock.arguments import Sources, config_for
from penstock.keywords import CaptionOptions, EmbedOptions, LabelRunOptions

__all__ = ["ManyResult", "caption", "embed", "label"]


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
