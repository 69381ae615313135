"""Python API of Penstock: its commands as functions, and a model in halves.

    caption(sources, **options) -> Captions          a running job: captions as they are made
    plan(sources, **options) -> dict                 the estimate of `plan --json`
    rebuild(sources, **options) -> RebuildResult     features brought up to date

    load_half(path, "vision" | "language", **from_pretrained_options) -> model
    encode(vision_half, inputs) -> features
    generate(language_half, inputs, features, **generate_options) -> tokens
    save_features(path, features), load_features(path) -> features

Options are those of the command line: `--max-new-tokens 64` is `max_new_tokens=64`. Errors are
raised as PenstockError, whose `hint` names the next step. Heavy packages are imported on first use
of one of these functions.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from penstock.start import intruder

if TYPE_CHECKING:
    from artifacts.captions import Caption as Caption
    from artifacts.captions import Failure as Failure
    from artifacts.errors import PenstockError as PenstockError
    from penstock.api import plan as plan
    from penstock.api import rebuild as rebuild
    from penstock.captions import Captions as Captions
    from penstock.captions import caption as caption
    from stages.models import encode as encode
    from stages.models import generate as generate
    from stages.models import load_features as load_features
    from stages.models import load_half as load_half
    from stages.models import save_features as save_features

_HOMES = {
    "Caption": "artifacts.captions",
    "Captions": "penstock.captions",
    "Failure": "artifacts.captions",
    "PenstockError": "artifacts.errors",
    "caption": "penstock.captions",
    "encode": "stages.models",
    "generate": "stages.models",
    "load_features": "stages.models",
    "load_half": "stages.models",
    "plan": "penstock.api",
    "rebuild": "penstock.api",
    "save_features": "stages.models",
}

__version__ = version("penstock")
__all__ = [
    "Caption",
    "Captions",
    "Failure",
    "PenstockError",
    "__version__",
    "caption",
    "encode",
    "generate",
    "load_features",
    "load_half",
    "plan",
    "rebuild",
    "save_features",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if told := intruder():
        raise ImportError(told)
    return getattr(import_module(_HOMES[name]), name)
