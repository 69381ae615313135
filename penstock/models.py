"""Python API that makes models: adapters, quantized checkpoints, converted weights."""

from os import PathLike, fspath
from typing import Unpack

from artifacts.errors import UsageError
from flows.checkpoint.conversion import Converted
from flows.checkpoint.conversion import convert as run_convert
from flows.console.display import Display
from flows.options.export_config import ExportConfig
from flows.options.tune import TuneConfig
from flows.results.export_result import Exported, refuse_foreign_folder
from flows.results.tuned import AdapterScore, Tuned
from flows.running.export import export as run_export
from flows.running.samples import evaluation_media
from flows.running.tune import tune as run_tune
from penstock.arguments import checked
from penstock.keywords import ExportOptions, TuneOptions
from penstock.options import config_with
from stages.convert.job import DTYPES, ConvertJob


def tune(
    data: str | PathLike[str], *, progress: bool = False, **options: Unpack[TuneOptions]
) -> Tuned | AdapterScore:
    """Train an adapter on captions, or score one, as `penstock tune`. Return the result when it is
    done; the same call resumes an interrupted training. Raises PenstockError."""
    config = config_with(TuneConfig, options, TuneOptions.__annotations__, data=data)
    return run_tune(config, Display(quiet=not progress))


def export(
    model: str | PathLike[str], *, progress: bool = False, **options: Unpack[ExportOptions]
) -> Exported:
    """Quantize a model and compare it with the original, as `penstock export`. Return the result
    when it is done: `accepted` says whether it passed. Raises PenstockError."""
    config = config_with(ExportConfig, options, ExportOptions.__annotations__, model=model)
    refuse_foreign_folder(config.request())  # before the clips of the demo are rendered
    display = Display(quiet=not progress)
    with evaluation_media(config, display.print_line) as sources:
        return run_export(config.captioning(sources), config.request(), display)


def convert(
    source: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    dtype: str = "",
    progress: bool = False,
) -> Converted:
    """Write a model's pickled weights as safetensors into a new folder, as `penstock convert`.
    Raises PenstockError."""
    paths = {"source": fspath(source), "folder": fspath(folder)}
    given = checked(ConvertJob, {**paths, "dtype": dtype})
    if dtype not in ("", *DTYPES):
        raise UsageError(f"dtype {dtype} is not known", hint=f"Choose from {', '.join(DTYPES)}")
    return run_convert(ConvertJob(**given), Display(quiet=not progress))
