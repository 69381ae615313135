"""Python imports this by itself at its start where this folder is on the path: once torch is
imported, it is changed to show the cards that a folder names."""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType


def show_cards(torch: ModuleType) -> None:
    from tests.support.fake_gpu.torch_cuda import patch_cuda
    from tests.support.fake_gpu.torch_tensors import patch_tensors

    patch_tensors()
    patch_cuda()


def show_kernel(device: ModuleType) -> None:
    """Have the program read there what kernel this is."""
    device.__dict__["OSRELEASE"] = Path(os.environ["FAKE_GPU"]) / "osrelease"


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "torch": show_cards,
    "stages.process.device": show_kernel,
}
"""Module → what is done once it is imported."""


class Finder(importlib.abc.MetaPathFinder):
    """Leaves the finding to the others, and adds to the running."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in AFTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_change(module: ModuleType) -> None:
                run(module)
                AFTER[name](module)

            spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


if "FAKE_GPU" in os.environ:
    sys.meta_path.insert(0, Finder())
