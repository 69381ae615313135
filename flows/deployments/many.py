"""Flows that run a command on many machines: `caption-many`, `embed-many`, `label-many`. Workers of
a pool process partitions; one ordinary run then writes the outputs.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Annotated, Any

from prefect import State, flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from pydantic import Field

from artifacts.errors import PenstockError, UsageError
from artifacts.keys import digest_of
from artifacts.options import declared
from artifacts.plurals import counted
from flows.deployments.commands import label_images
from flows.deployments.config_checks import (
    CaptionParameters,
    EmbedParameters,
    LabelParameters,
    confine,
)
from flows.deployments.handing import PartitionDispatch, PartitionRun
from flows.deployments.runs import ended_when_cancelled, named_after_out, state_after
from flows.deployments.view import Progress, plain
from flows.job.partitions import FILES, PORTIONS, Partition, partitions_of
from flows.job.prepare import out_folder
from flows.options.commands import RunOptions
from flows.results.owners import refuse_taking
from flows.running.run import stopped_in_order

OUTPUTS = "outputs"
"""Name of the run that writes the outputs, among partitions."""
PORTION = "portion"
"""Name of the deployments whose runs process a partition, or write the outputs of all."""
# Their descriptions and bounds in the UI are set in the modules of their own flows.
_ = label_images
Files = Annotated[int, Field(gt=0, description="files of a portion, at the most")]


@flow(name="caption-many", flow_run_name=named_after_out, persist_result=False)
def caption_many(config: CaptionParameters, files: Files = FILES) -> State[Any]:
    """Caption what `config` names on all workers of the pool, as `caption-videos` does on one.

    Media, `store` and `out` must have the same paths on every worker.
    """
    return hand_out(config, files, "caption-videos")


@flow(name="embed-many", flow_run_name=named_after_out, persist_result=False)
def embed_many(config: EmbedParameters, files: Files = FILES) -> State[Any]:
    """Compute vectors on all workers of the pool, as `embed-media` does on one."""
    return hand_out(config, files, "embed-media")


@flow(name="label-many", flow_run_name=named_after_out, persist_result=False)
def label_many(config: LabelParameters, files: Files = FILES) -> State[Any]:
    """Label media on all workers of the pool, as `label-images` does on one."""
    return hand_out(config, files, "label-images")


def hand_out(config: RunOptions, files: int, flow_name: str) -> State[Any]:
    """Process a configuration's files in partitions by runs of a flow, and write the outputs in one
    more run. Return the final state."""
    try:
        confine(config)
        refuse_taking(config, flow_name.partition("-")[0])
        portions, _ = partitions_of(config, files)
        with stopped_in_order(), ended_when_cancelled():
            return _hand_out(config, portions, f"{flow_name}/{PORTION}")
    except PenstockError as error:
        return state_after(error)


def _hand_out(config: RunOptions, portions: Sequence[Partition], name: str) -> State[Any]:
    # The name stays the same when the parent run is retried; another parent starts everything anew.
    job = digest_of([str(flow_run.root_flow_run_id or flow_run.id)])[:12]
    progress = Progress("portions")
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name).id
        except ObjectNotFound as error:
            raise UsageError(f"unknown deployment {name}", hint="Run make worker") from error

        try:
            each = PartitionDispatch(client, deployment, partial(_of_portion, config), job)
            _log_result(each.all(portions, progress.report))
            # Items that failed for good are tried once more there, and listed in the outputs.
            out = Partition(name=OUTPUTS, path=out_folder(config), files=0, bytes=0)
            whole = {"config": _parameters(config)}
            last = PartitionDispatch(client, deployment, lambda *_: whole, job, helping=False)
            (end,) = last.all([out], lambda *_: None)
        finally:
            progress.close()
        return _final_state(client, end)


def _of_portion(config: RunOptions, portion: Partition, which: str) -> dict[str, Any]:
    """Return the parameters of a run of one partition: its own folder, and no extra formats."""
    folder = out_folder(config) / PORTIONS / f"{portion.name}-{which}"
    own: dict[str, Any] = {"sources": [portion.source], "out": str(folder), "format": []}
    given = {**_parameters(config), **own, "beside": False, "limit": None}
    known = {one.name for one in declared(type(config))}
    return {"config": {name: value for name, value in given.items() if name in known}}


def _parameters(config: RunOptions) -> dict[str, Any]:
    """Return a configuration as parameters, without default values."""
    values = asdict(config)
    default = {one.name: one.default for one in fields(config)}
    return {n: v for n, v in values.items() if n == "sources" or v != default.get(n)}


def _log_result(partition_runs: Sequence[PartitionRun]) -> None:
    log = get_run_logger()
    log.info("%s done", counted(sum(one.done for one in partition_runs), "portion"))
    for one in partition_runs:
        if one.why:
            log.warning("partition failed: %s", plain(one.why))


def _final_state(client: Any, end: PartitionRun) -> State[Any]:
    last = max((client.read_flow_run(run) for run in end.runs), key=lambda run: run.created)
    state: State[Any] = last.state
    return type(state)(type=state.type, name=state.name, message=state.message)
