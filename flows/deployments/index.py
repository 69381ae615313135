"""The Prefect flow of a run that fills an index, suited to a nightly schedule."""

from functools import partial
from typing import Any

from prefect import State, flow

from flows.console.display import Display
from flows.deployments.config_checks import IndexParameters
from flows.deployments.runs import named_after_out, run_in_flow
from flows.job.prepare import out_folder
from flows.options.vectors import VectorConfig
from flows.running.run import LauncherMaker
from flows.running.run_observer import OnBegin
from flows.search.build import IndexWritten, fill_index


@flow(name="index-folder", flow_run_name=named_after_out, persist_result=False)
def index_folder(config: IndexParameters) -> State[Any]:
    """Add to the index `out` all files that it has no rows of, and create it if needed.

    The fields of `config` are the options of `penstock index build`; relative paths are looked up
    as `caption-videos` does. Rows of files that are gone are counted, and stay.
    """
    return run_in_flow(config, partial(fill, config), "index")


def fill(
    config: VectorConfig, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin
) -> IndexWritten:
    """Fill the index, and measure its recall when due."""
    folder = out_folder(config)
    return fill_index(config, folder, display, make_launcher=make_launcher, on_begin=on_begin)
