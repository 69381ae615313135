"""The Prefect flow of an export to a quantized model."""

from typing import Any

from prefect import State, flow

from artifacts.errors import PenstockError
from flows.console.display import Display
from flows.deployments.config_checks import ExportConfig
from flows.deployments.runs import named_after_out, run_in_flow
from flows.deployments.view import show
from flows.results.export_result import Exported
from flows.running.export import export
from flows.running.run import LauncherMaker
from flows.running.run_observer import OnBegin
from flows.running.samples import evaluation_media

CHECKPOINT = "checkpoint"
"""Name of the product: the stage that makes it has the progress bar `penstock-export`."""


@flow(name="export-model", flow_run_name=named_after_out, persist_result=False)
def export_model(config: ExportConfig) -> State[Any]:
    """Write a quantized checkpoint, and keep it if it is as good as the original; the fields of
    `config` are the options of `penstock export`.

    Relative paths are looked up as `caption-videos` does. A checkpoint that does not pass fails the
    run and stays in `rejected` below its folder.
    """

    def run(display: Display, make_launcher: LauncherMaker, on_begin: OnBegin) -> Exported:
        with evaluation_media(config, display.print_line) as sources:
            captioning = config.captioning(sources)
            return passed(export(captioning, config.request(), display, make_launcher, on_begin))

    return run_in_flow(config.captioning(), run, CHECKPOINT)


def passed(result: Exported) -> Exported:
    """Return an export that passed. Otherwise show a table and raise PenstockError."""
    if result.accepted:
        return result
    missed = "; ".join(result.parity["missed"])
    show([result.row()], missed, f"penstock-{CHECKPOINT}")
    raise PenstockError(
        f"quality limit missed: {missed}",
        hint=f"The checkpoint is kept in {result.out}; set `accept` to use it anyway",
    )
