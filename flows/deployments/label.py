"""Makes a Prefect flow of the run that gives labels, as of the one that makes vectors."""

from typing import Any

from prefect import State, flow
from pydantic import with_config

from flows.console.display import Display
from flows.deployments.runs import named_after_out, run_in_flow
from flows.deployments.schema import EmbedConfig, settings_over, tighten
from flows.deployments.view import TABLE_ROWS, plain, show
from flows.job.command_config import run_config
from flows.job.label_config import LABEL_FORMATS, LabelConfig
from flows.job.labels import label_set
from flows.pipelines import LABEL, product_of
from flows.results.labels.examples import examples_of
from flows.results.labels.writing import LabelsWritten
from flows.running.label import LabelAsked, label
from flows.running.run import LauncherMaker
from flows.running.watch import OnBegin

COUNTS = "penstock-label-counts"


def tighten_labels(schema: dict[str, Any]) -> None:
    """Make Prefect refuse before a run what LabelConfig and LabelAsked would refuse in it."""
    tighten(schema)
    fields = schema["properties"]
    fields["labels"]["pattern"] = r"\S"
    fields["format"]["items"]["enum"] = list(LABEL_FORMATS)
    fields["threshold"]["anyOf"][0].update(minimum=-1, maximum=1)
    fields["top"]["minimum"] = 1


with_config(settings_over(EmbedConfig, tighten_labels, LabelConfig, "label"))(LabelConfig)


@flow(name="label-images", flow_run_name=named_after_out, persist_result=False)
def label_images(config: LabelConfig) -> State[Any]:
    """Give labels to everything that `config` names; its fields are the command line's options.

    Relative paths, those of labels and templates too, are looked up as `caption-videos` does.
    """
    return run_in_flow(config, label_and_count, product_of(LABEL))


def label_and_count(
    config: LabelConfig, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin
) -> LabelsWritten:
    """Run it, and show a table of what each label was given to."""
    labels = label_set(config.labels, config.templates)
    asked = LabelAsked(
        labels=labels,
        examples=examples_of(config.examples, labels.names),
        threshold=config.threshold,
        top=config.top,
    )
    result = label(run_config(config), asked, display, make_launcher, on_begin)
    first = sorted(result.counts, key=lambda one: -one["passed"])[:TABLE_ROWS]
    rows = [
        {"label": plain(one["label"]), "given to": one["passed"], "median": one["median"]}
        for one in first
    ]
    show(rows, result.line(), COUNTS)
    return result
