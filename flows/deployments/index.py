"""Makes a Prefect flow of the run that fills an index, made to be run every night."""

from typing import Any

from prefect import State, flow
from pydantic import with_config

from flows.console.display import Display
from flows.deployments.runs import named_after_out, run_in_flow
from flows.deployments.schema import EmbedConfig, settings_over, tighten
from flows.job.command_config import IndexConfig, run_config
from flows.job.config import CaptionConfig
from flows.job.prepare import out_folder
from flows.running.run import LauncherMaker
from flows.running.watch import OnBegin
from flows.search.build import IndexWritten, fill_index
from flows.search.texts import TEXT_HALF

with_config(settings_over(EmbedConfig, tighten, IndexConfig, "index build"))(IndexConfig)


@flow(name="index-folder", flow_run_name=named_after_out, persist_result=False)
def index_folder(config: IndexConfig) -> State[Any]:
    """Add to the index `out` what it has no rows of yet, and begin it where there is none.

    The fields of `config` are the options of `penstock index build`; relative paths are looked up
    as `caption-videos` does. Rows of files that are gone are counted, and stay.
    """
    return run_in_flow(run_config(config), fill, "index")


def fill(
    config: CaptionConfig, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin
) -> IndexWritten:
    """Fill the index, and measure it where that is due."""
    folder = out_folder(config)
    return fill_index(
        config, folder, display, TEXT_HALF, make_launcher=make_launcher, on_begin=on_begin
    )
