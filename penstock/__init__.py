"""Python API of Penstock: its commands as functions, and a model in halves.

    caption(sources, **options) -> Captions          a running job: captions as they are made
    ask(sources, **options) -> Answers               a running job: answers to typed questions
    embed(sources, **options) -> Embeddings          a running job: vectors of images and frames
    label(sources, **options) -> Labels              a running job: labels of images and frames
    sift(sources, **options) -> Sifted               marks of media, and a list of what is kept
    plan(sources, **options) -> dict                 the estimate of `plan --json`
    rebuild(sources, **options) -> RebuildResult     features brought up to date
    index(sources, **options) -> IndexWritten        vectors added to an index
    search(what, index, **options) -> Hits           what an index holds of this kind
    tune(data, **options) -> Tuned                   an adapter trained on captions
    learn(out, **options) -> Learned                 a round of learning from corrections
    export(model, **options) -> Exported             a quantized checkpoint, compared
    convert(source, folder) -> Converted             pickled weights as safetensors
    serve(**options) -> ServerProcess                an HTTP server in a process of its own
    status(out) -> dict, report(out) -> Path         a run's progress, and its HTML report
    check(out, **options) -> dict                    what a trainer would not see of its data sets
    show(out) -> Shown                               captions beside thumbnails, in a notebook
    correct(out, texts) -> int                       captions corrected as in the review

    load_half(path, "vision" | "language", **from_pretrained_options) -> model
    encode(vision_half, inputs) -> features
    generate(language_half, inputs, features, **generate_options) -> tokens

Options are those of the command line: `--max-new-tokens 64` is `max_new_tokens=64`. Errors are
raised as PenstockError, whose `hint` names the next step. Heavy packages are imported on first use
of one of these functions.
"""

TYPE_CHECKING = False  # and not from typing, which a file of the current folder may be
if TYPE_CHECKING:
    from typing import Any

    __version__: str
    from artifacts.errors import PenstockError as PenstockError
    from artifacts.texts.captions import Caption as Caption
    from artifacts.texts.captions import Failure as Failure
    from penstock.api import check as check
    from penstock.api import convert as convert
    from penstock.api import export as export
    from penstock.api import learn as learn
    from penstock.api import load_half as load_half
    from penstock.api import plan as plan
    from penstock.api import rebuild as rebuild
    from penstock.api import report as report
    from penstock.api import status as status
    from penstock.api import tune as tune
    from penstock.asking import Answers as Answers
    from penstock.asking import ask as ask
    from penstock.captions import Captions as Captions
    from penstock.captions import caption as caption
    from penstock.cells import Shown as Shown
    from penstock.cells import show as show
    from penstock.corrections import correct as correct
    from penstock.searching import Hits as Hits
    from penstock.searching import index as index
    from penstock.searching import search as search
    from penstock.server import ServerProcess as ServerProcess
    from penstock.server import serve as serve
    from penstock.vectors import Embedded as Embedded
    from penstock.vectors import Embeddings as Embeddings
    from penstock.vectors import Labels as Labels
    from penstock.vectors import embed as embed
    from penstock.vectors import label as label
    from penstock.vectors import sift as sift
    from stages.models import encode as encode
    from stages.models import generate as generate

_NAMES = {
    "artifacts.texts.captions": ("Caption", "Failure"),
    "artifacts.errors": ("PenstockError",),
    "penstock.asking": ("Answers", "ask"),
    "penstock.api": (
        "check",
        "convert",
        "export",
        "learn",
        "load_half",
        "plan",
        "rebuild",
        "report",
        "status",
        "tune",
    ),
    "penstock.captions": ("Captions", "caption"),
    "penstock.cells": ("Shown", "show"),
    "penstock.corrections": ("correct",),
    "penstock.searching": ("Hits", "index", "search"),
    "penstock.server": ("ServerProcess", "serve"),
    "penstock.vectors": ("Embedded", "Embeddings", "Labels", "embed", "label", "sift"),
    "stages.models": ("encode", "generate"),
}
"""Module → what is imported from it on first use."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(["__version__", *_HOMES])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from importlib.metadata import version

        return version("penstock")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from penstock.checked_start import intruder, open_closed_streams

    open_closed_streams()
    if error := intruder():
        raise ImportError(error)
    from importlib import import_module

    from artifacts.packages import missing_package

    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as missing:
        raise missing_package(missing, f"penstock.{name}") or missing from missing
