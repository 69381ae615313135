"""The Prefect flow of a run that labels media."""

from functools import partial
from typing import Any

from prefect import State, flow

from flows.console.display import Display
from flows.deployments.config_checks import LabelParameters
from flows.deployments.runs import named_after_out, run_in_flow
from flows.deployments.view import TABLE_ROWS, plain, show
from flows.options.commands import RunOptions
from flows.options.vectors import LabelOptions
from flows.pipelines import LABEL, product_of
from flows.results.labels.writing import LabelsWritten
from flows.running.label import label, label_request
from flows.running.run import LauncherMaker
from flows.running.run_observer import OnBegin

COUNTS = "penstock-label-counts"


@flow(name="label-images", flow_run_name=named_after_out, persist_result=False)
def label_images(config: LabelParameters) -> State[Any]:
    """Label everything that `config` names; its fields are the command line's options.

    Relative paths, those of labels and templates too, are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(label_and_count, config), product_of(LABEL))


def label_and_count(
    config: RunOptions, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin
) -> LabelsWritten:
    """Run the command, and show a table of the counts per label."""
    result = label(config, label_request(LabelOptions.of(config)), display, make_launcher, on_begin)
    first = sorted(result.counts, key=lambda one: -one["passed"])[:TABLE_ROWS]
    rows = [
        {"label": plain(one["label"]), "given to": one["passed"], "median": one["median"]}
        for one in first
    ]
    show(rows, result.line(), COUNTS)
    return result
