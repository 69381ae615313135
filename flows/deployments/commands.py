"""The Prefect flows of single commands: vectors, marks, an index, labels, training and others.

Each of these has one flow:

- a run that computes vectors
- a run that marks media
- a run that fills an index, suited to a nightly schedule
- a run that labels media
- the training of an adapter
- an export to a quantized model
- a round of learning
- a rebuild of stored features, in which the plain command makes all decisions
"""

from dataclasses import replace
from functools import partial
from typing import Any

from prefect import State, flow, get_run_logger

from artifacts.errors import PenstockError
from flows.console.display import Display
from flows.deployments.config_checks import (
    CaptionParameters,
    EmbedParameters,
    ExportConfig,
    IndexParameters,
    LabelParameters,
    LearnConfig,
    RebuildParameters,
    SiftParameters,
    TuneConfig,
    confine,
)
from flows.deployments.page import RunPage
from flows.deployments.runs import (
    PrefectLauncher,
    ended_by,
    ended_when_cancelled,
    final_state,
    named_after_work,
    run_in_flow,
)
from flows.deployments.view import TABLE_ROWS, RunLog, plain, show
from flows.job.prepare import out_folder
from flows.learning.learn import learn
from flows.options.commands import RunOptions
from flows.options.training import RecordedRun
from flows.options.vectors import LabelOptions, VectorConfig
from flows.pipelines import EMBED, LABEL, SIFT, product_of
from flows.results.export_result import Exported
from flows.results.label_files import LabelsWritten
from flows.running.export import export
from flows.running.label import label, label_request
from flows.running.run import LauncherMaker, embed
from flows.running.run_observer import OnBegin
from flows.running.samples import evaluation_media
from flows.running.sift import sift
from flows.running.tune import tune
from flows.search.build import IndexWritten, fill_index
from flows.upkeep.rebuild import RebuildOptions, rebuild


@flow(name="embed-media", flow_run_name=named_after_work, persist_result=False)
def embed_media(config: EmbedParameters) -> State[Any]:
    """Compute vectors of everything that `config` names; its fields are the command line's options.

    Relative paths are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(embed, config), product_of(EMBED))


@flow(name="sift-media", flow_run_name=named_after_work, persist_result=False)
def sift_media(config: SiftParameters) -> State[Any]:
    """Mark everything that `config` names, and list what meets `keep`; its fields are the command
    line's options.

    Relative paths are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(sift, config), product_of(SIFT))


@flow(name="index-folder", flow_run_name=named_after_work, persist_result=False)
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


COUNTS = "penstock-label-counts"


@flow(name="label-images", flow_run_name=named_after_work, persist_result=False)
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


ADAPTER = "adapter"
"""Name of the product: the stage that makes it has the progress bar `penstock-tune`."""


@flow(name="tune-captions", flow_run_name=named_after_work, persist_result=False)
def tune_captions(config: TuneConfig) -> State[Any]:
    """Train an adapter on captions; the fields of `config` are the options of `penstock tune`.

    Relative paths are looked up as `caption-videos` does. A run that died goes on from its last
    checkpoint when it is started again.
    """
    return run_in_flow(config.captioning((), config.out), partial(tune, config), ADAPTER)


CHECKPOINT = "checkpoint"
"""Name of the product: the stage that makes it has the progress bar `penstock-export`."""


@flow(name="export-model", flow_run_name=named_after_work, persist_result=False)
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


@flow(name="learn-captions", flow_run_name=named_after_work, persist_result=False)
def learn_captions(config: LearnConfig, caption: CaptionParameters) -> State[Any]:
    """Train an adapter on corrected captions, and caption again with it. The fields of `config` are
    the options of `penstock learn`; those of `caption` are the options of the run that made the
    captions, and name its folder.

    Relative paths are looked up as `caption-videos` does. A round that died goes on from its last
    step when it is started again.
    """
    learning, recorded = replace(config, out=caption.out), RecordedRun(config=caption)
    # With the round's own consent to code, so that the worker's rule about it holds.
    trusted = config.trust_remote_code or caption.trust_remote_code
    captioning = replace(caption, trust_remote_code=trusted)
    return run_in_flow(captioning, partial(learn, learning, recorded), "learned")


TABLE = "penstock-rebuild"


@flow(name="rebuild-features", flow_run_name=named_after_work, persist_result=False)
def rebuild_features(
    config: RebuildParameters, name: str = "", prune: bool = False, dry_run: bool = False
) -> State[Any]:
    """Encode what of the features that `config` needs is missing in the store.

    Args:
        config: The options of `penstock cache rebuild`.
        name: Tells apart jobs over the same sources, such as those of two models.
        prune: Remove what earlier rebuilds of this job made and nothing refers to any more.
        dry_run: Say in the log what would be done, and do nothing.
    """
    display = Display(to=RunLog(get_run_logger()))
    options = RebuildOptions(name=name, prune=prune, dry_run=dry_run)
    page = RunPage()
    try:
        confine(config, out=False)
        with ended_when_cancelled():
            result = rebuild(config, options, display, PrefectLauncher, page.begin)
    except PenstockError as error:
        return ended_by(error, TABLE, page)
    except BaseException:
        page.end()  # or it would say for good that the run is going on
        raise
    if dry_run:
        for line in result.plan_lines():
            display.print_line(line)
    hint = "" if result.files else "The table of the run says why of each file"
    return final_state(result, TABLE, page, nothing_hint=hint)
