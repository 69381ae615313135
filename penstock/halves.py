"""Python API of a model in halves: loads one half of a folder, a hub id or the demo model."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from artifacts.schema import Part
from flows.checkpoint.models import demo_folder
from flows.options.model import DEMO_MODEL


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
    folder = demo_folder() if str(path) == DEMO_MODEL else path
    load = import_module("stages.models").load_half  # torch, by name as in penstock/__init__
    return load(folder, keep, extra_modules=extra_modules, without=without, **options)
