"""Makes each decode stage wait before it starts, as one waits for a GPU, so that many machines can
be shown on one. It is on PYTHONPATH where scripts/prove/many_check.py puts it."""

import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SECONDS = float(os.environ.get("PENSTOCK_CHECK_WAIT") or 0)


def change(module: ModuleType) -> None:
    start = module.DirectLauncher.start

    def start_later(self: Any, call: Any) -> Any:
        if call.name == "decode":
            time.sleep(SECONDS)
        return start(self, call)

    module.DirectLauncher.start = start_later


class Waiting(MetaPathFinder):
    """Changes the module when it is imported: processes of Ray do not import it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "flows.core.machine.launch":
            return None
        others = (each for each in sys.meta_path if each is not self)
        spec = next(filter(None, (each.find_spec(name, path, target) for each in others)), None)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            change(module)

        spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


if SECONDS:
    sys.meta_path.insert(0, Waiting())
