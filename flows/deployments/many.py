"""Flows that run a command on many machines: `caption-many`, `embed-many`, `label-many`.

They divide the files of a run among the machines of the Ray cluster that the worker's environment
names. Without one, they run the plain command on the GPUs of their own machine.
"""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from prefect import State, flow
from pydantic import Field

from flows.console.display import Display
from flows.deployments.commands import label_and_count
from flows.deployments.config_checks import CaptionParameters, EmbedParameters, LabelParameters
from flows.deployments.runs import PipelineResult, named_after_work, run_in_flow
from flows.deployments.view import Progress
from flows.job.partitions import FILES
from flows.many.run import PARTITIONS, run_on_cluster
from flows.options.model import ALL_GPUS
from flows.pipelines import CAPTION, EMBED, LABEL, product_of
from flows.running.run import embed
from flows.running.sift_first import caption

ADDRESS = "PENSTOCK_RAY_ADDRESS"
"""Address of the Ray cluster, HOST:PORT; empty: there is none."""
Files = Annotated[int, Field(gt=0, description="files of a portion, at the most")]


@flow(name="caption-many", flow_run_name=named_after_work, persist_result=False)
def caption_many(config: CaptionParameters, files: Files = FILES) -> State[Any]:
    """Caption what `config` names on all GPUs of the Ray cluster, as `caption-videos` does on one.

    Media, `store` and `out` must have the same paths on every machine.
    """
    return _divided("caption", config, files, caption, product_of(CAPTION))


@flow(name="embed-many", flow_run_name=named_after_work, persist_result=False)
def embed_many(config: EmbedParameters, files: Files = FILES) -> State[Any]:
    """Compute vectors on all GPUs of the Ray cluster, as `embed-media` does on one."""
    return _divided("embed", config, files, embed, product_of(EMBED))


@flow(name="label-many", flow_run_name=named_after_work, persist_result=False)
def label_many(config: LabelParameters, files: Files = FILES) -> State[Any]:
    """Label media on all GPUs of the Ray cluster, as `label-images` does on one."""
    return _divided("label", config, files, label_and_count, product_of(LABEL))


def _divided(
    command: str,
    config: CaptionParameters | EmbedParameters | LabelParameters,
    files: int,
    plain: Callable[..., PipelineResult],
    makes: str,
) -> State[Any]:
    """Run a command on the cluster, or on all GPUs of this machine where none is named."""
    address = os.environ.get(ADDRESS, "").strip()

    def on_cluster(display: Display, *_: object) -> PipelineResult:
        with closing(Progress(PARTITIONS)) as bar:
            result: PipelineResult = run_on_cluster(
                command, config, display, address, files=files, on_progress=bar.report
            )
            return result

    on_this_machine = partial(plain, replace(config, gpus=config.gpus or ALL_GPUS))
    return run_in_flow(config, on_cluster if address else on_this_machine, makes)
