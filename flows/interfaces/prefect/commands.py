"""The Prefect flows of the commands. The sequence of stages is that of the plain command.

`caption-many`, `embed-many` and `label-many` divide the files of a run among the machines of the
Ray cluster that the worker's environment names. Without one, they run the plain command on the GPUs
of their own machine.
"""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Annotated

from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed
from pydantic import Field

from artifacts.errors import EnvironmentFault, PenstockError
from artifacts.option_texts import parse_size
from artifacts.records.store import check_format, open_store
from flows.commands.ask import ANSWER
from flows.commands.ask.run import ask
from flows.commands.cache.clean import collect
from flows.commands.cache.rebuild import RebuildOptions, RebuildResult, rebuild
from flows.commands.caption.run import caption
from flows.commands.export.result import Exported
from flows.commands.export.run import export
from flows.commands.export.samples import evaluation_media
from flows.commands.label.run import label
from flows.commands.learn.run import learn
from flows.commands.search.build import fill_index
from flows.commands.sift.run import sift
from flows.commands.tune.run import tune
from flows.core.console.display import Display
from flows.core.console.lines import size
from flows.core.job.partitions import FILES
from flows.core.job.prepare import Job
from flows.core.options.commands import CaptionConfig
from flows.core.options.model import ALL_GPUS, is_served
from flows.core.options.store import default_store
from flows.core.options.training import RecordedRun
from flows.core.pipelines import CAPTION, EMBED, LABEL, SIFT, product_of
from flows.execution.run import LauncherMaker, embed, stopped_in_order
from flows.execution.run_observer import OnBegin
from flows.interfaces.prefect.config_checks import (
    AskParameters,
    CaptionParameters,
    EmbedParameters,
    ExportParameters,
    IndexParameters,
    LabelParameters,
    LearnParameters,
    RebuildParameters,
    SiftParameters,
    TuneParameters,
)
from flows.interfaces.prefect.runs import (
    CALLER,
    Caller,
    Ended,
    PipelineResult,
    named_after_work,
    run_in_flow,
)
from flows.interfaces.prefect.server import FILE, OWN, client_settings, refuses_login
from flows.interfaces.prefect.view import Progress, page, quiet_console, show
from flows.interfaces.ray.run import PARTITIONS, run_on_cluster
from flows.outputs.record.record_writer import RecordWriter, remember
from flows.outputs.record.recorded_command import command_of, words_of
from flows.outputs.run_result import RunResult


@flow(name="caption-videos", flow_run_name=named_after_work, persist_result=False)
def caption_videos(config: CaptionParameters) -> Ended:
    """Caption everything that `config` names; its fields are the command line's options.

    Relative paths are looked up in the flow's working directory, which for a deployment is the
    folder it was deployed from.
    """
    return run_in_flow(config, partial(caption_and_remember, config), product_of(CAPTION))


def caption_and_remember(
    config: CaptionConfig, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin
) -> RunResult:
    """Run the command, and record its words."""

    def begin(job: Job, writer: RecordWriter) -> None:
        remember(words_of(config), job, writer)
        on_begin(job, writer)

    return caption(config, display, make_launcher, begin)


def run_with_prefect(config: CaptionConfig, display: Display) -> RunResult:
    """Run the flow inside the command, which prints what the plain command prints. Raises
    PenstockError."""
    quiet_console(display.print_line)
    caller = Caller(display=display)
    token = CALLER.set(caller)
    try:
        with stopped_in_order(), temporary_settings(client_settings()):
            state = observed(partial(caption_videos, config, return_state=True), caller)
    finally:
        CALLER.reset(token)
    if caller.result is None:
        assert state is not None
        state.result()  # raises
    assert caller.result is not None
    return caller.result


def observed(run: Callable[[], Ended], caller: Caller) -> Ended | None:
    """Run the flow, and return its state, or None if the server vanished after the work was
    done."""
    try:
        return run()
    except Exception as error:  # from Prefect; the flow's own errors are in its state
        text = f"no response from the Prefect server at {PREFECT_API_URL.value()} ({error})"
        hint = "Start it, or unset PREFECT_API_URL; finished work is kept"
        if refuses_login(error):
            text = f"the Prefect server at {PREFECT_API_URL.value()} refuses the login"
            hint = f"Set PREFECT_API_AUTH_STRING to the login in {FILE} of its PREFECT_HOME; {OWN}"
        if caller.result is None:
            raise EnvironmentFault(text, hint=hint) from error
        caller.display.print_line(text)
        return None


@flow(name="embed-media", flow_run_name=named_after_work, persist_result=False)
def embed_media(config: EmbedParameters) -> Ended:
    """Compute vectors of everything that `config` names; its fields are the command line's options.

    Relative paths are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(embed, config), product_of(EMBED))


@flow(name="sift-media", flow_run_name=named_after_work, persist_result=False)
def sift_media(config: SiftParameters) -> Ended:
    """Mark everything that `config` names, and list what meets `keep`; its fields are the command
    line's options.

    Relative paths are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(sift, config), product_of(SIFT))


@flow(name="index-folder", flow_run_name=named_after_work, persist_result=False)
def index_folder(config: IndexParameters) -> Ended:
    """Add to the index `out` all files that it has no rows of, and create it if needed.

    The fields of `config` are the options of `penstock index build`; relative paths are looked up
    as `caption-videos` does. Rows of files that are gone are counted, and stay.
    """
    return run_in_flow(config, partial(fill_index, config), "index")


@flow(name="ask-media", flow_run_name=named_after_work, persist_result=False)
def ask_media(config: AskParameters) -> Ended:
    """Answer questions about everything that `config` names; its fields are the command line's
    options.

    Relative paths, that of a file of questions too, are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(ask, config), product_of(ANSWER))


@flow(name="label-images", flow_run_name=named_after_work, persist_result=False)
def label_images(config: LabelParameters) -> Ended:
    """Label everything that `config` names; its fields are the command line's options.

    Relative paths, those of labels and templates too, are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(label, config), product_of(LABEL))


ADAPTER = "adapter"
"""Name of the product: the stage that makes it has the progress bar `penstock-tune`."""


@flow(name="tune-captions", flow_run_name=named_after_work, persist_result=False)
def tune_captions(config: TuneParameters) -> Ended:
    """Train an adapter on captions; the fields of `config` are the options of `penstock tune`.

    Relative paths are looked up as `caption-videos` does. A run that died goes on from its last
    checkpoint when it is started again.
    """
    return run_in_flow(config.captioning((), config.out), partial(tune, config), ADAPTER)


CHECKPOINT = "checkpoint"
"""Name of the product: the stage that makes it has the progress bar `penstock-export`."""


@flow(name="export-model", flow_run_name=named_after_work, persist_result=False)
def export_model(config: ExportParameters) -> Ended:
    """Write a quantized checkpoint, and keep it if it is as good as the original; the fields of
    `config` are the options of `penstock export`.

    Relative paths are looked up as `caption-videos` does. A checkpoint that does not pass fails the
    run and stays in `rejected` below its folder.
    """

    def run(display: Display, make_launcher: LauncherMaker, on_begin: OnBegin) -> Exported:
        with evaluation_media(config, display.print_line) as sources:
            captioning = config.captioning(sources)
            return passed(export(captioning, config, display, make_launcher, on_begin))

    return run_in_flow(config.captioning(), run, CHECKPOINT)


def passed(result: Exported) -> Exported:
    """Return an export that passed. Otherwise show its figures and raise PenstockError."""
    if result.accepted:
        return result
    missed = "; ".join(result.parity.missed)
    show(page(missed, result.row(), ()), f"penstock-{CHECKPOINT}")
    raise PenstockError(
        f"quality limit missed: {missed}",
        hint=f"The checkpoint is kept in {result.out}; set `accept` to use it anyway",
    )


@flow(name="learn-captions", flow_run_name=named_after_work, persist_result=False)
def learn_captions(config: LearnParameters, caption: CaptionParameters) -> Ended:
    """Train an adapter on corrected captions, and caption again with it. The fields of `config` are
    the options of `penstock learn`; those of `caption` are the options of the run that made the
    captions, and name its folder.

    Relative paths are looked up as `caption-videos` does. A round that died goes on from its last
    step when it is started again.
    """
    learning = replace(config, out=caption.out)
    recorded = RecordedRun(config=caption, command=command_of(words_of(caption)))
    # With the round's own consent to code, so that the worker's rule about it holds.
    trusted = config.trust_remote_code or caption.trust_remote_code
    captioning = replace(caption, trust_remote_code=trusted)
    return run_in_flow(captioning, partial(learn, learning, recorded), "learned")


@flow(name="rebuild-features", flow_run_name=named_after_work, persist_result=False)
def rebuild_features(config: RebuildParameters, name: str = "", dry_run: bool = False) -> Ended:
    """Encode what of the features that `config` needs is missing in the store.

    Args:
        config: The options of `penstock cache rebuild`.
        name: Tells apart jobs over the same sources, such as those of two models.
        dry_run: Say in the log what would be done, and do nothing.
    """
    options = RebuildOptions(name=name, dry_run=dry_run)

    def run(display: Display, make_launcher: LauncherMaker, on_begin: OnBegin) -> RebuildResult:
        result = rebuild(config, options, display, make_launcher, on_begin)
        if dry_run:
            for line in result.plan_lines():
                display.print_line(line)
        return result

    return run_in_flow(config, run, "rebuild")


@flow(name="collect-store", persist_result=False)
def collect_store(max_size: str, store: str = "") -> Ended:
    """Delete the least recently used features and frames of a store, as `penstock cache gc` does.

    Args:
        max_size: What the store may take: 200GB, 1.5TiB.
        store: Its folder or bucket; empty: the user's.
    """
    try:
        check_format(place := open_store(store or default_store()))
        result = collect(place, parse_size(max_size, "max_size"), dry_run=False)
    except PenstockError as error:
        return Failed(message=f"{error}")
    line = f"deleted {size(result.bytes)}; {size(result.after)} of at most {size(result.limit)}"
    if result.after <= result.limit:
        return Completed(message=line)
    return Failed(message=f"{line}: {size(result.held)} of it is in use by running jobs")


ADDRESS = "PENSTOCK_RAY_ADDRESS"
"""Address of the Ray cluster, HOST:PORT; empty: there is none."""
Files = Annotated[int, Field(gt=0, description="files of a portion, at the most")]


@flow(name="caption-many", flow_run_name=named_after_work, persist_result=False)
def caption_many(config: CaptionParameters, files: Files = FILES) -> Ended:
    """Caption what `config` names on all GPUs of the Ray cluster, as `caption-videos` does on one.

    Media, `store` and `out` must have the same paths on every machine.
    """
    return _divided("caption", config, files, caption_and_remember, product_of(CAPTION))


@flow(name="embed-many", flow_run_name=named_after_work, persist_result=False)
def embed_many(config: EmbedParameters, files: Files = FILES) -> Ended:
    """Compute vectors on all GPUs of the Ray cluster, as `embed-media` does on one."""
    return _divided("embed", config, files, embed, product_of(EMBED))


@flow(name="label-many", flow_run_name=named_after_work, persist_result=False)
def label_many(config: LabelParameters, files: Files = FILES) -> Ended:
    """Label media on all GPUs of the Ray cluster, as `label-images` does on one."""
    return _divided("label", config, files, label, product_of(LABEL))


def _divided(
    command: str,
    config: CaptionParameters | EmbedParameters | LabelParameters,
    files: int,
    plain: Callable[..., PipelineResult],
    makes: str,
) -> Ended:
    """Run a command on the cluster, or on all GPUs of this machine where none is named."""
    address = os.environ.get(ADDRESS, "").strip()
    begun = partial(remember, words_of(config)) if isinstance(config, CaptionConfig) else None

    def on_cluster(display: Display, *_: object) -> PipelineResult:
        with closing(Progress(PARTITIONS)) as bar:
            result: PipelineResult = run_on_cluster(
                command,
                config,
                display,
                address,
                files=files,
                on_progress=bar.report,
                on_begin=begun,
            )
            return result

    gpus = config.gpus or (None if is_served(config.model) else ALL_GPUS)
    on_this_machine = partial(plain, replace(config, gpus=gpus))
    return run_in_flow(config, on_cluster if address else on_this_machine, makes)
