"""Python API of the commands that return when they are done: plan, rebuild, status, check, report,
tune, learn, export and convert; and `load_half`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.schema import Part
from flows.commands.cache.rebuild import RebuildOptions, RebuildResult
from flows.commands.cache.rebuild import rebuild as run
from flows.commands.check.run import CheckRequest, check_run, lines_of
from flows.commands.export.convert import Converted
from flows.commands.export.convert import convert as run_convert
from flows.commands.export.options import ExportConfig
from flows.commands.export.result import Exported, refuse_foreign_folder
from flows.commands.export.run import export as run_export
from flows.commands.export.samples import evaluation_media
from flows.commands.learn.result import Learned
from flows.commands.learn.run import learn as run_learn
from flows.commands.report.facts import write_report
from flows.commands.shared.arguments import recorded_run
from flows.commands.status.status_command import status_lines
from flows.commands.tune.result import AdapterScore, Tuned
from flows.commands.tune.run import tune as run_tune
from flows.core.checkpoint.models import demo_folder
from flows.core.console.display import READING
from flows.core.console.lines import printable
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.model import DEMO_MODEL, GIVE_MODEL
from flows.core.options.training import LearnConfig, TuneConfig
from flows.core.plan.plan import plan_of
from flows.core.plan.view import figures, plan_lines
from flows.outputs.folder.trust import command_in
from flows.outputs.run_status import run_status
from penstock.arguments import (
    Progress,
    Sources,
    checked,
    config_for,
    config_with,
    display_for,
    path_of,
)
from penstock.keywords import (
    CaptionOptions,
    ExportOptions,
    FeatureOptions,
    LearnOptions,
    TuneOptions,
)
from stages.convert import DTYPES, ConvertJob


class Printed(dict[str, Any]):
    """A dict that is shown as the lines that a command prints of it."""

    def __init__(self, values: Mapping[str, Any], lines: Iterable[str]) -> None:
        super().__init__(values)
        self._lines = [*map(printable, lines)]

    def __repr__(self) -> str:
        return "\n".join(self._lines)


def rebuild(
    sources: Sources,
    *,
    name: str = "",
    dry_run: bool = False,
    progress: Progress = "auto",
    **options: Unpack[FeatureOptions],
) -> RebuildResult:
    """Encode what of the sources has no features. `name` and `dry_run` are as with the command
    `penstock cache rebuild`. Raises PenstockError."""
    values = {"name": name, "dry_run": dry_run}
    request = RebuildOptions(**checked(RebuildOptions, values))
    config = config_for(sources, options, RebuildConfig, FeatureOptions.__annotations__)
    return run(config, request, display_for(progress))


def plan(sources: Sources = (), **options: Unpack[CaptionOptions]) -> dict[str, Any]:
    """Return what a run would take of memory, disk and time, and whether it `fits`. Without
    sources, it is what a standard chunk would. Nothing is run. The dict is that of `penstock plan
    --json`, and is shown as the command prints it. Raises PenstockError."""
    config = config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__)
    with closing(display_for("auto")) as display:
        display.doing(READING)
        planned = plan_of(config, DirectLauncher(display.on_event), display.print_line)
    return Printed(figures(planned), plan_lines(planned))


def status(out: str | PathLike[str] = "penstock-out") -> dict[str, Any]:
    """Return the progress or the end of the run in a folder, as `penstock status --json`. It
    is shown as the command prints it. Raises PenstockError."""
    folder = folder_named(path_of("out", out), "out")
    return Printed(run_status(folder), status_lines(folder))


def check(
    out: str | PathLike[str] = "penstock-out",
    *,
    trainer: Sequence[str] = (),
    forbid: Sequence[str] = (),
    tokenizers: str | PathLike[str] = "",
    fix: bool = False,
    trust_folder: bool = False,
) -> dict[str, Any]:
    """Return what each trainer would not see of the data sets of a run, by its label, as `penstock
    check --json`; with `fix`, captions that are too long are made shorter before. It is shown as
    the command prints it. Raises PenstockError."""
    folder = folder_named(path_of("out", out), "out")
    request = CheckRequest(
        trainers=(trainer,) if isinstance(trainer, str) else tuple(trainer),
        forbid=(forbid,) if isinstance(forbid, str) else tuple(forbid),
        tokenizers=folder_named(path_of("tokenizers", tokenizers), "tokenizers")
        if tokenizers
        else None,
        fix=fix,
        trust=trust_folder,
    )
    lines, sets = check_run(folder, request)
    values = {checked.model.label: checked.values for checked in sets}
    return Printed(values, [*lines, *(line for checked in sets for line in lines_of(checked))])


def report(out: str | PathLike[str] = "penstock-out", to: str | PathLike[str] = "") -> Path:
    """Write the HTML report of a run, and return its path. Empty `to`: `report.html` in the
    folder. Raises PenstockError."""
    folder = folder_named(path_of("out", out), "out")
    return write_report(folder, folder_named(path_of("to", to), "to") if to else None)


def tune(
    data: str | PathLike[str], *, progress: Progress = "auto", **options: Unpack[TuneOptions]
) -> Tuned | AdapterScore:
    """Train an adapter on captions, or score one, as `penstock tune`. Return the result when it is
    done; the same call resumes an interrupted training. Raises PenstockError."""
    config = config_with(TuneConfig, options, TuneOptions.__annotations__, data=data)
    return run_tune(config, display_for(progress))


def learn(
    out: str | PathLike[str] = "penstock-out",
    *,
    progress: Progress = "auto",
    **options: Unpack[LearnOptions],
) -> Learned:
    """Train on the corrected captions of a run's folder, and caption again, as `penstock learn`.
    Call it in the folder in which `penstock caption` ran; the same call continues a round that was
    killed. A folder of another person needs `trust_folder`. Raises PenstockError."""
    config = config_with(LearnConfig, options, LearnOptions.__annotations__, out=out)
    folder = folder_named(config.out, "out")
    command = command_in(folder, trust=config.trust_folder)
    if os.getcwd() != command.folder:
        raise UsageError(
            f"the captions in {folder} were made in {command.folder}",
            hint="Call os.chdir with that folder first, because paths are relative to it",
        )
    return run_learn(config, recorded_run(command), display_for(progress))


def export(
    model: str | PathLike[str], *, progress: Progress = "auto", **options: Unpack[ExportOptions]
) -> Exported:
    """Quantize a model and compare it with the original, as `penstock export`. Return the result
    when it is done: `accepted` says whether it passed. Raises PenstockError."""
    config = config_with(ExportConfig, options, ExportOptions.__annotations__, model=model)
    refuse_foreign_folder(config)  # before the clips of the demo are rendered
    display = display_for(progress)
    with evaluation_media(config, display.print_line) as sources:
        return run_export(config.captioning(sources), config, display)


def convert(
    source: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    dtype: str = "",
    progress: Progress = "auto",
) -> Converted:
    """Write a model's pickled weights as safetensors into a new folder, as `penstock convert`.
    Raises PenstockError."""
    read = folder_named(path_of("source", source), "source")
    target = folder_named(path_of("folder", folder), "folder")
    checked(ConvertJob, {"dtype": dtype})
    if dtype not in ("", *DTYPES):
        raise UsageError(f"dtype {dtype} is not known", hint=f"Choose from {', '.join(DTYPES)}")
    job = ConvertJob(source=str(read), folder=str(target), dtype=dtype)
    return run_convert(job, display_for(progress))


def load_half(
    path: str | Path,
    keep: Part,
    *,
    extra_modules: Iterable[str] | None = None,
    without: Iterable[str] = (),
    **options: Any,
) -> Any:
    """Load one half of the model at `path` (a folder, a hub id or `demo`), or the whole, in eval
    mode.

    `extra_modules` are paths of modules in the other half that this half needs too. With None, they
    are found in the model's classes. `without` are paths of this half to leave out. `options` are
    those of `from_pretrained`. Raises PenstockError.
    """
    source = path_of("path", path, GIVE_MODEL)
    folder = demo_folder() if source == DEMO_MODEL else source
    load = import_module("stages.models").load_half  # torch, by name as in penstock/__init__
    return load(folder, keep, extra_modules=extra_modules, without=without, **options)
